/**
 * Decoders of quantized tensors on the device: one function per family of formats, behind one
 * dispatch. What each format rounds stands with its C twin, kernels/cpu/codec_<family>.c.
 */
#pragma once

#include "kernels/cuda/cuda_priv.h"
#include "kernels/cuda_work.h"

TESS_BEGIN_DECLS

/** Few rows times a stored matrix, decoded on the way; see [Note: few rows] in thin_priv.cuh. */
typedef struct tess_thin_args {
    const void *a;    /* [m, cols of the matrix] bf16, rows at multiples of 16 bytes */
    int64_t a_stride; /* elements between its rows */
    int m;            /* at most TESS_THIN_ROW_MAX */
    float scale;
    float *sum;    /* [m, rows of the matrix] f32: scale times the product */
    bool is_added; /* ... added to what is there */
} tess_thin_args;

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
    const tess_thin_args *thin;            /* multiply the rows (bf16) in place of storing them;
                                              NULL: store. Only where tess_thin_covers() */
} tess_decode_args;

/** Whether rows of this matrix may be multiplied on the way: whole chunks, everything aligned.
 * Local. */
bool tess_thin_covers(const tess_matrix *b);
/** The same for a plain matrix, f32 (rounded to bf16) or bf16. Enqueued on `s`. */
TESS_MUST_CHECK tess_status tess_cuda_thin_plain(const tess_matrix *b, const tess_thin_args *thin,
                                                 tess_stream *s);

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
