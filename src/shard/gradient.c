/*
 * [Note: ordered sum] The owner of a shard pushes the pieces of micro-batches 0 .. M-1 into a
 * binary counter of partial sums: level l holds the sum of 2^l consecutive micro-batches. The tree
 * depends on M alone, so any number of ranks gives the same bits. Leftover subtrees merge from the
 * smallest up into the top level.
 */
#include "shard/plan_exchange.h"
#include "shard/runtime_priv.h"

static float *level(tess_runtime *rt, int level_idx, int unit_idx)
{
    const tess_plan *plan = rt->parts.plan;
    float *base = (float *)(void *)runtime_at(rt, TESS_LIFE_GRAD, plan->level_offset_nbytes);
    return base + level_idx * plan->summed_numel + plan->unit[unit_idx].state_first_idx;
}

static float *grad_buffer(tess_runtime *rt, int grad_idx)
{
    const size_t offset = rt->parts.plan->grad_buffer_offset_nbytes[grad_idx];
    return (float *)(void *)runtime_at(rt, TESS_LIFE_GRAD, offset);
}

static float *received(tess_runtime *rt)
{
    return (float *)(void *)runtime_at(rt, TESS_LIFE_GRAD, rt->parts.plan->receive_offset_nbytes);
}

static int senders_of_round(const tess_runtime *rt, int round_idx)
{
    const int64_t left = rt->parts.plan->options.micro_batch_numel - (int64_t)round_idx * rt->world;
    return (int)TESS_MIN(left, (int64_t)rt->world);
}

/* ---- exchange ---- */

/* A unit's pieces of a round on this rank. In the buffer of what is received there is a row of this
 * rank's part for every other sender, in their order; behind them what it takes in as a relay, the
 * parts of its node one sender after another. */
typedef struct round_pieces {
    int unit_idx, sender_numel;
    tess_node_ranks node;         /* of this rank; all ranks where pieces go straight */
    int64_t lo, hi;               /* this rank's part of the slab */
    int64_t node_lo, node_hi;     /* its node's */
    float *grad;                  /* this rank's gradient of the slab */
    tess_piece *sends, *receives; /* of the list being made */
    int send_numel, receive_numel;
} round_pieces;

static round_pieces pieces_of(tess_runtime *rt, const tess_sched_op *op)
{
    const tess_plan *plan = rt->parts.plan;
    round_pieces p = {.unit_idx = op->unit_idx,
                      .sender_numel = senders_of_round(rt, op->round_idx),
                      .node = tess_plan_exchange_node(plan, op->unit_idx, rt->rank),
                      .grad = grad_buffer(rt, op->grad_idx)};
    tess_plan_owned(plan, op->unit_idx, rt->rank, &p.lo, &p.hi);
    tess_plan_node_owned(plan, op->unit_idx, p.node, &p.node_lo, &p.node_hi);
    return p;
}

static bool is_relayed_by(const round_pieces *p, int sender, int rank)
{
    return !tess_node_has(p->node, sender) && tess_plan_relay(p->node, sender) == rank;
}

static float *row_of(tess_runtime *rt, const round_pieces *p, int sender)
{
    return received(rt) + (sender - (sender > rt->rank)) * (p->hi - p->lo);
}

static float *behind_rows(tess_runtime *rt, const round_pieces *p)
{
    return received(rt) + (p->sender_numel - (rt->rank < p->sender_numel)) * (p->hi - p->lo);
}

static void give(tess_runtime *rt, round_pieces *p, int peer, const float *data, int64_t numel)
{
    if (numel > 0)
        p->sends[p->send_numel++] = (tess_piece){peer, runtime_view(rt, data, numel, TESS_F32)};
}

static void take(tess_runtime *rt, round_pieces *p, int peer, const float *data, int64_t numel)
{
    if (numel > 0)
        p->receives[p->receive_numel++] =
            (tess_piece){peer, runtime_view(rt, data, numel, TESS_F32)};
}

