/** Inside of a merge. */
#pragma once

#include "format/peft.h"
#include "train/rewrite/merge.h"

TESS_BEGIN_DECLS

/** The adapter of one layer, in f32. */
typedef struct merge_adapter {
    const tess_peft_adapter *file;
    tess_peft_match match;
    const float *a, *b; /* [rank, in], [out, rank] */
} merge_adapter;

/** delta = s B A. @param[out] delta  [out, in] f32 */
void merge_product(const merge_adapter *adapter, tess_pool *pool, float *delta);
/** Give each row of weight [row_numel, col_numel] the L2 norm in `magnitude` [row_numel]; a row of
 * zeros stays. The norm in fp64, the factor rounded to f32. */
void merge_scale_rows(const float *magnitude, int64_t row_numel, int64_t col_numel, float *weight);
/** f32, bf16 or f16 in f32. */
void merge_widen(tess_dtype dt, const void *src, int64_t numel, float *dst);

TESS_END_DECLS
