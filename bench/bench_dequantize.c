/*
 * Values per second of the CPU decoders, one JSON line per format and result dtype.
 *
 *   bench_dequantize [--path NAME] [--threads N] [--repeats N] [--rows N] [--cols N]
 *                    [--format IDENTITY]...
 *
 * IDENTITY as tess_codec_describe gives it ("nf4/64/double", "qint4/128/bf16"). Without --format:
 * one of each family. One warm-up, then `repeats` runs: median, 10th and 90th percentile. GB/s
 * count the bytes that are written.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/arith.h"
#include "core/half.h"
#include "core/memory.h"
#include "kernels/kernels.h"

enum { REPEAT_MAX = 1000 };

typedef struct options {
    int thread_numel, repeat_numel;
    int64_t rows, cols;
} options;

static const char *const default_formats[] = {
    "nf4/64",         "nf4/64/double",  "q8_0",          "q4_0",           "q4_k",
    "q6_k",           "int8/4096",      "f16",           "qint8/row/bf16", "qfloat8/row/bf16",
    "qint4/128/bf16", "qint2/128/bf16", "qint4/128/f32", "e4m3/raw",       "e4m3/row/dequant_scale",
    "e5m2/raw"};

static double now_s(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Codes of every kind, of finite numbers; constants around 0.05. */
static void fill(const tess_codec_part *part, void *data)
{
    uint64_t seed = 7;
    for (size_t i = 0; i < part->nbytes; i++) {
        seed = seed * 6364136223846793005ULL + 1442695040888963407ULL;
        ((uint8_t *)data)[i] = (uint8_t)(seed >> 40) & 0xbf; /* no exponent of all ones */
    }
    for (int64_t i = 0; part->dt != TESS_U8 && i < part->numel; i++) {
        if (part->dt == TESS_F32)
            ((float *)data)[i] = 0.05F;
        else
            ((uint16_t *)data)[i] = part->dt == TESS_BF16 ? 0x3d4d : 0x2a66;
    }
}

static tess_status run(const char *text, tess_dtype dt, const options *o)
{
    double second[REPEAT_MAX], cpu_second[REPEAT_MAX];
    tess_dequantize_args a = {0};
    tess_codec_part part[TESS_CODEC_PART_MAX];
    tess_pool *pool = NULL;
    tess_stream stream;
    void *data[TESS_CODEC_PART_MAX] = {0}, *dst = NULL;
    int part_numel = 0;
    const int64_t numel = o->rows * o->cols;
    TESS_TRY(tess_codec_parse(text, o->cols, &a.codec));
    TESS_TRY(tess_codec_parts(&a.codec, numel, part, &part_numel));
    TESS_TRY(tess_pool_create(o->thread_numel, &pool));
    tess_stream_init_inline(&stream, "compute", pool);
    for (int i = 0; i < part_numel; i++) {
        TESS_TRY(tess_alloc(part[i].nbytes, &data[i]));
        fill(&part[i], data[i]);
        a.part[i] = data[i];
    }
    const size_t elem_nbytes = tess_dtype_block_nbytes(dt);
    TESS_TRY(tess_alloc_array(numel, elem_nbytes, &dst));
    a.dst = tess_view_host(dst, numel, dt);
    TESS_TRY(tess_kernels_cpu.dequantize(&a, &stream));
    for (int i = 0; i < o->repeat_numel; i++) {
        const double start_s = now_s(CLOCK_MONOTONIC);
        const double start_cpu_s = now_s(CLOCK_PROCESS_CPUTIME_ID);
        TESS_TRY(tess_kernels_cpu.dequantize(&a, &stream));
        second[i] = now_s(CLOCK_MONOTONIC) - start_s;
        cpu_second[i] = now_s(CLOCK_PROCESS_CPUTIME_ID) - start_cpu_s;
    }
    qsort(second, (size_t)o->repeat_numel, sizeof *second, by_value);
    qsort(cpu_second, (size_t)o->repeat_numel, sizeof *cpu_second, by_value);
    const int last = o->repeat_numel - 1;
    const double gvalue = 1e-9 * (double)numel, size = (double)elem_nbytes;
    printf("{\"bench\": \"dequantize\", \"format\": \"%s\", \"to\": \"%s\", \"rows\": %" PRId64
           ", \"cols\": %" PRId64 ", \"path\": \"%s\", \"threads\": %d, \"repeats\": %d, "
           "\"gvalues_per_s\": %.3f, \"gb_per_s\": %.2f, \"gb_per_s_p10\": %.2f, "
           "\"gb_per_s_p90\": %.2f, \"gb_per_cpu_s\": %.2f}\n",
           text, tess_dtype_name(dt), o->rows, o->cols, tess_kernels_cpu.path(), o->thread_numel,
           o->repeat_numel, gvalue / second[last / 2], size * gvalue / second[last / 2],
           size * gvalue / second[last * 9 / 10], size * gvalue / second[last / 10],
           size * gvalue / cpu_second[last / 2]);
    fflush(stdout);
    tess_pool_destroy(&pool);
    tess_free(dst);
    for (int i = 0; i < part_numel; i++)
        tess_free(data[i]);
    return TESS_OK;
}

static int run_text(const char *text, const options *o)
{
    if (run(text, TESS_BF16, o) == TESS_OK && run(text, TESS_F32, o) == TESS_OK)
        return 0;
    fprintf(stderr, "format '%s': %s\n", text, tess_error_message());
    return tess_status_exit_code(tess_error_status());
}

int main(int argc, char **argv)
{
    options o = {.thread_numel = 1, .repeat_numel = 20, .rows = 4096, .cols = 4096};
    int code = 0;
    bool has_format = false;
    for (int i = 1; i + 1 < argc && code == 0; i += 2) {
        if (strcmp(argv[i], "--threads") == 0)
            o.thread_numel = atoi(argv[i + 1]);
        else if (strcmp(argv[i], "--repeats") == 0)
            o.repeat_numel = TESS_MIN(TESS_MAX(atoi(argv[i + 1]), 1), REPEAT_MAX);
        else if (strcmp(argv[i], "--rows") == 0)
            o.rows = TESS_MAX(atoll(argv[i + 1]), 1LL);
        else if (strcmp(argv[i], "--cols") == 0)
            o.cols = TESS_MAX(atoll(argv[i + 1]), 1LL);
        else if (strcmp(argv[i], "--path") == 0)
            setenv("TESSERA_CPU_PATH", argv[i + 1], 1);
        else if (strcmp(argv[i], "--format") == 0) {
            has_format = true;
            code = run_text(argv[i + 1], &o);
        } else {
            fprintf(stderr, "unknown option '%s'\n", argv[i]);
            code = 64;
        }
    }
    for (int i = 0; !has_format && code == 0 && i < TESS_NELEM(default_formats); i++)
        code = run_text(default_formats[i], &o);
    return code;
}
