#include "shard/registry.h"

#include <stdio.h>
#include <string.h>

#include "core/arith.h"
#include "core/memory.h"

void tess_registry_init(tess_registry *reg, tess_dtype compute_dt)
{
    memset(reg, 0, sizeof *reg);
    reg->compute_dt = compute_dt;
}

void tess_registry_fini(tess_registry *reg)
{
    tess_free(reg->param);
    tess_free(reg->unit);
    tess_free(reg->stage);
    memset(reg, 0, sizeof *reg);
}

tess_cost tess_stage_cost_backward(const tess_stage_cost *cost, bool is_recomputed)
{
    if (!is_recomputed)
        return cost->backward;
    tess_cost again = cost->again.launch_numel > 0.0 ? cost->again : cost->forward;
    again.model_flops = 0.0;
    return tess_cost_sum(cost->backward, again);
}

/* Arrays grow in steps of 64; registration is not hot. */
static tess_status append(void **array, int *numel, size_t elem_nbytes, const void *elem)
{
    if (*numel % 64 == 0)
        TESS_TRY(tess_realloc_array(*numel, *numel + 64, elem_nbytes, array));
    memcpy((char *)*array + (size_t)*numel * elem_nbytes, elem, elem_nbytes);
    (*numel)++;
    return TESS_OK;
}

tess_status tess_registry_add_unit(tess_registry *reg, const char *name, int *unit_idx)
{
    tess_unit unit = {.compute_dt = reg->compute_dt};
    TESS_CHECK(!reg->is_laid_out, TESS_E_STATE, "unit '%s' added after the layout", name);
    TESS_CHECK(strlen(name) < sizeof unit.name, TESS_E_ARG, "unit name of %zu bytes is too long",
               strlen(name));
    snprintf(unit.name, sizeof unit.name, "%s", name);
    const int idx = reg->unit_numel;
    void *array = reg->unit;
    TESS_TRY(append(&array, &reg->unit_numel, sizeof unit, &unit));
    reg->unit = array;
    *unit_idx = idx;
    return TESS_OK;
}

tess_status tess_registry_widen_unit(tess_registry *reg, int unit_idx)
{
    TESS_CHECK(!reg->is_laid_out, TESS_E_STATE, "unit '%s' widened after the layout",
               reg->unit[unit_idx].name);
    reg->unit[unit_idx].compute_dt = TESS_F32;
    return TESS_OK;
}

tess_status tess_registry_set_unit(tess_registry *reg, int unit_idx)
{
    TESS_CHECK(!reg->is_laid_out, TESS_E_STATE, "unit '%s' is set from elsewhere after the layout",
               reg->unit[unit_idx].name);
    reg->unit[unit_idx].is_set = true;
    return TESS_OK;
}

tess_status tess_registry_hold_unit(tess_registry *reg, int unit_idx)
{
    TESS_CHECK(!reg->is_laid_out, TESS_E_STATE, "unit '%s' is held after the layout",
               reg->unit[unit_idx].name);
    reg->unit[unit_idx].is_held = true;
    return TESS_OK;
}

tess_status tess_registry_add_param(tess_registry *reg, const tess_param *param, int *param_idx)
{
    tess_param copy = *param;
    TESS_CHECK(!reg->is_laid_out, TESS_E_STATE, "tensor '%s' added after the layout", copy.name);
    TESS_CHECK(copy.unit_idx >= 0 && copy.unit_idx < reg->unit_numel, TESS_E_ARG,
               "tensor '%s': unit %d of %d", copy.name, copy.unit_idx, reg->unit_numel);
    TESS_CHECK(copy.shape_rank >= 1 && copy.shape_rank <= TESS_PARAM_RANK_MAX, TESS_E_ARG,
               "tensor '%s': expected 1 to %d dimensions, found %d", copy.name, TESS_PARAM_RANK_MAX,
               copy.shape_rank);
    TESS_CHECK(tess_registry_find(reg, copy.name) < 0, TESS_E_ARG, "tensor '%s' registered twice",
               copy.name);
    copy.numel = 1;
    for (int i = 0; i < copy.shape_rank; i++) {
        TESS_CHECK(copy.shape[i] > 0, TESS_E_ARG, "tensor '%s': dimension %d is %" PRId64,
                   copy.name, i, copy.shape[i]);
        TESS_TRY(tess_mul_i64(copy.numel, copy.shape[i], &copy.numel));
    }
    const int64_t row_numel = copy.shape[copy.shape_rank - 1];
    const int64_t block_numel = tess_format_block(copy.codec.format).numel;
    TESS_CHECK(copy.role != TESS_ROLE_FROZEN || block_numel == 0 || row_numel % block_numel == 0,
               TESS_E_UNSUPPORTED,
               "tensor '%s': %s needs rows of whole blocks of %" PRId64 " elements, found %" PRId64
               "; choose another format for it in base.overrides",
               copy.name, tess_format_name(copy.codec.format), block_numel, row_numel);
    const int idx = reg->param_numel;
    void *array = reg->param;
    TESS_TRY(append(&array, &reg->param_numel, sizeof copy, &copy));
    reg->param = array;
    *param_idx = idx;
    return TESS_OK;
}

tess_status tess_registry_add_stage(tess_registry *reg, const tess_stage *stage)
{
    TESS_CHECK(!reg->is_laid_out, TESS_E_STATE, "stage '%s' added after the layout", stage->name);
    TESS_CHECK(stage->unit_idx >= 0 && stage->unit_idx < reg->unit_numel, TESS_E_ARG,
               "stage '%s': unit %d of %d", stage->name, stage->unit_idx, reg->unit_numel);
    void *array = reg->stage;
    TESS_TRY(append(&array, &reg->stage_numel, sizeof *stage, stage));
    reg->stage = array;
    reg->unit[stage->unit_idx].stage_numel++;
    return TESS_OK;
}

