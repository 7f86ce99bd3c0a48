/* The two-matrix model gives the same bits at every world size, group, bucket, prefetch and reshard
 * choice. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/digest.h"
#include "core/memory.h"
#include "shard/loader.h"
#include "shard/runtime.h"
#include "support/rank_test.h"
#include "support/two_matrices.h"

enum { STEP_NUMEL = 6 };

typedef struct outcome {
    double loss[STEP_NUMEL];
    double norm[STEP_NUMEL];
    tess_logical_hash master;
} outcome;

typedef struct setting {
    int64_t m;
    int group;
    tess_choice reshard, checkpointing;
    int prefetch, between_numel;
    int64_t bucket_nbytes;
    bool is_full, is_tied, is_library;
    tess_choice once;
} setting;

static tess_status run_steps(tess_runtime *rt, const setting *s, outcome *out)
{
    for (int step = 0; step < STEP_NUMEL; step++) {
        two_matrices_feed f = {.first_idx = step * s->m};
        const tess_step_request request = {
            .first_micro_batch_idx = f.first_idx,
            .loss_token_numel = 7 * s->m,
            .update = {.step = step + 1,
                       .learning_rate = 0.01,
                       .beta1 = 0.9,
                       .beta2 = 0.99,
                       .eps = 1e-8,
                       .weight_decay = 0.1,
                       .clip_norm = 0.05},
            .arg = &f,
            .batch_of = two_matrices_batch_of,
        };
        tess_step_result result;
        const int64_t before = tess_alloc_events();
        TESS_TRY(tess_runtime_step(rt, &request, &result));
        TESS_CHECK(tess_alloc_events() == before, TESS_E_STATE, "step %d allocated", step);
        TESS_CHECK(result.nonfinite_numel == 0, TESS_E_NUMERIC, "step %d is not finite", step);
        out->loss[step] = result.loss;
        out->norm[step] = result.grad_norm;
    }
    return TESS_OK;
}

static tess_status hash_masters(tess_comm *comm, tess_runtime *rt, const tess_plan *plan,
                                outcome *out)
{
    for (int u = 0; u < plan->unit_numel; u++) {
        int64_t lo = 0, hi = 0;
        const tess_view v = tess_runtime_state(rt, u, TESS_STATE_MASTER);
        tess_plan_owned(plan, u, tess_comm_rank(comm), &lo, &hi);
        tess_logical_hash_add(&out->master, v.data, v.numel, 4, lo + ((int64_t)u << 40));
    }
    return tess_comm_control(comm, (int64_t *)(void *)out->master.lane, 2, NULL, 0);
}

static tess_status run_with(tess_comm *comm, tess_comm *group, const setting *s,
                            const tess_plan *plan, const tess_registry *reg, two_matrices *model,
                            outcome *out)
{
    tess_runtime *rt = NULL;
    const tess_runtime_parts parts = {.plan = plan,
                                      .registry = reg,
                                      .kernels = &tess_kernels_cpu,
                                      .world = comm,
                                      .group = group,
                                      .ops = &two_matrices_ops,
                                      .model = model};
    const tess_load_request load = {.wants_frozen = true, .wants_trainable = true, .seed = 5};
    TESS_TRY(tess_runtime_create(&parts, &rt));
    tess_status st = tess_load(rt, &load, NULL);
    if (st == TESS_OK)
        st = tess_runtime_publish(rt);
    if (st == TESS_OK)
        st = run_steps(rt, s, out);
    if (st == TESS_OK)
        st = hash_masters(comm, rt, plan, out);
    tess_runtime_destroy(&rt);
    return st;
}

static tess_status run_setting(tess_comm *comm, const setting *s, outcome *out)
{
    two_matrices model = {.row_numel = 7,
                          .in_numel = 19,
                          .mid_numel = 33,
                          .out_numel = 29,
                          .between_numel = s->between_numel,
                          .is_tied = s->is_tied};
    tess_registry reg;
    tess_plan *plan = NULL;
    tess_comm *group = NULL;
    if (s->is_tied)
        model.in_numel = model.out_numel = model.mid_numel;
    const tess_plan_options o = {.world = tess_comm_world(comm),
                                 .gather_group_numel = s->group,
                                 .reshard = s->reshard,
                                 .checkpointing = s->checkpointing,
                                 .prefetch = s->prefetch,
                                 .bucket_nbytes = s->bucket_nbytes,
                                 .is_full = s->is_full,
                                 .is_library = s->is_library,
                                 .library_once = s->once,
                                 .micro_batch_numel = s->m,
                                 .load_nbytes = 1 << 16};
    memset(out, 0, sizeof *out);
    tess_registry_init(&reg, TESS_F32);
    tess_status st = two_matrices_describe(&model, &reg);
    if (st == TESS_OK)
        st = tess_plan_create(&reg, &o, &plan);
    if (st == TESS_OK && s->group > 1 && s->group < o.world)
        st = tess_comm_split_group(comm, s->group, &group);
    if (st == TESS_OK)
        st = run_with(comm,
                      s->group == 1   ? NULL
                      : group != NULL ? group
                                      : comm,
                      s, plan, &reg, &model, out);
    tess_comm_destroy(&group);
    tess_plan_destroy(&plan);
    tess_registry_fini(&reg);
    return st;
}

static bool is_same(const outcome *a, const outcome *b) { return memcmp(a, b, sizeof *a) == 0; }

/* Reference: one rank alone, no gathers. Every rank computes it for itself. */
static tess_status check_against_one_rank(tess_comm *comm, tess_comm *self, bool is_tied)
{
    static const int64_t numels[] = {1, 7, 8, 12};
    const int world = tess_comm_world(comm);
    for (int i = 0; i < TESS_NELEM(numels); i++) {
        outcome want, got;
        setting s = {.m = numels[i],
                     .group = 1,
                     .reshard = TESS_ON,
                     .checkpointing = TESS_OFF,
                     .is_tied = is_tied};
        TESS_TRY(run_setting(self, &s, &want));
        for (int variant = 0; variant < 16; variant++) {
            s.group = variant & 1 ? world : world % 2 == 0 && variant & 2 ? 2 : 1;
            s.reshard = variant & 2 ? TESS_ON : TESS_OFF;
            s.checkpointing = variant & 4 ? TESS_ON : TESS_OFF;
            s.prefetch = variant & 8 ? 1 : 0;
            s.is_full = (variant & 4) && (variant & 9); /* at each of the groups */
            TESS_TRY(run_setting(comm, &s, &got));
            TESS_CHECK(is_same(&want, &got), TESS_E_STATE,
                       "M %" PRId64 " variant %d: loss %.17g, one rank alone has %.17g", s.m,
                       variant, got.loss[STEP_NUMEL - 1], want.loss[STEP_NUMEL - 1]);
        }
        TESS_CHECK(want.loss[STEP_NUMEL - 1] < want.loss[0] * 0.999 || s.m == 1, TESS_E_STATE,
                   "loss does not fall: %.9g to %.9g", want.loss[0], want.loss[STEP_NUMEL - 1]);
    }
    return TESS_OK;
}

