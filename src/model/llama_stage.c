/* Stage calls of the Llama family: what a call brings, made ready for the layers. */
#include "model/llama_priv.h"

#include "core/arith.h"
#include "core/memory.h"

static const tess_view none = {.dt = TESS_F32};

/* What the backward of a block reads, in the order it is carved. */
typedef struct block_saved {
    tess_group_input n1, n2; /* [T, H] dt: normed inputs; x numel 0 when no weight that reads them
                                learns */
    tess_view inv1, inv2;    /* [T] f32 */
    tess_view h2;            /* [T, H] dt: after attention */
    tess_attention_saved attention;
    tess_mlp_saved mlp;
} block_saved;

static tess_status take_saved(tess_exec *ex, const tess_llama *m, const tess_llama_block *block,
                              block_saved *saved)
{
    const tess_attention *at = &block->attention;
    const int64_t numel = ex->row_numel * m->hidden_numel;
    const bool reads_n1 =
        tess_linear_learns(&at->q) || tess_linear_learns(&at->k) || tess_linear_learns(&at->v);
    const bool reads_n2 =
        tess_linear_learns(&block->mlp.gate) || tess_linear_learns(&block->mlp.up);
    TESS_TRY(tess_attention_take_input(ex, at, reads_n1, &ex->saved, &saved->n1));
    TESS_TRY(tess_mlp_take_input(ex, &block->mlp, reads_n2, &ex->saved, &saved->n2));
    TESS_TRY(tess_carve_take(&ex->saved, ex->row_numel, TESS_F32, &saved->inv1));
    TESS_TRY(tess_carve_take(&ex->saved, ex->row_numel, TESS_F32, &saved->inv2));
    TESS_TRY(tess_carve_take(&ex->saved, numel, ex->dt, &saved->h2));
    TESS_TRY(tess_attention_take_saved(ex, at, &saved->attention));
    return tess_mlp_take_saved(ex, &block->mlp, &saved->mlp);
}

/* out = a + b. */
static tess_status add(tess_exec *ex, tess_view a, tess_view b, tess_view out)
{
    const tess_add_args args = {.a = a, .b = b, .out = out};
    return TESS_EXEC_RUN(ex, add, &args);
}

/* Branches are computed where their sum with the residual goes. `out` numel 0: a recomputation,
 * which only wants what backward reads; the last product and sum are left out. */
static tess_status block_forward(const tess_llama *m, tess_exec *ex, const tess_llama_block *block,
                                 tess_view h, tess_view out)
{
    block_saved saved = {0};
    TESS_TRY(take_saved(ex, m, block, &saved));
    const size_t mark = tess_carve_mark(&ex->work);
    const int64_t rows = ex->row_numel;
    tess_rows scratch = {.view = none};
    tess_group_input n1 = saved.n1, n2 = saved.n2;
    if (n1.x.view.numel == 0 || n2.x.view.numel == 0)
        TESS_TRY(tess_carve_take_rows(&ex->work, rows, m->hidden_numel, ex->dt, &scratch));
    if (n1.x.view.numel == 0)
        n1.x = scratch;
    if (n2.x.view.numel == 0)
        n2.x = scratch;
    const tess_norm_io norm1 = {.x = h, .y = n1.x, .inv_rms = saved.inv1};
    TESS_TRY(tess_norm_forward(ex, &block->norm1, &norm1));
    TESS_TRY(
        tess_attention_forward(ex, &block->attention, &m->rope, &n1, &saved.attention, saved.h2));
    const tess_norm_io norm2 = {
        .x = saved.h2, .y = n2.x, .inv_rms = saved.inv2, .residual = h, .sum = saved.h2};
    TESS_TRY(tess_norm_forward(ex, &block->norm2, &norm2));
    TESS_TRY(tess_mlp_forward(ex, &block->mlp, &n2, &saved.mlp, out));
    if (out.numel > 0)
        TESS_TRY(add(ex, saved.h2, out, out));
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}

/* d_h numel 0: the stage below learns nothing, so neither its gradient nor that of norm1 is wanted.
 */
static tess_status block_backward(const tess_llama *m, tess_exec *ex, const tess_llama_block *block,
                                  tess_view h, tess_view d_out, tess_view d_h)
{
    block_saved saved = {0};
    TESS_TRY(take_saved(ex, m, block, &saved));
    const size_t mark = tess_carve_mark(&ex->work);
    tess_view d_h2 = {0};
    TESS_TRY(tess_carve_take(&ex->work, h.numel, ex->dt, &d_h2));
    TESS_TRY(tess_mlp_backward(ex, &block->mlp, &saved.n2, &saved.mlp, d_out, d_h2));
    TESS_TRY(tess_norm_backward(ex, &block->norm2, saved.h2, saved.inv2, d_h2, d_out, d_h2));
    TESS_TRY(tess_attention_backward(ex, &block->attention, &m->rope, &saved.n1, &saved.attention,
                                     d_h2, d_h));
    if (d_h.numel > 0)
        TESS_TRY(tess_norm_backward(ex, &block->norm1, h, saved.inv1, d_h, d_h2, d_h));
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}

