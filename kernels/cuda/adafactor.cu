/*
 * The passes of Adafactor with the arithmetic of adafactor_priv.h.
 *
 * [Note: lines of a part] Largest squares and integer sums know no order, so threads may meet in
 * any. A block takes a tile of a matrix: a power of two of columns, which are neighbours in memory,
 * and as many rows at once as its threads have room for. A thread keeps its column's result until
 * the end of the tile; a row's is brought together by shuffles of those lanes that share it. What
 * lies before or behind the part in its first and last row counts as zero.
 */
#include "kernels/adafactor_priv.h"
#include "kernels/cuda/squares_priv.cuh"
#include "kernels/cuda/update_priv.cuh"

/* ---- largest squares and sums of lines ---- */

enum { LINE_THREADS = 256, LINE_STEPS = 64, LINE_AHEAD = 4 };

struct line_job {
    const float *grad;
    int64_t *most, *sum;        /* rows first */
    int64_t first_idx, end_idx; /* of the part in the tensor */
    int64_t first_row, end_row;
    int64_t rows, cols; /* a vector: one column, that is no line */
    float clip;
    int width;              /* columns of a tile */
    int row_bits, col_bits; /* of the numbers of terms */
    bool has_cols;
};

struct adafactor_most_pass {
    enum { IS_SUM = false };
    __device__ static inline int64_t join(int64_t a, int64_t b) { return TESS_MAX(a, b); }
    __device__ static inline int64_t term(double square, double)
    {
        return tess_adafactor_bits(square);
    }
    __device__ static inline void put(const line_job &j, int64_t line, int64_t x)
    {
        atomicMax((unsigned long long *)&j.most[line], (unsigned long long)x);
    }
};

struct adafactor_sum_pass {
    enum { IS_SUM = true };
    __device__ static inline int64_t join(int64_t a, int64_t b) { return a + b; }
    __device__ static inline int64_t term(double square, double scale)
    {
        return tess_adafactor_multiple(square, scale);
    }
    __device__ static inline void put(const line_job &j, int64_t line, int64_t x)
    {
        atomicAdd((unsigned long long *)&j.sum[line], (unsigned long long)x);
    }
};

/* What this lane and those that share its row have: lanes in groups of `lane_numel`. */
template <typename PASS> __device__ static inline int64_t row_join(int64_t x, int lane_numel)
{
    for (int step = lane_numel / 2; step > 0; step /= 2) {
        const int64_t other = __shfl_xor_sync(0xffffffffu, x, step);
        x = PASS::join(x, other);
    }
    return x;
}

/* Whether an element is the part's. */
__device__ static inline bool is_of_part(const line_job &j, int64_t row, int64_t col)
{
    const int64_t i = row * j.cols + col;
    return col < j.cols && i >= j.first_idx && i < j.end_idx;
}

/* Columns from `first_col` on, rows from `first_row` on. All threads of a block come along; several
 * rows are read before the first of them is taken, as what takes time is waiting for them. */
template <typename PASS>
__device__ static inline void line_tile(const line_job &j, int64_t first_row, int64_t first_col)
{
    const int lane_numel = TESS_MIN(j.width, 32), rows_at_once = LINE_THREADS / j.width;
    const int64_t col = first_col + (int)threadIdx.x % j.width;
    const bool is_line = j.has_cols && col < j.cols;
    const double col_scale =
        PASS::IS_SUM && is_line ? tess_adafactor_scale(j.most[j.rows + col], j.col_bits) : 0.0;
    int64_t of_col = 0, row = first_row + (int)threadIdx.x / j.width;
    for (int step = 0; step < LINE_STEPS; step += LINE_AHEAD) {
        if (first_row + step * rows_at_once >= j.end_row)
            break;
        float g[LINE_AHEAD];
#pragma unroll
        for (int k = 0; k < LINE_AHEAD; k++) {
            const int64_t at = row + k * rows_at_once;
            g[k] = is_of_part(j, at, col) ? j.grad[at * j.cols + col - j.first_idx] : 0.0f;
        }
#pragma unroll
        for (int k = 0; k < LINE_AHEAD; k++, row += rows_at_once) {
            const double square = tess_adafactor_square(g[k] * j.clip);
            const double row_scale = PASS::IS_SUM && is_of_part(j, row, col)
                                         ? tess_adafactor_scale(j.most[row], j.row_bits)
                                         : 0.0;
            const int64_t of_row = row_join<PASS>(PASS::term(square, row_scale), lane_numel);
            of_col = PASS::join(of_col, PASS::term(square, col_scale));
            if ((int)threadIdx.x % lane_numel == 0 && of_row != 0)
                PASS::put(j, row, of_row);
        }
    }
    if (is_line && of_col != 0)
        PASS::put(j, j.rows + col, of_col);
}

