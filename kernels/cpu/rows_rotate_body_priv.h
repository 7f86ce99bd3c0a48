/** Normed and rotated heads; included by rows*.c once per instruction path. */
#pragma once

#include "kernels/cpu/rows_elementwise_body_priv.h"
#include "kernels/cpu/rows_modulate_body_priv.h"
#include "kernels/cpu/rows_norm_body_priv.h"

/* Angles of one row, an element each: cos, and sin with the sign of its pair's first element. */
typedef struct turn {
    float cosine[TESS_ROTATE_DIM_MAX], sine[TESS_ROTATE_DIM_MAX];
} turn;

INLINE void turn_of(const float *cos_row, const float *sin_row, int64_t dim, turn *out)
{
    for (int64_t m = 0; m < dim / 2; m++) {
        out->cosine[2 * m] = out->cosine[2 * m + 1] = cos_row[m];
        out->sine[2 * m] = -sin_row[m];
        out->sine[2 * m + 1] = sin_row[m];
    }
}

/* Neighbours change places. */
INLINE vf swap_pairs(vf v)
{
    const vq pairs = (vq)v;
    return (vf)(pairs << 32 | pairs >> 32);
}

INLINE float head_inv(const char *x, int64_t dim, float eps, bool is_bf16)
{
    return 1.0f / sqrtf(sum_of_squares(x, dim, is_bf16) / (float)dim + eps);
}

INLINE void rotate_dt(const tess_rotate_args *a, int64_t lo, int64_t hi, bool is_bf16)
{
    const int64_t dim = a->shape.dim, half = dim / 2;
    const bool w_bf16 = a->w.dt == TESS_BF16;
    const size_t head_nbytes = (size_t)dim * (is_bf16 ? 2 : 4);
    turn angle;
    for (int64_t row = lo; row < hi; row++) {
        const int64_t b = row / a->shape.row_numel, t = row % a->shape.row_numel;
        const char *x = sample_row(&a->x, b, t, is_bf16);
        char *y = sample_row(&a->y, b, t, is_bf16);
        turn_of(a->cos_table + t * half, a->sin_table + t * half, dim, &angle);
        for (int64_t head = 0; head < a->head_numel; head++, x += head_nbytes, y += head_nbytes) {
            const float inv = head_inv(x, dim, a->eps, is_bf16);
            for (int64_t i = 0; i < dim; i += VL) {
                const int64_t n = TESS_MIN(VL, dim - i);
                const vf v = vf_get(x, i, n, is_bf16) * inv * vf_get(a->w.data, i, n, w_bf16);
                vf_put(y, i, n,
                       v * vf_get(angle.cosine, i, n, false) +
                           swap_pairs(v) * vf_get(angle.sine, i, n, false),
                       is_bf16);
            }
        }
    }
}

static void rotate(const tess_rotate_args *a, int64_t lo, int64_t hi)
{
    if (a->x.view.dt == TESS_BF16)
        rotate_dt(a, lo, hi, true);
    else
        rotate_dt(a, lo, hi, false);
}

/* Elements i .. of d_y rotated back. */
INLINE vf rotated_back(const char *d_y, const turn *angle, int64_t i, int64_t n, bool is_bf16)
{
    const vf d = vf_get(d_y, i, n, is_bf16);
    return d * vf_get(angle->cosine, i, n, false) -
           swap_pairs(d) * vf_get(angle->sine, i, n, false);
}

