#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "format/peft_priv.h"
#include "format/text_priv.h"

void tess_peft_number_text(double value, char text[32])
{
    if (value == floor(value) && fabs(value) < 9007199254740992.0)
        snprintf(text, 32, "%" PRId64, (int64_t)value);
    else
        snprintf(text, 32, "%.17g", value);
}

bool tess_peft_patterns_are_sorted(const tess_peft_pattern *pattern, int pattern_numel)
{
    for (int i = 1; i < pattern_numel; i++)
        if (strcmp(pattern[i - 1].pattern, pattern[i].pattern) >= 0)
            return false;
    return true;
}

/* ---- reading ---- */

/* Arrays that a parse borrows until the spec has copied them. */
typedef struct scratch {
    const char **target, **exclude, **layers_pattern, **saved;
    int64_t *layer;
    tess_peft_pattern *rank, *alpha;
} scratch;

static bool is_blank(const tess_json *v)
{
    bool flag = true;
    const char *text = NULL;
    switch (tess_json_type_of(v)) {
    case TESS_JSON_NULL:
        return true;
    case TESS_JSON_BOOL:
        return tess_json_as_bool(v, &flag) == TESS_OK && !flag;
    case TESS_JSON_STRING:
        return tess_json_as_string(v, &text) == TESS_OK && *text == '\0';
    case TESS_JSON_ARRAY:
    case TESS_JSON_OBJECT:
        return tess_json_numel(v) == 0;
    case TESS_JSON_I64:
    case TESS_JSON_F64:
        return false;
    }
    return false;
}

static tess_status refuse(const tess_json *v, tess_status code, const char *why)
{
    char where[512];
    tess_json_where(v, where, sizeof where);
    return TESS_FAIL(code, "%s: %s", where, why);
}

/* init_lora_weights: those that also change the base weights do not fit our base. */
static tess_status check_init(const tess_json *v)
{
    static const char *const harmless[] = {"gaussian", "orthogonal", "eva", "true", "false"};
    const char *text = NULL;
    if (tess_json_type_of(v) == TESS_JSON_BOOL || tess_json_type_of(v) == TESS_JSON_NULL)
        return TESS_OK;
    TESS_TRY(tess_json_as_string(v, &text));
    for (int i = 0; i < TESS_NELEM(harmless); i++)
        if (strcmp(harmless[i], text) == 0)
            return TESS_OK;
    return refuse(v, TESS_E_UNSUPPORTED,
                  "this initialization changes the base weights too; convert the adapter to plain "
                  "LoRA with peft");
}

static tess_status check_text(const tess_json *v, const char *expected)
{
    char why[96];
    const char *text = NULL;
    TESS_TRY(tess_json_as_string(v, &text));
    snprintf(why, sizeof why, "not supported, expected \"%s\"", expected);
    return strcmp(text, expected) == 0 ? TESS_OK : refuse(v, TESS_E_UNSUPPORTED, why);
}

static bool is_in(const char *key, const char *const *list, int numel)
{
    for (int i = 0; i < numel; i++)
        if (strcmp(list[i], key) == 0)
            return true;
    return false;
}

/* Everything we do not read must be without effect. */
static tess_status check_members(const tess_json *root)
{
    static const char *const read[] = {"r",
                                       "lora_alpha",
                                       "lora_dropout",
                                       "use_rslora",
                                       "use_dora",
                                       "modules_to_save",
                                       "rank_pattern",
                                       "target_modules",
                                       "exclude_modules",
                                       "layers_to_transform",
                                       "alpha_pattern",
                                       "layers_pattern",
                                       "base_model_name_or_path"};
    static const char *const harmless[] = {
        "auto_mapping",  "revision",     "task_type",  "inference_mode",    "peft_version",
        "megatron_core", "loftq_config", "eva_config", "qalora_group_size", "runtime_config"};
    for (int64_t i = 0; i < tess_json_numel(root); i++) {
        const tess_json *v = tess_json_at(root, i);
        const char *key = tess_json_key(v);
        if (is_in(key, read, TESS_NELEM(read)) || is_in(key, harmless, TESS_NELEM(harmless)))
            continue;
        if (strcmp(key, "peft_type") == 0)
            TESS_TRY(check_text(v, "LORA"));
        else if (strcmp(key, "bias") == 0)
            TESS_TRY(check_text(v, "none"));
        else if (strcmp(key, "init_lora_weights") == 0)
            TESS_TRY(check_init(v));
        else if (!is_blank(v))
            return refuse(v, TESS_E_UNSUPPORTED,
                          "not supported: it would change what the adapter computes (expected "
                          "null, false or empty)");
    }
    TESS_CHECK(tess_json_find(root, "peft_type") != NULL, TESS_E_FORMAT,
               "'%s': 'peft_type' is missing, expected \"LORA\"", tess_json_source(root));
    return TESS_OK;
}

