#include "kernels/quantizer_vector.h"

#include "kernels/check_priv.h"

tess_status tess_coded_rows_check(const char *op, const tess_coded_rows *rows)
{
    int64_t numel = 0;
    TESS_TRY(tess_check_extent(op, "row_numel", rows->row_numel, 0));
    TESS_TRY(tess_check_extent(op, "dim", rows->dim, 1));
    TESS_TRY(tess_check_extent(op, "code_numel", rows->code_numel, 0));
    TESS_TRY(tess_mul_i64(rows->row_numel, rows->dim, &numel));
    TESS_TRY(tess_mul_i64(rows->code_numel, rows->dim, &numel));
    TESS_CHECK(rows->code_numel < (int64_t)TESS_NO_CODE, TESS_E_RANGE,
               "%s: %" PRId64 " codes, expected fewer than 2^32 - 1, the mark of masked vectors",
               op, rows->code_numel);
    if (rows->code == NULL) /* q_i is row i */
        TESS_CHECK(rows->code_numel == rows->row_numel, TESS_E_ARG,
                   "%s: code is missing and there are %" PRId64 " rows of codes for %" PRId64
                   " vectors; pass the code of each vector, or one row for each",
                   op, rows->code_numel, rows->row_numel);
    return tess_check_pointer(op, "codes", rows->codes, rows->code_numel);
}

static tess_status check_length(const char *op, float length, float least)
{
    TESS_CHECK(length >= 0.0f, TESS_E_RANGE, "%s: length is %g, expected 0 (as it is) or above", op,
               (double)length);
    TESS_CHECK(length == 0.0f || least > 0.0f, TESS_E_RANGE,
               "%s: least norm is %g, expected above 0 (usually %g)", op, (double)least,
               (double)TESS_UNIT_LEAST);
    return TESS_OK;
}

static tess_view core_view(const float *core, int64_t rows, int64_t dim, tess_space space)
{
    const tess_view v = {(void *)(uintptr_t)core, rows * dim, TESS_F32, space};
    return v;
}

tess_status tess_quantizer_enter_check(const tess_quantizer_enter_args *a)
{
    static const char op[] = "quantizer enter";
    int64_t numel = 0;
    TESS_TRY(tess_check_extent(op, "row_numel", a->row_numel, 0));
    TESS_TRY(tess_check_extent(op, "dim", a->dim, 1));
    TESS_TRY(tess_mul_i64(a->row_numel, a->dim, &numel));
    TESS_TRY(tess_check_float_rows(op, "x", a->x, a->row_numel, a->dim, a->x_stride));
    TESS_TRY(check_length(op, a->length, a->least));
    TESS_TRY(tess_check_pointer(op, "core", a->core, numel));
    TESS_TRY(
        tess_check_disjoint(op, "x", core_view(a->core, a->row_numel, a->dim, a->x.space), a->x));
    return a->length > 0.0f ? tess_check_pointer(op, "norm", a->norm, a->row_numel) : TESS_OK;
}

tess_status tess_quantizer_enter_backward_check(const tess_quantizer_enter_backward_args *a)
{
    static const char op[] = "quantizer enter backward";
    int64_t numel = 0;
    TESS_TRY(tess_check_extent(op, "row_numel", a->row_numel, 0));
    TESS_TRY(tess_check_extent(op, "dim", a->dim, 1));
    TESS_TRY(tess_mul_i64(a->row_numel, a->dim, &numel));
    TESS_TRY(check_length(op, a->length, a->least));
    TESS_TRY(tess_check_pointer(op, "d_core", a->d_core, numel));
    TESS_TRY(tess_check_float_rows(op, "d_x", a->d_x, a->row_numel, a->dim, a->d_stride));
    TESS_TRY(tess_check_disjoint(op, "d_core", a->d_x,
                                 core_view(a->d_core, a->row_numel, a->dim, a->d_x.space)));
    if (a->length == 0.0f)
        return TESS_OK;
    TESS_TRY(tess_check_pointer(op, "core", a->core, numel));
    return tess_check_pointer(op, "norm", a->norm, a->row_numel);
}

