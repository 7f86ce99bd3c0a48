#include "kernels/elementwise.h"

#include "kernels/check_priv.h"

/* An output with the elements of `like`, in rows of `dim` that are `stride` apart. */
static tess_status check_strided(const char *op, const char *name, tess_view v, tess_view like,
                                 int64_t dim, int64_t stride)
{
    if (stride == 0)
        return tess_check_operand(op, name, v, like.numel, like.dt);
    TESS_CHECK(dim > 0 && like.numel % dim == 0, TESS_E_ARG,
               "%s: %" PRId64 " elements, expected whole rows of %" PRId64, op, like.numel, dim);
    TESS_TRY(tess_check_rows(op, name, v, like.numel / dim, dim, stride));
    return tess_check_dtype(op, name, v, like.dt);
}

static tess_status check_apart(const char *op, const tess_swiglu_backward_args *a)
{
    const tess_view outputs[] = {a->d_gate, a->d_up};
    for (int i = 0; i < TESS_NELEM(outputs); i++) {
        TESS_TRY(tess_check_disjoint(op, "gate", outputs[i], a->gate));
        TESS_TRY(tess_check_disjoint(op, "up", outputs[i], a->up));
        TESS_TRY(tess_check_disjoint(op, "d_out", outputs[i], a->d_out));
    }
    return TESS_OK;
}

tess_status tess_swiglu_check(const tess_swiglu_args *a)
{
    static const char op[] = "swiglu";
    TESS_TRY(tess_check_float(op, "gate", a->gate));
    TESS_TRY(tess_check_numel(op, "gate", a->gate, a->gate.numel));
    TESS_TRY(tess_check_operand(op, "up", a->up, a->gate.numel, a->gate.dt));
    TESS_TRY(check_strided(op, "out", a->out, a->gate, a->dim, a->out_stride));
    if (a->out_stride > 0) {
        TESS_TRY(tess_check_disjoint(op, "gate", a->out, a->gate));
        return tess_check_disjoint(op, "up", a->out, a->up);
    }
    TESS_TRY(tess_check_alias(op, "gate", a->out, a->gate));
    return tess_check_alias(op, "up", a->out, a->up);
}

tess_status tess_swiglu_backward_check(const tess_swiglu_backward_args *a)
{
    static const char op[] = "swiglu backward";
    TESS_TRY(tess_check_float(op, "gate", a->gate));
    TESS_TRY(tess_check_numel(op, "gate", a->gate, a->gate.numel));
    TESS_TRY(tess_check_operand(op, "up", a->up, a->gate.numel, a->gate.dt));
    TESS_TRY(tess_check_operand(op, "d_out", a->d_out, a->gate.numel, a->gate.dt));
    TESS_TRY(check_strided(op, "d_gate", a->d_gate, a->gate, a->dim, a->d_stride));
    TESS_TRY(check_strided(op, "d_up", a->d_up, a->gate, a->dim, a->d_stride));
    if (a->d_stride > 0) /* rows of both may interleave: they are columns of one buffer */
        return check_apart(op, a);
    TESS_TRY(tess_check_disjoint(op, "d_gate", a->d_up, a->d_gate));
    TESS_TRY(tess_check_disjoint(op, "d_out", a->d_gate, a->d_out));
    TESS_TRY(tess_check_disjoint(op, "d_out", a->d_up, a->d_out));
    TESS_TRY(tess_check_alias(op, "gate", a->d_gate, a->gate));
    TESS_TRY(tess_check_alias(op, "up", a->d_gate, a->up));
    TESS_TRY(tess_check_alias(op, "gate", a->d_up, a->gate));
    return tess_check_alias(op, "up", a->d_up, a->up);
}

