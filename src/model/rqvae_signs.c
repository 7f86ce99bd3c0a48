/*
 * Quantizers of signs: lookup-free (LFQ) and binary spherical (BSQ), with entropies of the soft
 * assignment: of each vector, and of the mean over all vectors of the step (quantizer_binary.h,
 * [Note: the batch entropy at any number of ranks]).
 */
#include <inttypes.h>
#include <math.h>

#include "model/rqvae_priv.h"

static bool wants_mean(const tess_rqvae_config *c) { return c->entropy * c->diversity > 0.0; }

static tess_status shape(const tess_rqvae_config *c, tess_quantizer_shape *out)
{
    TESS_CHECK(c->level_numel == 1, TESS_E_CONFIG,
               "quantizer.levels: %d, expected 1: signs have no levels", c->level_numel);
    TESS_CHECK(2 * out->group_numel + 1 <= TESS_RQVAE_TERM_MAX, TESS_E_CONFIG,
               "quantizer.groups: %d, expected at most %d", out->group_numel,
               (TESS_RQVAE_TERM_MAX - 1) / 2);
    TESS_CHECK(out->dim < TESS_SIGN_DIM_MAX, TESS_E_CONFIG,
               "quantizer.code_dim: %" PRId64 " bits for an index, expected at most %d; use "
               "quantizer.groups",
               out->dim, TESS_SIGN_DIM_MAX - 1);
    TESS_CHECK(!wants_mean(c) || out->dim <= TESS_ENTROPY_DIM_MAX, TESS_E_CONFIG,
               "quantizer.diversity: the mean of 2^%" PRId64
               " probabilities, expected at most 2^%d; use quantizer.groups, or 0",
               out->dim, TESS_ENTROPY_DIM_MAX);
    out->code_numel = INT64_C(1) << out->dim;
    out->mean_numel = wants_mean(c) ? out->group_numel * out->code_numel : 0;
    return TESS_OK;
}

/* Weights of |z - q|^2 and of each group's entropies. */
static double commitment_of(const tess_rqvae *m)
{
    return m->config.commitment * (m->config.is_binary_spherical ? 1.0 : m->level_weight);
}

/* Of both entropies together; that of vectors has the confidence beside it. */
static double entropy_of(const tess_rqvae *m)
{
    const tess_rqvae_config *c = &m->config;
    return c->entropy /
           (c->is_binary_spherical ? c->inverse_temperature : (double)m->shape.group_numel);
}

/* Squares, then entropies, then that of the mean. */
static void terms(const tess_rqvae *m, tess_quantizer_terms *out)
{
    const tess_rqvae_config *c = &m->config;
    const int groups = m->shape.group_numel;
    *out = (tess_quantizer_terms){0};
    for (int g = 0; g < groups; g++)
        out->weight[out->numel++] = commitment_of(m);
    for (int g = 0; g < groups && c->entropy > 0.0; g++)
        out->weight[out->numel++] = entropy_of(m) * c->confidence;
    out->of_rows = out->numel;
    if (wants_mean(c))
        out->weight[out->numel++] = -entropy_of(m) * c->diversity;
}

static float magnitude_of(const tess_rqvae *m)
{
    return m->config.is_spherical ? (float)(1.0 / sqrt((double)m->config.code_dim))
                                  : (float)m->config.scale;
}

static tess_sign_rows rows_of(const tess_rqvae *m, const tess_exec *ex, const tess_rqvae_io *io,
                              tess_view z, int group)
{
    const tess_rows part = tess_rqvae_part(m, ex, z, group);
    return (tess_sign_rows){.x = part.view.data,
                            .valid = io->batch->valid,
                            .row_numel = ex->row_numel,
                            .dim = m->shape.dim,
                            .stride = tess_rows_gap(&part),
                            .magnitude = magnitude_of(m)};
}

