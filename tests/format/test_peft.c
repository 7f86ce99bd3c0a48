#include "format_test.h"

#include <math.h>

#include "format/peft.h"

#define GOLDEN TESS_TEST_SOURCE_DIR "/tests/golden/format/"

static const char *const qv[] = {"q_proj", "v_proj"};

static tess_peft_options plain_options(void)
{
    const tess_peft_options o = {.rank = 4, .alpha = 8.0, .targets = {.name = qv, .name_numel = 2}};
    return o;
}

static tess_status try_spec(const tess_peft_options *o)
{
    tess_peft_spec *spec = NULL;
    const tess_status st = tess_peft_spec_create(o, &spec);
    tess_peft_spec_destroy(&spec);
    return st;
}

static tess_status parse(const char *text, tess_peft_spec **out)
{
    tess_json *root = NULL;
    tess_status st = tess_json_parse("adapter_config.json", text, strlen(text), &root);
    if (st == TESS_OK)
        st = tess_peft_config_parse(root, out, NULL);
    tess_json_destroy(&root);
    return st;
}

/* ---- which modules ---- */

static void expect_match(const tess_peft_spec *spec, const char *path, const tess_json *expected)
{
    const tess_peft_module module = {.path = path};
    tess_peft_match m = {.is_target = false};
    double value = 0.0;
    assert_ok(tess_peft_spec_match(spec, &module, &m));
    if (m.is_target != (expected != NULL))
        print_error("module %s\n", path);
    assert_int_equal(m.is_target, expected != NULL);
    if (expected == NULL)
        return;
    assert_ok(tess_json_as_f64(tess_json_at(expected, 0), &value));
    assert_true((double)m.rank == value);
    assert_ok(tess_json_as_f64(tess_json_at(expected, 1), &value));
    assert_true(m.alpha == value);
    assert_ok(tess_json_as_f64(tess_json_at(expected, 2), &value));
    assert_true(m.scale == value);
}

/* For an ordinary linear layer. */
static tess_status target_matches(const tess_peft_spec *spec, const char *module_path, bool *out)
{
    const tess_peft_module module = {.path = module_path};
    tess_peft_match match = {.is_target = false};
    TESS_TRY(tess_peft_spec_match(spec, &module, &match));
    *out = match.is_target;
    return TESS_OK;
}

static void test_match_decides_as_peft(void **state)
{
    const fixture *f = *state;
    tess_json *root = NULL;
    int64_t target_numel = 0;
    const char *path = NULL;
    assert_ok(tess_json_read(f->io, GOLDEN "matches.json", &root));
    const tess_json *paths = tess_json_find(root, "paths"), *cases = tess_json_find(root, "cases");
    assert_true(tess_json_numel(cases) >= 14);
    for (int64_t i = 0; i < tess_json_numel(cases); i++) {
        const tess_json *row = tess_json_at(cases, i);
        const tess_json *targets = tess_json_find(row, "targets");
        tess_peft_spec *spec = NULL;
        assert_ok(tess_peft_config_parse(tess_json_find(row, "config"), &spec, NULL));
        for (int64_t p = 0; p < tess_json_numel(paths); p++) {
            assert_ok(tess_json_as_string(tess_json_at(paths, p), &path));
            expect_match(spec, path, tess_json_find(targets, path));
        }
        target_numel += tess_json_numel(targets);
        tess_peft_spec_destroy(&spec);
    }
    assert_true(target_numel > 50);
    tess_json_destroy(&root);
}

static void test_match_all_linear_leaves_out_the_head(void **state)
{
    (void)state;
    static const char *const no_down[] = {"down_proj"};
    tess_peft_options o = {.rank = 16,
                           .alpha = 32.0,
                           .targets = {.regex = "All-Linear"},
                           .excludes = {.name = no_down, .name_numel = 1}};
    tess_peft_spec *spec = NULL;
    tess_peft_match m = {.is_target = false};
    bool is_target = false;
    assert_ok(tess_peft_spec_create(&o, &spec));
    const tess_peft_module head = {.path = "lm_head", .is_output_embedding = true};
    assert_ok(tess_peft_spec_match(spec, &head, &m));
    assert_false(m.is_target);
    assert_ok(target_matches(spec, "model.layers.3.mlp.up_proj", &is_target));
    assert_true(is_target);
    assert_ok(target_matches(spec, "model.layers.3.mlp.down_proj", &is_target));
    assert_false(is_target);
    assert_string_equal(tess_peft_spec_options(spec)->targets.regex, "All-Linear");
    tess_peft_spec_destroy(&spec);
}

static void test_match_gives_up_on_explosive_patterns(void **state)
{
    (void)state;
    tess_peft_options o = {.rank = 1, .alpha = 1.0, .targets = {.regex = "(a|a)*"}};
    tess_peft_spec *spec = NULL;
    bool is_target = false;
    assert_ok(tess_peft_spec_create(&o, &spec));
    assert_refused(
        target_matches(spec, "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab", &is_target),
        TESS_E_CONFIG, "gave up on module 'aaaa", "simplify");
    assert_refused(target_matches(spec, "a\xff", &is_target), TESS_E_CONFIG, "gave up");
    tess_peft_spec_destroy(&spec);
}

