/* Before the first step: every matrix product of one is announced, and all ranks take the same
 * algorithms. */
#include "core/memory.h"
#include "shard/runtime_priv.h"

/* The calls of one operation, with the addresses it will have; nothing is computed. */
static tess_status announce(tess_runtime *rt, const tess_sched_op *op, tess_call_mode mode)
{
    const tess_registry *reg = rt->parts.registry;
    const tess_plan *plan = rt->parts.plan;
    tess_stage_call call = runtime_call(rt, op, mode);
    const int s = op->stage_idx;
    if (op->kind == TESS_SCHED_FORWARD)
        return rt->parts.ops->forward(rt->parts.model, &call);
    if (op->is_recomputed) {
        tess_stage_call again = call;
        if (reg->stage[s].skips_output)
            again.output = runtime_view(rt, NULL, 0, TESS_U8_OPAQUE);
        TESS_TRY(rt->parts.ops->forward(rt->parts.model, &again));
    }
    if (s < reg->stage_numel - 1)
        call.d_output = runtime_view(rt, runtime_at(rt, TESS_LIFE_WORK, plan->d_offset_nbytes[0]),
                                     (int64_t)reg->stage[s].output_nbytes, TESS_U8_OPAQUE);
    if (s > 0)
        call.d_input = runtime_view(rt, runtime_at(rt, TESS_LIFE_WORK, plan->d_offset_nbytes[1]),
                                    (int64_t)reg->stage[s - 1].output_nbytes, TESS_U8_OPAQUE);
    return rt->parts.ops->backward(rt->parts.model, &call);
}

static tess_status announce_all(tess_runtime *rt, const program *p, tess_call_mode mode)
{
    for (int i = 0; i < p->schedule.op_numel; i++) {
        const tess_sched_op *op = &p->schedule.op[i];
        if (op->kind == TESS_SCHED_FORWARD || op->kind == TESS_SCHED_BACKWARD)
            TESS_TRY(announce(rt, op, mode));
    }
    return TESS_OK;
}

static tess_status choose(tess_runtime *rt)
{
    const tess_optimizer *o = rt->parts.plan->options.optimizer;
    TESS_TRY(announce_all(rt, &rt->train, TESS_CALL_PREPARE_TRAIN));
    TESS_TRY(announce_all(rt, &rt->eval, TESS_CALL_PREPARE_EVAL));
    return o->announce != NULL ? o->announce(rt) : TESS_OK;
}

tess_status tess_runtime_prepare(tess_runtime *rt)
{
    const tess_kernels *k = rt->parts.kernels;
    tess_comm *world = tess_comm_host(rt->parts.world);
    if (k->gemm_prepare == NULL)
        return TESS_OK;
    void *bytes = NULL;
    uint64_t nbytes = 0;
    TESS_TRY(tess_agree(world, choose(rt)));
    nbytes = k->choices_nbytes(rt->compute);
    TESS_TRY(tess_comm_bcast(world, 0, &nbytes, sizeof nbytes));
    tess_status st = tess_alloc((size_t)nbytes, &bytes);
    if (st == TESS_OK && rt->rank == 0)
        st = k->choices_export(rt->compute, bytes);
    st = tess_agree(world, st);
    if (st == TESS_OK)
        st = tess_comm_bcast(world, 0, bytes, (size_t)nbytes);
    if (st == TESS_OK)
        st = tess_agree(world, k->choices_import(rt->compute, bytes, (size_t)nbytes));
    tess_free(bytes);
    return st;
}
