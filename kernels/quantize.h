/**
 * Between plain values and stored tensors of any quantized format. What each format rounds, and how
 * ties go, stands with its tables: nf4.h, or the file kernels/cpu/codec_<family>.c that has it.
 */
#pragma once

#include "core/codec.h"
#include "core/stream.h"
#include "core/view.h"

TESS_BEGIN_DECLS

typedef struct tess_quantize_args {
    tess_codec codec;
    tess_view src;                   /* [numel] f32 or bf16 */
    void *part[TESS_CODEC_PART_MAX]; /* as tess_codec_parts() */
    float *absmax_work;              /* [ceil(numel/block)] f32, only with double_quant */
    const char *tensor_name;         /* for messages */
} tess_quantize_args;

typedef struct tess_dequantize_args {
    tess_codec codec;
    const void *part[TESS_CODEC_PART_MAX];
    int64_t numel;     /* elements of the whole tensor; 0: the range ends with it */
    int64_t first_idx; /* element to start at */
    tess_view dst;     /* the range, f32 or bf16: the value in f32, then one rounding */
} tess_dequantize_args;

/** @return TESS_E_ARG sizes */
TESS_MUST_CHECK tess_status tess_quantize_check(const tess_quantize_args *a);
TESS_MUST_CHECK tess_status tess_dequantize_check(const tess_dequantize_args *a);

TESS_END_DECLS
