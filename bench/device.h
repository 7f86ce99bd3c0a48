/** A device of the CUDA part for benchmarks: opened through the plugin's door, with marks around
 * calls. */
#pragma once

#include <dlfcn.h>
#include <stdlib.h>

#include "core/clock.h"
#include "kernels/cuda/plugin.h"

enum { DEVICE_REPEAT_MAX = 1000 };

typedef struct bench_device {
    const tess_kernels *kernels;
    tess_device *device;
    tess_stream *stream;
    tess_mark mark[2];
} bench_device;

static tess_status host_error_set(tess_status st, const char *file, int line, const char *text)
{
    return tess_error_set(st, file, line, "%s", text);
}

static const tess_cuda_host bench_services = {
    .abi = TESS_CUDA_ABI,
    .error_set = host_error_set,
    .error_trace = tess_error_trace,
    .error_message = tess_error_message,
    .error_clear = tess_error_clear,
    .alloc = tess_alloc,
    .free = tess_free,
    .now_s = tess_clock_s,
};

/** @param path  of libtessera_cuda.so */
static inline tess_status bench_device_open(const char *path, int index, bench_device *b)
{
    TESS_CHECK(path != NULL, TESS_E_ARG, "--plugin LIBRARY is missing");
    void *object = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    TESS_CHECK(object != NULL, TESS_E_UNSUPPORTED, "%s", dlerror());
    union {
        void *symbol;
        tess_cuda_plugin_open_fn open;
    } entry = {dlsym(object, "tess_cuda_plugin_open")};
    const tess_cuda_plugin *plugin = entry.symbol != NULL ? entry.open(&bench_services) : NULL;
    TESS_CHECK(plugin != NULL && plugin->abi == TESS_CUDA_ABI, TESS_E_UNSUPPORTED,
               "'%s' is not the CUDA part of this version", path);
    TESS_TRY(plugin->device_open(index, &b->device));
    b->kernels = plugin->kernels(b->device);
    TESS_TRY(tess_device_stream_create(b->device, "bench", false, &b->stream));
    TESS_TRY(tess_mark_init(&b->mark[0], b->stream));
    return tess_mark_init(&b->mark[1], b->stream);
}

static inline int bench_by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/** Median seconds of `repeat_numel` calls between two marks, after one that warms up. */
static inline tess_status bench_median_s(bench_device *b, tess_status (*call)(void *arg), void *arg,
                                         int repeat_numel, double *out)
{
    double second[DEVICE_REPEAT_MAX];
    TESS_TRY(call(arg));
    for (int i = 0; i < repeat_numel; i++) {
        TESS_TRY(tess_mark_record(&b->mark[0], b->stream));
        TESS_TRY(call(arg));
        TESS_TRY(tess_mark_record(&b->mark[1], b->stream));
        TESS_TRY(tess_mark_elapsed(b->stream, &b->mark[0], &b->mark[1], &second[i]));
    }
    TESS_TRY(tess_stream_finish(b->stream));
    qsort(second, (size_t)repeat_numel, sizeof *second, bench_by_value);
    *out = second[(repeat_numel - 1) / 2];
    return TESS_OK;
}
