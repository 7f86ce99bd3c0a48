/* Adapters added to weights: values against fp64, which weights they are added to, what is left of
 * them in a quantized format, and what is refused. */
#include "rewrite_test.h"

#include <math.h>

#include "core/arith.h"
#include "core/rng.h"
#include "format/peft.h"
#include "train/rewrite/merge.h"

enum { TABLE_NUMEL = 1 << 20, WEIGHT_MAX = 80 * 48, RANK_MAX = 8 };

/* ---- what survives ---- */

/* One cell of formats.md 9.4: `digit` is the value of its last digit. */
typedef struct cell {
    double delta, survived, digit, noise; /* noise 0: not in the table */
} cell;

static void fill_normal(int stream, float scale, float *x)
{
    const tess_rng rng = tess_rng_make(7, TESS_RNG_INIT, (uint32_t)stream, 0);
    tess_rng_normal_fill(&rng, 0, TABLE_NUMEL, scale, x);
}

/* Weights on the grid, a delta, and the sum on the grid again. */
static void check_cell(const tess_stored *grid, const cell *c)
{
    static float q[TABLE_NUMEL], d[TABLE_NUMEL], sum[TABLE_NUMEL];
    tess_stored z = {0};
    tess_merge_survival s;
    double square = 0.0;
    assert_ok(tess_stored_decode_all(grid, NULL, q));
    for (int i = 0; i < TABLE_NUMEL; i++)
        square += (double)q[i] * (double)q[i];
    fill_normal(2, (float)(c->delta * sqrt(square / TABLE_NUMEL)), d);
    for (int i = 0; i < TABLE_NUMEL; i++)
        sum[i] = q[i] + d[i];
    assert_ok(tess_stored_prepare(&z, &grid->codec, TABLE_NUMEL));
    assert_ok(tess_stored_encode(&z, tess_view_host(sum, TABLE_NUMEL, TESS_F32), "z", NULL));
    assert_ok(tess_merge_measure(q, d, &z, &s));
    /* The table is rounded to its last digit; survived is 1 + sum e d / sum d^2, whose sampling
     * error is at most noise / sqrt(numel), counted four times. */
    const double allowed = c->digit / 2.0 + 4.0 * s.noise / sqrt(TABLE_NUMEL);
    if (fabs(s.survived - c->survived) > allowed)
        fail_msg("%s, delta %g: survived %.4f, expected %g +- %g", tess_format_name(z.codec.format),
                 c->delta, s.survived, c->survived, allowed);
    if (c->noise > 0.0 && fabs(s.noise - c->noise) > 0.005)
        fail_msg("%s, delta %g: noise %.4f, expected %g", tess_format_name(z.codec.format),
                 c->delta, s.noise, c->noise);
    assert_true(fabs(s.delta - c->delta) < 0.01 * c->delta);
    tess_stored_fini(&z);
}

static void check_format(tess_codec codec, double own_error, const cell *cells, int cell_numel)
{
    static float w[TABLE_NUMEL];
    tess_stored plain = {0}, grid = {0};
    tess_stored_error e;
    const tess_codec f32 = {.format = TESS_FORMAT_F32};
    fill_normal(1, 0.02F, w);
    assert_ok(tess_stored_prepare(&plain, &f32, TABLE_NUMEL));
    memcpy(plain.at[0], w, sizeof w);
    assert_ok(tess_stored_prepare(&grid, &codec, TABLE_NUMEL));
    assert_ok(tess_stored_encode(&grid, tess_view_host(w, TABLE_NUMEL, TESS_F32), "w", NULL));
    assert_ok(tess_stored_compare(&plain, &grid, "w", NULL, &e));
    /* "own error 9.2 %": two digits */
    const double relative = sqrt(e.error_square / e.square);
    if (fabs(relative - own_error) > 0.06 * own_error)
        fail_msg("%s: own error %.4f, expected %.4f", tess_format_name(codec.format), relative,
                 own_error);
    for (int i = 0; i < cell_numel; i++)
        check_cell(&grid, &cells[i]);
    tess_stored_fini(&plain);
    tess_stored_fini(&grid);
}

