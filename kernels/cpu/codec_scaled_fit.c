/*
 * Scale and shift of a group of qint4 or qint2. Both are rounded to the dtype of the scale before
 * their codes are looked at, so what is compared is what will be decoded.
 *
 * minmax: optimum-quanto's MaxOptimizer, scale = round(round(greatest - least) / most code), shift
 * = -least.
 *
 * mse: the span is shrunk, both ends alike over a coarse and a fine grid, then each end by itself;
 * the candidate with the least squared error stays, the first of equals.
 *
 * hqq: half-quadratic quantization. The residual x - y, in steps of the scale, is split in a sparse
 * part e = sign(r) max(|r| - |r|^(p - 1) / beta, 0), p = 0.7, and a rest, whose squares shift and
 * scale minimize for the codes at hand; beta starts at 10 and grows by kappa = 1.01, at most 20
 * times. The original holds the scale and moves the shift alone, and measures residuals as they
 * come, which makes the split depend on the size of the weights; with 2 bits the scale decides. The
 * pair with the least sum of |x - y| stays.
 *
 * Sums are fp64 in ascending order: threads and instruction paths do not change them.
 *
 * @source Badri and Shaji, Half-Quadratic Quantization of Large Machine Learning Models (2023);
 * optimum-quanto tensor/optimizers/hqq_optimizer.py
 */
#include <math.h>

#include "core/arith.h"
#include "kernels/cpu/codec_scaled_priv.h"
#include "kernels/math_priv.h"

enum { HQQ_PASSES = 20, COARSE_NUMEL = 15, FINE_NUMEL = 3, CHUNK = TESS_SCALED_CHUNK_NUMEL };

/* Spans of the grids, in parts of the whole span: 1, 0.95, ..., 0.3, then steps of a quarter. */
static const float coarse_step = 0.05F, fine_step = 0.0125F, end_step = 0.025F;

static const float hqq_power = 0.7F, hqq_beta = 10.0F, hqq_kappa = 1.01F;

static tess_scaled_rule rule_of(const tess_scaled_group *g, float scale, float shift)
{
    return (tess_scaled_rule){
        .kind = TESS_CODE_BITS, .scale = scale, .shift = shift, .round = g->dt, .most = g->most};
}

/* Scale and shift that span [least, greatest]. */
static void span(const tess_scaled_group *g, float least, float greatest, float *scale,
                 float *shift)
{
    *scale = tess_scaled_round(g->dt, tess_scaled_round(g->dt, greatest - least) / g->most);
    *shift = tess_scaled_round(g->dt, -least);
}

/* ---- a look at a group ---- */

/* A chunk with what stands for it. */
typedef struct look {
    int64_t numel;
    uint8_t code[CHUNK];
    float x[CHUNK], y[CHUNK];
} look;

static void look_at(const tess_scaled_group *g, const tess_scaled_rule *r, int64_t at, look *l)
{
    const tess_scaled_path *path = tess_scaled_path_current();
    l->numel = TESS_MIN(g->numel - at, CHUNK);
    path->read(g->src, g->first_idx + at, l->numel, g->dt, l->x);
    path->encode(l->x, l->numel, r, l->code);
    path->values(l->code, l->numel, r, l->y);
}

/* ---- mse ---- */

typedef struct search {
    const tess_scaled_group *g;
    double error; /* of the best so far */
    float least, greatest, scale, shift;
} search;

static double squared_error(const tess_scaled_group *g, float scale, float shift)
{
    const tess_scaled_rule r = rule_of(g, scale, shift);
    double sum = 0.0;
    look l;
    for (int64_t at = 0; at < g->numel; at += CHUNK) {
        look_at(g, &r, at, &l);
        for (int64_t i = 0; i < l.numel; i++) {
            const double d = (double)l.x[i] - (double)l.y[i];
            sum += d * d;
        }
    }
    return sum;
}

static void try_span(search *s, float least, float greatest)
{
    float scale = 0.0F, shift = 0.0F;
    span(s->g, least, greatest, &scale, &shift);
    if (!(scale > 0.0F))
        return;
    const double error = squared_error(s->g, scale, shift);
    if (error < s->error)
        *s = (search){s->g, error, least, greatest, scale, shift};
}

