/**
 * 8-bit floats: e4m3 (bias 7, no infinity, NaN 7f and ff) and e5m2 (bias 15, infinity 7c, NaN 7d to
 * 7f). Widening is exact; rounding is to nearest even and saturates.
 *
 * @source PyTorch c10/util/Float8_e4m3fn.h, Float8_e5m2.h
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "core/base.h"

TESS_BEGIN_DECLS

#define TESS_E4M3_MAX 448.0F
#define TESS_E5M2_MAX 57344.0F

/* Compilers make vector code of this, for want of branches. The exponent moves to that of an f32;
 * of a subnormal the implicit one that appears is subtracted again; codes from `least_special` on
 * are infinity or NaN, whose exponent is all ones. */
static inline float tess_fp8_to_f32(uint8_t code, unsigned fraction, uint32_t bias,
                                    uint32_t least_special)
{
    typedef union word {
        uint32_t u;
        float f;
    } word;
    const uint32_t magnitude = code & 0x7fU, sign = (uint32_t)(code & 0x80U) << 24;
    const uint32_t is_small = magnitude < 1U << fraction, is_special = magnitude >= least_special;
    const word one = {is_small * ((128U - bias) << 23)};
    word x = {(magnitude << (23U - fraction)) + ((127U - bias + is_small) << 23)};
    x.f -= one.f;
    x.u |= sign | is_special * 0x7f800000U;
    return x.f;
}

/** Local. */
static inline float tess_e4m3_to_f32(uint8_t code) { return tess_fp8_to_f32(code, 3, 7, 0x7fU); }

/** Local. */
static inline float tess_e5m2_to_f32(uint8_t code) { return tess_fp8_to_f32(code, 2, 15, 0x7cU); }

/* `fraction` bits of fraction; the smallest normal number is 2^least, the largest has bits `most`
 * of an f32 and code `most_code`. */
static inline uint8_t tess_fp8_from_f32(float x, unsigned fraction, int least, uint32_t most,
                                        uint8_t most_code)
{
    uint32_t bits = 0;
    memcpy(&bits, &x, sizeof bits);
    const uint32_t sign = bits >> 24 & 0x80U, magnitude = bits & 0x7fffffffU;
    const unsigned dropped = 23U - fraction;
    const uint32_t least_bits = (uint32_t)(127 + least) << 23;
    if (magnitude > 0x7f800000U)
        return (uint8_t)(sign | 0x7fU);
    if (magnitude >= most)
        return (uint8_t)(sign | most_code);
    if (magnitude >= least_bits) {
        const uint32_t half = (1U << (dropped - 1)) - 1U + (magnitude >> dropped & 1U);
        return (uint8_t)(sign | (magnitude - least_bits + half + (1U << 23)) >> dropped);
    }
    /* Adding a number whose last place is the subnormals' step rounds to whole steps. */
    const uint32_t shifter_bits = least_bits + (dropped << 23);
    float shifter = 0.0F, shifted = 0.0F;
    memcpy(&shifter, &shifter_bits, sizeof shifter);
    memcpy(&shifted, &magnitude, sizeof shifted);
    shifted += shifter;
    memcpy(&bits, &shifted, sizeof bits);
    return (uint8_t)(sign | (bits - shifter_bits));
}

/** +-448 at most; NaN: 7f with its sign. Local. */
static inline uint8_t tess_e4m3_from_f32(float x)
{
    return tess_fp8_from_f32(x, 3, -6, 0x43e00000U, 0x7eU);
}

/** +-57344 at most; NaN: 7f with its sign. Local. */
static inline uint8_t tess_e5m2_from_f32(float x)
{
    return tess_fp8_from_f32(x, 2, -14, 0x47600000U, 0x7bU);
}

TESS_END_DECLS
