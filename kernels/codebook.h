/**
 * Exact statistics of codes, and what is left of vectors when their codes are taken off.
 *
 * Sums are integers at one exponent S that the whole data set gives (tess_fixed_exponent()): the
 * order of additions, and so the number of ranks, threads and blocks, does not matter.
 */
#pragma once

#include "core/stream.h"
#include "core/view.h"

TESS_BEGIN_DECLS

/**
 * S with N |x| 2^S <= 2^62 and |x| 2^S < 2^51 for |x| <= `largest`: sums of N terms fit int64, and
 * every term is the nearest integer to x 2^S. Local, pure.
 *
 * @param largest       largest absolute value, finite
 * @param vector_numel  N, at least 1
 */
int tess_fixed_exponent(float largest, int64_t vector_numel);
/** sum 2^-S, rounded once. Local, pure. */
double tess_fixed_value(int64_t sum, int exponent);

/** most = max(most, tess_ordered_bits(|x_j|)) over the vectors that have a code; NaN counts for
 * nothing. Whoever calls it first sets `most` to 0, which no number has. */
typedef struct tess_code_most_args {
    const float *x;      /* [vector_numel, dim] f32 */
    const uint32_t *row; /* [vector_numel]; vectors with TESS_NO_CODE are left out */
    int64_t vector_numel, dim;
    uint32_t *most; /* [1] in place */
} tess_code_most_args;

/** sum[row[i] - first] += x[i] 2^S, count[row[i] - first] += 1 where first <= row[i] < first +
 * row_numel; other vectors are left out. */
typedef struct tess_code_sum_args {
    const float *x;      /* [vector_numel, dim] f32 */
    const uint32_t *row; /* [vector_numel] */
    int64_t vector_numel, dim;
    int64_t first_row_idx, row_numel;
    int exponent;   /* S; |x| 2^S < 2^51 */
    int64_t *sum;   /* [row_numel, dim] i64 */
    int64_t *count; /* [row_numel] i64 */
} tess_code_sum_args;

/** code[k] = f32(sum[k] 2^-S / count[k]), in fp64 inside; rows without a vector stay as they are.
 * `is_unit`: rows are then divided by their length (kept where it is 0). */
typedef struct tess_code_mean_args {
    const int64_t *sum;   /* [row_numel, dim] i64 */
    const int64_t *count; /* [row_numel] i64 */
    float *code;          /* [row_numel, dim] f32 */
    int64_t row_numel, dim;
    int exponent;
    bool is_unit;
} tess_code_mean_args;

/** value[i] = sum[i] 2^-S, rounded once. */
typedef struct tess_code_value_args {
    const int64_t *sum; /* [numel] i64 */
    int64_t numel;
    int exponent;
    float *value; /* [numel] f32 out */
} tess_code_value_args;

/** dst[i] = x[parent[i]] - code[row[i]], f32; rows of no code take nothing off. */
typedef struct tess_code_residual_args {
    const float *x;         /* [., dim] f32 */
    const uint32_t *parent; /* [vector_numel], or NULL: i */
    const float *code;      /* [code_numel, dim] f32 */
    const uint32_t *row;    /* [vector_numel]; below code_numel, or TESS_NO_CODE */
    int64_t vector_numel, code_numel, dim;
    float *dst; /* [vector_numel, dim] f32; may be x where parent is NULL */
} tess_code_residual_args;

/** row[i] = row of key[i]; TESS_NO_CODE of TESS_NO_KEY. */
typedef struct tess_code_row_args {
    const uint64_t *key; /* [vector_numel] */
    uint32_t *row;       /* [vector_numel] out */
    int64_t vector_numel;
} tess_code_row_args;

TESS_MUST_CHECK tess_status tess_code_most_check(const tess_code_most_args *a);
TESS_MUST_CHECK tess_status tess_code_value_check(const tess_code_value_args *a);
TESS_MUST_CHECK tess_status tess_code_sum_check(const tess_code_sum_args *a);
TESS_MUST_CHECK tess_status tess_code_mean_check(const tess_code_mean_args *a);
TESS_MUST_CHECK tess_status tess_code_residual_check(const tess_code_residual_args *a);
TESS_MUST_CHECK tess_status tess_code_row_check(const tess_code_row_args *a);

TESS_END_DECLS
