/*
 * [Note: pairs in lanes] Eight threads share a head; thread j has the pairs of elements 16 k + 2 j
 * and 16 k + 2 j + 1, which are two of the 16 lanes of a sum over a row. So a pair is turned inside
 * one thread, its two lanes are added ascending, and only the last three steps of the tree are
 * shuffles. A head of up to 128 elements stays in registers between its sum and its result.
 */
#include "kernels/cuda/samples_priv.cuh"
#include "kernels/rotate.h"

enum { HEAD_THREADS = TESS_ROW_LANES / 2, HEADS_PER_BLOCK = TESS_ROW_THREADS / HEAD_THREADS };
enum { SHORT_DIM = 128, SHORT_PAIRS = SHORT_DIM / TESS_ROW_LANES };
enum { LONG_PAIRS = TESS_ROTATE_DIM_MAX / TESS_ROW_LANES };
enum { COLUMNS = TESS_ROTATE_DIM_MAX / TESS_ROW_THREADS }; /* of d_w, a thread */

/* A head: where it begins in its operands, and the row of the tables. */
struct head_place {
    int64_t x, y, angle;
};

__device__ static inline head_place head_place_of(const tess_sample_shape &shape,
                                                  int64_t head_numel, int64_t unit,
                                                  const tess_sample_rows &x,
                                                  const tess_sample_rows &y)
{
    const int64_t row = unit / head_numel, column = (unit - row * head_numel) * shape.dim;
    const tess_sample_place place = tess_sample_place_of(shape, row);
    const head_place head = {tess_sample_at(x, place) + column, tess_sample_at(y, place) + column,
                             place.t * (shape.dim / 2)};
    return head;
}

/* The tree over the lanes of a head, in all its threads; every thread of the warp calls it. */
__device__ static inline float head_sum(const float lane[2])
{
    float sum[2] = {lane[0], lane[1]};
#pragma unroll
    for (int step = HEAD_THREADS / 2; step > 0; step /= 2)
#pragma unroll
        for (int e = 0; e < 2; e++)
            sum[e] = sum[e] + __shfl_down_sync(0xffffffffu, sum[e], (unsigned)step, HEAD_THREADS);
    return __shfl_sync(0xffffffffu, sum[0] + sum[1], 0, HEAD_THREADS);
}

__device__ static inline float head_inv(float square_sum, int64_t dim, float eps)
{
    return 1.0f / sqrtf(square_sum / (float)dim + eps);
}

/* First element of pair k of this thread. */
__device__ static inline int64_t pair_at(int k)
{
    return (int64_t)k * TESS_ROW_LANES + 2 * ((int64_t)threadIdx.x % HEAD_THREADS);
}

/* Elements of this thread, and their squares added to its lanes. */
template <bool IS_BF16, bool IS_WHOLE, int PAIRS>
__device__ static inline float head_load(const void *data, int64_t at, int64_t dim, bool is_head,
                                         float x[PAIRS][2])
{
    float lane[2] = {0.0f, 0.0f};
#pragma unroll
    for (int k = 0; k < PAIRS; k++) {
        x[k][0] = x[k][1] = 0.0f;
        if (is_head && pair_at(k) < dim)
            tess_load<IS_BF16, IS_WHOLE, 2>(data, at + pair_at(k), 2, x[k]);
    }
#pragma unroll
    for (int k = 0; k < PAIRS; k++)
#pragma unroll
        for (int e = 0; e < 2; e++)
            lane[e] = lane[e] + x[k][e] * x[k][e];
    return head_sum(lane);
}

