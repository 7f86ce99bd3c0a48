/**
 * LayerNorm without parameters, modulated per sample, and gates: what surrounds the layers of a
 * block whose shifts, scales and gates come from a conditioning vector.
 *
 * B samples of N rows of D elements. n = (x - mean) / sqrt(var + eps), var biased; f32 inside, one
 * rounding of each result. Sums over a row run in 16 lanes; sums over the rows of a sample run
 * ascending inside 16 fixed chunks, chunks ascending. Row t of sample b depends on that sample
 * alone.
 *
 * @source Peebles and Xie, arXiv 2212.09748 (adaLN-Zero); diffusers normalization.py
 */
#pragma once

#include "core/stream.h"
#include "core/view.h"

TESS_BEGIN_DECLS

/** Rows of B samples inside a larger array: row t of sample b begins at element b * sample_stride +
 * t * row_stride of `view`. */
typedef struct tess_sample_rows {
    tess_view view;
    int64_t sample_stride;
    int64_t row_stride; /* at least D */
} tess_sample_rows;

/** B, N and D of a call. */
typedef struct tess_sample_shape {
    int64_t sample_numel, row_numel, dim;
} tess_sample_shape;

/** A vector [D] per sample; sample b's begins at element b * factor_stride of the call. */
typedef tess_view tess_factor;

/** y = n (1 + scale) + shift. */
typedef struct tess_modulate_args {
    tess_sample_shape shape;
    tess_sample_rows x;       /* dt */
    tess_factor shift, scale; /* dt */
    int64_t factor_stride;
    float eps;
    tess_sample_rows y; /* dt; must not overlap x */
    float *mean, *inv;  /* [B, N] f32 out, kept for backward: inv = 1 / sqrt(var + eps) */
} tess_modulate_args;

typedef struct tess_modulate_backward_args {
    tess_sample_shape shape;
    tess_sample_rows x; /* of the forward */
    tess_factor scale;
    int64_t factor_stride;   /* of scale, d_shift and d_scale */
    const float *mean, *inv; /* of the forward */
    tess_sample_rows d_y;
    tess_sample_rows residual;    /* added to d_x before its rounding; numel 0: none */
    tess_sample_rows d_x;         /* out, numel 0: not wanted; may be residual itself */
    tess_factor d_shift, d_scale; /* out: sums of d_y and of d_y n; numel 0: not wanted (both) */
    float *work; /* [B, 16, 2, D] f32 where they are: partial sums over fixed row chunks */
} tess_modulate_backward_args;

/** y = x + gate f. */
typedef struct tess_gate_args {
    tess_sample_shape shape;
    tess_sample_rows x, f;
    tess_factor gate;
    int64_t factor_stride;
    tess_sample_rows y; /* may be x itself */
} tess_gate_args;

/** d_f = gate d_y; d_gate = sum of d_y f. The gradient of x is d_y. */
typedef struct tess_gate_backward_args {
    tess_sample_shape shape;
    tess_sample_rows d_y;
    tess_factor gate;
    int64_t factor_stride; /* of gate and d_gate */
    tess_sample_rows d_f;  /* out; must not overlap d_y */
    tess_sample_rows f;    /* read for d_gate alone */
    tess_factor d_gate;    /* out, numel 0: not wanted */
    float *work;           /* [B, 16, D] f32 where it is */
} tess_gate_backward_args;

TESS_MUST_CHECK tess_status tess_modulate_check(const tess_modulate_args *a);
TESS_MUST_CHECK tess_status tess_modulate_backward_check(const tess_modulate_backward_args *a);
TESS_MUST_CHECK tess_status tess_gate_check(const tess_gate_args *a);
TESS_MUST_CHECK tess_status tess_gate_backward_check(const tess_gate_backward_args *a);

/** Rows of B samples one after the other, `row_stride` apart. */
static inline tess_sample_rows tess_sample_rows_of(tess_view view, int64_t row_numel,
                                                   int64_t row_stride)
{
    const tess_sample_rows rows = {view, row_numel * row_stride, row_stride};
    return rows;
}

TESS_END_DECLS
