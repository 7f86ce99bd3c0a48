#include "kernels/adamw.h"

#include "kernels/check_priv.h"

tess_status tess_adamw_check(const tess_adamw_args *a)
{
    static const char op[] = "adamw";
    TESS_TRY(tess_check_extent(op, "numel", a->numel, 0));
    TESS_TRY(tess_check_extent(op, "step", a->step, 1));
    TESS_TRY(tess_check_pointer(op, "master", a->master, a->numel));
    TESS_TRY(tess_check_pointer(op, "exp_avg", a->exp_avg, a->numel));
    TESS_TRY(tess_check_pointer(op, "exp_avg_sq", a->exp_avg_sq, a->numel));
    TESS_TRY(tess_check_pointer(op, "grad", a->grad, a->numel));
    if (a->param.numel > 0) {
        TESS_TRY(tess_check_float(op, "param", a->param));
        TESS_TRY(tess_check_numel(op, "param", a->param, a->numel));
    }
    TESS_CHECK(a->beta1 >= 0.0 && a->beta1 < 1.0, TESS_E_RANGE,
               "adamw: beta1 is %g, expected 0 <= beta1 < 1", a->beta1);
    TESS_CHECK(a->beta2 >= 0.0 && a->beta2 < 1.0, TESS_E_RANGE,
               "adamw: beta2 is %g, expected 0 <= beta2 < 1", a->beta2);
    TESS_CHECK(a->eps >= 0.0, TESS_E_RANGE, "adamw: eps is %g, expected at least 0", a->eps);
    return TESS_OK;
}
