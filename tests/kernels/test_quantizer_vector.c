/* Vector quantizers: worked examples, gradients against finite differences of a reference in fp64,
 * the same bits on every instruction path and number of threads. What the peer computes is in
 * test_quantizer_golden.c. */
#include "kernels/quantizer_vector.h"
#include "tests/kernels/op_support.h"

enum { ROWS = 37, CODES = 11 };

/* ---- a problem: vectors with codes, rows of activations on both sides ---- */

typedef struct problem {
    op_buffer edge_in, edge_out;     /* [ROWS, dim] activations */
    op_buffer vectors, next, result; /* [ROWS, dim] f32 */
    op_buffer noise;                 /* [ROWS, dim] f32 */
    op_buffer codes, d_codes;        /* [CODES, dim] f32 */
    op_buffer norm, row_loss;        /* [ROWS] f32, f64 */
    uint32_t code[ROWS];
    int64_t dim;
    tess_estimator estimator;
    float length;
    bool accumulate;
} problem;

static problem problem_create(tess_dtype dt, int64_t dim)
{
    problem p = {.edge_in = buffer_random(dt, ROWS * dim, 31, 1.0),
                 .edge_out = buffer_random(dt, ROWS * dim, 33, 1.0),
                 .vectors = buffer_random(TESS_F32, ROWS * dim, 35, 1.0),
                 .next = buffer_random(TESS_F32, ROWS * dim, 37, 1.0),
                 .result = buffer_random(TESS_F32, ROWS * dim, 39, 1.0),
                 .noise = buffer_random(TESS_F32, ROWS * dim, 45, 1.0),
                 .codes = buffer_random(TESS_F32, CODES * dim, 41, 1.0),
                 .d_codes = buffer_random(TESS_F32, CODES * dim, 43, 1.0),
                 .norm = buffer_create(TESS_F32, ROWS, true),
                 .row_loss = buffer_create(TESS_F64, ROWS, false),
                 .dim = dim};
    for (int i = 0; i < ROWS; i++)
        p.code[i] = i % 7 == 3 ? TESS_NO_CODE : (uint32_t)(i * i + 2) % CODES;
    return p;
}

static void problem_destroy(problem *p)
{
    op_buffer *all[] = {&p->edge_in, &p->edge_out, &p->vectors, &p->next,     &p->result,
                        &p->codes,   &p->d_codes,  &p->norm,    &p->row_loss, &p->noise};
    for (int i = 0; i < TESS_NELEM(all); i++)
        buffer_destroy(all[i]);
}

static tess_coded_rows rows_of(const problem *p)
{
    return (tess_coded_rows){p->codes.view.data, p->code, ROWS, p->dim, CODES};
}

static tess_status call_enter(void *ctx, tess_stream *s)
{
    const problem *p = ctx;
    const tess_quantizer_enter_args a = {.x = p->edge_in.view,
                                         .row_numel = ROWS,
                                         .dim = p->dim,
                                         .length = p->length,
                                         .least = TESS_UNIT_LEAST,
                                         .core = p->result.view.data,
                                         .norm = p->norm.view.data};
    return tess_cpu_quantizer_enter(&a, s);
}

/* After call_enter on the same problem. */
static tess_status call_enter_backward(void *ctx, tess_stream *s)
{
    const problem *p = ctx;
    const tess_quantizer_enter_backward_args a = {.core = p->result.view.data,
                                                  .norm = p->norm.view.data,
                                                  .d_core = p->next.view.data,
                                                  .row_numel = ROWS,
                                                  .dim = p->dim,
                                                  .length = p->length,
                                                  .least = TESS_UNIT_LEAST,
                                                  .d_x = p->edge_out.view,
                                                  .accumulate = p->accumulate};
    TESS_TRY(call_enter(ctx, s));
    return tess_cpu_quantizer_enter_backward(&a, s);
}

static tess_status call_gather(void *ctx, tess_stream *s)
{
    const problem *p = ctx;
    const tess_quantizer_gather_args a = {
        .rows = rows_of(p), .masked = p->edge_in.view, .out = p->edge_out.view};
    return tess_cpu_quantizer_gather(&a, s);
}

