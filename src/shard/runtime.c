#include "shard/runtime.h"

#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "core/clock.h"
#include "core/memory.h"
#include "shard/runtime_priv.h"

/* ---- creation ---- */

char *runtime_at(tess_runtime *rt, tess_lifetime life, size_t offset_nbytes)
{
    tess_view v = {0};
    const size_t nbytes = tess_arena_nbytes(rt->arena[life]);
    const size_t left = offset_nbytes <= nbytes ? nbytes - offset_nbytes : 0;
    const size_t aligned = offset_nbytes / TESS_ARENA_ALIGN_NBYTES * TESS_ARENA_ALIGN_NBYTES;
    if (tess_arena_view(rt->arena[life], aligned, (int64_t)left, TESS_U8_OPAQUE, &v) != TESS_OK)
        return NULL;
    return (char *)v.data + (offset_nbytes - aligned);
}

int64_t runtime_owned_numel(const tess_runtime *rt, int unit_idx)
{
    int64_t lo = 0, hi = 0;
    tess_plan_owned(rt->parts.plan, unit_idx, rt->rank, &lo, &hi);
    return hi - lo;
}

tess_view runtime_view(const tess_runtime *rt, const void *data, int64_t numel, tess_dtype dt)
{
    /* Views carry no const: who may write is the reader's business. */
    return (tess_view){(void *)(uintptr_t)data, numel, dt, rt->device->space};
}

static tess_status create_program(tess_runtime *rt, bool is_eval, program *p)
{
    void *array = NULL;
    TESS_TRY(
        tess_plan_schedule(rt->parts.plan, rt->parts.registry, rt->rank, is_eval, &p->schedule));
    TESS_TRY(tess_alloc_array(p->schedule.op_numel, sizeof *p->event, &array));
    p->event = array;
    for (int i = 0; i < p->schedule.op_numel; i++)
        TESS_TRY(tess_event_init(&p->event[i], rt->lane[p->schedule.op[i].lane]));
    return TESS_OK;
}

static void destroy_program(tess_runtime *rt, program *p)
{
    for (int i = 0; p->event != NULL && i < p->schedule.op_numel; i++)
        tess_event_fini(&p->event[i], rt->lane[p->schedule.op[i].lane]);
    tess_free(p->event);
    tess_schedule_fini(&p->schedule);
}

static tess_status create_arenas(tess_runtime *rt)
{
    const tess_plan *plan = rt->parts.plan;
    for (int i = 0; i < TESS_LIFE_NUMEL; i++) {
        const tess_lifetime life = (tess_lifetime)i;
        /* The snapshot is the checkpoint store's: it allocates what the plan lists. */
        const size_t nbytes = life == TESS_LIFE_STAGING ? 0 : plan->arena_nbytes[i];
        const tess_space space = tess_lifetime_is_host(life) ? TESS_HOST : rt->device->space;
        TESS_TRY(tess_device_arena_create(rt->device, space, tess_lifetime_name(life), nbytes,
                                          &rt->arena[i]));
    }
    return runtime_host_create(rt);
}

static tess_status create_events(tess_runtime *rt)
{
    const tess_runtime_parts *parts = &rt->parts;
    TESS_TRY(tess_event_init(&rt->updated, rt->compute));
    TESS_TRY(tess_event_init(&rt->published, tess_comm_gather_stream(parts->world)));
    TESS_TRY(tess_event_init(&rt->drained[0], rt->lane[TESS_LANE_GATHER]));
    TESS_TRY(tess_event_init(&rt->drained[1], rt->lane[TESS_LANE_REDUCE]));
    for (int i = 0; i < PIECE_LIST_NUMEL; i++)
        TESS_TRY(tess_event_init(&rt->piece_sent[i], rt->lane[TESS_LANE_REDUCE]));
    TESS_TRY(tess_event_init(&rt->joined[0], rt->lane[TESS_LANE_GATHER]));
    return tess_event_init(&rt->joined[1], tess_comm_gather_stream(parts->world));
}

static void destroy_events(tess_runtime *rt)
{
    if (rt->lane[TESS_LANE_GATHER] == NULL)
        return;
    tess_event_fini(&rt->updated, rt->compute);
    tess_event_fini(&rt->published, tess_comm_gather_stream(rt->parts.world));
    tess_event_fini(&rt->drained[0], rt->lane[TESS_LANE_GATHER]);
    tess_event_fini(&rt->drained[1], rt->lane[TESS_LANE_REDUCE]);
    for (int i = 0; i < PIECE_LIST_NUMEL; i++)
        tess_event_fini(&rt->piece_sent[i], rt->lane[TESS_LANE_REDUCE]);
    tess_event_fini(&rt->joined[0], rt->lane[TESS_LANE_GATHER]);
    tess_event_fini(&rt->joined[1], tess_comm_gather_stream(rt->parts.world));
}

