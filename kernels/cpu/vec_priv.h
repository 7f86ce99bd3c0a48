/**
 * Vectors of the width of the instruction path, in compiler vectors: no intrinsics where the
 * language has the operation, the same IEEE operations in the same order on every path.
 *
 * [Note: lanes of a sum] A sum over a row runs in 16 lanes (element i in lane i % 16), whatever the
 * width, and ends in one fixed tree: 8, 4, 2, 1 apart.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "core/base.h"
#include "kernels/math_priv.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
enum { VL = 16 };
#elif defined(__AVX2__)
enum { VL = 8 };
#else
enum { VL = 4 };
#endif

enum { LANES = 16, LANE_VECTORS = LANES / VL };

#define INLINE static inline __attribute__((always_inline, unused))

typedef float vf __attribute__((vector_size(VL * 4)));
typedef int32_t vi __attribute__((vector_size(VL * 4)));
typedef uint32_t vu __attribute__((vector_size(VL * 4)));
typedef uint16_t vh __attribute__((vector_size(VL * 2)));
typedef double vd __attribute__((vector_size(VL * 4)));
typedef float vf_half __attribute__((vector_size(VL * 2)));

INLINE vf vf_set1(float x) { return x - (vf){0}; }

INLINE vf vf_load(const float *p)
{
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE void vf_store(float *p, vf v) { memcpy(p, &v, sizeof v); }

/** Lanes where `mask` is all ones from `a`, else from `b`. */
INLINE vf vf_select(vi mask, vf a, vf b) { return (vf)(((vi)a & mask) | ((vi)b & ~mask)); }

/** b where either is NaN, as the x86 instruction has it. */
INLINE vf vf_max(vf a, vf b)
{
#if defined(__AVX512F__)
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return vf_select(a > b, a, b);
#endif
}

INLINE vf vf_load_bf16(const uint16_t *p)
{
    vh h;
    memcpy(&h, p, sizeof h);
    return (vf)(__builtin_convertvector(h, vu) << 16);
}

/** f32 to the nearest bf16, ties to even, in the upper half of each lane; NaN to 0x7fc0 | sign. */
INLINE vu vf_bf16_bits(vf x)
{
    const vu u = (vu)x;
    const vu rounded = (u + 0x7fffu + (u >> 16 & 1u)) & 0xffff0000u;
    const vu quiet = (u & 0x80000000u) | 0x7fc00000u;
    const vu is_nan = (vu)(x != x);
    return (quiet & is_nan) | (rounded & ~is_nan);
}

INLINE vf vf_round_bf16(vf x) { return (vf)vf_bf16_bits(x); }

INLINE void vf_store_bf16(uint16_t *p, vf x)
{
    const vh h = __builtin_convertvector(vf_bf16_bits(x) >> 16, vh);
    memcpy(p, &h, sizeof h);
}

/** Elements i .. i+n-1 (n <= VL) of an f32 or bf16 array; lanes past n are 0. */
INLINE vf vf_get(const void *p, int64_t i, int64_t n, bool is_bf16)
{
    if (is_bf16) {
        if (n == VL)
            return vf_load_bf16((const uint16_t *)p + i);
        uint16_t part[VL] = {0};
        memcpy(part, (const uint16_t *)p + i, (size_t)n * sizeof *part);
        return vf_load_bf16(part);
    }
    if (n == VL)
        return vf_load((const float *)p + i);
    float part[VL] = {0};
    memcpy(part, (const float *)p + i, (size_t)n * sizeof *part);
    return vf_load(part);
}

INLINE void vf_put(void *p, int64_t i, int64_t n, vf v, bool is_bf16)
{
    if (is_bf16) {
        uint16_t part[VL];
        uint16_t *const dst = (uint16_t *)p + i;
        vf_store_bf16(n == VL ? dst : part, v);
        if (n != VL)
            memcpy(dst, part, (size_t)n * sizeof *part);
        return;
    }
    float *const dst = (float *)p + i;
    if (n == VL) {
        vf_store(dst, v);
        return;
    }
    float part[VL];
    vf_store(part, v);
    memcpy(dst, part, (size_t)n * sizeof *part);
}

/** Round to the storage dtype and stay in f32. */
INLINE vf vf_round(vf v, bool is_bf16) { return is_bf16 ? vf_round_bf16(v) : v; }

/** Lane numbers first, first + 1, ... */
INLINE vi vi_iota(int32_t first)
{
    int32_t lane[VL];
    for (int l = 0; l < VL; l++)
        lane[l] = first + l;
    vi v;
    memcpy(&v, lane, sizeof v);
    return v;
}

/** x = n ln2 + r: `n` as the low bits of `shifted`, and e^r. */
typedef struct vf_exp_parts {
    vf shifted;
    vf power;
} vf_exp_parts;

/* As tess_exp_split in kernels/math_priv.h. */
INLINE vf_exp_parts vf_exp_split(vf x)
{
    const vf shifter = vf_set1(TESS_EXP_SHIFTER);
    const vf shifted = x * TESS_EXP_LOG2E + shifter;
    const vf n = shifted - shifter;
    vf r = x - n * TESS_EXP_LN2_HIGH;
    r = r + n * TESS_EXP_LN2_LOW;
    vf q = r * TESS_EXP_Q4 + TESS_EXP_Q3;
    q = q * r + TESS_EXP_Q2;
    q = q * r + TESS_EXP_Q1;
    q = q * r + TESS_EXP_Q0;
    const vf_exp_parts parts = {shifted, (q * (r * r) + r) + 1.0f};
    return parts;
}

/** e^x within 2 ulp; results below the smallest normal number are 0. */
INLINE vf vf_exp(vf x)
{
    const vf_exp_parts parts = vf_exp_split(x);
    const vu exponent = (vu)parts.shifted - 0x4b400000u;
    vf y = (vf)((vu)parts.power + (exponent << 23));
    y = (vf)((vi)y & ~(x < TESS_EXP_LEAST));
    y = vf_select(x > TESS_EXP_MOST, vf_set1(__builtin_inff()), y);
    return vf_select(x != x, x, y);
}

/** The same bits for x <= 0 and -infinity; NaN for NaN; x > 0 is up to 0.5 (rounding of a
 * difference). */
INLINE vf vf_exp_below(vf x)
{
    const vf_exp_parts parts = vf_exp_split(x);
    const vf scale = (vf)(((vu)parts.shifted - (0x4b400000u - 127u)) << 23);
    const vf y = parts.power * scale;
    return (vf)((vi)y & ~(x < TESS_EXP_LEAST));
}

/** vf_round_bf16 of a value whose NaN, if any, is quiet and of bf16 origin. */
INLINE vu vf_bf16_bits_quiet(vf x)
{
    const vu u = (vu)x;
    return (u + 0x7fffu + (u >> 16 & 1u)) & 0xffff0000u;
}

/** The fixed tree over 16 lanes. */
INLINE float lanes_sum(const vf acc[LANE_VECTORS])
{
    float lane[LANES];
    memcpy(lane, acc, sizeof lane);
    for (int step = LANES / 2; step > 0; step /= 2)
        for (int l = 0; l < step; l++)
            lane[l] = lane[l] + lane[l + step];
    return lane[0];
}

INLINE double lanes_sum_f64(const double lane_in[LANES])
{
    double lane[LANES];
    memcpy(lane, lane_in, sizeof lane);
    for (int step = LANES / 2; step > 0; step /= 2)
        for (int l = 0; l < step; l++)
            lane[l] = lane[l] + lane[l + step];
    return lane[0];
}
