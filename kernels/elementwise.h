/** Element-wise ops: SwiGLU, ReLU, sums, bias, dropout, casts. */
#pragma once

#include "core/rng.h"
#include "core/stream.h"
#include "core/view.h"

TESS_BEGIN_DECLS

/** out = silu(gate) * up; silu(g) = g / (1 + exp(-g)); f32 inside, one rounding. */
typedef struct tess_swiglu_args {
    tess_view gate, up; /* [R, I] dt */
    tess_view out;      /* [R, I] dt; may alias gate or up when it is contiguous */
    int64_t dim;        /* I; needed with a stride only */
    int64_t out_stride; /* elements between rows of out, 0: contiguous */
} tess_swiglu_args;

typedef struct tess_swiglu_backward_args {
    tess_view gate, up, d_out; /* [R, I] dt */
    tess_view d_gate, d_up;    /* [R, I] dt; may alias gate and up when they are contiguous */
    int64_t dim;               /* I; needed with a stride only */
    int64_t d_stride;          /* elements between rows of d_gate and of d_up, 0: contiguous */
} tess_swiglu_backward_args;

/**
 * out[i] = 0 where gate[i] <= 0, else x[i]. Forward: gate = x, y = max(x, 0), NaN stays. Backward:
 * x = gradient of y, gate = y.
 */
typedef struct tess_relu_args {
    tess_view x;    /* [numel] dt */
    tess_view gate; /* [numel] dt */
    tess_view out;  /* [numel] dt; may alias x or gate */
} tess_relu_args;

/** out = a + b in f32, one rounding. */
typedef struct tess_add_args {
    tess_view a, b; /* [numel] dt */
    tess_view out;  /* may alias a or b */
} tess_add_args;

/** x[r, :] += bias in f32, one rounding; in place. */
typedef struct tess_add_bias_args {
    tess_view x;    /* [R, N] dt */
    tess_view bias; /* [N] f32 or bf16 */
} tess_add_bias_args;

/** out[n] (+)= sum over rows of x[r, n]: rows ascending inside 16 fixed chunks, chunks ascending.
 */
typedef struct tess_sum_rows_args {
    tess_view x; /* [R, N] dt */
    int64_t row_numel, dim;
    float *out;  /* [N] f32, += */
    float *work; /* [16 * N] f32 */
} tess_sum_rows_args;

/**
 * out = keep ? x / (1 - p) : 0, keep decided by Philox word of element `first_idx + i` of `rng`:
 * word >= p * 2^32. With `add` the result is added: out = add + ..., in f32, one rounding (backward
 * of a branch).
 */
typedef struct tess_dropout_args {
    tess_view x;   /* [numel] f32 or dt */
    tess_view add; /* [numel] f32 or dt; numel 0: none */
    tess_view out; /* [numel] dt or f32; may alias x or add */
    float p;       /* 0 <= p < 1 */
    tess_rng rng;
    int64_t first_idx;
} tess_dropout_args;

/** f32 <-> bf16 (nearest even, NaN -> 0x7fc0 | sign), or a copy. The one place where dtypes change
 * by request. */
typedef struct tess_cast_args {
    tess_view src, dst; /* [numel]; must not overlap */
} tess_cast_args;

TESS_HD static inline uint16_t tess_bf16_from_f32(float x)
{
    union {
        float f;
        uint32_t u;
    } v = {x};
    if ((v.u & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)(0x7fc0u | (v.u >> 16 & 0x8000u));
    return (uint16_t)((v.u + 0x7fffu + (v.u >> 16 & 1u)) >> 16);
}

TESS_HD static inline float tess_bf16_to_f32(uint16_t x)
{
    union {
        uint32_t u;
        float f;
    } v = {(uint32_t)x << 16};
    return v.f;
}

TESS_MUST_CHECK tess_status tess_swiglu_check(const tess_swiglu_args *a);
TESS_MUST_CHECK tess_status tess_swiglu_backward_check(const tess_swiglu_backward_args *a);
TESS_MUST_CHECK tess_status tess_relu_check(const tess_relu_args *a);
TESS_MUST_CHECK tess_status tess_add_check(const tess_add_args *a);
TESS_MUST_CHECK tess_status tess_add_bias_check(const tess_add_bias_args *a);
TESS_MUST_CHECK tess_status tess_sum_rows_check(const tess_sum_rows_args *a);
TESS_MUST_CHECK tess_status tess_dropout_check(const tess_dropout_args *a);
TESS_MUST_CHECK tess_status tess_cast_check(const tess_cast_args *a);

TESS_END_DECLS
