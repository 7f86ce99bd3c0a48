#include "kernels/reduce.h"

#include "kernels/check_priv.h"

tess_status tess_fold_check(const tess_fold_args *a)
{
    static const char op[] = "fold";
    TESS_TRY(tess_check_extent(op, "numel", a->numel, 0));
    TESS_TRY(tess_check_pointer(op, "a", a->a, a->numel));
    TESS_TRY(tess_check_pointer(op, "b", a->b, a->numel));
    return tess_check_pointer(op, "dst", a->dst, a->numel);
}

tess_status tess_square_norm_check(const tess_square_norm_args *a)
{
    static const char op[] = "square_norm";
    TESS_TRY(tess_check_extent(op, "numel", a->numel, 0));
    TESS_TRY(tess_check_pointer(op, "x", a->x, a->numel));
    TESS_TRY(tess_check_pointer(op, "acc", a->acc, 1));
    return tess_check_pointer(op, "nonfinite_numel", a->nonfinite_numel, 1);
}

tess_status tess_sum_check(const tess_sum_args *a)
{
    static const char op[] = "sum";
    TESS_TRY(tess_check_extent(op, "numel", a->numel, 0));
    TESS_TRY(tess_check_pointer(op, "x", a->x, a->numel));
    return tess_check_pointer(op, "out", a->out, 1);
}

tess_status tess_mix_check(const tess_mix_args *a)
{
    static const char op[] = "mix";
    TESS_CHECK(a->term_numel >= 1 && a->term_numel <= TESS_MIX_TERM_MAX, TESS_E_RANGE,
               "%s: %d terms, expected 1 to %d", op, a->term_numel, TESS_MIX_TERM_MAX);
    TESS_TRY(tess_check_extent(op, "row_numel", a->row_numel, 0));
    TESS_TRY(tess_check_pointer(op, "x", a->x, a->row_numel));
    return tess_check_pointer(op, "out", a->out, a->row_numel);
}

tess_status tess_exact_add_check(const tess_exact_add_args *a)
{
    static const char op[] = "exact_add";
    TESS_TRY(tess_check_pointer(op, "x", a->x, 1));
    TESS_TRY(tess_check_pointer(op, "acc", a->acc, 1));
    return tess_check_pointer(op, "nonfinite_numel", a->nonfinite_numel, 1);
}
