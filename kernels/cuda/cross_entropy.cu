#include "kernels/cuda/rows_priv.cuh"

enum { CHUNK = 4, WARPS = TESS_ROW_THREADS / 32, TILE_CHUNK = TESS_TILE_NUMEL / TESS_ROW_THREADS };

/* What the threads of a block share about one row. */
struct row_shared {
    float4 tiles[2 * TESS_TILE_NUMEL / 4];
    float warp_max[WARPS];
    double sum;
};

template <bool IS_WHOLE>
__device__ static inline float row_max(const float *z, int64_t numel, float *warp_max)
{
    float best = tess_f32_of_bits(0xff800000u);
    for (int64_t i = (int64_t)threadIdx.x * CHUNK; i < numel; i += (int64_t)blockDim.x * CHUNK) {
        const int n = (int)TESS_MIN(numel - i, (int64_t)CHUNK);
        float v[CHUNK];
        tess_load<false, IS_WHOLE, CHUNK>(z, i, n, v);
#pragma unroll
        for (int k = 0; k < CHUNK; k++)
            best = k < n && v[k] > best ? v[k] : best;
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        const float other = __shfl_xor_sync(0xffffffffu, best, step);
        best = other > best ? other : best;
    }
    if (threadIdx.x % 32 == 0)
        warp_max[threadIdx.x / 32] = best;
    __syncthreads();
    best = warp_max[0];
#pragma unroll
    for (int w = 1; w < WARPS; w++)
        best = warp_max[w] > best ? warp_max[w] : best;
    return best;
}

/* fp64 sum of exp(z - max) in the order of [Note: tiles of a row], in all threads. */
template <bool IS_WHOLE>
__device__ static inline double sum_exp(const float *z, int64_t numel, float max,
                                        row_shared *shared)
{
    float *const tiles = reinterpret_cast<float *>(shared->tiles);
    double sum = 0.0;
    int half = 0;
    for (int64_t base = 0; base < numel; base += TESS_TILE_NUMEL) {
        float *const tile = tiles + half * TESS_TILE_NUMEL;
        const int left = (int)TESS_MIN(numel - base, (int64_t)TESS_TILE_NUMEL);
        const int padded = (left + TESS_ROW_LANES - 1) / TESS_ROW_LANES * TESS_ROW_LANES;
#pragma unroll
        for (int c = 0; c < TILE_CHUNK; c += CHUNK) {
            const int j = (int)threadIdx.x * CHUNK + c * TESS_ROW_THREADS;
            float v[CHUNK] = {};
            if (j >= padded)
                break;
            if (j < left)
                tess_load<false, IS_WHOLE, CHUNK>(z, base + j, TESS_MIN(left - j, (int)CHUNK), v);
#pragma unroll
            for (int k = 0; k < CHUNK; k++)
                v[k] = j + k < left ? tess_exp_below_f32(v[k] - max) : 0.0f;
            tess_tile_put<CHUNK>(tile, j, v);
        }
        __syncthreads();
        if (threadIdx.x < TESS_ROW_LANES)
            sum = tess_tile_add(sum, tile, padded);
        half = 1 - half;
    }
    if (threadIdx.x < 32) {
        sum = tess_lanes_sum(sum);
        if (threadIdx.x == 0)
            shared->sum = sum;
    }
    __syncthreads();
    return shared->sum;
}

struct row_gradient {
    float max, inv, scale, hit;
    int64_t label;
};

template <bool IS_BF16, bool IS_WHOLE>
__device__ static inline void gradient(const float *z, void *d, int64_t numel,
                                       const row_gradient &g)
{
    for (int64_t i = (int64_t)threadIdx.x * CHUNK; i < numel; i += (int64_t)blockDim.x * CHUNK) {
        const int n = (int)TESS_MIN(numel - i, (int64_t)CHUNK);
        float v[CHUNK];
        tess_load<false, IS_WHOLE, CHUNK>(z, i, n, v);
#pragma unroll
        for (int k = 0; k < CHUNK; k++) {
            const float p = tess_exp_below_f32(v[k] - g.max) * g.inv;
            v[k] = i + k == g.label ? g.hit : p * g.scale;
        }
        tess_store<IS_BF16, IS_WHOLE, CHUNK>(d, i, n, v);
    }
}

