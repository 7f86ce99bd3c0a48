/* Double blocks: two streams with weights of their own that meet in attention. */
#include "model/flux_priv.h"

/* Columns of the factors. */
enum { SHIFT_ATTENTION, SCALE_ATTENTION, GATE_ATTENTION, SHIFT_MLP, SCALE_MLP, GATE_MLP };

static const tess_view none = {.dt = TESS_F32};

/* What backward reads of one stream, in the order it is carved. R = B N rows. */
typedef struct half_saved {
    tess_flux_factors factors;
    tess_flux_norm norm1, norm2;
    tess_group_input n1;  /* [R, H]: input of q, k, v */
    tess_group_input o;   /* [R, H]: input of `out`; x numel 0: rows of `mixed` */
    tess_view f1, f2;     /* [R, H]: what the gates get, where their gradients are wanted */
    tess_group_input n2;  /* [R, H]: input of `up` */
    tess_view up;         /* [R, 4 H] */
    tess_group_input act; /* [R, 4 H]: input of `down` */
} half_saved;

typedef struct block_saved {
    half_saved half[TESS_FLUX_STREAM_NUMEL];
    tess_view q, k;  /* [B S, H] split, as projected */
    tess_view v;     /* [B S, H] joint */
    tess_view mixed; /* [B S, H] joint */
    tess_view lse;   /* [heads, B S] f32 */
    tess_view h2;    /* [B S, H] joint: after attention */
} block_saved;

static tess_group projections(const tess_flux_half *half)
{
    return (tess_group){.numel = 3, .linear = {&half->q, &half->k, &half->v}};
}

static bool projections_learn(const tess_flux_half *half)
{
    return tess_linear_learns(&half->q) || tess_linear_learns(&half->k) ||
           tess_linear_learns(&half->v);
}

static tess_status take_half(const tess_flux_call *c, const tess_flux_half *half, int stream,
                             tess_carve *carve, half_saved *s)
{
    const int64_t rows = tess_flux_stream_numel(c, stream);
    const tess_group qkv = projections(half), out = tess_group_one(&half->out);
    const tess_group up = tess_group_one(&half->up), down = tess_group_one(&half->down);
    const bool is_gate_wanted = tess_flux_factors_learn(c, &half->modulation);
    const int64_t kept = is_gate_wanted ? rows * c->m->hidden_numel : 0;
    const bool is_copied = c->sample_numel > 1 && tess_linear_learns(&half->out);
    TESS_TRY(tess_flux_factors_take(c, &half->modulation, carve, &s->factors));
    TESS_TRY(tess_flux_norm_take(rows, carve, &s->norm1));
    TESS_TRY(tess_flux_norm_take(rows, carve, &s->norm2));
    TESS_TRY(tess_flux_take_input(c, &qkv, rows, projections_learn(half), carve, &s->n1));
    TESS_TRY(tess_flux_take_input(c, &out, rows, is_copied, carve, &s->o));
    TESS_TRY(tess_carve_take(carve, kept, c->ex->dt, &s->f1));
    TESS_TRY(tess_carve_take(carve, kept, c->ex->dt, &s->f2));
    TESS_TRY(tess_flux_take_input(c, &up, rows, tess_linear_learns(&half->up), carve, &s->n2));
    TESS_TRY(tess_carve_take_2d(carve, rows, half->up.out_numel, c->ex->dt, &s->up));
    return tess_flux_take_input(c, &down, rows, tess_linear_learns(&half->down), carve, &s->act);
}

static tess_status take_saved(const tess_flux_call *c, const tess_flux_double *block,
                              block_saved *s)
{
    tess_carve *carve = c->keep;
    const int64_t rows = c->sample_numel * c->token_numel, numel = rows * c->m->hidden_numel;
    for (int i = 0; i < TESS_FLUX_STREAM_NUMEL; i++)
        TESS_TRY(take_half(c, &block->half[i], i, carve, &s->half[i]));
    tess_view *const whole[] = {&s->q, &s->k, &s->v, &s->mixed, &s->h2};
    for (int i = 0; i < TESS_NELEM(whole); i++)
        TESS_TRY(tess_carve_take(carve, numel, c->ex->dt, whole[i]));
    return tess_carve_take_2d(carve, c->m->config.head_numel, rows, TESS_F32, &s->lse);
}

