/* What a checkpoint holds of a run: one record per slab and role, one table entry per tensor. */
#include <stdio.h>

#include "core/memory.h"
#include "train/session_priv.h"

static const char *const state_role[TESS_STATE_NUMEL] = {"master", "exp_avg", "exp_avg_sq"};

static const char *const state_contract[TESS_STATE_NUMEL] = {
    "stored=f32 logical=f32 compute=derived by one rounding", "stored=f32 logical=f32",
    "stored=f32 logical=f32"};

static void add_state_records(tess_session *s, int unit_idx)
{
    const tess_plan *plan = s->d.plan;
    const tess_unit_plan *u = &plan->unit[unit_idx];
    int64_t lo = 0, hi = 0;
    if (u->slab_numel == 0)
        return;
    tess_plan_owned(plan, unit_idx, tess_comm_rank(s->world), &lo, &hi);
    for (int kind = 0; kind < TESS_STATE_NUMEL; kind++)
        s->records.state_record[s->records.state.record_numel++] = (tess_ckpt_record){
            .unit = s->d.registry.unit[unit_idx].name,
            .role = state_role[kind],
            .dt = TESS_F32,
            .total_numel = u->slab_numel,
            .align_numel = TESS_TRAINABLE_BLOCK_NUMEL,
            .lo_idx = lo,
            .hi_idx = hi,
            .view = tess_runtime_state(s->rt, unit_idx, (tess_state_kind)kind),
            .contract = state_contract[kind],
            .quant = "none",
        };
}

static void add_base_record(tess_session *s, int unit_idx)
{
    const tess_plan *plan = s->d.plan;
    const tess_unit_plan *u = &plan->unit[unit_idx];
    const int member = tess_comm_rank(s->world) % plan->options.gather_group_numel;
    if (u->frozen_nbytes == 0)
        return;
    const int64_t total = (int64_t)u->frozen_nbytes, c = (int64_t)u->frozen_shard_nbytes;
    const int64_t lo = TESS_MIN(c * member, total), hi = TESS_MIN(c * (member + 1), total);
    tess_view view = tess_runtime_frozen_shard(s->rt, unit_idx);
    view.numel = hi - lo;
    s->records.base_record[s->records.base.record_numel++] = (tess_ckpt_record){
        .unit = s->d.registry.unit[unit_idx].name,
        .role = "frozen",
        .dt = TESS_U8_OPAQUE,
        .total_numel = total,
        .align_numel = TESS_ARENA_ALIGN_NBYTES,
        .lo_idx = lo,
        .hi_idx = hi,
        .view = view,
        .contract = "stored=bytes wire=bytes",
        .quant = "per tensor",
    };
}

static void add_tensor(tess_session *s, int param_idx)
{
    const tess_param *p = &s->d.registry.param[param_idx];
    tess_ckpt_tensor t = {
        .unit = s->d.registry.unit[p->unit_idx].name, .name = p->name, .dim_numel = p->shape_rank};
    for (int i = 0; i < p->shape_rank; i++)
        t.shape[i] = p->shape[i];
    if (p->role == TESS_ROLE_TRAINABLE) {
        t.dtype = "f32";
        t.quant = "none";
        t.offset_numel = p->slab_first_idx;
        t.extent_numel = p->numel;
        s->records.state_tensor[s->records.state.tensor_numel++] = t;
        return;
    }
    const int last = p->part_numel - 1;
    tess_codec_describe(&p->codec, s->records.quant[param_idx]);
    t.dtype = p->codec.format == TESS_FORMAT_F32 ? "f32" : "bf16";
    t.quant = s->records.quant[param_idx];
    t.offset_numel = (int64_t)p->part_offset_nbytes[0];
    t.extent_numel = (int64_t)(p->part_offset_nbytes[last] + p->part[last].nbytes) - t.offset_numel;
    s->records.base_tensor[s->records.base.tensor_numel++] = t;
}

tess_status session_records_create(tess_session *s)
{
    const tess_registry *reg = &s->d.registry;
    session_records *r = &s->records;
    TESS_TRY(tess_alloc_array((int64_t)reg->unit_numel * TESS_STATE_NUMEL, sizeof *r->state_record,
                              (void **)&r->state_record));
    TESS_TRY(tess_alloc_array(reg->unit_numel, sizeof *r->base_record, (void **)&r->base_record));
    TESS_TRY(
        tess_alloc_array(reg->param_numel, sizeof *r->state_tensor, (void **)&r->state_tensor));
    TESS_TRY(tess_alloc_array(reg->param_numel, sizeof *r->base_tensor, (void **)&r->base_tensor));
    TESS_TRY(tess_alloc_array(reg->param_numel, sizeof *r->quant, (void **)&r->quant));
    for (int i = 0; i < reg->unit_numel; i++) {
        add_state_records(s, i);
        add_base_record(s, i);
    }
    for (int i = 0; i < reg->param_numel; i++)
        add_tensor(s, i);
    r->state.records = r->state_record;
    r->state.tensors = r->state_tensor;
    r->state.shard_world = tess_comm_world(s->world);
    r->base.records = r->base_record;
    r->base.tensors = r->base_tensor;
    r->base.shard_world = s->d.plan->options.gather_group_numel;
    return TESS_OK;
}

void session_records_destroy(tess_session *s)
{
    tess_free(s->records.state_record);
    tess_free(s->records.base_record);
    tess_free(s->records.state_tensor);
    tess_free(s->records.base_tensor);
    tess_free(s->records.quant);
}
