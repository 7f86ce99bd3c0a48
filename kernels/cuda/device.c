/**
 * A CUDA device as the program sees one: memory, streams, events, copies.
 *
 * Waits never enter a blocking call of the runtime: they look at the event and at the device's
 * watch in turn, so that a peer that died ends them.
 */
#include "core/device.h"

#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include <nvtx3/nvToolsExt.h>

#include "core/memory.h"
#include "kernels/cuda/cuda_priv.h"
#include "kernels/cuda/device_priv.h"

enum { LEAST_CAPABILITY = 80 };

typedef struct cuda_device {
    tess_device base; /* first */
    int idx;
    int capability;
    int priority;        /* of ordinary streams */
    int urgent_priority; /* lower numbers go first */
    char name[32];
} cuda_device;

typedef struct cuda_stream {
    tess_stream base; /* first */
    cuda_device *device;
    cudaStream_t stream;
    struct stream_library *library; /* opened when first asked for, or prepared */
    char name[32];
} cuda_stream;

static const tess_stream_ops stream_ops;
static char open_path[16]; /* a process opens one device */

/* ---- errors ---- */

/* After a fault of a kernel every later call fails: all work of the process is lost, as it is with
 * a communicator. */
static tess_status status_of(cudaError_t e)
{
    if (e == cudaErrorMemoryAllocation)
        return TESS_E_MEMORY;
    if (e == cudaErrorInvalidValue || e == cudaErrorInvalidConfiguration)
        return TESS_E_STATE;
    if (e == cudaErrorInsufficientDriver || e == cudaErrorNoDevice ||
        e == cudaErrorNoKernelImageForDevice)
        return TESS_E_UNSUPPORTED;
    return TESS_E_COMM;
}

tess_status tess_cuda_fail(cudaError_t e, const char *file, int line, const char *call)
{
    (void)cudaGetLastError(); /* an error that is not sticky is reported once */
    return tess_error_set(status_of(e), file, line, "%s: CUDA says %s (%s)", call,
                          cudaGetErrorString(e), cudaGetErrorName(e));
}

static tess_status refuse_driver(void)
{
    int driver = 0;
    (void)cudaDriverGetVersion(&driver);
    (void)cudaGetLastError();
    TESS_CHECK(driver > 0, TESS_E_UNSUPPORTED,
               "this machine has no CUDA driver (libcuda.so.1); install the driver of its GPU, or "
               "set compute.device: cpu");
    return TESS_FAIL(TESS_E_UNSUPPORTED,
                     "the CUDA driver supports CUDA %d.%d, this program needs %d.%d; update the "
                     "driver, or set compute.device: cpu",
                     driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000,
                     CUDART_VERSION % 1000 / 10);
}

/* No work was given to a device yet: whatever CUDA says then is a reason to do without one. */
static tess_status refuse(cudaError_t e, const char *call)
{
    (void)cudaGetLastError();
    return TESS_FAIL(TESS_E_UNSUPPORTED,
                     "%s: CUDA says %s (%s); look at the driver and its services, and at what else "
                     "uses the GPU, or set compute.device: cpu",
                     call, cudaGetErrorString(e), cudaGetErrorName(e));
}

/* ---- what is there ---- */

tess_status tess_cuda_device_numel(int *numel)
{
    int found = 0;
    const cudaError_t e = cudaGetDeviceCount(&found);
    if (e == cudaErrorInsufficientDriver)
        return refuse_driver();
    if (e == cudaErrorNoDevice) {
        (void)cudaGetLastError();
        found = 0;
    } else if (e != cudaSuccess)
        return refuse(e, "cudaGetDeviceCount");
    *numel = found;
    return TESS_OK;
}

tess_status tess_cuda_device_info(int idx, tess_cuda_info *out)
{
    struct cudaDeviceProp p;
    tess_cuda_info info = {.capability = 0};
    cudaError_t e = cudaGetDeviceProperties(&p, idx);
    if (e != cudaSuccess)
        return refuse(e, "cudaGetDeviceProperties");
    e = cudaDeviceGetPCIBusId(info.bus_id, (int)sizeof info.bus_id, idx);
    if (e != cudaSuccess)
        return refuse(e, "cudaDeviceGetPCIBusId");
    snprintf(info.name, sizeof info.name, "%.*s", (int)sizeof info.name - 1, p.name);
    _Static_assert(sizeof p.uuid == sizeof info.uuid, "plugin.h has CUDA's size");
    memcpy(info.uuid, &p.uuid, sizeof info.uuid);
    info.capability = 10 * p.major + p.minor;
    info.sm_numel = p.multiProcessorCount;
    info.memory_nbytes = p.totalGlobalMem;
    *out = info;
    return TESS_OK;
}

