#include "shard/simulate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "shard/simulate_priv.h"

enum { SEND = TESS_LANE_REDUCE, GATHER = TESS_LANE_GATHER, COMPUTE = TESS_LANE_COMPUTE };

/* One rank under way. Its program is issued in list order; collectives queue on their lanes. */
typedef struct walker {
    const sim_model *m;
    tess_sim_rank *out;
    tess_schedule schedule;
    double *finish; /* [op_numel] end of an operation, < 0: not over */
    int *queue[TESS_LANE_NUMEL];
    int queued_numel[TESS_LANE_NUMEL], done_numel[TESS_LANE_NUMEL];
    int taken_numel[TESS_LANE_NUMEL]; /* of done ones those that compute has waited for */
    double free_s[TESS_LANE_NUMEL];   /* when the lane is free */
    int next_op;                      /* not issued yet */
    int waited_lane, waited_op;       /* compute stands before this collective; -1: it does not */
    bool has_spans;
    int span_room;
} walker;

typedef struct simulation {
    sim_model model;
    walker rank[TESS_SIM_RANK_MAX];
    int rank_numel;
    sim_flow flow[SIM_FLOW_MAX]; /* of a lane and the first of its ranks */
    double now_s;                /* all that flows have moved until then is settled */
} simulation;

/* ---- timeline ---- */

static tess_status keep_span(walker *w, tess_sim_span span)
{
    tess_sim_rank *r = w->out;
    if (!w->has_spans || span.end_s <= span.start_s)
        return TESS_OK;
    if (r->span_numel == w->span_room) {
        const int room = w->span_room * 2 + 1024;
        void *grown = r->span;
        TESS_TRY(tess_realloc_array(w->span_room, room, sizeof *r->span, &grown));
        r->span = grown;
        w->span_room = room;
    }
    r->span[r->span_numel++] = span;
    return TESS_OK;
}

static tess_status keep_op(walker *w, int op_idx, double start_s, double end_s)
{
    static const tess_trace_lane lane[TESS_LANE_NUMEL] = {TESS_TRACE_COMPUTE, TESS_TRACE_GATHER,
                                                          TESS_TRACE_REDUCE};
    const tess_sched_op *op = &w->schedule.op[op_idx];
    return keep_span(w, (tess_sim_span){.lane = lane[op->lane],
                                        .name = tess_sched_kind_name(op->kind),
                                        .op_idx = op_idx,
                                        .unit_idx = op->unit_idx,
                                        .stage_idx = op->stage_idx,
                                        .round_idx = op->round_idx,
                                        .nbytes = tess_plan_op_nbytes(w->m->plan, w->out->rank, op),
                                        .start_s = start_s,
                                        .end_s = end_s});
}

static tess_status keep_named(walker *w, tess_trace_lane lane, const char *name, double start_s,
                              double end_s)
{
    return keep_span(w, (tess_sim_span){.lane = lane,
                                        .name = name,
                                        .op_idx = -1,
                                        .unit_idx = -1,
                                        .stage_idx = -1,
                                        .round_idx = -1,
                                        .nbytes = -1,
                                        .start_s = start_s,
                                        .end_s = end_s});
}

/* ---- the compute lane ---- */

/* Compute goes on at `at_s`; what it stood still until then was communication. */
static tess_status expose(walker *w, int lane, double at_s)
{
    static const char *const name[TESS_LANE_NUMEL] = {"wait compute", "wait gather", "wait reduce"};
    const double from_s = w->free_s[COMPUTE];
    if (at_s <= from_s)
        return TESS_OK;
    w->out->exposed_s += at_s - from_s;
    w->free_s[COMPUTE] = at_s;
    return keep_named(w, TESS_TRACE_COMPUTE, name[lane], from_s, at_s);
}

/* When compute goes on behind a collective that is over: it takes in what came in the meantime,
 * also of those before it on the lane. */
static double taken_at(walker *w, int lane, int op_idx)
{
    double s = w->free_s[COMPUTE];
    int *k = &w->taken_numel[lane];
    for (; *k < w->done_numel[lane] && w->queue[lane][*k] <= op_idx; (*k)++)
        s += sim_arrived_s(w->m, w->out->rank, &w->schedule.op[w->queue[lane][*k]]);
    return TESS_MAX(s, w->finish[op_idx]);
}

