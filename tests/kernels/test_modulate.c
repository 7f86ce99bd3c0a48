/* Modulated norms, gates and rotated heads against fp64, on every path, at strides of their own. */
#include "tests/kernels/op_support.h"

#include "core/arith.h"
#include "reference/tape.h"

/* Operands of any of the ops: rows of B samples, factors, tables, in kernels and in fp64. */
typedef struct problem {
    tess_sample_shape shape;
    int64_t head_numel, cols;
    op_buffer x, f, y, d_y, residual, d_x;    /* [B, N + 2, cols + 3] */
    op_buffer shift, scale, d_shift, d_scale; /* [B, dim + 5] */
    op_buffer w, d_w, mean, inv, cosine, sine, work;
    double *d_w_before;
    bool has_residual;
    double *want[4]; /* of y or d_x, and of up to two factors, dense */
} problem;

enum { ROW_GAP = 3, SAMPLE_GAP = 2, FACTOR_GAP = 5 };

static int64_t stride_of(const problem *p) { return p->cols + ROW_GAP; }

static tess_sample_rows rows_of(const problem *p, const op_buffer *b)
{
    return (tess_sample_rows){b->view, (p->shape.row_numel + SAMPLE_GAP) * stride_of(p),
                              stride_of(p)};
}

static int64_t factor_stride(const problem *p) { return p->shape.dim + FACTOR_GAP; }

static problem problem_create(tess_dtype dt, tess_sample_shape shape, int64_t head_numel)
{
    problem p = {.shape = shape, .head_numel = head_numel, .cols = shape.dim * head_numel};
    const int64_t numel = shape.sample_numel * (shape.row_numel + SAMPLE_GAP) * stride_of(&p);
    const int64_t factors = shape.sample_numel * factor_stride(&p);
    const int64_t rows = shape.sample_numel * shape.row_numel;
    op_buffer *const whole[] = {&p.x, &p.f, &p.y, &p.d_y, &p.residual, &p.d_x};
    op_buffer *const factor[] = {&p.shift, &p.scale, &p.d_shift, &p.d_scale};
    for (int i = 0; i < TESS_NELEM(whole); i++)
        *whole[i] = buffer_random(dt, numel, 20 + (uint64_t)i, 1.0);
    for (int i = 0; i < TESS_NELEM(factor); i++)
        *factor[i] = buffer_random(dt, factors, 30 + (uint64_t)i, 0.5);
    p.w = buffer_random(TESS_F32, shape.dim, 40, 1.0);
    p.d_w = buffer_random(TESS_F32, shape.dim, 41, 1.0);
    p.mean = buffer_create(TESS_F32, rows, true);
    p.inv = buffer_create(TESS_F32, rows, false);
    p.cosine = buffer_create(TESS_F32, shape.row_numel * shape.dim / 2, false);
    p.sine = buffer_create(TESS_F32, shape.row_numel * shape.dim / 2, true);
    for (int64_t i = 0; i < p.cosine.view.numel; i++) {
        buffer_set(&p.cosine, i, (float)cos(0.7 * (double)i));
        buffer_set(&p.sine, i, (float)sin(0.7 * (double)i));
    }
    buffer_read(&p.cosine);
    buffer_read(&p.sine);
    p.work = buffer_create(TESS_F32, shape.sample_numel * 16 * 2 * shape.dim, false);
    memset(p.work.view.data, 0xff, tess_view_nbytes(p.work.view));
    p.d_w_before = doubles(shape.dim);
    memcpy(p.d_w_before, p.d_w.value, (size_t)shape.dim * sizeof(double));
    for (int i = 0; i < TESS_NELEM(p.want); i++)
        p.want[i] = doubles(TESS_MAX(rows * p.cols, shape.sample_numel * shape.dim));
    return p;
}

static void problem_destroy(problem *p)
{
    op_buffer *const all[] = {&p->x,     &p->f,     &p->y,       &p->d_y,     &p->residual, &p->d_x,
                              &p->shift, &p->scale, &p->d_shift, &p->d_scale, &p->w,        &p->d_w,
                              &p->mean,  &p->inv,   &p->cosine,  &p->sine,    &p->work};
    for (int i = 0; i < TESS_NELEM(all); i++)
        buffer_destroy(all[i]);
    for (int i = 0; i < TESS_NELEM(p->want); i++)
        tess_free(p->want[i]);
    tess_free(p->d_w_before);
}

