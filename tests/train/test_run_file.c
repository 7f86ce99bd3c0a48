/* Bad input is generated from the schema: every key is misspelt, repeated, mistyped and driven out
 * of its range, in the file and on the command line. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "tests/train/run_file_choices.h"
#include "train/run_file/run_file.h"
#include "train/run_file/run_priv.h"
#include "train/strbuf.h"

static const char minimal[] = "model: {path: m}\ndata: {path: d.h5}\noutput: {dir: out}\n";

/* A value of the right type and in range, other than the default where there is a choice. */
static void sample_value(const tess_run_key *key, char text[64])
{
    switch (key->kind) {
    case TESS_RUN_INT:
    case TESS_RUN_BYTES:
        snprintf(text, 64, "%" PRId64, key->least_int);
        return;
    case TESS_RUN_F64:
        snprintf(text, 64, "%.9g", key->most);
        return;
    case TESS_RUN_BOOL:
        snprintf(text, 64, "false");
        return;
    case TESS_RUN_ENUM:
        snprintf(text, 64, "%.*s", (int)strcspn(key->words + 1, "|"), key->words + 1);
        return;
    case TESS_RUN_TEXT:
    case TESS_RUN_PATH:
        snprintf(text, 64, "\"some where/%s: #x\"", key->name);
        return;
    case TESS_RUN_NAMES:
        snprintf(text, 64, "[q_proj, 'v proj']");
        return;
    case TESS_RUN_RULES:
        snprintf(text, 64, "[{match: 'a.*\\d', format: bf16}]");
        return;
    case TESS_RUN_INTS:
        snprintf(text, 64, "[%" PRId64 ", 7, 2]", key->most_int);
        return;
    case TESS_RUN_PATTERNS:
        snprintf(text, 64, "{v_proj: %.9g, '1\\.q: #': 8}", key->most);
        return;
    }
}

typedef struct change {
    tess_run_key_idx key; /* TESS_RUN_KEY_NUMEL: nothing is changed */
    const char *name;     /* instead of the key's name, or NULL */
    const char *value;    /* instead of a good value, or NULL */
    bool is_twice;
    bool is_left_out;
} change;

/* Whether a file about `changed` has this key; what another one needs goes into `value`. */
static bool is_written(tess_run_key_idx key, tess_run_key_idx changed, char value[64])
{
    const tess_run family = family_of(changed);
    bool is_in = run_family_reads(&family, key);
    if (tess_run_is_vectors(&family) && key == TESS_RUN_KEY_model_family)
        snprintf(value, 64, "%s",
                 tess_run_is_of_images(&family) ? "vqvae"
                 : tess_run_is_rqvae(&family)   ? "rqvae"
                                                : "kmeans");
    if (tess_run_is_flux(&family) && key == TESS_RUN_KEY_model_family)
        snprintf(value, 64, "flux");
    if (tess_run_is_rqvae(&family) && key == TESS_RUN_KEY_quantizer_init)
        snprintf(value, 64, "kmeans");
    for (int t = 0; t < TESS_NELEM(types); t++)
        if (key == TESS_RUN_KEY_quantizer_type && types[t].type == family.quantizer.type)
            snprintf(value, 64, "%s", types[t].word);
    for (int i = 0; i < TESS_NELEM(needs); i++) {
        if (needs[i].key == key && key != changed)
            is_in = false;
        if (needs[i].key == changed && needs[i].needed == key)
            snprintf(value, 64, "%s", needs[i].value);
    }
    const bool is_of_adafactor = changed == TESS_RUN_KEY_train_adafactor_relative_step ||
                                 changed == TESS_RUN_KEY_train_adafactor_scale_parameter;
    const bool is_of_averages =
        changed == TESS_RUN_KEY_quantizer_decay || changed == TESS_RUN_KEY_quantizer_threshold;
    if (is_of_averages && key == TESS_RUN_KEY_train_ema_decay)
        return false; /* no average of averages */
    if (key == (changed == TESS_RUN_KEY_train_epochs ? TESS_RUN_KEY_train_steps
                                                     : TESS_RUN_KEY_train_epochs) ||
        key == (changed == TESS_RUN_KEY_train_warmup_ratio ? TESS_RUN_KEY_train_warmup_steps
                                                           : TESS_RUN_KEY_train_warmup_ratio))
        return false; /* one of both */
    const bool is_of_others = key == TESS_RUN_KEY_train_beta2 || key == TESS_RUN_KEY_train_eps;
    return is_in && !(is_of_adafactor && is_of_others);
}

/* A file with every key that may stand beside the others, one of them changed; *line is where that
 * key stands. */