/* ---- streams ---- */

static _Thread_local int current_idx = -1;

tess_status tess_cuda_enter(const tess_device *d)
{
    const int idx = ((const cuda_device *)d)->idx;
    if (current_idx == idx)
        return TESS_OK;
    TESS_CUDA_TRY(cudaSetDevice(idx));
    current_idx = idx;
    return TESS_OK;
}

cudaStream_t tess_cuda_stream(const tess_stream *s) { return ((const cuda_stream *)s)->stream; }

tess_device *tess_cuda_stream_device(const tess_stream *s)
{
    return &((const cuda_stream *)s)->device->base;
}

int tess_cuda_capability(const tess_device *d) { return ((const cuda_device *)d)->capability; }

static tess_status stream_event_init(tess_stream *s, tess_event *ev)
{
    cudaEvent_t event = NULL;
    TESS_TRY(tess_cuda_enter(tess_cuda_stream_device(s)));
    TESS_CUDA_TRY(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    ev->handle = event;
    return TESS_OK;
}

static void stream_event_fini(tess_stream *s, tess_event *ev)
{
    (void)s;
    if (ev->handle != NULL)
        (void)cudaEventDestroy(ev->handle);
    ev->handle = NULL;
    ev->stream = NULL;
}

static tess_status stream_record(tess_stream *s, tess_event *ev)
{
    TESS_CHECK(ev->handle != NULL, TESS_E_STATE,
               "an event recorded on stream '%s' was made for a stream of the host", s->name);
    TESS_TRY(tess_cuda_enter(tess_cuda_stream_device(s)));
    TESS_CUDA_TRY(cudaEventRecord(ev->handle, tess_cuda_stream(s)));
    ev->stream = s;
    ev->mark++;
    return TESS_OK;
}

static tess_status stream_wait(tess_stream *s, const tess_event *ev)
{
    if (ev->stream == s)
        return TESS_OK; /* a stream is ordered */
    if (ev->stream->ops != &stream_ops)
        return tess_event_finish(ev); /* the device cannot wait for a queue of the host */
    TESS_TRY(tess_cuda_enter(tess_cuda_stream_device(s)));
    TESS_CUDA_TRY(cudaStreamWaitEvent(tess_cuda_stream(s), ev->handle, cudaEventWaitDefault));
    /* weights that are dequantized ahead for this stream come from what it waits for */
    const struct stream_library *library = ((cuda_stream *)s)->library;
    tess_stream *lane = library != NULL ? tess_cuda_library_lane(library) : NULL;
    if (lane != NULL && ev->stream != lane)
        TESS_CUDA_TRY(
            cudaStreamWaitEvent(tess_cuda_stream(lane), ev->handle, cudaEventWaitDefault));
    return TESS_OK;
}

struct stream_library **tess_cuda_stream_slot(tess_stream *s)
{
    return &((cuda_stream *)s)->library;
}

static tess_status query(tess_stream *s, cudaEvent_t event, bool *is_reached)
{
    TESS_TRY(tess_cuda_enter(tess_cuda_stream_device(s)));
    const cudaError_t e = cudaEventQuery(event);
    *is_reached = e == cudaSuccess;
    if (e != cudaErrorNotReady)
        TESS_CUDA_TRY(e);
    return TESS_OK;
}

static tess_status stream_query(tess_stream *s, const tess_event *ev, bool *is_reached)
{
    return query(s, ev->handle, is_reached);
}

/* The end of a step is awaited within its jitter; a rank that waits long leaves the core. */
static void back_off(double waited_s)
{
    if (waited_s < 50e-6)
        return;
    if (waited_s < 1e-3) {
        sched_yield();
        return;
    }
    const struct timespec nap = {0, waited_s < 0.1 ? 20000 : 200000};
    nanosleep(&nap, NULL);
}

static tess_status await(tess_stream *s, cudaEvent_t event)
{
    const tess_device_watch *watch = &tess_cuda_stream_device(s)->watch;
    bool is_reached = false;
    TESS_TRY(query(s, event, &is_reached));
    if (is_reached)
        return TESS_OK;
    const double since_s = tess_cuda_now_s();
    double last_s = since_s;
    for (;;) {
        TESS_TRY(query(s, event, &is_reached));
        const double now_s = tess_cuda_now_s();
        if (watch->look != NULL)
            TESS_TRY(watch->look(watch->self, s, now_s - since_s, now_s - last_s));
        if (is_reached)
            return TESS_OK;
        last_s = now_s;
        back_off(now_s - since_s);
    }
}

static tess_status stream_finish(tess_stream *s, const tess_event *ev)
{
    return await(s, ev->handle);
}

/* ---- marks ---- */

static tess_status stream_mark_init(tess_stream *s, tess_mark *m)
{
    cudaEvent_t event = NULL;
    TESS_TRY(tess_cuda_enter(tess_cuda_stream_device(s)));
    TESS_CUDA_TRY(cudaEventCreate(&event));
    m->handle = event;
    return TESS_OK;
}

static void stream_mark_fini(tess_stream *s, tess_mark *m)
{
    (void)s;
    if (m->handle != NULL)
        (void)cudaEventDestroy(m->handle);
    m->handle = NULL;
}

static tess_status stream_mark_record(tess_stream *s, tess_mark *m)
{
    TESS_TRY(tess_cuda_enter(tess_cuda_stream_device(s)));
    TESS_CUDA_TRY(cudaEventRecord(m->handle, tess_cuda_stream(s)));
    return TESS_OK;
}

static tess_status stream_mark_elapsed(tess_stream *s, const tess_mark *from, const tess_mark *to,
                                       double *elapsed_s)
{
    float elapsed_ms = 0.0F;
    TESS_TRY(tess_cuda_enter(tess_cuda_stream_device(s)));
    TESS_TRY(await(s, from->handle));
    TESS_TRY(await(s, to->handle));
    TESS_CUDA_TRY(cudaEventElapsedTime(&elapsed_ms, from->handle, to->handle));
    *elapsed_s = (double)elapsed_ms * 1e-3;
    return TESS_OK;
}

static const tess_stream_ops stream_ops = {
    .event_init = stream_event_init,
    .event_fini = stream_event_fini,
    .record = stream_record,
    .wait = stream_wait,
    .finish = stream_finish,
    .query = stream_query,
    .mark_init = stream_mark_init,
    .mark_fini = stream_mark_fini,
    .mark_record = stream_mark_record,
    .mark_elapsed = stream_mark_elapsed,
};

static tess_status device_stream_create(tess_device *d, const char *name, bool is_urgent,
                                        tess_stream **out)
{
    cuda_device *device = (cuda_device *)d;
    void *object = NULL;
    TESS_TRY(tess_cuda_enter(d));
    TESS_TRY(tess_alloc(sizeof(cuda_stream), &object));
    cuda_stream *s = object;
    snprintf(s->name, sizeof s->name, "%s", name);
    s->base.ops = &stream_ops;
    s->base.name = s->name;
    s->device = device;
    const cudaError_t e = cudaStreamCreateWithPriority(
        &s->stream, cudaStreamNonBlocking, is_urgent ? device->urgent_priority : device->priority);
    if (e != cudaSuccess) {
        tess_free(s);
        TESS_CUDA_TRY(e);
    }
    *out = &s->base;
    return TESS_OK;
}

static void device_stream_destroy(tess_device *d, tess_stream *s)
{
    (void)d;
    tess_cuda_library_close(&((cuda_stream *)s)->library);
    (void)cudaStreamDestroy(tess_cuda_stream(s));
    tess_free(s);
}

/* ---- memory ---- */

static tess_status device_alloc(tess_device *d, tess_space space, size_t nbytes, void **out)
{
    void *memory = NULL;
    TESS_TRY(tess_cuda_enter(d));
    const cudaError_t e = space == TESS_HOST ? cudaHostAlloc(&memory, nbytes, cudaHostAllocPortable)
                                             : cudaMalloc(&memory, nbytes);
    if (e == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError();
        return TESS_FAIL(TESS_E_MEMORY, "%s: cannot allocate %zu bytes of %s memory", d->name,
                         nbytes, space == TESS_HOST ? "pinned host" : "device");
    }
    TESS_CUDA_TRY(e);
    *out = memory;
    return TESS_OK;
}

static void device_release(tess_device *d, tess_space space, void *memory, size_t nbytes)
{
    (void)d;
    (void)nbytes;
    if (space == TESS_HOST)
        (void)cudaFreeHost(memory);
    else
        (void)cudaFree(memory);
}

static enum cudaMemcpyKind kind_of(tess_space dst, tess_space src)
{
    if (dst == TESS_HOST)
        return src == TESS_HOST ? cudaMemcpyHostToHost : cudaMemcpyDeviceToHost;
    return src == TESS_HOST ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToDevice;
}

static tess_status device_copy(tess_device *d, tess_view dst, tess_view src, tess_stream *s)
{
    TESS_TRY(tess_cuda_enter(d));
    TESS_CUDA_TRY(cudaMemcpyAsync(dst.data, src.data, tess_view_nbytes(src),
                                  kind_of(dst.space, src.space), tess_cuda_stream(s)));
    return TESS_OK;
}

static tess_status device_copy_rows(tess_device *d, const tess_rows_copy *c, tess_stream *s)
{
    TESS_TRY(tess_cuda_enter(d));
    TESS_CUDA_TRY(cudaMemcpy2DAsync(c->dst, (size_t)c->dst_stride_nbytes, c->src,
                                    (size_t)c->src_stride_nbytes, (size_t)c->row_nbytes,
                                    (size_t)c->row_numel, cudaMemcpyDeviceToDevice,
                                    tess_cuda_stream(s)));
    return TESS_OK;
}

/* Ranges of the host thread, for profilers: nothing without one. */
static void device_range_push(tess_device *d, const char *name)
{
    (void)d;
    (void)nvtxRangePushA(name);
}

static void device_range_pop(tess_device *d)
{
    (void)d;
    (void)nvtxRangePop();
}

static tess_status device_zero(tess_device *d, tess_view dst, tess_stream *s)
{
    TESS_TRY(tess_cuda_enter(d));
    TESS_CUDA_TRY(cudaMemsetAsync(dst.data, 0, tess_view_nbytes(dst), tess_cuda_stream(s)));
    return TESS_OK;
}

static tess_status device_memory(tess_device *d, size_t *free_nbytes, size_t *total_nbytes)
{
    TESS_TRY(tess_cuda_enter(d));
    TESS_CUDA_TRY(cudaMemGetInfo(free_nbytes, total_nbytes));
    return TESS_OK;
}

static const tess_device_ops device_ops = {
    .alloc = device_alloc,
    .release = device_release,
    .stream_create = device_stream_create,
    .stream_destroy = device_stream_destroy,
    .copy = device_copy,
    .copy_rows = device_copy_rows,
    .range_push = device_range_push,
    .range_pop = device_range_pop,
    .zero = device_zero,
    .memory = device_memory,
};

/* ---- life ---- */

tess_status tess_cuda_device_open(int idx, tess_device **out)
{
    void *object = NULL;
    tess_cuda_info info;
    TESS_TRY(tess_cuda_device_info(idx, &info));
    TESS_CHECK(
        info.capability >= LEAST_CAPABILITY, TESS_E_UNSUPPORTED,
        "device cuda:%d (%s) has compute capability %d.%d, kernels need 8.0 or newer; choose "
        "another device with CUDA_VISIBLE_DEVICES, or set compute.device: cpu",
        idx, info.name, info.capability / 10, info.capability % 10);
    TESS_TRY(tess_alloc(sizeof(cuda_device), &object));
    cuda_device *d = object;
    snprintf(d->name, sizeof d->name, "cuda:%d", idx);
    d->base.ops = &device_ops;
    d->base.name = d->name;
    d->base.space = TESS_DEVICE;
    d->idx = idx;
    d->capability = info.capability;
    const char *call = "cudaSetDevice"; /* makes the context: a GPU that is taken is found here */
    cudaError_t e = cudaSetDevice(idx);
    if (e == cudaSuccess) {
        call = "cudaDeviceGetStreamPriorityRange";
        e = cudaDeviceGetStreamPriorityRange(&d->priority, &d->urgent_priority);
    }
    if (e != cudaSuccess) {
        tess_free(d);
        return refuse(e, call);
    }
    snprintf(open_path, sizeof open_path, "sm_%d", d->capability);
    *out = &d->base;
    return TESS_OK;
}

const char *tess_cuda_path(void) { return open_path; }

void tess_cuda_device_close(tess_device **d)
{
    if (d == NULL || *d == NULL)
        return;
    tess_free(*d);
    *d = NULL;
}