/* ---- fp64 ---- */

/* Rows of sample b, and its vector of a factor. */
static tape_node rows_leaf(tape *t, const problem *p, const op_buffer *from, int64_t b)
{
    const tape_node n = tape_leaf(t, p->shape.row_numel, p->cols);
    const tess_sample_rows rows = rows_of(p, from);
    for (int64_t r = 0; r < p->shape.row_numel; r++)
        memcpy(tape_value(t, n) + r * p->cols,
               from->value + b * rows.sample_stride + r * rows.row_stride,
               (size_t)p->cols * sizeof(double));
    return n;
}

static tape_node row_leaf(tape *t, const double *from, int64_t numel)
{
    const tape_node n = tape_leaf(t, 1, numel);
    memcpy(tape_value(t, n), from, (size_t)numel * sizeof *from);
    return n;
}

/* Elements of rows with gaps against dense ones; `relative` of each, `absolute` of all. */
static void expect_rows(const char *name, const problem *p, op_buffer *found, const double *want,
                        double absolute, double relative)
{
    const tess_sample_rows rows = rows_of(p, found);
    for (int64_t i = 0; i < p->shape.sample_numel * p->shape.row_numel * p->cols; i++) {
        const int64_t row = i / p->cols, b = row / p->shape.row_numel;
        const double x = found->value[b * rows.sample_stride +
                                      row % p->shape.row_numel * rows.row_stride + i % p->cols];
        if (!(fabs(x - want[i]) <= absolute + relative * fabs(want[i])))
            fail_msg("%s[%" PRId64 "]: got %.9g, want %.9g", name, i, x, want[i]);
    }
}

static void expect_factors(const char *name, const problem *p, op_buffer *found, const double *want,
                           double absolute, double relative)
{
    for (int64_t i = 0; i < p->shape.sample_numel * p->shape.dim; i++) {
        const double x = found->value[i / p->shape.dim * factor_stride(p) + i % p->shape.dim];
        if (!(fabs(x - want[i]) <= absolute + relative * fabs(want[i])))
            fail_msg("%s[%" PRId64 "]: got %.9g, want %.9g", name, i, x, want[i]);
    }
}

static void keep(const problem *p, double *to, const double *from, int64_t b, int64_t numel)
{
    (void)p;
    memcpy(to + b * numel, from, (size_t)numel * sizeof *to);
}

/* Values are of order 1 to 4 (normal); sums over a row of D terms and over N rows walk. */
static double f32_error(const problem *p)
{
    const double n = (double)(p->cols + p->shape.row_numel);
    return 64.0 * (sqrt(n) + 8.0) * F32_U;
}

/* ---- modulation ---- */

static tape_node modulated(tape *t, const problem *p, int64_t b, tape_node in[3])
{
    in[0] = rows_leaf(t, p, &p->x, b);
    in[1] = row_leaf(t, p->scale.value + b * factor_stride(p), p->shape.dim);
    in[2] = row_leaf(t, p->shift.value + b * factor_stride(p), p->shape.dim);
    return tape_add_row(t, tape_mul_row(t, tape_layer_norm(t, in[0], 1e-6), in[1], 1.0), in[2]);
}

static tess_status call_modulate(void *ctx, tess_stream *s)
{
    problem *p = ctx;
    const tess_modulate_args a = {.shape = p->shape,
                                  .x = rows_of(p, &p->x),
                                  .shift = p->shift.view,
                                  .scale = p->scale.view,
                                  .factor_stride = factor_stride(p),
                                  .eps = 1e-6f,
                                  .y = rows_of(p, &p->y),
                                  .mean = p->mean.view.data,
                                  .inv = p->inv.view.data};
    return tess_cpu_modulate(&a, s);
}

static void check_modulate(void *ctx)
{
    problem *p = ctx;
    expect_rows("y", p, &p->y, p->want[0], f32_error(p), 1.01 * unit_of(p->x.view.dt));
}

