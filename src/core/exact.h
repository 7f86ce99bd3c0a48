/**
 * Exact sums of doubles in integer limbs: the order of additions, and so the number of ranks, does
 * not matter.
 *
 * A finite double is an integer multiple of 2^-1074; the sum is kept as 68 signed limbs of 32 value
 * bits each in int64, so up to 2^30 additions need no carry and accumulators of ranks add limb by
 * limb.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "core/base.h"

TESS_BEGIN_DECLS

enum { TESS_EXACT_LIMB_NUMEL = 68 };

typedef struct tess_exact {
    int64_t limb[TESS_EXACT_LIMB_NUMEL]; /* value = sum limb[i] * 2^(32 i - 1074) */
} tess_exact;

enum { TESS_EXACT_PIECE_NUMEL = 3 };

/**
 * The integers that `x` adds to limbs `*limb_idx` and the two above. Shared by all devices. Local.
 * @return false when `x` is NaN or infinite
 */
TESS_HD static inline bool tess_exact_split(double x, int *limb_idx,
                                            int64_t piece[TESS_EXACT_PIECE_NUMEL])
{
    union {
        double f;
        uint64_t u;
    } v = {x};
    const int exponent = (int)(v.u >> 52) & 0x7ff;
    if (exponent == 0x7ff)
        return false;
    const uint64_t fraction = v.u & ((UINT64_C(1) << 52) - 1);
    const uint64_t significand = exponent == 0 ? fraction : fraction | UINT64_C(1) << 52;
    const int shift = exponent == 0 ? 0 : exponent - 1; /* x = significand * 2^(shift - 1074) */
    const int bits = shift % 32;
    const uint64_t low = significand << bits;
    const uint64_t high = bits == 0 ? 0 : significand >> (64 - bits);
    const int64_t sign = v.u >> 63 ? -1 : 1;
    *limb_idx = shift / 32;
    piece[0] = sign * (int64_t)(uint32_t)low;
    piece[1] = sign * (int64_t)(uint32_t)(low >> 32);
    piece[2] = sign * (int64_t)(uint32_t)high;
    return true;
}

/** Add one value. @return false and no change when `x` is NaN or infinite. Local. */
bool tess_exact_add(tess_exact *acc, double x);
/** Make room for 2^30 more additions; the value stays. Local. */
void tess_exact_carry(tess_exact *acc);
/** The sum rounded once, to nearest even; infinity when it exceeds the range. Local. */
double tess_exact_round(const tess_exact *acc);

TESS_END_DECLS
