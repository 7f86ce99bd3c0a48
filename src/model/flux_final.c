/* End: modulated norm of the image rows, projection, loss. Backward computes the loss too, so
 * nothing is saved. */
#include <inttypes.h>

#include "model/flux_priv.h"

enum { SCALE, SHIFT }; /* in this order, unlike everywhere else */

static const tess_view none = {.dt = TESS_F32};

/* Buffers of one call; R = B n rows. */
typedef struct final_run {
    tess_flux_factors factors;
    tess_flux_norm norm;
    tess_group_input n;   /* [R, H] */
    tess_view velocity;   /* [R, C] f32 */
    tess_view row_loss;   /* [R] f64 */
    tess_view d_velocity; /* [R, C] dt; numel 0: no gradient */
} final_run;

static int64_t rows_of(const tess_flux_call *c)
{
    return tess_flux_stream_numel(c, TESS_FLUX_IMAGE);
}

static tess_flux_modulated norm_of(const tess_flux_call *c, const final_run *r)
{
    return (tess_flux_modulated){
        .factors = &r->factors,
        .shift_idx = SHIFT,
        .scale_idx = SCALE,
        .row_numel = c->row_numel[TESS_FLUX_IMAGE],
        .norm = r->norm,
        .x = tess_flux_joint(c, c->input.h, TESS_FLUX_IMAGE, c->m->hidden_numel)};
}

static tess_status take(const tess_flux_call *c, final_run *r)
{
    tess_carve *work = &c->ex->work;
    const tess_group out = tess_group_one(&c->m->final.out);
    TESS_TRY(tess_flux_factors_take(c, &c->m->final.modulation, work, &r->factors));
    TESS_TRY(tess_flux_norm_take(rows_of(c), work, &r->norm));
    TESS_TRY(tess_flux_take_input(c, &out, rows_of(c), true, work, &r->n));
    TESS_TRY(
        tess_carve_take_2d(work, rows_of(c), c->m->config.out_channels, TESS_F32, &r->velocity));
    r->d_velocity = tess_exec_view(c->ex, NULL, 0, c->ex->dt);
    return tess_carve_take(work, rows_of(c), TESS_F64, &r->row_loss);
}

static tess_status predict(const tess_flux_call *c, final_run *r)
{
    const tess_flux_modulated norm = norm_of(c, r);
    TESS_TRY(tess_flux_factors_forward(c, &r->factors));
    TESS_TRY(tess_flux_modulate(c, &norm, tess_flux_rows(c->row_numel[TESS_FLUX_IMAGE], &r->n.x)));
    tess_group out = tess_group_one(&c->m->final.out);
    out.in = r->n;
    out.y[0] = tess_rows_of(r->velocity, rows_of(c), c->m->config.out_channels);
    return tess_group_forward(c->ex, &out);
}

static tess_status add_loss(const tess_flux_call *c, const final_run *r)
{
    const tess_stage_call *call = c->ex->call;
    tess_square_error_args error = {.row_numel = rows_of(c),
                                    .dim = c->m->config.out_channels,
                                    .y = r->velocity,
                                    .target = c->batch->target,
                                    .weight = c->batch->weight,
                                    .row_loss = r->row_loss.data,
                                    .d_y = r->d_velocity};
    tess_sum_args sum = {.x = r->row_loss.data, .numel = rows_of(c)};
    if (!c->ex->is_plan) {
        error.grad_scale = call->grad_scale;
        sum.out = call->loss_sum;
    }
    TESS_TRY(TESS_EXEC_RUN_OF(c->ex, c->ex->kernels->modulated, square_error, &error));
    return TESS_EXEC_RUN(c->ex, sum, &sum);
}

static tess_status give_velocity(const tess_flux_call *c, const final_run *r)
{
    if (c->ex->is_plan || c->ex->is_announced)
        return TESS_OK;
    TESS_CHECK(c->batch->velocity != NULL, TESS_E_ARG,
               "velocity of %" PRId64 " samples: expected a buffer for it", c->sample_numel);
    return tess_device_copy(c->ex->call->device,
                            tess_view_host(c->batch->velocity, r->velocity.numel, TESS_F32),
                            r->velocity, c->ex->stream);
}

tess_status tess_flux_final_forward(const tess_flux_call *c)
{
    const size_t mark = tess_carve_mark(&c->ex->work);
    const bool is_sampling = !c->ex->is_plan && c->ex->call->mode == TESS_CALL_LOGITS;
    final_run r = {0};
    TESS_TRY(take(c, &r));
    TESS_TRY(predict(c, &r));
    TESS_TRY(is_sampling ? give_velocity(c, &r) : add_loss(c, &r));
    tess_carve_release(&c->ex->work, mark);
    return TESS_OK;
}

/* Text rows end here: nothing depends on them. */
static tess_status clear_text(const tess_flux_call *c)
{
    const int64_t h = c->m->hidden_numel, rows = c->row_numel[TESS_FLUX_TEXT];
    for (int64_t b = 0; b < c->sample_numel; b++)
        TESS_TRY(tess_exec_zero(c->ex, tess_view_rows(c->d_input.h, b * c->token_numel, rows, h)));
    return TESS_OK;
}

static tess_status input_backward(const tess_flux_call *c, const final_run *r, tess_rows d_n)
{
    static const tess_sample_rows no_rows = {.view = {.dt = TESS_F32}};
    const int64_t h = c->m->hidden_numel;
    const tess_flux_modulated norm = norm_of(c, r);
    if (c->wants_d_h)
        TESS_TRY(clear_text(c));
    return tess_flux_modulate_backward(
        c, &norm, tess_flux_rows(c->row_numel[TESS_FLUX_IMAGE], &d_n), no_rows,
        c->wants_d_h ? tess_flux_joint(c, c->d_input.h, TESS_FLUX_IMAGE, h) : no_rows);
}

tess_status tess_flux_final_backward(const tess_flux_call *c)
{
    const size_t mark = tess_carve_mark(&c->ex->work);
    const int64_t h = c->m->hidden_numel, channels = c->m->config.out_channels;
    const bool is_n_wanted = c->wants_d_h || tess_flux_factors_learn(c, &c->m->final.modulation);
    final_run r = {0};
    tess_rows d_n = {.view = none};
    TESS_TRY(take(c, &r));
    TESS_TRY(predict(c, &r));
    r.d_velocity = r.velocity;
    if (c->ex->dt != TESS_F32)
        TESS_TRY(tess_carve_take_2d(&c->ex->work, rows_of(c), channels, c->ex->dt, &r.d_velocity));
    TESS_TRY(add_loss(c, &r));
    TESS_TRY(tess_flux_factors_open(c, &r.factors));
    if (is_n_wanted)
        TESS_TRY(tess_carve_take_rows(&c->ex->work, rows_of(c), h, c->ex->dt, &d_n));
    tess_group out = tess_group_one(&c->m->final.out);
    out.in = r.n;
    out.y[0] = tess_rows_of(r.d_velocity, rows_of(c), channels);
    TESS_TRY(tess_group_backward(c->ex, &out, d_n.view));
    if (is_n_wanted)
        TESS_TRY(input_backward(c, &r, d_n));
    if (c->wants_d_s)
        TESS_TRY(tess_exec_zero(c->ex, c->d_input.s));
    TESS_TRY(tess_flux_factors_close(c, &r.factors));
    tess_carve_release(&c->ex->work, mark);
    return TESS_OK;
}