static void test_create_bad_options_are_refused(void **state)
{
    (void)state;
    const int64_t layers[] = {0, -1};
    const tess_peft_pattern half[] = {{"q", 1.5}}, open[] = {{"(", 2.0}}, minus[] = {{"q", -2.0}};
    const char *const pattern[] = {"layers"};
    tess_peft_options o = plain_options();
    o.rank = 0;
    assert_refused(try_spec(&o), TESS_E_CONFIG, "lora r: expected 1 to 65536, found 0");
    o = plain_options();
    o.alpha = 0.0;
    assert_refused(try_spec(&o), TESS_E_CONFIG, "lora_alpha: expected a positive number, found 0");
    o = plain_options();
    o.dropout = 1.0;
    assert_refused(try_spec(&o), TESS_E_CONFIG, "lora_dropout: expected 0 <= p < 1, found 1");
    o.dropout = (double)NAN;
    assert_refused(try_spec(&o), TESS_E_CONFIG, "lora_dropout");
    o = plain_options();
    o.targets.name_numel = 0;
    assert_refused(try_spec(&o), TESS_E_CONFIG, "target_modules", "found nothing");
    o.targets.regex = "(q|k";
    assert_refused(try_spec(&o), TESS_E_CONFIG, "target_modules: '(q|k' at byte 4", "parenthesis");
    o = plain_options();
    o.targets.regex = ".*";
    assert_refused(try_spec(&o), TESS_E_CONFIG, "found both");
    o = plain_options();
    o.excludes.regex = "*";
    assert_refused(try_spec(&o), TESS_E_CONFIG, "exclude_modules: '*' at byte");
    o = plain_options();
    o.layer = layers;
    o.layer_numel = 2;
    assert_refused(try_spec(&o), TESS_E_CONFIG, "layers_to_transform", "found -1");
    o = (tess_peft_options){.rank = 1, .alpha = 1.0, .targets = {.regex = "all-linear"}};
    o.layer = layers;
    o.layer_numel = 1;
    assert_refused(try_spec(&o), TESS_E_CONFIG, "need target_modules to be a list");
    o = plain_options();
    o.layers_pattern = pattern;
    o.layers_pattern_numel = 1;
    assert_refused(try_spec(&o), TESS_E_CONFIG, "layers_pattern needs layers_to_transform");
    o = plain_options();
    o.rank_pattern = half;
    o.rank_pattern_numel = 1;
    assert_refused(try_spec(&o), TESS_E_CONFIG, "rank_pattern 'q'", "found 1.5");
    o.rank_pattern = open;
    assert_refused(try_spec(&o), TESS_E_CONFIG, "rank_pattern: '(.*\\.)?(()$' at byte");
    o = plain_options();
    o.alpha_pattern = minus;
    o.alpha_pattern_numel = 1;
    assert_refused(try_spec(&o), TESS_E_CONFIG, "alpha_pattern 'q'", "found -2");
}

/* ---- config files ---- */

static void test_config_bad_files_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        tess_status status;
        const char *why;
    } bad[] = {
        {"[]", TESS_E_FORMAT, "top level: expected an object"},
        {"{\"target_modules\":[\"q\"]}", TESS_E_FORMAT, "'peft_type' is missing"},
        {"{\"peft_type\":\"IA3\",\"target_modules\":[\"q\"]}", TESS_E_UNSUPPORTED,
         "peft_type: not supported, expected \"LORA\""},
        {"{\"peft_type\":\"LORA\"}", TESS_E_FORMAT, "lora target_modules: expected all-linear"},
        {"{\"peft_type\":\"LORA\",\"target_modules\":[\"q\",3]}", TESS_E_FORMAT,
         "target_modules[1]: expected a string, found an integer"},
        {"{\"peft_type\":\"LORA\",\"target_modules\":{\"a\":1}}", TESS_E_FORMAT,
         "target_modules: expected an array"},
        {"{\"peft_type\":\"LORA\",\"target_modules\":\"(\"}", TESS_E_FORMAT,
         "'adapter_config.json': lora target_modules: '('"},
        {"{\"peft_type\":\"LORA\",\"target_modules\":[\"q\"],\"r\":0}", TESS_E_FORMAT,
         "'adapter_config.json': lora r: expected 1"},
        {"{\"peft_type\":\"LORA\",\"target_modules\":[\"q\"],\"r\":8.0}", TESS_E_FORMAT,
         "r: expected an integer"},
        {"{\"peft_type\":\"LORA\",\"target_modules\":[\"q\"],\"lora_alpha\":\"8\"}", TESS_E_FORMAT,
         "lora_alpha: expected a number"},
        {"{\"peft_type\":\"LORA\",\"target_modules\":[\"q\"],\"bias\":\"all\"}", TESS_E_UNSUPPORTED,
         "bias: not supported, expected \"none\""},
        {"{\"peft_type\":\"LORA\",\"target_modules\":[\"q\"],\"use_dora\":1}", TESS_E_FORMAT,
         "use_dora: expected a boolean"},
        {"{\"peft_type\":\"LORA\",\"target_modules\":[\"q\"],\"fan_in_fan_out\":true}",
         TESS_E_UNSUPPORTED, "fan_in_fan_out"},
        {"{\"peft_type\":\"LORA\",\"target_modules\":[\"q\"],\"modules_to_save\":[7]}",
         TESS_E_FORMAT, "modules_to_save[0]: expected a string"},
        {"{\"peft_type\":\"LORA\",\"target_modules\":[\"q\"],\"modules_to_save\":[\"(\"]}",
         TESS_E_FORMAT, "lora modules_to_save: '(^|.*"},
        {"{\"peft_type\":\"LORA\",\"target_modules\":[\"q\"],\"ensure_weight_tying\":true}",
         TESS_E_UNSUPPORTED, "ensure_weight_tying"},
        {"{\"peft_type\":\"LORA\",\"target_modules\":[\"q\"],\"target_parameters\":[\"w\"]}",
         TESS_E_UNSUPPORTED, "target_parameters"},
        {"{\"peft_type\":\"LORA\",\"target_modules\":[\"q\"],\"lora_bias\":true}",
         TESS_E_UNSUPPORTED, "lora_bias"},
        {"{\"peft_type\":\"LORA\",\"target_modules\":[\"q\"],\"layer_replication\":[[0,4]]}",
         TESS_E_UNSUPPORTED, "layer_replication"},
        {"{\"peft_type\":\"LORA\",\"target_modules\":[\"q\"],\"from_the_future\":1}",
         TESS_E_UNSUPPORTED, "from_the_future: not supported: it would change"},
        {"{\"peft_type\":\"LORA\",\"target_modules\":[\"q\"],\"init_lora_weights\":\"pissa\"}",
         TESS_E_UNSUPPORTED, "init_lora_weights: this initialization changes the base"},
        {"{\"peft_type\":\"LORA\",\"target_modules\":[\"q\"],\"rank_pattern\":{\"q\":\"4\"}}",
         TESS_E_FORMAT, "rank_pattern.q: expected a number"},
        {"{\"peft_type\":\"LORA\",\"target_modules\":[\"q\"],\"layers_to_transform\":[\"1\"]}",
         TESS_E_FORMAT, "layers_to_transform[0]: expected an integer"},
    };
    for (int i = 0; i < TESS_NELEM(bad); i++) {
        tess_peft_spec *spec = NULL;
        assert_refused(parse(bad[i].text, &spec), bad[i].status, "adapter_config.json'",
                       bad[i].why);
        assert_null(spec);
    }
}

