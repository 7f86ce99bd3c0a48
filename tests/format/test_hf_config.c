#include "format_test.h"

#include <math.h>

#include "format/hf_config.h"

#define GOLDEN TESS_TEST_SOURCE_DIR "/tests/golden/format/"

static tess_status parse(const char *text, tess_llm_config *out)
{
    tess_json *root = NULL;
    tess_status st = tess_json_parse("config.json", text, strlen(text), &root);
    if (st == TESS_OK)
        st = tess_hf_config_parse(root, out);
    tess_json_destroy(&root);
    return st;
}

/* A small llama with `more` (",\"key\":value...") put behind; later text may not repeat a key. */
static tess_status parse_with(const char *family, const char *more, tess_llm_config *out)
{
    char text[4096];
    snprintf(text, sizeof text,
             "{\"model_type\":\"%s\",\"hidden_size\":64,\"intermediate_size\":96,"
             "\"num_hidden_layers\":4,\"num_attention_heads\":8,\"vocab_size\":100%s}",
             family, more);
    return parse(text, out);
}

static void expect_i64(const tess_json *object, const char *key, int64_t found)
{
    int64_t expected = 0;
    assert_ok(tess_json_get_i64(object, key, &expected));
    if (expected != found)
        print_error("%s\n", key);
    assert_int_equal(found, expected);
}

static void expect_bool(const tess_json *v, bool found)
{
    bool expected = false;
    assert_ok(tess_json_as_bool(v, &expected));
    assert_int_equal(found, expected);
}

/* torch takes the power in f32, correct to one unit (2^-23 relative); 1/x, the quotient by the
 * factor and llama3's blend of two terms round five times more: 6 * 2^-23 < 8e-7. */
static void expect_inv_freq(const tess_json *list, const tess_llm_config *c)
{
    float inv[TESS_LLM_HEAD_DIM_MAX / 2];
    double expected = 0.0;
    assert_int_equal(tess_json_numel(list), c->head_dim / 2);
    tess_rope_inv_freq(c, inv);
    for (int64_t i = 0; i < c->head_dim / 2; i++) {
        assert_ok(tess_json_as_f64(tess_json_at(list, i), &expected));
        assert_true(fabs((double)inv[i] - expected) <= 8e-7 * expected);
    }
}

static void expect_case(const tess_json *e, const tess_llm_config *c)
{
    int64_t window = 0, id = 0;
    double eps = 0.0;
    const tess_json *biases = tess_json_find(e, "biases"), *eos = tess_json_find(e, "eos");
    const tess_json *windows = tess_json_find(e, "windows");
    expect_i64(e, "kv_heads", c->kv_head_numel);
    expect_i64(e, "head_dim", c->head_dim);
    expect_i64(e, "bos", c->bos_id);
    assert_ok(tess_json_get_f64(e, "rms_norm_eps", &eps));
    assert_true(c->rms_eps == eps);
    expect_bool(tess_json_find(e, "tied"), c->is_tied);
    expect_bool(tess_json_find(e, "qk_norm"), c->has_qk_norm);
    expect_bool(tess_json_find(e, "mlp_bias"), c->has_mlp_bias);
    expect_bool(tess_json_at(biases, 0), c->has_q_bias);
    expect_bool(tess_json_at(biases, 1), c->has_k_bias);
    expect_bool(tess_json_at(biases, 2), c->has_v_bias);
    expect_bool(tess_json_at(biases, 3), c->has_o_bias);
    for (int64_t i = 0; i < 4; i++) {
        assert_ok(tess_json_as_i64(tess_json_at(windows, i), &window));
        assert_int_equal(tess_llm_window(c, i), window);
    }
    assert_int_equal(c->eos_numel, tess_json_numel(eos));
    for (int i = 0; i < c->eos_numel; i++) {
        assert_ok(tess_json_as_i64(tess_json_at(eos, i), &id));
        assert_int_equal(c->eos_id[i], id);
    }
    expect_inv_freq(tess_json_find(e, "inv_freq"), c);
}

