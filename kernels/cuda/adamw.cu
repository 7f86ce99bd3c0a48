#include "kernels/cuda/update_priv.cuh"

struct adamw_job {
    float *master, *exp_avg, *exp_avg_sq;
    const float *grad;
    void *param;
    float clip;
    tess_adamw_scalars k;
};

/* As adamw_one() of the CPU twin; sqrt and / are IEEE. */
__device__ static inline float adamw_one(float p, float g, float *m, float *v,
                                         const tess_adamw_scalars &k)
{
    p = p * k.decay;
    *m = k.beta1 * *m + k.one_minus_beta1 * g;
    *v = k.beta2 * *v + k.one_minus_beta2 * (g * g);
    return p - k.step_size * *m / (sqrtf(*v / k.bias2) + k.eps);
}

template <tess_param_kind PARAM> struct adamw_op {
    enum { NUMEL = tess_chunk<false>::NUMEL };
    template <bool IS_WHOLE>
    __device__ static inline void chunk(const adamw_job &a, int64_t i, int n)
    {
        float p[NUMEL], g[NUMEL], m[NUMEL], v[NUMEL];
        tess_load<false, IS_WHOLE, NUMEL>(a.master, i, n, p);
        tess_load<false, IS_WHOLE, NUMEL>(a.grad, i, n, g);
        tess_load<false, IS_WHOLE, NUMEL>(a.exp_avg, i, n, m);
        tess_load<false, IS_WHOLE, NUMEL>(a.exp_avg_sq, i, n, v);
#pragma unroll
        for (int k = 0; k < NUMEL; k++)
            p[k] = adamw_one(p[k], g[k] * a.clip, &m[k], &v[k], a.k);
        tess_store<false, IS_WHOLE, NUMEL>(a.master, i, n, p);
        tess_store<false, IS_WHOLE, NUMEL>(a.exp_avg, i, n, m);
        tess_store<false, IS_WHOLE, NUMEL>(a.exp_avg_sq, i, n, v);
        tess_put_param<PARAM, IS_WHOLE, NUMEL>(a.param, i, n, p);
    }
};

extern "C" tess_status tess_cuda_adamw(const tess_adamw_args *a, tess_stream *s)
{
    TESS_TRY(tess_adamw_check(a));
    const adamw_job job = {a->master,
                           a->exp_avg,
                           a->exp_avg_sq,
                           a->grad,
                           a->param.data,
                           a->clip_factor,
                           tess_adamw_scalars_make(a)};
    const bool is_aligned =
        tess_is_aligned(a->master, a->exp_avg, a->exp_avg_sq, a->grad, a->param.data);
    return tess_update_launch<adamw_op>(job, a->param, a->numel, is_aligned, s);
}
