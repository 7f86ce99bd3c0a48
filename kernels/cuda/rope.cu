#include "kernels/cuda/common_priv.cuh"

struct rope_job {
    void *x;
    const int32_t *positions;
    const float *cos_table, *sin_table;
    int64_t token_numel;
    int64_t head_numel, dim;
    float sign; /* of the sine: -1 for the inverse */
};

/* Elements [i, i + n) of both halves of one head. */
template <bool IS_BF16, bool IS_WHOLE, int N>
__device__ static inline void rotate(const rope_job &a, int64_t head, int64_t row, int64_t i, int n)
{
    const int64_t half = a.dim / 2, first = head * a.dim + i;
    float x[N], y[N], c[N], s[N], out[N];
    tess_load<IS_BF16, IS_WHOLE, N>(a.x, first, n, x);
    tess_load<IS_BF16, IS_WHOLE, N>(a.x, first + half, n, y);
    tess_load<false, IS_WHOLE, N>(a.cos_table, row * half + i, n, c);
    tess_load<false, IS_WHOLE, N>(a.sin_table, row * half + i, n, s);
#pragma unroll
    for (int k = 0; k < N; k++) {
        s[k] = s[k] * a.sign;
        out[k] = x[k] * c[k] - y[k] * s[k];
        y[k] = y[k] * c[k] + x[k] * s[k];
    }
    tess_store<IS_BF16, IS_WHOLE, N>(a.x, first, n, out);
    tess_store<IS_BF16, IS_WHOLE, N>(a.x, first + half, n, y);
}

/* A block per token, its threads over heads and chunks of half a head. */
template <bool IS_BF16>
__global__ static void __launch_bounds__(TESS_BLOCK_THREADS)
    rope_kernel(const rope_job a, bool is_aligned)
{
    constexpr int N = tess_chunk<IS_BF16>::NUMEL;
    const int64_t half = a.dim / 2, per_head = (half + N - 1) / N;
    for (int64_t t = blockIdx.x; t < a.token_numel; t += gridDim.x) {
        const int64_t row = a.positions[t];
        for (int64_t unit = threadIdx.x; unit < a.head_numel * per_head; unit += blockDim.x) {
            const int64_t head = t * a.head_numel + unit / per_head;
            const int64_t i = unit % per_head * N;
            if (is_aligned)
                rotate<IS_BF16, true, N>(a, head, row, i, N);
            else
                rotate<IS_BF16, false, N>(a, head, row, i, (int)TESS_MIN(half - i, (int64_t)N));
        }
    }
}

extern "C" tess_status tess_cuda_rope(const tess_rope_args *a, tess_stream *s)
{
    TESS_TRY(tess_rope_check(a));
    if (a->token_numel == 0)
        return TESS_OK;
    const rope_job job = {a->x.data,      a->positions,  a->cos_table, a->sin_table,
                          a->token_numel, a->head_numel, a->dim,       a->inverse ? -1.0f : 1.0f};
    const int64_t half = a->dim / 2;
    const bool is_bf16 = a->x.dt == TESS_BF16;
    const bool is_aligned =
        tess_is_aligned(a->x.data, a->cos_table, a->sin_table) && half % (is_bf16 ? 8 : 4) == 0;
    const unsigned grid = tess_grid(a->token_numel, 1);
    if (is_bf16)
        TESS_LAUNCH(rope_kernel<true>, grid, TESS_BLOCK_THREADS, 0, s, job, is_aligned);
    else
        TESS_LAUNCH(rope_kernel<false>, grid, TESS_BLOCK_THREADS, 0, s, job, is_aligned);
    return TESS_OK;
}
