#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "core/memory.h"
#include "core/rng.h"

/* Random123, kat_vectors, philox4x32 10. The counter words are quad lo, quad hi, index, purpose. */
static void test_quad_known_answers(void **state)
{
    (void)state;
    static const struct {
        tess_rng rng;
        uint64_t quad;
        uint32_t want[4];
    } cases[] = {
        {{{0, 0}, 0, 0}, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{{0xffffffff, 0xffffffff}, 0xffffffff, 0xffffffff},
         UINT64_MAX,
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{{0xa4093822, 0x299f31d0}, 0x13198a2e, 0x03707344},
         UINT64_C(0x85a308d3243f6a88),
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (int i = 0; i < TESS_NELEM(cases); i++) {
        uint32_t got[4];
        tess_rng_quad(&cases[i].rng, cases[i].quad, got);
        assert_memory_equal(got, cases[i].want, sizeof got);
        for (uint64_t e = 0; e < 4 && cases[i].quad == 0; e++)
            assert_int_equal(tess_rng_u32(&cases[i].rng, e), cases[i].want[e]);
    }
}

static void test_make_places_every_field(void **state)
{
    (void)state;
    const tess_rng rng =
        tess_rng_make(UINT64_C(0x1122334455667788), TESS_RNG_SAMPLE, 0x01abcdef, 99);
    assert_int_equal(rng.key[0], 0x55667788);
    assert_int_equal(rng.key[1], 0x11223344);
    assert_int_equal(rng.index, 99);
    assert_int_equal(rng.purpose_layer, 0x04abcdef); /* the layer keeps 24 bits */
}

/* Each number of [0, numel) exactly once, at sizes around powers of two. */
static void test_permute_is_a_bijection(void **state)
{
    (void)state;
    static const int64_t sizes[] = {1, 2, 3, 4, 5, 7, 16, 17, 63, 64, 65, 1000, 4097};
    enum { LARGEST = 4097 };
    uint8_t seen[LARGEST];
    for (int i = 0; i < TESS_NELEM(sizes); i++)
        for (uint32_t epoch = 0; epoch < 3; epoch++) {
            const tess_rng rng = tess_rng_make(5, TESS_RNG_SHUFFLE, 0, epoch);
            memset(seen, 0, sizeof seen);
            for (int64_t j = 0; j < sizes[i]; j++) {
                const int64_t to = tess_rng_permute(&rng, sizes[i], j);
                assert_in_range(to, 0, sizes[i] - 1);
                assert_int_equal(seen[to]++, 0);
            }
        }
}

static void test_permute_depends_on_the_epoch(void **state)
{
    (void)state;
    const tess_rng first = tess_rng_make(5, TESS_RNG_SHUFFLE, 0, 0);
    const tess_rng second = tess_rng_make(5, TESS_RNG_SHUFFLE, 0, 1);
    int same_numel = 0, fixed_numel = 0;
    for (int64_t j = 0; j < 1000; j++) {
        same_numel += tess_rng_permute(&first, 1000, j) == tess_rng_permute(&second, 1000, j);
        fixed_numel += tess_rng_permute(&first, 1000, j) == j;
    }
    /* Both counts are about Poisson(1): 12 has probability below 1e-9. */
    assert_true(same_numel < 12 && fixed_numel < 12);
}

/* Means and variances of N draws within 5 sigma: sigma of a mean is s / sqrt(N), of a normal's
 * variance sqrt(2 / N). */
static void test_moments_are_right(void **state)
{
    (void)state;
    enum { NUMEL = 40000 };
    const tess_rng rng = tess_rng_make(77, TESS_RNG_TEST, 1, 2);
    double uniform = 0.0, normal = 0.0, square = 0.0, product = 0.0;
    for (uint64_t i = 0; i < NUMEL; i++) {
        const double u = (double)tess_rng_uniform(&rng, i), x = tess_rng_normal(&rng, i);
        assert_true(u >= 0.0 && u < 1.0 && isfinite(x));
        uniform += u;
        normal += x;
        square += x * x;
        product += i % 2 ? x * tess_rng_normal(&rng, i - 1) : 0.0;
    }
    const double root = sqrt((double)NUMEL);
    assert_true(fabs(uniform / NUMEL - 0.5) < 5.0 / sqrt(12.0) / root);
    assert_true(fabs(normal / NUMEL) < 5.0 / root);
    assert_true(fabs(square / NUMEL - 1.0) < 5.0 * sqrt(2.0) / root);
    assert_true(fabs(product / (NUMEL / 2)) < 5.0 / sqrt(NUMEL / 2.0)); /* a pair's two halves */
}

static void test_below_covers_its_range(void **state)
{
    (void)state;
    const tess_rng rng = tess_rng_make(1, TESS_RNG_TEST, 0, 0);
    int count[7] = {0};
    for (uint64_t i = 0; i < 7000; i++) {
        const uint64_t draw = tess_rng_below(&rng, i, 7);
        assert_true(draw < 7);
        count[draw]++;
        assert_int_equal(tess_rng_below(&rng, i, 1), 0);
    }
    for (int i = 0; i < 7; i++) /* 1000 +- 5 sigma, sigma = sqrt(7000 * 6/49) */
        assert_in_range(count[i], 1000 - 147, 1000 + 147);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_quad_known_answers),
        cmocka_unit_test(test_make_places_every_field),
        cmocka_unit_test(test_permute_is_a_bijection),
        cmocka_unit_test(test_permute_depends_on_the_epoch),
        cmocka_unit_test(test_moments_are_right),
        cmocka_unit_test(test_below_covers_its_range),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
