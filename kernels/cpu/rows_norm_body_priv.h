/** RMSNorm and rotary embedding over rows; included by rows*.c once per instruction path. */
#pragma once

#include <math.h>

#include "kernels/cpu/ops_priv.h"
#include "kernels/cpu/vec_priv.h"

/** Address of row `row` of a [*, dim] view. */
INLINE char *row_at(tess_view v, int64_t row, int64_t dim)
{
    return (char *)v.data + (size_t)(row * dim) * (v.dt == TESS_BF16 ? 2 : 4);
}

INLINE float sum_of_squares(const void *x, int64_t dim, bool is_bf16)
{
    vf acc[LANE_VECTORS] = {{0}};
    for (int64_t i = 0; i < dim; i += LANES) {
        for (int h = 0; h < LANE_VECTORS; h++) {
            const int64_t first = i + h * VL;
            if (first >= dim)
                break;
            const vf v = vf_get(x, first, TESS_MIN(VL, dim - first), is_bf16);
            acc[h] = acc[h] + v * v;
        }
    }
    return lanes_sum(acc);
}

INLINE const char *add_residual(const tess_rmsnorm_args *a, int64_t row, bool is_bf16)
{
    const char *x = row_at(a->x, row, a->dim), *residual = row_at(a->residual, row, a->dim);
    char *sum = row_at(a->sum, row, a->dim);
    for (int64_t i = 0; i < a->dim; i += VL) {
        const int64_t n = TESS_MIN(VL, a->dim - i);
        vf_put(sum, i, n, vf_get(x, i, n, is_bf16) + vf_get(residual, i, n, is_bf16), is_bf16);
    }
    return sum;
}

INLINE void rmsnorm_forward_dt(const tess_rmsnorm_args *a, int64_t lo, int64_t hi, bool is_bf16)
{
    const bool w_bf16 = a->w.dt == TESS_BF16;
    const int64_t y_stride = a->y_stride != 0 ? a->y_stride : a->dim;
    for (int64_t row = lo; row < hi; row++) {
        const char *x = row_at(a->x, row, a->dim);
        char *y = row_at(a->y, row, y_stride);
        if (a->residual.numel > 0)
            x = add_residual(a, row, is_bf16);
        const float mean = sum_of_squares(x, a->dim, is_bf16) / (float)a->dim;
        const float inv = 1.0f / sqrtf(mean + a->eps);
        if (a->inv_rms != NULL)
            a->inv_rms[row] = inv;
        for (int64_t i = 0; i < a->dim; i += VL) {
            const int64_t n = TESS_MIN(VL, a->dim - i);
            const vf normal = vf_round(vf_get(x, i, n, is_bf16) * inv, is_bf16);
            vf_put(y, i, n, normal * vf_get(a->w.data, i, n, w_bf16), is_bf16);
        }
    }
}

static void rmsnorm_forward(const tess_rmsnorm_args *a, int64_t lo, int64_t hi)
{
    if (a->x.dt == TESS_BF16)
        rmsnorm_forward_dt(a, lo, hi, true);
    else
        rmsnorm_forward_dt(a, lo, hi, false);
}

/* sum over the row of d_y * w * n, n = x * inv */
INLINE float norm_dot(const tess_rmsnorm_backward_args *a, int64_t row, bool is_bf16)
{
    const char *x = row_at(a->x, row, a->dim);
    const char *d_y = row_at(a->d_y, row, a->dim);
    const bool w_bf16 = a->w.dt == TESS_BF16;
    const float inv = a->inv_rms[row];
    vf acc[LANE_VECTORS] = {{0}};
    for (int64_t i = 0; i < a->dim; i += LANES) {
        for (int h = 0; h < LANE_VECTORS; h++) {
            const int64_t first = i + h * VL;
            if (first >= a->dim)
                break;
            const int64_t n = TESS_MIN(VL, a->dim - first);
            const vf g = vf_get(d_y, first, n, is_bf16) * vf_get(a->w.data, first, n, w_bf16);
            acc[h] = acc[h] + g * (vf_get(x, first, n, is_bf16) * inv);
        }
    }
    return lanes_sum(acc);
}

