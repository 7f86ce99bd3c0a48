/* Gradients and updates of codebooks, and codes drawn by their scores. */
#include "kernels/quantizer_codebook.h"

#include "kernels/cuda/quantizer_priv.cuh"

/* ---- gradients of codes ---- */

enum { SLICE_NUMEL = 256, SLICE_THREADS = 128 };

/* A block per slice of codes and 128 columns. It looks at the codes of all vectors, a tile at a
 * time, so that each code sees its vectors in order. */
__global__ static void __launch_bounds__(SLICE_THREADS)
    code_gradient_kernel(const tess_quantizer_code_gradient_args a, int64_t slice_numel)
{
    TESS_SHARED(uint32_t, tile, SLICE_THREADS);
    const tess_coded_rows &r = a.rows;
    const int64_t part_numel = (r.dim + SLICE_THREADS - 1) / SLICE_THREADS;
    for (int64_t item = blockIdx.x; item < slice_numel * part_numel; item += gridDim.x) {
        const int64_t slice = item / part_numel;
        const int64_t lo = r.code_numel * slice / slice_numel;
        const int64_t hi = r.code_numel * (slice + 1) / slice_numel;
        const int64_t j = item % part_numel * SLICE_THREADS + threadIdx.x;
        for (int64_t first = 0; first < r.row_numel; first += SLICE_THREADS) {
            const int64_t own = first + threadIdx.x;
            if (own < r.row_numel)
                tile[threadIdx.x] = r.code != nullptr ? r.code[own] : (uint32_t)own;
            __syncthreads();
            for (int n = 0; j < r.dim && n < TESS_MIN(r.row_numel - first, (int64_t)SLICE_THREADS);
                 n++) {
                const int64_t at = (first + n) * r.dim + j, c = tile[n]; /* no code: above all */
                if (c < lo || c >= hi)
                    continue;
                const float step = a.d_q != nullptr
                                       ? a.d_q[at]
                                       : a.coefficient * (r.codes[c * r.dim + j] - a.x[at]);
                a.d_codes[c * r.dim + j] = a.d_codes[c * r.dim + j] + step;
            }
            __syncthreads(); /* the tile is used up */
        }
    }
}

extern "C" tess_status tess_cuda_quantizer_code_gradient(const tess_quantizer_code_gradient_args *a,
                                                         tess_stream *s)
{
    TESS_TRY(tess_quantizer_code_gradient_check(a));
    const tess_quantizer_code_gradient_args args = *a;
    const int64_t slice_numel = TESS_MIN(a->rows.code_numel, (int64_t)SLICE_NUMEL);
    const int64_t part_numel = (a->rows.dim + SLICE_THREADS - 1) / SLICE_THREADS;
    if (slice_numel > 0 && a->rows.row_numel > 0)
        TESS_LAUNCH(code_gradient_kernel, tess_grid(slice_numel * part_numel, 1), SLICE_THREADS, 0,
                    s, args, slice_numel);
    return TESS_OK;
}

enum { GRAM_SIDE = 16, GRAM_CODES = 32 };

/* A block per 16 x 16 products at or above the diagonal, 32 codes at a time. */
__global__ static void __launch_bounds__(TESS_BLOCK_THREADS)
    gram_kernel(const tess_quantizer_gram_args a, double scale, int64_t side_numel)
{
    TESS_SHARED(double, factor, GRAM_CODES);
    for (int64_t tile = blockIdx.x; tile < side_numel * side_numel; tile += gridDim.x) {
        const int64_t i = tile / side_numel * GRAM_SIDE + threadIdx.x / GRAM_SIDE;
        const int64_t j = tile % side_numel * GRAM_SIDE + threadIdx.x % GRAM_SIDE;
        int64_t sum = 0;
        if (tile / side_numel > tile % side_numel)
            continue;
        for (int64_t first = 0; first < a.code_numel; first += GRAM_CODES) {
            const int64_t own = first + threadIdx.x;
            if (threadIdx.x < GRAM_CODES && own < a.code_numel)
                factor[threadIdx.x] = tess_unit_factor(a.codes + own * a.dim, a.dim);
            __syncthreads();
            for (int n = 0; n < GRAM_CODES && first + n < a.code_numel; n++) {
                const float *c = a.codes + (first + n) * a.dim;
                if (i > j || j >= a.dim || (a.use != nullptr && a.use[first + n] == 0))
                    continue;
                const double left = (double)c[i] * factor[n] * scale;
                sum += tess_fixed_of(left * ((double)c[j] * factor[n]));
            }
            __syncthreads(); /* the factors are used up */
        }
        if (i <= j && j < a.dim)
            a.gram[i * a.dim + j] += sum;
    }
}

