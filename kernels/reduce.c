#include "kernels/reduce.h"

#include <inttypes.h>

#include "kernels/check_priv.h"

tess_status tess_fold_check(const tess_fold_args *a)
{
    static const char op[] = "fold";
    TESS_TRY(tess_check_extent(op, "numel", a->numel, 0));
    TESS_TRY(tess_check_pointer(op, "a", a->a, a->numel));
    TESS_TRY(tess_check_pointer(op, "b", a->b, a->numel));
    return tess_check_pointer(op, "dst", a->dst, a->numel);
}

tess_status tess_fold_pieces_check(const tess_fold_pieces_args *a)
{
    static const char op[] = "fold_pieces";
    TESS_TRY(tess_check_extent(op, "numel", a->numel, 0));
    TESS_TRY(tess_check_extent(op, "piece_numel", a->piece_numel, 0));
    TESS_TRY(tess_check_extent(op, "first_idx", a->first_idx, 0));
    const int64_t row_numel = a->piece_numel - (a->own != NULL);
    TESS_TRY(tess_check_pointer(op, "pieces", a->pieces, TESS_MIN(row_numel, a->numel)));
    TESS_TRY(tess_check_pointer(op, "levels", a->levels, TESS_MIN(a->piece_numel, a->numel)));
    TESS_CHECK(a->own == NULL || (a->own_idx >= 0 && a->own_idx < a->piece_numel), TESS_E_RANGE,
               "%s: own piece is number %" PRId64 " of %" PRId64, op, a->own_idx, a->piece_numel);
    TESS_CHECK(a->stride_numel >= a->numel || row_numel < 2, TESS_E_ARG,
               "%s: rows of %" PRId64 " elements, %" PRId64 " from one to the next", op, a->numel,
               a->stride_numel);
    TESS_CHECK(a->level_stride_numel >= a->numel || a->level_numel < 2, TESS_E_ARG,
               "%s: levels of %" PRId64 " elements, %" PRId64 " from one to the next", op, a->numel,
               a->level_stride_numel);
    TESS_CHECK(a->level_numel >= 1 && a->level_numel < TESS_FOLD_LEVEL_MAX &&
                   (a->first_idx + a->piece_numel) >> a->level_numel == 0,
               TESS_E_RANGE, "%s: %d levels do not hold %" PRId64 " pieces", op, a->level_numel,
               a->first_idx + a->piece_numel);
    return TESS_OK;
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
