/* Quantizers with levels per dimension: a thread per vector, at most 32 dimensions. */
#include "kernels/quantizer_scalar.h"

#include "kernels/cuda/quantizer_priv.cuh"

/* ---- levels ---- */

/* Constants of all dimensions, formed on the host. */
struct level_list {
    tess_level level[TESS_LEVEL_DIM_MAX];
    int64_t dim;
    tess_level_rule rule;
};

static level_list list_of(const tess_levels &levels)
{
    level_list list = {};
    list.dim = levels.dim;
    list.rule = levels.rule;
    for (int64_t j = 0; j < levels.dim; j++)
        list.level[j] = tess_level_make(&levels, j);
    return list;
}

struct level_job {
    level_list list;
    tess_edge x, out;
    uint32_t *index;
    double noise;
    tess_rng rng;
    int64_t first_idx;
    const float *uniform;
};

__device__ static inline float add_noise(const level_job &job, int64_t element, float code)
{
    float offset = 0.0f;
    bool is_noisy = false;
    if (job.uniform != nullptr) {
        is_noisy = (double)job.uniform[2 * element] < job.noise;
        offset = job.uniform[2 * element + 1];
    } else {
        const uint64_t word = 2 * (uint64_t)(job.first_idx + element);
        is_noisy = (double)tess_rng_u32(&job.rng, word) < job.noise * 0x1p32;
        offset = tess_rng_uniform(&job.rng, word + 1);
    }
    if (!is_noisy)
        return code;
    const float moved = code + (offset - 0.5f);
    return moved > 1.0f ? 1.0f : moved < -1.0f ? -1.0f : moved;
}

struct level_op {
    __device__ static inline void one(const level_job &job, int64_t row)
    {
        uint32_t index = 0, basis = 1;
        bool is_whole = true;
        for (int64_t j = 0; j < job.list.dim; j++) {
            const tess_level *l = &job.list.level[j];
            const tess_level_code c =
                tess_level_of(job.list.rule, l, tess_edge_get(job.x, row, j) / l->scale);
            is_whole = is_whole && c.level >= 0;
            index += basis * (uint32_t)c.level;
            basis *= (uint32_t)l->level_numel;
            const float code =
                job.noise > 0.0 ? add_noise(job, row * job.list.dim + j, c.code) : c.code;
            tess_edge_put(job.out, row, j, code * l->scale);
        }
        if (job.index != nullptr)
            job.index[row] = is_whole ? index : UINT32_MAX;
    }
};

extern "C" tess_status tess_cuda_quantizer_level(const tess_quantizer_level_args *a, tess_stream *s)
{
    TESS_TRY(tess_quantizer_level_check(a));
    const level_job job = {list_of(a->levels),
                           tess_edge_of(a->x, a->x_stride, a->levels.dim),
                           tess_edge_of(a->out, a->out_stride, a->levels.dim),
                           a->index,
                           a->noise,
                           a->rng,
                           a->first_idx,
                           a->uniform};
    return tess_each_launch<level_op>(job, a->row_numel, s);
}

struct level_decode_job {
    level_list list;
    const uint32_t *index;
    tess_edge out;
};

struct level_decode_op {
    __device__ static inline void one(const level_decode_job &job, int64_t row)
    {
        uint32_t rest = job.index[row];
        for (int64_t j = 0; j < job.list.dim; j++) {
            const tess_level *l = &job.list.level[j];
            const uint32_t numel = (uint32_t)l->level_numel;
            const float code = tess_level_code_of(job.list.rule, l, (int32_t)(rest % numel));
            tess_edge_put(job.out, row, j, code * l->scale);
            rest /= numel;
        }
    }
};

extern "C" tess_status tess_cuda_quantizer_level_decode(const tess_quantizer_level_decode_args *a,
                                                        tess_stream *s)
{
    TESS_TRY(tess_quantizer_level_decode_check(a));
    const level_decode_job job = {list_of(a->levels), a->index,
                                  tess_edge_of(a->out, a->out_stride, a->levels.dim)};
    return tess_each_launch<level_decode_op>(job, a->row_numel, s);
}

