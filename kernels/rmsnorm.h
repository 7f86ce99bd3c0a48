/**
 * RMSNorm: n = x * rsqrt(mean(x^2) + eps) in f32, rounded to dt; y = n * w in f32 of the rounded n,
 * rounded to dt. With a residual, `sum` = x + residual in f32, rounded to dt, takes the place of x.
 *
 * rsqrt is 1/sqrt in IEEE f32; the mean adds squares in a fixed order. Rows may be heads (q/k norm:
 * numel_row = head_dim).
 */
#pragma once

#include "core/stream.h"
#include "core/view.h"

TESS_BEGIN_DECLS

typedef struct tess_rmsnorm_args {
    tess_view x;       /* [R, D] dt */
    tess_view w;       /* [D] f32 or bf16 */
    int64_t row_numel; /* R */
    int64_t dim;       /* D */
    float eps;
    tess_view y;        /* [R, D] dt; may alias x when it is contiguous */
    float *inv_rms;     /* [R] f32 out, kept for backward; NULL: not wanted */
    int64_t y_stride;   /* elements between rows of y, 0: contiguous */
    tess_view residual; /* [R, D] dt; numel 0: none */
    tess_view sum;      /* [R, D] dt out, with a residual; may alias x or residual */
} tess_rmsnorm_args;

typedef struct tess_rmsnorm_backward_args {
    tess_view x;          /* [R, D] dt, input of the forward */
    tess_view w;          /* [D] */
    const float *inv_rms; /* [R] from the forward */
    tess_view d_y;        /* [R, D] dt */
    int64_t row_numel, dim;
    tess_view residual; /* [R, D] dt added to d_x before its one rounding; numel 0: none */
    tess_view d_x;      /* [R, D] dt; may alias d_y or residual */
    float *d_w;         /* [D] f32, += sum over rows ascending of d_y * n; NULL: frozen */
    float *work;        /* [D * 16] f32 when d_w is given: partial sums over fixed row chunks */
} tess_rmsnorm_backward_args;

TESS_MUST_CHECK tess_status tess_rmsnorm_check(const tess_rmsnorm_args *a);
TESS_MUST_CHECK tess_status tess_rmsnorm_backward_check(const tess_rmsnorm_backward_args *a);

TESS_END_DECLS
