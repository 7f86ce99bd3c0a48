/* Arrays of state: the optimizer's row of its table, cut over ranks. */
#include "core/arith.h"
#include "shard/plan_priv.h"

enum { BLOCK = TESS_TRAINABLE_BLOCK_NUMEL, ALIGN = TESS_ARENA_ALIGN_NBYTES };

/* Masters and their average; the others are the optimizer's, of what learns. */
static bool is_of_all(const tess_plan *plan, int array_idx)
{
    return array_idx == 0 || array_idx == plan->ema_array_idx;
}

int64_t tess_plan_state_total(const tess_plan *plan, int unit_idx, int array_idx)
{
    const tess_unit_plan *u = &plan->unit[unit_idx];
    if (u->is_set && !is_of_all(plan, array_idx))
        return 0;
    switch (plan->state[array_idx].array.grain) {
    case TESS_GRAIN_BLOCK:
        return u->slab_numel / BLOCK;
    case TESS_GRAIN_FACTOR:
        return u->factor_numel;
    case TESS_GRAIN_REST:
        return u->rest_numel;
    case TESS_GRAIN_ELEMENT:
        break;
    }
    return u->slab_numel;
}

void tess_plan_state_owned(const tess_plan *plan, int unit_idx, int array_idx, int rank,
                           int64_t *lo_idx, int64_t *hi_idx)
{
    const int64_t total = tess_plan_state_total(plan, unit_idx, array_idx);
    const int64_t align = tess_state_align_numel(plan->state[array_idx].array.grain);
    const int64_t cut = tess_ceil_div(tess_ceil_div(total, align), plan->options.world) * align;
    *lo_idx = TESS_MIN(cut * rank, total);
    *hi_idx = TESS_MIN(cut * (rank + 1), total);
}

static int64_t rank_numel(const tess_plan *plan, int array_idx)
{
    switch (plan->state[array_idx].array.grain) {
    case TESS_GRAIN_BLOCK:
        return plan->learning_numel / BLOCK;
    case TESS_GRAIN_FACTOR:
        return plan->factor_numel;
    case TESS_GRAIN_REST:
        return plan->rest_numel;
    case TESS_GRAIN_ELEMENT:
        break;
    }
    return is_of_all(plan, array_idx) ? plan->state_numel : plan->learning_numel;
}

tess_status plan_state_arrays(tess_plan *plan)
{
    static const tess_state_array ema = {"ema", TESS_F32, TESS_GRAIN_ELEMENT, true};
    const tess_optimizer *o = plan->options.optimizer;
    for (int i = 0; i < o->array_numel; i++)
        plan->state[plan->state_array_numel++].array = o->array[i];
    if (plan->options.has_ema) {
        plan->ema_array_idx = plan->state_array_numel;
        plan->state[plan->state_array_numel++].array = ema;
    }
    for (int i = 0; i < plan->state_array_numel; i++) {
        tess_state_plan *s = &plan->state[i];
        s->numel = rank_numel(plan, i);
        s->offset_nbytes = plan->arena_nbytes[TESS_LIFE_STATE];
        TESS_TRY(plan_add_buffer(plan, s->array.role, TESS_LIFE_STATE, s->array.dt, s->numel));
    }
    return TESS_OK;
}

/* A copy of what a rank saves: a record per unit and array, each at an aligned place. */
int64_t plan_snapshot_nbytes(const tess_plan *plan)
{
    int64_t nbytes = 0;
    if (plan->options.has_snapshot)
        nbytes = tess_round_up(tess_ceil_div(plan->options.counter_numel, plan->options.world) *
                                   (int64_t)sizeof(int64_t),
                               ALIGN);
    for (int u = 0; u < plan->unit_numel && plan->options.has_snapshot; u++)
        for (int i = 0; i < plan->state_array_numel; i++) {
            int64_t lo = 0, hi = 0;
            tess_plan_state_owned(plan, u, i, 0, &lo, &hi); /* rank 0 owns the most */
            const size_t each = tess_dtype_block_nbytes(plan->state[i].array.dt);
            nbytes += tess_round_up((hi - lo) * (int64_t)each, ALIGN);
        }
    return nbytes;
}
