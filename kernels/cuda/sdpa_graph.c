/*
 * Graphs of scaled-dot-product attention, node by node as the library's flash engines expect them.
 * Order of axes is batch, head, token, dim; memory order is free through strides.
 * @source NVIDIA/cudnn-frontend, include/cudnn_frontend/node/scaled_dot_product_flash_attention.h
 */
#include <string.h>

#include "core/arith.h"
#include "kernels/cuda/sdpa_library_priv.h"

typedef cudnnBackendDescriptor_t desc;

/* Extents of the case, and its tensors by what they are. */
typedef struct axes {
    int64_t b, hq, hk, s, d;
    const tess_sdpa_case *c;
} axes;

typedef struct tensor {
    int64_t uid; /* 0: virtual */
    cudnnDataType_t type;
    int64_t dim[4], stride[4];
    int64_t alignment; /* of its address in bytes; 0: 16 */
    bool is_scalar;    /* by value, on the host */
    desc offset;       /* NULL: not ragged */
} tensor;

static const int64_t one_by_one[4] = {1, 1, 1, 1};

/* -------- descriptors -------- */

static void note(tess_sdpa_graph *g, cudnnStatus_t e, int line, const char *what)
{
    if (g->st == TESS_OK && e != CUDNN_STATUS_SUCCESS)
        g->st = tess_cudnn_fail(g->lib, e, __FILE__, line, what);
}

static desc create(tess_sdpa_graph *g, cudnnBackendDescriptorType_t type)
{
    desc d = NULL;
    if (g->st != TESS_OK)
        return NULL;
    if (g->desc_numel == TESS_SDPA_DESC_MAX) {
        g->st = TESS_FAIL(TESS_E_RANGE, "attention graph: more than %d descriptors",
                          TESS_SDPA_DESC_MAX);
        return NULL;
    }
    note(g, g->lib->BackendCreateDescriptor(type, &d), __LINE__, "a descriptor");
    if (d != NULL)
        g->desc[g->desc_numel++] = d;
    return d;
}

static void set(tess_sdpa_graph *g, desc d, cudnnBackendAttributeName_t name,
                cudnnBackendAttributeType_t type, int64_t numel, const void *value)
{
    if (g->st == TESS_OK)
        note(g, g->lib->BackendSetAttribute(d, name, type, numel, value), __LINE__,
             "an attribute of attention's graph");
}

static void set_desc(tess_sdpa_graph *g, desc d, cudnnBackendAttributeName_t name, desc value)
{
    if (value != NULL)
        set(g, d, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value);
}

static desc finalize(tess_sdpa_graph *g, desc d, const char *what)
{
    if (g->st == TESS_OK)
        note(g, g->lib->BackendFinalize(d), __LINE__, what);
    return d;
}

