/* Calls of attention through compiled graphs. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/arith.h"
#include "kernels/cuda/device_priv.h"
#include "kernels/cuda/sdpa_library_priv.h"

enum { ALIGN_NBYTES = 256 };

/* The workspace of a call, cut up. */
typedef struct scratch {
    int32_t *length;                              /* [documents] */
    int32_t *offset[TESS_SDPA_OFFSET_KIND_NUMEL]; /* [documents + 1] */
    float *stats;                                 /* [T, heads] */
    float *sum;                                   /* [T, heads] */
    float *d_q_sum;                               /* [T, heads, D] */
    void *out;                                    /* [T, heads, D] bf16, see Note: gaps */
} scratch;

static size_t aligned(size_t nbytes)
{
    return (nbytes + ALIGN_NBYTES - 1) / ALIGN_NBYTES * ALIGN_NBYTES;
}

static size_t places_nbytes(void) { return aligned(TESS_SDPA_PLACE_NUMEL * sizeof(int32_t)); }

static size_t rows_nbytes(const tess_attention_shape *shape)
{
    return aligned((size_t)shape->token_numel * (size_t)shape->head_numel * sizeof(float));
}

static int64_t query_numel(const tess_attention_shape *shape)
{
    return shape->token_numel * shape->head_numel * shape->dim;
}

static tess_status scratch_take(tess_view work, const tess_attention_shape *shape, scratch *out)
{
    const size_t needed = tess_sdpa_work_nbytes(shape);
    TESS_CHECK(tess_view_nbytes(work) >= needed, TESS_E_ARG,
               "attention: work has %zu bytes, expected %zu; take it from attention_work_nbytes",
               tess_view_nbytes(work), needed);
    char *at = work.data;
    at += (ALIGN_NBYTES - (uintptr_t)at % ALIGN_NBYTES) % ALIGN_NBYTES;
    out->length = (int32_t *)(void *)at;
    for (int i = 0; i < TESS_SDPA_OFFSET_KIND_NUMEL; i++)
        out->offset[i] = (int32_t *)(void *)(at += places_nbytes());
    out->stats = (float *)(void *)(at += places_nbytes());
    out->sum = (float *)(void *)(at += rows_nbytes(shape));
    out->d_q_sum = (float *)(void *)(at += rows_nbytes(shape));
    out->out = at + aligned((size_t)query_numel(shape) * sizeof(float));
    return TESS_OK;
}

/* [Note: gaps] Plans are built for rows without gaps. Where rows of `out` have them, the library
 * has its own copy: 4 bytes moved per element, beside 4 operations per token that it sees. */
static bool has_gaps(const tess_attention_shape *shape, int64_t out_stride)
{
    return out_stride != 0 && out_stride != shape->head_numel * shape->dim;
}

/* Rows of `out` to rows without gaps, or back. */
static tess_status copy_rows(const tess_attention_shape *shape, void *dst, int64_t dst_stride,
                             const void *src, int64_t src_stride, tess_stream *s)
{
    const size_t elem_nbytes = tess_dtype_block_nbytes(TESS_BF16);
    const int64_t row_numel = shape->head_numel * shape->dim;
    TESS_CUDA_TRY(cudaMemcpy2DAsync(dst, (size_t)dst_stride * elem_nbytes, src,
                                    (size_t)src_stride * elem_nbytes,
                                    (size_t)row_numel * elem_nbytes, (size_t)shape->token_numel,
                                    cudaMemcpyDeviceToDevice, tess_cuda_stream(s)));
    return TESS_OK;
}

/* -------- execution -------- */

/* Addresses of one execution. */
typedef struct bindings {
    int64_t uid[TESS_SDPA_UID_END];
    const void *data[TESS_SDPA_UID_END];
    int64_t numel;
    float scale, minus_infinity, one;
} bindings;

static void bind(bindings *b, tess_sdpa_uid uid, const void *data)
{
    b->uid[b->numel] = uid;
    b->data[b->numel++] = data;
}

static void bind_scalars(bindings *b, float scale, const tess_sdpa_case *c)
{
    b->scale = scale;
    b->minus_infinity = -INFINITY;
    b->one = 1.0F;
    bind(b, TESS_SDPA_SCALE, &b->scale);
    if (!c->is_whole)
        bind(b, TESS_SDPA_MINUS_INFINITY, &b->minus_infinity);
}

/* From document `first` on. */
static void bind_documents(bindings *b, const scratch *w, const tess_sdpa_case *c, int64_t first)
{
    const int64_t place = first / c->batch_numel * tess_sdpa_place_stride(c->batch_numel);
    if (!c->is_packed)
        return;
    bind(b, TESS_SDPA_LENGTH, w->length + place);
    bind(b, TESS_SDPA_OFFSET_Q, w->offset[0] + place);
    bind(b, TESS_SDPA_OFFSET_KV, w->offset[1] + place);
    bind(b, TESS_SDPA_OFFSET_STATS, w->offset[2] + place);
    if (!c->is_backward)
        return;
    bind(b, TESS_SDPA_OFFSET_SUM, w->offset[3] + place);
    if (!c->is_deterministic)
        bind(b, TESS_SDPA_OFFSET_D_Q_SUM, w->offset[4] + place);
}