static tess_status work(walker *w, const char *name, double seconds)
{
    const double start_s = w->free_s[COMPUTE];
    w->out->compute_s += seconds;
    w->free_s[COMPUTE] += seconds;
    return keep_named(w, TESS_TRACE_COMPUTE, name, start_s, w->free_s[COMPUTE]);
}

static void queue_op(walker *w, int op_idx)
{
    const tess_lane lane = w->schedule.op[op_idx].lane;
    w->queue[lane][w->queued_numel[lane]++] = op_idx;
}

/* Run compute operations and queue collectives until one that is not over is waited for. */
static tess_status advance(walker *w, bool *has_moved)
{
    while (w->waited_op < 0 && w->next_op < w->schedule.op_numel) {
        const int i = w->next_op;
        const tess_sched_op *op = &w->schedule.op[i];
        if (op->lane != TESS_LANE_COMPUTE) {
            if (!w->m->device->has_overlap)
                queue_op(w, i);
            w->next_op++;
            *has_moved = true;
            continue;
        }
        for (int lane = GATHER; lane <= SEND && w->waited_op < 0; lane++) {
            if (op->wait[lane] < 0)
                continue;
            if (w->finish[op->wait[lane]] < 0.0) {
                w->waited_lane = lane;
                w->waited_op = op->wait[lane];
            } else {
                TESS_TRY(expose(w, lane, taken_at(w, lane, op->wait[lane])));
            }
        }
        if (w->waited_op >= 0)
            return TESS_OK;
        const double start_s = w->free_s[COMPUTE], seconds = sim_op_s(w->m, w->out->rank, op);
        w->out->compute_s += seconds;
        w->finish[i] = w->free_s[COMPUTE] = start_s + seconds;
        TESS_TRY(keep_op(w, i, start_s, w->finish[i]));
        w->next_op++;
        *has_moved = true;
    }
    return TESS_OK;
}

/* ---- collectives ---- */

static bool is_pending(const walker *w, int lane)
{
    return w->done_numel[lane] < w->queued_numel[lane];
}

/* When a rank has come to the first collective of a lane, and since when it does nothing but wait,
 * INFINITY: not yet; false: it has not come yet. */
static bool comes_at(const walker *w, int lane, double *at_s, double *still_s)
{
    if (!is_pending(w, lane))
        return false;
    const tess_sched_op *op = &w->schedule.op[w->queue[lane][w->done_numel[lane]]];
    const bool is_waiting = w->waited_op >= 0 || w->next_op == w->schedule.op_numel;
    double at = w->free_s[lane];
    for (int other = 0; other < TESS_LANE_NUMEL; other++) {
        if (op->wait[other] < 0)
            continue;
        if (w->finish[op->wait[other]] < 0.0)
            return false;
        at = TESS_MAX(at, w->finish[op->wait[other]]);
    }
    *at_s = *still_s = at;
    if (!w->m->device->has_overlap)
        *still_s = is_waiting ? TESS_MAX(at, w->free_s[COMPUTE]) : INFINITY;
    return true;
}

/* Slabs of full mode and gradients travel over the world, frozen shards in groups. */
static bool is_joined(const simulation *s, int a, int b, int lane)
{
    const tess_plan_options *o = &s->model.plan->options;
    if (lane == SEND || o->is_full)
        return true;
    return s->rank[a].out->rank / o->gather_group_numel ==
           s->rank[b].out->rank / o->gather_group_numel;
}

static tess_status finish_one(walker *w, int lane, double start_s, double end_s)
{
    const int i = w->queue[lane][w->done_numel[lane]++];
    w->finish[i] = w->free_s[lane] = end_s;
    *(lane == GATHER ? &w->out->gather_s : &w->out->reduce_s) += end_s - start_s;
    TESS_TRY(keep_op(w, i, start_s, w->finish[i]));
    if (w->waited_lane != lane || w->waited_op != i)
        return TESS_OK;
    w->waited_op = -1;
    return expose(w, lane, taken_at(w, lane, i));
}

/* Legs of a collective whose ranks have come: the slowest rank's. Where kernels hold up
 * communication, what the network carries by itself goes first and the rest when all stand still.
 */
