/**
 * Decoders of quantized tensors on the device: one function per family of formats, behind one
 * dispatch. What each format rounds stands with its C twin, kernels/cpu/codec_<family>.c.
 */
#pragma once

#include "kernels/cuda/cuda_priv.h"

TESS_BEGIN_DECLS

/** Rows of a stored tensor, decoded in f32 and rounded once to `dt`. */
typedef struct tess_decode_args {
    tess_codec codec;
    const void *part[TESS_CODEC_PART_MAX]; /* of the whole tensor, as in tess_codec_parts() */
    int64_t numel;                         /* of the whole tensor */
    int64_t first_idx;                     /* element where row 0 begins */
    int64_t rows, cols;                    /* row r has elements first_idx + r * cols, ... */
    const int32_t *row_idx;                /* [rows] numbers of the rows wanted; NULL: 0, 1, ... */
    void *dst;                             /* [rows, cols] */
    int64_t dst_stride;                    /* elements between rows of dst */
    tess_dtype dt;                         /* f32 or bf16 */
} tess_decode_args;

/** Any quantized format, any start and alignment. Enqueued on `s`; arguments are not checked. */
TESS_MUST_CHECK tess_status tess_cuda_decode(const tess_decode_args *a, tess_stream *s);

/** One family each, kernels/cuda/codec_<family>.cu; rows and columns are not empty. */
TESS_MUST_CHECK tess_status tess_cuda_decode_bnb4(const tess_decode_args *a, tess_stream *s);
TESS_MUST_CHECK tess_status tess_cuda_decode_half(const tess_decode_args *a, tess_stream *s);
TESS_MUST_CHECK tess_status tess_cuda_decode_gguf(const tess_decode_args *a, tess_stream *s);
TESS_MUST_CHECK tess_status tess_cuda_decode_int8(const tess_decode_args *a, tess_stream *s);
TESS_MUST_CHECK tess_status tess_cuda_decode_bytes(const tess_decode_args *a, tess_stream *s);
TESS_MUST_CHECK tess_status tess_cuda_decode_planes(const tess_decode_args *a, tess_stream *s);

TESS_END_DECLS
