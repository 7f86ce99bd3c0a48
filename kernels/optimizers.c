#include "kernels/optimizers.h"

#include <math.h>

#include "kernels/check_priv.h"

double tess_power_f64(double base, int64_t exponent)
{
    double result = 1.0;
    for (; exponent > 0; exponent /= 2) {
        if (exponent % 2 != 0)
            result = result * base;
        base = base * base;
    }
    return result;
}

static tess_status check_part(const char *op, const tess_update_part *p)
{
    TESS_TRY(tess_check_extent(op, "numel", p->numel, 0));
    TESS_TRY(tess_check_pointer(op, "master", p->master, p->numel));
    TESS_TRY(tess_check_pointer(op, "grad", p->grad, p->numel));
    if (p->param.numel == 0)
        return TESS_OK;
    TESS_TRY(tess_check_float(op, "param", p->param));
    return tess_check_numel(op, "param", p->param, p->numel);
}

static tess_status check_fraction(const char *op, const char *name, double value, bool is_below_one)
{
    TESS_CHECK(value >= 0.0 && (is_below_one ? value < 1.0 : value <= 1.0), TESS_E_RANGE,
               "%s: %s is %g, expected 0 <= %s %s 1", op, name, value, name,
               is_below_one ? "<" : "<=");
    return TESS_OK;
}

static tess_status check_eps(const char *op, double eps)
{
    TESS_CHECK(eps >= 0.0, TESS_E_RANGE, "%s: eps is %g, expected at least 0", op, eps);
    return TESS_OK;
}

tess_status tess_lion_check(const tess_lion_args *a)
{
    static const char op[] = "lion";
    TESS_TRY(check_part(op, &a->part));
    TESS_TRY(tess_check_pointer(op, "exp_avg", a->exp_avg, a->part.numel));
    TESS_TRY(check_fraction(op, "beta1", a->beta1, true));
    return check_fraction(op, "beta2", a->beta2, true);
}

tess_lion_scalars tess_lion_scalars_make(const tess_lion_args *a)
{
    const tess_lion_scalars scalars = {
        .decay = (float)(1.0 - a->learning_rate * a->weight_decay),
        .beta1 = (float)a->beta1,
        .one_minus_beta1 = (float)(1.0 - a->beta1),
        .beta2 = (float)a->beta2,
        .one_minus_beta2 = (float)(1.0 - a->beta2),
        .rate = (float)a->learning_rate,
    };
    return scalars;
}

tess_status tess_adamw_8bit_check(const tess_adamw_8bit_args *a)
{
    static const char op[] = "adamw-8bit";
    const int64_t numel = a->part.numel;
    TESS_TRY(check_part(op, &a->part));
    TESS_TRY(tess_check_extent(op, "step", a->step, 1));
    TESS_TRY(tess_check_pointer(op, "exp_avg", a->exp_avg, numel));
    TESS_TRY(tess_check_pointer(op, "exp_avg_sq", a->exp_avg_sq, numel));
    TESS_TRY(tess_check_pointer(op, "exp_avg_absmax", a->exp_avg_absmax, numel));
    TESS_TRY(tess_check_pointer(op, "exp_avg_sq_absmax", a->exp_avg_sq_absmax, numel));
    TESS_TRY(check_fraction(op, "beta1", a->beta1, true));
    TESS_TRY(check_fraction(op, "beta2", a->beta2, true));
    return check_eps(op, a->eps);
}

tess_adamw_8bit_scalars tess_adamw_8bit_scalars_make(const tess_adamw_8bit_args *a)
{
    const double root2 = sqrt(1.0 - tess_power_f64(a->beta2, a->step));
    const double bias1 = 1.0 - tess_power_f64(a->beta1, a->step);
    const tess_adamw_8bit_scalars scalars = {
        .decay = (float)(1.0 - a->learning_rate * a->weight_decay),
        .beta1 = (float)a->beta1,
        .one_minus_beta1 = (float)(1.0 - a->beta1),
        .beta2 = (float)a->beta2,
        .one_minus_beta2 = (float)(1.0 - a->beta2),
        .step_size = (float)(-a->learning_rate * root2 / bias1),
        .eps = (float)(root2 * a->eps),
    };
    return scalars;
}

