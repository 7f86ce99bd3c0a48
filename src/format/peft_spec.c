#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "core/memory.h"
#include "format/peft_priv.h"
#include "format/text_priv.h"

/* Bounds of one match attempt: far above what module paths need, milliseconds at worst. */
enum { MATCH_LIMIT = 1000000, DEPTH_LIMIT = 20000, HEAP_LIMIT_KIB = 20480 };
/* All 504 paths of FLUX.1 in one expression are 21 KB; PCRE2 has room for some 64 KB of code. */
enum { PATTERN_MAX_NBYTES = 1 << 15, PATH_MAX_NBYTES = 512 };

struct tess_peft_spec {
    tess_peft_options options; /* points into `kept` */
    bool is_all_linear;
    void **kept; /* [kept_numel] every copy made */
    int64_t kept_numel, kept_room;
    pcre2_general_context *general;
    pcre2_match_context *limits;
    pcre2_code *target, *exclude; /* NULL: lists */
    pcre2_code **layer;           /* [layer_regex_numel] first group is the layer number */
    pcre2_code **rank;            /* [options.rank_pattern_numel] */
    pcre2_code **alpha;           /* [options.alpha_pattern_numel] */
    pcre2_code **saved;           /* [options.saved_numel] paths that get no adapter */
    int layer_regex_numel;
};

static void *pcre_alloc(PCRE2_SIZE nbytes, void *arg)
{
    void *memory = NULL;
    (void)arg;
    return tess_alloc(nbytes, &memory) == TESS_OK ? memory : NULL;
}

static void pcre_free(void *memory, void *arg)
{
    (void)arg;
    tess_free(memory);
}

/* ---- copies ---- */

static tess_status keep(tess_peft_spec *spec, void *memory)
{
    void *grown = spec->kept;
    if (spec->kept_numel == spec->kept_room) {
        const int64_t room = spec->kept_room * 2 + 16;
        const tess_status st = tess_realloc_array(spec->kept_room, room, sizeof(void *), &grown);
        if (st != TESS_OK) {
            tess_free(memory);
            return st;
        }
        spec->kept = grown;
        spec->kept_room = room;
    }
    spec->kept[spec->kept_numel++] = memory;
    return TESS_OK;
}

static tess_status keep_array(tess_peft_spec *spec, int64_t numel, size_t elem_nbytes, void **out)
{
    void *memory = NULL;
    TESS_TRY(tess_alloc_array(numel, elem_nbytes, &memory));
    TESS_TRY(keep(spec, memory));
    *out = memory;
    return TESS_OK;
}

static tess_status keep_text(tess_peft_spec *spec, const char *text, const char **out)
{
    char *copy = NULL;
    TESS_TRY(tess_strdup(text, &copy));
    TESS_TRY(keep(spec, copy));
    *out = copy;
    return TESS_OK;
}

static tess_status check_list(const char *option, int numel)
{
    TESS_CHECK(numel >= 0 && numel <= TESS_PEFT_LIST_MAX, TESS_E_CONFIG,
               "lora %s: %d entries, at most %d are accepted", option, numel, TESS_PEFT_LIST_MAX);
    return TESS_OK;
}

static tess_status keep_texts(tess_peft_spec *spec, const char *option, const char *const *text,
                              int numel, const char *const **out)
{
    void *memory = NULL;
    TESS_TRY(check_list(option, numel));
    TESS_TRY(keep_array(spec, numel, sizeof(char *), &memory));
    const char **copy = memory;
    for (int i = 0; i < numel; i++) {
        TESS_CHECK(text[i] != NULL && text[i][0] != '\0' &&
                       tess_utf8_is_valid(text[i], strlen(text[i])),
                   TESS_E_CONFIG, "lora %s: entry %d is empty or not UTF-8", option, i);
        TESS_TRY(keep_text(spec, text[i], &copy[i]));
    }
    *out = copy;
    return TESS_OK;
}

static tess_status keep_patterns(tess_peft_spec *spec, const char *option,
                                 const tess_peft_pattern *from, int numel,
                                 const tess_peft_pattern **out)
{
    void *memory = NULL;
    TESS_TRY(check_list(option, numel));
    TESS_TRY(keep_array(spec, numel, sizeof *from, &memory));
    tess_peft_pattern *copy = memory;
    for (int i = 0; i < numel; i++) {
        TESS_TRY(keep_text(spec, from[i].pattern, &copy[i].pattern));
        copy[i].value = from[i].value;
    }
    *out = copy;
    return TESS_OK;
}