template <bool IS_BF16, bool IS_W_BF16, bool IS_WHOLE, int PAIRS>
__global__ static void __launch_bounds__(TESS_ROW_THREADS) rotate_kernel(const tess_rotate_args a)
{
    const int64_t dim = a.shape.dim, stride = (int64_t)gridDim.x * HEADS_PER_BLOCK;
    const int64_t unit_numel = a.shape.sample_numel * a.shape.row_numel * a.head_numel;
    /* All heads of a warp take part in its shuffles, also those past the end. */
    for (int64_t base = (int64_t)blockIdx.x * HEADS_PER_BLOCK; base < unit_numel; base += stride) {
        const int64_t unit = base + threadIdx.x / HEAD_THREADS;
        const bool is_head = unit < unit_numel;
        const head_place head = head_place_of(a.shape, a.head_numel, is_head ? unit : 0, a.x, a.y);
        float x[PAIRS][2];
        const float square_sum =
            head_load<IS_BF16, IS_WHOLE, PAIRS>(a.x.view.data, head.x, dim, is_head, x);
        const float inv = head_inv(square_sum, dim, a.eps);
#pragma unroll
        for (int k = 0; k < PAIRS; k++) {
            const int64_t i = pair_at(k);
            float w[2];
            if (!is_head || i >= dim)
                break;
            tess_load<IS_W_BF16, IS_WHOLE, 2>(a.w.data, i, 2, w);
            const float c = a.cos_table[head.angle + i / 2], s = a.sin_table[head.angle + i / 2];
            const float n0 = x[k][0] * inv * w[0], n1 = x[k][1] * inv * w[1];
            const float y[2] = {n0 * c + n1 * -s, n1 * c + n0 * s};
            tess_store<IS_BF16, IS_WHOLE, 2>(a.y.view.data, head.y + i, 2, y);
        }
    }
}

/* A pair of d_y rotated back. */
__device__ static inline void rotate_back(const float d[2], float c, float s, float back[2])
{
    back[0] = d[0] * c - d[1] * -s;
    back[1] = d[1] * c - d[0] * s;
}

template <bool IS_BF16, bool IS_W_BF16, bool IS_WHOLE, int PAIRS>
__global__ static void __launch_bounds__(TESS_ROW_THREADS)
    rotate_backward_kernel(const tess_rotate_backward_args a)
{
    const int64_t dim = a.shape.dim, stride = (int64_t)gridDim.x * HEADS_PER_BLOCK;
    const int64_t unit_numel = a.shape.sample_numel * a.shape.row_numel * a.head_numel;
    for (int64_t base = (int64_t)blockIdx.x * HEADS_PER_BLOCK; base < unit_numel; base += stride) {
        const int64_t unit = base + threadIdx.x / HEAD_THREADS;
        const bool is_head = unit < unit_numel;
        const int64_t known = is_head ? unit : 0;
        const head_place head = head_place_of(a.shape, a.head_numel, known, a.x, a.d_y);
        const int64_t d_x_at = head_place_of(a.shape, a.head_numel, known, a.x, a.d_x).y;
        float x[PAIRS][2], g[PAIRS][2], lane[2] = {0.0f, 0.0f};
        const float square_sum =
            head_load<IS_BF16, IS_WHOLE, PAIRS>(a.x.view.data, head.x, dim, is_head, x);
        const float inv = head_inv(square_sum, dim, a.eps);
#pragma unroll
        for (int k = 0; k < PAIRS; k++) {
            const int64_t i = pair_at(k);
            float d[2], w[2];
            if (!is_head || i >= dim)
                break;
            tess_load<IS_BF16, IS_WHOLE, 2>(a.d_y.view.data, head.y + i, 2, d);
            tess_load<IS_W_BF16, IS_WHOLE, 2>(a.w.data, i, 2, w);
            rotate_back(d, a.cos_table[head.angle + i / 2], a.sin_table[head.angle + i / 2], g[k]);
#pragma unroll
            for (int e = 0; e < 2; e++) {
                g[k][e] = g[k][e] * w[e];
                x[k][e] = x[k][e] * inv;
                lane[e] = lane[e] + g[k][e] * x[k][e];
            }
        }
        const float mean = head_sum(lane) / (float)dim;
#pragma unroll
        for (int k = 0; k < PAIRS; k++) {
            if (!is_head || pair_at(k) >= dim)
                break;
#pragma unroll
            for (int e = 0; e < 2; e++)
                g[k][e] = (g[k][e] - x[k][e] * mean) * inv;
            tess_store<IS_BF16, IS_WHOLE, 2>(a.d_x.view.data, d_x_at + pair_at(k), 2, g[k]);
        }
    }
}

