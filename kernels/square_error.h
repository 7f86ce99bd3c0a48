/**
 * Squared error with a weight per row: loss[r] = weight[r] sum_c (y - target)^2. The difference is
 * f32, squares and their sum (c ascending) are f64.
 */
#pragma once

#include "core/stream.h"
#include "core/view.h"

TESS_BEGIN_DECLS

typedef struct tess_square_error_args {
    int64_t row_numel, dim;
    tess_view y;         /* [R, C] f32 */
    const float *target; /* [R, C] f32 */
    const float *weight; /* [R] f32 */
    double *row_loss;    /* [R] f64 out */
    float grad_scale;
    tess_view d_y; /* [R, C] f32 or bf16 out: 2 grad_scale weight (y - target), one rounding; numel
                      0: not wanted; may be y itself */
} tess_square_error_args;

TESS_MUST_CHECK tess_status tess_square_error_check(const tess_square_error_args *a);

TESS_END_DECLS
