#include <string.h>

#include "core/arith.h"
#include "core/memory.h"
#include "train/prepare/tokenize_priv.h"

static tess_status reserve_mask(tess_tokenize_state *s, int64_t numel)
{
    if (numel <= s->mask_room_numel)
        return TESS_OK;
    void *grown = s->mask;
    TESS_TRY(tess_realloc_array(s->mask_room_numel, 2 * numel, 1, &grown));
    s->mask = grown;
    s->mask_room_numel = 2 * numel;
    return TESS_OK;
}

/* Hand the document over; tokens in front of `loss_idx` do not count, unless all shall. */
static tess_status put_document(tess_tokenize_state *s, int64_t loss_idx)
{
    const int64_t first = s->options->train_on_prompts ? 0 : loss_idx;
    if (s->ids.numel == 0) {
        s->result->skipped_empty_numel++;
        return TESS_OK;
    }
    TESS_TRY(reserve_mask(s, s->ids.numel));
    for (int64_t i = 0; i < s->ids.numel; i++)
        s->mask[i] = i >= first;
    s->result->no_loss_numel += first >= s->ids.numel;
    return tess_token_writer_add(s->writer, s->ids.id, s->mask, s->ids.numel);
}

static tess_status put_prefix(tess_tokenize_state *s)
{
    const tess_ids *prefix = tess_tokenizer_prefix(s->tokenizer);
    s->ids.numel = 0;
    return s->options->no_bos ? TESS_OK : tess_ids_append(&s->ids, prefix->id, prefix->numel);
}

static tess_status put_suffix(tess_tokenize_state *s)
{
    const tess_ids *suffix = tess_tokenizer_suffix(s->tokenizer);
    const bool has_eos = s->eos_id >= 0;
    s->result->no_end_numel += !has_eos && suffix->numel == 0 && s->ids.numel > 0;
    return tess_ids_append(&s->ids, has_eos ? &s->eos_id : suffix->id, has_eos ? 1 : suffix->numel);
}

tess_status tess_tokenize_text(tess_tokenize_state *s, const char *text, size_t nbytes)
{
    if (nbytes == 0) {
        s->result->skipped_empty_numel++;
        return TESS_OK;
    }
    TESS_TRY(put_prefix(s));
    TESS_TRY(tess_encode(s->encoder, text, nbytes, s->text_flags, &s->ids));
    TESS_TRY(put_suffix(s));
    return put_document(s, 0);
}

static tess_status put_prompt(tess_tokenize_state *s, const tess_json *object)
{
    const char *prompt = NULL, *completion = NULL;
    int64_t content_idx = 0;
    TESS_TRY(tess_json_get_string(object, "prompt", &prompt));
    TESS_TRY(tess_json_get_string(object, "completion", &completion));
    const tess_encode_parts parts = {prompt, strlen(prompt), completion, strlen(completion),
                                     s->text_flags};
    TESS_TRY(put_prefix(s));
    TESS_TRY(tess_encode_joined(s->encoder, &parts, &s->ids, &content_idx));
    TESS_TRY(put_suffix(s));
    return put_document(s, content_idx);
}

static tess_status reserve_messages(tess_tokenize_state *s, int64_t numel)
{
    if (numel <= s->message_room_numel)
        return TESS_OK;
    void *message = s->message, *span = s->span;
    /* One span more than messages: a default system message may come first. */
    TESS_TRY(
        tess_realloc_array(s->message_room_numel, 2 * numel, sizeof(tess_chat_message), &message));
    s->message = message;
    TESS_TRY(tess_realloc_array(s->message_room_numel > 0 ? s->message_room_numel + 1 : 0,
                                2 * numel + 1, sizeof(tess_chat_span), &span));
    s->span = span;
    s->message_room_numel = 2 * numel;
    return TESS_OK;
}