struct level_backward_job {
    level_list list;
    tess_edge x, d_out, d_x;
    bool accumulate;
};

struct level_backward_op {
    __device__ static inline void one(const level_backward_job &job, int64_t at)
    {
        const int64_t row = at / job.list.dim, j = at % job.list.dim;
        const tess_level *l = &job.list.level[j];
        const float slope =
            tess_level_slope(job.list.rule, l, tess_edge_get(job.x, row, j) / l->scale);
        const float d = tess_edge_get(job.d_out, row, j) * slope;
        tess_edge_put(job.d_x, row, j, job.accumulate ? tess_edge_get(job.d_x, row, j) + d : d);
    }
};

extern "C" tess_status
tess_cuda_quantizer_level_backward(const tess_quantizer_level_backward_args *a, tess_stream *s)
{
    TESS_TRY(tess_quantizer_level_backward_check(a));
    const int64_t dim = a->levels.dim;
    const level_backward_job job = {list_of(a->levels), tess_edge_of(a->x, a->x_stride, dim),
                                    tess_edge_of(a->d_out, a->d_out_stride, dim),
                                    tess_edge_of(a->d_x, a->d_x_stride, dim), a->accumulate};
    return tess_each_launch<level_backward_op>(job, a->row_numel * dim, s);
}

/* ---- soft clamp ---- */

struct clamp_job {
    float clamp[TESS_LEVEL_DIM_MAX];
    int64_t dim;
    tess_edge x, d_x;
    const float *d_y; /* NULL: forward */
    float *y;
};

static clamp_job clamp_of(const int32_t *levels, int64_t dim, tess_view x)
{
    clamp_job job = {};
    job.dim = dim;
    job.x = tess_edge_of(x, 0, dim);
    for (int64_t j = 0; j < dim; j++)
        job.clamp[j] = (float)(1.0 + 1.0 / (double)(levels[j] - 1));
    return job;
}

struct clamp_op {
    __device__ static inline void one(const clamp_job &job, int64_t i)
    {
        const int64_t row = i / job.dim, j = i % job.dim;
        const float c = job.clamp[j];
        const tess_tanh t = tess_tanh_f32(tess_edge_get(job.x, row, j) / c);
        if (job.d_y != nullptr)
            tess_edge_put(job.d_x, row, j, job.d_y[i] * t.slope);
        else
            job.y[i] = c * t.value;
    }
};

extern "C" tess_status tess_cuda_quantizer_soft_clamp(const tess_quantizer_soft_clamp_args *a,
                                                      tess_stream *s)
{
    TESS_TRY(tess_quantizer_soft_clamp_check(a));
    clamp_job job = clamp_of(a->levels, a->dim, a->x);
    job.y = a->y;
    return tess_each_launch<clamp_op>(job, a->row_numel * a->dim, s);
}

extern "C" tess_status
tess_cuda_quantizer_soft_clamp_backward(const tess_quantizer_soft_clamp_backward_args *a,
                                        tess_stream *s)
{
    TESS_TRY(tess_quantizer_soft_clamp_backward_check(a));
    clamp_job job = clamp_of(a->levels, a->dim, a->x);
    job.d_y = a->d_y;
    job.d_x = tess_edge_of(a->d_x, 0, a->dim);
    return tess_each_launch<clamp_op>(job, a->row_numel * a->dim, s);
}

/* ---- lists of values ---- */

/* Lists of all dimensions: their lengths, and where they begin. */
struct value_list {
    const float *value;
    int32_t numel[TESS_LEVEL_DIM_MAX], first[TESS_LEVEL_DIM_MAX];
    int64_t dim, all_numel;
};

static value_list values_of(const tess_latents &l)
{
    value_list list = {};
    list.value = l.value;
    list.dim = l.dim;
    for (int64_t j = 0; j < l.dim; j++) {
        list.numel[j] = l.levels[j];
        list.first[j] = (int32_t)list.all_numel;
        list.all_numel += l.levels[j];
    }
    return list;
}

