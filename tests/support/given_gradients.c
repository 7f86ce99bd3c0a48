#include "support/given_gradients.h"

#include <stdio.h>
#include <string.h>

static const struct {
    const char *name;
    int unit_idx;
    int shape_rank;
    int64_t shape[2];
} tensor[GIVEN_TENSOR_NUMEL] = {
    {"tall", 0, 2, {19, 13}}, {"vector", 0, 1, {70}}, {"wide", 1, 2, {9, 41}}};

static tess_status add_tensor(given_gradients *g, tess_registry *reg, int i)
{
    tess_param p = {.unit_idx = tensor[i].unit_idx,
                    .role = TESS_ROLE_TRAINABLE,
                    .shape_rank = tensor[i].shape_rank,
                    .shape = {tensor[i].shape[0], tensor[i].shape[1]},
                    .learning_rate_ratio = 1.0,
                    .has_weight_decay = tensor[i].shape_rank > 1};
    snprintf(p.name, sizeof p.name, "%s", tensor[i].name);
    return tess_registry_add_param(reg, &p, &g->param[i]);
}

tess_status given_gradients_describe(given_gradients *g, tess_registry *reg)
{
    static const char *const unit[GIVEN_UNIT_NUMEL] = {"first", "second"};
    int idx = 0;
    for (int i = 0; i < GIVEN_UNIT_NUMEL; i++)
        TESS_TRY(tess_registry_add_unit(reg, unit[i], &idx));
    for (int i = 0; i < GIVEN_TENSOR_NUMEL; i++)
        TESS_TRY(add_tensor(g, reg, i));
    for (int i = 0; i < GIVEN_UNIT_NUMEL; i++) {
        const bool is_last = i + 1 == GIVEN_UNIT_NUMEL;
        tess_stage s = {.unit_idx = i, .is_fused_loss = is_last, .output_nbytes = is_last ? 0 : 4};
        snprintf(s.name, sizeof s.name, "%s", unit[i]);
        TESS_TRY(tess_registry_add_stage(reg, &s));
    }
    return tess_registry_lay_out(reg);
}

static tess_status forward(void *model, const tess_stage_call *call)
{
    (void)model;
    if (call->stage_idx + 1 == GIVEN_UNIT_NUMEL)
        *call->loss_sum = 0.0;
    return TESS_OK;
}

static tess_status backward(void *model, const tess_stage_call *call)
{
    const given_gradients *g = model;
    for (int i = 0; i < GIVEN_TENSOR_NUMEL; i++) {
        char name[32];
        int64_t numel = 0;
        if (tensor[i].unit_idx != call->stage_idx)
            continue;
        snprintf(name, sizeof name, "%d.%s", (int)g->step, tensor[i].name);
        const float *given = tess_golden_tensor(g->golden, name, TESS_F32, &numel);
        TESS_CHECK(given != NULL && numel == call->registry->param[g->param[i]].numel,
                   TESS_E_FORMAT, "golden gradients: no '%s'", name);
        for (int64_t k = 0; k < numel; k++)
            tess_call_grad(call, g->param[i])[k] = 0.5f * given[k];
    }
    return call->stage_idx + 1 == GIVEN_UNIT_NUMEL ? forward(model, call) : TESS_OK;
}

const tess_stage_ops given_gradients_ops = {.forward = forward, .backward = backward};
