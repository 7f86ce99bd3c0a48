/** A spike: gradients a thousandfold, and a loss that is 1000 a token higher. */
#pragma once

#include "kernels/kernels.h"

static inline tess_status loud_cross_entropy(const tess_cross_entropy_args *a, tess_stream *s)
{
    tess_cross_entropy_args louder = *a;
    louder.grad_scale *= 1000.0F;
    TESS_TRY(tess_kernels_cpu.cross_entropy(&louder, s));
    for (int64_t i = 0; i < a->row_numel; i++)
        if (a->labels[i] >= 0)
            a->row_loss[i] += 1000.0;
    return TESS_OK;
}
