/* Scalar, latent and binary quantizers against vector-quantize-pytorch, composed of this folder's
 * ops; binary spherical quantization against a model of it in float64. */
#include "kernels/codebook.h"
#include "kernels/quantizer_binary.h"
#include "kernels/quantizer_scalar.h"
#include "tests/kernels/quantizer_golden.h"

enum { N = 24, DIM_MAX = 6, ROUNDINGS = 16 };

/* Inputs of one case, and what ours makes of them. */
typedef struct scalar_run {
    const tess_golden *golden;
    char name[64], exact[64]; /* of the inputs; of what the peer made of them in f32 */
    tess_dtype dt;
    op_buffer x, g, out, d_x;
    uint32_t index[N];
    int64_t row_numel, dim;
} scalar_run;

static scalar_run run_begin(const tess_golden *golden, const char *base, tess_dtype dt, int64_t dim)
{
    scalar_run r = {.golden = golden, .dt = dt, .dim = dim};
    snprintf(r.name, sizeof r.name, "%s%s", base, dt == TESS_BF16 ? ".bf16" : "");
    snprintf(r.exact, sizeof r.exact, "%s%s", base, dt == TESS_BF16 ? ".f32" : "");
    r.x = buffer_golden(golden, r.name, "x", dt);
    r.g = buffer_golden(golden, r.name, "g", dt);
    r.row_numel = r.x.view.numel / dim;
    r.out = buffer_create(dt, r.x.view.numel, true);
    r.d_x = buffer_create(dt, r.x.view.numel, true);
    return r;
}

static void run_end(scalar_run *r)
{
    op_buffer *all[] = {&r->x, &r->g, &r->out, &r->d_x};
    for (int i = 0; i < TESS_NELEM(all); i++)
        buffer_destroy(all[i]);
}

/* Indices and codes: those of bf16 inputs are the peer's in both dtypes, as it quantizes in f32.
 * Straight-through, x + (q - x), costs it three roundings of numbers up to |x| + |q|. */
static void check_codes(scalar_run *r, const char *name, double unit)
{
    const int64_t *index = tensor_of(r->golden, name, "index", TESS_I64, NULL);
    const float *out = floats_of(r->golden, name, "out");
    assert_canaries(&r->out);
    buffer_read(&r->out);
    for (int64_t i = 0; i < r->row_numel; i++)
        assert_int_equal(r->index[i], index[i]);
    for (int64_t i = 0; i < r->out.view.numel; i++)
        assert_value(name, i, r->out.value[i], (double)out[i],
                     4 * unit * (fabs(r->x.value[i]) + fabs((double)out[i])) + 2 * F32_U);
}

/* Products of a few f32 factors of |g|, and of `more` for terms that are not g's. */
static void check_gradient(scalar_run *r, const char *name, double unit, double more)
{
    const float *d_x = floats_of(r->golden, name, "d_x");
    assert_canaries(&r->d_x);
    buffer_read(&r->d_x);
    for (int64_t i = 0; i < r->d_x.view.numel; i++)
        assert_value(name, i, r->d_x.value[i], (double)d_x[i],
                     ROUNDINGS * unit * fabs(r->g.value[i]) + more);
}

/* ---- levels ---- */

static void run_levels(const tess_golden *golden, const char *name, tess_levels levels,
                       tess_dtype dt)
{
    tess_stream s = inline_stream();
    scalar_run r = run_begin(golden, name, dt, levels.dim);
    const tess_quantizer_level_args a = {
        .levels = levels, .x = r.x.view, .row_numel = N, .out = r.out.view, .index = r.index};
    assert_done(tess_cpu_quantizer_level(&a, &s));
    const tess_quantizer_level_backward_args b = {
        .levels = levels, .x = r.x.view, .d_out = r.g.view, .row_numel = N, .d_x = r.d_x.view};
    assert_done(tess_cpu_quantizer_level_backward(&b, &s));
    check_codes(&r, r.name, unit_of(dt));
    check_gradient(&r, r.name, unit_of(dt), 0.0);
    run_end(&r);
}

