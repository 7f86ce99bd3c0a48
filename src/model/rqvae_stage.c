/* Stage calls of an RQ-VAE: 0 encoder, 1 quantizer, 2 decoder with the loss. No quantizer is known
 * here by name. */
#include <inttypes.h>

#include "core/memory.h"
#include "model/rqvae_priv.h"

tess_status tess_rqvae_give(const tess_exec *ex, void *host, tess_view src)
{
    if (host == NULL || ex->is_plan || ex->is_announced)
        return TESS_OK;
    return tess_device_copy(ex->call->device, tess_view_host(host, src.numel, src.dt), src,
                            ex->stream);
}

/* ---- encoder ---- */

static const double LAYER_NORM_EPS = 1e-5; /* of PyTorch */

/* Vectors as the first product takes them: in bf16 each value is rounded once. */
static tess_status enter(tess_exec *ex, tess_view x, tess_view *out)
{
    *out = x;
    if (ex->dt == TESS_F32)
        return TESS_OK;
    TESS_TRY(tess_carve_take(&ex->work, x.numel, ex->dt, out));
    const tess_cast_args args = {.src = x, .dst = *out};
    return TESS_EXEC_RUN(ex, cast, &args);
}

/* The encoder's: a fixed projection takes them normalized. */
static tess_status enter_samples(const tess_rqvae *m, tess_exec *ex, tess_view x, tess_view *out)
{
    if (m->config.kind != TESS_QUANTIZER_PROJECTED)
        return enter(ex, x, out);
    tess_view y = {0};
    TESS_TRY(tess_carve_take(&ex->work, x.numel, TESS_F32, &y));
    const tess_quantizer_layer_norm_args args = {
        .x = x, .row_numel = ex->row_numel, .dim = m->config.dim, .eps = LAYER_NORM_EPS, .y = y};
    TESS_TRY(TESS_RQVAE_RUN(ex, layer_norm, &args));
    return enter(ex, y, out);
}

static tess_status encoder_forward(const tess_rqvae *m, tess_exec *ex, const tess_rqvae_io *io)
{
    const size_t mark = tess_carve_mark(&ex->work);
    tess_rqvae_saved saved;
    tess_view x = {0};
    TESS_TRY(tess_rqvae_body_take_saved(m, ex, &m->encoder, &ex->saved, &saved));
    TESS_TRY(enter_samples(m, ex, io->x, &x));
    TESS_TRY(tess_rqvae_body_forward(m, ex, &m->encoder, x, &saved, io->output));
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}

static tess_status encoder_backward(const tess_rqvae *m, tess_exec *ex, const tess_rqvae_io *io)
{
    const size_t mark = tess_carve_mark(&ex->work);
    tess_rqvae_saved saved;
    tess_view x = {0};
    TESS_TRY(tess_rqvae_body_take_saved(m, ex, &m->encoder, &ex->saved, &saved));
    TESS_TRY(enter_samples(m, ex, io->x, &x));
    const tess_convolutions_gradients g = {
        .x = x, .d_y = io->d_output, .d_x = tess_exec_view(ex, NULL, 0, ex->dt)};
    TESS_TRY(tess_rqvae_body_backward(m, ex, &m->encoder, &saved, &g));
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}

/* ---- decoder and loss ---- */

/* Rows of a vector's elements; of images all: what of them is masked is 0 here and there. */
static tess_coded_rows shares_of(const tess_rqvae *m, const tess_exec *ex, const tess_rqvae_io *io,
                                 tess_view v)
{
    return m->config.images.channel_numel > 0 ? tess_rqvae_own_rows(ex, v, m->config.dim)
                                              : tess_rqvae_valid_rows(ex, io, v, m->config.dim);
}

/* y = 0 where an image is masked: x is 0 too, so that there is neither loss nor gradient. */
static tess_status mask_image(const tess_rqvae *m, tess_exec *ex, const tess_rqvae_io *io,
                              tess_view y)
{
    const int64_t lines = (int64_t)1 << m->config.images.halving_numel;
    if (io->batch->line == NULL)
        return TESS_OK;
    const tess_quantizer_gather_args args = {.rows = {.codes = y.data,
                                                      .code = io->batch->line,
                                                      .row_numel = ex->row_numel * lines,
                                                      .dim = m->config.dim / lines,
                                                      .code_numel = ex->row_numel * lines},
                                             .out = y};
    return TESS_RQVAE_RUN(ex, gather, &args);
}

