/**
 * Where a step's time goes: spans of work on lanes, recorded by whoever enqueues the work.
 *
 * A stream carries the tracer of the step that runs on it, NULL outside traced steps, so that
 * kernels can record what happens inside them. Recording never fails and never allocates; names
 * are borrowed for the whole run.
 */
#pragma once

#include "core/stream.h"

TESS_BEGIN_DECLS

typedef enum tess_trace_lane {
    TESS_TRACE_COMPUTE,
    TESS_TRACE_DEQUANTIZE, /* weights expanded in front of a product, where that is its own work */
    TESS_TRACE_GATHER,
    TESS_TRACE_REDUCE,
    TESS_TRACE_PUBLISH, /* updated slabs to all ranks */
    TESS_TRACE_COPY,    /* snapshots of state */
    TESS_TRACE_HOST,
    TESS_TRACE_LANE_NUMEL,                    /* of a trace's file, which has no single kernels: */
    TESS_TRACE_KERNEL = TESS_TRACE_LANE_NUMEL /* inside forward and backward, where asked for */
} tess_trace_lane;

/** Base object; the recorder embeds it as first member. */
struct tess_tracer {
    int (*begin)(tess_tracer *t, tess_trace_lane lane, const char *name, int64_t nbytes,
                 tess_stream *s);
    void (*end)(tess_tracer *t, int span_idx, tess_stream *s);
    bool has_kernels; /* kernels of stages are recorded one by one */
    int kernel_idx;   /* span of the one that is being enqueued */
};

/**
 * A span starts where `s` (NULL: the calling thread) is now. `tracer` may be NULL. Local.
 * @return its number for tess_trace_end(), -1 when it is not recorded
 */
static inline int tess_trace_begin(tess_tracer *tracer, tess_trace_lane lane, const char *name,
                                   int64_t nbytes, tess_stream *s)
{
    return tracer != NULL ? tracer->begin(tracer, lane, name, nbytes, s) : -1;
}

/** It ends where `s`, the same as at its start, is now. Local. */
static inline void tess_trace_end(tess_tracer *tracer, int span_idx, tess_stream *s)
{
    if (span_idx >= 0)
        tracer->end(tracer, span_idx, s);
}

/** The next work of `s` is one kernel of a stage. Local. */
static inline void tess_trace_kernel_begin(tess_stream *s, const char *name)
{
    tess_tracer *t = s->tracer;
    if (t != NULL && t->has_kernels)
        t->kernel_idx = t->begin(t, TESS_TRACE_KERNEL, name, -1, s);
}

/** It is enqueued. Local. @return `st` */
static inline tess_status tess_trace_kernel_end(tess_stream *s, tess_status st)
{
    tess_tracer *t = s->tracer;
    if (t != NULL && t->has_kernels)
        tess_trace_end(t, t->kernel_idx, s);
    return st;
}

TESS_END_DECLS
