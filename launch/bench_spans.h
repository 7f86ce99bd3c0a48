/** Where the time of a step goes, by what was done: spans of traced steps beside closed forms. */
#pragma once

#include "format/json.h"
#include "launch/bench_session.h"
#include "shard/profile.h"

TESS_BEGIN_DECLS

/** Keep a span of rank 0's trace; fits tess_trace_sink, `arg` is a tess_bench_spans. Local.
 * @return TESS_E_RANGE more kinds of spans than there is room for */
TESS_MUST_CHECK tess_status tess_bench_spans_add(tess_bench_spans *spans,
                                                 const tess_trace_event *event);
/**
 * Members of a line: `spans`, every kind with its time, calls and bytes in a step, and `classes`,
 * the time of every class of op with its amount and, beside a device's description, the least time
 * that its peak and its memory allow. Local.
 * @param cost    of a step on this rank
 * @param device  NULL: none
 */
TESS_MUST_CHECK tess_status tess_bench_spans_members(const tess_bench_times *times,
                                                     const tess_cost *cost,
                                                     const tess_device_profile *device,
                                                     tess_json *root);

TESS_END_DECLS
