/*
 * FLOP/s of matrix products at training shapes, one JSON line each.
 *
 *   bench_gemm [--plugin LIBRARY [--index N]] [--path NAME] [--threads N] [--repeats N]
 *              [--shape KIND:M:N:K:FORMAT:DTYPE[:RANK]]...
 *
 * KIND nt, nn, tn; FORMAT f32, bf16, nf4, nf4double; DTYPE f32, bf16, bf16f32 (C alone is f32);
 * RANK of a LoRA branch that lies beside the operands (a second term). Dequantization and packing
 * are part of the time, on a device beside the product before, as in a run. Without --shape: on the
 * CPU the linear layers of a 135M and a 1.1B model; on a device (--plugin) those of Llama 3 8B with
 * 8192 tokens, the head's chunk, adapters, and few rows. "gb_per_s" are the closed form's bytes:
 * what few rows are bound by.
 */
#include <inttypes.h>

#include "bench/measured.h"

enum { SET_MAX = 16, SHAPE_MAX = 64 };
static const size_t SETS_NBYTES = (size_t)256 << 20; /* of B: more than caches hold */

typedef struct shape {
    const char *text;
    tess_gemm_kind kind;
    int64_t m, n, k, rank;
    tess_codec codec;
    tess_dtype dt, c_dt;
} shape;

static const char *const kind_names[] = {"nt", "nn", "tn"};
static const char *const host_shapes[] = {
    "nt:512:5632:2048:nf4double:bf16",  "nt:512:2048:5632:nf4double:bf16",
    "nt:512:2048:2048:nf4double:bf16",  "nt:512:256:2048:nf4double:bf16",
    "nn:512:2048:5632:nf4double:bf16",  "nn:512:5632:2048:nf4double:bf16",
    "nt:512:5632:2048:bf16:bf16",       "nn:512:2048:5632:bf16:bf16",
    "tn:5632:2048:512:bf16:bf16",       "tn:2048:5632:512:bf16:bf16",
    "nt:512:5632:2048:nf4double:f32",   "nt:512:5632:2048:f32:f32",
    "nt:2048:5632:2048:nf4double:bf16", "nt:512:576:576:nf4double:bf16",
    "nt:512:192:576:nf4double:bf16",    "nt:512:1536:576:nf4double:bf16",
    "nt:512:576:1536:nf4double:bf16",   "nn:512:576:1536:nf4double:bf16",
    "nn:512:1536:576:nf4double:bf16",   "tn:1536:576:512:bf16:bf16",
    "nt:512:4096:576:bf16:bf16",        "nt:512:4096:2048:bf16:bf16",
    "nt:512:16:2048:bf16:bf16",         "nt:512:5632:16:bf16:bf16",
    "nn:512:16:5632:bf16:bf16",         "nn:512:2048:16:bf16:bf16",
    "tn:16:2048:512:bf16:bf16",         "tn:5632:16:512:bf16:bf16",
};
static const char *const device_shapes[] = {
    "nt:8192:4096:4096:bf16:bf16",
    "nt:8192:1024:4096:bf16:bf16",
    "nt:8192:14336:4096:bf16:bf16",
    "nt:8192:4096:14336:bf16:bf16",
    "nn:8192:4096:4096:bf16:bf16",
    "nn:8192:14336:4096:bf16:bf16",
    "nn:8192:4096:14336:bf16:bf16",
    "nt:8192:4096:4096:nf4double:bf16:16",
    "nt:8192:14336:4096:nf4double:bf16:16",
    "nt:8192:4096:14336:nf4double:bf16:16",
    "nn:8192:4096:14336:nf4double:bf16:16",
    "nt:8192:14336:4096:nf4double:bf16",
    "nt:1024:128256:4096:bf16:bf16f32", /* logits */
    "nn:1024:4096:128256:bf16:bf16",
    "nt:8192:48:4096:bf16:bf16", /* u = x A^T of q, k and v */
    "tn:16:4096:8192:bf16:bf16", /* dA */
    "tn:14336:16:8192:bf16:bf16",
    "nt:1:14336:4096:nf4double:bf16",
    "nt:2:14336:4096:nf4double:bf16",
    "nt:4:14336:4096:nf4double:bf16",
    "nt:8:14336:4096:nf4double:bf16",
};

