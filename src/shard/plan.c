#include "shard/plan.h"

#include <stdio.h>
#include <string.h>

#include "core/arith.h"
#include "core/memory.h"
#include "shard/ckpt.h"
#include "shard/plan_exchange.h"
#include "shard/plan_priv.h"

enum { BLOCK = TESS_TRAINABLE_BLOCK_NUMEL, ALIGN = TESS_ARENA_ALIGN_NBYTES };

const char *tess_lifetime_name(tess_lifetime life)
{
    static const char *const name[TESS_LIFE_NUMEL] = {"base",   "slots",     "parameters",
                                                      "state",  "gradients", "activations",
                                                      "mirror", "data",      "staging"};
    return (unsigned)life < TESS_LIFE_NUMEL ? name[life] : "unknown";
}

const char *tess_reduction_name(tess_reduction reduction)
{
    static const char *const name[TESS_REDUCTION_NUMEL] = {"exact", "library, once per step",
                                                           "library, per micro-batch"};
    return (unsigned)reduction < TESS_REDUCTION_NUMEL ? name[reduction] : "unknown";
}

void tess_plan_destroy(tess_plan **inout)
{
    tess_plan *plan = *inout;
    if (plan == NULL)
        return;
    tess_free(plan->unit);
    tess_free(plan->bucket);
    tess_free(plan->bucket_unit);
    tess_free(plan->stage);
    tess_free(plan->buffer);
    tess_free(plan->wire);
    tess_free(plan->grad_buffer_offset_nbytes);
    tess_free(plan->node_first_rank);
    tess_free(plan);
    *inout = NULL;
}

/* ---- units ---- */

static void plan_unit(tess_plan *plan, const tess_unit *unit, tess_unit_plan *u)
{
    const int group_numel = plan->options.gather_group_numel;
    const int world = plan->options.world;
    u->frozen_nbytes = unit->frozen_nbytes;
    u->frozen_shard_nbytes =
        (size_t)tess_ceil_div(tess_ceil_div((int64_t)unit->frozen_nbytes, ALIGN), group_numel) *
        ALIGN;
    u->slab_numel = unit->trainable_numel;
    u->is_set = unit->is_set;
    u->is_held = unit->is_held;
    u->slab_shard_numel = tess_ceil_div(unit->trainable_numel / BLOCK, world) * BLOCK;
    u->base_offset_nbytes = plan->arena_nbytes[TESS_LIFE_BASE];
    plan->arena_nbytes[TESS_LIFE_BASE] += u->frozen_shard_nbytes;
    u->factor_first_idx = plan->factor_numel;
    plan->factor_numel += u->factor_numel;
    u->rest_first_idx = plan->rest_numel;
    plan->rest_numel += u->rest_numel > 0 ? u->slab_shard_numel : 0;
}

/* Places in arrays of state, those that all arrays have first. */
static void place_state(tess_plan *plan, bool is_set, bool is_sent)
{
    for (int i = 0; i < plan->unit_numel; i++) {
        tess_unit_plan *u = &plan->unit[i];
        if (u->is_set != is_set || (!is_set && u->is_held == is_sent))
            continue;
        u->state_first_idx = plan->state_numel;
        plan->state_numel += u->slab_shard_numel;
    }
}

static tess_status plan_units(tess_plan *plan, const tess_registry *reg)
{
    void *array = NULL;
    TESS_TRY(tess_alloc_array(reg->unit_numel, sizeof *plan->unit, &array));
    plan->unit = array;
    plan->unit_numel = reg->unit_numel;
    for (int i = 0; i < reg->unit_numel; i++) {
        tess_unit_plan *u = &plan->unit[i];
        u->factor_numel = tess_state_total_numel(reg, i, TESS_GRAIN_FACTOR);
        u->rest_numel = tess_state_total_numel(reg, i, TESS_GRAIN_REST);
        plan_unit(plan, &reg->unit[i], u);
    }
    place_state(plan, false, true);
    plan->summed_numel = plan->state_numel;
    place_state(plan, false, false);
    plan->learning_numel = plan->state_numel;
    place_state(plan, true, false);
    for (int i = 0; i < reg->param_numel; i++)
        if (reg->param[i].role == TESS_ROLE_TRAINABLE)
            plan->trainable_numel += reg->param[i].numel;
    return plan_buckets(plan, reg);
}

/* ---- buffers ---- */