static tess_status call_residual(void *ctx, tess_stream *s)
{
    const problem *p = ctx;
    const tess_quantizer_residual_args a = {.rows = rows_of(p),
                                            .r = p->vectors.view.data,
                                            .next = p->result.view.data,
                                            .sum = p->next.view.data};
    return tess_cpu_quantizer_residual(&a, s);
}

static tess_status call_row_loss(void *ctx, tess_stream *s)
{
    const problem *p = ctx;
    const tess_quantizer_row_loss_args a = {
        .rows = rows_of(p), .x = p->vectors.view.data, .out = p->row_loss.view.data};
    return tess_cpu_quantizer_row_loss(&a, s);
}

static tess_status call_backward(void *ctx, tess_stream *s)
{
    const problem *p = ctx;
    const tess_quantizer_backward_args a = {.rows = rows_of(p),
                                            .x = p->vectors.view.data,
                                            .d_out = p->edge_in.view,
                                            .d_next = p->next.view.data,
                                            .keep = 0.75f,
                                            .estimator = p->estimator,
                                            .commitment = 0.25f,
                                            .is_masked_input = true,
                                            .accumulate = p->accumulate,
                                            .d_x = p->result.view.data};
    return tess_cpu_quantizer_backward(&a, s);
}

static tess_status call_code_gradient(void *ctx, tess_stream *s)
{
    const problem *p = ctx;
    const tess_quantizer_code_gradient_args a = {.rows = rows_of(p),
                                                 .x = p->vectors.view.data,
                                                 .coefficient = 0.5f,
                                                 .d_codes = p->d_codes.view.data};
    return tess_cpu_quantizer_code_gradient(&a, s);
}

/* d_x in `result`, d_q in `next`, the output at the edge. */
static tess_status call_directed(void *ctx, tess_stream *s)
{
    const problem *p = ctx;
    const tess_quantizer_directed_args a = {.rows = rows_of(p),
                                            .x = p->vectors.view.data,
                                            .noise = p->noise.view.data,
                                            .spread = 0.5f,
                                            .out = p->edge_out.view};
    const tess_quantizer_directed_backward_args b = {.rows = a.rows,
                                                     .x = a.x,
                                                     .noise = a.noise,
                                                     .spread = a.spread,
                                                     .d_out = p->edge_in.view,
                                                     .d_x = p->result.view.data,
                                                     .d_q = p->next.view.data,
                                                     .accumulate = p->accumulate};
    TESS_TRY(tess_cpu_quantizer_directed(&a, s));
    return tess_cpu_quantizer_directed_backward(&b, s);
}

/* ---- references ---- */

/* Value of a scalar function of one row; gradients of it are central differences. */
typedef double (*row_function)(const problem *p, int64_t row, const double *x);

static double ref_norm(const double *x, int64_t dim)
{
    double square = 0.0;
    for (int64_t j = 0; j < dim; j++)
        square += x[j] * x[j];
    return sqrt(square);
}

/* next . core of a row that enters */
static double ref_enter(const problem *p, int64_t row, const double *x)
{
    double sum = 0.0;
    const double factor =
        p->length > 0.0f ? (double)p->length / fmax(ref_norm(x, p->dim), 1e-6) : 1.0;
    for (int64_t j = 0; j < p->dim; j++)
        sum += p->next.value[row * p->dim + j] * x[j] * factor;
    return sum;
}

/* (d_out - keep d_next) . out + keep d_next . x + commitment |x - q|^2 / 2, where the constants of
 * the estimator are those of the stored vector. */
static double ref_output(const problem *p, int64_t row, const double *x)
{
    const int64_t dim = p->dim;
    const double *x0 = p->vectors.value + row * dim, *q = p->codes.value + p->code[row] * dim;
    const double x_norm = ref_norm(x0, dim), q_norm = ref_norm(q, dim);
    double s_square = 0.0, xs = 0.0, xu = 0.0, sum = 0.0;
    for (int64_t j = 0; j < dim; j++) {
        const double s = x0[j] / x_norm + q[j] / q_norm;
        s_square += s * s;
        xs += x[j] * s;
        xu += x[j] * x0[j] / x_norm;
    }
    for (int64_t j = 0; j < dim; j++) {
        const double d_next = 0.75 * p->next.value[row * dim + j];
        const double s = x0[j] / x_norm + q[j] / q_norm;
        double out = 0.0;
        if (p->estimator == TESS_ESTIMATOR_STRAIGHT)
            out = x[j];
        else if (p->estimator == TESS_ESTIMATOR_ROTATION)
            out = q_norm / x_norm * (x[j] - 2 * xs / s_square * s + 2 * xu * q[j] / q_norm);
        sum += (p->edge_in.value[row * dim + j] - d_next) * out + d_next * x[j] +
               0.125 * (x[j] - q[j]) * (x[j] - q[j]);
    }
    return sum;
}

