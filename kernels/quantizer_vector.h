/**
 * Vector quantizers on one micro-batch: rows at the edges, losses, gradients. The nearest code is
 * found elsewhere (nearest.h); here every vector has its code already.
 *
 * Three typed edges: activations come in as f32 or bf16 (`x`), the core is f32, activations go out
 * as f32 or bf16 (`out`, rounded once). Inside: f32 IEEE without contraction; sums over a row in
 * fp64, element j in lane j % 16, lanes added in the tree 8, 4, 2, 1. Rows of views may be a stride
 * apart, so that heads and groups are columns of one array. A masked vector has code
 * TESS_NO_CODE.
 *
 * Formulas: vector-quantize-pytorch 1.31 (vector_quantize_pytorch.py) where no other source is
 * named. Whatever the estimator of the gradient, the output is the code row itself: training and
 * decoding then agree to the bit, and so do the residuals of a stack.
 */
#pragma once

#include "core/rng.h"
#include "core/stream.h"
#include "core/view.h"
#include "kernels/nearest.h"

TESS_BEGIN_DECLS

/** Norms below this count as this one where vectors become unit vectors. */
#define TESS_UNIT_LEAST 1e-6f

/** Rows of codes, and which one each vector has: q_i = codes[code[i]]. */
typedef struct tess_coded_rows {
    const float *codes;   /* [code_numel, dim] f32 */
    const uint32_t *code; /* [row_numel] below code_numel or TESS_NO_CODE; NULL: q_i = codes[i] */
    int64_t row_numel, dim, code_numel;
} tess_coded_rows;

/**
 * core = x widened; with a `length`: core = x (length / max(|x|, least)), |x| in fp64, the factor
 * rounded to f32.
 */
typedef struct tess_quantizer_enter_args {
    tess_view x; /* [row_numel, dim] f32 or bf16 */
    int64_t row_numel, dim;
    int64_t x_stride;    /* elements between rows of x, 0: contiguous */
    float length, least; /* length 0: rows as they are */
    float *core;         /* [row_numel, dim] f32 out; not x */
    float *norm;         /* [row_numel] f32 out: |x|; needed with a length */
} tess_quantizer_enter_args;

/** d_x = d_core, or with a length, u = core / length: (d_core - (d_core . u) u) (length / |x|);
 * d_core (length / least) where |x| <= least. */
typedef struct tess_quantizer_enter_backward_args {
    const float *core, *norm; /* as of the forward; not read without a length */
    const float *d_core;      /* [row_numel, dim] f32 */
    int64_t row_numel, dim;
    int64_t d_stride; /* elements between rows of d_x, 0: contiguous */
    float length, least;
    tess_view d_x;   /* [row_numel, dim] f32 or bf16 out; not d_core */
    bool accumulate; /* d_x += */
} tess_quantizer_enter_backward_args;

/** y = (x - mean) / sqrt(var + eps), mean and biased variance of the row in fp64, the difference
 * and the product with the reciprocal root in f32: what a fixed random projection takes. No
 * gradient: nothing before it learns. */
typedef struct tess_quantizer_layer_norm_args {
    tess_view x; /* [row_numel, dim] f32 or bf16, contiguous */
    int64_t row_numel, dim;
    double eps;  /* 1e-5 */
    tess_view y; /* [row_numel, dim] dtype of x; may be x */
} tess_quantizer_layer_norm_args;

/** out_i = q_i; masked: row i of `masked`, or 0 where there is none. */
typedef struct tess_quantizer_gather_args {
    tess_coded_rows rows;
    tess_view masked;   /* as `out`: rows of masked vectors; numel 0: zeros */
    int64_t out_stride; /* elements between rows of out and of masked, 0: contiguous */
    tess_view out;      /* [row_numel, dim] f32 or bf16; codes itself where each row is its own */
} tess_quantizer_gather_args;

/** code = TESS_NO_CODE of vectors that are not valid, in every row of codes. */
typedef struct tess_quantizer_mask_args {
    const uint8_t *valid; /* [row_numel] 0: masked */
    int64_t row_numel, index_numel;
    uint32_t *code; /* [index_numel, row_numel] in place */
} tess_quantizer_mask_args;

/** One level of a residual stack: next = r - q, sum += q; a masked vector has q = 0. */
typedef struct tess_quantizer_residual_args {
    tess_coded_rows rows;
    const float *r; /* [row_numel, dim] f32; not read without `next` */
    float *next;    /* [row_numel, dim] f32, may be r; NULL: not wanted */
    float *sum;     /* [row_numel, dim] f32, in place; NULL: not wanted */
} tess_quantizer_residual_args;

