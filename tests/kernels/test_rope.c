#include "tests/kernels/op_support.h"

typedef struct problem {
    tess_rope_args args;
    op_buffer x, cos_table, sin_table;
    int32_t positions[64];
    double *ref;
} problem;

enum { TABLE_ROWS = 40 };

static problem problem_create(tess_dtype dt, ref_rope_shape shape, bool inverse)
{
    problem p = {0};
    const int64_t half = shape.dim / 2, numel = shape.token_numel * shape.head_numel * shape.dim;
    p.x = buffer_random(dt, numel, 7, 1.0);
    p.cos_table = buffer_create(TESS_F32, TABLE_ROWS * half, true);
    p.sin_table = buffer_create(TESS_F32, TABLE_ROWS * half, false);
    for (int64_t i = 0; i < TABLE_ROWS * half; i++) {
        const double angle =
            (double)(i / half) * pow(10000.0, -2.0 * (double)(i % half) / (double)shape.dim);
        buffer_set(&p.cos_table, i, (float)cos(angle));
        buffer_set(&p.sin_table, i, (float)sin(angle));
    }
    buffer_read(&p.cos_table);
    buffer_read(&p.sin_table);
    p.ref = doubles(numel);
    memcpy(p.ref, p.x.value, (size_t)numel * sizeof *p.ref);
    p.args = (tess_rope_args){.x = p.x.view,
                              .token_numel = shape.token_numel,
                              .head_numel = shape.head_numel,
                              .dim = shape.dim,
                              .cos_table = p.cos_table.view.data,
                              .sin_table = p.sin_table.view.data,
                              .table_rows = TABLE_ROWS,
                              .inverse = inverse};
    return p;
}

static void problem_destroy(problem *p)
{
    buffer_destroy(&p->x);
    buffer_destroy(&p->cos_table);
    buffer_destroy(&p->sin_table);
    tess_free(p->ref);
}

static tess_status call(void *ctx, tess_stream *s)
{
    return tess_cpu_rope(&((problem *)ctx)->args, s);
}

/* Two products and a sum in f32 of magnitudes at most 2 max|x|, one rounding to dt. */
static void check(void *ctx)
{
    problem *p = ctx;
    const double x_max = largest(p->ref, p->x.view.numel);
    assert_close("x", &p->x, p->ref, 4.0 * 2.0 * x_max * F32_U, unit_of(p->x.view.dt) * 1.01);
}

static void test_rope_matches_reference_both_ways(void **state)
{
    (void)state;
    static const ref_rope_shape shapes[] = {
        {1, 1, 2}, {5, 3, 10}, {33, 2, 64}, {20, 9, 128}, {0, 1, 4}};
    for (int i = 0; i < TESS_NELEM(shapes); i++)
        for (int variant = 0; variant < 4; variant++) {
            problem p = problem_create(variant % 2 ? TESS_BF16 : TESS_F32, shapes[i], variant >= 2);
            for (int t = 0; t < 64; t++)
                p.positions[t] = t * 7 % TABLE_ROWS;
            p.args.positions = p.positions;
            ref_rope(shapes[i], p.positions, p.cos_table.value, p.sin_table.value,
                     p.args.inverse ? -1.0 : 1.0, p.ref);
            const op_run run = {.call = call, .ctx = &p, .outputs = {&p.x}, .output_numel = 1};
            run_everywhere(&run, check);
            problem_destroy(&p);
        }
}

/* Head dim 4, theta 10000, position 1, x = {1,0,0,0}: half split, not interleaved. */
static void test_rope_known_answer(void **state)
{
    (void)state;
    float x[4] = {1, 0, 0, 0};
    const float cos_table[4] = {1, 1, (float)cos(1.0), (float)cos(0.01)};
    const float sin_table[4] = {0, 0, (float)sin(1.0), (float)sin(0.01)};
    const int32_t position = 1;
    const tess_rope_args a = {.x = tess_view_host(x, 4, TESS_F32),
                              .token_numel = 1,
                              .head_numel = 1,
                              .dim = 4,
                              .positions = &position,
                              .cos_table = cos_table,
                              .sin_table = sin_table,
                              .table_rows = 2};
    tess_stream s;
    tess_stream_init_inline(&s, "test", NULL);
    assert_int_equal(tess_cpu_rope(&a, &s), TESS_OK);
    static const double want[4] = {.5403023, 0, .8414710, 0};
    for (int i = 0; i < 4; i++)
        assert_true(fabs((double)x[i] - want[i]) < 1e-7);
}

static void test_rope_wrong_arguments_are_refused(void **state)
{
    (void)state;
    const ref_rope_shape shape = {3, 2, 6};
    problem p = problem_create(TESS_F32, shape, false);
    p.args.positions = p.positions;
    p.positions[2] = TABLE_ROWS;
    assert_refused(tess_rope_check(&p.args), TESS_E_RANGE,
                   "position 40 of token 2 is outside the table of 40 rows");
    p.positions[2] = -1;
    assert_refused(tess_rope_check(&p.args), TESS_E_RANGE, "position -1 of token 2");
    p.positions[2] = 0;
    p.args.dim = 5;
    assert_refused(tess_rope_check(&p.args), TESS_E_ARG, "dim is 5, expected an even number");
    problem_destroy(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rope_matches_reference_both_ways),
        cmocka_unit_test(test_rope_known_answer),
        cmocka_unit_test(test_rope_wrong_arguments_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
