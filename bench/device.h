/** A device of the CUDA part for benchmarks: opened through the plugin's door, with marks around
 * calls. */
#pragma once

#include <stdlib.h>

#include "kernels/cuda/door.h"

enum { DEVICE_REPEAT_MAX = 1000 };

typedef struct bench_device {
    const tess_cuda_plugin *plugin;
    const tess_kernels *kernels;
    tess_device *device;
    tess_stream *stream;
    tess_mark mark[2];
} bench_device;

/** @param path  of libtessera_cuda.so */
static inline tess_status bench_device_open(const char *path, int index, bench_device *b)
{
    tess_cuda_door door = {0};
    TESS_CHECK(path != NULL, TESS_E_ARG, "--plugin LIBRARY is missing");
    TESS_TRY(tess_cuda_door_open(path, index, &door));
    b->plugin = door.plugin;
    b->device = door.device;
    b->kernels = door.kernels;
    TESS_TRY(tess_device_stream_create(b->device, "bench", false, &b->stream));
    TESS_TRY(tess_mark_init(&b->mark[0], b->stream));
    return tess_mark_init(&b->mark[1], b->stream);
}

static inline int bench_by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/** The CPU's kernels on the host, as a device: marks are the clock's. */
static inline tess_status bench_host_open(int thread_numel, bench_device *b)
{
    static tess_host_device host;
    tess_pool *pool = NULL;
    TESS_TRY(tess_pool_create(thread_numel, &pool)); /* until the process ends, as devices are */
    tess_host_device_init(&host, pool);
    b->device = &host.base;
    b->kernels = &tess_kernels_cpu;
    TESS_TRY(tess_device_stream_create(b->device, "bench", false, &b->stream));
    TESS_TRY(tess_mark_init(&b->mark[0], b->stream));
    return tess_mark_init(&b->mark[1], b->stream);
}