/* What the host's pages are from the start: moments begin at zero, and padding travels. */
static tess_status clear_memory(tess_runtime *rt)
{
    static const tess_lifetime life[] = {TESS_LIFE_BASE, TESS_LIFE_PARAM, TESS_LIFE_STATE,
                                         TESS_LIFE_GRAD};
    for (int i = 0; i < TESS_NELEM(life) && rt->device->space != TESS_HOST; i++)
        TESS_TRY(tess_device_zero(rt->device, tess_runtime_arena(rt, life[i]), rt->compute));
    return tess_stream_finish(rt->compute);
}

/* The family's tables, to the front of the mirror; a host reads its own. */
static tess_status place_constants(tess_runtime *rt)
{
    const tess_stage_ops *ops = rt->parts.ops;
    if (rt->device->space == TESS_HOST || ops->constant_nbytes == NULL)
        return TESS_OK;
    const tess_view place =
        runtime_view(rt, runtime_at(rt, TESS_LIFE_MIRROR, 0),
                     (int64_t)ops->constant_nbytes(rt->parts.model), TESS_U8_OPAQUE);
    TESS_TRY(ops->place_constants(rt->parts.model, rt->device, place, rt->compute));
    return tess_stream_finish(rt->compute);
}

static tess_status create_inside(tess_runtime *rt)
{
    const tess_runtime_parts *parts = &rt->parts;
    TESS_CHECK(parts->plan->options.world == rt->world, TESS_E_ARG,
               "plan for %d ranks, launch has %d", parts->plan->options.world, rt->world);
    TESS_CHECK(parts->plan->options.gather_group_numel == 1 ||
                   (parts->group != NULL &&
                    tess_comm_world(parts->group) == parts->plan->options.gather_group_numel),
               TESS_E_ARG, "plan has gather groups of %d", parts->plan->options.gather_group_numel);
    TESS_CHECK(parts->plan->options.is_device == (rt->device->space != TESS_HOST), TESS_E_ARG,
               "plan for memory of a %s, kernels run on %s",
               parts->plan->options.is_device ? "device" : "host", rt->device->name);
    TESS_TRY(create_arenas(rt));
    TESS_TRY(tess_device_stream_create(rt->device, "compute", false, &rt->compute));
    rt->lane[TESS_LANE_COMPUTE] = rt->compute;
    rt->lane[TESS_LANE_GATHER] =
        tess_comm_gather_stream(parts->group != NULL ? parts->group : parts->world);
    rt->lane[TESS_LANE_REDUCE] = tess_comm_reduce_stream(parts->world);
    for (int i = 0; i < PIECE_LIST_NUMEL; i++) {
        void *array = NULL;
        const int64_t piece_numel = gradient_piece_numel(rt);
        TESS_TRY(tess_alloc_array(piece_numel, sizeof(tess_piece), &array));
        rt->pieces[i] = array;
    }
    TESS_TRY(gather_create(rt));
    TESS_TRY(create_events(rt));
    TESS_TRY(create_program(rt, false, &rt->train));
    TESS_TRY(create_program(rt, true, &rt->eval));
    TESS_TRY(clear_memory(rt));
    TESS_TRY(runtime_timing_create(rt));
    TESS_TRY(place_constants(rt));
    return optimizer_create(rt);
}

tess_status tess_runtime_create(const tess_runtime_parts *parts, tess_runtime **out)
{
    void *object = NULL;
    TESS_TRY(tess_alloc(sizeof(tess_runtime), &object));
    tess_runtime *rt = object;
    rt->parts = *parts;
    rt->rank = tess_comm_rank(parts->world);
    rt->world = tess_comm_world(parts->world);
    tess_host_device_init(&rt->host, parts->pool);
    rt->device = parts->device != NULL ? parts->device : &rt->host.base;
    const tess_status st = create_inside(rt);
    if (st != TESS_OK) {
        tess_runtime_destroy(&rt);
        return st;
    }
    *out = rt;
    return TESS_OK;
}

/*
 * [Note: broken runtime] What a step that failed has posted still refers to arenas and lists. A
 * message cannot be taken back: MPI does not cancel sends, nor receives that have met theirs, and
 * moves their bytes in whatever call comes next, also after the communicator is gone. Kernels and
 * collectives of a device are no better. So the whole runtime stays as it is until the process
 * ends, which such a failure is the reason for; here it stays reachable, so that it is no leak.
 */
