/* The contracts of a plan: what travels, in which dtypes. */
#include <stdio.h>

#include "core/memory.h"
#include "shard/plan_priv.h"

static tess_status add_wire(tess_plan *plan, tess_wire wire, const char *unit_name,
                            const char *what, int *idx)
{
    wire.entry_idx = (uint32_t)plan->wire_numel;
    snprintf(wire.name, sizeof wire.name, "%.64s/%s", unit_name, what);
    *idx = plan->wire_numel;
    plan->wire[plan->wire_numel++] = wire;
    return TESS_OK;
}

static tess_status plan_unit_wires(tess_plan *plan, const tess_registry *reg, int unit_idx)
{
    tess_unit_plan *u = &plan->unit[unit_idx];
    const char *name = reg->unit[unit_idx].name;
    u->frozen_wire_idx = u->slab_wire_idx = u->grad_wire_idx = u->pass_wire_idx = -1;
    if (u->frozen_nbytes > 0 && plan->options.gather_group_numel > 1) {
        const tess_wire wire = {.op = TESS_COMM_ALL_GATHER,
                                .storage = TESS_U8_OPAQUE,
                                .wire = TESS_U8_OPAQUE,
                                .accumulate = TESS_U8_OPAQUE,
                                .numel_per_rank = (int64_t)u->frozen_shard_nbytes,
                                .numel_total = (int64_t)u->frozen_nbytes,
                                .config_key = "base.format"};
        TESS_TRY(add_wire(plan, wire, name, "frozen", &u->frozen_wire_idx));
    }
    if (u->slab_numel == 0)
        return TESS_OK;
    const tess_wire slab = {.op = TESS_COMM_ALL_GATHER,
                            .storage = reg->unit[unit_idx].compute_dt,
                            .wire = reg->unit[unit_idx].compute_dt,
                            .accumulate = reg->unit[unit_idx].compute_dt,
                            .numel_per_rank = u->slab_shard_numel,
                            .numel_total = u->slab_numel,
                            .config_key = "compute.dtype"};
    const tess_wire grad = {.op = plan->options.is_library ? TESS_COMM_REDUCE_SCATTER
                                                           : TESS_COMM_EXCHANGE,
                            .storage = TESS_F32,
                            .wire = TESS_F32,
                            .accumulate = TESS_F32,
                            .numel_per_rank = u->slab_shard_numel,
                            .numel_total = u->slab_numel,
                            .config_key = "shard.reduction"};
    if (!reg->unit[unit_idx].is_held)
        TESS_TRY(add_wire(plan, slab, name, "trainable", &u->slab_wire_idx));
    if (tess_unit_grad_numel(u) == 0)
        return TESS_OK;
    TESS_TRY(add_wire(plan, grad, name, "grad", &u->grad_wire_idx));
    if (!u->is_by_node)
        return TESS_OK;
    tess_wire pass = grad;
    pass.config_key = "shard.exchange";
    return add_wire(plan, pass, name, "grad inside nodes", &u->pass_wire_idx);
}

/* Matrices to the ranks that work on them whole, and back. */
static tess_status plan_optimizer_wire(tess_plan *plan, const tess_registry *reg)
{
    const tess_optimizer *o = plan->options.optimizer;
    tess_wire wire = {.op = TESS_COMM_EXCHANGE,
                      .storage = TESS_F32,
                      .wire = TESS_F32,
                      .accumulate = TESS_F32,
                      .config_key = "train.optimizer"};
    plan->optimizer_wire_idx = -1;
    if (o->wire_numel == NULL)
        return TESS_OK;
    wire.numel_per_rank = o->wire_numel(reg, &wire.numel_total);
    if (wire.numel_per_rank == 0)
        return TESS_OK;
    return add_wire(plan, wire, o->name, "whole matrices", &plan->optimizer_wire_idx);
}

tess_status plan_wires(tess_plan *plan, const tess_registry *reg)
{
    void *array = NULL;
    TESS_TRY(tess_alloc_array(4 * (int64_t)reg->unit_numel + 1, sizeof *plan->wire, &array));
    plan->wire = array;
    for (int i = 0; i < reg->unit_numel; i++)
        TESS_TRY(plan_unit_wires(plan, reg, i));
    return plan_optimizer_wire(plan, reg);
}
