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

/** Add one value. @return false and no change when `x` is NaN or infinite. Local. */
bool tess_exact_add(tess_exact *acc, double x);
/** Add another accumulator. Local. */
void tess_exact_merge(tess_exact *acc, const tess_exact *other);
/** The sum rounded once, to nearest even; infinity when it exceeds the range. Local. */
double tess_exact_round(const tess_exact *acc);

TESS_END_DECLS
