/* One element at a time with the formulas of optimizers_priv.h; 8-bit moments a warp per block. */
#include "kernels/cuda/squares_priv.cuh"
#include "kernels/cuda/update_priv.cuh"
#include "kernels/nf4.h"
#include "kernels/optimizers_priv.h"

/* ---- Lion ---- */

struct lion_job {
    float *master, *exp_avg;
    const float *grad;
    void *param;
    float clip;
    tess_lion_scalars k;
};

template <tess_param_kind PARAM> struct lion_op {
    enum { NUMEL = tess_chunk<false>::NUMEL };
    template <bool IS_WHOLE>
    __device__ static inline void chunk(const lion_job &a, int64_t i, int n)
    {
        float p[NUMEL], g[NUMEL], m[NUMEL];
        tess_load<false, IS_WHOLE, NUMEL>(a.master, i, n, p);
        tess_load<false, IS_WHOLE, NUMEL>(a.grad, i, n, g);
        tess_load<false, IS_WHOLE, NUMEL>(a.exp_avg, i, n, m);
#pragma unroll
        for (int k = 0; k < NUMEL; k++)
            p[k] = tess_lion_one(p[k], g[k] * a.clip, &m[k], &a.k);
        tess_store<false, IS_WHOLE, NUMEL>(a.master, i, n, p);
        tess_store<false, IS_WHOLE, NUMEL>(a.exp_avg, i, n, m);
        tess_put_param<PARAM, IS_WHOLE, NUMEL>(a.param, i, n, p);
    }
};

extern "C" tess_status tess_cuda_lion(const tess_lion_args *a, tess_stream *s)
{
    TESS_TRY(tess_lion_check(a));
    const tess_update_part *p = &a->part;
    const lion_job job = {p->master,     a->exp_avg,     p->grad,
                          p->param.data, p->clip_factor, tess_lion_scalars_make(a)};
    const bool is_aligned = tess_is_aligned(p->master, a->exp_avg, p->grad, p->param.data);
    return tess_update_launch<lion_op>(job, p->param, p->numel, is_aligned, s);
}

/* ---- schedule-free AdamW ---- */

struct schedule_free_job {
    float *master, *z, *exp_avg_sq;
    const float *grad;
    void *param;
    float clip;
    tess_schedule_free_scalars k;
};

template <tess_param_kind PARAM> struct schedule_free_op {
    enum { NUMEL = tess_chunk<false>::NUMEL };
    template <bool IS_WHOLE>
    __device__ static inline void chunk(const schedule_free_job &a, int64_t i, int n)
    {
        float x[NUMEL], g[NUMEL], z[NUMEL], v[NUMEL];
        tess_load<false, IS_WHOLE, NUMEL>(a.master, i, n, x);
        tess_load<false, IS_WHOLE, NUMEL>(a.grad, i, n, g);
        tess_load<false, IS_WHOLE, NUMEL>(a.z, i, n, z);
        tess_load<false, IS_WHOLE, NUMEL>(a.exp_avg_sq, i, n, v);
#pragma unroll
        for (int k = 0; k < NUMEL; k++)
            x[k] = tess_schedule_free_one(x[k], g[k] * a.clip, &z[k], &v[k], &a.k);
        tess_store<false, IS_WHOLE, NUMEL>(a.master, i, n, x);
        tess_store<false, IS_WHOLE, NUMEL>(a.z, i, n, z);
        tess_store<false, IS_WHOLE, NUMEL>(a.exp_avg_sq, i, n, v);
#pragma unroll
        for (int k = 0; k < NUMEL; k++)
            x[k] = tess_blend_one(x[k], z[k], a.k.blend);
        tess_put_param<PARAM, IS_WHOLE, NUMEL>(a.param, i, n, x);
    }
};

