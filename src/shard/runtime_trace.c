/*
 * What a step tells about its time: spans of its operations, ranges for profilers, and how long the
 * compute lane waited for communication.
 *
 * [Note: exposed time] Two marks stand around every wait of the compute lane for another lane. The
 * first is passed when the work in front of it is done, the second when the wait is over, so their
 * distance is time in which nothing was computed. They are read where the host has just waited for
 * the compute lane anyway; a wait enqueued after that is read in the next step.
 */
#include <stdio.h>

#include "core/clock.h"
#include "shard/runtime_priv.h"

enum { WAITS_BESIDE_SCHEDULE = 8, SPANS_BESIDE_SCHEDULE = 256 };

static int count_waits(const program *p)
{
    int numel = 0;
    for (int i = 0; i < p->schedule.op_numel; i++)
        for (int lane = 0; lane < TESS_LANE_NUMEL; lane++)
            numel += p->schedule.op[i].lane == TESS_LANE_COMPUTE && lane != TESS_LANE_COMPUTE &&
                     p->schedule.op[i].wait[lane] >= 0;
    return numel;
}

tess_status runtime_timing_create(tess_runtime *rt)
{
    void *array = NULL;
    const int room = 2 * (count_waits(&rt->train) + WAITS_BESIDE_SCHEDULE);
    TESS_TRY(tess_alloc_array(room, sizeof *rt->wait_mark, &array));
    rt->wait_mark = array;
    for (; rt->wait_mark_numel < room; rt->wait_mark_numel++)
        TESS_TRY(tess_mark_init(&rt->wait_mark[rt->wait_mark_numel], rt->compute));
    return TESS_OK;
}

void runtime_timing_destroy(tess_runtime *rt)
{
    for (int i = 0; i < rt->wait_mark_numel; i++)
        tess_mark_fini(&rt->wait_mark[i], rt->compute);
    tess_free(rt->wait_mark);
}

/* ---- waits ---- */

static const char *const wait_name[TESS_LANE_NUMEL] = {"wait compute", "wait gather",
                                                       "wait reduce"};

tess_status runtime_wait(tess_runtime *rt, const tess_event *ev, tess_lane lane)
{
    if (rt->request == NULL || rt->wait_used + 2 > rt->wait_mark_numel)
        return tess_stream_wait(rt->compute, ev);
    tess_tracer *tracer = tess_trace_tracer(rt->trace);
    tess_mark *mark = &rt->wait_mark[rt->wait_used];
    const int span = tess_trace_begin(tracer, TESS_TRACE_COMPUTE, wait_name[lane], -1, rt->compute);
    TESS_TRY(tess_mark_record(&mark[0], rt->compute));
    TESS_TRY(tess_stream_wait(rt->compute, ev));
    TESS_TRY(tess_mark_record(&mark[1], rt->compute));
    tess_trace_end(tracer, span, rt->compute);
    rt->wait_used += 2;
    return TESS_OK;
}

tess_status runtime_exposed(tess_runtime *rt, double *exposed_s)
{
    *exposed_s = 0.0;
    for (int i = 0; i < rt->wait_used; i += 2) {
        double elapsed_s = 0.0;
        TESS_TRY(
            tess_mark_elapsed(rt->compute, &rt->wait_mark[i], &rt->wait_mark[i + 1], &elapsed_s));
        *exposed_s += elapsed_s;
    }
    rt->wait_used = 0;
    return TESS_OK;
}

/* ---- spans ---- */

void tess_runtime_trace(tess_runtime *rt, tess_trace *trace) { rt->trace = trace; }

static tess_cost op_cost(const tess_registry *reg, const tess_sched_op *op)
{
    if (op->kind != TESS_SCHED_FORWARD && op->kind != TESS_SCHED_BACKWARD)
        return (tess_cost){0};
    const tess_stage_cost *cost = &reg->stage[op->stage_idx].cost;
    if (op->kind == TESS_SCHED_FORWARD)
        return cost->forward;
    return tess_stage_cost_backward(cost, op->is_recomputed);
}

