#include "tests/emulation/fake_products.h"

#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "kernels/cuda/blas_priv.h"

enum { STREAM_MAX = 16 };

/* Products planned for a stream. */
typedef struct stream_plan {
    const tess_stream *stream;
    tess_blas blas;
    bool is_prepared;
} stream_plan;

static stream_plan plans[STREAM_MAX];
static tess_device *device;
static tess_status (*true_gemm)(const tess_gemm_args *a, tess_stream *s);
static tess_status (*true_attention)(const tess_attention_args *a, tess_stream *s);

static bool has_fault(const char *name)
{
    const char *text = getenv("FAKE_CUDA_FAULT");
    return text != NULL && strcmp(text, name) == 0;
}

/* ---- a library that the CPU plays ---- */

static void fake_identify(const tess_blas *b, char text[TESS_BLAS_IDENTITY_NBYTES])
{
    (void)b;
    memset(text, 0, TESS_BLAS_IDENTITY_NBYTES);
    memcpy(text, "fake products", sizeof "fake products");
}

static uint64_t algorithm_of(const tess_blas_product *p)
{
    return (uint64_t)p->m * 1000003U + (uint64_t)p->n * 1009U + (uint64_t)p->k;
}

static tess_status fake_choose(tess_blas *b, const tess_blas_product *p, tess_blas_choice *out,
                               int choice_max, int *choice_numel)
{
    (void)b;
    (void)choice_max;
    memset(out, 0, sizeof *out);
    out->data[0] = algorithm_of(p);
    *choice_numel = 1;
    return TESS_OK;
}

/* What runs is a product of kernels/gemm.h as a whole; this sees to its algorithm alone. */
static tess_status fake_run(tess_blas *b, const tess_blas_product *p,
                            const tess_blas_choice *choice, const tess_blas_operands *o,
                            tess_stream *s)
{
    (void)b;
    (void)o;
    TESS_CHECK(choice->data[0] == algorithm_of(p), TESS_E_STATE,
               "stream '%s': the algorithm of another product", s->name);
    return TESS_OK;
}

static const tess_blas_ops fake_blas_ops = {
    .identify = fake_identify, .choose = fake_choose, .run = fake_run};

/* NULL: nothing was planned for it. */
static stream_plan *plan_find(const tess_stream *s)
{
    for (int i = 0; i < STREAM_MAX; i++)
        if (plans[i].stream == s)
            return &plans[i];
    return NULL;
}

static tess_status plan_open(const tess_stream *s, stream_plan **out)
{
    stream_plan *plan = plan_find(s);
    if (plan == NULL) {
        plan = plan_find(NULL);
        TESS_CHECK(plan != NULL, TESS_E_STATE, "products of more than %d streams", STREAM_MAX);
        plan->blas = (tess_blas){.ops = &fake_blas_ops};
        TESS_TRY(tess_blas_init(&plan->blas));
        plan->stream = s;
        plan->is_prepared = false;
    }
    *out = plan;
    return TESS_OK;
}

tess_status fake_products_prepare(const tess_device *d, const tess_stream *s)
{
    stream_plan *plan = NULL;
    TESS_TRY(plan_open(s, &plan));
    TESS_CHECK(!plan->is_prepared, TESS_E_STATE, "%s: stream '%s' has its libraries already",
               d->name, s->name);
    plan->is_prepared = true;
    return TESS_OK;
}

void fake_products_drop(const tess_stream *s)
{
    stream_plan *plan = plan_find(s);
    if (plan == NULL)
        return;
    tess_free(plan->blas.entry);
    plan->stream = NULL;
}

/* What does not depend on addresses, which planning may not have. */
static tess_blas_product product_of(const tess_gemm_args *a)
{
    tess_blas_product p;
    memset(&p, 0, sizeof p);
    p.m = a->m;
    p.n = a->n;
    for (int t = 0; t < a->term_numel; t++)
        p.k += a->term[t].k;
    p.kind = (int32_t)a->kind;
    p.dt = (int32_t)a->term[0].a.dt;
    p.c_dt = (int32_t)a->c.dt;
    p.is_added = a->accumulate;
    p.has_bias = a->bias != NULL;
    return p;
}

/* ---- the table's entries ---- */

static tess_status fake_prepare(const tess_gemm_args *a, tess_stream *s)
{
    stream_plan *plan = NULL;
    TESS_TRY(tess_gemm_check(a));
    TESS_TRY(plan_open(s, &plan));
    const tess_blas_product p = product_of(a);
    if (p.m == 0 || has_fault("unplanned"))
        return TESS_OK;
    return tess_blas_plan(&plan->blas, &p);
}

static size_t fake_choices_nbytes(tess_stream *s)
{
    stream_plan *plan = NULL;
    return plan_open(s, &plan) == TESS_OK ? tess_blas_export_nbytes(&plan->blas) : 0;
}

static tess_status fake_choices_export(tess_stream *s, void *data)
{
    stream_plan *plan = NULL;
    TESS_TRY(plan_open(s, &plan));
    tess_blas_export(&plan->blas, data);
    return TESS_OK;
}

static tess_status fake_choices_import(tess_stream *s, const void *data, size_t nbytes)
{
    stream_plan *plan = NULL;
    TESS_TRY(plan_open(s, &plan));
    TESS_TRY(tess_blas_import(&plan->blas, data, nbytes));
    tess_blas_settle(&plan->blas);
    return TESS_OK;
}

static tess_status take(void)
{
    void *lost = NULL;
    return has_fault("takes") ? device->ops->alloc(device, TESS_DEVICE, 1 << 20, &lost) : TESS_OK;
}

static tess_status fake_gemm(const tess_gemm_args *a, tess_stream *s)
{
    stream_plan *plan = plan_find(s);
    TESS_TRY(take());
    if (plan != NULL && a->m > 0) {
        const tess_blas_product p = product_of(a);
        const tess_blas_operands unused = {.a = NULL};
        TESS_TRY(tess_blas_run(&plan->blas, &p, &unused, s));
    }
    return true_gemm(a, s);
}

static tess_status fake_attention(const tess_attention_args *a, tess_stream *s)
{
    TESS_TRY(take());
    return true_attention(a, s);
}

void fake_products_install(tess_kernels *k, tess_device *d)
{
    device = d;
    true_gemm = k->gemm;
    k->gemm = fake_gemm;
    true_attention = k->attention_forward;
    k->attention_forward = fake_attention;
    k->gemm_prepare = fake_prepare;
    k->choices_nbytes = fake_choices_nbytes;
    k->choices_export = fake_choices_export;
    k->choices_import = fake_choices_import;
}
