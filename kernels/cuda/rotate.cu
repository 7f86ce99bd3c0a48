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

/* What a kernel may count on: nothing, pairs at multiples of their size, or also heads of exactly
 * PAIRS pairs a thread, so that no pair has to be asked for. */
enum head_kind { HEAD_ANY, HEAD_ALIGNED, HEAD_FULL };

/* Blocks of forward kernels that a multiprocessor takes at least: 64 registers hold full heads of
 * narrow elements, so that enough of them are under way. */
template <bool IS_NARROW, head_kind KIND>
constexpr int BLOCKS = KIND != HEAD_FULL ? 1
                       : IS_NARROW       ? 4
                                         : 1;

/* First element of pair k of this thread. */
__device__ static inline int64_t pair_at(int k)
{
    return (int64_t)k * TESS_ROW_LANES + 2 * ((int64_t)threadIdx.x % HEAD_THREADS);
}

template <head_kind KIND> __device__ static inline bool has_pair(int k, int64_t dim)
{
    return KIND == HEAD_FULL || pair_at(k) < dim;
}

/* Pairs of this thread from pair `first`; 0 past the head. */
template <bool IS_BF16, head_kind KIND, int PAIRS>
__device__ static inline void pairs_load(const void *data, int64_t at, int64_t dim, int first,
                                         float x[PAIRS][2])
{
#pragma unroll
    for (int k = 0; k < PAIRS; k++) {
        x[k][0] = x[k][1] = 0.0f;
        if (has_pair<KIND>(first + k, dim))
            tess_load<IS_BF16, KIND != HEAD_ANY, 2>(data, at + pair_at(first + k), 2, x[k]);
    }
}

/* What SHORT_PAIRS pairs of this thread, from pair `first`, are multiplied with. */
struct pair_factors {
    float w[SHORT_PAIRS][2], c[SHORT_PAIRS], s[SHORT_PAIRS];
};

template <bool IS_W_BF16, head_kind KIND, typename ARGS>
__device__ static inline pair_factors factors_load(const ARGS &a, int64_t angle, int first)
{
    pair_factors f = {};
#pragma unroll
    for (int k = 0; k < SHORT_PAIRS; k++) {
        const int64_t i = pair_at(first + k);
        if (!has_pair<KIND>(first + k, a.shape.dim))
            break;
        tess_load<IS_W_BF16, KIND != HEAD_ANY, 2>(a.w.data, i, 2, f.w[k]);
        f.c[k] = a.cos_table[angle + i / 2];
        f.s[k] = a.sin_table[angle + i / 2];
    }
    return f;
}

/* Elements of this thread, and the sum of their squares over the head. */
template <bool IS_BF16, head_kind KIND, int PAIRS>
__device__ static inline float head_load(const void *data, int64_t at, int64_t dim,
                                         float x[PAIRS][2])
{
    float lane[2] = {0.0f, 0.0f};
    pairs_load<IS_BF16, KIND, PAIRS>(data, at, dim, 0, x);
#pragma unroll
    for (int k = 0; k < PAIRS; k++)
#pragma unroll
        for (int e = 0; e < 2; e++)
            lane[e] = lane[e] + x[k][e] * x[k][e];
    return head_sum(lane);
}

template <bool IS_BF16, bool IS_W_BF16, head_kind KIND, int PAIRS>
__global__ static void __launch_bounds__(TESS_ROW_THREADS, BLOCKS<IS_BF16 && IS_W_BF16, KIND>)
    rotate_kernel(const tess_rotate_args a)
{
    const int64_t dim = a.shape.dim, stride = (int64_t)gridDim.x * HEADS_PER_BLOCK;
    const int64_t unit_numel = a.shape.sample_numel * a.shape.row_numel * a.head_numel;
    /* All heads of a warp take part in its shuffles, also those past the end. */
    for (int64_t base = (int64_t)blockIdx.x * HEADS_PER_BLOCK; base < unit_numel; base += stride) {
        const int64_t unit = base + threadIdx.x / HEAD_THREADS;
        const bool is_head = unit < unit_numel;
        const head_place head = head_place_of(a.shape, a.head_numel, is_head ? unit : 0, a.x, a.y);
        float x[PAIRS][2];
        const float square_sum = head_load<IS_BF16, KIND, PAIRS>(a.x.view.data, head.x, dim, x);
        const float inv = head_inv(square_sum, dim, a.eps);
#pragma unroll
        for (int first = 0; first < PAIRS; first += SHORT_PAIRS) {
            const pair_factors f = factors_load<IS_W_BF16, KIND>(a, head.angle, first);
#pragma unroll
            for (int k = 0; k < SHORT_PAIRS; k++) {
                const float n0 = x[first + k][0] * inv * f.w[k][0];
                const float n1 = x[first + k][1] * inv * f.w[k][1];
                const float y[2] = {n0 * f.c[k] + n1 * -f.s[k], n1 * f.c[k] + n0 * f.s[k]};
                if (is_head && has_pair<KIND>(first + k, dim))
                    tess_store<IS_BF16, KIND != HEAD_ANY, 2>(a.y.view.data,
                                                             head.y + pair_at(first + k), 2, y);
            }
        }
    }
}

/* A pair of d_y rotated back. */
__device__ static inline void rotate_back(const float d[2], float c, float s, float back[2])
{
    back[0] = d[0] * c - d[1] * -s;
    back[1] = d[1] * c - d[0] * s;
}

template <bool IS_BF16, bool IS_W_BF16, head_kind KIND, int PAIRS>
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
        if (PAIRS == SHORT_PAIRS) /* with x; of more pairs the registers do not hold both */
            pairs_load<IS_BF16, KIND, PAIRS>(a.d_y.view.data, head.y, dim, 0, g);
        const float square_sum = head_load<IS_BF16, KIND, PAIRS>(a.x.view.data, head.x, dim, x);
        const float inv = head_inv(square_sum, dim, a.eps);
