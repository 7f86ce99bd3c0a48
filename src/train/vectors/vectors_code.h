/** Use of trained codebooks: encode vectors, decode codes, export. A session over vectors. */
#pragma once

#include "train/session.h"

TESS_BEGIN_DECLS

/** What an encoding did. */
typedef struct tess_encode_result {
    int64_t sample_numel; /* with anything that is not masked */
    bool is_images;
    /* Means over what is not masked; of images over valid positions, times all of an image. */
    double error;       /* squared distance to what the codes say, summed over elements */
    double mean_square; /* |x|^2 */
} tess_encode_result;

/**
 * Codes of all vectors, or images, of `input` into the codes file `output`; rank 0 writes. A row is
 * a vector, or a position of an image's latent: row (i h + y) w + x of image i. All codes of a
 * masked vector are absent. Collective.
 * @param mask  as of tess_samples_open_mask; NULL: no vector is masked
 * @return TESS_E_CONFIG another dimension; TESS_E_FORMAT a vector that is not finite
 */
TESS_MUST_CHECK tess_status tess_session_encode(tess_session *session, const char *input,
                                                const char *mask, const char *output,
                                                tess_encode_result *out);
/**
 * Vectors that the codes of `input` say into `output` (.fvecs, .fbin, .npy, .h5); rank 0 writes.
 * Images as rows of H W C, in .npy as [N, H, W, C]: [0, 1] is what they were learned in, what the
 * decoder gives may lie outside. A vector without codes becomes zeros. Collective. @return
 * TESS_E_CONFIG codes of other codebooks
 */
TESS_MUST_CHECK tess_status tess_session_decode(tess_session *session, const char *input,
                                                const char *output);

typedef enum tess_codebook_format {
    TESS_CODEBOOK_SAFETENSORS, /* tensor `codebooks` [groups, levels, K, d] f32 */
    TESS_CODEBOOK_NPY,         /* [groups * levels * K, d] f32 */
    TESS_CODEBOOK_FAISS        /* an empty index: residual (one group) or product (one level) */
} tess_codebook_format;

/** All codebooks into one file; rank 0 writes. Collective. @return TESS_E_UNSUPPORTED a form that
 * the format does not have */
TESS_MUST_CHECK tess_status tess_session_export_codebooks(tess_session *session,
                                                          tess_codebook_format format,
                                                          const char *path);

TESS_END_DECLS
