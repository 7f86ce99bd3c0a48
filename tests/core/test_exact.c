#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "core/exact.h"
#include "core/rng.h"

/* Bits, so that -0 and NaN cannot hide. */
#define assert_same_double(got, want)                                                              \
    do {                                                                                           \
        const double got_ = (got), want_ = (want);                                                 \
        if (memcmp(&got_, &want_, sizeof got_) != 0)                                               \
            fail_msg("got %a, want %a", got_, want_);                                              \
    } while (0)

static double sum_of(const double *x, int numel)
{
    tess_exact acc = {{0}};
    for (int i = 0; i < numel; i++)
        assert_true(tess_exact_add(&acc, x[i]));
    return tess_exact_round(&acc);
}

static void test_round_gives_back_every_kind_of_double(void **state)
{
    (void)state;
    static const double values[] = {0.0,
                                    1.0,
                                    -1.0,
                                    0x1p-1074,
                                    -0x1p-1074,
                                    0x1p-1022,
                                    0x1.8p-1070,
                                    0x1.fffffffffffffp1023,
                                    -0x1.fffffffffffffp1023,
                                    0x1.fffffffffffffp-1022,
                                    1e300,
                                    -1e-300,
                                    0x0.fffffffffffffp-1022,
                                    3.141592653589793,
                                    0x1p32,
                                    0x1p31};
    for (int i = 0; i < TESS_NELEM(values); i++)
        assert_same_double(sum_of(&values[i], 1), values[i]);
    const double negative_zero = -0.0;
    assert_same_double(sum_of(&negative_zero, 1), 0.0);
}

static void test_add_refuses_nonfinite_and_changes_nothing(void **state)
{
    (void)state;
    static const double bad[] = {NAN, INFINITY, -INFINITY};
    tess_exact acc = {{0}};
    assert_true(tess_exact_add(&acc, 1.5));
    const tess_exact before = acc;
    for (int i = 0; i < TESS_NELEM(bad); i++) {
        assert_false(tess_exact_add(&acc, bad[i]));
        assert_memory_equal(&acc, &before, sizeof acc);
    }
}

static void test_round_is_to_nearest_even(void **state)
{
    (void)state;
    const double down[] = {1.0, 0x1p-53};             /* tie, even below */
    const double up[] = {1.0 + 0x1p-52, 0x1p-53};     /* tie, even above */
    const double above[] = {1.0, 0x1p-53, 0x1p-1074}; /* just above the tie */
    const double below[] = {1.0 + 0x1p-52, 0x1p-53, -0x1p-1074};
    const double carry[] = {0x1.fffffffffffffp0, 0x1p-53}; /* carries into the next power */
    assert_same_double(sum_of(down, 2), 1.0);
    assert_same_double(sum_of(up, 2), 1.0 + 0x1p-51);
    assert_same_double(sum_of(above, 3), 1.0 + 0x1p-52);
    assert_same_double(sum_of(below, 3), 1.0 + 0x1p-52);
    assert_same_double(sum_of(carry, 2), 2.0);
    const double negative[] = {-1.0, -0x1p-53, -0x1p-1074};
    assert_same_double(sum_of(negative, 3), -1.0 - 0x1p-52);
}

static void test_cancellation_is_exact(void **state)
{
    (void)state;
    const double tiny[] = {1e308, 1.0, -1e308, 0x1p-1074, -1.0};
    assert_same_double(sum_of(tiny, 5), 0x1p-1074);
    const double nothing[] = {1e308, -0x1p-1074, 0x1p-1074, -1e308};
    assert_same_double(sum_of(nothing, 4), 0.0);
    const double borrow[] = {0x1p64, -0x1p-1000, -0x1p64};
    assert_same_double(sum_of(borrow, 3), -0x1p-1000);
}