static void test_config_round_trip_keeps_every_option(void **state)
{
    const fixture *f = *state;
    static const char text[] =
        "{\"peft_type\":\"LORA\",\"r\":6,\"lora_alpha\":2.5,\"lora_dropout\":0.1,"
        "\"use_rslora\":true,\"target_modules\":[\"q_proj\",\"o_proj\"],"
        "\"exclude_modules\":\".*\\\\.9\\\\..*\",\"layers_to_transform\":[2,5],"
        "\"layers_pattern\":[\"layers\",\"h\"],\"rank_pattern\":{\"a.q_proj\":3,\"q_proj\":12},"
        "\"alpha_pattern\":{\"o_proj\":0.25},\"future\":null,\"inference_mode\":true}";
    tess_peft_spec *spec = NULL;
    tess_json *root = NULL, *again = NULL;
    const char *base_name = NULL;
    char *first = NULL, *second = NULL;
    size_t nbytes = 0;
    assert_ok(parse(text, &spec));
    assert_ok(tess_peft_config_write(f->io, at(f, "a.json"), spec, NULL, "CAUSAL_LM", "base/x"));
    tess_peft_spec_destroy(&spec);
    assert_ok(tess_json_read(f->io, at(f, "a.json"), &root));
    assert_ok(tess_peft_config_parse(root, &spec, &base_name));
    assert_string_equal(base_name, "base/x");
    const tess_peft_options *o = tess_peft_spec_options(spec);
    assert_int_equal(o->rank, 6);
    assert_true(o->alpha == 2.5 && o->dropout == 0.1 && o->use_rslora);
    assert_int_equal(o->targets.name_numel, 2);
    assert_string_equal(o->targets.name[1], "o_proj");
    assert_string_equal(o->excludes.regex, ".*\\.9\\..*");
    assert_int_equal(o->layer_numel, 2);
    assert_int_equal(o->layer[1], 5);
    assert_string_equal(o->layers_pattern[1], "h");
    assert_int_equal(o->rank_pattern_numel, 2);
    assert_string_equal(o->rank_pattern[1].pattern, "q_proj");
    assert_true(o->rank_pattern[1].value == 12.0);
    assert_true(o->alpha_pattern[0].value == 0.25);
    assert_ok(tess_peft_config_write(f->io, at(f, "b.json"), spec, NULL, "CAUSAL_LM", base_name));
    tess_json_destroy(&root);
    tess_peft_spec_destroy(&spec);
    assert_ok(tess_io_read_all(f->io, at(f, "a.json"), 8192, &first, &nbytes));
    assert_ok(tess_io_read_all(f->io, at(f, "b.json"), 8192, &second, &nbytes));
    assert_string_equal(first, second);
    assert_non_null(strstr(first, "{\n  \"alpha_pattern\": {\n    \"o_proj\": 0.25\n  },\n"));
    tess_free(first);
    tess_free(second);
    tess_json_destroy(&again);
}

/* ---- directories ---- */