/* Six units of some KiB: each alone, two or three together, all in one, and what the plan takes by
 * itself. A bucket may hold one, as the first and the last are smaller than the others. */
static tess_status check_buckets(tess_comm *comm, tess_comm *self)
{
    static const int64_t nbytes[] = {0, 12 << 10, 20 << 10, 1 << 20, TESS_BUCKET_AUTO};
    const int world = tess_comm_world(comm);
    outcome want, got;
    setting s = {.m = 7,
                 .group = 1,
                 .reshard = TESS_ON,
                 .checkpointing = TESS_OFF,
                 .between_numel = TWO_MATRICES_STAGE_MAX - 2};
    TESS_TRY(run_setting(self, &s, &want));
    for (int variant = 0; variant < 32 * TESS_NELEM(nbytes); variant++) {
        s.bucket_nbytes = nbytes[variant / 32];
        s.group = variant & 1 ? world : world % 2 == 0 && variant & 2 ? 2 : 1;
        s.reshard = variant & 4 ? TESS_ON : TESS_OFF;
        s.prefetch = variant & 8 ? 1 : 0;
        s.checkpointing = variant & 8 ? TESS_OFF : TESS_ON;
        s.is_full = (variant & 16) != 0;
        TESS_TRY(run_setting(comm, &s, &got));
        TESS_CHECK(is_same(&want, &got), TESS_E_STATE,
                   "buckets of %" PRId64 " bytes, variant %d: loss %.17g, one rank alone has %.17g",
                   s.bucket_nbytes, variant, got.loss[STEP_NUMEL - 1], want.loss[STEP_NUMEL - 1]);
    }
    return TESS_OK;
}

