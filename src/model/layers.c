#include "model/layers_priv.h"

#include <math.h>

/* Fixed row chunks of the weight gradient, as kernels/rmsnorm.h asks. */
enum { NORM_CHUNK_NUMEL = 16 };

static const tess_view none = {.dt = TESS_F32};

tess_status tess_norm_forward(tess_exec *ex, const tess_norm *norm, const tess_norm_io *io)
{
    tess_rmsnorm_args args = {.x = io->x,
                              .row_numel = io->x.numel / norm->dim,
                              .dim = norm->dim,
                              .eps = norm->eps,
                              .y = io->y.view,
                              .y_stride = tess_rows_gap(&io->y),
                              .inv_rms = io->inv_rms.data,
                              .residual = io->residual,
                              .sum = io->sum};
    TESS_TRY(tess_exec_vector(ex, norm->weight_idx, &args.w));
    return TESS_EXEC_RUN(ex, rmsnorm_forward, &args);
}

tess_status tess_norm_backward(tess_exec *ex, const tess_norm *norm, tess_view x, tess_view inv_rms,
                               tess_view d_y, tess_view residual, tess_view d_x)
{
    const size_t mark = tess_carve_mark(&ex->work);
    tess_rmsnorm_backward_args args = {.x = x,
                                       .inv_rms = inv_rms.data,
                                       .d_y = d_y,
                                       .row_numel = x.numel / norm->dim,
                                       .dim = norm->dim,
                                       .residual = residual,
                                       .d_x = d_x};
    TESS_TRY(tess_exec_vector(ex, norm->weight_idx, &args.w));
    if (norm->is_trainable) {
        tess_view work = {0};
        TESS_TRY(tess_carve_take_2d(&ex->work, NORM_CHUNK_NUMEL, norm->dim, TESS_F32, &work));
        args.d_w = tess_exec_grad(ex, norm->weight_idx).data;
        args.work = work.data;
    }
    TESS_TRY(TESS_EXEC_RUN(ex, rmsnorm_backward, &args));
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}

static tess_status rotate(tess_exec *ex, const tess_rope_table *rope, tess_view x,
                          int64_t head_numel, bool inverse)
{
    const tess_rope_args args = {.x = x,
                                 .token_numel = ex->row_numel,
                                 .head_numel = head_numel,
                                 .dim = x.numel / (ex->row_numel * head_numel),
                                 .positions = ex->positions,
                                 .cos_table = rope->cos,
                                 .sin_table = rope->sin,
                                 .table_rows = rope->row_numel,
                                 .inverse = inverse};
    return TESS_EXEC_RUN(ex, rope, &args);
}

static tess_group projections(const tess_attention *layer)
{
    return (tess_group){.numel = 3, .linear = {&layer->q, &layer->k, &layer->v}};
}

tess_status tess_attention_take_input(const tess_exec *ex, const tess_attention *layer,
                                      bool wants_x, tess_carve *carve, tess_group_input *in)
{
    const tess_group group = projections(layer);
    TESS_TRY(tess_group_take_input(ex, &group, ex->row_numel, wants_x, carve, in));
    return tess_group_take_dora(ex, &group, ex->row_numel, carve, in);
}

tess_status tess_attention_take_saved(tess_exec *ex, const tess_attention *layer,
                                      tess_attention_saved *saved)
{
    tess_carve *carve = &ex->saved;
    const int64_t rows = ex->row_numel;
    const tess_group out = tess_group_one(&layer->o);
    TESS_TRY(tess_carve_take_2d(carve, rows, layer->q.out_numel, ex->dt, &saved->q));
    TESS_TRY(tess_carve_take_2d(carve, rows, layer->k.out_numel, ex->dt, &saved->k));
    TESS_TRY(tess_carve_take_2d(carve, rows, layer->v.out_numel, ex->dt, &saved->v));
    TESS_TRY(tess_group_take_input(ex, &out, rows, true, carve, &saved->mixed));
    TESS_TRY(tess_group_take_dora(ex, &out, rows, carve, &saved->mixed));
    return tess_carve_take_2d(carve, layer->head_numel, rows, TESS_F32, &saved->lse);
}

/* q and k as attention reads them, with what their norms need. */
typedef struct rotated {
    tess_view q, k;         /* [T, heads, D], [T, kv_heads, D] dt, rotated */
    tess_view inv_q, inv_k; /* [T * heads], [T * kv_heads] f32; numel 0 without norms */
} rotated;