static void test_levels(void **state)
{
    (void)state;
    static const int32_t four[] = {8, 5, 5, 5}, three[] = {7, 2, 4};
    const tess_levels upper = {.levels = four, .dim = 4, .rule = TESS_LEVEL_UPPER};
    const tess_levels symmetric = {.levels = three, .dim = 3, .rule = TESS_LEVEL_SYMMETRIC};
    tess_golden *golden = open_golden("scalar");
    for (int i = 0; i < 2; i++) {
        run_levels(golden, "upper", upper, i == 0 ? TESS_F32 : TESS_BF16);
        run_levels(golden, "symmetric", symmetric, i == 0 ? TESS_F32 : TESS_BF16);
    }
    tess_golden_close(&golden);
}

static void test_noise(void **state)
{
    (void)state;
    static const int32_t levels[] = {5, 4, 3};
    tess_golden *golden = open_golden("scalar");
    tess_stream s = inline_stream();
    op_buffer x = buffer_golden(golden, "noise", "x", TESS_F32);
    op_buffer out = buffer_create(TESS_F32, N * 3, true);
    uint32_t index[N];
    const tess_quantizer_level_args a = {
        .levels = {.levels = levels, .dim = 3, .rule = TESS_LEVEL_SYMMETRIC},
        .x = x.view,
        .row_numel = N,
        .out = out.view,
        .index = index,
        .noise = 0.5,
        .uniform = floats_of(golden, "noise", "uniform")};
    assert_done(tess_cpu_quantizer_level(&a, &s));
    buffer_read(&out);
    const int64_t *want = tensor_of(golden, "noise", "index", TESS_I64, NULL);
    const float *codes = floats_of(golden, "noise", "out");
    for (int i = 0; i < N; i++)
        assert_int_equal(index[i], want[i]);
    for (int i = 0; i < N * 3; i++) /* a bracket of up to 5 goes through the peer's estimator */
        assert_value("noise", i, out.value[i], (double)codes[i], 8 * F32_U * 5);
    buffer_destroy(&x);
    buffer_destroy(&out);
    tess_golden_close(&golden);
}

/* ---- residual levels ---- */

enum { LAYERS = 3 };

typedef struct level_stack {
    float r[LAYERS + 1][N * 3], q[N * 3], sum[N * 3], d_r[N * 3], scale[LAYERS][3];
    uint32_t index[LAYERS][N];
} level_stack;

static const int32_t stack_levels[] = {5, 4, 3};

static tess_levels layer_of(const level_stack *t, int layer)
{
    return (tess_levels){
        .levels = stack_levels, .scale = t->scale[layer], .dim = 3, .rule = TESS_LEVEL_CLAMPED};
}

static void stack_run(level_stack *t, scalar_run *r, tess_stream *s)
{
    const tess_quantizer_soft_clamp_args clamp = {
        .levels = stack_levels, .row_numel = N, .dim = 3, .x = r->x.view, .y = t->r[0]};
    assert_done(tess_cpu_quantizer_soft_clamp(&clamp, s));
    for (int i = 0; i < LAYERS; i++) {
        for (int j = 0; j < 3; j++)
            t->scale[i][j] = (float)pow(stack_levels[j], -i);
        const tess_quantizer_level_args a = {.levels = layer_of(t, i),
                                             .x = tess_view_host(t->r[i], N * 3, TESS_F32),
                                             .row_numel = N,
                                             .out = tess_view_host(t->q, N * 3, TESS_F32),
                                             .index = t->index[i]};
        assert_done(tess_cpu_quantizer_level(&a, s));
        const tess_quantizer_residual_args next = {
            .rows = {t->q, NULL, N, 3, N}, .r = t->r[i], .next = t->r[i + 1], .sum = t->sum};
        assert_done(tess_cpu_quantizer_residual(&next, s));
        const tess_quantizer_level_backward_args b = {.levels = layer_of(t, i),
                                                      .x = a.x,
                                                      .d_out = r->g.view,
                                                      .row_numel = N,
                                                      .d_x =
                                                          tess_view_host(t->d_r, N * 3, TESS_F32),
                                                      .accumulate = true};
        assert_done(tess_cpu_quantizer_level_backward(&b, s));
    }
    const tess_quantizer_soft_clamp_backward_args d = {.levels = stack_levels,
                                                       .row_numel = N,
                                                       .dim = 3,
                                                       .x = r->x.view,
                                                       .d_y = t->d_r,
                                                       .d_x = r->d_x.view};
    assert_done(tess_cpu_quantizer_soft_clamp_backward(&d, s));
}

