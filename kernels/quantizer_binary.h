/**
 * Quantizers whose code is a sign per dimension: lookup-free quantization (Yu et al., Language
 * Model Beats Diffusion, 2023) and binary spherical quantization (Zhao et al., 2024). q_j =
 * magnitude where x_j > 0, else -magnitude (zero is negative); spherical: rows enter with a length
 * (quantizer_vector.h) and the magnitude is that length / sqrt(dim).
 *
 * Entropies, in nats, of p_i(c) = softmax over the 2^D codes c of 2 beta x_i . c (beta: inverse
 * temperature), which is the product of D coins: coin j of vector i is positive with probability
 * sigma(t_ij), t_ij = 4 beta magnitude x_ij. Nothing of n x 2^D elements exists.
 *
 * [Note: the batch entropy at any number of ranks] With N vectors in the step, pbar = sum_i p_i / N
 * over all ranks and Hc = -sum_c pbar ln max(pbar, least). Each micro-batch adds its p_i into
 * integers, multiples of 2^-exponent, rounded once per micro-batch and code; those sums are added
 * over micro-batches and ranks in any order. The loss comes from the whole sum; its gradient by p_i
 * is G_c / N on every rank, G_c = -(ln pbar + 1), or -ln least where pbar < least. So each
 * micro-batch forms its own vectors' gradients from the whole pbar, parameter gradients are summed
 * as ever, and nothing is divided by the number of ranks.
 *
 * Probabilities are formed in fp64; sums over vectors run in row order, sums over codes ascending.
 */
#pragma once

#include "core/stream.h"
#include "core/view.h"

TESS_BEGIN_DECLS

enum {
    TESS_SIGN_DIM_MAX = 32,
    TESS_ENTROPY_DIM_MAX = 18,  /* 2^18 codes: pbar holds 2 MiB; more bits go in groups */
    TESS_ENTROPY_ROW_NUMEL = 32 /* vectors at a time in the workspace of pbar */
};

/** The one whose bit is the most significant in an index. */
typedef enum tess_bit_order { TESS_BITS_MSB_FIRST, TESS_BITS_LSB_FIRST } tess_bit_order;

/** Vectors, as columns of wider rows where groups of bits are quantized apart. */
typedef struct tess_sign_rows {
    const float *x;       /* [row_numel, dim] f32 */
    const uint8_t *valid; /* [row_numel] 0: masked, index TESS_NO_CODE, q = 0; NULL: none is */
    int64_t row_numel, dim;
    int64_t stride; /* elements between rows of x and of d_x, 0: contiguous */
    float magnitude;
} tess_sign_rows;

typedef struct tess_quantizer_sign_args {
    tess_sign_rows rows;
    tess_bit_order order;
    int64_t out_stride;
    tess_view out;   /* [row_numel, dim] f32 or bf16: q; numel 0: not wanted */
    uint32_t *index; /* [row_numel] out; NULL: not wanted */
} tess_quantizer_sign_args;

/** out = q of indices; TESS_NO_CODE gives 0. */
typedef struct tess_quantizer_sign_decode_args {
    const uint32_t *index; /* [row_numel] below 2^dim, or TESS_NO_CODE */
    int64_t row_numel, dim;
    float magnitude;
    tess_bit_order order;
    int64_t out_stride;
    tess_view out; /* [row_numel, dim] f32 or bf16 */
} tess_quantizer_sign_decode_args;

/** Per vector: loss_i = sum_j (x_ij - q_ij)^2, entropy_i = sum_j H(sigma(t_ij)); 0 where masked.
 * The entropy is that of p_i, exactly. */
typedef struct tess_quantizer_sign_loss_args {
    tess_sign_rows rows;
    double beta;
    double *loss;    /* [row_numel] f64 out; NULL: not wanted */
    double *entropy; /* [row_numel] f64 out; NULL: not wanted */
} tess_quantizer_sign_loss_args;

/** d_x (+)= d_out + commitment (x - q) + entropy dH(sigma(t))/dx; 0 where masked. */
typedef struct tess_quantizer_sign_backward_args {
    tess_sign_rows rows;
    int64_t d_out_stride;
    tess_view d_out; /* [row_numel, dim] f32 or bf16; numel 0: zeros */
    double beta;
    float commitment; /* 2 w / (valid elements of the step) */
    double entropy;   /* w / N: weight of the mean of entropies */
    float *d_x;       /* [row_numel, dim] f32, rows as those of x */
    bool accumulate;
} tess_quantizer_sign_backward_args;

/** sum[c] += llrint(2^exponent sum_i p_i(c)): codes in MSB-first order. Nothing where that sum is
 * not finite, as with a vector that is not: its own entropy says so. */
typedef struct tess_quantizer_pbar_args {
    tess_sign_rows rows; /* dim at most TESS_ENTROPY_DIM_MAX */
    double beta;
    int exponent; /* tess_fixed_exponent(1, N), codebook.h */
    int64_t *sum; /* [2^dim] in place */
    double *work; /* tess_entropy_work_numel(dim) f64 */
} tess_quantizer_pbar_args;

/** From the whole sum: loss = Hc, and slope[c] = G_c / N. */
typedef struct tess_quantizer_batch_entropy_args {
    const int64_t *sum;       /* [2^dim] of the step */
    int64_t dim, valid_numel; /* N: valid vectors of the step */
    int exponent;
    double least;  /* 1e-5 as published; 0: the entropy itself, with G = 0 at pbar = 0 */
    double *loss;  /* [1] f64 out */
    double *slope; /* [2^dim] f64 out */
} tess_quantizer_batch_entropy_args;

/** d_x += weight dHc/dx of this micro-batch's vectors. */
typedef struct tess_quantizer_batch_entropy_backward_args {
    tess_sign_rows rows;
    double beta;
    const double *slope; /* [2^dim] f64 */
    double weight;
    float *d_x; /* [row_numel, dim] f32 in place, rows as those of x */
} tess_quantizer_batch_entropy_backward_args;

/** f64 elements of the workspace of pbar. Local. */
int64_t tess_entropy_work_numel(int64_t dim);

TESS_MUST_CHECK tess_status tess_quantizer_sign_check(const tess_quantizer_sign_args *a);
TESS_MUST_CHECK tess_status
tess_quantizer_sign_decode_check(const tess_quantizer_sign_decode_args *a);
TESS_MUST_CHECK tess_status tess_quantizer_sign_loss_check(const tess_quantizer_sign_loss_args *a);
TESS_MUST_CHECK tess_status
tess_quantizer_sign_backward_check(const tess_quantizer_sign_backward_args *a);
TESS_MUST_CHECK tess_status tess_quantizer_pbar_check(const tess_quantizer_pbar_args *a);
TESS_MUST_CHECK tess_status
tess_quantizer_batch_entropy_check(const tess_quantizer_batch_entropy_args *a);
TESS_MUST_CHECK tess_status
tess_quantizer_batch_entropy_backward_check(const tess_quantizer_batch_entropy_backward_args *a);

TESS_END_DECLS
