/** What the quantizers share. */
#pragma once

#include <math.h>

#include "core/view.h"
#include "kernels/elementwise.h"
#include "kernels/quantizer_binary.h"
#include "kernels/quantizer_vector.h"

TESS_BEGIN_DECLS

/** One element of an activation. Local. */
static inline float tess_cpu_get(tess_view v, int64_t i)
{
    return v.dt == TESS_BF16 ? tess_bf16_to_f32(((const uint16_t *)v.data)[i])
                             : ((const float *)v.data)[i];
}

static inline void tess_cpu_put(tess_view v, int64_t i, float x)
{
    if (v.dt == TESS_BF16)
        ((uint16_t *)v.data)[i] = tess_bf16_from_f32(x);
    else
        ((float *)v.data)[i] = x;
}

/** First element of a row; `stride` 0: `dim`. Local. */
static inline int64_t tess_cpu_row_at(int64_t row, int64_t stride, int64_t dim)
{
    return row * (stride > 0 ? stride : dim);
}

/** 1 / max(|v|, TESS_UNIT_LEAST), elements ascending. Local. */
static inline double tess_cpu_unit_factor(const float *v, int64_t dim)
{
    double square = 0.0;
    for (int64_t j = 0; j < dim; j++)
        square = square + (double)v[j] * (double)v[j];
    const double norm = sqrt(square), least = (double)TESS_UNIT_LEAST;
    return 1.0 / (norm > least ? norm : least);
}

/** NULL where the vector is masked. Local. */
static inline const float *tess_cpu_sign_row(const tess_sign_rows *r, int64_t row)
{
    if (r->valid != NULL && r->valid[row] == 0)
        return NULL;
    return r->x + tess_cpu_row_at(row, r->stride, r->dim);
}

TESS_END_DECLS
