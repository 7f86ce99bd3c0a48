/**
 * Activations of one argument; f32 inside, one rounding.
 *
 * GELU in its tanh form: x / 2 (1 + tanh u) = x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3).
 * SiLU: x sigmoid(x).
 */
#pragma once

#include "core/stream.h"
#include "core/view.h"

TESS_BEGIN_DECLS

typedef enum tess_activation { TESS_ACTIVATION_GELU_TANH, TESS_ACTIVATION_SILU } tess_activation;

/** Rows of `dim` elements, the strides between them in elements, 0: contiguous. */
typedef struct tess_activation_args {
    tess_activation kind;
    int64_t row_numel, dim;
    tess_view x; /* [R, dim] dt, contiguous */
    tess_view y; /* dt; may be x itself where it is contiguous */
    int64_t y_stride;
} tess_activation_args;

typedef struct tess_activation_backward_args {
    tess_activation kind;
    int64_t row_numel, dim;
    tess_view x;   /* [R, dim] dt of the forward, contiguous */
    tess_view d_y; /* dt */
    int64_t d_y_stride;
    tess_view d_x; /* dt out; may be d_y itself */
    int64_t d_x_stride;
} tess_activation_backward_args;

TESS_MUST_CHECK tess_status tess_activation_check(const tess_activation_args *a);
TESS_MUST_CHECK tess_status tess_activation_backward_check(const tess_activation_backward_args *a);

TESS_END_DECLS
