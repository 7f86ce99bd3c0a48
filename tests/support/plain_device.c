#include "tests/support/plain_device.h"

#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "core/clock.h"
#include "core/memory.h"

static const size_t FAR_NBYTES = (size_t)1 << 32; /* from an address of the device to its memory */
enum { POISON_BYTE = 0xd7, PAGE_NBYTES = 4096 };

typedef struct plain_device {
    tess_device base; /* first */
    bool is_far;
    size_t total_nbytes;
    size_t limit_nbytes;
    size_t held_nbytes;
    char name[32];
} plain_device;

typedef struct plain_stream {
    tess_stream base; /* first */
    plain_device *device;
    bool (*step)(void *arg); /* work under way, NULL: none */
    void *arg;
    uint64_t begun; /* works put on the stream */
    uint64_t done;
    char name[32];
} plain_stream;

static const tess_stream_ops plain_stream_ops;

void *plain_device_near(const tess_device *d, const void *data)
{
    const plain_device *p = (const plain_device *)d;
    return (void *)((uintptr_t)data + (p->is_far && data != NULL ? FAR_NBYTES : 0));
}

/* ---- streams ---- */

static bool advance(plain_stream *s)
{
    if (s->step != NULL && s->step(s->arg)) {
        s->step = NULL;
        s->done = s->begun;
    }
    return s->step == NULL;
}

static tess_status drain(plain_stream *s, uint64_t mark)
{
    const tess_device_watch *watch = &s->device->base.watch;
    const double since_s = tess_clock_s();
    double last_s = since_s;
    while (s->done < mark && !advance(s)) {
        const double now_s = tess_clock_s();
        if (watch->look != NULL)
            TESS_TRY(watch->look(watch->self, &s->base, now_s - since_s, now_s - last_s));
        last_s = now_s;
        sched_yield();
    }
    return TESS_OK;
}

tess_status plain_stream_defer(tess_stream *stream, bool (*step)(void *arg), void *arg)
{
    plain_stream *s = (plain_stream *)stream;
    TESS_TRY(drain(s, s->begun));
    s->begun++;
    s->step = step;
    s->arg = arg;
    (void)advance(s);
    return TESS_OK;
}

static tess_status plain_event_init(tess_stream *s, tess_event *ev)
{
    ev->handle = ((plain_stream *)s)->device; /* as a device's: only for its streams */
    return TESS_OK;
}

static void plain_event_fini(tess_stream *s, tess_event *ev)
{
    (void)s;
    ev->handle = NULL;
}

static tess_status plain_record(tess_stream *stream, tess_event *ev)
{
    const plain_stream *s = (const plain_stream *)stream;
    TESS_CHECK(ev->handle == s->device, TESS_E_STATE,
               "an event recorded on stream '%s' was not made for this device", stream->name);
    ev->stream = stream;
    ev->mark = s->begun;
    return TESS_OK;
}

/* Work of this device runs at once, so the wait is now. */
static tess_status plain_wait(tess_stream *stream, const tess_event *ev)
{
    if (ev->stream->ops != &plain_stream_ops)
        return tess_event_finish(ev);
    plain_stream *s = (plain_stream *)stream;
    TESS_TRY(drain(s, s->begun));
    return drain((plain_stream *)ev->stream, ev->mark);
}

static tess_status plain_finish(tess_stream *stream, const tess_event *ev)
{
    return drain((plain_stream *)stream, ev->mark);
}

static tess_status plain_query(tess_stream *stream, const tess_event *ev, bool *is_reached)
{
    plain_stream *s = (plain_stream *)stream;
    *is_reached = s->done >= ev->mark || advance(s);
    return TESS_OK;
}

static const tess_stream_ops plain_stream_ops = {
    .event_init = plain_event_init,
    .event_fini = plain_event_fini,
    .record = plain_record,
    .wait = plain_wait,
    .finish = plain_finish,
    .query = plain_query,
};

static tess_status plain_stream_create(tess_device *d, const char *name, bool is_urgent,
                                       tess_stream **out)
{
    void *object = NULL;
    (void)is_urgent;
    TESS_TRY(tess_alloc(sizeof(plain_stream), &object));
    plain_stream *s = object;
    snprintf(s->name, sizeof s->name, "%s", name);
    s->base.ops = &plain_stream_ops;
    s->base.name = s->name;
    s->device = (plain_device *)d;
    *out = &s->base;
    return TESS_OK;
}

static void plain_stream_destroy(tess_device *d, tess_stream *s)
{
    (void)d;
    tess_free(s);
}

/* ---- memory ---- */

