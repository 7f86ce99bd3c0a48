/* Rows of vector quantizers: 16 threads a row, sums as kernels/cpu/rows_quantizer_body_priv.h. */
#include "kernels/cuda/quantizer_priv.cuh"

__device__ static inline float length_factor(float length, float least, float norm)
{
    return (float)((double)length / (double)(norm > least ? norm : least));
}

/* ---- edges ---- */

struct enter_job {
    tess_quantizer_enter_args a;
    tess_edge x;
};

struct enter_op {
    __device__ static inline void row(const enter_job &job, const tess_lane_row &r)
    {
        const tess_quantizer_enter_args &a = job.a;
        float factor = 1.0f;
        if (a.length != 0.0f) {
            const float norm = (float)sqrt(tess_row_sum_f64(r, [&](int64_t j) {
                const double v = (double)tess_edge_get(job.x, r.row, j);
                return v * v;
            }));
            factor = length_factor(a.length, a.least, norm);
            if (r.lane == 0 && r.dim > 0)
                a.norm[r.row] = norm;
        }
        for (int64_t j = r.lane; j < r.dim; j += TESS_ROW_LANES) {
            const float v = tess_edge_get(job.x, r.row, j);
            a.core[r.row * r.dim + j] = a.length != 0.0f ? v * factor : v;
        }
    }
};

extern "C" tess_status tess_cuda_quantizer_enter(const tess_quantizer_enter_args *a, tess_stream *s)
{
    TESS_TRY(tess_quantizer_enter_check(a));
    const enter_job job = {*a, tess_edge_of(a->x, a->x_stride, a->dim)};
    return tess_lane_rows_launch<enter_op>(job, a->row_numel, a->dim, s);
}

struct enter_backward_job {
    tess_quantizer_enter_backward_args a;
    tess_edge d_x;
};

struct enter_backward_op {
    __device__ static inline void row(const enter_backward_job &job, const tess_lane_row &r)
    {
        const tess_quantizer_enter_backward_args &a = job.a;
        const float *g = a.d_core + r.row * r.dim;
        const float *core = a.length > 0.0f ? a.core + r.row * r.dim : g;
        const double dot = tess_row_sum_f64(
            r, [&](int64_t j) { return a.length > 0.0f ? (double)g[j] * (double)core[j] : 0.0; });
        float factor = 1.0f, along = 0.0f;
        if (a.length > 0.0f && r.dim > 0) {
            factor = length_factor(a.length, a.least, a.norm[r.row]);
            if (a.norm[r.row] > a.least)
                along = (float)(dot / ((double)a.length * (double)a.length));
        }
        for (int64_t j = r.lane; j < r.dim; j += TESS_ROW_LANES) {
            float d = (g[j] - along * core[j]) * factor;
            if (a.accumulate)
                d = tess_edge_get(job.d_x, r.row, j) + d;
            tess_edge_put(job.d_x, r.row, j, d);
        }
    }
};

extern "C" tess_status
tess_cuda_quantizer_enter_backward(const tess_quantizer_enter_backward_args *a, tess_stream *s)
{
    TESS_TRY(tess_quantizer_enter_backward_check(a));
    const enter_backward_job job = {*a, tess_edge_of(a->d_x, a->d_stride, a->dim)};
    return tess_lane_rows_launch<enter_backward_op>(job, a->row_numel, a->dim, s);
}

struct layer_norm_job {
    tess_edge x, y;
    double eps;
};

struct layer_norm_op {
    __device__ static inline void row(const layer_norm_job &job, const tess_lane_row &r)
    {
        const double sum =
            tess_row_sum_f64(r, [&](int64_t j) { return (double)tess_edge_get(job.x, r.row, j); });
        const float mean = (float)(sum / (double)r.dim);
        const double square = tess_row_sum_f64(r, [&](int64_t j) {
            const float d = tess_edge_get(job.x, r.row, j) - mean;
            return (double)d * (double)d;
        });
        const float factor = (float)(1.0 / sqrt(square / (double)r.dim + job.eps));
        for (int64_t j = r.lane; j < r.dim; j += TESS_ROW_LANES)
            tess_edge_put(job.y, r.row, j, (tess_edge_get(job.x, r.row, j) - mean) * factor);
    }
};

