/*
 * GFLOP/s of the CPU matrix product at training shapes, one JSON line each.
 *
 *   bench_gemm [--path NAME] [--threads N] [--repeats N] [--shape KIND:M:N:K:FORMAT:DTYPE]...
 *
 * KIND nt, nn, tn; FORMAT f32, bf16, nf4, nf4double; DTYPE f32, bf16. Without --shape: the linear
 * layers of a 135M and a 1.1B model. Dequantization and packing are part of the time. One warm-up,
 * then `repeats` runs: median, 10th and 90th percentile.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/arith.h"
#include "core/memory.h"
#include "core/rng.h"
#include "kernels/kernels.h"

enum { REPEAT_MAX = 1000 };

typedef struct shape {
    tess_gemm_kind kind;
    int64_t m, n, k;
    tess_codec codec;
    tess_dtype dt;
} shape;

typedef struct options {
    int thread_numel, repeat_numel;
} options;

static const char *const kind_names[] = {"nt", "nn", "tn"};
static const char *const default_shapes[] = {
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

static double now_s(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a;
    const double y = *(const double *)b;
    return (x > y) - (x < y);
}

static int shape_parse(const char *text, shape *out)
{
    char kind[8];
    char format[16];
    char dt[8];
    if (sscanf(text, "%7[a-z]:%" SCNd64 ":%" SCNd64 ":%" SCNd64 ":%15[a-z0-9]:%7[a-z0-9]", kind,
               &out->m, &out->n, &out->k, format, dt) != 6)
        return -1;
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
    out->dt = strcmp(dt, "f32") == 0 ? TESS_F32 : TESS_BF16;
    return 0;
}

/* Values of ordinary size: bf16 or f32 around 1, absmax around 0.05, any code. */
static void fill(tess_dtype dt, void *data, int64_t numel, uint64_t seed)
{
    for (int64_t i = 0; i < numel; i++) {
        seed = seed * 6364136223846793005ULL + 1442695040888963407ULL;
        const float x = (float)(int32_t)(seed >> 32) * 0x1p-31F;
        if (dt == TESS_U8)
            ((uint8_t *)data)[i] = (uint8_t)(seed >> 40);
        else if (dt == TESS_BF16)
            ((uint16_t *)data)[i] = tess_bf16_from_f32(x);
        else
            ((float *)data)[i] = x;
    }
}

static tess_status matrix_create(const shape *s, tess_matrix *b)
{
    tess_codec_part part[TESS_CODEC_PART_MAX];
    int part_numel = 0;
    b->codec = s->codec;
    b->rows = s->kind == TESS_GEMM_NT ? s->n : s->k;
    b->cols = s->kind == TESS_GEMM_NT ? s->k : s->n;
    TESS_TRY(tess_codec_parts(&s->codec, b->rows * b->cols, part, &part_numel));
    for (int i = 0; i < part_numel; i++) {
        void *data = NULL;
        TESS_TRY(tess_alloc(part[i].nbytes, &data));
        fill(part[i].dt, data, part[i].numel, (uint64_t)i + 1);
        b->part[i] = data;
    }
    return TESS_OK;
}

