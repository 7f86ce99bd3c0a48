#include "kernels/cuda/samples_priv.cuh"

#include "core/arith.h"

/* Blocks in y that launches of sums over rows use at most. */
enum { GRID_Y_MAX = 65535 };

__device__ static inline float normal_of(float x, float mean, float inv)
{
    return (x - mean) * inv;
}

/* ---- norms, forward ---- */

template <bool IS_BF16> struct sum_term {
    enum { NUMEL = tess_chunk<IS_BF16>::NUMEL, SUMS = 1 };
    const void *x;
    int64_t at;
    template <bool IS_WHOLE>
    __device__ inline void chunk(int64_t i, int n, float v[SUMS][NUMEL]) const
    {
        tess_load<IS_BF16, IS_WHOLE, NUMEL>(x, at + i, n, v[0]);
    }
};

template <bool IS_BF16> struct spread_term {
    enum { NUMEL = tess_chunk<IS_BF16>::NUMEL, SUMS = 1 };
    const void *x;
    int64_t at;
    float mean;
    template <bool IS_WHOLE>
    __device__ inline void chunk(int64_t i, int n, float v[SUMS][NUMEL]) const
    {
        tess_load<IS_BF16, IS_WHOLE, NUMEL>(x, at + i, n, v[0]);
#pragma unroll
        for (int k = 0; k < NUMEL; k++) {
            const float d = k < n ? v[0][k] - mean : 0.0f;
            v[0][k] = d * d;
        }
    }
};

template <bool IS_BF16, bool IS_WHOLE>
__global__ static void __launch_bounds__(TESS_ROW_THREADS)
    modulate_kernel(const tess_modulate_args a)
{
    TESS_SHARED(float4, tiles, tess_row_tiles<1>::NUMEL4);
    TESS_SHARED(float, result, 1);
    constexpr int N = tess_chunk<IS_BF16>::NUMEL;
    const int64_t dim = a.shape.dim, row_numel = a.shape.sample_numel * a.shape.row_numel;
    for (int64_t row = blockIdx.x; row < row_numel; row += gridDim.x) {
        const tess_sample_place place = tess_sample_place_of(a.shape, row);
        const int64_t at = tess_sample_at(a.x, place), y_at = tess_sample_at(a.y, place);
        const int64_t factor_at = place.b * a.factor_stride;
        const sum_term<IS_BF16> sum = {a.x.view.data, at};
        tess_row_sums<IS_WHOLE>(sum, dim, tiles, result);
        const float mean = *result / (float)dim;
        const spread_term<IS_BF16> spread = {a.x.view.data, at, mean};
        tess_row_sums<IS_WHOLE>(spread, dim, tiles, result);
        const float inv = 1.0f / sqrtf(*result / (float)dim + a.eps);
        if (threadIdx.x == 0) {
            a.mean[row] = mean;
            a.inv[row] = inv;
        }
        for (int64_t i = (int64_t)threadIdx.x * N; i < dim; i += (int64_t)blockDim.x * N) {
            const int n = (int)TESS_MIN(dim - i, (int64_t)N);
            float x[N], scale[N], shift[N];
            tess_load<IS_BF16, IS_WHOLE, N>(a.x.view.data, at + i, n, x);
            tess_load<IS_BF16, IS_WHOLE, N>(a.scale.data, factor_at + i, n, scale);
            tess_load<IS_BF16, IS_WHOLE, N>(a.shift.data, factor_at + i, n, shift);
#pragma unroll
            for (int k = 0; k < N; k++)
                x[k] = normal_of(x[k], mean, inv) * (scale[k] + 1.0f) + shift[k];
            tess_store<IS_BF16, IS_WHOLE, N>(a.y.view.data, y_at + i, n, x);
        }
    }
}

