/*
 * What single ranks hold and move.
 *
 * [Note: padding] Every rank allocates the same: the largest share of everything. What differs is
 * how much of a share is real. Shards are cut in whole blocks, so the last members of a gather
 * group and the last ranks of the world hold less of it, or nothing.
 */
#include "shard/plan_exchange.h"

static int64_t send_numel(const tess_plan *plan, const tess_sched_op *op, int rank)
{
    const int64_t world = plan->options.world;
    const int64_t left = plan->options.micro_batch_numel - op->round_idx * world;
    const tess_node_ranks node = tess_plan_exchange_node(plan, op->unit_idx, rank);
    int64_t lo = 0, hi = 0, node_lo = 0, node_hi = 0;
    tess_plan_owned(plan, op->unit_idx, rank, &lo, &hi);
    tess_plan_node_owned(plan, op->unit_idx, node, &node_lo, &node_hi);
    const int64_t own = hi - lo, sent = rank < left ? plan->unit[op->unit_idx].slab_numel - own : 0;
    return sent + tess_plan_relayed(node, rank, TESS_MIN(left, world)) * (node_hi - node_lo - own);
}

int64_t tess_plan_op_nbytes(const tess_plan *plan, int rank, const tess_sched_op *op)
{
    const tess_unit_plan *u = &plan->unit[op->unit_idx];
    const int64_t world = plan->options.world;
    const tess_bucket_plan *b = NULL;
    switch (op->kind) {
    case TESS_SCHED_GATHER: /* received */
        b = &plan->bucket[op->bucket_idx];
        return (int64_t)b->frozen_shard_nbytes * (plan->options.gather_group_numel - 1) +
               (int64_t)b->slab_shard_nbytes * (world - 1);
    case TESS_SCHED_SEND: /* given to other owners, or to relays, and passed on */
        return send_numel(plan, op, rank) * (int64_t)sizeof(float);
    case TESS_SCHED_REDUCE:
        return u->slab_shard_numel * (world - 1) * (int64_t)sizeof(float);
    case TESS_SCHED_FORWARD:
    case TESS_SCHED_BACKWARD:
    case TESS_SCHED_FOLD:
    case TESS_SCHED_CLEAR:
        break;
    }
    return -1;
}

static size_t real_frozen_nbytes(const tess_plan *plan, const tess_unit_plan *u, int rank)
{
    const size_t first = u->frozen_shard_nbytes * (size_t)(rank % plan->options.gather_group_numel);
    return first < u->frozen_nbytes ? TESS_MIN(u->frozen_nbytes - first, u->frozen_shard_nbytes)
                                    : 0;
}

static size_t state_elem_nbytes(const tess_plan *plan, int unit_idx)
{
    size_t nbytes = 0;
    for (int i = 0; i < plan->state_array_numel; i++)
        if (plan->state[i].array.grain == TESS_GRAIN_ELEMENT &&
            tess_plan_state_total(plan, unit_idx, i) > 0)
            nbytes += tess_dtype_block_nbytes(plan->state[i].array.dt);
    return nbytes;
}

/* Of a reduction: pieces to other owners, pieces of other ranks, or whole padded rows. */
static void add_gradients(const tess_plan *plan, int unit_idx, int rank, tess_rank_cost *out)
{
    const tess_unit_plan *u = &plan->unit[unit_idx];
    const double world = plan->options.world;
    const double active = tess_plan_active_rounds(plan, rank);
    const double pieces = (double)plan->options.micro_batch_numel - active;
    int64_t lo = 0, hi = 0;
    tess_plan_owned(plan, unit_idx, rank, &lo, &hi);
    const double own = (double)(hi - lo);
    if (!plan->options.is_library) {
        const double passed = tess_plan_passed_numel(plan, unit_idx, rank);
        out->sent_nbytes += sizeof(float) * (active * ((double)u->slab_numel - own) + passed);
        out->received_nbytes += sizeof(float) * (pieces * own + passed);
        return;
    }
    const double times = plan->is_library_once ? 1.0 : plan->round_numel;
    const double rows = sizeof(float) * times * (double)u->slab_shard_numel * (world - 1.0);
    out->sent_nbytes += rows;
    out->received_nbytes += rows;
}

double tess_plan_unit_gradient_nbytes(const tess_plan *plan, int unit_idx)
{
    double most = 0.0;
    for (int rank = 0; rank < plan->options.world; rank++) {
        tess_rank_cost c = {0};
        if (tess_unit_grad_numel(&plan->unit[unit_idx]) > 0)
            add_gradients(plan, unit_idx, rank, &c);
        most = TESS_MAX(most, c.received_nbytes);
    }
    return most;
}

double tess_plan_unit_gathered_nbytes(const tess_plan *plan, const tess_registry *reg, int unit_idx)
{
    const tess_unit_plan *u = &plan->unit[unit_idx];
    const double shard = (double)u->slab_shard_numel *
                         (double)tess_dtype_block_nbytes(reg->unit[unit_idx].compute_dt);
    if (u->bucket_idx < 0)
        return 0.0;
    return (double)plan->bucket[u->bucket_idx].gather_numel * shard *
           (double)(plan->options.world - 1);
}

void tess_plan_rank_cost(const tess_plan *plan, const tess_registry *reg, int rank,
                         tess_rank_cost *out)
{
    const double world = plan->options.world;
    tess_rank_cost c = {.memory_nbytes = plan->total_nbytes,
                        .received_nbytes = plan->gather_nbytes_per_step +
                                           plan->slab_nbytes_per_step +
                                           plan->options.codes.step_nbytes,
                        .sent_nbytes = plan->gather_nbytes_per_step};
    for (int i = 0; i < plan->unit_numel; i++) {
        const tess_unit_plan *u = &plan->unit[i];
        int64_t lo = 0, hi = 0;
        tess_plan_owned(plan, i, rank, &lo, &hi);
        c.memory_nbytes -= u->frozen_shard_nbytes - real_frozen_nbytes(plan, u, rank);
        c.memory_nbytes -= (size_t)(u->slab_shard_numel - (hi - lo)) * state_elem_nbytes(plan, i);
        if (u->slab_numel == 0)
            continue;
        if (tess_unit_grad_numel(u) > 0)
            add_gradients(plan, i, rank, &c);
        if (!plan->options.is_full)
            c.sent_nbytes += (double)u->slab_shard_numel *
                             (double)tess_dtype_block_nbytes(reg->unit[i].compute_dt) *
                             (world - 1.0);
    }
    *out = c;
}

static void widen(tess_rank_range *r, double value, int rank)
{
    if (rank == 0 || value < r->least) {
        r->least = value;
        r->least_rank = rank;
    }
    if (rank == 0 || value > r->most) {
        r->most = value;
        r->most_rank = rank;
    }
}

void tess_plan_rank_ranges(const tess_plan *plan, const tess_registry *reg, tess_rank_ranges *out)
{
    for (int rank = 0; rank < plan->options.world; rank++) {
        tess_rank_cost c;
        tess_plan_rank_cost(plan, reg, rank, &c);
        widen(&out->memory, (double)c.memory_nbytes, rank);
        widen(&out->received, c.received_nbytes, rank);
        widen(&out->sent, c.sent_nbytes, rank);
    }
}