static void write_file(const change *c, tess_strbuf *out, int *line)
{
    const char *section = "";
    int at = 0;
    for (int i = 0; i < TESS_RUN_KEY_NUMEL; i++) {
        const tess_run_key *key = tess_run_key_at((tess_run_key_idx)i);
        const bool is_it = (int)c->key == i;
        if (strcmp(section, key->section) != 0) {
            assert_int_equal(tess_strbuf_add(out, "%s:\n", key->section), TESS_OK);
            at++;
        }
        section = key->section;
        if (is_it && c->is_left_out)
            continue;
        char value[64];
        sample_value(key, value);
        if (!is_written((tess_run_key_idx)i, c->key, value))
            continue;
        for (int n = 0; n < (is_it && c->is_twice ? 2 : 1); n++) {
            at++;
            assert_int_equal(tess_strbuf_add(out, "  %s: %s\n",
                                             is_it && c->name ? c->name : key->name,
                                             is_it && c->value ? c->value : value),
                             TESS_OK);
        }
        if (is_it)
            *line = at;
    }
}

static void expect_message(const char *first, const char *second)
{
    const char *message = tess_error_message();
    if (strstr(message, first) == NULL || strstr(message, second) == NULL)
        fail_msg("message '%s' lacks '%s' or '%s'", message, first, second);
    assert_null(strchr(message, '\n'));
}

/* Parse and expect a refusal of the changed key at its line. */
static void expect_refusal(const change *c, const char *in_message)
{
    tess_strbuf text = {0};
    int line = 0;
    write_file(c, &text, &line);
    tess_run *run = NULL;
    tess_error_clear();
    const tess_status st = tess_run_parse(text.text, text.nbytes, "dir/run.yaml", NULL, 0, &run);
    if (st != TESS_E_CONFIG)
        fail_msg("%s: status %s for value '%s'", tess_run_key_at(c->key)->path,
                 tess_status_name(st), c->value ? c->value : "");
    assert_null(run);
    char place[64];
    snprintf(place, sizeof place, "dir/run.yaml:%d:", line);
    expect_message(place, in_message);
    tess_strbuf_fini(&text);
    tess_error_clear();
}

/* The same value as an override. */
static void expect_override_refusal(const tess_run_key *key, const char *value, const char *found)
{
    tess_strbuf text = {0};
    assert_int_equal(tess_strbuf_add(&text, "%s=%s", key->path, value), TESS_OK);
    const tess_run_override overrides[] = {{"train.seed=1", 2}, {text.text, 3}};
    tess_run *run = NULL;
    tess_error_clear();
    if (tess_run_parse(minimal, sizeof minimal - 1, "run.yaml", overrides, 2, &run) !=
        TESS_E_CONFIG)
        fail_msg("override %s was accepted", text.text);
    expect_message("command line, argument 3: ", key->path);
    expect_message(found, "");
    tess_strbuf_fini(&text);
    tess_error_clear();
}

static void expect_bad_value(tess_run_key_idx idx, const char *value)
{
    const change c = {.key = idx, .value = value};
    const tess_run_key *key = tess_run_key_at(idx);
    expect_refusal(&c, key->path);
    /* Quotes and mappings are YAML; on the command line only lists are. */
    if (value[0] != '"' && value[0] != '{' && idx != TESS_RUN_KEY_train_seed &&
        key->kind != TESS_RUN_PATH && key->kind != TESS_RUN_NAMES)
        expect_override_refusal(key, value, "expected");
}

static void test_run_parse_every_key_good_is_accepted(void **state)
{
    (void)state;
    const change c = {.key = TESS_RUN_KEY_NUMEL};
    tess_strbuf text = {0};
    int line = 0;
    write_file(&c, &text, &line);
    tess_run *run = NULL;
    tess_error_clear();
    if (tess_run_parse(text.text, text.nbytes, "run.yaml", NULL, 0, &run) != TESS_OK)
        fail_msg("%s", tess_error_message());
    assert_string_equal(run->model.path, "some where/path: #x");
    assert_int_equal(run->train.seed, 0);
    assert_int_equal(run->lora.targets.item_numel, 2);
    assert_string_equal(run->lora.targets.item[1], "v proj");
    assert_int_equal(run->base.overrides.item_numel, 1);
    assert_int_equal(run->base.overrides.item[0].format, TESS_RUN_BASE_BF16);
    assert_int_equal(run->lora.layers.item_numel, 3);
    assert_int_equal(run->lora.layers.item[1], 7);
    assert_int_equal(run->lora.rank_pattern.item_numel, 2);
    assert_string_equal(run->lora.rank_pattern.item[0].pattern, "v_proj"); /* in file order */
    assert_string_equal(run->lora.rank_pattern.item[1].pattern, "1\\.q: #");
    assert_true(run->lora.rank_pattern.item[1].value == 8.0);
    tess_run_destroy(&run);
    assert_null(run);
    tess_strbuf_fini(&text);
}