tess_status tess_quantizer_layer_norm_check(const tess_quantizer_layer_norm_args *a)
{
    static const char op[] = "quantizer layer_norm";
    TESS_TRY(tess_check_extent(op, "row_numel", a->row_numel, 0));
    TESS_TRY(tess_check_extent(op, "dim", a->dim, 1));
    TESS_TRY(tess_check_float_rows(op, "x", a->x, a->row_numel, a->dim, 0));
    TESS_TRY(tess_check_operand(op, "y", a->y, a->x.numel, a->x.dt));
    TESS_CHECK(a->eps >= 0.0, TESS_E_RANGE, "%s: eps is %g, expected at least 0", op, a->eps);
    return tess_check_alias(op, "x", a->y, a->x);
}

tess_status tess_quantizer_gather_check(const tess_quantizer_gather_args *a)
{
    static const char op[] = "quantizer gather";
    const tess_coded_rows *r = &a->rows;
    TESS_TRY(tess_coded_rows_check(op, r));
    TESS_TRY(tess_check_float_rows(op, "out", a->out, r->row_numel, r->dim, a->out_stride));
    if (a->masked.numel == 0)
        return TESS_OK;
    TESS_TRY(tess_check_rows(op, "masked", a->masked, r->row_numel, r->dim, a->out_stride));
    TESS_CHECK(a->masked.dt == a->out.dt, TESS_E_DTYPE,
               "%s: masked is %s, expected %s, the dtype of out; cast it first", op,
               tess_dtype_name(a->masked.dt), tess_dtype_name(a->out.dt));
    return tess_check_alias(op, "masked", a->out, a->masked);
}

tess_status tess_quantizer_residual_check(const tess_quantizer_residual_args *a)
{
    static const char op[] = "quantizer residual";
    TESS_TRY(tess_coded_rows_check(op, &a->rows));
    TESS_CHECK(a->next != NULL || a->sum != NULL || a->rows.row_numel == 0, TESS_E_ARG,
               "%s: neither next nor sum is wanted; pass one of them", op);
    return a->next != NULL ? tess_check_pointer(op, "r", a->r, a->rows.row_numel) : TESS_OK;
}

tess_status tess_quantizer_row_loss_check(const tess_quantizer_row_loss_args *a)
{
    static const char op[] = "quantizer row_loss";
    TESS_TRY(tess_coded_rows_check(op, &a->rows));
    TESS_TRY(tess_check_pointer(op, "x", a->x, a->rows.row_numel));
    return tess_check_pointer(op, "out", a->out, a->rows.row_numel);
}

tess_status tess_quantizer_backward_check(const tess_quantizer_backward_args *a)
{
    static const char op[] = "quantizer backward";
    const tess_coded_rows *r = &a->rows;
    TESS_TRY(tess_coded_rows_check(op, r));
    TESS_TRY(tess_check_pointer(op, "x", a->x, r->row_numel));
    TESS_TRY(tess_check_pointer(op, "d_x", a->d_x, r->row_numel));
    TESS_CHECK(a->estimator <= TESS_ESTIMATOR_ROTATION, TESS_E_ARG,
               "%s: estimator %d is not one of tess_estimator", op, (int)a->estimator);
    TESS_CHECK(a->d_next == NULL || (a->keep >= 0.0f && a->keep <= 1.0f), TESS_E_RANGE,
               "%s: keep is %g, expected 0 <= keep <= 1", op, (double)a->keep);
    if (a->d_out.numel == 0)
        return TESS_OK;
    return tess_check_float_rows(op, "d_out", a->d_out, r->row_numel, r->dim, a->d_stride);
}

tess_status tess_quantizer_directed_check(const tess_quantizer_directed_args *a)
{
    static const char op[] = "quantizer directed";
    const tess_coded_rows *r = &a->rows;
    TESS_TRY(tess_coded_rows_check(op, r));
    TESS_TRY(tess_check_pointer(op, "x", a->x, r->row_numel));
    TESS_TRY(tess_check_pointer(op, "noise", a->noise, r->row_numel));
    return tess_check_float_rows(op, "out", a->out, r->row_numel, r->dim, a->out_stride);
}

tess_status tess_quantizer_directed_backward_check(const tess_quantizer_directed_backward_args *a)
{
    static const char op[] = "quantizer directed_backward";
    const tess_coded_rows *r = &a->rows;
    TESS_TRY(tess_coded_rows_check(op, r));
    TESS_TRY(tess_check_pointer(op, "x", a->x, r->row_numel));
    TESS_TRY(tess_check_pointer(op, "noise", a->noise, r->row_numel));
    TESS_TRY(tess_check_pointer(op, "d_x", a->d_x, r->row_numel));
    TESS_TRY(tess_check_pointer(op, "d_q", a->d_q, r->row_numel));
    return tess_check_float_rows(op, "d_out", a->d_out, r->row_numel, r->dim, a->d_stride);
}

