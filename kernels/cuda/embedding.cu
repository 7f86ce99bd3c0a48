#include "kernels/cuda/codec_priv.h"
#include "kernels/cuda/common_priv.cuh"

enum { THREADS = 256, WARPS = THREADS / 32, CHUNK = 8 };

template <bool FROM_BF16, bool TO_BF16, bool IS_WHOLE>
__device__ static inline void forward_chunk(const void *table, int64_t from, void *out, int64_t to,
                                            int n)
{
    if constexpr (FROM_BF16 == TO_BF16) {
        tess_copy<FROM_BF16, IS_WHOLE, CHUNK>(out, to, table, from, n);
    } else {
        float v[CHUNK];
        tess_load<FROM_BF16, IS_WHOLE, CHUNK>(table, from, n, v);
        tess_store<TO_BF16, IS_WHOLE, CHUNK, true>(out, to, n, v);
    }
}

/* A block per token, its threads over the columns. */
template <bool FROM_BF16, bool TO_BF16, bool IS_WHOLE>
__global__ static void __launch_bounds__(THREADS)
    forward_kernel(const int32_t *tokens, int64_t token_numel, const void *table, int64_t cols,
                   void *out)
{
    for (int64_t t = blockIdx.x; t < token_numel; t += gridDim.x) {
        const int64_t from = tokens[t] * cols;
#pragma unroll 1
        for (int64_t i = (int64_t)threadIdx.x * CHUNK; i < cols; i += THREADS * CHUNK) {
            const int n = (int)TESS_MIN(cols - i, (int64_t)CHUNK);
            forward_chunk<FROM_BF16, TO_BF16, IS_WHOLE>(table, from + i, out, t * cols + i, n);
        }
    }
}

static tess_status forward_coded(const tess_embedding_args *a, tess_stream *s)
{
    const tess_matrix *t = &a->table;
    tess_decode_args args = {};
    args.codec = t->codec;
    memcpy(args.part, t->part, sizeof args.part);
    args.numel = t->rows * t->cols;
    args.rows = a->token_numel;
    args.cols = args.dst_stride = t->cols;
    args.row_idx = a->tokens;
    args.dst = a->out.data;
    args.dt = a->out.dt;
    return tess_cuda_decode(&args, s);
}

template <bool FROM_BF16, bool TO_BF16>
static tess_status forward_plain(const tess_embedding_args *a, tess_stream *s)
{
    const unsigned grid = tess_grid(a->token_numel, 1);
    if (tess_is_aligned(a->table.part[0], a->out.data) && a->table.cols % CHUNK == 0)
        TESS_LAUNCH((forward_kernel<FROM_BF16, TO_BF16, true>), grid, THREADS, 0, s, a->tokens,
                    a->token_numel, a->table.part[0], a->table.cols, a->out.data);
    else
        TESS_LAUNCH((forward_kernel<FROM_BF16, TO_BF16, false>), grid, THREADS, 0, s, a->tokens,
                    a->token_numel, a->table.part[0], a->table.cols, a->out.data);
    return TESS_OK;
}

extern "C" tess_status tess_cuda_embedding_forward(const tess_embedding_args *a, tess_stream *s)
{
    TESS_TRY(tess_embedding_check(a));
    if (a->token_numel == 0)
        return TESS_OK;
    const bool to_bf16 = a->out.dt == TESS_BF16;
    const tess_format format = a->table.codec.format;
    if (format == TESS_FORMAT_BF16)
        return to_bf16 ? forward_plain<true, true>(a, s) : forward_plain<true, false>(a, s);
    if (format == TESS_FORMAT_F32)
        return to_bf16 ? forward_plain<false, true>(a, s) : forward_plain<false, false>(a, s);
    return forward_coded(a, s);
}

struct backward_job {
    const int32_t *tokens;
    int64_t token_numel;
    const void *d_out;
    int64_t hidden_numel;
    float *d_table;
};

/* Add the gradients of the tokens of this window that `match` names, positions ascending. */
template <bool IS_BF16>
__device__ static inline void add_matches(const backward_job &j, int64_t base,
                                          const unsigned match[WARPS], float *row)
{
    for (int64_t i = threadIdx.x; i < j.hidden_numel; i += THREADS) {
        float sum = row[i];
        for (int w = 0; w < WARPS; w++) {
            for (unsigned left = match[w]; left != 0; left &= left - 1) {
                const int64_t t = base + w * 32 + __ffs((int)left) - 1;
                sum = sum + tess_get<IS_BF16>(j.d_out, t * j.hidden_numel + i);
            }
        }
        row[i] = sum;
    }
}

/*
 * [Note: one block per row of the table] The block of the first position of a token adds the rows
 * of all positions with that token, ascending; the blocks of the other positions leave. So each row
 * of the table has one writer and no order is left to chance. Positions are searched 256 at a time:
 * quadratic in tokens, but of 4 bytes each, and out of the cache.
 */
template <bool IS_BF16>
__global__ static void __launch_bounds__(THREADS) backward_kernel(const backward_job j)
{
    TESS_SHARED(unsigned, match, WARPS);
    for (int64_t t = blockIdx.x; t < j.token_numel; t += gridDim.x) {
        const int32_t token = j.tokens[t];
        bool is_first = true;
        for (int64_t base = 0; base < t && is_first; base += THREADS) {
            const int64_t at = base + threadIdx.x;
            is_first = !__syncthreads_or(at < t && j.tokens[at] == token);
        }
        for (int64_t base = t; base < j.token_numel && is_first; base += THREADS) {
            const int64_t at = base + threadIdx.x;
            const bool is_match = at < j.token_numel && j.tokens[at] == token;
            const unsigned mask = __ballot_sync(0xffffffffu, is_match);
            if (!__syncthreads_or(is_match)) /* also: the window before has been added */
                continue;
            if (threadIdx.x % 32 == 0)
                match[threadIdx.x / 32] = mask;
            __syncthreads();
            add_matches<IS_BF16>(j, base, match, j.d_table + token * j.hidden_numel);
        }
    }
}

extern "C" tess_status tess_cuda_embedding_backward(const tess_embedding_backward_args *a,
                                                    tess_stream *s)
{
    TESS_TRY(tess_embedding_backward_check(a));
    if (a->token_numel == 0)
        return TESS_OK;
    const backward_job job = {a->tokens, a->token_numel, a->d_out.data, a->hidden_numel,
                              a->d_table};
    const unsigned grid = tess_grid(a->token_numel, 1);
    if (a->d_out.dt == TESS_BF16)
        TESS_LAUNCH(backward_kernel<true>, grid, THREADS, 0, s, job);
    else
        TESS_LAUNCH(backward_kernel<false>, grid, THREADS, 0, s, job);
    return TESS_OK;
}
