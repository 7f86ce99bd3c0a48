/**
 * Attention without tensor cores, for f32 and for layouts the other kernels cannot read: any head
 * dim up to 256, any alignment. Speed comes second.
 *
 * [Note: plain blocks] 8 warps own 2 rows each. Tiles of 32 rows of the other side pass through
 * shared memory in f32; lane j of a warp computes the scores of its rows with row j of the tile,
 * and then owns columns j, j + 32, .. of the sums, whose terms it adds in ascending order.
 */
#pragma once

#include "kernels/cuda/flash_priv.cuh"

enum {
    PLAIN_WARPS = 8,
    PLAIN_OWN = 2, /* rows of a warp */
    PLAIN_ROWS = PLAIN_WARPS * PLAIN_OWN,
    PLAIN_TILE = 32,
    PLAIN_COLUMNS = TESS_FLASH_DIM_MAX / 32, /* sums of a lane */
    PLAIN_THREADS = 32 * PLAIN_WARPS,
};

template <bool IS_BF16> static __device__ __forceinline__ float plain_get(const void *x, int64_t at)
{
    return IS_BF16 ? flash_from_bf16(static_cast<const uint16_t *>(x)[at])
                   : static_cast<const float *>(x)[at];
}

template <bool IS_BF16>
static __device__ __forceinline__ void plain_put(void *x, int64_t at, float value)
{
    if (IS_BF16)
        static_cast<uint16_t *>(x)[at] = static_cast<uint16_t>(tess_pack_bf16(value, 0.0f));
    else
        static_cast<float *>(x)[at] = value;
}

/** Operands of a product round once to the compute dtype. */
template <bool IS_BF16> static __device__ __forceinline__ float plain_round(float x)
{
    return IS_BF16 ? flash_from_bf16(static_cast<uint16_t>(tess_pack_bf16(x, 0.0f))) : x;
}

/** Elements of a row in shared memory: odd, so that a column hits all banks. */
static __device__ __host__ __forceinline__ int plain_pitch(int dim) { return dim | 1; }

/** Bytes of shared memory of two sets of own rows, two tiles and three words per tile row. */
static inline size_t plain_shared_nbytes(int dim)
{
    const size_t rows = 2 * PLAIN_ROWS + 2 * PLAIN_TILE;
    return (rows * static_cast<size_t>(plain_pitch(dim)) + 3 * PLAIN_TILE) * sizeof(float);
}

/** One operand: element 0 of the head, and elements from a token to the next. */
typedef struct plain_operand {
    const void *data;
    int64_t head_offset, stride;
} plain_operand;

/** Rows first .. first + rows - 1 to shared memory; rows past T become zeros. */
template <bool IS_BF16>
static __device__ __forceinline__ void plain_load(float *tile, plain_operand x, int first, int rows,
                                                  const flash_params *p)
{
    const int pitch = plain_pitch(p->dim);
    for (int row = threadIdx.x / 32; row < rows; row += PLAIN_WARPS)
        for (int d = threadIdx.x % 32; d < p->dim; d += 32)
            tile[row * pitch + d] =
                first + row < p->token_numel
                    ? plain_get<IS_BF16>(x.data, x.head_offset + (first + row) * x.stride + d)
                    : 0.0f;
}

/** score[r] = own row r of this warp times row `lane` of the tile. */
static __device__ __forceinline__ void plain_scores(float *score, const float *own,
                                                    const float *tile, int dim)
{
    const int pitch = plain_pitch(dim), warp = threadIdx.x / 32;
    const float *const other = tile + threadIdx.x % 32 * pitch;
    const float *const mine = own + warp * PLAIN_OWN * pitch;
    score[0] = score[1] = 0.0f;
    for (int d = 0; d < dim; d++) {
        score[0] = fmaf(mine[d], other[d], score[0]);
        score[1] = fmaf(mine[pitch + d], other[d], score[1]);
    }
}

/** sum[c] += weight of lane j times element lane + 32 c of tile row j, j ascending. */
static __device__ __forceinline__ void plain_accumulate(float *sum, float weight, const float *tile,
                                                        int dim)
{
    const int pitch = plain_pitch(dim), lane = threadIdx.x % 32;
    for (int j = 0; j < PLAIN_TILE; j++) {
        const float w = __shfl_sync(0xffffffffu, weight, j);
#pragma unroll
        for (int c = 0; c < PLAIN_COLUMNS; c++)
            if (lane + 32 * c < dim)
                sum[c] = fmaf(w, tile[j * pitch + lane + 32 * c], sum[c]);
    }
}

template <bool IS_BF16>
static __device__ __forceinline__ void plain_store(const float *sum, float factor, void *dst,
                                                   int64_t at, int dim)
{
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int c = 0; c < PLAIN_COLUMNS; c++)
        if (lane + 32 * c < dim)
            plain_put<IS_BF16>(dst, at + lane + 32 * c, sum[c] * factor);
}

static __device__ __forceinline__ float plain_largest(float x)
{
    for (int step = 16; step > 0; step /= 2)
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
    return x;
}

static __device__ __forceinline__ float plain_sum(float x)
{
    for (int step = 16; step > 0; step /= 2)
        x = x + __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}
