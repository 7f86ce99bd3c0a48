/*
 * Products by cuBLASLt. Its matrices are column-major: row-major C = op(A) op(B) is the
 * column-major C^T = op(B)^T op(A)^T, so our B is its A. Descriptors live on the stack: a call
 * allocates nothing.
 */
#include <stdio.h>
#include <string.h>

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include "core/arith.h"
#include "core/memory.h"
#include "kernels/cuda/blas_priv.h"
#include "kernels/cuda/cuda_priv.h"
#include "kernels/cuda/device_priv.h"

typedef struct blas_lt {
    tess_blas base;
    cublasLtHandle_t handle;
    char identity[TESS_BLAS_IDENTITY_NBYTES];
} blas_lt;

_Static_assert(sizeof(cublasLtMatmulAlgo_t) == sizeof(((tess_blas_choice *)0)->data),
               "an algorithm of cuBLASLt is kept as eight words");

/* The library's view of a product. */
typedef struct problem {
    cublasLtMatmulDescOpaque_t op;
    cublasLtMatrixLayoutOpaque_t a, b, c; /* in its order: `a` is our B */
} problem;

static tess_status lt_fail(cublasStatus_t e, int line, const char *call)
{
    const tess_status st = e == CUBLAS_STATUS_NOT_SUPPORTED ? TESS_E_UNSUPPORTED : TESS_E_COMM;
    return tess_error_set(st, __FILE__, line, "cuBLASLt: %s says %s", call,
                          cublasLtGetStatusName(e));
}

