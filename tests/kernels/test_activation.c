/* GELU, SiLU and the weighted squared error against fp64, on every path. */
#include "tests/kernels/op_support.h"

#include "reference/tape.h"

typedef struct problem {
    tess_activation kind;
    int64_t rows, dim;
    op_buffer x, y, d_y, d_x; /* y and d_y with a gap of 3 between rows */
    double *want, *d_want;
} problem;

enum { GAP = 3 };

static tess_status call_forward(void *ctx, tess_stream *s)
{
    problem *p = ctx;
    const tess_activation_args a = {.kind = p->kind,
                                    .row_numel = p->rows,
                                    .dim = p->dim,
                                    .x = p->x.view,
                                    .y = p->y.view,
                                    .y_stride = p->dim + GAP};
    return tess_cpu_activation(&a, s);
}

static tess_status call_backward(void *ctx, tess_stream *s)
{
    problem *p = ctx;
    const tess_activation_backward_args a = {.kind = p->kind,
                                             .row_numel = p->rows,
                                             .dim = p->dim,
                                             .x = p->x.view,
                                             .d_y = p->d_y.view,
                                             .d_y_stride = p->dim + GAP,
                                             .d_x = p->d_x.view};
    return tess_cpu_activation_backward(&a, s);
}

/* Exponential 2 ulp, its argument up to 20 with an error of 4 ulp: 90 u of the sigmoid at most, and
 * where it is below 1 that of what falls with it; the values are at most 12. */
static void check_forward(void *ctx)
{
    problem *p = ctx;
    for (int64_t i = 0; i < p->rows * p->dim; i++) {
        const double y = p->y.value[i / p->dim * (p->dim + GAP) + i % p->dim];
        if (!(fabs(y - p->want[i]) <=
              128.0 * F32_U + 1.01 * unit_of(p->x.view.dt) * fabs(p->want[i])))
            fail_msg("y[%" PRId64 "] of %g: got %.9g, want %.9g", i, p->x.value[i], y, p->want[i]);
    }
}

static void check_backward(void *ctx)
{
    problem *p = ctx;
    const double d = largest(p->d_y.value, p->d_y.view.numel);
    assert_close("d_x", &p->d_x, p->d_want, 512.0 * d * F32_U, 1.01 * unit_of(p->x.view.dt));
}

static void check_kind(tess_activation kind, tess_dtype dt, int64_t rows, int64_t dim)
{
    problem p = {.kind = kind, .rows = rows, .dim = dim};
    p.x = buffer_random(dt, rows * dim, 3, 3.0);
    p.y = buffer_random(dt, rows * (dim + GAP), 4, 1.0);
    p.d_y = buffer_random(dt, rows * (dim + GAP), 5, 1.0);
    p.d_x = buffer_random(dt, rows * dim, 6, 1.0);
    p.want = doubles(rows * dim);
    p.d_want = doubles(rows * dim);
    tape *t = tape_create();
    const tape_node x = tape_leaf(t, rows, dim), d = tape_leaf(t, rows, dim);
    memcpy(tape_value(t, x), p.x.value, (size_t)(rows * dim) * sizeof(double));
    for (int64_t i = 0; i < rows * dim; i++)
        tape_value(t, d)[i] = p.d_y.value[i / dim * (dim + GAP) + i % dim];
    const tape_node y = kind == TESS_ACTIVATION_SILU ? tape_silu(t, x) : tape_gelu_tanh(t, x);
    tape_backward(t, y, tape_value(t, d));
    memcpy(p.want, tape_value(t, y), (size_t)(rows * dim) * sizeof(double));
    memcpy(p.d_want, tape_grad(t, x), (size_t)(rows * dim) * sizeof(double));
    tape_destroy(t);
    const op_run forward = {.call = call_forward, .ctx = &p, .outputs = {&p.y}, .output_numel = 1};
    const op_run backward = {
        .call = call_backward, .ctx = &p, .outputs = {&p.d_x}, .output_numel = 1};
    run_everywhere(&forward, check_forward);
    run_everywhere(&backward, check_backward);
    op_buffer *const all[] = {&p.x, &p.y, &p.d_y, &p.d_x};
    for (int i = 0; i < TESS_NELEM(all); i++)
        buffer_destroy(all[i]);
    tess_free(p.want);
    tess_free(p.d_want);
}

static void test_activations_match_fp64(void **state)
{
    (void)state;
    static const int64_t shape[][2] = {{1, 1}, {3, 17}, {5, 64}, {40, 130}};
    for (int i = 0; i < TESS_NELEM(shape); i++)
        for (int v = 0; v < 4; v++)
            check_kind(v & 2 ? TESS_ACTIVATION_SILU : TESS_ACTIVATION_GELU_TANH,
                       v & 1 ? TESS_BF16 : TESS_F32, shape[i][0], shape[i][1]);
}