extern "C" tess_status tess_cuda_quantizer_layer_norm(const tess_quantizer_layer_norm_args *a,
                                                      tess_stream *s)
{
    TESS_TRY(tess_quantizer_layer_norm_check(a));
    const layer_norm_job job = {tess_edge_of(a->x, 0, a->dim), tess_edge_of(a->y, 0, a->dim),
                                a->eps};
    return tess_lane_rows_launch<layer_norm_op>(job, a->row_numel, a->dim, s);
}

/* ---- codes of vectors ---- */

struct gather_job {
    tess_coded_rows rows;
    tess_edge out, masked;
};

struct gather_op {
    __device__ static inline void row(const gather_job &job, const tess_lane_row &r)
    {
        const float *q = tess_code_row_at(job.rows, r.row);
        for (int64_t j = r.lane; j < r.dim; j += TESS_ROW_LANES) {
            float v = 0.0f;
            if (q != nullptr)
                v = q[j];
            else if (job.masked.data != nullptr)
                v = tess_edge_get(job.masked, r.row, j);
            tess_edge_put(job.out, r.row, j, v);
        }
    }
};

extern "C" tess_status tess_cuda_quantizer_gather(const tess_quantizer_gather_args *a,
                                                  tess_stream *s)
{
    TESS_TRY(tess_quantizer_gather_check(a));
    const gather_job job = {a->rows, tess_edge_of(a->out, a->out_stride, a->rows.dim),
                            tess_edge_of(a->masked, a->out_stride, a->rows.dim)};
    return tess_lane_rows_launch<gather_op>(job, a->rows.row_numel, a->rows.dim, s);
}

/* A thread per vector: its codes in every row. */
struct mask_op {
    __device__ static inline void one(const tess_quantizer_mask_args &a, int64_t row)
    {
        for (int64_t i = 0; i < a.index_numel && a.valid[row] == 0; i++)
            a.code[i * a.row_numel + row] = TESS_NO_CODE;
    }
};

extern "C" tess_status tess_cuda_quantizer_mask(const tess_quantizer_mask_args *a, tess_stream *s)
{
    TESS_TRY(tess_quantizer_mask_check(a));
    return tess_each_launch<mask_op>(*a, a->row_numel, s);
}

struct residual_op {
    __device__ static inline void row(const tess_quantizer_residual_args &a, const tess_lane_row &r)
    {
        const float *q = tess_code_row_at(a.rows, r.row);
        for (int64_t j = r.lane; j < r.dim; j += TESS_ROW_LANES) {
            const float v = q != nullptr ? q[j] : 0.0f;
            const int64_t at = r.row * r.dim + j;
            if (a.next != nullptr)
                a.next[at] = a.r[at] - v;
            if (a.sum != nullptr)
                a.sum[at] = a.sum[at] + v;
        }
    }
};

extern "C" tess_status tess_cuda_quantizer_residual(const tess_quantizer_residual_args *a,
                                                    tess_stream *s)
{
    TESS_TRY(tess_quantizer_residual_check(a));
    return tess_lane_rows_launch<residual_op>(*a, a->rows.row_numel, a->rows.dim, s);
}

struct row_loss_op {
    __device__ static inline void row(const tess_quantizer_row_loss_args &a, const tess_lane_row &r)
    {
        const float *q = tess_code_row_at(a.rows, r.row), *x = a.x + r.row * r.dim;
        const double sum = tess_row_sum_f64(r, [&](int64_t j) {
            const float d = q != nullptr ? x[j] - q[j] : 0.0f;
            return (double)d * (double)d;
        });
        if (r.lane == 0 && r.dim > 0)
            a.out[r.row] = sum;
    }
};

extern "C" tess_status tess_cuda_quantizer_row_loss(const tess_quantizer_row_loss_args *a,
                                                    tess_stream *s)
{
    TESS_TRY(tess_quantizer_row_loss_check(a));
    return tess_lane_rows_launch<row_loss_op>(*a, a->rows.row_numel, a->rows.dim, s);
}

/* ---- gradients ---- */

