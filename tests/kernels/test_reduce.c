#include "tests/kernels/op_support.h"

typedef struct problem {
    op_buffer a, b, dst;
    double *ref;
    tess_exact acc;
    int64_t nonfinite_numel;
} problem;

static tess_status call_fold(void *ctx, tess_stream *s)
{
    const problem *p = ctx;
    const tess_fold_args a = {p->a.view.data, p->b.view.data, p->dst.view.data, p->a.view.numel};
    return tess_cpu_fold(&a, s);
}

/* One f32 sum is exact to u32 of itself. */
static void check_fold(void *ctx)
{
    problem *p = ctx;
    assert_close("dst", &p->dst, p->ref, 0.0, F32_U);
}

static const int64_t sizes[] = {0, 1, 255, 256, 257, 5000, 70001, 300000};

static void test_fold_matches_reference(void **state)
{
    (void)state;
    for (int i = 0; i < TESS_NELEM(sizes); i++) {
        problem p = {.a = buffer_random(TESS_F32, sizes[i], 51, 1.0),
                     .b = buffer_random(TESS_F32, sizes[i], 52, 1.0),
                     .dst = buffer_create(TESS_F32, sizes[i], true),
                     .ref = doubles(sizes[i])};
        ref_add(sizes[i], p.a.value, p.b.value, p.ref);
        const op_run run = {.call = call_fold, .ctx = &p, .outputs = {&p.dst}, .output_numel = 1};
        run_everywhere(&run, check_fold);
        buffer_destroy(&p.dst);
        p.dst = p.a; /* in place */
        run_once(&run, 2);
        buffer_read(&p.dst);
        check_fold(&p);
        buffer_destroy(&p.a);
        buffer_destroy(&p.b);
        tess_free(p.ref);
    }
}

static tess_status call_norm(void *ctx, tess_stream *s)
{
    problem *p = ctx;
    memset(&p->acc, 0, sizeof p->acc);
    p->nonfinite_numel = 0;
    const tess_square_norm_args a = {p->a.view.data, p->a.view.numel, &p->acc, &p->nonfinite_numel};
    const tess_status st = tess_cpu_square_norm(&a, s);
    if (st == TESS_OK)
        memcpy(p->dst.view.data, &p->acc, sizeof p->acc);
    return st;
}

/* The rule of the header, bit for bit: ascending fp64 sums of blocks of 256, added exactly. */
static void expected_norm(const problem *p, tess_exact *acc, int64_t *nonfinite_numel)
{
    memset(acc, 0, sizeof *acc);
    *nonfinite_numel = 0;
    for (int64_t lo = 0; lo < p->a.view.numel; lo += 256) {
        double sum = 0.0;
        int64_t bad_numel = 0;
        for (int64_t i = lo; i < TESS_MIN(p->a.view.numel, lo + 256); i++) {
            sum += p->a.value[i] * p->a.value[i];
            bad_numel += isfinite(p->a.value[i]) ? 0 : 1;
        }
        *nonfinite_numel += bad_numel;
        if (bad_numel == 0)
            assert_true(tess_exact_add(acc, sum));
    }
}

static void check_norm(void *ctx)
{
    problem *p = ctx;
    tess_exact acc;
    int64_t nonfinite_numel = 0;
    expected_norm(p, &acc, &nonfinite_numel);
    assert_memory_equal(&acc, &p->acc, sizeof acc);
    assert_int_equal(nonfinite_numel, p->nonfinite_numel);
    if (nonfinite_numel == 0) {
        const double want = ref_square_norm(p->a.view.numel, p->a.value);
        assert_true(fabs(tess_exact_round(&p->acc) - want) <=
                    (double)p->a.view.numel * 0x1p-52 * want);
    }
}

