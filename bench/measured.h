/**
 * Operands on a bench_device, and the time of calls on them: what benchmarks of single ops share.
 *
 * Sets of operands take turns, so that a call finds nothing of the one before in a cache. Values
 * are drawn: of zeros a device would be faster.
 */
#pragma once

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bench/device.h"
#include "core/arith.h"
#include "kernels/cost_count.h"

/* ---- memory ---- */

enum { BENCH_PATTERN_NBYTES = 64 << 20 };

/** bf16 values in (-1, 1), or in [0, 1); read as f32 they are as ordinary. Local. */
static inline void bench_pattern(uint16_t *out, size_t numel, bool is_positive)
{
    uint64_t seed = 1;
    for (size_t i = 0; i < numel; i++) {
        seed = seed * 6364136223846793005ULL + 1442695040888963407ULL;
        const uint16_t x = tess_bf16_from_f32((float)(int32_t)(seed >> 32) * 0x1p-31F);
        out[i] = is_positive ? x & 0x7fff : x;
    }
}

/** `nbytes` of drawn values at `dst` of the device. Local. */
static inline tess_status bench_draw(bench_device *b, void *dst, size_t nbytes, bool is_positive)
{
    const size_t piece = TESS_MIN(nbytes, (size_t)BENCH_PATTERN_NBYTES);
    void *memory = NULL;
    TESS_TRY(tess_alloc(piece, &memory));
    bench_pattern(memory, piece / 2, is_positive);
    tess_status st = TESS_OK;
    for (size_t at = 0; at < nbytes && st == TESS_OK; at += piece) {
        const int64_t numel = (int64_t)TESS_MIN(piece, nbytes - at);
        const tess_view to = {(char *)dst + at, numel, TESS_U8, b->device->space};
        st = tess_device_copy(b->device, to, tess_view_host(memory, numel, TESS_U8), b->stream);
    }
    if (st == TESS_OK)
        st = tess_stream_finish(b->stream);
    tess_free(memory);
    return st;
}

/** Memory of the device, released with the process; never empty. Local. */
static inline tess_status bench_take(bench_device *b, size_t nbytes, void **out)
{
    return b->device->ops->alloc(b->device, b->device->space, TESS_MAX(nbytes, (size_t)256), out);
}

/** The same, with `nbytes` from the host in it. Local. */
static inline tess_status bench_place(bench_device *b, const void *src, size_t nbytes, void **out)
{
    TESS_TRY(bench_take(b, nbytes, out));
    const tess_view to = {*out, (int64_t)nbytes, TESS_U8, b->device->space};
    const tess_view from = tess_view_host((void *)(uintptr_t)src, (int64_t)nbytes, TESS_U8);
    TESS_TRY(tess_device_copy(b->device, to, from, b->stream));
    return tess_stream_finish(b->stream);
}

/** Sets of slots of one size. */
typedef struct bench_room {
    char *base;
    size_t slot_nbytes;
    int slot_numel, set_numel, set_idx; /* set_idx: the one whose turn it is */
} bench_room;

static inline void *bench_slot(const bench_room *r, int i)
{
    return r->base + (size_t)(r->set_idx * r->slot_numel + i) * r->slot_nbytes;
}

static inline void bench_next_set(bench_room *r) { r->set_idx = (r->set_idx + 1) % r->set_numel; }

static inline tess_status bench_room_init(bench_device *b, size_t slot_nbytes, int slot_numel,
                                          int set_numel, bench_room *out)
{
    void *base = NULL;
    const size_t slot = (slot_nbytes + 255) / 256 * 256;
    const size_t nbytes = slot * (size_t)slot_numel * (size_t)set_numel;
    TESS_TRY(bench_take(b, nbytes, &base));
    *out = (bench_room){base, slot, slot_numel, set_numel, 0};
    return bench_draw(b, base, nbytes, false);
}

/* ---- time ---- */

typedef struct bench_time {
    double median_s, p10_s, p90_s; /* of a call */
    double cpu_median_s;           /* of all threads: what a busy machine leaves readable */
} bench_time;