struct mirror_op {
    __device__ static inline void one(const tess_quantizer_gram_args &a, int64_t at)
    {
        const int64_t i = at / a.dim, j = at % a.dim;
        if (j < i)
            a.gram[at] = a.gram[j * a.dim + i];
    }
};

extern "C" tess_status tess_cuda_quantizer_gram(const tess_quantizer_gram_args *a, tess_stream *s)
{
    TESS_TRY(tess_quantizer_gram_check(a));
    const tess_quantizer_gram_args args = *a;
    const int64_t side_numel = (a->dim + GRAM_SIDE - 1) / GRAM_SIDE;
    TESS_LAUNCH(gram_kernel, tess_grid(side_numel * side_numel, 1), TESS_BLOCK_THREADS, 0, s, args,
                ldexp(1.0, a->exponent), side_numel);
    return tess_each_launch<mirror_op>(args, a->dim * a->dim, s);
}

struct orthogonal_job {
    tess_quantizer_orthogonal_args a;
    double unit;
};

/* The loss: one block squares, its first thread adds in ascending order. */
__global__ static void __launch_bounds__(TESS_BLOCK_THREADS)
    orthogonal_loss_kernel(const orthogonal_job job)
{
    TESS_SHARED(double, tile, TESS_BLOCK_THREADS);
    const tess_quantizer_orthogonal_args &a = job.a;
    const int64_t numel = a.dim * a.dim;
    const double m = (double)a.used_numel;
    double sum = 0.0;
    for (int64_t first = 0; first < numel; first += TESS_BLOCK_THREADS) {
        const int64_t i = first + threadIdx.x;
        const double g = i < numel ? (double)a.gram[i] * job.unit : 0.0;
        tile[threadIdx.x] = g * g;
        if (i < numel && a.d_codes != nullptr)
            a.work[i] = g;
        __syncthreads();
        for (int k = 0; threadIdx.x == 0 && k < TESS_MIN(numel - first, (int64_t)blockDim.x); k++)
            sum = sum + tile[k];
        __syncthreads(); /* the tile is used up */
    }
    if (threadIdx.x == 0 && a.loss != nullptr)
        *a.loss = sum / (m * m) - 1.0 / m;
}

/* (G u)_j. */
__device__ static inline double turned(const tess_quantizer_orthogonal_args &a, const float *c,
                                       double factor, int64_t j)
{
    double t = 0.0;
    for (int64_t i = 0; i < a.dim; i++)
        t = t + (double)c[i] * factor * a.work[i * a.dim + j];
    return t;
}

/* A block per code; its part along u is added in ascending order by the first thread. */
__global__ static void __launch_bounds__(TESS_BLOCK_THREADS)
    orthogonal_kernel(const tess_quantizer_orthogonal_args a)
{
    TESS_SHARED(double, tile, TESS_BLOCK_THREADS);
    TESS_SHARED(double, share, 1);
    const double m = (double)a.used_numel, scale = a.weight * 4.0 / (m * m);
    for (int64_t k = blockIdx.x; k < a.code_numel; k += gridDim.x) {
        const float *c = a.codes + k * a.dim;
        float *d = a.d_codes + k * a.dim;
        if (a.use != nullptr && a.use[k] == 0)
            continue;
        const double factor = tess_unit_factor(c, a.dim);
        const bool has_length = factor < 1.0 / (double)TESS_UNIT_LEAST;
        double along = 0.0;
        for (int64_t first = 0; has_length && first < a.dim; first += TESS_BLOCK_THREADS) {
            const int64_t j = first + threadIdx.x;
            if (j < a.dim)
                tile[threadIdx.x] = turned(a, c, factor, j) * ((double)c[j] * factor);
            __syncthreads();
            for (int n = 0; threadIdx.x == 0 && n < TESS_MIN(a.dim - first, (int64_t)blockDim.x);
                 n++)
                along = along + tile[n];
            __syncthreads(); /* the tile is used up */
        }
        if (threadIdx.x == 0)
            *share = along;
        __syncthreads();
        for (int64_t j = threadIdx.x; j < a.dim; j += blockDim.x) {
            const double across = turned(a, c, factor, j) - *share * ((double)c[j] * factor);
            d[j] = d[j] + (float)(scale * across * factor);
        }
        __syncthreads(); /* the share is used up */
    }
}

