/* Single blocks: attention and MLP side by side over all rows of a sample. */
#include "model/flux_priv.h"

enum { SHIFT, SCALE, GATE };

static const tess_view none = {.dt = TESS_F32};

/* What backward reads, in the order it is carved. R = B S rows. */
typedef struct block_saved {
    tess_flux_factors factors;
    tess_flux_norm norm;
    tess_group_input n; /* [R, H]: input of q, k, v, up */
    tess_view q, k, v;  /* [R, H], as projected */
    tess_view up;       /* [R, 4 H] */
    tess_view lse;      /* [heads, R] f32 */
    /* [R, 5 H]: input of `down`, mixed values, then the MLP's. Kept whole although backward may
     * need the former alone: they lie in one row for the product. */
    tess_group_input both;
    tess_view f; /* [R, H]: what the gate gets, where its gradient is wanted */
} block_saved;

static int64_t rows_of(const tess_flux_call *c) { return c->sample_numel * c->token_numel; }

static tess_group inputs(const tess_flux_single *block)
{
    return (tess_group){.numel = 4, .linear = {&block->q, &block->k, &block->v, &block->up}};
}

static bool projections_learn(const tess_flux_single *block)
{
    return tess_linear_learns(&block->q) || tess_linear_learns(&block->k) ||
           tess_linear_learns(&block->v);
}

static tess_status take_saved(const tess_flux_call *c, const tess_flux_single *block,
                              block_saved *s)
{
    tess_carve *carve = c->keep;
    const int64_t rows = rows_of(c), h = c->m->hidden_numel;
    const tess_group in = inputs(block), down = tess_group_one(&block->down);
    const bool is_n_read = projections_learn(block) || tess_linear_learns(&block->up);
    const bool is_gate_wanted = tess_flux_factors_learn(c, &block->modulation);
    TESS_TRY(tess_flux_factors_take(c, &block->modulation, carve, &s->factors));
    TESS_TRY(tess_flux_norm_take(rows, carve, &s->norm));
    TESS_TRY(tess_flux_take_input(c, &in, rows, is_n_read, carve, &s->n));
    tess_view *const projected[] = {&s->q, &s->k, &s->v};
    for (int i = 0; i < TESS_NELEM(projected); i++)
        TESS_TRY(tess_carve_take_2d(carve, rows, h, c->ex->dt, projected[i]));
    TESS_TRY(tess_carve_take_2d(carve, rows, block->up.out_numel, c->ex->dt, &s->up));
    TESS_TRY(tess_carve_take_2d(carve, c->m->config.head_numel, rows, TESS_F32, &s->lse));
    TESS_TRY(tess_flux_take_input(c, &down, rows, true, carve, &s->both));
    return tess_carve_take(carve, is_gate_wanted ? rows * h : 0, c->ex->dt, &s->f);
}

static tess_sample_rows joint(const tess_flux_call *c, tess_view v)
{
    return tess_sample_rows_of(v, c->token_numel, c->m->hidden_numel);
}

static tess_flux_modulated norm_of(const tess_flux_call *c, const block_saved *s)
{
    return (tess_flux_modulated){.factors = &s->factors,
                                 .shift_idx = SHIFT,
                                 .scale_idx = SCALE,
                                 .row_numel = c->token_numel,
                                 .norm = s->norm,
                                 .x = joint(c, c->input.h)};
}

static tess_flux_gated gate_of(const tess_flux_call *c, const block_saved *s, tess_view f)
{
    return (tess_flux_gated){
        .factors = &s->factors, .gate_idx = GATE, .row_numel = c->token_numel, .f = joint(c, f)};
}

static tess_flux_turn turn_of(const tess_flux_call *c, const tess_norm *norm, tess_view x)
{
    return (tess_flux_turn){.norm = norm, .row_numel = c->token_numel, .x = joint(c, x)};
}

static tess_status turn_all(const tess_flux_call *c, const tess_flux_single *block,
                            const block_saved *s, tess_flux_mix *x)
{
    const tess_flux_turn q = turn_of(c, &block->q_norm, s->q);
    const tess_flux_turn k = turn_of(c, &block->k_norm, s->k);
    TESS_TRY(tess_carve_take(&c->ex->work, s->q.numel, c->ex->dt, &x->q));
    TESS_TRY(tess_carve_take(&c->ex->work, s->k.numel, c->ex->dt, &x->k));
    TESS_TRY(tess_flux_turn_forward(c, &q, joint(c, x->q)));
    TESS_TRY(tess_flux_turn_forward(c, &k, joint(c, x->k)));
    x->v = s->v;
    x->mixed = tess_rows_cols(s->both.x, 0, c->m->hidden_numel);
    x->lse = s->lse;
    return TESS_OK;
}

