/*
 * The search for nearest codes of the CUDA part beside a matrix product on the same device, one
 * JSON line per size; the keys are compared with the CPU's.
 *
 *   bench_nearest_device --plugin LIBRARY [--index N] [--repeats N] [--vectors N] [--codes N]
 *                        [--dim N] [--side N]
 *
 * Without sizes: those of published codebooks. Numbers are random. "tflop_per_s" counts 2
 * per vector, code and dimension; "product_tflop_per_s" is the rate of a bf16 product of 8192
 * (--side) cubed and "share" the search's part of it: the search takes three products for each
 * (kernels/cuda/ nearest.cu), so 0.33 is the most it can be. "differing" counts keys with other
 * bits than those of the CPU among the first 64 vectors. Exit code 1 where there are any.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/measured.h"
#include "core/arith.h"
#include "core/memory.h"
#include "core/rng.h"

enum { CHECKED_NUMEL = 64 };

typedef struct sizes {
    int64_t vectors, codes, dim;
} sizes;

typedef struct bench {
    bench_device at;
    double product_s;
    int repeat_numel;
    int64_t side_numel; /* of the product */
    int64_t differing_numel;
} bench;

/* `nbytes` on the device, copied from `src` where there is one; released with the process. */
static tess_status place(bench *b, const void *src, size_t nbytes, tess_dtype dt, tess_view *out)
{
    void *data = NULL;
    TESS_TRY(
        b->at.device->ops->alloc(b->at.device, TESS_DEVICE, TESS_MAX(nbytes, (size_t)64), &data));
    const int64_t numel = (int64_t)(nbytes / tess_dtype_block_nbytes(dt));
    *out = (tess_view){data, numel, dt, TESS_DEVICE};
    if (src == NULL)
        return TESS_OK;
    const tess_view host = tess_view_host((void *)(uintptr_t)src, numel, dt);
    return tess_device_copy(b->at.device, *out, host, b->at.stream);
}

/* ---- the product ---- */

typedef struct product {
    bench *b;
    tess_gemm_args a;
} product;

static tess_status multiply(void *arg)
{
    const product *p = arg;
    return p->b->at.kernels->gemm(&p->a, p->b->at.stream);
}

static tess_status measure_product(bench *b)
{
    const int64_t side = b->side_numel;
    const size_t nbytes = (size_t)(side * side) * sizeof(uint16_t);
    const tess_rng rng = tess_rng_make(1, TESS_RNG_TEST, 2, 0);
    tess_view v[3], work;
    void *memory = NULL;
    TESS_TRY(tess_alloc(nbytes, &memory));
    for (int64_t i = 0; i < side * side; i++) /* of zeros it would be faster */
        ((uint16_t *)memory)[i] = tess_bf16_from_f32(tess_rng_uniform(&rng, (uint64_t)i) - 0.5f);
    for (int i = 0; i < 3; i++)
        TESS_TRY(place(b, memory, nbytes, TESS_BF16, &v[i]));
    TESS_TRY(tess_stream_finish(b->at.stream));
    tess_free(memory);
    product p = {.b = b,
                 .a = {.kind = TESS_GEMM_NT, .m = side, .n = side, .term_numel = 1, .c = v[2]}};
    p.a.term[0] =
        (tess_gemm_term){.a = v[0],
                         .b = {.codec = {.format = TESS_FORMAT_BF16}, .rows = side, .cols = side},
                         .k = side,
                         .scale = 1.0f};
    p.a.term[0].b.part[0] = v[1].data;
    TESS_TRY(place(b, NULL, b->at.kernels->gemm_work_nbytes(&p.a, 1), TESS_U8_OPAQUE, &work));
    p.a.work = work;
    bench_time found;
    TESS_TRY(bench_measure(&b->at, multiply, &p, b->repeat_numel, &found));
    b->product_s = found.median_s;
    return TESS_OK;
}

/* ---- the search ---- */

typedef struct search {
    bench *b;
    tess_nearest_prepare_args prepare;
    tess_nearest_args a;
} search;