/* With bf16 inputs the peer clamps and subtracts in bf16: its f32 run is the one to match. */
static void test_residual_levels(void **state)
{
    (void)state;
    tess_golden *golden = open_golden("scalar");
    tess_stream s = inline_stream();
    for (int k = 0; k < 2; k++) {
        level_stack *t = must_alloc(sizeof *t);
        memset(t, 0, sizeof *t);
        scalar_run r = run_begin(golden, "residual", k == 0 ? TESS_F32 : TESS_BF16, 3);
        stack_run(t, &r, &s);
        const int64_t *index = tensor_of(golden, r.exact, "index", TESS_I64, NULL);
        const float *out = floats_of(golden, r.exact, "out");
        for (int i = 0; i < N * LAYERS; i++)
            assert_int_equal(t->index[i % LAYERS][i / LAYERS], index[i]);
        for (int i = 0; i < N * 3; i++) /* three codes of at most 1, each from a bracket of 5 */
            assert_value("out", i, (double)t->sum[i], (double)out[i], LAYERS * 8 * F32_U * 5);
        buffer_read(&r.d_x);
        const float *d_x = floats_of(golden, r.exact, "d_x");
        for (int i = 0; i < N * 3; i++)
            assert_value("d_x", i, r.d_x.value[i], (double)d_x[i],
                         LAYERS * ROUNDINGS * F32_U * fabs(r.g.value[i]) +
                             (k == 1 ? BF16_U : 0.0) * fabs((double)d_x[i]));
        run_end(&r);
        tess_free(t);
    }
    tess_golden_close(&golden);
}

/* ---- lists of values ---- */

static const int32_t latent_levels[] = {4, 5, 3};

/* The peer's index is formed from values as if they had never moved: right for fresh values, wrong
 * afterwards. Ours is of positions, so it decodes to the output in both cases. */
static void test_latent_indices(void **state)
{
    (void)state;
    tess_golden *golden = open_golden("scalar");
    tess_stream s = inline_stream();
    float out[N * 3], decoded[N * 3];
    uint32_t index[N];
    static const char *const names[] = {"latent", "latent.fresh"};
    for (int k = 0; k < 2; k++) {
        const int64_t *peer = tensor_of(golden, names[k], "index", TESS_I64, NULL);
        const tess_latents l = {floats_of(golden, names[k], "values"), latent_levels, 3};
        const tess_quantizer_latent_args a = {l, floats_of(golden, names[k], "x"), N, out, index};
        assert_done(tess_cpu_quantizer_latent(&a, &s));
        const tess_quantizer_latent_decode_args d = {l, index, N, decoded};
        assert_done(tess_cpu_quantizer_latent_decode(&d, &s));
        assert_memory_equal(out, decoded, sizeof out);
        int differing = 0;
        for (int i = 0; i < N; i++)
            differing += index[i] != peer[i];
        assert_true(k == 0 ? differing > N / 2 : differing == 0);
    }
    tess_golden_close(&golden);
}

