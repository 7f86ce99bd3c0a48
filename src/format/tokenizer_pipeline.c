#include "core/arith.h"
#include "core/memory.h"
#include "format/tokenizer_priv.h"

static tess_status unsupported(const tess_tokenizer *t, const char *what, const char *type,
                               const char *known)
{
    return TESS_FAIL(TESS_E_UNSUPPORTED, "tokenizer '%s': %s '%.32s' is not supported (known: %s)",
                     t->name, what, type, known);
}

/* The steps of an optional member that is one step or a Sequence of them. */
typedef struct steps {
    const tess_json *one; /* NULL: none */
    const tess_json *list;
    int64_t numel;
} steps;

static tess_status open_steps(const tess_tokenizer *t, const tess_json *root, const char *member,
                              const char *list_key, steps *out)
{
    const char *type = NULL;
    *out = (steps){0};
    TESS_TRY(tess_json_opt_object(root, member, &out->one));
    if (out->one == NULL)
        return TESS_OK;
    TESS_TRY(tess_json_get_string(out->one, "type", &type));
    out->numel = 1;
    if (strcmp(type, "Sequence") != 0)
        return TESS_OK;
    TESS_TRY(tess_json_get_array(out->one, list_key, &out->list));
    out->numel = tess_json_numel(out->list);
    TESS_CHECK(out->numel <= TESS_TOKENIZER_STEP_LIMIT, TESS_E_UNSUPPORTED,
               "tokenizer '%s': %s has %" PRId64 " steps, at most %d are supported", t->name,
               member, out->numel, TESS_TOKENIZER_STEP_LIMIT);
    return TESS_OK;
}

static tess_status step_at(const steps *s, int64_t idx, const tess_json **object, const char **type)
{
    *object = s->list != NULL ? tess_json_at(s->list, idx) : s->one;
    TESS_TRY(tess_json_expect(*object, TESS_JSON_OBJECT));
    return tess_json_get_string(*object, "type", type);
}

/* {"pattern": {"String": ...}, "content": ...} of a Replace. */
static tess_status load_replace(const tess_tokenizer *t, const tess_json *object, char **from,
                                char **to)
{
    const tess_json *pattern = NULL;
    const char *text = NULL, *content = NULL;
    TESS_TRY(tess_json_get_object(object, "pattern", &pattern));
    TESS_TRY(tess_json_opt_string(pattern, "String", NULL, &text));
    TESS_CHECK(text != NULL && text[0] != '\0', TESS_E_UNSUPPORTED,
               "tokenizer '%s': Replace with a regular expression or an empty pattern is not "
               "supported, only a plain String is",
               t->name);
    TESS_TRY(tess_json_get_string(object, "content", &content));
    TESS_TRY(tess_strdup(text, from));
    return tess_strdup(content, to);
}

static tess_status load_normalizers(tess_tokenizer *t, const tess_json *root)
{
    steps s;
    TESS_TRY(open_steps(t, root, "normalizer", "normalizers", &s));
    for (int64_t i = 0; i < s.numel; i++) {
        const tess_json *object = NULL;
        const char *type = NULL, *prepend = NULL;
        TESS_TRY(step_at(&s, i, &object, &type));
        tess_normalizer *n = &t->normalizer[t->normalizer_numel++];
        if (strcmp(type, "NFC") == 0) {
            n->kind = TESS_NORMALIZE_NFC;
        } else if (strcmp(type, "Prepend") == 0) {
            n->kind = TESS_NORMALIZE_PREPEND;
            TESS_TRY(tess_json_get_string(object, "prepend", &prepend));
            TESS_TRY(tess_strdup(prepend, &n->to));
        } else if (strcmp(type, "Replace") == 0) {
            n->kind = TESS_NORMALIZE_REPLACE;
            TESS_TRY(load_replace(t, object, &n->from, &n->to));
        } else {
            return unsupported(t, "normalizer", type, "NFC, Prepend, Replace, Sequence");
        }
    }
    return TESS_OK;
}

tess_status tess_one_char_load(const tess_json *object, const char *key, char out[8])
{
    const char *text = NULL;
    size_t char_nbytes = 0;
    char where[256];
    TESS_TRY(tess_json_get_string(object, key, &text));
    const size_t nbytes = strlen(text);
    if (nbytes > 0)
        (void)tess_utf8_next(text, nbytes, 0, &char_nbytes);
    tess_json_where(object, where, sizeof where);
    TESS_CHECK(nbytes > 0 && nbytes == char_nbytes, TESS_E_FORMAT,
               "%s.%s: expected one character, found '%.32s'", where, key, text);
    memset(out, 0, 8);
    memcpy(out, text, nbytes);
    return TESS_OK;
}

