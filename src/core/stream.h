/**
 * Ordered queues of work and the marks between them, the same for host and device.
 *
 * On the host, the compute stream runs every operation inside the call that enqueues it; the
 * streams of a communicator are queues of its engine. Callers never tell the two apart: they record
 * events and wait for them.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "core/pool.h"
#include "core/status.h"

TESS_BEGIN_DECLS

typedef struct tess_stream tess_stream;

/** A point in a stream's order. Plain data in the caller's memory; init and fini let a device
 * attach a handle. */
typedef struct tess_event {
    tess_stream *stream; /* where it was last recorded, NULL before the first time */
    uint64_t mark;       /* that stream's own sequence number */
    void *handle;        /* device event, NULL on the host */
} tess_event;

/** A timed point in a stream's order. Plain data in the caller's memory. */
typedef struct tess_mark {
    double time_s; /* on the host: when it was passed */
    void *handle;  /* timed device event, NULL on the host */
} tess_mark;

typedef struct tess_stream_ops {
    tess_status (*event_init)(tess_stream *s, tess_event *ev); /* may be NULL: nothing to attach */
    void (*event_fini)(tess_stream *s, tess_event *ev);        /* may be NULL */
    /* Mark the point after everything enqueued on `s` so far. */
    tess_status (*record)(tess_stream *s, tess_event *ev);
    /* Later work of `s` starts only after `ev`, which was recorded on a stream of any kind. */
    tess_status (*wait)(tess_stream *s, const tess_event *ev);
    /* The calling thread returns when `ev`, recorded on `s`, is reached; deadlines apply. */
    tess_status (*finish)(tess_stream *s, const tess_event *ev);
    /* Whether `ev`, recorded on `s`, is reached; never blocks. */
    tess_status (*query)(tess_stream *s, const tess_event *ev, bool *is_reached);
    /* Timed points of streams whose work runs behind the calls; all NULL: the host's clock tells.
     * A mark made on one stream of a device serves all its streams. */
    tess_status (*mark_init)(tess_stream *s, tess_mark *m);
    void (*mark_fini)(tess_stream *s, tess_mark *m);
    tess_status (*mark_record)(tess_stream *s, tess_mark *m);
    /* Seconds from one mark to the other, on any streams of one device; returns when both are
     * reached. */
    tess_status (*mark_elapsed)(tess_stream *s, const tess_mark *from, const tess_mark *to,
                                double *elapsed_s);
} tess_stream_ops;

typedef struct tess_tracer tess_tracer;

/** Base object; communicators embed it as first member of their own streams. */
struct tess_stream {
    const tess_stream_ops *ops;
    const char *name;    /* "compute", "gather", "reduce": for traces and messages */
    tess_pool *pool;     /* threads for kernels enqueued here; NULL: the calling thread alone */
    tess_tracer *tracer; /* of the step that runs here (core/trace.h), NULL: none */
};

/** Host compute stream in the caller's memory; `pool` is borrowed and may be NULL. Local. */
void tess_stream_init_inline(tess_stream *s, const char *name, tess_pool *pool);

TESS_MUST_CHECK tess_status tess_event_init(tess_event *ev, tess_stream *s);
void tess_event_fini(tess_event *ev, tess_stream *s);
TESS_MUST_CHECK tess_status tess_event_record(tess_event *ev, tess_stream *s);
/** An event that was never recorded counts as reached. */
TESS_MUST_CHECK tess_status tess_stream_wait(tess_stream *s, const tess_event *ev);
TESS_MUST_CHECK tess_status tess_event_finish(const tess_event *ev);
TESS_MUST_CHECK tess_status tess_event_query(const tess_event *ev, bool *is_reached);
/** Record and finish: the calling thread returns when all work of `s` so far is done. */
TESS_MUST_CHECK tess_status tess_stream_finish(tess_stream *s);

/** Whether marks of `s` tell when work was done and not when it was enqueued. Local. */
static inline bool tess_stream_is_timed(const tess_stream *s)
{
    return s != NULL && s->ops->mark_record != NULL;
}
TESS_MUST_CHECK tess_status tess_mark_init(tess_mark *m, tess_stream *s);
void tess_mark_fini(tess_mark *m, tess_stream *s);
TESS_MUST_CHECK tess_status tess_mark_record(tess_mark *m, tess_stream *s);
/** Seconds between two marks recorded on streams of the device of `s`; waits until both are
 * reached. */
TESS_MUST_CHECK tess_status tess_mark_elapsed(tess_stream *s, const tess_mark *from,
                                              const tess_mark *to, double *elapsed_s);

TESS_END_DECLS
