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
    for (int i = (int)threadIdx.x; i < numel; i += TESS_ROW_LANES)
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

/** out[i] += sum over the TESS_ROW_CHUNK_NUMEL chunks of work[chunk][i], ascending. */
tess_status tess_cuda_row_chunks_add(const float *work, int64_t dim, float *out, tess_stream *s);
