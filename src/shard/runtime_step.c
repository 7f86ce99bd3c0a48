#include "shard/runtime.h"

#include <math.h>
#include <string.h>

#include "core/clock.h"
#include "core/memory.h"
#include "shard/runtime_priv.h"

/* ---- operations ---- */

static tess_view work_view(tess_runtime *rt, size_t offset_nbytes, size_t nbytes)
{
    return runtime_view(rt, nbytes > 0 ? runtime_at(rt, TESS_LIFE_WORK, offset_nbytes) : NULL,
                        (int64_t)nbytes, TESS_U8_OPAQUE);
}

static void point_at_params(tess_runtime *rt, const tess_sched_op *op, tess_stage_call *call)
{
    const tess_plan *plan = rt->parts.plan;
    const tess_unit_plan *u = &plan->unit[op->unit_idx];
    const char *slot =
        op->slot_idx >= 0 ? runtime_at(rt, TESS_LIFE_SLOT, (size_t)op->slot_idx * plan->slot_nbytes)
                          : NULL;
    if (u->frozen_nbytes > 0)
        call->frozen = plan->options.gather_group_numel > 1
                           ? slot + u->slot_offset_nbytes
                           : runtime_at(rt, TESS_LIFE_BASE, u->base_offset_nbytes);
    if (u->slab_numel > 0 && !rt->parts.registry->unit[op->unit_idx].is_held)
        call->trainable = plan->options.is_full && rt->world > 1
                              ? slot + u->slot_slab_offset_nbytes
                              : runtime_whole_slab(rt, op->unit_idx).data;
    if (op->grad_idx >= 0)
        call->grad = (float *)(void *)runtime_at(rt, TESS_LIFE_GRAD,
                                                 plan->grad_buffer_offset_nbytes[op->grad_idx]);
}

tess_stage_call runtime_call(tess_runtime *rt, const tess_sched_op *op, tess_call_mode mode)
{
    const tess_plan *plan = rt->parts.plan;
    const tess_registry *reg = rt->parts.registry;
    const int s = op->stage_idx;
    tess_stage_call call = {.registry = reg,
                            .kernels = rt->parts.kernels,
                            .device = rt->device,
                            .stream = rt->compute,
                            .stage_idx = s,
                            .mode = mode,
                            .seed = rt->parts.seed,
                            .batch = rt->batch};
    point_at_params(rt, op, &call);
    if (s > 0)
        call.input =
            work_view(rt, plan->stage[s - 1].output_offset_nbytes, reg->stage[s - 1].output_nbytes);
    call.output = work_view(rt, plan->stage[s].output_offset_nbytes, reg->stage[s].output_nbytes);
    call.saved = work_view(rt, plan->stage[s].saved_offset_nbytes, reg->stage[s].saved_nbytes);
    call.work = work_view(rt, plan->work_offset_nbytes, plan->work_nbytes);
    return call;
}

static tess_status load_batch(tess_runtime *rt, int round_idx)
{
    if (rt->batch_round_idx == round_idx)
        return TESS_OK;
    rt->batch_round_idx = round_idx;
    const int64_t m = (int64_t)round_idx * rt->world + rt->rank;
    rt->batch = NULL;
    if (m >= rt->parts.plan->options.micro_batch_numel) /* a joint stage goes without */
        return TESS_OK;
    const double start_s = tess_clock_s();
    const tess_status st = rt->request->batch_of(rt->request->arg, m, &rt->batch);
    tess_trace_host(rt->trace, "batch", start_s, tess_clock_s());
    return st;
}

/* 1 / T, of losses and so of all gradients. */
static float grad_scale(const tess_runtime *rt)
{
    return (float)(1.0 / (double)rt->request->loss_token_numel);
}

static tess_stage_call make_train_call(tess_runtime *rt, const tess_sched_op *op)
{
    tess_stage_call call = runtime_call(rt, op, TESS_CALL_TRAIN);
    call.micro_batch_idx =
        rt->request->first_micro_batch_idx + (int64_t)op->round_idx * rt->world + rt->rank;
    call.grad_scale = grad_scale(rt);
    return call;
}