tess_status plan_add_buffer(tess_plan *plan, const char *name, tess_lifetime life, tess_dtype dt,
                            int64_t numel)
{
    tess_buffer_plan b = {.life = life, .dt = dt, .numel = numel};
    size_t nbytes = 0;
    if (numel == 0)
        return TESS_OK;
    TESS_TRY(tess_nbytes(dt, numel, &nbytes));
    b.nbytes = (size_t)tess_round_up((int64_t)nbytes, ALIGN);
    b.offset_nbytes = plan->arena_nbytes[life];
    snprintf(b.name, sizeof b.name, "%s", name);
    plan->arena_nbytes[life] += b.nbytes;
    plan->buffer[plan->buffer_numel++] = b;
    return TESS_OK;
}

/* Base shards are placed by plan_unit(); here they are only listed. */
static void list_base(tess_plan *plan, const tess_registry *reg)
{
    for (int i = 0; i < plan->unit_numel; i++) {
        const tess_unit_plan *u = &plan->unit[i];
        if (u->frozen_shard_nbytes == 0)
            continue;
        tess_buffer_plan *b = &plan->buffer[plan->buffer_numel++];
        *b = (tess_buffer_plan){.life = TESS_LIFE_BASE,
                                .dt = TESS_U8_OPAQUE,
                                .numel = (int64_t)u->frozen_shard_nbytes,
                                .nbytes = u->frozen_shard_nbytes,
                                .offset_nbytes = u->base_offset_nbytes};
        snprintf(b->name, sizeof b->name, "%.64s/frozen", reg->unit[i].name);
    }
}

/* Compute copies of one dtype after those of the other; every slab is whole blocks, so that all
 * begin at aligned places. */
static tess_status plan_params(tess_plan *plan, const tess_registry *reg, tess_dtype dt,
                               const char *name)
{
    const int rows = plan->options.is_full ? 1 : plan->options.world;
    const size_t first_nbytes = plan->arena_nbytes[TESS_LIFE_PARAM];
    int64_t numel = 0;
    for (int i = 0; i < plan->unit_numel; i++) {
        tess_unit_plan *u = &plan->unit[i];
        if (reg->unit[i].compute_dt != dt)
            continue;
        u->param_offset_nbytes = first_nbytes + (size_t)numel * tess_dtype_block_nbytes(dt);
        numel += u->slab_shard_numel * rows;
    }
    return plan_add_buffer(plan, name, TESS_LIFE_PARAM, dt, numel);
}

static tess_status plan_state(tess_plan *plan, const tess_registry *reg)
{
    char name[96];
    for (int i = 0; i < plan->slot_numel; i++) {
        snprintf(name, sizeof name, "slot.%d", i);
        TESS_TRY(plan_add_buffer(plan, name, TESS_LIFE_SLOT, TESS_U8_OPAQUE,
                                 (int64_t)plan->slot_nbytes));
    }
    TESS_TRY(plan_params(plan, reg, reg->compute_dt, "trainable"));
    if (reg->compute_dt != TESS_F32)
        TESS_TRY(plan_params(plan, reg, TESS_F32, "trainable, f32 units"));
    return plan_state_arrays(plan);
}

static int64_t padded_grad_numel(const tess_plan *plan, int unit_idx)
{
    const tess_unit_plan *u = &plan->unit[unit_idx];
    return tess_unit_grad_numel(u) > 0 ? u->slab_shard_numel * plan->options.world : 0;
}

static tess_status plan_grad_buffers(tess_plan *plan, const tess_schedule *sched)
{
    char name[96];
    void *array = NULL;
    TESS_TRY(tess_alloc_array(sched->grad_buffer_numel, sizeof(size_t), &array));
    plan->grad_buffer_offset_nbytes = array;
    plan->grad_buffer_numel = sched->grad_buffer_numel;
    for (int i = 0; i < sched->grad_buffer_numel; i++) {
        int64_t numel = 0;
        for (int u = 0; u < plan->unit_numel; u++) {
            bool is_dedicated = false;
            for (int j = 0; j < sched->grad_buffer_numel; j++)
                is_dedicated = is_dedicated || sched->grad_unit[j] == u;
            if (sched->grad_unit[i] == u || (sched->grad_unit[i] < 0 && !is_dedicated))
                numel = TESS_MAX(numel, padded_grad_numel(plan, u));
        }
        snprintf(name, sizeof name, "grad.%d", i);
        plan->grad_buffer_offset_nbytes[i] = plan->arena_nbytes[TESS_LIFE_GRAD];
        TESS_TRY(plan_add_buffer(plan, name, TESS_LIFE_GRAD, TESS_F32, numel));
    }
    return TESS_OK;
}