static tess_status keep_modules(tess_peft_spec *spec, const char *option,
                                const tess_peft_modules *from, tess_peft_modules *out)
{
    TESS_CHECK(from->regex == NULL || from->name_numel == 0, TESS_E_CONFIG,
               "lora %s: expected one string or a list, found both", option);
    *out = *from;
    if (from->regex != NULL)
        TESS_TRY(keep_text(spec, from->regex, &out->regex));
    return keep_texts(spec, option, from->name, from->name_numel, &out->name);
}

static tess_status keep_options(tess_peft_spec *spec, const tess_peft_options *o)
{
    void *layer = NULL;
    tess_peft_options *copy = &spec->options;
    *copy = *o;
    TESS_TRY(keep_modules(spec, "target_modules", &o->targets, &copy->targets));
    TESS_TRY(keep_modules(spec, "exclude_modules", &o->excludes, &copy->excludes));
    TESS_TRY(check_list("layers_to_transform", o->layer_numel));
    TESS_TRY(keep_array(spec, o->layer_numel, sizeof(int64_t), &layer));
    if (o->layer_numel > 0)
        memcpy(layer, o->layer, (size_t)o->layer_numel * sizeof(int64_t));
    copy->layer = layer;
    TESS_TRY(keep_texts(spec, "layers_pattern", o->layers_pattern, o->layers_pattern_numel,
                        &copy->layers_pattern));
    TESS_TRY(keep_texts(spec, "modules_to_save", o->saved, o->saved_numel, &copy->saved));
    TESS_TRY(keep_patterns(spec, "rank_pattern", o->rank_pattern, o->rank_pattern_numel,
                           &copy->rank_pattern));
    return keep_patterns(spec, "alpha_pattern", o->alpha_pattern, o->alpha_pattern_numel,
                         &copy->alpha_pattern);
}

/* ---- checks ---- */

static tess_status check_numbers(const tess_peft_options *o)
{
    TESS_CHECK(o->rank >= 1 && o->rank <= TESS_PEFT_RANK_MAX, TESS_E_CONFIG,
               "lora r: expected 1 to %d, found %" PRId64, TESS_PEFT_RANK_MAX, o->rank);
    TESS_CHECK(isfinite(o->alpha) && o->alpha > 0.0, TESS_E_CONFIG,
               "lora lora_alpha: expected a positive number, found %g", o->alpha);
    TESS_CHECK(o->dropout >= 0.0 && o->dropout < 1.0, TESS_E_CONFIG,
               "lora lora_dropout: expected 0 <= p < 1, found %g", o->dropout);
    for (int i = 0; i < o->rank_pattern_numel; i++) {
        const double r = o->rank_pattern[i].value;
        TESS_CHECK(r >= 1.0 && r <= TESS_PEFT_RANK_MAX && r == floor(r), TESS_E_CONFIG,
                   "lora rank_pattern '%s': expected a rank of 1 to %d, found %g",
                   o->rank_pattern[i].pattern, TESS_PEFT_RANK_MAX, r);
    }
    for (int i = 0; i < o->alpha_pattern_numel; i++)
        TESS_CHECK(isfinite(o->alpha_pattern[i].value) && o->alpha_pattern[i].value > 0.0,
                   TESS_E_CONFIG, "lora alpha_pattern '%s': expected a positive number, found %g",
                   o->alpha_pattern[i].pattern, o->alpha_pattern[i].value);
    return TESS_OK;
}

static tess_status check_layers(const tess_peft_options *o)
{
    TESS_CHECK(o->targets.regex != NULL || o->targets.name_numel > 0, TESS_E_CONFIG,
               "lora target_modules: expected all-linear, a list of names or a regular expression, "
               "found nothing");
    TESS_CHECK(o->targets.regex == NULL || (o->layer_numel == 0 && o->layers_pattern_numel == 0),
               TESS_E_CONFIG,
               "lora layers_to_transform and layers_pattern need target_modules to be a list; put "
               "the layers into the expression '%s'",
               o->targets.regex);
    TESS_CHECK(o->layers_pattern_numel == 0 || o->layer_numel > 0, TESS_E_CONFIG,
               "lora layers_pattern needs layers_to_transform");
    for (int i = 0; i < o->layer_numel; i++)
        TESS_CHECK(o->layer[i] >= 0, TESS_E_CONFIG,
                   "lora layers_to_transform: expected layer numbers, found %" PRId64, o->layer[i]);
    return TESS_OK;
}

/* ---- patterns ---- */

