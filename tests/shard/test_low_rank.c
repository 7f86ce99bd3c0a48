/*
 * The randomized factorization against the optimum (Eckart, Young 1936): no matrix of rank r is
 * nearer to W than sum of the squares of its other singular values says.
 *
 * [Note: bound] Let the start have width l, sigma_1 >= sigma_2 >= ... and q iterations beside the
 * first. The subspace misses the j-th right vector by tan(theta_j) <= C (sigma_{l+1} /
 * sigma_j)^(2q+1) with C = |Omega_2| / sigma_min(Omega_1) of the Gaussian start (Halko et al. 2011,
 * section 9.3), and the best matrix of rank r in it has a squared error above the optimum of at
 * most sum_{j<=r} sigma_j^2 tan^2(theta_j). |Omega_2| <= 2 sqrt(n l) with overwhelming probability,
 * and sigma_min of r x l with l >= r + 8 is above 1/4 (its mean is sqrt(l) - sqrt(r)); starts are
 * fixed, so a test that passes keeps passing. What is stored in f32 errs by 2^-24 of each element
 * of left and right: 2^-23 |W|_F sqrt(r) in all. Where l is all of the smaller extent nothing is
 * missed.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <string.h>

#include "core/memory.h"
#include "shard/low_rank.h"
#include "tests/reference/reference.h"

enum { OVERSAMPLE = 8 };

typedef struct matrix {
    int64_t rows, cols;
    float *w;
} matrix;

static void *must_alloc(size_t nbytes)
{
    void *p = NULL;
    assert_int_equal(tess_alloc(nbytes, &p), TESS_OK);
    return p;
}

/* Sum of outer products of Gaussian vectors, the k-th times decay^k. */
static matrix make(int64_t rows, int64_t cols, int64_t numel, double decay)
{
    matrix m = {rows, cols, must_alloc((size_t)(rows * cols) * sizeof(float))};
    const tess_rng rng = tess_rng_make(11, TESS_RNG_TEST, (uint32_t)rows, (uint32_t)cols);
    double *sum = must_alloc((size_t)(rows * cols) * sizeof(double));
    for (int64_t k = 0; k < numel; k++)
        for (int64_t r = 0; r < rows; r++)
            for (int64_t c = 0; c < cols; c++)
                sum[r * cols + c] +=
                    pow(decay, (double)k) *
                    tess_rng_normal(&rng, (uint64_t)(k * (rows + cols) + r)) *
                    tess_rng_normal(&rng, (uint64_t)(k * (rows + cols) + rows + c));
    for (int64_t i = 0; i < rows * cols; i++)
        m.w[i] = (float)sum[i];
    tess_free(sum);
    return m;
}

typedef struct factors {
    float *left, *right;
} factors;

static factors factor(const matrix *m, int64_t rank, int power_numel, int thread_numel)
{
    int64_t work_numel = 0;
    tess_pool *pool = NULL;
    assert_int_equal(tess_low_rank_work_numel(m->rows, m->cols, rank, &work_numel), TESS_OK);
    double *work = must_alloc((size_t)work_numel * sizeof *work);
    const factors f = {must_alloc((size_t)(m->rows * rank) * sizeof(float)),
                       must_alloc((size_t)(rank * m->cols) * sizeof(float))};
    const tess_low_rank_args args = {.w = m->w,
                                     .rows = m->rows,
                                     .cols = m->cols,
                                     .rank = rank,
                                     .power_numel = power_numel,
                                     .rng = tess_rng_make(5, TESS_RNG_INIT, 7, 0),
                                     .work = work,
                                     .left = f.left,
                                     .right = f.right};
    memset(work, 0xff, (size_t)work_numel * sizeof *work); /* NaN: nothing is read unwritten */
    if (thread_numel > 1)
        assert_int_equal(tess_pool_create(thread_numel, &pool), TESS_OK);
    tess_low_rank_factor(&args, pool);
    tess_pool_destroy(&pool);
    tess_free(work);
    return f;
}

static void factors_destroy(factors *f)
{
    tess_free(f->left);
    tess_free(f->right);
}

static double residual_of(const matrix *m, const factors *f, int64_t rank)
{
    double sum = 0.0;
    for (int64_t r = 0; r < m->rows; r++)
        for (int64_t c = 0; c < m->cols; c++) {
            double x = (double)m->w[r * m->cols + c];
            for (int64_t k = 0; k < rank; k++)
                x -= (double)f->left[r * rank + k] * (double)f->right[k * m->cols + c];
            sum += x * x;
        }
    return sum;
}

