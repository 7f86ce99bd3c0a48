#include "kernels/adamw.h"

#include "kernels/check_priv.h"
#include "kernels/optimizers.h"

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

tess_adamw_scalars tess_adamw_scalars_make(const tess_adamw_args *a)
{
    const tess_adamw_scalars scalars = {
        .decay = (float)(1.0 - a->learning_rate * a->weight_decay),
        .beta1 = (float)a->beta1,
        .one_minus_beta1 = (float)(1.0 - a->beta1),
        .beta2 = (float)a->beta2,
        .one_minus_beta2 = (float)(1.0 - a->beta2),
        .step_size = (float)(a->learning_rate / (1.0 - tess_power_f64(a->beta1, a->step))),
        .bias2 = (float)(1.0 - tess_power_f64(a->beta2, a->step)),
        .eps = (float)a->eps,
    };
    return scalars;
}