static _Atomic(tess_runtime *) left_behind;

static void leave_behind(tess_runtime *rt) { rt->left_before = atomic_exchange(&left_behind, rt); }

/* Whether nothing uses the memory any more. What failed may never end, and is not waited for. */
static bool is_drained(tess_runtime *rt)
{
    const bool was_well = tess_error_status() == TESS_OK;
    bool is_done = !rt->is_broken;
    for (int i = 0; i < TESS_LANE_NUMEL && is_done; i++)
        is_done = rt->lane[i] == NULL || tess_stream_finish(rt->lane[i]) == TESS_OK;
    if (is_done && rt->lane[TESS_LANE_GATHER] != NULL)
        is_done = tess_stream_finish(tess_comm_gather_stream(rt->parts.world)) == TESS_OK;
    if (was_well)
        tess_error_clear();
    return is_done;
}

void tess_runtime_destroy(tess_runtime **inout)
{
    tess_runtime *rt = *inout;
    if (rt == NULL)
        return;
    *inout = NULL;
    if (!is_drained(rt)) {
        leave_behind(rt);
        return;
    }
    destroy_program(rt, &rt->train);
    destroy_program(rt, &rt->eval);
    destroy_events(rt);
    runtime_timing_destroy(rt);
    for (int i = 0; i < PIECE_LIST_NUMEL; i++)
        tess_free(rt->pieces[i]);
    gather_destroy(rt);
    tess_free(rt->segment);
    tess_device_stream_destroy(rt->device, &rt->compute);
    tess_arena_destroy(&rt->record_copy);
    tess_arena_destroy(&rt->host_work);
    for (int i = TESS_LIFE_NUMEL - 1; i >= 0; i--)
        tess_arena_destroy(&rt->arena[i]);
    tess_free(rt);
}

/* ---- views ---- */

tess_device *tess_runtime_device(tess_runtime *rt) { return rt->device; }

tess_stream *tess_runtime_stream(tess_runtime *rt) { return rt->compute; }

tess_status tess_runtime_copy(tess_runtime *rt, tess_view dst, tess_view src)
{
    TESS_TRY(tess_device_copy(rt->device, dst, src, rt->compute));
    return tess_stream_finish(rt->compute);
}

tess_status tess_runtime_host_work(tess_runtime *rt, tess_view *out)
{
    if (rt->device->space == TESS_HOST) {
        *out = tess_runtime_arena(rt, TESS_LIFE_WORK);
        return TESS_OK;
    }
    const size_t nbytes = rt->parts.plan->options.load_nbytes;
    if (rt->host_work == NULL)
        TESS_TRY(tess_device_arena_create(rt->device, TESS_HOST, "load staging", nbytes,
                                          &rt->host_work));
    return tess_arena_view(rt->host_work, 0, (int64_t)nbytes, TESS_U8_OPAQUE, out);
}

tess_view tess_runtime_frozen_shard(tess_runtime *rt, int unit_idx)
{
    const tess_unit_plan *u = &rt->parts.plan->unit[unit_idx];
    return runtime_view(rt, runtime_at(rt, TESS_LIFE_BASE, u->base_offset_nbytes),
                        (int64_t)u->frozen_shard_nbytes, TESS_U8_OPAQUE);
}

tess_view tess_runtime_state(tess_runtime *rt, int unit_idx, int array_idx)
{
    const tess_plan *plan = rt->parts.plan;
    const tess_dtype dt = plan->state[array_idx].array.dt;
    int64_t lo = 0, hi = 0;
    tess_plan_state_owned(plan, unit_idx, array_idx, rt->rank, &lo, &hi);
    return runtime_view(
        rt, optimizer_array(rt, array_idx, optimizer_first(rt, unit_idx, array_idx)), hi - lo, dt);
}

tess_view tess_runtime_param_shard(tess_runtime *rt, int unit_idx)
{
    const tess_plan *plan = rt->parts.plan;
    const tess_unit_plan *u = &plan->unit[unit_idx];
    const tess_dtype dt = rt->parts.registry->unit[unit_idx].compute_dt;
    const int64_t row = plan->options.is_full ? 0 : u->slab_shard_numel * rt->rank;
    const size_t offset = u->param_offset_nbytes + (size_t)row * tess_dtype_block_nbytes(dt);
    return runtime_view(rt, runtime_at(rt, TESS_LIFE_PARAM, offset),
                        runtime_owned_numel(rt, unit_idx), dt);
}

