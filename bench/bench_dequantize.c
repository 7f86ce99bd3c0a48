/*
 * Values per second of the CPU decoders, one JSON line per format and result dtype.
 *
 *   bench_dequantize [--path NAME] [--threads N] [--repeats N] [--rows N] [--cols N]
 *                    [--format IDENTITY]...
 *
 * IDENTITY as tess_codec_describe gives it ("nf4/64/double", "qint4/128/bf16"). Without --format:
 * all of them. One warm-up, then `repeats` runs: median, 10th and 90th percentile. GB/s
 * count the bytes that are written.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bench/decode_problem.h"
#include "core/arith.h"

enum { REPEAT_MAX = 1000 };

typedef struct options {
    int thread_numel, repeat_numel;
    int64_t rows, cols;
} options;

static double now_s(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static tess_status run(const char *text, tess_dtype dt, const options *o)
{
    double second[REPEAT_MAX], cpu_second[REPEAT_MAX];
    decode_problem p;
    tess_pool *pool = NULL;
    tess_stream stream;
    void *dst = NULL;
    const int64_t numel = o->rows * o->cols;
    TESS_TRY(decode_problem_init(text, o->rows, o->cols, &p));
    TESS_TRY(tess_pool_create(o->thread_numel, &pool));
    tess_stream_init_inline(&stream, "compute", pool);
    const size_t elem_nbytes = tess_dtype_block_nbytes(dt);
    TESS_TRY(tess_alloc_array(numel, elem_nbytes, &dst));
    const tess_dequantize_args a = decode_problem_args(&p, p.data, tess_view_host(dst, numel, dt));
    TESS_TRY(tess_kernels_cpu.dequantize(&a, &stream));
    for (int i = 0; i < o->repeat_numel; i++) {
        const double start_s = now_s(CLOCK_MONOTONIC);
        const double start_cpu_s = now_s(CLOCK_PROCESS_CPUTIME_ID);
        TESS_TRY(tess_kernels_cpu.dequantize(&a, &stream));
        second[i] = now_s(CLOCK_MONOTONIC) - start_s;
        cpu_second[i] = now_s(CLOCK_PROCESS_CPUTIME_ID) - start_cpu_s;
    }
    qsort(second, (size_t)o->repeat_numel, sizeof *second, decode_by_value);
    qsort(cpu_second, (size_t)o->repeat_numel, sizeof *cpu_second, decode_by_value);
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
    decode_problem_fini(&p);
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
    for (int i = 0; !has_format && code == 0 && i < TESS_NELEM(decode_formats); i++)
        code = run_text(decode_formats[i], &o);
    return code;
}
