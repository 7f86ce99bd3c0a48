/** Decoders of GGUF blocks, one table per instruction path: the same bits from each. */
#pragma once

#include "kernels/cpu/codec_priv.h"

TESS_BEGIN_DECLS

enum { TESS_GGUF_BLOCK_MAX_NUMEL = 256 };

typedef struct tess_gguf_path {
    /* `block_numel` blocks in a row, all their elements to `y`; NULL: no GGUF format. */
    void (*decode[TESS_FORMAT_NUMEL])(const uint8_t *block, int64_t block_numel, float *y);
    void (*half)(const uint16_t *x, int64_t numel, float *y);
    void (*round)(const float *x, int64_t numel, uint16_t *y); /* to bf16 */
} tess_gguf_path;

extern const tess_gguf_path tess_gguf_portable, tess_gguf_avx2, tess_gguf_avx512;

TESS_END_DECLS