static tess_status plan_gradients(tess_plan *plan, const tess_registry *reg,
                                  const tess_schedule *sched)
{
    const int64_t m = plan->options.micro_batch_numel;
    TESS_TRY(plan_grad_buffers(plan, sched));
    plan->receive_offset_nbytes = plan->arena_nbytes[TESS_LIFE_GRAD];
    TESS_TRY(
        plan_add_buffer(plan, "received", TESS_LIFE_GRAD, TESS_F32, plan_received_numel(plan)));
    plan->level_numel = 1;
    for (int64_t left = m; left > 1 && !plan->options.is_library; left /= 2)
        plan->level_numel++;
    plan->level_offset_nbytes = plan->arena_nbytes[TESS_LIFE_GRAD];
    TESS_TRY(plan_add_buffer(plan, "sum levels", TESS_LIFE_GRAD, TESS_F32,
                             (plan->level_numel - 1) * plan->summed_numel + plan->learning_numel));
    plan->record_offset_nbytes = plan->arena_nbytes[TESS_LIFE_GRAD];
    TESS_TRY(plan_add_buffer(plan, "step record", TESS_LIFE_GRAD, TESS_I64,
                             TESS_STEP_RECORD_NUMEL + plan->unit_numel));
    const tess_optimizer *o = plan->options.optimizer;
    plan->optimizer_work_offset_nbytes = plan->arena_nbytes[TESS_LIFE_GRAD];
    return plan_add_buffer(
        plan, "optimizer work", TESS_LIFE_GRAD, TESS_U8_OPAQUE,
        o->work_nbytes != NULL
            ? (int64_t)o->work_nbytes(reg, plan->options.kernels, plan->options.thread_numel)
            : 0);
}

static tess_status plan_saved(tess_plan *plan, const tess_registry *reg)
{
    size_t shared_nbytes = 0;
    for (int i = 0; i < reg->stage_numel; i++) {
        const tess_stage *s = &reg->stage[i];
        plan->stage[i].is_checkpointed = plan->options.checkpointing == TESS_ON &&
                                         !s->is_fused_loss && !s->is_joint && s->saved_nbytes > 0;
        plan->stage[i].saved_offset_nbytes = plan->arena_nbytes[TESS_LIFE_WORK];
        if (plan->stage[i].is_checkpointed) {
            shared_nbytes = TESS_MAX(shared_nbytes, s->saved_nbytes);
            continue;
        }
        char name[96];
        snprintf(name, sizeof name, "%.64s/saved", s->name);
        TESS_TRY(
            plan_add_buffer(plan, name, TESS_LIFE_WORK, TESS_U8_OPAQUE, (int64_t)s->saved_nbytes));
    }
    plan->shared_saved_offset_nbytes = plan->arena_nbytes[TESS_LIFE_WORK];
    for (int i = 0; i < reg->stage_numel; i++)
        if (plan->stage[i].is_checkpointed)
            plan->stage[i].saved_offset_nbytes = plan->shared_saved_offset_nbytes;
    return plan_add_buffer(plan, "recomputed/saved", TESS_LIFE_WORK, TESS_U8_OPAQUE,
                           (int64_t)shared_nbytes);
}

