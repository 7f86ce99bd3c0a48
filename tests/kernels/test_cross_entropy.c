#include "tests/kernels/op_support.h"

typedef struct problem {
    tess_cross_entropy_args args;
    op_buffer logits, loss, d_logits;
    int32_t labels[64];
    double *loss_ref, *d_ref;
    ref_rows rows;
} problem;

static problem problem_create(tess_dtype dt, ref_rows rows, double spread)
{
    problem p = {.rows = rows};
    const int64_t numel = rows.row_numel * rows.dim;
    p.logits = buffer_random(TESS_F32, numel, 41, spread);
    p.loss = buffer_create(TESS_F64, rows.row_numel, false);
    p.d_logits = buffer_create(dt, numel, true);
    p.loss_ref = doubles(rows.row_numel);
    p.d_ref = doubles(numel);
    for (int r = 0; r < 64; r++)
        p.labels[r] = r % 5 == 3 ? -1 : (int32_t)(r * 7919 % rows.dim);
    p.args = (tess_cross_entropy_args){.logits = p.logits.view,
                                       .row_numel = rows.row_numel,
                                       .vocab_numel = rows.dim,
                                       .row_loss = p.loss.view.data,
                                       .grad_scale = 1.0f / 128.0f,
                                       .d_logits = p.d_logits.view};
    return p;
}

static void problem_destroy(problem *p)
{
    buffer_destroy(&p->logits);
    buffer_destroy(&p->loss);
    buffer_destroy(&p->d_logits);
    tess_free(p->loss_ref);
    tess_free(p->d_ref);
}

static tess_status call(void *ctx, tess_stream *s)
{
    problem *p = ctx;
    p->args.labels = p->labels;
    return tess_cpu_cross_entropy(&p->args, s);
}

/*
 * z - max rounds once (u32 of at most R = range of the logits): the relative error of an
 * exponential is R u32 + 2 ulp = (R + 4) u32, and so of the fp64 sum; the log turns it into an
 * absolute error of the loss. The gradient adds the roundings of 1/sum, two products and the
 * label's difference (4 u32 of 1) and one rounding to dt.
 */
static void check(void *ctx)
{
    problem *p = ctx;
    const double range = 2.0 * largest(p->logits.value, p->logits.view.numel);
    const double e = (range + 4.0) * F32_U, scale = (double)p->args.grad_scale;
    assert_close("loss", &p->loss, p->loss_ref, e, 1e-15);
    if (p->args.d_logits.numel == 0)
        return;
    assert_close("d_logits", &p->d_logits, p->d_ref, scale * 6.0 * F32_U + 1e-38,
                 2.0 * e + 6.0 * F32_U + unit_of(p->d_logits.view.dt) * 1.01);
}

static void check_problem(tess_dtype dt, ref_rows rows, double spread)
{
    problem p = problem_create(dt, rows, spread);
    ref_cross_entropy(rows, p.logits.value, p.labels, (double)p.args.grad_scale, p.loss_ref,
                      p.d_ref);
    const op_run run = {
        .call = call, .ctx = &p, .outputs = {&p.loss, &p.d_logits}, .output_numel = 2};
    run_everywhere(&run, check);
    p.args.d_logits.numel = 0;
    run_everywhere(&run, check);
    problem_destroy(&p);
}

static void test_cross_entropy_matches_reference(void **state)
{
    (void)state;
    static const ref_rows shapes[] = {{0, 4}, {1, 1}, {7, 3}, {9, 16}, {33, 257}, {6, 4099}};
    for (int i = 0; i < TESS_NELEM(shapes); i++)
        for (int variant = 0; variant < 4; variant++)
            check_problem(variant % 2 ? TESS_BF16 : TESS_F32, shapes[i], variant < 2 ? 2.0 : 30.0);
}

/* Equal logits: loss = log V; and a gradient in place over the logits. */
static void test_cross_entropy_uniform_row_in_place(void **state)
{
    (void)state;
    float z[10];
    double loss = 0.0;
    const int32_t label = 4;
    for (int i = 0; i < 10; i++)
        z[i] = 3.5f;
    const tess_cross_entropy_args a = {.logits = tess_view_host(z, 10, TESS_F32),
                                       .row_numel = 1,
                                       .vocab_numel = 10,
                                       .labels = &label,
                                       .row_loss = &loss,
                                       .grad_scale = 1.0f,
                                       .d_logits = tess_view_host(z, 10, TESS_F32)};
    tess_stream s;
    tess_stream_init_inline(&s, "test", NULL);
    assert_int_equal(tess_cpu_cross_entropy(&a, &s), TESS_OK);
    assert_true(fabs(loss - log(10.0)) < 1e-15);
    for (int i = 0; i < 10; i++)
        assert_true(z[i] == (i == 4 ? 0.1f - 1.0f : 0.1f));
}

/* A non-finite logit must reach the loss: the step's finite flag hangs on it. */
static void test_cross_entropy_nonfinite_logits_reach_the_loss(void **state)
{
    (void)state;
    static const float bad[] = {NAN, INFINITY};
    for (size_t at = 0; at < 40; at += 13)
        for (size_t b = 0; b < 2; b++) {
            float z[40] = {0};
            double loss = 0.0;
            const int32_t label = 2;
            z[at] = bad[b];
            const tess_cross_entropy_args a = {.logits = tess_view_host(z, 40, TESS_F32),
                                               .row_numel = 1,
                                               .vocab_numel = 40,
                                               .labels = &label,
                                               .row_loss = &loss};
            tess_stream s;
            tess_stream_init_inline(&s, "test", NULL);
            assert_int_equal(tess_cpu_cross_entropy(&a, &s), TESS_OK);
            assert_true(!isfinite(loss));
        }
}

static void test_cross_entropy_wrong_arguments_are_refused(void **state)
{
    (void)state;
    const ref_rows rows = {6, 11};
    problem p = problem_create(TESS_F32, rows, 1.0);
    p.args.labels = p.labels;
    p.labels[5] = 11;
    assert_refused(tess_cross_entropy_check(&p.args), TESS_E_RANGE,
                   "label 11 of row 5 is outside the vocabulary of 11");
    p.labels[5] = -2;
    assert_refused(tess_cross_entropy_check(&p.args), TESS_E_RANGE, "label -2 of row 5");
    p.labels[5] = 0;
    p.args.logits.dt = TESS_BF16;
    assert_refused(tess_cross_entropy_check(&p.args), TESS_E_DTYPE, "logits is bf16, expected f32");
    problem_destroy(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cross_entropy_matches_reference),
        cmocka_unit_test(test_cross_entropy_uniform_row_in_place),
        cmocka_unit_test(test_cross_entropy_nonfinite_logits_reach_the_loss),
        cmocka_unit_test(test_cross_entropy_wrong_arguments_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
