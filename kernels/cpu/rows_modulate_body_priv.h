/** Modulated norms and gates over rows; included by rows*.c once per instruction path. */
#pragma once

#include <math.h>

#include "kernels/cpu/ops_priv.h"
#include "kernels/cpu/vec_priv.h"

/* Row t of sample b. */
INLINE char *sample_row(const tess_sample_rows *rows, int64_t b, int64_t t, bool is_bf16)
{
    return (char *)rows->view.data +
           (size_t)(b * rows->sample_stride + t * rows->row_stride) * (is_bf16 ? 2 : 4);
}

INLINE const char *factor_of(tess_factor factor, int64_t b, int64_t stride, bool is_bf16)
{
    return (const char *)factor.data + (size_t)(b * stride) * (is_bf16 ? 2 : 4);
}

/* Lanes from n on are 0. */
INLINE vf first_lanes(vf v, int64_t n)
{
    return n == VL ? v : vf_select(vi_iota(0) < (int32_t)n, v, (vf){0});
}

INLINE float row_sum(const void *x, int64_t dim, bool is_bf16)
{
    vf acc[LANE_VECTORS] = {{0}};
    for (int64_t i = 0; i < dim; i += LANES)
        for (int h = 0; h < LANE_VECTORS && i + h * VL < dim; h++)
            acc[h] = acc[h] + vf_get(x, i + h * VL, TESS_MIN(VL, dim - i - h * VL), is_bf16);
    return lanes_sum(acc);
}

INLINE float row_spread(const void *x, int64_t dim, float mean, bool is_bf16)
{
    vf acc[LANE_VECTORS] = {{0}};
    for (int64_t i = 0; i < dim; i += LANES)
        for (int h = 0; h < LANE_VECTORS && i + h * VL < dim; h++) {
            const int64_t n = TESS_MIN(VL, dim - i - h * VL);
            const vf d = first_lanes(vf_get(x, i + h * VL, n, is_bf16) - mean, n);
            acc[h] = acc[h] + d * d;
        }
    return lanes_sum(acc);
}

INLINE void modulate_dt(const tess_modulate_args *a, int64_t lo, int64_t hi, bool is_bf16)
{
    const int64_t dim = a->shape.dim;
    for (int64_t row = lo; row < hi; row++) {
        const int64_t b = row / a->shape.row_numel, t = row % a->shape.row_numel;
        const char *x = sample_row(&a->x, b, t, is_bf16);
        const char *shift = factor_of(a->shift, b, a->factor_stride, is_bf16);
        const char *scale = factor_of(a->scale, b, a->factor_stride, is_bf16);
        char *y = sample_row(&a->y, b, t, is_bf16);
        const float mean = row_sum(x, dim, is_bf16) / (float)dim;
        const float inv = 1.0f / sqrtf(row_spread(x, dim, mean, is_bf16) / (float)dim + a->eps);
        a->mean[row] = mean;
        a->inv[row] = inv;
        for (int64_t i = 0; i < dim; i += VL) {
            const int64_t n = TESS_MIN(VL, dim - i);
            const vf normal = (vf_get(x, i, n, is_bf16) - mean) * inv;
            vf_put(y, i, n,
                   normal * (vf_get(scale, i, n, is_bf16) + 1.0f) + vf_get(shift, i, n, is_bf16),
                   is_bf16);
        }
    }
}

static void modulate(const tess_modulate_args *a, int64_t lo, int64_t hi)
{
    if (a->x.view.dt == TESS_BF16)
        modulate_dt(a, lo, hi, true);
    else
        modulate_dt(a, lo, hi, false);
}

/* Means over a row of u and of u n, u = d_y (1 + scale). */
typedef struct modulate_means {
    float u, u_normal;
} modulate_means;

/* One row of the backward. */
typedef struct modulate_row {
    const char *x, *d_y, *scale;
    float mean, inv;
} modulate_row;