static desc tensor_make(tess_sdpa_graph *g, const tensor *t)
{
    const int64_t alignment = t->alignment > 0 ? t->alignment : 16;
    const bool is_virtual = t->uid == 0;
    const int64_t uid = is_virtual ? g->next_virtual++ : t->uid;
    desc d = create(g, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    set(g, d, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &t->type);
    set(g, d, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, t->dim);
    set(g, d, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, t->stride);
    set(g, d, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &uid);
    set(g, d, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment);
    set(g, d, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &is_virtual);
    set(g, d, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &t->is_scalar);
    set_desc(g, d, CUDNN_ATTR_TENSOR_RAGGED_OFFSET_DESC, t->offset);
    return finalize(g, d, "a tensor of attention's graph");
}

/* Contiguous [b, h, rows, cols] that only exists inside the graph. */
static desc inner(tess_sdpa_graph *g, cudnnDataType_t type, int64_t b, int64_t h, int64_t rows,
                  int64_t cols)
{
    const tensor t = {
        .type = type, .dim = {b, h, rows, cols}, .stride = {h * rows * cols, rows * cols, cols, 1}};
    return tensor_make(g, &t);
}

static desc scalar(tess_sdpa_graph *g, tess_sdpa_uid uid)
{
    tensor t = {.uid = uid, .type = CUDNN_DATA_FLOAT, .is_scalar = true};
    memcpy(t.dim, one_by_one, sizeof(t.dim));
    memcpy(t.stride, one_by_one, sizeof(t.stride));
    return tensor_make(g, &t);
}

/* -------- operations -------- */

static void add_op(tess_sdpa_graph *g, desc op, const char *what)
{
    (void)finalize(g, op, what);
    if (g->st == TESS_OK && g->op_numel == TESS_SDPA_OP_MAX)
        g->st =
            TESS_FAIL(TESS_E_RANGE, "attention graph: more than %d operations", TESS_SDPA_OP_MAX);
    if (g->st == TESS_OK)
        g->op[g->op_numel++] = op;
}

/* Lengths of documents along the axes of a product; NULL: all of it. */
typedef struct lengths {
    desc m, n, k;
} lengths;

static void matmul(tess_sdpa_graph *g, desc a, desc b, desc out, lengths len)
{
    const cudnnDataType_t type = CUDNN_DATA_FLOAT;
    desc kind = create(g, CUDNN_BACKEND_MATMUL_DESCRIPTOR);
    set(g, kind, CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
    (void)finalize(g, kind, "a product's kind");
    desc op = create(g, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
    set_desc(g, op, CUDNN_ATTR_OPERATION_MATMUL_ADESC, a);
    set_desc(g, op, CUDNN_ATTR_OPERATION_MATMUL_BDESC, b);
    set_desc(g, op, CUDNN_ATTR_OPERATION_MATMUL_CDESC, out);
    set_desc(g, op, CUDNN_ATTR_OPERATION_MATMUL_DESC, kind);
    set_desc(g, op, CUDNN_ATTR_OPERATION_MATMUL_GEMM_M_OVERRIDE_DESC, len.m);
    set_desc(g, op, CUDNN_ATTR_OPERATION_MATMUL_GEMM_N_OVERRIDE_DESC, len.n);
    set_desc(g, op, CUDNN_ATTR_OPERATION_MATMUL_GEMM_K_OVERRIDE_DESC, len.k);
    add_op(g, op, "a product of attention's graph");
}

typedef struct pointwise_args {
    cudnnPointwiseMode_t mode;
    cudnnDataType_t type; /* of the arithmetic */
    desc x, b, t;         /* b, t: NULL where the mode has none */
    int64_t axis;         /* of GEN_INDEX */
    desc y;
} pointwise_args;

static desc pointwise(tess_sdpa_graph *g, const pointwise_args *a)
{
    desc kind = create(g, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    set(g, kind, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &a->mode);
    set(g, kind, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &a->type);
    if (a->mode == CUDNN_POINTWISE_GEN_INDEX)
        set(g, kind, CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, 1, &a->axis);
    (void)finalize(g, kind, "an elementwise kind");
    desc op = create(g, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    set_desc(g, op, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, kind);
    set_desc(g, op, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, a->x);
    set_desc(g, op, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, a->b);
    set_desc(g, op, CUDNN_ATTR_OPERATION_POINTWISE_TDESC, a->t);
    set_desc(g, op, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, a->y);
    add_op(g, op, "an elementwise operation of attention's graph");
    return a->y;
}

/* y = x op b in f32 over [b, hq, s, s]. */
static desc on_scores(tess_sdpa_graph *g, const axes *x, cudnnPointwiseMode_t mode, desc in,
                      desc other)
{
    const pointwise_args a = {.mode = mode,
                              .type = CUDNN_DATA_FLOAT,
                              .x = in,
                              .b = other,
                              .y = inner(g, CUDNN_DATA_FLOAT, x->b, x->hq, x->s, x->s)};
    return pointwise(g, &a);
}

static desc on_rows(tess_sdpa_graph *g, const axes *x, cudnnPointwiseMode_t mode, desc in,
                    desc other)
{
    const pointwise_args a = {.mode = mode,
                              .type = CUDNN_DATA_FLOAT,
                              .x = in,
                              .b = other,
                              .y = inner(g, CUDNN_DATA_FLOAT, x->b, x->hq, x->s, 1)};
    return pointwise(g, &a);
}

static desc reduce(tess_sdpa_graph *g, cudnnReduceTensorOp_t mode, desc x, desc y)
{
    const cudnnDataType_t type = CUDNN_DATA_FLOAT;
    desc kind = create(g, CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
    set(g, kind, CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1, &mode);
    set(g, kind, CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
    (void)finalize(g, kind, "a reduction's kind");
    desc op = create(g, CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
    set_desc(g, op, CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x);
    set_desc(g, op, CUDNN_ATTR_OPERATION_REDUCTION_YDESC, y);
    set_desc(g, op, CUDNN_ATTR_OPERATION_REDUCTION_DESC, kind);
    add_op(g, op, "a reduction of attention's graph");
    return y;
}

static desc reshape(tess_sdpa_graph *g, desc x, const tensor *y)
{
    desc out = tensor_make(g, y);
    desc op = create(g, CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
    set_desc(g, op, CUDNN_ATTR_OPERATION_RESHAPE_XDESC, x);
    set_desc(g, op, CUDNN_ATTR_OPERATION_RESHAPE_YDESC, out);
    add_op(g, op, "a reshape of attention's graph");
    return out;
}

/* -------- masks -------- */

static desc index_of(tess_sdpa_graph *g, const axes *x, desc like, int64_t axis)
{
    const pointwise_args a = {.mode = CUDNN_POINTWISE_GEN_INDEX,
                              .type = CUDNN_DATA_INT32,
                              .x = like,
                              .axis = axis,
                              .y = inner(g, CUDNN_DATA_INT32, x->b, x->hq, x->s, x->s)};
    return pointwise(g, &a);
}

static desc compare(tess_sdpa_graph *g, const axes *x, cudnnPointwiseMode_t mode, desc left,
                    desc right)
{
    const pointwise_args a = {.mode = mode,
                              .type = CUDNN_DATA_BOOLEAN,
                              .x = left,
                              .b = right,
                              .y = inner(g, CUDNN_DATA_BOOLEAN, x->b, x->hq, x->s, x->s)};
    return pointwise(g, &a);
}

static desc keep_where(tess_sdpa_graph *g, const axes *x, desc scores, desc mask, desc otherwise)
{
    const pointwise_args a = {.mode = CUDNN_POINTWISE_BINARY_SELECT,
                              .type = CUDNN_DATA_FLOAT,
                              .x = scores,
                              .b = otherwise,
                              .t = mask,
                              .y = inner(g, CUDNN_DATA_FLOAT, x->b, x->hq, x->s, x->s)};
    return pointwise(g, &a);
}

/* Nothing behind the end of a document. */
static desc mask_padding(tess_sdpa_graph *g, const axes *x, desc scores, desc length,
                         desc minus_infinity)
{
    if (length == NULL)
        return scores;
    desc row = index_of(g, x, scores, 2);
    desc col = index_of(g, x, scores, 3);
    desc is_row = compare(g, x, CUDNN_POINTWISE_CMP_LT, row, length);
    desc is_col = compare(g, x, CUDNN_POINTWISE_CMP_LT, col, length);
    desc is_both = compare(g, x, CUDNN_POINTWISE_LOGICAL_AND, is_row, is_col);
    return keep_where(g, x, scores, is_both, minus_infinity);
}

/* Nothing behind the row itself, but in segments. */
static desc mask_future(tess_sdpa_graph *g, const axes *x, desc scores, desc minus_infinity)
{
    if (x->c->is_whole)
        return scores;
    desc row = index_of(g, x, scores, 2);
    desc col = index_of(g, x, scores, 3);
    desc is_past = compare(g, x, CUDNN_POINTWISE_CMP_GE, row, col);
    return keep_where(g, x, scores, is_past, minus_infinity);
}

/* -------- tensors of the case -------- */

static desc documents(tess_sdpa_graph *g, const axes *x, tess_sdpa_uid uid, int64_t extra)
{
    const tensor t = {.uid = uid,
                      .type = CUDNN_DATA_INT32,
                      .dim = {x->b + extra, 1, 1, 1},
                      .stride = {1, 1, 1, 1}};
    return x->c->is_packed ? tensor_make(g, &t) : NULL;
}

/* [b, h, s, d] whose tokens lie `token_stride` elements apart. */
static tensor rows_of(const axes *x, tess_sdpa_uid uid, cudnnDataType_t type, int64_t h, int64_t d,
                      int64_t token_stride)
{
    const tensor t = {.uid = uid,
                      .type = type,
                      .dim = {x->b, h, x->s, d},
                      .stride = {x->s * token_stride, d, token_stride, 1}};
    return t;
}

static desc query_like(tess_sdpa_graph *g, const axes *x, tess_sdpa_uid uid, desc offset)
{
    tensor t = rows_of(x, uid, CUDNN_DATA_BFLOAT16, x->hq, x->d, x->c->head_numel * x->d);
    t.offset = offset;
    return tensor_make(g, &t);
}

static desc key_like(tess_sdpa_graph *g, const axes *x, tess_sdpa_uid uid, desc offset)
{
    tensor t = rows_of(x, uid, CUDNN_DATA_BFLOAT16, x->hk, x->d, x->c->kv_head_numel * x->d);
    t.offset = offset;
    return tensor_make(g, &t);
}

static desc key_transposed(tess_sdpa_graph *g, const axes *x, tess_sdpa_uid uid, desc offset)
{
    const int64_t token = x->c->kv_head_numel * x->d;
    const tensor t = {.uid = uid,
                      .type = CUDNN_DATA_BFLOAT16,
                      .dim = {x->b, x->hk, x->d, x->s},
                      .stride = {x->s * token, x->d, 1, token},
                      .offset = offset};
    return tensor_make(g, &t);
}

/* One number per row: [heads, T] without packing, token by token with it; the T of `heads` heads
 * are those of all segments. Packed ones of a group of heads start at any of them. */
static desc statistics(tess_sdpa_graph *g, const axes *x, tess_sdpa_uid uid, int64_t heads,
                       desc offset)
{
    const bool is_packed = x->c->is_packed != 0;
    const tensor t = {.uid = uid,
                      .type = CUDNN_DATA_FLOAT,
                      .dim = {x->b, x->hq, x->s, 1},
                      .stride = {x->c->is_whole ? x->s : heads * x->s, is_packed ? 1 : x->b * x->s,
                                 is_packed ? heads : 1, 1},
                      .alignment = sizeof(float),
                      .offset = offset};
    return tensor_make(g, &t);
}

/* -------- graphs -------- */

static void build_forward(tess_sdpa_graph *g, const axes *x)
{
    desc length = documents(g, x, TESS_SDPA_LENGTH, 0);
    desc at_q = documents(g, x, TESS_SDPA_OFFSET_Q, 1);
    desc at_kv = documents(g, x, TESS_SDPA_OFFSET_KV, 1);
    desc at_stats = documents(g, x, TESS_SDPA_OFFSET_STATS, 1);
    desc q = query_like(g, x, TESS_SDPA_Q, at_q);
    desc k = key_transposed(g, x, TESS_SDPA_K, at_kv);
    desc v = key_like(g, x, TESS_SDPA_V, at_kv);
    desc o = query_like(g, x, TESS_SDPA_O, at_q);
    desc stats = statistics(g, x, TESS_SDPA_STATS, x->c->head_numel, at_stats);
    desc minus_infinity = x->c->is_whole ? NULL : scalar(g, TESS_SDPA_MINUS_INFINITY);

    desc s = inner(g, CUDNN_DATA_FLOAT, x->b, x->hq, x->s, x->s);
    matmul(g, q, k, s, (lengths){.m = length, .n = length});
    s = on_scores(g, x, CUDNN_POINTWISE_MUL, s, scalar(g, TESS_SDPA_SCALE));
    s = mask_padding(g, x, s, length, minus_infinity);
    s = mask_future(g, x, s, minus_infinity);

    desc max =
        reduce(g, CUDNN_REDUCE_TENSOR_MAX, s, inner(g, CUDNN_DATA_FLOAT, x->b, x->hq, x->s, 1));
    desc e = on_scores(g, x, CUDNN_POINTWISE_SUB, s, max);
    e = on_scores(g, x, CUDNN_POINTWISE_EXP, e, NULL);
    desc sum =
        reduce(g, CUDNN_REDUCE_TENSOR_ADD, e, inner(g, CUDNN_DATA_FLOAT, x->b, x->hq, x->s, 1));
    desc log_sum = on_rows(g, x, CUDNN_POINTWISE_LOG, sum, NULL);
    const pointwise_args add = {
        .mode = CUDNN_POINTWISE_ADD, .type = CUDNN_DATA_FLOAT, .x = max, .b = log_sum, .y = stats};
    (void)pointwise(g, &add);
    const pointwise_args divide = {.mode = CUDNN_POINTWISE_DIV,
                                   .type = CUDNN_DATA_FLOAT,
                                   .x = e,
                                   .b = sum,
                                   .y = inner(g, CUDNN_DATA_BFLOAT16, x->b, x->hq, x->s, x->s)};
    matmul(g, pointwise(g, &divide), v, o, (lengths){.m = length, .k = length});
}

/* Scores or their gradient with the last two axes exchanged, in bf16. */
static desc transposed_scores(tess_sdpa_graph *g, const axes *x, desc scores)
{
    const tensor t = {.type = CUDNN_DATA_BFLOAT16,
                      .dim = {x->b, x->hq, x->s, x->s},
                      .stride = {x->hq * x->s * x->s, x->s * x->s, 1, x->s}};
    return reshape(g, scores, &t);
}

/* left^T right into a gradient of keys; query heads of a group are summed. */
static void key_gradient(tess_sdpa_graph *g, const axes *x, desc left, desc right, desc length,
                         desc out)
{
    const lengths len = {.m = length, .k = length};
    if (x->hq == x->hk) {
        matmul(g, left, right, out, len);
        return;
    }
    desc every = inner(g, CUDNN_DATA_BFLOAT16, x->b, x->hq, x->s, x->d);
    matmul(g, left, right, every, len);
    (void)reduce(g, CUDNN_REDUCE_TENSOR_ADD, every, out);
}

/* Row sums of dO * O, kept by the caller: an engine writes them before its main loop. */
static desc row_sums(tess_sdpa_graph *g, const axes *x, desc d_o, desc o)
{
    const tensor product = {.type = CUDNN_DATA_FLOAT,
                            .dim = {x->b, x->hq, x->s, x->d},
                            .stride = {x->hq * x->s * x->d, x->d, x->hq * x->d, 1}};
    const pointwise_args multiply = {.mode = CUDNN_POINTWISE_MUL,
                                     .type = CUDNN_DATA_FLOAT,
                                     .x = d_o,
                                     .b = o,
                                     .y = tensor_make(g, &product)};
    desc sum = reduce(g, CUDNN_REDUCE_TENSOR_ADD, pointwise(g, &multiply),
                      inner(g, CUDNN_DATA_FLOAT, x->b, x->hq, x->s, 1));
    const pointwise_args keep = {
        .mode = CUDNN_POINTWISE_MUL,
        .type = CUDNN_DATA_FLOAT,
        .x = sum,
        .b = scalar(g, TESS_SDPA_ONE),
        .y = statistics(g, x, TESS_SDPA_SUM, x->hq, documents(g, x, TESS_SDPA_OFFSET_SUM, 1))};
    return pointwise(g, &keep);
}

/* Of a pack: lengths of its documents, and where their tokens begin; NULL otherwise. */
typedef struct places {
    desc length, q, kv;
} places;

/* dQ = dS K. The sums of the default form are added with atomics in f32 and rounded at the end. */
static void query_gradient(tess_sdpa_graph *g, const axes *x, desc d_s, desc k, const places *at)
{
    desc d_q = query_like(g, x, TESS_SDPA_D_Q, at->q);
    tensor rows = rows_of(x, 0, CUDNN_DATA_BFLOAT16, x->hk, x->d, x->c->kv_head_numel * x->d);
    rows.offset = at->kv;
    desc keys = reshape(g, k, &rows); /* as K lies in memory: engines read it by this */
    const lengths len = {.m = at->length, .k = at->length};
    if (x->c->is_deterministic) {
        matmul(g, d_s, keys, d_q, len);
        return;
    }
    tensor sums = rows_of(x, TESS_SDPA_D_Q_SUM, CUDNN_DATA_FLOAT, x->hq, x->d, x->hq * x->d);
    sums.offset = documents(g, x, TESS_SDPA_OFFSET_D_Q_SUM, 1);
    desc sum = tensor_make(g, &sums);
    matmul(g, d_s, keys, sum, len);
    const pointwise_args round = {
        .mode = CUDNN_POINTWISE_IDENTITY, .type = CUDNN_DATA_FLOAT, .x = sum, .y = d_q};
    (void)pointwise(g, &round);
}

static void build_backward(tess_sdpa_graph *g, const axes *x)
{
    const places at = {.length = documents(g, x, TESS_SDPA_LENGTH, 0),
                       .q = documents(g, x, TESS_SDPA_OFFSET_Q, 1),
                       .kv = documents(g, x, TESS_SDPA_OFFSET_KV, 1)};
    desc at_stats = documents(g, x, TESS_SDPA_OFFSET_STATS, 1);
    desc q = query_like(g, x, TESS_SDPA_Q, at.q);
    desc k = key_transposed(g, x, TESS_SDPA_K, at.kv);
    desc v = key_transposed(g, x, TESS_SDPA_V, at.kv);
    desc o = query_like(g, x, TESS_SDPA_O, at.q);
    desc d_o = query_like(g, x, TESS_SDPA_D_O, at.q);
    desc stats = statistics(g, x, TESS_SDPA_STATS, x->c->head_numel, at_stats);
    desc minus_infinity = x->c->is_whole ? NULL : scalar(g, TESS_SDPA_MINUS_INFINITY);
    desc scale = scalar(g, TESS_SDPA_SCALE);
    const lengths of_scores = {.m = at.length, .n = at.length};
    desc sums = row_sums(g, x, d_o, o);

    desc s = inner(g, CUDNN_DATA_FLOAT, x->b, x->hq, x->s, x->s);
    matmul(g, q, k, s, of_scores);
    s = on_scores(g, x, CUDNN_POINTWISE_MUL, s, scale);
    s = mask_padding(g, x, s, at.length, minus_infinity);
    s = on_scores(g, x, CUDNN_POINTWISE_SUB, s, stats);
    s = mask_future(g, x, s, minus_infinity);
    desc p = on_scores(g, x, CUDNN_POINTWISE_EXP, s, NULL);
    key_gradient(g, x, transposed_scores(g, x, p), d_o, at.length,
                 key_like(g, x, TESS_SDPA_D_V, at.kv));

    desc d_p = inner(g, CUDNN_DATA_FLOAT, x->b, x->hq, x->s, x->s);
    matmul(g, d_o, v, d_p, of_scores);
    d_p = on_scores(g, x, CUDNN_POINTWISE_SUB, d_p, sums);
    d_p = on_scores(g, x, CUDNN_POINTWISE_MUL, d_p, p);
    const pointwise_args last = {.mode = CUDNN_POINTWISE_MUL,
                                 .type = CUDNN_DATA_FLOAT,
                                 .x = d_p,
                                 .b = scale,
                                 .y = inner(g, CUDNN_DATA_BFLOAT16, x->b, x->hq, x->s, x->s)};
    desc d_s = pointwise(g, &last);
    key_gradient(g, x, transposed_scores(g, x, d_s), q, at.length,
                 key_like(g, x, TESS_SDPA_D_K, at.kv));
    query_gradient(g, x, d_s, k, &at);
}

tess_status tess_sdpa_graph_init(tess_sdpa_graph *g, const tess_cudnn *lib, cudnnHandle_t handle,
                                 const tess_sdpa_case *c)
{
    memset(g, 0, sizeof(*g));
    g->lib = lib;
    g->next_virtual = TESS_SDPA_UID_VIRTUAL;
    const int64_t ratio = c->head_numel / c->kv_head_numel;
    const axes x = {.b = c->batch_numel,
                    .hq = c->group_kv_numel * ratio,
                    .hk = c->group_kv_numel,
                    .s = c->length_numel,
                    .d = c->dim,
                    .c = c};
    if (c->is_backward)
        build_backward(g, &x);
    else
        build_forward(g, &x);
    g->graph = create(g, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    set(g, g->graph, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, g->op_numel,
        g->op);
    if (handle != NULL) /* else its engines are those of a device that is described later */
        set(g, g->graph, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle);
    (void)finalize(g, g->graph, "attention's graph");
    return g->st;
}

void tess_sdpa_graph_fini(tess_sdpa_graph *g)
{
    while (g->desc_numel > 0)
        (void)g->lib->BackendDestroyDescriptor(g->desc[--g->desc_numel]);
}