static void test_golden_adapter_reads_every_tensor(void **state)
{
    const fixture *f = *state;
    tess_peft_dir *dir = NULL;
    char *text = NULL, *next = NULL;
    size_t nbytes = 0;
    int seen = 0;
    assert_ok(tess_peft_dir_open(f->io, GOLDEN "adapter", &dir));
    assert_int_equal(tess_peft_dir_adapter_numel(dir), 12);
    assert_string_equal(tess_peft_dir_base_name(dir), "tiny");
    assert_string_equal(tess_peft_dir_metadata(dir, "format"), "pt");
    assert_null(tess_peft_dir_metadata(dir, "base.identity"));
    assert_null(tess_peft_dir_find(dir, "model.layers.0.mlp.down_proj"));
    const tess_peft_adapter *k = tess_peft_dir_find(dir, "model.layers.1.self_attn.k_proj");
    assert_int_equal(k->rank, 2);
    assert_int_equal(k->in_numel, 16);
    assert_int_equal(k->out_numel, 16);
    const tess_st_tensor *k_b =
        tess_peft_dir_tensor(dir, "model.layers.1.self_attn.k_proj.lora_B.weight");
    assert_int_equal(k_b->dtype, TESS_ST_F32);
    assert_null(tess_peft_dir_tensor(dir, "model.layers.1.self_attn.k_proj.lora_C.weight"));
    assert_null(tess_peft_dir_tensor(dir, ""));
    assert_true(tess_peft_spec_options(tess_peft_dir_spec(dir))->dropout == 0.05);
    assert_ok(tess_io_read_all(f->io, GOLDEN "tensors.txt", 1 << 20, &text, &nbytes));
    for (char *line = strtok_r(text, "\n", &next); line != NULL;
         line = strtok_r(NULL, "\n", &next)) {
        char kind[16], name[128], dtype[16], shape[64], hex[80];
        char sha_hex[TESS_SHA256_HEX_NBYTES];
        unsigned char data[4096];
        tess_sha256 sha;
        assert_int_equal(sscanf(line, "%15s %127s %15s %63s %79s", kind, name, dtype, shape, hex),
                         5);
        if (strcmp(kind, "adapter") != 0)
            continue;
        const tess_st_tensor *tensor =
            tess_peft_dir_tensor(dir, name + strlen("base_model.model."));
        assert_non_null(tensor);
        assert_ok(tess_peft_dir_read(dir, tensor, 0, (size_t)tensor->nbytes, data));
        assert_ok(tess_sha256_of(data, (size_t)tensor->nbytes, &sha));
        tess_hex(sha.byte, sizeof sha.byte, sha_hex);
        assert_string_equal(sha_hex, hex);
        seen++;
    }
    assert_int_equal(seen, 24);
    tess_free(text);
    tess_peft_dir_close(&dir);
}

static const tess_peft_adapter two[] = {
    {.path = "model.layers.0.self_attn.q_proj", .rank = 4, .in_numel = 3, .out_numel = 5},
    {.path = "model.layers.0.self_attn.v_proj", .rank = 2, .in_numel = 3, .out_numel = 1},
};

static void write_adapter(const fixture *f, const tess_peft_options *o)
{
    tess_peft_spec *spec = NULL;
    tess_peft_writer *w = NULL;
    float value[20];
    for (int i = 0; i < 20; i++)
        value[i] = (float)i;
    assert_ok(tess_peft_spec_create(o, &spec));
    const tess_peft_content content = {.spec = spec,
                                       .adapter = two,
                                       .adapter_numel = 2,
                                       .dt = TESS_F32,
                                       .identity = {.base_name = "examples/base",
                                                    .base_quant = "nf4/64/double",
                                                    .base_id = "00ff",
                                                    .compute_dtype = "bf16",
                                                    .master_dtype = "f32"}};
    assert_ok(tess_peft_writer_create(f->io, f->dir, &content, &w));
    assert_ok(tess_peft_writer_append(w, 1, TESS_PEFT_B, value, 8));
    assert_ok(tess_peft_writer_append(w, 0, TESS_PEFT_A, value, 40));
    assert_ok(tess_peft_writer_append(w, 0, TESS_PEFT_B, value, 80));
    assert_ok(tess_peft_writer_append(w, 0, TESS_PEFT_A, value + 10, 8));
    assert_ok(tess_peft_writer_append(w, 1, TESS_PEFT_A, value, 24));
    assert_refused(tess_peft_writer_append(w, 1, TESS_PEFT_A, value, 4), TESS_E_RANGE,
                   "v_proj.lora_A.weight");
    assert_refused(tess_peft_writer_append(w, 2, TESS_PEFT_A, value, 4), TESS_E_ARG,
                   "module 2 of 2");
    assert_ok(tess_peft_writer_finish(w));
    tess_peft_writer_destroy(&w);
    tess_peft_spec_destroy(&spec);
}

static void expect_written(const fixture *f)
{
    tess_peft_dir *dir = NULL;
    float value[20];
    assert_ok(tess_peft_dir_open(f->io, f->dir, &dir));
    assert_int_equal(tess_peft_dir_adapter_numel(dir), 2);
    assert_string_equal(tess_peft_dir_base_name(dir), "examples/base");
    assert_string_equal(tess_peft_dir_metadata(dir, "base.quant"), "nf4/64/double");
    assert_string_equal(tess_peft_dir_metadata(dir, "base.identity"), "00ff");
    assert_string_equal(tess_peft_dir_metadata(dir, "adapter.master_dtype"), "f32");
    assert_string_equal(tess_peft_dir_metadata(dir, "compute.dtype"), "bf16");
    assert_string_equal(tess_peft_dir_metadata(dir, "trained.rank"), "4");
    assert_string_equal(tess_peft_dir_metadata(dir, "trained.alpha"), "8");
    assert_string_equal(tess_peft_dir_metadata(dir, "merge.policy"), "separate-or-16bit");
    assert_null(tess_peft_dir_metadata(dir, "base.sha256"));
    const tess_peft_adapter *q = tess_peft_dir_find(dir, two[0].path);
    assert_int_equal(q->out_numel, 5);
    const tess_st_tensor *a =
        tess_peft_dir_tensor(dir, "model.layers.0.self_attn.q_proj.lora_A.weight");
    const tess_st_tensor *b =
        tess_peft_dir_tensor(dir, "model.layers.0.self_attn.q_proj.lora_B.weight");
    assert_ok(tess_peft_dir_read(dir, a, 0, 48, value));
    assert_true(value[9] == 9.0f && value[10] == 10.0f && value[11] == 11.0f);
    assert_ok(tess_peft_dir_read(dir, b, 76, 4, value));
    assert_true(value[0] == 19.0f);
    tess_peft_dir_close(&dir);
}

