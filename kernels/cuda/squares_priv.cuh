/** Sums of squares in exact limbs, which know no order. */
#pragma once

#include "kernels/cuda/common_priv.cuh"

/** Add a double to exact limbs, of shared or device memory; what is not finite is left out. */
__device__ static inline void tess_limbs_add(unsigned long long *limb, double x)
{
    int limb_idx = 0;
    int64_t piece[TESS_EXACT_PIECE_NUMEL];
    if (!tess_exact_split(x, &limb_idx, piece))
        return;
    for (int i = 0; i < TESS_EXACT_PIECE_NUMEL; i++)
        if (piece[i] != 0)
            atomicAdd(&limb[limb_idx + i], (unsigned long long)piece[i]);
}

/*
 * [Note: one thread per block of 256] The squares of a block are added in ascending order, so a
 * block belongs to one thread. A warp takes 32 blocks and brings 32 elements of each through shared
 * memory, so that its loads are whole lines; rows of 33 words keep the columns in different banks.
 */
enum {
    TESS_SQUARE_BLOCK_NUMEL = 256,
    TESS_SQUARE_THREADS = 128,
    TESS_SQUARE_WARPS = TESS_SQUARE_THREADS / 32,
    TESS_SQUARE_STRIDE = 33,
    TESS_SQUARE_TILE_NUMEL = 32 * TESS_SQUARE_STRIDE,
};

struct tess_square_sum {
    double sum;
    int nonfinite_numel;
};

/** Sum of squares of block `first_block + lane`; the warp works together. */
template <typename READ>
__device__ static inline tess_square_sum tess_square_blocks(const READ &read, int64_t numel,
                                                            int64_t first_block, float *tile)
{
    const int lane = threadIdx.x % 32;
    tess_square_sum result = {0.0, 0};
    for (int column = 0; column < TESS_SQUARE_BLOCK_NUMEL; column += 32) {
#pragma unroll 8
        for (int row = 0; row < 32; row++) {
            const int64_t i = (first_block + row) * TESS_SQUARE_BLOCK_NUMEL + column + lane;
            tile[row * TESS_SQUARE_STRIDE + lane] = i < numel ? read.at(i) : 0.0f;
        }
        __syncwarp();
#pragma unroll 8
        for (int k = 0; k < 32; k++) {
            const float v = tile[lane * TESS_SQUARE_STRIDE + k];
            result.sum = result.sum + (double)v * (double)v;
            result.nonfinite_numel += (tess_f32_bits(v) & 0x7f800000u) == 0x7f800000u;
        }
        __syncwarp();
    }
    return result;
}

/** `acc` += squares of READ::at(i), i in [0, numel). Sums of a thread block meet in shared limbs
 * first. Elements of blocks that are not finite are counted instead, where `nonfinite_numel` is not
 * NULL. */
template <typename READ>
__global__ static void __launch_bounds__(TESS_SQUARE_THREADS)
    tess_squares_kernel(const READ read, int64_t numel, int64_t *acc, int64_t *nonfinite_numel)
{
    TESS_SHARED(float, tiles, TESS_SQUARE_WARPS *TESS_SQUARE_TILE_NUMEL);
    TESS_SHARED(unsigned long long, limb, TESS_EXACT_LIMB_NUMEL);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int64_t block_numel = (numel + TESS_SQUARE_BLOCK_NUMEL - 1) / TESS_SQUARE_BLOCK_NUMEL;
    if (threadIdx.x < TESS_EXACT_LIMB_NUMEL)
        limb[threadIdx.x] = 0;
    __syncthreads();
    for (int64_t group = (int64_t)blockIdx.x * TESS_SQUARE_WARPS + warp; group * 32 < block_numel;
         group += (int64_t)gridDim.x * TESS_SQUARE_WARPS) {
        const tess_square_sum r =
            tess_square_blocks(read, numel, group * 32, tiles + warp * TESS_SQUARE_TILE_NUMEL);
        if (group * 32 + lane >= block_numel)
            continue;
        if (r.nonfinite_numel == 0)
            tess_limbs_add(limb, r.sum);
        else if (nonfinite_numel != nullptr)
            atomicAdd((unsigned long long *)nonfinite_numel, (unsigned long long)r.nonfinite_numel);
    }
    __syncthreads();
    if (threadIdx.x < TESS_EXACT_LIMB_NUMEL && limb[threadIdx.x] != 0)
        atomicAdd((unsigned long long *)&acc[threadIdx.x], limb[threadIdx.x]);
}

template <typename READ>
TESS_MUST_CHECK static inline tess_status
tess_squares_launch(const READ &read, int64_t numel, tess_exact *acc, int64_t *nonfinite_numel,
                    tess_stream *s)
{
    if (numel > 0)
        TESS_LAUNCH(tess_squares_kernel<READ>,
                    tess_grid(numel, (int64_t)TESS_SQUARE_BLOCK_NUMEL * TESS_SQUARE_THREADS),
                    TESS_SQUARE_THREADS, 0, s, read, numel, acc->limb, nonfinite_numel);
    return TESS_OK;
}