typedef struct bench {
    bench_device at;
    bench_options options;
    shape shape[SHAPE_MAX];
    int shape_numel;
} bench;

/** One product, with sets of B that take turns. */
typedef struct product {
    bench *b;
    tess_gemm_args a;
    void *part[SET_MAX][TESS_CODEC_PART_MAX];
    int set_numel, set_idx;
    void *taken[SET_MAX * TESS_CODEC_PART_MAX + 4];
    size_t taken_nbytes[SET_MAX * TESS_CODEC_PART_MAX + 4];
    int taken_numel;
} product;

/* ---- shapes ---- */

static tess_status shape_parse(const char *text, shape *out)
{
    char kind[8] = "", format[16] = "", dt[8] = "";
    *out = (shape){.text = text};
    const int n =
        sscanf(text, "%7[a-z]:%" SCNd64 ":%" SCNd64 ":%" SCNd64 ":%15[a-z0-9]:%7[a-z0-9]:%" SCNd64,
               kind, &out->m, &out->n, &out->k, format, dt, &out->rank);
    TESS_CHECK(n >= 6, TESS_E_ARG, "shape '%s': expected KIND:M:N:K:FORMAT:DTYPE[:RANK]", text);
    out->kind = strcmp(kind, "nt") == 0   ? TESS_GEMM_NT
                : strcmp(kind, "nn") == 0 ? TESS_GEMM_NN
                                          : TESS_GEMM_TN;
    const bool is_nf4 = strncmp(format, "nf4", 3) == 0;
    const bool is_double = strcmp(format, "nf4double") == 0;
    out->codec =
        (tess_codec){.format = TESS_FORMAT_NF4, .block_numel = 64, .double_quant = is_double};
    if (!is_nf4)
        out->codec =
            tess_codec_of_format(strcmp(format, "f32") == 0 ? TESS_FORMAT_F32 : TESS_FORMAT_BF16);
    const bool is_mixed = strcmp(dt, "bf16f32") == 0;
    TESS_TRY(tess_dtype_parse(is_mixed ? "bf16" : dt, &out->dt));
    out->c_dt = is_mixed || out->kind == TESS_GEMM_TN ? TESS_F32 : out->dt;
    return TESS_OK;
}

/* ---- operands ---- */

static tess_status take(product *p, size_t nbytes, void **out)
{
    TESS_TRY(bench_take(&p->b->at, nbytes, out));
    p->taken[p->taken_numel] = *out;
    p->taken_nbytes[p->taken_numel++] = TESS_MAX(nbytes, (size_t)256);
    return TESS_OK;
}

static void release(product *p)
{
    tess_device *d = p->b->at.device;
    for (int i = 0; i < p->taken_numel; i++)
        d->ops->release(d, d->space, p->taken[i], p->taken_nbytes[i]);
}

/* Any code; absmax and weights of ordinary size. */
static tess_status draw_part(bench *b, const tess_codec_part *part, void *dst)
{
    void *memory = NULL;
    if (part->dt != TESS_U8)
        return bench_draw(&b->at, dst, part->nbytes, false);
    TESS_TRY(tess_alloc(part->nbytes, &memory));
    uint64_t seed = 1;
    for (size_t i = 0; i < part->nbytes; i++) {
        seed = seed * 6364136223846793005ULL + 1442695040888963407ULL;
        ((uint8_t *)memory)[i] = (uint8_t)(seed >> 40);
    }
    const tess_view to = {dst, (int64_t)part->nbytes, TESS_U8, b->at.device->space};
    tess_status st =
        tess_device_copy(b->at.device, to, tess_view_host(memory, to.numel, TESS_U8), b->at.stream);
    if (st == TESS_OK)
        st = tess_stream_finish(b->at.stream);
    tess_free(memory);
    return st;
}

