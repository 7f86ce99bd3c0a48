#include "shard/trace.h"

#include "core/clock.h"
#include "core/memory.h"

/* Where the times of a span are. */
typedef enum span_source { SPAN_CLOCK, SPAN_MARKS, SPAN_COLLECTIVES } span_source;

typedef struct span {
    tess_trace_event event;
    span_source source;
    bool is_over;
    bool is_lost;
    tess_mark mark[2];
    uint64_t serial[2]; /* collectives [first, end) */
} span;

struct tess_trace {
    tess_tracer base; /* first */
    tess_trace_config config;
    span *span;     /* [span_numel] */
    int mark_numel; /* spans whose marks were made */
    int used_numel;
    int64_t left_step_numel;
    int64_t lost_numel;
    bool is_on;
    int64_t step;
    tess_trace_place place;
    tess_mark anchor;
    bool has_anchor;
    double anchor_s; /* of the anchor, clock of the host */
    double zero_s;
};

static const tess_trace_place nowhere = {.round_idx = -1, .op_idx = -1};

const char *tess_trace_lane_name(tess_trace_lane lane)
{
    static const char *const name[TESS_TRACE_KERNEL + 1] = {
        "compute", "dequantize", "gather", "reduce", "publish", "copy", "host", "kernel"};
    return (unsigned)lane <= TESS_TRACE_KERNEL ? name[lane] : "unknown";
}

/* ---- recording ---- */

/* A mark that cannot be made loses its span; what is wrong with the device shows elsewhere. */
static void pass(span *s, int which, tess_stream *stream)
{
    if (tess_mark_record(&s->mark[which], stream) == TESS_OK)
        return;
    tess_error_clear();
    s->is_lost = true;
}

static span_source source_of(const tess_trace *t, tess_trace_lane lane, const tess_stream *s)
{
    if (tess_stream_is_timed(s) && tess_stream_is_timed(t->config.clock))
        return SPAN_MARKS;
    const bool is_collective =
        lane == TESS_TRACE_GATHER || lane == TESS_TRACE_REDUCE || lane == TESS_TRACE_PUBLISH;
    return is_collective ? SPAN_COLLECTIVES : SPAN_CLOCK;
}

static int trace_begin(tess_tracer *base, tess_trace_lane lane, const char *name, int64_t nbytes,
                       tess_stream *stream)
{
    tess_trace *t = (tess_trace *)base;
    if (!t->is_on)
        return -1;
    if (t->used_numel == t->config.span_numel) {
        t->lost_numel++;
        return -1;
    }
    span *s = &t->span[t->used_numel];
    s->event = (tess_trace_event){
        .lane = lane, .name = name, .place = t->place, .step = t->step, .nbytes = nbytes};
    s->source = source_of(t, lane, stream);
    s->is_over = s->is_lost = false;
    if (s->source == SPAN_MARKS)
        pass(s, 0, stream);
    if (s->source == SPAN_COLLECTIVES)
        s->serial[0] = tess_comm_collective_numel(t->config.comm);
    s->event.start_s = tess_clock_s();
    return t->used_numel++;
}

static void trace_end(tess_tracer *base, int span_idx, tess_stream *stream)
{
    tess_trace *t = (tess_trace *)base;
    if (span_idx >= t->used_numel)
        return; /* flushed meanwhile */
    span *s = &t->span[span_idx];
    s->event.end_s = tess_clock_s();
    if (s->source == SPAN_MARKS)
        pass(s, 1, stream);
    if (s->source == SPAN_COLLECTIVES)
        s->serial[1] = tess_comm_collective_numel(t->config.comm);
    s->is_over = true;
}

/* ---- life ---- */

static tess_status create_marks(tess_trace *t)
{
    if (!tess_stream_is_timed(t->config.clock))
        return TESS_OK;
    TESS_TRY(tess_mark_init(&t->anchor, t->config.clock));
    t->has_anchor = true;
    for (; t->mark_numel < t->config.span_numel; t->mark_numel++) {
        span *s = &t->span[t->mark_numel];
        TESS_TRY(tess_mark_init(&s->mark[0], t->config.clock));
        const tess_status st = tess_mark_init(&s->mark[1], t->config.clock);
        if (st != TESS_OK) {
            tess_mark_fini(&s->mark[0], t->config.clock);
            return st;
        }
    }
    return TESS_OK;
}

