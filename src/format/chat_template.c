#include "format/chat_template.h"

#include <string.h>

#include "core/arith.h"
#include "core/memory.h"
#include "format/tokenizer_priv.h"

enum { ROLE_NBYTES_MAX = 64 };

/* Control tokens of a template; -1 where it has none. */
struct tess_chat_template {
    tess_chat_style style;
    char *default_system;
    int32_t bos;
    int32_t open, close; /* of the header: start_header/end_header, im_start, [INST]/[/INST] */
    int32_t end;         /* of the turn */
    const char *gap;     /* mistral-inst: between control tokens and text */
};

static const struct {
    const char *name, *bos, *open, *close, *end;
    bool needs_open;
    const char *system;       /* of conversations without one, or NULL */
    const char *system_front; /* in front of every system text at the beginning, or NULL */
    bool has_tools;           /* other roles are published in forms that are not rendered here */
} styles[TESS_CHAT_STYLE_NUMEL] = {
    [TESS_CHAT_LLAMA3] = {"llama3", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
                          "<|eot_id|>", true, NULL, NULL, false},
    [TESS_CHAT_LLAMA3_1] = {"llama3.1", "<|begin_of_text|>", "<|start_header_id|>",
                            "<|end_header_id|>", "<|eot_id|>", true, "",
                            "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n",
                            true},
    [TESS_CHAT_CHATML] = {"chatml", NULL, "<|im_start|>", NULL, "<|im_end|>", true, NULL, NULL,
                          false},
    [TESS_CHAT_QWEN2_5] = {"qwen2.5", NULL, "<|im_start|>", NULL, "<|im_end|>", true,
                           "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
                           NULL, true},
    [TESS_CHAT_QWEN3] = {"qwen3", NULL, "<|im_start|>", NULL, "<|im_end|>", true, NULL, NULL, true},
    /* Tokenizers before version 3 spell [INST] in plain characters. */
    [TESS_CHAT_MISTRAL_INST] = {"mistral-inst", "<s>", "[INST]", "[/INST]", "</s>", false, NULL,
                                NULL, false},
};

tess_status tess_chat_style_parse(const char *name, tess_chat_style *out)
{
    for (int i = 0; i < TESS_CHAT_STYLE_NUMEL; i++) {
        if (strcmp(styles[i].name, name) == 0) {
            *out = (tess_chat_style)i;
            return TESS_OK;
        }
    }
    return TESS_FAIL(TESS_E_ARG,
                     "chat template '%.64s' is not known; choose " TESS_CHAT_STYLES_TEXT, name);
}

const char *tess_chat_style_name(tess_chat_style style) { return styles[style].name; }

/* Id of a control token. One that is not marked special could be written by the data itself. */
static tess_status find_control(const tess_tokenizer *t, tess_chat_style style, const char *text,
                                bool is_needed, int32_t *id)
{
    *id = -1;
    if (text == NULL)
        return TESS_OK;
    const int32_t found = tess_tokenizer_find(t, text);
    if (!is_needed && (found < 0 || !tess_tokenizer_is_special(t, found)))
        return TESS_OK;
    TESS_CHECK(found >= 0, TESS_E_FORMAT,
               "chat template %s needs the token '%s', which tokenizer '%s' lacks; choose the "
               "template the model was trained with",
               styles[style].name, text, t->name);
    TESS_CHECK(tess_tokenizer_is_special(t, found), TESS_E_FORMAT,
               "chat template %s needs the token '%s' to be special, in tokenizer '%s' it is not; "
               "set \"special\": true in added_tokens",
               styles[style].name, text, t->name);
    *id = found;
    return TESS_OK;
}

/* Mistral's templates over tekken have no space behind a control token, older ones have one. */
static bool is_tekken(const tess_tokenizer *t)
{
    for (int i = 0; i < t->split_numel; i++)
        if (t->split[i] == TESS_SPLIT_TEKKEN)
            return true;
    return false;
}