tess_status tess_metaspace_load(const tess_json *object, tess_metaspace *out)
{
    const char *scheme = NULL;
    bool add_prefix_space = true;
    char where[256];
    TESS_TRY(tess_one_char_load(object, "replacement", out->replacement));
    out->replacement_nbytes = strlen(out->replacement);
    TESS_TRY(tess_json_opt_string(object, "prepend_scheme", "always", &scheme));
    TESS_TRY(tess_json_opt_bool(object, "add_prefix_space", true, &add_prefix_space));
    TESS_TRY(tess_json_opt_bool(object, "split", true, &out->split));
    tess_json_where(object, where, sizeof where);
    if (strcmp(scheme, "never") == 0)
        out->scheme = TESS_PREPEND_NEVER;
    else if (strcmp(scheme, "first") == 0)
        out->scheme = TESS_PREPEND_FIRST;
    else if (strcmp(scheme, "always") == 0)
        out->scheme = TESS_PREPEND_ALWAYS;
    else
        return TESS_FAIL(TESS_E_UNSUPPORTED,
                         "%s.prepend_scheme is '%.32s', expected always, first or never", where,
                         scheme);
    TESS_CHECK(add_prefix_space || out->scheme == TESS_PREPEND_NEVER, TESS_E_FORMAT,
               "%s: add_prefix_space false contradicts prepend_scheme '%s'", where, scheme);
    return TESS_OK;
}

static tess_status load_split(tess_tokenizer *t, const tess_json *object)
{
    const tess_json *pattern = NULL;
    const char *regex = NULL, *behavior = NULL;
    bool invert = false;
    tess_split_kind kind = TESS_SPLIT_GPT2;
    TESS_TRY(tess_json_get_object(object, "pattern", &pattern));
    TESS_TRY(tess_json_opt_string(pattern, "Regex", NULL, &regex));
    TESS_TRY(tess_json_get_string(object, "behavior", &behavior));
    TESS_TRY(tess_json_opt_bool(object, "invert", false, &invert));
    TESS_CHECK(regex != NULL && tess_split_pattern_find(regex, &kind), TESS_E_UNSUPPORTED,
               "tokenizer '%s': split pattern '%.200s' is not one of those compiled in (gpt2, "
               "llama3, qwen2, tekken)",
               t->name, regex != NULL ? regex : "(a plain string)");
    TESS_CHECK(strcmp(behavior, "Isolated") == 0 && !invert, TESS_E_UNSUPPORTED,
               "tokenizer '%s': Split with behavior '%.32s', invert %s is not supported, only "
               "Isolated without invert is",
               t->name, behavior, invert ? "true" : "false");
    t->split[t->split_numel++] = kind;
    return TESS_OK;
}

static tess_status load_byte_level(tess_tokenizer *t, const tess_json *object)
{
    bool add_prefix_space = true, use_regex = true;
    TESS_TRY(tess_json_opt_bool(object, "add_prefix_space", true, &add_prefix_space));
    TESS_TRY(tess_json_opt_bool(object, "use_regex", true, &use_regex));
    t->is_byte_level = true;
    if (add_prefix_space)
        t->split[t->split_numel++] = TESS_SPLIT_PREFIX_SPACE;
    if (use_regex)
        t->split[t->split_numel++] = TESS_SPLIT_GPT2;
    return TESS_OK;
}