static tess_status place_frozen(tess_param *p, tess_unit *unit)
{
    TESS_TRY(tess_codec_parts(&p->codec, p->numel, p->part, &p->part_numel));
    int64_t end_nbytes = (int64_t)unit->frozen_nbytes;
    for (int i = 0; i < p->part_numel; i++) {
        end_nbytes = tess_round_up(end_nbytes, TESS_ARENA_ALIGN_NBYTES);
        p->part_offset_nbytes[i] = (size_t)end_nbytes;
        TESS_TRY(tess_add_i64(end_nbytes, (int64_t)p->part[i].nbytes, &end_nbytes));
    }
    unit->frozen_nbytes = (size_t)end_nbytes;
    return TESS_OK;
}

static tess_status place_trainable(tess_registry *reg, bool is_in_front)
{
    for (int i = 0; i < reg->param_numel; i++) {
        tess_param *p = &reg->param[i];
        tess_unit *unit = &reg->unit[p->unit_idx];
        if (p->role != TESS_ROLE_TRAINABLE || p->is_in_front != is_in_front)
            continue;
        p->slab_first_idx = unit->trainable_numel;
        TESS_TRY(tess_add_i64(unit->trainable_numel,
                              tess_round_up(p->numel, TESS_TRAINABLE_BLOCK_NUMEL),
                              &unit->trainable_numel));
    }
    return TESS_OK;
}

tess_status tess_registry_lay_out(tess_registry *reg)
{
    TESS_CHECK(!reg->is_laid_out, TESS_E_STATE, "registry laid out twice");
    for (int i = 0; i < reg->param_numel; i++)
        if (reg->param[i].role == TESS_ROLE_FROZEN)
            TESS_TRY(place_frozen(&reg->param[i], &reg->unit[reg->param[i].unit_idx]));
    TESS_TRY(place_trainable(reg, true));
    TESS_TRY(place_trainable(reg, false));
    for (int u = 0; u < reg->unit_numel; u++)
        TESS_CHECK(reg->unit[u].stage_numel > 0, TESS_E_ARG, "unit '%s' is used by no stage",
                   reg->unit[u].name);
    reg->is_laid_out = true;
    return TESS_OK;
}

void tess_param_rule(const tess_registry *reg, const tess_param *p, char text[TESS_RULE_NBYTES])
{
    const tess_derived *d = &p->derived;
    char codec[TESS_CODEC_TEXT_NBYTES], more[32] = "";
    tess_codec_describe(&p->codec, codec);
    const int rank = d->low_rank != TESS_LOW_RANK_NONE ? (int)reg->param[d->a_idx].shape[0] : 0;
    if (d->low_rank == TESS_LOW_RANK_PISSA)
        snprintf(more, sizeof more, "/pissa/r%d", rank);
    else if (d->low_rank == TESS_LOW_RANK_LOFTQ)
        snprintf(more, sizeof more, "/loftq/r%d/n%d", rank, d->turn_numel);
    else if (p->init == TESS_INIT_DERIVED)
        snprintf(more, sizeof more, "/initial");
    snprintf(text, TESS_RULE_NBYTES, "%s%s", codec, more);
}

static bool is_beside(const tess_param *a, const tess_param *b)
{
    return b->role == TESS_ROLE_TRAINABLE && b->unit_idx == a->unit_idx &&
           b->is_in_front == a->is_in_front;
}

bool tess_registry_is_behind(const tess_registry *reg, int idx, int next_idx)
{
    const tess_param *p = &reg->param[idx];
    if (p->role != TESS_ROLE_TRAINABLE || p->numel % TESS_TRAINABLE_BLOCK_NUMEL != 0)
        return false;
    int i = idx + 1;
    while (i < reg->param_numel && !is_beside(p, &reg->param[i]))
        i++;
    return i == next_idx && i < reg->param_numel;
}

int tess_registry_find(const tess_registry *reg, const char *name)
{
    for (int i = 0; i < reg->param_numel; i++)
        if (strcmp(reg->param[i].name, name) == 0)
            return i;
    return -1;
}

static tess_matrix plain_matrix(const tess_param *p, tess_dtype dt)
{
    tess_matrix m = {.codec = {.format = dt == TESS_F32 ? TESS_FORMAT_F32 : TESS_FORMAT_BF16}};
    m.rows = p->shape_rank == 1 ? 1 : p->shape[0];
    m.cols = p->numel / m.rows;
    return m;
}

tess_matrix tess_call_matrix(const tess_stage_call *call, int param_idx)
{
    const tess_param *p = &call->registry->param[param_idx];
    const tess_dtype dt = tess_param_compute_dt(call->registry, p);
    tess_matrix m = plain_matrix(p, dt);
    if (p->role == TESS_ROLE_TRAINABLE) {
        m.part[0] = call->trainable + (size_t)p->slab_first_idx * tess_dtype_block_nbytes(dt);
        return m;
    }
    m.codec = p->codec;
    for (int i = 0; i < p->part_numel; i++)
        m.part[i] = call->frozen + p->part_offset_nbytes[i];
    return m;
}

float *tess_call_grad(const tess_stage_call *call, int param_idx)
{
    return call->grad + call->registry->param[param_idx].slab_first_idx;
}
