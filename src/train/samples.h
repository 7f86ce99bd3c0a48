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
void tess_samples_close(tess_samples **samples);
int64_t tess_samples_numel(const tess_samples *samples);
const tess_sample_size *tess_samples_size(const tess_samples *samples);
/** Read samples first .. first + numel - 1 into dst [numel, dim] f32, host. Local; one reader at a
 * time. @return as tess_vectors_read or tess_images_read */
TESS_MUST_CHECK tess_status tess_samples_read(tess_samples *samples, int64_t first_idx,
                                              int64_t numel, float *dst);
/** All samples once, each rank some: their identity, of images that of the rows. Collective.
 * @return as tess_vectors_scan or tess_images_read */
TESS_MUST_CHECK tess_status tess_samples_scan(tess_comm *comm, tess_samples *samples,
                                              const char *key, tess_logical_hash *digest);

TESS_END_DECLS