/* Views of one call with their types. */
typedef struct stage_views {
    tess_view input, output, d_output, d_input; /* [T, H] dt, numel 0 where absent */
} stage_views;

static bool is_head(const tess_llama *m, int stage_idx) { return stage_idx == m->layer_numel + 1; }

static const tess_labels no_labels = {NULL, NULL};

static tess_labels labels_of(const tess_token_batch *batch)
{
    return (tess_labels){batch->labels,
                         batch->host_labels != NULL ? batch->host_labels : batch->labels};
}

static tess_status forward(const tess_llama *m, tess_exec *ex, int stage_idx,
                           const tess_token_batch *batch, const stage_views *v)
{
    if (stage_idx == 0)
        return v->output.numel > 0 ? tess_embed_forward(ex, m->embed_idx, batch->tokens, v->output)
                                   : TESS_OK;
    if (!is_head(m, stage_idx))
        return block_forward(m, ex, &m->block[stage_idx - 1], v->input, v->output);
    if (ex->is_plan) {
        tess_cost *cost = ex->cost;
        ex->cost = NULL; /* logits are sampling's */
        TESS_TRY(tess_head_logits(ex, &m->head, v->input, 0, NULL));
        ex->cost = cost;
        return tess_head_loss(ex, &m->head, v->input, no_labels, NULL);
    }
    if (ex->call->mode != TESS_CALL_LOGITS)
        return tess_head_loss(ex, &m->head, v->input, labels_of(batch), ex->call->loss_sum);
    TESS_CHECK(batch->logits != NULL && batch->logits_token_idx >= 0 &&
                   batch->logits_token_idx < ex->row_numel,
               TESS_E_ARG, "logits of token %" PRId64 ": expected one of %" PRId64 " and a buffer",
               batch->logits_token_idx, ex->row_numel);
    return tess_head_logits(ex, &m->head, v->input, batch->logits_token_idx, batch->logits);
}

static tess_status backward(const tess_llama *m, tess_exec *ex, int stage_idx,
                            const tess_token_batch *batch, const stage_views *v)
{
    if (stage_idx == 0)
        return m->is_embed_trainable
                   ? tess_embed_backward(ex, m->embed_idx, batch->tokens, v->d_output)
                   : TESS_OK;
    if (!is_head(m, stage_idx))
        return block_backward(m, ex, &m->block[stage_idx - 1], v->input, v->d_output, v->d_input);
    if (ex->is_plan)
        return tess_head_loss_backward(ex, &m->head, v->input, no_labels, NULL, v->d_input);
    return tess_head_loss_backward(ex, &m->head, v->input, labels_of(batch), ex->call->loss_sum,
                                   v->d_input);
}

/* A recomputation wants no output. */
static tess_status plan_again(const tess_llama *m, tess_exec ex, int stage_idx,
                              const tess_token_batch *batch, const stage_views *v, tess_cost *cost)
{
    const stage_views again = {.input = v->input, .output = none};
    ex.saved.used_nbytes = 0;
    ex.cost = cost;
    return is_head(m, stage_idx) ? TESS_OK : forward(m, &ex, stage_idx, batch, &again);
}

tess_status tess_llama_plan_stage(tess_llama *m, const tess_registry *reg, int stage_idx,
                                  tess_stage *stage)
{
    const tess_token_batch batch = {.token_numel = m->token_numel};
    tess_exec ex = tess_exec_plan(m->kernels, reg, m->dt, m->thread_numel);
    ex.dropout = m->dropout;
    ex.row_numel = m->token_numel;
    ex.longest_numel = m->sequence_length;
    int64_t numel = 0;
    TESS_TRY(tess_mul_i64(m->token_numel, m->hidden_numel, &numel));
    const tess_view h = tess_view_host(NULL, numel, m->dt);
    const stage_views v = {
        .input = stage_idx == 0 ? none : h,
        .output = h,
        .d_output = h,
        .d_input = stage_idx == 0 ? none : h,
    };
    ex.cost = &stage->cost.forward;
    TESS_TRY(forward(m, &ex, stage_idx, &batch, &v));
    /* Evaluation has no dropout and takes no more; backward carves the same saved buffers again. */
    ex.saved.used_nbytes = 0;
    ex.cost = &stage->cost.backward;
    TESS_TRY(backward(m, &ex, stage_idx, &batch, &v));
    TESS_TRY(plan_again(m, ex, stage_idx, &batch, &v, &stage->cost.again));
    stage->saved_nbytes = ex.saved.peak_nbytes;
    stage->work_nbytes = ex.work.peak_nbytes;
    stage->is_fused_loss = is_head(m, stage_idx);
    stage->skips_output = true;
    if (!stage->is_fused_loss)
        TESS_TRY(tess_nbytes(m->dt, numel, &stage->output_nbytes));
    return TESS_OK;
}

