/** Rows of a stored matrix as products see them, for those who need the values. */
#pragma once

#include "kernels/kernels.h"

TESS_BEGIN_DECLS

/**
 * Rows from `first_row` on, in the compute dtype as a product has them (kernels/gemm.h), in f32.
 * Enqueued.
 *
 * @param[out] narrow  [rows * cols] compute dtype; `wide` itself where that is f32
 * @param[out] wide    [rows * cols] f32
 */
TESS_MUST_CHECK tess_status tess_weight_rows(const tess_kernels *k, const tess_matrix *w,
                                             int64_t first_row, tess_view narrow, tess_view wide,
                                             tess_stream *s);

TESS_END_DECLS
