/**
 * Scalar arithmetic that all backends share bit for bit: the exponential, the logarithm, the row
 * chunks of sums over rows. Every operation is IEEE and stands as written: no contraction.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "core/base.h"

TESS_BEGIN_DECLS

/*
 * Constants of exp: two exact steps of reduction, then 1 + r + r^2 q(r), q of degree 4: minimax
 * over |r| <= ln2 / 2, relative error 3.1e-9. ln2 in two pieces: Cephes, expf.c.
 */
#define TESS_EXP_SHIFTER 12582912.0f /* 1.5 * 2^23: its low bits hold the rounded sum */
#define TESS_EXP_LOG2E 1.44269504088896341f
#define TESS_EXP_LN2_HIGH 0.693359375f
#define TESS_EXP_LN2_LOW 2.12194440e-4f
#define TESS_EXP_Q4 1.381454012148654e-3f
#define TESS_EXP_Q3 8.368745177051832e-3f
#define TESS_EXP_Q2 4.166839078982087e-2f
#define TESS_EXP_Q1 1.6666520398478435e-1f
#define TESS_EXP_Q0 4.999999343208714e-1f
#define TESS_EXP_LEAST (-87.33654f) /* below: 0 */
#define TESS_EXP_MOST 88.72284f     /* above: infinity */

TESS_HD static inline uint32_t tess_f32_bits(float x)
{
    union {
        float f;
        uint32_t u;
    } v = {x};
    return v.u;
}

TESS_HD static inline float tess_f32_of_bits(uint32_t x)
{
    union {
        uint32_t u;
        float f;
    } v = {x};
    return v.f;
}

/** x = n ln2 + r: `n` as the low bits of `shifted`, and e^r. */
typedef struct tess_exp_parts {
    float shifted, power;
} tess_exp_parts;

TESS_HD static inline tess_exp_parts tess_exp_split(float x)
{
    const float shifted = x * TESS_EXP_LOG2E + TESS_EXP_SHIFTER;
    const float n = shifted - TESS_EXP_SHIFTER;
    float r = x - n * TESS_EXP_LN2_HIGH;
    r = r + n * TESS_EXP_LN2_LOW;
    float q = r * TESS_EXP_Q4 + TESS_EXP_Q3;
    q = q * r + TESS_EXP_Q2;
    q = q * r + TESS_EXP_Q1;
    q = q * r + TESS_EXP_Q0;
    const tess_exp_parts parts = {shifted, (q * (r * r) + r) + 1.0f};
    return parts;
}

/** e^x within 2 ulp; results below the smallest normal number are 0. Local. */
TESS_HD static inline float tess_exp_f32(float x)
{
    const tess_exp_parts parts = tess_exp_split(x);
    const uint32_t exponent = tess_f32_bits(parts.shifted) - 0x4b400000u;
    float y = tess_f32_of_bits(tess_f32_bits(parts.power) + (exponent << 23));
    y = x < TESS_EXP_LEAST ? 0.0f : y;
    y = x > TESS_EXP_MOST ? tess_f32_of_bits(0x7f800000u) : y;
    return x != x ? x : y;
}

/** The same bits for x <= 0 and -infinity; NaN for NaN; x > 0 is up to 0.5. Local. */
TESS_HD static inline float tess_exp_below_f32(float x)
{
    const tess_exp_parts parts = tess_exp_split(x);
    const float scale =
        tess_f32_of_bits((tess_f32_bits(parts.shifted) - (0x4b400000u - 127u)) << 23);
    return x < TESS_EXP_LEAST ? 0.0f : parts.power * scale;
}

/** Natural logarithm of a normal x > 0, within 1 ulp of fp64. Method and constants: fdlibm,
 * e_log.c (Sun Microsystems, 1993). Local. */
TESS_HD static inline double tess_log_f64(double x)
{
    union {
        double f;
        uint64_t u;
    } v = {x}, m;
    int exponent = (int)(v.u >> 52) - 1023;
    uint64_t fraction = v.u & ((UINT64_C(1) << 52) - 1);
    /* x = 2^exponent * (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)) */
    const uint64_t is_upper = fraction >= UINT64_C(0x6a09e667f3bcd) ? 1 : 0;
    exponent += (int)is_upper;
    fraction |= (UINT64_C(1023) - is_upper) << 52;
    m.u = fraction;
    const double f = m.f - 1.0;
    const double s = f / (2.0 + f);
    const double z = s * s, w = z * z;
    const double odd = w * (3.999999999940941908e-01 +
                            w * (2.222219843214978396e-01 + w * 1.531383769920937332e-01));
    const double even = z * (6.666666666666735130e-01 +
                             w * (2.857142874366239149e-01 +
                                  w * (1.818357216161805012e-01 + w * 1.479819860511658591e-01)));
    const double half_square = 0.5 * f * f;
    const double k = (double)exponent;
    return k * 6.93147180369123816490e-01 -
           ((half_square - (s * (half_square + (odd + even)) + k * 1.90821492927058770002e-10)) -
            f);
}

/** e^x of x <= 0 within 1 ulp of fp64; results below the smallest normal number are 0. Method and
 * constants: fdlibm, e_exp.c (Sun Microsystems, 1993). Local. */
TESS_HD static inline double tess_exp_below_f64(double x)
{
    if (!(x >= -708.0))
        return x != x ? x : 0.0;
    const int k = (int)(x * 1.44269504088896338700e+00 - 0.5);
    const double high = x - (double)k * 6.93147180369123816490e-01;
    const double low = (double)k * 1.90821492927058770002e-10;
    const double r = high - low, z = r * r;
    const double c =
        r - z * (1.66666666666666019037e-01 +
                 z * (-2.77777777770155933842e-03 +
                      z * (6.61375632143793436117e-05 +
                           z * (-1.65339022054652515390e-06 + z * 4.13813679705723846039e-08))));
    union {
        uint64_t u;
        double f;
    } power = {(uint64_t)(k + 1023) << 52};
    return power.f * (1.0 - ((low - r * c / (2.0 - c)) - high));
}

enum { TESS_MAP_NUMEL = 256 };

/** Nearest entry of an ascending map of 256 values by the f32 midpoint; a tie takes the even code.
 */
TESS_HD static inline unsigned tess_map_code(const float *map, float u)
{
    unsigned lo = 0, hi = TESS_MAP_NUMEL - 1;
    if (!(u > map[0]))
        return 0;
    while (hi - lo > 1) { /* map[lo] < u, and hi is the last entry or map[hi] >= u */
        const unsigned mid = (lo + hi) / 2;
        if (map[mid] < u)
            lo = mid;
        else
            hi = mid;
    }
    const float middle = (map[lo] + map[hi]) * 0.5f;
    if (u == middle)
        return lo % 2 == 0 ? lo : hi;
    return u < middle ? lo : hi;
}

/** Fixed row chunks of sums over rows (rmsnorm d_w, sum_rows). */
enum { TESS_ROW_CHUNK_NUMEL = 16 };

/** Rows of chunk `chunk_idx` of TESS_ROW_CHUNK_NUMEL. Local. */
TESS_HD static inline void tess_row_chunk(int64_t row_numel, int chunk_idx, int64_t *lo,
                                          int64_t *hi)
{
    *lo = row_numel * chunk_idx / TESS_ROW_CHUNK_NUMEL;
    *hi = row_numel * (chunk_idx + 1) / TESS_ROW_CHUNK_NUMEL;
}

TESS_END_DECLS
