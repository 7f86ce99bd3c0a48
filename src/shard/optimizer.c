#include <math.h>

#include "core/memory.h"
#include "shard/runtime_priv.h"

/* The parts of every trainable tensor that this rank owns, in order of the STATE arrays. */
static int visit_segments(const tess_runtime *rt, update_segment *out)
{
    const tess_plan *plan = rt->parts.plan;
    const tess_registry *reg = rt->parts.registry;
    int numel = 0;
    for (int i = 0; i < reg->param_numel; i++) {
        const tess_param *p = &reg->param[i];
        const tess_unit_plan *u = &plan->unit[p->unit_idx];
        int64_t lo = 0, hi = 0;
        tess_plan_owned(plan, p->unit_idx, rt->rank, &lo, &hi);
        const int64_t first = TESS_MAX(lo, p->slab_first_idx);
        const int64_t end = TESS_MIN(hi, p->slab_first_idx + p->numel);
        if (p->role != TESS_ROLE_TRAINABLE || first >= end)
            continue;
        const int64_t row = plan->options.is_full ? 0 : u->slab_shard_numel * rt->rank;
        if (out != NULL)
            out[numel] = (update_segment){.state_idx = u->state_first_idx + first - lo,
                                          .param_idx = u->param_first_idx + row + first - lo,
                                          .numel = end - first,
                                          .learning_rate_ratio = p->learning_rate_ratio,
                                          .has_weight_decay = p->has_weight_decay};
        numel++;
    }
    return numel;
}

tess_status optimizer_plan(tess_runtime *rt)
{
    void *array = NULL;
    rt->segment_numel = visit_segments(rt, NULL);
    TESS_TRY(tess_alloc_array(rt->segment_numel, sizeof *rt->segment, &array));
    rt->segment = array;
    (void)visit_segments(rt, rt->segment);
    return TESS_OK;
}

static float *state_array(tess_runtime *rt, tess_state_kind kind)
{
    const size_t stride = (size_t)rt->parts.plan->state_numel * sizeof(float);
    return (float *)(void *)runtime_at(rt, TESS_LIFE_STATE, (size_t)kind * stride);
}

static tess_status update_one(tess_runtime *rt, const update_segment *s, float clip_factor)
{
    const tess_update *u = &rt->request->update;
    const tess_dtype dt = rt->parts.registry->compute_dt;
    const tess_plan *plan = rt->parts.plan;
    char *param =
        runtime_at(rt, TESS_LIFE_PARAM, 0) + (size_t)s->param_idx * tess_dtype_block_nbytes(dt);
    const float *grad = gradient_sum(rt, 0) - plan->unit[0].state_first_idx;
    const tess_adamw_args args = {
        .master = state_array(rt, TESS_STATE_MASTER) + s->state_idx,
        .exp_avg = state_array(rt, TESS_STATE_EXP_AVG) + s->state_idx,
        .exp_avg_sq = state_array(rt, TESS_STATE_EXP_AVG_SQ) + s->state_idx,
        .grad = grad + s->state_idx,
        .param = runtime_view(rt, param, s->numel, dt),
        .numel = s->numel,
        .clip_factor = clip_factor,
        .learning_rate = u->learning_rate * s->learning_rate_ratio,
        .beta1 = u->beta1,
        .beta2 = u->beta2,
        .eps = u->eps,
        .weight_decay = s->has_weight_decay ? u->weight_decay : 0.0,
        .step = u->step,
    };
    return rt->parts.kernels->adamw(&args, rt->compute);
}

tess_status optimizer_update(tess_runtime *rt, tess_step_result *result)
{
    const double clip_norm = rt->request->update.clip_norm;
    result->clip_factor = 1.0f;
    if (clip_norm > 0.0)
        result->clip_factor = (float)fmin(1.0, clip_norm / (result->grad_norm + 1e-6));
    for (int i = 0; i < rt->segment_numel; i++)
        TESS_TRY(update_one(rt, &rt->segment[i], result->clip_factor));
    return TESS_OK;
}
