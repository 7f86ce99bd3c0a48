/*
 * A FLUX.1 through the runtime: gathers, checkpointing, ordered sums and the optimizer give the
 * same bits on any number of ranks, over plain and quantized bases, and full.
 */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "core/digest.h"
#include "core/memory.h"
#include "shard/loader.h"
#include "shard/runtime.h"
#include "support/flux_case.h"
#include "support/rank_test.h"

enum { STEP_NUMEL = 2, MICRO_BATCH_NUMEL = 4 };

typedef struct outcome {
    double loss[STEP_NUMEL], norm[STEP_NUMEL];
    tess_logical_hash master;
} outcome;

typedef struct trial {
    const flux_choice *choice;
    tess_registry reg;
    tess_model *model;
    tess_plan *plan;
    tess_runtime *rt;
    flux_inputs input[2]; /* micro-batches take turns */
    int64_t step;
} trial;

static tess_status batch_of(void *arg, int64_t m, const void **batch)
{
    const trial *t = arg;
    *batch = &t->input[(MICRO_BATCH_NUMEL * t->step + m) % 2].batch;
    return TESS_OK;
}

static tess_status run_steps(trial *t, outcome *out)
{
    for (t->step = 0; t->step < STEP_NUMEL; t->step++) {
        const tess_step_request request = {
            .first_micro_batch_idx = MICRO_BATCH_NUMEL * t->step,
            .loss_token_numel = MICRO_BATCH_NUMEL * t->choice->sample_numel, /* samples */
            .update = {.step = t->step + 1,
                       .learning_rate = 0.01,
                       .beta1 = 0.9,
                       .beta2 = 0.99,
                       .eps = 1e-8,
                       .weight_decay = 0.1,
                       .clip_norm = 1.0},
            .arg = t,
            .batch_of = batch_of};
        tess_step_result result;
        const int64_t before = tess_alloc_events();
        TESS_TRY(tess_runtime_step(t->rt, &request, &result));
        TESS_CHECK(tess_alloc_events() == before, TESS_E_STATE, "step %" PRId64 " allocated",
                   t->step);
        TESS_CHECK(result.nonfinite_numel == 0, TESS_E_NUMERIC, "step %" PRId64 " is not finite",
                   t->step);
        out->loss[t->step] = result.loss;
        out->norm[t->step] = result.grad_norm;
    }
    return TESS_OK;
}

static tess_status hash_masters(tess_comm *comm, trial *t, outcome *out)
{
    for (int u = 0; u < t->plan->unit_numel; u++) {
        int64_t lo = 0, hi = 0;
        const tess_view v = tess_runtime_state(t->rt, u, TESS_STATE_MASTER);
        tess_plan_owned(t->plan, u, tess_comm_rank(comm), &lo, &hi);
        tess_logical_hash_add(&out->master, v.data, v.numel, 4, lo + ((int64_t)u << 40));
    }
    return tess_comm_control(comm, (int64_t *)(void *)out->master.lane, 2, NULL, 0);
}

static tess_status run_in(tess_comm *comm, trial *t, bool is_sharded, outcome *out)
{
    const int world = tess_comm_world(comm);
    const tess_load_request load = {
        .is_random = true, .wants_frozen = true, .wants_trainable = true, .seed = 5};
    tess_plan_options o = {.world = world,
                           .gather_group_numel = is_sharded ? world : 1,
                           .reshard = TESS_ON,
                           .checkpointing = is_sharded ? TESS_ON : TESS_OFF,
                           .prefetch = 1,
                           .is_full = t->choice->is_full,
                           .micro_batch_numel = MICRO_BATCH_NUMEL};
    TESS_TRY(tess_load_plan(&t->reg, &load, &o.load_nbytes));
    TESS_TRY(tess_plan_create(&t->reg, &o, &t->plan));
    const tess_runtime_parts parts = {.plan = t->plan,
                                      .registry = &t->reg,
                                      .kernels = &tess_kernels_cpu,
                                      .world = comm,
                                      .group = is_sharded ? comm : NULL,
                                      .ops = tess_model_stage_ops(t->model),
                                      .model = tess_model_self(t->model)};
    TESS_TRY(tess_runtime_create(&parts, &t->rt));
    TESS_TRY(tess_load(t->rt, &load, NULL));
    TESS_TRY(tess_runtime_publish(t->rt));
    TESS_TRY(run_steps(t, out));
    return hash_masters(comm, t, out);
}