/* To each other owner of the node, its part of what lies at `data` from element `first` on. */
static void give_node(tess_runtime *rt, round_pieces *p, const float *data, int64_t first)
{
    for (int peer = p->node.first; peer < p->node.first + p->node.numel; peer++) {
        int64_t lo = 0, hi = 0;
        tess_plan_owned(rt->parts.plan, p->unit_idx, peer, &lo, &hi);
        if (peer != rt->rank)
            give(rt, p, peer, data + (lo - first), hi - lo);
    }
}

/* First hop: parts to the owners of the own node, a node's parts to its relay. */
static void list_first_hop(tess_runtime *rt, round_pieces *p)
{
    const int64_t numel = p->hi - p->lo, node_numel = p->node_hi - p->node_lo;
    const float *taken_in = behind_rows(rt, p);
    if (rt->rank < p->sender_numel)
        give_node(rt, p, p->grad, 0);
    for (int first = 0; first < rt->world && rt->rank < p->sender_numel;) {
        const tess_node_ranks node = tess_plan_exchange_node(rt->parts.plan, p->unit_idx, first);
        int64_t lo = 0, hi = 0;
        tess_plan_node_owned(rt->parts.plan, p->unit_idx, node, &lo, &hi);
        if (node.first != p->node.first)
            give(rt, p, tess_plan_relay(node, rt->rank), p->grad + lo, hi - lo);
        first += node.numel;
    }
    for (int sender = 0; sender < p->sender_numel; sender++) {
        if (tess_node_has(p->node, sender)) {
            if (sender != rt->rank)
                take(rt, p, sender, row_of(rt, p, sender), numel);
        } else if (is_relayed_by(p, sender, rt->rank)) {
            take(rt, p, sender, taken_in, node_numel);
            taken_in += node_numel;
        }
    }
}

/* Second hop: relays pass on what came from other nodes, in the order of senders, their own part
 * to themselves. */
static void list_second_hop(tess_runtime *rt, round_pieces *p)
{
    const int64_t numel = p->hi - p->lo;
    const float *taken_in = behind_rows(rt, p);
    for (int sender = 0; sender < p->sender_numel; sender++) {
        if (tess_node_has(p->node, sender))
            continue;
        take(rt, p, tess_plan_relay(p->node, sender), row_of(rt, p, sender), numel);
        if (!is_relayed_by(p, sender, rt->rank))
            continue;
        give_node(rt, p, taken_in, p->node_lo);
        give(rt, p, rt->rank, taken_in + (p->lo - p->node_lo), numel);
        taken_in += p->node_hi - p->node_lo;
    }
}

/* Of a hop, a rank receives from at most all others; it sends to no more in the first, and in the
 * second, for ceil(W / k) senders at most, to k: less than 2 W. */
int64_t gradient_piece_numel(const tess_runtime *rt)
{
    const int64_t hops = tess_plan_by_node_numel(rt->parts.plan) > 0 ? 5 : 2;
    return hops * rt->world;
}

static tess_status exchange(tess_runtime *rt, const round_pieces *p, int wire_idx)
{
    return tess_comm_exchange(rt->parts.world, &rt->parts.plan->wire[wire_idx], p->sends,
                              p->send_numel, p->receives, p->receive_numel,
                              rt->lane[TESS_LANE_REDUCE]);
}

tess_status gradient_send(tess_runtime *rt, const tess_sched_op *op)
{
    const tess_unit_plan *u = &rt->parts.plan->unit[op->unit_idx];
    const int list_idx = rt->piece_list_idx;
    round_pieces p = pieces_of(rt, op);
    rt->piece_list_idx = (list_idx + 1) % PIECE_LIST_NUMEL;
    if (rt->device->space == TESS_HOST) /* communicators of devices have read lists on return */
        TESS_TRY(tess_event_finish(&rt->piece_sent[list_idx]));
    p.sends = rt->pieces[list_idx];
    p.receives = p.sends + rt->world;
    list_first_hop(rt, &p);
    TESS_TRY(exchange(rt, &p, u->grad_wire_idx));
    if (u->is_by_node) {
        p.receives += rt->world;
        p.sends = p.receives + rt->world;
        p.send_numel = p.receive_numel = 0;
        list_second_hop(rt, &p);
        TESS_TRY(exchange(rt, &p, u->pass_wire_idx));
    }
    return tess_event_record(&rt->piece_sent[list_idx], rt->lane[TESS_LANE_REDUCE]);
}

