#include "tests/kernels/op_support.h"

enum { CHUNKS = 16 };

typedef struct problem {
    tess_rmsnorm_args forward;
    tess_rmsnorm_backward_args backward;
    op_buffer x, w, y, inv_rms, d_y, residual, d_x, d_w, work;
    double *y_ref, *d_x_ref, *d_w_ref;
    ref_rows rows;
} problem;

static const float eps = 1e-5f;

static problem problem_create(tess_dtype dt, tess_dtype w_dt, ref_rows rows)
{
    problem p = {.rows = rows};
    const int64_t numel = rows.row_numel * rows.dim;
    p.x = buffer_random(dt, numel, 3, 2.0);
    p.w = buffer_random(w_dt, rows.dim, 4, 1.0);
    p.y = buffer_create(dt, numel, true);
    p.inv_rms = buffer_create(TESS_F32, rows.row_numel, false);
    p.d_y = buffer_random(dt, numel, 5, 1.0);
    p.residual = buffer_random(dt, numel, 6, 1.0);
    p.d_x = buffer_create(dt, numel, false);
    p.d_w = buffer_create(TESS_F32, rows.dim, true);
    p.work = buffer_create(TESS_F32, rows.dim * CHUNKS, true);
    p.y_ref = doubles(numel);
    p.d_x_ref = doubles(numel);
    p.d_w_ref = doubles(rows.dim);
    p.forward = (tess_rmsnorm_args){.x = p.x.view,
                                    .w = p.w.view,
                                    .row_numel = rows.row_numel,
                                    .dim = rows.dim,
                                    .eps = eps,
                                    .y = p.y.view,
                                    .inv_rms = p.inv_rms.view.data};
    p.backward = (tess_rmsnorm_backward_args){
        p.x.view, p.w.view,        p.inv_rms.view.data, p.d_y.view,      rows.row_numel,
        rows.dim, p.residual.view, p.d_x.view,          p.d_w.view.data, p.work.view.data};
    return p;
}

static void problem_destroy(problem *p)
{
    op_buffer *buffers[] = {&p->x,        &p->w,   &p->y,   &p->inv_rms, &p->d_y,
                            &p->residual, &p->d_x, &p->d_w, &p->work};
    for (int i = 0; i < TESS_NELEM(buffers); i++)
        buffer_destroy(buffers[i]);
    tess_free(p->y_ref);
    tess_free(p->d_x_ref);
    tess_free(p->d_w_ref);
}

static tess_status call_forward(void *ctx, tess_stream *s)
{
    return tess_cpu_rmsnorm_forward(&((problem *)ctx)->forward, s);
}

static tess_status call_backward(void *ctx, tess_stream *s)
{
    return tess_cpu_rmsnorm_backward(&((problem *)ctx)->backward, s);
}

/* Sum of D squares of one sign: relative error below (D / 16 + 6) u32 in 16 lanes and a tree,
 * halved by the root; 4 more roundings; then n and y are rounded to dt. */
static double forward_bound(const problem *p)
{
    return ((double)p->rows.dim / 32.0 + 8.0) * F32_U + 2.0 * unit_of(p->x.view.dt);
}

static void check_forward(void *ctx)
{
    problem *p = ctx;
    assert_close("y", &p->y, p->y_ref, 1e-37, forward_bound(p) * 1.01);
}

/* d_x = (g - n mean(g n)) inv + residual. The mean of D products of any sign errs by
 * (D / 16 + 8) u32 of the mean of magnitudes G N; inv is at most 1 / rms. */
static void check_backward(void *ctx)
{
    problem *p = ctx;
    const double u = unit_of(p->x.view.dt);
    const double g = largest(p->d_y.value, p->d_y.view.numel) * largest(p->w.value, p->rows.dim);
    const op_buffer *inv = &p->inv_rms;
    const double inv_max = largest(inv->value, inv->view.numel);
    const double n_max = largest(p->x.value, p->x.view.numel) * inv_max;
    const double sums = ((double)p->rows.dim / 16.0 + 12.0) * F32_U;
    const double residual = largest(p->residual.value, p->residual.view.numel);
    assert_close("d_x", &p->d_x, p->d_x_ref,
                 inv_max * g * (1.0 + n_max * n_max) * sums + residual * F32_U, u * 1.01);
    /* d_w sums R products d_y * n, n rounded to dt: each errs by u, the sum by R u32 */
    const double terms =
        (double)p->rows.row_numel * n_max * largest(p->d_y.value, p->d_y.view.numel);
    const double n_error = (p->x.view.dt == TESS_BF16 ? BF16_U : 0.0);
    assert_close("d_w", &p->d_w, p->d_w_ref,
                 terms * (n_error + ((double)p->rows.row_numel + sums / F32_U) * F32_U), 0.0);
}

static void check_problem(tess_dtype dt, tess_dtype w_dt, ref_rows rows)
{
    problem p = problem_create(dt, w_dt, rows);
    ref_rmsnorm(rows, p.x.value, p.w.value, (double)eps, p.y_ref);
    double *grads[2] = {p.d_x_ref, p.d_w_ref};
    ref_rmsnorm_backward(rows, p.x.value, p.w.value, (double)eps, p.d_y.value, grads);
    ref_add(p.x.view.numel, p.d_x_ref, p.residual.value, p.d_x_ref);
    const op_run forward = {
        .call = call_forward, .ctx = &p, .outputs = {&p.y, &p.inv_rms}, .output_numel = 2};
    run_everywhere(&forward, check_forward);
    const op_run backward = {
        .call = call_backward, .ctx = &p, .outputs = {&p.d_x, &p.d_w, &p.work}, .output_numel = 3};
    run_everywhere(&backward, check_backward);
    problem_destroy(&p);
}