static tess_status compile(tess_peft_spec *spec, const char *option, const char *pattern,
                           uint32_t flags, pcre2_code **out)
{
    int error = 0;
    PCRE2_SIZE at = 0;
    PCRE2_UCHAR text[256];
    TESS_CHECK(strlen(pattern) <= PATTERN_MAX_NBYTES, TESS_E_CONFIG,
               "lora %s: a pattern of %zu bytes, at most %d are accepted", option, strlen(pattern),
               PATTERN_MAX_NBYTES);
    pcre2_compile_context *context = pcre2_compile_context_create(spec->general);
    TESS_CHECK(context != NULL, TESS_E_MEMORY, "lora %s: no memory for a pattern", option);
    *out = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
                         flags | PCRE2_UTF | PCRE2_ANCHORED | PCRE2_NEVER_BACKSLASH_C, &error, &at,
                         context);
    pcre2_compile_context_free(context);
    if (*out != NULL)
        return TESS_OK;
    pcre2_get_error_message(error, text, sizeof text);
    return TESS_FAIL(TESS_E_CONFIG, "lora %s: '%s' at byte %zu: %s", option, pattern, (size_t)at,
                     (const char *)text);
}

/* Compile before + text + after, as PEFT puts its patterns together. */
static tess_status compile_around(tess_peft_spec *spec, const char *option, const char *before,
                                  const char *text, const char *after, pcre2_code **out)
{
    char *pattern = NULL;
    TESS_TRY(tess_asprintf(&pattern, "%s%s%s", before, text, after));
    const tess_status st = compile(spec, option, pattern, 0, out);
    tess_free(pattern);
    return st;
}

static tess_status compile_layers(tess_peft_spec *spec)
{
    void *memory = NULL;
    const tess_peft_options *o = &spec->options;
    const int numel = TESS_MAX(o->layers_pattern_numel, 1);
    if (o->layer_numel == 0)
        return TESS_OK;
    TESS_TRY(keep_array(spec, numel, sizeof(pcre2_code *), &memory));
    spec->layer = memory;
    spec->layer_regex_numel = numel;
    if (o->layers_pattern_numel == 0)
        return compile(spec, "layers_to_transform", ".*?\\.[^.]*\\.(?P<idx>\\d+)\\.", 0,
                       &spec->layer[0]);
    for (int i = 0; i < numel; i++)
        TESS_TRY(compile_around(spec, "layers_pattern", "(?:^|.*?\\.)", o->layers_pattern[i],
                                "\\.(?P<idx>\\d+)\\.", &spec->layer[i]));
    return TESS_OK;
}

static tess_status compile_patterns(tess_peft_spec *spec, const char *option,
                                    const tess_peft_pattern *pattern, int numel, pcre2_code ***out)
{
    void *memory = NULL;
    TESS_TRY(keep_array(spec, numel, sizeof(pcre2_code *), &memory));
    *out = memory;
    for (int i = 0; i < numel; i++)
        TESS_TRY(compile_around(spec, option, "(.*\\.)?(", pattern[i].pattern, ")$", &(*out)[i]));
    return TESS_OK;
}

/* PEFT takes an entry of modules_to_save for an expression here, and for plain text where it
 * decides what is saved (tess_peft_spec_saves). */
static tess_status compile_saved(tess_peft_spec *spec)
{
    void *memory = NULL;
    TESS_TRY(keep_array(spec, spec->options.saved_numel, sizeof(pcre2_code *), &memory));
    spec->saved = memory;
    for (int i = 0; i < spec->options.saved_numel; i++)
        TESS_TRY(compile_around(spec, "modules_to_save", "(^|.*\\.)", spec->options.saved[i],
                                "($|\\..*)", &spec->saved[i]));
    return TESS_OK;
}

static tess_status compile_all(tess_peft_spec *spec)
{
    const tess_peft_options *o = &spec->options;
    spec->general = pcre2_general_context_create(pcre_alloc, pcre_free, NULL);
    TESS_CHECK(spec->general != NULL, TESS_E_MEMORY, "lora: no memory for patterns");
    spec->limits = pcre2_match_context_create(spec->general);
    TESS_CHECK(spec->limits != NULL, TESS_E_MEMORY, "lora: no memory for patterns");
    pcre2_set_match_limit(spec->limits, MATCH_LIMIT);
    pcre2_set_depth_limit(spec->limits, DEPTH_LIMIT);
    pcre2_set_heap_limit(spec->limits, HEAP_LIMIT_KIB);
    spec->is_all_linear =
        o->targets.regex != NULL && strcasecmp(o->targets.regex, TESS_PEFT_ALL_LINEAR) == 0;
    if (o->targets.regex != NULL && !spec->is_all_linear)
        TESS_TRY(
            compile(spec, "target_modules", o->targets.regex, PCRE2_ENDANCHORED, &spec->target));
    if (o->excludes.regex != NULL)
        TESS_TRY(
            compile(spec, "exclude_modules", o->excludes.regex, PCRE2_ENDANCHORED, &spec->exclude));
    TESS_TRY(compile_layers(spec));
    TESS_TRY(compile_saved(spec));
    TESS_TRY(compile_patterns(spec, "rank_pattern", o->rank_pattern, o->rank_pattern_numel,
                              &spec->rank));
    return compile_patterns(spec, "alpha_pattern", o->alpha_pattern, o->alpha_pattern_numel,
                            &spec->alpha);
}

