/** Backward of attention without tensor cores; see [Note: plain blocks]. */
#pragma once

#include "kernels/cuda/flash_plain_priv.cuh"

/** First row that may see token `key`. */
static __device__ __forceinline__ int flash_rows_begin(const flash_params *p, int key)
{
    return p->doc_start == nullptr ? 0 : key;
}

/** Smallest row from `row` up that does not see token `last` any more; T if all do. */
static __device__ __forceinline__ int flash_rows_end(const flash_params *p, int row, int last)
{
    int hi = p->token_numel;
    while (row < hi) {
        const int middle = row + (hi - row) / 2;
        if (flash_first(p, middle) > last)
            hi = middle;
        else
            row = middle + 1;
    }
    return row;
}

static __device__ __forceinline__ plain_operand plain_head(const void *data, int head,
                                                           int64_t stride, const flash_params *p)
{
    const plain_operand x = {data, static_cast<int64_t>(head) * p->dim, stride};
    return x;
}

/** Probability of key j for row i, 0 when it is not seen or one of them is past T. */
static __device__ __forceinline__ float plain_probability(float score, int i, int j,
                                                          int64_t head_at, const flash_params *p)
{
    if (i >= p->token_numel || j > flash_last(p, i) || j < flash_first(p, i))
        return 0.0f;
    return expf(fmaf(score, p->scale, -p->lse[head_at + i]));
}

/** d_k, d_v of 16 keys: lanes hold rows. */
template <bool IS_BF16>
__global__ void __launch_bounds__(PLAIN_THREADS) flash_keys_plain(flash_params params)
{
    const flash_params moved = flash_segment<IS_BF16>(params), *const p = &moved;
    TESS_DYN_SHARED(float, k_rows);
    float *const v_rows = k_rows + PLAIN_ROWS * plain_pitch(p->dim);
    float *const q_tile = v_rows + PLAIN_ROWS * plain_pitch(p->dim);
    float *const d_out_tile = q_tile + PLAIN_TILE * plain_pitch(p->dim);
    const int kv_head = static_cast<int>(blockIdx.x) % p->kv_head_numel;
    const int j_lo = static_cast<int>(blockIdx.x) / p->kv_head_numel * PLAIN_ROWS;
    const int j_last = TESS_MIN(j_lo + PLAIN_ROWS, p->token_numel) - 1;
    const int i_end = flash_rows_end(p, j_last, j_last);
    const int key = j_lo + static_cast<int>(threadIdx.x) / 32 * PLAIN_OWN;
    const int lane = threadIdx.x % 32;
    float d_k[PLAIN_OWN][PLAIN_COLUMNS] = {{0.0f}}, d_v[PLAIN_OWN][PLAIN_COLUMNS] = {{0.0f}};
    plain_load<IS_BF16>(k_rows, plain_head(p->k, kv_head, p->stride.k, p), j_lo, PLAIN_ROWS, p);
    plain_load<IS_BF16>(v_rows, plain_head(p->v, kv_head, p->stride.v, p), j_lo, PLAIN_ROWS, p);
    for (int g = 0; g < p->group_numel; g++) {
        const int head = kv_head * p->group_numel + g;
        const int64_t head_at = head * p->head_stride;
        const plain_operand q = plain_head(p->q, head, p->stride.q, p);
        const plain_operand d_out = plain_head(p->d_out, head, p->stride.d_out, p);
        for (int row = flash_rows_begin(p, j_lo) / PLAIN_TILE * PLAIN_TILE; row < i_end;
             row += PLAIN_TILE) {
            float score[PLAIN_OWN], d_p[PLAIN_OWN];
            __syncthreads(); /* the last tile is used up */
            plain_load<IS_BF16>(q_tile, q, row, PLAIN_TILE, p);
            plain_load<IS_BF16>(d_out_tile, d_out, row, PLAIN_TILE, p);
            __syncthreads(); /* this one is here */
            plain_scores(score, k_rows, q_tile, p->dim);
            plain_scores(d_p, v_rows, d_out_tile, p->dim);
            const int i = row + lane;
            const float delta = i < p->token_numel ? p->delta[head_at + i] : 0.0f;
#pragma unroll
            for (int r = 0; r < PLAIN_OWN; r++) {
                const float prob = plain_probability(score[r], i, key + r, head_at, p);
                const float d_s = prob * (d_p[r] - delta);
                plain_accumulate(d_v[r], plain_round<IS_BF16>(prob), d_out_tile, p->dim);
                plain_accumulate(d_k[r], plain_round<IS_BF16>(d_s), q_tile, p->dim);
            }
        }
    }
#pragma unroll
    for (int r = 0; r < PLAIN_OWN; r++) {
        if (key + r >= p->token_numel)
            continue;
        const int64_t at = static_cast<int64_t>(kv_head) * p->dim;
        plain_store<IS_BF16>(d_v[r], 1.0f, p->d_v, at + (key + r) * p->stride.d_v, p->dim);
        plain_store<IS_BF16>(d_k[r], p->scale, p->d_k, at + (key + r) * p->stride.d_k, p->dim);
    }
}