/* Rows and factors of whole chunks. */
static bool are_whole(const tess_sample_shape *shape, int64_t factor_stride, tess_dtype dt,
                      const tess_sample_rows *const rows[4], const tess_factor *const factor[2])
{
    const int64_t chunk = dt == TESS_BF16 ? 8 : 4;
    bool is_whole = shape->dim % chunk == 0 && factor_stride % chunk == 0;
    for (int i = 0; i < 4; i++)
        is_whole = is_whole && (rows[i] == nullptr || tess_samples_are_whole(rows[i], chunk));
    for (int i = 0; i < 2; i++)
        is_whole = is_whole && (factor[i] == nullptr || tess_is_aligned(factor[i]->data));
    return is_whole;
}

template <bool IS_BF16>
static tess_status modulate_launch(const tess_modulate_args *a, bool is_whole, tess_stream *s)
{
    const tess_modulate_args args = *a;
    const unsigned grid = tess_grid(tess_sample_row_numel(&a->shape), 1);
    if (is_whole)
        TESS_LAUNCH((modulate_kernel<IS_BF16, true>), grid, TESS_ROW_THREADS, 0, s, args);
    else
        TESS_LAUNCH((modulate_kernel<IS_BF16, false>), grid, TESS_ROW_THREADS, 0, s, args);
    return TESS_OK;
}

extern "C" tess_status tess_cuda_modulate(const tess_modulate_args *a, tess_stream *s)
{
    TESS_TRY(tess_modulate_check(a));
    if (tess_sample_row_numel(&a->shape) == 0)
        return TESS_OK;
    const tess_sample_rows *const rows[4] = {&a->x, &a->y};
    const tess_factor *const factor[2] = {&a->shift, &a->scale};
    const bool is_whole = are_whole(&a->shape, a->factor_stride, a->x.view.dt, rows, factor);
    return a->x.view.dt == TESS_BF16 ? modulate_launch<true>(a, is_whole, s)
                                     : modulate_launch<false>(a, is_whole, s);
}

/* ---- norms, backward ---- */

/* One row of the backward: where its operands begin, and its statistics. */
struct backward_row {
    int64_t x, d_y, scale;
    float mean, inv;
};

/* u = d_y (1 + scale) and n of a chunk. */
template <bool IS_BF16, bool IS_WHOLE, int N>
__device__ static inline void backward_load(const tess_modulate_backward_args &a,
                                            const backward_row &r, int64_t i, int n, float u[N],
                                            float normal[N])
{
    float scale[N];
    tess_load<IS_BF16, IS_WHOLE, N>(a.d_y.view.data, r.d_y + i, n, u);
    tess_load<IS_BF16, IS_WHOLE, N>(a.scale.data, r.scale + i, n, scale);
    tess_load<IS_BF16, IS_WHOLE, N>(a.x.view.data, r.x + i, n, normal);
#pragma unroll
    for (int k = 0; k < N; k++) {
        u[k] = u[k] * (scale[k] + 1.0f);
        normal[k] = normal_of(normal[k], r.mean, r.inv);
    }
}

template <bool IS_BF16> struct means_term {
    enum { NUMEL = tess_chunk<IS_BF16>::NUMEL, SUMS = 2 };
    const tess_modulate_backward_args &a;
    const backward_row &r;
    template <bool IS_WHOLE>
    __device__ inline void chunk(int64_t i, int n, float v[SUMS][NUMEL]) const
    {
        backward_load<IS_BF16, IS_WHOLE, NUMEL>(a, r, i, n, v[0], v[1]);
#pragma unroll
        for (int k = 0; k < NUMEL; k++)
            v[1][k] = k < n ? v[0][k] * v[1][k] : 0.0f;
    }
};