static tess_status read_names(const tess_json *list, const char ***memory, int *numel)
{
    void *names = NULL;
    TESS_TRY(tess_json_expect(list, TESS_JSON_ARRAY));
    if (tess_json_numel(list) > TESS_PEFT_LIST_MAX)
        return refuse(list, TESS_E_FORMAT, "more than 4096 entries");
    TESS_TRY(tess_alloc_array(tess_json_numel(list), sizeof(char *), &names));
    *memory = names;
    for (int64_t i = 0; i < tess_json_numel(list); i++)
        TESS_TRY(tess_json_as_string(tess_json_at(list, i), &(*memory)[i]));
    *numel = (int)tess_json_numel(list);
    return TESS_OK;
}

static tess_status read_modules(const tess_json *root, const char *key, const char ***memory,
                                tess_peft_modules *out)
{
    const tess_json *v = tess_json_find(root, key);
    if (v == NULL || is_blank(v))
        return TESS_OK;
    if (tess_json_type_of(v) == TESS_JSON_STRING)
        return tess_json_as_string(v, &out->regex);
    TESS_TRY(read_names(v, memory, &out->name_numel));
    out->name = *memory;
    return TESS_OK;
}

static tess_status read_layers(const tess_json *root, scratch *s, tess_peft_options *o)
{
    const tess_json *v = tess_json_find(root, "layers_to_transform");
    const tess_json *pattern = tess_json_find(root, "layers_pattern");
    void *memory = NULL;
    if (v != NULL && !is_blank(v)) {
        const bool is_list = tess_json_type_of(v) == TESS_JSON_ARRAY;
        const int64_t numel = is_list ? tess_json_numel(v) : 1;
        if (numel > TESS_PEFT_LIST_MAX)
            return refuse(v, TESS_E_FORMAT, "more than 4096 entries");
        TESS_TRY(tess_alloc_array(numel, sizeof(int64_t), &memory));
        o->layer = s->layer = memory;
        for (int64_t i = 0; i < numel; i++)
            TESS_TRY(tess_json_as_i64(is_list ? tess_json_at(v, i) : v, &s->layer[i]));
        o->layer_numel = (int)numel;
    }
    if (pattern == NULL || is_blank(pattern))
        return TESS_OK;
    if (tess_json_type_of(pattern) == TESS_JSON_STRING) {
        TESS_TRY(tess_alloc_array(1, sizeof(char *), &memory));
        s->layers_pattern = memory;
        o->layers_pattern_numel = 1;
        TESS_TRY(tess_json_as_string(pattern, &s->layers_pattern[0]));
    } else {
        TESS_TRY(read_names(pattern, &s->layers_pattern, &o->layers_pattern_numel));
    }
    o->layers_pattern = s->layers_pattern;
    return TESS_OK;
}

static tess_status read_patterns(const tess_json *root, const char *key, tess_peft_pattern **memory,
                                 int *numel)
{
    const tess_json *v = NULL;
    void *list = NULL;
    TESS_TRY(tess_json_opt_object(root, key, &v));
    if (v == NULL)
        return TESS_OK;
    if (tess_json_numel(v) > TESS_PEFT_LIST_MAX)
        return refuse(v, TESS_E_FORMAT, "more than 4096 entries");
    TESS_TRY(tess_alloc_array(tess_json_numel(v), sizeof(tess_peft_pattern), &list));
    *memory = list;
    for (int64_t i = 0; i < tess_json_numel(v); i++) {
        const tess_json *member = tess_json_at(v, i);
        (*memory)[i].pattern = tess_json_key(member);
        TESS_TRY(tess_json_as_f64(member, &(*memory)[i].value));
    }
    *numel = (int)tess_json_numel(v);
    return TESS_OK;
}