static tess_status find(void *arg)
{
    const search *s = arg;
    TESS_TRY(s->b->at.kernels->nearest_prepare(&s->prepare, s->b->at.stream));
    return s->b->at.kernels->nearest(&s->a, s->b->at.stream);
}

static tess_status make(int64_t numel, uint32_t idx, float **out)
{
    void *memory = NULL;
    const tess_rng rng = tess_rng_make(1, TESS_RNG_TEST, idx, 0);
    TESS_TRY(tess_alloc_array(numel, sizeof(float), &memory));
    *out = memory;
    for (int64_t i = 0; i < numel; i++)
        (*out)[i] = tess_rng_uniform(&rng, (uint64_t)i) + tess_rng_uniform(&rng, (uint64_t)~i);
    return TESS_OK;
}

static tess_status search_init(bench *b, const sizes *n, const float *x, const float *code,
                               search *s)
{
    const tess_kernels *k = b->at.kernels;
    tess_view v[5];
    TESS_TRY(place(b, x, (size_t)(n->vectors * n->dim) * sizeof *x, TESS_F32, &v[0]));
    TESS_TRY(place(b, code, (size_t)(n->codes * n->dim) * sizeof *code, TESS_F32, &v[1]));
    TESS_TRY(place(b, NULL, k->nearest_pack_nbytes(n->codes, n->dim), TESS_U8_OPAQUE, &v[2]));
    TESS_TRY(place(b, NULL, (size_t)n->vectors * sizeof(uint64_t), TESS_U64, &v[3]));
    TESS_TRY(place(b, NULL, k->nearest_work_nbytes(n->dim, 1, 1), TESS_U8_OPAQUE, &v[4]));
    *s = (search){.b = b,
                  .prepare = {v[1], v[2], n->codes, n->dim},
                  .a = {.x = v[0],
                        .code = v[1],
                        .pack = v[2],
                        .key = v[3],
                        .work = v[4],
                        .vector_numel = n->vectors,
                        .code_numel = n->codes,
                        .dim = n->dim,
                        .best_numel = 1}};
    return TESS_OK;
}

static tess_status count_differing(const search *s, const float *x, const float *code, int64_t *out)
{
    uint64_t got[CHECKED_NUMEL], want[CHECKED_NUMEL];
    const int64_t n = TESS_MIN(s->a.vector_numel, (int64_t)CHECKED_NUMEL);
    tess_view pack = {0}, work = {0};
    tess_nearest_args a = s->a;
    pack.numel = (int64_t)tess_kernels_cpu.nearest_pack_nbytes(a.code_numel, a.dim);
    work.numel = (int64_t)tess_kernels_cpu.nearest_work_nbytes(a.dim, 1, 1);
    pack.dt = work.dt = TESS_U8_OPAQUE;
    TESS_TRY(tess_alloc((size_t)pack.numel, &pack.data));
    TESS_TRY(tess_alloc((size_t)work.numel, &work.data));
    tess_stream host;
    tess_stream_init_inline(&host, "host", NULL);
    a.x = tess_view_host((float *)(uintptr_t)x, n * a.dim, TESS_F32);
    a.code = tess_view_host((float *)(uintptr_t)code, a.code_numel * a.dim, TESS_F32);
    a.pack = pack;
    a.work = work;
    a.vector_numel = n;
    a.key = tess_view_host(want, n, TESS_U64);
    const tess_nearest_prepare_args prepare = {a.code, pack, a.code_numel, a.dim};
    TESS_TRY(tess_kernels_cpu.nearest_prepare(&prepare, &host));
    TESS_TRY(tess_kernels_cpu.nearest(&a, &host));
    TESS_TRY(tess_device_copy(s->b->at.device, tess_view_host(got, n, TESS_U64),
                              tess_view_slice(s->a.key, 0, n), s->b->at.stream));
    TESS_TRY(tess_stream_finish(s->b->at.stream));
    *out = 0;
    for (int64_t i = 0; i < n; i++)
        *out += got[i] != want[i];
    tess_free(pack.data);
    tess_free(work.data);
    return TESS_OK;
}