INLINE void rmsnorm_backward_dt(const tess_rmsnorm_backward_args *a, int64_t lo, int64_t hi,
                                bool is_bf16)
{
    const bool w_bf16 = a->w.dt == TESS_BF16;
    for (int64_t row = lo; row < hi; row++) {
        const char *x = row_at(a->x, row, a->dim);
        const char *d_y = row_at(a->d_y, row, a->dim);
        const char *residual = a->residual.numel > 0 ? row_at(a->residual, row, a->dim) : NULL;
        char *d_x = row_at(a->d_x, row, a->dim);
        const float inv = a->inv_rms[row];
        const float mean = norm_dot(a, row, is_bf16) / (float)a->dim;
        for (int64_t i = 0; i < a->dim; i += VL) {
            const int64_t n = TESS_MIN(VL, a->dim - i);
            const vf g = vf_get(d_y, i, n, is_bf16) * vf_get(a->w.data, i, n, w_bf16);
            const vf normal = vf_get(x, i, n, is_bf16) * inv;
            vf d = (g - normal * mean) * inv;
            if (residual != NULL)
                d = d + vf_get(residual, i, n, is_bf16);
            vf_put(d_x, i, n, d, is_bf16);
        }
    }
}

static void rmsnorm_backward(const tess_rmsnorm_backward_args *a, int64_t lo, int64_t hi)
{
    if (a->x.dt == TESS_BF16)
        rmsnorm_backward_dt(a, lo, hi, true);
    else
        rmsnorm_backward_dt(a, lo, hi, false);
}

INLINE void rmsnorm_backward_w_dt(const tess_rmsnorm_backward_args *a, int chunk_idx, bool is_bf16)
{
    float *sum = a->work + chunk_idx * a->dim;
    int64_t lo = 0, hi = 0;
    tess_row_chunk(a->row_numel, chunk_idx, &lo, &hi);
    memset(sum, 0, (size_t)a->dim * sizeof *sum);
    for (int64_t row = lo; row < hi; row++) {
        const char *x = row_at(a->x, row, a->dim);
        const char *d_y = row_at(a->d_y, row, a->dim);
        for (int64_t i = 0; i < a->dim; i += VL) {
            const int64_t n = TESS_MIN(VL, a->dim - i);
            const vf normal = vf_round(vf_get(x, i, n, is_bf16) * a->inv_rms[row], is_bf16);
            vf_put(sum, i, n, vf_get(sum, i, n, false) + vf_get(d_y, i, n, is_bf16) * normal,
                   false);
        }
    }
}

static void rmsnorm_backward_w(const tess_rmsnorm_backward_args *a, int chunk_idx)
{
    if (a->x.dt == TESS_BF16)
        rmsnorm_backward_w_dt(a, chunk_idx, true);
    else
        rmsnorm_backward_w_dt(a, chunk_idx, false);
}

INLINE void rope_dt(const tess_rope_args *a, int64_t lo, int64_t hi, bool is_bf16)
{
    const int64_t half = a->dim / 2;
    for (int64_t t = lo; t < hi; t++) {
        const float *cos_row = a->cos_table + a->positions[t] * half;
        const float *sin_row = a->sin_table + a->positions[t] * half;
        for (int64_t head = 0; head < a->head_numel; head++) {
            char *x = row_at(a->x, t * a->head_numel + head, a->dim);
            for (int64_t i = 0; i < half; i += VL) {
                const int64_t n = TESS_MIN(VL, half - i);
                const vf c = vf_get(cos_row, i, n, false);
                const vf sine = vf_get(sin_row, i, n, false);
                const vf s = a->inverse ? -sine : sine;
                const vf first = vf_get(x, i, n, is_bf16);
                const vf second = vf_get(x, half + i, n, is_bf16);
                vf_put(x, i, n, first * c - second * s, is_bf16);
                vf_put(x, half + i, n, second * c + first * s, is_bf16);
            }
        }
    }
}

static void rope(const tess_rope_args *a, int64_t lo, int64_t hi)
{
    if (a->x.dt == TESS_BF16)
        rope_dt(a, lo, hi, true);
    else
        rope_dt(a, lo, hi, false);
}