/* Far from 0 both are the identity or nothing, and so are their slopes. */
static void test_activations_far_from_zero(void **state)
{
    (void)state;
    float x[4] = {-1e4f, -30.0f, 30.0f, 1e4f}, y[4], d[4] = {1, 1, 1, 1};
    tess_stream s = inline_stream();
    for (int kind = 0; kind < 2; kind++) {
        const tess_activation_args a = {.kind = (tess_activation)kind,
                                        .row_numel = 1,
                                        .dim = 4,
                                        .x = tess_view_host(x, 4, TESS_F32),
                                        .y = tess_view_host(y, 4, TESS_F32)};
        const tess_activation_backward_args b = {.kind = (tess_activation)kind,
                                                 .row_numel = 1,
                                                 .dim = 4,
                                                 .x = a.x,
                                                 .d_y = tess_view_host(d, 4, TESS_F32),
                                                 .d_x = a.y};
        assert_done(tess_cpu_activation(&a, &s));
        assert_true(y[0] == 0.0f && fabsf(y[1]) < 1e-11f && y[2] == 30.0f && y[3] == 1e4f);
        assert_done(tess_cpu_activation_backward(&b, &s));
        assert_true(y[0] == 0.0f && fabsf(y[1]) < 1e-11f && y[2] == 1.0f && y[3] == 1.0f);
    }
}

/* ---- squared error ---- */

typedef struct error_problem {
    int64_t rows, dim;
    op_buffer y, target, weight, row_loss, d_y;
} error_problem;

static tess_status call_error(void *ctx, tess_stream *s)
{
    error_problem *p = ctx;
    const tess_square_error_args a = {.row_numel = p->rows,
                                      .dim = p->dim,
                                      .y = p->y.view,
                                      .target = p->target.view.data,
                                      .weight = p->weight.view.data,
                                      .row_loss = p->row_loss.view.data,
                                      .grad_scale = 0.25f,
                                      .d_y = p->d_y.view};
    return tess_cpu_square_error(&a, s);
}

/* The difference is rounded once, its square is exact in fp64; the gradient has three more f32
 * roundings. */
static void check_error(void *ctx)
{
    error_problem *p = ctx;
    for (int64_t r = 0; r < p->rows; r++) {
        double sum = 0.0;
        for (int64_t i = r * p->dim; i < (r + 1) * p->dim; i++) {
            const double d = p->y.value[i] - p->target.value[i];
            const double want = 0.5 * p->weight.value[r] * d;
            sum += p->weight.value[r] * d * d;
            const double u = unit_of(p->d_y.view.dt) + 4.0 * F32_U;
            if (!(fabs(p->d_y.value[i] - want) <= u * fabs(want)))
                fail_msg("d_y[%" PRId64 "]: got %.9g, want %.9g", i, p->d_y.value[i], want);
        }
        const double loss = ((const double *)p->row_loss.view.data)[r];
        if (!(fabs(loss - sum) <= 2.01 * F32_U * fabs(sum)))
            fail_msg("loss[%" PRId64 "]: got %.17g, want %.17g", r, loss, sum);
    }
}

static void test_square_error_matches_fp64(void **state)
{
    (void)state;
    static const int64_t shape[][2] = {{1, 1}, {7, 16}, {5, 67}};
    for (int i = 0; i < 2 * TESS_NELEM(shape); i++) {
        error_problem p = {.rows = shape[i / 2][0], .dim = shape[i / 2][1]};
        p.y = buffer_random(TESS_F32, p.rows * p.dim, 8, 1.0);
        p.target = buffer_random(TESS_F32, p.rows * p.dim, 9, 1.0);
        p.weight = buffer_random(TESS_F32, p.rows, 10, 1.0);
        p.row_loss = buffer_create(TESS_F64, p.rows, false);
        p.d_y = buffer_create(i & 1 ? TESS_BF16 : TESS_F32, p.rows * p.dim, true);
        const op_run run = {
            .call = call_error, .ctx = &p, .outputs = {&p.row_loss, &p.d_y}, .output_numel = 2};
        run_everywhere(&run, check_error);
        op_buffer *const all[] = {&p.y, &p.target, &p.weight, &p.row_loss, &p.d_y};
        for (int k = 0; k < TESS_NELEM(all); k++)
            buffer_destroy(all[k]);
    }
}

static void test_wrong_arguments_are_refused(void **state)
{
    (void)state;
    float x[6] = {0}, y[6];
    tess_activation_args a = {.kind = TESS_ACTIVATION_SILU,
                              .row_numel = 2,
                              .dim = 3,
                              .x = tess_view_host(x, 6, TESS_F32),
                              .y = tess_view_host(y, 6, TESS_F32)};
    assert_done(tess_activation_check(&a));
    a.kind = (tess_activation)7;
    assert_refused(tess_activation_check(&a), TESS_E_ARG, "kind 7 is not in the list");
    a.kind = TESS_ACTIVATION_SILU;
    a.y.numel = 5;
    assert_refused(tess_activation_check(&a), TESS_E_ARG, "y holds 5 elements, expected 6");
    a.y = tess_view_host(x + 1, 6, TESS_F32);
    assert_refused(tess_activation_check(&a), TESS_E_ARG, "overlaps x in part");
    const tess_square_error_args e = {
        .row_numel = 2, .dim = 3, .y = tess_view_host(y, 6, TESS_BF16)};
    assert_refused(tess_square_error_check(&e), TESS_E_DTYPE, "y is bf16, expected f32");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_activations_match_fp64),
        cmocka_unit_test(test_activations_far_from_zero),
        cmocka_unit_test(test_square_error_matches_fp64),
        cmocka_unit_test(test_wrong_arguments_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
