/** Updates of optimizers, element by element: what they leave in the compute dtype. */
#pragma once

#include "kernels/cuda/common_priv.cuh"

/** The rounded copy of the result. */
enum tess_param_kind { TESS_PARAM_NONE, TESS_PARAM_F32, TESS_PARAM_BF16 };

template <tess_param_kind PARAM, bool IS_WHOLE, int N>
__device__ static inline void tess_put_param(void *param, int64_t i, int n, const float p[N])
{
    if (PARAM != TESS_PARAM_NONE)
        tess_store<PARAM == TESS_PARAM_BF16, IS_WHOLE, N>(param, i, n, p);
}

/** Start OP<PARAM> for the kind of copy that is wanted. */
template <template <tess_param_kind> class OP, typename JOB>
TESS_MUST_CHECK static inline tess_status
tess_update_launch(const JOB &job, tess_view param, int64_t numel, bool is_aligned, tess_stream *s)
{
    if (param.numel == 0)
        return tess_chunks_launch<OP<TESS_PARAM_NONE>>(job, numel, is_aligned, s);
    if (param.dt == TESS_BF16)
        return tess_chunks_launch<OP<TESS_PARAM_BF16>>(job, numel, is_aligned, s);
    return tess_chunks_launch<OP<TESS_PARAM_F32>>(job, numel, is_aligned, s);
}
