/* Scalar and latent quantizers: worked examples, gradients against finite differences in fp64, the
 * same bits on every instruction path and number of threads. */
#include <stdlib.h>

#include "kernels/quantizer_priv.h"
#include "kernels/quantizer_vector.h"
#include "tests/kernels/op_support.h"

enum { ROWS = 61 };

static tess_view view_of(const float *x, int64_t numel)
{
    return tess_view_host((void *)(uintptr_t)x, numel, TESS_F32);
}

static void quantize(tess_level_rule rule, const int32_t *levels, int64_t dim, const float *x,
                     float *out, uint32_t *index)
{
    tess_stream s = inline_stream();
    const tess_quantizer_level_args a = {.levels = {.levels = levels, .dim = dim, .rule = rule},
                                         .x = view_of(x, dim),
                                         .row_numel = 1,
                                         .out = view_of(out, dim),
                                         .index = index};
    assert_done(tess_cpu_quantizer_level(&a, &s));
}

static void assert_codes(const float *got, const double *want, int64_t numel, double tolerance)
{
    for (int64_t i = 0; i < numel; i++)
        if (!(fabs((double)got[i] - want[i]) <= tolerance))
            fail_msg("code %" PRId64 ": got %.9g, want %.9g", i, (double)got[i], want[i]);
}

/* ---- worked examples ---- */

static void test_published_indices(void **state)
{
    (void)state;
    static const int32_t levels[] = {8, 5, 5, 5}, three[] = {3, 5, 4};
    static const float x[4][4] = {{0, 0, 0, 0},
                                  {0.25f, -0.5f, 1.0f, -2.0f},
                                  {1000, 1000, 1000, 1000},
                                  {-1000, -1000, -1000, -1000}};
    static const double codes[4][4] = {
        {0, 0, 0, 0}, {0.25, -0.5, 1, -1}, {0.75, 1, 1, 1}, {-1, -1, -1, -1}};
    static const uint32_t want[] = {500, 173, 999, 0};
    for (int rule = TESS_LEVEL_UPPER; rule <= TESS_LEVEL_LOWER; rule++) {
        float out[4];
        uint32_t index = 0;
        for (int i = 0; i < 4; i++) {
            quantize((tess_level_rule)rule, levels, 4, x[i], out, &index);
            assert_int_equal(index, want[i]);
            assert_codes(out, codes[i], 4, 0.0);
        }
        const float y[] = {0.25f, 0.6f, -7.0f};
        quantize((tess_level_rule)rule, three, 3, y, out, &index);
        assert_int_equal(index, 10);
    }
}

/* tanh(z + shift) half - off of the second example: the numbers the levels are rounded from. */
static void test_bounded_values(void **state)
{
    (void)state;
    static const int32_t levels[] = {8, 5, 5, 5};
    static const float x[] = {0.25f, -0.5f, 1.0f, -2.0f};
    static const double want[] = {0.812206, -0.925159, 1.524712, -1.929983};
    const tess_levels l = {.levels = levels, .dim = 4, .rule = TESS_LEVEL_UPPER};
    for (int j = 0; j < 4; j++) {
        const tess_level level = tess_level_make(&l, j);
        const float b = tess_tanh_f32(x[j] + level.shift).value * level.half - level.off;
        assert_true(fabs((double)b - want[j]) <= 0.5e-6 + 8 * F32_U * 4);
    }
}

static void test_rules_differ_where_published(void **state)
{
    (void)state;
    static const int32_t eight[] = {8}, five[] = {5}, four[] = {8, 5, 5, 5};
    float out[4];
    uint32_t index = 0;
    static const struct {
        tess_level_rule rule;
        float z;
        uint32_t level;
    } cases[] = {{TESS_LEVEL_UPPER, 0.15f, 5},
                 {TESS_LEVEL_LOWER, 0.15f, 4},
                 {TESS_LEVEL_UPPER, 1.14f, 7},
                 {TESS_LEVEL_LOWER, 1.14f, 6}};
    for (int i = 0; i < TESS_NELEM(cases); i++) {
        quantize(cases[i].rule, eight, 1, &cases[i].z, out, &index);
        assert_int_equal(index, cases[i].level);
    }
    static const float x[] = {0.25f, -0.5f, 1.0f, -2.0f};
    static const double codes[] = {0.142857, -0.5, 1.0, -1.0};
    quantize(TESS_LEVEL_SYMMETRIC, four, 4, x, out, &index);
    assert_int_equal(index, 172);
    assert_codes(out, codes, 4, 0.5e-6);
    /* half goes up on both sides: floor(x + 1/2) */
    static const float half[] = {0.25f, -0.25f};
    quantize(TESS_LEVEL_CLAMPED, five, 1, &half[0], out, &index);
    assert_true(index == 3 && out[0] == 0.5f);
    quantize(TESS_LEVEL_CLAMPED, five, 1, &half[1], out, &index);
    assert_true(index == 2 && out[0] == 0.0f);
}

