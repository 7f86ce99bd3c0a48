#include "core/stream.h"

#include <stddef.h>

#include "core/clock.h"

static tess_status inline_record(tess_stream *s, tess_event *ev)
{
    ev->stream = s;
    ev->mark++;
    return TESS_OK;
}

static tess_status inline_wait(tess_stream *s, const tess_event *ev)
{
    (void)s; /* work of this stream runs at once, so waiting means finishing the other stream's part
                now */
    return tess_event_finish(ev);
}

static tess_status inline_finish(tess_stream *s, const tess_event *ev)
{
    (void)s;
    (void)ev;
    return TESS_OK;
}

static tess_status inline_query(tess_stream *s, const tess_event *ev, bool *is_reached)
{
    (void)s;
    (void)ev;
    *is_reached = true;
    return TESS_OK;
}

static const tess_stream_ops inline_ops = {
    .record = inline_record,
    .wait = inline_wait,
    .finish = inline_finish,
    .query = inline_query,
};

void tess_stream_init_inline(tess_stream *s, const char *name, tess_pool *pool)
{
    s->ops = &inline_ops;
    s->name = name;
    s->pool = pool;
    s->tracer = NULL;
}

tess_status tess_event_init(tess_event *ev, tess_stream *s)
{
    ev->stream = NULL;
    ev->mark = 0;
    ev->handle = NULL;
    return s->ops->event_init != NULL ? s->ops->event_init(s, ev) : TESS_OK;
}

void tess_event_fini(tess_event *ev, tess_stream *s)
{
    if (s->ops->event_fini != NULL)
        s->ops->event_fini(s, ev);
}

tess_status tess_event_record(tess_event *ev, tess_stream *s) { return s->ops->record(s, ev); }

tess_status tess_stream_wait(tess_stream *s, const tess_event *ev)
{
    return ev->stream == NULL ? TESS_OK : s->ops->wait(s, ev);
}

tess_status tess_event_finish(const tess_event *ev)
{
    return ev->stream == NULL ? TESS_OK : ev->stream->ops->finish(ev->stream, ev);
}

tess_status tess_event_query(const tess_event *ev, bool *is_reached)
{
    *is_reached = true;
    return ev->stream == NULL ? TESS_OK : ev->stream->ops->query(ev->stream, ev, is_reached);
}

tess_status tess_stream_finish(tess_stream *s)
{
    tess_event ev = {NULL, 0, NULL};
    TESS_TRY(tess_event_init(&ev, s));
    tess_status st = tess_event_record(&ev, s);
    if (st == TESS_OK)
        st = tess_event_finish(&ev);
    tess_event_fini(&ev, s);
    return st;
}

tess_status tess_mark_init(tess_mark *m, tess_stream *s)
{
    *m = (tess_mark){0};
    return s->ops->mark_init != NULL ? s->ops->mark_init(s, m) : TESS_OK;
}

void tess_mark_fini(tess_mark *m, tess_stream *s)
{
    if (s->ops->mark_fini != NULL)
        s->ops->mark_fini(s, m);
}

tess_status tess_mark_record(tess_mark *m, tess_stream *s)
{
    if (s->ops->mark_record != NULL)
        return s->ops->mark_record(s, m);
    m->time_s = tess_clock_s();
    return TESS_OK;
}

tess_status tess_mark_elapsed(tess_stream *s, const tess_mark *from, const tess_mark *to,
                              double *elapsed_s)
{
    if (s->ops->mark_elapsed != NULL)
        return s->ops->mark_elapsed(s, from, to, elapsed_s);
    *elapsed_s = to->time_s - from->time_s;
    return TESS_OK;
}
