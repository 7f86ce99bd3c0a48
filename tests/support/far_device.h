/**
 * A device of its own memory and lazy streams, to see who touches what and in which order.
 *
 * Memory of TESS_DEVICE cannot be read or written by the host: a plain access ends the test with
 * SIGSEGV. Work is queued and runs only when somebody finishes or queries an event, as late as the
 * waits between streams allow.
 */
#pragma once

#include "core/device.h"

enum { FAR_REGION_NUMEL = 64 };

typedef struct far_device {
    tess_device base;
    struct {
        void *memory;
        size_t nbytes;
    } region[FAR_REGION_NUMEL];
    size_t host_nbytes;   /* held by arenas in host memory */
    int64_t copy_numel;   /* enqueued so far */
    int64_t failing_copy; /* number of the copy that fails when it is enqueued, -1: none */
} far_device;

/** Local. */
void far_device_init(far_device *d);
/** Memory of the device, NULL when there is none. Local. */
void *far_alloc(far_device *d, size_t nbytes);
void far_free(far_device *d, void *memory);
/** Host bytes to memory of the device and back, at once and beside all streams. Local. */
void far_put(far_device *d, void *dst, const void *src, size_t nbytes);
void far_get(far_device *d, void *dst, const void *src, size_t nbytes);