/* d_out . (x + r |q - x| / |r|), the direction r being that of the stored vectors. */
static double ref_directed(const problem *p, int64_t row, const double *x, const double *q)
{
    const int64_t dim = p->dim;
    const double *x0 = p->vectors.value + row * dim, *q0 = p->codes.value + p->code[row] * dim;
    double length = 0.0, noisy = 0.0, along = 0.0, sum = 0.0;
    for (int64_t j = 0; j < dim; j++) {
        const double r = q0[j] - x0[j] + 0.5 * p->noise.value[row * dim + j];
        length += (q[j] - x[j]) * (q[j] - x[j]);
        noisy += r * r;
        along += p->edge_in.value[row * dim + j] * r;
        sum += p->edge_in.value[row * dim + j] * x[j];
    }
    return sum + along * sqrt(length / noisy);
}

/* Gradients by x and by q. */
static double ref_directed_x(const problem *p, int64_t row, const double *x)
{
    return ref_directed(p, row, x, p->codes.value + p->code[row] * p->dim);
}

static double ref_directed_q(const problem *p, int64_t row, const double *q)
{
    return ref_directed(p, row, p->vectors.value + row * p->dim, q);
}

/* Central differences: with h = 2^-10 and functions of third derivatives of order 1 (norms are of
 * order 1) the error is h^2 / 6 of that, 2e-7, and 2^-52 / h of rounding. */
#define STEP 0x1p-10
#define STEP_ERROR 1e-6

static void differentiate(const problem *p, row_function f, const double *at, double *d)
{
    double *x = doubles(p->dim);
    for (int64_t row = 0; row < ROWS; row++) {
        memcpy(x, at + row * p->dim, (size_t)p->dim * sizeof *x);
        for (int64_t j = 0; j < p->dim; j++) {
            const double keep = x[j];
            x[j] = keep + STEP;
            const double above = f(p, row, x);
            x[j] = keep - STEP;
            d[row * p->dim + j] = (above - f(p, row, x)) / (2 * STEP);
            x[j] = keep;
        }
    }
    tess_free(x);
}

/* ---- checks of every path ---- */

static void ignore(void *ctx) { (void)ctx; }

/* One rounding to dt, and in f32 before it a handful of operations on sums of dim terms in fp64;
 * the gradients cancel terms at most 8 times the result's scale. */
static double tolerance_of(const problem *p, const double *want)
{
    return STEP_ERROR + 32 * F32_U * (1.0 + largest(want, ROWS * p->dim));
}

static void check_enter_backward(void *ctx)
{
    problem *p = ctx;
    double *want = doubles(ROWS * p->dim);
    differentiate(p, ref_enter, p->edge_in.value, want);
    assert_close("d_x", &p->edge_out, want, tolerance_of(p, want), unit_of(p->edge_out.view.dt));
    tess_free(want);
}

static void check_backward(void *ctx)
{
    problem *p = ctx;
    double *want = doubles(ROWS * p->dim);
    uint32_t code[ROWS];
    memcpy(code, p->code, sizeof code);
    for (int i = 0; i < ROWS; i++)
        p->code[i] = code[i] == TESS_NO_CODE ? 0 : code[i];
    differentiate(p, ref_output, p->vectors.value, want);
    memcpy(p->code, code, sizeof code);
    for (int64_t i = 0; i < ROWS * p->dim; i++)
        if (code[i / p->dim] == TESS_NO_CODE)
            want[i] = p->edge_in.value[i];
    assert_close("d_x", &p->result, want, tolerance_of(p, want), 0.0);
    tess_free(want);
}