/* The library reduction gives the same values up to the order of additions. */
static tess_status check_library(tess_comm *comm)
{
    outcome exact, library;
    setting s = {.m = 7, .group = 1, .reshard = TESS_ON, .checkpointing = TESS_OFF};
    TESS_TRY(run_setting(comm, &s, &exact));
    for (int variant = 0; variant < 8; variant++) {
        s.is_library = true;
        s.is_full = (variant & 1) != 0;
        s.once = variant & 2 ? TESS_ON : TESS_OFF;
        s.group = variant & 4 ? tess_comm_world(comm) : 1;
        TESS_TRY(run_setting(comm, &s, &library));
        for (int i = 0; i < STEP_NUMEL; i++) {
            /* f32 sums of 7 pieces differ by at most 7 * 2^-24 relative to the sum of magnitudes;
             * AdamW's normalized update keeps that order per step. */
            const double bound = 1e-5 * exact.loss[i] * (i + 1);
            const double off = library.loss[i] - exact.loss[i];
            TESS_CHECK(off <= bound && -off <= bound, TESS_E_STATE,
                       "library loss %.17g, exact %.17g", library.loss[i], exact.loss[i]);
        }
    }
    return TESS_OK;
}

/* ---- steps that are skipped ---- */

/* What a step may change, over all ranks. */
typedef struct state_hash {
    tess_logical_hash state[TESS_STATE_NUMEL];
    tess_logical_hash published;
} state_hash;

static tess_status hash_state(tess_comm *comm, tess_runtime *rt, const tess_plan *plan,
                              state_hash *out)
{
    memset(out, 0, sizeof *out);
    for (int u = 0; u < plan->unit_numel; u++) {
        int64_t lo = 0, hi = 0;
        tess_plan_owned(plan, u, tess_comm_rank(comm), &lo, &hi);
        lo += (int64_t)u << 40;
        for (int kind = 0; kind < TESS_STATE_NUMEL; kind++) {
            const tess_view v = tess_runtime_state(rt, u, (tess_state_kind)kind);
            tess_logical_hash_add(&out->state[kind], v.data, v.numel, 4, lo);
        }
        const tess_view shard = tess_runtime_param_shard(rt, u);
        tess_logical_hash_add(&out->published, shard.data, shard.numel, 4, lo);
    }
    return tess_comm_control(comm, (int64_t *)(void *)out, (int)(sizeof *out / sizeof(int64_t)),
                             NULL, 0);
}

/* Every part of the state changed, or none did. */
static tess_status compare_state(const state_hash *before, const state_hash *after, bool is_skipped,
                                 const char *what)
{
    static const char *const names[] = {"masters", "exp_avg", "exp_avg_sq", "published parameters"};
    const tess_logical_hash *a = before->state, *b = after->state;
    for (int i = 0; i < TESS_NELEM(names); i++) {
        const bool is_published = i == TESS_STATE_NUMEL;
        const bool is_equal = memcmp(is_published ? &before->published : &a[i],
                                     is_published ? &after->published : &b[i], sizeof *a) == 0;
        TESS_CHECK(is_equal == is_skipped, TESS_E_STATE, "%s: %s %s", what, names[i],
                   is_equal ? "did not change" : "changed in a step that was to be skipped");
    }
    return TESS_OK;
}

/* The micro-batch whose loss is a NaN, and the one that is computed. */
static int64_t nan_loss_idx = -1, current_idx;

static tess_status watch_batch(void *arg, int64_t m, const void **batch)
{
    current_idx = m;
    return two_matrices_batch_of(arg, m, batch);
}

static tess_status sum_or_nan(const tess_sum_args *a, tess_stream *s)
{
    TESS_TRY(tess_kernels_cpu.sum(a, s));
    if (current_idx == nan_loss_idx)
        *a->out = NAN;
    return TESS_OK;
}

enum { POISONED_M = 5, POISONED_IDX = 2 };

static tess_status one_step(tess_runtime *rt, int64_t step, tess_step_result *result)
{
    two_matrices_feed f = {0};
    const tess_step_request request = {
        .loss_token_numel = 1,
        .update = {.step = step, .learning_rate = 0.1, .beta1 = 0.9, .beta2 = 0.99, .eps = 1e-8},
        .arg = &f,
        .batch_of = watch_batch,
    };
    return tess_runtime_step(rt, &request, result);
}

/* A step with `numel` (0 or 1) bad values, the lowest found by `rank` in `unit`. */
static tess_status check_step(tess_comm *comm, tess_runtime *rt, const tess_plan *plan,
                              int64_t numel, int rank, int unit)
{
    char what[80];
    state_hash before, after;
    tess_step_result result;
    snprintf(what, sizeof what, "%d bad values of rank %d, unit %d", (int)numel, rank, unit);
    TESS_TRY(hash_state(comm, rt, plan, &before));
    TESS_TRY(one_step(rt, 1, &result));
    TESS_CHECK(result.nonfinite_numel == numel && result.nonfinite_rank == rank &&
                   result.nonfinite_unit == unit,
               TESS_E_STATE, "%s: found %" PRId64 " of rank %d, unit %d", what,
               result.nonfinite_numel, result.nonfinite_rank, result.nonfinite_unit);
    TESS_TRY(hash_state(comm, rt, plan, &after));
    return compare_state(&before, &after, numel > 0, what);
}

