/* The chat template of the model's files against the one that was chosen. It is not run: marks in
 * its text tell which of the built-in ones it is like. */
#include <string.h>

#include "core/memory.h"
#include "train/prepare/tokenize_priv.h"

typedef struct likeness {
    const char *marks[2];
    tess_chat_style style; /* TESS_CHAT_STYLE_NUMEL: none that is built in */
    bool has_system;       /* a system text for chats without one, which ours has not */
} likeness;

/* The first that a template holds all marks of. */
static const likeness likenesses[] = {
    {{"<|im_sep|>", ""}, TESS_CHAT_STYLE_NUMEL, false},      /* phi-4 */
    {{"<<SYS>>", ""}, TESS_CHAT_STYLE_NUMEL, false},         /* Llama 2 */
    {{"[SYSTEM_PROMPT]", ""}, TESS_CHAT_STYLE_NUMEL, false}, /* Mistral Small 3 */
    {{"<|start_header_id|>", "Cutting Knowledge Date"}, TESS_CHAT_LLAMA3_1, false},
    {{"<|start_header_id|>", ""}, TESS_CHAT_LLAMA3, false},
    {{"<|im_start|>", "You are Qwen, created by Alibaba Cloud"}, TESS_CHAT_QWEN2_5, false},
    {{"<|im_start|>", "</think>"}, TESS_CHAT_QWEN3, false},
    {{"<|im_start|>system", "You are a helpful"}, TESS_CHAT_CHATML, true},
    {{"<|im_start|>", ""}, TESS_CHAT_CHATML, false},
    {{"[INST]", ""}, TESS_CHAT_MISTRAL_INST, false},
};

static likeness likeness_of(const char *text)
{
    for (int i = 0; i < TESS_NELEM(likenesses); i++)
        if (strstr(text, likenesses[i].marks[0]) != NULL &&
            strstr(text, likenesses[i].marks[1]) != NULL)
            return likenesses[i];
    return (likeness){.style = TESS_CHAT_STYLE_NUMEL};
}

static void compare(const tess_tokenize_state *s, const char *path, const char *text,
                    tess_chat_style style)
{
    const likeness own = likeness_of(text);
    if (own.style == style && own.has_system && s->options->default_system == NULL)
        tess_log_root(&s->ctx->log, TESS_LOG_WARN,
                      "--chat-template %s: the template of '%s' has a system text for chats "
                      "without one; give it by --default-system",
                      tess_chat_style_name(style), path);
    if (own.style == style)
        return;
    if (own.style == TESS_CHAT_STYLE_NUMEL)
        tess_log_root(&s->ctx->log, TESS_LOG_WARN,
                      "--chat-template %s: the template of '%s' is like none that is built in; to "
                      "train on what it renders, render chats with it and give them as prompt and "
                      "completion with --special-tokens",
                      tess_chat_style_name(style), path);
    else
        tess_log_root(&s->ctx->log, TESS_LOG_WARN,
                      "--chat-template %s: the template of '%s' looks like %s; chats that are put "
                      "otherwise than the model knows them train it for another form",
                      tess_chat_style_name(style), path, tess_chat_style_name(own.style));
}

/* A text, or texts by name, of which "default" is what chats take: an object of them, or a list of
 * {name, template}. */
static tess_status find_text(const tess_json *config, const char **text)
{
    const tess_json *found = tess_json_find(config, "chat_template");
    *text = NULL;
    if (found == NULL || tess_json_type_of(found) == TESS_JSON_NULL)
        return TESS_OK;
    if (tess_json_type_of(found) == TESS_JSON_OBJECT)
        return tess_json_opt_string(found, "default", NULL, text);
    if (tess_json_type_of(found) != TESS_JSON_ARRAY)
        return tess_json_as_string(found, text);
    for (int64_t i = 0; i < tess_json_numel(found); i++) {
        const char *name = NULL;
        TESS_TRY(tess_json_get_string(tess_json_at(found, i), "name", &name));
        if (strcmp(name, "default") == 0)
            return tess_json_get_string(tess_json_at(found, i), "template", text);
    }
    return TESS_OK;
}

static tess_status compare_config(const tess_tokenize_state *s, const char *path,
                                  tess_chat_style style)
{
    tess_json *config = NULL;
    const char *text = NULL;
    TESS_TRY(tess_json_read_reals(s->ctx->io, path, &config));
    const tess_status st = find_text(config, &text);
    if (st == TESS_OK && text != NULL)
        compare(s, path, text, style);
    tess_json_destroy(&config);
    return st;
}

static tess_status compare_jinja(const tess_tokenize_state *s, const char *path,
                                 tess_chat_style style)
{
    char *text = NULL;
    size_t nbytes = 0;
    TESS_TRY(tess_io_read_all(s->ctx->io, path, TESS_TOKENIZER_FILE_NBYTES_LIMIT, &text, &nbytes));
    compare(s, path, text, style);
    tess_free(text);
    return TESS_OK;
}

static tess_status compare_first(const tess_tokenize_state *s, tess_chat_style style)
{
    static const struct {
        const char *name;
        tess_status (*compare)(const tess_tokenize_state *s, const char *path,
                               tess_chat_style style);
    } files[] = {{"chat_template.jinja", compare_jinja}, {"tokenizer_config.json", compare_config}};
    for (int i = 0; i < TESS_NELEM(files); i++) {
        tess_io_kind kind = TESS_IO_MISSING;
        int64_t nbytes = 0;
        char *path = NULL;
        TESS_TRY(tess_tokenize_beside(s, files[i].name, &path));
        tess_status st = tess_io_stat(s->ctx->io, path, &kind, &nbytes);
        if (st == TESS_OK && kind == TESS_IO_FILE)
            st = files[i].compare(s, path, style);
        tess_free(path);
        if (st != TESS_OK || kind == TESS_IO_FILE)
            return st;
    }
    return TESS_OK;
}

tess_status tess_tokenize_compare_template(const tess_tokenize_state *s, tess_chat_style style)
{
    const tess_status st = compare_first(s, style);
    if (st == TESS_OK || st == TESS_E_MEMORY)
        return st;
    /* Nothing of these files is used but what a warning says. */
    tess_log_root(&s->ctx->log, TESS_LOG_WARN,
                  "--chat-template %s is not compared with the model's own: %s",
                  tess_chat_style_name(style), tess_error_message());
    tess_error_clear();
    return TESS_OK;
}
