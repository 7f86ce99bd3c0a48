/** Loops of DoRA; included by rows*.c once per instruction path. */
#pragma once

#include "kernels/cpu/rows_norm_body_priv.h"

static void row_norm(const tess_row_norm_args *a, int64_t lo, int64_t hi)
{
    for (int64_t row = lo; row < hi; row++) {
        const float root = sqrtf(sum_of_squares(a->x + row * a->dim, a->dim, false));
        a->norm[row] = a->dt == TESS_BF16 ? tess_bf16_to_f32(tess_bf16_from_f32(root)) : root;
    }
}

/* g = m / n, 0 where n is 0. */
INLINE vf dora_factor(const void *magnitude, const float *norm, int64_t i, int64_t n, bool is_bf16)
{
    const vf length = vf_get(norm, i, n, false);
    return vf_select(length > 0.0f, vf_get(magnitude, i, n, is_bf16) / length, vf_set1(0.0f));
}

INLINE void dora_rows(const tess_dora_args *a, int64_t lo, int64_t hi, bool is_bf16, bool is_y_bf16)
{
    const int64_t stride = a->y_stride > 0 ? a->y_stride : a->dim;
    const bool has_bias = a->bias.numel > 0, is_bias_bf16 = a->bias.dt == TESS_BF16;
    for (int64_t row = lo; row < hi; row++)
        for (int64_t i = 0; i < a->dim; i += VL) {
            const int64_t n = TESS_MIN(VL, a->dim - i), at = row * stride + i;
            vf v = dora_factor(a->magnitude.data, a->norm, i, n, is_bf16) *
                   vf_get(a->z.data, row * a->dim + i, n, is_bf16);
            if (has_bias)
                v = v + vf_get(a->bias.data, i, n, is_bias_bf16);
            if (a->accumulate)
                v = vf_get(a->y.data, at, n, is_y_bf16) + v;
            vf_put(a->y.data, at, n, v, is_y_bf16);
        }
}

static void dora_forward(const tess_dora_args *a, int64_t lo, int64_t hi)
{
    if (a->z.dt != TESS_BF16)
        dora_rows(a, lo, hi, false, false);
    else if (a->y.dt == TESS_BF16)
        dora_rows(a, lo, hi, true, true);
    else
        dora_rows(a, lo, hi, true, false);
}

INLINE void dora_backward_rows(const tess_dora_backward_args *a, int chunk_idx, bool is_bf16)
{
    float *sum = a->work + chunk_idx * a->dim;
    const int64_t y_stride = a->d_y_stride > 0 ? a->d_y_stride : a->dim;
    const int64_t z_stride = a->d_z_stride > 0 ? a->d_z_stride : a->dim;
    int64_t lo = 0, hi = 0;
    tess_row_chunk(a->row_numel, chunk_idx, &lo, &hi);
    memset(sum, 0, (size_t)a->dim * sizeof *sum);
    for (int64_t row = lo; row < hi; row++)
        for (int64_t i = 0; i < a->dim; i += VL) {
            const int64_t n = TESS_MIN(VL, a->dim - i), at = row * a->dim + i;
            const vf g = dora_factor(a->magnitude.data, a->norm, i, n, is_bf16);
            const vf d = vf_get(a->d_y.data, row * y_stride + i, n, is_bf16);
            vf_put(sum, i, n, vf_get(sum, i, n, false) + d * vf_get(a->z.data, at, n, is_bf16),
                   false);
            vf_put(a->d_z.data, row * z_stride + i, n, g * d, is_bf16);
            if (a->d_direct.numel > 0)
                vf_put(a->d_direct.data, at, n, (g - 1.0f) * d, is_bf16);
        }
}

static void dora_backward(const tess_dora_backward_args *a, int chunk_idx)
{
    if (a->z.dt == TESS_BF16)
        dora_backward_rows(a, chunk_idx, true);
    else
        dora_backward_rows(a, chunk_idx, false);
}
