/**
 * Muon (Jordan et al., 2024, kellerjordan.github.io/posts/muon; torch.optim.Muon): momentum, whose
 * matrix is then made nearly orthogonal by five steps of a quintic Newton-Schulz iteration.
 *
 * m = beta m + (1-beta) g and u = beta m + (1-beta) g element by element (Nesterov); on whole
 * matrices X = u / |u| and, with A = X X^T, X = a X + (b A + c A^2) X, all in f32 (the source
 * computes in bf16); where a matrix has more rows than columns A = X^T X stands on the right. Then
 * p = p - decay p - rate X.
 */
#pragma once

#include "kernels/optimizers.h"

TESS_BEGIN_DECLS

typedef struct tess_muon_momentum_args {
    float *exp_avg; /* [numel] f32, in place */
    float *grad;    /* [numel] f32, replaced by u */
    int64_t numel;
    float clip_factor;
    double beta;
} tess_muon_momentum_args;

/** p = p - decay p - rate x */
typedef struct tess_muon_apply_args {
    tess_update_part part; /* `grad`: the orthogonal matrix's part; the clip factor is not used */
    double rate, decay;
} tess_muon_apply_args;

/** dst = factor * x */
typedef struct tess_scale_args {
    const float *x; /* [numel] f32 */
    float *dst;     /* [numel] f32, may be x */
    int64_t numel;
    float factor;
} tess_scale_args;

TESS_MUST_CHECK tess_status tess_muon_momentum_check(const tess_muon_momentum_args *a);
TESS_MUST_CHECK tess_status tess_muon_apply_check(const tess_muon_apply_args *a);
TESS_MUST_CHECK tess_status tess_scale_check(const tess_scale_args *a);

TESS_END_DECLS
