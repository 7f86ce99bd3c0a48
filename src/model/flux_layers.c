/* Layers of the FLUX.1 family: rows of streams, modulation, attention. */
#include <math.h>

#include "model/flux_priv.h"

#define RUN(ex, op, args) TESS_EXEC_RUN_OF(ex, (ex)->kernels->modulated, op, args)

/* Chunks of rows of a sum, as kernels/modulate.h has them. */
enum { CHUNK_NUMEL = 16 };

static const float norm_eps = 1e-6f;

/* ---- rows ---- */

tess_view tess_flux_split(const tess_flux_call *c, tess_view v, int stream, int64_t cols)
{
    const int64_t first = stream == TESS_FLUX_TEXT ? 0 : tess_flux_stream_numel(c, TESS_FLUX_TEXT);
    return tess_view_rows(v, first, tess_flux_stream_numel(c, stream), cols);
}

static int64_t first_of(const tess_flux_call *c, int stream)
{
    return stream == TESS_FLUX_TEXT ? 0 : c->row_numel[TESS_FLUX_TEXT];
}

tess_sample_rows tess_flux_joint(const tess_flux_call *c, tess_view v, int stream, int64_t cols)
{
    const int64_t rows = (c->sample_numel - 1) * c->token_numel + c->row_numel[stream];
    return (tess_sample_rows){.view = tess_view_rows(v, first_of(c, stream), rows, cols),
                              .sample_stride = c->token_numel * cols,
                              .row_stride = cols};
}

tess_sample_rows tess_flux_rows(int64_t row_numel, const tess_rows *rows)
{
    return tess_sample_rows_of(rows->view, row_numel, rows->stride);
}

static tess_rows sample_of(const tess_flux_call *c, tess_rows joint, int stream, int64_t sample)
{
    return tess_rows_slice(joint, sample * c->token_numel + first_of(c, stream),
                           c->row_numel[stream]);
}

tess_status tess_flux_to_joint(const tess_flux_call *c, int stream, tess_rows split,
                               tess_rows joint)
{
    const int64_t n = c->row_numel[stream];
    for (int64_t b = 0; b < c->sample_numel; b++)
        TESS_TRY(tess_exec_copy_rows(c->ex, sample_of(c, joint, stream, b),
                                     tess_rows_slice(split, b * n, n)));
    return TESS_OK;
}

tess_status tess_flux_from_joint(const tess_flux_call *c, int stream, tess_rows joint,
                                 tess_rows split)
{
    const int64_t n = c->row_numel[stream];
    for (int64_t b = 0; b < c->sample_numel; b++)
        TESS_TRY(tess_exec_copy_rows(c->ex, tess_rows_slice(split, b * n, n),
                                     sample_of(c, joint, stream, b)));
    return TESS_OK;
}

tess_status tess_flux_take_split(const tess_flux_call *c, int stream, tess_view joint,
                                 tess_carve *carve, int64_t cols, tess_view *out)
{
    *out = tess_flux_split(c, joint, stream, cols);
    if (c->sample_numel == 1)
        return TESS_OK;
    return tess_carve_take_2d(carve, tess_flux_stream_numel(c, stream), cols, c->ex->dt, out);
}

/* ---- groups ---- */

tess_status tess_flux_take_input(const tess_flux_call *c, const tess_group *group,
                                 int64_t row_numel, bool wants_x, tess_carve *carve,
                                 tess_group_input *in)
{
    TESS_TRY(tess_group_take_input(c->ex, group, row_numel, wants_x, carve, in));
    return tess_group_take_dora(c->ex, group, row_numel, carve, in);
}

tess_status tess_flux_give_input(const tess_flux_call *c, tess_rows x, tess_group_input *in)
{
    if (in->x.view.numel > 0)
        return tess_exec_copy_rows(c->ex, in->x, x);
    in->x = x;
    return TESS_OK;
}

/* ---- modulation ---- */

tess_status tess_flux_factors_take(const tess_flux_call *c, const tess_linear *linear,
                                   tess_carve *carve, tess_flux_factors *f)
{
    const tess_group group = tess_group_one(linear);
    *f = (tess_flux_factors){.linear = linear,
                             .gradient = tess_exec_view(c->ex, NULL, 0, c->ex->dt),
                             .stride = linear->out_numel};
    TESS_TRY(tess_flux_take_input(c, &group, c->sample_numel, false, carve, &f->in));
    return tess_carve_take_2d(carve, c->sample_numel, f->stride, c->ex->dt, &f->value);
}