static void test_residual_example(void **state)
{
    (void)state;
    enum { DIM = 2, LAYERS = 3 };
    static const int32_t levels[] = {5, 5};
    static const float x[] = {0.3f, -0.7f};
    static const double clamped[] = {0.294370, -0.634972};
    static const double codes[LAYERS][DIM] = {{0.5, -0.5}, {-0.2, -0.1}, {0.0, -0.04}};
    static const double sums[] = {0.3, -0.64};
    static const uint32_t want[] = {8, 5, 2};
    float r[DIM], q[DIM], sum[DIM] = {0}, scale[DIM] = {1.0f, 1.0f};
    uint32_t index = 0;
    tess_stream s = inline_stream();
    const tess_quantizer_soft_clamp_args clamp = {
        .levels = levels, .row_numel = 1, .dim = DIM, .x = view_of(x, DIM), .y = r};
    assert_done(tess_cpu_quantizer_soft_clamp(&clamp, &s));
    assert_codes(r, clamped, DIM, 0.5e-6 + 8 * F32_U);
    for (int i = 0; i < LAYERS; i++) {
        const tess_quantizer_level_args a = {
            .levels = {.levels = levels, .scale = scale, .dim = DIM, .rule = TESS_LEVEL_CLAMPED},
            .x = view_of(r, DIM),
            .row_numel = 1,
            .out = view_of(q, DIM),
            .index = &index};
        assert_done(tess_cpu_quantizer_level(&a, &s));
        assert_int_equal(index, want[i]);
        assert_codes(q, codes[i], DIM, 2 * F32_U);
        const tess_quantizer_residual_args next = {
            .rows = {q, NULL, 1, DIM, 1}, .r = r, .next = r, .sum = sum};
        assert_done(tess_cpu_quantizer_residual(&next, &s));
        scale[0] = scale[1] = scale[0] / 5.0f;
    }
    assert_codes(sum, sums, DIM, 4 * F32_U);
}

/* Every index is the index of its own codes, in each rule: indices above 256, which sums in bf16
 * cannot hold, are as good as others. */
static void test_codes_of_all_indices(void **state)
{
    (void)state;
    enum { DIM = 4, NUMEL = 7 * 8 * 5 * 6 };
    static const int32_t levels[] = {7, 8, 5, 6};
    uint32_t *index = must_alloc(NUMEL * sizeof *index), *again = must_alloc(NUMEL * sizeof *again);
    op_buffer codes = buffer_create(TESS_BF16, NUMEL * DIM, true);
    tess_stream s = inline_stream();
    for (uint32_t i = 0; i < NUMEL; i++)
        index[i] = i;
    for (int rule = TESS_LEVEL_UPPER; rule <= TESS_LEVEL_CLAMPED; rule++) {
        const tess_levels l = {.levels = levels, .dim = DIM, .rule = (tess_level_rule)rule};
        const tess_quantizer_level_decode_args d = {
            .levels = l, .index = index, .row_numel = NUMEL, .out = codes.view};
        assert_done(tess_cpu_quantizer_level_decode(&d, &s));
        assert_canaries(&codes);
        buffer_read(&codes);
        /* an input that is bounded to the code itself: the code is in the middle of its level */
        for (int64_t i = 0; i < NUMEL * DIM; i++) {
            const tess_level t = tess_level_make(&l, i % DIM);
            const double c = codes.value[i];
            double z = c;
            if (rule <= TESS_LEVEL_LOWER)
                z = atanh((c * (double)t.width + (double)t.off) / ((double)t.half * 1.01)) -
                    (double)t.shift;
            else if (rule == TESS_LEVEL_SYMMETRIC)
                z = atanh(c * 0.99);
            buffer_set(&codes, i, (float)z);
        }
        const tess_quantizer_level_args a = {
            .levels = l, .x = codes.view, .row_numel = NUMEL, .out = codes.view, .index = again};
        assert_done(tess_cpu_quantizer_level(&a, &s));
        assert_memory_equal(index, again, NUMEL * sizeof *index);
    }
    tess_free(index);
    tess_free(again);
    buffer_destroy(&codes);
}

