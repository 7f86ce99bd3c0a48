#include "support/stage_chain.h"

#include <string.h>

#include "core/arith.h"
#include "core/memory.h"

enum { POISON = 0xff }; /* NaN of every float */

static tess_status bytes(size_t nbytes, void *slot)
{
    void *data = NULL;
    TESS_TRY(tess_alloc(TESS_MAX(nbytes, (size_t)1), &data));
    memset(data, POISON, nbytes);
    memcpy(slot, &data, sizeof data);
    return TESS_OK;
}

tess_status stage_chain_init(stage_chain *c, int thread_numel)
{
    TESS_CHECK(c->reg.unit_numel <= CHAIN_MAX && c->reg.stage_numel <= CHAIN_MAX, TESS_E_ARG,
               "%d units, %d stages", c->reg.unit_numel, c->reg.stage_numel);
    TESS_TRY(tess_pool_create(thread_numel, &c->pool));
    tess_stream_init_inline(&c->stream, "compute", c->pool);
    tess_host_device_init(&c->device, c->pool);
    for (int u = 0; u < c->reg.unit_numel; u++) {
        const size_t numel = (size_t)c->reg.unit[u].trainable_numel;
        TESS_TRY(bytes(numel * sizeof(float), &c->master[u]));
        TESS_TRY(bytes(numel * sizeof(float), &c->grad[u]));
        TESS_TRY(bytes(numel * sizeof(float), &c->trainable[u]));
        memset(c->master[u], 0, numel * sizeof(float));
        TESS_TRY(bytes(c->reg.unit[u].frozen_nbytes, &c->frozen[u]));
    }
    for (int s = 0; s < c->reg.stage_numel; s++) {
        const tess_stage *stage = &c->reg.stage[s];
        TESS_TRY(bytes(stage->output_nbytes, &c->output[s]));
        TESS_TRY(bytes(stage->saved_nbytes, &c->saved[s]));
        c->work_nbytes = TESS_MAX(c->work_nbytes, stage->work_nbytes);
        c->d_nbytes = TESS_MAX(c->d_nbytes, stage->output_nbytes);
    }
    TESS_TRY(bytes(c->work_nbytes, &c->work));
    TESS_TRY(bytes(c->d_nbytes, &c->d[0]));
    return bytes(c->d_nbytes, &c->d[1]);
}

void stage_chain_fini(stage_chain *c)
{
    for (int i = 0; i < CHAIN_MAX; i++) {
        void *const owned[] = {c->master[i], c->grad[i],   c->trainable[i],
                               c->frozen[i], c->output[i], c->saved[i]};
        for (int k = 0; k < TESS_NELEM(owned); k++)
            tess_free(owned[k]);
    }
    tess_free(c->work);
    tess_free(c->d[0]);
    tess_free(c->d[1]);
    tess_model_destroy(&c->model);
    tess_registry_fini(&c->reg);
    tess_pool_destroy(&c->pool);
}

tess_status stage_chain_publish(stage_chain *c)
{
    for (int u = 0; u < c->reg.unit_numel; u++) {
        const tess_unit *unit = &c->reg.unit[u];
        const tess_cast_args args = {
            .src = tess_view_host(c->master[u], unit->trainable_numel, TESS_F32),
            .dst = tess_view_host(c->trainable[u], unit->trainable_numel, unit->compute_dt)};
        TESS_TRY(tess_kernels_cpu.cast(&args, &c->stream));
    }
    return TESS_OK;
}

static float *find(const stage_chain *c, const char *name, float *const *array)
{
    const int idx = tess_registry_find(&c->reg, name);
    if (idx < 0)
        return NULL;
    return array[c->reg.param[idx].unit_idx] + c->reg.param[idx].slab_first_idx;
}