extern "C" tess_status tess_cuda_schedule_free(const tess_schedule_free_args *a, tess_stream *s)
{
    TESS_TRY(tess_schedule_free_check(a));
    const tess_update_part *p = &a->part;
    const schedule_free_job job = {p->master,
                                   a->z,
                                   a->exp_avg_sq,
                                   p->grad,
                                   p->param.data,
                                   p->clip_factor,
                                   tess_schedule_free_scalars_make(a)};
    const bool is_aligned = tess_is_aligned(p->master, a->z, a->exp_avg_sq, p->grad, p->param.data);
    return tess_update_launch<schedule_free_op>(job, p->param, p->numel, is_aligned, s);
}

/* ---- Prodigy ---- */

struct prodigy_job {
    const float *master, *grad, *start;
    float *exp_avg, *exp_avg_sq, *s;
    unsigned long long *numerator, *denominator, *nonfinite_numel;
    int64_t numel;
    float clip;
    tess_prodigy_measure_scalars k;
};

/* A thread per block of 256 elements, which are added in ascending order. Limbs are integers: any
 * order of blocks gives the same ones. */
__global__ static void __launch_bounds__(TESS_BLOCK_THREADS)
    prodigy_measure_kernel(const prodigy_job j)
{
    const int64_t block_numel = (j.numel + TESS_STATE_BLOCK_NUMEL - 1) / TESS_STATE_BLOCK_NUMEL;
    int64_t block = (int64_t)blockIdx.x * TESS_BLOCK_THREADS + threadIdx.x;
    for (; block < block_numel; block += (int64_t)gridDim.x * TESS_BLOCK_THREADS) {
        const int64_t first = block * TESS_STATE_BLOCK_NUMEL;
        const int64_t end = TESS_MIN(j.numel, first + TESS_STATE_BLOCK_NUMEL);
        double sum[2] = {0.0, 0.0};
        for (int64_t i = first; i < end; i++) {
            const tess_prodigy_terms t =
                tess_prodigy_measure_one(j.master[i], j.start[i], j.grad[i] * j.clip, &j.exp_avg[i],
                                         &j.exp_avg_sq[i], &j.s[i], &j.k);
            sum[0] = sum[0] + t.numerator;
            sum[1] = sum[1] + t.denominator;
        }
        if (sum[0] - sum[0] == 0.0 && sum[1] - sum[1] == 0.0) {
            tess_limbs_add(j.numerator, sum[0]);
            tess_limbs_add(j.denominator, sum[1]);
        } else {
            atomicAdd(j.nonfinite_numel, 1ull);
        }
    }
}

extern "C" tess_status tess_cuda_prodigy_measure(const tess_prodigy_measure_args *a, tess_stream *s)
{
    TESS_TRY(tess_prodigy_measure_check(a));
    const tess_update_part *p = &a->part;
    const prodigy_job job = {p->master,
                             p->grad,
                             a->start,
                             a->exp_avg,
                             a->exp_avg_sq,
                             a->s,
                             (unsigned long long *)a->sums->numerator.limb,
                             (unsigned long long *)a->sums->denominator.limb,
                             (unsigned long long *)&a->sums->nonfinite_numel,
                             p->numel,
                             p->clip_factor,
                             tess_prodigy_measure_scalars_make(a)};
    if (p->numel > 0)
        TESS_LAUNCH(prodigy_measure_kernel,
                    tess_grid(p->numel, (int64_t)TESS_STATE_BLOCK_NUMEL * TESS_BLOCK_THREADS),
                    TESS_BLOCK_THREADS, 0, s, job);
    return TESS_OK;
}

struct prodigy_apply_job {
    float *master;
    const float *exp_avg, *exp_avg_sq;
    void *param;
    tess_prodigy_apply_scalars k;
};

