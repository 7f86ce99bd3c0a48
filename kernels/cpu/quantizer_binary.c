/* One source for all instruction paths; see kernels/quantizer_binary.h. */
#include "kernels/check_priv.h"
#include "kernels/cpu/ops_priv.h"
#include "kernels/cpu/quantizer_priv.h"
#include "kernels/quantizer_priv.h"

static uint32_t bit_of(tess_bit_order order, int64_t dim, int64_t j)
{
    return UINT32_C(1) << (order == TESS_BITS_MSB_FIRST ? dim - 1 - j : j);
}

static void sign_part(void *arg, int part_idx, int part_numel)
{
    const tess_quantizer_sign_args *a = arg;
    const tess_sign_rows *r = &a->rows;
    int64_t lo = 0, hi = 0;
    tess_pool_range(r->row_numel, 1, part_idx, part_numel, &lo, &hi);
    for (int64_t row = lo; row < hi; row++) {
        const float *x = tess_cpu_sign_row(r, row);
        uint32_t index = 0;
        for (int64_t j = 0; j < r->dim; j++) {
            const float q = x == NULL ? 0.0f : x[j] > 0.0f ? r->magnitude : -r->magnitude;
            index |= q > 0.0f ? bit_of(a->order, r->dim, j) : 0;
            if (a->out.numel > 0)
                tess_cpu_put(a->out, tess_cpu_row_at(row, a->out_stride, r->dim) + j, q);
        }
        if (a->index != NULL)
            a->index[row] = x == NULL ? TESS_NO_CODE : index;
    }
}

tess_status tess_cpu_quantizer_sign(const tess_quantizer_sign_args *a, tess_stream *s)
{
    TESS_TRY(tess_quantizer_sign_check(a));
    tess_quantizer_sign_args args = *a;
    tess_pool_run(s->pool, tess_cpu_part_numel(s, a->rows.row_numel * a->rows.dim), sign_part,
                  &args);
    return TESS_OK;
}

tess_status tess_cpu_quantizer_sign_decode(const tess_quantizer_sign_decode_args *a, tess_stream *s)
{
    (void)s;
    TESS_TRY(tess_quantizer_sign_decode_check(a));
    for (int64_t row = 0; row < a->row_numel; row++)
        TESS_CHECK(a->index[row] == TESS_NO_CODE || (uint64_t)a->index[row] < UINT64_C(1) << a->dim,
                   TESS_E_RANGE,
                   "quantizer sign_decode: vector %" PRId64 " has index %" PRIu32
                   ", expected below 2^%" PRId64,
                   row, a->index[row], a->dim);
    for (int64_t row = 0; row < a->row_numel; row++) {
        const uint32_t index = a->index[row];
        for (int64_t j = 0; j < a->dim; j++) {
            const bool is_set = (index & bit_of(a->order, a->dim, j)) != 0;
            const float q = index == TESS_NO_CODE ? 0.0f : is_set ? a->magnitude : -a->magnitude;
            tess_cpu_put(a->out, tess_cpu_row_at(row, a->out_stride, a->dim) + j, q);
        }
    }
    return TESS_OK;
}

static void loss_part(void *arg, int part_idx, int part_numel)
{
    const tess_quantizer_sign_loss_args *a = arg;
    const tess_sign_rows *r = &a->rows;
    const double slope = 4.0 * a->beta * (double)r->magnitude;
    int64_t lo = 0, hi = 0;
    tess_pool_range(r->row_numel, 1, part_idx, part_numel, &lo, &hi);
    for (int64_t row = lo; row < hi; row++) {
        const float *x = tess_cpu_sign_row(r, row);
        double loss = 0.0, entropy = 0.0;
        for (int64_t j = 0; x != NULL && j < r->dim; j++) {
            const float d = x[j] - (x[j] > 0.0f ? r->magnitude : -r->magnitude);
            loss = loss + (double)d * (double)d;
            if (a->entropy != NULL)
                entropy = entropy + tess_coin_of(slope * (double)x[j]).entropy;
        }
        if (a->loss != NULL)
            a->loss[row] = loss;
        if (a->entropy != NULL)
            a->entropy[row] = entropy;
    }
}

tess_status tess_cpu_quantizer_sign_loss(const tess_quantizer_sign_loss_args *a, tess_stream *s)
{
    TESS_TRY(tess_quantizer_sign_loss_check(a));
    tess_quantizer_sign_loss_args args = *a;
    tess_pool_run(s->pool, tess_cpu_part_numel(s, 16 * a->rows.row_numel * a->rows.dim), loss_part,
                  &args);
    return TESS_OK;
}

static float sign_gradient(const tess_quantizer_sign_backward_args *a, float x)
{
    const float magnitude = a->rows.magnitude;
    const float d = a->commitment * (x - (x > 0.0f ? magnitude : -magnitude));
    if (a->entropy == 0.0)
        return d;
    const double slope = 4.0 * a->beta * (double)magnitude, t = slope * (double)x;
    const tess_coin coin = tess_coin_of(t);
    return d - (float)(a->entropy * slope * t * coin.positive * coin.negative);
}

static void backward_part(void *arg, int part_idx, int part_numel)
{
    const tess_quantizer_sign_backward_args *a = arg;
    const tess_sign_rows *r = &a->rows;
    int64_t lo = 0, hi = 0;
    tess_pool_range(r->row_numel, 1, part_idx, part_numel, &lo, &hi);
    for (int64_t row = lo; row < hi; row++) {
        const float *x = tess_cpu_sign_row(r, row);
        float *d_x = a->d_x + tess_cpu_row_at(row, r->stride, r->dim);
        const int64_t first = tess_cpu_row_at(row, a->d_out_stride, r->dim);
        for (int64_t j = 0; j < r->dim; j++) {
            float d = x != NULL ? sign_gradient(a, x[j]) : 0.0f;
            if (x != NULL && a->d_out.numel > 0)
                d = tess_cpu_get(a->d_out, first + j) + d;
            d_x[j] = a->accumulate ? d_x[j] + d : d;
        }
    }
}

tess_status tess_cpu_quantizer_sign_backward(const tess_quantizer_sign_backward_args *a,
                                             tess_stream *s)
{
    TESS_TRY(tess_quantizer_sign_backward_check(a));
    tess_quantizer_sign_backward_args args = *a;
    tess_pool_run(s->pool, tess_cpu_part_numel(s, 16 * a->rows.row_numel * a->rows.dim),
                  backward_part, &args);
    return TESS_OK;
}