static void test_rmsnorm_matches_reference(void **state)
{
    (void)state;
    static const ref_rows shapes[] = {{1, 1}, {3, 15}, {37, 16}, {50, 129}, {19, 576}, {0, 8}};
    for (int i = 0; i < TESS_NELEM(shapes); i++) {
        check_problem(TESS_F32, TESS_F32, shapes[i]);
        check_problem(TESS_BF16, TESS_F32, shapes[i]);
        check_problem(TESS_BF16, TESS_BF16, shapes[i]);
    }
}

/* {1,2,3,4}, eps 1e-6, weight 1: the published example, to its 6 digits. */
static void test_rmsnorm_known_answer(void **state)
{
    (void)state;
    float x[4] = {1, 2, 3, 4}, w[4] = {1, 1, 1, 1};
    static const double want[4] = {.365148, .730297, 1.095445, 1.460593};
    const tess_rmsnorm_args a = {.x = tess_view_host(x, 4, TESS_F32),
                                 .w = tess_view_host(w, 4, TESS_F32),
                                 .row_numel = 1,
                                 .dim = 4,
                                 .eps = 1e-6f,
                                 .y = tess_view_host(x, 4, TESS_F32)};
    tess_stream s;
    tess_stream_init_inline(&s, "test", NULL);
    assert_int_equal(tess_cpu_rmsnorm_forward(&a, &s), TESS_OK);
    for (int i = 0; i < 4; i++)
        assert_true(fabs((double)x[i] - want[i]) < 1e-6);
}

/* Every alias the header allows gives the bits of separate buffers. */
static void test_rmsnorm_aliases_give_the_same_bits(void **state)
{
    (void)state;
    const ref_rows rows = {21, 100};
    problem p = problem_create(TESS_BF16, TESS_F32, rows);
    tess_stream s;
    tess_stream_init_inline(&s, "test", NULL);
    assert_int_equal(tess_cpu_rmsnorm_forward(&p.forward, &s), TESS_OK);
    assert_int_equal(tess_cpu_rmsnorm_backward(&p.backward, &s), TESS_OK);
    const size_t nbytes = tess_view_nbytes(p.y.view);
    op_buffer copy = buffer_create(TESS_BF16, p.x.view.numel, false);
    op_buffer d_w = buffer_create(TESS_F32, rows.dim, false);
    for (int alias = 0; alias < 2; alias++) {
        const op_buffer *over = alias == 0 ? &p.d_y : &p.residual;
        tess_rmsnorm_backward_args b = p.backward;
        memcpy(copy.view.data, over->view.data, nbytes);
        memset(d_w.view.data, 0, tess_view_nbytes(d_w.view));
        *(alias == 0 ? &b.d_y : &b.residual) = copy.view;
        b.d_x = copy.view;
        b.d_w = d_w.view.data;
        assert_int_equal(tess_cpu_rmsnorm_backward(&b, &s), TESS_OK);
        assert_memory_equal(copy.view.data, p.d_x.view.data, nbytes);
        assert_memory_equal(d_w.view.data, p.d_w.view.data, tess_view_nbytes(d_w.view));
    }
    tess_rmsnorm_args in_place = p.forward;
    in_place.y = in_place.x;
    assert_int_equal(tess_cpu_rmsnorm_forward(&in_place, &s), TESS_OK);
    assert_memory_equal(p.x.view.data, p.y.view.data, nbytes);
    buffer_destroy(&copy);
    buffer_destroy(&d_w);
    problem_destroy(&p);
}

static void test_rmsnorm_wrong_arguments_are_refused(void **state)
{
    (void)state;
    const ref_rows rows = {4, 10};
    problem p = problem_create(TESS_F32, TESS_F32, rows);
    tess_rmsnorm_args a = p.forward;
    a.w.numel = 9;
    assert_refused(tess_rmsnorm_check(&a), TESS_E_ARG, "w holds 9 elements, expected 10");
    a = p.forward;
    a.y.dt = TESS_BF16;
    assert_refused(tess_rmsnorm_check(&a), TESS_E_DTYPE, "y is bf16, expected f32");
    a = p.forward;
    a.y.data = (float *)a.x.data + 1;
    assert_refused(tess_rmsnorm_check(&a), TESS_E_ARG, "overlaps x in part");
    tess_rmsnorm_backward_args b = p.backward;
    b.work = NULL;
    assert_refused(tess_rmsnorm_backward_check(&b), TESS_E_ARG, "work is missing");
    b = p.backward;
    b.d_x = b.x;
    assert_refused(tess_rmsnorm_backward_check(&b), TESS_E_ARG, "overlaps x");
    problem_destroy(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rmsnorm_matches_reference),
        cmocka_unit_test(test_rmsnorm_known_answer),
        cmocka_unit_test(test_rmsnorm_aliases_give_the_same_bits),
        cmocka_unit_test(test_rmsnorm_wrong_arguments_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