static tess_status call_modulate_backward(void *ctx, tess_stream *s)
{
    problem *p = ctx;
    tess_modulate_backward_args a = {.shape = p->shape,
                                     .x = rows_of(p, &p->x),
                                     .scale = p->scale.view,
                                     .factor_stride = factor_stride(p),
                                     .mean = p->mean.view.data,
                                     .inv = p->inv.view.data,
                                     .d_y = rows_of(p, &p->d_y),
                                     .d_x = rows_of(p, &p->d_x),
                                     .d_shift = p->d_shift.view,
                                     .d_scale = p->d_scale.view,
                                     .work = p->work.view.data};
    if (p->has_residual)
        a.residual = rows_of(p, &p->residual);
    return tess_cpu_modulate_backward(&a, s);
}

static void check_modulate_backward(void *ctx)
{
    problem *p = ctx;
    const double u = 1.01 * unit_of(p->x.view.dt);
    expect_rows("d_x", p, &p->d_x, p->want[1], 4.0 * f32_error(p), u);
    expect_factors("d_shift", p, &p->d_shift, p->want[2], f32_error(p), u);
    expect_factors("d_scale", p, &p->d_scale, p->want[3], 4.0 * f32_error(p), u);
}

static void add_residual(const problem *p, tape *t, int64_t b, double *d)
{
    const tape_node r = rows_leaf(t, p, &p->residual, b);
    for (int64_t i = 0; p->has_residual && i < p->shape.row_numel * p->cols; i++)
        d[i] += tape_value(t, r)[i];
}

static void check_modulation(tess_dtype dt, tess_sample_shape shape, bool has_residual)
{
    problem p = problem_create(dt, shape, 1);
    p.has_residual = has_residual;
    for (int64_t b = 0; b < shape.sample_numel; b++) {
        tape *t = tape_create();
        tape_node in[3];
        const int64_t numel = shape.row_numel * shape.dim;
        const tape_node y = modulated(t, &p, b, in);
        tape_backward(t, y, tape_value(t, rows_leaf(t, &p, &p.d_y, b)));
        keep(&p, p.want[0], tape_value(t, y), b, numel);
        keep(&p, p.want[1], tape_grad(t, in[0]), b, numel);
        keep(&p, p.want[2], tape_grad(t, in[2]), b, shape.dim);
        keep(&p, p.want[3], tape_grad(t, in[1]), b, shape.dim);
        add_residual(&p, t, b, p.want[1] + b * numel);
        tape_destroy(t);
    }
    const op_run forward = {
        .call = call_modulate, .ctx = &p, .outputs = {&p.y, &p.mean, &p.inv}, .output_numel = 3};
    const op_run backward = {.call = call_modulate_backward,
                             .ctx = &p,
                             .outputs = {&p.d_x, &p.d_shift, &p.d_scale},
                             .output_numel = 3};
    run_everywhere(&forward, check_modulate);
    run_everywhere(&backward, check_modulate_backward);
    problem_destroy(&p);
}

static const tess_sample_shape shapes[] = {
    {1, 1, 2}, {2, 5, 18}, {3, 1, 64}, {1, 33, 34}, {2, 40, 130}};

static void test_modulation_matches_fp64(void **state)
{
    (void)state;
    for (int i = 0; i < TESS_NELEM(shapes); i++)
        for (int v = 0; v < 4; v++)
            check_modulation(v & 1 ? TESS_BF16 : TESS_F32, shapes[i], (v & 2) != 0);
}

/* ---- gates ---- */

static tess_status call_gate(void *ctx, tess_stream *s)
{
    problem *p = ctx;
    const tess_gate_args a = {.shape = p->shape,
                              .x = rows_of(p, &p->x),
                              .f = rows_of(p, &p->f),
                              .gate = p->scale.view,
                              .factor_stride = factor_stride(p),
                              .y = rows_of(p, &p->y)};
    return tess_cpu_gate(&a, s);
}

