/** IEEE half precision: exact widening, rounding to nearest even. */
#pragma once

#include <stdint.h>
#include <string.h>

#include "core/base.h"

TESS_BEGIN_DECLS

/** Local. Subnormals, infinities and the fraction of a NaN are kept. */
static inline float tess_f16_to_f32(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000U) << 16, magnitude = h & 0x7fffU;
    /* Masks and no choices: loops over it become vector code. */
    const uint32_t is_small = 0U - (uint32_t)(magnitude < 0x400U); /* subnormal or 0 */
    const uint32_t is_special = 0U - (uint32_t)(magnitude >= 0x7c00U);
    const uint32_t large = (magnitude << 13) + (112U << 23) + (is_special & 112U << 23);
    const float small = (float)(int32_t)magnitude * 0x1p-24F;
    uint32_t bits = 0;
    float f = 0.0F;
    memcpy(&bits, &small, sizeof bits);
    bits = sign | (bits & is_small) | (large & ~is_small);
    memcpy(&f, &bits, sizeof f);
    return f;
}

/** Local. Infinity from 65520 on; a NaN stays one. */
static inline uint16_t tess_f16_from_f32(float x)
{
    uint32_t bits = 0;
    memcpy(&bits, &x, sizeof bits);
    const uint32_t sign = bits >> 16 & 0x8000U, magnitude = bits & 0x7fffffffU;
    if (magnitude > 0x7f800000U)
        return (uint16_t)(sign | 0x7e00U | (magnitude >> 13 & 0x3ffU));
    if (magnitude >= 0x477ff000U) /* 65520 */
        return (uint16_t)(sign | 0x7c00U);
    if (magnitude >= 0x38800000U) { /* 2^-14: normal */
        const uint32_t rounded = magnitude - 0x38000000U + 0xfffU + (magnitude >> 13 & 1U);
        return (uint16_t)(sign | rounded >> 13);
    }
    /* Adding 0.5 leaves multiples of 2^-24, rounded to nearest even, in the low bits. */
    float shifted = 0.0F;
    memcpy(&shifted, &magnitude, sizeof shifted);
    shifted += 0.5F;
    memcpy(&bits, &shifted, sizeof bits);
    return (uint16_t)(sign | (bits - 0x3f000000U));
}

TESS_END_DECLS
