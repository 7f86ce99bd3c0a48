#include "kernels/rmsnorm.h"

#include "kernels/check_priv.h"

tess_status tess_rmsnorm_check(const tess_rmsnorm_args *a)
{
    static const char op[] = "rmsnorm";
    int64_t numel = 0;
    TESS_TRY(tess_check_extent(op, "row_numel", a->row_numel, 0));
    TESS_TRY(tess_check_extent(op, "dim", a->dim, 1));
    TESS_TRY(tess_mul_i64(a->row_numel, a->dim, &numel));
    TESS_TRY(tess_check_float(op, "x", a->x));
    TESS_TRY(tess_check_operand(op, "x", a->x, numel, a->x.dt));
    TESS_TRY(tess_check_float(op, "w", a->w));
    TESS_TRY(tess_check_numel(op, "w", a->w, a->dim));
    TESS_TRY(tess_check_rows(op, "y", a->y, a->row_numel, a->dim, a->y_stride));
    TESS_TRY(tess_check_dtype(op, "y", a->y, a->x.dt));
    if (a->residual.numel > 0) {
        TESS_TRY(tess_check_operand(op, "residual", a->residual, numel, a->x.dt));
        TESS_TRY(tess_check_operand(op, "sum", a->sum, numel, a->x.dt));
        TESS_TRY(tess_check_alias(op, "x", a->sum, a->x));
        TESS_TRY(tess_check_alias(op, "residual", a->sum, a->residual));
        TESS_TRY(tess_check_disjoint(op, "sum", a->y, a->sum));
    }
    TESS_CHECK(a->eps >= 0.0f, TESS_E_RANGE, "rmsnorm: eps is %g, expected at least 0",
               (double)a->eps);
    return a->y_stride == 0 ? tess_check_alias(op, "x", a->y, a->x)
                            : tess_check_disjoint(op, "x", a->y, a->x);
}

tess_status tess_rmsnorm_backward_check(const tess_rmsnorm_backward_args *a)
{
    static const char op[] = "rmsnorm backward";
    int64_t numel = 0;
    TESS_TRY(tess_check_extent(op, "row_numel", a->row_numel, 0));
    TESS_TRY(tess_check_extent(op, "dim", a->dim, 1));
    TESS_TRY(tess_mul_i64(a->row_numel, a->dim, &numel));
    TESS_TRY(tess_check_float(op, "x", a->x));
    TESS_TRY(tess_check_operand(op, "x", a->x, numel, a->x.dt));
    TESS_TRY(tess_check_float(op, "w", a->w));
    TESS_TRY(tess_check_numel(op, "w", a->w, a->dim));
    TESS_TRY(tess_check_pointer(op, "inv_rms", a->inv_rms, a->row_numel));
    TESS_TRY(tess_check_operand(op, "d_y", a->d_y, numel, a->x.dt));
    TESS_TRY(tess_check_operand(op, "d_x", a->d_x, numel, a->x.dt));
    if (a->residual.numel > 0) {
        TESS_TRY(tess_check_operand(op, "residual", a->residual, numel, a->x.dt));
        TESS_TRY(tess_check_alias(op, "residual", a->d_x, a->residual));
    }
    if (a->d_w != NULL)
        TESS_TRY(tess_check_pointer(op, "work", a->work, a->dim * 16));
    TESS_TRY(tess_check_disjoint(op, "x", a->d_x, a->x));
    return tess_check_alias(op, "d_y", a->d_x, a->d_y);
}
