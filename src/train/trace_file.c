#include "train/trace_file.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "core/memory.h"

enum { BUFFER_NBYTES = 1 << 16, EVENT_NBYTES = 2048, TEXT_NBYTES = 640 };

struct tess_trace_file {
    tess_io *io;
    char *path;
    int fd;
    int rank;
    int64_t offset_nbytes; /* of the end of the list of events */
    size_t buffered_nbytes;
    char buffer[BUFFER_NBYTES];
};

static tess_status write_buffer(tess_trace_file *f)
{
    TESS_TRY(
        tess_io_pwrite(f->io, f->path, f->fd, f->buffer, f->buffered_nbytes, f->offset_nbytes));
    f->offset_nbytes += (int64_t)f->buffered_nbytes;
    f->buffered_nbytes = 0;
    return TESS_OK;
}

static TESS_PRINTF(2, 3) tess_status put(tess_trace_file *f, const char *fmt, ...)
{
    if (f->buffered_nbytes + EVENT_NBYTES > BUFFER_NBYTES)
        TESS_TRY(write_buffer(f));
    va_list args;
    va_start(args, fmt);
    const int n = vsnprintf(f->buffer + f->buffered_nbytes, EVENT_NBYTES, fmt, args);
    va_end(args);
    TESS_CHECK(n >= 0 && n < EVENT_NBYTES, TESS_E_RANGE, "trace: an event of %d bytes", n);
    f->buffered_nbytes += (size_t)n;
    return TESS_OK;
}

/* The end of the file; the next events are written over it. */
static tess_status put_end(tess_trace_file *f, int64_t lost_numel)
{
    char end[128];
    const int n =
        snprintf(end, sizeof end,
                 "\n],\"displayTimeUnit\":\"ms\",\"otherData\":{\"lost_events\":%" PRId64 "}}\n",
                 lost_numel);
    TESS_TRY(write_buffer(f));
    return tess_io_pwrite(f->io, f->path, f->fd, end, (size_t)n, f->offset_nbytes);
}

tess_status tess_trace_file_rank(tess_trace_file *f, int rank)
{
    const bool is_first = f->offset_nbytes == 0 && f->buffered_nbytes == 0;
    f->rank = rank;
    TESS_TRY(put(f,
                 "%s\n{\"name\":\"process_name\",\"ph\":\"M\",\"pid\":%d,\"args\":{"
                 "\"name\":\"rank %d\"}}",
                 is_first ? "{\"traceEvents\":[" : ",", f->rank, f->rank));
    for (int i = 0; i < TESS_TRACE_LANE_NUMEL; i++) {
        TESS_TRY(put(f,
                     ",\n{\"name\":\"thread_name\",\"ph\":\"M\",\"pid\":%d,\"tid\":%d,\"args\":{"
                     "\"name\":\"%s\"}}",
                     f->rank, i, tess_trace_lane_name((tess_trace_lane)i)));
        TESS_TRY(put(f,
                     ",\n{\"name\":\"thread_sort_index\",\"ph\":\"M\",\"pid\":%d,\"tid\":%d,"
                     "\"args\":{\"sort_index\":%d}}",
                     f->rank, i, i));
    }
    return TESS_OK;
}

tess_status tess_trace_file_end(tess_trace_file *f) { return put_end(f, 0); }

tess_status tess_trace_file_create(const tess_ctx *ctx, const char *path, tess_trace_file **out)
{
    void *memory = NULL;
    TESS_TRY(tess_alloc(sizeof(tess_trace_file), &memory));
    tess_trace_file *f = memory;
    f->io = ctx->io;
    f->fd = -1;
    tess_status st = tess_strdup(path, &f->path);
    if (st == TESS_OK)
        st = tess_io_unlink(f->io, f->path, true);
    if (st == TESS_OK)
        st = tess_io_open_new(f->io, f->path, &f->fd);
    if (st != TESS_OK) {
        (void)!tess_trace_file_close(&f);
        return st;
    }
    *out = f;
    return TESS_OK;
}

tess_status tess_trace_file_open(const tess_ctx *ctx, const char *folder, int rank,
                                 tess_trace_file **out)
{
    char *path = NULL;
    tess_trace_file *f = NULL;
    TESS_TRY(tess_asprintf(&path, "%s/trace.%d.json", folder, rank));
    tess_status st = tess_trace_file_create(ctx, path, &f);
    tess_free(path);
    if (st == TESS_OK)
        st = tess_trace_file_rank(f, rank);
    if (st == TESS_OK)
        st = tess_trace_file_end(f);
    if (st != TESS_OK) {
        (void)!tess_trace_file_close(&f);
        return st;
    }
    *out = f;
    return TESS_OK;
}

/* JSON string without the quotes; what is not plain ASCII becomes '?'. */
static void quote(const char *text, char out[TEXT_NBYTES])
{
    size_t n = 0;
    for (; *text != '\0' && n + 3 < TEXT_NBYTES; text++) {
        if (*text == '"' || *text == '\\')
            out[n++] = '\\';
        out[n++] = (char)(*text >= ' ' && *text <= '~' ? *text : '?');
    }
    out[n] = '\0';
}

static int64_t nanoseconds(double s) { return (int64_t)llround(1e9 * s); }

/* Start and end are rounded, and the duration is what lies between, so that neighbours never
 * overlap. */
tess_status tess_trace_file_put(void *file, const tess_trace_event *e)
{
    tess_trace_file *f = file;
    char name[TEXT_NBYTES], unit[TEXT_NBYTES] = "";
    const char *what = e->place.stage != NULL ? e->place.stage : e->place.unit;
    const int64_t start_ns = nanoseconds(e->start_s);
    const int64_t length_ns = TESS_MAX(nanoseconds(e->end_s) - start_ns, INT64_C(0));
    quote(e->name, name);
    TESS_TRY(put(f, ",\n{\"name\":\"%s", name));
    if (what != NULL) {
        quote(what, unit);
        TESS_TRY(put(f, " %s", unit));
    }
    TESS_TRY(put(f,
                 "\",\"cat\":\"%s\",\"ph\":\"X\",\"pid\":%d,\"tid\":%d,\"ts\":%" PRId64
                 ".%03d,\"dur\":%" PRId64 ".%03d,\"args\":{\"step\":%" PRId64,
                 tess_trace_lane_name(e->lane), f->rank, (int)e->lane, start_ns / 1000,
                 (int)(start_ns % 1000), length_ns / 1000, (int)(length_ns % 1000), e->step));
    if (e->place.unit != NULL) {
        quote(e->place.unit, unit);
        TESS_TRY(put(f, ",\"unit\":\"%s\"", unit));
    }
    if (e->place.op_idx >= 0)
        TESS_TRY(put(f, ",\"round\":%d,\"operation\":%d", e->place.round_idx, e->place.op_idx));
    if (e->nbytes >= 0)
        TESS_TRY(put(f, ",\"bytes\":%" PRId64, e->nbytes));
    return put(f, "}}");
}

tess_status tess_trace_file_flush(tess_trace_file *file, tess_trace *trace)
{
    TESS_TRY(tess_trace_flush(trace, tess_trace_file_put, file));
    return put_end(file, tess_trace_lost(trace));
}

tess_status tess_trace_file_close(tess_trace_file **file)
{
    tess_trace_file *f = *file;
    if (f == NULL)
        return TESS_OK;
    const tess_status st = f->fd >= 0 ? tess_io_close(f->io, f->path, &f->fd) : TESS_OK;
    tess_free(f->path);
    tess_free(f);
    *file = NULL;
    return st;
}