tess_status tess_schedule_free_check(const tess_schedule_free_args *a)
{
    static const char op[] = "schedule-free";
    TESS_TRY(check_part(op, &a->part));
    TESS_TRY(tess_check_extent(op, "step", a->step, 1));
    TESS_TRY(tess_check_pointer(op, "z", a->z, a->part.numel));
    TESS_TRY(tess_check_pointer(op, "exp_avg_sq", a->exp_avg_sq, a->part.numel));
    TESS_TRY(check_fraction(op, "beta2", a->beta2, true));
    TESS_TRY(check_fraction(op, "blend", a->blend, false));
    TESS_TRY(check_fraction(op, "average", a->average, false));
    return check_eps(op, a->eps);
}

tess_schedule_free_scalars tess_schedule_free_scalars_make(const tess_schedule_free_args *a)
{
    const tess_schedule_free_scalars scalars = {
        .blend = (float)a->blend,
        .beta2 = (float)a->beta2,
        .one_minus_beta2 = (float)(1.0 - a->beta2),
        .bias2 = (float)(1.0 - tess_power_f64(a->beta2, a->step)),
        .eps = (float)a->eps,
        .decay = (float)a->weight_decay,
        .rate = (float)a->learning_rate,
        .average = (float)a->average,
    };
    return scalars;
}

tess_status tess_prodigy_measure_check(const tess_prodigy_measure_args *a)
{
    static const char op[] = "prodigy";
    const int64_t numel = a->part.numel;
    TESS_TRY(check_part(op, &a->part));
    TESS_TRY(tess_check_pointer(op, "start", a->start, numel));
    TESS_TRY(tess_check_pointer(op, "exp_avg", a->exp_avg, numel));
    TESS_TRY(tess_check_pointer(op, "exp_avg_sq", a->exp_avg_sq, numel));
    TESS_TRY(tess_check_pointer(op, "s", a->s, numel));
    TESS_TRY(tess_check_pointer(op, "sums", a->sums, 1));
    TESS_TRY(check_fraction(op, "beta1", a->beta1, true));
    TESS_TRY(check_fraction(op, "beta2", a->beta2, true));
    return check_fraction(op, "beta3", a->beta3, true);
}

tess_prodigy_measure_scalars tess_prodigy_measure_scalars_make(const tess_prodigy_measure_args *a)
{
    const tess_prodigy_measure_scalars scalars = {
        .beta1 = (float)a->beta1,
        .one_minus_beta1 = (float)(a->d * (1.0 - a->beta1)),
        .beta2 = (float)a->beta2,
        .one_minus_beta2 = (float)(a->d * a->d * (1.0 - a->beta2)),
        .beta3 = (float)a->beta3,
        .s_rate = (float)a->s_rate,
    };
    return scalars;
}

tess_status tess_prodigy_apply_check(const tess_prodigy_apply_args *a)
{
    static const char op[] = "prodigy";
    TESS_TRY(check_part(op, &a->part));
    TESS_TRY(tess_check_pointer(op, "exp_avg", a->exp_avg, a->part.numel));
    TESS_TRY(tess_check_pointer(op, "exp_avg_sq", a->exp_avg_sq, a->part.numel));
    return check_eps(op, a->eps);
}

tess_prodigy_apply_scalars tess_prodigy_apply_scalars_make(const tess_prodigy_apply_args *a)
{
    const tess_prodigy_apply_scalars scalars = {
        .decay = (float)(1.0 - a->decay), .rate = (float)a->rate, .eps = (float)a->eps};
    return scalars;
}

tess_status tess_blend_check(const tess_blend_args *a)
{
    static const char op[] = "blend";
    TESS_TRY(tess_check_float(op, "dst", a->dst));
    TESS_TRY(tess_check_numel(op, "dst", a->dst, a->dst.numel));
    TESS_TRY(tess_check_pointer(op, "a", a->a, a->dst.numel));
    TESS_TRY(tess_check_pointer(op, "b", a->b, a->dst.numel));
    return check_fraction(op, "weight", a->weight, false);
}