static tess_status call_gate_backward(void *ctx, tess_stream *s)
{
    problem *p = ctx;
    const tess_gate_backward_args a = {.shape = p->shape,
                                       .d_y = rows_of(p, &p->d_y),
                                       .gate = p->scale.view,
                                       .factor_stride = factor_stride(p),
                                       .d_f = rows_of(p, &p->d_x),
                                       .f = rows_of(p, &p->f),
                                       .d_gate = p->d_scale.view,
                                       .work = p->work.view.data};
    return tess_cpu_gate_backward(&a, s);
}

static void check_gate(void *ctx)
{
    problem *p = ctx;
    expect_rows("y", p, &p->y, p->want[0], 16.0 * F32_U, 1.01 * unit_of(p->x.view.dt));
}

static void check_gate_backward(void *ctx)
{
    problem *p = ctx;
    const double u = 1.01 * unit_of(p->x.view.dt);
    expect_rows("d_f", p, &p->d_x, p->want[1], 16.0 * F32_U, u);
    expect_factors("d_gate", p, &p->d_scale, p->want[2], f32_error(p), u);
}

static void test_gates_match_fp64(void **state)
{
    (void)state;
    for (int i = 0; i < 2 * TESS_NELEM(shapes); i++) {
        const tess_sample_shape shape = shapes[i / 2];
        problem p = problem_create(i & 1 ? TESS_BF16 : TESS_F32, shape, 1);
        for (int64_t b = 0; b < shape.sample_numel; b++) {
            tape *t = tape_create();
            const int64_t numel = shape.row_numel * shape.dim;
            const tape_node f = rows_leaf(t, &p, &p.f, b);
            const tape_node g = row_leaf(t, p.scale.value + b * factor_stride(&p), shape.dim);
            const tape_node y = tape_add(t, rows_leaf(t, &p, &p.x, b), tape_mul_row(t, f, g, 0.0));
            tape_backward(t, y, tape_value(t, rows_leaf(t, &p, &p.d_y, b)));
            keep(&p, p.want[0], tape_value(t, y), b, numel);
            keep(&p, p.want[1], tape_grad(t, f), b, numel);
            keep(&p, p.want[2], tape_grad(t, g), b, shape.dim);
            tape_destroy(t);
        }
        const op_run forward = {.call = call_gate, .ctx = &p, .outputs = {&p.y}, .output_numel = 1};
        const op_run backward = {.call = call_gate_backward,
                                 .ctx = &p,
                                 .outputs = {&p.d_x, &p.d_scale},
                                 .output_numel = 2};
        run_everywhere(&forward, check_gate);
        run_everywhere(&backward, check_gate_backward);
        problem_destroy(&p);
    }
}

/* ---- rotated heads ---- */

static tess_status call_rotate(void *ctx, tess_stream *s)
{
    problem *p = ctx;
    const tess_rotate_args a = {.shape = p->shape,
                                .head_numel = p->head_numel,
                                .x = rows_of(p, &p->x),
                                .w = p->w.view,
                                .eps = 1e-6f,
                                .cos_table = p->cosine.view.data,
                                .sin_table = p->sine.view.data,
                                .y = rows_of(p, &p->y)};
    return tess_cpu_rotate(&a, s);
}

static tess_status call_rotate_backward(void *ctx, tess_stream *s)
{
    problem *p = ctx;
    const tess_rotate_backward_args a = {.shape = p->shape,
                                         .head_numel = p->head_numel,
                                         .x = rows_of(p, &p->x),
                                         .w = p->w.view,
                                         .eps = 1e-6f,
                                         .cos_table = p->cosine.view.data,
                                         .sin_table = p->sine.view.data,
                                         .d_y = rows_of(p, &p->d_y),
                                         .d_x = rows_of(p, &p->d_x),
                                         .d_w = p->d_w.view.data,
                                         .work = p->work.view.data};
    return tess_cpu_rotate_backward(&a, s);
}

static void check_rotate(void *ctx)
{
    problem *p = ctx;
    expect_rows("y", p, &p->y, p->want[0], f32_error(p), 1.01 * unit_of(p->x.view.dt));
}

