#include <math.h>
#include <string.h>

#include "kernels/check_priv.h"
#include "kernels/cpu/ops_priv.h"
#include "kernels/cpu/quantizer_priv.h"
#include "kernels/quantizer_priv.h"

tess_status tess_cpu_check_codes(const char *op, const tess_coded_rows *rows)
{
    for (int64_t i = 0; rows->code != NULL && i < rows->row_numel; i++)
        TESS_CHECK(rows->code[i] == TESS_NO_CODE || rows->code[i] < rows->code_numel, TESS_E_RANGE,
                   "%s: vector %" PRId64 " has code %" PRIu32 ", expected below %" PRId64
                   " or the mark of masked vectors",
                   op, i, rows->code[i], rows->code_numel);
    return TESS_OK;
}

/* An op over rows: `rows` and `cost` are expressions of `a`, the checked arguments. */
#define ROW_OP(op, rows, cost)                                                                     \
    static void op##_part(void *arg, int part_idx, int part_numel)                                 \
    {                                                                                              \
        const tess_quantizer_##op##_args *a = arg;                                                 \
        int64_t lo = 0, hi = 0;                                                                    \
        tess_pool_range((rows), 1, part_idx, part_numel, &lo, &hi);                                \
        tess_cpu_rows_get()->quantizer_##op(a, lo, hi);                                            \
    }                                                                                              \
    static void op##_run(const tess_quantizer_##op##_args *a, tess_stream *s)                      \
    {                                                                                              \
        tess_quantizer_##op##_args args = *a;                                                      \
        tess_pool_run(s->pool, tess_cpu_part_numel(s, (cost)), op##_part, &args);                  \
    }

ROW_OP(enter, a->row_numel, a->row_numel * a->dim)
ROW_OP(enter_backward, a->row_numel, a->row_numel * a->dim)
ROW_OP(layer_norm, a->row_numel, 2 * a->row_numel * a->dim)
ROW_OP(gather, a->rows.row_numel, a->rows.row_numel * a->rows.dim)
ROW_OP(residual, a->rows.row_numel, a->rows.row_numel * a->rows.dim)
ROW_OP(row_loss, a->rows.row_numel, a->rows.row_numel * a->rows.dim)
ROW_OP(backward, a->rows.row_numel, 4 * a->rows.row_numel * a->rows.dim)
ROW_OP(directed, a->rows.row_numel, 2 * a->rows.row_numel * a->rows.dim)
ROW_OP(directed_backward, a->rows.row_numel, 4 * a->rows.row_numel * a->rows.dim)

tess_status tess_cpu_quantizer_enter(const tess_quantizer_enter_args *a, tess_stream *s)
{
    TESS_TRY(tess_quantizer_enter_check(a));
    enter_run(a, s);
    return TESS_OK;
}

tess_status tess_cpu_quantizer_enter_backward(const tess_quantizer_enter_backward_args *a,
                                              tess_stream *s)
{
    TESS_TRY(tess_quantizer_enter_backward_check(a));
    enter_backward_run(a, s);
    return TESS_OK;
}

tess_status tess_cpu_quantizer_layer_norm(const tess_quantizer_layer_norm_args *a, tess_stream *s)
{
    TESS_TRY(tess_quantizer_layer_norm_check(a));
    layer_norm_run(a, s);
    return TESS_OK;
}

tess_status tess_cpu_quantizer_gather(const tess_quantizer_gather_args *a, tess_stream *s)
{
    TESS_TRY(tess_quantizer_gather_check(a));
    TESS_TRY(tess_cpu_check_codes("quantizer gather", &a->rows));
    gather_run(a, s);
    return TESS_OK;
}

tess_status tess_cpu_quantizer_residual(const tess_quantizer_residual_args *a, tess_stream *s)
{
    TESS_TRY(tess_quantizer_residual_check(a));
    TESS_TRY(tess_cpu_check_codes("quantizer residual", &a->rows));
    residual_run(a, s);
    return TESS_OK;
}

tess_status tess_cpu_quantizer_row_loss(const tess_quantizer_row_loss_args *a, tess_stream *s)
{
    TESS_TRY(tess_quantizer_row_loss_check(a));
    TESS_TRY(tess_cpu_check_codes("quantizer row_loss", &a->rows));
    row_loss_run(a, s);
    return TESS_OK;
}

tess_status tess_cpu_quantizer_backward(const tess_quantizer_backward_args *a, tess_stream *s)
{
    TESS_TRY(tess_quantizer_backward_check(a));
    TESS_TRY(tess_cpu_check_codes("quantizer backward", &a->rows));
    backward_run(a, s);
    return TESS_OK;
}

tess_status tess_cpu_quantizer_directed(const tess_quantizer_directed_args *a, tess_stream *s)
{
    TESS_TRY(tess_quantizer_directed_check(a));
    TESS_TRY(tess_cpu_check_codes("quantizer directed", &a->rows));
    directed_run(a, s);
    return TESS_OK;
}

tess_status tess_cpu_quantizer_directed_backward(const tess_quantizer_directed_backward_args *a,
                                                 tess_stream *s)
{
    TESS_TRY(tess_quantizer_directed_backward_check(a));
    TESS_TRY(tess_cpu_check_codes("quantizer directed_backward", &a->rows));
    directed_backward_run(a, s);
    return TESS_OK;
}

/* Threads take columns, so that every one visits the vectors in order. */
static void code_gradient_part(void *arg, int part_idx, int part_numel)
{
    const tess_quantizer_code_gradient_args *a = arg;
    int64_t lo = 0, hi = 0;
    tess_pool_range(a->rows.dim, 16, part_idx, part_numel, &lo, &hi);
    tess_cpu_rows_get()->quantizer_code_gradient(a, lo, hi);
}

tess_status tess_cpu_quantizer_code_gradient(const tess_quantizer_code_gradient_args *a,
                                             tess_stream *s)
{
    TESS_TRY(tess_quantizer_code_gradient_check(a));
    TESS_TRY(tess_cpu_check_codes("quantizer code_gradient", &a->rows));
    tess_quantizer_code_gradient_args args = *a;
    tess_pool_run(s->pool, tess_cpu_part_numel(s, a->rows.row_numel * a->rows.dim),
                  code_gradient_part, &args);
    return TESS_OK;
}

/* Rows of the gram's upper triangle; all codes ascending. */
static void gram_part(void *arg, int part_idx, int part_numel)
{
    const tess_quantizer_gram_args *a = arg;
    const tess_cpu_rows *rows = tess_cpu_rows_get();
    int64_t lo = 0, hi = 0;
    tess_pool_range(a->dim, 1, part_idx, part_numel, &lo, &hi);
    const double scale = ldexp(1.0, a->exponent);
    for (int64_t k = 0; k < a->code_numel; k++) {
        if (a->use != NULL && a->use[k] == 0)
            continue;
        const float *c = a->codes + k * a->dim;
        const double factor = tess_cpu_unit_factor(c, a->dim);
        for (int64_t i = lo; i < hi; i++)
            rows->fixed_add(a->gram + i * a->dim + i, c + i, (double)c[i] * factor * scale, factor,
                            a->dim - i);
    }
}

tess_status tess_cpu_quantizer_gram(const tess_quantizer_gram_args *a, tess_stream *s)
{
    TESS_TRY(tess_quantizer_gram_check(a));
    tess_quantizer_gram_args args = *a;
    tess_pool_run(s->pool, tess_cpu_part_numel(s, a->code_numel * a->dim * a->dim), gram_part,
                  &args);
    for (int64_t i = 0; i < a->dim; i++)
        for (int64_t j = 0; j < i; j++)
            a->gram[i * a->dim + j] = a->gram[j * a->dim + i];
    return TESS_OK;
}

/* `t` = G u, then its part across u. */
static void orthogonal_row(const tess_quantizer_orthogonal_args *a, int64_t k, double *t)
{
    const tess_cpu_rows *rows = tess_cpu_rows_get();
    const float *c = a->codes + k * a->dim;
    float *d = a->d_codes + k * a->dim;
    const double factor = tess_cpu_unit_factor(c, a->dim), m = (double)a->used_numel;
    const double scale = a->weight * 4.0 / (m * m);
    double along = 0.0;
    memset(t, 0, (size_t)a->dim * sizeof *t);
    for (int64_t i = 0; i < a->dim; i++)
        rows->axpy_f64(t, a->work + i * a->dim, (double)c[i] * factor, a->dim);
    if (factor < 1.0 / (double)TESS_UNIT_LEAST) /* shorter rows are only scaled */
        for (int64_t j = 0; j < a->dim; j++)
            along = along + t[j] * ((double)c[j] * factor);
    for (int64_t j = 0; j < a->dim; j++)
        d[j] = d[j] + (float)(scale * (t[j] - along * ((double)c[j] * factor)) * factor);
}

static void orthogonal_part(void *arg, int part_idx, int part_numel)
{
    const tess_quantizer_orthogonal_args *a = arg;
    double *t = a->work + (a->dim + part_idx) * a->dim;
    int64_t lo = 0, hi = 0;
    tess_pool_range(a->code_numel, 1, part_idx, part_numel, &lo, &hi);
    for (int64_t k = lo; k < hi; k++)
        if (a->use == NULL || a->use[k] != 0)
            orthogonal_row(a, k, t);
}

tess_status tess_cpu_quantizer_orthogonal(const tess_quantizer_orthogonal_args *a, tess_stream *s)
{
    TESS_TRY(tess_quantizer_orthogonal_check(a));
    const double m = (double)a->used_numel, unit = ldexp(1.0, -a->exponent);
    double sum = 0.0;
    for (int64_t i = 0; i < a->dim * a->dim; i++) {
        const double g = (double)a->gram[i] * unit;
        sum = sum + g * g;
        if (a->d_codes != NULL)
            a->work[i] = g;
    }
    if (a->loss != NULL)
        *a->loss = sum / (m * m) - 1.0 / m;
    tess_quantizer_orthogonal_args args = *a;
    if (a->d_codes != NULL)
        tess_pool_run(s->pool, tess_cpu_part_numel(s, a->code_numel * a->dim * a->dim),
                      orthogonal_part, &args);
    return TESS_OK;
}

static float score_of(const tess_quantizer_sample_args *a, int64_t row, int64_t code)
{
    const float *x = a->x + row * a->dim, *c = a->codes + code * a->dim;
    double sum = 0.0;
    for (int64_t j = 0; j < a->dim; j++) {
        const double d = (double)x[j] - (double)c[j];
        sum = sum + (a->is_cosine ? (double)x[j] * (double)c[j] : d * d);
    }
    return (float)(a->is_cosine ? sum : -sqrt(fmax(sum, 1e-8)));
}

static void sample_part(void *arg, int part_idx, int part_numel)
{
    const tess_quantizer_sample_args *a = arg;
    int64_t lo = 0, hi = 0;
    tess_pool_range(a->row_numel, 1, part_idx, part_numel, &lo, &hi);
    const int64_t stride = (a->all_numel + 3) / 4 * 4;
    const float temperature = (float)a->temperature;
    for (int64_t row = lo; row < hi; row++) {
        const int64_t first = (a->first_row_idx + row) * stride + a->first_code_idx;
        if (a->is_first)
            a->key[row] = TESS_NO_KEY;
        for (int64_t k = 0; k < a->code_numel; k++) {
            const float u = a->uniform != NULL ? a->uniform[row * a->code_numel + k]
                                               : tess_rng_uniform(&a->rng, (uint64_t)(first + k));
            const float value = score_of(a, row, k) / temperature + tess_gumbel(u);
            const uint64_t key = tess_key_make(-value, (uint32_t)(a->first_code_idx + k));
            a->key[row] = TESS_MIN(a->key[row], key);
        }
    }
}

tess_status tess_cpu_quantizer_mask(const tess_quantizer_mask_args *a, tess_stream *s)
{
    (void)s;
    TESS_TRY(tess_quantizer_mask_check(a));
    for (int64_t i = 0; i < a->index_numel; i++)
        for (int64_t row = 0; row < a->row_numel; row++)
            if (a->valid[row] == 0)
                a->code[i * a->row_numel + row] = TESS_NO_CODE;
    return TESS_OK;
}

tess_status tess_cpu_quantizer_sample(const tess_quantizer_sample_args *a, tess_stream *s)
{
    TESS_TRY(tess_quantizer_sample_check(a));
    tess_quantizer_sample_args args = *a;
    const int64_t cost = 4 * a->row_numel * a->code_numel * (a->dim + 32);
    tess_pool_run(s->pool, tess_cpu_part_numel(s, cost), sample_part, &args);
    return TESS_OK;
}