struct latent_job {
    value_list list;
    const float *x;
    float *out;
    uint32_t *index;
};

__device__ static inline int32_t nearest_value(const float *value, int32_t numel, float x)
{
    int32_t best = 0;
    for (int32_t i = 1; i < numel; i++)
        if (fabsf(x - value[i]) < fabsf(x - value[best]))
            best = i;
    return best;
}

struct latent_op {
    __device__ static inline void one(const latent_job &job, int64_t row)
    {
        const value_list &l = job.list;
        uint32_t index = 0, basis = 1;
        bool is_whole = true;
        for (int64_t j = 0; j < l.dim; j++) {
            const float *value = l.value + l.first[j], x = job.x[row * l.dim + j];
            const int32_t level = nearest_value(value, l.numel[j], x);
            is_whole = is_whole && x == x;
            index += basis * (uint32_t)level;
            job.out[row * l.dim + j] = x == x ? value[level] : x;
            basis *= (uint32_t)l.numel[j];
        }
        job.index[row] = is_whole ? index : UINT32_MAX;
    }
};

extern "C" tess_status tess_cuda_quantizer_latent(const tess_quantizer_latent_args *a,
                                                  tess_stream *s)
{
    TESS_TRY(tess_quantizer_latent_check(a));
    const latent_job job = {values_of(a->latents), a->x, a->out, a->index};
    return tess_each_launch<latent_op>(job, a->row_numel, s);
}

struct latent_decode_job {
    value_list list;
    const uint32_t *index;
    float *out;
};

struct latent_decode_op {
    __device__ static inline void one(const latent_decode_job &job, int64_t row)
    {
        const value_list &l = job.list;
        uint32_t rest = job.index[row];
        const bool is_none = rest == UINT32_MAX;
        for (int64_t j = 0; j < l.dim; j++) {
            const uint32_t numel = (uint32_t)l.numel[j];
            job.out[row * l.dim + j] = is_none ? NAN : l.value[l.first[j] + rest % numel];
            rest /= numel;
        }
    }
};

extern "C" tess_status tess_cuda_quantizer_latent_decode(const tess_quantizer_latent_decode_args *a,
                                                         tess_stream *s)
{
    TESS_TRY(tess_quantizer_latent_decode_check(a));
    const latent_decode_job job = {values_of(a->latents), a->index, a->out};
    return tess_each_launch<latent_decode_op>(job, a->row_numel, s);
}

struct latent_gradient_job {
    value_list list;
    const float *x;
    const uint32_t *index;
    int64_t row_numel;
    float coefficient;
    float *d_value;
};

/* A thread per value: it looks at the indices of all vectors, in order. */
struct latent_gradient_op {
    __device__ static inline void one(const latent_gradient_job &job, int64_t v)
    {
        const value_list &l = job.list;
        int64_t j = 0;
        uint32_t basis = 1;
        for (; v >= l.first[j] + l.numel[j]; j++)
            basis *= (uint32_t)l.numel[j];
        const uint32_t level = (uint32_t)(v - l.first[j]), numel = (uint32_t)l.numel[j];
        float sum = job.d_value[v];
        for (int64_t row = 0; row < job.row_numel; row++) {
            const uint32_t index = job.index[row];
            if (index != UINT32_MAX && index / basis % numel == level)
                sum = sum + job.coefficient * (l.value[v] - job.x[row * l.dim + j]);
        }
        job.d_value[v] = sum;
    }
};

extern "C" tess_status
tess_cuda_quantizer_latent_gradient(const tess_quantizer_latent_gradient_args *a, tess_stream *s)
{
    TESS_TRY(tess_quantizer_latent_gradient_check(a));
    const latent_gradient_job job = {values_of(a->latents), a->x,           a->index,
                                     a->row_numel,          a->coefficient, a->d_value};
    return tess_each_launch<latent_gradient_op>(job, job.list.all_numel, s);
}