/* One execution: documents from `document` on, heads from `kv` on. */
typedef struct part {
    int64_t document, kv;
} part;

static bool has_part(const tess_sdpa_compiled *p, const tess_attention_shape *shape, part at)
{
    return at.document < (p->c.is_packed ? shape->document_numel : 1);
}

static part next_part(const tess_sdpa_compiled *p, part at)
{
    at.kv += p->c.group_kv_numel;
    if (at.kv < p->c.kv_head_numel)
        return at;
    return (part){at.document + p->c.batch_numel, 0};
}

static tess_status variant_fill(const tess_sdpa *sdpa, const bindings *b,
                                cudnnBackendDescriptor_t variant)
{
    const tess_cudnn *lib = &sdpa->lib;
    TESS_CUDNN_TRY(lib, BackendSetAttribute(variant, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS,
                                            CUDNN_TYPE_INT64, b->numel, b->uid));
    TESS_CUDNN_TRY(lib, BackendSetAttribute(variant, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS,
                                            CUDNN_TYPE_VOID_PTR, b->numel, b->data));
    TESS_CUDNN_TRY(lib, BackendSetAttribute(variant, CUDNN_ATTR_VARIANT_PACK_WORKSPACE,
                                            CUDNN_TYPE_VOID_PTR, 1, &sdpa->library_work));
    TESS_CUDNN_TRY(lib, BackendFinalize(variant));
    return TESS_OK;
}

static tess_status execute(const tess_sdpa *sdpa, const tess_sdpa_compiled *p, const bindings *b)
{
    const tess_cudnn *lib = &sdpa->lib;
    cudnnBackendDescriptor_t variant = NULL;
    TESS_CUDNN_TRY(lib, BackendCreateDescriptor(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, &variant));
    tess_status st = variant_fill(sdpa, b, variant);
    if (st == TESS_OK) {
        const cudnnStatus_t e = lib->BackendExecute(sdpa->handle, p->execution, variant);
        if (e != CUDNN_STATUS_SUCCESS)
            st = tess_cudnn_fail(lib, e, __FILE__, __LINE__, "attention");
    }
    (void)lib->BackendDestroyDescriptor(variant);
    return st;
}

/* The compiled graph of a call, with the library on its stream. */
static tess_status begin(tess_sdpa *sdpa, const tess_attention_shape *shape, bool is_backward,
                         tess_stream *s, const tess_sdpa_compiled **out)
{
    const tess_sdpa_case c =
        tess_sdpa_case_of(sdpa, shape, tess_sdpa_is_packed(shape), is_backward);
    const tess_sdpa_compiled *p = tess_sdpa_find(sdpa, &c);
    TESS_CHECK(p != NULL && p->execution != NULL, TESS_E_STATE,
               "attention of %" PRId64 " tokens: no compiled graph; ask tess_sdpa_covers first",
               shape->token_numel);
    TESS_CUDNN_TRY(&sdpa->lib, SetStream(sdpa->handle, tess_cuda_stream(s)));
    *out = p;
    return TESS_OK;
}

static tess_status offsets_make(const tess_sdpa *sdpa, const tess_sdpa_compiled *p,
                                const tess_attention_shape *shape, const int32_t *doc_start,
                                const scratch *w, tess_stream *s)
{
    const int64_t ratio = p->c.head_numel / p->c.kv_head_numel;
    const int64_t group = p->c.group_kv_numel * ratio;
    const int64_t scale[TESS_SDPA_OFFSET_KIND_NUMEL] = {
        shape->head_numel * shape->dim, shape->kv_head_numel * shape->dim, shape->head_numel, group,
        group * shape->dim};
    if (!p->c.is_packed)
        return TESS_OK;
    tess_sdpa_offsets_args args = {.doc_start = doc_start,
                                   .token_numel = shape->token_numel,
                                   .document_max = sdpa->settings.document_max,
                                   .chunk_numel = p->c.batch_numel,
                                   .length = w->length,
                                   .scaled_numel =
                                       p->c.is_backward ? TESS_SDPA_OFFSET_KIND_NUMEL : 3};
    for (int i = 0; i < TESS_SDPA_OFFSET_KIND_NUMEL; i++) {
        args.offset[i] = w->offset[i];
        args.scale[i] = (int32_t)scale[i];
    }
    return tess_cuda_sdpa_offsets(&args, s);
}

/* First element of a head in [T, heads, D] bf16. */
static const void *head_of(tess_view v, int64_t head_idx, int64_t dim)
{
    return (const char *)v.data + (size_t)(head_idx * dim) * tess_dtype_block_nbytes(TESS_BF16);
}