float *stage_chain_master(stage_chain *c, const char *name)
{
    const int idx = tess_registry_find(&c->reg, name);
    const tess_param *p = idx < 0 ? NULL : &c->reg.param[idx];
    if (p == NULL || p->role == TESS_ROLE_TRAINABLE)
        return find(c, name, c->master);
    return p->codec.format == TESS_FORMAT_F32
               ? (float *)(void *)(c->frozen[p->unit_idx] + p->part_offset_nbytes[0])
               : NULL;
}

const float *stage_chain_grad(const stage_chain *c, const char *name)
{
    return find(c, name, c->grad);
}

static tess_view view(char *data, size_t nbytes)
{
    return tess_view_host(nbytes > 0 ? data : NULL, (int64_t)nbytes, TESS_U8_OPAQUE);
}

static tess_stage_call call_of(stage_chain *c, int s, tess_call_mode mode, const void *batch,
                               double *loss_sum)
{
    const tess_stage *stage = &c->reg.stage[s];
    memset(c->work, POISON, c->work_nbytes);
    tess_stage_call call = {.registry = &c->reg,
                            .kernels = c->kernels != NULL ? c->kernels : &tess_kernels_cpu,
                            .device = &c->device.base,
                            .stream = &c->stream,
                            .stage_idx = s,
                            .mode = mode,
                            .batch = batch,
                            .frozen = c->frozen[stage->unit_idx],
                            .trainable = c->trainable[stage->unit_idx],
                            .grad = c->grad[stage->unit_idx],
                            .output = view(c->output[s], stage->output_nbytes),
                            .saved = view(c->saved[s], stage->saved_nbytes),
                            .work = view(c->work, c->work_nbytes),
                            .loss_sum = loss_sum};
    if (s > 0)
        call.input = view(c->output[s - 1], c->reg.stage[s - 1].output_nbytes);
    return call;
}

tess_status stage_chain_forward(stage_chain *c, tess_call_mode mode, const void *batch,
                                double *loss_sum)
{
    for (int s = 0; s < c->reg.stage_numel; s++) {
        const tess_stage_call call = call_of(c, s, mode, batch, loss_sum);
        if (mode == TESS_CALL_TRAIN && c->reg.stage[s].is_fused_loss)
            continue;
        TESS_TRY(tess_model_stage_ops(c->model)->forward(tess_model_self(c->model), &call));
    }
    return TESS_OK;
}

tess_status stage_chain_eval(stage_chain *c, const void *batch, double *loss_sum)
{
    return stage_chain_forward(c, TESS_CALL_EVAL, batch, loss_sum);
}

static tess_status repeat(stage_chain *c, int s, const void *batch)
{
    tess_stage_call call = call_of(c, s, TESS_CALL_TRAIN, batch, NULL);
    memset(c->saved[s], POISON, c->reg.stage[s].saved_nbytes);
    call.output = view(NULL, 0);
    return tess_model_stage_ops(c->model)->forward(tess_model_self(c->model), &call);
}

tess_status stage_chain_train(stage_chain *c, const void *batch, float grad_scale, double *loss_sum)
{
    TESS_TRY(stage_chain_forward(c, TESS_CALL_TRAIN, batch, loss_sum));
    for (int u = 0; u < c->reg.unit_numel; u++)
        memset(c->grad[u], 0, (size_t)c->reg.unit[u].trainable_numel * sizeof(float));
    for (int s = c->reg.stage_numel - 1; s >= 0; s--) {
        const int at = s % 2;
        if (c->is_recomputed && !c->reg.stage[s].is_fused_loss)
            TESS_TRY(repeat(c, s, batch));
        tess_stage_call call = call_of(c, s, TESS_CALL_TRAIN, batch, loss_sum);
        call.grad_scale = grad_scale;
        call.d_output = view(c->d[at], c->reg.stage[s].output_nbytes);
        memset(c->d[1 - at], POISON, c->d_nbytes);
        if (s > 0)
            call.d_input = view(c->d[1 - at], c->reg.stage[s - 1].output_nbytes);
        TESS_TRY(tess_model_stage_ops(c->model)->backward(tess_model_self(c->model), &call));
    }
    return TESS_OK;
}