static void test_measure_table_of_formats(void **state)
{
    static const cell nf4[] = {{0.002, 0.015, 0.001, 0.0},
                               {0.01, 0.015, 0.001, 0.0},
                               {0.05, 0.23, 0.01, 0.0},
                               {0.2, 0.99, 0.01, 0.0}};
    static const cell q8_0[] = {{0.002, 0.04, 0.01, 0.0},
                                {0.01, 0.99, 0.01, 0.53},
                                {0.05, 1.0, 0.01, 0.0},
                                {0.2, 1.0, 0.01, 0.0}};
    static const cell e4m3[] = {{0.002, 0.0, 0.001, 0.0},
                                {0.01, 0.0, 0.01, 0.0},
                                {0.05, 0.93, 0.01, 0.0},
                                {0.2, 1.0, 0.01, 0.0}};
    (void)state;
    check_format((tess_codec){.format = TESS_FORMAT_NF4, .block_numel = 64}, 0.092, nf4, 4);
    check_format(tess_codec_of_format(TESS_FORMAT_Q8_0), 0.0053, q8_0, 4);
    check_format((tess_codec){.format = TESS_FORMAT_E4M3, .scaling = TESS_SCALING_RAW}, 0.033, e4m3,
                 4);
}

static void test_measure_zero_delta_is_whole(void **state)
{
    const tess_codec f32 = {.format = TESS_FORMAT_F32};
    const float q[3] = {1.0F, -2.0F, 3.0F}, d[3] = {0};
    tess_stored z = {0};
    tess_merge_survival s;
    (void)state;
    assert_ok(tess_stored_prepare(&z, &f32, 3));
    memcpy(z.at[0], q, sizeof q);
    assert_ok(tess_merge_measure(q, d, &z, &s));
    assert_true(s.delta == 0.0 && s.survived == 1.0 && s.noise == 0.0);
    tess_stored_fini(&z);
}

/* ---- adapters ---- */

static const tess_peft_adapter layers[] = {{"model.layers.0.self_attn.q_proj", 4, 48, 48},
                                           {"model.layers.0.mlp.down_proj", 2, 80, 48},
                                           {"model.layers.0.mlp.up_proj", 4, 48, 80}};

/* Element i of A (part 0) or B (part 1) of layer k. */
static float element(int k, int part, int64_t i)
{
    return (float)((i * 37 + k * 11 + part * 5) % 101 - 50) / 512.0F;
}

/* Rank and alpha by patterns, rslora: every way to a scale. */
static void make_adapter(const fixture *f, const char *dir, const tess_peft_identity *identity)
{
    static const char *const names[] = {"q_proj", "down_proj", "up_proj"};
    static const tess_peft_pattern rank[] = {{"down_proj", 2.0}}, alpha[] = {{"up_proj", 12.0}};
    const tess_peft_options o = {.rank = 4,
                                 .alpha = 6.0,
                                 .use_rslora = true,
                                 .targets = {.name = names, .name_numel = 3},
                                 .rank_pattern = rank,
                                 .rank_pattern_numel = 1,
                                 .alpha_pattern = alpha,
                                 .alpha_pattern_numel = 1};
    tess_peft_spec *spec = NULL;
    tess_peft_writer *w = NULL;
    assert_ok(tess_peft_spec_create(&o, &spec));
    const tess_peft_content content = {
        .spec = spec, .adapter = layers, .adapter_numel = 3, .dt = TESS_F32, .identity = *identity};
    assert_ok(tess_peft_writer_create(f->io, dir, &content, &w));
    for (int k = 0; k < 3; k++) {
        for (int part = 0; part < 2; part++) {
            const int64_t side = part == 0 ? layers[k].in_numel : layers[k].out_numel;
            for (int64_t i = 0; i < side * layers[k].rank; i++) {
                const float x = element(k, part, i);
                assert_ok(tess_peft_writer_append(w, k, part == 0 ? TESS_PEFT_A : TESS_PEFT_B, &x,
                                                  sizeof x));
            }
        }
    }
    assert_ok(tess_peft_writer_finish(w));
    tess_peft_writer_destroy(&w);
    tess_peft_spec_destroy(&spec);
}

