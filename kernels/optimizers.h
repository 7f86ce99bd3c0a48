/**
 * Updates of optimizers beside AdamW (adamw.h), element by element.
 *
 * All f32, IEEE, no contraction; g = grad * clip_factor first. Factors that depend on the step come
 * in as f64 from the host and are rounded once. Every call takes a part of one tensor that starts
 * at a multiple of 256 elements; no result depends on how a tensor is cut into parts.
 */
#pragma once

#include "core/exact.h"
#include "core/stream.h"
#include "core/view.h"

TESS_BEGIN_DECLS

/** What every update has. */
typedef struct tess_update_part {
    float *master;     /* [numel] f32, in place */
    const float *grad; /* [numel] f32 */
    tess_view param;   /* [numel] compute dtype, rounded copy of the result; numel 0: none */
    int64_t numel;
    float clip_factor;
} tess_update_part;

/**
 * Lion (Chen et al., Symbolic Discovery of Optimization Algorithms, 2023, algorithm 2), decay first
 * as bitsandbytes has it: p *= 1 - lr*wd; p -= lr * sign(b1 m + (1-b1) g); m = b2 m + (1-b2) g.
 */
typedef struct tess_lion_args {
    tess_update_part part;
    float *exp_avg; /* [numel] f32, in place */
    double learning_rate, beta1, beta2, weight_decay;
} tess_lion_args;

/**
 * AdamW with moments in 8 bits, by the CUDA rule of bitsandbytes
 * (kOptimizerStatic8bit2StateBlockwise; Dettmers et al., 8-bit Optimizers via Block-wise
 * Quantization, 2022).
 *
 * Blocks of 256 elements. m and v are the maps' values (signed, unsigned: nf4.h) times the block's
 * absmax; m = b1 m + (1-b1) g; v = b2 v + (1-b2) g^2; c2 = sqrt(1-b2^t); p += (-lr c2 / (1-b1^t)) *
 * m / (sqrt(v) + c2 eps); then p *= 1 - lr*wd. The new m and v over the block's largest magnitude
 * take the nearest entry, ties to the even code; a code of m whose sign is another one than m's
 * moves one towards it. A zero block: codes 127 and 0. An element whose gradient is not finite
 * keeps p and loses its moments.
 */
typedef struct tess_adamw_8bit_args {
    tess_update_part part;
    uint8_t *exp_avg, *exp_avg_sq;             /* [numel] codes, in place */
    float *exp_avg_absmax, *exp_avg_sq_absmax; /* [ceil(numel / 256)] f32, in place */
    double learning_rate, beta1, beta2, eps, weight_decay;
    int64_t step; /* t, from 1 */
} tess_adamw_8bit_args;

/**
 * Schedule-free AdamW (Defazio et al., The Road Less Scheduled, 2024), as the package schedulefree
 * orders it, with x stored and y derived: y = x + blend (z - x); v = b2 v + (1-b2) g^2; n = g /
 * (sqrt(v / (1-b2^t)) + eps) + wd y; z -= lr n; x += average (z - x). The copy is of the new y.
 */
typedef struct tess_schedule_free_args {
    tess_update_part part; /* master: x */
    float *z, *exp_avg_sq; /* [numel] f32, in place */
    double learning_rate, beta2, eps, weight_decay;
    double blend;   /* 1 - beta1 */
    double average; /* weight of this step's z in x */
    int64_t step;   /* t, from 1 */
} tess_schedule_free_args;

/**
 * First pass of Prodigy (Mishchenko and Defazio, 2023), as the package prodigyopt orders it: m = b1
 * m
 * + d (1-b1) g; v = b2 v + d^2 (1-b2) g^2; s = b3 s + s_rate g. Per block of 256 elements the fp64
 * sums, ascending, of g (start - p) and of |s| are added to exact accumulators; a block with a sum
 * that is not finite is counted instead.
 */
typedef struct tess_prodigy_sums {
    tess_exact numerator, denominator;
    int64_t nonfinite_numel; /* blocks */
} tess_prodigy_sums;

typedef struct tess_prodigy_measure_args {
    tess_update_part part;           /* the master is read, `param` is not used */
    const float *start;              /* [numel] f32, the masters before the first update */
    float *exp_avg, *exp_avg_sq, *s; /* [numel] f32, in place */
    tess_prodigy_sums *sums;         /* in and out */
    double beta1, beta2, beta3;
    double d, s_rate;
} tess_prodigy_measure_args;

/** Second pass: p -= decay * p; p -= rate * m / (sqrt(v) + eps), with rate and decay times d. */
typedef struct tess_prodigy_apply_args {
    tess_update_part part;
    const float *exp_avg, *exp_avg_sq; /* [numel] f32 */
    double rate, decay, eps;
} tess_prodigy_apply_args;

/** dst = a + weight (b - a): moving averages, points between two. */
typedef struct tess_blend_args {
    const float *a, *b; /* [numel] f32 */
    tess_view dst;      /* [numel] f32 or bf16; f32 may be `a` itself */
    double weight;
} tess_blend_args;

/** Scalars of one step, derived in fp64 and rounded once. */
typedef struct tess_lion_scalars {
    float decay, beta1, one_minus_beta1, beta2, one_minus_beta2, rate;
} tess_lion_scalars;
typedef struct tess_adamw_8bit_scalars {
    float decay, beta1, one_minus_beta1, beta2, one_minus_beta2, step_size, eps;
} tess_adamw_8bit_scalars;
typedef struct tess_schedule_free_scalars {
    float blend, beta2, one_minus_beta2, bias2, eps, decay, rate, average;
} tess_schedule_free_scalars;
typedef struct tess_prodigy_measure_scalars {
    float beta1, one_minus_beta1, beta2, one_minus_beta2, beta3, s_rate;
} tess_prodigy_measure_scalars;
typedef struct tess_prodigy_apply_scalars {
    float decay, rate, eps;
} tess_prodigy_apply_scalars;

/* Shared by all backends. Local. */
tess_prodigy_measure_scalars tess_prodigy_measure_scalars_make(const tess_prodigy_measure_args *a);
tess_prodigy_apply_scalars tess_prodigy_apply_scalars_make(const tess_prodigy_apply_args *a);
tess_lion_scalars tess_lion_scalars_make(const tess_lion_args *a);
tess_adamw_8bit_scalars tess_adamw_8bit_scalars_make(const tess_adamw_8bit_args *a);
tess_schedule_free_scalars tess_schedule_free_scalars_make(const tess_schedule_free_args *a);
/** base^exponent by squaring: the bits do not depend on a C library. Local. */
double tess_power_f64(double base, int64_t exponent);

TESS_MUST_CHECK tess_status tess_lion_check(const tess_lion_args *a);
TESS_MUST_CHECK tess_status tess_adamw_8bit_check(const tess_adamw_8bit_args *a);
TESS_MUST_CHECK tess_status tess_schedule_free_check(const tess_schedule_free_args *a);
TESS_MUST_CHECK tess_status tess_prodigy_measure_check(const tess_prodigy_measure_args *a);
TESS_MUST_CHECK tess_status tess_prodigy_apply_check(const tess_prodigy_apply_args *a);
TESS_MUST_CHECK tess_status tess_blend_check(const tess_blend_args *a);

TESS_END_DECLS