/** d_q of 16 rows: lanes hold keys. */
template <bool IS_BF16>
__global__ void __launch_bounds__(PLAIN_THREADS) flash_queries_plain(flash_params params)
{
    const flash_params moved = flash_segment<IS_BF16>(params), *const p = &moved;
    TESS_DYN_SHARED(float, q_rows);
    float *const d_out_rows = q_rows + PLAIN_ROWS * plain_pitch(p->dim);
    float *const k_tile = d_out_rows + PLAIN_ROWS * plain_pitch(p->dim);
    float *const v_tile = k_tile + PLAIN_TILE * plain_pitch(p->dim);
    const int tile_numel = static_cast<int>(gridDim.x) / p->head_numel;
    const int tile = tile_numel - 1 - static_cast<int>(blockIdx.x) / p->head_numel;
    const int head = static_cast<int>(blockIdx.x) % p->head_numel;
    const int kv_head = head / p->group_numel;
    const int64_t head_at = head * p->head_stride;
    const int i_lo = tile * PLAIN_ROWS, i_hi = TESS_MIN(i_lo + PLAIN_ROWS, p->token_numel);
    const int row = i_lo + static_cast<int>(threadIdx.x) / 32 * PLAIN_OWN;
    const int lane = threadIdx.x % 32;
    float d_q[PLAIN_OWN][PLAIN_COLUMNS] = {{0.0f}};
    plain_load<IS_BF16>(q_rows, plain_head(p->q, head, p->stride.q, p), i_lo, PLAIN_ROWS, p);
    plain_load<IS_BF16>(d_out_rows, plain_head(p->d_out, head, p->stride.d_out, p), i_lo,
                        PLAIN_ROWS, p);
    const int col_end = flash_last(p, i_hi - 1) + 1;
    for (int col = flash_first(p, i_lo) / PLAIN_TILE * PLAIN_TILE; col < col_end;
         col += PLAIN_TILE) {
        float score[PLAIN_OWN], d_p[PLAIN_OWN];
        __syncthreads(); /* the last tile is used up */
        plain_load<IS_BF16>(k_tile, plain_head(p->k, kv_head, p->stride.k, p), col, PLAIN_TILE, p);
        plain_load<IS_BF16>(v_tile, plain_head(p->v, kv_head, p->stride.v, p), col, PLAIN_TILE, p);
        __syncthreads(); /* this one is here */
        plain_scores(score, q_rows, k_tile, p->dim);
        plain_scores(d_p, d_out_rows, v_tile, p->dim);
#pragma unroll
        for (int r = 0; r < PLAIN_OWN; r++) {
            const int i = row + r;
            const float delta = i < p->token_numel ? p->delta[head_at + i] : 0.0f;
            const float prob = plain_probability(score[r], i, col + lane, head_at, p);
            plain_accumulate(d_q[r], plain_round<IS_BF16>(prob * (d_p[r] - delta)), k_tile, p->dim);
        }
    }
#pragma unroll
    for (int r = 0; r < PLAIN_OWN; r++)
        if (row + r < p->token_numel)
            plain_store<IS_BF16>(d_q[r], p->scale, p->d_q,
                                 static_cast<int64_t>(head) * p->dim + (row + r) * p->stride.d_q,
                                 p->dim);
}