template <typename PASS>
__global__ static void __launch_bounds__(LINE_THREADS) lines_kernel(const line_job j)
{
    const int64_t strip_numel = (j.cols + j.width - 1) / j.width;
    const int64_t tile_rows = (int64_t)LINE_STEPS * (LINE_THREADS / j.width);
    const int64_t tile_numel = (j.end_row - j.first_row + tile_rows - 1) / tile_rows * strip_numel;
    for (int64_t tile = blockIdx.x; tile < tile_numel; tile += gridDim.x)
        line_tile<PASS>(j, j.first_row + tile / strip_numel * tile_rows,
                        tile % strip_numel * j.width);
}

template <typename PASS>
static tess_status lines_launch(const tess_adafactor_args *a, tess_stream *s)
{
    TESS_TRY(tess_adafactor_check(a));
    const tess_update_part *p = &a->part;
    line_job j = {};
    if (p->numel == 0)
        return TESS_OK;
    j.grad = p->grad;
    j.most = a->most;
    j.sum = a->sum;
    j.has_cols = a->cols > 0;
    j.rows = a->rows;
    j.cols = j.has_cols ? a->cols : 1;
    j.first_idx = a->first_idx;
    j.end_idx = a->first_idx + p->numel;
    j.first_row = j.first_idx / j.cols;
    j.end_row = (j.end_idx - 1) / j.cols + 1;
    j.clip = p->clip_factor;
    j.row_bits = tess_adafactor_term_bits(tess_adafactor_term_numel(a, 0));
    j.col_bits = tess_adafactor_term_bits(tess_adafactor_term_numel(a, a->rows));
    j.width = 1;
    while (j.width < j.cols && j.width < LINE_THREADS)
        j.width *= 2;
    const int64_t strip_numel = (j.cols + j.width - 1) / j.width;
    const int64_t tile_rows = (int64_t)LINE_STEPS * (LINE_THREADS / j.width);
    const int64_t row_tile_numel = (j.end_row - j.first_row + tile_rows - 1) / tile_rows;
    TESS_LAUNCH(lines_kernel<PASS>, tess_grid(row_tile_numel * strip_numel, 1), LINE_THREADS, 0, s,
                j);
    return TESS_OK;
}

extern "C" tess_status tess_cuda_adafactor_most(const tess_adafactor_args *a, tess_stream *s)
{
    return lines_launch<adafactor_most_pass>(a, s);
}

extern "C" tess_status tess_cuda_adafactor_sum(const tess_adafactor_args *a, tess_stream *s)
{
    return lines_launch<adafactor_sum_pass>(a, s);
}

/* ---- moments and roots of lines ---- */

enum { FACTOR_THREADS = 256 };

/* One block: all threads make moments, the first adds those of rows in ascending order. */
__global__ static void __launch_bounds__(FACTOR_THREADS) factor_kernel(const tess_adafactor_args a)
{
    TESS_SHARED(double, tile, 2 * FACTOR_THREADS);
    TESS_SHARED(double, row_mean, 1);
    const int64_t line_numel = a.rows + a.cols;
    double row_sum = 0.0;
    int half = 0;
    for (int64_t first = 0; first < line_numel; first += FACTOR_THREADS) {
        double *const part = tile + half * FACTOR_THREADS;
        const int64_t line = first + threadIdx.x;
        const int n = (int)TESS_MIN(a.rows - first, (int64_t)FACTOR_THREADS);
        if (line < line_numel) {
            const float moment = tess_adafactor_moment(&a, line);
            a.moment[line] = moment;
            part[threadIdx.x] = (double)moment;
        }
        __syncthreads();
        if (threadIdx.x == 0 && a.cols > 0)
            for (int i = 0; i < n; i++)
                row_sum = row_sum + part[i];
        half = 1 - half;
    }
    if (threadIdx.x == 0)
        *row_mean = a.cols > 0 ? row_sum / (double)a.rows : 1.0;
    __syncthreads();
    for (int64_t line = threadIdx.x; line < line_numel; line += FACTOR_THREADS)
        a.root[line] = tess_adafactor_root(a.moment[line], line < a.rows ? *row_mean : 1.0);
}