INLINE void head_backward(const tess_rotate_backward_args *a, const turn *angle, const char *x,
                          const char *d_y, char *d_x, bool is_bf16)
{
    const int64_t dim = a->shape.dim;
    const bool w_bf16 = a->w.dt == TESS_BF16;
    const float inv = head_inv(x, dim, a->eps, is_bf16);
    vf acc[LANE_VECTORS] = {{0}};
    for (int64_t i = 0; i < dim; i += LANES)
        for (int h = 0; h < LANE_VECTORS && i + h * VL < dim; h++) {
            const int64_t at = i + h * VL, n = TESS_MIN(VL, dim - at);
            const vf g =
                rotated_back(d_y, angle, at, n, is_bf16) * vf_get(a->w.data, at, n, w_bf16);
            acc[h] = acc[h] + g * (vf_get(x, at, n, is_bf16) * inv);
        }
    const float mean = lanes_sum(acc) / (float)dim;
    for (int64_t i = 0; i < dim; i += VL) {
        const int64_t n = TESS_MIN(VL, dim - i);
        const vf g = rotated_back(d_y, angle, i, n, is_bf16) * vf_get(a->w.data, i, n, w_bf16);
        vf_put(d_x, i, n, (g - vf_get(x, i, n, is_bf16) * inv * mean) * inv, is_bf16);
    }
}

INLINE void rotate_backward_dt(const tess_rotate_backward_args *a, int64_t lo, int64_t hi,
                               bool is_bf16)
{
    const int64_t dim = a->shape.dim, half = dim / 2;
    const size_t head_nbytes = (size_t)dim * (is_bf16 ? 2 : 4);
    turn angle;
    for (int64_t row = lo; row < hi; row++) {
        const int64_t b = row / a->shape.row_numel, t = row % a->shape.row_numel;
        const char *x = sample_row(&a->x, b, t, is_bf16);
        const char *d_y = sample_row(&a->d_y, b, t, is_bf16);
        char *d_x = sample_row(&a->d_x, b, t, is_bf16);
        turn_of(a->cos_table + t * half, a->sin_table + t * half, dim, &angle);
        for (int64_t head = 0; head < a->head_numel; head++) {
            const size_t at = (size_t)head * head_nbytes;
            head_backward(a, &angle, x + at, d_y + at, d_x + at, is_bf16);
        }
    }
}

static void rotate_backward(const tess_rotate_backward_args *a, int64_t lo, int64_t hi)
{
    if (a->x.view.dt == TESS_BF16)
        rotate_backward_dt(a, lo, hi, true);
    else
        rotate_backward_dt(a, lo, hi, false);
}

/* Sum over a chunk of the rows of all samples of d n, n without its weight. */
INLINE void rotate_backward_w_dt(const tess_rotate_backward_args *a, int chunk_idx, bool is_bf16)
{
    const int64_t dim = a->shape.dim, half = dim / 2;
    const size_t head_nbytes = (size_t)dim * (is_bf16 ? 2 : 4);
    float *sum = a->work + chunk_idx * dim;
    turn angle;
    int64_t lo = 0, hi = 0;
    tess_row_chunk(a->shape.sample_numel * a->shape.row_numel, chunk_idx, &lo, &hi);
    memset(sum, 0, (size_t)dim * sizeof *sum);
    for (int64_t row = lo; row < hi; row++) {
        const int64_t b = row / a->shape.row_numel, t = row % a->shape.row_numel;
        const char *x = sample_row(&a->x, b, t, is_bf16);
        const char *d_y = sample_row(&a->d_y, b, t, is_bf16);
        turn_of(a->cos_table + t * half, a->sin_table + t * half, dim, &angle);
        for (int64_t head = 0; head < a->head_numel; head++, x += head_nbytes, d_y += head_nbytes) {
            const float inv = head_inv(x, dim, a->eps, is_bf16);
            for (int64_t i = 0; i < dim; i += VL) {
                const int64_t n = TESS_MIN(VL, dim - i);
                const vf d = rotated_back(d_y, &angle, i, n, is_bf16);
                vf_put(sum, i, n, vf_get(sum, i, n, false) + d * (vf_get(x, i, n, is_bf16) * inv),
                       false);
            }
        }
    }
}

static void rotate_backward_w(const tess_rotate_backward_args *a, int chunk_idx)
{
    if (a->x.view.dt == TESS_BF16)
        rotate_backward_w_dt(a, chunk_idx, true);
    else
        rotate_backward_w_dt(a, chunk_idx, false);
}
