/* The quantizer of an RQ-VAE: levels of codes, each for what the ones before it leave. */
#include "model/rqvae_priv.h"

static tess_coded_rows level_rows(const tess_rqvae *m, const tess_exec *ex, tess_view codes,
                                  tess_view code)
{
    return (tess_coded_rows){.codes = codes.data,
                             .code = code.data,
                             .row_numel = ex->row_numel,
                             .dim = m->config.code_dim,
                             .code_numel = m->config.code_numel};
}

static tess_view level_of(const tess_exec *ex, tess_view all, int level_idx)
{
    return tess_view_rows(all, level_idx, 1, ex->row_numel);
}

static tess_status cast(const tess_exec *ex, tess_view src, tess_view dst)
{
    const tess_cast_args args = {.src = src, .dst = dst};
    return TESS_EXEC_RUN(ex, cast, &args);
}

/* Memory of a search, the same for every level. */
typedef struct search {
    tess_view pack, work, key;
} search;

static tess_status take_search(const tess_rqvae *m, tess_exec *ex, search *s)
{
    const tess_kernels *k = ex->kernels;
    const int64_t d = m->config.code_dim;
    const size_t pack_nbytes = k->nearest_pack_nbytes(m->config.code_numel, d);
    const size_t work_nbytes = k->nearest_work_nbytes(d, 1, ex->thread_numel);
    TESS_TRY(tess_carve_take(&ex->work, (int64_t)pack_nbytes, TESS_U8_OPAQUE, &s->pack));
    TESS_TRY(tess_carve_take(&ex->work, (int64_t)work_nbytes, TESS_U8_OPAQUE, &s->work));
    return tess_carve_take(&ex->work, ex->row_numel, TESS_U64, &s->key);
}

/* code[i] = the row nearest to r_i. */
static tess_status find(const tess_rqvae *m, const tess_exec *ex, const search *s, tess_view codes,
                        tess_view r, tess_view code)
{
    const int64_t d = m->config.code_dim, k = m->config.code_numel;
    const tess_nearest_prepare_args prepare = {
        .code = codes, .pack = s->pack, .code_numel = k, .dim = d};
    const tess_nearest_args args = {.x = r,
                                    .code = codes,
                                    .pack = s->pack,
                                    .key = s->key,
                                    .work = s->work,
                                    .vector_numel = ex->row_numel,
                                    .code_numel = k,
                                    .dim = d,
                                    .best_numel = 1};
    const tess_code_row_args row = {
        .key = s->key.data, .row = code.data, .vector_numel = ex->row_numel};
    TESS_TRY(TESS_EXEC_RUN(ex, nearest_prepare, &prepare));
    TESS_TRY(TESS_EXEC_RUN(ex, nearest, &args));
    return TESS_EXEC_RUN(ex, code_row, &row);
}

/* r becomes what the level leaves, sum gains its codes. */
static tess_status subtract(const tess_exec *ex, const tess_coded_rows *rows, tess_view r,
                            tess_view sum)
{
    const tess_quantizer_residual_args args = {
        .rows = *rows, .r = r.data, .next = r.data, .sum = sum.data};
    return TESS_RQVAE_RUN(ex, residual, &args);
}

static tess_status enter(const tess_rqvae *m, const tess_exec *ex, tess_view z, tess_view r)
{
    const tess_quantizer_enter_args args = {
        .x = z, .row_numel = ex->row_numel, .dim = m->config.code_dim, .core = r.data};
    return TESS_RQVAE_RUN(ex, enter, &args);
}

static tess_status quantize_level(const tess_rqvae *m, tess_exec *ex, const search *s,
                                  const tess_rqvae_io *io, int level_idx, tess_view r[2])
{
    const tess_view code = level_of(ex, io->code, level_idx);
    tess_view codes = {0};
    TESS_TRY(tess_exec_vector(ex, m->codebook_idx[level_idx], &codes));
    TESS_TRY(find(m, ex, s, codes, r[0], code));
    const tess_coded_rows rows = level_rows(m, ex, codes, code);
    const tess_quantizer_row_loss_args loss = {
        .rows = rows, .x = r[0].data, .out = level_of(ex, io->square, level_idx).data};
    if (io->output.numel > 0) {
        float *left = io->batch->left;
        TESS_TRY(TESS_RQVAE_RUN(ex, row_loss, &loss));
        TESS_TRY(tess_rqvae_give(ex, left != NULL ? left + level_idx * r[0].numel : NULL, r[0]));
    }
    return subtract(ex, &rows, r[0], r[1]);
}

