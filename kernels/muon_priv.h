/** The element-wise updates of Muon (muon.h), one source for both backends: no contraction. */
#pragma once

#include "kernels/muon.h"

TESS_BEGIN_DECLS

/** @return u; `g` is clipped, `rest` is 1 - beta */
TESS_HD static inline float tess_muon_momentum_one(float g, float *m, float beta, float rest)
{
    *m = beta * *m + rest * g;
    return beta * *m + rest * g;
}

/** `keep` is 1 - decay. */
TESS_HD static inline float tess_muon_apply_one(float p, float x, float keep, float rate)
{
    return p * keep - rate * x;
}

TESS_END_DECLS
