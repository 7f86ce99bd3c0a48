/** Checks of rows of samples. */
#pragma once

#include "kernels/check_priv.h"
#include "kernels/modulate.h"

/** `rows` holds all rows of `shape`, each `head_numel` times its dim wide, of dtype `dt`. Local. */
TESS_MUST_CHECK static inline tess_status tess_check_samples(const char *op, const char *name,
                                                             const tess_sample_rows *rows,
                                                             const tess_sample_shape *shape,
                                                             int64_t head_numel, tess_dtype dt)
{
    int64_t cols = 0, numel = 0, samples = 0;
    TESS_TRY(tess_check_extent(op, "sample_numel", shape->sample_numel, 0));
    TESS_TRY(tess_check_extent(op, "row_numel", shape->row_numel, 0));
    TESS_TRY(tess_check_extent(op, "dim", shape->dim, 1));
    TESS_TRY(tess_mul_i64(shape->dim, head_numel, &cols));
    TESS_CHECK(rows->view.dt == dt, TESS_E_DTYPE, "%s: %s is %s, expected %s; cast it first", op,
               name, tess_dtype_name(rows->view.dt), tess_dtype_name(dt));
    if (shape->sample_numel == 0 || shape->row_numel == 0)
        return TESS_OK;
    TESS_TRY(tess_mul_i64(shape->row_numel - 1, rows->row_stride, &numel));
    TESS_TRY(tess_add_i64(numel, cols, &numel));
    TESS_CHECK((rows->row_stride >= cols || shape->row_numel == 1) &&
                   (rows->sample_stride >= numel || shape->sample_numel == 1),
               TESS_E_ARG,
               "%s: rows of %s are %" PRId64 " elements apart and samples %" PRId64
               ", but they hold %" PRId64 " and %" PRId64,
               op, name, rows->row_stride, rows->sample_stride, cols, numel);
    TESS_TRY(tess_mul_i64(shape->sample_numel - 1, rows->sample_stride, &samples));
    TESS_TRY(tess_add_i64(numel, samples, &numel));
    TESS_CHECK(rows->view.numel >= numel && rows->view.data != NULL, TESS_E_ARG,
               "%s: %s holds %" PRId64 " elements, expected at least %" PRId64
               "; pass a view of the whole operand",
               op, name, rows->view.numel, numel);
    return TESS_OK;
}
