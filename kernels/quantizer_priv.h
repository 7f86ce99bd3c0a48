/** Scalars of the quantizers, one source for all backends: IEEE operations as written, never
 * contracted. */
#pragma once

#include <math.h>

#include "kernels/math_priv.h"

TESS_BEGIN_DECLS

/** PyTorch's lerp (aten/src/ATen/native/Lerp.h): the end that is nearer is the base. */
TESS_HD static inline float tess_lerp_f32(float from, float to, float weight)
{
    const float way = to - from;
    return weight < 0.5f ? from + weight * way : to - way * (1.0f - weight);
}

/** Bits whose unsigned order is the order of the numbers: -0 counts as +0, NaN is last. */
TESS_HD static inline uint32_t tess_ordered_f32(float x)
{
    if (x != x)
        return 0xffffffffu;
    const uint32_t bits = tess_f32_bits(x + 0.0f);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/** -ln(-ln u), logarithms of numbers below 1e-20 being of that one. */
TESS_HD static inline float tess_gumbel(float u)
{
    const double least = 1e-20;
    const double inner = -tess_log_f64((double)u > least ? (double)u : least);
    return (float)-tess_log_f64(inner > least ? inner : least);
}

TESS_END_DECLS
