/*
 * The batch entropy of binary codes; see kernels/quantizer_binary.h.
 *
 * [Note: halves] The bits are cut into a high and a low half, so that p(c) = A[c / L] B[c % L] with
 * L = 2^low: the sum over vectors is a product of two thin matrices, formed 32 vectors at a time
 * with the vectors in order, and a gradient by p becomes G B and A G.
 */
#include <math.h>
#include <string.h>

#include "kernels/cpu/ops_priv.h"
#include "kernels/cpu/quantizer_priv.h"
#include "kernels/quantizer_priv.h"

enum { HALF_NUMEL_MAX = 1 << (TESS_ENTROPY_DIM_MAX / 2) };

/* Probabilities of the codes of bits [first, first + bit_numel), the first bit the most
 * significant. */
static void half_of(const tess_coin *coin, int64_t bit_numel, double *p)
{
    p[0] = 1.0;
    for (int64_t j = 0; j < bit_numel; j++) /* the codes of one more bit, from behind */
        for (int64_t c = (INT64_C(1) << j) - 1; c >= 0; c--) {
            p[2 * c + 1] = p[c] * coin[j].positive;
            p[2 * c] = p[c] * coin[j].negative;
        }
}

static void coins_of(const tess_sign_rows *r, double beta, int64_t row, tess_coin *coin)
{
    const float *x = r->x + tess_cpu_row_at(row, r->stride, r->dim);
    for (int64_t j = 0; j < r->dim; j++)
        coin[j] = tess_coin_of(4.0 * beta * (double)r->magnitude * (double)x[j]);
}

typedef struct pbar_job {
    const tess_quantizer_pbar_args *a;
    int64_t first_row, row_numel; /* of this turn */
    int64_t high, low;            /* bits of the halves */
    double *acc, *a_half, *b_half;
} pbar_job;

static void halves_part(void *arg, int part_idx, int part_numel)
{
    const pbar_job *job = arg;
    const tess_sign_rows *r = &job->a->rows;
    const int64_t a_numel = INT64_C(1) << job->high, b_numel = INT64_C(1) << job->low;
    int64_t lo = 0, hi = 0;
    tess_pool_range(job->row_numel, 1, part_idx, part_numel, &lo, &hi);
    for (int64_t i = lo; i < hi; i++) {
        tess_coin coin[TESS_ENTROPY_DIM_MAX];
        if (tess_cpu_sign_row(r, job->first_row + i) == NULL) {
            memset(job->a_half + i * a_numel, 0, (size_t)a_numel * sizeof(double));
            memset(job->b_half + i * b_numel, 0, (size_t)b_numel * sizeof(double));
            continue;
        }
        coins_of(r, job->a->beta, job->first_row + i, coin);
        half_of(coin, job->high, job->a_half + i * a_numel);
        half_of(coin + job->high, job->low, job->b_half + i * b_numel);
    }
}

/* Rows [lo, hi) of the product, vectors in order. */
static void product_part(void *arg, int part_idx, int part_numel)
{
    const pbar_job *job = arg;
    const tess_cpu_rows *rows = tess_cpu_rows_get();
    const int64_t a_numel = INT64_C(1) << job->high, b_numel = INT64_C(1) << job->low;
    int64_t lo = 0, hi = 0;
    tess_pool_range(a_numel, 1, part_idx, part_numel, &lo, &hi);
    for (int64_t c = lo; c < hi; c++)
        for (int64_t i = 0; i < job->row_numel; i++)
            rows->axpy_f64(job->acc + c * b_numel, job->b_half + i * b_numel,
                           job->a_half[i * a_numel + c], b_numel);
}

tess_status tess_cpu_quantizer_pbar(const tess_quantizer_pbar_args *a, tess_stream *s)
{
    TESS_TRY(tess_quantizer_pbar_check(a));
    const int64_t high = a->rows.dim / 2, low = a->rows.dim - high;
    const int64_t code_numel = INT64_C(1) << a->rows.dim;
    pbar_job job = {.a = a, .high = high, .low = low, .acc = a->work};
    job.a_half = a->work + code_numel;
    job.b_half = job.a_half + (TESS_ENTROPY_ROW_NUMEL << high);
    memset(job.acc, 0, (size_t)code_numel * sizeof *job.acc);
    for (; job.first_row < a->rows.row_numel; job.first_row += TESS_ENTROPY_ROW_NUMEL) {
        job.row_numel =
            TESS_MIN(a->rows.row_numel - job.first_row, (int64_t)TESS_ENTROPY_ROW_NUMEL);
        const int part_numel = tess_cpu_part_numel(s, job.row_numel * code_numel);
        tess_pool_run(s->pool, part_numel, halves_part, &job);
        tess_pool_run(s->pool, part_numel, product_part, &job);
    }
    const double scale = ldexp(1.0, a->exponent);
    for (int64_t c = 0; c < code_numel; c++)
        a->sum[c] += isfinite(job.acc[c]) ? llrint(job.acc[c] * scale) : 0;
    return TESS_OK;
}

