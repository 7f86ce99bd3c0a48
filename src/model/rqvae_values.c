/* Latent quantization: a list of learned values for every dimension. */
#include <inttypes.h>
#include <stdio.h>

#include "model/rqvae_priv.h"

static tess_status shape(const tess_rqvae_config *c, tess_quantizer_shape *out)
{
    TESS_CHECK(c->level_numel == 1, TESS_E_CONFIG,
               "quantizer.levels: %d, expected 1: latents have no levels", c->level_numel);
    TESS_TRY(tess_rqvae_axis_shape(c, out));
    int64_t numel = 0;
    for (int j = 0; j < c->axis_numel; j++)
        numel += c->axis_level[j];
    TESS_CHECK(numel <= TESS_RQVAE_VALUE_MAX, TESS_E_CONFIG,
               "quantizer.axis_levels: %" PRId64 " values in all, expected at most %d", numel,
               TESS_RQVAE_VALUE_MAX);
    return TESS_OK;
}

static void terms(const tess_rqvae *m, tess_quantizer_terms *out)
{
    *out = (tess_quantizer_terms){.numel = 1, .of_rows = 1};
    out->weight[0] = m->level_weight * (1.0 + m->config.commitment);
}

static int64_t count_values(const tess_rqvae *m)
{
    int64_t numel = 0;
    for (int64_t j = 0; j < m->config.code_dim; j++)
        numel += m->axis_level[j];
    return numel;
}

/* The trainer sets what they begin as. */
static tess_status add_values(tess_rqvae *m, tess_registry *reg, int unit_idx)
{
    tess_param p = {.unit_idx = unit_idx,
                    .shape_rank = 1,
                    .shape = {count_values(m)},
                    .init = TESS_INIT_ZERO,
                    .learning_rate_ratio = 1.0,
                    .is_outer = true};
    snprintf(p.name, sizeof p.name, "quantizer.values");
    return tess_rqvae_add_param(reg, &p, &m->value_idx);
}

static tess_latents latents_of(const tess_rqvae *m, tess_view value)
{
    return (tess_latents){.value = value.data, .levels = m->axis_level, .dim = m->config.code_dim};
}

/* z in f32 and its values, v[0] and v[1]. */
static tess_status take_rows(const tess_rqvae *m, tess_exec *ex, const tess_rqvae_io *io,
                             tess_view v[2])
{
    const tess_rows in = tess_rqvae_part(m, ex, io->input, 0);
    for (int i = 0; i < 2; i++)
        TESS_TRY(tess_carve_take_2d(&ex->work, ex->row_numel, m->config.code_dim, TESS_F32, &v[i]));
    return tess_rqvae_enter(ex, &in, v[0], (tess_view){0});
}

static tess_status forward(const tess_rqvae *m, tess_exec *ex, const tess_rqvae_io *io)
{
    const size_t mark = tess_carve_mark(&ex->work);
    tess_view v[2] = {{0}}, value = {0};
    TESS_TRY(take_rows(m, ex, io, v));
    TESS_TRY(tess_exec_vector(ex, m->value_idx, &value));
    const tess_quantizer_latent_args args = {.latents = latents_of(m, value),
                                             .x = v[0].data,
                                             .row_numel = ex->row_numel,
                                             .out = v[1].data,
                                             .index = io->code.data};
    TESS_TRY(TESS_RQVAE_RUN(ex, latent, &args));
    TESS_TRY(tess_rqvae_mask(ex, io, io->code));
    if (io->output.numel > 0) {
        const tess_rows out = tess_rqvae_part(m, ex, io->output, 0);
        const tess_quantizer_row_loss_args loss = {
            .rows = tess_rqvae_valid_rows(ex, io, v[1], m->config.code_dim),
            .x = v[0].data,
            .out = io->term.data};
        TESS_TRY(TESS_RQVAE_RUN(ex, row_loss, &loss));
        TESS_TRY(tess_rqvae_leave(ex, io, v[1], &out));
        TESS_TRY(tess_rqvae_give(ex, io->batch->code, io->code));
    }
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}

