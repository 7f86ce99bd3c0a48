/** Time that never goes back. */
#pragma once

#include <time.h>

#include "core/base.h"

TESS_BEGIN_DECLS

/** Seconds of the monotonic clock, any origin. Local. */
static inline double tess_clock_s(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

TESS_END_DECLS