#define LT_TRY(call)                                                                               \
    do {                                                                                           \
        const cublasStatus_t lt_e_ = (call);                                                       \
        if (TESS_UNLIKELY(lt_e_ != CUBLAS_STATUS_SUCCESS))                                         \
            return lt_fail(lt_e_, __LINE__, #call);                                                \
    } while (0)

static cudaDataType_t type_of(int32_t dt)
{
    return (tess_dtype)dt == TESS_BF16 ? CUDA_R_16BF : CUDA_R_32F;
}

static tess_status operation_make(const tess_blas_product *p, cublasLtMatmulDesc_t op)
{
    const cublasOperation_t ours_b = p->kind == TESS_GEMM_NT ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasOperation_t ours_a = p->kind == TESS_GEMM_TN ? CUBLAS_OP_T : CUBLAS_OP_N;
    LT_TRY(
        cublasLtMatmulDescSetAttribute(op, CUBLASLT_MATMUL_DESC_TRANSA, &ours_b, sizeof(ours_b)));
    LT_TRY(
        cublasLtMatmulDescSetAttribute(op, CUBLASLT_MATMUL_DESC_TRANSB, &ours_a, sizeof(ours_a)));
    LT_TRY(cublasLtMatmulDescSetAttribute(op, CUBLASLT_MATMUL_DESC_SM_COUNT_TARGET, &p->sm_numel,
                                          sizeof(p->sm_numel)));
    if (p->has_bias) {
        const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
        const cudaDataType_t bias_type = type_of(p->c_dt);
        LT_TRY(cublasLtMatmulDescSetAttribute(op, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue,
                                              sizeof(epilogue)));
        LT_TRY(cublasLtMatmulDescSetAttribute(op, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &bias_type,
                                              sizeof(bias_type)));
    }
    return TESS_OK;
}

static tess_status problem_make(const tess_blas_product *p, problem *out)
{
    const bool is_nt = p->kind == TESS_GEMM_NT, is_tn = p->kind == TESS_GEMM_TN;
    const uint64_t m = (uint64_t)p->m, n = (uint64_t)p->n, k = (uint64_t)p->k;
    const cudaDataType_t type = type_of(p->dt);
    LT_TRY(cublasLtMatmulDescInit(&out->op, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    TESS_TRY(operation_make(p, &out->op));
    LT_TRY(cublasLtMatrixLayoutInit(&out->a, type, is_nt ? k : n, is_nt ? n : k, p->b_stride));
    LT_TRY(cublasLtMatrixLayoutInit(&out->b, type, is_tn ? m : k, is_tn ? k : m, p->a_stride));
    LT_TRY(cublasLtMatrixLayoutInit(&out->c, type_of(p->c_dt), n, m, p->c_stride));
    return TESS_OK;
}

/* Sums do not depend on the shape unless the product may split K; then in order, without atomics.
 */
static uint32_t schemes_of(const tess_blas_product *p)
{
    return p->may_split ? (uint32_t)(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE)
                        : (uint32_t)CUBLASLT_REDUCTION_SCHEME_NONE;
}

static tess_status preference_make(const tess_blas_product *p,
                                   cublasLtMatmulPreferenceOpaque_t *pref)
{
    const uint32_t schemes = schemes_of(p);
    const struct {
        cublasLtMatmulPreferenceAttributes_t name;
        uint32_t nbytes;
    } aligns[] = {{CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, (uint32_t)p->b_align},
                  {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, (uint32_t)p->a_align},
                  {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, (uint32_t)p->c_align},
                  {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, (uint32_t)p->c_align}};
    LT_TRY(cublasLtMatmulPreferenceInit(pref));
    LT_TRY(cublasLtMatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                &p->work_nbytes, sizeof(p->work_nbytes)));
    LT_TRY(cublasLtMatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                                                &schemes, sizeof(schemes)));
    for (int i = 0; i < TESS_NELEM(aligns); i++)
        LT_TRY(cublasLtMatmulPreferenceSetAttribute(pref, aligns[i].name, &aligns[i].nbytes,
                                                    sizeof(aligns[i].nbytes)));
    return TESS_OK;
}

static tess_status choice_take(const cublasLtMatmulHeuristicResult_t *r, tess_blas_choice *out)
{
    int32_t split_numel = 0;
    memset(out, 0, sizeof(*out));
    memcpy(out->data, &r->algo, sizeof(out->data));
    out->work_nbytes = r->workspaceSize;
    LT_TRY(cublasLtMatmulAlgoConfigGetAttribute(&r->algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM,
                                                &split_numel, sizeof(split_numel), NULL));
    out->is_split = split_numel > 1;
    return TESS_OK;
}

static tess_status lt_choose(tess_blas *b, const tess_blas_product *p, tess_blas_choice *out,
                             int choice_max, int *choice_numel)
{
    enum { RESULT_MAX = 8 };
    cublasLtMatmulHeuristicResult_t result[RESULT_MAX];
    cublasLtMatmulPreferenceOpaque_t pref;
    problem lt;
    int found = 0, taken = 0;
    TESS_TRY(problem_make(p, &lt));
    TESS_TRY(preference_make(p, &pref));
    const cublasStatus_t e =
        cublasLtMatmulAlgoGetHeuristic(((blas_lt *)b)->handle, &lt.op, &lt.a, &lt.b, &lt.c, &lt.c,
                                       &pref, TESS_MIN(choice_max, RESULT_MAX), result, &found);
    for (int i = 0; e == CUBLAS_STATUS_SUCCESS && i < found; i++) {
        if (result[i].state == CUBLAS_STATUS_SUCCESS)
            TESS_TRY(choice_take(&result[i], &out[taken++]));
    }
    TESS_CHECK(taken > 0, TESS_E_UNSUPPORTED,
               "cuBLASLt has no algorithm for [%" PRId64 ", %" PRId64 "] over %" PRId64
               " (kind %d, %s to %s, rows %" PRId64 ", %" PRId64 ", %" PRId64 " apart, %" PRIu64
               " bytes of workspace): %s",
               p->m, p->n, p->k, (int)p->kind, tess_dtype_name((tess_dtype)p->dt),
               tess_dtype_name((tess_dtype)p->c_dt), p->a_stride, p->b_stride, p->c_stride,
               p->work_nbytes, cublasLtGetStatusName(e));
    *choice_numel = taken;
    return TESS_OK;
}

static tess_status lt_run(tess_blas *b, const tess_blas_product *p, const tess_blas_choice *choice,
                          const tess_blas_operands *o, tess_stream *s)
{
    const float beta = p->is_added ? 1.0F : 0.0F;
    cublasLtMatmulAlgo_t algo;
    problem lt;
    TESS_TRY(problem_make(p, &lt));
    memcpy(&algo, choice->data, sizeof(algo));
    if (p->has_bias)
        LT_TRY(cublasLtMatmulDescSetAttribute(&lt.op, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &o->bias,
                                              sizeof(o->bias)));
    LT_TRY(cublasLtMatmul(((blas_lt *)b)->handle, &lt.op, &o->alpha, o->b, &lt.a, o->a, &lt.b,
                          &beta, o->c, &lt.c, o->c, &lt.c, &algo, o->work, p->work_nbytes,
                          tess_cuda_stream(s)));
    return TESS_OK;
}

static void lt_identify(const tess_blas *b, char text[TESS_BLAS_IDENTITY_NBYTES])
{
    memcpy(text, ((const blas_lt *)b)->identity, TESS_BLAS_IDENTITY_NBYTES);
}

static void lt_destroy(tess_blas *b)
{
    blas_lt *lt = (blas_lt *)b;
    if (lt->handle != NULL)
        (void)cublasLtDestroy(lt->handle);
    tess_free(lt);
}

static const tess_blas_ops lt_ops = {
    .identify = lt_identify, .choose = lt_choose, .run = lt_run, .destroy = lt_destroy};

static tess_status lt_open(blas_lt *lt)
{
    struct cudaDeviceProp prop;
    int device_idx = 0;
    TESS_CUDA_TRY(cudaGetDevice(&device_idx));
    TESS_CUDA_TRY(cudaGetDeviceProperties(&prop, device_idx));
    LT_TRY(cublasLtCreate(&lt->handle));
    (void)snprintf(lt->identity, sizeof(lt->identity), "cuBLASLt %zu, %.60s, %d multiprocessors",
                   cublasLtGetVersion(), prop.name, prop.multiProcessorCount);
    return tess_blas_init(&lt->base);
}

tess_status tess_blas_lt_create(tess_blas **out)
{
    void *memory = NULL;
    TESS_TRY(tess_alloc(sizeof(blas_lt), &memory));
    blas_lt *lt = memory;
    lt->base.ops = &lt_ops;
    const tess_status st = lt_open(lt);
    if (st != TESS_OK) {
        lt_destroy(&lt->base);
        return st;
    }
    *out = &lt->base;
    return TESS_OK;
}