/* f32 values of a tensor of a model. */
static void read_values(const fixture *f, const char *model, const char *name, float *value)
{
    const tess_ctx ctx = ctx_of(f);
    tess_model_dir *dir = NULL;
    tess_stored s = {0};
    assert_ok(tess_model_dir_open(&ctx, model, &dir));
    const tess_model_tensor *t = tess_model_dir_find(dir, name);
    assert_non_null(t);
    assert_true(t->st->numel <= WEIGHT_MAX);
    assert_ok(tess_stored_read(&s, dir, t));
    assert_ok(tess_stored_decode_all(&s, NULL, value));
    tess_stored_fini(&s);
    tess_model_dir_close(&dir);
}

/* Merged f32 weights of all adapted layers against fp64, from weights of `base`. */
static void expect_merged(const fixture *f, const char *merged, const char *base)
{
    static const double scale[] = {6.0 / 2.0, 6.0 / 1.4142135623730951, 12.0 / 2.0};
    static float w[WEIGHT_MAX], z[WEIGHT_MAX];
    for (int k = 0; k < 3; k++) {
        const tess_peft_adapter *a = &layers[k];
        char name[128];
        snprintf(name, sizeof name, "%s.weight", a->path);
        read_values(f, base, name, w);
        read_values(f, merged, name, z);
        for (int64_t i = 0; i < a->out_numel * a->in_numel; i++) {
            const int64_t row = i / a->in_numel, col = i % a->in_numel;
            double sum = 0.0, magnitude = fabs((double)w[i]);
            for (int64_t r = 0; r < a->rank; r++) {
                const double term = (double)element(k, 1, row * a->rank + r) *
                                    (double)element(k, 0, r * a->in_numel + col) * scale[k];
                sum += term;
                magnitude += fabs(term);
            }
            /* rank products and additions, the scale, its own rounding, and the last sum */
            const double allowed = magnitude * (double)(2 * a->rank + 3) * 0x1p-24;
            if (fabs((double)z[i] - (double)w[i] - sum) > allowed)
                fail_msg("'%s' %d: %.9g, expected %.9g", name, (int)i, (double)z[i],
                         (double)w[i] + sum);
        }
    }
}

static void expect_equal(const fixture *f, const char *a, const char *b, const char *name)
{
    static float x[WEIGHT_MAX], y[WEIGHT_MAX];
    read_values(f, a, name, x);
    read_values(f, b, name, y);
    assert_memory_equal(x, y, sizeof x);
}

static tess_merge_options merge_of(const char *model, const char *adapter, const char *output)
{
    return (tess_merge_options){.model = model,
                                .adapter = adapter,
                                .output = output,
                                .dt = TESS_F32,
                                .storage = TESS_U8,
                                .shard_nbytes = INT64_C(1) << 40,
                                .thread_numel = 1};
}

/* ---- which weights ---- */

static void test_merge_unstated_base_as_stored(void **state)
{
    const fixture *f = *state;
    const tess_ctx ctx = ctx_of(f);
    char adapter[256], output[2][256];
    tess_merge_result r;
    snprintf(adapter, sizeof adapter, "%s/adapter", f->dir);
    make_adapter(f, adapter, &(tess_peft_identity){0});
    for (int i = 0; i < 2; i++) { /* any number of threads */
        snprintf(output[i], sizeof output[i], "%s/merged-%d", f->dir, i);
        tess_merge_options o = merge_of(BNB "plain", adapter, output[i]);
        o.thread_numel = 1 + 2 * i;
        assert_ok(tess_merge_model(&ctx, &o, &r));
        assert_int_equal(r.row_numel, 3);
        for (int64_t k = 0; k < 3; k++)
            assert_true(fabs(r.row[k].survival.survived - 1.0) < 1e-6);
        tess_merge_result_fini(&r);
    }
    expect_merged(f, output[0], BNB "plain");
    expect_equal(f, output[0], BNB "plain", "model.layers.0.self_attn.k_proj.weight");
    expect_equal(f, output[0], BNB "plain", "model.norm.weight");
    assert_int_equal(shell(f, "cmp merged-0/model.safetensors merged-1/model.safetensors"), 0);
}

