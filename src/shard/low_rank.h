/** The largest singular values of a matrix, for adapters that start from its weights. */
#pragma once

#include "core/pool.h"
#include "core/rng.h"

TESS_BEGIN_DECLS

/** W [rows, cols] ~ left right with left = U sqrt(S), right = sqrt(S) V^T of the `rank` largest
 * singular values; ranks that W does not have are 0. */
typedef struct tess_low_rank_args {
    const float *w; /* [rows, cols] f32 */
    int64_t rows, cols, rank;
    int power_numel; /* iterations of the subspace beside the first */
    tess_rng rng;    /* of its start */
    double *work;    /* [tess_low_rank_work_numel()] f64 */
    float *left;     /* [rows, rank] f32 */
    float *right;    /* [rank, cols] f32 */
} tess_low_rank_args;

/** Local. @return TESS_E_RANGE */
TESS_MUST_CHECK tess_status tess_low_rank_work_numel(int64_t rows, int64_t cols, int64_t rank,
                                                     int64_t *numel);
/**
 * Randomized subspace iteration in fp64, then a one-sided Jacobi SVD of what it found. A fixed
 * number of iterations, fixed orders of all sums: the same bits whatever the threads of `pool`
 * (NULL: none). Local.
 *
 * @source Halko, Martinsson, Tropp 2011, algorithm 4.4 with `rank` + 8 vectors; Demmel, Veselic
 * 1992 for the SVD
 */
void tess_low_rank_factor(const tess_low_rank_args *a, tess_pool *pool);

TESS_END_DECLS