static step_record *record_of(tess_runtime *rt)
{
    return (step_record *)(void *)runtime_at(rt, TESS_LIFE_GRAD,
                                             rt->parts.plan->record_offset_nbytes);
}

/* The last stage has written the sum of its micro-batch. */
static tess_status add_loss(tess_runtime *rt)
{
    if (rt->is_replaying)
        return TESS_OK;
    step_record *record = record_of(rt);
    const tess_exact_add_args args = {.x = &record->loss_sum,
                                      .acc = &record->loss,
                                      .nonfinite_numel = &record->nonfinite_loss_numel};
    return rt->parts.kernels->exact_add(&args, rt->compute);
}

static tess_status read_record(tess_runtime *rt, const step_record **out)
{
    void *found = NULL;
    TESS_TRY(runtime_read(
        rt, runtime_view(rt, record_of(rt), (int64_t)runtime_record_nbytes(rt), TESS_U8_OPAQUE),
        &found));
    *out = found;
    return TESS_OK;
}

static tess_status run_forward(tess_runtime *rt, const tess_sched_op *op)
{
    tess_stage_call call = make_train_call(rt, op);
    call.loss_sum = &record_of(rt)->loss_sum;
    TESS_TRY(rt->parts.ops->forward(rt->parts.model, &call));
    return op->stage_idx == rt->parts.registry->stage_numel - 1 ? add_loss(rt) : TESS_OK;
}

/* The output is not needed a second time: a stage that can leaves its last product out. */
static tess_status recompute(tess_runtime *rt, const tess_stage_call *call)
{
    tess_stage_call again = *call;
    if (rt->parts.registry->stage[call->stage_idx].skips_output)
        again.output = runtime_view(rt, NULL, 0, TESS_U8_OPAQUE);
    return rt->parts.ops->forward(rt->parts.model, &again);
}

static tess_status run_backward(tess_runtime *rt, const tess_sched_op *op)
{
    const tess_plan *plan = rt->parts.plan;
    const tess_registry *reg = rt->parts.registry;
    const int s = op->stage_idx;
    const bool is_last = s == reg->stage_numel - 1;
    tess_stage_call call = make_train_call(rt, op);
    if (op->clears_grad) {
        const int64_t numel = plan->unit[op->unit_idx].slab_shard_numel * rt->world;
        TESS_TRY(tess_device_zero(rt->device, runtime_view(rt, call.grad, numel, TESS_F32),
                                  rt->compute));
    }
    if (op->is_recomputed)
        TESS_TRY(recompute(rt, &call));
    if (is_last)
        rt->d_parity = 0;
    else
        call.d_output =
            work_view(rt, plan->d_offset_nbytes[rt->d_parity], reg->stage[s].output_nbytes);
    if (s > 0)
        call.d_input =
            work_view(rt, plan->d_offset_nbytes[1 - rt->d_parity], reg->stage[s - 1].output_nbytes);
    rt->d_parity = 1 - rt->d_parity;
    call.loss_sum = &record_of(rt)->loss_sum;
    TESS_TRY(rt->parts.ops->backward(rt->parts.model, &call));
    return is_last && reg->stage[s].is_fused_loss ? add_loss(rt) : TESS_OK;
}

static tess_status run_op(tess_runtime *rt, const tess_sched_op *op)
{
    switch (op->kind) {
    case TESS_SCHED_GATHER:
        return gather_bucket(rt, op);
    case TESS_SCHED_FORWARD:
        return run_forward(rt, op);
    case TESS_SCHED_BACKWARD:
        return run_backward(rt, op);
    case TESS_SCHED_SEND:
        return gradient_send(rt, op);
    case TESS_SCHED_CLEAR:
        return gradient_clear(rt, op);
    case TESS_SCHED_REDUCE:
        return gradient_reduce(rt, op);
    case TESS_SCHED_FOLD:
        return gradient_fold(rt, op);
    }
    return TESS_FAIL(TESS_E_STATE, "operation %d is not in the schedule's list", (int)op->kind);
}