/* The identity of the golden model in a format, as a run over it would state it. */
static void identify(const fixture *f, const char *key, bool is_double,
                     char id[TESS_SHA256_HEX_NBYTES])
{
    const tess_ctx ctx = ctx_of(f);
    const char *const both[] = {key,
                                is_double ? "base.double_quant=true" : "base.double_quant=false"};
    char output[256];
    keys k = keys_of(both, 2);
    tess_quantize_result r;
    snprintf(output, sizeof output, "%s/identified", f->dir);
    tess_quantize_options o = quantize_of(&k, BNB "plain", output);
    assert_ok(tess_quantize_model(&ctx, &o, &r));
    snprintf(id, TESS_SHA256_HEX_NBYTES, "%s", r.base_id);
    tess_quantize_result_fini(&r);
    assert_int_equal(shell(f, "rm -r identified"), 0);
}

/* The base is given as bf16 and as nf4: the weights the adapter saw are the same. */
static void test_merge_trained_over_nf4(void **state)
{
    static const char *const models[] = {BNB "plain", BNB "nf4"};
    const fixture *f = *state;
    const tess_ctx ctx = ctx_of(f);
    char adapter[256], id[TESS_SHA256_HEX_NBYTES];
    tess_merge_result r;
    identify(f, "base.format=nf4", false, id);
    snprintf(adapter, sizeof adapter, "%s/adapter", f->dir);
    make_adapter(f, adapter, &(tess_peft_identity){.base_quant = "nf4/64", .base_id = id});
    for (int i = 0; i < 2; i++) {
        char output[256];
        snprintf(output, sizeof output, "%s/merged-%d", f->dir, i);
        const tess_merge_options o = merge_of(models[i], adapter, output);
        assert_ok(tess_merge_model(&ctx, &o, &r));
        assert_string_equal(r.merged_id, id);
        assert_string_equal(r.merged_quant, "nf4/64");
        tess_merge_result_fini(&r);
        expect_merged(f, output, BNB "nf4");
        expect_equal(f, output, BNB "nf4", "model.layers.0.self_attn.k_proj.weight");
    }
    assert_int_equal(shell(f, "cmp merged-0/model.safetensors merged-1/model.safetensors"), 0);
}