tess_status tess_cpu_quantizer_batch_entropy(const tess_quantizer_batch_entropy_args *a,
                                             tess_stream *s)
{
    (void)s;
    TESS_TRY(tess_quantizer_batch_entropy_check(a));
    const double numel = (double)a->valid_numel, unit = ldexp(1.0, -a->exponent);
    double loss = 0.0;
    for (int64_t c = 0; c < INT64_C(1) << a->dim; c++) {
        const double p = (double)a->sum[c] * unit / numel;
        const bool is_below = p <= 0.0 || p < a->least;
        double log = 0.0;
        if (!is_below || a->least > 0.0)
            log = tess_log_f64(is_below ? a->least : p);
        loss = loss - p * log;
        a->slope[c] = -(is_below ? log : log + 1.0) / numel;
    }
    *a->loss = loss;
    return TESS_OK;
}

/* d_x of one half: 4 beta m ((1 - p) S1 - p S0), S1 and S0 the sums of p(c) dp(c) over codes with
 * the bit set and not. */
static void half_gradient(const tess_coin *coin, int64_t bit_numel, const double *weighted,
                          double *d)
{
    for (int64_t j = 0; j < bit_numel; j++) {
        const int64_t bit = INT64_C(1) << (bit_numel - 1 - j);
        double sum[2] = {0.0, 0.0};
        for (int64_t c = 0; c < INT64_C(1) << bit_numel; c++)
            sum[(c & bit) != 0] += weighted[c];
        d[j] = coin[j].negative * sum[1] - coin[j].positive * sum[0];
    }
}

static void gradient_row(const tess_quantizer_batch_entropy_backward_args *a, int64_t row)
{
    const tess_sign_rows *r = &a->rows;
    const tess_cpu_rows *rows = tess_cpu_rows_get();
    const int64_t high = r->dim / 2, low = r->dim - high;
    const int64_t a_numel = INT64_C(1) << high, b_numel = INT64_C(1) << low;
    double a_half[HALF_NUMEL_MAX], b_half[HALF_NUMEL_MAX], d_b[HALF_NUMEL_MAX] = {0};
    double d[TESS_ENTROPY_DIM_MAX];
    tess_coin coin[TESS_ENTROPY_DIM_MAX];
    coins_of(r, a->beta, row, coin);
    half_of(coin, high, a_half);
    half_of(coin + high, low, b_half);
    for (int64_t c = 0; c < a_numel; c++) {
        const double *slope = a->slope + c * b_numel;
        rows->axpy_f64(d_b, slope, a_half[c], b_numel);
        a_half[c] = a_half[c] * rows->dot_f64(slope, b_half, b_numel);
    }
    for (int64_t c = 0; c < b_numel; c++)
        b_half[c] = b_half[c] * d_b[c];
    half_gradient(coin, high, a_half, d);
    half_gradient(coin + high, low, b_half, d + high);
    const double scale = a->weight * 4.0 * a->beta * (double)r->magnitude;
    float *d_x = a->d_x + tess_cpu_row_at(row, r->stride, r->dim);
    for (int64_t j = 0; j < r->dim; j++)
        d_x[j] = d_x[j] + (float)(scale * d[j]);
}

static void gradient_part(void *arg, int part_idx, int part_numel)
{
    const tess_quantizer_batch_entropy_backward_args *a = arg;
    int64_t lo = 0, hi = 0;
    tess_pool_range(a->rows.row_numel, 1, part_idx, part_numel, &lo, &hi);
    for (int64_t row = lo; row < hi; row++)
        if (tess_cpu_sign_row(&a->rows, row) != NULL)
            gradient_row(a, row);
}

tess_status
tess_cpu_quantizer_batch_entropy_backward(const tess_quantizer_batch_entropy_backward_args *a,
                                          tess_stream *s)
{
    TESS_TRY(tess_quantizer_batch_entropy_backward_check(a));
    tess_quantizer_batch_entropy_backward_args args = *a;
    const int64_t cost = 2 * a->rows.row_numel << a->rows.dim;
    tess_pool_run(s->pool, tess_cpu_part_numel(s, cost), gradient_part, &args);
    return TESS_OK;
}
