/**
 * Built-in chat templates, by name.
 *
 * llama3 is that of Llama 3, llama3.1 puts the dates of Llama 3.1 in front of the system text;
 * qwen2.5 is chatml with that model's default system text, qwen3 is chatml that shows the reasoning
 * (<think>) of answers behind the last question alone.
 * A template turns messages into spans of ids. Control tokens are emitted as ids; message text is
 * encoded with special-token matching off, so that data cannot forge a control token.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "format/tokenizer.h"

TESS_BEGIN_DECLS

typedef enum tess_chat_style {
    TESS_CHAT_LLAMA3,
    TESS_CHAT_LLAMA3_1,
    TESS_CHAT_CHATML,
    TESS_CHAT_QWEN2_5,
    TESS_CHAT_QWEN3,
    TESS_CHAT_MISTRAL_INST,
    TESS_CHAT_STYLE_NUMEL
} tess_chat_style;

/** Their names, for messages. */
#define TESS_CHAT_STYLES_TEXT "llama3, llama3.1, chatml, qwen2.5, qwen3 or mistral-inst"

/** Template of this name. Local. @return TESS_E_ARG lists the known names */
TESS_MUST_CHECK tess_status tess_chat_style_parse(const char *name, tess_chat_style *out);
const char *tess_chat_style_name(tess_chat_style style);

typedef struct tess_chat_template tess_chat_template;

typedef struct tess_chat_message {
    const char *role;    /* "system", "user", "assistant" (llama3, chatml: any name) */
    const char *content; /* [content_nbytes] UTF-8 */
    size_t content_nbytes;
} tess_chat_message;

/** Where a message stands: header ids, then content ids with the token that ends the turn. */
typedef struct tess_chat_span {
    int64_t header_idx;  /* first id of the header */
    int64_t content_idx; /* first id of the content */
    int64_t end_idx;     /* one past the end token (what follows it belongs to no content) */
    bool is_assistant;
} tess_chat_span;

/**
 * Bind a template to a tokenizer: find its control tokens. The encoder is borrowed. Local.
 *
 * @param[in] default_system  system text for conversations without one; NULL: the template's, if it
 * has one
 * @return TESS_E_FORMAT a control token is missing or not marked special
 */
TESS_MUST_CHECK tess_status tess_chat_template_create(const tess_tokenizer *tokenizer,
                                                      tess_chat_style style,
                                                      const char *default_system,
                                                      tess_chat_template **out);
void tess_chat_template_destroy(tess_chat_template **chat);

/**
 * Append one conversation. Local.
 *
 * @param[in]  message         [message_numel] in order
 * @param[in]  add_generation  end with the header of an assistant turn (sampling)
 * @param[out] span            [message_numel + 1] spans (a default system message comes first);
 *                             indices into `ids`
 * @param[out] span_numel      spans written
 * @return TESS_E_FORMAT a role that the template does not know or in the wrong place
 */
typedef struct tess_chat_request {
    const tess_chat_message *message;
    int64_t message_numel;
    bool add_generation;
} tess_chat_request;
TESS_MUST_CHECK tess_status tess_chat_encode(const tess_chat_template *chat, tess_encoder *encoder,
                                             const tess_chat_request *request, tess_ids *ids,
                                             tess_chat_span *span, int64_t *span_numel);

TESS_END_DECLS
