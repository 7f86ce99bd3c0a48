/** Rows of vector quantizers; included by rows*.c once per instruction path. */
#pragma once

#include <math.h>

#include "kernels/cpu/ops_priv.h"
#include "kernels/cpu/vec_priv.h"

/* Address of a row of a view whose rows are `stride` elements apart, 0: `dim`. */
INLINE char *edge_at(tess_view v, int64_t row, int64_t dim, int64_t stride)
{
    const int64_t first = row * (stride > 0 ? stride : dim);
    return (char *)v.data + (size_t)first * (v.dt == TESS_BF16 ? 2 : 4);
}

/* Row of the vector's code, NULL where it is masked. */
INLINE const float *code_row(const tess_coded_rows *rows, int64_t row)
{
    if (rows->code == NULL)
        return rows->codes + row * rows->dim;
    const uint32_t code = rows->code[row];
    return code == TESS_NO_CODE ? NULL : rows->codes + (int64_t)code * rows->dim;
}

/* A sum of products in fp64, element j in lane j % 16. */
typedef struct lanes_f64 {
    vd acc[2 * LANE_VECTORS];
} lanes_f64;

/* Elements first .. of which lanes past the end are 0. */
INLINE void lanes_add(lanes_f64 *sum, int h, vf a, vf b)
{
    vf_half x[2], y[2];
    memcpy(x, &a, sizeof a);
    memcpy(y, &b, sizeof b);
    for (int half = 0; half < 2; half++)
        sum->acc[2 * h + half] = sum->acc[2 * h + half] + __builtin_convertvector(x[half], vd) *
                                                              __builtin_convertvector(y[half], vd);
}

INLINE double lanes_end(const lanes_f64 *sum)
{
    double lane[LANES];
    memcpy(lane, sum->acc, sizeof lane);
    return lanes_sum_f64(lane);
}

INLINE double dot_f64(const float *a, const float *b, int64_t dim)
{
    lanes_f64 sum = {{{0}}};
    for (int64_t i = 0; i < dim; i += VL) {
        const int64_t n = TESS_MIN(VL, dim - i);
        lanes_add(&sum, (int)(i / VL % LANE_VECTORS), vf_get(a, i, n, false),
                  vf_get(b, i, n, false));
    }
    return lanes_end(&sum);
}

INLINE float length_factor(float length, float least, float norm)
{
    return (float)((double)length / (double)(norm > least ? norm : least));
}

static void quantizer_enter(const tess_quantizer_enter_args *a, int64_t lo, int64_t hi)
{
    const bool is_bf16 = a->x.dt == TESS_BF16;
    for (int64_t row = lo; row < hi; row++) {
        const char *x = edge_at(a->x, row, a->dim, a->x_stride);
        float *core = a->core + row * a->dim;
        for (int64_t i = 0; i < a->dim; i += VL) {
            const int64_t n = TESS_MIN(VL, a->dim - i);
            vf_put(core, i, n, vf_get(x, i, n, is_bf16), false);
        }
        if (a->length == 0.0f)
            continue;
        a->norm[row] = (float)sqrt(dot_f64(core, core, a->dim));
        const float factor = length_factor(a->length, a->least, a->norm[row]);
        for (int64_t i = 0; i < a->dim; i++)
            core[i] = core[i] * factor;
    }
}

static void quantizer_enter_backward(const tess_quantizer_enter_backward_args *a, int64_t lo,
                                     int64_t hi)
{
    const bool is_bf16 = a->d_x.dt == TESS_BF16;
    for (int64_t row = lo; row < hi; row++) {
        const float *g = a->d_core + row * a->dim;
        const float *core = a->length > 0.0f ? a->core + row * a->dim : g;
        char *d_x = edge_at(a->d_x, row, a->dim, a->d_stride);
        float factor = 1.0f, along = 0.0f;
        if (a->length > 0.0f) {
            factor = length_factor(a->length, a->least, a->norm[row]);
            if (a->norm[row] > a->least)
                along = (float)(dot_f64(g, core, a->dim) / ((double)a->length * (double)a->length));
        }
        for (int64_t i = 0; i < a->dim; i += VL) {
            const int64_t n = TESS_MIN(VL, a->dim - i);
            vf d = (vf_get(g, i, n, false) - along * vf_get(core, i, n, false)) * factor;
            if (a->accumulate)
                d = vf_get(d_x, i, n, is_bf16) + d;
            vf_put(d_x, i, n, d, is_bf16);
        }
    }
}