static tess_status place_weights(product *p, const shape *s)
{
    tess_codec_part part[TESS_CODEC_PART_MAX];
    tess_matrix *m = &p->a.term[0].b;
    int part_numel = 0;
    size_t nbytes = 0;
    m->codec = s->codec;
    m->rows = s->kind == TESS_GEMM_NT ? s->n : s->k;
    m->cols = s->kind == TESS_GEMM_NT ? s->k : s->n;
    TESS_TRY(tess_codec_parts(&s->codec, m->rows * m->cols, part, &part_numel));
    for (int i = 0; i < part_numel; i++)
        nbytes += part[i].nbytes;
    const size_t sets = (SETS_NBYTES + nbytes - 1) / TESS_MAX(nbytes, (size_t)1);
    p->set_numel = (int)TESS_MIN(TESS_MAX(sets, (size_t)1), (size_t)SET_MAX);
    for (int set = 0; set < p->set_numel; set++)
        for (int i = 0; i < part_numel; i++) {
            TESS_TRY(take(p, part[i].nbytes, &p->part[set][i]));
            TESS_TRY(draw_part(p->b, &part[i], p->part[set][i]));
        }
    memcpy(m->part, p->part[0], sizeof m->part);
    return TESS_OK;
}

/* [x | u] and, beside W, the other matrix of an adapter; see kernels.h, wants_adjacent_terms. */
static tess_status place_operands(product *p, const shape *s)
{
    bench *b = p->b;
    const size_t item = tess_dtype_block_nbytes(s->dt);
    const int64_t stride = s->k + s->rank, space = s->kind == TESS_GEMM_TN ? s->k : stride;
    tess_gemm_args *a = &p->a;
    void *x = NULL, *c = NULL, *other = NULL;
    TESS_TRY(take(p, (size_t)(s->m * space) * item, &x));
    TESS_TRY(bench_draw(&b->at, x, (size_t)(s->m * space) * item, false));
    TESS_TRY(take(p, (size_t)(s->m * s->n) * tess_dtype_block_nbytes(s->c_dt), &c));
    a->c = (tess_view){c, s->m * s->n, s->c_dt, b->at.device->space};
    a->term[0].a = (tess_view){x, s->m * space - s->rank, s->dt, b->at.device->space};
    a->term[0].k = s->k;
    a->term[0].scale = 1.0F;
    a->term_numel = 1;
    if (s->rank == 0)
        return TESS_OK;
    TESS_CHECK(s->kind != TESS_GEMM_TN, TESS_E_ARG, "shape '%s': tn has no branch", s->text);
    TESS_TRY(take(p, (size_t)(s->n * s->rank) * item, &other));
    TESS_TRY(bench_draw(&b->at, other, (size_t)(s->n * s->rank) * item, false));
    a->term[0].a_stride = stride;
    a->term[1] = a->term[0];
    a->term[1].a.data = (char *)x + (size_t)s->k * item;
    a->term[1].a.numel = s->m * stride - s->k;
    a->term[1].k = s->rank;
    a->term[1].b = (tess_matrix){
        .codec = tess_codec_of_format(s->dt == TESS_F32 ? TESS_FORMAT_F32 : TESS_FORMAT_BF16),
        .rows = s->kind == TESS_GEMM_NT ? s->n : s->rank,
        .cols = s->kind == TESS_GEMM_NT ? s->rank : s->n,
        .part = {other}};
    a->term_numel = 2;
    return TESS_OK;
}

static tess_status place_work(product *p)
{
    bench *b = p->b;
    void *work = NULL;
    const size_t nbytes = b->at.kernels->gemm_work_nbytes(&p->a, b->options.thread_numel);
    TESS_TRY(take(p, nbytes, &work));
    p->a.work = (tess_view){work, (int64_t)nbytes, TESS_U8_OPAQUE, b->at.device->space};
    return b->at.kernels->gemm_prepare != NULL ? b->at.kernels->gemm_prepare(&p->a, b->at.stream)
                                               : TESS_OK;
}

/* ---- measuring ---- */

static tess_status multiply(void *arg)
{
    product *p = arg;
    p->set_idx = (p->set_idx + 1) % p->set_numel;
    memcpy(p->a.term[0].b.part, p->part[p->set_idx], sizeof p->a.term[0].b.part);
    return p->b->at.kernels->gemm(&p->a, p->b->at.stream);
}