tess_status tess_peft_spec_create(const tess_peft_options *options, tess_peft_spec **out)
{
    void *object = NULL;
    TESS_TRY(check_numbers(options));
    TESS_TRY(check_layers(options));
    TESS_TRY(tess_alloc(sizeof(tess_peft_spec), &object));
    tess_peft_spec *spec = object;
    tess_status st = keep_options(spec, options);
    if (st == TESS_OK)
        st = compile_all(spec);
    if (st != TESS_OK) {
        tess_peft_spec_destroy(&spec);
        return st;
    }
    *out = spec;
    return TESS_OK;
}

static void free_codes(pcre2_code **code, int numel)
{
    for (int i = 0; code != NULL && i < numel; i++)
        pcre2_code_free(code[i]);
}

void tess_peft_spec_destroy(tess_peft_spec **spec)
{
    tess_peft_spec *s = *spec;
    if (s == NULL)
        return;
    pcre2_code_free(s->target);
    pcre2_code_free(s->exclude);
    free_codes(s->layer, s->layer_regex_numel);
    free_codes(s->rank, s->options.rank_pattern_numel);
    free_codes(s->alpha, s->options.alpha_pattern_numel);
    free_codes(s->saved, s->options.saved_numel);
    pcre2_match_context_free(s->limits);
    pcre2_general_context_free(s->general);
    for (int64_t i = 0; i < s->kept_numel; i++)
        tess_free(s->kept[i]);
    tess_free(s->kept);
    tess_free(s);
    *spec = NULL;
}

const tess_peft_options *tess_peft_spec_options(const tess_peft_spec *spec)
{
    return &spec->options;
}

/* ---- matching ---- */

/* Run one pattern; `idx_text` (may be NULL) takes the digits of group idx. */
static tess_status run(const tess_peft_spec *spec, const pcre2_code *code, const char *path,
                       bool *is_match, char idx_text[24])
{
    PCRE2_UCHAR *digits = NULL;
    PCRE2_SIZE digit_numel = 0;
    pcre2_match_data *data = pcre2_match_data_create_from_pattern(code, spec->general);
    TESS_CHECK(data != NULL, TESS_E_MEMORY, "lora: no memory for a match");
    const int result = pcre2_match(code, (PCRE2_SPTR)path, strlen(path), 0, 0, data, spec->limits);
    *is_match = result >= 0;
    if (*is_match && idx_text != NULL) {
        idx_text[0] = '\0';
        if (pcre2_substring_get_byname(data, (PCRE2_SPTR) "idx", &digits, &digit_numel) == 0)
            snprintf(idx_text, 24, "%.23s", (const char *)digits);
        pcre2_substring_free(digits);
    }
    pcre2_match_data_free(data);
    TESS_CHECK(result >= 0 || result == PCRE2_ERROR_NOMATCH, TESS_E_CONFIG,
               "lora: a pattern gave up on module '%s' (PCRE2 error %d: match limit or not UTF-8); "
               "simplify it",
               path, result);
    return TESS_OK;
}

bool tess_peft_entry_names(const char *entry, const char *path)
{
    const size_t path_nbytes = strlen(path), nbytes = strlen(entry);
    return path_nbytes >= nbytes && strcmp(path + path_nbytes - nbytes, entry) == 0 &&
           (path_nbytes == nbytes || path[path_nbytes - nbytes - 1] == '.');
}

static void match_list(const tess_peft_modules *modules, const char *path, bool *is_exact,
                       bool *is_listed)
{
    *is_exact = *is_listed = false;
    for (int i = 0; i < modules->name_numel; i++) {
        *is_exact = *is_exact || strcmp(path, modules->name[i]) == 0;
        *is_listed = *is_listed || tess_peft_entry_names(modules->name[i], path);
    }
}

