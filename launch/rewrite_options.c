#include "launch/rewrite_options.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"

tess_rewrite_options tess_rewrite_options_default(void)
{
    return (tess_rewrite_options){
        .storage = TESS_U8, .shard_nbytes = INT64_C(5000000000), .thread_numel = 1};
}

void tess_rewrite_options_fini(tess_rewrite_options *o)
{
    for (int64_t i = 0; i < o->key_numel; i++)
        tess_free((void *)(uintptr_t)o->key[i].text);
    for (int64_t i = 0; i < o->rule_numel; i++)
        tess_free((void *)(uintptr_t)o->rule[i].match);
    for (int64_t i = 0; i < o->base_rule_numel; i++)
        tess_free((void *)(uintptr_t)o->base_rule[i].match);
    tess_free(o->key);
    tess_free(o->rule);
    tess_free(o->base_rule);
}

error_t tess_rewrite_options_key(const struct argp_state *state, tess_rewrite_options *o,
                                 const char *key, const char *value)
{
    char *text = NULL;
    void *grown = o->key;
    if (tess_realloc_array(o->key_numel, o->key_numel + 1, sizeof *o->key, &grown) != TESS_OK)
        return EINVAL;
    o->key = grown;
    if (tess_asprintf(&text, "%s=%s", key, value) != TESS_OK)
        return EINVAL;
    o->key[o->key_numel++] = (tess_run_override){.text = text, .argument_idx = state->next - 1};
    return 0;
}

/* The last '=' divides: expressions may hold others. */
static error_t add_rule(const struct argp_state *state, tess_rewrite_rule **rule, int64_t *numel,
                        const char *arg)
{
    const char *equals = strrchr(arg, '=');
    char *match = NULL;
    void *grown = *rule;
    if (equals == NULL || equals == arg || equals[1] == '\0')
        return tess_launch_refuse(state, "expected REGEX=FORMAT, found '%.100s'", arg);
    if (tess_realloc_array(*numel, *numel + 1, sizeof **rule, &grown) != TESS_OK)
        return EINVAL;
    *rule = grown;
    if (tess_strndup(arg, (size_t)(equals - arg), &match) != TESS_OK)
        return EINVAL;
    (*rule)[(*numel)++] = (tess_rewrite_rule){.match = match, .format = equals + 1};
    return 0;
}

static error_t set_storage(const struct argp_state *state, tess_rewrite_options *o, const char *arg)
{
    static const struct {
        const char *name;
        tess_dtype dt;
    } known[] = {{"uint8", TESS_U8},   {"bf16", TESS_BF16},   {"bfloat16", TESS_BF16},
                 {"f16", TESS_F16},    {"float16", TESS_F16}, {"f32", TESS_F32},
                 {"float32", TESS_F32}};
    for (int i = 0; i < TESS_NELEM(known); i++) {
        if (strcmp(arg, known[i].name) == 0) {
            o->storage = known[i].dt;
            return 0;
        }
    }
    return tess_launch_refuse(state,
                              "--quant-storage: expected uint8, bf16, f16 or f32, found "
                              "'%.100s'",
                              arg);
}

static error_t set_shard(const struct argp_state *state, tess_rewrite_options *o, const char *arg)
{
    static const struct {
        const char *suffix;
        int64_t nbytes;
    } units[] = {{"", 1}, {"MB", 1000000}, {"GB", 1000000000}};
    char *end = NULL;
    errno = 0;
    const long long value = strtoll(arg, &end, 10);
    for (int i = 0; i < TESS_NELEM(units); i++) {
        if (end != arg && errno == 0 && strcmp(end, units[i].suffix) == 0 && value > 0 &&
            value <= INT64_MAX / units[i].nbytes) {
            o->shard_nbytes = value * units[i].nbytes;
            return 0;
        }
    }
    return tess_launch_refuse(state,
                              "--max-shard-size: expected bytes, or a number with MB or GB, found "
                              "'%.100s'",
                              arg);
}

/* Options that are keys of the run file, which checks their values. */
static const char *run_key(int key)
{
    static const struct {
        int key;
        const char *name;
    } known[] = {{TESS_REWRITE_BLOCK, "base.block_size"},
                 {TESS_REWRITE_GROUP, "base.group_size"},
                 {TESS_REWRITE_RULE, "base.rule"},
                 {TESS_REWRITE_SCALING, "base.scaling"},
                 {TESS_REWRITE_MEANING, "base.scale_meaning"}};
    for (int i = 0; i < TESS_NELEM(known); i++)
        if (known[i].key == key)
            return known[i].name;
    return NULL;
}

error_t tess_rewrite_options_parse(const struct argp_state *state, tess_rewrite_options *o, int key,
                                   const char *arg)
{
    static const int64_t thread_range[2] = {1, 1024};
    if (run_key(key) != NULL)
        return tess_rewrite_options_key(state, o, run_key(key), arg);
    switch (key) {
    case 'o':
        o->output = arg;
        return 0;
    case TESS_REWRITE_DOUBLE:
        if (strcmp(arg, "yes") != 0 && strcmp(arg, "no") != 0)
            return tess_launch_refuse(state, "--double-quant: expected yes or no, found '%.100s'",
                                      arg);
        return tess_rewrite_options_key(state, o, "base.double_quant",
                                        *arg == 'y' ? "true" : "false");
    case TESS_REWRITE_OVERRIDE:
        return add_rule(state, &o->rule, &o->rule_numel, arg);
    case TESS_REWRITE_BASE_OVERRIDE:
        return add_rule(state, &o->base_rule, &o->base_rule_numel, arg);
    case TESS_REWRITE_STORAGE:
        return set_storage(state, o, arg);
    case TESS_REWRITE_SHARD:
        return set_shard(state, o, arg);
    case TESS_REWRITE_THREADS:
        return tess_launch_int(state, "--threads", arg, thread_range, &o->thread_numel);
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

tess_rewrite_choice tess_rewrite_options_choice(const tess_rewrite_options *o)
{
    return (tess_rewrite_choice){
        .key = o->key, .key_numel = o->key_numel, .rule = o->rule, .rule_numel = o->rule_numel};
}

tess_status tess_rewrite_print_json(const tess_json *root)
{
    char *text = NULL;
    TESS_TRY(tess_json_dump(root, 0, &text, NULL));
    tess_status st = tess_launch_print(text);
    if (st == TESS_OK)
        st = tess_launch_print("\n");
    tess_free(text);
    return st;
}
