/**
 * Start codes of an RQ-VAE from the vectors of its first step, level by level: what the encoder
 * makes of them before any update, less the codes of the levels before.
 *
 * All vectors of the step take part, over all ranks: draws are keyed by a vector's place in the
 * step, sums are exact, so that the codes do not depend on the number of ranks. A code that no
 * vector comes to keeps its value.
 */
#pragma once

#include "train/describe_rqvae.h"
#include "train/session_priv.h"

TESS_BEGIN_DECLS

/** Bytes that this takes of the staging memory. Local, pure. */
TESS_MUST_CHECK tess_status tess_rqvae_init_nbytes(const tess_run *run,
                                                   const tess_vector_layout *layout,
                                                   const tess_kernels *kernels, size_t *nbytes);
/**
 * Set the masters of all codes.
 *
 * Collective; staging memory is free.
 * @param latent  [layout.latent_numel, d] f32 in place: vectors of this rank's micro-batches, in
 * their order; what all levels leave of them comes out
 * @return TESS_E_NUMERIC a number that is not finite
 */
TESS_MUST_CHECK tess_status tess_rqvae_init(tess_session *s, const tess_vector_layout *layout,
                                            float *latent);

TESS_END_DECLS