/* ---- noise ---- */

static void test_noise_is_what_was_drawn(void **state)
{
    (void)state;
    static const int32_t levels[] = {5, 5};
    const float x[] = {0.1f, 2.0f, -2.0f, 0.3f};
    const float uniform[] = {0.2f, 0.75f, 0.4f, 0.75f, 0.5f, 0.0f, 0.0f, 0.5f};
    float out[4];
    uint32_t index[2];
    tess_stream s = inline_stream();
    tess_quantizer_level_args a = {
        .levels = {.levels = levels, .dim = 2, .rule = TESS_LEVEL_SYMMETRIC},
        .x = view_of(x, 4),
        .row_numel = 2,
        .out = view_of(out, 4),
        .index = index,
        .noise = 0.5,
        .uniform = uniform};
    assert_done(tess_cpu_quantizer_level(&a, &s));
    /* moved by 1/4; moved past 1 and clamped; kept, as 0.5 is not below p; moved by 0 */
    assert_true(out[0] == 0.25f && out[1] == 1.0f && out[2] == -1.0f && out[3] == 0.5f);
    assert_true(index[0] == 2 + 5 * 4 && index[1] == 0 + 5 * 3);
    /* draws of the counter do not depend on how rows are cut into calls */
    float parts[4];
    a.uniform = NULL;
    a.rng = tess_rng_make(5, TESS_RNG_TEST, 0, 0);
    assert_done(tess_cpu_quantizer_level(&a, &s));
    a.row_numel = 1;
    for (int row = 0; row < 2; row++) {
        a.x = view_of(x + 2 * row, 2);
        a.out = view_of(parts + 2 * row, 2);
        a.first_idx = 2 * row;
        assert_done(tess_cpu_quantizer_level(&a, &s));
    }
    assert_memory_equal(out, parts, sizeof out);
}

/* ---- gradients, paths, threads ---- */

typedef struct problem {
    op_buffer x, d_out, out, d_x;
    uint32_t *index, *first_index; /* of the first run */
    int64_t row_numel, dim;
    const int32_t *levels;
    const float *scale;
    tess_level_rule rule;
} problem;

static tess_levels levels_of(const problem *p)
{
    return (tess_levels){p->levels, p->scale, p->dim, p->rule};
}

static tess_status call_level(void *ctx, tess_stream *s)
{
    const problem *p = ctx;
    const tess_quantizer_level_args a = {.levels = levels_of(p),
                                         .x = p->x.view,
                                         .row_numel = p->row_numel,
                                         .out = p->out.view,
                                         .index = p->index};
    const tess_quantizer_level_backward_args b = {.levels = levels_of(p),
                                                  .x = p->x.view,
                                                  .d_out = p->d_out.view,
                                                  .row_numel = p->row_numel,
                                                  .d_x = p->d_x.view};
    TESS_TRY(tess_cpu_quantizer_level(&a, s));
    return tess_cpu_quantizer_level_backward(&b, s);
}

static tess_status call_clamp(void *ctx, tess_stream *s)
{
    const problem *p = ctx;
    const tess_quantizer_soft_clamp_args a = {.levels = p->levels,
                                              .row_numel = p->row_numel,
                                              .dim = p->dim,
                                              .x = p->x.view,
                                              .y = p->out.view.data};
    const tess_quantizer_soft_clamp_backward_args b = {.levels = p->levels,
                                                       .row_numel = p->row_numel,
                                                       .dim = p->dim,
                                                       .x = p->x.view,
                                                       .d_y = p->d_out.view.data,
                                                       .d_x = p->d_x.view};
    TESS_TRY(tess_cpu_quantizer_soft_clamp(&a, s));
    return tess_cpu_quantizer_soft_clamp_backward(&b, s);
}

/* What the rule rounds, as a function of z. */
static double ref_bounded(const problem *p, int64_t j, double x)
{
    const double numel = (double)p->levels[j], scale = p->scale != NULL ? (double)p->scale[j] : 1;
    const double z = x / scale, off = p->levels[j] % 2 == 0 ? 0.5 : 0.0;
    const double half = (numel - 1) * (p->rule == TESS_LEVEL_LOWER ? 0.999 : 1.001) / 2;
    const double shift = p->rule == TESS_LEVEL_LOWER ? tan(off / half) : atanh(off / half);
    switch (p->rule) {
    case TESS_LEVEL_UPPER:
    case TESS_LEVEL_LOWER:
        return (tanh(z + shift) * half - off) / floor(numel / 2) * scale;
    case TESS_LEVEL_SYMMETRIC:
        return tanh(z) * scale;
    case TESS_LEVEL_CLAMPED:
        break;
    }
    return fmin(1.0, fmax(-1.0, z)) * scale;
}