/* Masked rows give no gradient. */
static void check_directed(void *ctx)
{
    problem *p = ctx;
    double *d_x = doubles(ROWS * p->dim), *d_q = doubles(ROWS * p->dim);
    double *q = doubles(ROWS * p->dim);
    uint32_t code[ROWS];
    memcpy(code, p->code, sizeof code);
    for (int i = 0; i < ROWS; i++)
        p->code[i] = code[i] == TESS_NO_CODE ? 0 : code[i];
    for (int64_t i = 0; i < ROWS * p->dim; i++)
        q[i] = p->codes.value[p->code[i / p->dim] * p->dim + i % p->dim];
    differentiate(p, ref_directed_x, p->vectors.value, d_x);
    differentiate(p, ref_directed_q, q, d_q);
    memcpy(p->code, code, sizeof code);
    for (int64_t i = 0; i < ROWS * p->dim; i++)
        if (code[i / p->dim] == TESS_NO_CODE)
            d_x[i] = d_q[i] = 0.0;
    /* third derivatives of a length are at most 3 / length^2, times |g| */
    double least = INFINITY;
    for (int64_t row = 0; row < ROWS; row++) {
        double square = 0.0;
        for (int64_t i = row * p->dim; i < (row + 1) * p->dim; i++)
            square += (q[i] - p->vectors.value[i]) * (q[i] - p->vectors.value[i]);
        least = fmin(least, square);
    }
    const double g = largest(p->edge_in.value, ROWS * p->dim) * sqrt((double)p->dim);
    const double error = STEP * STEP / 6 * 3 / least * g;
    assert_close("d_x", &p->result, d_x, error + tolerance_of(p, d_x), 0.0);
    assert_close("d_q", &p->next, d_q, error + tolerance_of(p, d_q), 0.0);
    tess_free(d_x);
    tess_free(d_q);
    tess_free(q);
}

static void check_gather(void *ctx)
{
    const problem *p = ctx;
    for (int64_t i = 0; i < ROWS * p->dim; i++) {
        const uint32_t code = p->code[i / p->dim];
        const double want =
            code == TESS_NO_CODE ? p->edge_in.value[i] : p->codes.value[code * p->dim + i % p->dim];
        const float rounded = (float)want;
        const bool is_bf16 = p->edge_out.view.dt == TESS_BF16;
        assert_true(p->edge_out.value[i] ==
                    (is_bf16 ? (double)tess_bf16_to_f32(tess_bf16_from_f32(rounded)) : want));
    }
}

static void check_residual(void *ctx)
{
    const problem *p = ctx;
    const float *next = p->result.view.data, *r = p->vectors.view.data;
    for (int64_t i = 0; i < ROWS * p->dim; i++) {
        const uint32_t code = p->code[i / p->dim];
        const float q =
            code == TESS_NO_CODE ? 0.0f : (float)p->codes.value[code * p->dim + i % p->dim];
        assert_true(next[i] == r[i] - q);
    }
}

/* Squares of differences that were rounded to f32, added in fp64. */
static void check_row_loss(void *ctx)
{
    const problem *p = ctx;
    for (int64_t row = 0; row < ROWS; row++) {
        double want = 0.0;
        const uint32_t code = p->code[row];
        for (int64_t j = 0; code != TESS_NO_CODE && j < p->dim; j++) {
            const double d = p->vectors.value[row * p->dim + j] - p->codes.value[code * p->dim + j];
            want += d * d;
        }
        assert_true(fabs(p->row_loss.value[row] - want) <= 4 * F32_U * want);
    }
}

/* What the op added to rows that began at zero. */
static void check_code_gradient(void *ctx)
{
    const problem *p = ctx;
    double *want = doubles(CODES * p->dim);
    memset(want, 0, (size_t)(CODES * p->dim) * sizeof *want);
    for (int64_t i = 0; i < ROWS * p->dim; i++) {
        const uint32_t code = p->code[i / p->dim];
        if (code == TESS_NO_CODE)
            continue;
        const int64_t at = code * p->dim + i % p->dim;
        want[at] += 0.5 * (p->codes.value[at] - p->vectors.value[i]);
    }
    /* at most ROWS terms of order 1, each addition rounds once */
    assert_close("d_codes", &p->d_codes, want, ROWS * F32_U * (1.0 + largest(want, CODES * p->dim)),
                 0.0);
    tess_free(want);
}