tess_cost tess_runtime_step_cost(const tess_runtime *rt)
{
    tess_cost sum = {0};
    for (int i = 0; i < rt->train.schedule.op_numel; i++)
        sum = tess_cost_sum(sum, op_cost(rt->parts.registry, &rt->train.schedule.op[i]));
    return sum;
}

int tess_runtime_span_numel(const tess_runtime *rt, bool has_kernels)
{
    const tess_registry *reg = rt->parts.registry;
    const tess_plan *plan = rt->parts.plan;
    int64_t numel = rt->train.schedule.op_numel + rt->wait_mark_numel / 2 + SPANS_BESIDE_SCHEDULE;
    numel += plan->unit_numel + 2 * (int64_t)plan->round_numel;
    /* A device may expand every frozen matrix forward, again, and backward. */
    for (int i = 0; tess_stream_is_timed(rt->compute) && i < reg->param_numel; i++)
        numel += reg->param[i].role == TESS_ROLE_FROZEN ? 3 * (int64_t)plan->round_numel : 0;
    if (has_kernels)
        numel += (int64_t)tess_runtime_step_cost(rt).launch_numel;
    return (int)TESS_MIN(numel, (int64_t)1 << 20);
}

static tess_trace_lane trace_lane(tess_lane lane)
{
    return lane == TESS_LANE_GATHER   ? TESS_TRACE_GATHER
           : lane == TESS_LANE_REDUCE ? TESS_TRACE_REDUCE
                                      : TESS_TRACE_COMPUTE;
}

void runtime_trace_place(tess_runtime *rt, const tess_sched_op *op)
{
    const tess_registry *reg = rt->parts.registry;
    if (!tess_trace_is_on(rt->trace))
        return;
    if (op == NULL) {
        tess_trace_at(rt->trace, NULL);
        return;
    }
    const tess_trace_place place = {.unit = reg->unit[op->unit_idx].name,
                                    .stage =
                                        op->stage_idx >= 0 ? reg->stage[op->stage_idx].name : NULL,
                                    .round_idx = op->round_idx,
                                    .op_idx = (int)(op - rt->train.schedule.op)};
    tess_trace_at(rt->trace, &place);
}

static void push_range(const tess_runtime *rt, const tess_sched_op *op)
{
    char name[TESS_NAME_NBYTES + 16];
    if (rt->device->ops->range_push == NULL)
        return;
    snprintf(name, sizeof name, "%s %s", tess_sched_kind_name(op->kind),
             rt->parts.registry->unit[op->unit_idx].name);
    rt->device->ops->range_push(rt->device, name);
}

tess_status runtime_traced_op(tess_runtime *rt, const tess_sched_op *op,
                              tess_status (*run)(tess_runtime *, const tess_sched_op *))
{
    tess_tracer *tracer = tess_trace_tracer(rt->trace);
    tess_stream *stream = rt->lane[op->lane];
    push_range(rt, op);
    const int span = tess_trace_begin(tracer, trace_lane(op->lane), tess_sched_kind_name(op->kind),
                                      tess_plan_op_nbytes(rt->parts.plan, rt->rank, op), stream);
    const tess_status st = run(rt, op);
    tess_trace_end(tracer, span, stream);
    if (rt->device->ops->range_pop != NULL)
        rt->device->ops->range_pop(rt->device);
    return st;
}

int runtime_span(tess_runtime *rt, const char *name)
{
    return tess_trace_begin(tess_trace_tracer(rt->trace), TESS_TRACE_COMPUTE, name, -1,
                            rt->compute);
}

void runtime_span_end(tess_runtime *rt, int span_idx)
{
    tess_trace_end(tess_trace_tracer(rt->trace), span_idx, rt->compute);
}
