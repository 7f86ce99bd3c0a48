/** Activations and the squared error; included by rows*.c once per instruction path. */
#pragma once

#include "kernels/cpu/rows_elementwise_body_priv.h"

static const float gelu_root = 0.7978845608028654f; /* sqrt(2 / pi) */
static const float gelu_cube = 0.044715f;

/* What the sigmoid of an activation is taken of. */
INLINE vf sigmoid_argument(vf x, tess_activation kind)
{
    return kind == TESS_ACTIVATION_SILU ? x : (x + x * x * x * gelu_cube) * (2.0f * gelu_root);
}

/* Its derivative. */
INLINE vf argument_slope(vf x, tess_activation kind)
{
    return kind == TESS_ACTIVATION_SILU ? vf_set1(1.0f)
                                        : (x * x * (3.0f * gelu_cube) + 1.0f) * (2.0f * gelu_root);
}

INLINE void activation_dt(const tess_activation_args *a, int64_t lo, int64_t hi, bool is_bf16)
{
    const int64_t y_stride = a->y_stride != 0 ? a->y_stride : a->dim;
    for (int64_t row = lo; row < hi; row++)
        for (int64_t i = 0; i < a->dim; i += VL) {
            const int64_t n = TESS_MIN(VL, a->dim - i);
            const vf x = vf_get(a->x.data, row * a->dim + i, n, is_bf16);
            vf_put(a->y.data, row * y_stride + i, n, x * sigmoid(sigmoid_argument(x, a->kind)),
                   is_bf16);
        }
}

static void activation(const tess_activation_args *a, int64_t lo, int64_t hi)
{
    if (a->x.dt == TESS_BF16)
        activation_dt(a, lo, hi, true);
    else
        activation_dt(a, lo, hi, false);
}

INLINE void activation_backward_dt(const tess_activation_backward_args *a, int64_t lo, int64_t hi,
                                   bool is_bf16)
{
    const int64_t d_y_stride = a->d_y_stride != 0 ? a->d_y_stride : a->dim;
    const int64_t d_x_stride = a->d_x_stride != 0 ? a->d_x_stride : a->dim;
    for (int64_t row = lo; row < hi; row++)
        for (int64_t i = 0; i < a->dim; i += VL) {
            const int64_t n = TESS_MIN(VL, a->dim - i);
            const vf x = vf_get(a->x.data, row * a->dim + i, n, is_bf16);
            const vf d = vf_get(a->d_y.data, row * d_y_stride + i, n, is_bf16);
            const vf s = sigmoid(sigmoid_argument(x, a->kind));
            const vf slope = s + x * s * (1.0f - s) * argument_slope(x, a->kind);
            vf_put(a->d_x.data, row * d_x_stride + i, n, d * slope, is_bf16);
        }
}

static void activation_backward(const tess_activation_backward_args *a, int64_t lo, int64_t hi)
{
    if (a->x.dt == TESS_BF16)
        activation_backward_dt(a, lo, hi, true);
    else
        activation_backward_dt(a, lo, hi, false);
}

/* ---- squared error ---- */

static void square_error(const tess_square_error_args *a, int64_t lo, int64_t hi)
{
    const float *y = a->y.data;
    const bool is_bf16 = a->d_y.dt == TESS_BF16;
    for (int64_t row = lo; row < hi; row++) {
        const float factor = 2.0f * a->grad_scale * a->weight[row];
        double sum = 0.0;
        for (int64_t i = 0; i < a->dim; i++) {
            const double d = (double)(y[row * a->dim + i] - a->target[row * a->dim + i]);
            sum += d * d;
        }
        a->row_loss[row] = (double)a->weight[row] * sum;
        for (int64_t i = 0; a->d_y.numel > 0 && i < a->dim; i += VL) {
            const int64_t at = row * a->dim + i, n = TESS_MIN(VL, a->dim - i);
            vf_put(a->d_y.data, at, n,
                   (vf_get(y, at, n, false) - vf_get(a->target, at, n, false)) * factor, is_bf16);
        }
    }
}
