/**
 * Cross-entropy of a chunk of rows: losses in fp64, gradient in place over the logits.
 *
 * loss[r] = logsumexp(z_r) - z_r[label] with f32 exponentials and fp64 sums in a fixed order; rows
 * with label < 0 give 0. d z_r = (softmax(z_r) - onehot(label)) * grad_scale, rounded to the output
 * dtype; masked rows give 0.
 */
#pragma once

#include "core/stream.h"
#include "core/view.h"

TESS_BEGIN_DECLS

typedef struct tess_cross_entropy_args {
    tess_view logits; /* [R, V] f32 */
    int64_t row_numel, vocab_numel;
    const int32_t *labels; /* [R], -1: masked */
    double *row_loss;      /* [R] f64 out */
    float grad_scale;      /* 1/T; ignored without d_logits */
    tess_view d_logits;    /* [R, V] dt (may alias logits when f32); numel 0: loss only */
} tess_cross_entropy_args;

TESS_MUST_CHECK tess_status tess_cross_entropy_check(const tess_cross_entropy_args *a);

TESS_END_DECLS
