/**
 * 1 / (1 + e^-x), as tess_exp_f32() and the division have it, for the arguments of a chunk.
 *
 * [Note: tame arguments] Where every argument of a chunk is of modest size, e^-x needs none of the
 * cases for 0, infinity and NaN, and 1 + e^-x is from 1 to 2^58: then a quotient is the one Newton
 * step of the reciprocal and the one of the quotient that a division takes too, without the test
 * for exponents where these fail. That is 10 of 44 instructions an element of swiglu, which has as
 * many slots as bytes. All other chunks take the long way; the bits are the same.
 */
#pragma once

#include "kernels/cuda/common_priv.cuh"

#define TESS_TAME_MOST 40.0f

/** Whether all are tame; NaN is not. */
template <int N> __device__ static inline bool tess_are_tame(const float x[N])
{
    bool are_tame = true;
#pragma unroll
    for (int k = 0; k < N; k++)
        are_tame = are_tame && fabsf(x[k]) <= TESS_TAME_MOST;
    return are_tame;
}

/** Whether all may also be divided by a tame divisor: the remainder is no subnormal number. */
template <int N> __device__ static inline bool tess_are_divisible(const float x[N])
{
    bool are_divisible = true;
#pragma unroll
    for (int k = 0; k < N; k++)
        are_divisible = are_divisible && fabsf(x[k]) >= 0x1p-60f && fabsf(x[k]) <= TESS_TAME_MOST;
    return are_divisible;
}

/** 1 + e^-x. */
template <bool IS_TAME> __device__ static inline float tess_sigmoid_divisor(float x)
{
    if (!IS_TAME)
        return tess_exp_f32(-x) + 1.0f;
    const tess_exp_parts parts = tess_exp_split(-x);
    return tess_f32_of_bits(tess_f32_bits(parts.power) + (tess_f32_bits(parts.shifted) << 23)) +
           1.0f;
}

/** The reciprocal of a tame divisor, within one ulp. */
__device__ static inline float tess_reciprocal_near(float d)
{
#ifdef TESS_EMULATE
    return 1.0f / d;
#else
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(d));
    return r;
#endif
}

/** 1 / d, rounded. */
template <bool IS_TAME> __device__ static inline float tess_reciprocal(float d)
{
    if (!IS_TAME)
        return 1.0f / d;
    const float r = tess_reciprocal_near(d);
    return __fmaf_rn(r, -__fmaf_rn(d, r, -1.0f), r);
}

/** x / d, rounded. Tame: 2^-60 <= |x| too, see tess_are_divisible(). */
template <bool IS_TAME> __device__ static inline float tess_quotient(float x, float d)
{
    if (!IS_TAME)
        return x / d;
    const float near = tess_reciprocal_near(d);
    const float r = __fmaf_rn(near, __fmaf_rn(-d, near, 1.0f), near);
    const float q = x * r;
    return __fmaf_rn(r, __fmaf_rn(-d, q, x), q);
}
