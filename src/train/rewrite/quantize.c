#include "train/rewrite/quantize.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/memory.h"

typedef struct job {
    const tess_ctx *ctx;
    const tess_quantize_options *options;
    tess_rewrite_base base;
    tess_rewrite_tensor *tensor; /* [base.d.registry.param_numel] */
    tess_pool *pool;
    tess_model_writer *writer;
    tess_identity *identity;
    tess_stored from, to;
    float *plain; /* [plain_numel] values of what is decoded first */
    int64_t plain_numel;
    tess_quantize_result *result;
    double square, error_square; /* of tensors that changed */
} job;

static bool is_gguf(const job *j) { return tess_gguf_is_path(j->options->output); }

/* What was asked for and not done: rows that are no whole blocks. */
static bool is_ragged(job *j, const tess_rewrite_tensor *t)
{
    tess_codec asked = t->stored;
    return is_gguf(j) && t->is_linear && tess_codec_is_equal(&t->out, &t->stored) &&
           tess_describe_codec(&j->base.d, t->param, j->base.run->base.format, t->stored, &asked) ==
               TESS_OK &&
           tess_describe_is_ragged(t->param, &asked);
}

static void fill_row(job *j, const tess_rewrite_tensor *t, const tess_stored *after,
                     const tess_stored_error *e)
{
    tess_quantize_row *row = &j->result->row[j->result->row_numel++];
    const bool is_kept = tess_codec_is_equal(&t->stored, &t->out);
    memcpy(row->name, t->param->name, sizeof row->name);
    row->shape_rank = t->param->shape_rank;
    memcpy(row->shape, t->param->shape, sizeof row->shape);
    tess_codec_describe(&t->stored, row->from);
    tess_codec_describe(&t->out, row->to);
    row->relative_rms = e->square > 0.0 ? sqrt(e->error_square / e->square) : 0.0;
    row->most = e->most;
    row->zeroed_numel = e->zeroed_numel;
    row->before_nbytes = tess_stored_nbytes(&j->from);
    row->after_nbytes = tess_stored_nbytes(after);
    row->is_ragged = is_ragged(j, t);
    j->result->before_nbytes += row->before_nbytes;
    j->result->after_nbytes += row->after_nbytes;
    j->square += is_kept ? 0.0 : e->square;
    j->error_square += is_kept ? 0.0 : e->error_square;
}

static tess_status make_room(job *j, int64_t numel)
{
    void *grown = NULL;
    if (numel <= j->plain_numel)
        return TESS_OK;
    tess_free(j->plain);
    j->plain = NULL;
    j->plain_numel = 0;
    TESS_TRY(tess_alloc_array(numel, sizeof *j->plain, &grown));
    j->plain = grown;
    j->plain_numel = numel;
    return TESS_OK;
}

/* The tensor in its new format: `to`, or `from` where nothing changes. */
static tess_status convert(job *j, const tess_rewrite_tensor *t, const tess_stored **after)
{
    tess_view values;
    *after = &j->from;
    if (tess_codec_is_equal(&t->stored, &t->out))
        return TESS_OK;
    TESS_TRY(make_room(j, tess_format_is_quantized(t->stored.format) ? t->param->numel : 0));
    TESS_TRY(tess_stored_values(&j->from, j->pool, j->plain, &values));
    TESS_TRY(tess_stored_prepare(&j->to, &t->out, t->param->numel));
    TESS_TRY(tess_stored_encode(&j->to, values, t->param->name, j->pool));
    *after = &j->to;
    return TESS_OK;
}

static tess_status write_tensor(job *j, int64_t idx)
{
    const tess_rewrite_tensor *t = &j->tensor[idx];
    const tess_stored *after = NULL;
    tess_stored_error error;
    TESS_TRY(tess_stored_read(&j->from, j->base.d.dir, t->source));
    TESS_TRY(convert(j, t, &after));
    TESS_TRY(tess_stored_compare(&j->from, after, t->param->name, j->pool, &error));
    TESS_TRY(tess_model_writer_put(j->writer, idx, (const void *const *)after->at));
    TESS_TRY(tess_rewrite_identify(j->identity, t, &t->kept, after));
    fill_row(j, t, after, &error);
    return TESS_OK;
}

static tess_status start(job *j)
{
    const tess_registry *reg = &j->base.d.registry;
    void *rows = NULL;
    TESS_TRY(tess_rewrite_list(&j->base, j->options->output, &j->tensor));
    TESS_TRY(tess_alloc_array(reg->param_numel, sizeof *j->result->row, &rows));
    j->result->row = rows;
    TESS_TRY(tess_pool_create(j->options->thread_numel, &j->pool));
    TESS_TRY(tess_identity_create(&j->identity));
    tess_rewrite_describe(j->tensor, reg->param_numel, j->result->quant);
    const tess_model_write_request request = {.path = j->options->output,
                                              .storage = j->options->storage,
                                              .shard_nbytes = j->options->shard_nbytes,
                                              .quant = j->result->quant};
    return tess_rewrite_start(j->ctx, &j->base, j->tensor, &request, &j->writer);
}

/* A file of another format than was asked for would be a surprise. */
static tess_status check_changed(const job *j)
{
    const tess_quantize_row *ragged = NULL;
    for (int64_t i = 0; i < j->result->row_numel; i++) {
        const tess_quantize_row *row = &j->result->row[i];
        if (row->is_ragged)
            ragged = row;
        else if (j->tensor[i].is_linear && strcmp(row->from, row->to) != 0)
            return TESS_OK;
    }
    TESS_CHECK(ragged == NULL, TESS_E_UNSUPPORTED,
               "no layer of '%s' has rows of whole blocks ('%s': %" PRId64 " elements); choose "
               "another format",
               j->options->model, ragged->name, ragged->shape[1]);
    return TESS_OK;
}

static tess_status run(job *j)
{
    /* A GGUF row is a whole number of blocks; a layer that is not keeps its format. */
    const unsigned flags = is_gguf(j) ? TESS_DESCRIBE_KEEP_RAGGED : 0;
    TESS_TRY(
        tess_rewrite_base_open(j->ctx, j->options->model, &j->options->choice, flags, &j->base));
    TESS_TRY(start(j));
    for (int i = 0; i < j->base.d.registry.param_numel; i++)
        TESS_TRY(write_tensor(j, i));
    TESS_TRY(check_changed(j));
    TESS_TRY(tess_rewrite_id_text(j->identity, j->result->base_id));
    j->result->relative_rms = j->square > 0.0 ? sqrt(j->error_square / j->square) : 0.0;
    return tess_model_writer_finish(j->writer, j->result->base_id);
}

tess_status tess_quantize_model(const tess_ctx *ctx, const tess_quantize_options *options,
                                tess_quantize_result *out)
{
    job j = {.ctx = ctx, .options = options, .result = out};
    memset(out, 0, sizeof *out);
    const tess_status st = run(&j);
    tess_model_writer_destroy(&j.writer);
    tess_identity_destroy(&j.identity);
    tess_stored_fini(&j.from);
    tess_stored_fini(&j.to);
    tess_free(j.plain);
    tess_pool_destroy(&j.pool);
    tess_free(j.tensor);
    tess_rewrite_base_close(&j.base);
    if (st != TESS_OK)
        tess_quantize_result_fini(out);
    return st;
}

void tess_quantize_result_fini(tess_quantize_result *result)
{
    tess_free(result->row);
    *result = (tess_quantize_result){0};
}
