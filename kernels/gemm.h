/**
 * Matrix products, with the weight in any base format, dequantized straight into the packed layout.
 *
 * C = sum over terms t (in order) of scale_t * A_t op B_t, accumulated in fp32, plus bias, rounded
 * once.
 *   TESS_GEMM_NT  C[M,N] = A[M,K] B[N,K]^T     forward: y = x W^T; a LoRA branch is a second term
 *   TESS_GEMM_NN  C[M,N] = A[M,K] B[K,N]       input gradient: dx = dy W
 *   TESS_GEMM_TN  C[M,N] = A[K,M]^T B[K,N]     weight gradient: dW = dy^T x (K = tokens)
 *
 * Order: K ascending inside a term, terms in list order; threads split M or N, never K. A row of C
 * (NT, NN) depends only on that row of the A's and on the B's, whatever M is.
 *
 * Rounding: the compute dtype is that of A (f32 or bf16, the same in all terms). B enters in it:
 * NF4 is f32(table * absmax), rounded to bf16 where that is the compute dtype; a plain weight of
 * the other dtype is widened exactly (bf16 under f32) or rounded once (f32 under bf16). Sums go on
 * from term to term; a term with scale != 1 has sums of its own, added as sum + f32(scale * own).
 * Then + bias, then (accumulate) old C + that, each one f32 addition, then one rounding to the
 * dtype of C.
 */
#pragma once

#include "core/codec.h"
#include "core/rng.h"
#include "core/stream.h"
#include "core/view.h"

TESS_BEGIN_DECLS

typedef enum tess_gemm_kind { TESS_GEMM_NT, TESS_GEMM_NN, TESS_GEMM_TN } tess_gemm_kind;

enum { TESS_GEMM_TERM_MAX = 8 };

/** A stored matrix [rows, cols], row-major before encoding; `part` as in tess_codec_parts(). */
typedef struct tess_matrix {
    tess_codec codec;
    int64_t rows, cols;
    int64_t stride; /* plain formats: elements between rows, 0: contiguous */
    const void *part[TESS_CODEC_PART_MAX];
} tess_matrix;

/** Of the elements of a matrix in a plain format. */
static inline tess_dtype tess_matrix_dtype(const tess_matrix *m)
{
    return m->codec.format == TESS_FORMAT_BF16 ? TESS_BF16 : TESS_F32;
}

typedef struct tess_gemm_term {
    tess_view
        a; /* NT, NN: [M, K]; TN: [K, M]; compute dtype, rows contiguous unless a_stride is set */
    int64_t a_stride; /* elements between rows of A, 0: contiguous */
    tess_matrix b;    /* NT: [N, K]; NN: [K, N]; TN: [K, N] plain, of the compute dtype */
    int64_t k;        /* length of the sum of this term */
    float scale; /* multiplies this term's product; 1 for none. Applied in fp32 to A op B of this
                    term */
} tess_gemm_term;

typedef struct tess_gemm_args {
    tess_gemm_kind kind;
    int64_t m, n;
    int term_numel;
    tess_gemm_term term[TESS_GEMM_TERM_MAX];
    const tess_matrix *bias; /* plain [1, N] f32 or bf16, or NULL */
    tess_view c;             /* [M, N] f32 or the compute dtype */
    int64_t c_stride;        /* elements between rows of C, 0: contiguous */
    bool accumulate;         /* C += instead of C =; only when C is f32 */
    tess_view work;          /* U8_OPAQUE, at least gemm_work_nbytes() */
} tess_gemm_args;

/** Shapes, dtypes and sizes agree. Shared by all backends. Local. @return TESS_E_ARG; TESS_E_DTYPE;
 * TESS_E_UNSUPPORTED */
TESS_MUST_CHECK tess_status tess_gemm_check(const tess_gemm_args *a);

TESS_END_DECLS
