#include "kernels/codebook.h"

#include <math.h>

#include "kernels/cuda/quantizer_priv.cuh"

/* A thread's largest, then its warp's: maxima of integers know no order. */
__global__ static void __launch_bounds__(TESS_BLOCK_THREADS)
    code_most_kernel(const tess_code_most_args a)
{
    const int64_t stride = (int64_t)gridDim.x * TESS_BLOCK_THREADS, numel = a.vector_numel * a.dim;
    unsigned most = 0;
    for (int64_t i = (int64_t)blockIdx.x * TESS_BLOCK_THREADS + threadIdx.x; i < numel; i += stride)
        if (a.row[i / a.dim] != TESS_NO_CODE && a.x[i] == a.x[i])
            most = TESS_MAX(most, tess_ordered_bits(fabsf(a.x[i])));
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        const unsigned other = __shfl_xor_sync(0xffffffffu, most, step);
        most = TESS_MAX(most, other);
    }
    if (threadIdx.x % 32 == 0 && most > 0)
        atomicMax(a.most, most);
}

extern "C" tess_status tess_cuda_code_most(const tess_code_most_args *a, tess_stream *s)
{
    TESS_TRY(tess_code_most_check(a));
    const tess_code_most_args args = *a;
    if (a->vector_numel > 0)
        TESS_LAUNCH(code_most_kernel, tess_grid(a->vector_numel * a->dim, TESS_BLOCK_THREADS),
                    TESS_BLOCK_THREADS, 0, s, args);
    return TESS_OK;
}

__global__ static void __launch_bounds__(TESS_BLOCK_THREADS)
    code_value_kernel(const tess_code_value_args a, double factor)
{
    const int64_t stride = (int64_t)gridDim.x * TESS_BLOCK_THREADS;
    for (int64_t i = (int64_t)blockIdx.x * TESS_BLOCK_THREADS + threadIdx.x; i < a.numel;
         i += stride)
        a.value[i] = (float)((double)a.sum[i] * factor);
}

extern "C" tess_status tess_cuda_code_value(const tess_code_value_args *a, tess_stream *s)
{
    TESS_TRY(tess_code_value_check(a));
    const tess_code_value_args args = *a;
    if (a->numel > 0)
        TESS_LAUNCH(code_value_kernel, tess_grid(a->numel, TESS_BLOCK_THREADS), TESS_BLOCK_THREADS,
                    0, s, args, ldexp(1.0, -a->exponent));
    return TESS_OK;
}

/* A block per vector; integer sums know no order. */
__global__ static void __launch_bounds__(TESS_BLOCK_THREADS)
    code_sum_kernel(const tess_code_sum_args a, double factor)
{
    for (int64_t i = blockIdx.x; i < a.vector_numel; i += gridDim.x) {
        const int64_t row = (int64_t)a.row[i] - a.first_row_idx;
        if (row < 0 || row >= a.row_numel)
            continue;
        for (int64_t j = threadIdx.x; j < a.dim; j += blockDim.x)
            tess_add_i64(a.sum + row * a.dim + j,
                         tess_fixed_of((double)a.x[i * a.dim + j] * factor));
        if (threadIdx.x == 0)
            tess_add_i64(a.count + row, 1);
    }
}

/* Threads of a block that takes a row of `dim` elements: whole warps. */
static unsigned row_threads(int64_t dim)
{
    return (unsigned)TESS_MIN((dim + 31) / 32 * 32, (int64_t)TESS_BLOCK_THREADS);
}

extern "C" tess_status tess_cuda_code_sum(const tess_code_sum_args *a, tess_stream *s)
{
    TESS_TRY(tess_code_sum_check(a));
    const tess_code_sum_args args = *a;
    if (a->vector_numel > 0)
        TESS_LAUNCH(code_sum_kernel, tess_grid(a->vector_numel, 1), row_threads(a->dim), 0, s, args,
                    ldexp(1.0, a->exponent));
    return TESS_OK;
}

/* A block per row; its first thread adds squares in ascending order. */
__global__ static void __launch_bounds__(TESS_BLOCK_THREADS)
    code_mean_kernel(const tess_code_mean_args a, double factor)
{
    TESS_SHARED(double, length, 1);
    for (int64_t k = blockIdx.x; k < a.row_numel; k += gridDim.x) {
        float *code = a.code + k * a.dim;
        const double count = (double)a.count[k];
        if (a.count[k] == 0)
            continue;
        for (int64_t j = threadIdx.x; j < a.dim; j += blockDim.x)
            code[j] = (float)((double)a.sum[k * a.dim + j] * factor / count);
        if (!a.is_unit)
            continue;
        __syncthreads();
        if (threadIdx.x == 0) {
            double square = 0.0;
            for (int64_t j = 0; j < a.dim; j++)
                square = square + (double)code[j] * (double)code[j];
            *length = square > 0.0 ? sqrt(square) : 1.0;
        }
        __syncthreads();
        for (int64_t j = threadIdx.x; j < a.dim; j += blockDim.x)
            code[j] = (float)((double)code[j] / *length);
    }
}

extern "C" tess_status tess_cuda_code_mean(const tess_code_mean_args *a, tess_stream *s)
{
    TESS_TRY(tess_code_mean_check(a));
    const tess_code_mean_args args = *a;
    if (a->row_numel > 0)
        TESS_LAUNCH(code_mean_kernel, tess_grid(a->row_numel, 1), row_threads(a->dim), 0, s, args,
                    ldexp(1.0, -a->exponent));
    return TESS_OK;
}

__global__ static void __launch_bounds__(TESS_BLOCK_THREADS)
    code_residual_kernel(const tess_code_residual_args a)
{
    for (int64_t i = blockIdx.x; i < a.vector_numel; i += gridDim.x) {
        const float *x = a.x + (a.parent != nullptr ? (int64_t)a.parent[i] : i) * a.dim;
        const bool has_code = a.row[i] < a.code_numel;
        for (int64_t j = threadIdx.x; j < a.dim; j += blockDim.x)
            a.dst[i * a.dim + j] = has_code ? x[j] - a.code[a.row[i] * a.dim + j] : x[j];
    }
}

extern "C" tess_status tess_cuda_code_residual(const tess_code_residual_args *a, tess_stream *s)
{
    TESS_TRY(tess_code_residual_check(a));
    const tess_code_residual_args args = *a;
    if (a->vector_numel > 0)
        TESS_LAUNCH(code_residual_kernel, tess_grid(a->vector_numel, 1), row_threads(a->dim), 0, s,
                    args);
    return TESS_OK;
}

__global__ static void __launch_bounds__(TESS_BLOCK_THREADS)
    code_row_kernel(const tess_code_row_args a)
{
    const int64_t stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < a.vector_numel;
         i += stride)
        a.row[i] = tess_key_row(a.key[i]);
}

extern "C" tess_status tess_cuda_code_row(const tess_code_row_args *a, tess_stream *s)
{
    TESS_TRY(tess_code_row_check(a));
    const tess_code_row_args args = *a;
    if (a->vector_numel > 0)
        TESS_LAUNCH(code_row_kernel, tess_grid(a->vector_numel, TESS_BLOCK_THREADS),
                    TESS_BLOCK_THREADS, 0, s, args);
    return TESS_OK;
}
