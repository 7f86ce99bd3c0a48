/**
 * DoRA (Liu et al., arXiv 2402.09353, section 4.3): a linear whose rows W' = W + s B A have learned
 * lengths. y = g (x W'^T) + bias with g = m / n per output, n the length of a row of W', and no
 * gradient through n. A row of length 0 has g = 0.
 */
#pragma once

#include "core/stream.h"
#include "core/view.h"

TESS_BEGIN_DECLS

/** norm[r] = root of the sum of squares of row r, f32, rounded to `dt` and widened again: at the
 * start magnitude and norm are the same number. 16 lanes, then a tree, as in rmsnorm. */
typedef struct tess_row_norm_args {
    const float *x; /* [R, N] f32 */
    int64_t row_numel, dim;
    tess_dtype dt;
    float *norm; /* [R] f32 */
} tess_row_norm_args;

/** y = (y +) g z + bias in f32, one rounding; g = m / n in f32. */
typedef struct tess_dora_args {
    tess_view z;         /* [R, N] dt: products with W' */
    tess_view magnitude; /* [N] dt: m */
    const float *norm;   /* [N] f32: n */
    tess_view bias;      /* [N] f32 or bf16; numel 0: none */
    int64_t row_numel, dim;
    bool accumulate;  /* old y + that, one f32 addition more before the rounding */
    tess_view y;      /* [R, N] f32 or dt */
    int64_t y_stride; /* elements between rows of y, 0: contiguous */
} tess_dora_args;

/** d_z = g d_y; d_direct = (g - 1) d_y; d_magnitude += (sum over rows of d_y z) / n. Rows ascending
 * inside 16 fixed chunks, chunks ascending. */
typedef struct tess_dora_backward_args {
    tess_view d_y;       /* [R, N] dt */
    int64_t d_y_stride;  /* elements between rows of d_y, 0: contiguous */
    tess_view z;         /* [R, N] dt */
    tess_view magnitude; /* [N] dt */
    const float *norm;   /* [N] f32 */
    int64_t row_numel, dim;
    tess_view d_z;      /* [R, N] dt; may take the place of d_y */
    int64_t d_z_stride; /* elements between rows of d_z, 0: contiguous */
    tess_view d_direct; /* [R, N] dt; numel 0: not wanted */
    float *d_magnitude; /* [N] f32, += */
    float *work;        /* [16 * N] f32 */
} tess_dora_backward_args;

TESS_MUST_CHECK tess_status tess_row_norm_check(const tess_row_norm_args *a);
TESS_MUST_CHECK tess_status tess_dora_check(const tess_dora_args *a);
TESS_MUST_CHECK tess_status tess_dora_backward_check(const tess_dora_backward_args *a);

TESS_END_DECLS