/* z in f32, of length 1 where it is spherical. */
static tess_status take_core(const tess_rqvae *m, tess_exec *ex, const tess_rqvae_io *io,
                             tess_view *z, tess_view *norm)
{
    const tess_rows all = tess_rows_of(io->input, ex->row_numel, m->config.code_dim);
    TESS_TRY(tess_carve_take_2d(&ex->work, ex->row_numel, m->config.code_dim, TESS_F32, z));
    *norm = (tess_view){0};
    if (m->config.is_spherical)
        TESS_TRY(tess_carve_take(&ex->work, ex->row_numel, TESS_F32, norm));
    return tess_rqvae_enter(ex, &all, *z, *norm);
}

static tess_status add_mean(const tess_rqvae *m, tess_exec *ex, const tess_rqvae_io *io,
                            const tess_sign_rows *rows, int group)
{
    const size_t mark = tess_carve_mark(&ex->work);
    int64_t *sum = io->batch->mean_sum;
    tess_view work = {0};
    if (m->shape.mean_numel == 0)
        return TESS_OK;
    TESS_TRY(tess_carve_take(&ex->work, tess_entropy_work_numel(m->shape.dim), TESS_F64, &work));
    if (sum != NULL) {
        const tess_quantizer_pbar_args args = {.rows = *rows,
                                               .beta = m->config.inverse_temperature,
                                               .exponent =
                                                   tess_rqvae_mean_exponent(io->batch->step_numel),
                                               .sum = sum + group * m->shape.code_numel,
                                               .work = work.data};
        TESS_TRY(TESS_RQVAE_RUN(ex, pbar, &args));
    }
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}

static tess_status quantize_group(const tess_rqvae *m, tess_exec *ex, const tess_rqvae_io *io,
                                  tess_view z, int group)
{
    const bool has_entropy = m->config.entropy > 0.0, is_wanted = io->output.numel > 0;
    const tess_sign_rows rows = rows_of(m, ex, io, z, group);
    const tess_rows out =
        is_wanted ? tess_rqvae_part(m, ex, io->output, group) : (tess_rows){.stride = 0};
    const tess_quantizer_sign_args args = {.rows = rows,
                                           .order = TESS_BITS_MSB_FIRST,
                                           .out_stride = is_wanted ? tess_rows_gap(&out) : 0,
                                           .out = out.view,
                                           .index = tess_rqvae_row(ex, io->code, group).data};
    TESS_TRY(TESS_RQVAE_RUN(ex, sign, &args));
    TESS_TRY(add_mean(m, ex, io, &rows, group));
    if (!is_wanted)
        return TESS_OK;
    const tess_view entropy =
        has_entropy ? tess_rqvae_row(ex, io->term, m->shape.group_numel + group) : (tess_view){0};
    const tess_quantizer_sign_loss_args loss = {.rows = rows,
                                                .beta = m->config.inverse_temperature,
                                                .loss = tess_rqvae_row(ex, io->term, group).data,
                                                .entropy = entropy.data};
    return TESS_RQVAE_RUN(ex, sign_loss, &loss);
}

/* The entropy of the mean, in the row of the first vector; none in evaluation. */
static tess_status tell_mean(const tess_rqvae *m, tess_exec *ex, const tess_rqvae_io *io)
{
    const double *value = io->batch->mean_value;
    if (m->shape.mean_numel == 0)
        return TESS_OK;
    const tess_view row = tess_rqvae_row(ex, io->term, m->terms.numel - 1);
    TESS_TRY(tess_exec_zero(ex, row));
    if (value == NULL || !io->is_training)
        return TESS_OK;
    const tess_view from = tess_exec_view(ex, (void *)(uintptr_t)value, 1, TESS_F64);
    return tess_exec_copy_rows(ex, tess_rows_of(tess_view_slice(row, 0, 1), 1, 1),
                               tess_rows_of(from, 1, 1));
}