static tess_status read_saved(const tess_json *root, scratch *s, tess_peft_options *o)
{
    const tess_json *v = tess_json_find(root, "modules_to_save");
    if (v == NULL || is_blank(v))
        return TESS_OK;
    TESS_TRY(read_names(v, &s->saved, &o->saved_numel));
    o->saved = s->saved;
    return TESS_OK;
}

static tess_status read_options(const tess_json *root, scratch *s, tess_peft_options *o)
{
    TESS_TRY(tess_json_opt_i64(root, "r", 8, &o->rank));
    TESS_TRY(tess_json_opt_f64(root, "lora_alpha", 8.0, &o->alpha));
    TESS_TRY(tess_json_opt_f64(root, "lora_dropout", 0.0, &o->dropout));
    TESS_TRY(tess_json_opt_bool(root, "use_rslora", false, &o->use_rslora));
    TESS_TRY(tess_json_opt_bool(root, "use_dora", false, &o->use_dora));
    TESS_TRY(read_modules(root, "target_modules", &s->target, &o->targets));
    TESS_TRY(read_modules(root, "exclude_modules", &s->exclude, &o->excludes));
    TESS_TRY(read_saved(root, s, o));
    TESS_TRY(read_layers(root, s, o));
    TESS_TRY(read_patterns(root, "rank_pattern", &s->rank, &o->rank_pattern_numel));
    o->rank_pattern = s->rank;
    TESS_TRY(read_patterns(root, "alpha_pattern", &s->alpha, &o->alpha_pattern_numel));
    o->alpha_pattern = s->alpha;
    return TESS_OK;
}

/* The options come from a file: the spec's message gets the file's name and the file's status. */
static tess_status create_spec(const tess_json *root, const tess_peft_options *o,
                               tess_peft_spec **out)
{
    char why[512];
    const bool is_first = tess_error_status() == TESS_OK;
    const tess_status st = tess_peft_spec_create(o, out);
    if (st != TESS_E_CONFIG || !is_first)
        return st;
    snprintf(why, sizeof why, "%s", tess_error_message());
    tess_error_clear();
    return TESS_FAIL(TESS_E_FORMAT, "'%s': %s", tess_json_source(root), why);
}

tess_status tess_peft_config_parse(const tess_json *root, tess_peft_spec **out,
                                   const char **base_name)
{
    scratch s = {0};
    tess_peft_options o = {0};
    const char *name = NULL;
    TESS_TRY(tess_json_expect(root, TESS_JSON_OBJECT));
    TESS_TRY(check_members(root));
    TESS_TRY(tess_json_opt_string(root, "base_model_name_or_path", "", &name));
    tess_status st = read_options(root, &s, &o);
    if (st == TESS_OK)
        st = create_spec(root, &o, out);
    tess_free(s.target);
    tess_free(s.exclude);
    tess_free(s.layers_pattern);
    tess_free(s.saved);
    tess_free(s.layer);
    tess_free(s.rank);
    tess_free(s.alpha);
    if (st == TESS_OK && base_name != NULL)
        *base_name = name;
    return st;
}

/* ---- writing ---- */

static tess_status put_number(tess_json *root, const char *key, double value)
{
    if (value == floor(value) && fabs(value) < 9007199254740992.0)
        return tess_json_add_i64(root, key, (int64_t)value);
    return tess_json_add_f64(root, key, value);
}

static tess_status put_names(tess_json *root, const char *key, const char *const *name, int numel)
{
    tess_json *list = NULL;
    if (numel == 0)
        return tess_json_add_null(root, key);
    TESS_TRY(tess_json_add_array(root, key, &list));
    for (int i = 0; i < numel; i++)
        TESS_TRY(tess_json_add_string(list, NULL, name[i]));
    return TESS_OK;
}