/* ---- parts of both directions ---- */

static tess_flux_modulated first_norm(const tess_flux_call *c, const half_saved *s, int stream)
{
    return (tess_flux_modulated){.factors = &s->factors,
                                 .shift_idx = SHIFT_ATTENTION,
                                 .scale_idx = SCALE_ATTENTION,
                                 .row_numel = c->row_numel[stream],
                                 .norm = s->norm1,
                                 .x = tess_flux_joint(c, c->input.h, stream, c->m->hidden_numel)};
}

static tess_flux_modulated second_norm(const tess_flux_call *c, const block_saved *saved,
                                       int stream)
{
    const half_saved *s = &saved->half[stream];
    return (tess_flux_modulated){.factors = &s->factors,
                                 .shift_idx = SHIFT_MLP,
                                 .scale_idx = SCALE_MLP,
                                 .row_numel = c->row_numel[stream],
                                 .norm = s->norm2,
                                 .x = tess_flux_joint(c, saved->h2, stream, c->m->hidden_numel)};
}

static tess_flux_gated gated(const tess_flux_call *c, const half_saved *s, int stream, int gate_idx,
                             tess_view f)
{
    const tess_rows rows = tess_rows_of(f, tess_flux_stream_numel(c, stream), c->m->hidden_numel);
    return (tess_flux_gated){.factors = &s->factors,
                             .gate_idx = gate_idx,
                             .row_numel = c->row_numel[stream],
                             .f = tess_flux_rows(c->row_numel[stream], &rows)};
}

static tess_flux_turn turn_of(const tess_flux_call *c, const tess_norm *norm, int stream,
                              tess_view x)
{
    const tess_rows rows = tess_rows_of(tess_flux_split(c, x, stream, c->m->hidden_numel),
                                        tess_flux_stream_numel(c, stream), c->m->hidden_numel);
    return (tess_flux_turn){.norm = norm,
                            .first_row = stream == TESS_FLUX_TEXT ? 0 : c->row_numel[0],
                            .row_numel = c->row_numel[stream],
                            .x = tess_flux_rows(c->row_numel[stream], &rows)};
}

static tess_rows joint_rows(const tess_flux_call *c, tess_view v)
{
    return tess_rows_of(v, c->sample_numel * c->token_numel, c->m->hidden_numel);
}

/* Norm and rotate q and k of both streams. */
static tess_status turn_all(const tess_flux_call *c, const tess_flux_double *block,
                            const block_saved *s, tess_flux_mix *x)
{
    const int64_t h = c->m->hidden_numel;
    TESS_TRY(tess_carve_take(&c->ex->work, s->q.numel, c->ex->dt, &x->q));
    TESS_TRY(tess_carve_take(&c->ex->work, s->k.numel, c->ex->dt, &x->k));
    for (int i = 0; i < TESS_FLUX_STREAM_NUMEL; i++) {
        const tess_flux_turn q = turn_of(c, &block->half[i].q_norm, i, s->q);
        const tess_flux_turn k = turn_of(c, &block->half[i].k_norm, i, s->k);
        TESS_TRY(tess_flux_turn_forward(c, &q, tess_flux_joint(c, x->q, i, h)));
        TESS_TRY(tess_flux_turn_forward(c, &k, tess_flux_joint(c, x->k, i, h)));
    }
    x->v = s->v;
    x->mixed = joint_rows(c, s->mixed);
    x->lse = s->lse;
    return TESS_OK;
}

/* ---- forward ---- */

/* Scratch for an input that is not kept. */
static tess_status take_scratch(const tess_flux_call *c, tess_rows *x)
{
    if (x->view.numel > 0)
        return TESS_OK;
    return tess_carve_take_rows(&c->ex->work, x->rows, x->cols, c->ex->dt, x);
}