static tess_status plan_activations(tess_plan *plan, const tess_registry *reg)
{
    void *array = NULL;
    TESS_TRY(tess_alloc_array(reg->stage_numel, sizeof *plan->stage, &array));
    plan->stage = array;
    plan->stage_numel = reg->stage_numel;
    for (int i = 0; i < reg->stage_numel; i++) {
        const tess_stage *s = &reg->stage[i];
        char name[96];
        snprintf(name, sizeof name, "%.64s/output", s->name);
        plan->stage[i].output_offset_nbytes = plan->arena_nbytes[TESS_LIFE_WORK];
        TESS_TRY(
            plan_add_buffer(plan, name, TESS_LIFE_WORK, TESS_U8_OPAQUE, (int64_t)s->output_nbytes));
        plan->work_nbytes = TESS_MAX(plan->work_nbytes, s->work_nbytes);
        plan->d_nbytes = TESS_MAX(plan->d_nbytes, s->output_nbytes);
    }
    TESS_TRY(plan_saved(plan, reg));
    plan->work_offset_nbytes = plan->arena_nbytes[TESS_LIFE_WORK];
    TESS_TRY(plan_add_buffer(plan, "scratch", TESS_LIFE_WORK, TESS_U8_OPAQUE,
                             (int64_t)plan->work_nbytes));
    for (int i = 0; i < 2; i++) {
        plan->d_offset_nbytes[i] = plan->arena_nbytes[TESS_LIFE_WORK];
        TESS_TRY(plan_add_buffer(plan, i == 0 ? "d_output" : "d_input", TESS_LIFE_WORK,
                                 TESS_U8_OPAQUE, (int64_t)plan->d_nbytes));
    }
    /* Loading and export stage tensors in the same memory before and between steps. */
    const size_t load_nbytes = (size_t)tess_round_up((int64_t)plan->options.load_nbytes, ALIGN);
    if (!plan->options.is_device && load_nbytes > plan->arena_nbytes[TESS_LIFE_WORK])
        TESS_TRY(plan_add_buffer(plan, "tensor staging beyond activations", TESS_LIFE_WORK,
                                 TESS_U8_OPAQUE,
                                 (int64_t)(load_nbytes - plan->arena_nbytes[TESS_LIFE_WORK])));
    return TESS_OK;
}

static tess_status plan_rest(tess_plan *plan)
{
    TESS_TRY(plan_add_buffer(plan, "batch and tables", TESS_LIFE_MIRROR, TESS_U8_OPAQUE,
                             (int64_t)plan->options.mirror_nbytes));
    TESS_TRY(plan_add_buffer(plan, "batches and data window", TESS_LIFE_DATA, TESS_U8_OPAQUE,
                             (int64_t)plan->options.data_nbytes));
    return plan_add_buffer(plan, "state snapshot", TESS_LIFE_STAGING, TESS_U8_OPAQUE,
                           plan_snapshot_nbytes(plan));
}

void tess_plan_owned(const tess_plan *plan, int unit_idx, int rank, int64_t *lo_idx,
                     int64_t *hi_idx)
{
    const tess_unit_plan *u = &plan->unit[unit_idx];
    *lo_idx = TESS_MIN(u->slab_shard_numel * rank, u->slab_numel);
    *hi_idx = TESS_MIN(u->slab_shard_numel * (rank + 1), u->slab_numel);
}

/* ---- the whole ---- */

static tess_status check_options(const tess_registry *reg, const tess_plan_options *o)
{
    TESS_CHECK(reg->is_laid_out, TESS_E_STATE, "registry is not laid out");
    TESS_CHECK(o->world >= 1, TESS_E_ARG, "world size %d", o->world);
    TESS_CHECK(o->gather_group_numel >= 1 && o->world % o->gather_group_numel == 0, TESS_E_CONFIG,
               "shard.gather_group: %d does not divide the %d ranks; give a divisor, auto or world",
               o->gather_group_numel, o->world);
    TESS_CHECK(o->micro_batch_numel >= 1 && o->micro_batch_numel <= INT32_MAX, TESS_E_CONFIG,
               "train.micro_batches: expected 1 to %d, found %" PRId64, INT32_MAX,
               o->micro_batch_numel);
    TESS_CHECK(o->prefetch >= 0, TESS_E_CONFIG, "shard.prefetch: %d is negative", o->prefetch);
    TESS_CHECK(o->bucket_nbytes >= 0 || o->bucket_nbytes == TESS_BUCKET_AUTO, TESS_E_CONFIG,
               "shard.bucket_bytes: %" PRId64 " is negative", o->bucket_nbytes);
    TESS_CHECK(
        !o->is_device || o->exchange != TESS_EXCHANGE_BY_NODE, TESS_E_CONFIG,
        "shard.exchange: by-node is for ranks on CPUs, and kernels run on a device, where NCCL "
        "groups messages by node itself; set it to auto or direct");
    return TESS_OK;
}

static double slab_shard_nbytes(const tess_plan *plan, const tess_registry *reg, int unit_idx)
{
    return (double)plan->unit[unit_idx].slab_shard_numel *
           (double)tess_dtype_block_nbytes(reg->unit[unit_idx].compute_dt);
}