tess_status tess_sdpa_forward(tess_sdpa *sdpa, const tess_attention_args *a, tess_stream *s)
{
    const tess_attention_shape *shape = &a->shape;
    const tess_sdpa_compiled *p = NULL;
    scratch w;
    TESS_TRY(begin(sdpa, shape, false, s, &p));
    TESS_TRY(scratch_take(a->work, shape, &w));
    TESS_TRY(offsets_make(sdpa, p, shape, a->doc_start, &w, s));
    const int64_t ratio = p->c.head_numel / p->c.kv_head_numel;
    float *stats = p->c.is_packed ? w.stats : a->lse;
    const int64_t stats_step = p->c.is_packed ? 1 : shape->token_numel;
    const int64_t row_numel = shape->head_numel * shape->dim;
    tess_view out = a->out;
    if (has_gaps(shape, a->out_stride))
        out.data = w.out;
    for (part at = {0, 0}; has_part(p, shape, at); at = next_part(p, at)) {
        bindings b = {.numel = 0};
        bind_scalars(&b, a->scale, &p->c);
        bind_documents(&b, &w, &p->c, at.document);
        bind(&b, TESS_SDPA_Q, head_of(a->q, at.kv * ratio, shape->dim));
        bind(&b, TESS_SDPA_K, head_of(a->k, at.kv, shape->dim));
        bind(&b, TESS_SDPA_V, head_of(a->v, at.kv, shape->dim));
        bind(&b, TESS_SDPA_O, head_of(out, at.kv * ratio, shape->dim));
        bind(&b, TESS_SDPA_STATS, stats + at.kv * ratio * stats_step);
        TESS_TRY(execute(sdpa, p, &b));
    }
    if (out.data != a->out.data)
        TESS_TRY(copy_rows(shape, a->out.data, a->out_stride, out.data, row_numel, s));
    if (!p->c.is_packed)
        return TESS_OK;
    return tess_cuda_sdpa_transpose(w.stats, shape->token_numel, shape->head_numel, a->lse, s);
}

tess_status tess_sdpa_backward(tess_sdpa *sdpa, const tess_attention_backward_args *a,
                               tess_stream *s)
{
    const tess_attention_shape *shape = &a->shape;
    const tess_sdpa_compiled *p = NULL;
    scratch w;
    TESS_TRY(begin(sdpa, shape, true, s, &p));
    TESS_TRY(scratch_take(a->work, shape, &w));
    TESS_TRY(offsets_make(sdpa, p, shape, a->doc_start, &w, s));
    if (p->c.is_packed)
        TESS_TRY(
            tess_cuda_sdpa_transpose(a->lse, shape->head_numel, shape->token_numel, w.stats, s));
    const int64_t ratio = p->c.head_numel / p->c.kv_head_numel;
    const float *stats = p->c.is_packed ? w.stats : a->lse;
    const int64_t stats_step = p->c.is_packed ? 1 : shape->token_numel;
    const int64_t row_numel = shape->head_numel * shape->dim;
    tess_view out = a->out;
    if (has_gaps(shape, a->out_stride)) {
        out.data = w.out;
        TESS_TRY(copy_rows(shape, out.data, row_numel, a->out.data, a->out_stride, s));
    }
    for (part at = {0, 0}; has_part(p, shape, at); at = next_part(p, at)) {
        bindings b = {.numel = 0};
        bind_scalars(&b, a->scale, &p->c);
        bind(&b, TESS_SDPA_ONE, &b.one);
        bind_documents(&b, &w, &p->c, at.document);
        bind(&b, TESS_SDPA_Q, head_of(a->q, at.kv * ratio, shape->dim));
        bind(&b, TESS_SDPA_K, head_of(a->k, at.kv, shape->dim));
        bind(&b, TESS_SDPA_V, head_of(a->v, at.kv, shape->dim));
        bind(&b, TESS_SDPA_O, head_of(out, at.kv * ratio, shape->dim));
        bind(&b, TESS_SDPA_D_O, head_of(a->d_out, at.kv * ratio, shape->dim));
        bind(&b, TESS_SDPA_STATS, stats + at.kv * ratio * stats_step);
        bind(&b, TESS_SDPA_D_Q, head_of(a->d_q, at.kv * ratio, shape->dim));
        bind(&b, TESS_SDPA_D_K, head_of(a->d_k, at.kv, shape->dim));
        bind(&b, TESS_SDPA_D_V, head_of(a->d_v, at.kv, shape->dim));
        bind(&b, TESS_SDPA_SUM, w.sum);
        if (!p->c.is_deterministic)
            bind(&b, TESS_SDPA_D_Q_SUM, w.d_q_sum);
        TESS_TRY(execute(sdpa, p, &b));
    }
    return TESS_OK;
}