/* Terms of a vector's loss: [1 + T, R] f64, of the reconstruction in front of the quantizer's. */
static tess_status row_terms(const tess_rqvae *m, tess_exec *ex, const tess_rqvae_io *io,
                             tess_view y, tess_view *out)
{
    const int terms = m->terms.numel, squares = 1 + m->shape.index_numel;
    TESS_TRY(tess_carve_take_2d(&ex->work, 1 + terms, ex->row_numel, TESS_F64, out));
    const tess_quantizer_row_loss_args args = {
        .rows = shares_of(m, ex, io, y), .x = io->x.data, .out = out->data};
    TESS_TRY(TESS_RQVAE_RUN(ex, row_loss, &args));
    const tess_view behind = tess_view_rows(*out, 1, terms, ex->row_numel);
    TESS_TRY(tess_exec_copy_rows(ex, tess_rows_of(behind, terms, ex->row_numel),
                                 tess_rows_of(io->term, terms, ex->row_numel)));
    return tess_rqvae_give(ex, io->batch->square, tess_view_rows(*out, 0, squares, ex->row_numel));
}

/* Loss of every vector from its terms, and their sum in the order of vectors. */
static tess_status add_losses(const tess_rqvae *m, tess_exec *ex, const tess_rqvae_io *io,
                              tess_view y)
{
    const size_t mark = tess_carve_mark(&ex->work);
    tess_view term = {0};
    TESS_TRY(row_terms(m, ex, io, y, &term));
    tess_mix_args mix = {.x = term.data,
                         .weight = {m->reconstruction_weight},
                         .term_numel = 1 + m->terms.numel,
                         .row_numel = ex->row_numel,
                         .out = term.data};
    for (int t = 0; t < m->terms.numel; t++)
        mix.weight[1 + t] = m->terms.weight[t] *
                            (t < m->terms.of_rows ? 1.0 : (double)tess_rqvae_valid_numel(ex, io));
    const tess_sum_args sum = {.x = term.data, .numel = ex->row_numel, .out = io->loss_sum};
    TESS_TRY(TESS_EXEC_RUN(ex, mix, &mix));
    TESS_TRY(TESS_EXEC_RUN(ex, sum, &sum));
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}

/* Reconstruction y [R, D] f32 and the losses. */
static tess_status reconstruct(const tess_rqvae *m, tess_exec *ex, const tess_rqvae_io *io,
                               tess_rqvae_saved *saved, tess_view *y)
{
    TESS_TRY(tess_rqvae_body_take_saved(m, ex, &m->decoder, &ex->work, saved));
    TESS_TRY(tess_carve_take_2d(&ex->work, ex->row_numel, m->config.dim, TESS_F32, y));
    TESS_TRY(tess_rqvae_body_forward(m, ex, &m->decoder, io->input, saved, *y));
    TESS_TRY(mask_image(m, ex, io, *y));
    return add_losses(m, ex, io, *y);
}

static tess_status decoder_forward(const tess_rqvae *m, tess_exec *ex, const tess_rqvae_io *io)
{
    const size_t mark = tess_carve_mark(&ex->work);
    tess_rqvae_saved saved;
    tess_view y = {0};
    TESS_TRY(reconstruct(m, ex, io, &saved, &y));
    TESS_TRY(tess_rqvae_give(ex, io->batch->y, y));
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}

/* d_y = 2 rec (y - x) / T, in place of y, then in the compute dtype. */
static tess_status loss_gradient(const tess_rqvae *m, tess_exec *ex, const tess_rqvae_io *io,
                                 tess_view y, tess_view *d_y)
{
    const double scale = 2.0 * m->reconstruction_weight * (double)io->grad_scale;
    const tess_coded_rows x = shares_of(m, ex, io, io->x);
    tess_view d = {0};
    TESS_TRY(tess_carve_take(&ex->work, y.numel, TESS_F32, &d));
    const tess_quantizer_backward_args args = {
        .rows = x, .x = y.data, .commitment = (float)scale, .d_x = d.data};
    TESS_TRY(TESS_RQVAE_RUN(ex, backward, &args));
    return enter(ex, d, d_y);
}

static tess_status decoder_backward(const tess_rqvae *m, tess_exec *ex, const tess_rqvae_io *io)
{
    const size_t mark = tess_carve_mark(&ex->work);
    tess_rqvae_saved saved;
    tess_view y = {0}, d_y = {0};
    TESS_TRY(reconstruct(m, ex, io, &saved, &y));
    TESS_TRY(loss_gradient(m, ex, io, y, &d_y));
    const tess_convolutions_gradients g = {.x = io->input, .d_y = d_y, .d_x = io->d_input};
    TESS_TRY(tess_rqvae_body_backward(m, ex, &m->decoder, &saved, &g));
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}

/* ---- calls ---- */

