#include "tests/kernels/op_support.h"

enum { CHUNKS = 16 };

typedef struct problem {
    ref_rows rows;
    tess_row_norm_args lengths;
    tess_dora_args forward;
    tess_dora_backward_args backward;
    op_buffer x, norm, z, magnitude, bias, y, d_y, d_z, d_direct, d_magnitude, work;
    double *y_ref, *norm_ref, *d_z_ref, *d_direct_ref, *d_magnitude_ref;
} problem;

static problem problem_create(tess_dtype dt, tess_dtype y_dt, ref_rows rows, bool accumulate)
{
    problem p = {.rows = rows};
    const int64_t numel = rows.row_numel * rows.dim;
    p.x = buffer_random(TESS_F32, numel, 3, 2.0);
    p.norm = buffer_create(TESS_F32, TESS_MAX(rows.row_numel, rows.dim), true);
    p.z = buffer_random(dt, numel, 4, 2.0);
    p.magnitude = buffer_random(dt, rows.dim, 5, 1.0);
    p.bias = buffer_random(dt == TESS_BF16 ? TESS_F32 : TESS_BF16, rows.dim, 6, 1.0);
    p.y = buffer_random(y_dt, numel, 7, 1.0);
    p.d_y = buffer_random(dt, numel, 8, 1.0);
    p.d_z = buffer_create(dt, numel, true);
    p.d_direct = buffer_create(dt, numel, false);
    p.d_magnitude = buffer_create(TESS_F32, rows.dim, true);
    p.work = buffer_create(TESS_F32, rows.dim * CHUNKS, false);
    for (int64_t i = 0; i < rows.dim; i++) /* from 1/2 to 2, and one row of zeros */
        ((float *)p.norm.view.data)[i] = i == 2 ? 0.0f : exp2f((float)(i % 17) / 8.0f - 1.0f);
    buffer_read(&p.norm);
    p.lengths = (tess_row_norm_args){p.x.view.data, rows.row_numel, rows.dim, dt, NULL};
    p.forward = (tess_dora_args){.z = p.z.view,
                                 .magnitude = p.magnitude.view,
                                 .norm = p.norm.view.data,
                                 .bias = p.bias.view,
                                 .row_numel = rows.row_numel,
                                 .dim = rows.dim,
                                 .accumulate = accumulate,
                                 .y = p.y.view};
    p.backward = (tess_dora_backward_args){.d_y = p.d_y.view,
                                           .z = p.z.view,
                                           .magnitude = p.magnitude.view,
                                           .norm = p.norm.view.data,
                                           .row_numel = rows.row_numel,
                                           .dim = rows.dim,
                                           .d_z = p.d_z.view,
                                           .d_direct = p.d_direct.view,
                                           .d_magnitude = p.d_magnitude.view.data,
                                           .work = p.work.view.data};
    double **const ref[] = {&p.y_ref, &p.norm_ref, &p.d_z_ref, &p.d_direct_ref, &p.d_magnitude_ref};
    for (int i = 0; i < TESS_NELEM(ref); i++)
        *ref[i] = doubles(TESS_MAX(numel, rows.dim));
    return p;
}

static void problem_destroy(problem *p)
{
    op_buffer *buffers[] = {&p->x,   &p->norm, &p->z,        &p->magnitude,   &p->bias, &p->y,
                            &p->d_y, &p->d_z,  &p->d_direct, &p->d_magnitude, &p->work};
    double *refs[] = {p->y_ref, p->norm_ref, p->d_z_ref, p->d_direct_ref, p->d_magnitude_ref};
    for (int i = 0; i < TESS_NELEM(buffers); i++)
        buffer_destroy(buffers[i]);
    for (int i = 0; i < TESS_NELEM(refs); i++)
        tess_free(refs[i]);
}

static tess_status call_forward(void *ctx, tess_stream *s)
{
    return tess_cpu_dora_forward(&((problem *)ctx)->forward, s);
}

static tess_status call_backward(void *ctx, tess_stream *s)
{
    return tess_cpu_dora_backward(&((problem *)ctx)->backward, s);
}

static tess_status call_lengths(void *ctx, tess_stream *s)
{
    return tess_cpu_row_norm(&((problem *)ctx)->lengths, s);
}

/* g, its product, the bias and the old y: 4 roundings of f32 to values of at most the largest of
 * them, and one to the dtype of y. */
