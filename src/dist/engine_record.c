#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "core/clock.h"
#include "dist/engine_priv.h"

uint64_t engine_record_add(engine_queue *q, const engine_op *op)
{
    engine *e = q->owner;
    const uint64_t serial = e->record_serial++;
    engine_record *r = &e->records[serial % ENGINE_RECORD_NUMEL];
    r->serial = serial;
    r->seq = op->seq;
    r->kind = op->kind;
    r->state = ENGINE_QUEUED;
    r->entry_idx = op->entry_idx;
    r->world = q->world;
    r->stream = q->base.name;
    r->queued_s = tess_clock_s() - e->created_s;
    r->started_s = r->done_s = 0.0;
    snprintf(r->name, sizeof r->name, "%.63s", op->name);
    return serial;
}

void engine_record_mark(engine *e, uint64_t serial, engine_record_state state)
{
    engine_record *r = &e->records[serial % ENGINE_RECORD_NUMEL];
    if (r->serial != serial)
        return; /* so many were enqueued meanwhile that the ring took its place */
    r->state = state;
    const double now_s = tess_clock_s() - e->created_s;
    if (state == ENGINE_STARTED)
        r->started_s = now_s;
    else
        r->done_s = now_s;
}

uint64_t engine_record_count(engine *e)
{
    pthread_mutex_lock(&e->lock);
    const uint64_t numel = e->record_serial;
    pthread_mutex_unlock(&e->lock);
    return numel;
}

bool engine_record_times(engine *e, uint64_t serial, tess_comm_times *out)
{
    pthread_mutex_lock(&e->lock);
    const engine_record *r = &e->records[serial % ENGINE_RECORD_NUMEL];
    const bool is_known =
        r->serial == serial && serial < e->record_serial && r->state == ENGINE_DONE;
    if (is_known)
        *out = (tess_comm_times){.queued_s = e->created_s + r->queued_s,
                                 .started_s = e->created_s + r->started_s,
                                 .done_s = e->created_s + r->done_s};
    pthread_mutex_unlock(&e->lock);
    return is_known;
}

void tess_fd_line(int fd, const char *fmt, ...)
{
    char line[2048];
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(line, sizeof line - 1, fmt, args);
    va_end(args);
    if (n < 0)
        return;
    if ((size_t)n > sizeof line - 2)
        n = (int)sizeof line - 2;
    line[n++] = '\n';
    const char *at = line;
    while (n > 0) {
        const ssize_t wrote = write(fd, at, (size_t)n);
        if (wrote < 0 && errno == EINTR)
            continue;
        if (wrote <= 0)
            return;
        at += wrote;
        n -= (int)wrote;
    }
}

bool engine_try_lock(engine *e, double limit_s)
{
    const double until_s = tess_clock_s() + limit_s;
    const struct timespec nap = {0, 1000000};
    while (pthread_mutex_trylock(&e->lock) != 0) {
        if (tess_clock_s() > until_s)
            return false;
        nanosleep(&nap, NULL);
    }
    return true;
}

void engine_record_dump(engine *e, int rank, int fd)
{
    static const char *const state_name[] = {"queued", "started", "done"};
    const bool has_lock = engine_try_lock(e, 1.0);
    const uint64_t last = e->record_serial;
    const uint64_t first = last > ENGINE_RECORD_NUMEL ? last - ENGINE_RECORD_NUMEL : 0;
    tess_fd_line(fd,
                 "# collectives of rank %d: %" PRIu64 " made, %" PRIu64 " kept; seconds since "
                 "start, now %.6f",
                 rank, last, last - first, tess_clock_s() - e->created_s);
    tess_fd_line(fd, "# serial stream sequence ranks op entry state queued started done name");
    for (uint64_t i = first; i < last; i++) {
        const engine_record *r = &e->records[i % ENGINE_RECORD_NUMEL];
        tess_fd_line(fd, "%" PRIu64 " %s %" PRIu64 " %d %s %u %s %.6f %.6f %.6f %s", r->serial,
                     r->stream, r->seq, r->world, engine_op_kind_name(r->kind), r->entry_idx,
                     state_name[r->state], r->queued_s, r->started_s, r->done_s, r->name);
    }
    if (has_lock)
        pthread_mutex_unlock(&e->lock);
}
