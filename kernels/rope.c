#include "kernels/rope.h"

#include "kernels/check_priv.h"

tess_status tess_rope_check(const tess_rope_args *a)
{
    static const char op[] = "rope";
    int64_t numel = 0;
    TESS_TRY(tess_check_extent(op, "token_numel", a->token_numel, 0));
    TESS_TRY(tess_check_extent(op, "head_numel", a->head_numel, 1));
    TESS_TRY(tess_check_extent(op, "dim", a->dim, 2));
    TESS_CHECK(a->dim % 2 == 0, TESS_E_ARG, "rope: dim is %" PRId64 ", expected an even number",
               a->dim);
    TESS_TRY(tess_mul_i64(a->token_numel, a->head_numel, &numel));
    TESS_TRY(tess_mul_i64(numel, a->dim, &numel));
    TESS_TRY(tess_check_float(op, "x", a->x));
    TESS_TRY(tess_check_numel(op, "x", a->x, numel));
    TESS_TRY(tess_check_pointer(op, "positions", a->positions, a->token_numel));
    TESS_TRY(tess_check_pointer(op, "cos_table", a->cos_table, a->table_rows));
    TESS_TRY(tess_check_pointer(op, "sin_table", a->sin_table, a->table_rows));
    for (int64_t t = 0; tess_check_can_read(a->x) && t < a->token_numel; t++)
        TESS_CHECK(a->positions[t] >= 0 && a->positions[t] < a->table_rows, TESS_E_RANGE,
                   "rope: position %" PRId32 " of token %" PRId64
                   " is outside the table of %" PRId64 " rows",
                   a->positions[t], t, a->table_rows);
    return TESS_OK;
}