static void test_merge_other_base_refused(void **state)
{
    const fixture *f = *state;
    const tess_ctx ctx = ctx_of(f);
    char adapter[256], output[256], id[2][TESS_SHA256_HEX_NBYTES], short_id[2][17];
    tess_merge_result r;
    tess_io_kind kind = TESS_IO_DIR;
    int64_t nbytes = 0;
    identify(f, "base.format=fp4", false, id[0]);
    identify(f, "base.format=nf4", false, id[1]);
    for (int i = 0; i < 2; i++)
        snprintf(short_id[i], sizeof short_id[i], "%.16s", id[i]);
    snprintf(adapter, sizeof adapter, "%s/adapter", f->dir);
    snprintf(output, sizeof output, "%s/merged", f->dir);
    make_adapter(f, adapter, &(tess_peft_identity){.base_quant = "nf4/64", .base_id = id[0]});
    tess_merge_options o = merge_of(BNB "plain", adapter, output);
    assert_refused(tess_merge_model(&ctx, &o, &r), TESS_E_CONFIG, short_id[0], short_id[1],
                   "--allow-base-change");
    assert_ok(tess_io_stat(f->io, output, &kind, &nbytes));
    assert_int_equal(kind, TESS_IO_MISSING);
    o.allow_base_change = true;
    assert_ok(tess_merge_model(&ctx, &o, &r));
    assert_string_equal(r.trained_id, id[0]);
    assert_string_equal(r.merged_id, id[1]);
    tess_safetensors *file = NULL; /* both are recorded */
    char path[300];
    snprintf(path, sizeof path, "%s/model.safetensors", output);
    assert_ok(tess_safetensors_open(f->io, path, &file));
    assert_string_equal(tess_safetensors_metadata(file, "merge.trained.identity"), id[0]);
    assert_string_equal(tess_safetensors_metadata(file, "merge.base.identity"), id[1]);
    assert_string_equal(tess_safetensors_metadata(file, "base.identity"), r.base_id);
    tess_safetensors_close(&file);
    tess_merge_result_fini(&r);
    expect_merged(f, output, BNB "nf4");
    /* on request into the weights as they lie there */
    snprintf(output, sizeof output, "%s/original", f->dir);
    o.allow_base_change = false;
    o.is_original = true;
    assert_ok(tess_merge_model(&ctx, &o, &r));
    tess_merge_result_fini(&r);
    expect_merged(f, output, BNB "plain");
}

/* A run's overrides are part of its base: with them the identity is the same again. */
static void test_merge_base_overrides_restated(void **state)
{
    static const tess_rewrite_rule rule = {".*\\.up_proj\\.weight", "bf16"};
    static const char *const key[] = {"base.format=nf4", "base.double_quant=false"};
    const fixture *f = *state;
    const tess_ctx ctx = ctx_of(f);
    char adapter[256], output[256], base[256];
    keys k = keys_of(key, 2);
    tess_quantize_result q;
    tess_merge_result r;
    snprintf(base, sizeof base, "%s/base", f->dir);
    snprintf(adapter, sizeof adapter, "%s/adapter", f->dir);
    snprintf(output, sizeof output, "%s/merged", f->dir);
    tess_quantize_options o = quantize_of(&k, BNB "plain", base);
    o.choice.rule = &rule;
    o.choice.rule_numel = 1;
    assert_ok(tess_quantize_model(&ctx, &o, &q));
    make_adapter(f, adapter, &(tess_peft_identity){.base_quant = "nf4/64", .base_id = q.base_id});
    tess_merge_options m = merge_of(BNB "plain", adapter, output);
    assert_refused(tess_merge_model(&ctx, &m, &r), TESS_E_CONFIG, "--base-override");
    m.rule = &rule;
    m.rule_numel = 1;
    assert_ok(tess_merge_model(&ctx, &m, &r));
    tess_merge_result_fini(&r);
    tess_quantize_result_fini(&q);
    expect_merged(f, output, base);
}

/* ---- into a quantized format ---- */

/* Encoding decoded weights again would change their scales, which are in 8 bits. */
static void test_merge_into_keeps_other_codes(void **state)
{
    static const char *const key[] = {"base.format=nf4", "base.double_quant=true"};
    static float q[WEIGHT_MAX], z[WEIGHT_MAX];
    const fixture *f = *state;
    const tess_ctx ctx = ctx_of(f);
    char adapter[256], output[256], id[TESS_SHA256_HEX_NBYTES];
    keys k = keys_of(key, 2);
    tess_merge_result r;
    identify(f, "base.format=nf4", true, id);
    snprintf(adapter, sizeof adapter, "%s/adapter", f->dir);
    snprintf(output, sizeof output, "%s/merged", f->dir);
    make_adapter(f, adapter, &(tess_peft_identity){.base_quant = "nf4/64/double", .base_id = id});
    tess_merge_options o = merge_of(BNB "plain", adapter, output);
    k.choice.key = k.override;
    o.into = &k.choice;
    assert_ok(tess_merge_model(&ctx, &o, &r));
    assert_string_equal(r.quant, "nf4/64/double");
    expect_equal(f, output, BNB "double_uint8", "model.layers.0.self_attn.k_proj.weight");
    expect_equal(f, output, BNB "double_uint8", "model.layers.0.mlp.gate_proj.weight");
    for (int64_t i = 0; i < r.row_numel; i++) {
        assert_string_equal(r.row[i].to, "nf4/64/double");
        assert_true(r.row[i].survival.survived > 0.0 && r.row[i].survival.noise > 0.01);
        read_values(f, BNB "double_uint8", r.row[i].name, q);
        read_values(f, output, r.row[i].name, z);
        assert_true(memcmp(q, z, sizeof q) != 0);
    }
    tess_merge_result_fini(&r);
}

