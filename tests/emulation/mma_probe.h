/** Small kernels over the emulated tensor-core instructions, and what the emulation saw of them. */
#pragma once

#include "core/status.h"
#include "core/stream.h"

TESS_BEGIN_DECLS

/** What went wrong without showing in results. */
typedef struct tess_tensor_faults {
    int64_t misaligned;     /* addresses of ldmatrix or cp.async off their size */
    int64_t bank_conflicts; /* rows of one 8 x 8 matrix on the same banks */
    int64_t lost_copies;    /* still pending when their block was over */
    int64_t mma_numel, ldmatrix_numel;
} tess_tensor_faults;

/** What happened since the last call; forgets it. Local. */
tess_tensor_faults tess_tensor_faults_take(void);

/* Addresses are device memory; one warp each. Local. */

/** d [16, 8] f32 += a [16, 16] bf16 times b [16, 8] bf16, fragments filled element by element. */
TESS_MUST_CHECK tess_status probe_mma(const uint16_t *a, const uint16_t *b, float *d,
                                      tess_stream *s);
/** Elements of four 8 x 8 matrices src [32, 8] as the lanes receive them: dst [32, 4, 2]. */
TESS_MUST_CHECK tess_status probe_ldmatrix(const uint16_t *src, bool is_transposed, uint16_t *dst,
                                           tess_stream *s);
/** c [16, 16] f32 = a [16, dim] times transposed b [16, dim], then d [16, dim] f32 = c rounded to
 * bf16 times b: tiles of `columns` (32, 64, 96, 128 or 256), swizzled. */
TESS_MUST_CHECK tess_status probe_tiles(const uint16_t *ab, int dim, int columns, float *c,
                                        float *d, tess_stream *s);

/** What of a copy of 32 x 16 bytes probe_copy() leaves out. */
typedef enum probe_copy_part {
    PROBE_COPY_ALL,
    PROBE_COPY_NO_WAIT,
    PROBE_COPY_NO_COMMIT,
    PROBE_COPY_NO_SOURCE, /* has = false */
} probe_copy_part;
TESS_MUST_CHECK tess_status probe_copy(const uint16_t *src, probe_copy_part part, uint16_t *dst,
                                       tess_stream *s);

/** y[i] = 2^x[i], pair[i] = (bf16(x[i]), bf16(y[i])), i below 32. */
TESS_MUST_CHECK tess_status probe_scalar(const float *x, float *y, uint32_t *pair, tess_stream *s);

TESS_END_DECLS