tess_status gradient_clear(tess_runtime *rt, const tess_sched_op *op)
{
    const int64_t numel = rt->parts.plan->unit[op->unit_idx].slab_shard_numel * rt->world;
    const tess_view grad = runtime_view(rt, grad_buffer(rt, op->grad_idx), numel, TESS_F32);
    return tess_device_zero(rt->device, grad, rt->compute);
}

tess_status gradient_reduce(tess_runtime *rt, const tess_sched_op *op)
{
    const tess_plan *plan = rt->parts.plan;
    const tess_unit_plan *u = &plan->unit[op->unit_idx];
    float *grad = grad_buffer(rt, op->grad_idx);
    const int64_t padded_numel = u->slab_shard_numel * rt->world;
    return tess_comm_reduce_scatter(rt->parts.world, &plan->wire[u->grad_wire_idx],
                                    runtime_view(rt, grad, padded_numel, TESS_F32),
                                    runtime_view(rt, received(rt), u->slab_shard_numel, TESS_F32),
                                    rt->lane[TESS_LANE_REDUCE]);
}

static tess_status fold(tess_runtime *rt, const float *a, const float *b, float *dst, int64_t numel)
{
    const tess_fold_args args = {.a = a, .b = b, .dst = dst, .numel = numel};
    return rt->parts.kernels->fold(&args, rt->compute);
}

static tess_status copy(tess_runtime *rt, float *dst, const float *src, int64_t numel)
{
    return tess_device_copy(rt->device, runtime_view(rt, dst, numel, TESS_F32),
                            runtime_view(rt, src, numel, TESS_F32), rt->compute);
}

static tess_status fold_library(tess_runtime *rt, const tess_sched_op *op, int64_t numel)
{
    const bool is_first = rt->parts.plan->is_library_once || op->round_idx == 0;
    float *sum = level(rt, 0, op->unit_idx);
    const float *part = received(rt);
    if (!is_first)
        return fold(rt, sum, part, sum, numel);
    return copy(rt, sum, part, numel);
}

tess_status gradient_fold(tess_runtime *rt, const tess_sched_op *op)
{
    const int unit_idx = op->unit_idx;
    const int64_t numel = runtime_owned_numel(rt, unit_idx);
    if (numel == 0)
        return TESS_OK;
    if (rt->parts.plan->options.is_library)
        return fold_library(rt, op, numel);
    const round_pieces p = pieces_of(rt, op);
    const tess_plan *plan = rt->parts.plan;
    const tess_fold_pieces_args args = {.pieces = received(rt),
                                        .own = rt->rank < p.sender_numel ? p.grad + p.lo : NULL,
                                        .own_idx = rt->rank,
                                        .piece_numel = p.sender_numel,
                                        .stride_numel = numel,
                                        .levels = level(rt, 0, unit_idx),
                                        .level_stride_numel = plan->summed_numel,
                                        .level_numel = plan->level_numel,
                                        .first_idx = (int64_t)op->round_idx * rt->world,
                                        .numel = numel};
    return rt->parts.kernels->fold_pieces(&args, rt->compute);
}

tess_status gradient_finish(tess_runtime *rt)
{
    const tess_plan *plan = rt->parts.plan;
    const int64_t m = plan->options.is_library ? 1 : plan->options.micro_batch_numel;
    float *carried = NULL;
    if (plan->summed_numel == 0)
        return TESS_OK;
    for (int l = 0; l < plan->level_numel; l++) {
        float *here = level(rt, l, 0) - plan->unit[0].state_first_idx;
        if ((m >> l & 1) == 0)
            continue;
        if (carried != NULL)
            TESS_TRY(fold(rt, here, carried, here, plan->summed_numel));
        carried = here;
    }
    return TESS_OK;
}

float *gradient_sum(tess_runtime *rt, int unit_idx)
{
    return level(rt, rt->parts.plan->level_numel - 1, unit_idx);
}