static void test_parse_decides_as_transformers(void **state)
{
    const fixture *f = *state;
    tess_json *root = NULL;
    assert_ok(tess_json_read(f->io, GOLDEN "configs.json", &root));
    assert_true(tess_json_numel(root) >= 19);
    for (int64_t i = 0; i < tess_json_numel(root); i++) {
        tess_llm_config c = {0};
        const tess_json *row = tess_json_at(root, i);
        assert_ok(tess_hf_config_parse(tess_json_find(row, "config"), &c));
        assert_int_equal(c.hidden_numel, 64);
        assert_int_equal(c.vocab_numel, 100);
        expect_case(tess_json_find(row, "expected"), &c);
    }
    tess_json_destroy(&root);
}

static void test_read_golden_directory(void **state)
{
    const fixture *f = *state;
    tess_llm_config c = {0};
    assert_ok(tess_hf_config_read(f->io, GOLDEN "model", &c));
    assert_int_equal(c.family, TESS_LLM_QWEN3);
    assert_int_equal(c.intermediate_numel, 24);
    assert_int_equal(c.layer_numel, 2);
    assert_int_equal(c.head_dim, 8);
    assert_int_equal(c.max_position, 64);
    assert_true(c.rope.theta == 1e6 && c.rope.type == TESS_ROPE_DEFAULT);
    assert_int_equal(c.eos_numel, 2);
    assert_int_equal(c.eos_id[1], 3);
    assert_int_equal(c.window, 0);
    assert_true(c.has_qk_norm);
    assert_string_equal(c.dtype_hint, "bfloat16");
}

static void test_parse_absent_head_count_of_qwen_is_32(void **state)
{
    (void)state;
    tess_llm_config c = {0};
    assert_ok(parse("{\"model_type\":\"qwen2\",\"hidden_size\":64,\"intermediate_size\":96,"
                    "\"num_hidden_layers\":1,\"num_attention_heads\":32,\"vocab_size\":9}",
                    &c));
    assert_int_equal(c.kv_head_numel, 32);
    assert_refused(parse_with("qwen2", "", &c), TESS_E_FORMAT,
                   "num_key_value_heads: 32 does not divide num_attention_heads 8");
}

static void test_parse_both_rope_spellings_must_agree(void **state)
{
    (void)state;
    tess_llm_config c = {0};
    assert_ok(parse_with("llama",
                         ",\"rope_theta\":5e5,\"rope_scaling\":{\"type\":\"linear\",\"factor\":2},"
                         "\"rope_parameters\":{\"rope_type\":\"linear\",\"factor\":2.0,"
                         "\"rope_theta\":500000}",
                         &c));
    assert_true(c.rope.type == TESS_ROPE_LINEAR && c.rope.factor == 2.0 && c.rope.theta == 5e5);
    assert_refused(parse_with("llama",
                              ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":2},"
                              "\"rope_parameters\":{\"rope_type\":\"default\"}",
                              &c),
                   TESS_E_FORMAT, "rope_parameters", "differs from rope_scaling");
}