tess_status tess_trace_create(const tess_trace_config *config, tess_trace **out)
{
    void *memory = NULL;
    TESS_TRY(tess_alloc(sizeof(tess_trace), &memory));
    tess_trace *t = memory;
    t->base = (tess_tracer){.begin = trace_begin,
                            .end = trace_end,
                            .has_kernels = config->has_kernels,
                            .kernel_idx = -1};
    t->config = *config;
    t->left_step_numel = config->step_numel;
    t->place = nowhere;
    void *array = NULL;
    tess_status st = tess_alloc_array(config->span_numel, sizeof(span), &array);
    t->span = array;
    if (st == TESS_OK)
        st = create_marks(t);
    if (st != TESS_OK) {
        tess_trace_destroy(&t);
        return st;
    }
    tess_trace_start(t);
    *out = t;
    return TESS_OK;
}

void tess_trace_destroy(tess_trace **trace)
{
    tess_trace *t = *trace;
    if (t == NULL)
        return;
    for (int i = 0; i < 2 * t->mark_numel; i++)
        tess_mark_fini(&t->span[i / 2].mark[i % 2], t->config.clock);
    if (t->has_anchor)
        tess_mark_fini(&t->anchor, t->config.clock);
    tess_free(t->span);
    tess_free(t);
    *trace = NULL;
}

void tess_trace_start(tess_trace *trace) { trace->zero_s = tess_clock_s(); }

/* Both clocks at one moment: the stream is empty when the mark is passed. A fresh anchor for every
 * step, because elapsed times of devices are coarse when they are long. */
static tess_status anchor(tess_trace *t)
{
    double elapsed_s = 0;
    if (!t->has_anchor)
        return TESS_OK;
    TESS_TRY(tess_stream_finish(t->config.clock));
    TESS_TRY(tess_mark_record(&t->anchor, t->config.clock));
    TESS_TRY(tess_mark_elapsed(t->config.clock, &t->anchor, &t->anchor, &elapsed_s));
    t->anchor_s = tess_clock_s();
    return TESS_OK;
}

tess_status tess_trace_step(tess_trace *trace, int64_t step)
{
    trace->step = step;
    trace->is_on = trace->left_step_numel > 0;
    if (!trace->is_on)
        return TESS_OK;
    trace->left_step_numel--;
    return anchor(trace);
}

bool tess_trace_is_on(const tess_trace *trace) { return trace != NULL && trace->is_on; }

tess_tracer *tess_trace_tracer(tess_trace *trace)
{
    return tess_trace_is_on(trace) ? &trace->base : NULL;
}

void tess_trace_at(tess_trace *trace, const tess_trace_place *place)
{
    trace->place = place != NULL ? *place : nowhere;
}

void tess_trace_host(tess_trace *trace, const char *name, double start_s, double end_s)
{
    const int i = tess_trace_begin(tess_trace_tracer(trace), TESS_TRACE_HOST, name, -1, NULL);
    if (i < 0)
        return;
    trace_end(&trace->base, i, NULL);
    trace->span[i].event.start_s = start_s;
    trace->span[i].event.end_s = end_s;
}

/* ---- reading ---- */

/* From the start of the first to the end of the last; without any there is nothing to show. */
static bool take_collectives(const tess_trace *t, span *s)
{
    for (uint64_t i = s->serial[0]; i < s->serial[1]; i++) {
        tess_comm_times times;
        if (!tess_comm_collective_times(t->config.comm, i, &times))
            return false;
        if (i == s->serial[0])
            s->event.start_s = times.started_s;
        s->event.end_s = times.done_s;
    }
    return true;
}

static bool take_marks(const tess_trace *t, span *s)
{
    double at_s[2];
    for (int i = 0; i < 2; i++) {
        if (tess_mark_elapsed(t->config.clock, &t->anchor, &s->mark[i], &at_s[i]) != TESS_OK) {
            tess_error_clear();
            return false;
        }
    }
    s->event.start_s = t->anchor_s + at_s[0];
    s->event.end_s = t->anchor_s + at_s[1];
    return true;
}

static bool take_times(const tess_trace *t, span *s)
{
    if (!s->is_over || s->is_lost)
        return false;
    if (s->source == SPAN_MARKS && !take_marks(t, s))
        return false;
    if (s->source == SPAN_COLLECTIVES && !take_collectives(t, s))
        return false;
    s->event.start_s -= t->zero_s;
    s->event.end_s -= t->zero_s;
    return true;
}

tess_status tess_trace_flush(tess_trace *trace, tess_trace_sink sink, void *arg)
{
    tess_status st = TESS_OK;
    for (int i = 0; i < trace->used_numel && st == TESS_OK; i++) {
        span *s = &trace->span[i];
        if (take_times(trace, s))
            st = sink(arg, &s->event);
        else
            trace->lost_numel++;
    }
    trace->used_numel = 0;
    trace->is_on = false;
    return st;
}

int64_t tess_trace_lost(const tess_trace *trace) { return trace->lost_numel; }