static tess_status load_pretokenizer(tess_tokenizer *t, const tess_json *object, const char *type)
{
    bool individual = false;
    /* One more entry than the limit of steps may be needed: ByteLevel makes two. */
    TESS_CHECK(t->split_numel + 2 <= TESS_TOKENIZER_STEP_LIMIT, TESS_E_UNSUPPORTED,
               "tokenizer '%s': pre_tokenizer has too many steps", t->name);
    TESS_CHECK(!t->is_byte_level, TESS_E_UNSUPPORTED,
               "tokenizer '%s': pre-tokenizer '%.32s' behind ByteLevel is not supported", t->name,
               type);
    if (strcmp(type, "Split") == 0)
        return load_split(t, object);
    if (strcmp(type, "ByteLevel") == 0)
        return load_byte_level(t, object);
    if (strcmp(type, "Digits") == 0) {
        TESS_TRY(tess_json_opt_bool(object, "individual_digits", false, &individual));
        t->split[t->split_numel++] = individual ? TESS_SPLIT_DIGITS : TESS_SPLIT_DIGITS_TOGETHER;
        return TESS_OK;
    }
    if (strcmp(type, "Metaspace") == 0) {
        t->split[t->split_numel++] = TESS_SPLIT_METASPACE;
        return tess_metaspace_load(object, &t->metaspace);
    }
    return unsupported(t, "pre-tokenizer", type, "Split, ByteLevel, Digits, Metaspace, Sequence");
}

tess_status tess_tokenizer_load_pipeline(tess_tokenizer *t, const tess_json *root)
{
    steps s;
    TESS_TRY(load_normalizers(t, root));
    TESS_TRY(open_steps(t, root, "pre_tokenizer", "pretokenizers", &s));
    for (int64_t i = 0; i < s.numel; i++) {
        const tess_json *object = NULL;
        const char *type = NULL;
        TESS_TRY(step_at(&s, i, &object, &type));
        TESS_TRY(load_pretokenizer(t, object, type));
    }
    for (int i = 0; i < t->split_numel; i++)
        TESS_CHECK(t->split[i] != TESS_SPLIT_METASPACE || t->split_numel == 1, TESS_E_UNSUPPORTED,
                   "tokenizer '%s': Metaspace together with other pre-tokenizers is not supported",
                   t->name);
    return TESS_OK;
}

static tess_status load_template_token(tess_tokenizer *t, const tess_json *processor,
                                       const char *name, tess_ids *out)
{
    const tess_json *table = NULL, *entry = NULL, *ids = NULL;
    TESS_TRY(tess_json_get_object(processor, "special_tokens", &table));
    TESS_TRY(tess_json_get_object(table, name, &entry));
    TESS_TRY(tess_json_get_array(entry, "ids", &ids));
    for (int64_t i = 0; i < tess_json_numel(ids); i++) {
        int64_t id = 0;
        TESS_TRY(tess_json_as_i64(tess_json_at(ids, i), &id));
        TESS_CHECK(id >= 0 && id < t->vocab_numel && t->text[id].is_present, TESS_E_FORMAT,
                   "tokenizer '%s': post-processor adds id %" PRId64
                   " for '%.64s', no token has it",
                   t->name, id, name);
        const int32_t narrow = (int32_t)id;
        TESS_TRY(tess_ids_append(out, &narrow, 1));
    }
    return TESS_OK;
}

static tess_status load_template_item(tess_tokenizer *t, const tess_json *processor,
                                      const tess_json *item, bool *seen_text)
{
    const tess_json *token = NULL, *sequence = NULL;
    const char *name = NULL;
    TESS_TRY(tess_json_opt_object(item, "SpecialToken", &token));
    TESS_TRY(tess_json_opt_object(item, "Sequence", &sequence));
    TESS_CHECK((token != NULL) != (sequence != NULL), TESS_E_FORMAT,
               "tokenizer '%s': template item is neither SpecialToken nor Sequence", t->name);
    TESS_TRY(tess_json_get_string(token != NULL ? token : sequence, "id", &name));
    if (token != NULL)
        return load_template_token(t, processor, name, *seen_text ? &t->suffix : &t->prefix);
    TESS_CHECK(!*seen_text && strcmp(name, "A") == 0, TESS_E_UNSUPPORTED,
               "tokenizer '%s': template for one text must hold sequence A once", t->name);
    *seen_text = true;
    return TESS_OK;
}

static tess_status load_template(tess_tokenizer *t, const tess_json *processor)
{
    const tess_json *single = NULL;
    bool seen_text = false;
    TESS_CHECK(t->prefix.numel == 0 && t->suffix.numel == 0, TESS_E_UNSUPPORTED,
               "tokenizer '%s': two TemplateProcessing steps are not supported", t->name);
    TESS_TRY(tess_json_get_array(processor, "single", &single));
    for (int64_t i = 0; i < tess_json_numel(single); i++)
        TESS_TRY(load_template_item(t, processor, tess_json_at(single, i), &seen_text));
    TESS_CHECK(seen_text, TESS_E_FORMAT, "tokenizer '%s': template without sequence A", t->name);
    return TESS_OK;
}