/** out_i = sum_j (x_ij - q_ij)^2: differences in f32, squares in fp64; 0 for a masked vector. Their
 * sum in row order (reduce.h: `sum`) over valid elements is the loss of commitment and of codes. */
typedef struct tess_quantizer_row_loss_args {
    tess_coded_rows rows;
    const float *x; /* [row_numel, dim] f32 */
    double *out;    /* [row_numel] f64 */
} tess_quantizer_row_loss_args;

/** What the gradient g of an output becomes for the input. */
typedef enum tess_estimator {
    TESS_ESTIMATOR_NONE,     /* 0 */
    TESS_ESTIMATOR_STRAIGHT, /* g */
    /* Fifty et al., Restructuring Vector Quantization with the Rotation Trick, 2024: l (g - 2 (g.w)
     * w + 2 (g.v) u) with u = x / |x|, v = q / |q|, w = (u + v) / |u + v|, l = |q| / |x|; norms
     * below TESS_UNIT_LEAST count as that one. */
    TESS_ESTIMATOR_ROTATION,
} tess_estimator;

/**
 * d_x = E(g) + keep * d_next + commitment (x - q), where g = d_out - keep * d_next.
 *
 * d_next is the gradient that arrives at the residual x - q of the next level: `keep` 1 where that
 * subtraction is differentiated, absent where it is not. A masked vector gets 0, or its d_out where
 * its output is its input.
 */
typedef struct tess_quantizer_backward_args {
    tess_coded_rows rows;
    const float *x;      /* [row_numel, dim] f32, core rows of the forward */
    tess_view d_out;     /* [row_numel, dim] f32 or bf16; numel 0: zeros */
    int64_t d_stride;    /* elements between rows of d_out, 0: contiguous */
    const float *d_next; /* [row_numel, dim] f32; NULL: none */
    float keep;
    tess_estimator estimator;
    float commitment; /* 2 w / (valid elements of the step) */
    bool is_masked_input;
    bool accumulate; /* d_x += */
    float *d_x;      /* [row_numel, dim] f32; may be d_next */
} tess_quantizer_backward_args;

/**
 * Directional reparameterization (DiVeQ): out = x + r / |r| |q - x| with r = q - x + spread *
 * noise, the direction a constant; |r| at least TESS_UNIT_LEAST. The one estimator whose output is
 * not the code: it learns codes through the length, and needs another noise in every step.
 */
typedef struct tess_quantizer_directed_args {
    tess_coded_rows rows;
    const float *x;     /* [row_numel, dim] f32, core rows */
    const float *noise; /* [row_numel, dim] f32, normal */
    float spread;       /* sqrt of the variance, published as 5e-3 */
    int64_t out_stride;
    tess_view out; /* [row_numel, dim] f32 or bf16; 0 where masked */
} tess_quantizer_directed_args;

/** d_q = (d_out . r / |r|) (q - x) / |q - x|, d_x (+)= d_out - d_q; 0 where q is x or masked. */
typedef struct tess_quantizer_directed_backward_args {
    tess_coded_rows rows;
    const float *x, *noise; /* of the forward */
    float spread;
    int64_t d_stride;
    tess_view d_out; /* [row_numel, dim] f32 or bf16 */
    float *d_x;      /* [row_numel, dim] f32 */
    float *d_q;      /* [row_numel, dim] f32 out */
    bool accumulate; /* d_x += */
} tess_quantizer_directed_backward_args;

/** d_codes[code_i] += coefficient (q_i - x_i), or d_q_i where it is given, i ascending: gradient of
 * the codes of a learnable codebook, whose coefficient is that of the commitment. */
typedef struct tess_quantizer_code_gradient_args {
    tess_coded_rows rows;
    const float *d_q; /* [row_numel, dim] f32; NULL: from x */
    const float *x;   /* [row_numel, dim] f32 */
    float coefficient;
    float *d_codes; /* [code_numel, dim] f32, in place */
} tess_quantizer_code_gradient_args;

/**
 * Orthogonal regularization over m codes, unit rows u: sum_ij (u_i . u_j)^2 / m^2 - 1 / m
 * = |G|^2 / m^2 - 1 / m with G = sum_i u_i u_i^T: no m x m matrix. G is exact: every product
 * is rounded to a multiple of 2^-exponent, so that any order of rows and ranks gives the same.
 */