/* Gathers of a schedule that runs `turn_numel` times in a step. */
static void count_gathers(tess_plan *plan, const tess_schedule *sched, int turn_numel)
{
    const double group = plan->options.gather_group_numel, world = plan->options.world;
    plan->gather_numel_per_step += turn_numel * sched->gather_numel;
    for (int i = 0; i < sched->op_numel; i++) {
        if (sched->op[i].kind != TESS_SCHED_GATHER)
            continue;
        tess_bucket_plan *b = &plan->bucket[sched->op[i].bucket_idx];
        b->gather_numel += turn_numel;
        const double slabs = turn_numel * (double)b->slab_shard_nbytes * (world - 1);
        plan->gather_nbytes_per_step +=
            turn_numel * (double)b->frozen_shard_nbytes * (group - 1) + slabs;
        plan->gather_slab_nbytes_per_step += slabs;
    }
}

/* Sums of the trainer go as control records (tess_comm_control): up a tree of fan-out 32 and down
 * again, so that most is received by rank 0, of every child, or by the first rank below it, of its
 * children and, once, of its parent. */
static double control_nbytes(int64_t numel, int64_t world)
{
    const int64_t fan_out = 32;
    const int64_t of_root = TESS_MIN(world - 1, fan_out);
    const int64_t of_first = TESS_MAX(TESS_MIN(world - 1 - fan_out, fan_out), 0) + (world > 1);
    return 8.0 * (double)numel * (double)TESS_MAX(of_root, of_first);
}

static tess_status count_ahead(tess_plan *plan, const tess_registry *reg)
{
    tess_schedule sched = {0};
    if (plan->options.ahead_sum_numel == 0)
        return TESS_OK;
    TESS_TRY(tess_plan_schedule(plan, reg, 0, true, &sched));
    count_gathers(plan, &sched, plan->round_numel);
    tess_schedule_fini(&sched);
    plan->ahead_nbytes_per_step =
        control_nbytes(plan->options.ahead_sum_numel, plan->options.world);
    return TESS_OK;
}

static void count_traffic(tess_plan *plan, const tess_registry *reg, const tess_schedule *sched)
{
    count_gathers(plan, sched, 1);
    for (int i = 0; i < plan->unit_numel && !plan->options.is_full; i++)
        plan->slab_nbytes_per_step +=
            slab_shard_nbytes(plan, reg, i) * (double)(plan->options.world - 1);
}

/* Rank 0 has a micro-batch in every round. A library reduction moves whole padded rows. */
static double grad_nbytes(const tess_plan *plan, tess_reduction kind)
{
    double numel = 0, passed = 0;
    for (int i = 0; i < plan->unit_numel; i++) {
        const tess_unit_plan *u = &plan->unit[i];
        int64_t lo = 0, hi = 0;
        if (tess_unit_grad_numel(u) == 0)
            continue;
        tess_plan_owned(plan, i, 0, &lo, &hi);
        numel += kind == TESS_REDUCTION_EXACT
                     ? (double)(u->slab_numel - (hi - lo))
                     : (double)u->slab_shard_numel * (double)(plan->options.world - 1);
        if (kind == TESS_REDUCTION_EXACT)
            passed += tess_plan_passed_numel(plan, i, 0);
    }
    return 4 * (passed + numel * (kind == TESS_REDUCTION_LIBRARY_ONCE ? 1 : plan->round_numel));
}

