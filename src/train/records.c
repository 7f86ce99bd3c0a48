/* What a checkpoint holds of a run: one record per slab and role, one table entry per tensor. */
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "train/session_priv.h"

/*
 * [Note: coarse state] Arrays with a number per block or per row and column have other lengths than
 * the slab, and tensors lie elsewhere in them: they are units of their own, "blk.3.blocks" and
 * "blk.3.factors", whose tensors carry the same ending.
 */
static const char *const ending[] = {[TESS_GRAIN_ELEMENT] = "",
                                     [TESS_GRAIN_BLOCK] = ".blocks",
                                     [TESS_GRAIN_FACTOR] = ".factors",
                                     [TESS_GRAIN_REST] = ""};

bool session_may_leave(void *arg, const char *unit)
{
    const tess_session *s = arg;
    for (int i = 0; i < s->d.registry.unit_numel; i++) {
        const char *name = s->d.registry.unit[i].name;
        const size_t nbytes = strlen(name);
        if (!s->d.registry.unit[i].is_set || strncmp(unit, name, nbytes) != 0)
            continue;
        for (int k = 0; k < TESS_NELEM(ending); k++)
            if (strcmp(unit + nbytes, ending[k]) == 0)
                return true;
    }
    return false;
}

static const char *coarse_name(session_records *r, const char *name, tess_state_grain grain)
{
    char *text = r->name[r->name_numel++];
    snprintf(text, sizeof *r->name, "%s%s", name, ending[grain]);
    return text;
}

static void add_state_record(tess_session *s, int unit_idx, int array_idx)
{
    const tess_plan *plan = s->d.plan;
    const tess_state_array *array = &plan->state[array_idx].array;
    const bool is_coded = array->dt == TESS_U8;
    session_records *r = &s->records;
    int64_t lo = 0, hi = 0;
    tess_plan_state_owned(plan, unit_idx, array_idx, tess_comm_rank(s->world), &lo, &hi);
    const char *unit = s->d.registry.unit[unit_idx].name;
    if (*ending[array->grain] != '\0')
        unit = coarse_name(r, unit, array->grain);
    r->state_record[r->state.record_numel++] = (tess_ckpt_record){
        .unit = unit,
        .role = array->role,
        .dt = array->dt,
        .total_numel = tess_plan_state_total(plan, unit_idx, array_idx),
        .align_numel = tess_state_align_numel(array->grain),
        .lo_idx = lo,
        .hi_idx = hi,
        .view = tess_runtime_state(s->rt, unit_idx, array_idx),
        .contract = array_idx == TESS_STATE_MASTER
                        ? "stored=f32 logical=f32 compute=derived by one rounding"
                    : is_coded ? "stored=u8 logical=f32"
                               : "stored=f32 logical=f32",
        .quant = is_coded ? "dynamic 8 bit/256" : "none",
    };
}

static void add_state_records(tess_session *s, int unit_idx)
{
    const tess_plan *plan = s->d.plan;
    for (int i = 0; i < plan->state_array_numel; i++)
        if (tess_plan_state_total(plan, unit_idx, i) > 0)
            add_state_record(s, unit_idx, i);
}

