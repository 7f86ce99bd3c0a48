/** Turn text files into a token file: the work of `tessera tokenize`. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "core/ctx.h"
#include "core/status.h"
#include "train/data/token_file.h"

TESS_BEGIN_DECLS

typedef enum tess_tokenize_format {
    TESS_TOKENIZE_AUTO,         /* .txt: text; .jsonl, .json: by the keys of the first object */
    TESS_TOKENIZE_TEXT,         /* a file is one document, or more with `separator` */
    TESS_TOKENIZE_JSONL_TEXT,   /* {"text": ...} per line */
    TESS_TOKENIZE_JSONL_PROMPT, /* {"prompt": ..., "completion": ...} per line */
    TESS_TOKENIZE_JSONL_CHAT,   /* {"messages": [{"role": ..., "content": ...}, ...]} per line */
    TESS_TOKENIZE_FORMAT_NUMEL
} tess_tokenize_format;

/** "auto", "text", "jsonl-text", "jsonl-prompt", "jsonl-chat". Local. @return TESS_E_ARG lists the
 * names */
TESS_MUST_CHECK tess_status tess_tokenize_format_parse(const char *name, tess_tokenize_format *out);

typedef struct tess_tokenize_options {
    const char *tokenizer_path; /* tokenizer.json or its directory */
    const char *const *inputs;  /* [input_numel] */
    int64_t input_numel;
    const char *output_path; /* replaced when it exists */
    tess_tokenize_format format;
    const char *separator;      /* text: a line that equals this ends a document; NULL: none */
    bool no_bos;                /* leave out the template's prefix (bos) */
    const char *eos_token;      /* appended to each document; "auto": the one that
                                   tokenizer_config.json names; NULL: what the template appends */
    bool train_on_prompts;      /* prompt and non-assistant tokens count in the loss */
    bool parse_special_text;    /* special tokens in plain text are recognized */
    const char *chat_template;  /* of format/chat_template.h; needed for chat */
    const char *default_system; /* system text for conversations without one, or NULL */
} tess_tokenize_options;

typedef struct tess_tokenize_result {
    tess_token_file_info file;
    int64_t skipped_empty_numel; /* documents without a token */
    int64_t no_loss_numel;       /* documents of which no token counts in the loss */
    int64_t no_end_numel;        /* texts and completions to which no end token was appended */
    int64_t input_nbytes;
} tess_tokenize_result;

/**
 * Tokenize the inputs, in order, into one token file. Local.
 *
 * @return TESS_E_FORMAT names file, line or byte; TESS_E_ARG options that do not fit together;
 * nothing is left on disk on failure
 */
TESS_MUST_CHECK tess_status tess_tokenize_run(const tess_ctx *ctx,
                                              const tess_tokenize_options *options,
                                              tess_tokenize_result *result);

TESS_END_DECLS