static void check_forward(void *ctx)
{
    problem *p = ctx;
    const double most = 4.0 * largest(p->z.value, p->z.view.numel) + 8.0;
    assert_close("y", &p->y, p->y_ref, most * 4.0 * F32_U, unit_of(p->y.view.dt) * 1.01);
}

/* The sum of R products in 16 chunks, then a quotient by at least 1/2. */
static void check_backward(void *ctx)
{
    problem *p = ctx;
    const double d = largest(p->d_y.value, p->d_y.view.numel);
    const double z = largest(p->z.value, p->z.view.numel);
    const double m = largest(p->magnitude.value, p->rows.dim);
    const double u = unit_of(p->z.view.dt) * 1.01;
    assert_close("d_z", &p->d_z, p->d_z_ref, 0.0, u + 3.0 * F32_U);
    assert_close("d_direct", &p->d_direct, p->d_direct_ref, (2.0 * m + 1.0) * d * 3.0 * F32_U, u);
    const double terms = (double)p->rows.row_numel * d * z * 2.0;
    assert_close("d_magnitude", &p->d_magnitude, p->d_magnitude_ref,
                 terms * ((double)p->rows.row_numel + 18.0) * F32_U, 2.0 * F32_U);
}

/* D squares of one sign in 16 lanes and a tree, halved by the root, then one more rounding. */
static void check_lengths(void *ctx)
{
    problem *p = ctx;
    const double sums = ((double)p->rows.dim / 32.0 + 8.0) * F32_U;
    op_buffer rows = p->norm;
    rows.view.numel = p->rows.row_numel;
    assert_close("norm", &rows, p->norm_ref, 1e-37, sums + unit_of(p->lengths.dt) * 1.01);
}

static void check_problem(tess_dtype dt, tess_dtype y_dt, ref_rows rows, bool accumulate)
{
    problem p = problem_create(dt, y_dt, rows, accumulate);
    ref_dora(rows, p.z.value, p.magnitude.value, p.norm.value, p.y_ref);
    ref_add_bias(rows, p.bias.value, p.y_ref);
    if (accumulate)
        ref_add(p.y.view.numel, p.y_ref, p.y.value, p.y_ref);
    double *grads[3] = {p.d_z_ref, p.d_direct_ref, p.d_magnitude_ref};
    ref_dora_backward(rows, p.z.value, p.magnitude.value, p.norm.value, p.d_y.value, grads);
    const op_run forward = {.call = call_forward, .ctx = &p, .outputs = {&p.y}, .output_numel = 1};
    run_everywhere(&forward, check_forward);
    const op_run backward = {.call = call_backward,
                             .ctx = &p,
                             .outputs = {&p.d_z, &p.d_direct, &p.d_magnitude, &p.work},
                             .output_numel = 4};
    run_everywhere(&backward, check_backward);
    p.lengths.norm = p.norm.view.data; /* from here on the norms are those of x */
    for (int64_t r = 0; r < rows.row_numel; r++)
        p.norm_ref[r] = sqrt(ref_square_norm(rows.dim, p.x.value + r * rows.dim));
    const op_run lengths = {
        .call = call_lengths, .ctx = &p, .outputs = {&p.norm}, .output_numel = 1};
    run_everywhere(&lengths, check_lengths);
    problem_destroy(&p);
}

static void test_dora_matches_reference(void **state)
{
    (void)state;
    static const ref_rows shapes[] = {{1, 1}, {3, 15}, {37, 16}, {50, 129}, {19, 576}, {0, 8}};
    for (int i = 0; i < 2 * TESS_NELEM(shapes); i++) {
        check_problem(TESS_F32, TESS_F32, shapes[i / 2], i % 2 == 0);
        check_problem(TESS_BF16, TESS_BF16, shapes[i / 2], i % 2 == 0);
        check_problem(TESS_BF16, TESS_F32, shapes[i / 2], i % 2 == 0);
    }
}