/* ---- forward ---- */

static tess_status project(const tess_flux_call *c, const tess_flux_single *block,
                           const block_saved *s)
{
    const size_t mark = tess_carve_mark(&c->ex->work);
    const int64_t rows = rows_of(c), h = c->m->hidden_numel;
    const tess_flux_modulated norm = norm_of(c, s);
    tess_group group = inputs(block);
    group.in = s->n;
    if (group.in.x.view.numel == 0)
        TESS_TRY(tess_carve_take_rows(&c->ex->work, rows, h, c->ex->dt, &group.in.x));
    TESS_TRY(tess_flux_modulate(c, &norm, tess_flux_rows(c->token_numel, &group.in.x)));
    const tess_view y[] = {s->q, s->k, s->v, s->up};
    for (int i = 0; i < group.numel; i++)
        group.y[i] = tess_rows_of(y[i], rows, group.linear[i]->out_numel);
    TESS_TRY(tess_group_forward(c->ex, &group));
    tess_carve_release(&c->ex->work, mark);
    return TESS_OK;
}

static tess_status finish(const tess_flux_call *c, const tess_flux_single *block,
                          const block_saved *s)
{
    const size_t mark = tess_carve_mark(&c->ex->work);
    const int64_t rows = rows_of(c), h = c->m->hidden_numel;
    const bool has_output = c->output.h.numel > 0;
    tess_group down = tess_group_one(&block->down);
    tess_view f = s->f;
    if (has_output && f.numel == 0)
        TESS_TRY(tess_carve_take_2d(&c->ex->work, rows, h, c->ex->dt, &f));
    down.in = s->both;
    down.y[0] = f.numel > 0 ? tess_rows_of(f, rows, h) : (tess_rows){.view = none};
    TESS_TRY(tess_group_forward(c->ex, &down));
    if (has_output) {
        const tess_flux_gated gate = gate_of(c, s, f);
        TESS_TRY(tess_flux_gate(c, &gate, joint(c, c->input.h), joint(c, c->output.h)));
        TESS_TRY(tess_flux_copy(c, c->output.s, c->input.s));
    }
    tess_carve_release(&c->ex->work, mark);
    return TESS_OK;
}

tess_status tess_flux_single_forward(const tess_flux_call *c, const tess_flux_single *block)
{
    block_saved saved = {0};
    tess_flux_mix mix = {0};
    const int64_t h = c->m->hidden_numel;
    TESS_TRY(take_saved(c, block, &saved));
    const size_t mark = tess_carve_mark(&c->ex->work);
    TESS_TRY(tess_flux_factors_forward(c, &saved.factors));
    TESS_TRY(project(c, block, &saved));
    TESS_TRY(turn_all(c, block, &saved, &mix));
    TESS_TRY(tess_flux_mix_forward(c, &mix));
    tess_carve_release(&c->ex->work, mark);
    const tess_rows up = tess_rows_of(saved.up, rows_of(c), block->up.out_numel);
    TESS_TRY(tess_flux_activate(c, TESS_ACTIVATION_GELU_TANH, up,
                                tess_rows_cols(saved.both.x, h, up.cols)));
    return finish(c, block, &saved);
}

/* ---- backward ---- */

/* From d_output to the gradient of `down`'s input, numel 0: not wanted. */
static tess_status down_backward(const tess_flux_call *c, const tess_flux_single *block,
                                 const block_saved *s, tess_view d_both)
{
    const size_t mark = tess_carve_mark(&c->ex->work);
    const int64_t rows = rows_of(c), h = c->m->hidden_numel;
    tess_rows d_f = {0};
    TESS_TRY(tess_carve_take_rows(&c->ex->work, rows, h, c->ex->dt, &d_f));
    const tess_flux_gated gate = gate_of(c, s, s->f);
    TESS_TRY(tess_flux_gate_backward(c, &gate, joint(c, c->d_output.h), joint(c, d_f.view)));
    tess_group down = tess_group_one(&block->down);
    down.in = s->both;
    down.y[0] = d_f;
    TESS_TRY(tess_group_backward(c->ex, &down, d_both));
    tess_carve_release(&c->ex->work, mark);
    return TESS_OK;
}

