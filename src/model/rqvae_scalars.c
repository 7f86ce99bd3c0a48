/* Finite scalar quantization: a level of every dimension, alone or as a residual stack. */
#include <inttypes.h>

#include "model/rqvae_priv.h"

static bool is_stack(const tess_rqvae *m) { return m->config.is_stack; }

static tess_level_rule rule_of(const tess_rqvae *m)
{
    return is_stack(m) ? TESS_LEVEL_CLAMPED : m->config.rule;
}

tess_status tess_rqvae_axis_shape(const tess_rqvae_config *c, tess_quantizer_shape *out)
{
    TESS_CHECK(c->axis_numel == c->code_dim && c->axis_numel <= TESS_LEVEL_DIM_MAX, TESS_E_CONFIG,
               "quantizer.axis_levels: %d numbers for codes of %" PRId64
               " dimensions (quantizer.code_dim), expected one for each of at most %d",
               c->axis_numel, c->code_dim, TESS_LEVEL_DIM_MAX);
    TESS_CHECK(out->group_numel == 1, TESS_E_CONFIG,
               "quantizer.groups: %d, expected 1: every dimension has levels of its own",
               out->group_numel);
    out->code_numel = 1;
    for (int j = 0; j < c->axis_numel; j++) {
        TESS_CHECK(c->axis_level[j] >= 2 && c->axis_level[j] < INT32_MAX, TESS_E_CONFIG,
                   "quantizer.axis_levels: dimension %d has %" PRId64
                   " levels, expected at least 2",
                   j, c->axis_level[j]);
        out->code_numel *= c->axis_level[j];
        TESS_CHECK(out->code_numel < (int64_t)TESS_NO_CODE, TESS_E_CONFIG,
                   "quantizer.axis_levels: their product reaches 2^32 - 1 at dimension %d; use "
                   "fewer levels",
                   j);
    }
    return TESS_OK;
}

static tess_status shape(const tess_rqvae_config *c, tess_quantizer_shape *out)
{
    const bool is_symmetric =
        c->is_stack || c->rule == TESS_LEVEL_SYMMETRIC || c->rule == TESS_LEVEL_CLAMPED;
    TESS_TRY(tess_rqvae_axis_shape(c, out));
    TESS_CHECK(c->is_stack || c->level_numel == 1, TESS_E_CONFIG,
               "quantizer.levels: %d, expected 1: only stacks have levels; set quantizer.type to "
               "residual-fsq",
               c->level_numel);
    for (int j = 0; j < c->axis_numel && !is_symmetric; j++)
        TESS_CHECK(c->axis_level[j] > 2, TESS_E_CONFIG,
                   "quantizer.axis_levels: dimension %d has 2 levels, which only quantizer.rule "
                   "symmetric and clamped have",
                   j);
    TESS_CHECK(!(c->noise > 0.0) || (is_symmetric && !c->is_stack), TESS_E_CONFIG,
               "quantizer.noise: only quantizer.rule symmetric and clamped of fsq have it");
    return TESS_OK;
}

static void terms(const tess_rqvae *m, tess_quantizer_terms *out)
{
    *out = (tess_quantizer_terms){.numel = m->shape.index_numel, .of_rows = m->shape.index_numel};
}

static tess_levels levels_of(const tess_rqvae *m, int level, float scale[TESS_LEVEL_DIM_MAX])
{
    for (int64_t j = 0; j < m->config.code_dim; j++) {
        scale[j] = 1.0f;
        for (int i = 0; i < level; i++)
            scale[j] /= (float)m->axis_level[j];
    }
    return (tess_levels){.levels = m->axis_level,
                         .scale = is_stack(m) ? scale : NULL,
                         .dim = m->config.code_dim,
                         .rule = rule_of(m)};
}

static tess_status quantize_level(const tess_rqvae *m, const tess_exec *ex, const tess_rqvae_io *io,
                                  int level, const tess_view v[3])
{
    const tess_view r = v[0], q = v[1], sum = v[2];
    float scale[TESS_LEVEL_DIM_MAX];
    const tess_coded_rows rows = tess_rqvae_own_rows(ex, q, m->config.code_dim);
    const tess_quantizer_level_args args = {
        .levels = levels_of(m, level, scale),
        .x = r,
        .row_numel = ex->row_numel,
        .out = q,
        .index = tess_rqvae_row(ex, io->code, level).data,
        .noise = io->batch->is_drawn ? m->config.noise : 0.0,
        .rng = tess_rng_make(m->config.seed, TESS_RNG_QUANTIZER, (uint32_t)level, 0),
        .first_idx = io->batch->first_idx * m->config.code_dim};
    const tess_quantizer_residual_args subtract = {
        .rows = rows, .r = r.data, .next = r.data, .sum = sum.data};
    TESS_TRY(TESS_RQVAE_RUN(ex, level, &args));
    if (io->output.numel > 0) {
        const tess_quantizer_row_loss_args loss = {
            .rows = tess_rqvae_valid_rows(ex, io, q, m->config.code_dim),
            .x = r.data,
            .out = tess_rqvae_row(ex, io->term, level).data};
        TESS_TRY(TESS_RQVAE_RUN(ex, row_loss, &loss));
    }
    return TESS_RQVAE_RUN(ex, residual, &subtract);
}

