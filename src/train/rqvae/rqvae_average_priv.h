/** Averages of codes, shared by their start and their update. */
#pragma once

#include "train/rqvae/rqvae_codes.h"

TESS_BEGIN_DECLS

/** Of vector-quantize-pytorch. */
#define AVERAGES_EPS 1e-5

/** The owned rows of a book over the averages of a layout at `data`; codes are the codebooks'.
 * Local. */
tess_codebook_rows averages_rows(const codes_job *job, char *data, int book);

static inline bool averages_are_cosine(const tess_session *s)
{
    return s->run->quantizer.type == TESS_RUN_QUANTIZER_COSINE;
}

TESS_END_DECLS