static void test_run_parse_every_key_misspelt_names_nearest(void **state)
{
    (void)state;
    for (int i = 0; i < TESS_RUN_KEY_NUMEL; i++) {
        const tess_run_key *key = tess_run_key_at((tess_run_key_idx)i);
        char name[80];
        char nearest[128];
        snprintf(name, sizeof name, "%c%s", key->name[0], key->name);
        snprintf(nearest, sizeof nearest, "the nearest known key is '%s'", key->path);
        const change c = {.key = (tess_run_key_idx)i, .name = name};
        expect_refusal(&c, nearest);

        char override[128];
        snprintf(override, sizeof override, "%s.%s=1", key->section, name);
        const tess_run_override overrides[] = {{override, 7}};
        tess_run *run = NULL;
        assert_int_equal(
            tess_run_parse(minimal, sizeof minimal - 1, "run.yaml", overrides, 1, &run),
            TESS_E_CONFIG);
        expect_message("command line, argument 7: unknown key", nearest);
        tess_error_clear();
    }
}

static void refuse_text(const char *text, const char *message)
{
    tess_run *run = NULL;
    tess_error_clear();
    assert_int_equal(tess_run_parse(text, strlen(text), "r.yaml", NULL, 0, &run), TESS_E_CONFIG);
    expect_message(message, "r.yaml");
    assert_null(run);
}

static void test_run_parse_every_key_twice_is_refused(void **state)
{
    (void)state;
    for (int i = 0; i < TESS_RUN_KEY_NUMEL; i++) {
        const tess_run_key *key = tess_run_key_at((tess_run_key_idx)i);
        const change c = {.key = (tess_run_key_idx)i, .is_twice = true};
        char text[128];
        snprintf(text, sizeof text, "%s is given twice, first at dir/run.yaml:", key->path);
        expect_refusal(&c, text);
    }
}

static void test_run_parse_every_key_wrong_type_is_refused(void **state)
{
    (void)state;
    static const char *const wrong[][4] = {
        [TESS_RUN_INT] = {"abc", "[1]", "\"7\"", "1.5"},
        [TESS_RUN_BYTES] = {"8GB", "[1]", "\"7\"", "GiB"},
        [TESS_RUN_F64] = {"abc", "{a: 1}", "\"0.5\"", "0x1p-3"},
        [TESS_RUN_BOOL] = {"maybe", "[true]", "\"true\"", "1"},
        [TESS_RUN_ENUM] = {"nonsense", "[a]", "{a: b}", "1"},
        [TESS_RUN_TEXT] = {"[a]", "{a: b}", "", "[]"},
        [TESS_RUN_PATH] = {"[a]", "{a: b}", "", "[[a]]"},
        [TESS_RUN_NAMES] = {"{a: b}", "[[a]]", "", "[{a: b}]"},
        [TESS_RUN_RULES] = {"abc", "{match: a, format: nf4}", "[a]", "[{match: a}]"},
        [TESS_RUN_INTS] = {"abc", "{a: 1}", "\"7\"", "[1, 1.5]"},
        [TESS_RUN_PATTERNS] = {"abc", "[1]", "{a: b}", "{a: 2, a: 3}"},
    };
    for (int i = 0; i < TESS_RUN_KEY_NUMEL; i++)
        for (int n = 0; n < 4; n++)
            expect_bad_value((tess_run_key_idx)i,
                             wrong[tess_run_key_at((tess_run_key_idx)i)->kind][n]);
}

static void test_run_parse_rules_malformed_are_refused(void **state)
{
    (void)state;
    static const char *const wrong[] = {
        "[{match: a, format: nf5}]",           "[{match: a, match: b}]",
        "[{match: a, format: nf4, more: 1}]",  "[{match: '', format: nf4}]",
        "[{match: [a], format: nf4}]",         "[{match: a, format: [nf4]}]",
        "[{match: a, format: nf4}, {form: b}]"};
    for (int n = 0; n < TESS_NELEM(wrong); n++)
        expect_bad_value(TESS_RUN_KEY_base_overrides, wrong[n]);
}

static void fill(char *text, size_t nbytes, const char *unit)
{
    size_t n = 0;
    for (; n + strlen(unit) < nbytes; n += strlen(unit))
        memcpy(text + n, unit, strlen(unit));
    text[n] = '\0';
}