/* Loss 0.3 |z - sg(out)|^2 + 0.1 |sg(z) - out|^2, where out passes its gradient on to z: the second
 * term pushes z away from its value, so that the commitment is 2 (0.3 - 0.1) / (N dim). */
static void test_latent_gradients(void **state)
{
    (void)state;
    tess_golden *golden = open_golden("scalar");
    tess_stream s = inline_stream();
    for (int k = 0; k < 2; k++) {
        scalar_run r = run_begin(golden, "latent", k == 0 ? TESS_F32 : TESS_BF16, 3);
        float core[N * 3], out[N * 3], d_core[N * 3];
        double row_loss[N];
        const tess_quantizer_enter_args e = {.x = r.x.view, .row_numel = N, .dim = 3, .core = core};
        assert_done(tess_cpu_quantizer_enter(&e, &s));
        const tess_quantizer_latent_args a = {
            {floats_of(golden, "latent", "values"), latent_levels, 3}, core, N, out, r.index};
        assert_done(tess_cpu_quantizer_latent(&a, &s));
        const tess_coded_rows rows = {out, NULL, N, 3, N};
        const tess_quantizer_row_loss_args l = {.rows = rows, .x = core, .out = row_loss};
        assert_done(tess_cpu_quantizer_row_loss(&l, &s));
        const tess_quantizer_backward_args b = {.rows = rows,
                                                .x = core,
                                                .d_out = r.g.view,
                                                .estimator = TESS_ESTIMATOR_STRAIGHT,
                                                .commitment = (float)(2.0 * 0.2 / (N * 3)),
                                                .d_x = d_core};
        assert_done(tess_cpu_quantizer_backward(&b, &s));
        const tess_quantizer_enter_backward_args d = {
            .d_core = d_core, .row_numel = N, .dim = 3, .d_x = r.d_x.view};
        assert_done(tess_cpu_quantizer_enter_backward(&d, &s));
        const double loss = 0.4 * total_of(row_loss, N) / (N * 3);
        assert_value("loss", 0, loss, number_of(golden, r.exact, "loss"),
                     (ROUNDINGS + N * 3) * F32_U * loss);
        const float *peer = floats_of(golden, r.exact, "out");
        for (int i = 0; i < N * 3; i++)
            assert_value("out", i, (double)out[i], (double)peer[i],
                         4 * F32_U * (fabs((double)core[i]) + fabs((double)out[i])));
        check_gradient(&r, r.exact, F32_U, 0.0 + (k == 1 ? BF16_U * 4 : ROUNDINGS * F32_U));
        run_end(&r);
    }
    tess_golden_close(&golden);
}

/* ---- bits ---- */

typedef struct bits_case {
    const char *name;
    int64_t dim, group; /* bits, and of them in one group */
    double beta, commitment, entropy, gamma, least;
    float length, magnitude; /* length 0: rows as they are */
} bits_case;

typedef struct bits_run {
    scalar_run r;
    const bits_case *c;
    uint8_t valid[N];
    int64_t valid_numel;
    float core[N * DIM_MAX], norm[N], d_core[N * DIM_MAX];
    double commitment, per_sample, batch;
} bits_run;

static tess_sign_rows rows_of(const bits_run *b, int64_t first, int64_t dim)
{
    return (tess_sign_rows){.x = b->core + first,
                            .valid = b->valid,
                            .row_numel = N,
                            .dim = dim,
                            .stride = b->c->dim,
                            .magnitude = b->c->magnitude};
}

