/**
 * Matrix products of the CUDA backend: what gemm.c (C, no CUDA) needs of gemm.cu, and what whoever
 * plans a step calls.
 *
 * [Note: one rounding] Terms whose A lie side by side in one buffer (term i + 1 begins where the
 * columns of term i end or up to 256 columns later, equal strides and scales) are one product:
 * their B's are written beside each other (NT) or below each other (NN) into scratch, zeros for the
 * columns between them, so a LoRA branch costs r / K more work and the sum is rounded once. What
 * lies between must be finite: in [x | u_q | u_k | u_v] it is the activations of other adapters.
 * Terms that lie apart run one after another; with a bf16 C they add up in an f32 scratch that a
 * small kernel rounds, in chunks of rows so that the scratch stays bounded. That costs 4 bytes
 * written per element of C and term, 4 read per further term, and 4 read + 2 written at the end: 18
 * bytes for two terms against 2 when they lie together.
 *
 * [Note: distance to the twin] Products are exact in f32, sums are f32 in an order of the
 * library's; so a result is within the bound of tests/kernels/test_gemm.c. Joined terms of equal
 * scale s give s * (own + own) where the twin has s * own + s * own; an accumulated f32 C is added
 * first and the bias last. Each is one f32 rounding less or elsewhere, which that bound covers.
 */
#pragma once

#include "kernels/cuda/library_priv.h"
#include "kernels/cuda_work.h"
#include "kernels/nf4.h"

TESS_BEGIN_DECLS

tess_status tess_cuda_gemm(const tess_gemm_args *a, tess_stream *s);
/**
 * Choose the algorithms of a product; `a` may have views without data, then terms that could lie
 * side by side are planned both ways. Local. @return TESS_E_UNSUPPORTED the library has none
 */
TESS_MUST_CHECK tess_status tess_cuda_gemm_plan(const tess_gemm_args *a,
                                                const tess_cuda_library *library);

/** A plain matrix as rows of the compute dtype, `dst_stride` elements apart. */
typedef struct tess_gemm_expand_args {
    const void *src;   /* [rows, cols]; NULL: zeros */
    tess_dtype src_dt; /* f32 or bf16 */
    int64_t rows, cols;
    void *dst; /* [rows, cols] dt; aligned to its elements */
    int64_t dst_stride;
    tess_dtype dt; /* f32 or bf16: one rounding */
} tess_gemm_expand_args;

/** C = sum + bias [+ old C], f32 additions in that order, then one rounding. */
typedef struct tess_gemm_finish_args {
    const float *sum; /* [rows, cols]; NULL: zeros; may be C itself when that is f32 */
    int64_t sum_stride;
    const void *bias; /* [cols] or NULL */
    void *c;          /* [rows, cols] */
    int64_t c_stride;
    int64_t rows, cols;
    tess_dtype bias_dt, c_dt; /* f32 or bf16 */
    bool is_added;            /* the old C is added; only with an f32 C */
} tess_gemm_finish_args;

/** Device entry points of gemm.cu; enqueued on `s`. */
TESS_MUST_CHECK tess_status tess_cuda_gemm_expand(const tess_gemm_expand_args *a, tess_stream *s);
TESS_MUST_CHECK tess_status tess_cuda_gemm_finish(const tess_gemm_finish_args *a, tess_stream *s);

TESS_END_DECLS