static int owner_of(const tess_plan *plan, int unit, int64_t idx, int world)
{
    for (int rank = 0; rank < world; rank++) {
        int64_t lo = 0, hi = 0;
        tess_plan_owned(plan, unit, rank, &lo, &hi);
        if (idx >= lo && idx < hi)
            return rank;
    }
    return -1;
}

/* One NaN from whichever rank computes micro-batch 2. A gradient's is found by the rank that owns
 * the element, in its unit; a loss's by the rank that computed it, in the last unit. Between two
 * bad steps a good one changes everything: the state that stays is not the first one. */
static tess_status check_skips(tess_comm *comm, tess_runtime *rt, const tess_plan *plan,
                               two_matrices *model)
{
    const int world = tess_comm_world(comm);
    int most = 0;
    for (int unit = 0; unit < plan->unit_numel; unit++) {
        const int64_t numel =
            unit == 0 ? model->mid_numel * model->in_numel : model->out_numel * model->mid_numel;
        const int64_t at[] = {0, model->in_numel, numel / 2, numel - 1};
        for (int i = 0; i < TESS_NELEM(at); i++) {
            const int owner = owner_of(plan, unit, at[i], world);
            most = owner > most ? owner : most;
            TESS_TRY(check_step(comm, rt, plan, 0, -1, -1));
            model->is_poisoned = true;
            model->poisoned_idx = POISONED_IDX;
            model->poisoned_stage = unit;
            model->poisoned_element = at[i];
            TESS_TRY(check_step(comm, rt, plan, 1, owner, unit));
            model->is_poisoned = false;
        }
    }
    TESS_CHECK(most > 0 || world == 1, TESS_E_STATE, "all poisoned elements are rank 0's");
    nan_loss_idx = POISONED_IDX;
    TESS_TRY(check_step(comm, rt, plan, 1, POISONED_IDX % world, plan->unit_numel - 1));
    nan_loss_idx = -1;
    return check_step(comm, rt, plan, 0, -1, -1);
}

static tess_status check_nonfinite(tess_comm *comm)
{
    two_matrices model = {.row_numel = 3, .in_numel = 19, .mid_numel = 33, .out_numel = 29};
    tess_registry reg;
    tess_plan *plan = NULL;
    tess_runtime *rt = NULL;
    tess_kernels kernels = tess_kernels_cpu;
    const tess_plan_options o = {.world = tess_comm_world(comm),
                                 .gather_group_numel = 1,
                                 .reshard = TESS_ON,
                                 .checkpointing = TESS_OFF,
                                 .micro_batch_numel = POISONED_M,
                                 .load_nbytes = 1 << 16};
    const tess_load_request load = {.wants_frozen = true, .wants_trainable = true, .seed = 5};
    kernels.sum = sum_or_nan;
    tess_registry_init(&reg, TESS_F32);
    tess_status st = two_matrices_describe(&model, &reg);
    if (st == TESS_OK)
        st = tess_plan_create(&reg, &o, &plan);
    const tess_runtime_parts parts = {.plan = plan,
                                      .registry = &reg,
                                      .kernels = &kernels,
                                      .world = comm,
                                      .ops = &two_matrices_ops,
                                      .model = &model};
    if (st == TESS_OK)
        st = tess_runtime_create(&parts, &rt);
    if (st == TESS_OK)
        st = tess_load(rt, &load, NULL);
    if (st == TESS_OK)
        st = tess_runtime_publish(rt);
    if (st == TESS_OK)
        st = check_skips(comm, rt, plan, &model);
    tess_runtime_destroy(&rt);
    tess_plan_destroy(&plan);
    tess_registry_fini(&reg);
    return st;
}

static tess_status run(tess_comm *comm)
{
    tess_comm *self = NULL;
    TESS_TRY(tess_comm_create_self(&self));
    tess_status st = check_against_one_rank(comm, self, false);
    if (st == TESS_OK)
        st = check_against_one_rank(comm, self, true);
    if (st == TESS_OK)
        st = check_buckets(comm, self);
    if (st == TESS_OK)
        st = check_library(comm);
    if (st == TESS_OK)
        st = check_nonfinite(comm);
    tess_comm_destroy(&self);
    return st;
}

int main(int argc, char **argv) { return rank_test_main(argc, argv, run); }
