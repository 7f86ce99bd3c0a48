/* Keys of the nearest codes against brute force over canonical distances, on every path and number
 * of threads; ties, cancellation and bounds that are not finite. */
#include <fenv.h>
#include <stdlib.h>

#include "kernels/codebook.h"
#include "kernels/nearest.h"
#include "tests/kernels/op_support.h"

typedef struct problem {
    int64_t n, k, d;
    int best;
    int64_t first_row;
    float *x, *code;
    uint64_t *key, *expected;
} problem;

static const tess_cpu_path paths[] = {TESS_CPU_PORTABLE, TESS_CPU_AVX2, TESS_CPU_AVX512};

static problem make(int64_t n, int64_t k, int64_t d, int best)
{
    return (problem){.n = n,
                     .k = k,
                     .d = d,
                     .best = best,
                     .x = must_alloc((size_t)(n * d) * 4),
                     .code = must_alloc((size_t)(k * d) * 4),
                     .key = must_alloc((size_t)(n * best) * 8),
                     .expected = must_alloc((size_t)(n * best) * 8)};
}

static void destroy(problem *p)
{
    tess_free(p->x);
    tess_free(p->code);
    tess_free(p->key);
    tess_free(p->expected);
}

static void fill(float *dst, int64_t numel, uint32_t layer, float scale, float offset)
{
    const tess_rng rng = tess_rng_make(91, TESS_RNG_TEST, layer, 0);
    tess_rng_normal_fill(&rng, 0, numel, scale, dst);
    for (int64_t i = 0; i < numel; i++)
        dst[i] += offset;
}

