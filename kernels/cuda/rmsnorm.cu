#include "kernels/cuda/rows_priv.cuh"

/* Rows up to here are summed by 16 threads each, straight from memory. */
enum { SHORT_ROW_NUMEL = 256, ROWS_PER_BLOCK = TESS_ROW_THREADS / TESS_ROW_LANES };

/* What is normalized: x, or the sum with the residual once that is stored. */
__device__ static inline const void *normal_source(const tess_rmsnorm_args &a)
{
    return a.residual.numel > 0 ? a.sum.data : a.x.data;
}

/* Elements of the row to normalize; makes and stores the sum where there is a residual. */
template <bool IS_BF16, bool IS_WHOLE, int N>
__device__ static inline void source_chunk(const tess_rmsnorm_args &a, int64_t i, int n, float x[N])
{
    tess_load<IS_BF16, IS_WHOLE, N>(a.x.data, i, n, x);
    if (a.residual.numel == 0)
        return;
    float residual[N];
    tess_load<IS_BF16, IS_WHOLE, N>(a.residual.data, i, n, residual);
#pragma unroll
    for (int k = 0; k < N; k++)
        x[k] = x[k] + residual[k];
    tess_round_all<IS_BF16, N>(x);
    tess_store<IS_BF16, IS_WHOLE, N>(a.sum.data, i, n, x);
}

template <bool IS_BF16, bool IS_W_BF16, bool IS_WHOLE, int N>
__device__ static inline void forward_chunk(const tess_rmsnorm_args &a, int64_t row, int64_t i,
                                            int n, float inv)
{
    float x[N], w[N];
    const int64_t y_stride = a.y_stride != 0 ? a.y_stride : a.dim;
    tess_load<IS_BF16, IS_WHOLE, N>(normal_source(a), row * a.dim + i, n, x);
    tess_load<IS_W_BF16, IS_WHOLE, N>(a.w.data, i, n, w);
#pragma unroll
    for (int k = 0; k < N; k++)
        x[k] = x[k] * inv;
    tess_round_all<IS_BF16, N>(x);
#pragma unroll
    for (int k = 0; k < N; k++)
        x[k] = x[k] * w[k];
    tess_store<IS_BF16, IS_WHOLE, N>(a.y.data, row * y_stride + i, n, x);
}

__device__ static inline float inverse_rms(float sum, int64_t dim, float eps)
{
    return 1.0f / sqrtf(sum / (float)dim + eps);
}

template <bool IS_BF16, bool IS_W_BF16>
__global__ static void __launch_bounds__(TESS_ROW_THREADS)
    forward_short_kernel(const tess_rmsnorm_args a)
{
    const int lane = threadIdx.x % TESS_ROW_LANES;
    const int64_t stride = (int64_t)gridDim.x * ROWS_PER_BLOCK;
    /* Both rows of a warp take part in its shuffles, also when one lies past the end. */
    for (int64_t base = (int64_t)blockIdx.x * ROWS_PER_BLOCK; base < a.row_numel; base += stride) {
        const int64_t row = base + threadIdx.x / TESS_ROW_LANES;
        const bool is_row = row < a.row_numel;
        float sum = 0.0f;
        for (int64_t i = lane; is_row && i < a.dim; i += TESS_ROW_LANES) {
            float v[2];
            source_chunk<IS_BF16, false, 2>(a, row * a.dim + i, 1, v);
            sum = sum + v[0] * v[0];
        }
        sum = tess_lanes_sum(sum);
        sum = __shfl_sync(0xffffffffu, sum, 0, TESS_ROW_LANES);
        if (!is_row)
            continue;
        const float inv = inverse_rms(sum, a.dim, a.eps);
        if (lane == 0 && a.inv_rms != nullptr)
            a.inv_rms[row] = inv;
        for (int64_t i = lane; i < a.dim; i += TESS_ROW_LANES)
            forward_chunk<IS_BF16, IS_W_BF16, false, 2>(a, row, i, 1, inv);
    }
}

template <bool IS_BF16> struct square_term {
    enum { NUMEL = tess_chunk<IS_BF16>::NUMEL, SUMS = 1 };
    const tess_rmsnorm_args &a;
    int64_t row;
    template <bool IS_WHOLE>
    __device__ inline void chunk(int64_t i, int n, float v[SUMS][NUMEL]) const
    {
        source_chunk<IS_BF16, IS_WHOLE, NUMEL>(a, row * a.dim + i, n, v[0]);
#pragma unroll
        for (int k = 0; k < NUMEL; k++)
            v[0][k] = v[0][k] * v[0][k];
    }
};