static tess_status project(const tess_flux_call *c, const tess_flux_half *half, int stream,
                           block_saved *saved)
{
    half_saved *s = &saved->half[stream];
    const size_t mark = tess_carve_mark(&c->ex->work);
    const int64_t rows = tess_flux_stream_numel(c, stream), h = c->m->hidden_numel;
    const tess_flux_modulated norm = first_norm(c, s, stream);
    tess_group group = projections(half);
    tess_view v = {0};
    group.in = s->n1;
    TESS_TRY(take_scratch(c, &group.in.x));
    TESS_TRY(tess_flux_take_split(c, stream, saved->v, &c->ex->work, h, &v));
    TESS_TRY(tess_flux_modulate(c, &norm, tess_flux_rows(c->row_numel[stream], &group.in.x)));
    group.y[0] = tess_rows_of(tess_flux_split(c, saved->q, stream, h), rows, h);
    group.y[1] = tess_rows_of(tess_flux_split(c, saved->k, stream, h), rows, h);
    group.y[2] = tess_rows_of(v, rows, h);
    TESS_TRY(tess_group_forward(c->ex, &group));
    if (c->sample_numel > 1)
        TESS_TRY(tess_flux_to_joint(c, stream, group.y[2], joint_rows(c, saved->v)));
    tess_carve_release(&c->ex->work, mark);
    return TESS_OK;
}

/* The input of `out`: rows of the mixed values, or a copy of them. */
static tess_status out_input(const tess_flux_call *c, const block_saved *saved, int stream,
                             bool is_filled, tess_group_input *in)
{
    const int64_t rows = tess_flux_stream_numel(c, stream), h = c->m->hidden_numel;
    *in = saved->half[stream].o;
    if (in->x.view.numel == 0 && c->sample_numel == 1) {
        in->x = tess_rows_of(tess_flux_split(c, saved->mixed, stream, h), rows, h);
        return TESS_OK;
    }
    if (is_filled)
        return TESS_OK;
    TESS_TRY(take_scratch(c, &in->x));
    return tess_flux_from_joint(c, stream, joint_rows(c, saved->mixed), in->x);
}

static tess_status take_branch(const tess_flux_call *c, int stream, tess_view kept, tess_view *out)
{
    *out = kept;
    if (kept.numel > 0)
        return TESS_OK;
    return tess_carve_take_2d(&c->ex->work, tess_flux_stream_numel(c, stream), c->m->hidden_numel,
                              c->ex->dt, out);
}

static tess_status add_attention(const tess_flux_call *c, const tess_flux_half *half, int stream,
                                 const block_saved *saved)
{
    const half_saved *s = &saved->half[stream];
    const size_t mark = tess_carve_mark(&c->ex->work);
    const int64_t h = c->m->hidden_numel;
    tess_group group = tess_group_one(&half->out);
    tess_view f = {0};
    TESS_TRY(out_input(c, saved, stream, false, &group.in));
    TESS_TRY(take_branch(c, stream, s->f1, &f));
    group.y[0] = tess_rows_of(f, tess_flux_stream_numel(c, stream), h);
    TESS_TRY(tess_group_forward(c->ex, &group));
    const tess_flux_gated gate = gated(c, s, stream, GATE_ATTENTION, f);
    TESS_TRY(tess_flux_gate(c, &gate, tess_flux_joint(c, c->input.h, stream, h),
                            tess_flux_joint(c, saved->h2, stream, h)));
    tess_carve_release(&c->ex->work, mark);
    return TESS_OK;
}

static tess_status add_mlp(const tess_flux_call *c, const tess_flux_half *half, int stream,
                           const block_saved *saved)
{
    const half_saved *s = &saved->half[stream];
    const size_t mark = tess_carve_mark(&c->ex->work);
    const int64_t rows = tess_flux_stream_numel(c, stream), h = c->m->hidden_numel;
    const tess_flux_modulated norm = second_norm(c, saved, stream);
    tess_group up = tess_group_one(&half->up), down = tess_group_one(&half->down);
    up.in = s->n2;
    TESS_TRY(take_scratch(c, &up.in.x));
    TESS_TRY(tess_flux_modulate(c, &norm, tess_flux_rows(c->row_numel[stream], &up.in.x)));
    up.y[0] = tess_rows_of(s->up, rows, half->up.out_numel);
    TESS_TRY(tess_group_forward(c->ex, &up));
    down.in = s->act;
    TESS_TRY(take_scratch(c, &down.in.x));
    TESS_TRY(tess_flux_activate(c, TESS_ACTIVATION_GELU_TANH, up.y[0], down.in.x));
    tess_view f = s->f2;
    if (c->output.h.numel > 0)
        TESS_TRY(take_branch(c, stream, s->f2, &f));
    down.y[0] = f.numel > 0 ? tess_rows_of(f, rows, h) : (tess_rows){.view = none};
    TESS_TRY(tess_group_forward(c->ex, &down));
    if (c->output.h.numel > 0) {
        const tess_flux_gated gate = gated(c, s, stream, GATE_MLP, f);
        TESS_TRY(tess_flux_gate(c, &gate, tess_flux_joint(c, saved->h2, stream, h),
                                tess_flux_joint(c, c->output.h, stream, h)));
    }
    tess_carve_release(&c->ex->work, mark);
    return TESS_OK;
}