static void quantizer_layer_norm(const tess_quantizer_layer_norm_args *a, int64_t lo, int64_t hi)
{
    const bool is_bf16 = a->x.dt == TESS_BF16;
    for (int64_t row = lo; row < hi; row++) {
        const char *x = edge_at(a->x, row, a->dim, 0);
        char *y = edge_at(a->y, row, a->dim, 0);
        lanes_f64 sum = {{{0}}}, square = {{{0}}};
        for (int64_t i = 0; i < a->dim; i += VL) {
            const int64_t n = TESS_MIN(VL, a->dim - i);
            lanes_add(&sum, (int)(i / VL % LANE_VECTORS), vf_get(x, i, n, is_bf16), vf_set1(1.0f));
        }
        const float mean = (float)(lanes_end(&sum) / (double)a->dim);
        for (int64_t i = 0; i < a->dim; i += VL) {
            const int64_t n = TESS_MIN(VL, a->dim - i);
            vf d = vf_get(x, i, n, is_bf16) - mean;
            if (n < VL)
                d = (vf)((vi)d & (vi_iota(0) < (int32_t)n));
            lanes_add(&square, (int)(i / VL % LANE_VECTORS), d, d);
        }
        const float factor = (float)(1.0 / sqrt(lanes_end(&square) / (double)a->dim + a->eps));
        for (int64_t i = 0; i < a->dim; i += VL) {
            const int64_t n = TESS_MIN(VL, a->dim - i);
            vf_put(y, i, n, (vf_get(x, i, n, is_bf16) - mean) * factor, is_bf16);
        }
    }
}

static void quantizer_gather(const tess_quantizer_gather_args *a, int64_t lo, int64_t hi)
{
    const bool is_bf16 = a->out.dt == TESS_BF16;
    const int64_t dim = a->rows.dim;
    for (int64_t row = lo; row < hi; row++) {
        const float *q = code_row(&a->rows, row);
        char *out = edge_at(a->out, row, dim, a->out_stride);
        const char *masked =
            a->masked.numel > 0 ? edge_at(a->masked, row, dim, a->out_stride) : NULL;
        for (int64_t i = 0; i < dim; i += VL) {
            const int64_t n = TESS_MIN(VL, dim - i);
            vf v = vf_set1(0.0f);
            if (q != NULL)
                v = vf_get(q, i, n, false);
            else if (masked != NULL)
                v = vf_get(masked, i, n, is_bf16);
            vf_put(out, i, n, v, is_bf16);
        }
    }
}

static void quantizer_residual(const tess_quantizer_residual_args *a, int64_t lo, int64_t hi)
{
    const int64_t dim = a->rows.dim;
    for (int64_t row = lo; row < hi; row++) {
        const float *q = code_row(&a->rows, row);
        for (int64_t i = 0; i < dim; i += VL) {
            const int64_t n = TESS_MIN(VL, dim - i), at = row * dim + i;
            const vf v = q != NULL ? vf_get(q, i, n, false) : vf_set1(0.0f);
            if (a->next != NULL)
                vf_put(a->next, at, n, vf_get(a->r, at, n, false) - v, false);
            if (a->sum != NULL)
                vf_put(a->sum, at, n, vf_get(a->sum, at, n, false) + v, false);
        }
    }
}

static void quantizer_row_loss(const tess_quantizer_row_loss_args *a, int64_t lo, int64_t hi)
{
    const int64_t dim = a->rows.dim;
    for (int64_t row = lo; row < hi; row++) {
        const float *q = code_row(&a->rows, row), *x = a->x + row * dim;
        lanes_f64 sum = {{{0}}};
        for (int64_t i = 0; q != NULL && i < dim; i += VL) {
            const int64_t n = TESS_MIN(VL, dim - i);
            const vf d = vf_get(x, i, n, false) - vf_get(q, i, n, false);
            lanes_add(&sum, (int)(i / VL % LANE_VECTORS), d, d);
        }
        a->out[row] = lanes_end(&sum);
    }
}

/* One row of the backward. */
typedef struct backward_row {
    const float *x, *q;
    const char *d_out;   /* NULL: zeros */
    const float *d_next; /* NULL: none */
    float *d_x;
    int64_t dim;
    float keep, commitment;
    bool is_bf16, accumulate;
} backward_row;

INLINE vf arriving(const backward_row *r, int64_t i, int64_t n)
{
    vf g = r->d_out != NULL ? vf_get(r->d_out, i, n, r->is_bf16) : vf_set1(0.0f);
    if (r->d_next != NULL)
        g = g - vf_set1(r->keep) * vf_get(r->d_next, i, n, false);
    return g;
}

/* Coefficients of E(g) = scale (g - w s + u x), s = x inv_x + q inv_q. */
typedef struct rotation {
    float inv_x, inv_q, scale, w, u;
} rotation;