static tess_status measure(product *p, const shape *s)
{
    bench_time t = {0};
    tess_cost cost = {0};
    const bench_options *o = &p->b->options;
    p->a.kind = s->kind;
    p->a.m = s->m;
    p->a.n = s->n;
    TESS_TRY(place_weights(p, s));
    TESS_TRY(place_operands(p, s));
    TESS_TRY(place_work(p));
    TESS_TRY(bench_measure(&p->b->at, multiply, p, o->repeat_numel, &t));
    tess_count_gemm(&cost, &p->a);
    const double gflop = 1e-9 * cost.model_flops;
    printf("{\"bench\": \"gemm\", \"shape\": \"%s\", \"kind\": \"%s\", \"m\": %" PRId64
           ", \"n\": %" PRId64 ", \"k\": %" PRId64 ", \"threads\": %d, ",
           s->text, kind_names[s->kind], s->m, s->n, s->k, o->thread_numel);
    bench_print_time(&p->b->at, &t, o->repeat_numel);
    printf(", \"gflops\": %.1f, \"gflops_p10\": %.1f, \"gflops_p90\": %.1f, "
           "\"gflops_per_cpu_s\": %.1f, \"gb_per_s\": %.1f, \"work_nbytes\": %" PRId64 "}\n",
           gflop / t.median_s, gflop / t.p90_s, gflop / t.p10_s, gflop / t.cpu_median_s,
           1e-9 * cost.nbytes / t.median_s, p->a.work.numel);
    fflush(stdout);
    return TESS_OK;
}

/* The stream as a run has it: weights of the next product are decoded beside this one. */
static tess_status prepare(bench *b)
{
    char note[TESS_CUDA_NOTE_NBYTES] = "";
    tess_cuda_work work = {.attention = {{.dt = TESS_BF16,
                                          .token_numel = 128,
                                          .head_numel = 1,
                                          .kv_head_numel = 1,
                                          .dim = 64,
                                          .longest_numel = 128,
                                          .document_numel = 1}},
                           .document_max = 1};
    for (int i = 0; i < b->shape_numel; i++) {
        const shape *s = &b->shape[i];
        const size_t nbytes = (size_t)(s->n * s->k) * tess_dtype_block_nbytes(s->dt);
        if (tess_format_is_quantized(s->codec.format))
            work.slot_nbytes = TESS_MAX(work.slot_nbytes, nbytes + nbytes / 16);
    }
    TESS_TRY(tess_device_stream_create(b->at.device, "compute", false, &b->at.stream));
    return b->at.plugin->prepare(b->at.device, b->at.stream, &work, note);
}

static tess_status run(bench *b)
{
    if (b->at.plugin != NULL)
        TESS_TRY(prepare(b));
    for (int i = 0; i < b->shape_numel; i++) {
        product p = {.b = b};
        const tess_status st = measure(&p, &b->shape[i]);
        release(&p);
        TESS_TRY(st);
    }
    return TESS_OK;
}

static tess_status add(bench *b, const char *text)
{
    TESS_CHECK(b->shape_numel < SHAPE_MAX, TESS_E_ARG, "--shape: at most %d of them", SHAPE_MAX);
    return shape_parse(text, &b->shape[b->shape_numel++]);
}

static tess_status parse(int argc, char **argv, bench *b)
{
    for (int i = 1; i < argc; i += 2) {
        TESS_CHECK(i + 1 < argc, TESS_E_ARG, "option '%s' has no value", argv[i]);
        if (bench_option_set(&b->options, argv[i], argv[i + 1]))
            continue;
        TESS_CHECK(strcmp(argv[i], "--shape") == 0, TESS_E_ARG,
                   "unknown option '%s' (usage: head of bench_gemm.c)", argv[i]);
        TESS_TRY(add(b, argv[i + 1]));
    }
    if (b->shape_numel > 0)
        return TESS_OK;
    const bool is_device = b->options.plugin != NULL;
    const int numel = is_device ? TESS_NELEM(device_shapes) : TESS_NELEM(host_shapes);
    for (int i = 0; i < numel; i++)
        TESS_TRY(add(b, is_device ? device_shapes[i] : host_shapes[i]));
    return TESS_OK;
}

int main(int argc, char **argv)
{
    bench b = {.options = {.thread_numel = 1, .repeat_numel = 20}};
    tess_status st = parse(argc, argv, &b);
    if (st == TESS_OK)
        st = bench_open(&b.options, &b.at);
    if (st == TESS_OK)
        st = run(&b);
    if (st != TESS_OK)
        fprintf(stderr, "bench_gemm: %s\n", tess_error_message());
    return tess_status_exit_code(st);
}