static void check_rotate_backward(void *ctx)
{
    problem *p = ctx;
    /* 1 / rms of a head of two elements may be some 10. */
    expect_rows("d_x", p, &p->d_x, p->want[1], 16.0 * f32_error(p), 1.01 * unit_of(p->x.view.dt));
    assert_close("d_w", &p->d_w, p->want[2], 4.0 * f32_error(p), 0.0);
}

static void test_rotated_heads_match_fp64(void **state)
{
    (void)state;
    for (int i = 0; i < 2 * TESS_NELEM(shapes); i++) {
        const tess_sample_shape shape = shapes[i / 2];
        problem p = problem_create(i & 1 ? TESS_BF16 : TESS_F32, shape, 1 + i % 3);
        const tape_turn turn = {p.cosine.value, p.sine.value, shape.dim, false};
        memcpy(p.want[2], p.d_w_before, (size_t)shape.dim * sizeof(double));
        for (int64_t b = 0; b < shape.sample_numel; b++) {
            tape *t = tape_create();
            const int64_t numel = shape.row_numel * p.cols;
            const tape_node x = rows_leaf(t, &p, &p.x, b);
            const tape_node w = row_leaf(t, p.w.value, shape.dim);
            const tape_node y = tape_rotate(t, tape_rms_heads(t, x, w, 1e-6), &turn);
            tape_backward(t, y, tape_value(t, rows_leaf(t, &p, &p.d_y, b)));
            keep(&p, p.want[0], tape_value(t, y), b, numel);
            keep(&p, p.want[1], tape_grad(t, x), b, numel);
            for (int64_t k = 0; k < shape.dim; k++)
                p.want[2][k] += tape_grad(t, w)[k];
            tape_destroy(t);
        }
        const op_run forward = {
            .call = call_rotate, .ctx = &p, .outputs = {&p.y}, .output_numel = 1};
        const op_run backward = {.call = call_rotate_backward,
                                 .ctx = &p,
                                 .outputs = {&p.d_x, &p.d_w},
                                 .output_numel = 2};
        run_everywhere(&forward, check_rotate);
        run_everywhere(&backward, check_rotate_backward);
        problem_destroy(&p);
    }
}

static void test_wrong_arguments_are_refused(void **state)
{
    (void)state;
    problem p = problem_create(TESS_F32, (tess_sample_shape){2, 3, 4}, 1);
    tess_modulate_args a = {.shape = p.shape,
                            .x = rows_of(&p, &p.x),
                            .shift = p.shift.view,
                            .scale = p.scale.view,
                            .factor_stride = factor_stride(&p),
                            .y = rows_of(&p, &p.y),
                            .mean = p.mean.view.data,
                            .inv = p.inv.view.data};
    assert_done(tess_modulate_check(&a));
    a.x.row_stride = 3;
    assert_refused(tess_modulate_check(&a), TESS_E_ARG, "rows of x are 3 elements apart");
    a.x = rows_of(&p, &p.x);
    a.y = a.x;
    assert_refused(tess_modulate_check(&a), TESS_E_ARG, "overlaps x");
    a.y = rows_of(&p, &p.y);
    a.y.view.dt = TESS_BF16;
    assert_refused(tess_modulate_check(&a), TESS_E_DTYPE, "y is bf16, expected f32");
    a.y = rows_of(&p, &p.y);
    a.factor_stride = 2;
    assert_refused(tess_modulate_check(&a), TESS_E_ARG, "factors of 4 elements are 2 apart");
    tess_rotate_args r = {.shape = {2, 3, 3}, .head_numel = 1, .w = p.w.view};
    assert_refused(tess_rotate_check(&r), TESS_E_ARG,
                   "heads of 3 elements, expected an even number");
    tess_gate_backward_args g = {.shape = p.shape,
                                 .d_y = rows_of(&p, &p.d_y),
                                 .gate = p.scale.view,
                                 .factor_stride = factor_stride(&p),
                                 .d_f = rows_of(&p, &p.d_y)};
    assert_refused(tess_gate_backward_check(&g), TESS_E_ARG, "overlaps d_y");
    problem_destroy(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_modulation_matches_fp64),
        cmocka_unit_test(test_gates_match_fp64),
        cmocka_unit_test(test_rotated_heads_match_fp64),
        cmocka_unit_test(test_wrong_arguments_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