extern "C" tess_status tess_cuda_quantizer_orthogonal(const tess_quantizer_orthogonal_args *a,
                                                      tess_stream *s)
{
    TESS_TRY(tess_quantizer_orthogonal_check(a));
    const orthogonal_job job = {*a, ldexp(1.0, -a->exponent)};
    TESS_LAUNCH(orthogonal_loss_kernel, 1, TESS_BLOCK_THREADS, 0, s, job);
    if (a->d_codes != nullptr && a->code_numel > 0)
        TESS_LAUNCH(orthogonal_kernel, tess_grid(a->code_numel, 1), TESS_BLOCK_THREADS, 0, s,
                    job.a);
    return TESS_OK;
}

/* ---- drawn codes ---- */

__device__ static inline float score_of(const tess_quantizer_sample_args &a, const float *x,
                                        const float *c)
{
    double sum = 0.0;
    for (int64_t j = 0; j < a.dim; j++) {
        const double d = (double)x[j] - (double)c[j];
        sum = sum + (a.is_cosine ? (double)x[j] * (double)c[j] : d * d);
    }
    return (float)(a.is_cosine ? sum : -sqrt(fmax(sum, 1e-8)));
}

/* A block per vector. */
__global__ static void __launch_bounds__(TESS_BLOCK_THREADS)
    sample_kernel(const tess_quantizer_sample_args a)
{
    TESS_SHARED(unsigned long long, best, 1);
    const int64_t stride = (a.all_numel + 3) / 4 * 4;
    const float temperature = (float)a.temperature;
    for (int64_t row = blockIdx.x; row < a.row_numel; row += gridDim.x) {
        const int64_t first = (a.first_row_idx + row) * stride + a.first_code_idx;
        unsigned long long least = TESS_NO_KEY;
        if (threadIdx.x == 0)
            *best = a.is_first ? TESS_NO_KEY : a.key[row];
        for (int64_t k = threadIdx.x; k < a.code_numel; k += blockDim.x) {
            const float u = a.uniform != nullptr ? a.uniform[row * a.code_numel + k]
                                                 : tess_rng_uniform(&a.rng, (uint64_t)(first + k));
            const float value =
                score_of(a, a.x + row * a.dim, a.codes + k * a.dim) / temperature + tess_gumbel(u);
            const unsigned long long key = tess_key_make(-value, (uint32_t)(a.first_code_idx + k));
            least = TESS_MIN(least, key);
        }
        __syncthreads();
        atomicMin(best, least);
        __syncthreads();
        if (threadIdx.x == 0)
            a.key[row] = *best;
    }
}

extern "C" tess_status tess_cuda_quantizer_sample(const tess_quantizer_sample_args *a,
                                                  tess_stream *s)
{
    TESS_TRY(tess_quantizer_sample_check(a));
    const tess_quantizer_sample_args args = *a;
    if (a->row_numel > 0)
        TESS_LAUNCH(sample_kernel, tess_grid(a->row_numel, 1), TESS_BLOCK_THREADS, 0, s, args);
    return TESS_OK;
}

/* ---- moving averages ---- */

struct average_op {
    __device__ static inline void row(const tess_quantizer_average_args &a, const tess_lane_row &r)
    {
        const float step = (float)(1.0 - a.decay);
        const bool has = r.dim > 0;
        const float w = has && a.weight != nullptr ? step * a.weight[r.row] : step;
        if (has && r.lane == 0)
            a.rows.cluster_size[r.row] =
                tess_lerp_f32(a.rows.cluster_size[r.row], (float)a.count[r.row], w);
        for (int64_t j = r.lane; j < r.dim; j += TESS_ROW_LANES) {
            const int64_t at = r.row * r.dim + j;
            a.rows.embed_avg[at] = tess_lerp_f32(a.rows.embed_avg[at], a.sum[at], w);
        }
    }
};

extern "C" tess_status tess_cuda_quantizer_average(const tess_quantizer_average_args *a,
                                                   tess_stream *s)
{
    TESS_TRY(tess_quantizer_average_check(a));
    return tess_lane_rows_launch<average_op>(*a, a->rows.row_numel, a->rows.dim, s);
}