template <bool IS_BF16, bool IS_WHOLE>
__device__ static inline void zero_row(void *d, int64_t numel)
{
    const float zero[CHUNK] = {};
    for (int64_t i = (int64_t)threadIdx.x * CHUNK; i < numel; i += (int64_t)blockDim.x * CHUNK)
        tess_store<IS_BF16, IS_WHOLE, CHUNK>(d, i, (int)TESS_MIN(numel - i, (int64_t)CHUNK), zero);
}

template <bool IS_BF16, bool IS_WHOLE>
__device__ static inline void loss_row(const tess_cross_entropy_args &a, int64_t row,
                                       row_shared *shared)
{
    const int64_t numel = a.vocab_numel, label = a.labels[row];
    const float *z = static_cast<const float *>(a.logits.data) + row * numel;
    char *d = static_cast<char *>(a.d_logits.data);
    const bool has_gradient = a.d_logits.numel > 0;
    if (has_gradient)
        d += row * numel * (IS_BF16 ? 2 : 4);
    if (label < 0) {
        if (threadIdx.x == 0)
            a.row_loss[row] = 0.0;
        if (has_gradient)
            zero_row<IS_BF16, IS_WHOLE>(d, numel);
        return;
    }
    const float at_label = z[label]; /* before the gradient takes its place */
    const float max = row_max<IS_WHOLE>(z, numel, shared->warp_max);
    const double sum = sum_exp<IS_WHOLE>(z, numel, max, shared);
    if (threadIdx.x == 0) {
        /* 2^1000: a row with NaN or infinity has no finite sum, and the loss must say so. */
        const double lse = sum < 1.0715086071862673e301 ? (double)max + tess_log_f64(sum) : sum;
        a.row_loss[row] = lse - (double)at_label;
    }
    if (!has_gradient)
        return;
    const float inv = (float)(1.0 / sum);
    const float hit = (tess_exp_below_f32(at_label - max) * inv - 1.0f) * a.grad_scale;
    const row_gradient g = {max, inv, a.grad_scale, hit, label};
    gradient<IS_BF16, IS_WHOLE>(z, d, numel, g);
}

/* A block per row: maximum, sum and gradient each read the row once. */
template <bool IS_BF16, bool IS_WHOLE>
__global__ static void __launch_bounds__(TESS_ROW_THREADS)
    cross_entropy_kernel(const tess_cross_entropy_args a)
{
    TESS_SHARED(row_shared, shared, 1);
    for (int64_t row = blockIdx.x; row < a.row_numel; row += gridDim.x)
        loss_row<IS_BF16, IS_WHOLE>(a, row, shared);
}

template <bool IS_BF16>
static tess_status launch(const tess_cross_entropy_args *a, bool is_whole, tess_stream *s)
{
    const tess_cross_entropy_args args = *a;
    const unsigned grid = tess_grid(a->row_numel, 1);
    if (is_whole)
        TESS_LAUNCH((cross_entropy_kernel<IS_BF16, true>), grid, TESS_ROW_THREADS, 0, s, args);
    else
        TESS_LAUNCH((cross_entropy_kernel<IS_BF16, false>), grid, TESS_ROW_THREADS, 0, s, args);
    return TESS_OK;
}

extern "C" tess_status tess_cuda_cross_entropy(const tess_cross_entropy_args *a, tess_stream *s)
{
    TESS_TRY(tess_cross_entropy_check(a));
    if (a->row_numel == 0)
        return TESS_OK;
    const bool is_whole =
        tess_is_aligned(a->logits.data, a->d_logits.data) && a->vocab_numel % CHUNK == 0;
    return a->d_logits.dt == TESS_BF16 ? launch<true>(a, is_whole, s)
                                       : launch<false>(a, is_whole, s);
}
