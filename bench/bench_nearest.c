/*
 * Assignment of vectors to their nearest codes, and a whole k-means iteration, on request.
 *
 *   bench_nearest VECTORS.f32 CODES.f32 DIM [--threads N] [--path NAME]
 *
 * The files are bare f32. Every line of stdin is a request: "assign" (keys of all vectors) or
 * "iterate" (keys, exact sums, means); the answer is its seconds, and the sum of the distances.
 * bench/nearest_pairs.py asks in turn with faiss.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/arith.h"
#include "core/memory.h"
#include "kernels/kernels.h"

typedef struct problem {
    int64_t n, k, d;
    int exponent;
    float *x, *code;
    uint64_t *key;
    uint32_t *row;
    int64_t *sum, *count;
    tess_view pack, work;
    tess_stream stream;
} problem;

static double now_s(int thread_numel)
{
    struct timespec t;
    clock_gettime(thread_numel == 1 ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static tess_status read_floats(const char *path, float **out, int64_t *numel)
{
    FILE *f = fopen(path, "rb");
    void *memory = NULL;
    TESS_CHECK(f != NULL, TESS_E_IO, "cannot open '%s'", path);
    fseek(f, 0, SEEK_END);
    *numel = ftell(f) / 4;
    rewind(f);
    tess_status st = tess_alloc_array(*numel, 4, &memory);
    if (st == TESS_OK && fread(memory, 4, (size_t)*numel, f) != (size_t)*numel)
        st = TESS_FAIL(TESS_E_IO, "cannot read '%s'", path);
    fclose(f);
    *out = memory;
    return st;
}

static tess_status room(size_t nbytes, tess_view *out)
{
    void *p = NULL;
    TESS_TRY(tess_alloc(nbytes, &p));
    *out = tess_view_host(p, (int64_t)nbytes, TESS_U8_OPAQUE);
    return TESS_OK;
}

static tess_status array(int64_t numel, size_t nbytes, void *slot)
{
    void *p = NULL;
    TESS_TRY(tess_alloc_array(numel, nbytes, &p));
    memcpy(slot, &p, sizeof p);
    return TESS_OK;
}

static tess_status open_problem(problem *p, char **argv, int thread_numel)
{
    float largest = 0.0f;
    tess_pool *pool = NULL;
    p->d = strtoll(argv[3], NULL, 10);
    TESS_TRY(read_floats(argv[1], &p->x, &p->n));
    TESS_TRY(read_floats(argv[2], &p->code, &p->k));
    p->n /= p->d;
    p->k /= p->d;
    TESS_TRY(tess_pool_create(thread_numel, &pool));
    tess_stream_init_inline(&p->stream, "compute", pool);
    TESS_TRY(array(p->n, 8, &p->key));
    TESS_TRY(array(p->n, 4, &p->row));
    TESS_TRY(array(p->k * p->d, 8, &p->sum));
    TESS_TRY(array(p->k, 8, &p->count));
    TESS_TRY(room(tess_kernels_cpu.nearest_pack_nbytes(p->k, p->d), &p->pack));
    TESS_TRY(room(tess_kernels_cpu.nearest_work_nbytes(p->d, 1, thread_numel), &p->work));
    for (int64_t i = 0; i < p->n * p->d; i++)
        largest = p->x[i] > largest ? p->x[i] : -p->x[i] > largest ? -p->x[i] : largest;
    p->exponent = tess_fixed_exponent(largest, p->n);
    return TESS_OK;
}

static tess_status assign(problem *p)
{
    const tess_nearest_prepare_args prepare = {.code =
                                                   tess_view_host(p->code, p->k * p->d, TESS_F32),
                                               .pack = p->pack,
                                               .code_numel = p->k,
                                               .dim = p->d};
    const tess_nearest_args args = {.x = tess_view_host(p->x, p->n * p->d, TESS_F32),
                                    .code = prepare.code,
                                    .pack = p->pack,
                                    .key = tess_view_host(p->key, p->n, TESS_U64),
                                    .work = p->work,
                                    .vector_numel = p->n,
                                    .code_numel = p->k,
                                    .dim = p->d,
                                    .best_numel = 1};
    TESS_TRY(tess_kernels_cpu.nearest_prepare(&prepare, &p->stream));
    return tess_kernels_cpu.nearest(&args, &p->stream);
}

static tess_status iterate(problem *p)
{
    TESS_TRY(assign(p));
    memset(p->sum, 0, (size_t)(p->k * p->d) * 8);
    memset(p->count, 0, (size_t)p->k * 8);
    for (int64_t i = 0; i < p->n; i++)
        p->row[i] = tess_key_row(p->key[i]);
    const tess_code_sum_args sum = {p->x, p->row,      p->n,   p->d,    0,
                                    p->k, p->exponent, p->sum, p->count};
    TESS_TRY(tess_kernels_cpu.code_sum(&sum, &p->stream));
    const tess_code_mean_args mean = {p->sum, p->count, p->code, p->k, p->d, p->exponent, false};
    return tess_kernels_cpu.code_mean(&mean, &p->stream);
}

static tess_status serve(problem *p, int thread_numel)
{
    char line[64];
    while (fgets(line, sizeof line, stdin) != NULL) {
        double error = 0.0;
        const double start_s = now_s(thread_numel);
        TESS_TRY(strncmp(line, "iterate", 7) == 0 ? iterate(p) : assign(p));
        const double second = now_s(thread_numel) - start_s;
        for (int64_t i = 0; i < p->n; i++)
            error += (double)tess_key_distance(p->key[i]);
        printf("%.9f %.17g\n", second, error);
        fflush(stdout);
    }
    return TESS_OK;
}

int main(int argc, char **argv)
{
    int thread_numel = 1;
    problem p = {0};
    if (argc < 4)
        return 2;
    for (int i = 4; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--threads") == 0)
            thread_numel = atoi(argv[i + 1]);
        if (strcmp(argv[i], "--path") == 0)
            setenv("TESSERA_CPU_PATH", argv[i + 1], 1);
    }
    tess_status st = tess_kernels_cpu_select(tess_cpu_path_best());
    if (st == TESS_OK)
        st = open_problem(&p, argv, thread_numel);
    if (st == TESS_OK)
        st = serve(&p, thread_numel);
    if (st != TESS_OK)
        fprintf(stderr, "%s\n", tess_error_message());
    return st == TESS_OK ? 0 : 1;
}
