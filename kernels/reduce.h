/** Ordered sums of gradients and exact squared norms. */
#pragma once

#include "core/exact.h"
#include "core/stream.h"
#include "core/view.h"

TESS_BEGIN_DECLS

/** dst[i] = a[i] + b[i], f32: one node of the pairwise tree. */
typedef struct tess_fold_args {
    const float *a, *b; /* [numel] f32 */
    float *dst;         /* [numel] f32; may alias a or b */
    int64_t numel;
} tess_fold_args;

/** More than an int64 count of pieces has bits. */
enum { TESS_FOLD_LEVEL_MAX = 64 };

/**
 * Pieces pushed in order into a binary counter of partial sums, element by element in f32. A piece
 * is carried to level 0; while the level it comes to holds a sum, c = level + c is carried one
 * level up; then level = c. So level l holds the sum of 2^l pieces where bit l of the number of
 * pieces pushed so far is set, and nothing of use elsewhere: the tree depends on that number alone,
 * not on how pieces are dealt out to calls.
 */
typedef struct tess_fold_pieces_args {
    const float *pieces; /* [piece_numel, less one where there is `own`] rows of stride_numel */
    const float *own;    /* [numel] piece number own_idx, which has no row; NULL: none */
    int64_t own_idx;
    int64_t piece_numel;
    int64_t stride_numel; /* between rows, >= numel */
    float *levels;        /* [level_numel] rows of level_stride_numel, in and out */
    int64_t level_stride_numel;
    int level_numel;   /* holds first_idx + piece_numel */
    int64_t first_idx; /* pieces pushed before */
    int64_t numel;     /* elements of a piece */
} tess_fold_pieces_args;

/** Piece `idx` of the call. */
TESS_HD static inline const float *tess_fold_piece(const tess_fold_pieces_args *a, int64_t idx)
{
    if (a->own == NULL)
        return a->pieces + idx * a->stride_numel;
    return idx == a->own_idx ? a->own : a->pieces + (idx - (idx > a->own_idx)) * a->stride_numel;
}

/**
 * Per block of 256 elements: fp64 sum of squares in ascending order, added to the exact
 * accumulator; counts elements that are not finite (their block is left out of the sum).
 */
typedef struct tess_square_norm_args {
    const float *x; /* [numel] f32; the last block may be short */
    int64_t numel;
    tess_exact *acc;          /* in and out */
    int64_t *nonfinite_numel; /* += */
} tess_square_norm_args;

/** out = sum of x in f64, elements ascending. */
typedef struct tess_sum_args {
    const double *x; /* [numel] f64 */
    int64_t numel;
    double *out; /* [1] f64 */
} tess_sum_args;

enum { TESS_MIX_TERM_MAX = 65 };

/** out[i] = sum over terms t, ascending, of weight[t] x[t][i], in f64: losses of rows in one. */
typedef struct tess_mix_args {
    const double *x; /* [term_numel, row_numel] f64 */
    double weight[TESS_MIX_TERM_MAX];
    int term_numel; /* 1 .. TESS_MIX_TERM_MAX */
    int64_t row_numel;
    double *out; /* [row_numel] f64; may be x[0] */
} tess_mix_args;

/** Add one value to an exact accumulator; one that is not finite is counted instead. */
typedef struct tess_exact_add_args {
    const double *x;          /* [1] f64 */
    tess_exact *acc;          /* in and out */
    int64_t *nonfinite_numel; /* += */
} tess_exact_add_args;

TESS_MUST_CHECK tess_status tess_fold_check(const tess_fold_args *a);
TESS_MUST_CHECK tess_status tess_fold_pieces_check(const tess_fold_pieces_args *a);
TESS_MUST_CHECK tess_status tess_square_norm_check(const tess_square_norm_args *a);
TESS_MUST_CHECK tess_status tess_sum_check(const tess_sum_args *a);
TESS_MUST_CHECK tess_status tess_mix_check(const tess_mix_args *a);
TESS_MUST_CHECK tess_status tess_exact_add_check(const tess_exact_add_args *a);

TESS_END_DECLS