typedef struct tess_quantizer_gram_args {
    const float *codes; /* [code_numel, dim] f32 */
    const uint8_t *use; /* [code_numel] not 0: takes part; NULL: all */
    int64_t code_numel, dim;
    int exponent;  /* tess_fixed_exponent(1, m), codebook.h: at most 50 */
    int64_t *gram; /* [dim, dim] in place, multiples of 2^-exponent */
} tess_quantizer_gram_args;

/** Gradient 4 G u / m^2 through the norm, times `weight`, in fp64, added to d_codes; the loss from
 * the whole gram in ascending order. */
typedef struct tess_quantizer_orthogonal_args {
    const float *codes;  /* [code_numel, dim] f32 */
    const uint8_t *use;  /* as for the gram */
    const int64_t *gram; /* [dim, dim] of all m codes */
    int64_t code_numel, dim;
    int64_t used_numel; /* m */
    int exponent;
    double weight;
    double *work;   /* tess_orthogonal_work_numel() f64, with d_codes */
    float *d_codes; /* [code_numel, dim] f32, in place; NULL: not wanted */
    double *loss;   /* [1] f64 out, without the weight; NULL: not wanted */
} tess_quantizer_orthogonal_args;

/**
 * Codes drawn by their scores, argmax of s / T + g with g = -ln(-ln u): the one op that visits
 * every code. s = -sqrt(max(|x - c|^2, 1e-8)) or x . c, in fp64 with elements ascending, rounded to
 * f32; logarithms of numbers below 1e-20 are of that one. The key is tess_key_make(-(s / T + g),
 * code), so that the least key of several calls, and of ranks with a part of the codes, wins.
 */
typedef struct tess_quantizer_sample_args {
    const float *x;     /* [row_numel, dim] f32 */
    const float *codes; /* [code_numel, dim] f32: codes first_code_idx ... of all_numel */
    int64_t row_numel, dim, code_numel;
    int64_t first_row_idx; /* global number of row 0 */
    int64_t first_code_idx, all_numel;
    double temperature; /* above 0 */
    bool is_cosine;
    tess_rng rng;         /* element (global row) * roundup(all_numel, 4) + code */
    const float *uniform; /* [row_numel, code_numel] draws in [0, 1) instead of the rng's; NULL */
    bool is_first;        /* there are no keys yet: `key` is written */
    uint64_t *key;        /* [row_numel] in place: the less of it and the new one */
} tess_quantizer_sample_args;

/** f64 elements of the workspace of `orthogonal` with this many threads. Local. */
int64_t tess_orthogonal_work_numel(int64_t dim, int thread_numel);

TESS_MUST_CHECK tess_status tess_coded_rows_check(const char *op, const tess_coded_rows *rows);
TESS_MUST_CHECK tess_status tess_quantizer_enter_check(const tess_quantizer_enter_args *a);
TESS_MUST_CHECK tess_status
tess_quantizer_enter_backward_check(const tess_quantizer_enter_backward_args *a);
TESS_MUST_CHECK tess_status
tess_quantizer_layer_norm_check(const tess_quantizer_layer_norm_args *a);
TESS_MUST_CHECK tess_status tess_quantizer_gather_check(const tess_quantizer_gather_args *a);
TESS_MUST_CHECK tess_status tess_quantizer_mask_check(const tess_quantizer_mask_args *a);
TESS_MUST_CHECK tess_status tess_quantizer_residual_check(const tess_quantizer_residual_args *a);
TESS_MUST_CHECK tess_status tess_quantizer_row_loss_check(const tess_quantizer_row_loss_args *a);
TESS_MUST_CHECK tess_status tess_quantizer_backward_check(const tess_quantizer_backward_args *a);
TESS_MUST_CHECK tess_status tess_quantizer_directed_check(const tess_quantizer_directed_args *a);
TESS_MUST_CHECK tess_status
tess_quantizer_directed_backward_check(const tess_quantizer_directed_backward_args *a);
TESS_MUST_CHECK tess_status
tess_quantizer_code_gradient_check(const tess_quantizer_code_gradient_args *a);
TESS_MUST_CHECK tess_status tess_quantizer_gram_check(const tess_quantizer_gram_args *a);
TESS_MUST_CHECK tess_status
tess_quantizer_orthogonal_check(const tess_quantizer_orthogonal_args *a);
TESS_MUST_CHECK tess_status tess_quantizer_sample_check(const tess_quantizer_sample_args *a);

TESS_END_DECLS