template <bool IS_BF16, bool IS_WHOLE>
__global__ static void __launch_bounds__(TESS_ROW_THREADS)
    modulate_backward_kernel(const tess_modulate_backward_args a)
{
    TESS_SHARED(float4, tiles, tess_row_tiles<2>::NUMEL4);
    TESS_SHARED(float, result, 2);
    constexpr int N = tess_chunk<IS_BF16>::NUMEL;
    const int64_t dim = a.shape.dim, row_numel = a.shape.sample_numel * a.shape.row_numel;
    const bool has_residual = a.residual.view.numel > 0;
    for (int64_t row = blockIdx.x; row < row_numel; row += gridDim.x) {
        const tess_sample_place place = tess_sample_place_of(a.shape, row);
        const backward_row r = {tess_sample_at(a.x, place), tess_sample_at(a.d_y, place),
                                place.b * a.factor_stride, a.mean[row], a.inv[row]};
        const int64_t residual_at = tess_sample_at(a.residual, place);
        const int64_t d_x_at = tess_sample_at(a.d_x, place);
        const means_term<IS_BF16> term = {a, r};
        tess_row_sums<IS_WHOLE>(term, dim, tiles, result);
        const float mean_u = result[0] / (float)dim, mean_un = result[1] / (float)dim;
        for (int64_t i = (int64_t)threadIdx.x * N; i < dim; i += (int64_t)blockDim.x * N) {
            const int n = (int)TESS_MIN(dim - i, (int64_t)N);
            float u[N], normal[N], residual[N];
            backward_load<IS_BF16, IS_WHOLE, N>(a, r, i, n, u, normal);
            if (has_residual)
                tess_load<IS_BF16, IS_WHOLE, N>(a.residual.view.data, residual_at + i, n, residual);
#pragma unroll
            for (int k = 0; k < N; k++) {
                u[k] = (u[k] - mean_u - normal[k] * mean_un) * r.inv;
                if (has_residual)
                    u[k] = u[k] + residual[k];
            }
            tess_store<IS_BF16, IS_WHOLE, N>(a.d_x.view.data, d_x_at + i, n, u);
        }
    }
}

/* ---- sums over the rows of a sample ---- */

/* Rows of two operands: where their column of row 0 is, and how far rows are apart. */
template <bool IS_BF16> struct column_pair {
    const void *x, *d;
    int64_t x_at, d_at, x_stride, d_stride;

    template <int N> __device__ inline void load(int64_t row, float x_v[N], float d_v[N]) const
    {
#pragma unroll
        for (int k = 0; k < N; k++) {
            x_v[k] = tess_get<IS_BF16>(x, x_at + (row + k) * x_stride);
            d_v[k] = tess_get<IS_BF16>(d, d_at + (row + k) * d_stride);
        }
    }
};

template <bool IS_BF16> struct column_factors {
    column_pair<IS_BF16> rows;
    const float *mean, *inv;
    float shift, scale;
    template <int N> __device__ inline void add(int64_t row)
    {
        float x[N], d[N], m[N], v[N];
        rows.template load<N>(row, x, d);
#pragma unroll
        for (int k = 0; k < N; k++) {
            m[k] = mean[row + k];
            v[k] = inv[row + k];
        }
#pragma unroll
        for (int k = 0; k < N; k++) {
            shift = shift + d[k];
            scale = scale + d[k] * normal_of(x[k], m[k], v[k]);
        }
    }
};

template <bool IS_BF16> struct column_gate {
    column_pair<IS_BF16> rows; /* of f and d_y */
    float sum;
    template <int N> __device__ inline void add(int64_t row)
    {
        float f[N], d[N];
        rows.template load<N>(row, f, d);
#pragma unroll
        for (int k = 0; k < N; k++)
            sum = sum + d[k] * f[k];
    }
};