#define STEP 0x1p-12

static void check_level(void *ctx)
{
    problem *p = ctx;
    double *want = doubles(p->row_numel * p->dim);
    for (int64_t i = 0; i < p->row_numel * p->dim; i++) {
        const double x = p->x.value[i], above = ref_bounded(p, i % p->dim, x + STEP);
        want[i] = p->d_out.value[i] * (above - ref_bounded(p, i % p->dim, x - STEP)) / (2 * STEP);
    }
    /* the derivative's slope is at most 5 / scale^2, h^2 / 6 of it 1e-6; products of a few f32 */
    assert_close("d_x", &p->d_x, want, 1e-6 * largest(p->d_out.value, p->row_numel * p->dim) * 25,
                 16 * F32_U + (p->d_x.view.dt == TESS_BF16 ? BF16_U : 0.0));
    tess_free(want);
    if (p->first_index[0] == UINT32_MAX)
        memcpy(p->first_index, p->index, (size_t)p->row_numel * sizeof *p->index);
    assert_memory_equal(p->first_index, p->index, (size_t)p->row_numel * sizeof *p->index);
}

static void check_clamp(void *ctx)
{
    problem *p = ctx;
    double *want = doubles(p->row_numel * p->dim), *y = doubles(p->row_numel * p->dim);
    for (int64_t i = 0; i < p->row_numel * p->dim; i++) {
        const double c = 1.0 + 1.0 / (p->levels[i % p->dim] - 1), x = p->x.value[i];
        y[i] = c * tanh(x / c);
        want[i] =
            p->d_out.value[i] * c * (tanh((x + STEP) / c) - tanh((x - STEP) / c)) / (2 * STEP);
    }
    /* tanh within 4 ulp, a quotient and a product; so small numbers are as exact as large ones */
    assert_close("y", &p->out, y, 0.0, 12 * F32_U);
    assert_close("d_x", &p->d_x, want, 1e-7, 16 * F32_U + unit_of(p->d_x.view.dt));
    tess_free(want);
    tess_free(y);
}

static void run_rule(tess_level_rule rule, tess_dtype dt, int64_t row_numel, const float *scale)
{
    static const int32_t levels[] = {8, 5, 3, 4, 7};
    enum { DIM = 5 };
    problem p = {.x = buffer_random(dt, row_numel * DIM, 21, 0.7),
                 .d_out = buffer_random(dt, row_numel * DIM, 22, 1.0),
                 .out = buffer_create(dt, row_numel * DIM, true),
                 .d_x = buffer_create(dt, row_numel * DIM, false),
                 .index = must_alloc((size_t)row_numel * sizeof(uint32_t)),
                 .first_index = must_alloc((size_t)row_numel * sizeof(uint32_t)),
                 .row_numel = row_numel,
                 .dim = DIM,
                 .levels = levels,
                 .scale = scale,
                 .rule = rule};
    for (int64_t i = 0; i < row_numel * DIM; i++) /* no clamp at a corner of the difference */
        if (fabs(fabs(p.x.value[i] / (scale != NULL ? (double)scale[i % DIM] : 1.0)) - 1) < 1e-2)
            buffer_set(&p.x, i, 0.125f);
    buffer_read(&p.x);
    p.first_index[0] = UINT32_MAX;
    op_run run = {.call = call_level, .ctx = &p, .outputs = {&p.out, &p.d_x}, .output_numel = 2};
    run_everywhere(&run, check_level);
    if (dt == TESS_F32) {
        run.call = call_clamp;
        run_everywhere(&run, check_clamp);
    }
    op_buffer *all[] = {&p.x, &p.d_out, &p.out, &p.d_x};
    for (int i = 0; i < TESS_NELEM(all); i++)
        buffer_destroy(all[i]);
    tess_free(p.index);
    tess_free(p.first_index);
}