/* What a backward has left in its unit's gradient, and behind the last stage the loss. */
static tess_status digest_backward(tess_runtime *rt, const tess_sched_op *op, tess_xxh128 *out)
{
    const tess_plan *plan = rt->parts.plan;
    tess_xxh128 chain = {{0}};
    if (op->grad_idx >= 0) {
        const float *grad = (const float *)(const void *)runtime_at(
            rt, TESS_LIFE_GRAD, plan->grad_buffer_offset_nbytes[op->grad_idx]);
        const int64_t numel = plan->unit[op->unit_idx].slab_shard_numel * rt->world;
        TESS_TRY(runtime_digest(rt, runtime_view(rt, grad, numel, TESS_F32), &chain));
    }
    if (op->stage_idx == rt->parts.registry->stage_numel - 1)
        TESS_TRY(runtime_digest(
            rt, runtime_view(rt, &record_of(rt)->loss_sum, sizeof(double), TESS_U8_OPAQUE),
            &chain));
    *out = chain;
    return TESS_OK;
}

static tess_status run_train_op(tess_runtime *rt, const tess_sched_op *op)
{
    const bool is_backward = op->kind == TESS_SCHED_BACKWARD;
    if (op->kind == TESS_SCHED_FORWARD || is_backward)
        TESS_TRY(load_batch(rt, op->round_idx));
    TESS_TRY(runtime_traced_op(rt, op, run_op));
    if (rt->request->wants_replay && is_backward && op->round_idx == 0)
        return digest_backward(rt, op, &rt->gradient[op - rt->train.schedule.op]);
    return TESS_OK;
}

/*
 * A rank without a micro-batch uses nothing that it gathers, and one that receives no pieces waits
 * for none of its sends: no operation of its schedule comes after them. They must still be over
 * before the optimizer writes the shards they read, before the next step writes gradients, and
 * before their memory is freed.
 */
static tess_status drain_lanes(tess_runtime *rt)
{
    const int from[2] = {TESS_LANE_GATHER, TESS_LANE_REDUCE};
    for (int i = 0; i < 2; i++) {
        if (rt->lane[from[i]] == rt->compute)
            continue;
        TESS_TRY(tess_event_record(&rt->drained[i], rt->lane[from[i]]));
        TESS_TRY(runtime_wait(rt, &rt->drained[i], (tess_lane)from[i]));
    }
    return TESS_OK;
}

static tess_status wait_for_lanes(tess_runtime *rt, program *p, const tess_sched_op *op)
{
    for (int i = 0; i < TESS_LANE_NUMEL; i++) {
        if (op->wait[i] < 0)
            continue;
        const tess_event *ev = &p->event[op->wait[i]];
        if (op->lane == TESS_LANE_COMPUTE && i != TESS_LANE_COMPUTE)
            TESS_TRY(runtime_wait(rt, ev, (tess_lane)i));
        else
            TESS_TRY(tess_stream_wait(rt->lane[op->lane], ev));
    }
    return TESS_OK;
}

static tess_status run_program(tess_runtime *rt, program *p,
                               tess_status (*run)(tess_runtime *, const tess_sched_op *))
{
    for (int i = 0; i < p->schedule.op_numel; i++) {
        const tess_sched_op *op = &p->schedule.op[i];
        runtime_trace_place(rt, rt->request != NULL ? op : NULL);
        TESS_TRY(wait_for_lanes(rt, p, op));
        TESS_TRY(run(rt, op));
        if (op->is_recorded)
            TESS_TRY(tess_event_record(&p->event[i], rt->lane[op->lane]));
    }
    runtime_trace_place(rt, NULL);
    return drain_lanes(rt);
}

/* ---- replay ---- */

