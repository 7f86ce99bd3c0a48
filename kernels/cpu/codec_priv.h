/** What a family of quantized formats does on the CPU. */
#pragma once

#include "kernels/cpu/cpu_priv.h"

TESS_BEGIN_DECLS

/** A stored tensor. */
typedef struct tess_coded {
    const tess_codec *codec;
    const void *const *part; /* as tess_codec_parts() of `numel` elements */
    int64_t numel;
} tess_coded;

enum { TESS_ROW_SPAN_MAX = 4096 }; /* elements of a row */

/** Elements of a stored tensor in rows apart. */
typedef struct tess_row_span {
    int64_t first_idx, stride;    /* row i begins at first_idx + i * stride */
    int64_t row_numel, col_numel; /* col_numel from 1 to TESS_ROW_SPAN_MAX */
} tess_row_span;

typedef struct tess_cpu_codec {
    /* Elements [first_idx, first_idx + dst.numel) in f32 or bf16, rounded once. */
    void (*decode)(const tess_coded *from, int64_t first_idx, tess_view dst);
    /* The same of rows, to dst [row_numel, col_numel]; NULL where row by row is as good. */
    void (*decode_rows)(const tess_coded *from, const tess_row_span *rows, tess_view dst);
    /* Arguments are checked. @return TESS_E_FORMAT an element that the format cannot hold */
    tess_status (*encode)(const tess_quantize_args *a, tess_pool *pool);
} tess_cpu_codec;

extern const tess_cpu_codec tess_cpu_codec_bnb4, tess_cpu_codec_half, tess_cpu_codec_gguf,
    tess_cpu_codec_int8, tess_cpu_codec_quanto8, tess_cpu_codec_quanto, tess_cpu_codec_fp8;

/** The family of a quantized format. Local. */
const tess_cpu_codec *tess_cpu_codec_of(tess_format format);

TESS_END_DECLS