/* ---- magnitudes, and modules trained whole ---- */

static void make_dora(const fixture *f, const char *dir)
{
    static const char *const names[] = {"q_proj"}, *const saved_names[] = {"model.norm"};
    static const tess_peft_saved saved = {"model.norm.weight", 1, {48}};
    const tess_peft_options o = {.rank = 4,
                                 .alpha = 6.0,
                                 .use_dora = true,
                                 .targets = {.name = names, .name_numel = 1},
                                 .saved = saved_names,
                                 .saved_numel = 1};
    tess_peft_spec *spec = NULL;
    tess_peft_writer *w = NULL;
    assert_ok(tess_peft_spec_create(&o, &spec));
    const tess_peft_content content = {.spec = spec,
                                       .adapter = layers,
                                       .adapter_numel = 1,
                                       .saved = &saved,
                                       .saved_numel = 1,
                                       .dt = TESS_F32};
    assert_ok(tess_peft_writer_create(f->io, dir, &content, &w));
    for (int part = 0; part < 2; part++)
        for (int64_t i = 0; i < 48 * 4; i++) {
            const float x = element(0, part, i);
            assert_ok(
                tess_peft_writer_append(w, 0, part == 0 ? TESS_PEFT_A : TESS_PEFT_B, &x, sizeof x));
        }
    for (int64_t i = 0; i < 48; i++) {
        const float m = 1.0F + (float)i / 64.0F;
        assert_ok(tess_peft_writer_append(w, 0, TESS_PEFT_MAGNITUDE, &m, sizeof m));
        assert_ok(tess_peft_writer_append_saved(w, 0, &m, sizeof m));
    }
    assert_ok(tess_peft_writer_finish(w));
    tess_peft_writer_destroy(&w);
    tess_peft_spec_destroy(&spec);
}

static void expect_dora_row(const float *w, const float *z, int64_t row)
{
    double sum[48], magnitude[48], square = 0.0;
    for (int64_t col = 0; col < 48; col++) {
        sum[col] = (double)w[col];
        magnitude[col] = fabs((double)w[col]);
        for (int64_t r = 0; r < 4; r++) {
            const double term = (double)element(0, 1, row * 4 + r) *
                                (double)element(0, 0, r * 48 + col) * 6.0 / 4.0;
            sum[col] += term;
            magnitude[col] += fabs(term);
        }
        square += sum[col] * sum[col];
    }
    const double factor = (1.0 + (double)row / 64.0) / sqrt(square);
    for (int64_t col = 0; col < 48; col++)
        /* the sum as in expect_merged, its part in the norm, the factor and the product */
        assert_true(fabs((double)z[col] - factor * sum[col]) <=
                    factor * (magnitude[col] + fabs(sum[col])) * (2 * 4 + 5) * 0x1p-24);
}