tess_view tess_runtime_arena(tess_runtime *rt, tess_lifetime life)
{
    tess_view v = {0};
    const int64_t nbytes = (int64_t)tess_arena_nbytes(rt->arena[life]);
    return tess_arena_view(rt->arena[life], 0, nbytes, TESS_U8_OPAQUE, &v) == TESS_OK
               ? v
               : tess_view_host(NULL, 0, TESS_U8_OPAQUE);
}

tess_view tess_runtime_gradient(tess_runtime *rt, int unit_idx)
{
    const bool learns = !rt->parts.plan->unit[unit_idx].is_set;
    return runtime_view(rt, gradient_sum(rt, unit_idx),
                        learns ? runtime_owned_numel(rt, unit_idx) : 0, TESS_F32);
}

/* ---- parameters ---- */

static tess_view whole_slab(tess_runtime *rt, int unit_idx)
{
    const tess_unit_plan *u = &rt->parts.plan->unit[unit_idx];
    return runtime_view(rt, runtime_at(rt, TESS_LIFE_PARAM, u->param_offset_nbytes),
                        u->slab_shard_numel * rt->world,
                        rt->parts.registry->unit[unit_idx].compute_dt);
}

/* Slabs travel, now or in the next step, as the compute stream leaves them. In LoRA mode every rank
 * receives all of them here; own rows are in place already. */
static tess_status gather_kept(tess_runtime *rt)
{
    tess_tracer *tracer = tess_trace_tracer(rt->trace);
    const tess_plan *plan = rt->parts.plan;
    tess_stream *stream = tess_comm_gather_stream(rt->parts.world);
    TESS_TRY(runtime_follow(rt->compute, stream, &rt->updated));
    if (plan->options.is_full)
        return TESS_OK;
    for (int i = 0; i < plan->unit_numel; i++) {
        const tess_unit_plan *u = &plan->unit[i];
        if (u->slab_wire_idx < 0)
            continue;
        const tess_view full = whole_slab(rt, i);
        const tess_view shard =
            tess_view_slice(full, u->slab_shard_numel * rt->rank, u->slab_shard_numel);
        const int span =
            tess_trace_begin(tracer, TESS_TRACE_PUBLISH, rt->parts.registry->unit[i].name,
                             (int64_t)tess_view_nbytes(shard) * (rt->world - 1), stream);
        TESS_TRY(tess_comm_all_gather(rt->parts.world, &plan->wire[u->slab_wire_idx], shard, full,
                                      stream));
        tess_trace_end(tracer, span, stream);
    }
    TESS_TRY(tess_event_record(&rt->published, stream));
    return runtime_wait(rt, &rt->published, TESS_LANE_GATHER);
}

tess_status tess_runtime_publish_as(tess_runtime *rt, tess_weights weights)
{
    for (int i = 0; i < rt->parts.plan->unit_numel; i++)
        TESS_TRY(optimizer_copy(rt, i, weights));
    return gather_kept(rt);
}

tess_status tess_runtime_publish(tess_runtime *rt)
{
    return tess_runtime_publish_as(rt, TESS_WEIGHTS_TRAINING);
}

/* ---- operations ---- */

tess_status runtime_follow(tess_stream *from, tess_stream *to, tess_event *ev)
{
    if (from == to)
        return TESS_OK;
    TESS_TRY(tess_event_record(ev, from));
    return tess_stream_wait(to, ev);
}

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
                              : whole_slab(rt, op->unit_idx).data;
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

static tess_status run_train_op(tess_runtime *rt, const tess_sched_op *op)
{
    if (op->kind == TESS_SCHED_FORWARD || op->kind == TESS_SCHED_BACKWARD)
        TESS_TRY(load_batch(rt, op->round_idx));
    return runtime_traced_op(rt, op, run_op);
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
     * and minus all in which the rank stood still */
    int64_t max[TESS_FLAG_MAX + 3];
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
    memcpy(result->flags, c.max, sizeof result->flags);
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
    int span = runtime_span(rt, "sum gradients");
    TESS_TRY(gradient_finish(rt));
    TESS_TRY(sum_held(rt));
    runtime_span_end(rt, span);
    TESS_TRY(agree_on_step(rt, result));
    if (result->nonfinite_numel > 0)
        return TESS_OK;
    TESS_TRY(wait_for_hold(rt));
    span = runtime_span(rt, "optimizer");
    TESS_TRY(optimizer_update(rt, result));
    runtime_span_end(rt, span);
    return gather_kept(rt);
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