/* Codes that the caller has, decoded; the terms of nothing are 0. */
static tess_status take_given(const tess_rqvae *m, tess_exec *ex, const tess_rqvae_io *io)
{
    const tess_view given =
        tess_exec_view(ex, (void *)(uintptr_t)io->batch->given, io->code.numel, TESS_I32);
    TESS_TRY(tess_exec_copy_rows(ex, tess_rows_of(io->code, m->shape.index_numel, ex->row_numel),
                                 tess_rows_of(given, m->shape.index_numel, ex->row_numel)));
    TESS_TRY(tess_exec_zero(ex, io->term));
    return m->ops->decode(m, ex, io);
}

static tess_status quantize(const tess_rqvae *m, tess_exec *ex, const tess_rqvae_io *io)
{
    return io->batch->given != NULL ? take_given(m, ex, io) : m->ops->forward(m, ex, io);
}

static tess_status forward(const tess_rqvae *m, tess_exec *ex, int stage_idx,
                           const tess_rqvae_io *io)
{
    if (stage_idx == TESS_RQVAE_ENCODER)
        return encoder_forward(m, ex, io);
    return stage_idx == TESS_RQVAE_QUANTIZER ? quantize(m, ex, io) : decoder_forward(m, ex, io);
}

static tess_status backward(const tess_rqvae *m, tess_exec *ex, int stage_idx,
                            const tess_rqvae_io *io)
{
    if (stage_idx == TESS_RQVAE_ENCODER)
        return encoder_backward(m, ex, io);
    return stage_idx == TESS_RQVAE_QUANTIZER ? m->ops->backward(m, ex, io)
                                             : decoder_backward(m, ex, io);
}

/* What passes between stages: rows of dimension d, behind those of the quantizer its terms. */
static tess_status take_edge(const tess_rqvae *m, const tess_exec *ex, tess_carve *carve,
                             bool has_terms, tess_view v[2])
{
    TESS_TRY(tess_carve_take_2d(carve, ex->row_numel, m->config.code_dim, ex->dt, &v[0]));
    if (!has_terms)
        return TESS_OK;
    return tess_carve_take_2d(carve, m->terms.numel, ex->row_numel, TESS_F64, &v[1]);
}

static tess_status take_codes(const tess_rqvae *m, tess_exec *ex, int stage_idx, tess_rqvae_io *io)
{
    if (stage_idx != TESS_RQVAE_QUANTIZER)
        return TESS_OK;
    TESS_TRY(
        tess_carve_take_2d(&ex->saved, m->shape.index_numel, ex->row_numel, TESS_I32, &io->code));
    if (!m->config.is_sharded)
        return TESS_OK;
    return tess_carve_take_2d(&ex->saved, m->shape.index_numel * ex->row_numel, m->shape.dim,
                              TESS_F32, &io->chosen);
}

/* ---- plan ---- */

static const tess_vector_batch nothing = {0};

static tess_status plan_io(const tess_rqvae *m, tess_exec *ex, int stage_idx, tess_rqvae_io *io,
                           size_t *output_nbytes)
{
    const bool is_quantizer = stage_idx == TESS_RQVAE_QUANTIZER;
    tess_carve edge = tess_carve_make("edge", (tess_view){0}, true);
    tess_view v[2] = {{0}, {0}};
    io->batch = &nothing;
    TESS_TRY(take_edge(m, ex, &edge, is_quantizer, v));
    *output_nbytes = stage_idx == TESS_RQVAE_DECODER ? 0 : edge.peak_nbytes;
    io->input = io->output = io->d_output = io->d_input = v[0];
    io->term = tess_view_host(NULL, m->terms.numel * ex->row_numel, TESS_F64);
    io->x = tess_view_host(NULL, ex->row_numel * m->config.dim, TESS_F32);
    return take_codes(m, ex, stage_idx, io);
}

tess_status tess_rqvae_plan_stage(const tess_rqvae *m, const tess_registry *reg, int stage_idx,
                                  tess_stage *stage)
{
    tess_exec ex = tess_exec_plan(m->kernels, reg, m->dt, m->thread_numel);
    ex.row_numel = m->row_numel;
    tess_rqvae_io io = {0};
    TESS_TRY(plan_io(m, &ex, stage_idx, &io, &stage->output_nbytes));
    const size_t begin = ex.saved.used_nbytes;
    ex.cost = &stage->cost.forward;
    TESS_TRY(forward(m, &ex, stage_idx, &io));
    if (stage_idx == TESS_RQVAE_QUANTIZER)
        TESS_TRY(m->ops->decode(m, &ex, &io));
    ex.saved.used_nbytes = begin; /* backward carves the same buffers again */
    ex.cost = &stage->cost.backward;
    TESS_TRY(backward(m, &ex, stage_idx, &io));
    stage->saved_nbytes = ex.saved.peak_nbytes;
    stage->work_nbytes = ex.work.peak_nbytes;
    stage->is_fused_loss = stage_idx == TESS_RQVAE_DECODER;
    stage->skips_output = true;
    return TESS_OK;
}