template <tess_param_kind PARAM> struct prodigy_apply_op {
    enum { NUMEL = tess_chunk<false>::NUMEL };
    template <bool IS_WHOLE>
    __device__ static inline void chunk(const prodigy_apply_job &a, int64_t i, int n)
    {
        float p[NUMEL], m[NUMEL], v[NUMEL];
        tess_load<false, IS_WHOLE, NUMEL>(a.master, i, n, p);
        tess_load<false, IS_WHOLE, NUMEL>(a.exp_avg, i, n, m);
        tess_load<false, IS_WHOLE, NUMEL>(a.exp_avg_sq, i, n, v);
#pragma unroll
        for (int k = 0; k < NUMEL; k++)
            p[k] = tess_prodigy_apply_one(p[k], m[k], v[k], &a.k);
        tess_store<false, IS_WHOLE, NUMEL>(a.master, i, n, p);
        tess_put_param<PARAM, IS_WHOLE, NUMEL>(a.param, i, n, p);
    }
};

extern "C" tess_status tess_cuda_prodigy_apply(const tess_prodigy_apply_args *a, tess_stream *s)
{
    TESS_TRY(tess_prodigy_apply_check(a));
    const tess_update_part *p = &a->part;
    const prodigy_apply_job job = {p->master, a->exp_avg, a->exp_avg_sq, p->param.data,
                                   tess_prodigy_apply_scalars_make(a)};
    const bool is_aligned = tess_is_aligned(p->master, a->exp_avg, a->exp_avg_sq, p->param.data);
    return tess_update_launch<prodigy_apply_op>(job, p->param, p->numel, is_aligned, s);
}

/* ---- a point between two ---- */

struct blend_job {
    const float *a, *b;
    void *dst;
    float weight;
};

template <bool IS_BF16> struct blend_op {
    enum { NUMEL = tess_chunk<false>::NUMEL };
    template <bool IS_WHOLE>
    __device__ static inline void chunk(const blend_job &j, int64_t i, int n)
    {
        float a[NUMEL], b[NUMEL];
        tess_load<false, IS_WHOLE, NUMEL>(j.a, i, n, a);
        tess_load<false, IS_WHOLE, NUMEL>(j.b, i, n, b);
#pragma unroll
        for (int k = 0; k < NUMEL; k++)
            a[k] = tess_blend_one(a[k], b[k], j.weight);
        tess_store<IS_BF16, IS_WHOLE, NUMEL>(j.dst, i, n, a);
    }
};

extern "C" tess_status tess_cuda_blend(const tess_blend_args *a, tess_stream *s)
{
    TESS_TRY(tess_blend_check(a));
    const blend_job job = {a->a, a->b, a->dst.data, (float)a->weight};
    const bool is_aligned = tess_is_aligned(a->a, a->b, a->dst.data);
    if (a->dst.dt == TESS_BF16)
        return tess_chunks_launch<blend_op<true>>(job, a->dst.numel, is_aligned, s);
    return tess_chunks_launch<blend_op<false>>(job, a->dst.numel, is_aligned, s);
}

/* ---- AdamW with moments in 8 bits ---- */

enum { THREADS = 256, WARPS = THREADS / 32, BLOCK = TESS_STATE_BLOCK_NUMEL, EACH = BLOCK / 32 };

struct adamw_8bit_job {
    float *master;
    const float *grad;
    void *param;
    uint8_t *codes, *codes_sq;
    float *absmax, *absmax_sq;
    int64_t numel;
    float clip;
    tess_adamw_8bit_scalars k;
};

struct state_maps {
    float map[TESS_MAP_NUMEL], map_sq[TESS_MAP_NUMEL];
};

__device__ static inline float warp_max(float x)
{
#pragma unroll
    for (int step = 16; step > 0; step /= 2)
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
    return x;
}

template <tess_param_kind PARAM>
__device__ static inline void put_one(void *param, int64_t i, float p)
{
    if (PARAM == TESS_PARAM_F32)
        static_cast<float *>(param)[i] = p;
    if (PARAM == TESS_PARAM_BF16)
        static_cast<uint16_t *>(param)[i] = (uint16_t)tess_bf16_pack(p, 0.0f);
}