static void add_legs(sim_flow *flow, const sim_collective *c, double stand_s, double carried)
{
    if (carried <= 0.0)
        flow->start_s = stand_s;
    if (carried > 0.0)
        sim_flow_add(flow, flow->start_s, c, carried);
    if (carried < 1.0)
        sim_flow_add(flow, stand_s, c, 1.0 - carried);
}

/* What is known late was alone on the links until now. */
static void catch_up(const simulation *s, sim_flow *flow)
{
    double at_s = flow->start_s;
    sim_flows_run(flow, 1, &at_s, s->now_s);
}

/* The first collective of rank `a`'s lane gets under way, where everybody in it has come. */
static void meet(simulation *s, int a, int lane)
{
    sim_flow *flow = &s->flow[2 * a + (lane == SEND)];
    sim_flow made = {.is_under_way = true, .lane = (tess_lane)lane, .end_s = -1.0};
    sim_collective slowest = {0};
    double stand_s = 0.0, carried = 1.0;
    for (int b = 0; b < s->rank_numel; b++) {
        double at_s = 0.0, still_s = 0.0;
        const walker *w = &s->rank[b];
        if (!is_joined(s, a, b, lane))
            continue;
        if (b < a || flow->is_under_way || !comes_at(w, lane, &at_s, &still_s))
            return; /* where b < a the flow is that of b */
        const tess_sched_op *op = &w->schedule.op[w->queue[lane][w->done_numel[lane]]];
        const sim_collective own = sim_op_collective(&s->model, w->out->rank, op);
        if (sim_collective_s(&own) > sim_collective_s(&slowest))
            slowest = own;
        made.rank_bits |= 1u << b;
        made.start_s = TESS_MAX(made.start_s, at_s);
        stand_s = TESS_MAX(stand_s, still_s);
        if (!w->m->device->has_overlap)
            carried = TESS_MIN(carried, sim_carried(&s->model, w->out->rank, op));
    }
    if (carried < 1.0 && isinf(stand_s))
        return;
    add_legs(&made, &slowest, stand_s, carried);
    catch_up(s, &made);
    *flow = made;
}

/* Time goes by until a collective is over. */
static tess_status finish_first(simulation *s, bool *has_moved)
{
    sim_flows_run(s->flow, SIM_FLOW_MAX, &s->now_s, INFINITY);
    for (int i = 0; i < SIM_FLOW_MAX; i++) {
        sim_flow *f = &s->flow[i];
        if (!f->is_under_way || f->end_s < 0.0)
            continue;
        for (int b = 0; b < s->rank_numel; b++)
            if ((f->rank_bits & 1u << b) != 0)
                TESS_TRY(finish_one(&s->rank[b], (int)f->lane, f->start_s, f->end_s));
        f->is_under_way = false;
        *has_moved = true;
    }
    return TESS_OK;
}

static bool is_over(const walker *w)
{
    return w->next_op == w->schedule.op_numel && w->waited_op < 0 && !is_pending(w, GATHER) &&
           !is_pending(w, SEND);
}

static tess_status run_programs(simulation *s)
{
    bool is_done = false;
    while (!is_done) {
        bool has_moved = false;
        for (int r = 0; r < s->rank_numel; r++)
            TESS_TRY(advance(&s->rank[r], &has_moved));
        for (int r = 0; r < s->rank_numel; r++)
            for (int lane = GATHER; lane <= SEND; lane++)
                meet(s, r, lane);
        TESS_TRY(finish_first(s, &has_moved));
        is_done = true;
        for (int r = 0; r < s->rank_numel; r++)
            is_done = is_done && is_over(&s->rank[r]);
        TESS_CHECK(is_done || has_moved, TESS_E_STATE,
                   "simulation: rank %d stands still at operation %d of %d", s->rank[0].out->rank,
                   s->rank[0].next_op, s->rank[0].schedule.op_numel);
    }
    for (int r = 0; r < s->rank_numel; r++)
        for (int lane = GATHER; lane <= SEND; lane++)
            TESS_TRY(expose(&s->rank[r], lane, s->rank[r].free_s[lane]));
    return TESS_OK;
}

/* ---- after the program ---- */

