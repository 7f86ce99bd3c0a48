#include "kernels/cuda/rows_priv.cuh"

enum { THREADS = TESS_ROW_THREADS, ROWS = THREADS / TESS_ROW_LANES };

/* 16 threads per row. */
__global__ static void __launch_bounds__(THREADS)
    row_norm_kernel(const float *x, int64_t row_numel, int64_t dim, bool is_bf16, float *norm)
{
    const int lane = threadIdx.x % TESS_ROW_LANES;
    for (int64_t first = (int64_t)blockIdx.x * ROWS; first < row_numel;
         first += (int64_t)gridDim.x * ROWS) {
        const int64_t row = first + threadIdx.x / TESS_ROW_LANES;
        float sum = 0.0f;
        if (row < row_numel)
            for (int64_t i = lane; i < dim; i += TESS_ROW_LANES) {
                const float v = x[row * dim + i];
                sum = sum + v * v;
            }
        const float root = sqrtf(tess_lanes_sum(sum));
        if (lane == 0 && row < row_numel)
            norm[row] = is_bf16 ? tess_round<true>(root) : root;
    }
}

extern "C" tess_status tess_cuda_row_norm(const tess_row_norm_args *a, tess_stream *s)
{
    TESS_TRY(tess_row_norm_check(a));
    if (a->row_numel > 0)
        TESS_LAUNCH(row_norm_kernel, tess_grid(a->row_numel, ROWS), THREADS, 0, s, a->x,
                    a->row_numel, a->dim, a->dt == TESS_BF16, a->norm);
    return TESS_OK;
}

template <bool IS_BF16>
__device__ static inline float factor(const void *magnitude, const float *norm, int64_t i)
{
    return norm[i] > 0.0f ? tess_get<IS_BF16>(magnitude, i) / norm[i] : 0.0f;
}

template <bool IS_BF16> __device__ static inline void put(void *p, int64_t i, float x)
{
    const float v[2] = {x, 0.0f};
    tess_store<IS_BF16, false, 2>(p, i, 1, v);
}

struct forward_job {
    const void *z, *magnitude, *bias; /* bias NULL: none */
    const float *norm;
    int64_t row_numel, dim, stride;
    bool accumulate, is_bias_bf16;
    void *y;
};

/* A block per row, so that no thread divides by its length. */
template <bool IS_BF16, bool IS_Y_BF16>
__global__ static void __launch_bounds__(THREADS) forward_kernel(const forward_job j)
{
    for (int64_t row = blockIdx.x; row < j.row_numel; row += gridDim.x)
        for (int64_t i = threadIdx.x; i < j.dim; i += THREADS) {
            const int64_t at = row * j.stride + i;
            float v =
                factor<IS_BF16>(j.magnitude, j.norm, i) * tess_get<IS_BF16>(j.z, row * j.dim + i);
            if (j.bias != nullptr)
                v = v + (j.is_bias_bf16 ? tess_get<true>(j.bias, i) : tess_get<false>(j.bias, i));
            if (j.accumulate)
                v = tess_get<IS_Y_BF16>(j.y, at) + v;
            put<IS_Y_BF16>(j.y, at, v);
        }
}

extern "C" tess_status tess_cuda_dora_forward(const tess_dora_args *a, tess_stream *s)
{
    TESS_TRY(tess_dora_check(a));
    const forward_job job = {a->z.data,
                             a->magnitude.data,
                             a->bias.numel > 0 ? a->bias.data : nullptr,
                             a->norm,
                             a->row_numel,
                             a->dim,
                             a->y_stride > 0 ? a->y_stride : a->dim,
                             a->accumulate,
                             a->bias.dt == TESS_BF16,
                             a->y.data};
    if (a->row_numel == 0)
        return TESS_OK;
    const unsigned grid = tess_grid(a->row_numel, 1);
    if (a->z.dt != TESS_BF16)
        TESS_LAUNCH((forward_kernel<false, false>), grid, THREADS, 0, s, job);
    else if (a->y.dt == TESS_BF16)
        TESS_LAUNCH((forward_kernel<true, true>), grid, THREADS, 0, s, job);
    else
        TESS_LAUNCH((forward_kernel<true, false>), grid, THREADS, 0, s, job);
    return TESS_OK;
}

struct backward_job {
    const void *d_y, *z, *magnitude;
    const float *norm;
    int64_t row_numel, dim, y_stride, z_stride;
    void *d_z, *d_direct; /* d_direct NULL: not wanted */
    float *work;
};

/* A thread per column and chunk of rows, rows ascending. */
template <bool IS_BF16>
__global__ static void __launch_bounds__(THREADS) backward_kernel(const backward_job j)
{
    int64_t lo = 0, hi = 0;
    tess_row_chunk(j.row_numel, (int)blockIdx.y, &lo, &hi);
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < j.dim;
         i += (int64_t)gridDim.x * THREADS) {
        const float g = factor<IS_BF16>(j.magnitude, j.norm, i);
        float sum = 0.0f;
        for (int64_t row = lo; row < hi; row++) {
            const int64_t at = row * j.dim + i;
            const float d = tess_get<IS_BF16>(j.d_y, row * j.y_stride + i);
            sum = sum + d * tess_get<IS_BF16>(j.z, at);
            put<IS_BF16>(j.d_z, row * j.z_stride + i, g * d);
            if (j.d_direct != nullptr)
                put<IS_BF16>(j.d_direct, at, (g - 1.0f) * d);
        }
        j.work[blockIdx.y * j.dim + i] = sum;
    }
}

__global__ static void __launch_bounds__(THREADS)
    magnitude_kernel(const float *work, const float *norm, int64_t dim, float *out)
{
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < dim;
         i += (int64_t)gridDim.x * THREADS) {
        float sum = work[i];
        for (int chunk = 1; chunk < TESS_ROW_CHUNK_NUMEL; chunk++)
            sum = sum + work[chunk * dim + i];
        if (norm[i] > 0.0f)
            out[i] = out[i] + sum / norm[i];
    }
}

extern "C" tess_status tess_cuda_dora_backward(const tess_dora_backward_args *a, tess_stream *s)
{
    TESS_TRY(tess_dora_backward_check(a));
    const backward_job job = {a->d_y.data,
                              a->z.data,
                              a->magnitude.data,
                              a->norm,
                              a->row_numel,
                              a->dim,
                              a->d_y_stride > 0 ? a->d_y_stride : a->dim,
                              a->d_z_stride > 0 ? a->d_z_stride : a->dim,
                              a->d_z.data,
                              a->d_direct.numel > 0 ? a->d_direct.data : nullptr,
                              a->work};
    const dim3 grid(tess_grid(a->dim, THREADS), TESS_ROW_CHUNK_NUMEL);
    if (a->z.dt == TESS_BF16)
        TESS_LAUNCH(backward_kernel<true>, grid, THREADS, 0, s, job);
    else
        TESS_LAUNCH(backward_kernel<false>, grid, THREADS, 0, s, job);
    TESS_LAUNCH(magnitude_kernel, tess_grid(a->dim, THREADS), THREADS, 0, s, a->work, a->norm,
                a->dim, a->d_magnitude);
    return TESS_OK;
}