extern "C" tess_status tess_cuda_adafactor_factor(const tess_adafactor_args *a, tess_stream *s)
{
    TESS_TRY(tess_adafactor_check(a));
    const tess_adafactor_args args = *a;
    TESS_LAUNCH(factor_kernel, 1, FACTOR_THREADS, 0, s, args);
    return TESS_OK;
}

/* ---- updates ---- */

/* Gradients of a part and the roots of its lines. */
struct update_source {
    const float *grad, *root;
    int64_t first_idx, rows, cols; /* a vector: cols 0 */
    float clip;
};

static update_source source_of(const tess_adafactor_args *a)
{
    const update_source u = {a->part.grad, a->root, a->first_idx,
                             a->rows,      a->cols, a->part.clip_factor};
    return u;
}

/* Row and column of an element of the tensor: most tensors have less than 2^32, and a division of
 * 32 bits takes a third of one of 64. */
struct line_place {
    int64_t row, col;
};

__device__ static inline line_place place_of(int64_t i, int64_t cols)
{
    line_place at;
    if (((uint64_t)i | (uint64_t)cols) >> 32 == 0) {
        const uint32_t row = (uint32_t)i / (uint32_t)cols;
        at.row = row;
        at.col = (uint32_t)i - row * (uint32_t)cols;
    } else {
        at.row = i / cols;
        at.col = i - at.row * cols;
    }
    return at;
}

/* Without the rate; element i of the part. */
__device__ static inline float update_at(const update_source &u, int64_t i, float grad)
{
    const float g = grad * u.clip;
    if (u.cols == 0)
        return u.root[u.first_idx + i] * g;
    const line_place at = place_of(u.first_idx + i, u.cols);
    return u.root[at.row] * u.root[u.rows + at.col] * g;
}

struct adafactor_updates {
    update_source u;
    __device__ inline float at(int64_t i) const { return update_at(u, i, u.grad[i]); }
};

struct adafactor_masters {
    const float *master;
    __device__ inline float at(int64_t i) const { return master[i]; }
};

extern "C" tess_status tess_cuda_adafactor_size(const tess_adafactor_args *a, tess_stream *s)
{
    TESS_TRY(tess_adafactor_check(a));
    const adafactor_updates updates = {source_of(a)};
    const adafactor_masters masters = {a->part.master};
    TESS_TRY(tess_squares_launch(updates, a->part.numel, a->update_square, nullptr, s));
    if (a->param_square == nullptr)
        return TESS_OK;
    return tess_squares_launch(masters, a->part.numel, a->param_square, nullptr, s);
}

struct adafactor_apply_job {
    update_source u;
    float *master, *exp_avg;
    void *param;
    tess_adafactor_scalars k;
};

template <tess_param_kind PARAM> struct adafactor_apply_op {
    enum { NUMEL = tess_chunk<false>::NUMEL };
    template <bool IS_WHOLE>
    __device__ static inline void chunk(const adafactor_apply_job &a, int64_t i, int n)
    {
        float p[NUMEL], g[NUMEL], m[NUMEL] = {};
        const bool has_moment = a.exp_avg != nullptr;
        tess_load<false, IS_WHOLE, NUMEL>(a.master, i, n, p);
        tess_load<false, IS_WHOLE, NUMEL>(a.u.grad, i, n, g);
        if (has_moment)
            tess_load<false, IS_WHOLE, NUMEL>(a.exp_avg, i, n, m);
#pragma unroll
        for (int k = 0; k < NUMEL; k++)
            if (k < n) {
                float u = a.k.rate * update_at(a.u, i + k, g[k]);
                if (has_moment)
                    u = tess_adafactor_average(u, &m[k], &a.k);
                p[k] = tess_adafactor_apply_one(p[k], u, &a.k);
            }
        tess_store<false, IS_WHOLE, NUMEL>(a.master, i, n, p);
        if (has_moment)
            tess_store<false, IS_WHOLE, NUMEL>(a.exp_avg, i, n, m);
        tess_put_param<PARAM, IS_WHOLE, NUMEL>(a.param, i, n, p);
    }
};

extern "C" tess_status tess_cuda_adafactor_apply(const tess_adafactor_args *a, tess_stream *s)
{
    TESS_TRY(tess_adafactor_check(a));
    const tess_update_part *p = &a->part;
    const adafactor_apply_job job = {source_of(a), p->master, a->exp_avg, p->param.data,
                                     tess_adafactor_scalars_make(a)};
    const bool is_aligned = tess_is_aligned(p->master, p->grad, a->exp_avg, p->param.data);
    return tess_update_launch<adafactor_apply_op>(job, p->param, p->numel, is_aligned, s);
}