static tess_rows modulation_input(const tess_flux_call *c)
{
    return tess_rows_of(c->input.s, c->sample_numel, c->m->hidden_numel);
}

tess_status tess_flux_factors_forward(const tess_flux_call *c, tess_flux_factors *f)
{
    TESS_TRY(tess_flux_give_input(c, modulation_input(c), &f->in));
    tess_group group = tess_group_one(f->linear);
    group.in = f->in;
    group.y[0] = tess_rows_of(f->value, c->sample_numel, f->stride);
    return tess_group_forward(c->ex, &group);
}

bool tess_flux_factors_learn(const tess_flux_call *c, const tess_linear *linear)
{
    return c->wants_d_s || tess_linear_learns(linear);
}

tess_status tess_flux_factors_open(const tess_flux_call *c, tess_flux_factors *f)
{
    if (!tess_flux_factors_learn(c, f->linear))
        return TESS_OK;
    return tess_carve_take_2d(&c->ex->work, c->sample_numel, f->stride, c->ex->dt, &f->gradient);
}

tess_status tess_flux_factors_close(const tess_flux_call *c, tess_flux_factors *f)
{
    tess_exec *ex = c->ex;
    if (f->gradient.numel == 0)
        return TESS_OK;
    const size_t mark = tess_carve_mark(&ex->work);
    tess_view d_s = tess_exec_view(ex, NULL, 0, ex->dt);
    if (c->wants_d_s)
        TESS_TRY(tess_carve_take(&ex->work, c->input.s.numel, ex->dt, &d_s));
    /* A copy of the input lies there since the forward. */
    if (f->in.x.view.numel == 0)
        f->in.x = modulation_input(c);
    tess_group group = tess_group_one(f->linear);
    group.in = f->in;
    group.y[0] = tess_rows_of(f->gradient, c->sample_numel, f->stride);
    group.d_out = (tess_rows){.view = tess_exec_view(ex, NULL, 0, ex->dt)};
    TESS_TRY(tess_group_backward(ex, &group, d_s));
    if (c->wants_d_s)
        TESS_TRY(tess_flux_add(c, c->d_input.s, d_s, c->d_input.s));
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}

tess_status tess_flux_norm_take(int64_t row_numel, tess_carve *carve, tess_flux_norm *norm)
{
    TESS_TRY(tess_carve_take(carve, row_numel, TESS_F32, &norm->mean));
    return tess_carve_take(carve, row_numel, TESS_F32, &norm->inv);
}

static tess_sample_shape shape_of(const tess_flux_call *c, int64_t row_numel)
{
    return (tess_sample_shape){c->sample_numel, row_numel, c->m->hidden_numel};
}

/* Column `idx` of all samples' factors. */
static tess_factor factor(const tess_flux_call *c, const tess_flux_factors *f, tess_view of,
                          int idx)
{
    const tess_rows all = tess_rows_of(of, c->sample_numel, f->stride);
    return tess_rows_cols(all, idx * c->m->hidden_numel, c->m->hidden_numel).view;
}

tess_status tess_flux_modulate(const tess_flux_call *c, const tess_flux_modulated *m,
                               tess_sample_rows y)
{
    const tess_flux_factors *f = m->factors;
    const tess_modulate_args args = {.shape = shape_of(c, m->row_numel),
                                     .x = m->x,
                                     .shift = factor(c, f, f->value, m->shift_idx),
                                     .scale = factor(c, f, f->value, m->scale_idx),
                                     .factor_stride = f->stride,
                                     .eps = norm_eps,
                                     .y = y,
                                     .mean = m->norm.mean.data,
                                     .inv = m->norm.inv.data};
    return RUN(c->ex, modulate, &args);
}