INLINE modulate_means means_of(const modulate_row *r, int64_t dim, bool is_bf16)
{
    vf acc[2][LANE_VECTORS] = {{{0}}};
    for (int64_t i = 0; i < dim; i += LANES)
        for (int h = 0; h < LANE_VECTORS && i + h * VL < dim; h++) {
            const int64_t at = i + h * VL, n = TESS_MIN(VL, dim - at);
            const vf u = vf_get(r->d_y, at, n, is_bf16) * (vf_get(r->scale, at, n, is_bf16) + 1.0f);
            acc[0][h] = acc[0][h] + u;
            acc[1][h] = acc[1][h] + u * ((vf_get(r->x, at, n, is_bf16) - r->mean) * r->inv);
        }
    const modulate_means means = {lanes_sum(acc[0]) / (float)dim, lanes_sum(acc[1]) / (float)dim};
    return means;
}

INLINE void modulate_backward_dt(const tess_modulate_backward_args *a, int64_t lo, int64_t hi,
                                 bool is_bf16)
{
    const int64_t dim = a->shape.dim;
    for (int64_t row = lo; row < hi; row++) {
        const int64_t b = row / a->shape.row_numel, t = row % a->shape.row_numel;
        const modulate_row r = {.x = sample_row(&a->x, b, t, is_bf16),
                                .d_y = sample_row(&a->d_y, b, t, is_bf16),
                                .scale = factor_of(a->scale, b, a->factor_stride, is_bf16),
                                .mean = a->mean[row],
                                .inv = a->inv[row]};
        const char *residual =
            a->residual.view.numel > 0 ? sample_row(&a->residual, b, t, is_bf16) : NULL;
        char *d_x = sample_row(&a->d_x, b, t, is_bf16);
        const modulate_means means = means_of(&r, dim, is_bf16);
        for (int64_t i = 0; i < dim; i += VL) {
            const int64_t n = TESS_MIN(VL, dim - i);
            const vf u = vf_get(r.d_y, i, n, is_bf16) * (vf_get(r.scale, i, n, is_bf16) + 1.0f);
            const vf normal = (vf_get(r.x, i, n, is_bf16) - r.mean) * r.inv;
            vf d = (u - means.u - normal * means.u_normal) * r.inv;
            if (residual != NULL)
                d = d + vf_get(residual, i, n, is_bf16);
            vf_put(d_x, i, n, d, is_bf16);
        }
    }
}

static void modulate_backward(const tess_modulate_backward_args *a, int64_t lo, int64_t hi)
{
    if (a->x.view.dt == TESS_BF16)
        modulate_backward_dt(a, lo, hi, true);
    else
        modulate_backward_dt(a, lo, hi, false);
}

/* Sums of d_y and of d_y n over a chunk of the rows of sample b. */
INLINE void modulate_factors_dt(const tess_modulate_backward_args *a, int64_t b, int chunk_idx,
                                bool is_bf16)
{
    const int64_t dim = a->shape.dim;
    float *shift = a->work + (b * TESS_ROW_CHUNK_NUMEL + chunk_idx) * 2 * dim, *scale = shift + dim;
    int64_t lo = 0, hi = 0;
    tess_row_chunk(a->shape.row_numel, chunk_idx, &lo, &hi);
    memset(shift, 0, (size_t)(2 * dim) * sizeof *shift);
    for (int64_t t = lo; t < hi; t++) {
        const char *x = sample_row(&a->x, b, t, is_bf16);
        const char *d_y = sample_row(&a->d_y, b, t, is_bf16);
        const float mean = a->mean[b * a->shape.row_numel + t];
        const float inv = a->inv[b * a->shape.row_numel + t];
        for (int64_t i = 0; i < dim; i += VL) {
            const int64_t n = TESS_MIN(VL, dim - i);
            const vf d = vf_get(d_y, i, n, is_bf16);
            const vf normal = (vf_get(x, i, n, is_bf16) - mean) * inv;
            vf_put(shift, i, n, vf_get(shift, i, n, false) + d, false);
            vf_put(scale, i, n, vf_get(scale, i, n, false) + d * normal, false);
        }
    }
}

