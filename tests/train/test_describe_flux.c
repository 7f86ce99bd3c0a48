/* The full FLUX.1-dev transformer described without weights: bytes of every base format against
 * the table of its layers written down here, counts of every set of targets. */
#include "rewrite_test.h"

#include <inttypes.h>

#include "train/describe/describe_flux.h"

/* Every matrix of the model: how often, rows, columns, and whether base.format takes it. Biases go
 * with each; norms over heads beside them. */
enum { H = 3072, BLOCKS_DOUBLE = 19, BLOCKS_SINGLE = 38, HEAD_DIM = 128 };
static const struct {
    int64_t numel, rows, cols;
    bool is_taken;
} layers[] = {
    {1, H, 64, false},                            /* x_embedder */
    {1, H, 4096, false},                          /* context_embedder */
    {2, H, 256, true},                            /* timestep, guidance: linear_1 */
    {1, H, 768, true},                            /* text: linear_1 */
    {3, H, H, true},                              /* linear_2 of the three */
    {1, 2 * H, H, false},                         /* norm_out */
    {1, 64, H, false},                            /* proj_out */
    {2 * BLOCKS_DOUBLE, (int64_t)6 * H, H, true}, /* norm1, norm1_context */
    {8 * BLOCKS_DOUBLE, H, H, true},              /* attention */
    {2 * BLOCKS_DOUBLE, (int64_t)4 * H, H, true}, /* ff.net.0 */
    {2 * BLOCKS_DOUBLE, H, (int64_t)4 * H, true}, /* ff.net.2 */
    {BLOCKS_SINGLE, (int64_t)3 * H, H, true},     /* norm */
    {3 * BLOCKS_SINGLE, H, H, true},              /* q, k, v */
    {BLOCKS_SINGLE, (int64_t)4 * H, H, true},     /* proj_mlp */
    {BLOCKS_SINGLE, H, (int64_t)5 * H, true},     /* proj_out */
};
enum { NORM_NUMEL = 4 * BLOCKS_DOUBLE + 2 * BLOCKS_SINGLE };

static int64_t up(int64_t nbytes) { return (nbytes + 255) / 256 * 256; }

/* Bytes of a matrix by format, part by part, each at a multiple of 256. */
typedef int64_t (*byte_rule)(int64_t rows, int64_t cols);
static int64_t of_bf16(int64_t r, int64_t c) { return up(2 * r * c); }
static int64_t of_f32(int64_t r, int64_t c) { return up(4 * r * c); }
static int64_t of_nf4(int64_t r, int64_t c) { return up(r * c / 2) + up(4 * (r * c / 64)); }
static int64_t of_nf4_double(int64_t r, int64_t c)
{
    const int64_t blocks = r * c / 64;
    return up(r * c / 2) + up(blocks) + up((blocks + 255) / 256 * 4) + up(4);
}
static int64_t of_int8(int64_t r, int64_t c) { return up(r * c) + up(4 * r); }
static int64_t of_qint8(int64_t r, int64_t c) { return up(r * c) + up(2 * r); }
static int64_t of_qint4(int64_t r, int64_t c) { return up(r * c / 2) + 2 * up(r * c / 128 * 2); }
static int64_t of_qint2(int64_t r, int64_t c) { return up(r * c / 4) + 2 * up(r * c / 128 * 2); }
static int64_t of_e4m3(int64_t r, int64_t c) { return up(r * c) + up(4); }
static int64_t of_e4m3_raw(int64_t r, int64_t c) { return up(r * c); }
static int64_t of_q8_0(int64_t r, int64_t c) { return up(r * c / 32 * 34); }
static int64_t of_q4_0(int64_t r, int64_t c) { return up(r * c / 32 * 18); }

static const struct {
    const char *options; /* of section base */
    byte_rule rule;
} formats[] = {
    {"format: keep", of_bf16},
    {"format: bf16", of_bf16},
    {"format: f32", of_f32},
    {"format: f16", of_bf16},
    {"format: nf4, double_quant: false", of_nf4},
    {"format: nf4, double_quant: true", of_nf4_double},
    {"format: fp4, double_quant: true", of_nf4_double},
    {"format: int8", of_int8},
    {"format: qint8", of_qint8},
    {"format: qfloat8", of_qint8},
    {"format: qfloat8_e5m2", of_qint8},
    {"format: int4", of_qint4},
    {"format: qint4", of_qint4},
    {"format: int2", of_qint2},
    {"format: qint2", of_qint2},
    {"format: e4m3, scaling: tensor", of_e4m3},
    {"format: e5m2, scaling: raw", of_e4m3_raw},
    {"format: q8_0", of_q8_0},
    {"format: q4_0", of_q4_0},
};

