/** Scalars of the quantizers, one source for all backends: IEEE operations as written, never
 * contracted. */
#pragma once

#include <math.h>

#include "kernels/math_priv.h"
#include "kernels/quantizer_scalar.h"

TESS_BEGIN_DECLS

/** PyTorch's lerp (aten/src/ATen/native/Lerp.h): the end that is nearer is the base. */
TESS_HD static inline float tess_lerp_f32(float from, float to, float weight)
{
    const float way = to - from;
    return weight < 0.5f ? from + weight * way : to - way * (1.0f - weight);
}

/** -ln(-ln u), logarithms of numbers below 1e-20 being of that one. */
TESS_HD static inline float tess_gumbel(float u)
{
    const double least = 1e-20;
    const double inner = -tess_log_f64((double)u > least ? (double)u : least);
    return (float)-tess_log_f64(inner > least ? inner : least);
}

/** tanh x within 4 ulp, and its derivative 1 - tanh^2 x, which is not formed by a difference. */
typedef struct tess_tanh {
    float value, slope;
} tess_tanh;

TESS_HD static inline tess_tanh tess_tanh_f32(float x)
{
    const float size = x < 0.0f ? -x : x, square = x * x;
    const float e = tess_exp_below_f32(-2.0f * size), sum = 1.0f + e;
    const float far = (1.0f - e) / sum;
    /* Taylor to x^9; at 1/4 the next term is 8e-9 of the value. */
    float near = square * (float)(62.0 / 2835.0) - (float)(17.0 / 315.0);
    near = near * square + (float)(2.0 / 15.0);
    near = near * square - (float)(1.0 / 3.0);
    near = near * square * x + x;
    const float signed_far = x < 0.0f ? -far : far;
    const tess_tanh result = {size < 0.25f ? near : signed_far, 4.0f * e / (sum * sum)};
    return result;
}

/** Constants of one dimension's levels. */
typedef struct tess_level {
    float shift, half, off, width, scale;
    int32_t level_numel;
} tess_level;

/** Of dimension j, formed on the host. Local. */
tess_level tess_level_make(const tess_levels *levels, int64_t j);

/** A code before its scale, and which level it is; -1 for NaN. */
typedef struct tess_level_code {
    float code;
    int32_t level;
} tess_level_code;

TESS_HD static inline float tess_level_code_of(tess_level_rule rule, const tess_level *l,
                                               int32_t level)
{
    if (rule == TESS_LEVEL_UPPER || rule == TESS_LEVEL_LOWER)
        return ((float)level - l->width) / l->width;
    return 2.0f * (float)level / (float)(l->level_numel - 1) - 1.0f;
}

TESS_HD static inline tess_level_code tess_level_of(tess_level_rule rule, const tess_level *l,
                                                    float z)
{
    const float last = (float)(l->level_numel - 1);
    float level = 0.0f;
    if (rule == TESS_LEVEL_UPPER || rule == TESS_LEVEL_LOWER) {
        level = rintf(tess_tanh_f32(z + l->shift).value * l->half - l->off) + l->width;
    } else {
        float t = z > 1.0f ? 1.0f : z < -1.0f ? -1.0f : z;
        if (rule == TESS_LEVEL_SYMMETRIC)
            t = tess_tanh_f32(z).value;
        level = floorf(last * (t + 1.0f) * 0.5f + 0.5f);
    }
    /* Above 1000 levels half of UPPER reaches past the last one; rounding of so many may, too. */
    const int32_t legal = !(level < last) ? l->level_numel - 1 : level > 0.0f ? (int32_t)level : 0;
    const tess_level_code none = {z * 0.0f, -1};
    const tess_level_code result = {tess_level_code_of(rule, l, legal), legal};
    return level == level ? result : none;
}

/** Derivative of the code by z. */
TESS_HD static inline float tess_level_slope(tess_level_rule rule, const tess_level *l, float z)
{
    switch (rule) {
    case TESS_LEVEL_UPPER:
    case TESS_LEVEL_LOWER:
        return l->half / l->width * tess_tanh_f32(z + l->shift).slope;
    case TESS_LEVEL_SYMMETRIC:
        return tess_tanh_f32(z).slope;
    case TESS_LEVEL_CLAMPED:
        break;
    }
    return z >= -1.0f && z <= 1.0f ? 1.0f : 0.0f;
}

/** A coin that is positive with probability sigma(t): both probabilities, each as exact as the
 * other, and its entropy. */
typedef struct tess_coin {
    double positive, negative, entropy;
} tess_coin;

TESS_HD static inline tess_coin tess_coin_of(double t)
{
    const double size = t < 0.0 ? -t : t;
    const double e = tess_exp_below_f64(-size);
    const double most = 1.0 / (1.0 + e), least = e / (1.0 + e);
    const tess_coin coin = {t < 0.0 ? least : most, t < 0.0 ? most : least,
                            tess_log_f64(1.0 + e) + size * least};
    return coin;
}

TESS_END_DECLS