static tess_status match_layer(const tess_peft_spec *spec, const char *path, bool *is_match)
{
    char digits[24] = "";
    bool is_found = false;
    for (int i = 0; i < spec->layer_regex_numel && !is_found; i++)
        TESS_TRY(run(spec, spec->layer[i], path, &is_found, digits));
    *is_match = false;
    long long layer = -1;
    if (!is_found || strlen(digits) > 9 || sscanf(digits, "%lld", &layer) != 1)
        return TESS_OK;
    for (int i = 0; i < spec->options.layer_numel; i++)
        *is_match = *is_match || spec->options.layer[i] == layer;
    return TESS_OK;
}

static tess_status is_excluded(const tess_peft_spec *spec, const char *path, bool *out)
{
    bool is_exact = false;
    if (spec->exclude != NULL)
        TESS_TRY(run(spec, spec->exclude, path, out, NULL));
    else
        match_list(&spec->options.excludes, path, &is_exact, out);
    for (int i = 0; i < spec->options.saved_numel && !*out; i++)
        TESS_TRY(run(spec, spec->saved[i], path, out, NULL));
    return TESS_OK;
}

static tess_status is_target(const tess_peft_spec *spec, const tess_peft_module *module, bool *out)
{
    bool is_exact = false;
    TESS_TRY(is_excluded(spec, module->path, out));
    if (*out) {
        *out = false;
        return TESS_OK;
    }
    if (spec->is_all_linear) {
        *out = !module->is_output_embedding;
        return TESS_OK;
    }
    if (spec->target != NULL)
        return run(spec, spec->target, module->path, out, NULL);
    match_list(&spec->options.targets, module->path, &is_exact, out);
    /* A path that is listed in full is taken whatever layers_to_transform says. */
    if (*out && !is_exact && spec->options.layer_numel > 0)
        return match_layer(spec, module->path, out);
    return TESS_OK;
}

bool tess_peft_entry_saves(const char *entry, const char *tensor_name)
{
    const size_t tail = strlen(entry);
    for (size_t end = strlen(tensor_name); end-- > 0;) /* a module's path ends at every dot */
        if (tensor_name[end] == '.' && end >= tail &&
            memcmp(tensor_name + end - tail, entry, tail) == 0)
            return true;
    return false;
}

bool tess_peft_spec_saves(const tess_peft_spec *spec, const char *tensor_name)
{
    for (int i = 0; i < spec->options.saved_numel; i++)
        if (tess_peft_entry_saves(spec->options.saved[i], tensor_name))
            return true;
    return false;
}

int tess_peft_part_numel(const tess_peft_options *options)
{
    return options->use_dora ? TESS_PEFT_PART_MAX : TESS_PEFT_B + 1;
}

tess_status tess_peft_spec_fits_rank(const tess_peft_spec *spec, int idx, const char *path,
                                     bool *out)
{
    return run(spec, spec->rank[idx], path, out, NULL);
}

tess_status tess_peft_spec_fits_alpha(const tess_peft_spec *spec, int idx, const char *path,
                                      bool *out)
{
    return run(spec, spec->alpha[idx], path, out, NULL);
}

static tess_status first_pattern(const tess_peft_spec *spec, pcre2_code *const *code,
                                 const tess_peft_pattern *pattern, int numel, const char *path,
                                 double *value)
{
    for (int i = 0; i < numel; i++) {
        bool is_match = false;
        TESS_TRY(run(spec, code[i], path, &is_match, NULL));
        if (is_match) {
            *value = pattern[i].value;
            return TESS_OK;
        }
    }
    return TESS_OK;
}

tess_status tess_peft_spec_match(const tess_peft_spec *spec, const tess_peft_module *module,
                                 tess_peft_match *out)
{
    const tess_peft_options *o = &spec->options;
    tess_peft_match m = {.is_target = false};
    double rank = (double)o->rank;
    TESS_CHECK(strlen(module->path) <= PATH_MAX_NBYTES, TESS_E_CONFIG,
               "lora: a module path of %zu bytes, at most %d are accepted", strlen(module->path),
               PATH_MAX_NBYTES);
    TESS_TRY(is_target(spec, module, &m.is_target));
    if (m.is_target) {
        m.alpha = o->alpha;
        TESS_TRY(first_pattern(spec, spec->rank, o->rank_pattern, o->rank_pattern_numel,
                               module->path, &rank));
        TESS_TRY(first_pattern(spec, spec->alpha, o->alpha_pattern, o->alpha_pattern_numel,
                               module->path, &m.alpha));
        m.rank = (int64_t)rank;
        m.scale = m.alpha / (o->use_rslora ? sqrt(rank) : rank);
    }
    *out = m;
    return TESS_OK;
}
