#include "kernels/gemm.h"

#include <inttypes.h>

#include "core/arith.h"

typedef struct extent {
    int64_t rows, cols;
} extent;

static extent a_extent(const tess_gemm_args *a, int64_t k)
{
    return a->kind == TESS_GEMM_TN ? (extent){k, a->m} : (extent){a->m, k};
}

static extent b_extent(const tess_gemm_args *a, int64_t k)
{
    return a->kind == TESS_GEMM_NT ? (extent){a->n, k} : (extent){k, a->n};
}

/* [rows, cols] with `stride` elements between rows (0: contiguous) must lie inside the view. */
static tess_status view_check(const tess_view *v, extent e, int64_t stride, const char *name)
{
    int64_t needed = 0;
    TESS_CHECK(stride == 0 || stride >= e.cols, TESS_E_ARG,
               "gemm: rows of %s are %" PRId64 " elements apart but hold %" PRId64, name, stride,
               e.cols);
    if (e.rows == 0 || e.cols == 0)
        return TESS_OK;
    TESS_TRY(tess_mul_i64(e.rows - 1, stride != 0 ? stride : e.cols, &needed));
    TESS_TRY(tess_add_i64(needed, e.cols, &needed));
    TESS_CHECK(v->numel >= needed && v->data != NULL, TESS_E_ARG,
               "gemm: %s [%" PRId64 ", %" PRId64 "] needs %" PRId64
               " elements, the view has %" PRId64,
               name, e.rows, e.cols, needed, v->numel);
    return TESS_OK;
}

static tess_status matrix_check(const tess_matrix *b, extent e, const char *name)
{
    tess_codec_part parts[TESS_CODEC_PART_MAX];
    int part_numel = 0;
    int64_t numel = 0;
    TESS_CHECK(b->rows == e.rows && b->cols == e.cols, TESS_E_ARG,
               "gemm: %s is [%" PRId64 ", %" PRId64 "], expected [%" PRId64 ", %" PRId64 "]", name,
               b->rows, b->cols, e.rows, e.cols);
    TESS_CHECK(b->stride == 0 ||
                   (b->stride >= b->cols && !tess_format_is_quantized(b->codec.format)),
               TESS_E_ARG,
               "gemm: rows of %s are %" PRId64 " elements apart but hold %" PRId64
               ", and only plain formats have a stride",
               name, b->stride, b->cols);
    TESS_TRY(tess_mul_i64(b->rows, b->cols, &numel));
    TESS_TRY(tess_codec_parts(&b->codec, numel, parts, &part_numel));
    for (int i = 0; i < part_numel; i++)
        TESS_CHECK(b->part[i] != NULL || parts[i].numel == 0, TESS_E_ARG,
                   "gemm: part '%s' of %s is missing", parts[i].name, name);
    return TESS_OK;
}

static tess_status term_check(const tess_gemm_args *a, int term_idx)
{
    const tess_gemm_term *t = &a->term[term_idx];
    const tess_dtype dt = a->term[0].a.dt;
    TESS_CHECK(t->k >= 0, TESS_E_ARG, "gemm: term %d sums over %" PRId64 " elements", term_idx,
               t->k);
    TESS_CHECK(t->a.dt == TESS_F32 || t->a.dt == TESS_BF16, TESS_E_DTYPE,
               "gemm: A of term %d is %s, expected f32 or bf16", term_idx,
               tess_dtype_name(t->a.dt));
    TESS_CHECK(t->a.dt == dt, TESS_E_DTYPE,
               "gemm: A of term %d is %s but A of term 0 is %s; all terms share the compute dtype",
               term_idx, tess_dtype_name(t->a.dt), tess_dtype_name(dt));
    TESS_CHECK(a->kind != TESS_GEMM_TN ||
                   (!tess_format_is_quantized(t->b.codec.format) && tess_matrix_dtype(&t->b) == dt),
               TESS_E_DTYPE, "gemm: B of term %d is %s; the weight gradient takes plain %s",
               term_idx, tess_format_name(t->b.codec.format), tess_dtype_name(dt));
    TESS_TRY(view_check(&t->a, a_extent(a, t->k), t->a_stride, "A"));
    return matrix_check(&t->b, b_extent(a, t->k), "B");
}

tess_status tess_gemm_check(const tess_gemm_args *a)
{
    TESS_CHECK(a->kind == TESS_GEMM_NT || a->kind == TESS_GEMM_NN || a->kind == TESS_GEMM_TN,
               TESS_E_ARG, "gemm: kind number %d is not in the table", (int)a->kind);
    TESS_CHECK(a->m >= 0 && a->n >= 0, TESS_E_ARG, "gemm: C is [%" PRId64 ", %" PRId64 "]", a->m,
               a->n);
    TESS_CHECK(a->term_numel >= 1 && a->term_numel <= TESS_GEMM_TERM_MAX, TESS_E_ARG,
               "gemm: %d terms, expected 1 to %d", a->term_numel, TESS_GEMM_TERM_MAX);
    for (int i = 0; i < a->term_numel; i++)
        TESS_TRY(term_check(a, i));
    const tess_dtype dt = a->term[0].a.dt;
    TESS_CHECK(a->c.dt == TESS_F32 || a->c.dt == dt, TESS_E_DTYPE,
               "gemm: C is %s, expected f32 or the compute dtype %s", tess_dtype_name(a->c.dt),
               tess_dtype_name(dt));
    TESS_CHECK(!a->accumulate || a->c.dt == TESS_F32, TESS_E_DTYPE,
               "gemm: C is %s; only an f32 result can be accumulated", tess_dtype_name(a->c.dt));
    TESS_TRY(view_check(&a->c, (extent){a->m, a->n}, a->c_stride, "C"));
    if (a->bias == NULL)
        return TESS_OK;
    TESS_CHECK(!tess_format_is_quantized(a->bias->codec.format), TESS_E_UNSUPPORTED,
               "gemm: the bias is %s, expected f32 or bf16",
               tess_format_name(a->bias->codec.format));
    return matrix_check(a->bias, (extent){1, a->n}, "the bias");
}