static void bits_forward(bits_run *b, tess_stream *s)
{
    const bits_case *c = b->c;
    double loss[N], entropy[N];
    const tess_quantizer_enter_args e = {.x = b->r.x.view,
                                         .row_numel = N,
                                         .dim = c->dim,
                                         .length = c->length,
                                         .least = 1e-12f,
                                         .core = b->core,
                                         .norm = b->norm};
    assert_done(tess_cpu_quantizer_enter(&e, s));
    const tess_quantizer_sign_args a = {
        .rows = rows_of(b, 0, c->dim), .out = b->r.out.view, .index = b->r.index};
    assert_done(tess_cpu_quantizer_sign(&a, s));
    const tess_quantizer_sign_loss_args l = {
        .rows = a.rows, .beta = c->beta, .loss = loss, .entropy = entropy};
    assert_done(tess_cpu_quantizer_sign_loss(&l, s));
    b->commitment = total_of(loss, N) / (double)b->valid_numel;
    b->per_sample = total_of(entropy, N) / (double)b->valid_numel;
    const tess_quantizer_sign_backward_args d = {
        .rows = a.rows,
        .d_out = b->r.g.view,
        .beta = c->beta,
        .commitment = (float)(2.0 * c->commitment / (double)b->valid_numel),
        .entropy = c->entropy / (double)b->valid_numel,
        .d_x = b->d_core};
    assert_done(tess_cpu_quantizer_sign_backward(&d, s));
}

/* The batch entropy of each group, as two micro-batches. */
static void bits_batch(bits_run *b, tess_stream *s)
{
    const bits_case *c = b->c;
    const int64_t code_numel = INT64_C(1) << c->group;
    const int exponent = tess_fixed_exponent(1.0f, b->valid_numel);
    double *work = doubles(tess_entropy_work_numel(c->group)), *slope = doubles(code_numel);
    int64_t *sum = must_alloc((size_t)code_numel * sizeof *sum);
    for (int64_t first = 0; first < c->dim; first += c->group) {
        memset(sum, 0, (size_t)code_numel * sizeof *sum);
        for (int half = 0; half < 2; half++) {
            tess_quantizer_pbar_args p = {rows_of(b, first, c->group), c->beta, exponent, sum,
                                          work};
            p.rows.x += half * N / 2 * c->dim;
            p.rows.valid += half * N / 2;
            p.rows.row_numel = N / 2;
            assert_done(tess_cpu_quantizer_pbar(&p, s));
        }
        double loss = 0.0;
        const tess_quantizer_batch_entropy_args a = {.sum = sum,
                                                     .dim = c->group,
                                                     .valid_numel = b->valid_numel,
                                                     .exponent = exponent,
                                                     .least = c->least,
                                                     .loss = &loss,
                                                     .slope = slope};
        assert_done(tess_cpu_quantizer_batch_entropy(&a, s));
        const tess_quantizer_batch_entropy_backward_args g = {.rows = rows_of(b, first, c->group),
                                                              .beta = c->beta,
                                                              .slope = slope,
                                                              .weight = -c->entropy * c->gamma,
                                                              .d_x = b->d_core + first};
        assert_done(tess_cpu_quantizer_batch_entropy_backward(&g, s));
        b->batch += loss;
    }
    tess_free(work);
    tess_free(slope);
    tess_free(sum);
}

static void bits_end(bits_run *b, tess_stream *s)
{
    const tess_quantizer_enter_backward_args e = {.core = b->core,
                                                  .norm = b->norm,
                                                  .d_core = b->d_core,
                                                  .row_numel = N,
                                                  .dim = b->c->dim,
                                                  .length = b->c->length,
                                                  .least = 1e-12f,
                                                  .d_x = b->r.d_x.view};
    assert_done(tess_cpu_quantizer_enter_backward(&e, s));
}

static void bits_all(bits_run *b, tess_stream *s)
{
    if (b->valid_numel == 0) {
        memset(b->valid, 1, sizeof b->valid);
        b->valid_numel = N;
    }
    bits_forward(b, s);
    bits_batch(b, s);
    bits_end(b, s);
}

/*
 * [Note: the clamp] The peer takes ln max(p, 1e-5) of every code's probability, for each vector as
 * for the mean; ours does so for the mean only, as a vector's entropy is that of its coins. Below a
 * = 1e-5 a term differs by at most p ln(a / p) <= a / e, and its gradient by 4 beta m p |ln(p / a)
 * + 1| <= 4 beta m a: 2^dim terms of each, over N vectors. The clamp of the mean is the same on
 * both sides but for its gradient at the bound.
 */