struct backward_job {
    tess_quantizer_backward_args a;
    tess_edge d_out;
};

/* d_out less what of it goes on to the next level. */
__device__ static inline float arriving(const backward_job &job, int64_t row, int64_t j)
{
    float g = job.d_out.data != nullptr ? tess_edge_get(job.d_out, row, j) : 0.0f;
    if (job.a.d_next != nullptr)
        g = g - job.a.keep * job.a.d_next[row * job.a.rows.dim + j];
    return g;
}

/* Coefficients of E(g) = scale (g - w s + u x), s = x inv_x + q inv_q. */
struct rotation {
    float inv_x, inv_q, scale, w, u;
};

/* `q` is not read where dim is 0: all threads of a warp come along. */
__device__ static inline rotation rotation_of(const backward_job &job, const tess_lane_row &r,
                                              const float *q)
{
    const float *x = job.a.x + r.row * job.a.rows.dim;
    const double least = (double)TESS_UNIT_LEAST;
    const double q_norm =
        sqrt(tess_row_sum_f64(r, [&](int64_t j) { return (double)q[j] * (double)q[j]; }));
    const double x_norm =
        sqrt(tess_row_sum_f64(r, [&](int64_t j) { return (double)x[j] * (double)x[j]; }));
    const double x_most = fmax(x_norm, least);
    rotation t = {(float)(1.0 / x_most), (float)(1.0 / fmax(q_norm, least)),
                  (float)(q_norm / x_most), 0.0f, 0.0f};
    const auto sum_of = [&](int64_t j) { return x[j] * t.inv_x + q[j] * t.inv_q; };
    const double square = tess_row_sum_f64(r, [&](int64_t j) {
        const double s = (double)sum_of(j);
        return s * s;
    });
    const double along_s = tess_row_sum_f64(
        r, [&](int64_t j) { return (double)arriving(job, r.row, j) * (double)sum_of(j); });
    const double along_q = tess_row_sum_f64(
        r, [&](int64_t j) { return (double)arriving(job, r.row, j) * (double)(q[j] * t.inv_q); });
    t.w = (float)(2.0 * along_s / fmax(square, least * least));
    t.u = (float)(2.0 * along_q * (double)t.inv_x);
    return t;
}

struct backward_op {
    __device__ static inline float coded(const backward_job &job, const rotation &t,
                                         const tess_lane_row &r, int64_t j, float x, float q)
    {
        const tess_quantizer_backward_args &a = job.a;
        float d = arriving(job, r.row, j);
        if (a.estimator == TESS_ESTIMATOR_NONE)
            d = 0.0f;
        else if (a.estimator == TESS_ESTIMATOR_ROTATION)
            d = t.scale * (d - t.w * (x * t.inv_x + q * t.inv_q) + t.u * x);
        if (a.d_next != nullptr)
            d = d + a.keep * a.d_next[r.row * r.dim + j];
        return d + a.commitment * (x - q);
    }

    __device__ static inline void row(const backward_job &job, const tess_lane_row &r)
    {
        const tess_quantizer_backward_args &a = job.a;
        const float *q = tess_code_row_at(a.rows, r.row);
        rotation t = {};
        if (a.estimator == TESS_ESTIMATOR_ROTATION) {
            tess_lane_row coded_row = r;
            coded_row.dim = q != nullptr ? r.dim : 0;
            t = rotation_of(job, coded_row, q);
        }
        for (int64_t j = r.lane; j < r.dim; j += TESS_ROW_LANES) {
            const int64_t at = r.row * r.dim + j;
            float d = 0.0f;
            if (q != nullptr)
                d = coded(job, t, r, j, a.x[at], q[j]);
            else if (a.is_masked_input && job.d_out.data != nullptr)
                d = tess_edge_get(job.d_out, r.row, j);
            a.d_x[at] = a.accumulate ? a.d_x[at] + d : d;
        }
    }
};

extern "C" tess_status tess_cuda_quantizer_backward(const tess_quantizer_backward_args *a,
                                                    tess_stream *s)
{
    TESS_TRY(tess_quantizer_backward_check(a));
    const backward_job job = {*a, tess_edge_of(a->d_out, a->d_stride, a->rows.dim)};
    return tess_lane_rows_launch<backward_op>(job, a->rows.row_numel, a->rows.dim, s);
}

