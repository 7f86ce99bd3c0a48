/* How long an epoch is, by the data alone. */
#include "train/data/dataset.h"
#include "train/data/latents.h"
#include "train/describe/describe.h"

static tess_status count_sequences(const tess_ctx *ctx, const tess_run *run, int64_t *numel)
{
    tess_token_file *file = NULL;
    TESS_TRY(tess_token_file_open(ctx, run->data.path, &file));
    *numel = tess_dataset_sequence_numel(tess_token_file_get_info(file), run->data.sequence_length,
                                         run->data.packing);
    tess_token_file_close(&file);
    return TESS_OK;
}

static tess_status count_vectors(const tess_ctx *ctx, const tess_run *run, int64_t *numel)
{
    tess_samples *samples = NULL;
    TESS_TRY(tess_samples_open(ctx, run->data.path, tess_run_is_of_images(run), &samples));
    *numel = tess_samples_numel(samples);
    tess_samples_close(&samples);
    return TESS_OK;
}

static tess_status count_latents(const tess_ctx *ctx, const tess_run *run, int64_t *numel)
{
    tess_latents *cache = NULL;
    TESS_TRY(tess_latents_open(ctx, run->data.path, &cache));
    *numel = tess_latents_get_info(cache)->sample_numel;
    tess_latents_close(&cache);
    return TESS_OK;
}

tess_status tess_describe_epoch(const void *ctx, const tess_run *run, int64_t *sequence_numel)
{
    const tess_ctx *c = ctx;
    tess_io_kind kind = TESS_IO_MISSING;
    int64_t nbytes = 0;
    *sequence_numel = 0;
    TESS_TRY(tess_io_stat(c->io, run->data.path, &kind, &nbytes));
    if (kind == TESS_IO_MISSING)
        return TESS_OK; /* who opens it says so */
    return tess_run_is_rqvae(run)  ? count_vectors(c, run, sequence_numel)
           : tess_run_is_flux(run) ? count_latents(c, run, sequence_numel)
                                   : count_sequences(c, run, sequence_numel);
}
