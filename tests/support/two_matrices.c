#include "support/two_matrices.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/rng.h"

static tess_status add_matrix(tess_registry *reg, int unit_idx, const char *name, tess_role role,
                              int64_t rows, int64_t cols, int *idx)
{
    tess_param p = {.unit_idx = unit_idx,
                    .role = role,
                    .shape_rank = 2,
                    .shape = {rows, cols},
                    .codec = {.format = TESS_FORMAT_F32},
                    .init = TESS_INIT_NORMAL,
                    .init_scale = 0.3,
                    .learning_rate_ratio = 1.0,
                    .has_weight_decay = true};
    snprintf(p.name, sizeof p.name, "%s", name);
    return tess_registry_add_param(reg, &p, idx);
}

static tess_stage make_stage(const char *name, int unit_idx, int64_t output_numel, bool is_last)
{
    tess_stage s = {.unit_idx = unit_idx, .is_fused_loss = is_last};
    snprintf(s.name, sizeof s.name, "%s", name);
    s.output_nbytes = (size_t)output_numel * sizeof(float);
    s.saved_nbytes = is_last ? 0 : (size_t)output_numel * sizeof(float);
    s.work_nbytes = 4096;
    return s;
}

tess_status two_matrices_describe(two_matrices *m, tess_registry *reg)
{
    int unit[2] = {0, 0};
    TESS_TRY(tess_registry_add_unit(reg, "first", &unit[0]));
    if (!m->is_tied)
        TESS_TRY(tess_registry_add_unit(reg, "second", &unit[1]));
    TESS_TRY(
        add_matrix(reg, unit[0], "f0", TESS_ROLE_FROZEN, m->mid_numel, m->in_numel, &m->frozen[0]));
    TESS_TRY(add_matrix(reg, unit[0], "t0", TESS_ROLE_TRAINABLE, m->mid_numel, m->in_numel,
                        &m->trainable[0]));
    if (m->is_tied) {
        m->frozen[1] = m->frozen[0];
        m->trainable[1] = m->trainable[0];
    } else {
        TESS_TRY(add_matrix(reg, unit[1], "f1", TESS_ROLE_FROZEN, m->out_numel, m->mid_numel,
                            &m->frozen[1]));
        TESS_TRY(add_matrix(reg, unit[1], "t1", TESS_ROLE_TRAINABLE, m->out_numel, m->mid_numel,
                            &m->trainable[1]));
    }
    const tess_stage first = make_stage("first", unit[0], m->row_numel * m->mid_numel, false);
    const tess_stage second = make_stage("second", unit[1], 0, true);
    TESS_TRY(tess_registry_add_stage(reg, &first));
    TESS_TRY(tess_registry_add_stage(reg, &second));
    return tess_registry_lay_out(reg);
}

/* The two matrices of a stage; element i of its weight is their sum. */
typedef struct pair {
    const float *frozen, *trainable;
} pair;

static pair weights_of(const tess_stage_call *call, const two_matrices *m, int which)
{
    return (pair){tess_call_matrix(call, m->frozen[which]).part[0],
                  tess_call_matrix(call, m->trainable[which]).part[0]};
}

static float weight(pair w, int64_t i) { return w.frozen[i] + w.trainable[i]; }

static float input_at(const tess_stage_call *call, int64_t i)
{
    const two_matrices_batch *b = call->batch;
    const tess_rng rng = tess_rng_make(11, TESS_RNG_TEST, 0, (uint32_t)b->micro_batch_idx);
    return tess_rng_uniform(&rng, (uint64_t)i) - 0.5f;
}

static void first_forward(const two_matrices *m, const tess_stage_call *call)
{
    const pair w = weights_of(call, m, 0);
    float *out = call->output.data, *saved = call->saved.data;
    for (int64_t r = 0; r < m->row_numel; r++)
        for (int64_t o = 0; o < m->mid_numel; o++) {
            float sum = 0.0f;
            for (int64_t i = 0; i < m->in_numel; i++)
                sum += input_at(call, r * m->in_numel + i) * weight(w, o * m->in_numel + i);
            out[r * m->mid_numel + o] = tanhf(sum);
            saved[r * m->mid_numel + o] = tanhf(sum);
        }
}

static tess_status forward(void *model, const tess_stage_call *call)
{
    const two_matrices *m = model;
    if (call->stage_idx == 0)
        first_forward(m, call);
    return TESS_OK;
}

static void second_backward(const two_matrices *m, const tess_stage_call *call)
{
    const pair w = weights_of(call, m, 1);
    const float *h = call->input.data;
    float *d_h = call->d_input.data;
    float *grad = tess_call_grad(call, m->trainable[1]);
    double loss = 0.0;
    memset(d_h, 0, (size_t)(m->row_numel * m->mid_numel) * sizeof *d_h);
    for (int64_t r = 0; r < m->row_numel; r++)
        for (int64_t o = 0; o < m->out_numel; o++) {
            float y = 0.0f;
            for (int64_t i = 0; i < m->mid_numel; i++)
                y += h[r * m->mid_numel + i] * weight(w, o * m->mid_numel + i);
            loss += 0.5 * (double)y * (double)y;
            const float d_y = y * call->grad_scale;
            for (int64_t i = 0; i < m->mid_numel; i++) {
                grad[o * m->mid_numel + i] += d_y * h[r * m->mid_numel + i];
                d_h[r * m->mid_numel + i] += d_y * weight(w, o * m->mid_numel + i);
            }
        }
    *call->loss_sum = loss;
}

static void first_backward(const two_matrices *m, const tess_stage_call *call)
{
    const float *h = call->saved.data, *d_h = call->d_output.data;
    float *grad = tess_call_grad(call, m->trainable[0]);
    for (int64_t r = 0; r < m->row_numel; r++)
        for (int64_t o = 0; o < m->mid_numel; o++) {
            const float value = h[r * m->mid_numel + o];
            const float d = d_h[r * m->mid_numel + o] * (1.0f - value * value);
            for (int64_t i = 0; i < m->in_numel; i++)
                grad[o * m->in_numel + i] += d * input_at(call, r * m->in_numel + i);
        }
}

static tess_status backward(void *model, const tess_stage_call *call)
{
    const two_matrices *m = model;
    if (call->stage_idx == 0) {
        first_backward(m, call);
        if (m->is_poisoned && call->micro_batch_idx == m->poisoned_idx)
            tess_call_grad(call, m->trainable[0])[m->in_numel] = NAN;
    } else
        second_backward(m, call);
    return TESS_OK;
}

const tess_stage_ops two_matrices_ops = {.forward = forward, .backward = backward};