static tess_status measure(bench *b, const sizes *n)
{
    float *x = NULL, *code = NULL;
    search s;
    bench_time found;
    int64_t differing_numel = 0;
    TESS_TRY(make(n->vectors * n->dim, 0, &x));
    TESS_TRY(make(n->codes * n->dim, 1, &code));
    TESS_TRY(search_init(b, n, x, code, &s));
    TESS_TRY(bench_measure(&b->at, find, &s, b->repeat_numel, &found));
    TESS_TRY(count_differing(&s, x, code, &differing_numel));
    const double rate =
        2e-12 * (double)n->vectors * (double)n->codes * (double)n->dim / found.median_s;
    const double side = (double)b->side_numel;
    const double ceiling = 2e-12 * side * side * side / b->product_s;
    printf("{\"bench\": \"nearest_device\", \"device\": \"%s\", \"path\": \"%s\", \"vectors\": "
           "%" PRId64 ", \"codes\": %" PRId64 ", \"dim\": %" PRId64 ", \"repeats\": %d, \"us\": "
           "%.2f, \"tflop_per_s\": %.1f, \"product_tflop_per_s\": %.1f, \"share\": %.3f, "
           "\"differing\": %" PRId64 "}\n",
           b->at.device->name, b->at.kernels->path(), n->vectors, n->codes, n->dim, b->repeat_numel,
           1e6 * found.median_s, rate, ceiling, rate / ceiling, differing_numel);
    fflush(stdout);
    b->differing_numel += differing_numel;
    tess_free(x);
    tess_free(code);
    return TESS_OK;
}

/* ---- options ---- */

typedef struct options {
    const char *plugin;
    int index;
    sizes own; /* codes 0: the published ones */
} options;

static bool option_set(bench *b, options *o, const char *name, const char *value)
{
    if (strcmp(name, "--plugin") == 0)
        o->plugin = value;
    else if (strcmp(name, "--index") == 0)
        o->index = atoi(value);
    else if (strcmp(name, "--repeats") == 0)
        b->repeat_numel = TESS_MIN(TESS_MAX(atoi(value), 1), DEVICE_REPEAT_MAX);
    else if (strcmp(name, "--side") == 0)
        b->side_numel = TESS_MAX(atoll(value), 8LL);
    else if (strcmp(name, "--vectors") == 0)
        o->own.vectors = TESS_MAX(atoll(value), 1LL);
    else if (strcmp(name, "--codes") == 0)
        o->own.codes = TESS_MAX(atoll(value), 1LL);
    else if (strcmp(name, "--dim") == 0)
        o->own.dim = TESS_MAX(atoll(value), 1LL);
    else
        return false;
    return true;
}

int main(int argc, char **argv)
{
    static const sizes published[] = {{65536, 256, 32},    {16384, 8192, 64},   {65536, 1024, 128},
                                      {32768, 65536, 256}, {1024, 262144, 256}, {8192, 16384, 512}};
    bench b = {.repeat_numel = 20, .side_numel = 8192};
    options o = {.own = {.vectors = 65536, .dim = 256}};
    for (int i = 1; i < argc; i += 2) {
        if (i + 1 == argc || !option_set(&b, &o, argv[i], argv[i + 1])) {
            fprintf(stderr, "bench_nearest_device: unknown or incomplete option '%s'\n", argv[i]);
            return 64;
        }
    }
    tess_status st = bench_device_open(o.plugin, o.index, &b.at);
    if (st == TESS_OK)
        st = measure_product(&b);
    if (st == TESS_OK && o.own.codes > 0)
        st = measure(&b, &o.own);
    for (int i = 0; o.own.codes == 0 && st == TESS_OK && i < TESS_NELEM(published); i++)
        st = measure(&b, &published[i]);
    if (st != TESS_OK)
        fprintf(stderr, "bench_nearest_device: %s\n", tess_error_message());
    return st != TESS_OK ? tess_status_exit_code(st) : b.differing_numel > 0;
}
