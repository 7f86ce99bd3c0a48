#include "model/layers_priv.h"

#include <math.h>

/* Fixed row chunks of the weight gradient, as kernels/rmsnorm.h asks. */
enum { NORM_CHUNK_NUMEL = 16 };

static const tess_view none = {.dt = TESS_F32};

tess_status tess_norm_forward(tess_exec *ex, const tess_norm *norm, tess_view x, tess_view y,
                              tess_view inv_rms)
{
    tess_rmsnorm_args args = {.x = x,
                              .row_numel = x.numel / norm->dim,
                              .dim = norm->dim,
                              .eps = norm->eps,
                              .y = y,
                              .inv_rms = inv_rms.data};
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

tess_status tess_attention_take_saved(tess_exec *ex, const tess_attention *layer,
                                      tess_attention_saved *saved)
{
    tess_carve *carve = &ex->saved;
    const int64_t rows = ex->row_numel;
    TESS_TRY(tess_carve_take_2d(carve, rows, layer->q.out_numel, ex->dt, &saved->q));
    TESS_TRY(tess_carve_take_2d(carve, rows, layer->k.out_numel, ex->dt, &saved->k));
    TESS_TRY(tess_carve_take_2d(carve, rows, layer->v.out_numel, ex->dt, &saved->v));
    TESS_TRY(tess_carve_take_2d(carve, rows, layer->o.in_numel, ex->dt, &saved->mixed));
    TESS_TRY(tess_carve_take_2d(carve, layer->head_numel, rows, TESS_F32, &saved->lse));
    TESS_TRY(tess_linear_take_u(ex, &layer->q, rows, carve, &saved->u_q));
    TESS_TRY(tess_linear_take_u(ex, &layer->k, rows, carve, &saved->u_k));
    TESS_TRY(tess_linear_take_u(ex, &layer->v, rows, carve, &saved->u_v));
    return tess_linear_take_u(ex, &layer->o, rows, carve, &saved->u_o);
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
        TESS_TRY(tess_norm_forward(ex, norm, x, *y, *inv));
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
                                        .longest_numel = ex->longest_numel};
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
                                .out = saved->mixed,
                                .lse = saved->lse.data};
    const size_t mark = tess_carve_mark(&ex->work);
    const size_t nbytes = ex->kernels->attention_work_nbytes(&args.shape, ex->thread_numel);
    TESS_TRY(tess_carve_take(&ex->work, (int64_t)nbytes, TESS_U8_OPAQUE, &args.work));
    TESS_TRY(TESS_EXEC_RUN(ex, attention_forward, &args));
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}

tess_status tess_attention_forward(tess_exec *ex, const tess_attention *layer,
                                   const tess_rope_table *rope, tess_view x,
                                   const tess_attention_saved *saved, tess_view y)
{
    const size_t mark = tess_carve_mark(&ex->work);
    const tess_linear_input in = {.x = x, .row_numel = ex->row_numel};
    const tess_linear_io io[] = {{&layer->q, saved->q, saved->u_q},
                                 {&layer->k, saved->k, saved->u_k},
                                 {&layer->v, saved->v, saved->u_v}};
    for (int i = 0; i < TESS_NELEM(io); i++)
        TESS_TRY(tess_linear_forward(ex, &in, &io[i]));
    rotated r = {0};
    TESS_TRY(
        norm_and_rotate(ex, &layer->q_norm, rope, saved->q, layer->head_numel, &r.q, &r.inv_q));
    TESS_TRY(
        norm_and_rotate(ex, &layer->k_norm, rope, saved->k, layer->kv_head_numel, &r.k, &r.inv_k));
    TESS_TRY(mix(ex, layer, &r, saved));
    const tess_linear_input mixed = {.x = saved->mixed, .row_numel = ex->row_numel};
    const tess_linear_io out = {&layer->o, y, saved->u_o};
    TESS_TRY(tess_linear_forward(ex, &mixed, &out));
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
                                         .out = saved->mixed,
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
                                    const tess_rope_table *rope, tess_view x,
                                    const tess_attention_saved *saved, tess_view d_y, tess_view d_x)
{
    const size_t mark = tess_carve_mark(&ex->work);
    attention_grads g = {0};
    TESS_TRY(tess_carve_take(&ex->work, saved->q.numel, ex->dt, &g.d_q));
    TESS_TRY(tess_carve_take(&ex->work, saved->k.numel, ex->dt, &g.d_k));
    TESS_TRY(tess_carve_take(&ex->work, saved->v.numel, ex->dt, &g.d_v));

    const size_t inner_mark = tess_carve_mark(&ex->work);
    tess_view d_mixed = {0};
    TESS_TRY(tess_carve_take(&ex->work, saved->mixed.numel, ex->dt, &d_mixed));
    const tess_linear_input mixed = {.x = saved->mixed, .row_numel = ex->row_numel};
    const tess_linear_io out = {&layer->o, d_y, saved->u_o};
    TESS_TRY(tess_linear_group_backward(ex, &mixed, &out, 1, d_mixed));
    TESS_TRY(core_backward(ex, layer, rope, saved, d_mixed, &g));
    tess_carve_release(&ex->work, inner_mark);

    const tess_linear_input in = {.x = x, .row_numel = ex->row_numel};
    const tess_linear_io io[] = {{&layer->q, g.d_q, saved->u_q},
                                 {&layer->k, g.d_k, saved->u_k},
                                 {&layer->v, g.d_v, saved->u_v}};
    TESS_TRY(tess_linear_group_backward(ex, &in, io, TESS_NELEM(io), d_x));
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}

