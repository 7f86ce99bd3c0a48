/** What kernels that call libraries find behind their stream. C only. */
#pragma once

#include "kernels/cuda/blas_priv.h"
#include "kernels/cuda/kept_priv.h"

TESS_BEGIN_DECLS

typedef struct tess_sdpa tess_sdpa;

/**
 * [Note: dequantizing ahead] With a lane, weights are dequantized on a stream of their own into two
 * slots in turn, while the product before still runs: the lane waits for the slot's `free`, the
 * product for its `ready`. The lane knows nothing of the codes' arrival: whoever makes the compute
 * stream wait for a gathered unit makes the lane wait for it too. Codes may be overwritten once the
 * compute stream has passed their product, for that has waited for the lane. Only frozen, quantized
 * matrices go through it; a copy of a trained one is made on the compute stream that wrote it.
 */
typedef struct tess_dequant_slot {
    void *data;
    size_t nbytes;
    tess_event ready; /* recorded on the lane: the slot is filled */
    tess_event free;  /* recorded on the compute stream: its product is done */
} tess_dequant_slot;

typedef struct tess_dequant_lane {
    tess_stream *stream;
    tess_dequant_slot slot[2];
    int next_idx;
} tess_dequant_lane;

/** Of one stream; the device owns all of it. */
typedef struct tess_cuda_library {
    tess_blas *blas;         /* of the device */
    tess_sdpa *sdpa;         /* of the device; NULL: no cuDNN */
    void *work;              /* of this stream alone, aligned to 256 bytes */
    size_t work_nbytes;      /* tess_cuda_library_work_nbytes() */
    int sm_numel;            /* multiprocessors for products, 0: all */
    tess_dequant_lane *lane; /* NULL: dequantize on the stream itself */
    tess_kept *kept;         /* NULL: nothing stays decoded */
} tess_cuda_library;

/** Library workspace of one stream: what cuBLAS recommends. */
static inline size_t tess_cuda_library_work_nbytes(int capability)
{
    return (size_t)(capability >= 90 ? 32 : 4) << 20;
}

/**
 * The libraries of a stream, opened when first asked for: at plan time. The device implements it,
 * and so does the emulation. Local. @return TESS_E_MEMORY; TESS_E_UNSUPPORTED
 */
TESS_MUST_CHECK tess_status tess_cuda_stream_library(tess_stream *s, const tess_cuda_library **out);

TESS_END_DECLS