tess_status tess_quantizer_code_gradient_check(const tess_quantizer_code_gradient_args *a)
{
    static const char op[] = "quantizer code_gradient";
    TESS_TRY(tess_coded_rows_check(op, &a->rows));
    if (a->d_q == NULL)
        TESS_TRY(tess_check_pointer(op, "x", a->x, a->rows.row_numel));
    return tess_check_pointer(op, "d_codes", a->d_codes, a->rows.code_numel);
}

int64_t tess_orthogonal_work_numel(int64_t dim, int thread_numel)
{
    return (dim + thread_numel) * dim; /* the gram, and a product of it for each thread */
}

tess_status tess_quantizer_gram_check(const tess_quantizer_gram_args *a)
{
    static const char op[] = "quantizer gram";
    TESS_TRY(tess_check_extent(op, "code_numel", a->code_numel, 0));
    TESS_TRY(tess_check_extent(op, "dim", a->dim, 1));
    TESS_CHECK(a->exponent >= 0 && a->exponent <= 50, TESS_E_RANGE,
               "%s: exponent is %d, expected 0 <= exponent <= 50 (tess_fixed_exponent)", op,
               a->exponent);
    TESS_TRY(tess_check_pointer(op, "codes", a->codes, a->code_numel));
    return tess_check_pointer(op, "gram", a->gram, 1);
}

tess_status tess_quantizer_orthogonal_check(const tess_quantizer_orthogonal_args *a)
{
    static const char op[] = "quantizer orthogonal";
    TESS_TRY(tess_check_extent(op, "code_numel", a->code_numel, 0));
    TESS_TRY(tess_check_extent(op, "dim", a->dim, 1));
    TESS_TRY(tess_check_extent(op, "used_numel", a->used_numel, 1));
    TESS_TRY(tess_check_exponent(op, a->exponent));
    TESS_TRY(tess_check_pointer(op, "gram", a->gram, 1));
    TESS_TRY(tess_check_pointer(op, "codes", a->codes, a->code_numel));
    return a->d_codes != NULL ? tess_check_pointer(op, "work", a->work, a->dim) : TESS_OK;
}

tess_status tess_quantizer_mask_check(const tess_quantizer_mask_args *a)
{
    static const char op[] = "quantizer mask";
    TESS_TRY(tess_check_extent(op, "row_numel", a->row_numel, 0));
    TESS_TRY(tess_check_extent(op, "index_numel", a->index_numel, 1));
    TESS_TRY(tess_check_pointer(op, "valid", a->valid, a->row_numel));
    return tess_check_pointer(op, "code", a->code, a->row_numel);
}

tess_status tess_quantizer_sample_check(const tess_quantizer_sample_args *a)
{
    static const char op[] = "quantizer sample";
    TESS_TRY(tess_check_extent(op, "row_numel", a->row_numel, 0));
    TESS_TRY(tess_check_extent(op, "dim", a->dim, 1));
    TESS_TRY(tess_check_extent(op, "code_numel", a->code_numel, 0));
    TESS_TRY(tess_check_extent(op, "first_row_idx", a->first_row_idx, 0));
    TESS_CHECK(a->first_code_idx >= 0 && a->code_numel <= a->all_numel - a->first_code_idx &&
                   a->all_numel < (int64_t)TESS_NO_CODE,
               TESS_E_RANGE, "%s: codes [%" PRId64 ", +%" PRId64 ") of %" PRId64, op,
               a->first_code_idx, a->code_numel, a->all_numel);
    TESS_CHECK(a->temperature > 0.0, TESS_E_RANGE,
               "%s: temperature is %g, expected above 0; at 0 the nearest code is the draw", op,
               a->temperature);
    TESS_TRY(tess_check_pointer(op, "x", a->x, a->row_numel));
    TESS_TRY(tess_check_pointer(op, "codes", a->codes, a->code_numel));
    return tess_check_pointer(op, "key", a->key, a->row_numel);
}
