#include "kernels/quantizer_binary.h"

#include "kernels/check_priv.h"

int64_t tess_entropy_work_numel(int64_t dim)
{
    const int64_t high = dim / 2, low = dim - high;
    return (INT64_C(1) << dim) +
           TESS_ENTROPY_ROW_NUMEL * ((INT64_C(1) << high) + (INT64_C(1) << low));
}

static tess_status check_rows(const char *op, const tess_sign_rows *r)
{
    TESS_TRY(tess_check_extent(op, "row_numel", r->row_numel, 0));
    TESS_CHECK(r->dim >= 1 && r->dim <= TESS_SIGN_DIM_MAX, TESS_E_RANGE,
               "%s: %" PRId64 " bits, expected 1 to %d; use groups with an index each", op, r->dim,
               TESS_SIGN_DIM_MAX);
    TESS_CHECK(r->stride == 0 || r->stride >= r->dim, TESS_E_ARG,
               "%s: rows of x are %" PRId64 " elements apart but hold %" PRId64, op, r->stride,
               r->dim);
    TESS_CHECK(r->magnitude > 0.0f, TESS_E_RANGE, "%s: magnitude is %g, expected above 0", op,
               (double)r->magnitude);
    return tess_check_pointer(op, "x", r->x, r->row_numel);
}

static tess_status check_beta(const char *op, double beta)
{
    TESS_CHECK(beta > 0.0, TESS_E_RANGE, "%s: inverse temperature is %g, expected above 0", op,
               beta);
    return TESS_OK;
}

static tess_status check_entropy_dim(const char *op, int64_t dim)
{
    TESS_CHECK(dim >= 1 && dim <= TESS_ENTROPY_DIM_MAX, TESS_E_RANGE,
               "%s: the mean of 2^%" PRId64 " probabilities, expected 1 to %d bits; take the batch "
               "entropy of groups of 9 bits",
               op, dim, TESS_ENTROPY_DIM_MAX);
    return TESS_OK;
}

tess_status tess_quantizer_sign_check(const tess_quantizer_sign_args *a)
{
    static const char op[] = "quantizer sign";
    TESS_TRY(check_rows(op, &a->rows));
    TESS_CHECK(a->order <= TESS_BITS_LSB_FIRST, TESS_E_ARG,
               "%s: order %d is not one of tess_bit_order", op, (int)a->order);
    if (a->out.numel == 0)
        return TESS_OK;
    return tess_check_float_rows(op, "out", a->out, a->rows.row_numel, a->rows.dim, a->out_stride);
}

tess_status tess_quantizer_sign_decode_check(const tess_quantizer_sign_decode_args *a)
{
    static const char op[] = "quantizer sign_decode";
    TESS_TRY(tess_check_extent(op, "row_numel", a->row_numel, 0));
    TESS_CHECK(a->dim >= 1 && a->dim <= TESS_SIGN_DIM_MAX, TESS_E_RANGE,
               "%s: %" PRId64 " bits, expected 1 to %d", op, a->dim, TESS_SIGN_DIM_MAX);
    TESS_CHECK(a->order <= TESS_BITS_LSB_FIRST, TESS_E_ARG,
               "%s: order %d is not one of tess_bit_order", op, (int)a->order);
    TESS_TRY(tess_check_pointer(op, "index", a->index, a->row_numel));
    return tess_check_float_rows(op, "out", a->out, a->row_numel, a->dim, a->out_stride);
}

tess_status tess_quantizer_sign_loss_check(const tess_quantizer_sign_loss_args *a)
{
    static const char op[] = "quantizer sign_loss";
    TESS_TRY(check_rows(op, &a->rows));
    return a->entropy != NULL ? check_beta(op, a->beta) : TESS_OK;
}

tess_status tess_quantizer_sign_backward_check(const tess_quantizer_sign_backward_args *a)
{
    static const char op[] = "quantizer sign_backward";
    TESS_TRY(check_rows(op, &a->rows));
    TESS_TRY(tess_check_pointer(op, "d_x", a->d_x, a->rows.row_numel));
    if (a->entropy != 0.0)
        TESS_TRY(check_beta(op, a->beta));
    if (a->d_out.numel == 0)
        return TESS_OK;
    return tess_check_float_rows(op, "d_out", a->d_out, a->rows.row_numel, a->rows.dim,
                                 a->d_out_stride);
}

tess_status tess_quantizer_pbar_check(const tess_quantizer_pbar_args *a)
{
    static const char op[] = "quantizer pbar";
    TESS_TRY(check_rows(op, &a->rows));
    TESS_TRY(check_entropy_dim(op, a->rows.dim));
    TESS_TRY(check_beta(op, a->beta));
    TESS_TRY(tess_check_exponent(op, a->exponent));
    TESS_TRY(tess_check_pointer(op, "sum", a->sum, 1));
    return tess_check_pointer(op, "work", a->work, tess_entropy_work_numel(a->rows.dim));
}

tess_status tess_quantizer_batch_entropy_check(const tess_quantizer_batch_entropy_args *a)
{
    static const char op[] = "quantizer batch_entropy";
    TESS_TRY(check_entropy_dim(op, a->dim));
    TESS_TRY(tess_check_extent(op, "valid_numel", a->valid_numel, 1));
    TESS_TRY(tess_check_exponent(op, a->exponent));
    TESS_CHECK(a->least >= 0.0 && a->least < 1.0, TESS_E_RANGE,
               "%s: least is %g, expected 0 <= least < 1", op, a->least);
    TESS_TRY(tess_check_pointer(op, "sum", a->sum, 1));
    TESS_TRY(tess_check_pointer(op, "loss", a->loss, 1));
    return tess_check_pointer(op, "slope", a->slope, 1);
}

tess_status
tess_quantizer_batch_entropy_backward_check(const tess_quantizer_batch_entropy_backward_args *a)
{
    static const char op[] = "quantizer batch_entropy_backward";
    TESS_TRY(check_rows(op, &a->rows));
    TESS_TRY(check_entropy_dim(op, a->rows.dim));
    TESS_TRY(check_beta(op, a->beta));
    TESS_TRY(tess_check_pointer(op, "slope", a->slope, 1));
    return tess_check_pointer(op, "d_x", a->d_x, a->rows.row_numel);
}
