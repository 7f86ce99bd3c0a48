#include "support/far_device.h"

#include <string.h>
#include <sys/mman.h>

#include "core/memory.h"

enum { OP_NUMEL = 512, POISON = 0xA5 };

typedef enum far_kind { FAR_COPY, FAR_ZERO, FAR_WAIT } far_kind;

typedef struct far_op {
    far_kind kind;
    tess_view dst, src;
    tess_event event;
} far_op;

typedef struct far_stream {
    tess_stream base;
    far_device *device;
    far_op op[OP_NUMEL]; /* ring */
    uint64_t enqueued, done;
} far_stream;

/* ---- memory ---- */

static void open_regions(const far_device *d, int access)
{
    for (int i = 0; i < FAR_REGION_NUMEL; i++)
        if (d->region[i].memory != NULL)
            (void)mprotect(d->region[i].memory, d->region[i].nbytes, access);
}

void *far_alloc(far_device *d, size_t nbytes)
{
    const size_t page_nbytes = (nbytes + 4096) / 4096 * 4096;
    for (int i = 0; i < FAR_REGION_NUMEL; i++) {
        if (d->region[i].memory != NULL)
            continue;
        void *memory =
            mmap(NULL, page_nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED)
            return NULL;
        memset(memory, POISON, page_nbytes);
        (void)mprotect(memory, page_nbytes, PROT_NONE);
        d->region[i].memory = memory;
        d->region[i].nbytes = page_nbytes;
        return memory;
    }
    return NULL;
}

void far_free(far_device *d, void *memory)
{
    for (int i = 0; memory != NULL && i < FAR_REGION_NUMEL; i++)
        if (d->region[i].memory == memory) {
            (void)munmap(memory, d->region[i].nbytes);
            d->region[i].memory = NULL;
        }
}

static void move(const far_device *d, void *dst, const void *src, size_t nbytes)
{
    open_regions(d, PROT_READ | PROT_WRITE);
    memcpy(dst, src, nbytes);
    open_regions(d, PROT_NONE);
}

void far_put(far_device *d, void *dst, const void *src, size_t nbytes)
{
    move(d, dst, src, nbytes);
}

void far_get(far_device *d, void *dst, const void *src, size_t nbytes)
{
    move(d, dst, src, nbytes);
}

static tess_status far_memory_alloc(tess_device *base, tess_space space, size_t nbytes, void **out)
{
    far_device *d = (far_device *)base;
    if (space == TESS_HOST) {
        *out = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        d->host_nbytes += nbytes;
        return *out != MAP_FAILED ? TESS_OK : TESS_FAIL(TESS_E_MEMORY, "no %zu bytes", nbytes);
    }
    *out = far_alloc(d, nbytes);
    return *out != NULL ? TESS_OK : TESS_FAIL(TESS_E_MEMORY, "no %zu bytes", nbytes);
}

static void far_release(tess_device *base, tess_space space, void *memory, size_t nbytes)
{
    far_device *d = (far_device *)base;
    if (space != TESS_HOST) {
        far_free(d, memory);
        return;
    }
    (void)munmap(memory, nbytes);
    d->host_nbytes -= nbytes;
}

static tess_status far_memory(tess_device *d, size_t *free_nbytes, size_t *total_nbytes)
{
    (void)d;
    *free_nbytes = *total_nbytes = 1 << 30;
    return TESS_OK;
}

/* ---- streams ---- */

static tess_status run_to(far_stream *s, uint64_t mark)
{
    while (s->done < mark) {
        const far_op *op = &s->op[s->done % OP_NUMEL];
        if (op->kind == FAR_COPY)
            move(s->device, op->dst.data, op->src.data, tess_view_nbytes(op->src));
        if (op->kind == FAR_WAIT)
            TESS_TRY(tess_event_finish(&op->event));
        if (op->kind == FAR_ZERO) {
            open_regions(s->device, PROT_READ | PROT_WRITE);
            memset(op->dst.data, 0, tess_view_nbytes(op->dst));
            open_regions(s->device, PROT_NONE);
        }
        s->done++;
    }
    return TESS_OK;
}

static tess_status enqueue(far_stream *s, const far_op *op)
{
    TESS_CHECK(s->enqueued - s->done < OP_NUMEL, TESS_E_STATE, "stream '%s' is full", s->base.name);
    s->op[s->enqueued++ % OP_NUMEL] = *op;
    return TESS_OK;
}

static tess_status far_record(tess_stream *base, tess_event *ev)
{
    ev->stream = base;
    ev->mark = ((far_stream *)base)->enqueued;
    return TESS_OK;
}

static tess_status far_wait(tess_stream *base, const tess_event *ev)
{
    const far_op op = {.kind = FAR_WAIT, .event = *ev};
    return enqueue((far_stream *)base, &op);
}

static tess_status far_finish(tess_stream *base, const tess_event *ev)
{
    return run_to((far_stream *)base, ev->mark);
}

/* Looking makes one operation of progress. */
static tess_status far_query(tess_stream *base, const tess_event *ev, bool *is_reached)
{
    far_stream *s = (far_stream *)base;
    *is_reached = s->done >= ev->mark;
    return *is_reached ? TESS_OK : run_to(s, s->done + 1);
}

static const tess_stream_ops stream_ops = {
    .record = far_record, .wait = far_wait, .finish = far_finish, .query = far_query};

static tess_status far_stream_create(tess_device *base, const char *name, bool is_urgent,
                                     tess_stream **out)
{
    far_device *d = (far_device *)base;
    void *object = NULL;
    (void)is_urgent;
    TESS_TRY(tess_alloc(sizeof(far_stream), &object));
    far_stream *s = object;
    s->base = (tess_stream){.ops = &stream_ops, .name = name};
    s->device = d;
    *out = &s->base;
    return TESS_OK;
}

static void far_stream_destroy(tess_device *d, tess_stream *s)
{
    (void)d;
    tess_free(s);
}

static tess_status far_copy(tess_device *base, tess_view dst, tess_view src, tess_stream *s)
{
    far_device *d = (far_device *)base;
    const far_op op = {.kind = FAR_COPY, .dst = dst, .src = src};
    TESS_CHECK(d->copy_numel++ != d->failing_copy, TESS_E_IO, "copy %lld fails",
               (long long)d->failing_copy);
    return enqueue((far_stream *)s, &op);
}

static tess_status far_zero(tess_device *d, tess_view dst, tess_stream *s)
{
    const far_op op = {.kind = FAR_ZERO, .dst = dst};
    (void)d;
    return enqueue((far_stream *)s, &op);
}

static const tess_device_ops device_ops = {.alloc = far_memory_alloc,
                                           .release = far_release,
                                           .stream_create = far_stream_create,
                                           .stream_destroy = far_stream_destroy,
                                           .copy = far_copy,
                                           .zero = far_zero,
                                           .memory = far_memory};

void far_device_init(far_device *d)
{
    memset(d, 0, sizeof *d);
    d->base = (tess_device){.ops = &device_ops, .name = "far:0", .space = TESS_DEVICE};
    d->failing_copy = -1;
}
