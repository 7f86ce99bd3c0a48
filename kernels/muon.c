#include "kernels/muon.h"

#include "kernels/check_priv.h"

tess_status tess_muon_momentum_check(const tess_muon_momentum_args *a)
{
    static const char op[] = "muon";
    TESS_TRY(tess_check_extent(op, "numel", a->numel, 0));
    TESS_TRY(tess_check_pointer(op, "exp_avg", a->exp_avg, a->numel));
    TESS_TRY(tess_check_pointer(op, "grad", a->grad, a->numel));
    TESS_CHECK(a->beta >= 0.0 && a->beta < 1.0, TESS_E_RANGE,
               "muon: beta is %g, expected 0 <= beta < 1", a->beta);
    return TESS_OK;
}

tess_status tess_muon_apply_check(const tess_muon_apply_args *a)
{
    static const char op[] = "muon";
    const tess_update_part *p = &a->part;
    TESS_TRY(tess_check_extent(op, "numel", p->numel, 0));
    TESS_TRY(tess_check_pointer(op, "master", p->master, p->numel));
    TESS_TRY(tess_check_pointer(op, "grad", p->grad, p->numel));
    if (p->param.numel == 0)
        return TESS_OK;
    TESS_TRY(tess_check_float(op, "param", p->param));
    return tess_check_numel(op, "param", p->param, p->numel);
}

tess_status tess_scale_check(const tess_scale_args *a)
{
    TESS_TRY(tess_check_extent("scale", "numel", a->numel, 0));
    TESS_TRY(tess_check_pointer("scale", "x", a->x, a->numel));
    return tess_check_pointer("scale", "dst", a->dst, a->numel);
}