tess_status tess_relu_check(const tess_relu_args *a)
{
    static const char op[] = "relu";
    TESS_TRY(tess_check_float(op, "out", a->out));
    TESS_TRY(tess_check_numel(op, "out", a->out, a->out.numel));
    TESS_TRY(tess_check_operand(op, "x", a->x, a->out.numel, a->out.dt));
    TESS_TRY(tess_check_operand(op, "gate", a->gate, a->out.numel, a->out.dt));
    TESS_TRY(tess_check_alias(op, "x", a->out, a->x));
    return tess_check_alias(op, "gate", a->out, a->gate);
}

tess_status tess_add_check(const tess_add_args *a)
{
    static const char op[] = "add";
    TESS_TRY(tess_check_float(op, "out", a->out));
    TESS_TRY(tess_check_numel(op, "out", a->out, a->out.numel));
    TESS_TRY(tess_check_operand(op, "a", a->a, a->out.numel, a->out.dt));
    TESS_TRY(tess_check_operand(op, "b", a->b, a->out.numel, a->out.dt));
    TESS_TRY(tess_check_alias(op, "a", a->out, a->a));
    return tess_check_alias(op, "b", a->out, a->b);
}

tess_status tess_add_bias_check(const tess_add_bias_args *a)
{
    static const char op[] = "add_bias";
    TESS_TRY(tess_check_float(op, "x", a->x));
    TESS_TRY(tess_check_float(op, "bias", a->bias));
    TESS_TRY(tess_check_extent(op, "bias length", a->bias.numel, 1));
    TESS_TRY(tess_check_numel(op, "bias", a->bias, a->bias.numel));
    TESS_TRY(tess_check_numel(op, "x", a->x, a->x.numel));
    TESS_CHECK(a->x.numel % a->bias.numel == 0, TESS_E_ARG,
               "add_bias: x holds %" PRId64 " elements, expected whole rows of %" PRId64,
               a->x.numel, a->bias.numel);
    return tess_check_disjoint(op, "bias", a->x, a->bias);
}

tess_status tess_sum_rows_check(const tess_sum_rows_args *a)
{
    static const char op[] = "sum_rows";
    int64_t numel = 0;
    TESS_TRY(tess_check_extent(op, "row_numel", a->row_numel, 0));
    TESS_TRY(tess_check_extent(op, "dim", a->dim, 1));
    TESS_TRY(tess_mul_i64(a->row_numel, a->dim, &numel));
    TESS_TRY(tess_check_float(op, "x", a->x));
    TESS_TRY(tess_check_numel(op, "x", a->x, numel));
    TESS_TRY(tess_check_pointer(op, "out", a->out, a->dim));
    return tess_check_pointer(op, "work", a->work, 16 * a->dim);
}

tess_status tess_dropout_check(const tess_dropout_args *a)
{
    static const char op[] = "dropout";
    TESS_TRY(tess_check_float(op, "x", a->x));
    TESS_TRY(tess_check_numel(op, "x", a->x, a->x.numel));
    TESS_TRY(tess_check_float(op, "out", a->out));
    TESS_TRY(tess_check_numel(op, "out", a->out, a->x.numel));
    TESS_CHECK(a->p >= 0.0f && a->p < 1.0f, TESS_E_RANGE, "dropout: p is %g, expected 0 <= p < 1",
               (double)a->p);
    TESS_TRY(tess_check_extent(op, "first_idx", a->first_idx, 0));
    if (a->add.numel > 0) {
        TESS_TRY(tess_check_float(op, "add", a->add));
        TESS_TRY(tess_check_numel(op, "add", a->add, a->x.numel));
        TESS_TRY(tess_check_alias(op, "add", a->out, a->add));
    }
    return tess_check_alias(op, "x", a->out, a->x);
}

tess_status tess_cast_check(const tess_cast_args *a)
{
    static const char op[] = "cast";
    TESS_TRY(tess_check_float(op, "src", a->src));
    TESS_TRY(tess_check_numel(op, "src", a->src, a->src.numel));
    TESS_TRY(tess_check_float(op, "dst", a->dst));
    TESS_TRY(tess_check_numel(op, "dst", a->dst, a->src.numel));
    return tess_check_disjoint(op, "src", a->dst, a->src);
}
