#include "tests/emulation/blas_emulation.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/arith.h"
#include "kernels/cpu/cpu_priv.h"
#include "tests/emulation/emulation.h"

/* Device memory of an operand, on the host while the twin runs. */
typedef struct operand {
    void *device;
    void *host;
    size_t nbytes;
} operand;

/* The emulation's own: a step allocates nothing through the program's allocator. */
static tess_status room(size_t nbytes, void **out)
{
    *out = calloc(1, nbytes > 0 ? nbytes : 1);
    return *out != NULL ? TESS_OK : TESS_FAIL(TESS_E_MEMORY, "no %zu bytes", nbytes);
}

static uint64_t hash_of(const tess_blas_product *p)
{
    const uint8_t *byte = (const uint8_t *)p;
    uint64_t h = 1;
    for (size_t i = 0; i < sizeof(*p); i++)
        h = h * 0x9e3779b97f4a7c15u + byte[i];
    return h;
}

static void emulation_identify(const tess_blas *b, char text[TESS_BLAS_IDENTITY_NBYTES])
{
    (void)snprintf(text, TESS_BLAS_IDENTITY_NBYTES, "%s",
                   ((const tess_blas_emulation *)b)->identity);
}

static tess_status emulation_choose(tess_blas *b, const tess_blas_product *p, tess_blas_choice *out,
                                    int choice_max, int *choice_numel)
{
    TESS_CHECK(p->m >= 1 && p->n >= 1 && p->k >= 1 && choice_max >= 1, TESS_E_ARG,
               "product [%" PRId64 ", %" PRId64 "] over %" PRId64 " has no elements", p->m, p->n,
               p->k);
    ((tess_blas_emulation *)b)->choose_numel++;
    out[0] = (tess_blas_choice){.data = {hash_of(p)}};
    *choice_numel = 1;
    return TESS_OK;
}

static tess_status fetch(operand *o, const void *device, int64_t rows, int64_t cols, int64_t stride,
                         size_t elem_nbytes)
{
    o->device = (void *)(uintptr_t)device;
    o->nbytes = (size_t)((rows - 1) * stride + cols) * elem_nbytes;
    TESS_TRY(room(o->nbytes, &o->host));
    return tess_emulation_read(o->host, device, o->nbytes);
}

static tess_status check_alignment(const char *name, const void *p, int32_t said)
{
    TESS_CHECK((uintptr_t)p % (uintptr_t)said == 0, TESS_E_ARG,
               "product: %s is said to be aligned to %d bytes but lies at %p", name, (int)said, p);
    return TESS_OK;
}

static tess_status check_operands(const tess_blas_product *p, const tess_blas_choice *choice,
                                  const tess_blas_operands *o)
{
    TESS_TRY(check_alignment("A", o->a, p->a_align));
    TESS_TRY(check_alignment("B", o->b, p->b_align));
    TESS_TRY(check_alignment("C", o->c, p->c_align));
    TESS_CHECK(choice->data[0] == hash_of(p), TESS_E_STATE,
               "product [%" PRId64 ", %" PRId64 "] over %" PRId64
               ": the algorithm is that of another product",
               p->m, p->n, p->k);
    TESS_CHECK(o->work != NULL || p->work_nbytes == 0, TESS_E_ARG,
               "product: no workspace, expected %" PRIu64 " bytes", p->work_nbytes);
    TESS_CHECK((p->has_bias != 0) == (o->bias != NULL), TESS_E_ARG,
               "product: has_bias is %d but the bias is %p", (int)p->has_bias, o->bias);
    return TESS_OK;
}

static tess_matrix matrix_of(void *data, tess_dtype dt, int64_t rows, int64_t cols)
{
    const tess_matrix m = {
        .codec = {.format = dt == TESS_BF16 ? TESS_FORMAT_BF16 : TESS_FORMAT_F32},
        .rows = rows,
        .cols = cols,
        .part = {data}};
    return m;
}

/* The twin takes contiguous B only. */
static void pack(operand *o, int64_t rows, int64_t cols, int64_t stride, size_t elem_nbytes)
{
    for (int64_t i = 1; i < rows; i++)
        memmove((char *)o->host + (size_t)(i * cols) * elem_nbytes,
                (char *)o->host + (size_t)(i * stride) * elem_nbytes, (size_t)cols * elem_nbytes);
}

