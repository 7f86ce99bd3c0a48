/*
 * Decoders of the CUDA part against copies on the same device, one JSON line per format and result
 * dtype; the values are compared with the CPU's.
 *
 *   bench_dequantize_device --plugin LIBRARY [--index N] [--repeats N] [--rows N] [--cols N]
 *                           [--format IDENTITY]...
 *
 * LIBRARY: path of libtessera_cuda.so. IDENTITY as tess_codec_describe gives it. Without --format:
 * all of them. Each time is that of a call between two marks on its stream, after one
 * warm-up; median of `repeats`. Bytes are those read and written once; the copy moves as many.
 * "share" is the decoder's rate over the copy's, "differing" counts elements with other bits than
 * the CPU has. Exit code 1 where there are any.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/decode_problem.h"
#include "bench/measured.h"
#include "core/arith.h"

typedef struct options {
    const char *plugin;
    int index, repeat_numel;
    int64_t rows, cols;
} options;

typedef struct bench {
    options o;
    bench_device at;
    int64_t differing_numel;
} bench;

/* ---- times ---- */

/* A call whose time is taken. */
typedef struct work {
    bench *b;
    const tess_dequantize_args *decode; /* NULL: the copy */
    tess_view dst, src;
} work;

static tess_status do_work(void *arg)
{
    const work *w = arg;
    return w->decode != NULL ? w->b->at.kernels->dequantize(w->decode, w->b->at.stream)
                             : tess_device_copy(w->b->at.device, w->dst, w->src, w->b->at.stream);
}

/* ---- one format ---- */

/* Everything one format needs on both sides. */
typedef struct sides {
    decode_problem p;
    void *data[TESS_CODEC_PART_MAX], *dst, *copy[2]; /* on the device */
    void *got, *want;                                /* on the host */
    size_t dst_nbytes, copy_nbytes;
} sides;

static tess_view bytes_of(void *data, size_t nbytes, tess_space space)
{
    const tess_view v = {data, (int64_t)nbytes, TESS_U8_OPAQUE, space};
    return v;
}

static tess_status sides_init(bench *b, const char *text, tess_dtype dt, sides *s)
{
    const tess_device_ops *ops = b->at.device->ops;
    TESS_TRY(decode_problem_init(text, b->o.rows, b->o.cols, &s->p));
    s->dst_nbytes = (size_t)s->p.numel * tess_dtype_block_nbytes(dt);
    s->copy_nbytes = (s->dst_nbytes + s->p.nbytes) / 2;
    for (int i = 0; i < s->p.part_numel; i++) {
        const size_t nbytes = s->p.part[i].nbytes;
        TESS_TRY(ops->alloc(b->at.device, TESS_DEVICE, nbytes, &s->data[i]));
        TESS_TRY(tess_device_copy(b->at.device, bytes_of(s->data[i], nbytes, TESS_DEVICE),
                                  bytes_of(s->p.data[i], nbytes, TESS_HOST), b->at.stream));
    }
    TESS_TRY(ops->alloc(b->at.device, TESS_DEVICE, s->dst_nbytes, &s->dst));
    for (int i = 0; i < 2; i++)
        TESS_TRY(ops->alloc(b->at.device, TESS_DEVICE, s->copy_nbytes, &s->copy[i]));
    TESS_TRY(tess_alloc(s->dst_nbytes, &s->got));
    return tess_alloc(s->dst_nbytes, &s->want);
}

static void sides_fini(bench *b, sides *s)
{
    const tess_device_ops *ops = b->at.device->ops;
    for (int i = 0; i < s->p.part_numel; i++)
        if (s->data[i] != NULL)
            ops->release(b->at.device, TESS_DEVICE, s->data[i], s->p.part[i].nbytes);
    if (s->dst != NULL)
        ops->release(b->at.device, TESS_DEVICE, s->dst, s->dst_nbytes);
    for (int i = 0; i < 2; i++)
        if (s->copy[i] != NULL)
            ops->release(b->at.device, TESS_DEVICE, s->copy[i], s->copy_nbytes);
    tess_free(s->got);
    tess_free(s->want);
    decode_problem_fini(&s->p);
}

static tess_status count_differing(bench *b, sides *s, tess_dtype dt, int64_t *out)
{
    const size_t elem_nbytes = tess_dtype_block_nbytes(dt);
    const tess_dequantize_args host =
        decode_problem_args(&s->p, s->p.data, tess_view_host(s->want, s->p.numel, dt));
    TESS_TRY(tess_device_copy(b->at.device, bytes_of(s->got, s->dst_nbytes, TESS_HOST),
                              bytes_of(s->dst, s->dst_nbytes, TESS_DEVICE), b->at.stream));
    TESS_TRY(tess_stream_finish(b->at.stream));
    TESS_TRY(tess_kernels_cpu.dequantize(&host, NULL));
    *out = 0;
    for (size_t i = 0; i < s->dst_nbytes; i += elem_nbytes)
        *out += memcmp((char *)s->got + i, (char *)s->want + i, elem_nbytes) != 0;
    return TESS_OK;
}