static tess_status bind(tess_chat_template *chat, const tess_tokenizer *t)
{
    const tess_chat_style style = chat->style;
    const bool needs_open = styles[style].needs_open;
    TESS_TRY(find_control(t, style, styles[style].bos, true, &chat->bos));
    TESS_TRY(find_control(t, style, styles[style].open, needs_open, &chat->open));
    TESS_TRY(find_control(t, style, styles[style].close, needs_open, &chat->close));
    TESS_TRY(find_control(t, style, styles[style].end, true, &chat->end));
    if (chat->open < 0 || chat->close < 0)
        chat->open = style == TESS_CHAT_MISTRAL_INST ? -1 : chat->open;
    chat->gap = chat->open >= 0 && is_tekken(t) ? "" : " ";
    return TESS_OK;
}

tess_status tess_chat_template_create(const tess_tokenizer *tokenizer, tess_chat_style style,
                                      const char *default_system, tess_chat_template **out)
{
    void *object = NULL;
    TESS_TRY(tess_alloc(sizeof(tess_chat_template), &object));
    tess_chat_template *chat = object;
    chat->style = style;
    tess_status st = bind(chat, tokenizer);
    if (st == TESS_OK && default_system != NULL)
        st = tess_strdup(default_system, &chat->default_system);
    if (st != TESS_OK) {
        tess_chat_template_destroy(&chat);
        return st;
    }
    *out = chat;
    return TESS_OK;
}

void tess_chat_template_destroy(tess_chat_template **chat)
{
    if (*chat == NULL)
        return;
    tess_free((*chat)->default_system);
    tess_free(*chat);
    *chat = NULL;
}

/* One conversation being encoded. */
typedef struct writer {
    const tess_chat_template *chat;
    tess_encoder *encoder;
    tess_ids *ids;
    tess_chat_span *span;
    int64_t span_numel;
    int64_t query_idx; /* qwen3: the last question */
    bool is_first, is_last;
    tess_text header;  /* scratch */
    tess_text pending; /* mistral-inst: a system message waits for the user's; qwen3: scratch */
} writer;

static tess_status put_id(writer *w, int32_t id) { return tess_ids_append(w->ids, &id, 1); }

static tess_status put_text(writer *w, const char *text)
{
    return tess_encode(w->encoder, text, strlen(text), TESS_ENCODE_NO_SPECIAL_TEXT, w->ids);
}

/* w->header and the content as one text, as the reference renders them. */
static tess_status put_joined(writer *w, const char *content, size_t nbytes, int64_t *content_idx)
{
    const tess_encode_parts parts = {w->header.byte, (size_t)w->header.numel, content, nbytes,
                                     TESS_ENCODE_NO_SPECIAL_TEXT};
    return tess_encode_joined(w->encoder, &parts, w->ids, content_idx);
}

static tess_status set_header(writer *w, const char *a, const char *b)
{
    w->header.numel = 0;
    TESS_TRY(tess_text_append(&w->header, a, strlen(a)));
    return tess_text_append(&w->header, b, strlen(b));
}

static void put_span(writer *w, int64_t header_idx, int64_t content_idx, const char *role)
{
    w->span[w->span_numel++] =
        (tess_chat_span){header_idx, content_idx, w->ids->numel, strcmp(role, "assistant") == 0};
}

/* White space as Python's str.strip takes it: White_Space and the four separators below it. */
static bool is_stripped(uint32_t c) { return tess_is_space(c) || (c >= 0x1c && c <= 0x1f); }

static void trim(const char **text, size_t *nbytes)
{
    size_t n = 0;
    while (*nbytes > 0 && is_stripped(tess_utf8_next(*text, *nbytes, 0, &n))) {
        *text += n;
        *nbytes -= n;
    }
    while (*nbytes > 0) {
        size_t at = *nbytes - 1;
        while (at > 0 && ((unsigned char)(*text)[at] & 0xc0) == 0x80)
            at--;
        if (!is_stripped(tess_utf8_next(*text, *nbytes, at, &n)))
            break;
        *nbytes = at;
    }
}