tess_status tess_flux_double_forward(const tess_flux_call *c, const tess_flux_double *block)
{
    block_saved saved = {0};
    tess_flux_mix mix = {0};
    TESS_TRY(take_saved(c, block, &saved));
    const size_t mark = tess_carve_mark(&c->ex->work);
    for (int i = 0; i < TESS_FLUX_STREAM_NUMEL; i++) {
        TESS_TRY(tess_flux_factors_forward(c, &saved.half[i].factors));
        TESS_TRY(project(c, &block->half[i], i, &saved));
    }
    TESS_TRY(turn_all(c, block, &saved, &mix));
    TESS_TRY(tess_flux_mix_forward(c, &mix));
    tess_carve_release(&c->ex->work, mark);
    for (int i = 0; i < TESS_FLUX_STREAM_NUMEL; i++) {
        TESS_TRY(add_attention(c, &block->half[i], i, &saved));
        TESS_TRY(add_mlp(c, &block->half[i], i, &saved));
    }
    return c->output.h.numel > 0 ? tess_flux_copy(c, c->output.s, c->input.s) : TESS_OK;
}

/* ---- backward ---- */

/* [Note: what is wanted] Which gradients something that learns depends on: everything else is not
 * computed. */
typedef struct wanted {
    bool n1[TESS_FLUX_STREAM_NUMEL]; /* of the input of q, k, v */
    bool attention;                  /* of q, k, v */
    bool h2[TESS_FLUX_STREAM_NUMEL]; /* of what attention gave */
} wanted;

static bool half_attention_learns(const tess_flux_half *half)
{
    return projections_learn(half) || half->q_norm.is_trainable || half->k_norm.is_trainable;
}

static wanted wanted_of(const tess_flux_call *c, const tess_flux_double *block)
{
    wanted w = {0};
    for (int i = 0; i < TESS_FLUX_STREAM_NUMEL; i++) {
        w.n1[i] = c->wants_d_h || tess_flux_factors_learn(c, &block->half[i].modulation);
        w.attention = w.attention || w.n1[i] || half_attention_learns(&block->half[i]);
    }
    for (int i = 0; i < TESS_FLUX_STREAM_NUMEL; i++)
        w.h2[i] = w.attention || tess_linear_learns(&block->half[i].out);
    return w;
}

static const tess_sample_rows no_rows = {.view = {.dt = TESS_F32}};