static void test_parse_bad_values_are_refused_by_name(void **state)
{
    (void)state;
    static const struct {
        const char *family;
        const char *more;
        tess_status status;
        const char *why;
    } bad[] = {
        {"gpt2", "", TESS_E_UNSUPPORTED, "model_type: 'gpt2' is not supported"},
        {"qwen3_moe", "", TESS_E_UNSUPPORTED, "'qwen3_moe'"},
        {"llama", ",\"hidden_act\":\"gelu\"", TESS_E_UNSUPPORTED, "hidden_act: not supported"},
        {"llama", ",\"pretraining_tp\":2", TESS_E_UNSUPPORTED, "pretraining_tp"},
        {"llama", ",\"attention_dropout\":0.1", TESS_E_UNSUPPORTED, "attention_dropout"},
        {"llama", ",\"partial_rotary_factor\":0.5", TESS_E_UNSUPPORTED, "partial_rotary_factor"},
        {"llama", ",\"is_causal\":false", TESS_E_UNSUPPORTED, "is_causal: not supported"},
        {"llama", ",\"per_layer_config\":{\"1\":{\"rms_norm_eps\":1}}", TESS_E_UNSUPPORTED,
         "per_layer_config: not supported"},
        {"llama",
         ",\"original_max_position_embeddings\":16,\"rope_scaling\":{\"type\":\"yarn\","
         "\"factor\":2,\"original_max_position_embeddings\":64}",
         TESS_E_FORMAT, "original_max_position_embeddings is 16, and 64 in the rope parameters"},
        {"llama", ",\"quantization_config\":{\"bits\":4}", TESS_E_UNSUPPORTED,
         "quantization_config: weights packed by ''"},
        {"llama", ",\"quantization_config\":{\"quant_method\":\"awq\"}", TESS_E_UNSUPPORTED,
         "quantization_config: weights packed by 'awq' are not supported"},
        {"llama", ",\"quantization_config\":4", TESS_E_FORMAT,
         "quantization_config: expected an object"},
        {"llama", ",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":2,\"mscale\":1}",
         TESS_E_UNSUPPORTED, "rope_scaling.mscale: not supported"},
        {"llama", ",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":2,\"truncate\":false}",
         TESS_E_UNSUPPORTED, "rope_scaling.truncate: not supported"},
        {"llama", ",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":2}", TESS_E_FORMAT,
         "original_max_position_embeddings: expected a positive number, found 0"},
        {"llama",
         ",\"max_position_embeddings\":64,\"rope_scaling\":{\"type\":\"yarn\",\"factor\":2,"
         "\"attention_factor\":-1}",
         TESS_E_FORMAT, "attention_factor: expected a positive number, found -1"},
        {"llama",
         ",\"max_position_embeddings\":64,\"rope_scaling\":{\"type\":\"yarn\",\"factor\":2,"
         "\"beta_fast\":1,\"beta_slow\":2}",
         TESS_E_FORMAT, "expected 0 < slow <= fast"},
        {"llama", ",\"rope_scaling\":{\"rope_type\":\"dynamic\",\"factor\":2}", TESS_E_UNSUPPORTED,
         "'dynamic'"},
        {"llama", ",\"rope_parameters\":{\"rope_type\":\"longrope\"}", TESS_E_UNSUPPORTED,
         "rope_parameters: rope type 'longrope'"},
        {"qwen3", ",\"num_key_value_heads\":4,\"rope_parameters\":{\"full_attention\":{}}",
         TESS_E_UNSUPPORTED, "rope_parameters.full_attention"},
        {"llama", ",\"rope_scaling\":{\"type\":\"linear\"}", TESS_E_FORMAT,
         "rope_scaling: 'factor' is missing"},
        {"llama", ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":0.5}", TESS_E_FORMAT,
         "factor: expected a number of at least 1, found 0.5"},
        {"llama", ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8}", TESS_E_FORMAT,
         "'low_freq_factor' is missing"},
        {"llama",
         ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":4,"
         "\"high_freq_factor\":4,\"original_max_position_embeddings\":8}",
         TESS_E_FORMAT, "expected 0 < low < high"},
        {"llama", ",\"rope_theta\":0", TESS_E_FORMAT, "rope_theta: expected a positive number"},
        {"llama", ",\"rope_scaling\":\"linear\"", TESS_E_FORMAT,
         "rope_scaling: expected an object, found a string"},
        {"llama", ",\"num_key_value_heads\":3", TESS_E_FORMAT, "3 does not divide"},
        {"llama", ",\"num_key_value_heads\":0", TESS_E_FORMAT,
         "num_key_value_heads: expected 1 to 16384, found 0"},
        {"llama", ",\"head_dim\":7", TESS_E_FORMAT, "head_dim: expected an even number"},
        {"llama", ",\"head_dim\":0", TESS_E_FORMAT, "head_dim: expected 2 to 1024, found 0"},
        {"llama", ",\"head_dim\":2048", TESS_E_FORMAT, "head_dim: expected 2 to 1024"},
        {"llama", ",\"head_dim\":\"8\"", TESS_E_FORMAT, "head_dim: expected an integer"},
        {"llama", ",\"rms_norm_eps\":0", TESS_E_FORMAT, "rms_norm_eps"},
        {"llama", ",\"tie_word_embeddings\":1", TESS_E_FORMAT,
         "tie_word_embeddings: expected a boolean, found an integer"},
        {"llama", ",\"eos_token_id\":[1,\"2\"]", TESS_E_FORMAT,
         "eos_token_id[1]: expected an integer, found a string"},
        {"llama", ",\"eos_token_id\":[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16]", TESS_E_FORMAT,
         "17 ids, at most 16"},
        {"llama", ",\"bos_token_id\":-1", TESS_E_FORMAT, "bos_token_id: expected a token id"},
        {"llama",
         ",\"layer_types\":[\"sliding_attention\",\"full_attention\",\"full_attention\","
         "\"full_attention\"]",
         TESS_E_UNSUPPORTED, "layer_types: layer 0 differs"},
        {"mistral", ",\"sliding_window\":0", TESS_E_UNSUPPORTED, "sliding_window"},
        {"mistral", ",\"sliding_window\":-5", TESS_E_UNSUPPORTED, "sliding_window"},
        {"qwen3", ",\"num_key_value_heads\":4,\"layer_types\":[\"full_attention\"]", TESS_E_FORMAT,
         "layer_types: expected 4 entries (num_hidden_layers), found 1"},
        {"qwen3",
         ",\"num_key_value_heads\":4,\"layer_types\":[\"linear_attention\",\"full_attention\","
         "\"full_attention\",\"full_attention\"]",
         TESS_E_UNSUPPORTED, "layer_types[0]: layer type 'linear_attention'"},
        {"qwen3",
         ",\"num_key_value_heads\":4,\"layer_types\":[\"sliding_attention\",\"full_attention\","
         "\"full_attention\",\"full_attention\"]",
         TESS_E_FORMAT, "sliding_window is off or null"},
    };
    for (int i = 0; i < TESS_NELEM(bad); i++) {
        tess_llm_config c = {.hidden_numel = -7};
        assert_refused(parse_with(bad[i].family, bad[i].more, &c), bad[i].status, "'config.json'",
                       bad[i].why);
        assert_int_equal(c.hidden_numel, -7);
    }
}

