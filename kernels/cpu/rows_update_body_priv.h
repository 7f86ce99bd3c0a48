/** Updates of optimizers; included by rows*.c once per path. One element at a time: the compiler
 * finds the vectors, and sqrt and / are IEEE in each lane. */
#pragma once

#include <math.h>

#include "kernels/cpu/ops_priv.h"
#include "kernels/cpu/vec_priv.h"
#include "kernels/optimizers_priv.h"

/* The rounded copy of [lo, hi) of new masters. */
INLINE void put_param(tess_view param, const float *p, int64_t lo, int64_t hi)
{
    if (param.numel == 0)
        return;
    const bool is_bf16 = param.dt == TESS_BF16;
    for (int64_t i = lo; i < hi; i += VL) {
        const int64_t n = TESS_MIN(VL, hi - i);
        vf_put(param.data, i, n, vf_get(p, i, n, false), is_bf16);
    }
}

INLINE float adamw_one(float p, float g, float *m, float *v, const tess_adamw_scalars *k)
{
    p = p * k->decay;
    *m = k->beta1 * *m + k->one_minus_beta1 * g;
    *v = k->beta2 * *v + k->one_minus_beta2 * (g * g);
    return p - k->step_size * *m / (sqrtf(*v / k->bias2) + k->eps);
}

static void adamw(const tess_adamw_args *a, const tess_adamw_scalars *scalars, int64_t lo,
                  int64_t hi)
{
    const tess_adamw_scalars k = *scalars;
    float *restrict p = a->master, *restrict m = a->exp_avg, *restrict v = a->exp_avg_sq;
    const float *restrict g = a->grad;
    const float clip = a->clip_factor;
    for (int64_t i = lo; i < hi; i++)
        p[i] = adamw_one(p[i], g[i] * clip, &m[i], &v[i], &k);
    put_param(a->param, p, lo, hi);
}

static void lion(const tess_lion_args *a, const tess_lion_scalars *scalars, int64_t lo, int64_t hi)
{
    const tess_lion_scalars k = *scalars;
    float *restrict p = a->part.master, *restrict m = a->exp_avg;
    const float *restrict g = a->part.grad;
    const float clip = a->part.clip_factor;
    for (int64_t i = lo; i < hi; i++)
        p[i] = tess_lion_one(p[i], g[i] * clip, &m[i], &k);
    put_param(a->part.param, p, lo, hi);
}

static void blend(const tess_blend_args *a, int64_t lo, int64_t hi)
{
    const float weight = (float)a->weight;
    const bool is_bf16 = a->dst.dt == TESS_BF16;
    for (int64_t i = lo; i < hi; i += VL) {
        const int64_t n = TESS_MIN(VL, hi - i);
        const vf from = vf_get(a->a, i, n, false), to = vf_get(a->b, i, n, false);
        vf_put(a->dst.data, i, n, from + vf_set1(weight) * (to - from), is_bf16);
    }
}

static void schedule_free(const tess_schedule_free_args *a,
                          const tess_schedule_free_scalars *scalars, int64_t lo, int64_t hi)
{
    const tess_schedule_free_scalars k = *scalars;
    float *restrict x = a->part.master, *restrict z = a->z, *restrict v = a->exp_avg_sq;
    const float *restrict g = a->part.grad;
    const float clip = a->part.clip_factor;
    for (int64_t i = lo; i < hi; i++)
        x[i] = tess_schedule_free_one(x[i], g[i] * clip, &z[i], &v[i], &k);
    if (a->part.param.numel == 0)
        return;
    const tess_blend_args y = {.a = x, .b = z, .dst = a->part.param, .weight = a->blend};
    blend(&y, lo, hi);
}

/* Block `lo` of 256 elements, which may be a short one. */
static void adamw_8bit_block(const tess_adamw_8bit_args *a, const tess_adamw_8bit_scalars *k,
                             int64_t block_idx)
{
    enum { N = TESS_STATE_BLOCK_NUMEL };
    const int64_t first = block_idx * N;
    const int n = (int)TESS_MIN(N, a->part.numel - first);
    const float *map = tess_dynamic_map_signed(), *map_sq = tess_dynamic_map_unsigned();
    const float *restrict grad = a->part.grad + first;
    float *restrict p = a->part.master + first;
    uint8_t *restrict codes = a->exp_avg + first, *restrict codes_sq = a->exp_avg_sq + first;
    float m[N], v[N], most = 0.0f, most_sq = 0.0f;
    for (int i = 0; i < n; i++) {
        m[i] = map[codes[i]] * a->exp_avg_absmax[block_idx];
        v[i] = map_sq[codes_sq[i]] * a->exp_avg_sq_absmax[block_idx];
    }
    for (int i = 0; i < n; i++) {
        const float g = grad[i] * a->part.clip_factor;
        tess_adamw_8bit_moments(g, &m[i], &v[i], k);
        p[i] = tess_adamw_8bit_one(p[i], g, m[i], v[i], k);
    }
    for (int i = 0; i < n; i++) {
        const float size = fabsf(m[i]);
        most = size > most ? size : most;
        most_sq = v[i] > most_sq ? v[i] : most_sq;
    }
    for (int i = 0; i < n; i++) {
        codes[i] = (uint8_t)tess_signed_code(map, m[i], most);
        codes_sq[i] = (uint8_t)tess_unsigned_code(map_sq, v[i], most_sq);
    }
    a->exp_avg_absmax[block_idx] = most;
    a->exp_avg_sq_absmax[block_idx] = most_sq;
}

/* [lo, hi) starts at a block. */
static void adamw_8bit(const tess_adamw_8bit_args *a, const tess_adamw_8bit_scalars *k, int64_t lo,
                       int64_t hi)
{
    for (int64_t i = lo; i < hi; i += TESS_STATE_BLOCK_NUMEL)
        adamw_8bit_block(a, k, i / TESS_STATE_BLOCK_NUMEL);
    put_param(a->part.param, a->part.master, lo, hi);
}

/* The two sums of the blocks in [lo, hi), which starts at one. */
static void prodigy_measure(const tess_prodigy_measure_args *a,
                            const tess_prodigy_measure_scalars *scalars, double (*sums)[2],
                            int64_t lo, int64_t hi)
{
    const tess_prodigy_measure_scalars k = *scalars;
    for (int64_t first = lo; first < hi; first += TESS_STATE_BLOCK_NUMEL) {
        const int64_t end = TESS_MIN(hi, first + TESS_STATE_BLOCK_NUMEL);
        double *sum = sums[(first - lo) / TESS_STATE_BLOCK_NUMEL];
        sum[0] = sum[1] = 0.0;
        for (int64_t i = first; i < end; i++) {
            const tess_prodigy_terms t = tess_prodigy_measure_one(
                a->part.master[i], a->start[i], a->part.grad[i] * a->part.clip_factor,
                &a->exp_avg[i], &a->exp_avg_sq[i], &a->s[i], &k);
            sum[0] = sum[0] + t.numerator;
            sum[1] = sum[1] + t.denominator;
        }
    }
}

static void prodigy_apply(const tess_prodigy_apply_args *a,
                          const tess_prodigy_apply_scalars *scalars, int64_t lo, int64_t hi)
{
    const tess_prodigy_apply_scalars k = *scalars;
    float *restrict p = a->part.master;
    const float *restrict m = a->exp_avg, *restrict v = a->exp_avg_sq;
    for (int64_t i = lo; i < hi; i++)
        p[i] = tess_prodigy_apply_one(p[i], m[i], v[i], &k);
    put_param(a->part.param, p, lo, hi);
}
