/**
 * Which samples of a source are valid, from a file of vectors [samples, positions]: 1, or 0 where
 * one is masked.
 */
#pragma once

#include "train/data/vectors.h"

TESS_BEGIN_DECLS

typedef struct tess_mask tess_mask;

/** Of the run file, for messages. */
static inline const char *tess_mask_key(bool is_eval)
{
    return is_eval ? "data.eval_mask_path" : "data.mask_path";
}

/** What a mask is beside. Plain data. */
typedef struct tess_mask_shape {
    int64_t sample_numel;
    int64_t position_numel; /* flags of a sample: 1, or the positions of an image's latent */
} tess_mask_shape;

/**
 * Local.
 * @param key  of the run file or the command line, for messages
 * @return as tess_vectors_open; TESS_E_CONFIG of another form than [samples, positions]
 */
TESS_MUST_CHECK tess_status tess_mask_open(const tess_ctx *ctx, const char *path, const char *key,
                                           const tess_mask_shape *shape, tess_mask **out);
void tess_mask_close(tess_mask **mask);
/**
 * Flags of samples first .. first + numel - 1: 1, or 0 where they are masked. Local; one reader at
 * a time.
 * @param[out] valid  [numel, positions]
 * @return TESS_E_FORMAT another number, which is named; as tess_vectors_read
 */
TESS_MUST_CHECK tess_status tess_mask_read(tess_mask *mask, int64_t first_idx, int64_t numel,
                                           uint8_t *valid);

TESS_END_DECLS
