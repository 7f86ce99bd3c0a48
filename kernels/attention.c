#include "kernels/attention.h"

#include <math.h>

#include "kernels/check_priv.h"

static tess_status check_shape(const char *op, const tess_attention_shape *shape, int64_t window,
                               float scale)
{
    TESS_CHECK(shape->dt == TESS_F32 || shape->dt == TESS_BF16, TESS_E_DTYPE,
               "%s: dtype is %s, expected f32 or bf16", op, tess_dtype_name(shape->dt));
    TESS_TRY(tess_check_extent(op, "token_numel", shape->token_numel, 0));
    TESS_TRY(tess_check_extent(op, "kv_head_numel", shape->kv_head_numel, 1));
    TESS_TRY(tess_check_extent(op, "head_numel", shape->head_numel, 1));
    TESS_TRY(tess_check_extent(op, "dim", shape->dim, 1));
    TESS_CHECK(shape->head_numel % shape->kv_head_numel == 0, TESS_E_ARG,
               "%s: %" PRId64 " query heads are not a multiple of %" PRId64 " key-value heads", op,
               shape->head_numel, shape->kv_head_numel);
    TESS_CHECK(shape->token_numel <= INT32_MAX, TESS_E_RANGE,
               "%s: %" PRId64 " tokens, expected at most 2147483647", op, shape->token_numel);
    TESS_CHECK(window >= 0, TESS_E_RANGE, "%s: window is %" PRId64 ", expected 0 (none) or more",
               op, window);
    const int64_t segment = shape->segment_numel;
    TESS_CHECK(segment >= 0 && (segment == 0 || shape->token_numel % segment == 0), TESS_E_ARG,
               "%s: %" PRId64 " tokens are no whole segments of %" PRId64, op, shape->token_numel,
               segment);
    TESS_CHECK(segment == 0 || window == 0, TESS_E_UNSUPPORTED,
               "%s: a window of %" PRId64 " inside segments: only causal attention has windows", op,
               window);
    TESS_CHECK(isfinite(scale) && scale > 0.0f, TESS_E_RANGE,
               "%s: scale is %g, expected a finite number above 0", op, (double)scale);
    return TESS_OK;
}

static tess_status check_doc_start(const char *op, const tess_attention_shape *shape,
                                   const int32_t *doc_start, bool can_read)
{
    if (shape->segment_numel > 0)
        return TESS_OK;
    TESS_TRY(tess_check_pointer(op, "doc_start", doc_start, shape->token_numel));
    for (int64_t i = 0; can_read && i < shape->token_numel; i++) {
        const int64_t least = i > 0 ? doc_start[i - 1] : 0;
        TESS_CHECK(doc_start[i] >= least && doc_start[i] <= i, TESS_E_RANGE,
                   "%s: doc_start of token %" PRId64 " is %" PRId32 ", expected %" PRId64
                   " to %" PRId64,
                   op, i, doc_start[i], least, i);
        TESS_CHECK(i - doc_start[i] < shape->longest_numel, TESS_E_RANGE,
                   "%s: token %" PRId64 " is %" PRId64
                   " tokens into its document, longest_numel allows %" PRId64,
                   op, i, i - doc_start[i] + 1, shape->longest_numel);
    }
    return TESS_OK;
}

static tess_status check_queries(const char *op, const char *name, tess_view v,
                                 const tess_attention_shape *shape)
{
    int64_t numel = 0;
    TESS_TRY(tess_mul_i64(shape->token_numel, shape->head_numel, &numel));
    TESS_TRY(tess_mul_i64(numel, shape->dim, &numel));
    return tess_check_operand(op, name, v, numel, shape->dt);
}

static tess_status check_keys(const char *op, const char *name, tess_view v,
                              const tess_attention_shape *shape)
{
    int64_t numel = 0;
    TESS_TRY(tess_mul_i64(shape->token_numel, shape->kv_head_numel, &numel));
    TESS_TRY(tess_mul_i64(numel, shape->dim, &numel));
    return tess_check_operand(op, name, v, numel, shape->dt);
}

static tess_status check_out(const char *op, tess_view v, const tess_attention_shape *shape,
                             int64_t stride)
{
    int64_t row_numel = 0;
    if (stride == 0)
        return check_queries(op, "out", v, shape);
    TESS_TRY(tess_mul_i64(shape->head_numel, shape->dim, &row_numel));
    TESS_TRY(tess_check_rows(op, "out", v, shape->token_numel, row_numel, stride));
    return tess_check_dtype(op, "out", v, shape->dt);
}

tess_status tess_attention_check(const tess_attention_args *a)
{
    static const char op[] = "attention";
    const tess_attention_shape *shape = &a->shape;
    TESS_TRY(check_shape(op, shape, a->window, a->scale));
    TESS_TRY(check_queries(op, "q", a->q, shape));
    TESS_TRY(check_keys(op, "k", a->k, shape));
    TESS_TRY(check_keys(op, "v", a->v, shape));
    TESS_TRY(check_out(op, a->out, shape, a->out_stride));
    TESS_TRY(tess_check_pointer(op, "lse", a->lse, shape->token_numel));
    TESS_TRY(tess_check_disjoint(op, "q", a->out, a->q));
    TESS_TRY(tess_check_disjoint(op, "k", a->out, a->k));
    TESS_TRY(tess_check_disjoint(op, "v", a->out, a->v));
    return check_doc_start(op, shape, a->doc_start, tess_check_can_read(a->q));
}

tess_status tess_attention_backward_check(const tess_attention_backward_args *a)
{
    static const char op[] = "attention backward";
    const tess_attention_shape *shape = &a->shape;
    TESS_TRY(check_shape(op, shape, a->window, a->scale));
    TESS_TRY(check_queries(op, "q", a->q, shape));
    TESS_TRY(check_keys(op, "k", a->k, shape));
    TESS_TRY(check_keys(op, "v", a->v, shape));
    TESS_TRY(check_out(op, a->out, shape, a->out_stride));
    TESS_TRY(check_queries(op, "d_out", a->d_out, shape));
    TESS_TRY(check_queries(op, "d_q", a->d_q, shape));
    TESS_TRY(check_keys(op, "d_k", a->d_k, shape));
    TESS_TRY(check_keys(op, "d_v", a->d_v, shape));
    TESS_TRY(tess_check_pointer(op, "lse", a->lse, shape->token_numel));
    const tess_view outputs[] = {a->d_q, a->d_k, a->d_v};
    const tess_view inputs[] = {a->q, a->k, a->v, a->out, a->d_out};
    for (int i = 0; i < TESS_NELEM(outputs); i++) {
        for (int j = 0; j < TESS_NELEM(inputs); j++)
            TESS_TRY(tess_check_disjoint(op, "an input", outputs[i], inputs[j]));
        for (int j = 0; j < i; j++)
            TESS_TRY(tess_check_disjoint(op, "another output", outputs[i], outputs[j]));
    }
    return check_doc_start(op, shape, a->doc_start, tess_check_can_read(a->q));
}