static tess_status put_modules(tess_json *root, const char *key, const tess_peft_modules *modules)
{
    if (modules->regex != NULL)
        return tess_json_add_string(root, key, modules->regex);
    return put_names(root, key, modules->name, modules->name_numel);
}

static tess_status put_layers(tess_json *root, const tess_peft_options *o)
{
    tess_json *list = NULL;
    TESS_TRY(put_names(root, "layers_pattern", o->layers_pattern, o->layers_pattern_numel));
    if (o->layer_numel == 0)
        return tess_json_add_null(root, "layers_to_transform");
    TESS_TRY(tess_json_add_array(root, "layers_to_transform", &list));
    for (int i = 0; i < o->layer_numel; i++)
        TESS_TRY(tess_json_add_i64(list, NULL, o->layer[i]));
    return TESS_OK;
}

static tess_status put_patterns(tess_json *root, const char *key, const tess_peft_pattern *pattern,
                                int numel)
{
    tess_json *object = NULL;
    TESS_CHECK(tess_peft_patterns_are_sorted(pattern, numel), TESS_E_CONFIG,
               "lora %s: the first match wins and the file is sorted; list the patterns in sorted "
               "order",
               key);
    TESS_TRY(tess_json_add_object(root, key, &object));
    for (int i = 0; i < numel; i++)
        TESS_TRY(put_number(object, pattern[i].pattern, pattern[i].value));
    return TESS_OK;
}

static tess_status put_text(tess_json *root, const char *key, const char *text)
{
    return text == NULL || *text == '\0' ? tess_json_add_null(root, key)
                                         : tess_json_add_string(root, key, text);
}

static tess_status put_constants(tess_json *root)
{
    static const char *const null_key[] = {"auto_mapping", "revision", "target_parameters"};
    for (int i = 0; i < TESS_NELEM(null_key); i++)
        TESS_TRY(tess_json_add_null(root, null_key[i]));
    TESS_TRY(tess_json_add_string(root, "peft_type", "LORA"));
    TESS_TRY(tess_json_add_string(root, "bias", "none"));
    TESS_TRY(tess_json_add_bool(root, "fan_in_fan_out", false));
    TESS_TRY(tess_json_add_bool(root, "inference_mode", true));
    return tess_json_add_bool(root, "init_lora_weights", true);
}

static tess_status put_all(tess_json *root, const tess_peft_options *o,
                           const tess_peft_modules *targets, const char *task_type,
                           const char *base_name)
{
    TESS_TRY(put_constants(root));
    TESS_TRY(put_text(root, "task_type", task_type));
    TESS_TRY(tess_json_add_i64(root, "r", o->rank));
    TESS_TRY(put_number(root, "lora_alpha", o->alpha));
    TESS_TRY(tess_json_add_f64(root, "lora_dropout", o->dropout));
    TESS_TRY(tess_json_add_bool(root, "use_rslora", o->use_rslora));
    TESS_TRY(tess_json_add_bool(root, "use_dora", o->use_dora));
    TESS_TRY(put_names(root, "modules_to_save", o->saved, o->saved_numel));
    TESS_TRY(put_modules(root, "target_modules", targets));
    TESS_TRY(put_modules(root, "exclude_modules", &o->excludes));
    TESS_TRY(put_layers(root, o));
    TESS_TRY(put_patterns(root, "rank_pattern", o->rank_pattern, o->rank_pattern_numel));
    TESS_TRY(put_patterns(root, "alpha_pattern", o->alpha_pattern, o->alpha_pattern_numel));
    return put_text(root, "base_model_name_or_path", base_name);
}

tess_status tess_peft_config_write(tess_io *io, const char *path, const tess_peft_spec *spec,
                                   const tess_peft_modules *targets, const char *task_type,
                                   const char *base_name)
{
    tess_json *root = NULL;
    const tess_peft_options *o = tess_peft_spec_options(spec);
    TESS_TRY(tess_json_create_object(&root));
    tess_status st =
        put_all(root, o, targets != NULL ? targets : &o->targets, task_type, base_name);
    if (st == TESS_OK)
        st = tess_json_write(io, path, root, 2);
    tess_json_destroy(&root);
    return st;
}