/* Norm and rotate one projection: in place without a norm, else into `work`. */
static tess_status norm_and_rotate(tess_exec *ex, const tess_norm *norm,
                                   const tess_rope_table *rope, tess_view x, int64_t head_numel,
                                   tess_view *y, tess_view *inv)
{
    *y = x;
    *inv = none;
    if (norm->weight_idx >= 0) {
        TESS_TRY(tess_carve_take(&ex->work, x.numel, ex->dt, y));
        TESS_TRY(tess_carve_take_2d(&ex->work, ex->row_numel, head_numel, TESS_F32, inv));
        const tess_norm_io io = {
            .x = x, .y = tess_rows_of(*y, x.numel / norm->dim, norm->dim), .inv_rms = *inv};
        TESS_TRY(tess_norm_forward(ex, norm, &io));
    }
    return rotate(ex, rope, *y, head_numel, false);
}

static tess_attention_shape shape_of(const tess_exec *ex, const tess_attention *layer)
{
    const tess_attention_shape shape = {.dt = ex->dt,
                                        .token_numel = ex->row_numel,
                                        .head_numel = layer->head_numel,
                                        .kv_head_numel = layer->kv_head_numel,
                                        .dim = layer->head_dim,
                                        .longest_numel = ex->longest_numel,
                                        .document_numel = ex->document_numel};
    return shape;
}

static float scale_of(const tess_attention *layer)
{
    return (float)(1.0 / sqrt((double)layer->head_dim));
}

static tess_status mix(tess_exec *ex, const tess_attention *layer, const rotated *r,
                       const tess_attention_saved *saved)
{
    tess_attention_args args = {.shape = shape_of(ex, layer),
                                .q = r->q,
                                .k = r->k,
                                .v = saved->v,
                                .doc_start = ex->doc_start,
                                .window = layer->window,
                                .scale = scale_of(layer),
                                .out = saved->mixed.x.view,
                                .out_stride = tess_rows_gap(&saved->mixed.x),
                                .lse = saved->lse.data};
    const size_t mark = tess_carve_mark(&ex->work);
    const size_t nbytes = ex->kernels->attention_work_nbytes(&args.shape, ex->thread_numel);
    TESS_TRY(tess_carve_take(&ex->work, (int64_t)nbytes, TESS_U8_OPAQUE, &args.work));
    TESS_TRY(TESS_EXEC_RUN(ex, attention_forward, &args));
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}

tess_status tess_attention_forward(tess_exec *ex, const tess_attention *layer,
                                   const tess_rope_table *rope, const tess_group_input *in,
                                   const tess_attention_saved *saved, tess_view y)
{
    const size_t mark = tess_carve_mark(&ex->work);
    const int64_t rows = ex->row_numel;
    tess_group group = projections(layer);
    group.in = *in;
    group.y[0] = tess_rows_of(saved->q, rows, layer->q.out_numel);
    group.y[1] = tess_rows_of(saved->k, rows, layer->k.out_numel);
    group.y[2] = tess_rows_of(saved->v, rows, layer->v.out_numel);
    TESS_TRY(tess_group_forward(ex, &group));
    rotated r = {0};
    TESS_TRY(
        norm_and_rotate(ex, &layer->q_norm, rope, saved->q, layer->head_numel, &r.q, &r.inv_q));
    TESS_TRY(
        norm_and_rotate(ex, &layer->k_norm, rope, saved->k, layer->kv_head_numel, &r.k, &r.inv_k));
    TESS_TRY(mix(ex, layer, &r, saved));
    tess_group out = tess_group_one(&layer->o);
    out.in = saved->mixed;
    out.y[0] = tess_rows_of(y, rows, layer->o.out_numel);
    TESS_TRY(tess_group_forward(ex, &out));
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}

/* Gradients of rotated q, k and of v. */
typedef struct attention_grads {
    tess_view d_q, d_k, d_v;
} attention_grads;

/* [Note: rotated again] Without norms the rotated q and k were saved. With norms their inputs were,
 * and the same two kernels give the same rotated bits again: cheap beside the products, and it
 * halves what is kept. */
