#include "tests/emulation/fake_streams.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/support/plain_device.h"

enum { LATE_POLL_NUMEL = 6 };

static tess_device_ops ops;
static const tess_device_ops *true_ops;
static tess_stream_ops forgetful_ops; /* `order` */
static void (*dropped)(const tess_stream *s);
static atomic_long copy_numel; /* made so far */
static long first_failing = -1;

static bool is_set(const char *name, const char *value)
{
    const char *text = getenv(name);
    return text != NULL && strcmp(text, value) == 0;
}

/* A copy that is under way. */
typedef struct late_copy {
    tess_view dst, src;
    int polls_left;
} late_copy;

static bool step(void *arg)
{
    late_copy *c = arg;
    if (--c->polls_left > 0)
        return false;
    memcpy(c->dst.data, c->src.data, tess_view_nbytes(c->src));
    free(c);
    return true;
}

static tess_status fake_copy(tess_device *d, tess_view dst, tess_view src, tess_stream *s)
{
    TESS_CHECK(first_failing < 0 || atomic_fetch_add(&copy_numel, 1) < first_failing, TESS_E_STATE,
               "%s: emulated failure of a copy: an illegal memory access was encountered", d->name);
    if (!is_set("FAKE_CUDA_LATE", "1"))
        return true_ops->copy(d, dst, src, s);
    late_copy *c = malloc(sizeof *c); /* a step allocates nothing through the program's allocator */
    TESS_CHECK(c != NULL, TESS_E_MEMORY, "%s: no memory for a late copy", d->name);
    *c = (late_copy){dst, src, LATE_POLL_NUMEL};
    return plain_stream_defer(s, step, c);
}

static tess_status fake_copy_rows(tess_device *d, const tess_rows_copy *c, tess_stream *s)
{
    tess_rows_copy less = *c;
    less.row_nbytes -= is_set("FAKE_CUDA_FAULT", "rows");
    return true_ops->copy_rows(d, &less, s);
}

static tess_status fake_zero(tess_device *d, tess_view dst, tess_stream *s)
{
    if (is_set("FAKE_CUDA_FAULT", "zero") && tess_view_nbytes(dst) > 0)
        dst = (tess_view){dst.data, (int64_t)tess_view_nbytes(dst) - 1, TESS_U8, dst.space};
    return true_ops->zero(d, dst, s);
}

static tess_status forget(tess_stream *s, const tess_event *ev)
{
    (void)s;
    (void)ev;
    return TESS_OK;
}

static tess_status fake_stream_create(tess_device *d, const char *name, bool is_urgent,
                                      tess_stream **out)
{
    TESS_TRY(true_ops->stream_create(d, name, is_urgent, out));
    if (!is_set("FAKE_CUDA_FAULT", "order"))
        return TESS_OK;
    forgetful_ops = *(*out)->ops;
    forgetful_ops.wait = forget;
    (*out)->ops = &forgetful_ops;
    return TESS_OK;
}

static void fake_stream_destroy(tess_device *d, tess_stream *s)
{
    dropped(s);
    true_ops->stream_destroy(d, s);
}

void fake_streams_install(tess_device *d, void (*drop)(const tess_stream *s))
{
    int rank = 0;
    long numel = 0;
    const char *fault = getenv("FAKE_CUDA_FAULT"), *own = getenv("OMPI_COMM_WORLD_RANK");
    if (fault != NULL && sscanf(fault, "copy:%d:%ld", &rank, &numel) == 2 &&
        rank == atoi(own != NULL ? own : "0"))
        first_failing = numel;
    dropped = drop;
    true_ops = d->ops;
    ops = *d->ops;
    ops.copy = fake_copy;
    ops.copy_rows = fake_copy_rows;
    ops.zero = fake_zero;
    ops.stream_create = fake_stream_create;
    ops.stream_destroy = fake_stream_destroy;
    d->ops = &ops;
}
