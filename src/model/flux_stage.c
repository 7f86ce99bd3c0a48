/* Stage calls of the FLUX.1 family: what a call brings, made ready for the blocks. */
#include <inttypes.h>

#include "model/flux_priv.h"

static const tess_view none = {.dt = TESS_F32};

static bool is_final(const tess_flux *m, int stage_idx)
{
    return stage_idx == tess_flux_stage_numel(m) - 1;
}

/* Something that learns depends on the stage's input rows: the embedding of rows, a block below,
 * or the embedders, through the modulation of a block below. */
static bool wants_d_h(const tess_flux *m, int stage_idx)
{
    bool wants = stage_idx > 1 && m->embedders_learn;
    for (int s = 0; s < stage_idx; s++)
        wants = wants || m->stage_learns[s];
    return wants;
}

/* A stage without it has no backward: what it would keep is scratch, and it is not repeated. */
static bool has_backward(const tess_flux *m, int stage_idx)
{
    return m->embedders_learn || m->stage_learns[stage_idx] || wants_d_h(m, stage_idx);
}

static tess_status forward(const tess_flux_call *c, int stage_idx)
{
    const tess_flux *m = c->m;
    if (stage_idx == 0)
        return tess_flux_embed_forward(c);
    if (is_final(m, stage_idx))
        return tess_flux_final_forward(c);
    if (stage_idx <= m->double_numel)
        return tess_flux_double_forward(c, &m->double_block[stage_idx - 1]);
    return tess_flux_single_forward(c, &m->single_block[stage_idx - 1 - m->double_numel]);
}

static tess_status backward(const tess_flux_call *c, int stage_idx)
{
    const tess_flux *m = c->m;
    if (is_final(m, stage_idx)) /* its loss is wanted whatever learns */
        return tess_flux_final_backward(c);
    if (!has_backward(m, stage_idx))
        return TESS_OK;
    if (stage_idx == 0)
        return tess_flux_embed_backward(c);
    if (stage_idx <= m->double_numel)
        return tess_flux_double_backward(c, &m->double_block[stage_idx - 1]);
    return tess_flux_single_backward(c, &m->single_block[stage_idx - 1 - m->double_numel]);
}

static tess_status take_edge(const tess_flux_call *c, tess_carve *carve, tess_flux_edge *edge)
{
    const int64_t h = c->m->hidden_numel;
    TESS_TRY(tess_carve_take_2d(carve, c->sample_numel * c->token_numel, h, c->ex->dt, &edge->h));
    return tess_carve_take_2d(carve, c->sample_numel, h, c->ex->dt, &edge->s);
}

/* What both a plan and a call set. */
static void set_call(const tess_flux *m, int stage_idx, const tess_flux_batch *batch,
                     tess_flux_call *c)
{
    c->m = m;
    c->batch = batch;
    c->sample_numel = batch->sample_numel;
    c->row_numel[TESS_FLUX_TEXT] = batch->text_numel;
    c->row_numel[TESS_FLUX_IMAGE] = batch->image_numel;
    c->token_numel = batch->text_numel + batch->image_numel;
    c->input.h = c->output.h = c->d_output.h = c->d_input.h = none;
    c->input.s = c->output.s = c->d_output.s = c->d_input.s = none;
    c->wants_d_h = wants_d_h(m, stage_idx);
    c->wants_d_s = m->embedders_learn;
    c->keep = has_backward(m, stage_idx) ? &c->ex->saved : &c->ex->work;
}

/* ---- plan ---- */

static tess_flux_batch planned_batch(const tess_flux *m)
{
    return (tess_flux_batch){.sample_numel = m->shape.sample_numel,
                             .image_numel = m->shape.image_numel,
                             .text_numel = m->shape.text_numel};
}

tess_status tess_flux_plan_stage(const tess_flux *m, const tess_registry *reg, int stage_idx,
                                 tess_stage *stage)
{
    const tess_flux_batch batch = planned_batch(m);
    tess_exec ex = tess_exec_plan(m->kernels, reg, m->dt, m->thread_numel);
    ex.dropout = m->dropout;
    tess_carve edge = tess_carve_make("edge", none, true);
    tess_flux_call c = {.ex = &ex};
    set_call(m, stage_idx, &batch, &c);
    TESS_TRY(take_edge(&c, &edge, &c.output));
    c.d_output = c.output;
    if (stage_idx > 0)
        c.input = c.d_input = c.output;
    ex.cost = &stage->cost.forward;
    TESS_TRY(forward(&c, stage_idx));
    /* Evaluation has no dropout and takes no more; backward carves the same saved buffers again. */
    ex.saved.used_nbytes = ex.work.used_nbytes = 0;
    ex.cost = &stage->cost.backward;
    TESS_TRY(backward(&c, stage_idx));
    stage->saved_nbytes = ex.saved.peak_nbytes;
    stage->work_nbytes = ex.work.peak_nbytes;
    stage->is_fused_loss = is_final(m, stage_idx);
    stage->skips_output = true;
    if (!stage->is_fused_loss)
        stage->output_nbytes = edge.peak_nbytes;
    return TESS_OK;
}