static double clamp_of(const bits_case *c) { return ldexp(1e-5, (int)c->dim); }

/* |g| passes one sum; the normalization of spherical rows about ten operations of it / |x|. */
static double bits_gradient_tolerance(const bits_run *b)
{
    const bits_case *c = b->c;
    const double slope = 4 * c->beta * (double)c->magnitude;
    double size = c->entropy * slope * (double)c->dim * (1 + c->gamma), least = INFINITY;
    for (int64_t i = 0; i < N; i++)
        least = fmin(least, c->length > 0.0f ? (double)b->norm[i] : 1.0);
    const double clamp = c->entropy * slope * clamp_of(c) / (double)b->valid_numel;
    return (clamp + ROUNDINGS * F32_U * (size + 4.0)) / least;
}

static void check_bits(bits_run *b)
{
    const bits_case *c = b->c;
    const tess_golden *golden = b->r.golden;
    check_codes(&b->r, b->r.exact, unit_of(b->r.dt));
    const double log_sum = 8.0; /* entropies add terms of ln 2^dim and less in f32 */
    const double tolerance = clamp_of(c) + (ROUNDINGS + N) * F32_U * log_sum;
    assert_value("per_sample", 0, b->per_sample, number_of(golden, b->r.exact, "per_sample"),
                 tolerance);
    assert_value("batch", 0, b->batch, number_of(golden, b->r.exact, "batch"), tolerance);
    const double loss =
        c->entropy * (b->per_sample - c->gamma * b->batch) + c->commitment * b->commitment;
    assert_value("loss", 0, loss, number_of(golden, b->r.exact, "loss"),
                 c->entropy * (1 + c->gamma) * tolerance + (ROUNDINGS + N) * F32_U * 4);
    const float *d_x = floats_of(golden, b->r.exact, "d_x");
    const double edge = b->r.dt == TESS_BF16 ? BF16_U : 0.0;
    assert_canaries(&b->r.d_x);
    buffer_read(&b->r.d_x);
    for (int64_t i = 0; i < N * c->dim; i++)
        assert_value("d_x", i, b->r.d_x.value[i], (double)d_x[i],
                     bits_gradient_tolerance(b) + edge * fabs((double)d_x[i]));
}

static void test_lookup_free(void **state)
{
    (void)state;
    static const bits_case cases[] = {
        {"plain", 5, 5, 1.0, 0.25 / 5, 0.1, 0.7, 1e-5, 0.0f, 1.0f},
        {"spherical", 5, 5, 3.0, 0.0, 0.1, 1.0, 1e-5, 0.5f, 0.2236068f},
        {"hot", 3, 3, 100.0, 0.0, 0.1, 1.0, 1e-5, 0.0f, 1.0f},
    };
    tess_golden *golden = open_golden("binary");
    tess_stream s = inline_stream();
    for (int i = 0; i < 2 * TESS_NELEM(cases); i++) {
        bits_run b = {.c = &cases[i / 2]};
        b.r = run_begin(golden, b.c->name, i % 2 == 0 ? TESS_F32 : TESS_BF16, b.c->dim);
        bits_all(&b, &s);
        check_bits(&b);
        run_end(&b.r);
    }
    tess_golden_close(&golden);
}

/* With a mask the peer flattens the kept vectors once too often and takes the mean over nothing:
 * its batch entropy is the mean of the vectors' own. The kept vectors without a mask are what it
 * should be, and what ours is; masked rows are 0 and have no gradient. */