INLINE rotation rotation_of(const backward_row *r)
{
    const double least = (double)TESS_UNIT_LEAST;
    const double q_norm = sqrt(dot_f64(r->q, r->q, r->dim));
    const double x_most = fmax(sqrt(dot_f64(r->x, r->x, r->dim)), least);
    rotation t = {.inv_x = (float)(1.0 / x_most),
                  .inv_q = (float)(1.0 / fmax(q_norm, least)),
                  .scale = (float)(q_norm / x_most)};
    lanes_f64 square = {{{0}}}, along_s = {{{0}}}, along_q = {{{0}}};
    for (int64_t i = 0; i < r->dim; i += VL) {
        const int64_t n = TESS_MIN(VL, r->dim - i);
        const int h = (int)(i / VL % LANE_VECTORS);
        const vf g = arriving(r, i, n), v = vf_get(r->q, i, n, false) * t.inv_q;
        const vf s = vf_get(r->x, i, n, false) * t.inv_x + v;
        lanes_add(&square, h, s, s);
        lanes_add(&along_s, h, g, s);
        lanes_add(&along_q, h, g, v);
    }
    const double s_square = fmax(lanes_end(&square), least * least);
    t.w = (float)(2.0 * lanes_end(&along_s) / s_square);
    t.u = (float)(2.0 * lanes_end(&along_q) * (double)t.inv_x);
    return t;
}

INLINE void backward_row_run(const backward_row *r, tess_estimator estimator)
{
    rotation t = {0};
    if (estimator == TESS_ESTIMATOR_ROTATION)
        t = rotation_of(r);
    for (int64_t i = 0; i < r->dim; i += VL) {
        const int64_t n = TESS_MIN(VL, r->dim - i);
        const vf x = vf_get(r->x, i, n, false), q = vf_get(r->q, i, n, false);
        vf d = arriving(r, i, n);
        if (estimator == TESS_ESTIMATOR_NONE)
            d = vf_set1(0.0f);
        else if (estimator == TESS_ESTIMATOR_ROTATION)
            d = t.scale * (d - t.w * (x * t.inv_x + q * t.inv_q) + t.u * x);
        if (r->d_next != NULL)
            d = d + r->keep * vf_get(r->d_next, i, n, false);
        d = d + r->commitment * (x - q);
        if (r->accumulate)
            d = vf_get(r->d_x, i, n, false) + d;
        vf_put(r->d_x, i, n, d, false);
    }
}

INLINE void masked_row_run(const backward_row *r, bool is_masked_input)
{
    for (int64_t i = 0; i < r->dim; i += VL) {
        const int64_t n = TESS_MIN(VL, r->dim - i);
        vf d = vf_set1(0.0f);
        if (is_masked_input && r->d_out != NULL)
            d = vf_get(r->d_out, i, n, r->is_bf16);
        if (r->accumulate)
            d = vf_get(r->d_x, i, n, false) + d;
        vf_put(r->d_x, i, n, d, false);
    }
}

static void quantizer_backward(const tess_quantizer_backward_args *a, int64_t lo, int64_t hi)
{
    const int64_t dim = a->rows.dim;
    for (int64_t row = lo; row < hi; row++) {
        const backward_row r = {
            .x = a->x + row * dim,
            .q = code_row(&a->rows, row),
            .d_out = a->d_out.numel > 0 ? edge_at(a->d_out, row, dim, a->d_stride) : NULL,
            .d_next = a->d_next != NULL ? a->d_next + row * dim : NULL,
            .d_x = a->d_x + row * dim,
            .dim = dim,
            .keep = a->keep,
            .commitment = a->commitment,
            .is_bf16 = a->d_out.dt == TESS_BF16,
            .accumulate = a->accumulate};
        if (r.q == NULL)
            masked_row_run(&r, a->is_masked_input);
        else
            backward_row_run(&r, a->estimator);
    }
}

/* q - x of a row, its noisy direction, and their lengths. */
typedef struct direction {
    const float *x, *q, *noise;
    float spread;
    double length, inv; /* |q - x|, 1 / |r| */
} direction;

INLINE vf way_of(const direction *t, int64_t i, int64_t n)
{
    return vf_get(t->q, i, n, false) - vf_get(t->x, i, n, false);
}

INLINE vf noisy_of(const direction *t, int64_t i, int64_t n)
{
    return way_of(t, i, n) + t->spread * vf_get(t->noise, i, n, false);
}

INLINE void direction_measure(direction *t, int64_t dim)
{
    lanes_f64 way = {{{0}}}, noisy = {{{0}}};
    for (int64_t i = 0; i < dim; i += VL) {
        const int64_t n = TESS_MIN(VL, dim - i);
        const int h = (int)(i / VL % LANE_VECTORS);
        const vf e = way_of(t, i, n), r = noisy_of(t, i, n);
        lanes_add(&way, h, e, e);
        lanes_add(&noisy, h, r, r);
    }
    t->length = sqrt(lanes_end(&way));
    t->inv = 1.0 / fmax(sqrt(lanes_end(&noisy)), (double)TESS_UNIT_LEAST);
}