/* Sums of d_y and of d_y n over a chunk of rows: a thread per column, rows ascending. */
template <bool IS_BF16>
__global__ static void __launch_bounds__(TESS_ROW_THREADS, TESS_COLUMN_BLOCKS)
    modulate_factors_kernel(const tess_modulate_backward_args a)
{
    const int64_t dim = a.shape.dim, stride = (int64_t)gridDim.x * blockDim.x;
    const int64_t unit_numel = a.shape.sample_numel * TESS_ROW_CHUNK_NUMEL;
    for (int64_t unit = blockIdx.y; unit < unit_numel; unit += gridDim.y) {
        const int64_t b = unit / TESS_ROW_CHUNK_NUMEL;
        const int64_t x_at = b * a.x.sample_stride, d_y_at = b * a.d_y.sample_stride;
        const int64_t first = b * a.shape.row_numel; /* of mean and inv */
        int64_t lo = 0, hi = 0;
        tess_row_chunk(a.shape.row_numel, (int)(unit % TESS_ROW_CHUNK_NUMEL), &lo, &hi);
        for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < dim; i += stride) {
            column_factors<IS_BF16> column = {{a.x.view.data, a.d_y.view.data, x_at + i, d_y_at + i,
                                               a.x.row_stride, a.d_y.row_stride},
                                              a.mean + first,
                                              a.inv + first,
                                              0.0f,
                                              0.0f};
            tess_rows_add<TESS_ROW_PAIRS_AHEAD>(column, lo, hi);
            a.work[2 * unit * dim + i] = column.shift;
            a.work[(2 * unit + 1) * dim + i] = column.scale;
        }
    }
}

template <bool IS_BF16>
__global__ static void __launch_bounds__(TESS_ROW_THREADS, TESS_COLUMN_BLOCKS)
    gate_factor_kernel(const tess_gate_backward_args a)
{
    const int64_t dim = a.shape.dim, stride = (int64_t)gridDim.x * blockDim.x;
    const int64_t unit_numel = a.shape.sample_numel * TESS_ROW_CHUNK_NUMEL;
    for (int64_t unit = blockIdx.y; unit < unit_numel; unit += gridDim.y) {
        const int64_t b = unit / TESS_ROW_CHUNK_NUMEL;
        const int64_t f_at = b * a.f.sample_stride, d_y_at = b * a.d_y.sample_stride;
        int64_t lo = 0, hi = 0;
        tess_row_chunk(a.shape.row_numel, (int)(unit % TESS_ROW_CHUNK_NUMEL), &lo, &hi);
        for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < dim; i += stride) {
            column_gate<IS_BF16> column = {{a.f.view.data, a.d_y.view.data, f_at + i, d_y_at + i,
                                            a.f.row_stride, a.d_y.row_stride},
                                           0.0f};
            tess_rows_add<TESS_ROW_PAIRS_AHEAD>(column, lo, hi);
            a.work[unit * dim + i] = column.sum;
        }
    }
}

/* Vectors of the samples, each the sum of TESS_ROW_CHUNK_NUMEL partial ones `chunk_stride` apart.
 */
struct factor_sums {
    const float *work;
    int64_t chunk_stride, sample_numel, dim;
    void *out;
    int64_t out_stride;
};

template <bool IS_BF16>
__global__ static void __launch_bounds__(TESS_ROW_THREADS) factor_sums_kernel(const factor_sums a)
{
    const int64_t step = (int64_t)gridDim.x * blockDim.x, numel = a.sample_numel * a.dim;
    for (int64_t at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; at < numel; at += step) {
        const int64_t b = at / a.dim, i = at - b * a.dim;
        const float *work = a.work + b * TESS_ROW_CHUNK_NUMEL * a.chunk_stride + i;
        float sum[2] = {work[0]};
#pragma unroll
        for (int chunk = 1; chunk < TESS_ROW_CHUNK_NUMEL; chunk++)
            sum[0] = sum[0] + work[chunk * a.chunk_stride];
        tess_store<IS_BF16, false, 2, true>(a.out, b * a.out_stride + i, 1, sum);
    }
}

static tess_status factor_sums_launch(const factor_sums &sums, tess_dtype dt, tess_stream *s)
{
    const unsigned grid = tess_grid(sums.sample_numel * sums.dim, TESS_ROW_THREADS);
    if (sums.sample_numel == 0)
        return TESS_OK;
    if (dt == TESS_BF16)
        TESS_LAUNCH(factor_sums_kernel<true>, grid, TESS_ROW_THREADS, 0, s, sums);
    else
        TESS_LAUNCH(factor_sums_kernel<false>, grid, TESS_ROW_THREADS, 0, s, sums);
    return TESS_OK;
}

