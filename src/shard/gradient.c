/*
 * [Note: ordered sum] The owner of a shard pushes the pieces of micro-batches 0 .. M-1 into a
 * binary counter of partial sums: level l holds the sum of 2^l consecutive micro-batches. The tree
 * depends on M alone, so any number of ranks gives the same bits. Leftover subtrees merge from the
 * smallest up into the top level.
 */
#include "shard/runtime_priv.h"

static float *level(tess_runtime *rt, int level_idx, int unit_idx)
{
    const tess_plan *plan = rt->parts.plan;
    float *base = (float *)(void *)runtime_at(rt, TESS_LIFE_GRAD, plan->level_offset_nbytes);
    return base + level_idx * plan->state_numel + plan->unit[unit_idx].state_first_idx;
}

static float *grad_buffer(tess_runtime *rt, int grad_idx)
{
    const size_t offset = rt->parts.plan->grad_buffer_offset_nbytes[grad_idx];
    return (float *)(void *)runtime_at(rt, TESS_LIFE_GRAD, offset);
}

static float *receive_row(tess_runtime *rt, int row_idx, int unit_idx)
{
    const tess_plan *plan = rt->parts.plan;
    float *base = (float *)(void *)runtime_at(rt, TESS_LIFE_GRAD, plan->receive_offset_nbytes);
    return base + row_idx * plan->unit[unit_idx].slab_shard_numel;
}

static int64_t senders_of_round(const tess_runtime *rt, int round_idx)
{
    const int64_t left = rt->parts.plan->options.micro_batch_numel - (int64_t)round_idx * rt->world;
    return TESS_MIN(left, (int64_t)rt->world);
}

tess_status gradient_send(tess_runtime *rt, const tess_sched_op *op)
{
    const tess_plan *plan = rt->parts.plan;
    const int unit_idx = op->unit_idx;
    const int64_t sender_numel = senders_of_round(rt, op->round_idx);
    tess_piece *sends = rt->pieces[rt->piece_parity];
    tess_piece *receives = sends + rt->world;
    int send_numel = 0, receive_numel = 0;
    float *grad = grad_buffer(rt, op->grad_idx);
    rt->piece_parity = 1 - rt->piece_parity;
    for (int peer = 0; peer < rt->world && rt->rank < sender_numel; peer++) {
        int64_t lo = 0, hi = 0;
        tess_plan_owned(plan, unit_idx, peer, &lo, &hi);
        if (peer == rt->rank || hi == lo)
            continue;
        sends[send_numel++] = (tess_piece){peer, runtime_view(rt, grad + lo, hi - lo, TESS_F32)};
    }
    const int64_t owned_numel = runtime_owned_numel(rt, unit_idx);
    for (int peer = 0, row = 0; peer < sender_numel && owned_numel > 0; peer++) {
        if (peer == rt->rank)
            continue;
        receives[receive_numel++] = (tess_piece){
            peer, runtime_view(rt, receive_row(rt, row++, unit_idx), owned_numel, TESS_F32)};
    }
    return tess_comm_exchange(rt->parts.world, &plan->wire[plan->unit[unit_idx].grad_wire_idx],
                              sends, send_numel, receives, receive_numel,
                              rt->lane[TESS_LANE_REDUCE]);
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
    return tess_comm_reduce_scatter(
        rt->parts.world, &plan->wire[u->grad_wire_idx],
        runtime_view(rt, grad, padded_numel, TESS_F32),
        runtime_view(rt, receive_row(rt, 0, op->unit_idx), u->slab_shard_numel, TESS_F32),
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

/* Push the piece of micro-batch `m` of the step. */
static tess_status push(tess_runtime *rt, int unit_idx, const float *piece, int64_t m,
                        int64_t numel)
{
    if ((m & 1) == 0)
        return copy(rt, level(rt, 0, unit_idx), piece, numel);
    const float *carried = piece;
    for (int l = 0; (m >> l & 1) != 0; l++) {
        float *here = level(rt, l, unit_idx);
        float *dst = (m >> (l + 1) & 1) != 0 ? here : level(rt, l + 1, unit_idx);
        TESS_TRY(fold(rt, here, carried, dst, numel));
        carried = dst;
    }
    return TESS_OK;
}

static tess_status fold_library(tess_runtime *rt, const tess_sched_op *op, int64_t numel)
{
    const bool is_first = rt->parts.plan->is_library_once || op->round_idx == 0;
    float *sum = level(rt, 0, op->unit_idx);
    const float *part = receive_row(rt, 0, op->unit_idx);
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
    int64_t lo = 0, hi = 0;
    tess_plan_owned(rt->parts.plan, unit_idx, rt->rank, &lo, &hi);
    const int64_t sender_numel = senders_of_round(rt, op->round_idx);
    for (int sender = 0, row = 0; sender < sender_numel; sender++) {
        const float *piece = sender == rt->rank ? grad_buffer(rt, op->grad_idx) + lo
                                                : receive_row(rt, row++, unit_idx);
        TESS_TRY(push(rt, unit_idx, piece, (int64_t)op->round_idx * rt->world + sender, numel));
    }
    return TESS_OK;
}

tess_status gradient_finish(tess_runtime *rt)
{
    const tess_plan *plan = rt->parts.plan;
    const int64_t m = plan->options.is_library ? 1 : plan->options.micro_batch_numel;
    float *carried = NULL;
    if (plan->state_numel == 0)
        return TESS_OK;
    for (int l = 0; l < plan->level_numel; l++) {
        float *here = level(rt, l, 0) - plan->unit[0].state_first_idx;
        if ((m >> l & 1) == 0)
            continue;
        if (carried != NULL)
            TESS_TRY(fold(rt, here, carried, here, plan->state_numel));
        carried = here;
    }
    return TESS_OK;
}

float *gradient_sum(tess_runtime *rt, int unit_idx)
{
    return level(rt, rt->parts.plan->level_numel - 1, unit_idx);
}