static void quantizer_directed(const tess_quantizer_directed_args *a, int64_t lo, int64_t hi)
{
    const bool is_bf16 = a->out.dt == TESS_BF16;
    const int64_t dim = a->rows.dim;
    for (int64_t row = lo; row < hi; row++) {
        direction t = {.x = a->x + row * dim,
                       .q = code_row(&a->rows, row),
                       .noise = a->noise + row * dim,
                       .spread = a->spread};
        char *out = edge_at(a->out, row, dim, a->out_stride);
        if (t.q != NULL)
            direction_measure(&t, dim);
        const float factor = (float)(t.length * t.inv);
        for (int64_t i = 0; i < dim; i += VL) {
            const int64_t n = TESS_MIN(VL, dim - i);
            vf v = vf_set1(0.0f);
            if (t.q != NULL)
                v = vf_get(t.x, i, n, false) + factor * noisy_of(&t, i, n);
            vf_put(out, i, n, v, is_bf16);
        }
    }
}

static void quantizer_directed_backward(const tess_quantizer_directed_backward_args *a, int64_t lo,
                                        int64_t hi)
{
    const bool is_bf16 = a->d_out.dt == TESS_BF16;
    const int64_t dim = a->rows.dim;
    for (int64_t row = lo; row < hi; row++) {
        direction t = {.x = a->x + row * dim,
                       .q = code_row(&a->rows, row),
                       .noise = a->noise + row * dim,
                       .spread = a->spread};
        const char *g = edge_at(a->d_out, row, dim, a->d_stride);
        float along = 0.0f;
        lanes_f64 sum = {{{0}}};
        if (t.q != NULL)
            direction_measure(&t, dim);
        for (int64_t i = 0; t.q != NULL && i < dim; i += VL) {
            const int64_t n = TESS_MIN(VL, dim - i);
            lanes_add(&sum, (int)(i / VL % LANE_VECTORS), vf_get(g, i, n, is_bf16),
                      noisy_of(&t, i, n));
        }
        if (t.length > 0.0)
            along = (float)(lanes_end(&sum) * t.inv / t.length);
        for (int64_t i = 0; i < dim; i += VL) {
            const int64_t n = TESS_MIN(VL, dim - i), at = row * dim + i;
            vf d_q = vf_set1(0.0f), d_x = d_q;
            if (t.q != NULL) {
                d_q = along * way_of(&t, i, n);
                d_x = vf_get(g, i, n, is_bf16) - d_q;
            }
            if (a->accumulate)
                d_x = vf_get(a->d_x, at, n, false) + d_x;
            vf_put(a->d_x, at, n, d_x, false);
            vf_put(a->d_q, at, n, d_q, false);
        }
    }
}

/* Columns [lo, hi) of all rows, vectors ascending. */
static void quantizer_code_gradient(const tess_quantizer_code_gradient_args *a, int64_t lo,
                                    int64_t hi)
{
    const int64_t dim = a->rows.dim;
    for (int64_t row = 0; row < a->rows.row_numel; row++) {
        const float *q = code_row(&a->rows, row);
        const float *x = a->d_q != NULL ? a->d_q + row * dim : a->x + row * dim;
        if (q == NULL)
            continue;
        float *d = a->d_codes + (q - a->rows.codes);
        for (int64_t i = lo; i < hi; i += VL) {
            const int64_t n = TESS_MIN(VL, hi - i);
            vf step = vf_get(x, i, n, false);
            if (a->d_q == NULL)
                step = a->coefficient * (vf_get(q, i, n, false) - step);
            vf_put(d, i, n, vf_get(d, i, n, false) + step, false);
        }
    }
}

/* sum[j] += the integer nearest to a (x[j] factor), below 2^51 in size: its bits are the low ones
 * of the shifted number. */
static void fixed_add(int64_t *sum, const float *x, double a, double factor, int64_t numel)
{
    int64_t *restrict out = sum;
    for (int64_t j = 0; j < numel; j++) {
        const union {
            double f;
            int64_t i;
        } shifted = {a * ((double)x[j] * factor) + 0x1.8p52};
        out[j] += shifted.i - INT64_C(0x4338000000000000);
    }
}

static void axpy_f64(double *acc, const double *x, double a, int64_t numel)
{
    double *restrict out = acc;
    for (int64_t i = 0; i < numel; i++)
        out[i] = out[i] + a * x[i];
}

/* Element i in lane i % 16. */
static double dot_f64_array(const double *x, const double *y, int64_t numel)
{
    double lane[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= numel; i += LANES)
        for (int l = 0; l < LANES; l++)
            lane[l] = lane[l] + x[i + l] * y[i + l];
    for (int l = 0; i + l < numel; l++)
        lane[l] = lane[l] + x[i + l] * y[i + l];
    return lanes_sum_f64(lane);
}
