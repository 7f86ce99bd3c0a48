/** What the kernels of codebooks and quantizers share. */
#pragma once

#include "kernels/cuda/rows_priv.cuh"
#include "kernels/quantizer_priv.h"
#include "kernels/quantizer_vector.h"

/** Rows that a block takes at a time: 16 threads each. */
enum { TESS_LANE_ROWS = TESS_BLOCK_THREADS / TESS_ROW_LANES };

/** Activations of either dtype, in rows `stride` apart. */
struct tess_edge {
    void *data;
    int64_t is_bf16; /* as wide as its place: kernels are given no byte that nobody wrote */
    int64_t stride;
};

/** `stride` 0: `dim`. */
static inline tess_edge tess_edge_of(tess_view v, int64_t stride, int64_t dim)
{
    const tess_edge edge = {v.numel > 0 ? v.data : nullptr, v.dt == TESS_BF16,
                            stride > 0 ? stride : dim};
    return edge;
}

__device__ static inline float tess_edge_get(const tess_edge &e, int64_t row, int64_t j)
{
    const int64_t i = row * e.stride + j;
    return e.is_bf16 ? tess_bf16_to_f32(static_cast<const uint16_t *>(e.data)[i])
                     : static_cast<const float *>(e.data)[i];
}

__device__ static inline void tess_edge_put(const tess_edge &e, int64_t row, int64_t j, float x)
{
    const int64_t i = row * e.stride + j;
    if (e.is_bf16)
        static_cast<uint16_t *>(e.data)[i] = tess_bf16_from_f32(x);
    else
        static_cast<float *>(e.data)[i] = x;
}

/** A row of 16 threads. All threads of a block come along: rows past the end have dim 0. */
struct tess_lane_row {
    int64_t row, dim;
    int lane;
};

/** Sum over the row of term(j), element j in lane j % 16, lanes in the tree 8, 4, 2, 1: in all
 * lanes. */
template <typename TERM>
__device__ static inline double tess_row_sum_f64(const tess_lane_row &r, const TERM &term)
{
    double sum = 0.0;
    for (int64_t j = r.lane; j < r.dim; j += TESS_ROW_LANES)
        sum = sum + term(j);
    return __shfl_sync(0xffffffffu, tess_lanes_sum(sum), 0, TESS_ROW_LANES);
}

/** OP::row(a, r) for all rows. */
template <typename OP, typename ARGS>
__global__ static void __launch_bounds__(TESS_BLOCK_THREADS)
    tess_lane_rows_kernel(const ARGS a, int64_t row_numel, int64_t dim)
{
    const int64_t step = (int64_t)gridDim.x * TESS_LANE_ROWS;
    for (int64_t first = (int64_t)blockIdx.x * TESS_LANE_ROWS; first < row_numel; first += step) {
        const int64_t row = first + (int)threadIdx.x / TESS_ROW_LANES;
        const tess_lane_row r = {row, row < row_numel ? dim : 0, (int)threadIdx.x % TESS_ROW_LANES};
        OP::row(a, r);
    }
}

template <typename OP, typename ARGS>
TESS_MUST_CHECK static inline tess_status tess_lane_rows_launch(const ARGS &a, int64_t row_numel,
                                                                int64_t dim, tess_stream *s)
{
    if (row_numel > 0)
        TESS_LAUNCH((tess_lane_rows_kernel<OP, ARGS>), tess_grid(row_numel, TESS_LANE_ROWS),
                    TESS_BLOCK_THREADS, 0, s, a, row_numel, dim);
    return TESS_OK;
}

/** OP::one(a, i) for i of [0, numel), a thread each. */
template <typename OP, typename ARGS>
__global__ static void __launch_bounds__(TESS_BLOCK_THREADS)
    tess_each_kernel(const ARGS a, int64_t numel)
{
    const int64_t step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < numel; i += step)
        OP::one(a, i);
}

template <typename OP, typename ARGS>
TESS_MUST_CHECK static inline tess_status tess_each_launch(const ARGS &a, int64_t numel,
                                                           tess_stream *s)
{
    if (numel > 0)
        TESS_LAUNCH((tess_each_kernel<OP, ARGS>), tess_grid(numel, TESS_BLOCK_THREADS),
                    TESS_BLOCK_THREADS, 0, s, a, numel);
    return TESS_OK;
}

/** Row of the vector's code; NULL where it is masked, and behind the last row. */
__device__ static inline const float *tess_code_row_at(const tess_coded_rows &rows, int64_t row)
{
    if (row >= rows.row_numel)
        return nullptr;
    if (rows.code == nullptr)
        return rows.codes + row * rows.dim;
    const uint32_t code = rows.code[row];
    return code == TESS_NO_CODE ? nullptr : rows.codes + (int64_t)code * rows.dim;
}

/** 1 / max(|v|, TESS_UNIT_LEAST), elements ascending. */
__device__ static inline double tess_unit_factor(const float *v, int64_t dim)
{
    double square = 0.0;
    for (int64_t j = 0; j < dim; j++)
        square = square + (double)v[j] * (double)v[j];
    const double norm = sqrt(square), least = (double)TESS_UNIT_LEAST;
    return 1.0 / (norm > least ? norm : least);
}

/** x to the nearest integer, ties to even, below 2^51 in size: the low bits of the shifted number.
 */
__device__ static inline int64_t tess_fixed_of(double x)
{
    return __double_as_longlong(x + 0x1.8p52) - INT64_C(0x4338000000000000);
}

/** Integer sums know no order. */
__device__ static inline void tess_add_i64(int64_t *sum, int64_t x)
{
    atomicAdd(reinterpret_cast<unsigned long long *>(sum), (unsigned long long)x);
}
