#include "kernels/codebook.h"

#include <inttypes.h>
#include <math.h>

#include "kernels/cpu/ops_priv.h"
#include "kernels/nearest.h"

/* One thread: the vectors are read once, and what follows reads them again. */
tess_status tess_cpu_code_most(const tess_code_most_args *a, tess_stream *s)
{
    (void)s;
    TESS_TRY(tess_code_most_check(a));
    for (int64_t i = 0; i < a->vector_numel; i++) {
        const float *x = a->x + i * a->dim;
        float most = -1.0f; /* below all of them: a vector of NaN alone has none */
        for (int64_t j = 0; j < a->dim && a->row[i] != TESS_NO_CODE; j++)
            most = fabsf(x[j]) > most ? fabsf(x[j]) : most;
        if (most >= 0.0f)
            *a->most = TESS_MAX(*a->most, tess_ordered_bits(most));
    }
    return TESS_OK;
}

static void value_part(void *arg, int part_idx, int part_numel)
{
    const tess_code_value_args *a = arg;
    const double factor = ldexp(1.0, -a->exponent);
    int64_t lo = 0, hi = 0;
    tess_pool_range(a->numel, 1, part_idx, part_numel, &lo, &hi);
    for (int64_t i = lo; i < hi; i++)
        a->value[i] = (float)((double)a->sum[i] * factor);
}

tess_status tess_cpu_code_value(const tess_code_value_args *a, tess_stream *s)
{
    TESS_TRY(tess_code_value_check(a));
    tess_code_value_args args = *a;
    tess_pool_run(s->pool, tess_cpu_part_numel(s, a->numel), value_part, &args);
    return TESS_OK;
}

enum { COLUMN_GRAIN = 8 }; /* int64 in a cache line: threads never share one */

/* Threads take columns: any row may come up anywhere. */
static void sum_part(void *arg, int part_idx, int part_numel)
{
    const tess_code_sum_args *a = arg;
    int64_t lo = 0, hi = 0;
    tess_pool_range(a->dim, COLUMN_GRAIN, part_idx, part_numel, &lo, &hi);
    if (lo < hi)
        tess_cpu_rows_get()->code_sum(a, lo, hi);
}

tess_status tess_cpu_code_sum(const tess_code_sum_args *a, tess_stream *s)
{
    TESS_TRY(tess_code_sum_check(a));
    tess_code_sum_args args = *a;
    for (int64_t i = 0; i < a->vector_numel; i++) {
        const int64_t row = (int64_t)a->row[i] - a->first_row_idx;
        if (row >= 0 && row < a->row_numel)
            a->count[row]++;
    }
    tess_pool_run(s->pool, tess_cpu_part_numel(s, a->vector_numel * a->dim), sum_part, &args);
    return TESS_OK;
}

static void make_unit(float *code, int64_t dim)
{
    double square = 0.0;
    for (int64_t j = 0; j < dim; j++)
        square += (double)code[j] * (double)code[j];
    for (int64_t j = 0; square > 0.0 && j < dim; j++)
        code[j] = (float)((double)code[j] / sqrt(square));
}

static void mean_part(void *arg, int part_idx, int part_numel)
{
    const tess_code_mean_args *a = arg;
    int64_t lo = 0, hi = 0;
    tess_pool_range(a->row_numel, 1, part_idx, part_numel, &lo, &hi);
    for (int64_t k = lo; k < hi; k++) {
        const int64_t *sum = a->sum + k * a->dim;
        float *code = a->code + k * a->dim;
        if (a->count[k] == 0)
            continue;
        const double factor = ldexp(1.0, -a->exponent), count = (double)a->count[k];
        for (int64_t j = 0; j < a->dim; j++)
            code[j] = (float)((double)sum[j] * factor / count);
        if (a->is_unit)
            make_unit(code, a->dim);
    }
}

tess_status tess_cpu_code_mean(const tess_code_mean_args *a, tess_stream *s)
{
    TESS_TRY(tess_code_mean_check(a));
    tess_code_mean_args args = *a;
    tess_pool_run(s->pool, tess_cpu_part_numel(s, a->row_numel * a->dim), mean_part, &args);
    return TESS_OK;
}

static void residual_part(void *arg, int part_idx, int part_numel)
{
    const tess_code_residual_args *a = arg;
    int64_t lo = 0, hi = 0;
    tess_pool_range(a->vector_numel, 1, part_idx, part_numel, &lo, &hi);
    tess_cpu_rows_get()->code_residual(a, lo, hi);
}

tess_status tess_cpu_code_residual(const tess_code_residual_args *a, tess_stream *s)
{
    TESS_TRY(tess_code_residual_check(a));
    for (int64_t i = 0; i < a->vector_numel; i++)
        TESS_CHECK(a->row[i] < a->code_numel || a->row[i] == TESS_NO_CODE, TESS_E_RANGE,
                   "%s: row %" PRIu32 " of vector %" PRId64 ", expected below %" PRId64,
                   "code_residual", a->row[i], i, a->code_numel);
    tess_code_residual_args args = *a;
    tess_pool_run(s->pool, tess_cpu_part_numel(s, a->vector_numel * a->dim), residual_part, &args);
    return TESS_OK;
}

tess_status tess_cpu_code_row(const tess_code_row_args *a, tess_stream *s)
{
    (void)s;
    TESS_TRY(tess_code_row_check(a));
    for (int64_t i = 0; i < a->vector_numel; i++)
        a->row[i] = tess_key_row(a->key[i]);
    return TESS_OK;
}
