/**
 * AdamW (Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019, algorithm 2), as
 * PyTorch orders it: p *= 1 - lr*wd; m = b1 m + (1-b1) g; v = b2 v + (1-b2) g^2; p -= lr/(1-b1^t) *
 * m / (sqrt(v/(1-b2^t)) + eps).
 *
 * All f32, IEEE, no contraction; g = grad * clip_factor first. The bias corrections come in as f64
 * from the host.
 */
#pragma once

#include "core/stream.h"
#include "core/view.h"

TESS_BEGIN_DECLS

typedef struct tess_adamw_args {
    float *master;     /* [numel] f32, in place */
    float *exp_avg;    /* [numel] f32, in place */
    float *exp_avg_sq; /* [numel] f32, in place */
    const float *grad; /* [numel] f32 */
    tess_view param;   /* [numel] compute dtype, rounded copy of the new master; numel 0: none */
    int64_t numel;
    float clip_factor;
    double learning_rate, beta1, beta2, eps, weight_decay;
    int64_t step; /* t, from 1 */
} tess_adamw_args;

/** Scalars of one step, derived in fp64 and rounded once. */
typedef struct tess_adamw_scalars {
    float decay, beta1, one_minus_beta1, beta2, one_minus_beta2;
    float step_size, bias2, eps;
} tess_adamw_scalars;

/** Shared by all backends. Local. */
tess_adamw_scalars tess_adamw_scalars_make(const tess_adamw_args *a);

TESS_MUST_CHECK tess_status tess_adamw_check(const tess_adamw_args *a);

TESS_END_DECLS