tess_status tess_flux_modulate_backward(const tess_flux_call *c, const tess_flux_modulated *m,
                                        tess_sample_rows d_y, tess_sample_rows residual,
                                        tess_sample_rows d_x)
{
    const tess_flux_factors *f = m->factors;
    const size_t mark = tess_carve_mark(&c->ex->work);
    tess_modulate_backward_args args = {.shape = shape_of(c, m->row_numel),
                                        .x = m->x,
                                        .scale = factor(c, f, f->value, m->scale_idx),
                                        .factor_stride = f->stride,
                                        .mean = m->norm.mean.data,
                                        .inv = m->norm.inv.data,
                                        .d_y = d_y,
                                        .residual = residual,
                                        .d_x = d_x};
    if (f->gradient.numel > 0) {
        tess_view work = {0};
        TESS_TRY(tess_carve_take_2d(&c->ex->work, c->sample_numel * CHUNK_NUMEL,
                                    2 * c->m->hidden_numel, TESS_F32, &work));
        args.d_shift = factor(c, f, f->gradient, m->shift_idx);
        args.d_scale = factor(c, f, f->gradient, m->scale_idx);
        args.work = work.data;
    }
    TESS_TRY(RUN(c->ex, modulate_backward, &args));
    tess_carve_release(&c->ex->work, mark);
    return TESS_OK;
}

tess_status tess_flux_gate(const tess_flux_call *c, const tess_flux_gated *g, tess_sample_rows x,
                           tess_sample_rows y)
{
    const tess_gate_args args = {.shape = shape_of(c, g->row_numel),
                                 .x = x,
                                 .f = g->f,
                                 .gate = factor(c, g->factors, g->factors->value, g->gate_idx),
                                 .factor_stride = g->factors->stride,
                                 .y = y};
    return RUN(c->ex, gate, &args);
}

tess_status tess_flux_gate_backward(const tess_flux_call *c, const tess_flux_gated *g,
                                    tess_sample_rows d_y, tess_sample_rows d_f)
{
    const tess_flux_factors *f = g->factors;
    const size_t mark = tess_carve_mark(&c->ex->work);
    tess_gate_backward_args args = {.shape = shape_of(c, g->row_numel),
                                    .d_y = d_y,
                                    .gate = factor(c, f, f->value, g->gate_idx),
                                    .factor_stride = f->stride,
                                    .d_f = d_f,
                                    .f = g->f};
    if (f->gradient.numel > 0) {
        tess_view work = {0};
        TESS_TRY(tess_carve_take_2d(&c->ex->work, c->sample_numel * CHUNK_NUMEL, c->m->hidden_numel,
                                    TESS_F32, &work));
        args.d_gate = factor(c, f, f->gradient, g->gate_idx);
        args.work = work.data;
    }
    TESS_TRY(RUN(c->ex, gate_backward, &args));
    tess_carve_release(&c->ex->work, mark);
    return TESS_OK;
}

/* ---- attention ---- */

static tess_sample_shape heads_of(const tess_flux_call *c, const tess_flux_turn *t)
{
    return (tess_sample_shape){c->sample_numel, t->row_numel, c->m->config.head_dim};
}

/* Angles of the turn's first row; the tables are there when something is computed. */
static const float *angles(const tess_flux_call *c, const tess_flux_turn *t, const float *table)
{
    return table == NULL ? NULL : table + t->first_row * (c->m->config.head_dim / 2);
}

tess_status tess_flux_turn_forward(const tess_flux_call *c, const tess_flux_turn *t,
                                   tess_sample_rows y)
{
    tess_rotate_args args = {.shape = heads_of(c, t),
                             .head_numel = c->m->config.head_numel,
                             .x = t->x,
                             .eps = t->norm->eps,
                             .cos_table = angles(c, t, c->batch->rope_cos),
                             .sin_table = angles(c, t, c->batch->rope_sin),
                             .y = y};
    TESS_TRY(tess_exec_vector(c->ex, t->norm->weight_idx, &args.w));
    return RUN(c->ex, rotate, &args);
}

tess_status tess_flux_turn_backward(const tess_flux_call *c, const tess_flux_turn *t,
                                    tess_sample_rows d_y, tess_sample_rows d_x)
{
    const size_t mark = tess_carve_mark(&c->ex->work);
    tess_rotate_backward_args args = {.shape = heads_of(c, t),
                                      .head_numel = c->m->config.head_numel,
                                      .x = t->x,
                                      .eps = t->norm->eps,
                                      .cos_table = angles(c, t, c->batch->rope_cos),
                                      .sin_table = angles(c, t, c->batch->rope_sin),
                                      .d_y = d_y,
                                      .d_x = d_x};
    TESS_TRY(tess_exec_vector(c->ex, t->norm->weight_idx, &args.w));
    if (t->norm->is_trainable) {
        tess_view work = {0};
        TESS_TRY(tess_carve_take_2d(&c->ex->work, CHUNK_NUMEL, t->norm->dim, TESS_F32, &work));
        args.d_w = tess_exec_grad(c->ex, t->norm->weight_idx).data;
        args.work = work.data;
    }
    TESS_TRY(RUN(c->ex, rotate_backward, &args));
    tess_carve_release(&c->ex->work, mark);
    return TESS_OK;
}