/* formats.md 9.2: W = {3,4}, delta {0,1}: m 5, n sqrt(34), m / n .8574929. */
static void test_dora_known_answer(void **state)
{
    (void)state;
    float w[2] = {3, 4}, changed[2] = {3, 5}, m = 0, n = 0, y = 0, z = 1;
    tess_stream s;
    tess_stream_init_inline(&s, "test", NULL);
    const tess_row_norm_args before = {w, 1, 2, TESS_F32, &m},
                             after = {changed, 1, 2, TESS_F32, &n};
    assert_int_equal(tess_cpu_row_norm(&before, &s), TESS_OK);
    assert_int_equal(tess_cpu_row_norm(&after, &s), TESS_OK);
    assert_true(m == 5.0f && fabs((double)n - 5.8309519) < 1e-6);
    const tess_dora_args a = {.z = tess_view_host(&z, 1, TESS_F32),
                              .magnitude = tess_view_host(&m, 1, TESS_F32),
                              .norm = &n,
                              .row_numel = 1,
                              .dim = 1,
                              .y = tess_view_host(&y, 1, TESS_F32)};
    assert_int_equal(tess_cpu_dora_forward(&a, &s), TESS_OK);
    assert_true(fabs((double)y - .8574929) < 1e-7);
}

/* Rows with gaps, and d_z in the place of d_y, give the bits of contiguous ones. */
static void test_dora_strides_and_aliases_give_the_same_bits(void **state)
{
    (void)state;
    const ref_rows rows = {21, 40};
    const int64_t stride = 53, numel = (rows.row_numel - 1) * stride + rows.dim;
    problem p = problem_create(TESS_BF16, TESS_BF16, rows, false);
    op_buffer wide = buffer_create(TESS_BF16, numel, false), back = p.d_y;
    tess_stream s;
    tess_stream_init_inline(&s, "test", NULL);
    assert_int_equal(tess_cpu_dora_forward(&p.forward, &s), TESS_OK);
    tess_dora_args f = p.forward;
    f.y = wide.view;
    f.y_stride = stride;
    assert_int_equal(tess_cpu_dora_forward(&f, &s), TESS_OK);
    const uint16_t *got = wide.view.data, *want = p.y.view.data;
    for (int64_t i = 0; i < rows.row_numel * rows.dim; i++)
        assert_int_equal(got[i / rows.dim * stride + i % rows.dim], want[i]);
    assert_int_equal(tess_cpu_dora_backward(&p.backward, &s), TESS_OK);
    tess_dora_backward_args b = p.backward;
    b.d_z = back.view;
    b.d_direct.numel = 0;
    assert_int_equal(tess_cpu_dora_backward(&b, &s), TESS_OK);
    assert_memory_equal(back.view.data, p.d_z.view.data, tess_view_nbytes(p.d_z.view));
    buffer_destroy(&wide);
    problem_destroy(&p);
}

static void test_dora_wrong_arguments_are_refused(void **state)
{
    (void)state;
    const ref_rows rows = {4, 10};
    problem p = problem_create(TESS_BF16, TESS_BF16, rows, false);
    tess_dora_args a = p.forward;
    a.magnitude.numel = 9;
    assert_refused(tess_dora_check(&a), TESS_E_ARG, "magnitude holds 9 elements, expected 10");
    a = p.forward;
    a.y = a.z;
    assert_refused(tess_dora_check(&a), TESS_E_ARG, "overlaps z");
    a = p.forward;
    a.norm = NULL;
    assert_refused(tess_dora_check(&a), TESS_E_ARG, "norm is missing");
    tess_dora_backward_args b = p.backward;
    b.d_z = b.d_y;
    b.d_z_stride = 12;
    b.row_numel = 1;
    b.z.numel = b.d_y.numel = b.d_z.numel = b.d_direct.numel = 10;
    assert_refused(tess_dora_backward_check(&b), TESS_E_ARG, "takes the place of d_y");
    b = p.backward;
    b.d_direct.dt = TESS_F32;
    assert_refused(tess_dora_backward_check(&b), TESS_E_DTYPE, "d_direct is f32, expected bf16");
    tess_row_norm_args n = p.lengths;
    assert_refused(tess_row_norm_check(&n), TESS_E_ARG, "norm is missing");
    n.dt = TESS_F16;
    assert_refused(tess_row_norm_check(&n), TESS_E_DTYPE, "rounded to f16");
    problem_destroy(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dora_matches_reference),
        cmocka_unit_test(test_dora_known_answer),
        cmocka_unit_test(test_dora_strides_and_aliases_give_the_same_bits),
        cmocka_unit_test(test_dora_wrong_arguments_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