/* Values just outside the range, below and above. */
static void range_values(const tess_run_key *key, char *below, char *above, size_t nbytes)
{
    switch (key->kind) {
    case TESS_RUN_INT:
        snprintf(below, nbytes, "%" PRId64, key->least_int - 1);
        snprintf(above, nbytes, "%" PRIu64, (uint64_t)key->most_int + 1);
        return;
    case TESS_RUN_BYTES:
        snprintf(below, nbytes, "%" PRId64, key->least_int - 1);
        snprintf(above, nbytes, "9223372036854775807KiB");
        return;
    case TESS_RUN_F64:
        snprintf(below, nbytes, "%.17g",
                 key->least > 0 ? key->least / 2 : key->least * 1.001 - 1e-9);
        snprintf(above, nbytes, "%.17g", key->most * 1.0001);
        return;
    case TESS_RUN_TEXT:
    case TESS_RUN_PATH:
        snprintf(below, nbytes, "\"\"");
        fill(above, (size_t)key->most_int + 2, "a");
        return;
    case TESS_RUN_NAMES:
        snprintf(below, nbytes, "[]");
        fill(above, 4098, "a");
        return;
    case TESS_RUN_RULES: /* nothing is below an empty list */
        snprintf(below, nbytes, "{}");
        above[0] = '[';
        fill(above + 1, (size_t)1025 * 27 + 1, "{match: a, format: nf4},   ");
        memcpy(above + strlen(above), "]", 2);
        return;
    case TESS_RUN_INTS:
        snprintf(below, nbytes, "[%" PRId64 "]", key->least_int - 1);
        snprintf(above, nbytes, "[%" PRId64 ", %" PRId64 "]", key->least_int, key->most_int + 1);
        return;
    case TESS_RUN_PATTERNS:
        snprintf(below, nbytes, "{a: %.17g}", key->least / 2);
        snprintf(above, nbytes, "{a: %.17g}", key->most * 1.0001);
        return;
    case TESS_RUN_BOOL:
    case TESS_RUN_ENUM: /* no order: any other word is out of range */
        snprintf(below, nbytes, "-1");
        snprintf(above, nbytes, "99");
        return;
    }
}

static void test_run_parse_every_key_out_of_range_is_refused(void **state)
{
    (void)state;
    static char below[40000];
    static char above[40000];
    for (int i = 0; i < TESS_RUN_KEY_NUMEL; i++) {
        range_values(tess_run_key_at((tess_run_key_idx)i), below, above, sizeof below);
        expect_bad_value((tess_run_key_idx)i, below);
        expect_bad_value((tess_run_key_idx)i, above);
    }
}

static void test_run_parse_required_key_missing_is_refused(void **state)
{
    (void)state;
    int required_numel = 0;
    for (int i = 0; i < TESS_RUN_KEY_NUMEL; i++) {
        const tess_run_key *key = tess_run_key_at((tess_run_key_idx)i);
        const change c = {.key = (tess_run_key_idx)i, .is_left_out = true};
        tess_strbuf text = {0};
        int line = 0;
        write_file(&c, &text, &line);
        tess_run *run = NULL;
        tess_error_clear();
        const tess_status st = tess_run_parse(text.text, text.nbytes, "r.yaml", NULL, 0, &run);
        /* three keys of the file need another one beside them */
        const bool is_of_axes = i == TESS_RUN_KEY_quantizer_axis_levels;
        const bool is_needed =
            i == TESS_RUN_KEY_lora_targets || i == TESS_RUN_KEY_lora_layers || is_of_axes;
        const bool is_required = key->initial == NULL || i == TESS_RUN_KEY_model_path;
        if (st != (is_required || is_needed ? TESS_E_CONFIG : TESS_OK))
            fail_msg("without %s: %s: %s", key->path, tess_status_name(st), tess_error_message());
        if (is_needed) {
            expect_message("r.yaml:",
                           is_of_axes ? "fsq needs quantizer.axis_levels" : "lora.layers");
        } else if (st != TESS_OK) {
            required_numel++;
            expect_message("r.yaml:1:1: key '", key->path);
        }
        tess_run_destroy(&run);
        tess_strbuf_fini(&text);
    }
    assert_int_equal(required_numel, 3);
    tess_error_clear();
}