static tess_status build_parts(tess_plan *plan, const tess_registry *reg)
{
    void *array = NULL;
    tess_schedule sched = {0};
    const int64_t buffer_room = 3 * (int64_t)reg->unit_numel + 2 * (int64_t)reg->stage_numel + 64;
    plan->round_numel = (int)tess_ceil_div(plan->options.micro_batch_numel, plan->options.world);
    TESS_TRY(plan_units(plan, reg));
    TESS_TRY(tess_alloc_array(buffer_room + plan->slot_numel, sizeof *plan->buffer, &array));
    plan->buffer = array;
    plan->is_library_once = plan->options.is_library && plan->options.library_once == TESS_ON;
    plan->reduction = !plan->options.is_library ? TESS_REDUCTION_EXACT
                      : plan->is_library_once || plan->round_numel == 1
                          ? TESS_REDUCTION_LIBRARY_ONCE
                          : TESS_REDUCTION_LIBRARY_EACH;
    plan_exchanges(plan);
    TESS_TRY(plan_wires(plan, reg));
    list_base(plan, reg);
    TESS_TRY(plan_state(plan, reg));
    const tess_sched_spec sizing = {.round_numel = 1, .active_round_numel = 1};
    TESS_TRY(plan_make_schedule(plan, reg, 0, sizing, &sched));
    tess_status st = plan_gradients(plan, reg, &sched);
    tess_schedule_fini(&sched);
    if (st == TESS_OK)
        st = plan_activations(plan, reg);
    if (st == TESS_OK)
        st = plan_rest(plan);
    if (st != TESS_OK)
        return st;
    plan->total_nbytes = plan->options.outside_nbytes;
    const tess_optimizer *o = plan->options.optimizer;
    if (plan->options.is_device && o->host_nbytes != NULL)
        plan->optimizer_host_nbytes = o->host_nbytes(reg);
    if (plan->options.is_device)
        plan->host_nbytes =
            plan->options.load_nbytes + TESS_CKPT_CHUNK_NBYTES + plan->optimizer_host_nbytes;
    *(plan->options.is_device ? &plan->host_nbytes : &plan->total_nbytes) +=
        plan->options.sample_nbytes;
    for (int i = 0; i < TESS_LIFE_NUMEL; i++) {
        if (plan->options.is_device && tess_lifetime_is_host((tess_lifetime)i))
            plan->host_nbytes += plan->arena_nbytes[i];
        else
            plan->total_nbytes += plan->arena_nbytes[i];
    }
    return TESS_OK;
}

tess_status tess_plan_build(const tess_registry *reg, const tess_plan_options *options,
                            tess_plan **out)
{
    TESS_TRY(check_options(reg, options));
    void *object = NULL;
    TESS_TRY(tess_alloc(sizeof(tess_plan), &object));
    tess_plan *plan = object;
    plan->options = *options;
    if (plan->options.optimizer == NULL)
        plan->options.optimizer = tess_optimizer_get(TESS_OPTIMIZER_ADAMW);
    if (plan->options.kernels == NULL)
        plan->options.kernels = &tess_kernels_cpu;
    plan->options.thread_numel = TESS_MAX(plan->options.thread_numel, 1);
    tess_status st = plan_keep_nodes(plan);
    if (st == TESS_OK)
        st = build_parts(plan, reg);
    if (st != TESS_OK) {
        tess_plan_destroy(&plan);
        return st;
    }
    *out = plan;
    return TESS_OK;
}

/* The same plan with another reduction, for comparison. */
static tess_status weigh_reduction(tess_plan *plan, const tess_registry *reg, tess_reduction kind)
{
    tess_plan_options o = plan->options;
    tess_plan *other = NULL;
    const bool is_once = kind == TESS_REDUCTION_LIBRARY_ONCE && plan->round_numel > 1;
    o.is_library = kind != TESS_REDUCTION_EXACT;
    o.library_once = is_once ? TESS_ON : TESS_OFF;
    TESS_TRY(tess_plan_build(reg, &o, &other));
    plan->reduction_cost[kind] = (tess_reduction_cost){
        .total_nbytes = other->total_nbytes, .grad_nbytes_per_step = grad_nbytes(other, kind)};
    tess_plan_destroy(&other);
    return TESS_OK;
}

/* Traffic is counted once, on the plan that was chosen: it needs the schedule of a whole step. */
static tess_status finish_plan(tess_plan *plan, const tess_registry *reg)
{
    tess_schedule sched = {0};
    TESS_TRY(tess_plan_schedule(plan, reg, 0, false, &sched));
    count_traffic(plan, reg, &sched);
    tess_schedule_fini(&sched);
    TESS_TRY(count_ahead(plan, reg));
    for (int kind = 0; kind < TESS_REDUCTION_NUMEL; kind++)
        TESS_TRY(weigh_reduction(plan, reg, (tess_reduction)kind));
    plan->grad_nbytes_per_step = grad_nbytes(plan, plan->reduction);
    return TESS_OK;
}

static bool next_group(int world, int *group_numel)
{
    for (int g = *group_numel + 1; g <= world; g++) {
        if (world % g == 0) {
            *group_numel = g;
            return true;
        }
    }
    return false;
}

