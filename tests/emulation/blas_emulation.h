/**
 * The matrix products of the emulation: the C twin on plain operands, over emulated device memory.
 *
 * It checks what a library would take on trust: that alignments are what the product says, that the
 * algorithm is the one chosen for this product, and that a workspace of the stated size is there.
 */
#pragma once

#include "kernels/cuda/blas_priv.h"

TESS_BEGIN_DECLS

typedef struct tess_blas_emulation {
    tess_blas base;
    const char *identity; /* what caches are good for */
    int64_t choose_numel, run_numel;
    tess_blas_product last; /* of the latest run */
} tess_blas_emulation;

/** In the caller's memory; the cache is the base's. Local. */
TESS_MUST_CHECK tess_status tess_blas_emulation_init(tess_blas_emulation *b, const char *identity);
void tess_blas_emulation_fini(tess_blas_emulation *b);

TESS_END_DECLS