static void run_on(problem *p, tess_status (*call)(void *, tess_stream *), void (*check)(void *),
                   op_buffer *first, op_buffer *second)
{
    op_run run = {.call = call, .ctx = p, .outputs = {first, second}};
    run.output_numel = second != NULL ? 2 : 1;
    run_everywhere(&run, check);
}

static void run_dim(tess_dtype dt, int64_t dim)
{
    problem p = problem_create(dt, dim);
    run_on(&p, call_gather, check_gather, &p.edge_out, NULL);
    run_on(&p, call_residual, check_residual, &p.result, &p.next);
    run_on(&p, call_row_loss, check_row_loss, &p.row_loss, NULL);
    for (int e = TESS_ESTIMATOR_NONE; e <= TESS_ESTIMATOR_ROTATION; e++) {
        p.estimator = (tess_estimator)e;
        p.accumulate = false;
        run_on(&p, call_backward, check_backward, &p.result, NULL);
        p.accumulate = true;
        run_on(&p, call_backward, ignore, &p.result, NULL);
    }
    p.accumulate = false;
    op_run directed = {.call = call_directed,
                       .ctx = &p,
                       .outputs = {&p.edge_out, &p.result, &p.next},
                       .output_numel = 3};
    run_everywhere(&directed, check_directed);
    for (int i = 0; i < 2; i++) {
        p.length = i == 0 ? 0.0f : 1.5f;
        p.accumulate = false;
        run_on(&p, call_enter, ignore, &p.result, &p.norm);
        run_on(&p, call_enter_backward, check_enter_backward, &p.edge_out, NULL);
        p.accumulate = true;
        run_on(&p, call_enter_backward, ignore, &p.edge_out, NULL);
    }
    memset(p.d_codes.view.data, 0, tess_view_nbytes(p.d_codes.view));
    run_on(&p, call_code_gradient, check_code_gradient, &p.d_codes, NULL);
    problem_destroy(&p);
}

static void test_ops_agree_with_references_on_every_path(void **state)
{
    (void)state;
    static const int64_t dims[] = {2, 3, 16, 17, 100};
    for (int i = 0; i < TESS_NELEM(dims); i++) {
        run_dim(TESS_F32, dims[i]);
        run_dim(TESS_BF16, dims[i]);
    }
}

/* Enough rows that three threads take part: what one row gives does not depend on them. */
static void test_many_rows_give_the_same_bits(void **state)
{
    (void)state;
    enum { DIM = 512 * ROWS }; /* 37 rows, 0.7 M elements */
    problem p = problem_create(TESS_BF16, DIM);
    p.estimator = TESS_ESTIMATOR_ROTATION;
    p.length = 1.0f;
    run_on(&p, call_backward, ignore, &p.result, NULL);
    run_on(&p, call_enter, ignore, &p.result, &p.norm);
    run_on(&p, call_code_gradient, ignore, &p.d_codes, NULL);
    run_on(&p, call_row_loss, ignore, &p.row_loss, NULL);
    problem_destroy(&p);
}

/* ---- worked examples ---- */

static void test_rotation_example(void **state)
{
    (void)state;
    const float x[] = {3.0f, 4.0f, 3.0f, 4.0f}, codes[] = {0.0f, 10.0f};
    const uint32_t code[] = {0, 0};
    float d_out[] = {1.0f, 0.0f, 0.0f, 1.0f}, d_x[4], out[4];
    const float want[] = {1.6f, -1.2f, 1.2f, 1.6f};
    tess_stream s = inline_stream();
    const tess_coded_rows rows = {codes, code, 2, 2, 1};
    const tess_quantizer_backward_args a = {.rows = rows,
                                            .x = x,
                                            .d_out = tess_view_host(d_out, 4, TESS_F32),
                                            .estimator = TESS_ESTIMATOR_ROTATION,
                                            .d_x = d_x};
    assert_done(tess_cpu_quantizer_backward(&a, &s));
    for (int i = 0; i < 4; i++) /* coefficients of order 4, a few roundings */
        assert_true(fabs((double)d_x[i] - (double)want[i]) <= 8 * F32_U * 4);
    const tess_quantizer_gather_args g = {.rows = rows, .out = tess_view_host(out, 4, TESS_F32)};
    assert_done(tess_cpu_quantizer_gather(&g, &s));
    assert_true(out[0] == 0.0f && out[1] == 10.0f);
}