/* All ranks go on together; who was early waited for the others. */
static tess_status agree(simulation *s)
{
    double latest_s = 0.0;
    for (int r = 0; r < s->rank_numel; r++)
        latest_s = TESS_MAX(latest_s, s->rank[r].free_s[COMPUTE]);
    latest_s += sim_agree_s(&s->model);
    for (int r = 0; r < s->rank_numel; r++) {
        walker *w = &s->rank[r];
        w->out->imbalance_s += latest_s - w->free_s[COMPUTE];
        TESS_TRY(keep_named(w, TESS_TRACE_HOST, "agree on step", w->free_s[COMPUTE], latest_s));
        w->free_s[COMPUTE] = latest_s;
    }
    return TESS_OK;
}

static tess_status publish(simulation *s, double *publish_s)
{
    double start_s = 0.0, seconds = 0.0;
    for (int r = 0; r < s->rank_numel; r++)
        start_s = TESS_MAX(start_s, s->rank[r].free_s[COMPUTE]);
    for (int r = 0; r < s->rank_numel; r++) {
        double own_s = 0.0;
        for (int i = 0; i < s->model.plan->unit_numel; i++)
            own_s += sim_publish_s(&s->model, s->rank[r].out->rank, i);
        seconds = TESS_MAX(seconds, own_s);
    }
    for (int r = 0; r < s->rank_numel; r++) {
        walker *w = &s->rank[r];
        TESS_TRY(keep_named(w, TESS_TRACE_PUBLISH, "publish", start_s, start_s + seconds));
        TESS_TRY(expose(w, GATHER, start_s + seconds));
    }
    *publish_s = seconds;
    return TESS_OK;
}

static tess_status end_step(simulation *s, double *publish_s)
{
    for (int r = 0; r < s->rank_numel; r++) {
        walker *w = &s->rank[r];
        TESS_TRY(work(w, "sum gradients", sim_sum_s(&s->model, w->out->rank)));
        TESS_TRY(work(w, "gradient norm", sim_squares_s(&s->model, w->out->rank)));
    }
    TESS_TRY(agree(s));
    for (int r = 0; r < s->rank_numel; r++) {
        walker *w = &s->rank[r];
        TESS_TRY(work(w, "optimizer", sim_optimizer_s(&s->model, w->out->rank)));
    }
    TESS_TRY(publish(s, publish_s));
    for (int r = 0; r < s->rank_numel; r++)
        s->rank[r].out->end_s = s->rank[r].free_s[COMPUTE];
    return TESS_OK;
}

/* ---- the whole ---- */

static void add_rank(tess_simulation *sim, int rank)
{
    for (int i = 0; i < sim->rank_numel; i++)
        if (sim->rank[i].rank == rank)
            return;
    sim->rank[sim->rank_numel++].rank = rank;
}

static tess_status start_walker(const simulation *s, tess_sim_rank *out, bool has_spans, walker *w)
{
    void *array = NULL;
    *w = (walker){.m = &s->model, .out = out, .waited_op = -1, .has_spans = has_spans};
    TESS_TRY(tess_plan_schedule(s->model.plan, s->model.reg, out->rank, false, &w->schedule));
    TESS_TRY(tess_alloc_array(w->schedule.op_numel, sizeof(double), &array));
    w->finish = array;
    for (int i = 0; i < w->schedule.op_numel; i++)
        w->finish[i] = -1.0;
    for (int lane = GATHER; lane <= SEND; lane++) {
        TESS_TRY(tess_alloc_array(w->schedule.op_numel, sizeof(int), &array));
        w->queue[lane] = array;
    }
    /* A host that runs ahead of its device has queued all of them before anything is over. */
    for (int i = 0; i < w->schedule.op_numel && s->model.device->has_overlap; i++)
        if (w->schedule.op[i].lane != TESS_LANE_COMPUTE)
            queue_op(w, i);
    return TESS_OK;
}

static void stop_walker(walker *w)
{
    tess_schedule_fini(&w->schedule);
    tess_free(w->finish);
    tess_free(w->queue[GATHER]);
    tess_free(w->queue[SEND]);
}

double tess_model_flops(const tess_registry *reg, double *unlisted)
{
    double flops = 0.0;
    for (int i = 0; i < reg->stage_numel; i++) {
        const tess_stage *stage = &reg->stage[i];
        flops += stage->cost.backward.model_flops;
        *unlisted += stage->cost.backward.unlisted_numel;
        if (stage->is_fused_loss)
            continue;
        flops += stage->cost.forward.model_flops;
        *unlisted += stage->cost.forward.unlisted_numel;
    }
    return flops;
}