static dim3 factor_grid(const tess_sample_shape *shape)
{
    const int64_t unit_numel = shape->sample_numel * TESS_ROW_CHUNK_NUMEL;
    return dim3(tess_grid(shape->dim, TESS_ROW_THREADS),
                (unsigned)TESS_MIN(unit_numel, (int64_t)GRID_Y_MAX));
}

static tess_status modulate_factors(const tess_modulate_backward_args *a, tess_stream *s)
{
    const tess_modulate_backward_args args = *a;
    const int64_t dim = a->shape.dim;
    if (a->shape.sample_numel == 0)
        return TESS_OK;
    if (a->x.view.dt == TESS_BF16)
        TESS_LAUNCH(modulate_factors_kernel<true>, factor_grid(&a->shape), TESS_ROW_THREADS, 0, s,
                    args);
    else
        TESS_LAUNCH(modulate_factors_kernel<false>, factor_grid(&a->shape), TESS_ROW_THREADS, 0, s,
                    args);
    factor_sums sums = {a->work, 2 * dim,         a->shape.sample_numel,
                        dim,     a->d_shift.data, a->factor_stride};
    TESS_TRY(factor_sums_launch(sums, a->d_shift.dt, s));
    sums.work += dim;
    sums.out = a->d_scale.data;
    return factor_sums_launch(sums, a->d_scale.dt, s);
}

template <bool IS_BF16>
static tess_status modulate_backward_launch(const tess_modulate_backward_args *a, bool is_whole,
                                            tess_stream *s)
{
    const tess_modulate_backward_args args = *a;
    const unsigned grid = tess_grid(tess_sample_row_numel(&a->shape), 1);
    if (is_whole)
        TESS_LAUNCH((modulate_backward_kernel<IS_BF16, true>), grid, TESS_ROW_THREADS, 0, s, args);
    else
        TESS_LAUNCH((modulate_backward_kernel<IS_BF16, false>), grid, TESS_ROW_THREADS, 0, s, args);
    return TESS_OK;
}

extern "C" tess_status tess_cuda_modulate_backward(const tess_modulate_backward_args *a,
                                                   tess_stream *s)
{
    TESS_TRY(tess_modulate_backward_check(a));
    if (a->d_shift.numel > 0)
        TESS_TRY(modulate_factors(a, s));
    if (a->d_x.view.numel == 0 || tess_sample_row_numel(&a->shape) == 0)
        return TESS_OK;
    const tess_sample_rows *const rows[4] = {&a->x, &a->d_y, &a->residual, &a->d_x};
    const tess_factor *const factor[2] = {&a->scale};
    const bool is_whole = are_whole(&a->shape, a->factor_stride, a->x.view.dt, rows, factor);
    return a->x.view.dt == TESS_BF16 ? modulate_backward_launch<true>(a, is_whole, s)
                                     : modulate_backward_launch<false>(a, is_whole, s);
}

/* ---- gates ---- */

/* y = gate f, plus x where there is one. */
struct gate_job {
    tess_sample_shape shape;
    tess_sample_rows x, f, y; /* x NULL: none */
    const void *gate;
    int64_t gate_stride;
};

