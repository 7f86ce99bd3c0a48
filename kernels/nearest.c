#include "kernels/nearest.h"

#include "kernels/check_priv.h"

static tess_status check_codes(const char *op, tess_view code, int64_t code_numel, int64_t dim)
{
    int64_t numel = 0;
    TESS_TRY(tess_check_extent(op, "code_numel", code_numel, 0));
    TESS_TRY(tess_check_extent(op, "dim", dim, 1));
    TESS_CHECK(dim <= TESS_NEAREST_DIM_MAX, TESS_E_RANGE,
               "%s: dim is %" PRId64 ", expected at most %d; split the vectors into groups", op,
               dim, TESS_NEAREST_DIM_MAX);
    TESS_TRY(tess_mul_i64(code_numel, dim, &numel));
    return tess_check_operand(op, "code", code, numel, TESS_F32);
}

static tess_status check_room(const char *op, const char *name, tess_view v, size_t nbytes)
{
    TESS_CHECK(v.dt == TESS_U8_OPAQUE, TESS_E_DTYPE, "%s: %s is %s, expected u8_opaque", op, name,
               tess_dtype_name(v.dt));
    TESS_CHECK((size_t)v.numel >= nbytes && (nbytes == 0 || v.data != NULL), TESS_E_ARG,
               "%s: %s holds %" PRId64
               " bytes, expected at least %zu; plan it with nearest_%s_nbytes",
               op, name, v.numel, nbytes, name);
    return TESS_OK;
}

tess_status tess_nearest_prepare_check(const tess_nearest_prepare_args *a, size_t pack_nbytes)
{
    static const char op[] = "nearest_prepare";
    TESS_TRY(check_codes(op, a->code, a->code_numel, a->dim));
    return check_room(op, "pack", a->pack, pack_nbytes);
}

tess_status tess_nearest_check(const tess_nearest_args *a, size_t pack_nbytes, size_t work_nbytes)
{
    static const char op[] = "nearest";
    int64_t numel = 0;
    TESS_TRY(check_codes(op, a->code, a->code_numel, a->dim));
    TESS_TRY(tess_check_extent(op, "vector_numel", a->vector_numel, 0));
    TESS_CHECK(a->best_numel >= 1 && a->best_numel <= TESS_NEAREST_BEST_MAX, TESS_E_RANGE,
               "%s: %d keys per vector, expected 1 to %d", op, a->best_numel,
               TESS_NEAREST_BEST_MAX);
    TESS_CHECK(a->first_row_idx >= 0 && a->first_row_idx <= TESS_NO_CODE &&
                   a->code_numel <= (int64_t)TESS_NO_CODE - a->first_row_idx,
               TESS_E_RANGE,
               "%s: rows %" PRId64 " to %" PRId64 " + %" PRId64 ", expected below 2^32 - 1", op,
               a->first_row_idx, a->first_row_idx, a->code_numel);
    TESS_TRY(tess_mul_i64(a->vector_numel, a->dim, &numel));
    TESS_TRY(tess_check_operand(op, "x", a->x, numel, TESS_F32));
    TESS_TRY(tess_mul_i64(a->vector_numel, a->best_numel, &numel));
    TESS_TRY(tess_check_operand(op, "key", a->key, numel, TESS_U64));
    TESS_TRY(check_room(op, "pack", a->pack, pack_nbytes));
    return check_room(op, "work", a->work, work_nbytes);
}