/* d_w of one chunk of rows. A block computes the norms of 32 heads at a time, then each thread adds
 * its columns of them, rows and heads ascending. */
template <bool IS_BF16>
__global__ static void __launch_bounds__(TESS_ROW_THREADS)
    rotate_backward_w_kernel(const tess_rotate_backward_args a)
{
    TESS_SHARED(float, inv, HEADS_PER_BLOCK);
    const int64_t dim = a.shape.dim;
    int64_t lo = 0, hi = 0;
    tess_row_chunk(a.shape.sample_numel * a.shape.row_numel, (int)blockIdx.x, &lo, &hi);
    float sum[COLUMNS] = {};
    for (int64_t base = lo * a.head_numel; base < hi * a.head_numel; base += HEADS_PER_BLOCK) {
        const int64_t left = TESS_MIN(hi * a.head_numel - base, (int64_t)HEADS_PER_BLOCK);
        const int own = (int)threadIdx.x / HEAD_THREADS;
        const bool is_head = own < left;
        const int64_t at =
            head_place_of(a.shape, a.head_numel, base + (is_head ? own : 0), a.x, a.d_y).x;
        float x[LONG_PAIRS][2];
        const float square_sum =
            head_load<IS_BF16, false, LONG_PAIRS>(a.x.view.data, at, dim, is_head, x);
        if (threadIdx.x % HEAD_THREADS == 0)
            inv[own] = head_inv(square_sum, dim, a.eps);
        __syncthreads();
        for (int64_t h = 0; h < left; h++) {
            const head_place head = head_place_of(a.shape, a.head_numel, base + h, a.x, a.d_y);
#pragma unroll
            for (int c = 0; c < COLUMNS; c++) {
                const int64_t i = (int64_t)threadIdx.x + c * TESS_ROW_THREADS,
                              first = i & ~INT64_C(1);
                float d[2], back[2];
                if (i >= dim)
                    break;
                tess_load<IS_BF16, false, 2>(a.d_y.view.data, head.y + first, 2, d);
                rotate_back(d, a.cos_table[head.angle + i / 2], a.sin_table[head.angle + i / 2],
                            back);
                sum[c] =
                    sum[c] + back[i & 1] * (tess_get<IS_BF16>(a.x.view.data, head.x + i) * inv[h]);
            }
        }
        __syncthreads(); /* the norms are used up */
    }
#pragma unroll
    for (int c = 0; c < COLUMNS; c++)
        if ((int64_t)threadIdx.x + c * TESS_ROW_THREADS < dim)
            a.work[blockIdx.x * dim + threadIdx.x + c * TESS_ROW_THREADS] = sum[c];
}

/* ---- launches ---- */

/* Whether pairs of w start at whole words too. */
static bool is_w_whole(tess_view w)
{
    return (uintptr_t)w.data % (2 * tess_dtype_block_nbytes(w.dt)) == 0;
}

template <bool IS_BF16, bool IS_W_BF16, bool IS_WHOLE>
static tess_status rotate_launch(const tess_rotate_args *a, tess_stream *s)
{
    const tess_rotate_args args = *a;
    const unsigned grid =
        tess_grid(tess_sample_row_numel(&a->shape) * a->head_numel, HEADS_PER_BLOCK);
    if (a->shape.dim <= SHORT_DIM)
        TESS_LAUNCH((rotate_kernel<IS_BF16, IS_W_BF16, IS_WHOLE, SHORT_PAIRS>), grid,
                    TESS_ROW_THREADS, 0, s, args);
    else
        TESS_LAUNCH((rotate_kernel<IS_BF16, IS_W_BF16, IS_WHOLE, LONG_PAIRS>), grid,
                    TESS_ROW_THREADS, 0, s, args);
    return TESS_OK;
}

