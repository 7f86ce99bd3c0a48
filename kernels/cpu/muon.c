/* One source for all instruction paths; see kernels/muon.h. */
#include "kernels/muon_priv.h"

#include "kernels/cpu/ops_priv.h"

enum { GRAIN_NUMEL = 256 };

static void momentum_part(void *arg, int part_idx, int part_numel)
{
    const tess_muon_momentum_args *a = arg;
    const float beta = (float)a->beta, rest = (float)(1.0 - a->beta);
    int64_t lo = 0, hi = 0;
    tess_pool_range(a->numel, GRAIN_NUMEL, part_idx, part_numel, &lo, &hi);
    for (int64_t i = lo; i < hi; i++) {
        const float g = a->grad[i] * a->clip_factor;
        a->grad[i] = tess_muon_momentum_one(g, &a->exp_avg[i], beta, rest);
    }
}

tess_status tess_cpu_muon_momentum(const tess_muon_momentum_args *a, tess_stream *s)
{
    TESS_TRY(tess_muon_momentum_check(a));
    tess_muon_momentum_args args = *a;
    tess_pool_run(s->pool, tess_cpu_part_numel(s, 2 * a->numel), momentum_part, &args);
    return TESS_OK;
}

static void apply_part(void *arg, int part_idx, int part_numel)
{
    const tess_muon_apply_args *a = arg;
    const float keep = (float)(1.0 - a->decay), rate = (float)a->rate;
    int64_t lo = 0, hi = 0;
    tess_pool_range(a->part.numel, GRAIN_NUMEL, part_idx, part_numel, &lo, &hi);
    for (int64_t i = lo; i < hi; i++)
        a->part.master[i] = tess_muon_apply_one(a->part.master[i], a->part.grad[i], keep, rate);
    if (a->part.param.numel > 0)
        tess_cpu_copy_param(&a->part, lo, hi);
}

tess_status tess_cpu_muon_apply(const tess_muon_apply_args *a, tess_stream *s)
{
    TESS_TRY(tess_muon_apply_check(a));
    tess_muon_apply_args args = *a;
    tess_pool_run(s->pool, tess_cpu_part_numel(s, 2 * a->part.numel), apply_part, &args);
    return TESS_OK;
}

static void scale_part(void *arg, int part_idx, int part_numel)
{
    const tess_scale_args *a = arg;
    int64_t lo = 0, hi = 0;
    tess_pool_range(a->numel, GRAIN_NUMEL, part_idx, part_numel, &lo, &hi);
    for (int64_t i = lo; i < hi; i++)
        a->dst[i] = a->factor * a->x[i];
}

tess_status tess_cpu_scale(const tess_scale_args *a, tess_stream *s)
{
    TESS_TRY(tess_scale_check(a));
    tess_scale_args args = *a;
    tess_pool_run(s->pool, tess_cpu_part_numel(s, a->numel), scale_part, &args);
    return TESS_OK;
}