static tess_status run_choice(tess_comm *comm, const flux_choice *choice, bool is_sharded,
                              outcome *out)
{
    trial t = {.choice = choice};
    memset(out, 0, sizeof *out);
    for (int i = 0; i < 2; i++)
        t.input[i] = flux_inputs_open(choice, i, choice->sample_numel);
    tess_registry_init(&t.reg, choice->dt);
    tess_status st = flux_describe(choice, &t.reg, &t.model);
    if (st == TESS_OK)
        st = run_in(comm, &t, is_sharded, out);
    tess_runtime_destroy(&t.rt);
    tess_plan_destroy(&t.plan);
    tess_model_destroy(&t.model);
    tess_registry_fini(&t.reg);
    for (int i = 0; i < 2; i++)
        flux_inputs_close(&t.input[i]);
    return st;
}

/* Rank 0 alone, no checkpointing, no gathers; its bits travel in a sum with zeros. */
static tess_status run_alone(tess_comm *comm, tess_comm *self, const flux_choice *o, outcome *out)
{
    memset(out, 0, sizeof *out);
    TESS_TRY(
        tess_agree(comm, tess_comm_rank(comm) == 0 ? run_choice(self, o, false, out) : TESS_OK));
    return tess_comm_control(comm, (int64_t *)(void *)out, (int)(sizeof *out / sizeof(int64_t)),
                             NULL, 0);
}

static tess_status check_choice(tess_comm *comm, tess_comm *self, const flux_choice *o,
                                const char *what)
{
    outcome want, got;
    TESS_TRY(run_alone(comm, self, o, &want));
    /* Replicas gather nothing: one choice says that they too give the same bits. */
    for (int sharded = o->base == TESS_FORMAT_NF4 ? 0 : 1; sharded < 2; sharded++) {
        TESS_TRY(run_choice(comm, o, sharded != 0, &got));
        TESS_CHECK(memcmp(&want, &got, sizeof want) == 0, TESS_E_STATE,
                   "%s, %s: loss %.17g, one rank alone has %.17g", what,
                   sharded ? "sharded" : "replicated", got.loss[STEP_NUMEL - 1],
                   want.loss[STEP_NUMEL - 1]);
    }
    TESS_CHECK(want.loss[STEP_NUMEL - 1] < want.loss[0], TESS_E_STATE,
               "%s: loss does not fall: %.9g to %.9g", what, want.loss[0],
               want.loss[STEP_NUMEL - 1]);
    return TESS_OK;
}

/* Wide enough that a unit's bytes are cut inside tensors. */
static flux_choice wide(void)
{
    flux_choice o = flux_tiny();
    o.config.head_dim = 64;
    o.config.axis_dim[0] = 16;
    o.config.axis_dim[1] = o.config.axis_dim[2] = 24;
    o.config.double_numel = o.config.single_numel = 1;
    o.config.text_dim = o.config.pooled_dim = 64;
    o.dt = TESS_BF16;
    o.is_random = true;
    return o;
}

static tess_status run(tess_comm *comm)
{
    static const tess_format format[] = {TESS_FORMAT_F32, TESS_FORMAT_NF4, TESS_FORMAT_INT8,
                                         TESS_FORMAT_QINT4};
    tess_comm *self = NULL;
    TESS_TRY(tess_comm_create_self(&self));
    tess_status st = TESS_OK;
    for (int i = 0; st == TESS_OK && i < TESS_NELEM(format); i++) {
        flux_choice o = wide();
        o.base = format[i];
        o.targets = flux_every_target;
        o.sample_numel = 1 + i % 2;
        o.shares_a = i == 2;
        st = check_choice(comm, self, &o, format[i] == 0 ? "bf16" : tess_format_name(format[i]));
    }
    flux_choice full = flux_tiny();
    full.is_random = full.is_full = true;
    full.sample_numel = 2;
    full.dt = TESS_BF16;
    if (st == TESS_OK)
        st = check_choice(comm, self, &full, "full");
    tess_comm_destroy(&self);
    return st;
}

int main(int argc, char **argv) { return rank_test_main(argc, argv, run); }
