/**
 * Adafactor (Shazeer and Stern, 2018, algorithms 4 and 5), as transformers.Adafactor orders it, on
 * parts of a tensor: a matrix's second moment is kept as a number per row and per column.
 *
 * [Note: sums of a row over ranks] A row or column lies on several ranks, and its mean must not
 * depend on how. Every part first gives the largest square of each row and column, as the bits of
 * an fp64, which order as the numbers do. With the maxima of all parts each square becomes an
 * integer, a multiple of 2^(e-62) of a line whose sum is below 2^e: integer sums are exact in any
 * order. A square loses what is below 2^-62 of the line's sum, far below the rounding of fp32.
 *
 * A vector has no columns: each element is a row. Gradients are finite.
 */
#pragma once

#include "kernels/optimizers.h"

TESS_BEGIN_DECLS

/** A part of a tensor and the lines of the whole tensor. */
typedef struct tess_adafactor_args {
    tess_update_part part;
    int64_t first_idx;  /* of the part in the tensor, a multiple of 256 */
    int64_t rows, cols; /* a vector: cols 0 */
    /* [rows + cols], rows first */
    int64_t *most;             /* bits of the largest square, in and out of `most` */
    int64_t *sum;              /* in and out of `sum`: multiples as in the note */
    float *moment;             /* the second moment, in and out of `factor` */
    float *root;               /* out of `factor`: what a gradient is multiplied by */
    tess_exact *update_square; /* += squares of the unscaled updates, in and out of `size` */
    tess_exact *param_square;  /* += squares of the masters; NULL: not wanted */
    float *exp_avg;            /* [numel] f32, in place; NULL: without a first moment */
    double beta2, eps;         /* of this step; added to the squares */
    double rate, decay, beta1; /* decay: of the masters in this step */
} tess_adafactor_args;

/* The passes, entries of tess_kernels, in this order for every part of a tensor:
 *   most    raise `most` to the squares of the part
 *   sum     add its squares, scaled by `most`
 *   factor  once a tensor: the lines' new moments and roots from the sums of all parts
 *   size    squares of updates, and of masters
 *   apply   u = rate * g * root_row * root_col; m = b1 m + (1-b1) u where there is one, and then u
 * = m; p = p - decay p - u
 */
TESS_MUST_CHECK tess_status tess_adafactor_check(const tess_adafactor_args *a);

TESS_END_DECLS