static int64_t expected_nbytes(byte_rule rule)
{
    int64_t sum = NORM_NUMEL * up((int64_t)2 * HEAD_DIM);
    for (int i = 0; i < TESS_NELEM(layers); i++) {
        const byte_rule of = layers[i].is_taken ? rule : of_bf16;
        sum += layers[i].numel * (of(layers[i].rows, layers[i].cols) + up(2 * layers[i].rows));
    }
    return sum;
}

/* ---- the program's answer ---- */

static int64_t registered_nbytes(const tess_registry *reg)
{
    int64_t sum = 0;
    for (int i = 0; i < reg->unit_numel; i++)
        sum += up((int64_t)reg->unit[i].frozen_nbytes);
    return sum;
}

static int64_t trainable_numel(const tess_registry *reg)
{
    int64_t sum = 0;
    for (int i = 0; i < reg->param_numel; i++)
        if (reg->param[i].role == TESS_ROLE_TRAINABLE)
            sum += reg->param[i].numel;
    return sum;
}

static const char model_config[] =
    "{\"_class_name\": \"FluxTransformer2DModel\", \"patch_size\": 1, \"in_channels\": 64, "
    "\"num_layers\": 19, \"num_single_layers\": 38, \"attention_head_dim\": 128, "
    "\"num_attention_heads\": 24, \"joint_attention_dim\": 4096, \"pooled_projection_dim\": 768, "
    "\"guidance_embeds\": true, \"axes_dims_rope\": [16, 56, 56]}";

/* A run over the full model with random weights, planned for `world` ranks. */
static tess_status try_describe(const fixture *f, const char *base, const char *lora,
                                int resolution, int world, tess_run **run, tess_description *d)
{
    const tess_ctx ctx = {.io = f->io};
    char text[1024];
    const tess_launch_shape launch = {
        .world = world, .node_rank_numel = world, .kernel_path = "cpu/portable"};
    put_text(f, "config.json", model_config);
    snprintf(text, sizeof text,
             "model: {family: flux, path: %s, init: random}\nbase: {%s}\nlora: {%s}\n"
             "data: {path: none.h5, resolution: %d, text_length: 512}\noutput: {dir: out}\n",
             f->dir, base, lora, resolution);
    assert_ok(tess_run_parse(text, strlen(text), "run.yaml", NULL, 0, run));
    return tess_describe(&ctx, *run, &launch, d);
}

static void describe(const fixture *f, const char *base, const char *lora, int resolution,
                     int world, tess_run **run, tess_description *d)
{
    assert_ok(try_describe(f, base, lora, resolution, world, run, d));
}

static void test_bytes_of_every_format_are_those_of_the_table(void **state)
{
    static const int side[] = {512, 1024};
    for (int i = 0; i < TESS_NELEM(formats); i++) {
        for (int k = 0; k < 2; k++) {
            const int world = 1 + (i + 3 * k) % 8;
            tess_run *run = NULL;
            tess_description d;
            describe(*state, formats[i].options, "targets: mmdit", side[k], world, &run, &d);
            if (registered_nbytes(&d.registry) != expected_nbytes(formats[i].rule))
                fail_msg("%s: %" PRId64 " bytes, expected %" PRId64, formats[i].options,
                         registered_nbytes(&d.registry), expected_nbytes(formats[i].rule));
            assert_int_equal(d.flux_shape.image_numel, (int64_t)side[k] * side[k] / 256);
            assert_int_equal(d.plan->options.world, world);
            tess_description_fini(&d);
            tess_run_destroy(&run);
        }
    }
}

/* Trainable elements at ranks 4, 16, 64; 0: not stated (SimpleTuner's and others' own counts, see
 * docs/adapters.md). */
static void test_targets_have_the_counts_of_their_trainers(void **state)
{
    static const struct {
        const char *name;
        int64_t at_4;
    } sets[] = {{"mmdit", 4669440},       {"context", 1867776},  {"context+ffs", 4202496},
                {"all", 6537216},         {"all+ffs", 16355584}, {"all+ffs+embedder", 16368128},
                {"ai-toolkit", 21491968}, {"tiny", 147456},      {"nano", 73728},
                {"diffusers", 11206656},  {"kohya", 19144704}};
    static const int ranks[] = {4, 16, 64};
    for (int i = 0; i < TESS_NELEM(sets); i++) {
        for (int k = 0; k < TESS_NELEM(ranks); k++) {
            char lora[96];
            tess_run *run = NULL;
            tess_description d;
            snprintf(lora, sizeof lora, "targets: %s, rank: %d", sets[i].name, ranks[k]);
            describe(*state, "format: nf4", lora, 512, 1, &run, &d);
            const int64_t expected = sets[i].at_4 * ranks[k] / 4;
            if (trainable_numel(&d.registry) != expected)
                fail_msg("%s: %" PRId64 " elements, expected %" PRId64, lora,
                         trainable_numel(&d.registry), expected);
            tess_description_fini(&d);
            tess_run_destroy(&run);
        }
    }
}