static void test_writer_round_trip_with_sorted_patterns(void **state)
{
    const fixture *f = *state;
    const tess_peft_pattern rank[] = {{"v_proj", 2.0}};
    tess_peft_options o = plain_options();
    char *text = NULL;
    size_t nbytes = 0;
    o.rank_pattern = rank;
    o.rank_pattern_numel = 1;
    write_adapter(f, &o);
    expect_written(f);
    assert_ok(tess_io_read_all(f->io, at(f, "adapter_config.json"), 8192, &text, &nbytes));
    assert_non_null(strstr(text, "\"rank_pattern\": {\n    \"v_proj\": 2\n  }"));
    assert_non_null(strstr(text, "\"target_modules\": [\n    \"q_proj\",\n    \"v_proj\"\n  ]"));
    tess_free(text);
}

static void test_writer_patterns_out_of_order_become_exact(void **state)
{
    const fixture *f = *state;
    /* First match wins: v_proj has rank 2; sorted, ".*proj" would come first and give it 4. */
    const tess_peft_pattern rank[] = {{"v_proj", 2.0}, {".*proj", 4.0}};
    const tess_peft_pattern alpha[] = {{"q_proj", 1.5}};
    tess_peft_options o = plain_options();
    tess_peft_dir *dir = NULL;
    tess_peft_match m = {.is_target = false};
    o.rank_pattern = rank;
    o.rank_pattern_numel = 2;
    o.alpha_pattern = alpha;
    o.alpha_pattern_numel = 1;
    write_adapter(f, &o);
    expect_written(f);
    assert_ok(tess_peft_dir_open(f->io, f->dir, &dir));
    const tess_peft_module q = {.path = two[0].path};
    assert_ok(tess_peft_spec_match(tess_peft_dir_spec(dir), &q, &m));
    assert_true(m.rank == 4 && m.alpha == 1.5);
    assert_string_equal(tess_peft_spec_options(tess_peft_dir_spec(dir))->rank_pattern[0].pattern,
                        "model\\.layers\\.0\\.self_attn\\.v_proj");
    tess_peft_dir_close(&dir);
}

static void test_writer_all_linear_is_written_as_names(void **state)
{
    const fixture *f = *state;
    const tess_peft_pattern rank[] = {{"v_proj", 2.0}};
    const tess_peft_options o = {.rank = 4,
                                 .alpha = 8.0,
                                 .targets = {.regex = "all-linear"},
                                 .rank_pattern = rank,
                                 .rank_pattern_numel = 1};
    char *text = NULL;
    size_t nbytes = 0;
    write_adapter(f, &o);
    expect_written(f);
    assert_ok(tess_io_read_all(f->io, at(f, "adapter_config.json"), 8192, &text, &nbytes));
    assert_non_null(strstr(text, "\"target_modules\": [\n    \"q_proj\",\n    \"v_proj\"\n  ]"));
    tess_free(text);
}

static void test_writer_all_linear_of_numbered_layers_names_no_block(void **state)
{
    const fixture *f = *state;
    static const tess_peft_adapter layer[] = {{"blocks.0.attn.to_out.0", 1, 1, 1},
                                              {"blocks.0.ff.net.2", 1, 1, 1},
                                              {"blocks.0.ff.proj", 1, 1, 1}};
    static const float one = 1.0F;
    const tess_peft_options o = {.rank = 1, .alpha = 1.0, .targets = {.regex = "all-linear"}};
    tess_peft_spec *spec = NULL;
    tess_peft_writer *w = NULL;
    char *text = NULL;
    size_t nbytes = 0;
    assert_ok(tess_peft_spec_create(&o, &spec));
    const tess_peft_content content = {
        .spec = spec, .adapter = layer, .adapter_numel = 3, .dt = TESS_F32};
    assert_ok(tess_peft_writer_create(f->io, f->dir, &content, &w));
    for (int i = 0; i < 3; i++)
        for (int part = TESS_PEFT_A; part <= TESS_PEFT_B; part++)
            assert_ok(tess_peft_writer_append(w, i, (tess_peft_part)part, &one, sizeof one));
    assert_ok(tess_peft_writer_finish(w));
    tess_peft_writer_destroy(&w);
    tess_peft_spec_destroy(&spec);
    assert_ok(tess_io_read_all(f->io, at(f, "adapter_config.json"), 8192, &text, &nbytes));
    assert_non_null(strstr(
        text, "\"target_modules\": [\n    \"net.2\",\n    \"proj\",\n    \"to_out.0\"\n  ]"));
    assert_non_null(strstr(text, "\"task_type\": null"));
    tess_free(text);
}