/* One candidate; keeps it when it fits, remembers the smallest total otherwise. */
static tess_status try_exchange(const tess_registry *reg, const tess_plan_options *o,
                                tess_plan **fitting, size_t *smallest_nbytes, bool *has_relays)
{
    tess_plan *plan = NULL;
    TESS_TRY(tess_plan_build(reg, o, &plan));
    *has_relays = tess_plan_by_node_numel(plan) > 0;
    *smallest_nbytes = TESS_MIN(*smallest_nbytes, plan->total_nbytes);
    if (o->memory_limit_nbytes == 0 || plan->total_nbytes <= o->memory_limit_nbytes)
        *fitting = plan;
    else
        tess_plan_destroy(&plan);
    return TESS_OK;
}

/* Pieces by node where that is cheaper; straight where only what relays take in does not fit. */
static tess_status try_candidate(const tess_registry *reg, const tess_plan_options *options,
                                 tess_plan **fitting, size_t *smallest_nbytes)
{
    tess_plan_options o = *options;
    bool has_relays = false;
    TESS_TRY(try_exchange(reg, &o, fitting, smallest_nbytes, &has_relays));
    if (*fitting != NULL || !has_relays || o.exchange != TESS_EXCHANGE_AUTO)
        return TESS_OK;
    o.exchange = TESS_EXCHANGE_DIRECT;
    return try_exchange(reg, &o, fitting, smallest_nbytes, &has_relays);
}

/* A local sum needs a gradient buffer for every unit; with one round there is nothing to add up. */
static bool is_offered(const tess_plan_options *o, tess_choice once)
{
    if (!o->is_library)
        return once == TESS_OFF;
    if (o->library_once != TESS_AUTO)
        return once == o->library_once;
    return once == TESS_OFF || o->micro_batch_numel > o->world;
}

static tess_status try_reductions(const tess_registry *reg, const tess_plan_options *options,
                                  tess_plan **fitting, size_t *smallest_nbytes)
{
    static const tess_choice order[2] = {TESS_ON, TESS_OFF};
    for (int i = 0; i < 2 && *fitting == NULL; i++) {
        tess_plan_options o = *options;
        o.library_once = order[i];
        if (is_offered(options, order[i]))
            TESS_TRY(try_candidate(reg, &o, fitting, smallest_nbytes));
    }
    return TESS_OK;
}

/* Buckets that their link wants, then units alone. */
static tess_status try_buckets(const tess_registry *reg, const tess_plan_options *options,
                               tess_plan **fitting, size_t *smallest_nbytes)
{
    tess_plan_options o = *options;
    TESS_TRY(try_reductions(reg, &o, fitting, smallest_nbytes));
    if (*fitting != NULL || options->bucket_nbytes != TESS_BUCKET_AUTO)
        return TESS_OK;
    o.bucket_nbytes = 0;
    return try_reductions(reg, &o, fitting, smallest_nbytes);
}

/*
 * [Note: order of choices] Recomputation costs a third of the compute, a gather hides behind it:
 * first all gather groups without recomputation, smallest first, then with it. Within a group,
 * keeping units comes before resharding, buckets before units alone, and one library reduction per
 * step before one per micro-batch.
 */
static tess_status search(const tess_registry *reg, const tess_plan_options *options,
                          tess_plan **fitting, size_t *smallest_nbytes)
{
    tess_plan_options o = *options;
    for (int ck = TESS_OFF; ck <= TESS_ON && *fitting == NULL; ck++) {
        if (options->checkpointing != TESS_AUTO && (int)options->checkpointing != ck)
            continue;
        int group = options->gather_group_numel > 0 ? options->gather_group_numel : 1;
        do {
            for (int rs = TESS_OFF; rs <= TESS_ON && *fitting == NULL; rs++) {
                if (options->reshard != TESS_AUTO && (int)options->reshard != rs)
                    continue;
                o.checkpointing = (tess_choice)ck;
                o.gather_group_numel = group;
                o.reshard = (tess_choice)rs;
                TESS_TRY(try_buckets(reg, &o, fitting, smallest_nbytes));
            }
        } while (*fitting == NULL && options->gather_group_numel == 0 &&
                 next_group(o.world, &group));
    }
    return TESS_OK;
}

typedef struct remedy {
    char text[112];
    size_t nbytes;
} remedy;

enum { REMEDY_MAX = 12, REMEDY_SHOWN_NUMEL = 3 };

typedef struct remedy_list {
    const tess_registry *reg;
    remedy item[REMEDY_MAX];
    int numel;
} remedy_list;