tess_status tess_rqvae_quantize(const tess_rqvae *m, tess_exec *ex, const tess_rqvae_io *io)
{
    const size_t mark = tess_carve_mark(&ex->work);
    tess_view r[2] = {{0}}; /* what is left, and the sum of codes */
    search s = {0};
    for (int i = 0; i < 2; i++)
        TESS_TRY(tess_carve_take_2d(&ex->work, ex->row_numel, m->config.code_dim, TESS_F32, &r[i]));
    TESS_TRY(take_search(m, ex, &s));
    TESS_TRY(enter(m, ex, io->input, r[0]));
    TESS_TRY(tess_exec_zero(ex, r[1]));
    if (io->output.numel > 0)
        TESS_TRY(tess_rqvae_give(ex, io->batch->latent, r[0]));
    for (int l = 0; l < m->config.level_numel; l++)
        TESS_TRY(quantize_level(m, ex, &s, io, l, r));
    if (io->output.numel > 0) {
        TESS_TRY(cast(ex, r[1], io->output));
        TESS_TRY(tess_rqvae_give(ex, io->batch->code, io->code));
    }
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}

/* The gradient of the sum of codes, as the estimator hands it to z. */
static tess_status estimate(const tess_rqvae *m, tess_exec *ex, const tess_rqvae_io *io,
                            tess_view z, tess_view d_z)
{
    const size_t mark = tess_carve_mark(&ex->work);
    tess_view sum = {0};
    TESS_TRY(tess_carve_take(&ex->work, z.numel, TESS_F32, &sum));
    TESS_TRY(tess_exec_zero(ex, sum));
    for (int l = 0; l < m->config.level_numel; l++) {
        tess_view codes = {0};
        TESS_TRY(tess_exec_vector(ex, m->codebook_idx[l], &codes));
        const tess_quantizer_residual_args add = {
            .rows = level_rows(m, ex, codes, level_of(ex, io->code, l)), .sum = sum.data};
        TESS_TRY(TESS_RQVAE_RUN(ex, residual, &add));
    }
    tess_coded_rows rows = level_rows(m, ex, sum, (tess_view){0});
    rows.code_numel = rows.row_numel; /* the sum has a row of its own for each vector */
    const tess_quantizer_backward_args args = {.rows = rows,
                                               .x = z.data,
                                               .d_out = io->d_output,
                                               .estimator = m->config.estimator,
                                               .d_x = d_z.data};
    TESS_TRY(TESS_RQVAE_RUN(ex, backward, &args));
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}

/* The level's own loss: its codes move to r, d_z gains what moves z to them. */
static tess_status level_backward(const tess_rqvae *m, tess_exec *ex, const tess_rqvae_io *io,
                                  int level_idx, tess_view r, tess_view d_z)
{
    const double scale = 2.0 * m->level_weight * (double)io->grad_scale;
    const int param_idx = m->codebook_idx[level_idx];
    tess_view codes = {0};
    TESS_TRY(tess_exec_vector(ex, param_idx, &codes));
    const tess_coded_rows rows = level_rows(m, ex, codes, level_of(ex, io->code, level_idx));
    const tess_quantizer_backward_args commit = {.rows = rows,
                                                 .x = r.data,
                                                 .commitment =
                                                     (float)(scale * m->config.commitment),
                                                 .accumulate = true,
                                                 .d_x = d_z.data};
    const tess_quantizer_code_gradient_args move = {.rows = rows,
                                                    .x = r.data,
                                                    .coefficient = (float)scale,
                                                    .d_codes = tess_exec_grad(ex, param_idx).data};
    TESS_TRY(TESS_RQVAE_RUN(ex, backward, &commit));
    if (!m->config.is_averaged)
        TESS_TRY(TESS_RQVAE_RUN(ex, code_gradient, &move));
    return subtract(ex, &rows, r, (tess_view){0});
}

tess_status tess_rqvae_quantize_backward(const tess_rqvae *m, tess_exec *ex,
                                         const tess_rqvae_io *io)
{
    const size_t mark = tess_carve_mark(&ex->work);
    tess_view r = {0}, d_z = {0};
    TESS_TRY(tess_carve_take_2d(&ex->work, ex->row_numel, m->config.code_dim, TESS_F32, &r));
    TESS_TRY(tess_carve_take(&ex->work, r.numel, TESS_F32, &d_z));
    TESS_TRY(enter(m, ex, io->input, r));
    TESS_TRY(estimate(m, ex, io, r, d_z));
    for (int l = 0; l < m->config.level_numel; l++)
        TESS_TRY(level_backward(m, ex, io, l, r, d_z));
    TESS_TRY(cast(ex, d_z, io->d_input));
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}
