#include "train/prepare/tokenize.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/arith.h"
#include "core/memory.h"
#include "core/text.h"
#include "train/prepare/tokenize_priv.h"

static const char *const format_name[TESS_TOKENIZE_FORMAT_NUMEL] = {
    [TESS_TOKENIZE_AUTO] = "auto",
    [TESS_TOKENIZE_TEXT] = "text",
    [TESS_TOKENIZE_JSONL_TEXT] = "jsonl-text",
    [TESS_TOKENIZE_JSONL_PROMPT] = "jsonl-prompt",
    [TESS_TOKENIZE_JSONL_CHAT] = "jsonl-chat",
};

tess_status tess_tokenize_format_parse(const char *name, tess_tokenize_format *out)
{
    for (int i = 0; i < TESS_TOKENIZE_FORMAT_NUMEL; i++) {
        if (strcmp(format_name[i], name) == 0) {
            *out = (tess_tokenize_format)i;
            return TESS_OK;
        }
    }
    return TESS_FAIL(TESS_E_ARG,
                     "format '%.64s' is not known; choose auto, text, jsonl-text, jsonl-prompt or "
                     "jsonl-chat",
                     name);
}

/* Put file and line in front of a message that does not name them. */
static tess_status at_place(tess_status st, const tess_line_reader *r)
{
    char message[TESS_ERROR_MESSAGE_NBYTES];
    if (st == TESS_OK || strstr(tess_error_message(), r->path) != NULL)
        return st;
    if (r->line_idx > 0)
        snprintf(message, sizeof message, "%s:%" PRId64 ": %.1800s", r->path, r->line_idx,
                 tess_error_message());
    else
        snprintf(message, sizeof message, "%s: %.1800s", r->path, tess_error_message());
    tess_error_adopt(st, -1, message);
    return st;
}

static tess_status run_json_line(tess_tokenize_state *s, const tess_line_reader *r,
                                 const char *line, size_t nbytes, tess_tokenize_format *format)
{
    char *source = NULL;
    tess_json *object = NULL;
    TESS_TRY(tess_asprintf(&source, "%s:%" PRId64, r->path, r->line_idx));
    tess_status st = tess_json_parse(source, line, nbytes, &object);
    tess_free(source);
    if (st == TESS_OK && *format == TESS_TOKENIZE_AUTO)
        st = tess_tokenize_detect(object, format);
    if (st == TESS_OK)
        st = *format != TESS_TOKENIZE_JSONL_CHAT || s->chat != NULL
                 ? tess_tokenize_object(s, *format, object)
                 : TESS_FAIL(TESS_E_ARG,
                             "%s: chat messages need a template by name; give "
                             "--chat-template " TESS_CHAT_STYLES_TEXT,
                             r->path);
    tess_json_destroy(&object);
    return st;
}

static tess_status run_json(tess_tokenize_state *s, tess_line_reader *r,
                            tess_tokenize_format format)
{
    const char *line = NULL;
    size_t nbytes = 0;
    bool has_newline = false;
    for (;;) {
        TESS_TRY(tess_line_reader_next(r, &line, &nbytes, &has_newline));
        if (line == NULL)
            return TESS_OK;
        if (strspn(line, " \t\r") == nbytes)
            continue;
        TESS_TRY(at_place(run_json_line(s, r, line, nbytes, &format), r));
    }
}

/* The document that separated lines grow. */
typedef struct held_text {
    char *byte;
    int64_t numel, room_numel;
} held_text;

static tess_status hold_line(const tess_line_reader *r, const char *line, size_t nbytes,
                             held_text *held)
{
    const int64_t needed = held->numel + (int64_t)nbytes + 1;
    TESS_CHECK(needed <= TESS_TOKENIZE_DOCUMENT_NBYTES_LIMIT, TESS_E_FORMAT,
               "%s:%" PRId64 ": document is longer than %d bytes", r->path, r->line_idx,
               TESS_TOKENIZE_DOCUMENT_NBYTES_LIMIT);
    if (needed > held->room_numel) {
        void *grown = held->byte;
        TESS_TRY(tess_realloc_array(held->room_numel, 2 * needed, 1, &grown));
        held->byte = grown;
        held->room_numel = 2 * needed;
    }
    memcpy(held->byte + held->numel, line, nbytes);
    held->numel += (int64_t)nbytes;
    return TESS_OK;
}