static void test_gradients_on_every_path(void **state)
{
    (void)state;
    static const float scale[] = {0.2f, 0.5f, 1.0f, 0.25f, 0.7f};
    for (int rule = TESS_LEVEL_UPPER; rule <= TESS_LEVEL_CLAMPED; rule++) {
        run_rule((tess_level_rule)rule, TESS_F32, ROWS, NULL);
        run_rule((tess_level_rule)rule, TESS_F32, ROWS, scale);
        run_rule((tess_level_rule)rule, TESS_BF16, 5003, NULL);
    }
}

/* tanh against the library's, and its slope against 1 - tanh^2 in fp64, over all sizes. */
static void test_tanh(void **state)
{
    (void)state;
    for (int i = -4000; i <= 4000; i++) {
        const float x = ldexpf((float)(i < 0 ? -1 : 1), abs(i) / 100 - 30) *
                        (1.0f + (float)(abs(i) % 100) / 100.0f);
        const double want = tanh((double)x), e = exp(-2.0 * fabs((double)x));
        const tess_tanh got = tess_tanh_f32(x);
        assert_true(fabs((double)got.value - want) <= 8 * F32_U * fabs(want));
        const double slope = 4 * e / ((1 + e) * (1 + e));
        /* results below the smallest normal number are 0 */
        assert_true(fabs((double)got.slope - slope) <= 16 * F32_U * slope + 1e-37);
    }
    assert_true(tess_tanh_f32(NAN).value != tess_tanh_f32(NAN).value);
    assert_true(tess_tanh_f32(INFINITY).value == 1.0f && tess_tanh_f32(-INFINITY).value == -1.0f);
}

/* A NaN has no level: its vector has no index, and the NaN shows. */
static void test_nan_has_no_index(void **state)
{
    (void)state;
    static const int32_t levels[] = {5, 5};
    const float x[] = {0.5f, NAN};
    float out[2];
    uint32_t index = 0;
    for (int rule = TESS_LEVEL_UPPER; rule <= TESS_LEVEL_CLAMPED; rule++) {
        quantize((tess_level_rule)rule, levels, 2, x, out, &index);
        assert_true(index == TESS_NO_CODE && isfinite(out[0]) && isnan(out[1]));
    }
}

/* With 4001 levels half is 2002: numbers far out are the ends, on both sides, not past them. */
static void test_many_levels_saturate(void **state)
{
    (void)state;
    static const int32_t numel[] = {4001, 4000};
    const float x[] = {40.0f, -40.0f, INFINITY, -INFINITY};
    for (int rule = TESS_LEVEL_UPPER; rule <= TESS_LEVEL_CLAMPED; rule++)
        for (int i = 0; i < 2; i++)
            for (int k = 0; k < TESS_NELEM(x); k++) {
                float out = NAN;
                uint32_t index = 0;
                const int32_t half = numel[i] / 2, last = x[k] > 0.0f ? numel[i] - 1 : 0;
                /* google's half stays inside by 1e-3 of it: two levels */
                const uint32_t most = rule == TESS_LEVEL_LOWER ? 2 : 0;
                quantize((tess_level_rule)rule, &numel[i], 1, &x[k], &out, &index);
                assert_true((uint32_t)abs((int32_t)index - last) <= most);
                assert_true(rule > TESS_LEVEL_LOWER ||
                            out == (float)((int32_t)index - half) / (float)half);
            }
}

/* ---- lists of values ---- */

/* No code says nothing finite, and moves nothing. */
static void test_latents_of_nothing(void **state)
{
    (void)state;
    static const int32_t levels[] = {3, 2};
    const float value[] = {-0.5f, 0.0f, 0.5f, -0.5f, 0.0f}, x[] = {NAN, 0.1f};
    float out[2], again[2], d_value[5] = {0};
    uint32_t index = 0;
    tess_stream s = inline_stream();
    const tess_latents l = {value, levels, 2};
    const tess_quantizer_latent_args a = {l, x, 1, out, &index};
    assert_done(tess_cpu_quantizer_latent(&a, &s));
    assert_true(index == TESS_NO_CODE && isnan(out[0]));
    const tess_quantizer_latent_decode_args d = {l, &index, 1, again};
    assert_done(tess_cpu_quantizer_latent_decode(&d, &s));
    assert_true(isnan(again[0]) && isnan(again[1]));
    const tess_quantizer_latent_gradient_args g = {l, x, &index, 1, 2.0f, d_value};
    assert_done(tess_cpu_quantizer_latent_gradient(&g, &s));
    for (int i = 0; i < 5; i++)
        assert_true(d_value[i] == 0.0f);
}