static void test_square_norm_matches_rule_and_reference(void **state)
{
    (void)state;
    for (int i = 0; i < TESS_NELEM(sizes); i++)
        for (int with_bad = 0; with_bad < 2; with_bad++) {
            problem p = {.a = buffer_random(TESS_F32, sizes[i], 53, 1e-3),
                         .dst = buffer_create(TESS_I64, TESS_EXACT_LIMB_NUMEL, false)};
            if (with_bad != 0 && sizes[i] > 1) {
                buffer_set(&p.a, sizes[i] - 1, INFINITY);
                buffer_set(&p.a, sizes[i] / 2, NAN);
                buffer_set(&p.a, sizes[i] / 2 - 1, -INFINITY);
                buffer_read(&p.a);
            }
            const op_run run = {
                .call = call_norm, .ctx = &p, .outputs = {&p.dst}, .output_numel = 1};
            run_everywhere(&run, check_norm);
            buffer_destroy(&p.a);
            buffer_destroy(&p.dst);
        }
}

/* Ascending, one rounding an addition: 2^54 swallows a 1 that comes after it, not a 4 before. */
static void test_sum_adds_in_ascending_order(void **state)
{
    (void)state;
    const double x[] = {2.0, 2.0, 0x1p54, 1.0, 1.0};
    double out = NAN;
    tess_stream s;
    tess_stream_init_inline(&s, "test", NULL);
    assert_int_equal(tess_cpu_sum(&(tess_sum_args){x, 5, &out}, &s), TESS_OK);
    assert_true(out == 0x1p54 + 4.0);
    assert_int_equal(tess_cpu_sum(&(tess_sum_args){x, 0, &out}, &s), TESS_OK);
    assert_true(out == 0.0);
}

static void test_exact_add_counts_what_is_not_finite(void **state)
{
    (void)state;
    const double x[] = {0x1p-1000, 1.0, INFINITY, -1.0, NAN};
    tess_exact acc = {{0}};
    int64_t nonfinite_numel = 0;
    tess_stream s;
    tess_stream_init_inline(&s, "test", NULL);
    for (int i = 0; i < TESS_NELEM(x); i++)
        assert_int_equal(
            tess_cpu_exact_add(&(tess_exact_add_args){&x[i], &acc, &nonfinite_numel}, &s), TESS_OK);
    assert_int_equal(nonfinite_numel, 2);
    assert_true(tess_exact_round(&acc) == 0x1p-1000);
}

/* Terms ascending, in fp64: the first two cancel before the third is added. */
static void test_mix_adds_terms_in_order(void **state)
{
    (void)state;
    double x[] = {1e300, 3.0, -1e300, 5.0, 1.0, 7.0};
    tess_stream s;
    tess_stream_init_inline(&s, "test", NULL);
    tess_mix_args a = {
        .x = x, .weight = {1.0, 1.0, 0.5}, .term_numel = 3, .row_numel = 2, .out = x};
    assert_int_equal(tess_cpu_mix(&a, &s), TESS_OK);
    assert_true(x[0] == 0.5 && x[1] == 11.5);
    a.term_numel = TESS_MIX_TERM_MAX + 1;
    assert_refused(tess_cpu_mix(&a, &s), TESS_E_RANGE, "66 terms");
}

static void test_reduce_wrong_arguments_are_refused(void **state)
{
    (void)state;
    float x = 0.0f;
    const tess_fold_args fold = {&x, NULL, &x, 1};
    assert_refused(tess_fold_check(&fold), TESS_E_ARG, "fold: b is missing");
    const tess_square_norm_args norm = {&x, -1, NULL, NULL};
    assert_refused(tess_square_norm_check(&norm), TESS_E_ARG, "numel is -1, expected at least 0");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fold_matches_reference),
        cmocka_unit_test(test_square_norm_matches_rule_and_reference),
        cmocka_unit_test(test_sum_adds_in_ascending_order),
        cmocka_unit_test(test_exact_add_counts_what_is_not_finite),
        cmocka_unit_test(test_mix_adds_terms_in_order),
        cmocka_unit_test(test_reduce_wrong_arguments_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
