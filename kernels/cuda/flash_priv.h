/**
 * Attention by own kernels on a CUDA device: linear memory, no atomics, the same bits in every run.
 *
 * Semantics in kernels/attention.h. Tensor cores serve bf16 with D a multiple of 8, 16-byte
 * addresses and row strides that are multiples of 8; plain f32 arithmetic serves f32 and the rest.
 */
#pragma once

#include "kernels/cuda_work.h"

TESS_BEGIN_DECLS

enum { TESS_FLASH_DIM_MAX = 256 };

/** Elements from a token to the next; a row holds its heads one after another, D each. */
typedef struct tess_flash_strides {
    int64_t q, k, v, out;
    int64_t d_out, d_q, d_k, d_v; /* backward only */
} tess_flash_strides;

/** Rows as the arguments of attention have them: only `out` may have gaps, of `out_stride` (0:
 * none). Local. */
static inline tess_flash_strides tess_flash_strides_plain(const tess_attention_shape *shape,
                                                          int64_t out_stride)
{
    const int64_t query = shape->head_numel * shape->dim, key = shape->kv_head_numel * shape->dim;
    const int64_t out = out_stride != 0 ? out_stride : query;
    const tess_flash_strides strides = {query, key, key, out, query, query, key, key};
    return strides;
}

/**
 * Enqueue the forward. Local.
 * @return TESS_E_UNSUPPORTED D above 256, or more tiles than a grid holds; TESS_E_ARG,
 * TESS_E_DTYPE, TESS_E_RANGE as tess_attention_check()
 * @source FlashAttention-2 (Dao, 2023), algorithm 1
 */
TESS_MUST_CHECK tess_status tess_flash_forward(const tess_attention_args *a, tess_stream *s);

/**
 * Enqueue the backward: row sums of d_out * out, then d_k and d_v, then d_q. Local.
 * @return as tess_flash_forward(), and TESS_E_ARG `work` is too small
 * @source FlashAttention-2 (Dao, 2023), algorithm 2, in two kernels so that no sum needs atomics
 */
TESS_MUST_CHECK tess_status tess_flash_backward(const tess_attention_backward_args *a,
                                                tess_stream *s);

/** The same with rows of any operand apart: `strides` in place of `out_stride`; views hold the
 * first element of each operand and the numel it has without gaps. Local. */
TESS_MUST_CHECK tess_status tess_flash_forward_strided(const tess_attention_args *a,
                                                       const tess_flash_strides *strides,
                                                       tess_stream *s);
TESS_MUST_CHECK tess_status tess_flash_backward_strided(const tess_attention_backward_args *a,
                                                        const tess_flash_strides *strides,
                                                        tess_stream *s);

TESS_END_DECLS