static int by_key(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void brute_force(const problem *p)
{
    uint64_t *all = must_alloc((size_t)TESS_MAX(p->k, 1) * 8);
    for (int64_t i = 0; i < p->n; i++) {
        for (int64_t k = 0; k < p->k; k++) {
            double acc = 0.0;
            for (int64_t j = 0; j < p->d; j++) {
                const double t = (double)p->x[i * p->d + j] - (double)p->code[k * p->d + j];
                acc = fma(t, t, acc);
            }
            all[k] = tess_key_make((float)acc, (uint32_t)(p->first_row + k));
        }
        qsort(all, (size_t)p->k, 8, by_key);
        for (int b = 0; b < p->best; b++)
            p->expected[i * p->best + b] = b < p->k ? all[b] : TESS_NO_KEY;
    }
    tess_free(all);
}

static void search(const problem *p, tess_pool *pool)
{
    tess_stream s;
    tess_stream_init_inline(&s, "test", pool);
    const size_t pack_nbytes = tess_kernels_cpu.nearest_pack_nbytes(p->k, p->d);
    const size_t work_nbytes =
        tess_kernels_cpu.nearest_work_nbytes(p->d, p->best, tess_pool_thread_numel(pool));
    void *pack = must_alloc(pack_nbytes), *work = must_alloc(work_nbytes);
    const tess_nearest_prepare_args prepare = {
        .code = tess_view_host(p->code, p->k * p->d, TESS_F32),
        .pack = tess_view_host(pack, (int64_t)pack_nbytes, TESS_U8_OPAQUE),
        .code_numel = p->k,
        .dim = p->d};
    assert_int_equal(tess_cpu_nearest_prepare(&prepare, &s), TESS_OK);
    const tess_nearest_args args = {.x = tess_view_host(p->x, p->n * p->d, TESS_F32),
                                    .code = prepare.code,
                                    .pack = prepare.pack,
                                    .key = tess_view_host(p->key, p->n * p->best, TESS_U64),
                                    .work =
                                        tess_view_host(work, (int64_t)work_nbytes, TESS_U8_OPAQUE),
                                    .vector_numel = p->n,
                                    .code_numel = p->k,
                                    .dim = p->d,
                                    .first_row_idx = p->first_row,
                                    .best_numel = p->best};
    assert_int_equal(tess_cpu_nearest(&args, &s), TESS_OK);
    tess_free(pack);
    tess_free(work);
}

/* The same keys as brute force, everywhere. */
static void check(const problem *p)
{
    brute_force(p);
    for (int i = 0; i < TESS_NELEM(paths); i++) {
        tess_cpu_path_reset();
        if (tess_kernels_cpu_select(paths[i]) != TESS_OK) {
            tess_error_clear();
            continue;
        }
        for (int threads = 1; threads <= THREAD_MAX; threads++) {
            tess_pool *pool = NULL;
            assert_int_equal(tess_pool_create(threads, &pool), TESS_OK);
            memset(p->key, 0, (size_t)(p->n * p->best) * 8);
            search(p, pool);
            assert_memory_equal(p->key, p->expected, (size_t)(p->n * p->best) * 8);
            tess_pool_destroy(&pool);
        }
    }
    tess_cpu_path_reset();
}

static void test_keys_are_those_of_brute_force(void **state)
{
    (void)state;
    static const struct {
        int64_t n, k, d;
        int best;
        float offset;
    } shapes[] = {{0, 5, 3, 1, 0},          {1, 1, 1, 1, 0},      {7, 33, 64, 1, 0},
                  {130, 257, 16, 5, 0},     {501, 40, 130, 1, 0}, {600, 1000, 8, 3, 0},
                  {64, 300, 32, 1, 100.0f}, {50, 3, 5, 8, 0},     {20, 0, 4, 2, 0},
                  {90, 500, 2, 64, 3.0f}};
    for (int i = 0; i < TESS_NELEM(shapes); i++) {
        problem p = make(shapes[i].n, shapes[i].k, shapes[i].d, shapes[i].best);
        p.first_row = i * 1000;
        fill(p.x, p.n * p.d, 1, 1.0f, shapes[i].offset);
        fill(p.code, p.k * p.d, 2, 1.0f, shapes[i].offset);
        check(&p);
        destroy(&p);
    }
}

/* Many codes at the same distance, so that short lists run over; lower rows win. */
static void test_ties_go_to_the_lowest_row(void **state)
{
    (void)state;
    problem p = make(40, 700, 6, 4);
    fill(p.x, p.n * p.d, 3, 1.0f, 0.0f);
    fill(p.code, 3 * p.d, 4, 1.0f, 0.0f);
    for (int64_t i = 3 * p.d; i < p.k * p.d; i++)
        p.code[i] = p.code[i % (3 * p.d)];
    check(&p);
    for (int64_t i = 0; i < p.n; i++)
        assert_true(tess_key_row(p.key[i * p.best]) < 3);
    destroy(&p);
}

static void test_integers_tie_exactly(void **state)
{
    (void)state;
    problem p = make(200, 256, 4, 2);
    for (int64_t i = 0; i < p.n * p.d; i++)
        p.x[i] = (float)(i * 7 % 5);
    for (int64_t i = 0; i < p.k * p.d; i++)
        p.code[i] = (float)(i * 11 % 5);
    check(&p);
    destroy(&p);
}

/* Products that overflow f32 or vanish in it leave the decision to the canonical distance. */
static void test_extreme_magnitudes(void **state)
{
    (void)state;
    static const float scales[] = {1e-22f, 1e-38f, 1e18f, 1e19f, 3e37f};
    for (int i = 0; i < TESS_NELEM(scales); i++) {
        problem p = make(30, 90, 9, 2);
        fill(p.x, p.n * p.d, 5, scales[i], 0.0f);
        fill(p.code, p.k * p.d, 6, scales[i], 0.0f);
        p.x[4] = 0.0f;
        check(&p);
        destroy(&p);
    }
}

static void test_values_that_are_not_finite_come_last(void **state)
{
    (void)state;
    problem p = make(12, 50, 5, 3);
    fill(p.x, p.n * p.d, 7, 1.0f, 0.0f);
    fill(p.code, p.k * p.d, 8, 1.0f, 0.0f);
    p.x[3 * p.d + 1] = NAN;
    p.x[7 * p.d] = INFINITY;
    check(&p);
    p.code[10 * p.d] = NAN;
    p.code[20 * p.d + 4] = -INFINITY;
    check(&p);
    assert_true(isnan(tess_key_distance(p.key[3 * p.best])));
    destroy(&p);
}

/* Codes that f32 scores cannot tell apart: x^2 - 2xc + c^2 is 0 for both. */
static void test_cancellation_is_decided_canonically(void **state)
{
    (void)state;
    problem p = make(1, 2, 1, 1);
    p.x[0] = 4096.25f;
    p.code[0] = 4097.0f;
    p.code[1] = 4096.0f;
    check(&p);
    assert_int_equal(tess_key_row(p.key[0]), 1);
    assert_true(tess_key_distance(p.key[0]) == 0.0625f);
    destroy(&p);
}

static void test_keys_of_parts_combine(void **state)
{
    (void)state;
    problem p = make(1, 4, 2, 1);
    const float code[] = {9, 9, 0, 2, 2, 0, -9, 9};
    memcpy(p.code, code, sizeof code);
    check(&p);
    assert_true(p.key[0] == UINT64_C(0xC080000000000001));
    problem half = p;
    half.k = 2;
    check(&half);
    assert_true(p.key[0] == UINT64_C(0xC080000000000001));
    half.code = p.code + 4;
    half.first_row = 2;
    check(&half);
    assert_true(p.key[0] == UINT64_C(0xC080000000000002));
    destroy(&p);
}

static void test_ordered_bits(void **state)
{
    (void)state;
    static const struct {
        float x;
        uint32_t bits;
    } cases[] = {{4.0f, 0xC0800000u},    {2.0f, 0xC0000000u},  {0.25f, 0xBE800000u},
                 {0.0f, 0x80000000u},    {-0.0f, 0x80000000u}, {-1.5f, 0x403FFFFFu},
                 {INFINITY, 0xFF800000u}};
    for (int i = 0; i < TESS_NELEM(cases); i++) {
        assert_int_equal(tess_ordered_bits(cases[i].x), cases[i].bits);
        assert_true(tess_ordered_value(cases[i].bits) == cases[i].x);
    }
    assert_int_equal(tess_ordered_bits(NAN), UINT32_MAX);
    assert_true(isnan(tess_ordered_value(UINT32_MAX)));
}

/* ---- statistics ---- */

static void test_sums_are_exact_integers(void **state)
{
    (void)state;
    enum { N = 300, K = 7, D = 37 };
    float x[N * D];
    uint32_t row[N];
    int64_t sum[K * D], expected[K * D] = {0}, count[K], expected_count[K] = {0};
    fill(x, N * D, 11, 3.0f, 0.5f);
    float largest = 0.0f;
    for (int i = 0; i < N * D; i++)
        largest = fmaxf(largest, fabsf(x[i]));
    const int exponent = tess_fixed_exponent(largest, N);
    assert_true(ldexp(largest, exponent) < 0x1p51 && ldexp(largest, exponent) >= 0x1p50);
    for (int i = 0; i < N; i++) {
        row[i] = i % 9 == 0 ? TESS_NO_CODE : (uint32_t)(100 + i * 5 % (K + 2));
        for (uint32_t j = 0; row[i] < 100 + K && j < D; j++)
            expected[(row[i] - 100) * D + j] += llrint(ldexp(x[(uint32_t)i * D + j], exponent));
        if (row[i] < 100 + K)
            expected_count[row[i] - 100]++;
    }
    for (int i = 0; i < TESS_NELEM(paths); i++) {
        tess_cpu_path_reset();
        if (tess_kernels_cpu_select(paths[i]) != TESS_OK) {
            tess_error_clear();
            continue;
        }
        for (int threads = 1; threads <= THREAD_MAX; threads++) {
            tess_pool *pool = NULL;
            tess_stream s;
            assert_int_equal(tess_pool_create(threads, &pool), TESS_OK);
            tess_stream_init_inline(&s, "test", pool);
            memset(sum, 0, sizeof sum);
            memset(count, 0, sizeof count);
            const tess_code_sum_args a = {x, row, N, D, 100, K, exponent, sum, count};
            assert_int_equal(tess_cpu_code_sum(&a, &s), TESS_OK);
            assert_memory_equal(sum, expected, sizeof sum);
            assert_memory_equal(count, expected_count, sizeof count);
            tess_pool_destroy(&pool);
        }
    }
    tess_cpu_path_reset();
}

static void test_exponents_leave_room(void **state)
{
    (void)state;
    static const int64_t numel[] = {1, 2047, 2048, 2049, INT64_C(1) << 40, INT64_MAX};
    static const float largest[] = {0.0f, 1e-45f, 1.0f, 0.99999994f, 3.4028235e38f};
    for (int i = 0; i < TESS_NELEM(numel); i++)
        for (int j = 0; j < TESS_NELEM(largest); j++) {
            const double term = ldexp(largest[j], tess_fixed_exponent(largest[j], numel[i]));
            assert_true(term < 0x1p51);
            assert_true(term * (double)numel[i] <= 0x1p62);
        }
}

/* Of vectors with a code alone; zeros have a largest value, and nothing has none. */
static void test_largest_of_vectors(void **state)
{
    (void)state;
    tess_stream s;
    tess_stream_init_inline(&s, "test", NULL);
    const float x[] = {1, NAN, -9, 3, -4, 0, -0.0f, 0};
    const uint32_t row[] = {2, TESS_NO_CODE, 0, 0}, none[] = {TESS_NO_CODE};
    uint32_t most = 0;
    const tess_code_most_args all = {x, row, 4, 2, &most};
    assert_int_equal(tess_cpu_code_most(&all, &s), TESS_OK);
    assert_true(tess_ordered_value(most) == 4.0f);
    most = 0;
    const tess_code_most_args zeros = {x + 6, row, 1, 2, &most};
    assert_int_equal(tess_cpu_code_most(&zeros, &s), TESS_OK);
    assert_true(most == tess_ordered_bits(0.0f));
    most = 0;
    const tess_code_most_args nothing = {x, none, 1, 2, &most};
    assert_int_equal(tess_cpu_code_most(&nothing, &s), TESS_OK);
    assert_true(most == 0);
    const tess_code_most_args wrong = {x, NULL, 1, 2, &most};
    assert_refused(tess_cpu_code_most(&wrong, &s), TESS_E_ARG, "code_most");
}

/* As tess_fixed_value(), rounded to f32. */
static void test_values_of_sums(void **state)
{
    (void)state;
    tess_stream s;
    tess_stream_init_inline(&s, "test", NULL);
    const int64_t sum[] = {0, 3, -(INT64_C(1) << 62), INT64_C(0x123456789abcdef)};
    static const int exponent[] = {-77, 0, 30, 199}; /* of all that f32 can hold */
    for (int e = 0; e < TESS_NELEM(exponent); e++) {
        float value[TESS_NELEM(sum)];
        const tess_code_value_args a = {sum, TESS_NELEM(sum), exponent[e], value};
        assert_int_equal(tess_cpu_code_value(&a, &s), TESS_OK);
        for (int i = 0; i < TESS_NELEM(sum); i++)
            assert_true(value[i] == (float)tess_fixed_value(sum[i], exponent[e]));
    }
}

static void test_means_and_residuals(void **state)
{
    (void)state;
    tess_stream s;
    tess_stream_init_inline(&s, "test", NULL);
    const int64_t sum[] = {6, -4, 9, 9, 0, 0}, count[] = {2, 0, 3};
    float code[] = {9, 9, 5, 6, 7, 8};
    const tess_code_mean_args mean = {sum, count, code, 3, 2, 1, false};
    assert_int_equal(tess_cpu_code_mean(&mean, &s), TESS_OK);
    const float expected[] = {1.5f, -1.0f, 5, 6, 0, 0};
    assert_memory_equal(code, expected, sizeof code);
    const tess_code_mean_args unit = {sum, count, code, 3, 2, 1, true};
    assert_int_equal(tess_cpu_code_mean(&unit, &s), TESS_OK);
    assert_true(fabs((double)code[0] * code[0] + (double)code[1] * code[1] - 1.0) < 4 * F32_U);
    assert_true(code[4] == 0.0f && code[5] == 0.0f); /* a mean of zero keeps its place */

    const float x[] = {1, 2, 3, 4}, table[] = {0.5f, 1, 2, 3};
    const uint32_t parent[] = {1, 0, 1}, row[] = {0, TESS_NO_CODE, 1};
    float dst[6];
    const tess_code_residual_args residual = {x, parent, table, row, 3, 2, 2, dst};
    assert_int_equal(tess_cpu_code_residual(&residual, &s), TESS_OK);
    const float left[] = {2.5f, 3, 1, 2, 1, 1};
    assert_memory_equal(dst, left, sizeof left);
    const uint64_t key[] = {tess_key_make(0.25f, 7), TESS_NO_KEY};
    uint32_t found[2];
    const tess_code_row_args rows = {key, found, 2};
    assert_int_equal(tess_cpu_code_row(&rows, &s), TESS_OK);
    assert_true(found[0] == 7 && found[1] == TESS_NO_CODE);
    const uint32_t outside[] = {0, 2, 1};
    const tess_code_residual_args wrong = {x, parent, table, outside, 3, 2, 2, dst};
    assert_refused(tess_cpu_code_residual(&wrong, &s), TESS_E_RANGE, "row 2 of vector 1");
}

static void test_nearest_wrong_arguments_are_refused(void **state)
{
    (void)state;
    float x[4] = {0};
    uint64_t key[2];
    char room[8];
    tess_nearest_args a = {.x = tess_view_host(x, 4, TESS_F32),
                           .code = tess_view_host(x, 4, TESS_F32),
                           .pack = tess_view_host(room, 8, TESS_U8_OPAQUE),
                           .key = tess_view_host(key, 2, TESS_U64),
                           .work = tess_view_host(room, 8, TESS_U8_OPAQUE),
                           .vector_numel = 2,
                           .code_numel = 2,
                           .dim = 2,
                           .best_numel = 1};
    assert_int_equal(tess_nearest_check(&a, 8, 8), TESS_OK);
    assert_refused(tess_nearest_check(&a, 9, 8), TESS_E_ARG,
                   "nearest: pack holds 8 bytes, expected at least 9");
    a.best_numel = 65;
    assert_refused(tess_nearest_check(&a, 8, 8), TESS_E_RANGE, "65 keys per vector");
    a.best_numel = 1;
    a.first_row_idx = UINT32_MAX;
    assert_refused(tess_nearest_check(&a, 8, 8), TESS_E_RANGE, "expected below 2^32 - 1");
    a.first_row_idx = 0;
    a.x.dt = TESS_BF16;
    assert_refused(tess_nearest_check(&a, 8, 8), TESS_E_DTYPE, "x is bf16, expected f32");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_keys_are_those_of_brute_force),
        cmocka_unit_test(test_ties_go_to_the_lowest_row),
        cmocka_unit_test(test_integers_tie_exactly),
        cmocka_unit_test(test_extreme_magnitudes),
        cmocka_unit_test(test_values_that_are_not_finite_come_last),
        cmocka_unit_test(test_cancellation_is_decided_canonically),
        cmocka_unit_test(test_keys_of_parts_combine),
        cmocka_unit_test(test_ordered_bits),
        cmocka_unit_test(test_sums_are_exact_integers),
        cmocka_unit_test(test_exponents_leave_room),
        cmocka_unit_test(test_largest_of_vectors),
        cmocka_unit_test(test_values_of_sums),
        cmocka_unit_test(test_means_and_residuals),
        cmocka_unit_test(test_nearest_wrong_arguments_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
