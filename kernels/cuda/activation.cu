#include "kernels/cuda/sigmoid_priv.cuh"

#include "core/arith.h"

/* x times the sigmoid of its argument, as kernels/cpu/rows_activation_body_priv.h. */
#define GELU_ROOT 0.7978845608028654f /* sqrt(2 / pi) */
#define GELU_CUBE 0.044715f

template <bool IS_SILU> __device__ static inline float sigmoid_argument(float x)
{
    return IS_SILU ? x : (x + x * x * x * GELU_CUBE) * (2.0f * GELU_ROOT);
}

template <bool IS_SILU> __device__ static inline float argument_slope(float x)
{
    return IS_SILU ? 1.0f : (x * x * (3.0f * GELU_CUBE) + 1.0f) * (2.0f * GELU_ROOT);
}

/* y = f(x), or with d_y: y = d_y f'(x). */
struct activation_job {
    int64_t row_numel, dim;
    const void *x, *d_y; /* d_y NULL: forward */
    int64_t d_y_stride;
    void *y;
    int64_t y_stride;
};

/* f(x), or d f'(x), in place of x; u: arguments of the sigmoid. */
template <bool IS_SILU, bool IS_TAME, int N>
__device__ static inline void activate(const float u[N], const float d[N], bool has_d, float x[N])
{
#pragma unroll
    for (int k = 0; k < N; k++) {
        const float s = tess_reciprocal<IS_TAME>(tess_sigmoid_divisor<IS_TAME>(u[k]));
        if (has_d)
            x[k] = d[k] * (s + x[k] * s * (1.0f - s) * argument_slope<IS_SILU>(x[k]));
        else
            x[k] = x[k] * s;
    }
}

template <bool IS_BF16, bool IS_SILU, bool IS_WHOLE, int N>
__device__ static inline void activation_chunk(const activation_job &a, int64_t row, int64_t i,
                                               int n)
{
    float x[N], u[N], d[N] = {};
    tess_load<IS_BF16, IS_WHOLE, N>(a.x, row * a.dim + i, n, x);
    if (a.d_y != nullptr)
        tess_load<IS_BF16, IS_WHOLE, N>(a.d_y, row * a.d_y_stride + i, n, d);
#pragma unroll
    for (int k = 0; k < N; k++)
        u[k] = sigmoid_argument<IS_SILU>(x[k]);
    if (tess_are_tame<N>(u))
        activate<IS_SILU, true, N>(u, d, a.d_y != nullptr, x);
    else
        activate<IS_SILU, false, N>(u, d, a.d_y != nullptr, x);
    tess_store<IS_BF16, IS_WHOLE, N>(a.y, row * a.y_stride + i, n, x);
}

/* A block per row. */
template <bool IS_BF16, bool IS_SILU, bool IS_WHOLE>
__global__ static void __launch_bounds__(TESS_BLOCK_THREADS)
    activation_kernel(const activation_job a)
{
    constexpr int N = tess_chunk<IS_BF16>::NUMEL;
    for (int64_t row = blockIdx.x; row < a.row_numel; row += gridDim.x)
        for (int64_t i = (int64_t)threadIdx.x * N; i < a.dim; i += (int64_t)blockDim.x * N)
            activation_chunk<IS_BF16, IS_SILU, IS_WHOLE, N>(a, row, i,
                                                            (int)TESS_MIN(a.dim - i, (int64_t)N));
}

template <bool IS_BF16, bool IS_SILU>
static tess_status activation_launch(const activation_job &job, tess_stream *s)
{
    const bool is_whole =
        tess_is_aligned(job.x, job.d_y, job.y) &&
        (job.dim | job.d_y_stride | job.y_stride) % tess_chunk<IS_BF16>::NUMEL == 0;
    const unsigned grid = tess_grid(job.row_numel, 1);
    if (is_whole)
        TESS_LAUNCH((activation_kernel<IS_BF16, IS_SILU, true>), grid, TESS_BLOCK_THREADS, 0, s,
                    job);
    else
        TESS_LAUNCH((activation_kernel<IS_BF16, IS_SILU, false>), grid, TESS_BLOCK_THREADS, 0, s,
                    job);
    return TESS_OK;
}

