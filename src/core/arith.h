/** Checked integer arithmetic on extents. */
#pragma once

#include <inttypes.h>
#include <limits.h>
#include <stdint.h>

#include "core/status.h"

TESS_BEGIN_DECLS

/** `*out = a * b` with overflow and sign check. Local. @return TESS_E_RANGE */
TESS_MUST_CHECK static inline tess_status tess_mul_i64(int64_t a, int64_t b, int64_t *out)
{
    int64_t product = 0;
    TESS_CHECK(a >= 0 && b >= 0 && !__builtin_mul_overflow(a, b, &product), TESS_E_RANGE,
               "extent product %" PRId64 " x %" PRId64 " overflows", a, b);
    *out = product;
    return TESS_OK;
}

/** `*out = a + b` for non-negative extents. Local. @return TESS_E_RANGE */
TESS_MUST_CHECK static inline tess_status tess_add_i64(int64_t a, int64_t b, int64_t *out)
{
    int64_t sum = 0;
    TESS_CHECK(a >= 0 && b >= 0 && !__builtin_add_overflow(a, b, &sum), TESS_E_RANGE,
               "extent sum %" PRId64 " + %" PRId64 " overflows", a, b);
    *out = sum;
    return TESS_OK;
}

/** Narrow to int. Local. @return TESS_E_RANGE */
TESS_MUST_CHECK static inline tess_status tess_to_int(int64_t x, int *out)
{
    TESS_CHECK(x >= INT_MIN && x <= INT_MAX, TESS_E_RANGE, "%" PRId64 " does not fit an int", x);
    *out = (int)x;
    return TESS_OK;
}

/** ceil(a / b) for a >= 0, b > 0. Local. */
static inline int64_t tess_ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

/** `a` rounded up to a multiple of `b`, a >= 0, b > 0. Local. */
static inline int64_t tess_round_up(int64_t a, int64_t b) { return tess_ceil_div(a, b) * b; }

TESS_END_DECLS