static void test_overflow_rounds_to_infinity(void **state)
{
    (void)state;
    const double max = 0x1.fffffffffffffp1023;
    const double over[] = {max, max}, under[] = {-max, -max};
    const double back[] = {max, max, -max};
    const double tie[] = {max, 0x1p970};
    const double below_tie[] = {max, 0x1p970, -0x1p-1074};
    assert_same_double(sum_of(over, 2), INFINITY);
    assert_same_double(sum_of(under, 2), -INFINITY);
    assert_same_double(sum_of(back, 3), max);
    assert_same_double(sum_of(tie, 2), INFINITY);
    assert_same_double(sum_of(below_tie, 3), max);
}

/* Values of 40 binades: their sum fits the 113 bits of __float128 without rounding, so one
 * conversion gives the correctly rounded sum. */
static void test_random_sums_equal_float128(void **state)
{
    (void)state;
    for (uint32_t trial = 0; trial < 200; trial++) {
        const tess_rng rng = tess_rng_make(9, TESS_RNG_TEST, 0, trial);
        tess_exact acc = {{0}};
        __float128 sum = 0;
        for (uint64_t i = 0; i < 500; i++) {
            const int exponent = (int)tess_rng_below(&rng, 1000 + i, 40) - 20 - (int)trial;
            const double x = ldexp(tess_rng_normal(&rng, i), exponent);
            /* keep 53 + 40 + 9 bits: cut the last bits so that no value reaches lower */
            const double cut = ldexp(nearbyint(ldexp(x, 80 + (int)trial)), -80 - (int)trial);
            assert_true(tess_exact_add(&acc, cut));
            sum += (__float128)cut;
        }
        assert_same_double(tess_exact_round(&acc), (double)sum);
    }
}

/* As ranks do it: limbs are summed one by one. */
static void merge(tess_exact *acc, const tess_exact *other)
{
    for (int i = 0; i < TESS_EXACT_LIMB_NUMEL; i++)
        acc->limb[i] += other->limb[i];
}

/* Any order of additions and any grouping into accumulators gives the same rounded sum. */
static void test_order_and_grouping_do_not_matter(void **state)
{
    (void)state;
    enum { NUMEL = 600 };
    const tess_rng rng = tess_rng_make(10, TESS_RNG_TEST, 0, 0);
    double x[NUMEL];
    for (uint64_t i = 0; i < NUMEL; i++)
        x[i] = ldexp(tess_rng_normal(&rng, i), (int)tess_rng_below(&rng, 5000 + i, 2000) - 1000);
    const double want = sum_of(x, NUMEL);
    for (uint32_t group_numel = 1; group_numel <= 8; group_numel++) {
        const tess_rng order = tess_rng_make(11, TESS_RNG_SHUFFLE, 0, group_numel);
        tess_exact acc[8] = {{{0}}}, total = {{0}};
        for (int64_t i = 0; i < NUMEL; i++)
            assert_true(tess_exact_add(&acc[(uint32_t)i % group_numel],
                                       x[tess_rng_permute(&order, NUMEL, i)]));
        for (uint32_t g = group_numel; g-- > 0;)
            merge(&total, &acc[g]);
        assert_same_double(tess_exact_round(&total), want);
    }
}

/* 2^20 additions of the largest significand: limbs hold 2^30 of them without a carry. */
static void test_many_additions_need_no_carry(void **state)
{
    (void)state;
    const double x = 0x1.fffffffffffffp0;
    tess_exact acc = {{0}};
    for (int i = 0; i < 1 << 20; i++)
        assert_true(tess_exact_add(&acc, x));
    assert_same_double(tess_exact_round(&acc), ldexp(x, 20));
    tess_exact sum = acc;
    for (int i = 1; i < 512; i++) /* as 512 ranks */
        merge(&sum, &acc);
    assert_same_double(tess_exact_round(&sum), ldexp(x, 29));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_gives_back_every_kind_of_double),
        cmocka_unit_test(test_add_refuses_nonfinite_and_changes_nothing),
        cmocka_unit_test(test_round_is_to_nearest_even),
        cmocka_unit_test(test_cancellation_is_exact),
        cmocka_unit_test(test_overflow_rounds_to_infinity),
        cmocka_unit_test(test_random_sums_equal_float128),
        cmocka_unit_test(test_order_and_grouping_do_not_matter),
        cmocka_unit_test(test_many_additions_need_no_carry),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
