/* One element at a time with the formulas of muon_priv.h; products are gemm.c's. */
#include "kernels/cuda/update_priv.cuh"
#include "kernels/muon_priv.h"

struct muon_momentum_job {
    float *exp_avg, *grad;
    float clip, beta, rest;
};

struct muon_momentum_op {
    enum { NUMEL = tess_chunk<false>::NUMEL };
    template <bool IS_WHOLE>
    __device__ static inline void chunk(const muon_momentum_job &a, int64_t i, int n)
    {
        float g[NUMEL], m[NUMEL];
        tess_load<false, IS_WHOLE, NUMEL>(a.grad, i, n, g);
        tess_load<false, IS_WHOLE, NUMEL>(a.exp_avg, i, n, m);
#pragma unroll
        for (int k = 0; k < NUMEL; k++)
            g[k] = tess_muon_momentum_one(g[k] * a.clip, &m[k], a.beta, a.rest);
        tess_store<false, IS_WHOLE, NUMEL>(a.exp_avg, i, n, m);
        tess_store<false, IS_WHOLE, NUMEL>(a.grad, i, n, g);
    }
};

extern "C" tess_status tess_cuda_muon_momentum(const tess_muon_momentum_args *a, tess_stream *s)
{
    TESS_TRY(tess_muon_momentum_check(a));
    const muon_momentum_job job = {a->exp_avg, a->grad, a->clip_factor, (float)a->beta,
                                   (float)(1.0 - a->beta)};
    return tess_chunks_launch<muon_momentum_op>(job, a->numel, tess_is_aligned(a->exp_avg, a->grad),
                                                s);
}

struct muon_apply_job {
    float *master;
    const float *x;
    void *param;
    float keep, rate;
};

template <tess_param_kind PARAM> struct muon_apply_op {
    enum { NUMEL = tess_chunk<false>::NUMEL };
    template <bool IS_WHOLE>
    __device__ static inline void chunk(const muon_apply_job &a, int64_t i, int n)
    {
        float p[NUMEL], x[NUMEL];
        tess_load<false, IS_WHOLE, NUMEL>(a.master, i, n, p);
        tess_load<false, IS_WHOLE, NUMEL>(a.x, i, n, x);
#pragma unroll
        for (int k = 0; k < NUMEL; k++)
            p[k] = tess_muon_apply_one(p[k], x[k], a.keep, a.rate);
        tess_store<false, IS_WHOLE, NUMEL>(a.master, i, n, p);
        tess_put_param<PARAM, IS_WHOLE, NUMEL>(a.param, i, n, p);
    }
};

extern "C" tess_status tess_cuda_muon_apply(const tess_muon_apply_args *a, tess_stream *s)
{
    TESS_TRY(tess_muon_apply_check(a));
    const tess_update_part *p = &a->part;
    const muon_apply_job job = {p->master, p->grad, p->param.data, (float)(1.0 - a->decay),
                                (float)a->rate};
    const bool is_aligned = tess_is_aligned(p->master, p->grad, p->param.data);
    return tess_update_launch<muon_apply_op>(job, p->param, p->numel, is_aligned, s);
}

struct muon_scale_op {
    enum { NUMEL = tess_chunk<false>::NUMEL };
    template <bool IS_WHOLE>
    __device__ static inline void chunk(const tess_scale_args &a, int64_t i, int n)
    {
        float x[NUMEL];
        tess_load<false, IS_WHOLE, NUMEL>(a.x, i, n, x);
#pragma unroll
        for (int k = 0; k < NUMEL; k++)
            x[k] = a.factor * x[k];
        tess_store<false, IS_WHOLE, NUMEL>(a.dst, i, n, x);
    }
};

extern "C" tess_status tess_cuda_scale(const tess_scale_args *a, tess_stream *s)
{
    TESS_TRY(tess_scale_check(a));
    return tess_chunks_launch<muon_scale_op>(*a, a->numel, tess_is_aligned(a->x, a->dst), s);
}