static tess_status run_shape(const shape *s, const options *o, const char *text)
{
    tess_gemm_args a = {.kind = s->kind, .m = s->m, .n = s->n, .term_numel = 1};
    tess_pool *pool = NULL;
    tess_stream stream;
    void *a_data = NULL;
    void *c_data = NULL;
    void *work = NULL;
    double second[REPEAT_MAX];
    double cpu_second[REPEAT_MAX]; /* of all threads: what a busy machine leaves readable */
    const tess_dtype c_dt = s->kind == TESS_GEMM_TN ? TESS_F32 : s->dt;
    TESS_TRY(tess_pool_create(o->thread_numel, &pool));
    tess_stream_init_inline(&stream, "compute", pool);
    TESS_TRY(matrix_create(s, &a.term[0].b));
    TESS_TRY(tess_alloc_array(s->m * s->k, tess_dtype_block_nbytes(s->dt), &a_data));
    TESS_TRY(tess_alloc_array(s->m * s->n, tess_dtype_block_nbytes(c_dt), &c_data));
    fill(s->dt, a_data, s->m * s->k, 99);
    a.term[0].a = tess_view_host(a_data, s->m * s->k, s->dt);
    a.term[0].k = s->k;
    a.term[0].scale = 1.0F;
    a.c = tess_view_host(c_data, s->m * s->n, c_dt);
    const size_t work_nbytes = tess_kernels_cpu.gemm_work_nbytes(&a, o->thread_numel);
    TESS_TRY(tess_alloc(work_nbytes, &work));
    a.work = tess_view_host(work, (int64_t)work_nbytes, TESS_U8_OPAQUE);
    TESS_TRY(tess_kernels_cpu.gemm(&a, &stream));
    for (int i = 0; i < o->repeat_numel; i++) {
        const double start_s = now_s(CLOCK_MONOTONIC);
        const double start_cpu_s = now_s(CLOCK_PROCESS_CPUTIME_ID);
        TESS_TRY(tess_kernels_cpu.gemm(&a, &stream));
        second[i] = now_s(CLOCK_MONOTONIC) - start_s;
        cpu_second[i] = now_s(CLOCK_PROCESS_CPUTIME_ID) - start_cpu_s;
    }
    qsort(cpu_second, (size_t)o->repeat_numel, sizeof(*cpu_second), by_value);
    qsort(second, (size_t)o->repeat_numel, sizeof(*second), by_value);
    const double flop = 2e-9 * (double)s->m * (double)s->n * (double)s->k;
    const int last = o->repeat_numel - 1;
    printf("{\"bench\": \"gemm\", \"shape\": \"%s\", \"kind\": \"%s\", \"m\": %" PRId64
           ", \"n\": %" PRId64 ", \"k\": %" PRId64 ", \"path\": \"%s\", \"threads\": %d, "
           "\"repeats\": %d, \"gflops\": %.1f, \"gflops_best\": %.1f, \"gflops_p10\": %.1f, "
           "\"gflops_p90\": %.1f, \"gflops_per_cpu_s\": %.1f, \"work_nbytes\": %zu}\n",
           text, kind_names[s->kind], s->m, s->n, s->k, tess_kernels_cpu.path(), o->thread_numel,
           o->repeat_numel, flop / second[last / 2], flop / second[0], flop / second[last * 9 / 10],
           flop / second[last / 10], flop / cpu_second[last / 2], work_nbytes);
    fflush(stdout);
    tess_pool_destroy(&pool);
    tess_free(a_data);
    tess_free(c_data);
    tess_free(work);
    for (int i = 0; i < TESS_CODEC_PART_MAX; i++)
        tess_free((void *)(uintptr_t)a.term[0].b.part[i]);
    return TESS_OK;
}

static int run_text(const char *text, const options *o)
{
    shape s;
    if (shape_parse(text, &s) != 0) {
        fprintf(stderr, "shape '%s': expected KIND:M:N:K:FORMAT:DTYPE\n", text);
        return 64;
    }
    if (run_shape(&s, o, text) != TESS_OK) {
        fprintf(stderr, "shape '%s': %s\n", text, tess_error_message());
        return tess_status_exit_code(tess_error_status());
    }
    return 0;
}

int main(int argc, char **argv)
{
    options o = {.thread_numel = 1, .repeat_numel = 20};
    int code = 0;
    bool has_shape = false;
    for (int i = 1; i + 1 < argc && code == 0; i += 2) {
        if (strcmp(argv[i], "--threads") == 0)
            o.thread_numel = atoi(argv[i + 1]);
        else if (strcmp(argv[i], "--repeats") == 0)
            o.repeat_numel = TESS_MIN(TESS_MAX(atoi(argv[i + 1]), 1), REPEAT_MAX);
        else if (strcmp(argv[i], "--path") == 0)
            setenv("TESSERA_CPU_PATH", argv[i + 1], 1);
        else if (strcmp(argv[i], "--shape") == 0) {
            has_shape = true;
            code = run_text(argv[i + 1], &o);
        } else {
            fprintf(stderr, "unknown option '%s'\n", argv[i]);
            code = 64;
        }
    }
    for (int i = 0; !has_shape && code == 0 && i < TESS_NELEM(default_shapes); i++)
        code = run_text(default_shapes[i], &o);
    return code;
}