static size_t span_of(size_t nbytes)
{
    return (nbytes + PAGE_NBYTES - 1) / PAGE_NBYTES * PAGE_NBYTES;
}

static tess_status plain_alloc(tess_device *d, tess_space space, size_t nbytes, void **out)
{
    plain_device *p = (plain_device *)d;
    const bool is_far = p->is_far && space == TESS_DEVICE;
    TESS_CHECK(space == TESS_HOST || p->limit_nbytes == 0 ||
                   p->held_nbytes + nbytes <= p->limit_nbytes,
               TESS_E_MEMORY, "%s: cannot allocate %zu bytes of device memory", d->name, nbytes);
    const size_t offset = is_far ? FAR_NBYTES : 0;
    char *base = mmap(NULL, offset + span_of(nbytes), PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    TESS_CHECK(base != MAP_FAILED, TESS_E_MEMORY, "cannot map %zu bytes", nbytes);
    TESS_CHECK(mprotect(base + offset, span_of(nbytes), PROT_READ | PROT_WRITE) == 0, TESS_E_MEMORY,
               "cannot map %zu bytes", nbytes);
    memset(base + offset, POISON_BYTE, nbytes);
    if (space == TESS_DEVICE)
        p->held_nbytes += nbytes;
    *out = base;
    return TESS_OK;
}

static void plain_release(tess_device *d, tess_space space, void *memory, size_t nbytes)
{
    plain_device *p = (plain_device *)d;
    munmap(memory, (p->is_far && space == TESS_DEVICE ? FAR_NBYTES : 0) + span_of(nbytes));
    if (space == TESS_DEVICE)
        p->held_nbytes -= nbytes;
}

static void *near_of(const tess_device *d, tess_view v)
{
    return v.space == TESS_DEVICE ? plain_device_near(d, v.data) : v.data;
}

static tess_status plain_copy(tess_device *d, tess_view dst, tess_view src, tess_stream *stream)
{
    plain_stream *s = (plain_stream *)stream;
    TESS_TRY(drain(s, s->begun));
    memcpy(near_of(d, dst), near_of(d, src), tess_view_nbytes(src));
    return TESS_OK;
}

static tess_status plain_copy_rows(tess_device *d, const tess_rows_copy *c, tess_stream *stream)
{
    plain_stream *s = (plain_stream *)stream;
    TESS_TRY(drain(s, s->begun));
    for (int64_t i = 0; i < c->row_numel; i++)
        memcpy((char *)plain_device_near(d, c->dst) + i * c->dst_stride_nbytes,
               (const char *)plain_device_near(d, c->src) + i * c->src_stride_nbytes,
               (size_t)c->row_nbytes);
    return TESS_OK;
}

static tess_status plain_zero(tess_device *d, tess_view dst, tess_stream *stream)
{
    plain_stream *s = (plain_stream *)stream;
    TESS_TRY(drain(s, s->begun));
    memset(near_of(d, dst), 0, tess_view_nbytes(dst));
    return TESS_OK;
}

static tess_status plain_memory(tess_device *d, size_t *free_nbytes, size_t *total_nbytes)
{
    const plain_device *p = (const plain_device *)d;
    *total_nbytes = p->total_nbytes > 0 ? p->total_nbytes : (size_t)1 << 36;
    *free_nbytes = *total_nbytes - TESS_MIN(p->held_nbytes, *total_nbytes);
    return TESS_OK;
}

static const tess_device_ops plain_ops = {
    .alloc = plain_alloc,
    .release = plain_release,
    .stream_create = plain_stream_create,
    .stream_destroy = plain_stream_destroy,
    .copy = plain_copy,
    .copy_rows = plain_copy_rows,
    .zero = plain_zero,
    .memory = plain_memory,
};

void plain_device_set_memory(tess_device *d, size_t total_nbytes, size_t limit_nbytes)
{
    ((plain_device *)d)->total_nbytes = total_nbytes;
    ((plain_device *)d)->limit_nbytes = limit_nbytes;
}

tess_status plain_device_create(const char *name, bool is_far, tess_device **out)
{
    void *object = NULL;
    TESS_TRY(tess_alloc(sizeof(plain_device), &object));
    plain_device *p = object;
    snprintf(p->name, sizeof p->name, "%s", name);
    p->base.ops = &plain_ops;
    p->base.name = p->name;
    p->base.space = TESS_DEVICE;
    p->is_far = is_far;
    *out = &p->base;
    return TESS_OK;
}

void plain_device_destroy(tess_device **d)
{
    tess_free(*d);
    *d = NULL;
}