static void test_parse_required_and_ranges(void **state)
{
    (void)state;
    static const char *const keys[] = {"hidden_size", "intermediate_size", "num_hidden_layers",
                                       "num_attention_heads", "vocab_size"};
    static const char *const values[] = {
        NULL, "null", "0", "-1", "1.5", "\"4\"", "true", "1e18", "9223372036854775807"};
    for (int k = 0; k < TESS_NELEM(keys); k++) {
        for (int v = 0; v < TESS_NELEM(values); v++) {
            char text[512] = "{\"model_type\":\"llama\",\"head_dim\":4";
            tess_llm_config c = {0};
            for (int i = 0; i < TESS_NELEM(keys); i++) {
                const char *value = i == k ? values[v] : "4";
                if (value == NULL)
                    continue;
                char pair[64];
                snprintf(pair, sizeof pair, ",\"%s\":%s", keys[i], value);
                strcat(text, pair);
            }
            strcat(text, "}");
            assert_refused(parse(text, &c), TESS_E_FORMAT, "'config.json'", keys[k]);
        }
    }
}

/* The table of docs: Llama 3.1, theta 5e5, head_dim 128, factor 8, low 1, high 4, original 8192. */
static void test_rope_llama3_worked_numbers(void **state)
{
    (void)state;
    static const struct {
        int i;
        double inv;
    } expected[] = {{28, .0032114461},  {29, .0021665705},   {30, .0013718937},
                    {31, .00085675146}, {32, .00052484606},  {33, .00031269369},
                    {34, .0001785078},  {35, 9.5562122e-05}, {63, 3.0689259e-07}};
    tess_llm_config c = {.head_dim = 128,
                         .rope = {.type = TESS_ROPE_LLAMA3,
                                  .theta = 5e5,
                                  .factor = 8.0,
                                  .low_freq_factor = 1.0,
                                  .high_freq_factor = 4.0,
                                  .original_max_position = 8192}};
    float inv[64];
    tess_rope_inv_freq(&c, inv);
    assert_true(inv[0] == 1.0f);
    for (int i = 0; i < TESS_NELEM(expected); i++) /* stated with 8 digits: half a unit is 5e-8 */
        assert_true(fabs((double)inv[expected[i].i] - expected[i].inv) <=
                    (8e-7 + 5e-8) * expected[i].inv);
    c.rope.type = TESS_ROPE_DEFAULT;
    tess_rope_inv_freq(&c, inv);
    assert_true(fabs((double)inv[29] - .0026160991) <= 8.5e-7 * .0026160991);
    assert_true(fabs((double)inv[35] - .00076449697) <= 8.5e-7 * .00076449697);
}

