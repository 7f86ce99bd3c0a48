#include "kernels/activation.h"

#include "kernels/check_priv.h"

static tess_status check_input(const char *op, tess_activation kind, int64_t row_numel, int64_t dim,
                               tess_view x)
{
    int64_t numel = 0;
    TESS_CHECK(kind == TESS_ACTIVATION_GELU_TANH || kind == TESS_ACTIVATION_SILU, TESS_E_ARG,
               "%s: kind %d is not in the list", op, (int)kind);
    TESS_TRY(tess_check_extent(op, "row_numel", row_numel, 0));
    TESS_TRY(tess_check_extent(op, "dim", dim, 1));
    TESS_TRY(tess_mul_i64(row_numel, dim, &numel));
    TESS_TRY(tess_check_float(op, "x", x));
    return tess_check_numel(op, "x", x, numel);
}

tess_status tess_activation_check(const tess_activation_args *a)
{
    static const char op[] = "activation";
    TESS_TRY(check_input(op, a->kind, a->row_numel, a->dim, a->x));
    TESS_TRY(tess_check_rows(op, "y", a->y, a->row_numel, a->dim, a->y_stride));
    TESS_TRY(tess_check_dtype(op, "y", a->y, a->x.dt));
    return a->y_stride == 0 ? tess_check_alias(op, "x", a->y, a->x)
                            : tess_check_disjoint(op, "x", a->y, a->x);
}

tess_status tess_activation_backward_check(const tess_activation_backward_args *a)
{
    static const char op[] = "activation backward";
    TESS_TRY(check_input(op, a->kind, a->row_numel, a->dim, a->x));
    TESS_TRY(tess_check_rows(op, "d_y", a->d_y, a->row_numel, a->dim, a->d_y_stride));
    TESS_TRY(tess_check_rows(op, "d_x", a->d_x, a->row_numel, a->dim, a->d_x_stride));
    TESS_TRY(tess_check_dtype(op, "d_y", a->d_y, a->x.dt));
    TESS_TRY(tess_check_dtype(op, "d_x", a->d_x, a->x.dt));
    TESS_TRY(tess_check_disjoint(op, "x", a->d_x, a->x));
    return a->d_x_stride == a->d_y_stride ? tess_check_alias(op, "d_y", a->d_x, a->d_y)
                                          : tess_check_disjoint(op, "d_y", a->d_x, a->d_y);
}