static tess_status put_llama3(writer *w, const tess_chat_message *m)
{
    const char *front = styles[w->chat->style].system_front;
    const bool has_front = front != NULL && w->is_first && strcmp(m->role, "system") == 0;
    const int64_t header_idx = w->ids->numel;
    const char *content = m->content;
    size_t nbytes = m->content_nbytes;
    int64_t content_idx = 0;
    trim(&content, &nbytes);
    TESS_TRY(put_id(w, w->chat->open));
    TESS_TRY(put_text(w, m->role));
    TESS_TRY(put_id(w, w->chat->close));
    TESS_TRY(set_header(w, "\n\n", has_front ? front : ""));
    TESS_TRY(put_joined(w, content, nbytes, &content_idx));
    TESS_TRY(put_id(w, w->chat->end));
    put_span(w, header_idx, content_idx, m->role);
    return TESS_OK;
}

static tess_status put_chatml(writer *w, const tess_chat_message *m)
{
    const int64_t header_idx = w->ids->numel;
    int64_t content_idx = 0;
    TESS_TRY(put_id(w, w->chat->open));
    TESS_TRY(set_header(w, m->role, "\n"));
    TESS_TRY(put_joined(w, m->content, m->content_nbytes, &content_idx));
    TESS_TRY(put_id(w, w->chat->end));
    put_span(w, header_idx, content_idx, m->role);
    return put_text(w, "\n");
}

/* A piece of a text. */
typedef struct piece {
    const char *byte;
    size_t numel;
} piece;

/* Python's str.strip("\n"), of one side or both. */
static piece strip_lines(piece p, bool left, bool right)
{
    while (left && p.numel > 0 && p.byte[0] == '\n')
        p = (piece){p.byte + 1, p.numel - 1};
    while (right && p.numel > 0 && p.byte[p.numel - 1] == '\n')
        p.numel--;
    return p;
}

/* Cut at the first or the last `mark`; without one `front` is all of it and nothing is behind. */
static bool cut_at(piece p, const char *mark, bool is_last, piece *front, piece *back)
{
    const size_t nbytes = strlen(mark);
    bool is_found = false;
    *front = p;
    *back = (piece){p.byte + p.numel, 0};
    for (size_t i = 0; i + nbytes <= p.numel && (is_last || !is_found); i++)
        if (memcmp(p.byte + i, mark, nbytes) == 0) {
            is_found = true;
            *front = (piece){p.byte, i};
            *back = (piece){p.byte + i + nbytes, p.numel - i - nbytes};
        }
    return is_found;
}

/* What an answer says, and the reasoning in front of it. */
static piece take_reasoning(piece content, piece *reasoning)
{
    piece front, back, rest;
    *reasoning = (piece){content.byte, 0};
    if (!cut_at(content, "</think>", false, &front, &back))
        return content;
    front = strip_lines(front, false, true);
    *reasoning = cut_at(front, "<think>", true, &rest, &back) ? back : front;
    *reasoning = strip_lines(*reasoning, true, false);
    cut_at(content, "</think>", true, &front, &back);
    return strip_lines(back, true, false);
}

/* Answers to the last question show their reasoning, the very last one even where it has none. */
static tess_status put_qwen3(writer *w, const tess_chat_message *m, int64_t idx)
{
    piece reasoning, content = {m->content, m->content_nbytes};
    if (strcmp(m->role, "assistant") != 0)
        return put_chatml(w, m);
    content = take_reasoning(content, &reasoning);
    w->pending.numel = 0;
    if (idx > w->query_idx && (w->is_last || reasoning.numel > 0)) {
        reasoning = strip_lines(reasoning, true, true);
        content = strip_lines(content, true, false);
        TESS_TRY(tess_text_append(&w->pending, "<think>\n", 8));
        TESS_TRY(tess_text_append(&w->pending, reasoning.byte, reasoning.numel));
        TESS_TRY(tess_text_append(&w->pending, "\n</think>\n\n", 11));
    }
    TESS_TRY(tess_text_append(&w->pending, content.byte, content.numel));
    const tess_chat_message shown = {m->role, w->pending.byte, (size_t)w->pending.numel};
    return put_chatml(w, &shown);
}

/* [INST] user [/INST]: with control tokens " user", or "user", stands between them, without them
 * all of it is text and is kept back until the answer, with which it is one piece. */
