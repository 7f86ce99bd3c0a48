/** What makes codes of vectors and vectors of codes, behind `encode` and `decode`. */
#pragma once

#include "train/data/codes_file.h"
#include "train/data/samples.h"
#include "train/session_priv.h"

TESS_BEGIN_DECLS

/** Blocks of vectors of all ranks in one round; a rank may have none. */
typedef struct tess_code_round {
    const int64_t *vector_numel; /* [world], at most block_numel each */
    float *x;                    /* [of this rank, dim]: samples, of decoded images in [0, 1] */
    uint32_t *code;              /* [of this rank, columns], TESS_NO_CODE: absent */
    float *error;                /* [of this rank] squared distance to what the codes say; encode */
    /* [of this rank] 0: masked, x is zeros or wanted so, the code any one; NULL: none is. Whose
     * vectors do not depend on each other need not look at it. */
    const uint8_t *valid;
} tess_code_round;

typedef struct tess_coder {
    int64_t block_numel, dim; /* vectors of a block, and elements of samples for each */
    int64_t position_numel;   /* vectors of a sample; divides block_numel */
    int halving_numel;        /* of an image to the grid of these */
    tess_sample_size sample;
    tess_codes_info info; /* all but vectors and their source */
    /* x to code and error, and code to x. Collective. */
    tess_status (*encode)(tess_session *s, const tess_code_round *round);
    tess_status (*decode)(tess_session *s, const tess_code_round *round);
} tess_coder;

static inline int64_t tess_coder_column_numel(const tess_coder *c)
{
    return tess_codes_column_numel(&c->info);
}

/** Of codebooks that k-means found, and of a model. Collective. */
TESS_MUST_CHECK tess_status tess_coder_of_kmeans(tess_session *s, tess_coder *out);
TESS_MUST_CHECK tess_status tess_coder_of_rqvae(tess_session *s, tess_coder *out);

TESS_END_DECLS