static tess_status add_remedy(remedy_list *list, const tess_plan_options *o, const char *text)
{
    tess_plan *fitting = NULL;
    size_t smallest = SIZE_MAX;
    remedy *r = &list->item[list->numel];
    TESS_TRY(search(list->reg, o, &fitting, &smallest));
    tess_plan_destroy(&fitting);
    snprintf(r->text, sizeof r->text, "%s", text);
    r->nbytes = smallest;
    list->numel++;
    return TESS_OK;
}

/* What could make it fit, cheapest for the user first: choices of the plan, then more ranks. */
static tess_status list_remedies(remedy_list *list, const tess_plan_options *options)
{
    tess_plan_options o = *options;
    if (options->kept_nbytes > 0) {
        tess_plan_options none = *options;
        none.outside_nbytes -= options->kept_nbytes;
        none.library_nbytes -= options->kept_nbytes;
        none.kept_nbytes = 0;
        none.kept_share = 0.0;
        TESS_TRY(add_remedy(list, &none, "compute.decoded_memory=0"));
    }
    if (options->bucket_nbytes > 0) {
        o.bucket_nbytes = TESS_BUCKET_AUTO;
        TESS_TRY(add_remedy(list, &o, "shard.bucket_bytes=auto"));
    }
    o.gather_group_numel = 0;
    o.reshard = TESS_AUTO;
    const bool is_held = options->gather_group_numel > 0 || options->reshard == TESS_OFF;
    if (is_held)
        TESS_TRY(add_remedy(list, &o, "shard.gather_group=auto shard.reshard_after_forward=auto"));
    if (options->checkpointing == TESS_OFF) {
        tess_plan_options on = *options;
        on.checkpointing = o.checkpointing = TESS_ON;
        TESS_TRY(add_remedy(list, &on, "compute.activation_checkpointing=on"));
        if (is_held)
            TESS_TRY(add_remedy(list, &o,
                                "shard.gather_group=auto shard.reshard_after_forward=auto "
                                "compute.activation_checkpointing=on"));
    }
    for (int factor = 2; factor <= 256 && list->numel < REMEDY_MAX; factor *= 2) {
        tess_plan_options more = *options;
        char text[32];
        if (options->world > INT32_MAX / factor)
            break;
        more.world *= factor;
        snprintf(text, sizeof text, "%d ranks", more.world);
        TESS_TRY(add_remedy(list, &more, text));
    }
    return TESS_OK;
}

/* Changes that fit come first; where fewer than three do, others show how far they get. */
static tess_status refuse(const tess_registry *reg, const tess_plan_options *options,
                          size_t smallest_nbytes)
{
    remedy_list list = {.reg = reg};
    char text[512] = "";
    size_t used = 0;
    int shown_numel = 0, fitting_numel = 0;
    TESS_TRY(list_remedies(&list, options));
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < list.numel && shown_numel < REMEDY_SHOWN_NUMEL; i++) {
            const remedy *r = &list.item[i];
            const bool fits = r->nbytes <= options->memory_limit_nbytes;
            if (fits != (pass == 0))
                continue;
            fitting_numel += fits;
            used += (size_t)snprintf(text + used, sizeof text - used, "%s%s (%zu MiB%s)",
                                     shown_numel++ > 0 ? "; " : "", r->text, r->nbytes >> 20,
                                     fits ? ", fits" : "");
        }
    return TESS_FAIL(TESS_E_FIT,
                     "plan needs %zu MiB per rank, compute.memory_limit is %zu MiB; cheapest "
                     "changes: %s%s; or a %s",
                     smallest_nbytes >> 20, options->memory_limit_nbytes >> 20, text,
                     fitting_numel > 0 ? "" : ", none of which is enough alone",
                     options->smaller != NULL
                         ? options->smaller
                         : "shorter data.sequence_length or smaller train.micro_batch");
}

tess_status tess_plan_create(const tess_registry *reg, const tess_plan_options *options,
                             tess_plan **out)
{
    tess_plan *plan = NULL;
    size_t smallest_nbytes = SIZE_MAX;
    TESS_TRY(search(reg, options, &plan, &smallest_nbytes));
    if (plan == NULL)
        return refuse(reg, options, smallest_nbytes);
    const tess_status st = finish_plan(plan, reg);
    if (st != TESS_OK) {
        tess_plan_destroy(&plan);
        return st;
    }
    *out = plan;
    return TESS_OK;
}