template <bool IS_BF16, bool IS_WHOLE>
static tess_status rotate_run(const tess_rotate_args *a, tess_stream *s)
{
    return a->w.dt == TESS_BF16 ? rotate_launch<IS_BF16, true, IS_WHOLE>(a, s)
                                : rotate_launch<IS_BF16, false, IS_WHOLE>(a, s);
}

template <bool IS_BF16, bool IS_W_BF16, bool IS_WHOLE>
static tess_status rotate_backward_launch(const tess_rotate_backward_args *a, tess_stream *s)
{
    const tess_rotate_backward_args args = *a;
    const unsigned grid =
        tess_grid(tess_sample_row_numel(&a->shape) * a->head_numel, HEADS_PER_BLOCK);
    if (a->shape.dim <= SHORT_DIM)
        TESS_LAUNCH((rotate_backward_kernel<IS_BF16, IS_W_BF16, IS_WHOLE, SHORT_PAIRS>), grid,
                    TESS_ROW_THREADS, 0, s, args);
    else
        TESS_LAUNCH((rotate_backward_kernel<IS_BF16, IS_W_BF16, IS_WHOLE, LONG_PAIRS>), grid,
                    TESS_ROW_THREADS, 0, s, args);
    return TESS_OK;
}

template <bool IS_BF16, bool IS_WHOLE>
static tess_status rotate_backward_run(const tess_rotate_backward_args *a, tess_stream *s)
{
    return a->w.dt == TESS_BF16 ? rotate_backward_launch<IS_BF16, true, IS_WHOLE>(a, s)
                                : rotate_backward_launch<IS_BF16, false, IS_WHOLE>(a, s);
}

extern "C" tess_status tess_cuda_rotate(const tess_rotate_args *a, tess_stream *s)
{
    TESS_TRY(tess_rotate_check(a));
    if (tess_sample_row_numel(&a->shape) == 0)
        return TESS_OK;
    const bool is_whole =
        tess_samples_are_whole(&a->x, 2) && tess_samples_are_whole(&a->y, 2) && is_w_whole(a->w);
    if (a->x.view.dt == TESS_BF16)
        return is_whole ? rotate_run<true, true>(a, s) : rotate_run<true, false>(a, s);
    return is_whole ? rotate_run<false, true>(a, s) : rotate_run<false, false>(a, s);
}

static tess_status backward_w(const tess_rotate_backward_args *a, tess_stream *s)
{
    const tess_rotate_backward_args args = *a;
    if (a->x.view.dt == TESS_BF16)
        TESS_LAUNCH(rotate_backward_w_kernel<true>, TESS_ROW_CHUNK_NUMEL, TESS_ROW_THREADS, 0, s,
                    args);
    else
        TESS_LAUNCH(rotate_backward_w_kernel<false>, TESS_ROW_CHUNK_NUMEL, TESS_ROW_THREADS, 0, s,
                    args);
    return tess_cuda_row_chunks_add(a->work, a->shape.dim, a->d_w, s);
}

extern "C" tess_status tess_cuda_rotate_backward(const tess_rotate_backward_args *a, tess_stream *s)
{
    TESS_TRY(tess_rotate_backward_check(a));
    if (a->d_w != nullptr)
        TESS_TRY(backward_w(a, s));
    if (tess_sample_row_numel(&a->shape) == 0)
        return TESS_OK;
    const bool is_whole = tess_samples_are_whole(&a->x, 2) && tess_samples_are_whole(&a->d_y, 2) &&
                          tess_samples_are_whole(&a->d_x, 2) && is_w_whole(a->w);
    if (a->x.view.dt == TESS_BF16)
        return is_whole ? rotate_backward_run<true, true>(a, s)
                        : rotate_backward_run<true, false>(a, s);
    return is_whole ? rotate_backward_run<false, true>(a, s)
                    : rotate_backward_run<false, false>(a, s);
}