/* transformers 5.24: ROPE_INIT_FUNCTIONS["yarn"] of these two configurations. */
static void test_rope_yarn_as_transformers(void **state)
{
    static const struct {
        int i;
        double inv;
    } long_context[] = {{0, 1.0},
                        {20, 0.0133352149},
                        {23, 0.00697830599},
                        {24, 0.00537532149},
                        {30, 0.00106436096},
                        {38, 9.26230132e-05},
                        {39, 6.4903943e-05},
                        {40, 4.44569851e-05},
                        {50, 5.13381246e-06},
                        {63, 3.10234441e-07}},
      stated[] = {
          {0, 1.0}, {1, 0.398325086}, {2, 0.131761566}, {3, 0.0222284924}, {15, 2.22284925e-05}};
    tess_llm_config c;
    float inv[64];
    (void)state;
    assert_ok(parse("{\"model_type\":\"qwen2\",\"hidden_size\":512,\"intermediate_size\":8,"
                    "\"num_hidden_layers\":1,\"num_attention_heads\":4,\"vocab_size\":9,"
                    "\"num_key_value_heads\":4,\"rope_theta\":1e6,\"rope_scaling\":{"
                    "\"type\":\"yarn\",\"factor\":4.0,"
                    "\"original_max_position_embeddings\":32768}}",
                    &c));
    tess_rope_inv_freq(&c, inv);
    for (int i = 0; i < TESS_NELEM(long_context); i++) /* two units of f32: a power and a sum */
        assert_true(fabs((double)inv[long_context[i].i] - long_context[i].inv) <=
                    2.5e-7 * long_context[i].inv);
    assert_true(tess_rope_attention_factor(&c.rope) == 1.138629436111989F);
    assert_ok(parse("{\"model_type\":\"llama\",\"hidden_size\":64,\"intermediate_size\":8,"
                    "\"num_hidden_layers\":1,\"num_attention_heads\":2,\"vocab_size\":9,"
                    "\"max_position_embeddings\":64,\"rope_parameters\":{\"rope_type\":\"yarn\","
                    "\"rope_theta\":1e4,\"factor\":8,\"beta_fast\":16,\"beta_slow\":2,"
                    "\"attention_factor\":1.5}}",
                    &c));
    assert_int_equal(c.rope.original_max_position, 64); /* absent: max_position_embeddings */
    tess_rope_inv_freq(&c, inv);
    for (int i = 0; i < TESS_NELEM(stated); i++)
        assert_true(fabs((double)inv[stated[i].i] - stated[i].inv) <= 2.5e-7 * stated[i].inv);
    assert_true(tess_rope_attention_factor(&c.rope) == 1.5F);
    assert_ok(parse_with("llama",
                         ",\"max_position_embeddings\":64,\"is_causal\":true,"
                         "\"per_layer_config\":{},\"original_max_position_embeddings\":16,"
                         "\"rope_scaling\":{\"type\":\"yarn\",\"factor\":2}",
                         &c));
    assert_int_equal(c.rope.original_max_position, 16); /* beside the rope object */
    c.rope.type = TESS_ROPE_LINEAR;
    assert_true(tess_rope_attention_factor(&c.rope) == 1.0F);
}