/* peft refuses an expression that fits a module which is no linear layer. */
static void test_the_targets_of_kohya_fit_linear_layers_alone(void **state)
{
    static const char *const other[] = {"norm1", "norm1.silu", "attn", "attn.to_out", "attn.norm_q",
                                        "ff",    "ff.net.0",   "norm", "act_mlp"};
    const tess_flux_targets *set = tess_flux_targets_find("kohya");
    const tess_peft_options o = {.rank = 1, .alpha = 1.0, .targets = set->modules};
    tess_peft_spec *spec = NULL;
    assert_ok(tess_peft_spec_create(&o, &spec));
    for (int i = 0; i < TESS_NELEM(other); i++) {
        char path[128];
        tess_peft_match m;
        const tess_peft_module module = {.path = path};
        snprintf(path, sizeof path, "transformer_blocks.3.%s", other[i]);
        assert_ok(tess_peft_spec_match(spec, &module, &m));
        assert_false(m.is_target);
        snprintf(path, sizeof path, "single_transformer_blocks.3.%s", other[i]);
        assert_ok(tess_peft_spec_match(spec, &module, &m));
        assert_false(m.is_target);
    }
    tess_peft_spec_destroy(&spec);
    (void)state;
}

/* A word, an ending or an expression that fits no layer is refused before anything is trained. */
static void test_targets_that_name_nothing_are_refused(void **state)
{
    static const struct {
        const char *lora, *words;
    } cases[] = {
        {"targets: al", "'al' names no linear layer; expected mmdit, context, "},
        {"targets: '(single_)?transformer_blocks'", "kohya, all-linear, a list of ends of paths"},
        {"targets: [to_q, to_out]", "'to_out' names no linear layer that gets an adapter"},
        {"targets: [to_q, add_q_proj], exclude: [add_q_proj]", "'add_q_proj' names no linear"},
        {"targets: [o_q]", "'o_q' names no linear"},
        {"targets: [ff.net.0.proj], layers: [0]", "set lora.layers_pattern to transformer_blocks"},
    };
    for (int i = 0; i < TESS_NELEM(cases); i++) {
        tess_run *run = NULL;
        tess_description d;
        assert_refused(try_describe(*state, "format: nf4", cases[i].lora, 512, 1, &run, &d),
                       TESS_E_CONFIG, "lora.", cases[i].words);
        tess_run_destroy(&run);
    }
}

/* Keys of FLUX.1 need no model.family where the model tells. */
static void test_the_family_is_found(void **state)
{
    static const char other[] = "{\"_class_name\": \"SD3Transformer2DModel\"}";
    const fixture *f = *state;
    const tess_ctx ctx = {.io = f->io};
    char text[1024];
    tess_run *run = NULL;
    put_text(f, "config.json", model_config);
    snprintf(text, sizeof text,
             "model: {path: %s}\ndata: {path: none.h5, resolution: 512}\n"
             "objective: {shift: auto}\noutput: {dir: out}\n",
             f->dir);
    const tess_run_source source = {text, strlen(text), "run.yaml", NULL, 0, NULL};
    put_text(f, "model_index.json", "{\"_class_name\": \"FluxPipeline\"}");
    assert_refused(tess_run_parse_with(&source, tess_describe_family, &ctx, &run), TESS_E_CONFIG,
                   "/transformer' has no config.json beside the pipeline's model_index.json");
    remove(at(f, "model_index.json"));
    assert_int_equal(tess_run_parse_with(&source, NULL, NULL, &run), TESS_E_CONFIG);
    tess_error_clear();
    assert_ok(tess_run_parse_with(&source, tess_describe_family, &ctx, &run));
    assert_int_equal(run->model.family, TESS_RUN_FAMILY_FLUX);
    assert_int_equal(run->output.export_as, TESS_RUN_EXPORT_DIFFUSERS);
    tess_run_destroy(&run);
    put_text(f, "config.json", other);
    assert_refused(tess_run_parse_with(&source, tess_describe_family, &ctx, &run), TESS_E_CONFIG,
                   "config.json", "_class_name is 'SD3Transformer2DModel'",
                   "expected FluxTransformer2DModel");
    put_text(f, "config.json", "{\"model_type\": \"llama\"}");
    assert_refused(tess_run_parse_with(&source, tess_describe_family, &ctx, &run), TESS_E_CONFIG,
                   "or set model.family: flux");
    remove(at(f, "config.json"));
    assert_refused(tess_run_parse_with(&source, tess_describe_family, &ctx, &run), TESS_E_CONFIG,
                   "has no config.json; give a model directory");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        folder_test(test_bytes_of_every_format_are_those_of_the_table),
        folder_test(test_targets_have_the_counts_of_their_trainers),
        folder_test(test_the_targets_of_kohya_fit_linear_layers_alone),
        folder_test(test_targets_that_name_nothing_are_refused),
        folder_test(test_the_family_is_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
