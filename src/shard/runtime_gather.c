/* Gathers of buckets into their slots. */
#include "shard/runtime_priv.h"

/* Lists of a bucket: the frozen strings, and in full mode the slabs. They say where in a slot every
 * piece lands, so one list serves all slots and lives as long as what is under way. */
static void list_bucket(tess_runtime *rt, const tess_bucket_plan *b, tess_gather_piece *room,
                        bucket_lists *out)
{
    const tess_plan *plan = rt->parts.plan;
    tess_gather_piece *frozen = room, *slab = room + b->unit_numel;
    for (int i = 0; i < b->unit_numel; i++) {
        const int unit_idx = plan->bucket_unit[b->first_idx + i];
        const tess_unit_plan *u = &plan->unit[unit_idx];
        if (u->frozen_wire_idx >= 0)
            frozen[out->frozen_numel++] =
                (tess_gather_piece){.wire = &plan->wire[u->frozen_wire_idx],
                                    .shard = tess_runtime_frozen_shard(rt, unit_idx),
                                    .place_nbytes = u->slot_offset_nbytes};
        if (plan->options.is_full && u->slab_wire_idx >= 0)
            slab[out->slab_numel++] = (tess_gather_piece){
                .wire = &plan->wire[u->slab_wire_idx],
                .shard = runtime_view(rt, runtime_at(rt, TESS_LIFE_PARAM, u->param_offset_nbytes),
                                      u->slab_shard_numel,
                                      rt->parts.registry->unit[unit_idx].compute_dt),
                .place_nbytes = u->slot_slab_offset_nbytes};
    }
    out->frozen = frozen;
    out->slab = slab;
}

tess_status gather_create(tess_runtime *rt)
{
    const tess_plan *plan = rt->parts.plan;
    void *array = NULL;
    TESS_TRY(tess_alloc_array(2 * (int64_t)plan->unit_numel, sizeof *rt->gather_piece, &array));
    rt->gather_piece = array;
    TESS_TRY(tess_alloc_array(plan->bucket_numel, sizeof *rt->bucket, &array));
    rt->bucket = array;
    for (int i = 0; i < plan->bucket_numel; i++)
        list_bucket(rt, &plan->bucket[i], &rt->gather_piece[2 * plan->bucket[i].first_idx],
                    &rt->bucket[i]);
    return TESS_OK;
}

void gather_destroy(tess_runtime *rt)
{
    tess_free(rt->bucket);
    tess_free(rt->gather_piece);
}

/* In full mode. Slabs are sharded over the world whatever the group, so they travel on the world's
 * own stream; the lane that the schedule knows is made to enclose it. */
static tess_status gather_slabs(tess_runtime *rt, const bucket_lists *lists, tess_view slot)
{
    tess_stream *lane = rt->lane[TESS_LANE_GATHER];
    tess_stream *stream = tess_comm_gather_stream(rt->parts.world);
    TESS_TRY(runtime_follow(lane, stream, &rt->joined[0]));
    TESS_TRY(
        tess_comm_all_gather_list(rt->parts.world, lists->slab, lists->slab_numel, slot, stream));
    return runtime_follow(stream, lane, &rt->joined[1]);
}

tess_status gather_bucket(tess_runtime *rt, const tess_sched_op *op)
{
    const tess_plan *plan = rt->parts.plan;
    const bucket_lists *lists = &rt->bucket[op->bucket_idx];
    const tess_view slot =
        runtime_view(rt, runtime_at(rt, TESS_LIFE_SLOT, (size_t)op->slot_idx * plan->slot_nbytes),
                     (int64_t)plan->bucket[op->bucket_idx].nbytes, TESS_U8_OPAQUE);
    if (lists->frozen_numel > 0)
        TESS_TRY(tess_comm_all_gather_list(rt->parts.group, lists->frozen, lists->frozen_numel,
                                           slot, rt->lane[TESS_LANE_GATHER]));
    return lists->slab_numel > 0 ? gather_slabs(rt, lists, slot) : TESS_OK;
}