static void modulate_factors(const tess_modulate_backward_args *a, int64_t b, int chunk_idx)
{
    if (a->x.view.dt == TESS_BF16)
        modulate_factors_dt(a, b, chunk_idx, true);
    else
        modulate_factors_dt(a, b, chunk_idx, false);
}

INLINE void gate_dt(const tess_gate_args *a, int64_t lo, int64_t hi, bool is_bf16)
{
    for (int64_t row = lo; row < hi; row++) {
        const int64_t b = row / a->shape.row_numel, t = row % a->shape.row_numel;
        const char *x = sample_row(&a->x, b, t, is_bf16);
        const char *f = sample_row(&a->f, b, t, is_bf16);
        const char *gate = factor_of(a->gate, b, a->factor_stride, is_bf16);
        char *y = sample_row(&a->y, b, t, is_bf16);
        for (int64_t i = 0; i < a->shape.dim; i += VL) {
            const int64_t n = TESS_MIN(VL, a->shape.dim - i);
            vf_put(y, i, n,
                   vf_get(gate, i, n, is_bf16) * vf_get(f, i, n, is_bf16) +
                       vf_get(x, i, n, is_bf16),
                   is_bf16);
        }
    }
}

static void gate(const tess_gate_args *a, int64_t lo, int64_t hi)
{
    if (a->x.view.dt == TESS_BF16)
        gate_dt(a, lo, hi, true);
    else
        gate_dt(a, lo, hi, false);
}

INLINE void gate_backward_dt(const tess_gate_backward_args *a, int64_t lo, int64_t hi, bool is_bf16)
{
    for (int64_t row = lo; row < hi; row++) {
        const int64_t b = row / a->shape.row_numel, t = row % a->shape.row_numel;
        const char *d_y = sample_row(&a->d_y, b, t, is_bf16);
        const char *factor = factor_of(a->gate, b, a->factor_stride, is_bf16);
        char *d_f = sample_row(&a->d_f, b, t, is_bf16);
        for (int64_t i = 0; i < a->shape.dim; i += VL) {
            const int64_t n = TESS_MIN(VL, a->shape.dim - i);
            vf_put(d_f, i, n, vf_get(factor, i, n, is_bf16) * vf_get(d_y, i, n, is_bf16), is_bf16);
        }
    }
}

static void gate_backward(const tess_gate_backward_args *a, int64_t lo, int64_t hi)
{
    if (a->d_y.view.dt == TESS_BF16)
        gate_backward_dt(a, lo, hi, true);
    else
        gate_backward_dt(a, lo, hi, false);
}

INLINE void gate_factor_dt(const tess_gate_backward_args *a, int64_t b, int chunk_idx, bool is_bf16)
{
    const int64_t dim = a->shape.dim;
    float *sum = a->work + (b * TESS_ROW_CHUNK_NUMEL + chunk_idx) * dim;
    int64_t lo = 0, hi = 0;
    tess_row_chunk(a->shape.row_numel, chunk_idx, &lo, &hi);
    memset(sum, 0, (size_t)dim * sizeof *sum);
    for (int64_t t = lo; t < hi; t++) {
        const char *f = sample_row(&a->f, b, t, is_bf16);
        const char *d_y = sample_row(&a->d_y, b, t, is_bf16);
        for (int64_t i = 0; i < dim; i += VL) {
            const int64_t n = TESS_MIN(VL, dim - i);
            vf_put(sum, i, n,
                   vf_get(sum, i, n, false) + vf_get(d_y, i, n, is_bf16) * vf_get(f, i, n, is_bf16),
                   false);
        }
    }
}

static void gate_factor(const tess_gate_backward_args *a, int64_t b, int chunk_idx)
{
    if (a->d_y.view.dt == TESS_BF16)
        gate_factor_dt(a, b, chunk_idx, true);
    else
        gate_factor_dt(a, b, chunk_idx, false);
}
