/** What holds of every trace.<rank>.json: lanes with names, nothing lost, events of a lane one
 * behind the other. */
#pragma once

#include "format/json.h"
#include "shard/trace.h"

typedef struct trace_event {
    const char *name;
    const tess_json *args;
    int64_t lane, step; /* tess_trace_lane; from 1 */
    double start_us, end_us;
} trace_event;

/** How far an event may seem to start before the one in front of it in its lane has ended. */
typedef struct trace_slack {
    double within_us;  /* both of one step */
    double between_us; /* of two steps, whose times a device gives from marks of their own */
} trace_slack;

typedef struct trace_reader {
    trace_slack slack; /* of all lanes but the host's */
    tess_status (*on_event)(void *arg, const trace_event *e);
    void *arg;
} trace_reader;

/** Every event in the order of the file. Local. */
tess_status trace_check(const tess_json *root, const trace_reader *r);