/* d_h2 of a stream, from d_output. */
static tess_status mlp_backward(const tess_flux_call *c, const tess_flux_half *half, int stream,
                                const block_saved *saved, tess_view d_h2)
{
    const half_saved *s = &saved->half[stream];
    const int64_t rows = tess_flux_stream_numel(c, stream), h = c->m->hidden_numel;
    const bool is_h2_wanted = d_h2.numel > 0;
    if (!is_h2_wanted && !tess_linear_learns(&half->up) && !tess_linear_learns(&half->down))
        return TESS_OK;
    const size_t mark = tess_carve_mark(&c->ex->work);
    const tess_sample_rows d_out = tess_flux_joint(c, c->d_output.h, stream, h);
    tess_rows d_f = {0}, d_up = {.view = none};
    TESS_TRY(tess_carve_take_rows(&c->ex->work, rows, h, c->ex->dt, &d_f));
    const tess_flux_gated gate = gated(c, s, stream, GATE_MLP, s->f2);
    TESS_TRY(tess_flux_gate_backward(c, &gate, d_out, tess_flux_rows(c->row_numel[stream], &d_f)));
    const bool is_up_wanted = is_h2_wanted || tess_linear_learns(&half->up);
    if (is_up_wanted)
        TESS_TRY(tess_carve_take_rows(&c->ex->work, rows, half->up.out_numel, c->ex->dt, &d_up));
    tess_group down = tess_group_one(&half->down), up = tess_group_one(&half->up);
    down.in = s->act;
    down.y[0] = d_f;
    TESS_TRY(tess_group_backward(c->ex, &down, d_up.view));
    if (is_up_wanted) {
        const tess_rows x = tess_rows_of(s->up, rows, half->up.out_numel);
        TESS_TRY(tess_flux_activate_backward(c, TESS_ACTIVATION_GELU_TANH, x, d_up, d_up));
        up.in = s->n2;
        up.y[0] = d_up;
        /* d_f was read: its memory takes the gradient of the norm's result. */
        TESS_TRY(tess_group_backward(c->ex, &up, is_h2_wanted ? d_f.view : none));
    }
    if (is_h2_wanted) {
        const tess_flux_modulated norm = second_norm(c, saved, stream);
        TESS_TRY(tess_flux_modulate_backward(c, &norm, tess_flux_rows(c->row_numel[stream], &d_f),
                                             d_out, tess_flux_joint(c, d_h2, stream, h)));
    }
    tess_carve_release(&c->ex->work, mark);
    return TESS_OK;
}

/* d_mixed of a stream (numel 0: not wanted), from d_h2. */
static tess_status out_backward(const tess_flux_call *c, const tess_flux_half *half, int stream,
                                const block_saved *saved, const tess_view d[2])
{
    const tess_view d_h2 = d[0], d_mixed = d[1];
    const half_saved *s = &saved->half[stream];
    const int64_t rows = tess_flux_stream_numel(c, stream), h = c->m->hidden_numel;
    const size_t mark = tess_carve_mark(&c->ex->work);
    tess_rows d_f = {0};
    tess_view d_x = none;
    TESS_TRY(tess_carve_take_rows(&c->ex->work, rows, h, c->ex->dt, &d_f));
    if (d_mixed.numel > 0)
        TESS_TRY(tess_flux_take_split(c, stream, d_mixed, &c->ex->work, h, &d_x));
    const tess_flux_gated gate = gated(c, s, stream, GATE_ATTENTION, s->f1);
    TESS_TRY(tess_flux_gate_backward(c, &gate, tess_flux_joint(c, d_h2, stream, h),
                                     tess_flux_rows(c->row_numel[stream], &d_f)));
    tess_group out = tess_group_one(&half->out);
    TESS_TRY(out_input(c, saved, stream, true, &out.in));
    out.y[0] = d_f;
    TESS_TRY(tess_group_backward(c->ex, &out, d_x));
    if (d_mixed.numel > 0 && c->sample_numel > 1)
        TESS_TRY(tess_flux_to_joint(c, stream, tess_rows_of(d_x, rows, h), joint_rows(c, d_mixed)));
    tess_carve_release(&c->ex->work, mark);
    return TESS_OK;
}

/* Gradients inside attention, joint; `turned` are the rotated q and k, whose memory takes the split
 * gradients of the projections when they were read. */
typedef struct attention_grads {
    tess_view d_mixed, d[3];
    tess_flux_mix turned;
} attention_grads;

/* From gradients of one stream's q, k, v to those of its weights and of its input. */
static tess_status project_backward(const tess_flux_call *c, const tess_flux_half *half, int stream,
                                    const block_saved *saved, const attention_grads *g,
                                    tess_view d_n1)
{
    const int64_t rows = tess_flux_stream_numel(c, stream), h = c->m->hidden_numel;
    tess_group group = projections(half);
    const tess_flux_turn turn[] = {turn_of(c, &half->q_norm, stream, saved->q),
                                   turn_of(c, &half->k_norm, stream, saved->k)};
    const tess_view to[] = {g->turned.q, g->turned.k};
    for (int i = 0; i < 2; i++) {
        group.y[i] = tess_rows_of(tess_flux_split(c, to[i], stream, h), rows, h);
        TESS_TRY(tess_flux_turn_backward(c, &turn[i], tess_flux_joint(c, g->d[i], stream, h),
                                         tess_flux_rows(c->row_numel[stream], &group.y[i])));
    }
    group.y[2] = tess_rows_of(tess_flux_split(c, g->d[2], stream, h), rows, h);
    if (c->sample_numel > 1) {
        group.y[2].view = tess_flux_split(c, g->d_mixed, stream, h);
        TESS_TRY(tess_flux_from_joint(c, stream, joint_rows(c, g->d[2]), group.y[2]));
    }
    group.in = saved->half[stream].n1;
    return tess_group_backward(c->ex, &group, d_n1);
}

