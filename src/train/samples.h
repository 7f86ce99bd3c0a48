/**
 * What a quantized autoencoder learns from: vectors of a file, or images of a folder, as rows of
 * f32.
 *
 * Images are [H, W, C] with values 2 v - 1 of those of train/images.h, so in [-1, 1].
 */
#pragma once

#include "train/images.h"
#include "train/vectors.h"

TESS_BEGIN_DECLS

typedef struct tess_samples tess_samples;

/** Sizes of a sample. Plain data. */
typedef struct tess_sample_size {
    int64_t dim;                          /* elements */
    int64_t channel_numel, height, width; /* of images; 0: vectors */
} tess_sample_size;

/** "vectors of 7 dimensions" or "images of 32 x 16 with 3 channels". Local. */
enum { TESS_SAMPLE_TEXT_NBYTES = 96 };
void tess_sample_text(const tess_sample_size *size, char text[TESS_SAMPLE_TEXT_NBYTES]);

static inline bool tess_sample_is_equal(const tess_sample_size *a, const tess_sample_size *b)
{
    return a->dim == b->dim && a->channel_numel == b->channel_numel && a->height == b->height &&
           a->width == b->width;
}

/** Local. @return as tess_vectors_open or tess_images_open; TESS_E_RANGE */
TESS_MUST_CHECK tess_status tess_samples_open(const tess_ctx *ctx, const char *path, bool is_images,
                                              tess_samples **out);
/**
 * Say which vectors are masked: those whose number in `mask_path`, vectors of one dimension, is 0;
 * all others have 1. Masked ones are read as zeros, whatever the file holds. Local.
 * @param key  of the run file or the command line, for messages
 * @return as tess_vectors_open; TESS_E_CONFIG of another form than [samples, 1]
 */
TESS_MUST_CHECK tess_status tess_samples_open_mask(const tess_ctx *ctx, tess_samples *samples,
                                                   const char *mask_path, const char *key);
static inline const char *tess_mask_key(bool is_eval)
{
    return is_eval ? "data.eval_mask_path" : "data.mask_path";
}
void tess_samples_close(tess_samples **samples);
int64_t tess_samples_numel(const tess_samples *samples);
const tess_sample_size *tess_samples_size(const tess_samples *samples);
/** Read samples first .. first + numel - 1 into dst [numel, dim] f32, host. Local; one reader at a
 * time. @return as tess_vectors_read or tess_images_read */
TESS_MUST_CHECK tess_status tess_samples_read(tess_samples *samples, int64_t first_idx,
                                              int64_t numel, float *dst);
/** Which of samples first .. first + numel - 1 are valid: 1, or 0 where they are masked, into
 * `valid` [numel]; all are without a mask. Local. @return TESS_E_FORMAT another number, which is
 * named; as tess_vectors_read */
TESS_MUST_CHECK tess_status tess_samples_valid(tess_samples *samples, int64_t first_idx,
                                               int64_t numel, uint8_t *valid);
/** All samples once, each rank some: their identity, of images that of the rows; with a mask that
 * of vectors [x, valid]. Collective.
 * @return as tess_vectors_scan or tess_images_read */
TESS_MUST_CHECK tess_status tess_samples_scan(tess_comm *comm, tess_samples *samples,
                                              const char *key, tess_logical_hash *digest);

TESS_END_DECLS