static void sum_up(const simulation *s, const tess_sim_options *options, tess_simulation *out)
{
    const double batches = (double)s->model.plan->options.micro_batch_numel;
    const double world = s->model.plan->options.world;
    const double flops = tess_model_flops(s->model.reg, &out->unlisted_numel);
    for (int i = 0; i < out->rank_numel; i++) {
        out->step_s = TESS_MAX(out->step_s, out->rank[i].end_s);
        out->exposed_s = TESS_MAX(out->exposed_s, out->rank[i].exposed_s);
        const double still_s = out->rank[i].exposed_s + out->rank[i].imbalance_s;
        out->exposed_least_s = i == 0 ? still_s : TESS_MIN(still_s, out->exposed_least_s);
    }
    out->model_flops = flops * s->model.plan->round_numel;
    out->items_per_s = out->step_s > 0.0 ? batches * options->item_numel / out->step_s : 0.0;
    out->utilization = out->step_s > 0.0
                           ? flops * batches / (out->step_s * world * s->model.device->peak_flops)
                           : 0.0;
    for (int kind = 0; kind < TESS_REDUCTION_NUMEL; kind++)
        out->reduction_s[kind] = sim_reduction_s(&s->model, (tess_reduction)kind);
}

static tess_status simulate(simulation *s, const tess_sim_options *options, tess_simulation *out)
{
    for (; s->rank_numel < out->rank_numel; s->rank_numel++)
        TESS_TRY(start_walker(s, &out->rank[s->rank_numel], options->has_spans,
                              &s->rank[s->rank_numel]));
    TESS_TRY(run_programs(s));
    TESS_TRY(end_step(s, &out->publish_s));
    sum_up(s, options, out);
    return TESS_OK;
}

tess_status tess_simulate(const tess_plan *plan, const tess_registry *reg,
                          const tess_sim_options *options, tess_simulation *out)
{
    const tess_network_profile *network = options->network;
    tess_simulation made = {.rank_numel = 0};
    simulation s = {.model = {.plan = plan,
                              .reg = reg,
                              .device = options->device,
                              .node = network->has_node ? &network->node : &options->device->link,
                              .across = &network->across}};
    const int64_t last = plan->options.micro_batch_numel - 1;
    add_rank(&made, 0);
    add_rank(&made, (int)(last % plan->options.world));
    add_rank(&made, plan->options.world - 1);
    const tess_status st = simulate(&s, options, &made);
    for (int i = 0; i < TESS_SIM_RANK_MAX; i++)
        stop_walker(&s.rank[i]);
    if (st != TESS_OK) {
        tess_simulation_fini(&made);
        return st;
    }
    *out = made;
    return TESS_OK;
}

void tess_simulation_fini(tess_simulation *sim)
{
    for (int i = 0; i < TESS_SIM_RANK_MAX; i++)
        tess_free(sim->rank[i].span);
    memset(sim, 0, sizeof *sim);
}

static int by_start(const void *a, const void *b)
{
    const tess_sim_span *x = a, *y = b;
    return (x->start_s > y->start_s) - (x->start_s < y->start_s);
}

tess_status tess_simulation_trace(const tess_sim_rank *rank, const tess_registry *reg,
                                  tess_trace_sink sink, void *arg)
{
    if (rank->span_numel > 0)
        qsort(rank->span, (size_t)rank->span_numel, sizeof *rank->span, by_start);
    for (int i = 0; i < rank->span_numel; i++) {
        const tess_sim_span *s = &rank->span[i];
        const tess_trace_event event = {
            .lane = s->lane,
            .name = s->name,
            .place = {.unit = s->unit_idx >= 0 ? reg->unit[s->unit_idx].name : NULL,
                      .stage = s->stage_idx >= 0 ? reg->stage[s->stage_idx].name : NULL,
                      .round_idx = s->round_idx,
                      .op_idx = s->op_idx},
            .step = 1,
            .nbytes = s->nbytes,
            .start_s = s->start_s,
            .end_s = s->end_s};
        TESS_TRY(sink(arg, &event));
    }
    return TESS_OK;
}
