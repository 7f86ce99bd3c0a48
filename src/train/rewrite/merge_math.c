/* The numbers of a merge: the product of an adapter, and what is left of it. */
#include <math.h>

#include "core/half.h"
#include "train/rewrite/merge_priv.h"

enum { SLICE_NUMEL = 16384 };

typedef struct product {
    const float *a, *b; /* [rank, in], [out, rank] */
    int64_t out_numel, in_numel, rank;
    float scale;
    float *delta; /* [out, in] */
} product;

/* Rows of the delta; the rank in ascending order. */
static void product_rows(void *arg, int part_idx, int part_numel)
{
    const product *p = arg;
    int64_t lo = 0, hi = 0;
    tess_pool_range(p->out_numel, 1, part_idx, part_numel, &lo, &hi);
    for (int64_t row = lo; row < hi; row++) {
        float *to = p->delta + row * p->in_numel;
        for (int64_t i = 0; i < p->in_numel; i++)
            to[i] = 0.0F;
        for (int64_t k = 0; k < p->rank; k++) {
            const float b = p->b[row * p->rank + k];
            const float *a = p->a + k * p->in_numel;
            for (int64_t i = 0; i < p->in_numel; i++)
                to[i] += b * a[i];
        }
        for (int64_t i = 0; i < p->in_numel; i++)
            to[i] *= p->scale;
    }
}

void merge_product(const merge_adapter *adapter, tess_pool *pool, float *delta)
{
    product p = {.a = adapter->a,
                 .b = adapter->b,
                 .out_numel = adapter->file->out_numel,
                 .in_numel = adapter->file->in_numel,
                 .rank = adapter->file->rank,
                 .scale = (float)adapter->match.scale,
                 .delta = delta};
    tess_pool_run(pool, tess_pool_thread_numel(pool), product_rows, &p);
}

void merge_scale_rows(const float *magnitude, int64_t row_numel, int64_t col_numel, float *weight)
{
    for (int64_t row = 0; row < row_numel; row++) {
        float *w = weight + row * col_numel;
        double square = 0.0;
        for (int64_t i = 0; i < col_numel; i++)
            square += (double)w[i] * (double)w[i];
        const float factor = square > 0.0 ? (float)((double)magnitude[row] / sqrt(square)) : 1.0F;
        for (int64_t i = 0; i < col_numel; i++)
            w[i] *= factor;
    }
}

void merge_widen(tess_dtype dt, const void *src, int64_t numel, float *dst)
{
    for (int64_t i = 0; i < numel; i++)
        dst[i] = dt == TESS_F32   ? ((const float *)src)[i]
                 : dt == TESS_F16 ? tess_f16_to_f32(((const uint16_t *)src)[i])
                                  : tess_bf16_to_f32(((const uint16_t *)src)[i]);
}

tess_status tess_merge_measure(const float *q, const float *d, const tess_stored *z,
                               tess_merge_survival *out)
{
    double weight = 0.0, delta = 0.0, along = 0.0, noise = 0.0;
    float stored[SLICE_NUMEL];
    for (int64_t at = 0; at < z->numel; at += SLICE_NUMEL) {
        const int64_t numel = TESS_MIN(SLICE_NUMEL, z->numel - at);
        TESS_TRY(tess_stored_decode(z, at, numel, stored));
        for (int64_t i = 0; i < numel; i++) {
            const double before = (double)q[at + i], change = (double)d[at + i];
            const double left = (double)stored[i] - before;
            weight += before * before;
            delta += change * change;
            along += left * change;
            noise += (left - change) * (left - change);
        }
    }
    *out = (tess_merge_survival){.survived = 1.0};
    if (delta > 0.0)
        *out = (tess_merge_survival){.delta = weight > 0.0 ? sqrt(delta / weight) : INFINITY,
                                     .survived = along / delta,
                                     .noise = sqrt(noise / delta)};
    return TESS_OK;
}
