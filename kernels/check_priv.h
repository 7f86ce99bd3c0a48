/** Argument checks that every op shares. */
#pragma once

#include "core/arith.h"
#include "core/view.h"

/** `v` holds exactly `numel` elements, on the host or device, with data. */
TESS_MUST_CHECK static inline tess_status tess_check_numel(const char *op, const char *name,
                                                           tess_view v, int64_t numel)
{
    TESS_CHECK(v.numel == numel, TESS_E_ARG,
               "%s: %s holds %" PRId64 " elements, expected %" PRId64
               "; pass a view of the whole operand",
               op, name, v.numel, numel);
    TESS_CHECK(numel == 0 || v.data != NULL, TESS_E_ARG,
               "%s: %s has %" PRId64 " elements but no data; pass its address", op, name, numel);
    return TESS_OK;
}

/** `v` holds rows of `cols` elements `stride` apart (0: contiguous), the last one without the gap.
 */
TESS_MUST_CHECK static inline tess_status tess_check_rows(const char *op, const char *name,
                                                          tess_view v, int64_t rows, int64_t cols,
                                                          int64_t stride)
{
    int64_t numel = 0;
    if (stride == 0 || rows == 0) {
        TESS_TRY(tess_mul_i64(rows, cols, &numel));
        return tess_check_numel(op, name, v, numel);
    }
    TESS_CHECK(stride >= cols, TESS_E_ARG,
               "%s: rows of %s are %" PRId64 " elements apart but hold %" PRId64, op, name, stride,
               cols);
    TESS_TRY(tess_mul_i64(rows - 1, stride, &numel));
    TESS_TRY(tess_add_i64(numel, cols, &numel));
    TESS_CHECK(v.numel >= numel && v.data != NULL, TESS_E_ARG,
               "%s: %s holds %" PRId64 " elements, expected at least %" PRId64
               "; pass a view of the whole operand",
               op, name, v.numel, numel);
    return TESS_OK;
}

/** `v` is f32 or bf16. */
TESS_MUST_CHECK static inline tess_status tess_check_float(const char *op, const char *name,
                                                           tess_view v)
{
    TESS_CHECK(v.dt == TESS_F32 || v.dt == TESS_BF16, TESS_E_DTYPE,
               "%s: %s is %s, expected f32 or bf16; cast it first", op, name,
               tess_dtype_name(v.dt));
    return TESS_OK;
}

/** `v` holds rows of f32 or bf16, `stride` apart. */
TESS_MUST_CHECK static inline tess_status tess_check_float_rows(const char *op, const char *name,
                                                                tess_view v, int64_t rows,
                                                                int64_t cols, int64_t stride)
{
    TESS_TRY(tess_check_float(op, name, v));
    return tess_check_rows(op, name, v, rows, cols, stride);
}

/** An exponent of exact sums. */
TESS_MUST_CHECK static inline tess_status tess_check_exponent(const char *op, int exponent)
{
    TESS_CHECK(exponent >= 0 && exponent <= 62, TESS_E_RANGE,
               "%s: exponent is %d, expected 0 <= exponent <= 62 (tess_fixed_exponent)", op,
               exponent);
    return TESS_OK;
}

/** `v` is of exactly `dt`. */
TESS_MUST_CHECK static inline tess_status tess_check_dtype(const char *op, const char *name,
                                                           tess_view v, tess_dtype dt)
{
    TESS_CHECK(v.dt == dt, TESS_E_DTYPE, "%s: %s is %s, expected %s; cast it first", op, name,
               tess_dtype_name(v.dt), tess_dtype_name(dt));
    return TESS_OK;
}

/** `v` is an operand of `numel` elements of exactly `dt`. */
TESS_MUST_CHECK static inline tess_status
tess_check_operand(const char *op, const char *name, tess_view v, int64_t numel, tess_dtype dt)
{
    TESS_TRY(tess_check_numel(op, name, v, numel));
    return tess_check_dtype(op, name, v, dt);
}

/** A raw pointer of an operand with elements. */
TESS_MUST_CHECK static inline tess_status tess_check_pointer(const char *op, const char *name,
                                                             const void *p, int64_t numel)
{
    TESS_CHECK(numel == 0 || p != NULL, TESS_E_ARG,
               "%s: %s is missing, expected the address of %" PRId64 " elements", op, name, numel);
    return TESS_OK;
}

/** Values of indices are checked where the host can read them; on a device whoever uploads them
 * has. */
static inline bool tess_check_can_read(tess_view v) { return v.space == TESS_HOST; }

/** An extent that may be zero. */
TESS_MUST_CHECK static inline tess_status tess_check_extent(const char *op, const char *name,
                                                            int64_t extent, int64_t least)
{
    TESS_CHECK(extent >= least, TESS_E_ARG, "%s: %s is %" PRId64 ", expected at least %" PRId64, op,
               name, extent, least);
    return TESS_OK;
}

/** Whether two views share a byte without being the same range. */
static inline bool tess_views_cross(tess_view a, tess_view b)
{
    const uintptr_t a_lo = (uintptr_t)a.data, a_hi = a_lo + tess_view_nbytes(a);
    const uintptr_t b_lo = (uintptr_t)b.data, b_hi = b_lo + tess_view_nbytes(b);
    return a_lo < b_hi && b_lo < a_hi && !(a_lo == b_lo && a_hi == b_hi);
}

/** Output `out` may be the same range as `in`, but not cross it. */
TESS_MUST_CHECK static inline tess_status tess_check_alias(const char *op, const char *name,
                                                           tess_view out, tess_view in)
{
    TESS_CHECK(!tess_views_cross(out, in), TESS_E_ARG,
               "%s: the output overlaps %s in part; pass the same range or a disjoint one", op,
               name);
    return TESS_OK;
}

/** Output `out` shares no byte with `in`. */
TESS_MUST_CHECK static inline tess_status tess_check_disjoint(const char *op, const char *name,
                                                              tess_view out, tess_view in)
{
    const bool is_same = out.data == in.data && out.numel > 0 && in.numel > 0;
    TESS_CHECK(!is_same && !tess_views_cross(out, in), TESS_E_ARG,
               "%s: the output overlaps %s; pass a disjoint range", op, name);
    return TESS_OK;
}