#pragma unroll
        for (int first = 0; first < PAIRS; first += SHORT_PAIRS) {
            const pair_factors f = factors_load<IS_W_BF16, KIND>(a, head.angle, first);
            if (PAIRS > SHORT_PAIRS)
                pairs_load<IS_BF16, KIND, SHORT_PAIRS>(a.d_y.view.data, head.y, dim, first,
                                                       g + first);
#pragma unroll
            for (int k = 0; k < SHORT_PAIRS; k++) {
                const int p = first + k;
                float back[2];
                rotate_back(g[p], f.c[k], f.s[k], back);
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    g[p][e] = back[e] * f.w[k][e];
                    x[p][e] = x[p][e] * inv;
                    if (is_head && has_pair<KIND>(p, dim))
                        lane[e] = lane[e] + g[p][e] * x[p][e];
                }
            }
        }
        const float mean = head_sum(lane) / (float)dim;
#pragma unroll
        for (int k = 0; k < PAIRS; k++) {
            if (!is_head || !has_pair<KIND>(k, dim))
                break;
#pragma unroll
            for (int e = 0; e < 2; e++)
                g[k][e] = (g[k][e] - x[k][e] * mean) * inv;
            tess_store<IS_BF16, KIND != HEAD_ANY, 2>(a.d_x.view.data, d_x_at + pair_at(k), 2, g[k]);
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
            head_load<IS_BF16, HEAD_ANY, LONG_PAIRS>(a.x.view.data, at, dim, x);
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

template <bool IS_BF16, bool IS_W_BF16>
static tess_status rotate_launch(const tess_rotate_args *a, bool is_whole, tess_stream *s)
{
    const tess_rotate_args args = *a;
    const unsigned grid =
        tess_grid(tess_sample_row_numel(&a->shape) * a->head_numel, HEADS_PER_BLOCK);
    const bool is_short = a->shape.dim <= SHORT_DIM;
#define LAUNCH(KIND, PAIRS)                                                                        \
    TESS_LAUNCH((rotate_kernel<IS_BF16, IS_W_BF16, KIND, PAIRS>), grid, TESS_ROW_THREADS, 0, s,    \
                args)
    if (is_whole && a->shape.dim == SHORT_DIM)
        LAUNCH(HEAD_FULL, SHORT_PAIRS);
    else if (is_whole && is_short)
        LAUNCH(HEAD_ALIGNED, SHORT_PAIRS);
    else if (is_whole)
        LAUNCH(HEAD_ALIGNED, LONG_PAIRS);
    else if (is_short)
        LAUNCH(HEAD_ANY, SHORT_PAIRS);
    else
        LAUNCH(HEAD_ANY, LONG_PAIRS);
#undef LAUNCH
    return TESS_OK;
}

template <bool IS_BF16>
static tess_status rotate_run(const tess_rotate_args *a, bool is_whole, tess_stream *s)
{
    return a->w.dt == TESS_BF16 ? rotate_launch<IS_BF16, true>(a, is_whole, s)
                                : rotate_launch<IS_BF16, false>(a, is_whole, s);
}

template <bool IS_BF16, bool IS_W_BF16>
static tess_status rotate_backward_launch(const tess_rotate_backward_args *a, bool is_whole,
                                          tess_stream *s)
{
    const tess_rotate_backward_args args = *a;
    const unsigned grid =
        tess_grid(tess_sample_row_numel(&a->shape) * a->head_numel, HEADS_PER_BLOCK);
    const bool is_short = a->shape.dim <= SHORT_DIM;
#define LAUNCH(KIND, PAIRS)                                                                        \
    TESS_LAUNCH((rotate_backward_kernel<IS_BF16, IS_W_BF16, KIND, PAIRS>), grid, TESS_ROW_THREADS, \
                0, s, args)
    if (is_whole && a->shape.dim == SHORT_DIM)
        LAUNCH(HEAD_FULL, SHORT_PAIRS);
    else if (is_whole && is_short)
        LAUNCH(HEAD_ALIGNED, SHORT_PAIRS);
    else if (is_whole)
        LAUNCH(HEAD_ALIGNED, LONG_PAIRS);
    else if (is_short)
        LAUNCH(HEAD_ANY, SHORT_PAIRS);
    else
        LAUNCH(HEAD_ANY, LONG_PAIRS);
#undef LAUNCH
    return TESS_OK;
}

template <bool IS_BF16>
static tess_status rotate_backward_run(const tess_rotate_backward_args *a, bool is_whole,
                                       tess_stream *s)
{
    return a->w.dt == TESS_BF16 ? rotate_backward_launch<IS_BF16, true>(a, is_whole, s)
                                : rotate_backward_launch<IS_BF16, false>(a, is_whole, s);
}

extern "C" tess_status tess_cuda_rotate(const tess_rotate_args *a, tess_stream *s)
{
    TESS_TRY(tess_rotate_check(a));
    if (tess_sample_row_numel(&a->shape) == 0)
        return TESS_OK;
    const bool is_whole =
        tess_samples_are_whole(&a->x, 2) && tess_samples_are_whole(&a->y, 2) && is_w_whole(a->w);
    return a->x.view.dt == TESS_BF16 ? rotate_run<true>(a, is_whole, s)
                                     : rotate_run<false>(a, is_whole, s);
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
    return a->x.view.dt == TESS_BF16 ? rotate_backward_run<true>(a, is_whole, s)
                                     : rotate_backward_run<false>(a, is_whole, s);
}
