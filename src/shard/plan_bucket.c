/*
 * Which units are gathered together.
 *
 * [Note: buckets] A message reaches the rate of its link from a certain size on, and units can be
 * smaller. Units that stages use one after another are packed in that order, as long as a bucket
 * has at most so many bytes; a larger unit is a bucket of its own. A slot holds a bucket, so what a
 * bucket may have is what the largest unit or the target takes, never more. A unit that comes up a
 * second time later (a tied embedding) stays alone: it would bring its neighbours along.
 *
 * Shards, contracts, checkpoints and loads know nothing of buckets: a bucket is one start of the
 * all-gathers of its units, each in its place in the slot (tess_comm_all_gather_list()).
 */
#include "core/arith.h"
#include "core/memory.h"
#include "shard/plan_links.h"
#include "shard/plan_priv.h"

enum { MIB = 1 << 20, ALIGN = TESS_ARENA_ALIGN_NBYTES };

int64_t plan_bucket_target(const tess_plan_options *o)
{
    const int64_t member_numel = o->is_full ? o->world : o->gather_group_numel;
    const tess_plan shape = {.options = *o};
    if (!o->is_device) /* from a rank to a peer, so that the network has all of it at once */
        return TESS_COMM_FAR_NBYTES * member_numel;
    /* NVLink and InfiniBand, bytes of the whole call */
    return tess_plan_is_inside(&shape, TESS_TRAFFIC_GATHER) ? 64 * (int64_t)MIB
                                                            : 256 * (int64_t)MIB;
}

static size_t slab_shard_nbytes(const tess_plan *plan, const tess_registry *reg, int unit_idx)
{
    const bool is_gathered =
        plan->options.is_full && plan->options.world > 1 && !reg->unit[unit_idx].is_held;
    return is_gathered ? (size_t)plan->unit[unit_idx].slab_shard_numel *
                             tess_dtype_block_nbytes(reg->unit[unit_idx].compute_dt)
                       : 0;
}

static size_t frozen_shard_nbytes(const tess_plan *plan, int unit_idx)
{
    return plan->options.gather_group_numel > 1 ? plan->unit[unit_idx].frozen_shard_nbytes : 0;
}

/* Of a unit in a slot; 0: it lies in place. */
static size_t slot_nbytes_of(const tess_plan *plan, const tess_registry *reg, int unit_idx)
{
    const size_t nbytes =
        frozen_shard_nbytes(plan, unit_idx) * (size_t)plan->options.gather_group_numel +
        slab_shard_nbytes(plan, reg, unit_idx) * (size_t)plan->options.world;
    return (size_t)tess_round_up((int64_t)nbytes, ALIGN);
}

/* Whether its stages, if more than one, follow each other. */
static bool is_used_once(const tess_registry *reg, int unit_idx)
{
    int run_numel = 0;
    for (int s = 0; s < reg->stage_numel; s++)
        run_numel += reg->stage[s].unit_idx == unit_idx &&
                     (s == 0 || reg->stage[s - 1].unit_idx != unit_idx);
    return run_numel == 1;
}

static void put_unit(tess_plan *plan, const tess_registry *reg, int unit_idx, int bucket_idx)
{
    tess_unit_plan *u = &plan->unit[unit_idx];
    tess_bucket_plan *b = &plan->bucket[bucket_idx];
    u->bucket_idx = bucket_idx;
    u->slot_offset_nbytes = b->nbytes;
    u->slot_slab_offset_nbytes =
        b->nbytes + frozen_shard_nbytes(plan, unit_idx) * (size_t)plan->options.gather_group_numel;
    b->nbytes += slot_nbytes_of(plan, reg, unit_idx);
    b->frozen_shard_nbytes += frozen_shard_nbytes(plan, unit_idx);
    b->slab_shard_nbytes += slab_shard_nbytes(plan, reg, unit_idx);
    plan->bucket_unit[b->first_idx + b->unit_numel++] = unit_idx;
    plan->slot_nbytes = TESS_MAX(plan->slot_nbytes, b->nbytes);
}

/* Units in the order in which stages come to them. */
static void pack(tess_plan *plan, const tess_registry *reg)
{
    int put_numel = 0;
    bool is_open = false; /* the last bucket takes more units */
    for (int s = 0; s < reg->stage_numel; s++) {
        const int u = reg->stage[s].unit_idx;
        const size_t nbytes = slot_nbytes_of(plan, reg, u);
        const bool is_once = is_used_once(reg, u);
        if (nbytes == 0 || plan->unit[u].bucket_idx >= 0)
            continue;
        const int last = plan->bucket_numel - 1;
        const bool fits =
            is_open && is_once &&
            (int64_t)(plan->bucket[last].nbytes + nbytes) <= plan->options.bucket_nbytes;
        if (!fits)
            plan->bucket[plan->bucket_numel++] = (tess_bucket_plan){.first_idx = put_numel};
        put_unit(plan, reg, u, plan->bucket_numel - 1);
        put_numel++;
        is_open = is_once;
    }
}

tess_status plan_buckets(tess_plan *plan, const tess_registry *reg)
{
    void *array = NULL;
    TESS_TRY(tess_alloc_array(plan->unit_numel, sizeof *plan->bucket, &array));
    plan->bucket = array;
    TESS_TRY(tess_alloc_array(plan->unit_numel, sizeof *plan->bucket_unit, &array));
    plan->bucket_unit = array;
    for (int i = 0; i < plan->unit_numel; i++)
        plan->unit[i].bucket_idx = -1;
    pack(plan, reg);
    const bool keeps_all = plan->options.reshard == TESS_OFF;
    plan->slot_numel = keeps_all ? plan->bucket_numel : TESS_MIN(plan->bucket_numel, 2);
    if (plan->slot_numel < plan->bucket_numel && plan->options.prefetch >= plan->slot_numel)
        return TESS_FAIL(TESS_E_CONFIG,
                         "shard.prefetch: %d needs %d slots, the plan has %d; lower it",
                         plan->options.prefetch, plan->options.prefetch + 1, plan->slot_numel);
    return TESS_OK;
}