template <bool IS_BF16, bool IS_WHOLE>
__global__ static void __launch_bounds__(TESS_BLOCK_THREADS) gate_kernel(const gate_job a)
{
    constexpr int N = tess_chunk<IS_BF16>::NUMEL;
    const int64_t dim = a.shape.dim, row_numel = a.shape.sample_numel * a.shape.row_numel;
    const bool has_x = a.x.view.data != nullptr;
    for (int64_t row = blockIdx.x; row < row_numel; row += gridDim.x) {
        const tess_sample_place place = tess_sample_place_of(a.shape, row);
        const int64_t x_at = tess_sample_at(a.x, place), f_at = tess_sample_at(a.f, place);
        const int64_t y_at = tess_sample_at(a.y, place), gate_at = place.b * a.gate_stride;
        for (int64_t i = (int64_t)threadIdx.x * N; i < dim; i += (int64_t)blockDim.x * N) {
            const int n = (int)TESS_MIN(dim - i, (int64_t)N);
            float x[N], f[N], gate[N];
            tess_load<IS_BF16, IS_WHOLE, N>(a.f.view.data, f_at + i, n, f);
            tess_load<IS_BF16, IS_WHOLE, N>(a.gate, gate_at + i, n, gate);
            if (has_x)
                tess_load<IS_BF16, IS_WHOLE, N>(a.x.view.data, x_at + i, n, x);
#pragma unroll
            for (int k = 0; k < N; k++) {
                f[k] = gate[k] * f[k];
                if (has_x)
                    f[k] = f[k] + x[k];
            }
            tess_store<IS_BF16, IS_WHOLE, N>(a.y.view.data, y_at + i, n, f);
        }
    }
}

template <bool IS_BF16>
static tess_status gate_launch(const gate_job &job, bool is_whole, tess_stream *s)
{
    const unsigned grid = tess_grid(tess_sample_row_numel(&job.shape), 1);
    if (is_whole)
        TESS_LAUNCH((gate_kernel<IS_BF16, true>), grid, TESS_BLOCK_THREADS, 0, s, job);
    else
        TESS_LAUNCH((gate_kernel<IS_BF16, false>), grid, TESS_BLOCK_THREADS, 0, s, job);
    return TESS_OK;
}

static tess_status gate_run(const gate_job &job, const tess_factor *gate, tess_stream *s)
{
    if (tess_sample_row_numel(&job.shape) == 0)
        return TESS_OK;
    const tess_sample_rows *const rows[4] = {&job.x, &job.f, &job.y};
    const tess_factor *const factor[2] = {gate};
    const tess_dtype dt = job.y.view.dt;
    const bool is_whole = are_whole(&job.shape, job.gate_stride, dt, rows, factor);
    return dt == TESS_BF16 ? gate_launch<true>(job, is_whole, s)
                           : gate_launch<false>(job, is_whole, s);
}

extern "C" tess_status tess_cuda_gate(const tess_gate_args *a, tess_stream *s)
{
    TESS_TRY(tess_gate_check(a));
    const gate_job job = {a->shape, a->x, a->f, a->y, a->gate.data, a->factor_stride};
    return gate_run(job, &a->gate, s);
}

static tess_status gate_factor(const tess_gate_backward_args *a, tess_stream *s)
{
    const tess_gate_backward_args args = *a;
    if (a->shape.sample_numel == 0)
        return TESS_OK;
    if (a->d_y.view.dt == TESS_BF16)
        TESS_LAUNCH(gate_factor_kernel<true>, factor_grid(&a->shape), TESS_ROW_THREADS, 0, s, args);
    else
        TESS_LAUNCH(gate_factor_kernel<false>, factor_grid(&a->shape), TESS_ROW_THREADS, 0, s,
                    args);
    const factor_sums sums = {a->work,      a->shape.dim,   a->shape.sample_numel,
                              a->shape.dim, a->d_gate.data, a->factor_stride};
    return factor_sums_launch(sums, a->d_gate.dt, s);
}

extern "C" tess_status tess_cuda_gate_backward(const tess_gate_backward_args *a, tess_stream *s)
{
    TESS_TRY(tess_gate_backward_check(a));
    if (a->d_gate.numel > 0)
        TESS_TRY(gate_factor(a, s));
    const tess_sample_rows none = {};
    const gate_job job = {a->shape, none, a->d_y, a->d_f, a->gate.data, a->factor_stride};
    return gate_run(job, &a->gate, s);
}