/* ---- one call ---- */

static tess_status check_extent(const char *what, int64_t found, int64_t planned, int64_t least)
{
    TESS_CHECK(found >= least && found <= planned, TESS_E_ARG,
               "micro-batch of %" PRId64 " %s: expected %" PRId64 " to %" PRId64 " as planned",
               found, what, least, planned);
    return TESS_OK;
}

static tess_status check_batch(const tess_flux *m, const tess_flux_batch *batch,
                               tess_call_mode mode)
{
    TESS_TRY(check_extent("samples", batch->sample_numel, m->shape.sample_numel, 1));
    TESS_TRY(check_extent("image tokens", batch->image_numel, m->shape.image_numel, 1));
    TESS_TRY(check_extent("text tokens", batch->text_numel, m->shape.text_numel, 1));
    TESS_CHECK(batch->latent != NULL && batch->text != NULL && batch->pooled != NULL &&
                   batch->time != NULL && batch->rope_cos != NULL && batch->rope_sin != NULL,
               TESS_E_ARG,
               "batch: expected latents, text, pooled text, time and angles; one is missing");
    TESS_CHECK((batch->guidance != NULL) == m->config.has_guidance, TESS_E_ARG,
               "batch: the model has %s guidance embedding, the batch %s guidance",
               m->config.has_guidance ? "a" : "no", batch->guidance != NULL ? "a" : "no");
    TESS_CHECK(mode == TESS_CALL_LOGITS || (batch->target != NULL && batch->weight != NULL),
               TESS_E_ARG, "batch: a loss needs targets and weights, and they are missing");
    return TESS_OK;
}

static tess_status begin(const tess_flux *m, const tess_stage_call *call,
                         const tess_flux_batch *planned, tess_exec *ex, tess_flux_call *c)
{
    const bool is_announced = tess_call_is_announced(call->mode);
    const tess_flux_batch *batch = is_announced ? planned : call->batch;
    TESS_CHECK(call->stage_idx >= 0 && call->stage_idx < tess_flux_stage_numel(m), TESS_E_ARG,
               "stage %d of %d", call->stage_idx, tess_flux_stage_numel(m));
    TESS_CHECK(batch != NULL, TESS_E_ARG, "stage %d: the call brings no batch", call->stage_idx);
    if (!is_announced)
        TESS_TRY(check_batch(m, batch, call->mode));
    *ex = tess_exec_begin(call, m->dt, m->thread_numel);
    ex->dropout = tess_call_is_training(call->mode) ? m->dropout : 0.0f;
    *c = (tess_flux_call){.ex = ex};
    set_call(m, call->stage_idx, batch, c);
    return TESS_OK;
}

/* An edge over the bytes of a call, which may be absent. */
static tess_status edge_of(const tess_flux_call *c, const char *name, tess_view bytes,
                           tess_flux_edge *edge)
{
    tess_carve carve = tess_carve_make(name, bytes, false);
    return bytes.numel == 0 ? TESS_OK : take_edge(c, &carve, edge);
}

static tess_status call_forward(void *model, const tess_stage_call *call)
{
    const tess_flux *m = model;
    const tess_flux_batch planned = planned_batch(m);
    tess_exec ex;
    tess_flux_call c;
    TESS_TRY(begin(m, call, &planned, &ex, &c));
    const bool is_repeated = tess_call_is_training(call->mode) && call->output.numel == 0;
    if (is_repeated && !has_backward(m, call->stage_idx))
        return TESS_OK;
    TESS_TRY(edge_of(&c, "input", call->input, &c.input));
    TESS_TRY(edge_of(&c, "output", call->output, &c.output));
    return forward(&c, call->stage_idx);
}

static tess_status call_backward(void *model, const tess_stage_call *call)
{
    const tess_flux *m = model;
    const tess_flux_batch planned = planned_batch(m);
    tess_exec ex;
    tess_flux_call c;
    TESS_TRY(begin(m, call, &planned, &ex, &c));
    TESS_TRY(edge_of(&c, "input", call->input, &c.input));
    TESS_TRY(edge_of(&c, "d_output", call->d_output, &c.d_output));
    TESS_TRY(edge_of(&c, "d_input", call->d_input, &c.d_input));
    return backward(&c, call->stage_idx);
}

const tess_stage_ops tess_flux_stage_ops = {.forward = call_forward, .backward = call_backward};