/* ---- directional reparameterization ---- */

/* q - x of a row, its noisy direction, and their lengths; `q` NULL: nothing of it is read. */
struct direction {
    const float *x, *q, *noise;
    float spread;
    double length, inv; /* |q - x|, 1 / |r| */

    __device__ inline float way(int64_t j) const { return q[j] - x[j]; }
    __device__ inline float noisy(int64_t j) const { return way(j) + spread * noise[j]; }
};

template <typename ARGS>
__device__ static inline direction direction_of(const ARGS &a, const tess_lane_row &r)
{
    direction t = {a.x + r.row * a.rows.dim,
                   tess_code_row_at(a.rows, r.row),
                   a.noise + r.row * a.rows.dim,
                   a.spread,
                   0.0,
                   0.0};
    tess_lane_row coded = r;
    coded.dim = t.q != nullptr ? r.dim : 0;
    const double way = tess_row_sum_f64(coded, [&](int64_t j) {
        const double e = (double)t.way(j);
        return e * e;
    });
    const double noisy = tess_row_sum_f64(coded, [&](int64_t j) {
        const double e = (double)t.noisy(j);
        return e * e;
    });
    if (t.q != nullptr) {
        t.length = sqrt(way);
        t.inv = 1.0 / fmax(sqrt(noisy), (double)TESS_UNIT_LEAST);
    }
    return t;
}

struct directed_job {
    tess_quantizer_directed_args a;
    tess_edge out;
};

struct directed_op {
    __device__ static inline void row(const directed_job &job, const tess_lane_row &r)
    {
        const direction t = direction_of(job.a, r);
        const float factor = (float)(t.length * t.inv);
        for (int64_t j = r.lane; j < r.dim; j += TESS_ROW_LANES)
            tess_edge_put(job.out, r.row, j, t.q != nullptr ? t.x[j] + factor * t.noisy(j) : 0.0f);
    }
};

extern "C" tess_status tess_cuda_quantizer_directed(const tess_quantizer_directed_args *a,
                                                    tess_stream *s)
{
    TESS_TRY(tess_quantizer_directed_check(a));
    const directed_job job = {*a, tess_edge_of(a->out, a->out_stride, a->rows.dim)};
    return tess_lane_rows_launch<directed_op>(job, a->rows.row_numel, a->rows.dim, s);
}

struct directed_backward_job {
    tess_quantizer_directed_backward_args a;
    tess_edge d_out;
};

struct directed_backward_op {
    __device__ static inline void row(const directed_backward_job &job, const tess_lane_row &r)
    {
        const tess_quantizer_directed_backward_args &a = job.a;
        const direction t = direction_of(a, r);
        tess_lane_row coded = r;
        coded.dim = t.q != nullptr ? r.dim : 0;
        const double dot = tess_row_sum_f64(coded, [&](int64_t j) {
            return (double)tess_edge_get(job.d_out, r.row, j) * (double)t.noisy(j);
        });
        const float along = t.length > 0.0 ? (float)(dot * t.inv / t.length) : 0.0f;
        for (int64_t j = r.lane; j < r.dim; j += TESS_ROW_LANES) {
            const int64_t at = r.row * r.dim + j;
            const float d_q = t.q != nullptr ? along * t.way(j) : 0.0f;
            const float d_x = t.q != nullptr ? tess_edge_get(job.d_out, r.row, j) - d_q : 0.0f;
            a.d_x[at] = a.accumulate ? a.d_x[at] + d_x : d_x;
            a.d_q[at] = d_q;
        }
    }
};

extern "C" tess_status
tess_cuda_quantizer_directed_backward(const tess_quantizer_directed_backward_args *a,
                                      tess_stream *s)
{
    TESS_TRY(tess_quantizer_directed_backward_check(a));
    const directed_backward_job job = {*a, tess_edge_of(a->d_out, a->d_stride, a->rows.dim)};
    return tess_lane_rows_launch<directed_backward_op>(job, a->rows.row_numel, a->rows.dim, s);
}