static tess_status mix_backward(tess_exec *ex, const tess_attention *layer, const rotated *r,
                                const tess_attention_saved *saved, tess_view d_mixed,
                                const attention_grads *g)
{
    tess_attention_backward_args args = {.shape = shape_of(ex, layer),
                                         .q = r->q,
                                         .k = r->k,
                                         .v = saved->v,
                                         .out = saved->mixed.x.view,
                                         .out_stride = tess_rows_gap(&saved->mixed.x),
                                         .lse = saved->lse.data,
                                         .d_out = d_mixed,
                                         .doc_start = ex->doc_start,
                                         .window = layer->window,
                                         .scale = scale_of(layer),
                                         .d_q = g->d_q,
                                         .d_k = g->d_k,
                                         .d_v = g->d_v};
    const size_t mark = tess_carve_mark(&ex->work);
    const size_t nbytes = ex->kernels->attention_work_nbytes(&args.shape, ex->thread_numel);
    TESS_TRY(tess_carve_take(&ex->work, (int64_t)nbytes, TESS_U8_OPAQUE, &args.work));
    TESS_TRY(TESS_EXEC_RUN(ex, attention_backward, &args));
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}

/* Gradient of a projection from the gradient of its rotated form, in place. */
static tess_status rotate_back(tess_exec *ex, const tess_norm *norm, const tess_rope_table *rope,
                               tess_view x, int64_t head_numel, tess_view inv, tess_view d)
{
    TESS_TRY(rotate(ex, rope, d, head_numel, true));
    if (norm->weight_idx < 0)
        return TESS_OK;
    return tess_norm_backward(ex, norm, x, inv, d, none, d);
}

/* Backward from the gradient of the mixed values to those of the three projections. */
static tess_status core_backward(tess_exec *ex, const tess_attention *layer,
                                 const tess_rope_table *rope, const tess_attention_saved *saved,
                                 tess_view d_mixed, const attention_grads *g)
{
    const size_t mark = tess_carve_mark(&ex->work);
    rotated r = {.q = saved->q, .k = saved->k, .inv_q = none, .inv_k = none};
    if (layer->q_norm.weight_idx >= 0)
        TESS_TRY(
            norm_and_rotate(ex, &layer->q_norm, rope, saved->q, layer->head_numel, &r.q, &r.inv_q));
    if (layer->k_norm.weight_idx >= 0)
        TESS_TRY(norm_and_rotate(ex, &layer->k_norm, rope, saved->k, layer->kv_head_numel, &r.k,
                                 &r.inv_k));
    TESS_TRY(mix_backward(ex, layer, &r, saved, d_mixed, g));
    TESS_TRY(rotate_back(ex, &layer->q_norm, rope, saved->q, layer->head_numel, r.inv_q, g->d_q));
    TESS_TRY(
        rotate_back(ex, &layer->k_norm, rope, saved->k, layer->kv_head_numel, r.inv_k, g->d_k));
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}

tess_status tess_attention_backward(tess_exec *ex, const tess_attention *layer,
                                    const tess_rope_table *rope, const tess_group_input *in,
                                    const tess_attention_saved *saved, tess_view d_y, tess_view d_x)
{
    const size_t mark = tess_carve_mark(&ex->work);
    const int64_t rows = ex->row_numel;
    attention_grads g = {0};
    TESS_TRY(tess_carve_take(&ex->work, saved->q.numel, ex->dt, &g.d_q));
    TESS_TRY(tess_carve_take(&ex->work, saved->k.numel, ex->dt, &g.d_k));
    TESS_TRY(tess_carve_take(&ex->work, saved->v.numel, ex->dt, &g.d_v));

    const size_t inner_mark = tess_carve_mark(&ex->work);
    tess_view d_mixed = {0};
    TESS_TRY(tess_carve_take_2d(&ex->work, rows, layer->o.in_numel, ex->dt, &d_mixed));
    tess_group out = tess_group_one(&layer->o);
    out.in = saved->mixed;
    out.y[0] = tess_rows_of(d_y, rows, layer->o.out_numel);
    TESS_TRY(tess_group_backward(ex, &out, d_mixed));
    TESS_TRY(core_backward(ex, layer, rope, saved, d_mixed, &g));
    tess_carve_release(&ex->work, inner_mark);

    tess_group group = projections(layer);
    group.in = *in;
    group.y[0] = tess_rows_of(g.d_q, rows, layer->q.out_numel);
    group.y[1] = tess_rows_of(g.d_k, rows, layer->k.out_numel);
    group.y[2] = tess_rows_of(g.d_v, rows, layer->v.out_numel);
    TESS_TRY(tess_group_backward(ex, &group, d_x));
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}