/* The values of the codes into q [R, d] f32. */
static tess_status look_up(const tess_rqvae *m, const tess_exec *ex, const tess_rqvae_io *io,
                           tess_view q)
{
    tess_view value = {0};
    TESS_TRY(tess_exec_vector(ex, m->value_idx, &value));
    const tess_quantizer_latent_decode_args args = {.latents = latents_of(m, value),
                                                    .index = io->code.data,
                                                    .row_numel = ex->row_numel,
                                                    .out = q.data};
    return TESS_RQVAE_RUN(ex, latent_decode, &args);
}

static tess_status decode(const tess_rqvae *m, tess_exec *ex, const tess_rqvae_io *io)
{
    const size_t mark = tess_carve_mark(&ex->work);
    const tess_rows out = tess_rqvae_part(m, ex, io->output, 0);
    tess_view q = {0};
    TESS_TRY(tess_carve_take_2d(&ex->work, ex->row_numel, m->config.code_dim, TESS_F32, &q));
    TESS_TRY(look_up(m, ex, io, q));
    TESS_TRY(tess_rqvae_leave(ex, io, q, &out));
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}

static tess_status backward(const tess_rqvae *m, tess_exec *ex, const tess_rqvae_io *io)
{
    const size_t mark = tess_carve_mark(&ex->work);
    const double scale = 2.0 * m->level_weight * (double)io->grad_scale;
    const tess_rows d_in = tess_rqvae_part(m, ex, io->d_input, 0);
    tess_view v[2] = {{0}}, value = {0}, d_z = {0};
    TESS_TRY(take_rows(m, ex, io, v));
    TESS_TRY(tess_carve_take(&ex->work, v[0].numel, TESS_F32, &d_z));
    TESS_TRY(tess_exec_vector(ex, m->value_idx, &value));
    const tess_quantizer_backward_args pass = {
        .rows = tess_rqvae_valid_rows(ex, io, v[1], m->config.code_dim),
        .x = v[0].data,
        .d_out = io->d_output,
        .estimator = TESS_ESTIMATOR_STRAIGHT,
        .commitment = (float)(scale * m->config.commitment),
        .d_x = d_z.data};
    const tess_quantizer_latent_gradient_args move = {.latents = latents_of(m, value),
                                                      .x = v[0].data,
                                                      .index = io->code.data,
                                                      .row_numel = ex->row_numel,
                                                      .coefficient = (float)scale,
                                                      .d_value =
                                                          tess_exec_grad(ex, m->value_idx).data};
    TESS_TRY(look_up(m, ex, io, v[1]));
    TESS_TRY(TESS_RQVAE_RUN(ex, backward, &pass));
    TESS_TRY(TESS_RQVAE_RUN(ex, latent_gradient, &move));
    TESS_TRY(tess_rqvae_enter_backward(ex, v[0], (tess_view){0}, d_z, &d_in));
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}

int tess_rqvae_values(const tess_model *model)
{
    const tess_rqvae *m = tess_model_self((tess_model *)(uintptr_t)model);
    return m->config.kind == TESS_QUANTIZER_VALUES ? m->value_idx : -1;
}

/* Odd L: evenly over [-1/2, 1/2]; even: k / L - 1/2. */
void tess_rqvae_values_start(const tess_model *model, float *value)
{
    const tess_rqvae *m = tess_model_self((tess_model *)(uintptr_t)model);
    for (int64_t j = 0; j < m->config.code_dim; j++)
        for (int32_t k = 0; k < m->axis_level[j]; k++) {
            const int32_t parts = m->axis_level[j] - m->axis_level[j] % 2;
            *value++ = (float)((double)k / (double)parts - 0.5);
        }
}

const tess_quantizer_ops tess_quantizer_of_values = {.shape = shape,
                                                     .terms = terms,
                                                     .add_tensors = add_values,
                                                     .forward = forward,
                                                     .decode = decode,
                                                     .backward = backward};