template <bool IS_BF16, bool IS_W_BF16, bool IS_WHOLE>
__global__ static void __launch_bounds__(TESS_ROW_THREADS) forward_kernel(const tess_rmsnorm_args a)
{
    TESS_SHARED(float4, tiles, tess_row_tiles<1>::NUMEL4);
    TESS_SHARED(float, result, 1);
    constexpr int N = tess_chunk<IS_BF16>::NUMEL;
    for (int64_t row = blockIdx.x; row < a.row_numel; row += gridDim.x) {
        const square_term<IS_BF16> term = {a, row};
        tess_row_sums<IS_WHOLE>(term, a.dim, tiles, result);
        const float inv = inverse_rms(*result, a.dim, a.eps);
        if (threadIdx.x == 0 && a.inv_rms != nullptr)
            a.inv_rms[row] = inv;
        for (int64_t i = (int64_t)threadIdx.x * N; i < a.dim; i += (int64_t)blockDim.x * N)
            forward_chunk<IS_BF16, IS_W_BF16, IS_WHOLE, N>(
                a, row, i, (int)TESS_MIN(a.dim - i, (int64_t)N), inv);
    }
}

template <bool IS_BF16, bool IS_W_BF16>
static tess_status forward_launch(const tess_rmsnorm_args *a, tess_stream *s)
{
    const tess_rmsnorm_args args = *a;
    constexpr int N = tess_chunk<IS_BF16>::NUMEL;
    const bool has_residual = a->residual.numel > 0;
    const bool is_whole =
        tess_is_aligned(a->x.data, a->w.data, a->y.data, has_residual ? a->residual.data : nullptr,
                        has_residual ? a->sum.data : nullptr) &&
        a->dim % N == 0 && a->y_stride % N == 0;
    if (a->dim <= SHORT_ROW_NUMEL)
        TESS_LAUNCH((forward_short_kernel<IS_BF16, IS_W_BF16>),
                    tess_grid(a->row_numel, ROWS_PER_BLOCK), TESS_ROW_THREADS, 0, s, args);
    else if (is_whole)
        TESS_LAUNCH((forward_kernel<IS_BF16, IS_W_BF16, true>), tess_grid(a->row_numel, 1),
                    TESS_ROW_THREADS, 0, s, args);
    else
        TESS_LAUNCH((forward_kernel<IS_BF16, IS_W_BF16, false>), tess_grid(a->row_numel, 1),
                    TESS_ROW_THREADS, 0, s, args);
    return TESS_OK;
}

extern "C" tess_status tess_cuda_rmsnorm_forward(const tess_rmsnorm_args *a, tess_stream *s)
{
    TESS_TRY(tess_rmsnorm_check(a));
    if (a->row_numel == 0)
        return TESS_OK;
    const bool is_w_bf16 = a->w.dt == TESS_BF16;
    if (a->x.dt == TESS_BF16)
        return is_w_bf16 ? forward_launch<true, true>(a, s) : forward_launch<true, false>(a, s);
    return is_w_bf16 ? forward_launch<false, true>(a, s) : forward_launch<false, false>(a, s);
}

/* d_y * w * n, n = x * inv */
template <bool IS_BF16, bool IS_W_BF16> struct dot_term {
    enum { NUMEL = tess_chunk<IS_BF16>::NUMEL, SUMS = 1 };
    const tess_rmsnorm_backward_args &a;
    int64_t row;
    float inv;
    template <bool IS_WHOLE>
    __device__ inline void chunk(int64_t i, int n, float v[SUMS][NUMEL]) const
    {
        float x[NUMEL], w[NUMEL];
        tess_load<IS_BF16, IS_WHOLE, NUMEL>(a.d_y.data, row * a.dim + i, n, v[0]);
        tess_load<IS_BF16, IS_WHOLE, NUMEL>(a.x.data, row * a.dim + i, n, x);
        tess_load<IS_W_BF16, IS_WHOLE, NUMEL>(a.w.data, i, n, w);
#pragma unroll
        for (int k = 0; k < NUMEL; k++)
            v[0][k] = v[0][k] * w[k] * (x[k] * inv);
    }
};