/* One text each, with a part of the message it must cause. */
static void test_run_parse_bad_yaml_is_refused_with_place(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        const char *message;
    } cases[] = {
        {"", "r.yaml: the file is empty"},
        {"# only a comment\n", "r.yaml: the file is empty"},
        {"- a\n", "r.yaml:1:1: expected sections"},
        {"model:\n\tpath: x\n", "r.yaml:2:1: not YAML: "},
        {"model: {path: x\n", "not YAML: "},
        {"model: {path: &a x}\n", "r.yaml:1:15: anchors (&name) are not allowed"},
        {"model: &a {path: x}\n", "r.yaml:1:8: anchors (&name) are not allowed"},
        {"model: {path: *a}\n", "r.yaml:1:15: aliases (*name) are not allowed"},
        {"model: {path: !!str x}\n", "r.yaml:1:15: tags (!name) are not allowed"},
        {"model: !map {path: x}\n", "r.yaml:1:8: tags (!name) are not allowed"},
        {"model: {<<: x}\n", "unknown key 'model.<<'"},
        {"model: {[a]: x}\n", "a key must be a plain word"},
        {"model: {path: x}\n---\nmodel: {path: x}\n", "r.yaml:2:1: a run file is one document"},
        {"model: {path: [[[[[[[[[[x]]]]]]]]]]}\n", "nested too deeply"},
        {"model: {path: \"a\\0b\"}\n", "a value holds a NUL byte"},
        {"model: {path: \xff}\n", "r.yaml:1:15: not YAML: "},
        {"model: 3\n", "r.yaml:1:1: section 'model': expected KEY: VALUE"},
        {"train: {steps: 3}\ntrain: {seed: 1}\n", "r.yaml:2:1: section 'train' is given twice"},
        {"trian: {steps: 3}\n", "unknown section 'trian', the nearest known key is 'train.steps'"},
        {"train.steps: 3\n", "unknown section 'train.steps'"},
    };
    for (int i = 0; i < TESS_NELEM(cases); i++)
        refuse_text(cases[i].text, cases[i].message);
    static char large[TESS_RUN_TEXT_LIMIT_NBYTES + 1];
    memset(large, '#', sizeof large);
    tess_run *run = NULL;
    tess_error_clear();
    assert_int_equal(tess_run_parse(large, sizeof large, "r.yaml", NULL, 0, &run), TESS_E_CONFIG);
    expect_message("r.yaml: 1048577 bytes", "at most 1048576");
    tess_error_clear();
}

/* Every byte of a good file cut off or replaced: a verdict, no crash, and no leak. */
static void test_run_parse_damaged_text_ends_with_a_verdict(void **state)
{
    (void)state;
    const change c = {.key = TESS_RUN_KEY_NUMEL};
    tess_strbuf text = {0};
    int line = 0;
    write_file(&c, &text, &line);
    const size_t held = tess_alloc_nbytes();
    static const char bytes[] = {'\0', '\n', '{', ']', ':', '"', '&', '\xff'};
    for (size_t at = 0; at < text.nbytes; at += 7) {
        tess_run *run = NULL;
        tess_error_clear();
        (void)!tess_run_parse(text.text, at, "r.yaml", NULL, 0, &run);
        tess_run_destroy(&run);
        const char saved = text.text[at];
        text.text[at] = bytes[at / 7 % sizeof bytes];
        const tess_status st = tess_run_parse(text.text, text.nbytes, "r.yaml", NULL, 0, &run);
        assert_true(st == TESS_OK || st == TESS_E_CONFIG);
        tess_run_destroy(&run);
        text.text[at] = saved;
    }
    assert_int_equal(tess_alloc_nbytes(), held);
    tess_strbuf_fini(&text);
    tess_error_clear();
}

static tess_run *parse_good(const char *text, const tess_run_override *overrides, int64_t numel)
{
    tess_run *run = NULL;
    tess_error_clear();
    if (tess_run_parse(text, strlen(text), "run.yaml", overrides, numel, &run) != TESS_OK)
        fail_msg("%s", tess_error_message());
    return run;
}

static void test_run_parse_defaults_are_those_of_the_design(void **state)
{
    (void)state;
    tess_run *run = parse_good(minimal, NULL, 0);
    assert_int_equal(run->model.init, TESS_RUN_INIT_WEIGHTS);
    assert_int_equal(run->base.format, TESS_RUN_BASE_NF4);
    assert_int_equal(run->base.block_size, 64);
    assert_true(run->base.double_quant);
    assert_int_equal(run->lora.rank, 16);
    assert_string_equal(run->lora.targets.item[0], "all-linear");
    assert_false(run->lora.targets.is_list);
    assert_int_equal(run->train.steps, 100);
    assert_true(run->train.learning_rate == 2.0e-4);
    assert_int_equal(run->train.warmup_steps, 10);
    assert_int_equal(run->shard.gather_group, TESS_RUN_AUTO);
    assert_int_equal(run->compute.memory_limit, TESS_RUN_AUTO);
    assert_int_equal(run->output.export_as, TESS_RUN_EXPORT_PEFT);
    assert_string_equal(run->output.resume, "auto");
    assert_null(run->data.eval_path);
    tess_run_destroy(&run);
    run = parse_good("model: {path: m}\ndata: {path: d.h5}\noutput: {dir: out}\n"
                     "compute: {memory_limit: \"8GiB\"}\n", /* quoted, as JSON has it */
                     NULL, 0);
    assert_int_equal(run->compute.memory_limit, INT64_C(8) << 30);
    tess_run_destroy(&run);
}