static tess_status activation_run(const activation_job &job, tess_activation kind, tess_dtype dt,
                                  tess_stream *s)
{
    const bool is_silu = kind == TESS_ACTIVATION_SILU;
    if (job.row_numel == 0)
        return TESS_OK;
    if (dt == TESS_BF16)
        return is_silu ? activation_launch<true, true>(job, s)
                       : activation_launch<true, false>(job, s);
    return is_silu ? activation_launch<false, true>(job, s)
                   : activation_launch<false, false>(job, s);
}

extern "C" tess_status tess_cuda_activation(const tess_activation_args *a, tess_stream *s)
{
    TESS_TRY(tess_activation_check(a));
    const activation_job job = {a->row_numel,
                                a->dim,
                                a->x.data,
                                nullptr,
                                0,
                                a->y.data,
                                a->y_stride != 0 ? a->y_stride : a->dim};
    return activation_run(job, a->kind, a->x.dt, s);
}

extern "C" tess_status tess_cuda_activation_backward(const tess_activation_backward_args *a,
                                                     tess_stream *s)
{
    TESS_TRY(tess_activation_backward_check(a));
    const activation_job job = {a->row_numel,
                                a->dim,
                                a->x.data,
                                a->d_y.data,
                                a->d_y_stride != 0 ? a->d_y_stride : a->dim,
                                a->d_x.data,
                                a->d_x_stride != 0 ? a->d_x_stride : a->dim};
    return activation_run(job, a->kind, a->x.dt, s);
}

/* ---- squared error ---- */

enum { ERROR_ROWS = 32, ERROR_COLS = 32, ERROR_STEP = TESS_BLOCK_THREADS / ERROR_COLS };

/* 32 rows a block: all threads take differences of 32 columns and write gradients, then one thread
 * a row adds squares in ascending order. Columns of the tile lie in different banks. */
template <bool IS_BF16>
__global__ static void __launch_bounds__(TESS_BLOCK_THREADS)
    square_error_kernel(const tess_square_error_args a)
{
    TESS_SHARED(float, tile, ERROR_ROWS *(ERROR_COLS + 1));
    const float *y = static_cast<const float *>(a.y.data);
    const int thread = (int)threadIdx.x, col = thread % ERROR_COLS;
    for (int64_t first = (int64_t)blockIdx.x * ERROR_ROWS; first < a.row_numel;
         first += (int64_t)gridDim.x * ERROR_ROWS) {
        double sum = 0.0;
        for (int64_t base = 0; base < a.dim; base += ERROR_COLS) {
            for (int r = thread / ERROR_COLS; r < ERROR_ROWS; r += ERROR_STEP) {
                const int64_t row = first + r, at = row * a.dim + base + col;
                if (row >= a.row_numel || base + col >= a.dim)
                    continue;
                const float d = y[at] - a.target[at];
                const float gradient[2] = {d * (2.0f * a.grad_scale * a.weight[row])};
                tile[r * (ERROR_COLS + 1) + col] = d;
                if (a.d_y.numel > 0)
                    tess_store<IS_BF16, false, 2>(a.d_y.data, at, 1, gradient);
            }
            __syncthreads();
            const int64_t left = TESS_MIN(a.dim - base, (int64_t)ERROR_COLS);
            for (int c = 0; c < left && thread < ERROR_ROWS && first + thread < a.row_numel; c++) {
                const double d = (double)tile[thread * (ERROR_COLS + 1) + c];
                sum = sum + d * d;
            }
            __syncthreads(); /* the tile is used up */
        }
        if (thread < ERROR_ROWS && first + thread < a.row_numel)
            a.row_loss[first + thread] = (double)a.weight[first + thread] * sum;
    }
}

extern "C" tess_status tess_cuda_square_error(const tess_square_error_args *a, tess_stream *s)
{
    TESS_TRY(tess_square_error_check(a));
    const tess_square_error_args args = *a;
    if (a->row_numel == 0)
        return TESS_OK;
    const unsigned grid = tess_grid(a->row_numel, ERROR_ROWS);
    if (a->d_y.dt == TESS_BF16)
        TESS_LAUNCH(square_error_kernel<true>, grid, TESS_BLOCK_THREADS, 0, s, args);
    else
        TESS_LAUNCH(square_error_kernel<false>, grid, TESS_BLOCK_THREADS, 0, s, args);
    return TESS_OK;
}
