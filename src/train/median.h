/** Medians. Both sort what they are given. */
#pragma once

#include <stdint.h>

#include "core/base.h"

TESS_BEGIN_DECLS

/** Of an even number the mean of the middle two; 0 of none. Local. */
double tess_median(double *value, int64_t numel);
/** Of an even number the lower of the middle two: a value that is there; 0 of none. Local. */
double tess_median_low(double *value, int64_t numel);

TESS_END_DECLS