static void test_run_parse_overrides_win_over_the_file(void **state)
{
    (void)state;
    const tess_run_override overrides[] = {
        {"model.path=other: # dir", 1},       {"train.steps=3", 2},
        {"lora.targets=[q_proj, k_proj]", 3}, {"shard.gather_group=world", 4},
        {"compute.memory_limit=8GiB", 5},     {"compute.activation_checkpointing=true", 6},
        {"lora.exclude=.*\\.7\\..*=", 7},
    };
    tess_run *run = parse_good(minimal, overrides, TESS_NELEM(overrides));
    assert_string_equal(run->model.path, "other: # dir");
    assert_int_equal(run->train.steps, 3);
    assert_int_equal(run->train.warmup_steps, 3); /* its default is at most steps */
    assert_int_equal(run->lora.targets.item_numel, 2);
    assert_int_equal(run->shard.gather_group, TESS_RUN_GROUP_WORLD);
    assert_int_equal(run->compute.memory_limit, INT64_C(8) << 30);
    assert_int_equal(run->compute.activation_checkpointing, TESS_RUN_SWITCH_ON);
    assert_string_equal(run->lora.exclude.item[0], ".*\\.7\\..*=");
    char place[TESS_RUN_PLACE_NBYTES];
    tess_run_place_text(run, TESS_RUN_KEY_train_steps, place);
    assert_string_equal(place, "command line, argument 2: train.steps");
    tess_run_place_text(run, TESS_RUN_KEY_data_path, place);
    assert_string_equal(place, "run.yaml:2:14: data.path");
    tess_run_destroy(&run);
}

static void test_run_parse_override_malformed_is_usage(void **state)
{
    (void)state;
    static const char *const wrong[] = {"train.steps", "=3", ""};
    for (int i = 0; i < TESS_NELEM(wrong); i++) {
        const tess_run_override overrides[] = {{wrong[i], 4}};
        tess_run *run = NULL;
        tess_error_clear();
        assert_int_equal(
            tess_run_parse(minimal, sizeof minimal - 1, "run.yaml", overrides, 1, &run),
            TESS_E_ARG);
        expect_message("command line, argument 4: expected KEY=VALUE, found '", wrong[i]);
    }
    static const char *const not_utf8[] = {"model.path=\xff", "model.path=a\xc3",
                                           "model.path=\xc0\xaf", "model.path=\xed\xa0\x80",
                                           "model.path=\xf4\x90\x80\x80"};
    for (int i = 0; i < TESS_NELEM(not_utf8); i++) {
        const tess_run_override overrides[] = {{not_utf8[i], 4}};
        tess_run *bad = NULL;
        tess_error_clear();
        assert_int_equal(
            tess_run_parse(minimal, sizeof minimal - 1, "run.yaml", overrides, 1, &bad),
            TESS_E_CONFIG);
        expect_message("command line, argument 4: 'model.path=", "expected UTF-8");
    }
    const tess_run_override twice[] = {{"train.steps=3", 3}, {"train.steps=4", 5}};
    tess_run *run = NULL;
    tess_error_clear();
    assert_int_equal(tess_run_parse(minimal, sizeof minimal - 1, "run.yaml", twice, 2, &run),
                     TESS_E_CONFIG);
    expect_message("command line, argument 5: train.steps is given twice",
                   "first at command line, argument 3");
    tess_error_clear();
}