static tess_status replay_op(tess_runtime *rt, const tess_sched_op *op)
{
    tess_xxh128 again;
    if (op->kind == TESS_SCHED_GATHER)
        return gather_bucket(rt, op);
    TESS_TRY(load_batch(rt, 0));
    TESS_TRY(run_op(rt, op));
    if (op->kind != TESS_SCHED_BACKWARD)
        return TESS_OK;
    TESS_TRY(digest_backward(rt, op, &again));
    const tess_xxh128 *before = &rt->gradient[op - rt->train.schedule.op];
    if (rt->replay_unit_idx < 0 && memcmp(before->byte, again.byte, sizeof again.byte) != 0)
        rt->replay_unit_idx = op->unit_idx;
    return TESS_OK;
}

/*
 * Round 0 once more, without its traffic of gradients: their buffers have been sent and folded, so
 * what the second pass writes there goes nowhere. Waits for operations that are left out are for
 * the first pass, which is over.
 */
static tess_status run_replay(tess_runtime *rt)
{
    program *p = &rt->train;
    rt->batch_round_idx = -1;
    TESS_TRY(tess_stream_finish(rt->compute));
    for (int i = 0; i < p->schedule.op_numel; i++) {
        const tess_sched_op *op = &p->schedule.op[i];
        const bool is_part = op->kind == TESS_SCHED_GATHER || op->kind == TESS_SCHED_FORWARD ||
                             op->kind == TESS_SCHED_BACKWARD;
        if (!is_part || op->round_idx != 0)
            continue;
        TESS_TRY(wait_for_lanes(rt, p, op));
        TESS_TRY(replay_op(rt, op));
        if (op->is_recorded)
            TESS_TRY(tess_event_record(&p->event[i], rt->lane[op->lane]));
    }
    return drain_lanes(rt);
}

static tess_status replay(tess_runtime *rt)
{
    rt->replay_unit_idx = -1;
    if (!rt->request->wants_replay)
        return TESS_OK;
    const int span = runtime_span(rt, "replay");
    rt->is_replaying = true;
    const tess_status st = run_replay(rt);
    rt->is_replaying = false;
    runtime_span_end(rt, span);
    return st;
}

/* ---- a step ---- */

/* Summed over ranks in the control record: integers only, so the order of ranks does not matter. */
typedef struct control_sum {
    tess_exact loss, norm;
    int64_t nonfinite_numel;      /* gradient elements, and losses */
    int64_t nonfinite_loss_numel; /* micro-batches */
} control_sum;

typedef struct control_record {
    control_sum sum;
    /* flags, then minus the lowest (rank, unit) with a non-finite value, then exposed nanoseconds,
     * minus all in which the rank stood still, and minus the lowest (rank, unit) with another
     * replay */
    int64_t max[TESS_FLAG_MAX + 4];
} control_record;

_Static_assert(sizeof(control_sum) == (2 * TESS_EXACT_LIMB_NUMEL + 2) * sizeof(int64_t),
               "no padding");

/* Gradients that schedules do not know: the trainer has them. */
static tess_status sum_held(tess_runtime *rt)
{
    const tess_plan *plan = rt->parts.plan;
    if (plan->learning_numel == plan->summed_numel)
        return TESS_OK;
    TESS_CHECK(rt->request->sum_held != NULL, TESS_E_ARG,
               "step: nobody adds up the gradients of units that are held");
    for (int i = 0; i < plan->unit_numel; i++)
        if (plan->unit[i].is_held)
            TESS_TRY(tess_device_zero(rt->device, tess_runtime_gradient(rt, i), rt->compute));
    return rt->request->sum_held(rt->request->arg, grad_scale(rt));
}

