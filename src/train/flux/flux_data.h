/**
 * A cache as training data of a FLUX.1 transformer: what a micro-batch holds.
 *
 * [Note: weight of a token] w(sigma) m / (n C): the loss of a sample is the mean over the elements
 * of all its tokens, masked ones included, as sd-scripts means masked losses: a mask that leaves
 * half of an image makes the loss of that sample half as large, not the rest of it twice as
 * important. m is the mean of the mask over the token's pixels.
 */
#pragma once

#include "model/flux.h"
#include "train/flux/flux_order.h"
#include "train/flux/objective.h"

TESS_BEGIN_DECLS

/** Places of a micro-batch's arrays in memory of `nbytes`: those that kernels read in front, then
 * the host's own. Sized by the largest bucket. Plain data. */
typedef struct tess_flux_layout {
    size_t latent, text, pooled, time, guidance, cos, sin, target, weight;
    size_t read_nbytes; /* of all before */
    size_t scratch[2];  /* [n, in_channels] f32 each: a latent and its noise */
    size_t sample;      /* [B] i64 */
    size_t nbytes;
} tess_flux_layout;

/** Local, pure. @return TESS_E_RANGE sizes overflow */
TESS_MUST_CHECK tess_status tess_flux_layout_make(const tess_flux_config *config,
                                                  const tess_flux_shape *shape,
                                                  tess_flux_layout *out);
/** Largest bucket of a cache in packed tokens. Local. */
int64_t tess_flux_largest(const tess_latents *cache);

/** What a run wants of a cache. */
typedef struct tess_flux_data_request {
    const char *path, *key; /* key of the run file, for messages */
    const tess_flux_config *config;
    const tess_flux_shape *shape;
    const tess_run *run; /* borrowed as long as the data is open */
    bool is_training;    /* then caption dropout needs the empty caption */
} tess_flux_data_request;

typedef struct tess_flux_data tess_flux_data;

/** Open a cache and check it against model and run. Local.
 * @return TESS_E_CONFIG what does not fit, with both values; TESS_E_FIT too many samples for the
 * memory that data sets have; as tess_latents_open */
TESS_MUST_CHECK tess_status tess_flux_data_open(const tess_ctx *ctx,
                                                const tess_flux_data_request *request,
                                                tess_flux_data **out);
void tess_flux_data_close(tess_flux_data **data);
const tess_latents *tess_flux_data_cache(const tess_flux_data *data);
const tess_flux_order *tess_flux_data_order(const tess_flux_data *data);

/** Arrays of the host for one micro-batch. */
typedef struct tess_flux_arrays {
    char *base;       /* [layout.nbytes] */
    const char *read; /* where kernels find [layout.read_nbytes] of it: `base`, or on a device */
    tess_flux_layout at;
    /* Whose rotations lie there, 0: none yet. */
    int64_t rope_height, rope_width, rope_text_numel;
} tess_flux_arrays;

/** An array of the host. Local. */
static inline float *tess_flux_array(const tess_flux_arrays *a, size_t offset_nbytes)
{
    return (float *)(void *)(a->base + offset_nbytes);
}
/** Rotations for `text_numel` tokens of text and a latent of height x width. Local. */
void tess_flux_put_rotations(const tess_flux_config *config, int64_t text_numel, int64_t height,
                             int64_t width, tess_flux_arrays *arrays);
/** A batch over the arrays as kernels find them; guidance NULL where the model has none. Local. */
tess_flux_batch tess_flux_batch_over(const tess_flux_config *config, const tess_flux_arrays *arrays,
                                     tess_flux_shape shape);

/**
 * Fill micro-batch `micro_batch` of the run. Local; allocates nothing.
 * @param[out] batch  its sizes; pointers into arrays->read, guidance NULL where the model has none
 */
TESS_MUST_CHECK tess_status tess_flux_data_fill(const tess_flux_data *data, int64_t micro_batch,
                                                tess_flux_arrays *arrays, tess_flux_batch *batch);
/** The same for held-out micro-batch `micro_batch`, see [Note: evaluation] of objective.h. */
TESS_MUST_CHECK tess_status tess_flux_data_fill_held_out(const tess_flux_data *data,
                                                         int64_t micro_batch,
                                                         tess_flux_arrays *arrays,
                                                         tess_flux_batch *batch);

TESS_END_DECLS