static tess_llm_config valid_config(tess_llm_family family)
{
    const bool is_qwen2 = family == TESS_LLM_QWEN2;
    tess_llm_config c = {.family = family,
                         .hidden_numel = 256,
                         .intermediate_numel = 512,
                         .layer_numel = 3,
                         .head_numel = 4,
                         .kv_head_numel = 2,
                         .head_dim = 32,
                         .vocab_numel = 1000,
                         .max_position = 2048,
                         .rms_eps = 1e-5,
                         .rope = {.type = TESS_ROPE_DEFAULT, .theta = 10000.0, .factor = 1.0},
                         .is_tied = true,
                         .has_q_bias = is_qwen2,
                         .has_k_bias = is_qwen2,
                         .has_v_bias = is_qwen2,
                         .has_qk_norm = family == TESS_LLM_QWEN3,
                         .bos_id = 1,
                         .eos_id = {2},
                         .eos_numel = 1,
                         .dtype_hint = "bfloat16"};
    return c;
}

static void expect_round_trip(const fixture *f, const tess_llm_config *c)
{
    tess_llm_config back;
    memset(&back, 0, sizeof back);
    assert_ok(tess_hf_config_write(f->io, f->dir, c, "bfloat16"));
    assert_ok(tess_hf_config_read(f->io, f->dir, &back));
    assert_int_equal(back.family, c->family);
    assert_int_equal(back.hidden_numel, c->hidden_numel);
    assert_int_equal(back.intermediate_numel, c->intermediate_numel);
    assert_int_equal(back.layer_numel, c->layer_numel);
    assert_int_equal(back.head_numel, c->head_numel);
    assert_int_equal(back.kv_head_numel, c->kv_head_numel);
    assert_int_equal(back.head_dim, c->head_dim);
    assert_int_equal(back.vocab_numel, c->vocab_numel);
    assert_int_equal(back.max_position, c->max_position);
    assert_true(back.rms_eps == c->rms_eps);
    assert_int_equal(back.rope.type, c->rope.type);
    assert_true(back.rope.theta == c->rope.theta && back.rope.factor == c->rope.factor &&
                back.rope.low_freq_factor == c->rope.low_freq_factor &&
                back.rope.high_freq_factor == c->rope.high_freq_factor);
    assert_int_equal(back.rope.original_max_position, c->rope.original_max_position);
    assert_true(back.rope.attention_factor == c->rope.attention_factor &&
                back.rope.beta_fast == c->rope.beta_fast &&
                back.rope.beta_slow == c->rope.beta_slow);
    assert_int_equal(back.is_tied, c->is_tied);
    assert_int_equal(back.has_q_bias, c->has_q_bias);
    assert_int_equal(back.has_v_bias, c->has_v_bias);
    assert_int_equal(back.has_o_bias, c->has_o_bias);
    assert_int_equal(back.has_mlp_bias, c->has_mlp_bias);
    assert_int_equal(back.has_qk_norm, c->has_qk_norm);
    assert_int_equal(back.window, c->window);
    assert_memory_equal(back.is_sliding, c->is_sliding, sizeof c->is_sliding);
    assert_int_equal(back.bos_id, c->bos_id);
    assert_int_equal(back.eos_numel, c->eos_numel);
    assert_memory_equal(back.eos_id, c->eos_id, (size_t)c->eos_numel * sizeof c->eos_id[0]);
    assert_string_equal(back.dtype_hint, c->dtype_hint);
}