/* Squares of the owned gradients, then the one look of the host at what the step's kernels did. */
static tess_status measure_gradients(tess_runtime *rt, control_record *c, double *exposed_s)
{
    const int64_t units = rt->parts.plan->unit_numel;
    step_record *record = record_of(rt);
    const int span = runtime_span(rt, "gradient norm");
    for (int i = 0; i < units; i++) {
        const tess_square_norm_args args = {.x = gradient_sum(rt, i),
                                            .numel = runtime_owned_numel(rt, i),
                                            .acc = &record->norm,
                                            .nonfinite_numel = &record->nonfinite_numel[i]};
        if (args.numel > 0 && !rt->parts.plan->unit[i].is_set)
            TESS_TRY(rt->parts.kernels->square_norm(&args, rt->compute));
    }
    runtime_span_end(rt, span);
    const step_record *found = NULL;
    TESS_TRY(read_record(rt, &found));
    TESS_TRY(runtime_exposed(rt, exposed_s));
    c->max[TESS_FLAG_MAX + 1] = (int64_t)(1e9 * *exposed_s);
    c->max[TESS_FLAG_MAX + 2] = -(int64_t)(1e9 * (*exposed_s + rt->agreement_s));
    c->sum = (control_sum){.loss = found->loss,
                           .norm = found->norm,
                           .nonfinite_numel = found->nonfinite_loss_numel,
                           .nonfinite_loss_numel = found->nonfinite_loss_numel};
    c->max[TESS_FLAG_MAX + 3] =
        rt->replay_unit_idx < 0 ? INT64_MIN : -(rt->rank * units + rt->replay_unit_idx);
    c->max[TESS_FLAG_MAX] = INT64_MIN;
    if (found->nonfinite_loss_numel > 0)
        c->max[TESS_FLAG_MAX] = -(rt->rank * units + units - 1);
    for (int i = 0; i < units; i++) {
        c->sum.nonfinite_numel += found->nonfinite_numel[i];
        if (found->nonfinite_numel[i] > 0)
            c->max[TESS_FLAG_MAX] = TESS_MAX(c->max[TESS_FLAG_MAX], -(rt->rank * units + i));
    }
    return TESS_OK;
}

static tess_status agree_on_step(tess_runtime *rt, tess_step_result *result)
{
    control_record c = {0};
    TESS_TRY(measure_gradients(rt, &c, &result->wait_s));
    for (int i = 0; i < rt->request->flag_numel; i++)
        c.max[i] = rt->request->flags[i];
    const double start_s = tess_clock_s();
    TESS_TRY(tess_comm_control(rt->parts.world, (int64_t *)(void *)&c.sum,
                               (int)(sizeof c.sum / sizeof(int64_t)), c.max, TESS_NELEM(c.max)));
    rt->agreement_s = tess_clock_s() - start_s;
    result->wait_s += rt->agreement_s;
    tess_trace_host(rt->trace, "agree on step", start_s, tess_clock_s());
    result->exposed_comm_s = 1e-9 * (double)c.max[TESS_FLAG_MAX + 1];
    result->exposed_comm_least_s = -1e-9 * (double)c.max[TESS_FLAG_MAX + 2];
    const int64_t units = rt->parts.plan->unit_numel;
    result->loss = tess_exact_round(&c.sum.loss) / (double)rt->request->loss_token_numel;
    if (c.sum.nonfinite_loss_numel > 0)
        result->loss = NAN;
    result->grad_norm = sqrt(tess_exact_round(&c.sum.norm));
    result->nonfinite_numel = c.sum.nonfinite_numel;
    result->nonfinite_rank = result->nonfinite_unit = -1;
    if (c.sum.nonfinite_numel > 0) {
        result->nonfinite_rank = (int)(-c.max[TESS_FLAG_MAX] / units);
        result->nonfinite_unit = (int)(-c.max[TESS_FLAG_MAX] % units);
    }
    result->replay_rank = result->replay_unit = -1;
    if (c.max[TESS_FLAG_MAX + 3] != INT64_MIN) {
        result->replay_rank = (int)(-c.max[TESS_FLAG_MAX + 3] / units);
        result->replay_unit = (int)(-c.max[TESS_FLAG_MAX + 3] % units);
    }
    memcpy(result->flags, c.max, sizeof result->flags);
    const int flag_numel = rt->request->flag_numel;
    result->is_vetoed = rt->request->has_veto && flag_numel > 0 && c.max[flag_numel - 1] != 0;
    return TESS_OK;
}

static tess_status clear_record(tess_runtime *rt)
{
    const tess_view record =
        runtime_view(rt, record_of(rt), (int64_t)runtime_record_nbytes(rt), TESS_U8_OPAQUE);
    return tess_device_zero(rt->device, record, rt->compute);
}