static tess_status begin(const tess_llama *m, const tess_stage_call *call, tess_exec *ex)
{
    /* Announced calls have no batch: kernels that would read one are not run. */
    const tess_token_batch full = {.token_numel = m->token_numel};
    const bool is_announced = tess_call_is_announced(call->mode);
    const tess_token_batch *batch = is_announced ? &full : call->batch;
    TESS_CHECK(call->stage_idx >= 0 && call->stage_idx < m->layer_numel + 2, TESS_E_ARG,
               "stage %d of %d", call->stage_idx, m->layer_numel + 2);
    TESS_CHECK(batch != NULL && batch->token_numel > 0 && batch->token_numel <= m->token_numel,
               TESS_E_ARG,
               "micro-batch of %" PRId64 " tokens: expected 1 to %" PRId64 " as planned",
               batch == NULL ? 0 : batch->token_numel, m->token_numel);
    *ex = tess_exec_begin(call, m->dt, m->thread_numel);
    ex->dropout = tess_call_is_training(call->mode) ? m->dropout : 0.0f;
    ex->row_numel = batch->token_numel;
    ex->longest_numel = m->sequence_length;
    ex->document_numel = batch->document_numel;
    ex->positions = batch->positions;
    ex->doc_start = batch->doc_start;
    return TESS_OK;
}

static const tess_token_batch *batch_of(const tess_stage_call *call)
{
    static const tess_token_batch none_there = {0};
    return tess_call_is_announced(call->mode) ? &none_there : call->batch;
}

/* [T, H] of the compute dtype over the bytes of a call. */
static tess_status hidden(const tess_llama *m, const tess_exec *ex, const char *what,
                          tess_view bytes, tess_view *out)
{
    return tess_exec_typed(ex, what, bytes, ex->row_numel * m->hidden_numel, m->dt, out);
}

static tess_status call_forward(void *model, const tess_stage_call *call)
{
    const tess_llama *m = model;
    tess_exec ex;
    stage_views v = {none, none, none, none};
    TESS_TRY(begin(m, call, &ex));
    if (call->stage_idx > 0)
        TESS_TRY(hidden(m, &ex, "input", call->input, &v.input));
    const bool is_repeated = tess_call_is_training(call->mode) && call->output.numel == 0;
    if (!is_head(m, call->stage_idx) && !is_repeated)
        TESS_TRY(hidden(m, &ex, "output", call->output, &v.output));
    return forward(m, &ex, call->stage_idx, batch_of(call), &v);
}

static tess_status call_backward(void *model, const tess_stage_call *call)
{
    const tess_llama *m = model;
    tess_exec ex;
    stage_views v = {none, none, none, none};
    TESS_TRY(begin(m, call, &ex));
    if (call->stage_idx > 0) {
        TESS_TRY(hidden(m, &ex, "input", call->input, &v.input));
        if (call->d_input.numel > 0)
            TESS_TRY(hidden(m, &ex, "d_input", call->d_input, &v.d_input));
    }
    if (!is_head(m, call->stage_idx))
        TESS_TRY(hidden(m, &ex, "d_output", call->d_output, &v.d_output));
    return backward(m, &ex, call->stage_idx, batch_of(call), &v);
}

/* ---- constants ---- */

static size_t table_nbytes(const tess_llama *m)
{
    return (size_t)tess_round_up(m->rope.row_numel * m->rope.half_numel * (int64_t)sizeof(float),
                                 TESS_ARENA_ALIGN_NBYTES);
}

static size_t constant_nbytes(const void *model) { return 2 * table_nbytes(model); }

static tess_status place_table(const tess_llama *m, tess_device *device, tess_stream *stream,
                               float *host, tess_view place, const float **out)
{
    const int64_t numel = m->rope.row_numel * m->rope.half_numel;
    *out = place.data;
    place.numel = numel;
    place.dt = TESS_F32;
    return tess_device_copy(device, place, tess_view_host(host, numel, TESS_F32), stream);
}

static tess_status place_constants(void *model, tess_device *device, tess_view place,
                                   tess_stream *stream)
{
    tess_llama *m = model;
    const int64_t nbytes = (int64_t)table_nbytes(m);
    TESS_TRY(place_table(m, device, stream, m->rope_host[0], tess_view_slice(place, 0, nbytes),
                         &m->rope.cos));
    return place_table(m, device, stream, m->rope_host[1], tess_view_slice(place, nbytes, nbytes),
                       &m->rope.sin);
}

const tess_stage_ops tess_llama_stage_ops = {.forward = call_forward,
                                             .backward = call_backward,
                                             .constant_nbytes = constant_nbytes,
                                             .place_constants = place_constants};