/* Role and content are all a message may hold: what else there is would be lost in silence. */
static tess_status read_message(const tess_json *item, tess_chat_message *out)
{
    char where[256];
    TESS_TRY(tess_json_expect(item, TESS_JSON_OBJECT));
    TESS_TRY(tess_json_get_string(item, "role", &out->role));
    TESS_TRY(tess_json_get_string(item, "content", &out->content));
    out->content_nbytes = strlen(out->content);
    for (int64_t i = 0; i < tess_json_numel(item); i++) {
        const tess_json *member = tess_json_at(item, i);
        const char *key = tess_json_key(member);
        tess_json_where(member, where, sizeof where);
        TESS_CHECK(strcmp(key, "role") == 0 || strcmp(key, "content") == 0 ||
                       tess_json_type_of(member) == TESS_JSON_NULL,
                   TESS_E_UNSUPPORTED,
                   "%s: only role and content of a message are supported; remove '%.64s'", where,
                   key);
    }
    return TESS_OK;
}

static tess_status put_chat(tess_tokenize_state *s, const tess_json *object)
{
    const tess_json *messages = NULL;
    int64_t span_numel = 0;
    TESS_TRY(tess_json_get_array(object, "messages", &messages));
    const int64_t numel = tess_json_numel(messages);
    TESS_TRY(reserve_messages(s, numel));
    for (int64_t i = 0; i < numel; i++)
        TESS_TRY(read_message(tess_json_at(messages, i), &s->message[i]));
    const tess_chat_request request = {s->message, numel, false};
    s->ids.numel = 0;
    TESS_TRY(tess_chat_encode(s->chat, s->encoder, &request, &s->ids, s->span, &span_numel));
    TESS_TRY(reserve_mask(s, s->ids.numel));
    memset(s->mask, s->options->train_on_prompts ? 1 : 0, (size_t)s->ids.numel);
    bool has_loss = s->options->train_on_prompts;
    for (int64_t i = 0; i < span_numel; i++) {
        const tess_chat_span *span = &s->span[i];
        if (!span->is_assistant)
            continue;
        memset(s->mask + span->content_idx, 1, (size_t)(span->end_idx - span->content_idx));
        has_loss = has_loss || span->end_idx > span->content_idx;
    }
    s->result->no_loss_numel += !has_loss;
    return tess_token_writer_add(s->writer, s->ids.id, s->mask, s->ids.numel);
}

tess_status tess_tokenize_object(tess_tokenize_state *s, tess_tokenize_format format,
                                 const tess_json *object)
{
    const char *text = NULL;
    TESS_TRY(tess_json_expect(object, TESS_JSON_OBJECT));
    switch (format) {
    case TESS_TOKENIZE_JSONL_TEXT:
        TESS_TRY(tess_json_get_string(object, "text", &text));
        return tess_tokenize_text(s, text, strlen(text));
    case TESS_TOKENIZE_JSONL_PROMPT:
        return put_prompt(s, object);
    case TESS_TOKENIZE_JSONL_CHAT:
        return put_chat(s, object);
    case TESS_TOKENIZE_AUTO:
    case TESS_TOKENIZE_TEXT:
    case TESS_TOKENIZE_FORMAT_NUMEL:
        break;
    }
    return TESS_FAIL(TESS_E_STATE, "format %d holds no JSON", (int)format);
}

tess_status tess_tokenize_detect(const tess_json *object, tess_tokenize_format *out)
{
    char where[256];
    TESS_TRY(tess_json_expect(object, TESS_JSON_OBJECT));
    tess_json_where(object, where, sizeof where);
    const bool has_text = tess_json_find(object, "text") != NULL;
    const bool has_prompt =
        tess_json_find(object, "prompt") != NULL && tess_json_find(object, "completion") != NULL;
    const bool has_messages = tess_json_find(object, "messages") != NULL;
    TESS_CHECK(has_text + has_prompt + has_messages == 1, TESS_E_FORMAT,
               "%s: expected exactly one of 'text', 'prompt' with 'completion', or 'messages'; "
               "name the format with --format",
               where);
    *out = has_text     ? TESS_TOKENIZE_JSONL_TEXT
           : has_prompt ? TESS_TOKENIZE_JSONL_PROMPT
                        : TESS_TOKENIZE_JSONL_CHAT;
    return TESS_OK;
}
