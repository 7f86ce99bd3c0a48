/** Inner structure of vectors as a session's data, shared by its files. */
#pragma once

#include "train/metrics.h"
#include "train/rqvae/rqvae_codes.h"
#include "train/session_priv.h"

TESS_BEGIN_DECLS

/** Of data, and of the windows that it is counted in. */
enum { TRAINING, HELD_OUT, KIND_NUMEL };

struct vector_feed {
    tess_samples *data[KIND_NUMEL];
    tess_vector_layout at;
    tess_codebooks *books;   /* where codes start from, or follow, vectors; else NULL */
    tess_vector_batch batch; /* over the DATA arena */
    float *x;                /* of the batch, as the host writes it */
    char *read;              /* where kernels find the layout: the DATA arena, or its mirror */
    int64_t *window[KIND_NUMEL];
    int64_t update_numel; /* steps that codes have followed */
    int pending;          /* window that the results of the batch still belong into, -1: none */
};

/** Results of the last micro-batch, which the host has, into their window; none of them where an
 * error is not finite, which its loss says too. Local. */
void vector_window_add(vector_feed *f);
/** Counts of all ranks into those of each. Collective. */
TESS_MUST_CHECK tess_status vector_window_sum(tess_session *s, int kind);
/** Rank 0 writes a row for each level of a window whose sums are those of all ranks. Local.
 * @param metrics  NULL: into the log alone */
void vector_window_report(tess_session *s, int kind, tess_metrics *metrics);

TESS_END_DECLS