static tess_status enter(const tess_rqvae *m, const tess_exec *ex, const tess_rqvae_io *io,
                         tess_view r)
{
    const tess_rows in = tess_rqvae_part(m, ex, io->input, 0);
    const tess_quantizer_soft_clamp_args clamp = {.levels = m->axis_level,
                                                  .row_numel = ex->row_numel,
                                                  .dim = m->config.code_dim,
                                                  .x = io->input,
                                                  .y = r.data};
    return is_stack(m) ? TESS_RQVAE_RUN(ex, soft_clamp, &clamp)
                       : tess_rqvae_enter(ex, &in, r, (tess_view){0});
}

static tess_status forward(const tess_rqvae *m, tess_exec *ex, const tess_rqvae_io *io)
{
    const size_t mark = tess_carve_mark(&ex->work);
    tess_view v[3] = {{0}}; /* what is left, a level's codes, their sum */
    for (int i = 0; i < 3; i++)
        TESS_TRY(tess_carve_take_2d(&ex->work, ex->row_numel, m->config.code_dim, TESS_F32, &v[i]));
    TESS_TRY(enter(m, ex, io, v[0]));
    TESS_TRY(tess_exec_zero(ex, v[2]));
    for (int l = 0; l < m->config.level_numel; l++)
        TESS_TRY(quantize_level(m, ex, io, l, v));
    TESS_TRY(tess_rqvae_mask(ex, io, io->code));
    if (io->output.numel > 0) {
        const tess_rows out = tess_rqvae_part(m, ex, io->output, 0);
        TESS_TRY(tess_rqvae_leave(ex, io, v[2], &out));
        TESS_TRY(tess_rqvae_give(ex, io->batch->code, io->code));
    }
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}

static tess_status decode(const tess_rqvae *m, tess_exec *ex, const tess_rqvae_io *io)
{
    const size_t mark = tess_carve_mark(&ex->work);
    const tess_rows out = tess_rqvae_part(m, ex, io->output, 0);
    tess_view q = {0}, sum = {0};
    TESS_TRY(tess_carve_take_2d(&ex->work, ex->row_numel, m->config.code_dim, TESS_F32, &q));
    TESS_TRY(tess_carve_take(&ex->work, q.numel, TESS_F32, &sum));
    TESS_TRY(tess_exec_zero(ex, sum));
    for (int l = 0; l < m->config.level_numel; l++) {
        float scale[TESS_LEVEL_DIM_MAX];
        const tess_quantizer_level_decode_args args = {.levels = levels_of(m, l, scale),
                                                       .index =
                                                           tess_rqvae_row(ex, io->code, l).data,
                                                       .row_numel = ex->row_numel,
                                                       .out = q};
        const tess_quantizer_residual_args add = {
            .rows = tess_rqvae_own_rows(ex, q, m->config.code_dim), .sum = sum.data};
        TESS_TRY(TESS_RQVAE_RUN(ex, level_decode, &args));
        TESS_TRY(TESS_RQVAE_RUN(ex, residual, &add));
    }
    TESS_TRY(tess_rqvae_leave(ex, io, sum, &out));
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}

/* d_y = what arrives at the codes, f32; none arrives at those that masked vectors do not have. */
static tess_status take_gradient(const tess_rqvae *m, tess_exec *ex, const tess_rqvae_io *io,
                                 tess_view *d_y)
{
    const tess_rows d_out = tess_rqvae_part(m, ex, io->d_output, 0);
    TESS_TRY(tess_carve_take_2d(&ex->work, ex->row_numel, m->config.code_dim, TESS_F32, d_y));
    TESS_TRY(tess_rqvae_enter(ex, &d_out, *d_y, (tess_view){0}));
    if (io->batch->valid == NULL)
        return TESS_OK;
    const tess_rows all = tess_rows_of(*d_y, ex->row_numel, m->config.code_dim);
    return tess_rqvae_leave(ex, io, *d_y, &all);
}

static tess_status backward(const tess_rqvae *m, tess_exec *ex, const tess_rqvae_io *io)
{
    const size_t mark = tess_carve_mark(&ex->work);
    float scale[TESS_LEVEL_DIM_MAX];
    tess_view d_y = {0};
    TESS_TRY(take_gradient(m, ex, io, &d_y));
    const tess_quantizer_level_backward_args of_level = {.levels = levels_of(m, 0, scale),
                                                         .x = io->input,
                                                         .d_out = d_y,
                                                         .row_numel = ex->row_numel,
                                                         .d_x = io->d_input};
    const tess_quantizer_soft_clamp_backward_args of_stack = {.levels = m->axis_level,
                                                              .row_numel = ex->row_numel,
                                                              .dim = m->config.code_dim,
                                                              .x = io->input,
                                                              .d_y = d_y.data,
                                                              .d_x = io->d_input};
    TESS_TRY(is_stack(m) ? TESS_RQVAE_RUN(ex, soft_clamp_backward, &of_stack)
                         : TESS_RQVAE_RUN(ex, level_backward, &of_level));
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}

const tess_quantizer_ops tess_quantizer_of_scalars = {
    .shape = shape, .terms = terms, .forward = forward, .decode = decode, .backward = backward};