static void test_run_parse_keys_that_do_not_fit_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *more;
        const char *message;
    } cases[] = {
        {"train: {steps: 5, warmup_steps: 6}\n",
         "run.yaml:4:33: train.warmup_steps: expected at most train.steps (5), found 6"},
        {"train: {mode: full}\nlora: {rank: 4}\n",
         "run.yaml:5:14: lora.rank: has no meaning with train.mode full"},
        {"train: {mode: full}\nbase: {format: nf4}\n", "base.format: has no meaning"},
        {"train: {mode: full}\nadapter: {resume: a}\n", "adapter.resume: has no meaning"},
        {"base: {block_size: 96}\n", "base.block_size: expected a power of two"},
        {"train: {micro_batch: 65536}\ndata: {}\n", "section 'data' is given twice"},
    };
    for (int i = 0; i < TESS_NELEM(cases); i++) {
        char text[512];
        snprintf(text, sizeof text, "%s%s", minimal, cases[i].more);
        tess_run *run = NULL;
        tess_error_clear();
        assert_int_equal(tess_run_parse(text, strlen(text), "run.yaml", NULL, 0, &run),
                         TESS_E_CONFIG);
        expect_message(cases[i].message, "run.yaml:");
    }
    static const char *const pairs[][3] = {
        {"train.mode=full", "output.export=peft", "output.export: names a form of adapters"},
        {"train.mode=lora", "output.export=hf", "output.export: hf writes a whole model"},
        {"train.micro_batch=65536", "data.sequence_length=1048576", "tokens in a micro-batch"},
        {"lora.layers=[1]", "lora.targets=all-linear", "lora.layers: needs lora.targets to be a "},
        {"lora.layers_pattern=h", "lora.targets=[a]", "lora.layers_pattern: says where a layer's"},
        {"lora.rank_pattern={q: 2.5}", "lora.rank=4", "lora.rank_pattern: 'q': expected a whole"},
        {"base.block_size=128", "base.format=qint4", "base.block_size: changes nothing here"},
        {"base.double_quant=false", "base.format=bf16", "choose base.format nf4 or fp4"},
        {"base.rule=hqq", "base.format=nf4", "choose base.format qint4 or qint2"},
        {"base.group_size=32", "base.format=qint8", "base.group_size: changes nothing here"},
        {"base.scaling=raw", "base.format=qfloat8", "choose base.format e4m3 or e5m2"},
        {"base.scale_meaning=quant_scale", "base.format=nf4", "with base.scaling row or tensor"},
        {"lora.init_iterations=2", "lora.init=pissa", "choose lora.init loftq"},
        {"lora.power_iterations=2", "lora.init=gaussian", "choose lora.init pissa or loftq"},
        {"train.min_learning_rate_ratio=0.5", "train.schedule=constant", "another train.schedule"},
        {"train.on_spike=skip", "train.spike_threshold=0", "need train.spike_threshold above 0"},
        {"train.on_spike=rollback", "output.checkpoint_every=0", "no checkpoint to go back to"},
        {"train.on_spike=rollback", "output.when_busy=skip", "it depends on time which"},
        {"objective.shift=static", "model.family=auto", "or set model.family: flux"},
        {"quantizer.codes=4", "model.family=flux", "has no meaning with model.family flux"},
        {"data.packing=false", "model.family=flux", "has no meaning with model.family flux"},
        {"objective.logit_mean=1", "model.family=flux", "choose objective.timesteps logit-normal"},
        {"objective.shift_factor=2", "model.family=flux", "choose objective.shift static"},
        {"objective.guidance_max=2", "model.family=flux", "choose objective.guidance_mode uniform"},
        {"objective.min_timestep=999", "objective.max_timestep=500", "no meaning"},
        {"objective.weighting=sigma_sqrt", "model.family=flux", "grows without bound"},
    };
    static const char *const of_flux[][3] = {
        {"objective.min_timestep=900", "objective.max_timestep=500",
         "objective.min_timestep 900 must be less than objective.max_timestep 500"},
        {"objective.guidance_min=5", "objective.guidance_mode=uniform",
         "objective.guidance_min 5 must be less than objective.guidance_max 4"},
        {"objective.timesteps=fast", "objective.levels=1000",
         "other objective.timesteps than fast"},
        {"objective.timesteps=fast", "objective.shift=static", "objective.timesteps than fast"},
    };
    for (int i = 0; i < TESS_NELEM(of_flux); i++) {
        const tess_run_override overrides[] = {
            {"model.family=flux", 1}, {of_flux[i][0], 2}, {of_flux[i][1], 3}};
        tess_run *run = NULL;
        tess_error_clear();
        assert_int_equal(
            tess_run_parse(minimal, sizeof minimal - 1, "run.yaml", overrides, 3, &run),
            TESS_E_CONFIG);
        expect_message(of_flux[i][2], "command line, argument ");
    }
    for (int i = 0; i < TESS_NELEM(pairs); i++) {
        const tess_run_override overrides[] = {{pairs[i][0], 1}, {pairs[i][1], 2}};
        tess_run *run = NULL;
        tess_error_clear();
        assert_int_equal(
            tess_run_parse(minimal, sizeof minimal - 1, "run.yaml", overrides, 2, &run),
            TESS_E_CONFIG);
        expect_message(pairs[i][2], "command line, argument ");
    }
    tess_error_clear();
}

/* A rule of base.overrides reads keys as base.format does, and defaults change nothing. */
static void test_run_parse_keys_that_are_read_stay(void **state)
{
    (void)state;
    static const char *const pairs[][2] = {
        {"base.rule=hqq", "base.overrides=[{match: a, format: int2}]"},
        {"base.block_size=128",
         "base.overrides=[{match: a, format: fp4}, {match: b, format: f32}]"},
        {"base.rule=minmax", "base.format=nf4"},
        {"base.double_quant=true", "base.format=keep"},
        {"train.min_learning_rate_ratio=0", "train.schedule=constant"},
    };
    for (int i = 0; i < TESS_NELEM(pairs); i++) {
        const tess_run_override overrides[] = {{pairs[i][0], 1}, {pairs[i][1], 2}};
        tess_run *run = parse_good(minimal, overrides, 2);
        tess_run_destroy(&run);
    }
    /* the command line chooses another format over the file's */
    char text[512];
    const tess_run_override other = {"base.format=int4", 1};
    snprintf(text, sizeof text, "%sbase: {format: nf4, double_quant: false}\n", minimal);
    tess_run *run = parse_good(text, &other, 1);
    tess_run_destroy(&run);
}