static tess_status put_mistral_user(writer *w, const tess_chat_message *m)
{
    const int64_t header_idx = w->ids->numel;
    const bool has_control = w->chat->open >= 0;
    TESS_TRY(set_header(w, has_control ? w->chat->gap : "[INST] ", ""));
    TESS_TRY(tess_text_append(&w->header, w->pending.byte, (size_t)w->pending.numel));
    TESS_TRY(tess_text_append(&w->header, m->content, m->content_nbytes));
    w->pending.numel = 0;
    if (!has_control) {
        TESS_TRY(tess_text_append(&w->header, " [/INST]", 8));
        w->span[w->span_numel++] = (tess_chat_span){header_idx, header_idx, header_idx, false};
        return TESS_OK;
    }
    TESS_TRY(put_id(w, w->chat->open));
    TESS_TRY(tess_encode(w->encoder, w->header.byte, (size_t)w->header.numel,
                         TESS_ENCODE_NO_SPECIAL_TEXT, w->ids));
    TESS_TRY(put_id(w, w->chat->close));
    w->header.numel = 0;
    put_span(w, header_idx, header_idx + 1, m->role);
    return TESS_OK;
}

static tess_status put_mistral_answer(writer *w, const tess_chat_message *m)
{
    const int64_t header_idx = w->ids->numel;
    tess_chat_span *user = &w->span[w->span_numel - 1];
    int64_t content_idx = 0;
    TESS_TRY(tess_text_append(&w->header, w->chat->gap, strlen(w->chat->gap)));
    TESS_TRY(put_joined(w, m->content, m->content_nbytes, &content_idx));
    TESS_TRY(put_id(w, w->chat->end));
    w->header.numel = 0;
    if (w->chat->open < 0) {
        user->end_idx = content_idx;
        put_span(w, content_idx, content_idx, m->role);
    } else {
        put_span(w, header_idx, content_idx, m->role);
    }
    return TESS_OK;
}

static tess_status put_mistral(writer *w, const tess_chat_message *m, int64_t idx)
{
    const bool answers = w->span_numel > 0 && !w->span[w->span_numel - 1].is_assistant;
    if (strcmp(m->role, "system") == 0) {
        TESS_CHECK(idx == 0, TESS_E_FORMAT,
                   "message %" PRId64 ": chat template mistral-inst takes a system message only "
                   "at the front",
                   idx);
        TESS_TRY(tess_text_append(&w->pending, m->content, m->content_nbytes));
        return tess_text_append(&w->pending, "\n\n", 2);
    }
    const char *expected = answers ? "assistant" : "user";
    TESS_CHECK(strcmp(m->role, expected) == 0, TESS_E_FORMAT,
               "message %" PRId64 ": role '%.32s', chat template mistral-inst expects '%s' here",
               idx, m->role, expected);
    return answers ? put_mistral_answer(w, m) : put_mistral_user(w, m);
}

static bool is_common(const char *role)
{
    return strcmp(role, "system") == 0 || strcmp(role, "user") == 0 ||
           strcmp(role, "assistant") == 0;
}

static tess_status check_role(const tess_chat_message *m, tess_chat_style style, int64_t idx)
{
    const size_t nbytes = strlen(m->role);
    TESS_CHECK(nbytes >= 1 && nbytes <= ROLE_NBYTES_MAX &&
                   strspn(m->role, "abcdefghijklmnopqrstuvwxyz0123456789_-") == nbytes,
               TESS_E_FORMAT,
               "message %" PRId64 ": role '%.64s', expected lower-case letters, digits, _ or -",
               idx, m->role);
    TESS_CHECK(!styles[style].has_tools || is_common(m->role), TESS_E_FORMAT,
               "message %" PRId64 ": role '%.64s', chat template %s renders system, user and "
               "assistant; render chats with others elsewhere, and give them as prompt and "
               "completion with --special-tokens",
               idx, m->role, styles[style].name);
    return TESS_OK;
}