static void test_merge_dora_and_saved(void **state)
{
    static float w[WEIGHT_MAX], z[WEIGHT_MAX];
    const fixture *f = *state;
    const tess_ctx ctx = ctx_of(f);
    char adapter[256], output[256];
    tess_merge_result r;
    snprintf(adapter, sizeof adapter, "%s/adapter", f->dir);
    snprintf(output, sizeof output, "%s/merged", f->dir);
    make_dora(f, adapter);
    const tess_merge_options o = merge_of(BNB "plain", adapter, output);
    assert_ok(tess_merge_model(&ctx, &o, &r));
    assert_int_equal(r.row_numel, 2);
    for (int64_t i = 0; i < 2; i++)
        assert_int_equal(r.row[i].rank, strcmp(r.row[i].name, "model.norm.weight") == 0 ? 0 : 4);
    tess_merge_result_fini(&r);
    read_values(f, BNB "plain", "model.layers.0.self_attn.q_proj.weight", w);
    read_values(f, output, "model.layers.0.self_attn.q_proj.weight", z);
    for (int64_t row = 0; row < 48; row++)
        expect_dora_row(w + row * 48, z + row * 48, row);
    read_values(f, output, "model.norm.weight", z);
    for (int64_t i = 0; i < 48; i++)
        assert_true(z[i] == 1.0F + (float)i / 64.0F);
    expect_equal(f, output, BNB "plain", "model.layers.0.self_attn.k_proj.weight");
}

/* ---- refusals ---- */

static void test_merge_bad_adapters_refused(void **state)
{
    static const struct {
        const char *script; /* changes the adapter or the base */
        tess_status st;
        const char *text[2];
    } cases[] = {
        {"sed -i 's/\"num_hidden_layers\": 1/\"num_hidden_layers\": 2/' base/config.json",
         TESS_E_FORMAT,
         {"layers.1", "missing"}},
        {"sed -i 's/mlp.up_proj/mlp.xy_proj/g' adapter/adapter_model.safetensors && sed -i "
         "'s/up_proj/xy_proj/g' adapter/adapter_config.json",
         TESS_E_FORMAT,
         {"xy_proj", "no linear layer"}},
        {"sed -i 's/\"use_dora\": false/\"use_dora\": true/' adapter/adapter_config.json",
         TESS_E_FORMAT,
         {"lora_magnitude_vector", "adapter_model.safetensors"}},
        {"sed -i 's/\"modules_to_save\": null/\"modules_to_save\": [\"model.norm\"]/' "
         "adapter/adapter_config.json",
         TESS_E_FORMAT,
         {"model.norm.weight", "found nothing"}},
        {"sed -i 's/\"modules_to_save\": null/\"modules_to_save\": [\"embed_tokens\"]/' "
         "adapter/adapter_config.json",
         TESS_E_UNSUPPORTED,
         {"model.embed_tokens.weight", "ties"}},
        {"rm adapter/adapter_config.json", TESS_E_IO, {"adapter_config.json", "failed"}},
    };
    const fixture *f = *state;
    const tess_ctx ctx = ctx_of(f);
    char adapter[256], output[256], base[256];
    tess_merge_result r;
    snprintf(adapter, sizeof adapter, "%s/adapter", f->dir);
    snprintf(output, sizeof output, "%s/merged", f->dir);
    snprintf(base, sizeof base, "%s/base", f->dir);
    for (int i = 0; i < TESS_NELEM(cases); i++) {
        assert_int_equal(shell(f, "rm -rf ./* && cp -r " BNB "plain base"), 0);
        make_adapter(f, adapter, &(tess_peft_identity){0});
        assert_int_equal(shell(f, cases[i].script), 0);
        const tess_merge_options o = merge_of(base, adapter, output);
        assert_refused(tess_merge_model(&ctx, &o, &r), cases[i].st, cases[i].text[0],
                       cases[i].text[1]);
        assert_int_equal(shell(f, "test ! -e merged && test ! -e merged.tessera-tmp"), 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_measure_table_of_formats),
        cmocka_unit_test(test_measure_zero_delta_is_whole),
        folder_test(test_merge_unstated_base_as_stored),
        folder_test(test_merge_trained_over_nf4),
        folder_test(test_merge_other_base_refused),
        folder_test(test_merge_base_overrides_restated),
        folder_test(test_merge_into_keeps_other_codes),
        folder_test(test_merge_dora_and_saved),
        folder_test(test_merge_bad_adapters_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