static void test_writer_content_that_contradicts_itself_is_refused(void **state)
{
    const fixture *f = *state;
    tess_peft_options o = plain_options();
    tess_peft_spec *spec = NULL;
    tess_peft_writer *w = NULL;
    assert_ok(tess_peft_spec_create(&o, &spec));
    tess_peft_content content = {.spec = spec, .adapter = two, .adapter_numel = 2, .dt = TESS_F32};
    assert_refused(tess_peft_writer_create(f->io, f->dir, &content, &w), TESS_E_ARG,
                   "v_proj' has rank 2, its targets say 4");
    content.adapter_numel = 0;
    assert_refused(tess_peft_writer_create(f->io, f->dir, &content, &w), TESS_E_ARG,
                   "no adapted modules");
    content.adapter_numel = 1;
    content.dt = TESS_F64;
    assert_refused(tess_peft_writer_create(f->io, f->dir, &content, &w), TESS_E_DTYPE, "found f64");
    tess_peft_spec_destroy(&spec);
}

static void put_adapter(const fixture *f, const char *tensors, size_t nbytes)
{
    put_text(f, "adapter_config.json",
             "{\"peft_type\":\"LORA\",\"r\":2,\"target_modules\":[\"q\"]}");
    put_tensors(f, "adapter_model.safetensors", tensors, nbytes);
}

#define A_ENTRY(path, dtype, shape, from, to)                                                      \
    "\"base_model.model." path "\":{\"dtype\":\"" dtype "\",\"shape\":" shape                      \
    ",\"data_offsets\":[" from "," to "]}"

static void test_open_bad_adapters_are_refused(void **state)
{
    const fixture *f = *state;
    static const struct {
        const char *header;
        size_t nbytes;
        tess_status status;
        const char *why;
    } bad[] = {
        {"{}      ", 0, TESS_E_FORMAT, "holds no adapter"},
        {"{" A_ENTRY("q.lora_A.weight", "F16", "[2,1]", "0", "4") "}", 4, TESS_E_FORMAT,
         "module 'q' has lora_A but no lora_B"},
        {"{" A_ENTRY("q.lora_B.weight", "F16", "[2,1]", "0", "4") "}", 4, TESS_E_FORMAT,
         "holds no adapter"},
        {"{" A_ENTRY("q.lora_A.weight", "F16", "[3,1]", "0",
                     "6") "," A_ENTRY("q.lora_B.weight", "F16", "[1,3]", "6", "12") "}",
         12, TESS_E_FORMAT, "found lora_A [3, 1]"},
        {"{" A_ENTRY("q.lora_A.weight", "F16", "[2,1]", "0",
                     "4") "," A_ENTRY("q.lora_B.weight", "F16", "[1,3]", "4", "10") "}",
         10, TESS_E_FORMAT, "and lora_B [1, 3]"},
        {"{" A_ENTRY("z.lora_A.weight", "F16", "[2,1]", "0",
                     "4") "," A_ENTRY("z.lora_B.weight", "F16", "[1,2]", "4", "8") "}",
         8, TESS_E_FORMAT, "module 'z' is not among the target_modules"},
        {"{" A_ENTRY("q.lora_A.weight", "F64", "[2,1]", "0", "16") "}", 16, TESS_E_FORMAT,
         "expected dtype F32, BF16 or F16, found F64"},
        {"{" A_ENTRY("q.lora_A.weight", "F16", "[2]", "0", "4") "}", 4, TESS_E_FORMAT,
         "expected a matrix, found shape [2]"},
        {"{" A_ENTRY("q.lora_embedding_A", "F16", "[2,1]", "0", "4") "}", 4, TESS_E_UNSUPPORTED,
         "q.lora_embedding_A' is not supported"},
        {"{" A_ENTRY("q.lora_magnitude_vector", "F16", "[2]", "0", "4") "}", 4, TESS_E_UNSUPPORTED,
         "lora_magnitude_vector"},
        {"{\"q.lora_A.weight\":{\"dtype\":\"F16\",\"shape\":[2,1],\"data_offsets\":[0,4]}}", 4,
         TESS_E_UNSUPPORTED, "tensor 'q.lora_A.weight' is not supported"},
    };
    for (int i = 0; i < TESS_NELEM(bad); i++) {
        tess_peft_dir *dir = NULL;
        put_adapter(f, bad[i].header, bad[i].nbytes);
        assert_refused(tess_peft_dir_open(f->io, f->dir, &dir), bad[i].status,
                       "adapter_model.safetensors'", bad[i].why);
        assert_null(dir);
    }
}

static void test_open_missing_files_are_refused(void **state)
{
    const fixture *f = *state;
    tess_peft_dir *dir = NULL;
    assert_refused(tess_peft_dir_open(f->io, f->dir, &dir), TESS_E_IO, "adapter_config.json");
    put_text(f, "adapter_config.json", "{\"peft_type\":\"LORA\",\"target_modules\":[\"q\"]}");
    assert_refused(tess_peft_dir_open(f->io, f->dir, &dir), TESS_E_IO, "adapter_model.safetensors");
}

/* ---- magnitudes and whole modules ---- */

