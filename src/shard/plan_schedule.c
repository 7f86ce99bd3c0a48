/* What the schedule of a rank follows from. */
#include "core/memory.h"
#include "shard/plan_exchange.h"
#include "shard/plan_priv.h"

typedef struct spec_arrays {
    int *stage_unit;
    bool *stage_checkpoints, *stage_is_joint;
    int *unit_bucket;
    bool *unit_has_grad;
    int *unit_stage_numel;
    bool *unit_is_sent, *unit_is_owned, *unit_is_relayed;
    bool *round_has_peer;
} spec_arrays;

static void spec_arrays_fini(spec_arrays *a)
{
    tess_free(a->stage_unit);
    tess_free(a->stage_checkpoints);
    tess_free(a->stage_is_joint);
    tess_free(a->unit_bucket);
    tess_free(a->unit_has_grad);
    tess_free(a->unit_stage_numel);
    tess_free(a->unit_is_sent);
    tess_free(a->unit_is_owned);
    tess_free(a->unit_is_relayed);
    tess_free(a->round_has_peer);
}

/* What exchanges move on `rank`. */
static tess_status list_traffic(const tess_plan *plan, int rank, spec_arrays *a)
{
    const int64_t m = plan->options.micro_batch_numel, world = plan->options.world;
    TESS_TRY(tess_alloc_array(plan->unit_numel, sizeof(bool), (void **)&a->unit_is_sent));
    TESS_TRY(tess_alloc_array(plan->unit_numel, sizeof(bool), (void **)&a->unit_is_owned));
    TESS_TRY(tess_alloc_array(plan->unit_numel, sizeof(bool), (void **)&a->unit_is_relayed));
    TESS_TRY(tess_alloc_array(plan->round_numel, sizeof(bool), (void **)&a->round_has_peer));
    for (int i = 0; i < plan->unit_numel; i++) {
        int64_t lo = 0, hi = 0;
        tess_plan_owned(plan, i, rank, &lo, &hi);
        a->unit_is_owned[i] = hi > lo;
        a->unit_is_sent[i] = hi - lo < tess_unit_grad_numel(&plan->unit[i]);
        tess_plan_node_owned(plan, i, tess_plan_exchange_node(plan, i, rank), &lo, &hi);
        a->unit_is_relayed[i] = plan->unit[i].is_by_node && hi > lo;
    }
    for (int r = 0; r < plan->round_numel; r++) {
        const int64_t sender_numel = TESS_MIN(m - r * world, world);
        a->round_has_peer[r] = sender_numel > (rank < sender_numel ? 1 : 0);
    }
    return TESS_OK;
}

static tess_status spec_arrays_init(const tess_plan *plan, const tess_registry *reg, spec_arrays *a)
{
    TESS_TRY(tess_alloc_array(reg->stage_numel, sizeof(int), (void **)&a->stage_unit));
    TESS_TRY(tess_alloc_array(reg->stage_numel, sizeof(bool), (void **)&a->stage_checkpoints));
    TESS_TRY(tess_alloc_array(reg->stage_numel, sizeof(bool), (void **)&a->stage_is_joint));
    TESS_TRY(tess_alloc_array(reg->unit_numel, sizeof(int), (void **)&a->unit_bucket));
    TESS_TRY(tess_alloc_array(reg->unit_numel, sizeof(bool), (void **)&a->unit_has_grad));
    TESS_TRY(tess_alloc_array(reg->unit_numel, sizeof(int), (void **)&a->unit_stage_numel));
    for (int i = 0; i < reg->stage_numel; i++) {
        a->stage_unit[i] = reg->stage[i].unit_idx;
        a->stage_checkpoints[i] = plan->stage != NULL && plan->stage[i].is_checkpointed;
        a->stage_is_joint[i] = reg->stage[i].is_joint;
    }
    for (int i = 0; i < reg->unit_numel; i++) {
        a->unit_bucket[i] = plan->unit[i].bucket_idx;
        a->unit_has_grad[i] = tess_unit_grad_numel(&plan->unit[i]) > 0;
        a->unit_stage_numel[i] = reg->unit[i].stage_numel;
    }
    return TESS_OK;
}

tess_status plan_make_schedule(const tess_plan *plan, const tess_registry *reg, int rank,
                               tess_sched_spec spec, tess_schedule *out)
{
    spec_arrays arrays = {0};
    tess_status st = spec_arrays_init(plan, reg, &arrays);
    if (st == TESS_OK)
        st = list_traffic(plan, rank, &arrays);
    spec.stage_numel = reg->stage_numel;
    spec.stage_unit = arrays.stage_unit;
    spec.stage_checkpoints = arrays.stage_checkpoints;
    spec.stage_is_joint = arrays.stage_is_joint;
    spec.is_last_fused = reg->stage[reg->stage_numel - 1].is_fused_loss;
    spec.unit_numel = reg->unit_numel;
    spec.bucket_numel = plan->bucket_numel;
    spec.unit_bucket = arrays.unit_bucket;
    spec.unit_has_grad = arrays.unit_has_grad;
    spec.unit_stage_numel = arrays.unit_stage_numel;
    spec.unit_is_sent = arrays.unit_is_sent;
    spec.unit_is_owned = arrays.unit_is_owned;
    spec.unit_is_relayed = arrays.unit_is_relayed;
    spec.round_has_peer = arrays.round_has_peer;
    spec.slot_numel = plan->slot_numel;
    spec.prefetch = plan->options.prefetch;
    spec.is_library = plan->options.is_library;
    spec.is_library_once = plan->is_library_once;
    if (st == TESS_OK)
        st = tess_schedule_create(&spec, out);
    spec_arrays_fini(&arrays);
    return st;
}

int tess_plan_active_rounds(const tess_plan *plan, int rank)
{
    const int64_t m = plan->options.micro_batch_numel;
    const int64_t world = plan->options.world;
    return rank < m ? (int)((m - 1 - rank) / world + 1) : 0;
}

tess_status tess_plan_schedule(const tess_plan *plan, const tess_registry *reg, int rank,
                               bool is_eval, tess_schedule *out)
{
    const tess_sched_spec spec = {.round_numel = is_eval ? 1 : plan->round_numel,
                                  .active_round_numel =
                                      is_eval ? 1 : tess_plan_active_rounds(plan, rank),
                                  .is_eval = is_eval};
    return plan_make_schedule(plan, reg, rank, spec, out);
}