static void check(const matrix *m, int64_t rank, int power_numel)
{
    const int64_t least = m->rows < m->cols ? m->rows : m->cols;
    double *sigma = must_alloc((size_t)least * sizeof *sigma), *wide = NULL;
    wide = must_alloc((size_t)(m->rows * m->cols) * sizeof *wide);
    for (int64_t i = 0; i < m->rows * m->cols; i++)
        wide[i] = (double)m->w[i];
    ref_singular_values(m->rows, m->cols, wide, sigma);
    double optimum = 0.0, total = 0.0, excess = 0.0;
    const int64_t l = rank + OVERSAMPLE;
    for (int64_t k = 0; k < least; k++) {
        total += sigma[k] * sigma[k];
        optimum += k >= rank ? sigma[k] * sigma[k] : 0.0;
        if (k >= rank || l >= least || sigma[k] == 0.0)
            continue;
        const double c = 8.0 * sqrt((double)(m->cols * l));
        const double miss = c * pow(sigma[l] / sigma[k], 2.0 * power_numel + 1.0);
        excess += sigma[k] * sigma[k] * miss * miss;
    }
    factors f = factor(m, rank, power_numel, 1);
    const double stored = 0x1p-23 * sqrt(total * (double)rank);
    const double got = sqrt(residual_of(m, &f, rank)), bound = sqrt(optimum + excess) + stored;
    /* Nothing can be nearer than the optimum, of which the reference knows as much as f32 keeps. */
    assert_true(got >= sqrt(optimum) - stored);
    if (!(got <= bound))
        fail_msg("%d x %d, rank %d: residual %.9g, optimum %.9g, bound %.9g", (int)m->rows,
                 (int)m->cols, (int)rank, got, sqrt(optimum), bound);
    /* Columns of left and rows of right are as long as each other: sqrt(sigma) */
    for (int64_t k = 0; k < rank && k < least; k++) {
        double a = 0.0, b = 0.0;
        for (int64_t r = 0; r < m->rows; r++)
            a += pow((double)f.left[r * rank + k], 2.0);
        for (int64_t c = 0; c < m->cols; c++)
            b += pow((double)f.right[k * m->cols + c], 2.0);
        const double loose = sqrt(excess) + 1e-6 * sigma[0];
        assert_true(fabs(a - sigma[k]) <= loose && fabs(b - sigma[k]) <= loose);
    }
    factors_destroy(&f);
    tess_free(sigma);
    tess_free(wide);
}

static void test_low_rank_is_within_the_bound_of_the_optimum(void **state)
{
    (void)state;
    static const struct {
        int64_t rows, cols, numel;
        double decay;
        int64_t rank;
        int power_numel;
    } cases[] = {
        {40, 30, 30, 0.7, 4, 4},  {30, 40, 30, 0.7, 4, 4},   {64, 24, 24, 0.9, 6, 4},
        {24, 64, 64, 0.95, 5, 8}, {50, 50, 50, 0.5, 1, 0},   {33, 17, 17, 1.0, 17, 4},
        {12, 20, 20, 1.0, 3, 0},  {48, 48, 48, 0.98, 8, 30}, {1, 9, 1, 1.0, 1, 2},
    };
    for (int i = 0; i < TESS_NELEM(cases); i++) {
        matrix m = make(cases[i].rows, cases[i].cols, cases[i].numel, cases[i].decay);
        check(&m, cases[i].rank, cases[i].power_numel);
        tess_free(m.w);
    }
}

/* Fewer directions than ranks: the rest of the adapter is 0, and the matrix is there in full. */
static void test_low_rank_of_few_directions_is_exact(void **state)
{
    (void)state;
    matrix m = make(30, 20, 3, 0.5);
    check(&m, 6, 4);
    factors f = factor(&m, 6, 4, 1);
    double size = 0.0;
    for (int64_t i = 0; i < 600; i++)
        size += (double)m.w[i] * (double)m.w[i];
    assert_true(residual_of(&m, &f, 6) < size * 0x1p-44);
    factors_destroy(&f);
    memset(m.w, 0, 600 * sizeof *m.w);
    f = factor(&m, 6, 4, 1);
    assert_true(residual_of(&m, &f, 6) == 0.0);
    for (int i = 0; i < 180; i++)
        assert_true(f.left[i] == 0.0f);
    factors_destroy(&f);
    m.rows = 2; /* ranks that a matrix of two rows cannot have */
    f = factor(&m, 6, 4, 1);
    for (int i = 0; i < 12; i++)
        assert_true(f.left[i] == 0.0f);
    factors_destroy(&f);
    tess_free(m.w);
}

static void test_low_rank_threads_give_the_same_bits(void **state)
{
    (void)state;
    matrix m = make(61, 37, 37, 0.9);
    factors one = factor(&m, 5, 3, 1);
    for (int threads = 2; threads <= 4; threads++) {
        factors many = factor(&m, 5, 3, threads);
        assert_memory_equal(one.left, many.left, 61 * 5 * sizeof(float));
        assert_memory_equal(one.right, many.right, 37 * 5 * sizeof(float));
        factors_destroy(&many);
    }
    factors_destroy(&one);
    tess_free(m.w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_low_rank_is_within_the_bound_of_the_optimum),
        cmocka_unit_test(test_low_rank_of_few_directions_is_exact),
        cmocka_unit_test(test_low_rank_threads_give_the_same_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