static void test_saved_modules_are_matched_as_peft_does(void **state)
{
    (void)state;
    static const char *const saved[] = {"norm", "lm_head", "1.mlp"};
    tess_peft_options o = {.rank = 4, .alpha = 8.0, .targets = {.regex = "all-linear"}};
    tess_peft_spec *spec = NULL;
    bool is_target = false;
    o.saved = saved;
    o.saved_numel = 3;
    assert_ok(tess_peft_spec_create(&o, &spec));
    /* any path that ends so, whatever stands in front of it; and all that lies below */
    assert_true(tess_peft_spec_saves(spec, "model.norm.weight"));
    assert_true(tess_peft_spec_saves(spec, "model.layers.0.input_layernorm.weight"));
    assert_true(tess_peft_spec_saves(spec, "lm_head.weight"));
    assert_true(tess_peft_spec_saves(spec, "model.layers.1.mlp.up_proj.weight"));
    assert_true(tess_peft_spec_saves(spec, "model.layers.11.mlp.up_proj.bias"));
    assert_false(tess_peft_spec_saves(spec, "model.layers.0.mlp.up_proj.weight"));
    assert_false(tess_peft_spec_saves(spec, "norm"));
    assert_false(tess_peft_spec_saves(spec, "model.normal.weight"));
    assert_false(tess_peft_entry_saves("model.norm.weight", "model.norm.weight"));
    /* as an expression that takes whole parts of a path, they win over the targets */
    assert_ok(target_matches(spec, "model.layers.1.mlp.up_proj", &is_target));
    assert_false(is_target);
    assert_ok(target_matches(spec, "model.layers.11.mlp.up_proj", &is_target));
    assert_true(is_target);
    tess_peft_spec_destroy(&spec);
}

static const tess_peft_saved whole[] = {{"model.norm.weight", 1, {3}},
                                        {"lm_head.weight", 2, {2, 3}}};

static void write_dora(const fixture *f, const char *const *saved, int saved_numel)
{
    const tess_peft_pattern rank[] = {{"v_proj", 2.0}};
    tess_peft_options o = plain_options();
    tess_peft_spec *spec = NULL;
    tess_peft_writer *w = NULL;
    float value[20];
    for (int i = 0; i < 20; i++)
        value[i] = (float)i;
    o.rank_pattern = rank;
    o.rank_pattern_numel = 1;
    o.use_dora = true;
    o.saved = saved;
    o.saved_numel = saved_numel;
    assert_ok(tess_peft_spec_create(&o, &spec));
    const tess_peft_content content = {.spec = spec,
                                       .adapter = two,
                                       .adapter_numel = 2,
                                       .saved = whole,
                                       .saved_numel = 2,
                                       .dt = TESS_F32};
    if (saved_numel < 2) {
        assert_refused(tess_peft_writer_create(f->io, f->dir, &content, &w), TESS_E_ARG,
                       "tensor 'lm_head.weight' is not among modules_to_save");
        tess_peft_spec_destroy(&spec);
        return;
    }
    assert_ok(tess_peft_writer_create(f->io, f->dir, &content, &w));
    for (int i = 0; i < 2; i++) {
        const tess_peft_adapter *a = &two[i];
        assert_ok(
            tess_peft_writer_append(w, i, TESS_PEFT_MAGNITUDE, value, (size_t)a->out_numel * 4));
        assert_ok(tess_peft_writer_append(w, i, TESS_PEFT_B, value,
                                          (size_t)(a->out_numel * a->rank) * 4));
        assert_ok(
            tess_peft_writer_append(w, i, TESS_PEFT_A, value, (size_t)(a->in_numel * a->rank) * 4));
    }
    assert_ok(tess_peft_writer_append_saved(w, 1, value, 24));
    assert_ok(tess_peft_writer_append_saved(w, 0, value + 7, 12));
    assert_refused(tess_peft_writer_append_saved(w, 2, value, 4), TESS_E_ARG, "tensor 2 of 2");
    assert_ok(tess_peft_writer_finish(w));
    tess_peft_writer_destroy(&w);
    tess_peft_spec_destroy(&spec);
}

static void test_writer_round_trip_with_magnitudes_and_whole_modules(void **state)
{
    const fixture *f = *state;
    static const char *const saved[] = {"norm", "lm_head"};
    tess_peft_dir *dir = NULL;
    float value[6];
    write_dora(f, saved, 1);
    write_dora(f, saved, 2);
    assert_ok(tess_peft_dir_open(f->io, f->dir, &dir));
    assert_int_equal(tess_peft_dir_adapter_numel(dir), 2);
    assert_int_equal(tess_peft_dir_tensor_numel(dir), 8);
    assert_true(tess_peft_spec_options(tess_peft_dir_spec(dir))->use_dora);
    const tess_st_tensor *m =
        tess_peft_dir_tensor(dir, "model.layers.0.self_attn.q_proj.lora_magnitude_vector");
    assert_true(m->dim_numel == 1 && m->dim[0] == 5);
    const tess_st_tensor *norm = tess_peft_dir_tensor(dir, "model.norm.weight");
    assert_ok(tess_peft_dir_read(dir, norm, 0, 12, value));
    assert_true(value[0] == 7.0f && value[2] == 9.0f);
    assert_true(tess_peft_dir_tensor(dir, "lm_head.weight")->dim[1] == 3);
    tess_peft_dir_close(&dir);
}