/* A zero vector or code has norm TESS_UNIT_LEAST: nothing is infinite. */
static void test_zero_rows_stay_finite(void **state)
{
    (void)state;
    const float x[] = {0.0f, 0.0f, 1.0f, 0.0f}, codes[] = {0.0f, 0.0f, 1.0f, 2.0f};
    const uint32_t code[] = {1, 0};
    float d_out[] = {1.0f, 1.0f, 1.0f, 1.0f}, d_x[4], core[4], norm[2];
    tess_stream s = inline_stream();
    const tess_quantizer_backward_args a = {.rows = {codes, code, 2, 2, 2},
                                            .x = x,
                                            .d_out = tess_view_host(d_out, 4, TESS_F32),
                                            .estimator = TESS_ESTIMATOR_ROTATION,
                                            .d_x = d_x};
    assert_done(tess_cpu_quantizer_backward(&a, &s));
    for (int i = 0; i < 4; i++)
        assert_true(isfinite(d_x[i]));
    const tess_quantizer_enter_args enter = {.x = tess_view_host((void *)(uintptr_t)x, 4, TESS_F32),
                                             .row_numel = 2,
                                             .dim = 2,
                                             .length = 1.0f,
                                             .least = TESS_UNIT_LEAST,
                                             .core = core,
                                             .norm = norm};
    assert_done(tess_cpu_quantizer_enter(&enter, &s));
    assert_true(core[0] == 0.0f && core[1] == 0.0f && core[2] == 1.0f && norm[0] == 0.0f);
}

/* Four levels with straight-through gradients and g = 1: the three published ways. */
static void test_residual_gradient_scales(void **state)
{
    (void)state;
    enum { LEVELS = 4 };
    const float x = 1.7f, codes[] = {1.0f, 0.5f, 0.25f, -0.0625f};
    float one = 1.0f, residual = x, summed = 0.0f, undetached = 0.0f, single = 0.0f;
    float at[LEVELS];
    tess_stream s = inline_stream();
    for (int i = 0; i < LEVELS; i++) {
        at[i] = residual;
        const tess_quantizer_residual_args a = {
            .rows = {&codes[i], NULL, 1, 1, 1}, .r = &residual, .next = &residual};
        assert_done(tess_cpu_quantizer_residual(&a, &s));
    }
    float d_next = 0.0f;
    for (int i = LEVELS - 1; i >= 0; i--) {
        tess_quantizer_backward_args a = {.rows = {&codes[i], NULL, 1, 1, 1},
                                          .x = &at[i],
                                          .d_out = tess_view_host(&one, 1, TESS_F32),
                                          .estimator = TESS_ESTIMATOR_STRAIGHT,
                                          .accumulate = true,
                                          .d_x = &summed};
        assert_done(tess_cpu_quantizer_backward(&a, &s)); /* the subtracted code is detached */
        a.d_x = &single;                                  /* one estimator around the whole stack */
        a.estimator = i == 0 ? TESS_ESTIMATOR_STRAIGHT : TESS_ESTIMATOR_NONE;
        assert_done(tess_cpu_quantizer_backward(&a, &s));
        a.estimator = TESS_ESTIMATOR_STRAIGHT; /* nothing is detached */
        a.accumulate = false;
        a.d_next = &d_next;
        a.keep = 1.0f;
        a.d_x = &undetached;
        assert_done(tess_cpu_quantizer_backward(&a, &s));
        d_next = undetached;
    }
    assert_true(summed == 4.0f && undetached == 1.0f && single == 1.0f);
    assert_true(residual == 1.7f - 1.0f - 0.5f - 0.25f + 0.0625f);
}

/* ---- heads, refusals ---- */