tess_status tess_mlp_take_saved(tess_exec *ex, const tess_mlp *layer, tess_mlp_saved *saved)
{
    tess_carve *carve = &ex->saved;
    const int64_t rows = ex->row_numel;
    saved->product = none;
    TESS_TRY(tess_carve_take_2d(carve, rows, layer->gate.out_numel, ex->dt, &saved->gate));
    TESS_TRY(tess_carve_take_2d(carve, rows, layer->up.out_numel, ex->dt, &saved->up));
    if (tess_linear_learns(&layer->down))
        TESS_TRY(tess_carve_take_2d(carve, rows, layer->down.in_numel, ex->dt, &saved->product));
    TESS_TRY(tess_linear_take_u(ex, &layer->gate, rows, carve, &saved->u_gate));
    TESS_TRY(tess_linear_take_u(ex, &layer->up, rows, carve, &saved->u_up));
    return tess_linear_take_u(ex, &layer->down, rows, carve, &saved->u_down);
}

tess_status tess_mlp_forward(tess_exec *ex, const tess_mlp *layer, tess_view x,
                             const tess_mlp_saved *saved, tess_view y)
{
    const size_t mark = tess_carve_mark(&ex->work);
    const tess_linear_input in = {.x = x, .row_numel = ex->row_numel};
    const tess_linear_io gate = {&layer->gate, saved->gate, saved->u_gate};
    const tess_linear_io up = {&layer->up, saved->up, saved->u_up};
    TESS_TRY(tess_linear_forward(ex, &in, &gate));
    TESS_TRY(tess_linear_forward(ex, &in, &up));
    tess_view product = saved->product;
    if (product.numel == 0)
        TESS_TRY(tess_carve_take(&ex->work, saved->gate.numel, ex->dt, &product));
    const tess_swiglu_args args = {.gate = saved->gate, .up = saved->up, .out = product};
    TESS_TRY(TESS_EXEC_RUN(ex, swiglu_forward, &args));
    const tess_linear_input inner = {.x = product, .row_numel = ex->row_numel};
    const tess_linear_io down = {&layer->down, y, saved->u_down};
    TESS_TRY(tess_linear_forward(ex, &inner, &down));
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}

tess_status tess_mlp_backward(tess_exec *ex, const tess_mlp *layer, tess_view x,
                              const tess_mlp_saved *saved, tess_view d_y, tess_view d_x)
{
    const size_t mark = tess_carve_mark(&ex->work);
    tess_view d_gate = {0}, d_up = {0}, d_product = {0};
    TESS_TRY(tess_carve_take(&ex->work, saved->gate.numel, ex->dt, &d_gate));
    TESS_TRY(tess_carve_take(&ex->work, saved->up.numel, ex->dt, &d_up));

    const size_t inner_mark = tess_carve_mark(&ex->work);
    TESS_TRY(tess_carve_take(&ex->work, saved->gate.numel, ex->dt, &d_product));
    const tess_linear_input inner = {.x = saved->product, .row_numel = ex->row_numel};
    const tess_linear_io down = {&layer->down, d_y, saved->u_down};
    TESS_TRY(tess_linear_group_backward(ex, &inner, &down, 1, d_product));
    const tess_swiglu_backward_args args = {
        .gate = saved->gate, .up = saved->up, .d_out = d_product, .d_gate = d_gate, .d_up = d_up};
    TESS_TRY(TESS_EXEC_RUN(ex, swiglu_backward, &args));
    tess_carve_release(&ex->work, inner_mark);

    const tess_linear_input in = {.x = x, .row_numel = ex->row_numel};
    const tess_linear_io io[] = {{&layer->gate, d_gate, saved->u_gate},
                                 {&layer->up, d_up, saved->u_up}};
    TESS_TRY(tess_linear_group_backward(ex, &in, io, TESS_NELEM(io), d_x));
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}
