/**
 * What a quantized autoencoder learns from: vectors of a file, or images of a folder, as rows of
 * f32.
 *
 * Images are [H, W, C] with values 2 v - 1 of those of train/data/images.h, so in [-1, 1].
 */
#pragma once

#include "train/data/images.h"
#include "train/data/mask.h"

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
/** Where positions of a sample are masked. Plain data. */
typedef struct tess_samples_mask {
    const char *path;  /* NULL: none is masked */
    const char *key;   /* of the run file or the command line, for messages */
    int halving_numel; /* of height and width, from an image to the grid of its positions; a vector
                          has one position */
} tess_samples_mask;
/**
 * Say which positions are masked: those whose number in a file of vectors [samples, positions] is
 * 0; all others have 1. What is masked is read as zeros, whatever the source holds. Before
 * everything that asks for flags. Local.
 * @return as tess_mask_open
 */
TESS_MUST_CHECK tess_status tess_samples_open_mask(const tess_ctx *ctx, tess_samples *samples,
                                                   const tess_samples_mask *mask);
void tess_samples_close(tess_samples **samples);
int64_t tess_samples_numel(const tess_samples *samples);
const tess_sample_size *tess_samples_size(const tess_samples *samples);
/** Flags of a sample. Local. */
int64_t tess_samples_position_numel(const tess_samples *samples);
/**
 * Read samples first .. first + numel - 1. Local; one reader at a time.
 * @param[out] dst    [numel, dim] f32, host
 * @param[out] valid  [numel, positions], host: 1, or 0 where they are masked; NULL, where no sample
 *                    is: not wanted
 * @return as tess_vectors_read, tess_images_read or tess_mask_read
 */
TESS_MUST_CHECK tess_status tess_samples_read(tess_samples *samples, int64_t first_idx,
                                              int64_t numel, float *dst, uint8_t *valid);
/** Flags alone. Local. @return as tess_mask_read */
TESS_MUST_CHECK tess_status tess_samples_valid(tess_samples *samples, int64_t first_idx,
                                               int64_t numel, uint8_t *valid);
/** All samples once, each rank some: their identity, of images that of the rows; with a mask that
 * of rows [x, valid]. Collective.
 * @return as tess_vectors_scan or tess_images_read */
TESS_MUST_CHECK tess_status tess_samples_scan(tess_comm *comm, tess_samples *samples,
                                              const char *key, tess_logical_hash *digest);

TESS_END_DECLS
