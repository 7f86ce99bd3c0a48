/*
 * Twenty steps of the runtime, gathers, ordered sums, clipping and AdamW, follow the curve of
 * transformers + peft in float64 (tests/golden/make_llama.py), on any number of ranks.
 */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "core/memory.h"
#include "shard/runtime.h"
#include "support/llama_case.h"
#include "support/rank_test.h"

enum { MICRO_BATCH_NUMEL = 2 };

typedef struct trial {
    tess_comm *comm;
    tess_llama_case c;
    tess_run_model *source; /* weights, registry and model; computes nothing */
    tess_plan *plan;
    tess_runtime *rt;
    int64_t step;
} trial;

/* As derived in test_llama_parity.c, [Note: curve]. */
static const double curve_bound = 3e-5;

static const tess_token_batch *batch_at(const trial *t, int64_t m)
{
    return &t->c.batch[(MICRO_BATCH_NUMEL * t->step + m) % t->c.batch_numel];
}

static tess_status batch_of(void *arg, int64_t m, const void **batch)
{
    *batch = batch_at(arg, m);
    return TESS_OK;
}

/* This rank's parts of the bytes and masters that the golden script gives. */
static void place_weights(trial *t)
{
    const int rank = tess_comm_rank(t->comm);
    for (int u = 0; u < t->plan->unit_numel; u++) {
        const size_t whole = t->plan->unit[u].frozen_nbytes;
        const size_t shard = t->plan->unit[u].frozen_shard_nbytes;
        const size_t first = TESS_MIN(shard * (size_t)rank, whole);
        const size_t nbytes = TESS_MIN(shard, whole - first);
        if (nbytes > 0)
            memcpy(tess_runtime_frozen_shard(t->rt, u).data, t->source->frozen[u] + first, nbytes);
        int64_t lo = 0, hi = 0;
        tess_plan_owned(t->plan, u, rank, &lo, &hi);
        if (hi > lo)
            memcpy(tess_runtime_state(t->rt, u, TESS_STATE_MASTER).data, t->source->master[u] + lo,
                   (size_t)(hi - lo) * sizeof(float));
    }
}

static tess_status expect_near(const trial *t, const char *what, double found, double want,
                               double bound)
{
    TESS_CHECK(fabs(found - want) <= bound * fabs(want), TESS_E_STATE,
               "step %" PRId64 ": %s %.9g, expected %.9g within %g of it", t->step + 1, what, found,
               want, bound);
    return TESS_OK;
}

static tess_status run_step(trial *t, double loss, double norm)
{
    const tess_golden *g = t->c.golden;
    tess_step_result result;
    tess_step_request request = {.first_micro_batch_idx = MICRO_BATCH_NUMEL * t->step,
                                 .update = {.step = t->step + 1,
                                            .learning_rate = tess_golden_number(g, "lr"),
                                            .beta1 = 0.9,
                                            .beta2 = 0.999,
                                            .eps = 1e-8,
                                            .weight_decay = tess_golden_number(g, "decay"),
                                            .clip_norm = tess_golden_number(g, "clip")},
                                 .arg = t,
                                 .batch_of = batch_of};
    for (int64_t m = 0; m < MICRO_BATCH_NUMEL; m++)
        for (int64_t i = 0; i < batch_at(t, m)->token_numel; i++)
            request.loss_token_numel += batch_at(t, m)->labels[i] >= 0;
    TESS_TRY(tess_runtime_step(t->rt, &request, &result));
    TESS_TRY(expect_near(t, "loss", result.loss, loss, curve_bound));
    return expect_near(t, "gradient norm", result.grad_norm, norm, 10 * curve_bound);
}

static tess_status follow_curve(trial *t)
{
    int64_t step_numel = 0, norm_numel = 0;
    const double *curve = tess_golden_tensor(t->c.golden, "curve", TESS_F64, &step_numel);
    const double *norms = tess_golden_tensor(t->c.golden, "norms", TESS_F64, &norm_numel);
    TESS_CHECK(curve != NULL && norms != NULL && step_numel == 20 && norm_numel == step_numel,
               TESS_E_FORMAT, "golden: curve of %" PRId64 " steps", step_numel);
    place_weights(t);
    TESS_TRY(tess_runtime_publish(t->rt));
    for (t->step = 0; t->step < step_numel; t->step++)
        TESS_TRY(run_step(t, curve[t->step], norms[t->step]));
    return TESS_OK;
}

static tess_status run_trial(trial *t, const char *name)
{
    const int world = tess_comm_world(t->comm);
    TESS_TRY(tess_llama_case_open(name, &t->c));
    TESS_TRY(tess_llama_case_run(&t->c, &t->source));
    const tess_plan_options o = {.world = world,
                                 .gather_group_numel = world,
                                 .reshard = TESS_ON,
                                 .checkpointing = TESS_ON,
                                 .prefetch = 1,
                                 .is_full = t->c.options.is_full,
                                 .micro_batch_numel = MICRO_BATCH_NUMEL,
                                 .load_nbytes = 1 << 16};
    TESS_TRY(tess_plan_create(&t->source->reg, &o, &t->plan));
    const tess_runtime_parts parts = {.plan = t->plan,
                                      .registry = &t->source->reg,
                                      .kernels = &tess_kernels_cpu,
                                      .world = t->comm,
                                      .group = world > 1 ? t->comm : NULL,
                                      .ops = tess_model_stage_ops(t->source->model),
                                      .model = tess_model_self(t->source->model),
                                      .seed = t->c.options.seed};
    TESS_TRY(tess_runtime_create(&parts, &t->rt));
    return follow_curve(t);
}

static tess_status check_case(tess_comm *comm, const char *name)
{
    trial t = {.comm = comm};
    const tess_status st = run_trial(&t, name);
    tess_runtime_destroy(&t.rt);
    tess_plan_destroy(&t.plan);
    tess_run_model_destroy(&t.source);
    tess_llama_case_close(&t.c);
    TESS_CHECK(st == TESS_OK, st, "case '%s'", name);
    return TESS_OK;
}

static tess_status run(tess_comm *comm)
{
    TESS_TRY(check_case(comm, "llama_nf4"));
    return check_case(comm, "qwen2_full");
}

int main(int argc, char **argv) { return rank_test_main(argc, argv, run); }
