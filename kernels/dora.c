#include "kernels/dora.h"

#include "kernels/check_priv.h"

tess_status tess_row_norm_check(const tess_row_norm_args *a)
{
    static const char op[] = "row norm";
    int64_t numel = 0;
    TESS_TRY(tess_check_extent(op, "row_numel", a->row_numel, 0));
    TESS_TRY(tess_check_extent(op, "dim", a->dim, 1));
    TESS_TRY(tess_mul_i64(a->row_numel, a->dim, &numel));
    TESS_CHECK(a->dt == TESS_F32 || a->dt == TESS_BF16, TESS_E_DTYPE,
               "%s: rounded to %s, expected f32 or bf16", op, tess_dtype_name(a->dt));
    TESS_TRY(tess_check_pointer(op, "x", a->x, numel));
    return tess_check_pointer(op, "norm", a->norm, a->row_numel);
}

/* What both directions have. */
static tess_status check_shape(const char *op, tess_view z, tess_view magnitude, const float *norm,
                               int64_t row_numel, int64_t dim)
{
    int64_t numel = 0;
    TESS_TRY(tess_check_extent(op, "row_numel", row_numel, 0));
    TESS_TRY(tess_check_extent(op, "dim", dim, 1));
    TESS_TRY(tess_mul_i64(row_numel, dim, &numel));
    TESS_TRY(tess_check_float(op, "z", z));
    TESS_TRY(tess_check_numel(op, "z", z, numel));
    TESS_TRY(tess_check_operand(op, "magnitude", magnitude, dim, z.dt));
    return tess_check_pointer(op, "norm", norm, dim);
}

tess_status tess_dora_check(const tess_dora_args *a)
{
    static const char op[] = "dora";
    TESS_TRY(check_shape(op, a->z, a->magnitude, a->norm, a->row_numel, a->dim));
    if (a->bias.numel > 0) {
        TESS_TRY(tess_check_float(op, "bias", a->bias));
        TESS_TRY(tess_check_numel(op, "bias", a->bias, a->dim));
    }
    if (a->y.dt != TESS_F32)
        TESS_TRY(tess_check_dtype(op, "y", a->y, a->z.dt));
    TESS_TRY(tess_check_rows(op, "y", a->y, a->row_numel, a->dim, a->y_stride));
    return tess_check_disjoint(op, "z", a->y, a->z);
}

tess_status tess_dora_backward_check(const tess_dora_backward_args *a)
{
    static const char op[] = "dora backward";
    TESS_TRY(check_shape(op, a->z, a->magnitude, a->norm, a->row_numel, a->dim));
    TESS_TRY(tess_check_dtype(op, "d_y", a->d_y, a->z.dt));
    TESS_TRY(tess_check_rows(op, "d_y", a->d_y, a->row_numel, a->dim, a->d_y_stride));
    TESS_TRY(tess_check_dtype(op, "d_z", a->d_z, a->z.dt));
    TESS_TRY(tess_check_rows(op, "d_z", a->d_z, a->row_numel, a->dim, a->d_z_stride));
    if (a->d_direct.numel > 0)
        TESS_TRY(tess_check_operand(op, "d_direct", a->d_direct, a->z.numel, a->z.dt));
    TESS_CHECK(a->d_z.data != a->d_y.data || a->d_z_stride == a->d_y_stride, TESS_E_ARG,
               "%s: d_z takes the place of d_y with rows %" PRId64 " apart instead of %" PRId64, op,
               a->d_z_stride, a->d_y_stride);
    TESS_TRY(tess_check_pointer(op, "d_magnitude", a->d_magnitude, a->dim));
    return tess_check_pointer(op, "work", a->work, 16 * a->dim);
}