static void test_run_parse_full_mode_keeps_the_base(void **state)
{
    (void)state;
    const tess_run_override overrides[] = {{"train.mode=full", 1}, {"base.format=keep", 2}};
    for (int64_t numel = 1; numel <= 2; numel++) {
        tess_run *run = parse_good(minimal, overrides, numel);
        assert_int_equal(run->base.format, TESS_RUN_BASE_KEEP);
        assert_int_equal(run->output.export_as, TESS_RUN_EXPORT_HF);
        char *text = NULL;
        size_t nbytes = 0;
        assert_int_equal(tess_run_numerics(run, &text, &nbytes), TESS_OK);
        assert_null(strstr(text, "lora."));
        assert_non_null(strstr(text, "train.mode=full\n"));
        tess_free(text);
        tess_run_destroy(&run);
    }
}

/* Write, parse, write: the same text. */
static void expect_round_trip(const tess_run *run)
{
    char *first = NULL;
    char *second = NULL;
    char *listing[2] = {NULL, NULL};
    size_t nbytes = 0;
    assert_int_equal(tess_run_yaml(run, &first, &nbytes), TESS_OK);
    assert_int_equal(nbytes, strlen(first));
    tess_run *again = parse_good(first, NULL, 0);
    assert_int_equal(tess_run_yaml(again, &second, &nbytes), TESS_OK);
    assert_string_equal(first, second);
    assert_int_equal(tess_run_numerics(run, &listing[0], &nbytes), TESS_OK);
    assert_int_equal(tess_run_numerics(again, &listing[1], &nbytes), TESS_OK);
    assert_string_equal(listing[0], listing[1]);
    tess_run_destroy(&again);
    tess_free(first);
    tess_free(second);
    tess_free(listing[0]);
    tess_free(listing[1]);
}

static void test_run_yaml_parses_back_to_the_same_run(void **state)
{
    (void)state;
    const change c = {.key = TESS_RUN_KEY_NUMEL};
    tess_strbuf text = {0};
    int line = 0;
    write_file(&c, &text, &line);
    tess_run *run = parse_good(text.text, NULL, 0);
    expect_round_trip(run);
    tess_run_destroy(&run);
    tess_strbuf_fini(&text);

    static const char *const odd[] = {
        "model.path=a\tb\x01\"c\\",
        "model.path=true",
        "model.path=1e5",
        "model.path=- x",
        "model.path=\xc3\xa9t\xc3\xa9 \xf0\x9f\x98\x80",
        "model.path=~",
        "lora.targets=null",
        "lora.targets=[\"[a\"]",
        "lora.alpha=0.1",
        "train.learning_rate=3e-5",
        "train.eps=1e-30",
        "train.seed=9223372036854775807",
        "train.mode=full",
        "shard.gather_group=node",
        "compute.memory_limit=1TiB",
        "base.overrides=[{match: \"a'\\\"b\", format: keep}, {match: x, format: nf4}]"};
    for (int i = 0; i < TESS_NELEM(odd); i++) {
        const tess_run_override overrides[] = {{odd[i], 1}};
        run = parse_good(minimal, overrides, 1);
        expect_round_trip(run);
        tess_run_destroy(&run);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_run_parse_every_key_good_is_accepted),
        cmocka_unit_test(test_run_parse_every_key_misspelt_names_nearest),
        cmocka_unit_test(test_run_parse_every_key_twice_is_refused),
        cmocka_unit_test(test_run_parse_every_key_wrong_type_is_refused),
        cmocka_unit_test(test_run_parse_rules_malformed_are_refused),
        cmocka_unit_test(test_run_parse_every_key_out_of_range_is_refused),
        cmocka_unit_test(test_run_parse_required_key_missing_is_refused),
        cmocka_unit_test(test_run_parse_bad_yaml_is_refused_with_place),
        cmocka_unit_test(test_run_parse_damaged_text_ends_with_a_verdict),
        cmocka_unit_test(test_run_parse_defaults_are_those_of_the_design),
        cmocka_unit_test(test_run_parse_overrides_win_over_the_file),
        cmocka_unit_test(test_run_parse_override_malformed_is_usage),
        cmocka_unit_test(test_run_parse_keys_that_do_not_fit_are_refused),
        cmocka_unit_test(test_run_parse_keys_that_are_read_stay),
        cmocka_unit_test(test_run_parse_full_mode_keeps_the_base),
        cmocka_unit_test(test_run_yaml_parses_back_to_the_same_run),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