/* Lines up to one that equals the separator make a document. */
static tess_status run_separated(tess_tokenize_state *s, tess_line_reader *r, held_text *held)
{
    const char *line = NULL;
    size_t nbytes = 0;
    bool has_newline = false;
    do {
        TESS_TRY(tess_line_reader_next(r, &line, &nbytes, &has_newline));
        const bool is_separator = line != NULL && nbytes == strlen(s->options->separator) &&
                                  memcmp(line, s->options->separator, nbytes) == 0;
        if (line != NULL && !is_separator) {
            TESS_TRY(hold_line(r, line, nbytes, held));
            if (has_newline)
                held->byte[held->numel++] = '\n';
            continue;
        }
        if (held->numel > 0)
            TESS_TRY(at_place(tess_tokenize_text(s, held->byte, (size_t)held->numel), r));
        held->numel = 0;
    } while (line != NULL);
    return TESS_OK;
}

static tess_status run_text(tess_tokenize_state *s, tess_line_reader *r)
{
    if (s->options->separator != NULL) {
        held_text held = {0};
        const tess_status st = run_separated(s, r, &held);
        tess_free(held.byte);
        return st;
    }
    const char *text = NULL;
    size_t nbytes = 0;
    TESS_TRY(tess_line_reader_rest(r, &text, &nbytes));
    return at_place(tess_tokenize_text(s, text, nbytes), r);
}

static tess_status run_open_input(tess_tokenize_state *s, tess_line_reader *r)
{
    tess_sha256 digest;
    tess_tokenize_format format = s->options->format;
    const bool is_json = format >= TESS_TOKENIZE_JSONL_TEXT ||
                         (format == TESS_TOKENIZE_AUTO &&
                          (tess_ends_with(r->path, ".jsonl") || tess_ends_with(r->path, ".json") ||
                           tess_ends_with(r->path, ".ndjson")));
    TESS_CHECK(!is_json || s->options->separator == NULL, TESS_E_ARG,
               "'%s': a separator is for text files, this one is read as JSON lines", r->path);
    TESS_TRY(is_json ? run_json(s, r, format) : run_text(s, r));
    TESS_TRY(tess_sha256_final(r->sha256, &digest));
    s->result->input_nbytes += r->file_nbytes;
    return tess_token_writer_add_source(s->writer, r->path, r->file_nbytes, &digest);
}

static tess_status run_input(tess_tokenize_state *s, const char *path)
{
    tess_line_reader reader;
    tess_status st = tess_line_reader_open(s->ctx->io, path, &reader);
    if (st == TESS_OK)
        st = run_open_input(s, &reader);
    tess_line_reader_close(&reader);
    return st;
}

static tess_status open_chat(tess_tokenize_state *s)
{
    tess_chat_style style = TESS_CHAT_LLAMA3;
    if (s->options->chat_template == NULL)
        return TESS_OK;
    TESS_TRY(tess_chat_style_parse(s->options->chat_template, &style));
    TESS_TRY(tess_tokenize_compare_template(s, style));
    return tess_chat_template_create(s->tokenizer, style, s->options->default_system, &s->chat);
}

tess_status tess_tokenize_beside(const tess_tokenize_state *s, const char *name, char **out)
{
    const char *path = s->options->tokenizer_path;
    const char *slash = strrchr(path, '/');
    tess_io_kind kind = TESS_IO_MISSING;
    int64_t nbytes = 0;
    TESS_TRY(tess_io_stat(s->ctx->io, path, &kind, &nbytes));
    if (kind == TESS_IO_DIR)
        return tess_asprintf(out, "%s/%s", path, name);
    return tess_asprintf(out, "%.*s%s", slash != NULL ? (int)(slash - path + 1) : 0, path, name);
}