static tess_group gate_and_up(const tess_mlp *layer)
{
    return (tess_group){.numel = 2, .linear = {&layer->gate, &layer->up}};
}

tess_status tess_mlp_take_input(const tess_exec *ex, const tess_mlp *layer, bool wants_x,
                                tess_carve *carve, tess_group_input *in)
{
    const tess_group group = gate_and_up(layer);
    TESS_TRY(tess_group_take_input(ex, &group, ex->row_numel, wants_x, carve, in));
    return tess_group_take_dora(ex, &group, ex->row_numel, carve, in);
}

tess_status tess_mlp_take_saved(tess_exec *ex, const tess_mlp *layer, tess_mlp_saved *saved)
{
    tess_carve *carve = &ex->saved;
    const int64_t rows = ex->row_numel;
    const tess_group down = tess_group_one(&layer->down);
    TESS_TRY(tess_carve_take_2d(carve, rows, layer->gate.out_numel, ex->dt, &saved->gate));
    TESS_TRY(tess_carve_take_2d(carve, rows, layer->up.out_numel, ex->dt, &saved->up));
    TESS_TRY(tess_group_take_input(ex, &down, rows, tess_linear_learns(&layer->down), carve,
                                   &saved->product));
    return tess_group_take_dora(ex, &down, rows, carve, &saved->product);
}

tess_status tess_mlp_forward(tess_exec *ex, const tess_mlp *layer, const tess_group_input *in,
                             const tess_mlp_saved *saved, tess_view y)
{
    const size_t mark = tess_carve_mark(&ex->work);
    const int64_t rows = ex->row_numel, inner_numel = layer->gate.out_numel;
    tess_group group = gate_and_up(layer);
    group.in = *in;
    group.y[0] = tess_rows_of(saved->gate, rows, inner_numel);
    group.y[1] = tess_rows_of(saved->up, rows, inner_numel);
    TESS_TRY(tess_group_forward(ex, &group));
    tess_group down = tess_group_one(&layer->down);
    down.in = saved->product;
    down.y[0] = y.numel > 0 ? tess_rows_of(y, rows, layer->down.out_numel) : (tess_rows){0};
    if (down.in.x.view.numel == 0)
        TESS_TRY(tess_carve_take_rows(&ex->work, rows, inner_numel, ex->dt, &down.in.x));
    const tess_swiglu_args args = {.gate = saved->gate,
                                   .up = saved->up,
                                   .out = down.in.x.view,
                                   .dim = inner_numel,
                                   .out_stride = tess_rows_gap(&down.in.x)};
    TESS_TRY(TESS_EXEC_RUN(ex, swiglu_forward, &args));
    TESS_TRY(tess_group_forward(ex, &down));
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}

tess_status tess_mlp_backward(tess_exec *ex, const tess_mlp *layer, const tess_group_input *in,
                              const tess_mlp_saved *saved, tess_view d_y, tess_view d_x)
{
    const size_t mark = tess_carve_mark(&ex->work);
    const int64_t rows = ex->row_numel, inner_numel = layer->gate.out_numel;
    tess_group group = gate_and_up(layer);
    group.in = *in;
    TESS_TRY(tess_group_take_gradient(ex, &group, rows));

    const size_t inner_mark = tess_carve_mark(&ex->work);
    tess_view d_product = {0};
    TESS_TRY(tess_carve_take(&ex->work, saved->gate.numel, ex->dt, &d_product));
    tess_group down = tess_group_one(&layer->down);
    down.in = saved->product;
    down.y[0] = tess_rows_of(d_y, rows, layer->down.out_numel);
    TESS_TRY(tess_group_backward(ex, &down, d_product));
    const tess_swiglu_backward_args args = {.gate = saved->gate,
                                            .up = saved->up,
                                            .d_out = d_product,
                                            .d_gate = group.y[0].view,
                                            .d_up = group.y[1].view,
                                            .dim = inner_numel,
                                            .d_stride = tess_rows_gap(&group.y[0])};
    TESS_TRY(TESS_EXEC_RUN(ex, swiglu_backward, &args));
    tess_carve_release(&ex->work, inner_mark);

    TESS_TRY(tess_group_backward(ex, &group, d_x));
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}