template <bool IS_BF16, bool IS_W_BF16, bool IS_WHOLE, int N>
__device__ static inline void backward_chunk(const tess_rmsnorm_backward_args &a, int64_t first,
                                             int64_t i, int n, float inv, float mean)
{
    float g[N], x[N], w[N], residual[N];
    const bool has_residual = a.residual.numel > 0;
    tess_load<IS_BF16, IS_WHOLE, N>(a.d_y.data, first + i, n, g);
    tess_load<IS_BF16, IS_WHOLE, N>(a.x.data, first + i, n, x);
    tess_load<IS_W_BF16, IS_WHOLE, N>(a.w.data, i, n, w);
    if (has_residual)
        tess_load<IS_BF16, IS_WHOLE, N>(a.residual.data, first + i, n, residual);
#pragma unroll
    for (int k = 0; k < N; k++) {
        float d = (g[k] * w[k] - x[k] * inv * mean) * inv;
        if (has_residual)
            d = d + residual[k];
        g[k] = d;
    }
    tess_store<IS_BF16, IS_WHOLE, N>(a.d_x.data, first + i, n, g);
}

template <bool IS_BF16, bool IS_W_BF16>
__global__ static void __launch_bounds__(TESS_ROW_THREADS)
    backward_short_kernel(const tess_rmsnorm_backward_args a)
{
    const int lane = threadIdx.x % TESS_ROW_LANES;
    const int64_t stride = (int64_t)gridDim.x * ROWS_PER_BLOCK;
    for (int64_t base = (int64_t)blockIdx.x * ROWS_PER_BLOCK; base < a.row_numel; base += stride) {
        const int64_t row = base + threadIdx.x / TESS_ROW_LANES;
        const bool is_row = row < a.row_numel;
        const float inv = is_row ? a.inv_rms[row] : 0.0f;
        float sum = 0.0f;
        for (int64_t i = lane; is_row && i < a.dim; i += TESS_ROW_LANES) {
            const int64_t at = row * a.dim + i;
            sum = sum + tess_get<IS_BF16>(a.d_y.data, at) * tess_get<IS_W_BF16>(a.w.data, i) *
                            (tess_get<IS_BF16>(a.x.data, at) * inv);
        }
        sum = tess_lanes_sum(sum);
        sum = __shfl_sync(0xffffffffu, sum, 0, TESS_ROW_LANES);
        if (!is_row)
            continue;
        for (int64_t i = lane; i < a.dim; i += TESS_ROW_LANES)
            backward_chunk<IS_BF16, IS_W_BF16, false, 2>(a, row * a.dim, i, 1, inv,
                                                         sum / (float)a.dim);
    }
}

template <bool IS_BF16, bool IS_W_BF16, bool IS_WHOLE>
__global__ static void __launch_bounds__(TESS_ROW_THREADS)
    backward_kernel(const tess_rmsnorm_backward_args a)
{
    TESS_SHARED(float4, tiles, tess_row_tiles<1>::NUMEL4);
    TESS_SHARED(float, result, 1);
    constexpr int N = tess_chunk<IS_BF16>::NUMEL;
    for (int64_t row = blockIdx.x; row < a.row_numel; row += gridDim.x) {
        const float inv = a.inv_rms[row];
        const dot_term<IS_BF16, IS_W_BF16> term = {a, row, inv};
        tess_row_sums<IS_WHOLE>(term, a.dim, tiles, result);
        const float mean = *result / (float)a.dim;
        for (int64_t i = (int64_t)threadIdx.x * N; i < a.dim; i += (int64_t)blockDim.x * N)
            backward_chunk<IS_BF16, IS_W_BF16, IS_WHOLE, N>(
                a, row * a.dim, i, (int)TESS_MIN(a.dim - i, (int64_t)N), inv, mean);
    }
}

template <bool IS_BF16> struct column_w {
    const tess_rmsnorm_backward_args &a;
    int64_t i;
    float sum;
    template <int N> __device__ inline void add(int64_t row)
    {
        float x[N], d[N], inv[N];
#pragma unroll
        for (int k = 0; k < N; k++) {
            x[k] = tess_get<IS_BF16>(a.x.data, (row + k) * a.dim + i);
            d[k] = tess_get<IS_BF16>(a.d_y.data, (row + k) * a.dim + i);
            inv[k] = a.inv_rms[row + k];
        }
#pragma unroll
        for (int k = 0; k < N; k++)
            sum = sum + d[k] * tess_round<IS_BF16>(x[k] * inv[k]);
    }
};