/* Row-major, so that nothing of the library's column-major bookkeeping repeats here. */
static tess_status multiply(const tess_blas_product *p, const tess_blas_operands *o, operand *a,
                            operand *b, operand *c, operand *bias)
{
    const bool is_nt = p->kind == TESS_GEMM_NT, is_tn = p->kind == TESS_GEMM_TN;
    const size_t nbytes = tess_dtype_block_nbytes((tess_dtype)p->dt);
    const size_t c_nbytes = tess_dtype_block_nbytes((tess_dtype)p->c_dt);
    const int64_t b_rows = is_nt ? p->n : p->k, b_cols = is_nt ? p->k : p->n;
    TESS_TRY(fetch(a, o->a, is_tn ? p->k : p->m, is_tn ? p->m : p->k, p->a_stride, nbytes));
    TESS_TRY(fetch(b, o->b, b_rows, b_cols, p->b_stride, nbytes));
    TESS_TRY(fetch(c, o->c, p->m, p->n, p->c_stride, c_nbytes));
    pack(b, b_rows, b_cols, p->b_stride, nbytes);
    tess_gemm_args args = {.kind = (tess_gemm_kind)p->kind,
                           .m = p->m,
                           .n = p->n,
                           .term_numel = 1,
                           .c_stride = p->c_stride,
                           .accumulate = p->is_added};
    args.term[0] = (tess_gemm_term){
        .a = tess_view_host(a->host, (int64_t)(a->nbytes / nbytes), (tess_dtype)p->dt),
        .a_stride = p->a_stride,
        .b = matrix_of(b->host, (tess_dtype)p->dt, b_rows, b_cols),
        .k = p->k,
        .scale = o->alpha};
    args.c = tess_view_host(c->host, (int64_t)(c->nbytes / c_nbytes), (tess_dtype)p->c_dt);
    tess_matrix bias_matrix;
    if (p->has_bias) {
        TESS_TRY(fetch(bias, o->bias, 1, p->n, p->n, c_nbytes));
        bias_matrix = matrix_of(bias->host, (tess_dtype)p->c_dt, 1, p->n);
        args.bias = &bias_matrix;
    }
    void *work = NULL;
    const size_t work_nbytes = tess_cpu_gemm_work_nbytes(&args, 1);
    TESS_TRY(room(work_nbytes, &work));
    args.work = tess_view_host(work, (int64_t)work_nbytes, TESS_U8_OPAQUE);
    tess_stream host;
    tess_stream_init_inline(&host, "twin", NULL);
    const tess_status st = tess_cpu_gemm(&args, &host);
    free(work);
    TESS_TRY(st);
    return tess_emulation_write(c->device, c->host, c->nbytes);
}

static tess_status emulation_run(tess_blas *base, const tess_blas_product *p,
                                 const tess_blas_choice *choice, const tess_blas_operands *o,
                                 tess_stream *s)
{
    tess_blas_emulation *emulation = (tess_blas_emulation *)base;
    operand a = {0}, b = {0}, c = {0}, bias = {0};
    (void)s;
    TESS_TRY(check_operands(p, choice, o));
    const tess_status st = multiply(p, o, &a, &b, &c, &bias);
    free(a.host);
    free(b.host);
    free(c.host);
    free(bias.host);
    emulation->run_numel++;
    emulation->last = *p;
    return st;
}

static void emulation_destroy(tess_blas *b) { (void)b; }

static const tess_blas_ops emulation_ops = {.identify = emulation_identify,
                                            .choose = emulation_choose,
                                            .run = emulation_run,
                                            .destroy = emulation_destroy};

tess_status tess_blas_emulation_init(tess_blas_emulation *b, const char *identity)
{
    memset(b, 0, sizeof(*b));
    b->base.ops = &emulation_ops;
    b->identity = identity;
    return tess_blas_init(&b->base);
}

void tess_blas_emulation_fini(tess_blas_emulation *b)
{
    tess_blas *base = &b->base;
    tess_blas_destroy(&base);
}