/* Heads are columns: strided calls on columns give what dense calls give. */
static void test_strided_rows(void **state)
{
    (void)state;
    enum { DIM = 5, HEADS = 3, STRIDE = DIM * HEADS };
    problem p = problem_create(TESS_BF16, STRIDE);
    float core[ROWS * DIM], codes[CODES * DIM];
    tess_stream s = inline_stream();
    for (int i = 0; i < CODES * DIM; i++)
        codes[i] = (float)i;
    const int64_t numel = (ROWS - 1) * STRIDE + DIM;
    for (int h = 0; h < HEADS; h++) {
        const tess_quantizer_enter_args a = {.x = tess_view_slice(p.edge_in.view, h * DIM, numel),
                                             .row_numel = ROWS,
                                             .dim = DIM,
                                             .x_stride = STRIDE,
                                             .core = core};
        assert_done(tess_cpu_quantizer_enter(&a, &s));
        const tess_quantizer_gather_args g = {.rows = {codes, p.code, ROWS, DIM, CODES},
                                              .masked = a.x,
                                              .out_stride = STRIDE,
                                              .out =
                                                  tess_view_slice(p.edge_out.view, h * DIM, numel)};
        assert_done(tess_cpu_quantizer_gather(&g, &s));
        buffer_read(&p.edge_out);
        for (int i = 0; i < ROWS * DIM; i++) {
            const int64_t at = i / DIM * STRIDE + h * DIM + i % DIM;
            const uint32_t code = p.code[i / DIM];
            assert_true((double)core[i] == p.edge_in.value[at]);
            assert_true(p.edge_out.value[at] == (code == TESS_NO_CODE
                                                     ? p.edge_in.value[at]
                                                     : (double)codes[(int)code * DIM + i % DIM]));
        }
    }
    problem_destroy(&p);
}

static void test_wrong_arguments_are_refused(void **state)
{
    (void)state;
    problem p = problem_create(TESS_BF16, 4);
    tess_stream s = inline_stream();
    op_buffer other = buffer_create(TESS_F32, ROWS * 4, false);
    tess_quantizer_gather_args g = {
        .rows = rows_of(&p), .masked = other.view, .out = p.edge_out.view};
    assert_refused(tess_quantizer_gather_check(&g), TESS_E_DTYPE,
                   "quantizer gather: masked is f32, expected bf16");
    g.masked.numel = 0;
    g.out.dt = TESS_I32;
    assert_refused(tess_quantizer_gather_check(&g), TESS_E_DTYPE,
                   "quantizer gather: out is i32, expected f32 or bf16");
    g.out = p.edge_out.view;
    p.code[5] = CODES;
    assert_refused(tess_cpu_quantizer_gather(&g, &s), TESS_E_RANGE,
                   "vector 5 has code 11, expected below 11");
    tess_quantizer_enter_args enter = {
        .x = p.edge_in.view, .row_numel = ROWS, .dim = 5, .core = p.result.view.data};
    assert_refused(tess_quantizer_enter_check(&enter), TESS_E_ARG,
                   "quantizer enter: x holds 148 elements, expected 185");
    enter.dim = 4;
    enter.length = 1.0f;
    assert_refused(tess_quantizer_enter_check(&enter), TESS_E_RANGE, "least norm is 0");
    const tess_coded_rows bare = {p.codes.view.data, NULL, ROWS, 4, CODES};
    assert_refused(tess_coded_rows_check("test", &bare), TESS_E_ARG,
                   "code is missing and there are 11 rows of codes for 37 vectors");
    buffer_destroy(&other);
    problem_destroy(&p);
}

/* No vectors at all: nothing is read or written. */
static void test_no_rows(void **state)
{
    (void)state;
    tess_stream s = inline_stream();
    const tess_quantizer_enter_args enter = {.x = {.dt = TESS_BF16}, .dim = 3};
    assert_done(tess_cpu_quantizer_enter(&enter, &s));
    const tess_quantizer_gather_args g = {.rows = {.dim = 3}, .out = {.dt = TESS_BF16}};
    assert_done(tess_cpu_quantizer_gather(&g, &s));
    const tess_quantizer_backward_args b = {.rows = {.dim = 3}};
    assert_done(tess_cpu_quantizer_backward(&b, &s));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ops_agree_with_references_on_every_path),
        cmocka_unit_test(test_many_rows_give_the_same_bits),
        cmocka_unit_test(test_rotation_example),
        cmocka_unit_test(test_zero_rows_stay_finite),
        cmocka_unit_test(test_residual_gradient_scales),
        cmocka_unit_test(test_strided_rows),
        cmocka_unit_test(test_wrong_arguments_are_refused),
        cmocka_unit_test(test_no_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
