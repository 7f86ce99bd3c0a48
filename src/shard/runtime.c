#include "shard/runtime.h"

#include <stdatomic.h>

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
    void *gradient = NULL;
    TESS_TRY(tess_alloc_array(rt->train.schedule.op_numel, sizeof *rt->gradient, &gradient));
    rt->gradient = gradient;
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
    tess_free(rt->gradient);
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

tess_status runtime_follow(tess_stream *from, tess_stream *to, tess_event *ev)
{
    if (from == to)
        return TESS_OK;
    TESS_TRY(tess_event_record(ev, from));
    return tess_stream_wait(to, ev);
}

tess_view runtime_whole_slab(tess_runtime *rt, int unit_idx)
{
    const tess_unit_plan *u = &rt->parts.plan->unit[unit_idx];
    return runtime_view(rt, runtime_at(rt, TESS_LIFE_PARAM, u->param_offset_nbytes),
                        u->slab_shard_numel * rt->world,
                        rt->parts.registry->unit[unit_idx].compute_dt);
}

/* In LoRA mode every rank receives all of them here; own rows are in place already. */
tess_status runtime_gather_kept(tess_runtime *rt)
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
        const tess_view full = runtime_whole_slab(rt, i);
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
    return runtime_gather_kept(rt);
}

tess_status tess_runtime_publish(tess_runtime *rt)
{
    return tess_runtime_publish_as(rt, TESS_WEIGHTS_TRAINING);
}
