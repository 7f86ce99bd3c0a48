/*
 * Scale and shift of a group of qint4 or qint2.
 *
 * minmax is optimum-quanto's MaxOptimizer: scale = round(round(greatest - least) / most code),
 * shift = -least, rounded to the dtype of the scale.
 */
#include <math.h>

#include "core/arith.h"
#include "kernels/cpu/codec_scaled_priv.h"

static void span_fit(const tess_scaled_group *g, float least, float greatest, float *scale,
                     float *shift)
{
    *scale = tess_scaled_round(g->dt, tess_scaled_round(g->dt, greatest - least) / g->most);
    *shift = tess_scaled_round(g->dt, -least);
}

bool tess_scaled_fit(const tess_scaled_group *g, float least, float greatest, float *scale,
                     float *shift)
{
    span_fit(g, least, greatest, scale, shift);
    return isfinite(*scale) && isfinite(*shift);
}