static tess_status attention_backward(const tess_flux_call *c, const tess_flux_double *block,
                                      const block_saved *saved, const wanted *w, tess_view d_h2)
{
    const int64_t h = c->m->hidden_numel;
    attention_grads g = {.d_mixed = none};
    if (w->attention)
        TESS_TRY(tess_carve_take(&c->ex->work, saved->q.numel, c->ex->dt, &g.d_mixed));
    for (int i = 0; i < TESS_FLUX_STREAM_NUMEL; i++)
        if (w->h2[i])
            TESS_TRY(out_backward(c, &block->half[i], i, saved, (tess_view[2]){d_h2, g.d_mixed}));
    if (!w->attention)
        return TESS_OK;
    for (int i = 0; i < 3; i++)
        TESS_TRY(tess_carve_take(&c->ex->work, saved->q.numel, c->ex->dt, &g.d[i]));
    TESS_TRY(turn_all(c, block, saved, &g.turned));
    TESS_TRY(tess_flux_mix_backward(c, &g.turned, g.d_mixed, g.d));
    for (int i = 0; i < TESS_FLUX_STREAM_NUMEL; i++) {
        const int64_t rows = tess_flux_stream_numel(c, i);
        const size_t mark = tess_carve_mark(&c->ex->work);
        tess_rows d_n1 = {.view = none};
        if (w->n1[i])
            TESS_TRY(tess_carve_take_rows(&c->ex->work, rows, h, c->ex->dt, &d_n1));
        TESS_TRY(project_backward(c, &block->half[i], i, saved, &g, d_n1.view));
        if (w->n1[i]) {
            const tess_flux_modulated norm = first_norm(c, &saved->half[i], i);
            TESS_TRY(tess_flux_modulate_backward(
                c, &norm, tess_flux_rows(c->row_numel[i], &d_n1), tess_flux_joint(c, d_h2, i, h),
                c->wants_d_h ? tess_flux_joint(c, c->d_input.h, i, h) : no_rows));
        }
        tess_carve_release(&c->ex->work, mark);
    }
    return TESS_OK;
}

tess_status tess_flux_double_backward(const tess_flux_call *c, const tess_flux_double *block)
{
    block_saved saved = {0};
    const wanted w = wanted_of(c, block);
    TESS_TRY(take_saved(c, block, &saved));
    const size_t mark = tess_carve_mark(&c->ex->work);
    tess_view d_h2 = {0};
    TESS_TRY(tess_carve_take(&c->ex->work, c->input.h.numel, c->ex->dt, &d_h2));
    for (int i = 0; i < TESS_FLUX_STREAM_NUMEL; i++)
        TESS_TRY(tess_flux_factors_open(c, &saved.half[i].factors));
    const size_t inner_mark = tess_carve_mark(&c->ex->work);
    for (int i = 0; i < TESS_FLUX_STREAM_NUMEL; i++)
        TESS_TRY(mlp_backward(c, &block->half[i], i, &saved, w.h2[i] ? d_h2 : none));
    TESS_TRY(attention_backward(c, block, &saved, &w, d_h2));
    tess_carve_release(&c->ex->work, inner_mark);
    if (c->wants_d_s)
        TESS_TRY(tess_flux_copy(c, c->d_input.s, c->d_output.s));
    for (int i = 0; i < TESS_FLUX_STREAM_NUMEL; i++)
        TESS_TRY(tess_flux_factors_close(c, &saved.half[i].factors));
    tess_carve_release(&c->ex->work, mark);
    return TESS_OK;
}