tess_status tess_tokenizer_load_template(tess_tokenizer *t, const tess_json *root)
{
    steps s;
    TESS_TRY(open_steps(t, root, "post_processor", "processors", &s));
    for (int64_t i = 0; i < s.numel; i++) {
        const tess_json *object = NULL;
        const char *type = NULL;
        TESS_TRY(step_at(&s, i, &object, &type));
        if (strcmp(type, "TemplateProcessing") == 0)
            TESS_TRY(load_template(t, object));
        else if (strcmp(type, "ByteLevel") != 0) /* which only trims offsets */
            return unsupported(t, "post-processor", type,
                               "TemplateProcessing, ByteLevel, Sequence");
    }
    return TESS_OK;
}

static tess_status load_strip(tess_tokenizer *t, const tess_json *object, tess_decoder_step *step)
{
    int64_t stop = 0;
    TESS_TRY(tess_one_char_load(object, "content", step->strip));
    TESS_TRY(tess_json_get_i64(object, "start", &step->strip_numel));
    TESS_TRY(tess_json_opt_i64(object, "stop", 0, &stop));
    TESS_CHECK(step->strip_numel >= 0 && stop == 0, TESS_E_UNSUPPORTED,
               "tokenizer '%s': decoder Strip with start %" PRId64 ", stop %" PRId64
               " is not supported, only stripping from the left is",
               t->name, step->strip_numel, stop);
    return TESS_OK;
}

static tess_status load_decoder_step(tess_tokenizer *t, const tess_json *object, const char *type,
                                     tess_decoder_step *step)
{
    static const struct {
        const char *name;
        tess_decoder_kind kind;
    } kinds[] = {{"Replace", TESS_DECODE_REPLACE},
                 {"ByteFallback", TESS_DECODE_BYTE_FALLBACK},
                 {"Fuse", TESS_DECODE_FUSE},
                 {"Strip", TESS_DECODE_STRIP},
                 {"ByteLevel", TESS_DECODE_BYTE_LEVEL},
                 {"Metaspace", TESS_DECODE_METASPACE}};
    int found = -1;
    for (int i = 0; i < TESS_NELEM(kinds); i++) {
        if (strcmp(kinds[i].name, type) == 0)
            found = i;
    }
    if (found < 0)
        return unsupported(t, "decoder", type,
                           "Replace, ByteFallback, Fuse, Strip, ByteLevel, Metaspace, Sequence");
    step->kind = kinds[found].kind;
    if (step->kind == TESS_DECODE_REPLACE)
        return load_replace(t, object, &step->from, &step->to);
    if (step->kind == TESS_DECODE_STRIP)
        return load_strip(t, object, step);
    return step->kind == TESS_DECODE_METASPACE ? tess_metaspace_load(object, &step->metaspace)
                                               : TESS_OK;
}

tess_status tess_tokenizer_load_decoder(tess_tokenizer *t, const tess_json *root)
{
    steps s;
    bool is_fused = false;
    TESS_TRY(open_steps(t, root, "decoder", "decoders", &s));
    for (int64_t i = 0; i < s.numel; i++) {
        const tess_json *object = NULL;
        const char *type = NULL;
        TESS_TRY(step_at(&s, i, &object, &type));
        tess_decoder_step *step = &t->decoder[t->decoder_numel++];
        TESS_TRY(load_decoder_step(t, object, type, step));
        /* Behind Fuse there is one string left; before it, each token is one. */
        const bool is_of_whole = step->kind == TESS_DECODE_STRIP;
        TESS_CHECK(is_of_whole == is_fused || step->kind == TESS_DECODE_FUSE, TESS_E_UNSUPPORTED,
                   "tokenizer '%s': decoder %s %s Fuse is not supported", t->name, type,
                   is_fused ? "behind" : "before");
        TESS_CHECK(s.numel == 1 || (step->kind != TESS_DECODE_BYTE_LEVEL &&
                                    step->kind != TESS_DECODE_METASPACE),
                   TESS_E_UNSUPPORTED, "tokenizer '%s': decoder %s in a Sequence is not supported",
                   t->name, type);
        is_fused = is_fused || step->kind == TESS_DECODE_FUSE;
    }
    return TESS_OK;
}
