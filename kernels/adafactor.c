#include "kernels/adafactor.h"

#include "kernels/check_priv.h"

tess_status tess_adafactor_check(const tess_adafactor_args *a)
{
    static const char op[] = "adafactor";
    const int64_t numel = a->part.numel, lines = a->rows + a->cols;
    TESS_TRY(tess_check_extent(op, "numel", numel, 0));
    TESS_TRY(tess_check_extent(op, "rows", a->rows, 1));
    TESS_TRY(tess_check_extent(op, "cols", a->cols, 0));
    int64_t total = a->rows;
    if (a->cols > 0)
        TESS_TRY(tess_mul_i64(a->rows, a->cols, &total));
    TESS_CHECK(a->first_idx >= 0 && a->first_idx % 256 == 0 && numel <= total - a->first_idx,
               TESS_E_ARG,
               "adafactor: elements [%" PRId64 ", +%" PRId64 ") of a tensor of %" PRId64
               "; a part begins at a multiple of 256 and ends inside",
               a->first_idx, numel, total);
    TESS_TRY(tess_check_pointer(op, "master", a->part.master, numel));
    TESS_TRY(tess_check_pointer(op, "grad", a->part.grad, numel));
    TESS_TRY(tess_check_pointer(op, "most", a->most, lines));
    TESS_TRY(tess_check_pointer(op, "sum", a->sum, lines));
    TESS_TRY(tess_check_pointer(op, "moment", a->moment, lines));
    TESS_TRY(tess_check_pointer(op, "root", a->root, lines));
    TESS_TRY(tess_check_pointer(op, "update_square", a->update_square, 1));
    if (a->part.param.numel == 0)
        return TESS_OK;
    TESS_TRY(tess_check_float(op, "param", a->part.param));
    return tess_check_numel(op, "param", a->part.param, numel);
}