void tess_runtime_hold(tess_runtime *rt, const tess_event *event) { rt->held = event; }

/* State may still be on its way into a snapshot. */
static tess_status wait_for_hold(tess_runtime *rt)
{
    const tess_event *held = rt->held;
    rt->held = NULL;
    if (held == NULL)
        return TESS_OK;
    const int span = runtime_span(rt, "wait snapshot");
    TESS_TRY(tess_stream_wait(rt->compute, held));
    runtime_span_end(rt, span);
    return TESS_OK;
}

static tess_status run_step(tess_runtime *rt, tess_step_result *result)
{
    TESS_TRY(clear_record(rt));
    TESS_TRY(run_program(rt, &rt->train, run_train_op));
    TESS_TRY(replay(rt));
    int span = runtime_span(rt, "sum gradients");
    TESS_TRY(gradient_finish(rt));
    TESS_TRY(sum_held(rt));
    runtime_span_end(rt, span);
    TESS_TRY(agree_on_step(rt, result));
    const tess_step_request *request = rt->request;
    if (result->nonfinite_numel > 0 || result->is_vetoed || result->replay_unit >= 0 ||
        (request->wants_update != NULL && !request->wants_update(request->arg, result)))
        return TESS_OK;
    TESS_TRY(wait_for_hold(rt));
    span = runtime_span(rt, "optimizer");
    TESS_TRY(optimizer_update(rt, result));
    runtime_span_end(rt, span);
    return runtime_gather_kept(rt);
}

tess_status tess_runtime_step(tess_runtime *rt, const tess_step_request *request,
                              tess_step_result *result)
{
    TESS_CHECK(request->flag_numel >= 0 && request->flag_numel <= TESS_FLAG_MAX, TESS_E_ARG,
               "step flags: at most %d, found %d", TESS_FLAG_MAX, request->flag_numel);
    TESS_CHECK(request->loss_token_numel > 0, TESS_E_FORMAT,
               "the micro-batches from %lld on hold no token with a loss; every label is masked",
               (long long)request->first_micro_batch_idx);
    memset(result, 0, sizeof *result);
    rt->request = request;
    rt->batch_round_idx = -1;
    rt->compute->tracer = tess_trace_tracer(rt->trace);
    tess_alloc_freeze();
    const tess_status st = run_step(rt, result);
    tess_alloc_thaw();
    rt->is_broken = rt->is_broken || st != TESS_OK;
    rt->compute->tracer = NULL;
    rt->request = NULL;
    return st;
}

/* ---- forward only ---- */

static tess_status run_forward_only(tess_runtime *rt, const tess_sched_op *op)
{
    if (op->kind == TESS_SCHED_GATHER)
        return gather_bucket(rt, op);
    if (rt->batch == NULL && !rt->parts.registry->stage[op->stage_idx].is_joint)
        return TESS_OK;
    tess_stage_call call = runtime_call(rt, op, rt->forward_mode);
    call.loss_sum = &record_of(rt)->loss_sum;
    return rt->parts.ops->forward(rt->parts.model, &call);
}

static tess_status forward_only(tess_runtime *rt, double *loss_sum)
{
    const step_record *record = NULL;
    TESS_TRY(clear_record(rt));
    TESS_TRY(run_program(rt, &rt->eval, run_forward_only));
    TESS_TRY(read_record(rt, &record));
    if (rt->batch != NULL && rt->forward_mode == TESS_CALL_EVAL)
        *loss_sum = record->loss_sum;
    return TESS_OK;
}

tess_status tess_runtime_forward(tess_runtime *rt, tess_call_mode mode, const void *batch,
                                 double *loss_sum)
{
    rt->forward_mode = mode;
    rt->batch = batch;
    tess_alloc_freeze();
    const tess_status st = forward_only(rt, loss_sum);
    tess_alloc_thaw();
    rt->is_broken = rt->is_broken || st != TESS_OK;
    return st;
}