/* Put one tensor more or less into an adapter and see it refused. */
static void expect_tensors(const fixture *f, const char *const *name, int numel, tess_status want,
                           const char *why)
{
    static const char config[] =
        "{\"peft_type\":\"LORA\",\"r\":2,\"target_modules\":[\"lm_head\"],\"use_dora\":true}";
    tess_st_tensor tensor[8] = {{0}};
    tess_safetensors_writer *w = NULL;
    tess_peft_dir *dir = NULL;
    const float value[6] = {0};
    char path[512];
    for (int i = 0; i < numel; i++) {
        const bool is_vector = strstr(name[i], "magnitude") != NULL;
        tensor[i] = (tess_st_tensor){.name = name[i],
                                     .dtype = TESS_ST_F32,
                                     .dim_numel = is_vector ? 1 : 2,
                                     .dim = {strstr(name[i], "lora_A") != NULL ? 2 : 3, 2}};
    }
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", f->dir);
    assert_ok(tess_io_write_all(f->io, at(f, "adapter_config.json"), config, strlen(config)));
    assert_ok(tess_safetensors_writer_create(f->io, path, tensor, numel, NULL, 0, &w));
    for (int i = 0; i < numel; i++)
        assert_ok(tess_safetensors_writer_append(
            w, i, value,
            (size_t)(tensor[i].dim[0] * (tensor[i].dim_numel > 1 ? tensor[i].dim[1] : 1)) * 4));
    assert_ok(tess_safetensors_writer_finish(w));
    tess_safetensors_writer_destroy(&w);
    if (want != TESS_OK) {
        assert_refused(tess_peft_dir_open(f->io, f->dir, &dir), want, why);
        return;
    }
    assert_ok(tess_peft_dir_open(f->io, f->dir, &dir));
    assert_true(tess_peft_is_base_copy(dir, "lm_head.base_layer.weight"));
    assert_false(tess_peft_is_base_copy(dir, "lm_head.lora_A.weight"));
    tess_peft_dir_close(&dir);
}

#define HEAD "base_model.model.lm_head."

static void test_directory_with_missing_or_foreign_tensors_is_refused(void **state)
{
    const fixture *f = *state;
    static const char *const all[] = {HEAD "lora_A.weight", HEAD "lora_B.weight",
                                      HEAD "lora_magnitude_vector", HEAD "base_layer.weight"};
    static const char *const foreign[] = {HEAD "lora_A.weight", HEAD "lora_B.weight",
                                          HEAD "lora_magnitude_vector",
                                          "base_model.model.norm.weight"};
    static const char *const other[] = {HEAD "lora_A.weight", HEAD "lora_B.weight",
                                        HEAD "lora_magnitude_vector",
                                        "base_model.model.a.base_layer.weight"};
    static const char *const stray[] = {HEAD "lora_A.weight", HEAD "lora_B.weight",
                                        HEAD "lora_magnitude_vector",
                                        "base_model.model.a.lora_magnitude_vector"};
    expect_tensors(f, all, 4, TESS_OK, NULL);
    expect_tensors(f, all, 3, TESS_OK, NULL);
    expect_tensors(f, all, 2, TESS_E_FORMAT, "has lora_A but no lora_magnitude_vector");
    expect_tensors(f, foreign, 4, TESS_E_UNSUPPORTED, "'base_model.model.norm.weight'");
    expect_tensors(f, other, 4, TESS_E_UNSUPPORTED, "'base_model.model.a.base_layer.weight'");
    expect_tensors(f, stray, 4, TESS_E_FORMAT, "1 lora_A but 3 tensors of other parts");
}

static void test_pickled_directory_is_refused(void **state)
{
    static const char config[] = "{\"peft_type\": \"LORA\", \"target_modules\": [\"a\"]}";
    const fixture *f = *state;
    tess_peft_dir *dir = NULL;
    assert_ok(tess_io_write_all(f->io, at(f, "adapter_config.json"), config, strlen(config)));
    assert_refused(tess_peft_dir_open(f->io, f->dir, &dir), TESS_E_IO, "adapter_model.safetensors");
    assert_ok(tess_io_write_all(f->io, at(f, "adapter_model.bin"), "x", 1));
    assert_refused(tess_peft_dir_open(f->io, f->dir, &dir), TESS_E_UNSUPPORTED,
                   "found adapter_model.bin", "save_pretrained");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        format_test(test_pickled_directory_is_refused),
        format_test(test_match_decides_as_peft),
        format_test(test_match_all_linear_leaves_out_the_head),
        format_test(test_match_gives_up_on_explosive_patterns),
        format_test(test_create_bad_options_are_refused),
        format_test(test_config_bad_files_are_refused),
        format_test(test_config_round_trip_keeps_every_option),
        format_test(test_golden_adapter_reads_every_tensor),
        format_test(test_writer_round_trip_with_sorted_patterns),
        format_test(test_writer_patterns_out_of_order_become_exact),
        format_test(test_saved_modules_are_matched_as_peft_does),
        format_test(test_writer_round_trip_with_magnitudes_and_whole_modules),
        format_test(test_directory_with_missing_or_foreign_tensors_is_refused),
        format_test(test_writer_all_linear_is_written_as_names),
        format_test(test_writer_all_linear_of_numbered_layers_names_no_block),
        format_test(test_writer_content_that_contradicts_itself_is_refused),
        format_test(test_open_bad_adapters_are_refused),
        format_test(test_open_missing_files_are_refused),
    };
    return cmocka_run_group_tests_name("format.peft", tests, NULL, NULL);
}