static void try_shrunk(search *s, float least, float greatest, float part)
{
    const float cut = (1.0F - part) * 0.5F * (greatest - least);
    try_span(s, least + cut, greatest - cut);
}

static void fit_mse(const tess_scaled_group *g, float least, float greatest, float *scale,
                    float *shift)
{
    search s = {g, squared_error(g, *scale, *shift), least, greatest, *scale, *shift};
    const float width = greatest - least;
    for (int i = 1; i < COARSE_NUMEL; i++)
        try_shrunk(&s, least, greatest, 1.0F - coarse_step * (float)i);
    const float part = (s.greatest - s.least) / width;
    for (int i = -FINE_NUMEL; i <= FINE_NUMEL; i++)
        if (i != 0)
            try_shrunk(&s, least, greatest, part + fine_step * (float)i);
    const float lo = s.least, hi = s.greatest;
    for (int i = -1; i <= 1; i++)
        for (int k = -1; k <= 1; k++)
            if (i != 0 || k != 0)
                try_span(&s, lo + end_step * width * (float)i, hi + end_step * width * (float)k);
    *scale = s.scale;
    *shift = s.shift;
}

/* ---- hqq ---- */

/* Sums over a group for one pass: of codes q and of targets t = x less the sparse part. */
typedef struct moments {
    double error; /* sum of |x - y| */
    double q, t, qq, qt;
} moments;

/* |r|^(p - 1) / beta is infinite at 0, where the sparse part is 0. */
static float sparse_part(float r, float beta)
{
    const float size = fabsf(r);
    if (!(size > 0.0F))
        return 0.0F;
    const float threshold =
        tess_exp_f32((float)((double)(hqq_power - 1.0F) * tess_log_f64((double)size))) / beta;
    return copysignf(fmaxf(size - threshold, 0.0F), r);
}

static moments moments_of(const tess_scaled_group *g, float scale, float shift, float beta)
{
    const tess_scaled_rule r = rule_of(g, scale, shift);
    moments m = {0};
    look l;
    for (int64_t at = 0; at < g->numel; at += CHUNK) {
        look_at(g, &r, at, &l);
        for (int64_t i = 0; i < l.numel; i++) {
            const float residual = l.x[i] - l.y[i];
            const double t =
                (double)l.x[i] - (double)scale * (double)sparse_part(residual / scale, beta);
            const double q = (double)l.code[i];
            m.error += fabs((double)residual);
            m.q += q;
            m.t += t;
            m.qq += q * q;
            m.qt += q * t;
        }
    }
    return m;
}

/* Least squares of t = scale q - shift. */
static void regress(const tess_scaled_group *g, const moments *m, float *scale, float *shift)
{
    const double n = (double)g->numel, spread = n * m->qq - m->q * m->q;
    const double slope = spread > 0.0 ? (n * m->qt - m->q * m->t) / spread : 0.0;
    if (slope > 0.0)
        *scale = tess_scaled_round(g->dt, (float)slope);
    *shift = tess_scaled_round(g->dt, (float)(((double)*scale * m->q - m->t) / n));
}

static void fit_hqq(const tess_scaled_group *g, float *scale, float *shift)
{
    float next_scale = *scale, next_shift = *shift, beta = hqq_beta;
    double best = HUGE_VAL;
    for (int i = 0; i <= HQQ_PASSES; i++) {
        const moments m = moments_of(g, next_scale, next_shift, beta);
        if (m.error < best) {
            best = m.error;
            *scale = next_scale;
            *shift = next_shift;
        }
        const float scale_before = next_scale, shift_before = next_shift;
        regress(g, &m, &next_scale, &next_shift);
        if (!(next_scale > 0.0F) || !isfinite(next_scale) || !isfinite(next_shift) ||
            (next_scale == scale_before && next_shift == shift_before))
            return;
        beta *= hqq_kappa;
    }
}

bool tess_scaled_fit(const tess_scaled_group *g, float least, float greatest, float *scale,
                     float *shift)
{
    span(g, least, greatest, scale, shift);
    if (!isfinite(*scale) || !isfinite(*shift))
        return false;
    if (*scale > 0.0F && g->rule == TESS_SCALE_RULE_MSE)
        fit_mse(g, least, greatest, scale, shift);
    if (*scale > 0.0F && g->rule == TESS_SCALE_RULE_HQQ)
        fit_hqq(g, scale, shift);
    return true;
}