static void test_write_round_trips_for_every_family(void **state)
{
    const fixture *f = *state;
    for (int i = 0; i < TESS_LLM_FAMILY_NUMEL; i++) {
        tess_llm_config c = valid_config((tess_llm_family)i);
        expect_round_trip(f, &c);
        c.rope = (tess_rope_config){.type = TESS_ROPE_LLAMA3,
                                    .theta = 5e5,
                                    .factor = 8.0,
                                    .low_freq_factor = 1.0,
                                    .high_freq_factor = 4.0,
                                    .original_max_position = 1024};
        c.bos_id = -1;
        c.eos_numel = i == 2 ? 0 : 3;
        c.eos_id[1] = 7;
        c.eos_id[2] = 9;
        c.is_tied = false;
        if (i == TESS_LLM_LLAMA)
            c.has_q_bias = c.has_k_bias = c.has_v_bias = c.has_o_bias = c.has_mlp_bias = true;
        expect_round_trip(f, &c);
        c.rope = (tess_rope_config){.type = TESS_ROPE_YARN,
                                    .theta = 1e6,
                                    .factor = 4.0,
                                    .original_max_position = 1024,
                                    .attention_factor = 1.25,
                                    .beta_fast = 24.0,
                                    .beta_slow = 2.0};
        expect_round_trip(f, &c);
    }
}

static void test_write_windows_round_trip(void **state)
{
    const fixture *f = *state;
    tess_llm_config c = valid_config(TESS_LLM_MISTRAL);
    c.window = 64;
    c.is_sliding[0] = c.is_sliding[1] = c.is_sliding[2] = true;
    expect_round_trip(f, &c);
    c = valid_config(TESS_LLM_QWEN3);
    c.window = 64;
    c.is_sliding[1] = true;
    expect_round_trip(f, &c);
    c = valid_config(TESS_LLM_QWEN2);
    c.window = 64;
    c.is_sliding[0] = true;
    expect_round_trip(f, &c);
}

static void test_write_what_a_class_cannot_say_is_refused(void **state)
{
    const fixture *f = *state;
    tess_llm_config c = valid_config(TESS_LLM_MISTRAL);
    c.has_q_bias = c.has_k_bias = c.has_v_bias = true;
    assert_refused(tess_hf_config_write(f->io, f->dir, &c, "bfloat16"), TESS_E_CONFIG,
                   "a mistral config.json cannot express attention biases q 1 k 1 v 1 o 0");
    c = valid_config(TESS_LLM_LLAMA);
    c.has_qk_norm = true;
    assert_refused(tess_hf_config_write(f->io, f->dir, &c, "bfloat16"), TESS_E_CONFIG,
                   "has_qk_norm 1");
    c = valid_config(TESS_LLM_QWEN2);
    c.has_mlp_bias = true;
    assert_refused(tess_hf_config_write(f->io, f->dir, &c, "bfloat16"), TESS_E_CONFIG,
                   "mlp biases");
    c = valid_config(TESS_LLM_MISTRAL);
    c.window = 8;
    c.is_sliding[1] = true;
    assert_refused(tess_hf_config_write(f->io, f->dir, &c, "bfloat16"), TESS_E_CONFIG,
                   "1 sliding layers of 3");
    c = valid_config(TESS_LLM_LLAMA);
    c.head_numel = 3;
    c.kv_head_numel = 1;
    assert_refused(tess_hf_config_write(f->io, f->dir, &c, "bfloat16"), TESS_E_CONFIG,
                   "hidden_size 256", "3 heads");
    c.layer_numel = 0;
    assert_refused(tess_hf_config_write(f->io, f->dir, &c, "bfloat16"), TESS_E_CONFIG,
                   "num_hidden_layers: expected 1 to 1024, found 0");
    assert_refused(tess_hf_config_write(f->io, f->dir, &c, "float16"), TESS_E_ARG, "'float16'");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        format_test(test_parse_decides_as_transformers),
        format_test(test_read_golden_directory),
        format_test(test_parse_absent_head_count_of_qwen_is_32),
        format_test(test_parse_both_rope_spellings_must_agree),
        format_test(test_parse_bad_values_are_refused_by_name),
        format_test(test_parse_required_and_ranges),
        format_test(test_rope_llama3_worked_numbers),
        format_test(test_rope_yarn_as_transformers),
        format_test(test_write_round_trips_for_every_family),
        format_test(test_write_windows_round_trip),
        format_test(test_write_what_a_class_cannot_say_is_refused),
    };
    return cmocka_run_group_tests_name("format.hf_config", tests, NULL, NULL);
}