static tess_status forward(const tess_rqvae *m, tess_exec *ex, const tess_rqvae_io *io)
{
    const size_t mark = tess_carve_mark(&ex->work);
    tess_view z = {0}, norm = {0};
    TESS_TRY(take_core(m, ex, io, &z, &norm));
    for (int g = 0; g < m->shape.group_numel; g++)
        TESS_TRY(quantize_group(m, ex, io, z, g));
    if (io->output.numel > 0) {
        TESS_TRY(tell_mean(m, ex, io));
        TESS_TRY(tess_rqvae_give(ex, io->batch->code, io->code));
    }
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}

static tess_status decode(const tess_rqvae *m, tess_exec *ex, const tess_rqvae_io *io)
{
    const size_t mark = tess_carve_mark(&ex->work);
    tess_view q = {0};
    TESS_TRY(tess_carve_take_2d(&ex->work, ex->row_numel, m->shape.dim, TESS_F32, &q));
    for (int g = 0; g < m->shape.group_numel; g++) {
        const tess_rows out = tess_rqvae_part(m, ex, io->output, g);
        const tess_quantizer_sign_decode_args args = {.index = tess_rqvae_row(ex, io->code, g).data,
                                                      .row_numel = ex->row_numel,
                                                      .dim = m->shape.dim,
                                                      .magnitude = magnitude_of(m),
                                                      .order = TESS_BITS_MSB_FIRST,
                                                      .out = q};
        TESS_TRY(TESS_RQVAE_RUN(ex, sign_decode, &args));
        TESS_TRY(tess_rqvae_leave(ex, io, q, &out));
    }
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}

static tess_status group_backward(const tess_rqvae *m, tess_exec *ex, const tess_rqvae_io *io,
                                  const tess_view v[2], int group)
{
    const tess_rqvae_config *c = &m->config;
    const double scale = (double)io->grad_scale;
    const double *slope = io->batch->mean_slope;
    const tess_rows d_out = tess_rqvae_part(m, ex, io->d_output, group);
    const tess_sign_rows rows = rows_of(m, ex, io, v[0], group);
    float *d_z = tess_rqvae_part(m, ex, v[1], group).view.data;
    const tess_quantizer_sign_backward_args args = {
        .rows = rows,
        .d_out_stride = tess_rows_gap(&d_out),
        .d_out = d_out.view,
        .beta = c->inverse_temperature,
        .commitment = (float)(2.0 * scale * commitment_of(m)),
        .entropy = entropy_of(m) * c->confidence * scale,
        .d_x = d_z};
    TESS_TRY(TESS_RQVAE_RUN(ex, sign_backward, &args));
    if (m->shape.mean_numel == 0 || slope == NULL)
        return TESS_OK;
    const tess_quantizer_batch_entropy_backward_args mean = {
        .rows = rows,
        .beta = c->inverse_temperature,
        .slope = slope + group * m->shape.code_numel,
        .weight = -entropy_of(m) * c->diversity * scale * (double)io->batch->step_numel,
        .d_x = d_z};
    return TESS_RQVAE_RUN(ex, batch_entropy_backward, &mean);
}

static tess_status backward(const tess_rqvae *m, tess_exec *ex, const tess_rqvae_io *io)
{
    const size_t mark = tess_carve_mark(&ex->work);
    const tess_rows d_in = tess_rows_of(io->d_input, ex->row_numel, m->config.code_dim);
    tess_view v[2] = {{0}}, norm = {0}; /* z, d_z */
    TESS_TRY(take_core(m, ex, io, &v[0], &norm));
    TESS_TRY(tess_carve_take(&ex->work, v[0].numel, TESS_F32, &v[1]));
    for (int g = 0; g < m->shape.group_numel; g++)
        TESS_TRY(group_backward(m, ex, io, v, g));
    TESS_TRY(tess_rqvae_enter_backward(ex, v[0], norm, v[1], &d_in));
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}

const tess_quantizer_ops tess_quantizer_of_signs = {
    .shape = shape, .terms = terms, .forward = forward, .decode = decode, .backward = backward};