static tess_attention_shape attention_shape(const tess_flux_call *c)
{
    const tess_flux_config *config = &c->m->config;
    return (tess_attention_shape){.dt = c->ex->dt,
                                  .token_numel = c->sample_numel * c->token_numel,
                                  .head_numel = config->head_numel,
                                  .kv_head_numel = config->head_numel,
                                  .dim = config->head_dim,
                                  .longest_numel = c->token_numel,
                                  .segment_numel = c->token_numel};
}

static float attention_scale(const tess_flux_call *c)
{
    return (float)(1.0 / sqrt((double)c->m->config.head_dim));
}

static tess_status take_attention_work(const tess_flux_call *c, const tess_attention_shape *shape,
                                       tess_view *work)
{
    const size_t nbytes = c->ex->kernels->attention_work_nbytes(shape, c->ex->thread_numel);
    return tess_carve_take(&c->ex->work, (int64_t)nbytes, TESS_U8_OPAQUE, work);
}

tess_status tess_flux_mix_forward(const tess_flux_call *c, const tess_flux_mix *x)
{
    const size_t mark = tess_carve_mark(&c->ex->work);
    tess_attention_args args = {.shape = attention_shape(c),
                                .q = x->q,
                                .k = x->k,
                                .v = x->v,
                                .scale = attention_scale(c),
                                .out = x->mixed.view,
                                .out_stride = tess_rows_gap(&x->mixed),
                                .lse = x->lse.data};
    TESS_TRY(take_attention_work(c, &args.shape, &args.work));
    TESS_TRY(TESS_EXEC_RUN(c->ex, attention_forward, &args));
    tess_carve_release(&c->ex->work, mark);
    return TESS_OK;
}

tess_status tess_flux_mix_backward(const tess_flux_call *c, const tess_flux_mix *x,
                                   tess_view d_mixed, const tess_view d[3])
{
    const size_t mark = tess_carve_mark(&c->ex->work);
    tess_attention_backward_args args = {.shape = attention_shape(c),
                                         .q = x->q,
                                         .k = x->k,
                                         .v = x->v,
                                         .out = x->mixed.view,
                                         .out_stride = tess_rows_gap(&x->mixed),
                                         .lse = x->lse.data,
                                         .d_out = d_mixed,
                                         .scale = attention_scale(c),
                                         .d_q = d[0],
                                         .d_k = d[1],
                                         .d_v = d[2]};
    TESS_TRY(take_attention_work(c, &args.shape, &args.work));
    TESS_TRY(TESS_EXEC_RUN(c->ex, attention_backward, &args));
    tess_carve_release(&c->ex->work, mark);
    return TESS_OK;
}

/* ---- activations and sums ---- */

tess_status tess_flux_activate(const tess_flux_call *c, tess_activation kind, tess_rows x,
                               tess_rows y)
{
    const tess_activation_args args = {.kind = kind,
                                       .row_numel = x.rows,
                                       .dim = x.cols,
                                       .x = x.view,
                                       .y = y.view,
                                       .y_stride = tess_rows_gap(&y)};
    return RUN(c->ex, activation, &args);
}

tess_status tess_flux_activate_backward(const tess_flux_call *c, tess_activation kind, tess_rows x,
                                        tess_rows d_y, tess_rows d_x)
{
    const tess_activation_backward_args args = {.kind = kind,
                                                .row_numel = x.rows,
                                                .dim = x.cols,
                                                .x = x.view,
                                                .d_y = d_y.view,
                                                .d_y_stride = tess_rows_gap(&d_y),
                                                .d_x = d_x.view,
                                                .d_x_stride = tess_rows_gap(&d_x)};
    return RUN(c->ex, activation_backward, &args);
}

tess_status tess_flux_add(const tess_flux_call *c, tess_view a, tess_view b, tess_view out)
{
    const tess_add_args args = {.a = a, .b = b, .out = out};
    return TESS_EXEC_RUN(c->ex, add, &args);
}

tess_status tess_flux_copy(const tess_flux_call *c, tess_view dst, tess_view src)
{
    return tess_exec_copy_rows(c->ex, tess_rows_of(dst, 1, dst.numel),
                               tess_rows_of(src, 1, src.numel));
}