/* From gradients of `down`'s input to those of q, k, v (as projected) and up. */
static tess_status inner_backward(const tess_flux_call *c, const tess_flux_single *block,
                                  const block_saved *s, tess_rows d_both, tess_group *group)
{
    const int64_t rows = rows_of(c), h = c->m->hidden_numel;
    tess_flux_mix turned = {0};
    tess_rows d_mixed = {0}, d[4];
    for (int i = 0; i < group->numel; i++)
        TESS_TRY(tess_carve_take_rows(&c->ex->work, rows, group->linear[i]->out_numel, c->ex->dt,
                                      &d[i]));
    const tess_rows up = tess_rows_of(s->up, rows, block->up.out_numel);
    TESS_TRY(tess_flux_activate_backward(c, TESS_ACTIVATION_GELU_TANH, up,
                                         tess_rows_cols(d_both, h, up.cols), d[3]));
    TESS_TRY(tess_carve_take_rows(&c->ex->work, rows, h, c->ex->dt, &d_mixed));
    TESS_TRY(tess_exec_copy_rows(c->ex, d_mixed, tess_rows_cols(d_both, 0, h)));
    TESS_TRY(turn_all(c, block, s, &turned));
    TESS_TRY(tess_flux_mix_backward(c, &turned, d_mixed.view,
                                    (tess_view[3]){d[0].view, d[1].view, d[2].view}));
    const tess_flux_turn q = turn_of(c, &block->q_norm, s->q);
    const tess_flux_turn k = turn_of(c, &block->k_norm, s->k);
    /* The rotated q and k were read: their memory takes the gradients of the projections. */
    TESS_TRY(tess_flux_turn_backward(c, &q, joint(c, d[0].view), joint(c, turned.q)));
    TESS_TRY(tess_flux_turn_backward(c, &k, joint(c, d[1].view), joint(c, turned.k)));
    d[0].view = turned.q;
    d[1].view = turned.k;
    for (int i = 0; i < group->numel; i++)
        group->y[i] = d[i];
    return TESS_OK;
}

static tess_status input_backward(const tess_flux_call *c, const tess_flux_single *block,
                                  const block_saved *s, tess_rows d_both)
{
    static const tess_sample_rows no_rows = {.view = {.dt = TESS_F32}};
    const bool is_n_wanted = c->wants_d_h || tess_flux_factors_learn(c, &block->modulation);
    tess_rows d_n = {.view = none};
    tess_group group = inputs(block);
    group.in = s->n;
    TESS_TRY(inner_backward(c, block, s, d_both, &group));
    if (is_n_wanted)
        TESS_TRY(
            tess_carve_take_rows(&c->ex->work, rows_of(c), c->m->hidden_numel, c->ex->dt, &d_n));
    TESS_TRY(tess_group_backward(c->ex, &group, d_n.view));
    if (!is_n_wanted)
        return TESS_OK;
    const tess_flux_modulated norm = norm_of(c, s);
    return tess_flux_modulate_backward(c, &norm, joint(c, d_n.view), joint(c, c->d_output.h),
                                       c->wants_d_h ? joint(c, c->d_input.h) : no_rows);
}

tess_status tess_flux_single_backward(const tess_flux_call *c, const tess_flux_single *block)
{
    block_saved saved = {0};
    const bool is_below_wanted = c->wants_d_h || projections_learn(block) ||
                                 tess_linear_learns(&block->up) || block->q_norm.is_trainable ||
                                 block->k_norm.is_trainable ||
                                 tess_flux_factors_learn(c, &block->modulation);
    TESS_TRY(take_saved(c, block, &saved));
    const size_t mark = tess_carve_mark(&c->ex->work);
    tess_rows d_both = {.view = none};
    TESS_TRY(tess_flux_factors_open(c, &saved.factors));
    if (is_below_wanted)
        TESS_TRY(tess_carve_take_rows(&c->ex->work, rows_of(c), block->down.in_numel, c->ex->dt,
                                      &d_both));
    TESS_TRY(down_backward(c, block, &saved, d_both.view));
    if (is_below_wanted)
        TESS_TRY(input_backward(c, block, &saved, d_both));
    if (c->wants_d_s)
        TESS_TRY(tess_flux_copy(c, c->d_input.s, c->d_output.s));
    TESS_TRY(tess_flux_factors_close(c, &saved.factors));
    tess_carve_release(&c->ex->work, mark);
    return TESS_OK;
}