/* The end token that the model's own files name, as text or as {"content": text}. */
static tess_status read_eos(const tess_tokenize_state *s, tess_json **config, const char **token)
{
    char *path = NULL;
    TESS_TRY(tess_tokenize_beside(s, "tokenizer_config.json", &path));
    /* model_max_length may be int(1e30). */
    tess_status st = tess_json_read_reals(s->ctx->io, path, config);
    const tess_json *eos = st == TESS_OK ? tess_json_find(*config, "eos_token") : NULL;
    const bool is_object = eos != NULL && tess_json_type_of(eos) == TESS_JSON_OBJECT;
    if (st == TESS_OK)
        st = is_object ? tess_json_get_string(eos, "content", token)
                       : tess_json_get_string(*config, "eos_token", token);
    tess_free(path);
    return st;
}

static tess_status find_eos(tess_tokenize_state *s)
{
    const tess_tokenize_options *o = s->options;
    const char *token = o->eos_token;
    tess_json *config = NULL;
    s->eos_id = -1;
    if (token == NULL)
        return TESS_OK;
    tess_status st = strcmp(token, "auto") == 0 ? read_eos(s, &config, &token) : TESS_OK;
    if (st == TESS_OK)
        s->eos_id = tess_tokenizer_find(s->tokenizer, token);
    if (st == TESS_OK && s->eos_id < 0)
        st = TESS_FAIL(TESS_E_ARG,
                       "end token '%.64s' is not in the vocabulary of '%s'; auto takes the one "
                       "that tokenizer_config.json names",
                       token, o->tokenizer_path);
    tess_json_destroy(&config);
    return st;
}

static tess_status open_all(tess_tokenize_state *s)
{
    const tess_tokenize_options *o = s->options;
    TESS_CHECK(o->input_numel > 0, TESS_E_ARG, "no input file; name at least one");
    TESS_CHECK(o->format != TESS_TOKENIZE_JSONL_CHAT || o->chat_template != NULL, TESS_E_ARG,
               "format jsonl-chat needs a template by name; give "
               "--chat-template " TESS_CHAT_STYLES_TEXT);
    TESS_CHECK(o->default_system == NULL || o->chat_template != NULL, TESS_E_ARG,
               "a default system text needs a chat template");
    TESS_TRY(tess_tokenizer_open(s->ctx->io, o->tokenizer_path, &s->tokenizer));
    TESS_TRY(tess_encoder_create(s->tokenizer, &s->encoder));
    TESS_TRY(open_chat(s));
    s->text_flags = o->parse_special_text ? TESS_ENCODE_PLAIN : TESS_ENCODE_NO_SPECIAL_TEXT;
    TESS_TRY(find_eos(s));
    return tess_token_writer_create(s->ctx, o->output_path,
                                    tess_tokenizer_vocab_numel(s->tokenizer),
                                    tess_tokenizer_digest(s->tokenizer), &s->writer);
}

static void close_all(tess_tokenize_state *s)
{
    tess_token_writer_destroy(&s->writer);
    tess_chat_template_destroy(&s->chat);
    tess_encoder_destroy(&s->encoder);
    tess_tokenizer_destroy(&s->tokenizer);
    tess_ids_fini(&s->ids);
    tess_free(s->mask);
    tess_free(s->message);
    tess_free(s->span);
}

/* What trains without an error, and is seldom meant. */
static void say_odd(const tess_ctx *ctx, const tess_tokenize_result *made)
{
    if (made->no_end_numel > 0)
        tess_log_root(&ctx->log, TESS_LOG_WARN,
                      "%" PRId64
                      " documents have no token at their end, so a model that is trained "
                      "on them does not learn to stop; --eos auto appends the model's end token",
                      made->no_end_numel);
    if (made->no_loss_numel > 0)
        tess_log_root(&ctx->log, TESS_LOG_WARN,
                      "%" PRId64 " documents have no token that counts in the loss",
                      made->no_loss_numel);
}

tess_status tess_tokenize_run(const tess_ctx *ctx, const tess_tokenize_options *options,
                              tess_tokenize_result *result)
{
    tess_tokenize_result made = {0};
    tess_tokenize_state s = {.ctx = ctx, .options = options, .result = &made};
    tess_status st = open_all(&s);
    for (int64_t i = 0; i < options->input_numel && st == TESS_OK; i++)
        st = run_input(&s, options->inputs[i]);
    if (st == TESS_OK)
        st = tess_token_writer_finish(s.writer, &made.file);
    close_all(&s);
    if (st == TESS_OK)
        say_odd(ctx, &made);
    if (st == TESS_OK)
        *result = made;
    return st;
}