static tess_status put_message(writer *w, const tess_chat_message *m, int64_t idx)
{
    TESS_TRY(check_role(m, w->chat->style, idx));
    switch (w->chat->style) {
    case TESS_CHAT_LLAMA3:
    case TESS_CHAT_LLAMA3_1:
        return put_llama3(w, m);
    case TESS_CHAT_CHATML:
    case TESS_CHAT_QWEN2_5:
        return put_chatml(w, m);
    case TESS_CHAT_QWEN3:
        return put_qwen3(w, m, idx);
    case TESS_CHAT_MISTRAL_INST:
        return put_mistral(w, m, idx);
    case TESS_CHAT_STYLE_NUMEL:
        break;
    }
    return TESS_FAIL(TESS_E_STATE, "chat template %d", (int)w->chat->style);
}

/* The front of an assistant turn, or what mistral-inst still keeps back. */
static tess_status put_end(writer *w, bool add_generation)
{
    switch (w->chat->style) {
    case TESS_CHAT_LLAMA3:
    case TESS_CHAT_LLAMA3_1:
        if (!add_generation)
            return TESS_OK;
        TESS_TRY(put_id(w, w->chat->open));
        TESS_TRY(put_text(w, "assistant"));
        TESS_TRY(put_id(w, w->chat->close));
        return put_text(w, "\n\n");
    case TESS_CHAT_CHATML:
    case TESS_CHAT_QWEN2_5:
    case TESS_CHAT_QWEN3:
        if (!add_generation)
            return TESS_OK;
        TESS_TRY(put_id(w, w->chat->open));
        return put_text(w, "assistant\n");
    case TESS_CHAT_MISTRAL_INST:
        TESS_CHECK(w->pending.numel == 0, TESS_E_FORMAT,
                   "a conversation of a system message alone, chat template mistral-inst puts that "
                   "into the first user's; add one, or leave the conversation out");
        if (w->header.numel == 0)
            return TESS_OK;
        TESS_TRY(tess_encode(w->encoder, w->header.byte, (size_t)w->header.numel,
                             TESS_ENCODE_NO_SPECIAL_TEXT, w->ids));
        w->span[w->span_numel - 1].end_idx = w->ids->numel;
        return TESS_OK;
    case TESS_CHAT_STYLE_NUMEL:
        break;
    }
    return TESS_FAIL(TESS_E_STATE, "chat template %d", (int)w->chat->style);
}

static tess_status put_conversation(writer *w, const tess_chat_request *r)
{
    const tess_chat_template *chat = w->chat;
    const bool has_system = r->message_numel > 0 && strcmp(r->message[0].role, "system") == 0;
    const char *text =
        chat->default_system != NULL ? chat->default_system : styles[chat->style].system;
    TESS_CHECK(r->message_numel > 0, TESS_E_FORMAT, "a conversation without messages");
    if (chat->bos >= 0)
        TESS_TRY(put_id(w, chat->bos));
    w->is_first = true;
    w->query_idx = r->message_numel - 1;
    for (int64_t i = 0; i < r->message_numel; i++)
        if (strcmp(r->message[i].role, "user") == 0)
            w->query_idx = i;
    if (!has_system && text != NULL) {
        const tess_chat_message system = {"system", text, strlen(text)};
        TESS_TRY(put_message(w, &system, 0));
    }
    for (int64_t i = 0; i < r->message_numel; i++) {
        w->is_first = i == 0;
        w->is_last = i == r->message_numel - 1;
        TESS_TRY(put_message(w, &r->message[i], i));
    }
    return put_end(w, r->add_generation);
}

tess_status tess_chat_encode(const tess_chat_template *chat, tess_encoder *encoder,
                             const tess_chat_request *request, tess_ids *ids, tess_chat_span *span,
                             int64_t *span_numel)
{
    writer w = {.chat = chat, .encoder = encoder, .ids = ids, .span = span};
    const int64_t before = ids->numel;
    const tess_status st = put_conversation(&w, request);
    tess_text_fini(&w.header);
    tess_text_fini(&w.pending);
    if (st != TESS_OK) {
        ids->numel = before;
        return st;
    }
    *span_numel = w.span_numel;
    return TESS_OK;
}