/* Where a tensor lies in the arrays of a coarser grain, if there are any. */
static void add_coarse_tensor(tess_session *s, int param_idx, tess_state_grain grain)
{
    const tess_registry *reg = &s->d.registry;
    const tess_param *p = &reg->param[param_idx];
    bool has_array = false;
    for (int i = 0; i < s->d.plan->state_array_numel; i++)
        has_array = has_array || (s->d.plan->state[i].array.grain == grain &&
                                  tess_plan_state_total(s->d.plan, p->unit_idx, i) > 0);
    if (!has_array)
        return;
    session_records *r = &s->records;
    tess_ckpt_tensor t = {.unit = coarse_name(r, reg->unit[p->unit_idx].name, grain),
                          .name = coarse_name(r, p->name, grain),
                          .dtype = "f32",
                          .quant = "none",
                          .dim_numel = 1};
    tess_state_place(reg, param_idx, grain, &t.offset_numel, &t.extent_numel);
    t.shape[0] = t.extent_numel;
    r->state_tensor[r->state.tensor_numel++] = t;
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
        add_coarse_tensor(s, param_idx, TESS_GRAIN_BLOCK);
        add_coarse_tensor(s, param_idx, TESS_GRAIN_FACTOR);
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

static tess_status alloc_records(const tess_session *s, session_records *r)
{
    const tess_registry *reg = &s->d.registry;
    const int64_t record_numel = (int64_t)reg->unit_numel * s->d.plan->state_array_numel;
    const int64_t tensor_numel = 3 * (int64_t)reg->param_numel;
    /* Two more of each: what the feed keeps. */
    TESS_TRY(
        tess_alloc_array(record_numel + 2, sizeof *r->state_record, (void **)&r->state_record));
    TESS_TRY(tess_alloc_array(reg->unit_numel, sizeof *r->base_record, (void **)&r->base_record));
    TESS_TRY(
        tess_alloc_array(tensor_numel + 2, sizeof *r->state_tensor, (void **)&r->state_tensor));
    TESS_TRY(tess_alloc_array(reg->param_numel, sizeof *r->base_tensor, (void **)&r->base_tensor));
    TESS_TRY(tess_alloc_array(reg->param_numel, sizeof *r->quant, (void **)&r->quant));
    return tess_alloc_array(record_numel + 2 * tensor_numel, sizeof *r->name, (void **)&r->name);
}

tess_status session_records_create(tess_session *s)
{
    const tess_registry *reg = &s->d.registry;
    session_records *r = &s->records;
    TESS_TRY(alloc_records(s, r));
    for (int i = 0; i < reg->unit_numel; i++) {
        add_state_records(s, i);
        add_base_record(s, i);
    }
    for (int i = 0; i < reg->param_numel; i++)
        add_tensor(s, i);
    if (s->feed->add_records != NULL)
        s->feed->add_records(s);
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
    tess_free(s->records.name);
}

/* ---- numbers of the whole run ---- */

static const tess_optimizer *optimizer_of(const tess_session *s)
{
    return s->d.plan->options.optimizer;
}

int session_optimizer_values(tess_session *s, tess_ckpt_value *out)
{
    const tess_optimizer *o = optimizer_of(s);
    for (int i = 0; i < o->scalar_numel; i++)
        out[i] = (tess_ckpt_value){
            .name = o->scalar[i], .kind = TESS_CKPT_F64, .f64 = tess_runtime_scalars(s->rt)[i]};
    return o->scalar_numel;
}

tess_status session_optimizer_restore(tess_session *s, const tess_ckpt_loaded *m)
{
    const tess_optimizer *o = optimizer_of(s);
    for (int i = 0; i < o->scalar_numel; i++) {
        const tess_ckpt_value *v = tess_ckpt_loaded_value(m, o->scalar[i]);
        TESS_CHECK(v != NULL && v->kind == TESS_CKPT_F64, TESS_E_FORMAT,
                   "checkpoint '%s' has no number '%s', which train.optimizer %s keeps", m->path,
                   o->scalar[i], o->name);
        tess_runtime_scalars(s->rt)[i] = v->f64;
    }
    return TESS_OK;
}

/* ---- which weights are shown ---- */

tess_status session_publish(tess_session *s, tess_weights weights)
{
    TESS_TRY(session_section(s, tess_runtime_publish_as(s->rt, weights)));
    return s->feed->shown != NULL ? s->feed->shown(s) : TESS_OK;
}

tess_status session_show(tess_session *s, tess_weights weights)
{
    const bool is_beside = optimizer_of(s)->train_array_idx != 0;
    const bool is_master[2] = {s->shown != TESS_WEIGHTS_EMA, weights != TESS_WEIGHTS_EMA};
    const bool is_same = s->shown == weights || (is_master[0] && is_master[1] && !is_beside);
    s->shown = weights;
    return is_same ? TESS_OK : session_publish(s, weights);
}
