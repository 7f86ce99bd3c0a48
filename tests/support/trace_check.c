#include "tests/support/trace_check.h"

#include <string.h>

#include "core/base.h"

/* Times are whole nanoseconds, here in microseconds as doubles. */
static const double TEXT_SLACK_US = 1e-4;

typedef struct lane_end {
    double us;
    int64_t step;
} lane_end;

static tess_status check_lane(const tess_json *events, int lane)
{
    for (int64_t i = 0; i < tess_json_numel(events); i++) {
        const tess_json *e = tess_json_at(events, i), *args = NULL;
        const char *name = NULL, *text = NULL;
        int64_t tid = -1;
        TESS_TRY(tess_json_get_string(e, "name", &name));
        if (strcmp(name, "thread_name") != 0)
            continue;
        TESS_TRY(tess_json_get_i64(e, "tid", &tid));
        TESS_TRY(tess_json_get_object(e, "args", &args));
        TESS_TRY(tess_json_get_string(args, "name", &text));
        if (tid == lane && strcmp(text, tess_trace_lane_name((tess_trace_lane)lane)) == 0)
            return TESS_OK;
    }
    return TESS_FAIL(TESS_E_STATE, "lane %d has no name, expected '%s'", lane,
                     tess_trace_lane_name((tess_trace_lane)lane));
}

static tess_status read_event(const tess_json *json, trace_event *e)
{
    double length_us = 0;
    TESS_TRY(tess_json_get_string(json, "name", &e->name));
    TESS_TRY(tess_json_get_i64(json, "tid", &e->lane));
    TESS_TRY(tess_json_get_f64(json, "ts", &e->start_us));
    TESS_TRY(tess_json_get_f64(json, "dur", &length_us));
    TESS_TRY(tess_json_get_object(json, "args", &e->args));
    TESS_TRY(tess_json_get_i64(e->args, "step", &e->step));
    e->end_us = e->start_us + length_us;
    TESS_CHECK(e->lane >= 0 && e->lane < TESS_TRACE_LANE_NUMEL && e->step >= 1 && length_us >= 0.0,
               TESS_E_STATE, "'%s' in lane %lld, step %lld, takes %g us", e->name,
               (long long)e->lane, (long long)e->step, length_us);
    return TESS_OK;
}

static tess_status check_order(const trace_reader *r, const trace_event *e, lane_end *last)
{
    double slack_us = TEXT_SLACK_US;
    if (e->lane != TESS_TRACE_HOST)
        slack_us += e->step == last->step ? r->slack.within_us : r->slack.between_us;
    TESS_CHECK(e->start_us >= last->us - slack_us, TESS_E_STATE,
               "lane %s: '%s' of step %lld starts at %.3f us, the event before ends at %.3f",
               tess_trace_lane_name((tess_trace_lane)e->lane), e->name, (long long)e->step,
               e->start_us, last->us);
    *last = (lane_end){e->end_us, e->step};
    return TESS_OK;
}

tess_status trace_check(const tess_json *root, const trace_reader *r)
{
    const tess_json *events = NULL, *other = NULL;
    lane_end last[TESS_TRACE_LANE_NUMEL] = {{0}};
    int64_t lost = -1;
    TESS_TRY(tess_json_get_array(root, "traceEvents", &events));
    TESS_TRY(tess_json_get_object(root, "otherData", &other));
    TESS_TRY(tess_json_get_i64(other, "lost_events", &lost));
    TESS_CHECK(lost == 0, TESS_E_STATE, "%lld events are lost", (long long)lost);
    for (int lane = 0; lane < TESS_TRACE_LANE_NUMEL; lane++)
        TESS_TRY(check_lane(events, lane));
    for (int64_t i = 0; i < tess_json_numel(events); i++) {
        const char *kind = NULL;
        trace_event e;
        TESS_TRY(tess_json_get_string(tess_json_at(events, i), "ph", &kind));
        if (strcmp(kind, "X") != 0)
            continue;
        TESS_TRY(read_event(tess_json_at(events, i), &e));
        TESS_TRY(check_order(r, &e, &last[e.lane]));
        TESS_TRY(r->on_event(r->arg, &e));
    }
    return TESS_OK;
}
