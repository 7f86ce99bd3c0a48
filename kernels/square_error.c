#include "kernels/square_error.h"

#include "kernels/check_priv.h"

tess_status tess_square_error_check(const tess_square_error_args *a)
{
    static const char op[] = "square error";
    int64_t numel = 0;
    TESS_TRY(tess_check_extent(op, "row_numel", a->row_numel, 0));
    TESS_TRY(tess_check_extent(op, "dim", a->dim, 1));
    TESS_TRY(tess_mul_i64(a->row_numel, a->dim, &numel));
    TESS_TRY(tess_check_operand(op, "y", a->y, numel, TESS_F32));
    TESS_TRY(tess_check_pointer(op, "target", a->target, numel));
    TESS_TRY(tess_check_pointer(op, "weight", a->weight, a->row_numel));
    TESS_TRY(tess_check_pointer(op, "row_loss", a->row_loss, a->row_numel));
    if (a->d_y.numel == 0)
        return TESS_OK;
    TESS_TRY(tess_check_float(op, "d_y", a->d_y));
    TESS_TRY(tess_check_numel(op, "d_y", a->d_y, numel));
    return a->d_y.dt == TESS_F32 ? tess_check_alias(op, "y", a->d_y, a->y)
                                 : tess_check_disjoint(op, "y", a->d_y, a->y);
}