struct total_op {
    __device__ static inline void one(const tess_quantizer_total_args &a, int64_t k)
    {
        tess_add_i64(a.total, (int64_t)llrint((double)a.cluster_size[k] * 0x1p20));
    }
};

extern "C" tess_status tess_cuda_quantizer_total(const tess_quantizer_total_args *a, tess_stream *s)
{
    TESS_TRY(tess_quantizer_total_check(a));
    return tess_each_launch<total_op>(*a, a->row_numel, s);
}

/* Elements of v times its factor, formed once for the block; its threads have written v. */
__device__ static inline void make_unit(float *v, int64_t dim, float *factor)
{
    __syncthreads();
    if (threadIdx.x == 0)
        *factor = (float)tess_unit_factor(v, dim);
    __syncthreads();
    for (int64_t j = threadIdx.x; j < dim; j += blockDim.x)
        v[j] = v[j] * *factor;
}

__global__ static void __launch_bounds__(TESS_BLOCK_THREADS)
    embed_kernel(const tess_quantizer_embed_args a)
{
    TESS_SHARED(float, factor, 1);
    const tess_codebook_rows &r = a.rows;
    for (int64_t k = blockIdx.x; k < r.row_numel; k += gridDim.x) {
        const double share =
            ((double)r.cluster_size[k] + a.eps) / (a.total + (double)a.code_numel * a.eps);
        const float size = (float)(share * a.total);
        for (int64_t j = threadIdx.x; j < r.dim; j += blockDim.x)
            r.embed[k * r.dim + j] = r.embed_avg[k * r.dim + j] / size;
        if (a.is_cosine)
            make_unit(r.embed + k * r.dim, r.dim, factor);
    }
}

extern "C" tess_status tess_cuda_quantizer_embed(const tess_quantizer_embed_args *a, tess_stream *s)
{
    TESS_TRY(tess_quantizer_embed_check(a));
    const tess_quantizer_embed_args args = *a;
    if (a->rows.row_numel > 0)
        TESS_LAUNCH(embed_kernel, tess_grid(a->rows.row_numel, 1), TESS_BLOCK_THREADS, 0, s, args);
    return TESS_OK;
}

struct clear_op {
    __device__ static inline void one(int64_t *const &word, int64_t i) { word[i] = 0; }
};

struct expire_op {
    __device__ static inline void one(const tess_quantizer_expire_args &a, int64_t k)
    {
        const bool is_expired = a.cluster_size[k] < (float)a.threshold;
        a.expired[k] = is_expired ? 1 : 0;
        if (is_expired)
            tess_add_i64(a.expired_numel, 1);
    }
};

extern "C" tess_status tess_cuda_quantizer_expire(const tess_quantizer_expire_args *a,
                                                  tess_stream *s)
{
    TESS_TRY(tess_quantizer_expire_check(a));
    TESS_TRY(tess_each_launch<clear_op>(a->expired_numel, 1, s));
    return tess_each_launch<expire_op>(*a, a->row_numel, s);
}

__global__ static void __launch_bounds__(TESS_BLOCK_THREADS)
    replace_kernel(const tess_quantizer_replace_args a)
{
    TESS_SHARED(float, factor, 1);
    const tess_codebook_rows &r = a.rows;
    const float reset = (float)a.reset;
    for (int64_t i = blockIdx.x; i < a.replace_numel; i += gridDim.x) {
        float *embed = r.embed + a.row[i] * r.dim, *avg = r.embed_avg + a.row[i] * r.dim;
        for (int64_t j = threadIdx.x; j < r.dim; j += blockDim.x)
            embed[j] = a.vector[i * r.dim + j];
        if (a.is_cosine)
            make_unit(embed, r.dim, factor);
        for (int64_t j = threadIdx.x; j < r.dim; j += blockDim.x)
            avg[j] = embed[j] * reset;
        if (threadIdx.x == 0)
            r.cluster_size[a.row[i]] = reset;
    }
}

extern "C" tess_status tess_cuda_quantizer_replace(const tess_quantizer_replace_args *a,
                                                   tess_stream *s)
{
    TESS_TRY(tess_quantizer_replace_check(a));
    const tess_quantizer_replace_args args = *a;
    if (a->replace_numel > 0)
        TESS_LAUNCH(replace_kernel, tess_grid(a->replace_numel, 1), TESS_BLOCK_THREADS, 0, s, args);
    return TESS_OK;
}