/* ---- one call ---- */

static tess_status begin(const tess_rqvae *m, const tess_stage_call *call, tess_exec *ex,
                         tess_rqvae_io *io)
{
    const tess_vector_batch full = {.vector_numel = m->row_numel};
    const bool is_announced = tess_call_is_announced(call->mode);
    const tess_vector_batch *batch = is_announced ? &full : call->batch;
    TESS_CHECK(call->stage_idx >= 0 && call->stage_idx < TESS_RQVAE_STAGE_NUMEL, TESS_E_ARG,
               "stage %d of %d", call->stage_idx, TESS_RQVAE_STAGE_NUMEL);
    TESS_CHECK(batch != NULL && batch->vector_numel > 0 && batch->vector_numel <= m->row_numel,
               TESS_E_ARG,
               "micro-batch of %" PRId64 " vectors: expected 1 to %" PRId64 " as planned",
               batch == NULL ? 0 : batch->vector_numel, m->row_numel);
    TESS_CHECK(batch->vector_numel % tess_rqvae_position_numel(&m->config.images) == 0, TESS_E_ARG,
               "micro-batch of %" PRId64 " vectors: expected those of whole images",
               batch->vector_numel);
    *ex = tess_exec_begin(call, m->dt, m->thread_numel);
    ex->row_numel = batch->vector_numel;
    *io = (tess_rqvae_io){.batch = is_announced ? &nothing : batch,
                          .is_training = tess_call_is_training(call->mode),
                          .grad_scale = call->grad_scale,
                          .loss_sum = call->loss_sum};
    /* Products that are announced want an address as aligned as that of a batch. */
    void *x = is_announced ? call->work.data : (void *)(uintptr_t)batch->x;
    io->x = tess_exec_view(ex, x, ex->row_numel * m->config.dim, TESS_F32);
    return take_codes(m, ex, call->stage_idx, io);
}

/* An edge over the bytes of a call; `bytes` may be absent. */
static tess_status edge_of(const tess_rqvae *m, const tess_exec *ex, const char *name,
                           tess_view bytes, bool has_terms, tess_view v[2])
{
    tess_carve carve = tess_carve_make(name, bytes, false);
    v[0] = v[1] = tess_exec_view(ex, NULL, 0, ex->dt);
    return bytes.numel == 0 ? TESS_OK : take_edge(m, ex, &carve, has_terms, v);
}

static tess_status call_forward(void *model, const tess_stage_call *call)
{
    const tess_rqvae *m = model;
    tess_exec ex;
    tess_rqvae_io io;
    tess_view in[2], out[2];
    if (call->batch == NULL && m->config.is_sharded && !tess_call_is_announced(call->mode))
        return m->ops->attend(m);
    TESS_TRY(begin(m, call, &ex, &io));
    const int s = call->stage_idx;
    TESS_TRY(edge_of(m, &ex, "input", call->input, s == TESS_RQVAE_DECODER, in));
    TESS_TRY(edge_of(m, &ex, "output", call->output, s == TESS_RQVAE_QUANTIZER, out));
    io.input = in[0];
    io.output = out[0];
    io.term = s == TESS_RQVAE_DECODER ? in[1] : out[1];
    return forward(m, &ex, s, &io);
}

static tess_status call_backward(void *model, const tess_stage_call *call)
{
    const tess_rqvae *m = model;
    tess_exec ex;
    tess_rqvae_io io;
    tess_view in[2], d_in[2], d_out[2];
    TESS_TRY(begin(m, call, &ex, &io));
    const bool has_terms = call->stage_idx == TESS_RQVAE_DECODER;
    TESS_TRY(edge_of(m, &ex, "input", call->input, has_terms, in));
    TESS_TRY(edge_of(m, &ex, "d_output", call->d_output, false, d_out));
    TESS_TRY(edge_of(m, &ex, "d_input", call->d_input, false, d_in));
    io.input = in[0];
    io.term = in[1];
    io.d_output = d_out[0];
    io.d_input = d_in[0];
    return backward(m, &ex, call->stage_idx, &io);
}

const tess_stage_ops tess_rqvae_stage_ops = {.forward = call_forward, .backward = call_backward};
