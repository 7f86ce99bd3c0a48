/**
 * Sums over a row in the order of the CPU twins: 16 lanes, element i in lane i % 16 ascending, then
 * a tree 8, 4, 2, 1 apart.
 *
 * [Note: tiles of a row] A long row is cut in tiles of 2048 terms. All threads compute the terms of
 * a tile into shared memory; then the first 16 threads add it, while the others are already at the
 * next tile in the other half of the buffer. So one barrier per tile is enough, and enough rows in
 * flight hide the chain of additions.
 */
#pragma once

#include "kernels/cuda/common_priv.cuh"

enum { TESS_ROW_THREADS = 256, TESS_ROW_LANES = 16, TESS_TILE_NUMEL = 2048 };
/* Rows that a thread reads before it adds the first, of one operand or of two: sums over rows have
 * few threads, one for each column and chunk of rows, so each has to wait for much at a time. For
 * that the compiler has to be told that more blocks would not come. */
enum { TESS_ROWS_AHEAD = 32, TESS_ROW_PAIRS_AHEAD = 16, TESS_COLUMN_BLOCKS = 2 };

/**
 * Run term.template add<N>(row) for the rows of [lo, hi) ascending: AHEAD at a time, then one by
 * one. add() reads all of its N rows before it adds the first.
 */
template <int AHEAD, typename TERM>
__device__ static inline void tess_rows_add(TERM &term, int64_t lo, int64_t hi)
{
    int64_t row = lo;
    for (; row + AHEAD <= hi; row += AHEAD)
        term.template add<AHEAD>(row);
#pragma unroll 1
    for (; row < hi; row++)
        term.template add<1>(row);
}

/** Terms of this thread into its place in a tile. `first` is the index in the tile. */
template <int N>
__device__ static inline void tess_tile_put(float *tile, int first, const float v[N])
{
    TESS_ALIGNED(tile + first, 16);
#pragma unroll
    for (int k = 0; k < N; k += 4)
        *reinterpret_cast<float4 *>(tile + first + k) =
            make_float4(v[k], v[k + 1], v[k + 2], v[k + 3]);
}

/** Add the terms of a tile to this lane's sum; `numel` counts terms, those up to the next multiple
 * of 16 are 0. */
template <typename T> __device__ static inline T tess_tile_add(T sum, const float *tile, int numel)
{
#pragma unroll 8
    for (int i = (int)threadIdx.x % TESS_ROW_LANES; i < numel; i += TESS_ROW_LANES)
        sum = sum + (T)tile[i];
    return sum;
}

/** The tree over 16 lanes; all threads of the warp call it, lane 0 of each 16 has the sum. */
template <typename T> __device__ static inline T tess_lanes_sum(T sum)
{
#pragma unroll
    for (int step = TESS_ROW_LANES / 2; step > 0; step /= 2)
        sum = sum + __shfl_down_sync(0xffffffffu, sum, (unsigned)step, TESS_ROW_LANES);
    return sum;
}

/** Floats of shared memory for the tiles of `SUMS` sums at once, as float4. */
template <int SUMS> struct tess_row_tiles {
    enum { NUMEL4 = 2 * SUMS * TESS_TILE_NUMEL / 4 };
};

/**
 * One or two sums over a row of `dim` elements, in all threads: what term.chunk<IS_WHOLE>(i, n, v)
 * gives of TERM::NUMEL elements from i on, n of which are there, for each of TERM::SUMS sums. Each
 * sum has 16 threads of the first warp.
 */
template <bool IS_WHOLE, typename TERM>
__device__ static inline void tess_row_sums(const TERM &term, int64_t dim, float4 *tiles4,
                                            float *result)
{
    constexpr int N = TERM::NUMEL, SUMS = TERM::SUMS;
    static_assert(SUMS * TESS_ROW_LANES <= 32, "sums of one warp");
    float *const tiles = reinterpret_cast<float *>(tiles4);
    const int own = (int)threadIdx.x / TESS_ROW_LANES; /* the sum of this thread */
    float sum = 0.0f;
    int half = 0;
    for (int64_t base = 0; base < dim; base += TESS_TILE_NUMEL) {
        float *const tile = tiles + half * SUMS * TESS_TILE_NUMEL;
        const int64_t end = TESS_MIN(dim, base + TESS_TILE_NUMEL);
        /* Up to whole groups of 16: terms past the row are 0. */
        const int padded =
            ((int)(end - base) + TESS_ROW_LANES - 1) / TESS_ROW_LANES * TESS_ROW_LANES;
        for (int j = (int)threadIdx.x * N; j < padded; j += (int)blockDim.x * N) {
            float v[SUMS][N] = {};
            const int left = (int)(end - base) - j;
            if (left > 0)
                term.template chunk<IS_WHOLE>(base + j, TESS_MIN(left, N), v);
#pragma unroll
            for (int q = 0; q < SUMS; q++)
                tess_tile_put<N>(tile + q * TESS_TILE_NUMEL, j, v[q]);
        }
        __syncthreads();
        if (own < SUMS)
            sum = tess_tile_add(sum, tile + own * TESS_TILE_NUMEL, padded);
        half = 1 - half;
    }
    if (threadIdx.x < 32) {
        sum = tess_lanes_sum(sum);
        if (own < SUMS && threadIdx.x % TESS_ROW_LANES == 0)
            result[own] = sum;
    }
    __syncthreads();
}

/** out[i] += sum over the TESS_ROW_CHUNK_NUMEL chunks of work[chunk][i], ascending. */
tess_status tess_cuda_row_chunks_add(const float *work, int64_t dim, float *out, tess_stream *s);