static inline double bench_cpu_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/** Seconds of `numel` calls between two marks. Local. */
static inline tess_status bench_calls_s(bench_device *b, tess_status (*call)(void *arg), void *arg,
                                        int numel, double *out)
{
    TESS_TRY(tess_mark_record(&b->mark[0], b->stream));
    for (int i = 0; i < numel; i++)
        TESS_TRY(call(arg));
    TESS_TRY(tess_mark_record(&b->mark[1], b->stream));
    return tess_mark_elapsed(b->stream, &b->mark[0], &b->mark[1], out);
}

/**
 * Time of a call over `repeat_numel` samples, after some that warm up. On a device a sample is as
 * many calls as take a millisecond, as marks and launches have a time of their own. Local.
 */
static inline tess_status bench_measure(bench_device *b, tess_status (*call)(void *arg), void *arg,
                                        int repeat_numel, bench_time *out)
{
    const bool is_timed = tess_stream_is_timed(b->stream);
    double second[DEVICE_REPEAT_MAX], cpu[DEVICE_REPEAT_MAX], once_s = 0.0, warm_s = 0.0;
    int numel = 1;
    TESS_TRY(bench_calls_s(b, call, arg, 1, &once_s)); /* what is made at the first call */
    for (int i = 0; i < 100 && is_timed && warm_s < 0.02; i++) {
        TESS_TRY(bench_calls_s(b, call, arg, 1, &once_s));
        warm_s += once_s;
    }
    if (is_timed)
        numel = (int)TESS_MIN(TESS_MAX(1e-3 / TESS_MAX(once_s, 1e-9), 1.0), 100.0);
    for (int i = 0; i < repeat_numel; i++) {
        const double start_s = bench_cpu_s();
        TESS_TRY(bench_calls_s(b, call, arg, numel, &second[i]));
        second[i] /= numel;
        cpu[i] = (bench_cpu_s() - start_s) / numel;
    }
    TESS_TRY(tess_stream_finish(b->stream));
    const int last = repeat_numel - 1;
    qsort(second, (size_t)repeat_numel, sizeof *second, bench_by_value);
    qsort(cpu, (size_t)repeat_numel, sizeof *cpu, bench_by_value);
    *out =
        (bench_time){second[last / 2], second[last / 10], second[last - last / 10], cpu[last / 2]};
    return TESS_OK;
}

/** Members of a line that every measured op has, behind those that name it. Local. */
static inline void bench_print_time(const bench_device *b, const bench_time *t, int repeat_numel)
{
    printf("\"device\": \"%s\", \"path\": \"%s\", \"repeats\": %d, \"median_s\": %.4e, \"p10_s\": "
           "%.4e, \"p90_s\": %.4e, \"cpu_median_s\": %.3e",
           b->device->name, b->kernels->path(), repeat_numel, t->median_s, t->p10_s, t->p90_s,
           t->cpu_median_s);
}

/* ---- options ---- */

/** Where to measure: what all of these programs are asked. */
typedef struct bench_options {
    const char *plugin; /* NULL: the CPU */
    const char *path;   /* of the CPU's instructions */
    int index, thread_numel, repeat_numel;
} bench_options;

/** @return false: not one of these */
static inline bool bench_option_set(bench_options *o, const char *name, const char *value)
{
    if (strcmp(name, "--plugin") == 0)
        o->plugin = value;
    else if (strcmp(name, "--path") == 0)
        o->path = value;
    else if (strcmp(name, "--index") == 0)
        o->index = (int)strtol(value, NULL, 10);
    else if (strcmp(name, "--threads") == 0)
        o->thread_numel = (int)strtol(value, NULL, 10);
    else if (strcmp(name, "--repeats") == 0)
        o->repeat_numel = (int)TESS_MIN(TESS_MAX(strtol(value, NULL, 10), 1), DEVICE_REPEAT_MAX);
    else
        return false;
    return true;
}

static inline tess_status bench_open(const bench_options *o, bench_device *b)
{
    if (o->path != NULL)
        setenv("TESSERA_CPU_PATH", o->path, 1);
    TESS_TRY(tess_kernels_cpu_select(tess_cpu_path_best()));
    return o->plugin != NULL ? bench_device_open(o->plugin, o->index, b)
                             : bench_host_open(o->thread_numel, b);
}