/* d_w of one chunk of rows: a thread per column, rows ascending. */
template <bool IS_BF16>
__global__ static void __launch_bounds__(TESS_ROW_THREADS, TESS_COLUMN_BLOCKS)
    backward_w_kernel(const tess_rmsnorm_backward_args a)
{
    int64_t lo = 0, hi = 0;
    tess_row_chunk(a.row_numel, (int)blockIdx.y, &lo, &hi);
    const int64_t stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < a.dim; i += stride) {
        column_w<IS_BF16> column = {a, i, 0.0f};
        tess_rows_add<TESS_ROW_PAIRS_AHEAD>(column, lo, hi);
        a.work[blockIdx.y * a.dim + i] = column.sum;
    }
}

__global__ static void __launch_bounds__(TESS_ROW_THREADS)
    chunks_add_kernel(const float *work, int64_t dim, float *out)
{
    const int64_t stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < dim; i += stride) {
        float sum = work[i];
#pragma unroll
        for (int chunk = 1; chunk < TESS_ROW_CHUNK_NUMEL; chunk++)
            sum = sum + work[chunk * dim + i];
        out[i] = out[i] + sum;
    }
}

tess_status tess_cuda_row_chunks_add(const float *work, int64_t dim, float *out, tess_stream *s)
{
    TESS_LAUNCH(chunks_add_kernel, tess_grid(dim, TESS_ROW_THREADS), TESS_ROW_THREADS, 0, s, work,
                dim, out);
    return TESS_OK;
}

template <bool IS_BF16, bool IS_W_BF16>
static tess_status backward_launch(const tess_rmsnorm_backward_args *a, tess_stream *s)
{
    const tess_rmsnorm_backward_args args = *a;
    const bool is_whole = tess_is_aligned(a->x.data, a->w.data, a->d_y.data, a->d_x.data,
                                          a->residual.numel > 0 ? a->residual.data : nullptr) &&
                          a->dim % tess_chunk<IS_BF16>::NUMEL == 0;
    if (a->dim <= SHORT_ROW_NUMEL)
        TESS_LAUNCH((backward_short_kernel<IS_BF16, IS_W_BF16>),
                    tess_grid(a->row_numel, ROWS_PER_BLOCK), TESS_ROW_THREADS, 0, s, args);
    else if (is_whole)
        TESS_LAUNCH((backward_kernel<IS_BF16, IS_W_BF16, true>), tess_grid(a->row_numel, 1),
                    TESS_ROW_THREADS, 0, s, args);
    else
        TESS_LAUNCH((backward_kernel<IS_BF16, IS_W_BF16, false>), tess_grid(a->row_numel, 1),
                    TESS_ROW_THREADS, 0, s, args);
    return TESS_OK;
}

/* d_w first: d_x may take the place of d_y. */
static tess_status backward_w(const tess_rmsnorm_backward_args *a, tess_stream *s)
{
    const tess_rmsnorm_backward_args args = *a;
    const dim3 grid(tess_grid(a->dim, TESS_ROW_THREADS), TESS_ROW_CHUNK_NUMEL);
    if (a->x.dt == TESS_BF16)
        TESS_LAUNCH(backward_w_kernel<true>, grid, TESS_ROW_THREADS, 0, s, args);
    else
        TESS_LAUNCH(backward_w_kernel<false>, grid, TESS_ROW_THREADS, 0, s, args);
    return tess_cuda_row_chunks_add(a->work, a->dim, a->d_w, s);
}

extern "C" tess_status tess_cuda_rmsnorm_backward(const tess_rmsnorm_backward_args *a,
                                                  tess_stream *s)
{
    TESS_TRY(tess_rmsnorm_backward_check(a));
    if (a->d_w != nullptr)
        TESS_TRY(backward_w(a, s));
    if (a->row_numel == 0)
        return TESS_OK;
    const bool is_w_bf16 = a->w.dt == TESS_BF16;
    if (a->x.dt == TESS_BF16)
        return is_w_bf16 ? backward_launch<true, true>(a, s) : backward_launch<true, false>(a, s);
    return is_w_bf16 ? backward_launch<false, true>(a, s) : backward_launch<false, false>(a, s);
}
