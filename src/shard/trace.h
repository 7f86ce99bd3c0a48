/**
 * Records what one rank does in its first steps: spans on lanes, with unit, operation and bytes.
 *
 * Everything is allocated at creation. Spans of a step, and of what comes between it and the next
 * one, are kept until tess_trace_flush() gives them out. Times come from marks of streams whose
 * work runs behind the calls, for collectives of the host's engine from its own records, else from
 * the clock around the call.
 */
#pragma once

#include "core/device.h"
#include "core/trace.h"
#include "dist/comm.h"

TESS_BEGIN_DECLS

typedef struct tess_trace tess_trace;

typedef struct tess_trace_config {
    tess_stream *clock; /* compute stream of the device whose marks are compared; borrowed */
    tess_comm *comm;    /* whose records tell when collectives ran; borrowed */
    int span_numel;     /* room for one step */
    int64_t step_numel; /* steps to record */
    bool has_kernels;   /* single kernels too: tess_runtime_span_numel() tells how many */
} tess_trace_config;

/** What a span is part of. Strings are borrowed. */
typedef struct tess_trace_place {
    const char *unit;  /* NULL: none */
    const char *stage; /* NULL: none */
    int round_idx;     /* -1: none */
    int op_idx;        /* operation of the schedule, -1: none */
} tess_trace_place;

typedef struct tess_trace_event {
    tess_trace_lane lane;
    const char *name;
    tess_trace_place place;
    int64_t step;
    int64_t nbytes; /* -1: none */
    double start_s; /* since tess_trace_start() */
    double end_s;
} tess_trace_event;

/** Local. @return TESS_E_MEMORY */
TESS_MUST_CHECK tess_status tess_trace_create(const tess_trace_config *config, tess_trace **out);
/** NULL is fine. Local. */
void tess_trace_destroy(tess_trace **trace);
/** Zero of all times: right after a barrier, the ranks' files can be laid side by side. Local. */
void tess_trace_start(tess_trace *trace);
/**
 * From here on spans belong to `step`, until enough steps were recorded. Flush before. Local.
 * @return fatal statuses of a device
 */
TESS_MUST_CHECK tess_status tess_trace_step(tess_trace *trace, int64_t step);
/** Whether spans are recorded now. Local. */
bool tess_trace_is_on(const tess_trace *trace);
/** For streams and stores that record; NULL when `trace` is NULL or off. Local. */
tess_tracer *tess_trace_tracer(tess_trace *trace);
/** What later spans are part of; NULL: nothing. Local. */
void tess_trace_at(tess_trace *trace, const tess_trace_place *place);
/** A span of the host lane that is over already, in seconds of tess_clock_s(). Local. */
void tess_trace_host(tess_trace *trace, const char *name, double start_s, double end_s);

typedef tess_status (*tess_trace_sink)(void *arg, const tess_trace_event *event);
/** Give out all spans in the order they began, and forget them; waits until they are over. Spans
 * whose times cannot be had are counted as lost. Local. @return what `sink` returned */
TESS_MUST_CHECK tess_status tess_trace_flush(tess_trace *trace, tess_trace_sink sink, void *arg);
/** Spans that found no room or have no times. Local. */
int64_t tess_trace_lost(const tess_trace *trace);
/** "compute", "dequantize", ... Local. */
const char *tess_trace_lane_name(tess_trace_lane lane);

TESS_END_DECLS