static void test_masked_bits(void **state)
{
    (void)state;
    static const bits_case c = {"masked", 4, 4, 1.0, 0.25 / 4, 0.1, 1.0, 1e-5, 0.0f, 1.0f};
    tess_golden *golden = open_golden("binary");
    tess_stream s = inline_stream();
    bits_run b = {.c = &c};
    b.r = run_begin(golden, "masked", TESS_F32, c.dim);
    const int64_t *mask = tensor_of(golden, "masked", "mask", TESS_I64, NULL);
    for (int i = 0; i < N; i++) {
        b.valid[i] = (uint8_t)mask[i];
        b.valid_numel += mask[i];
    }
    bits_all(&b, &s);
    const double tolerance = clamp_of(&c) + (ROUNDINGS + N) * F32_U * 8;
    assert_value("per_sample", 0, b.per_sample, number_of(golden, "masked.kept", "per_sample"),
                 tolerance);
    assert_value("batch", 0, b.batch, number_of(golden, "masked.kept", "batch"), tolerance);
    const double peer = number_of(golden, "masked", "batch");
    assert_true(peer == number_of(golden, "masked", "per_sample") && fabs(b.batch - peer) > 0.5);
    /* The kept case has a gradient g of its own: what g's differ by, ours and the peer's do. */
    const float *d_x = floats_of(golden, "masked.kept", "d_x");
    const float *g = floats_of(golden, "masked.kept", "g");
    buffer_read(&b.r.d_x);
    buffer_read(&b.r.out);
    for (int64_t i = 0, kept = 0; i < N * c.dim; i++) {
        if (b.valid[i / c.dim] == 0) {
            assert_true(b.r.d_x.value[i] == 0.0 && b.r.out.value[i] == 0.0);
            assert_int_equal(b.r.index[i / c.dim], TESS_NO_CODE);
            continue;
        }
        assert_value("d_x", i, b.r.d_x.value[i] - b.r.g.value[i],
                     (double)d_x[kept] - (double)g[kept],
                     bits_gradient_tolerance(&b) + 4 * F32_U * 4);
        kept++;
    }
    run_end(&b.r);
    tess_golden_close(&golden);
}

/* f32 inside against float64: the numbers of one row are rounded where it enters. */
static void test_binary_spherical(void **state)
{
    (void)state;
    static const bits_case c = {.name = "bsq",
                                .dim = 6,
                                .group = 3,
                                .beta = 1.5,
                                .commitment = 0.25,
                                .entropy = 0.5 / 1.5,
                                .gamma = 0.75,
                                .length = 1.0f,
                                .magnitude = 0.40824829f};
    tess_golden *golden = open_golden("binary");
    tess_stream s = inline_stream();
    bits_run b = {.c = &c};
    b.r = run_begin(golden, "bsq", TESS_F32, c.dim);
    bits_all(&b, &s);
    check_codes(&b.r, "bsq", F32_U);
    assert_value("commitment", 0, 0.25 * b.commitment, number_of(golden, "bsq", "commitment"),
                 8 * F32_U);
    assert_value("per_sample", 0, b.per_sample, number_of(golden, "bsq", "per_sample"), 8 * F32_U);
    assert_value("batch", 0, b.batch, number_of(golden, "bsq", "batch"), 8 * F32_U);
    assert_value("entropy", 0, c.entropy * (b.per_sample - c.gamma * b.batch),
                 number_of(golden, "bsq", "entropy"), 8 * F32_U);
    const double *d_x = tensor_of(golden, "bsq", "d_x", TESS_F64, NULL);
    buffer_read(&b.r.d_x);
    for (int i = 0; i < N * c.dim; i++)
        assert_value("d_x", i, b.r.d_x.value[i], d_x[i], bits_gradient_tolerance(&b));
    run_end(&b.r);
    tess_golden_close(&golden);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_levels),           cmocka_unit_test(test_noise),
        cmocka_unit_test(test_residual_levels),  cmocka_unit_test(test_latent_indices),
        cmocka_unit_test(test_latent_gradients), cmocka_unit_test(test_lookup_free),
        cmocka_unit_test(test_masked_bits),      cmocka_unit_test(test_binary_spherical),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