static void test_latent_positions(void **state)
{
    (void)state;
    enum { DIM = 2, N = 4 };
    static const int32_t levels[] = {4, 3};
    /* dimension 0 has moved, out of order: an index formed from values would be wrong */
    const float value[] = {1.0f, -0.5f, 0.25f, 0.5f, -0.5f, 0.0f, 0.5f};
    const float x[N * DIM] = {0.8f, 0.25f, -2.0f, -0.3f, 0.375f, 0.1f, 0.75f, 0.5f};
    static const uint32_t want[N] = {0 + 4 * 1, 1 + 4 * 0, 2 + 4 * 1, 0 + 4 * 2};
    float out[N * DIM], again[N * DIM], d_value[7] = {0};
    uint32_t index[N];
    tess_stream s = inline_stream();
    const tess_latents l = {value, levels, DIM};
    const tess_quantizer_latent_args a = {l, x, N, out, index};
    assert_done(tess_cpu_quantizer_latent(&a, &s));
    assert_memory_equal(index, want, sizeof want); /* ties: the lower position */
    const tess_quantizer_latent_decode_args d = {l, index, N, again};
    assert_done(tess_cpu_quantizer_latent_decode(&d, &s));
    assert_memory_equal(out, again, sizeof out);
    const tess_quantizer_latent_gradient_args g = {l, x, index, N, 2.0f, d_value};
    assert_done(tess_cpu_quantizer_latent_gradient(&g, &s));
    const double gradient[] = {2 * (0.2 + 0.25),  2 * 1.5, 2 * (0.25 - 0.375), 0.0, 2 * (-0.2),
                               2 * (-0.25 - 0.1), 0.0};
    assert_codes(d_value, gradient, 7, 8 * F32_U * 4);
}

/* ---- refusals ---- */

static void test_wrong_arguments_are_refused(void **state)
{
    (void)state;
    static const int32_t two[] = {2, 3}, one[] = {1}, many[] = {65536, 65536};
    float x[2] = {0}, out[2];
    const uint32_t index = 6;
    tess_stream s = inline_stream();
    tess_quantizer_level_args a = {.levels = {.levels = two, .dim = 2},
                                   .x = view_of(x, 2),
                                   .row_numel = 1,
                                   .out = view_of(out, 2)};
    assert_refused(tess_quantizer_level_check(&a), TESS_E_RANGE,
                   "dimension 0 has 2 levels, which only the symmetric");
    a.levels.rule = TESS_LEVEL_SYMMETRIC;
    assert_int_equal(tess_quantizer_level_check(&a), TESS_OK);
    a.levels.levels = many;
    assert_refused(tess_quantizer_level_check(&a), TESS_E_RANGE, "product of levels reaches 2^32");
    a.levels = (tess_levels){.levels = one, .dim = 1};
    assert_refused(tess_quantizer_level_check(&a), TESS_E_RANGE, "has 1 levels");
    a.levels = (tess_levels){.levels = two + 1, .dim = 1};
    a.x = view_of(x, 1);
    a.out = tess_view_host(out, 1, TESS_I64);
    assert_refused(tess_quantizer_level_check(&a), TESS_E_DTYPE,
                   "quantizer level: out is i64, expected f32 or bf16");
    a.out = view_of(out, 1);
    a.noise = 0.5;
    assert_refused(tess_quantizer_level_check(&a), TESS_E_ARG, "noise needs the symmetric");
    const tess_quantizer_level_decode_args d = {
        .levels = {.levels = two, .dim = 2, .rule = TESS_LEVEL_SYMMETRIC},
        .index = &index,
        .row_numel = 1,
        .out = view_of(out, 2)};
    assert_refused(tess_cpu_quantizer_level_decode(&d, &s), TESS_E_RANGE,
                   "vector 0 has index 6, expected below 6");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_published_indices),
        cmocka_unit_test(test_bounded_values),
        cmocka_unit_test(test_rules_differ_where_published),
        cmocka_unit_test(test_residual_example),
        cmocka_unit_test(test_codes_of_all_indices),
        cmocka_unit_test(test_noise_is_what_was_drawn),
        cmocka_unit_test(test_gradients_on_every_path),
        cmocka_unit_test(test_tanh),
        cmocka_unit_test(test_nan_has_no_index),
        cmocka_unit_test(test_many_levels_saturate),
        cmocka_unit_test(test_latent_positions),
        cmocka_unit_test(test_latents_of_nothing),
        cmocka_unit_test(test_wrong_arguments_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