/* The maximum does not depend on the order, so the bits are those of the C twin. */
template <tess_param_kind PARAM>
__device__ static inline void adamw_8bit_block(const adamw_8bit_job &j, const state_maps *maps,
                                               int64_t block, int lane)
{
    float m[EACH], v[EACH], most = 0.0f, most_sq = 0.0f;
    const float absmax = j.absmax[block], absmax_sq = j.absmax_sq[block];
#pragma unroll
    for (int e = 0; e < EACH; e++) {
        const int64_t i = block * BLOCK + e * 32 + lane;
        m[e] = v[e] = 0.0f;
        if (i >= j.numel)
            continue;
        const float g = j.grad[i] * j.clip;
        m[e] = maps->map[j.codes[i]] * absmax;
        v[e] = maps->map_sq[j.codes_sq[i]] * absmax_sq;
        tess_adamw_8bit_moments(g, &m[e], &v[e], &j.k);
        const float p = tess_adamw_8bit_one(j.master[i], g, m[e], v[e], &j.k);
        j.master[i] = p;
        put_one<PARAM>(j.param, i, p);
        most = fmaxf(most, fabsf(m[e]));
        most_sq = fmaxf(most_sq, v[e]);
    }
    most = warp_max(most);
    most_sq = warp_max(most_sq);
#pragma unroll
    for (int e = 0; e < EACH; e++) {
        const int64_t i = block * BLOCK + e * 32 + lane;
        if (i >= j.numel)
            break;
        j.codes[i] = (uint8_t)tess_signed_code(maps->map, m[e], most);
        j.codes_sq[i] = (uint8_t)tess_unsigned_code(maps->map_sq, v[e], most_sq);
    }
    if (lane == 0) {
        j.absmax[block] = most;
        j.absmax_sq[block] = most_sq;
    }
}

template <tess_param_kind PARAM>
__global__ static void __launch_bounds__(THREADS)
    adamw_8bit_kernel(const adamw_8bit_job j, const state_maps constants)
{
    TESS_SHARED(state_maps, maps, 1);
    for (int i = (int)threadIdx.x; i < TESS_MAP_NUMEL; i += THREADS) {
        maps->map[i] = constants.map[i];
        maps->map_sq[i] = constants.map_sq[i];
    }
    __syncthreads();
    const int lane = threadIdx.x % 32;
    const int64_t block_numel = (j.numel + BLOCK - 1) / BLOCK;
    int64_t block = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
    for (; block < block_numel; block += (int64_t)gridDim.x * WARPS)
        adamw_8bit_block<PARAM>(j, maps, block, lane);
}

template <tess_param_kind PARAM>
static tess_status adamw_8bit_launch(const adamw_8bit_job &job, tess_stream *s)
{
    state_maps maps;
    memcpy(maps.map, tess_dynamic_map_signed(), sizeof maps.map);
    memcpy(maps.map_sq, tess_dynamic_map_unsigned(), sizeof maps.map_sq);
    if (job.numel > 0)
        TESS_LAUNCH(adamw_8bit_kernel<PARAM>, tess_grid(job.numel, (int64_t)BLOCK * WARPS), THREADS,
                    0, s, job, maps);
    return TESS_OK;
}

extern "C" tess_status tess_cuda_adamw_8bit(const tess_adamw_8bit_args *a, tess_stream *s)
{
    TESS_TRY(tess_adamw_8bit_check(a));
    const tess_update_part *p = &a->part;
    const adamw_8bit_job job = {p->master,
                                p->grad,
                                p->param.data,
                                a->exp_avg,
                                a->exp_avg_sq,
                                a->exp_avg_absmax,
                                a->exp_avg_sq_absmax,
                                p->numel,
                                p->clip_factor,
                                tess_adamw_8bit_scalars_make(a)};
    if (p->param.numel == 0)
        return adamw_8bit_launch<TESS_PARAM_NONE>(job, s);
    return p->param.dt == TESS_BF16 ? adamw_8bit_launch<TESS_PARAM_BF16>(job, s)
                                    : adamw_8bit_launch<TESS_PARAM_F32>(job, s);
}