static tess_status measure(bench *b, const char *text, tess_dtype dt, sides *s)
{
    bench_time decode_time, copy_time;
    int64_t differing_numel = 0;
    TESS_TRY(sides_init(b, text, dt, s));
    const tess_view dst = {s->dst, s->p.numel, dt, TESS_DEVICE};
    const tess_dequantize_args args = decode_problem_args(&s->p, s->data, dst);
    work decode = {.b = b, .decode = &args};
    work copy = {.b = b,
                 .dst = bytes_of(s->copy[0], s->copy_nbytes, TESS_DEVICE),
                 .src = bytes_of(s->copy[1], s->copy_nbytes, TESS_DEVICE)};
    TESS_TRY(bench_draw(&b->at, copy.src.data, s->copy_nbytes, false));
    TESS_TRY(bench_measure(&b->at, do_work, &decode, b->o.repeat_numel, &decode_time));
    TESS_TRY(bench_measure(&b->at, do_work, &copy, b->o.repeat_numel, &copy_time));
    const double decode_s = decode_time.median_s, copy_s = copy_time.median_s;
    TESS_TRY(count_differing(b, s, dt, &differing_numel));
    const double gbyte = 1e-9 * (double)(s->dst_nbytes + s->p.nbytes);
    printf("{\"bench\": \"dequantize_device\", \"device\": \"%s\", \"path\": \"%s\", \"format\": "
           "\"%s\", \"to\": \"%s\", \"rows\": %" PRId64 ", \"cols\": %" PRId64 ", \"repeats\": %d, "
           "\"us\": %.2f, \"gb_per_s\": %.1f, \"copy_gb_per_s\": %.1f, \"share\": %.3f, "
           "\"differing\": %" PRId64 "}\n",
           b->at.device->name, b->at.kernels->path(), text, tess_dtype_name(dt), b->o.rows,
           b->o.cols, b->o.repeat_numel, 1e6 * decode_s, gbyte / decode_s, gbyte / copy_s,
           copy_s / decode_s, differing_numel);
    fflush(stdout);
    b->differing_numel += differing_numel;
    return TESS_OK;
}

static tess_status run(bench *b, const char *text)
{
    static const tess_dtype dtypes[] = {TESS_BF16, TESS_F32};
    tess_status st = TESS_OK;
    for (int i = 0; i < TESS_NELEM(dtypes) && st == TESS_OK; i++) {
        sides s = {0};
        st = measure(b, text, dtypes[i], &s);
        sides_fini(b, &s);
    }
    return st;
}

/* ---- options ---- */

/* Whether `name` is one of them. */
static bool option_set(options *o, const char *name, const char *value)
{
    if (strcmp(name, "--plugin") == 0)
        o->plugin = value;
    else if (strcmp(name, "--index") == 0)
        o->index = atoi(value);
    else if (strcmp(name, "--repeats") == 0)
        o->repeat_numel = TESS_MIN(TESS_MAX(atoi(value), 1), DEVICE_REPEAT_MAX);
    else if (strcmp(name, "--rows") == 0)
        o->rows = TESS_MAX(atoll(value), 1LL);
    else if (strcmp(name, "--cols") == 0)
        o->cols = TESS_MAX(atoll(value), 1LL);
    else
        return strcmp(name, "--format") == 0;
    return true;
}

int main(int argc, char **argv)
{
    bench b = {.o = {.repeat_numel = 20, .rows = 14336, .cols = 4096}};
    bool has_format = false;
    for (int i = 1; i < argc; i += 2) {
        if (i + 1 == argc || !option_set(&b.o, argv[i], argv[i + 1])) {
            fprintf(stderr, "bench_dequantize_device: unknown or incomplete option '%s'\n",
                    argv[i]);
            return 64;
        }
    }
    tess_status st = bench_device_open(b.o.plugin, b.o.index, &b.at);
    for (int i = 1; i + 1 < argc && st == TESS_OK; i += 2) {
        if (strcmp(argv[i], "--format") == 0) {
            has_format = true;
            st = run(&b, argv[i + 1]);
        }
    }
    for (int i = 0; !has_format && st == TESS_OK && i < TESS_NELEM(decode_formats); i++)
        st = run(&b, decode_formats[i]);
    if (st != TESS_OK)
        fprintf(stderr, "bench_dequantize_device: %s\n", tess_error_message());
    return st != TESS_OK ? tess_status_exit_code(st) : b.differing_numel > 0;
}
