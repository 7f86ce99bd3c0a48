/*
 * Steps of a small FLUX.1 with the sources of kernels/cuda, thread by thread, on a device of which
 * the host sees nothing but copies. At any number of ranks the bits are those of one rank; against
 * the CPU's kernels losses and norms of gradients differ by rounding alone ([Note: bounds of
 * runs] in tests/support/run_curve.c).
 */
#include <stdio.h>

#include "dist/gpu.h"
#include "shard/loader.h"
#include "shard/runtime.h"
#include "support/flux_case.h"
#include "support/rank_test.h"
#include "support/run_curve.h"
#include "tests/emulation/emulated_device.h"
#include "tests/emulation/emulation.h"

enum { STEP_NUMEL = 2, MICRO_BATCH_NUMEL = 2, CHOICE_NUMEL = 2 };

typedef struct outcome {
    run_curve curve;
    int64_t late_numel; /* products that nobody announced */
} outcome;

typedef struct trial {
    const flux_choice *choice;
    tess_device *device; /* NULL: the host */
    tess_registry reg;
    tess_model *model;
    tess_plan *plan;
    tess_runtime *rt;
    flux_inputs input[MICRO_BATCH_NUMEL];
    tess_flux_batch batch[MICRO_BATCH_NUMEL]; /* where kernels read */
} trial;

static tess_status batch_of(void *arg, int64_t m, const void **batch)
{
    const trial *t = arg;
    *batch = &t->batch[m];
    return TESS_OK;
}

static tess_status upload(const float **array, int64_t numel)
{
    void *memory = NULL;
    const size_t nbytes = (size_t)numel * sizeof(float);
    if (*array == NULL)
        return TESS_OK;
    TESS_TRY(tess_emulation_alloc("input", nbytes, &memory));
    TESS_TRY(tess_emulation_write(memory, *array, nbytes));
    *array = memory;
    return TESS_OK;
}

static tess_status upload_batch(const flux_choice *o, tess_flux_batch *b)
{
    const tess_flux_config *c = &o->config;
    const int64_t images = b->sample_numel * b->image_numel;
    const int64_t texts = b->sample_numel * b->text_numel;
    const int64_t angles = (b->image_numel + b->text_numel) * c->head_dim / 2;
    TESS_TRY(upload(&b->latent, images * c->in_channels));
    TESS_TRY(upload(&b->text, texts * c->text_dim));
    TESS_TRY(upload(&b->pooled, b->sample_numel * c->pooled_dim));
    TESS_TRY(upload(&b->time, b->sample_numel * TESS_FLUX_SINUSOID_NUMEL));
    TESS_TRY(upload(&b->guidance, b->sample_numel * TESS_FLUX_SINUSOID_NUMEL));
    TESS_TRY(upload(&b->rope_cos, angles));
    TESS_TRY(upload(&b->rope_sin, angles));
    TESS_TRY(upload(&b->target, images * c->out_channels));
    return upload(&b->weight, images);
}

static tess_status run_steps(trial *t, outcome *out)
{
    for (int64_t step = 0; step < STEP_NUMEL; step++) {
        const tess_step_request request = {.first_micro_batch_idx = MICRO_BATCH_NUMEL * step,
                                           .loss_token_numel =
                                               MICRO_BATCH_NUMEL * t->choice->sample_numel,
                                           .update = {.step = step + 1,
                                                      .learning_rate = 0.01,
                                                      .beta1 = 0.9,
                                                      .beta2 = 0.99,
                                                      .eps = 1e-8,
                                                      .clip_norm = 1.0},
                                           .arg = t,
                                           .batch_of = batch_of};
        tess_step_result result;
        TESS_TRY(tess_runtime_step(t->rt, &request, &result));
        TESS_CHECK(result.nonfinite_numel == 0, TESS_E_NUMERIC, "step %d is not finite", (int)step);
        out->curve.loss[step] = result.loss;
        out->curve.norm[step] = result.grad_norm;
        out->curve.step_numel++;
    }
    return TESS_OK;
}

static tess_status run_in(tess_comm *comm, trial *t, outcome *out)
{
    const int world = tess_comm_world(comm);
    const tess_load_request load = {.is_random = true,
                                    .wants_frozen = true,
                                    .wants_trainable = true,
                                    .is_device = t->device != NULL,
                                    .seed = 5};
    tess_plan_options o = {.world = world,
                           .gather_group_numel = world,
                           .reshard = TESS_ON,
                           .checkpointing = TESS_ON,
                           .prefetch = 1,
                           .micro_batch_numel = MICRO_BATCH_NUMEL,
                           .is_device = t->device != NULL,
                           .kernels = t->choice->planned};
    TESS_TRY(tess_load_plan(&t->reg, &load, &o.load_nbytes));
    TESS_TRY(tess_plan_create(&t->reg, &o, &t->plan));
    const tess_runtime_parts parts = {.plan = t->plan,
                                      .registry = &t->reg,
                                      .device = t->device,
                                      .kernels = t->choice->planned,
                                      .world = comm,
                                      .group = world > 1 ? comm : NULL,
                                      .ops = tess_model_stage_ops(t->model),
                                      .model = tess_model_self(t->model)};
    TESS_TRY(tess_runtime_create(&parts, &t->rt));
    TESS_TRY(tess_runtime_prepare(t->rt));
    TESS_TRY(tess_load(t->rt, &load, NULL));
    TESS_TRY(tess_runtime_publish(t->rt));
    return run_steps(t, out);
}

static tess_status run_choice(tess_comm *comm, tess_device *device, const flux_choice *choice,
                              outcome *out)
{
    flux_choice own = *choice;
    own.planned = device != NULL ? &tess_kernels_cuda : &tess_kernels_cpu;
    trial t = {.choice = &own, .device = device};
    tess_status st = TESS_OK;
    memset(out, 0, sizeof *out);
    for (int i = 0; i < MICRO_BATCH_NUMEL; i++) {
        t.input[i] = flux_inputs_open(choice, i, choice->sample_numel);
        t.batch[i] = t.input[i].batch;
        if (st == TESS_OK && device != NULL)
            st = upload_batch(choice, &t.batch[i]);
    }
    tess_registry_init(&t.reg, choice->dt);
    if (st == TESS_OK)
        st = flux_describe(&own, &t.reg, &t.model);
    if (st == TESS_OK)
        st = run_in(comm, &t, out);
    tess_runtime_destroy(&t.rt);
    tess_plan_destroy(&t.plan);
    tess_model_destroy(&t.model);
    tess_registry_fini(&t.reg);
    for (int i = 0; i < MICRO_BATCH_NUMEL; i++)
        flux_inputs_close(&t.input[i]);
    return st;
}

static tess_status run_emulated(tess_comm *host, tess_emulation_order order,
                                const flux_choice *choice, outcome *out)
{
    tess_device device = emulated_device;
    tess_comm *comm = NULL;
    TESS_TRY(emulated_open(order));
    TESS_TRY(tess_comm_create_staged(host, &device, TESS_STAGED_CHUNK_AUTO, &comm));
    const tess_status st = run_choice(comm, &device, choice, out);
    out->late_numel = blas.base.late_numel;
    tess_comm_destroy(&comm);
    emulated_close();
    return st;
}

/* One rank alone, on the CPU and emulated: what all must find. */
static tess_status find_alone(const flux_choice *choice, outcome *out)
{
    const run_bound *bound = NULL;
    tess_comm *self = NULL;
    outcome cpu;
    TESS_TRY(run_bound_find(choice->dt == TESS_BF16 ? "flux-bf16" : "flux-f32", &bound));
    TESS_TRY(tess_comm_create_self(&self));
    tess_status st = run_choice(self, NULL, choice, &cpu);
    if (st == TESS_OK)
        st = run_emulated(self, TESS_EMULATION_FORWARD, choice, out);
    tess_comm_destroy(&self);
    TESS_TRY(st);
    TESS_TRY(run_curve_compare(bound, &cpu.curve, &out->curve));
    TESS_CHECK(memcmp(&cpu.curve, &out->curve, sizeof cpu.curve) != 0, TESS_E_STATE,
               "the emulated kernels gave the CPU's very bits: were they run?");
    return TESS_OK;
}

/* One block of each kind, every linear adapted, two samples in a batch. */
static flux_choice small(tess_dtype dt, tess_format base)
{
    flux_choice o = flux_tiny();
    o.config.double_numel = o.config.single_numel = 1;
    o.config.text_dim = o.config.pooled_dim = 64;
    o.targets = flux_every_target;
    o.is_random = true;
    o.sample_numel = 2;
    o.height = o.width = 3;
    o.dt = dt;
    o.base = base;
    return o;
}

static flux_choice choice_of(int idx)
{
    return idx == 0 ? small(TESS_F32, TESS_FORMAT_INT8) : small(TESS_BF16, TESS_FORMAT_NF4);
}

static tess_status find_all_alone(tess_comm *comm, void *alone)
{
    const int world = tess_comm_world(comm);
    outcome *out = alone;
    tess_status st = TESS_OK;
    /* ranks take turns, so that no core waits for another's */
    for (int i = tess_comm_rank(comm); i < CHOICE_NUMEL && st == TESS_OK; i += world) {
        const flux_choice choice = choice_of(i);
        st = find_alone(&choice, &out[i]);
    }
    TESS_TRY(tess_agree(comm, st));
    for (int i = 0; i < CHOICE_NUMEL; i++)
        TESS_TRY(tess_comm_bcast(comm, i % world, &out[i], sizeof out[i]));
    return TESS_OK;
}

static tess_status check_choice(tess_comm *comm, const flux_choice *choice, const outcome *alone)
{
    outcome together;
    TESS_TRY(run_emulated(comm, TESS_EMULATION_REVERSED, choice, &together));
    TESS_CHECK(together.late_numel == 0 && alone->late_numel == 0, TESS_E_STATE,
               "%lld products were not announced",
               (long long)(together.late_numel + alone->late_numel));
    TESS_CHECK(memcmp(&together, alone, sizeof together) == 0, TESS_E_STATE,
               "%d ranks gave other bits than one: loss %.17g against %.17g", tess_comm_world(comm),
               together.curve.loss[STEP_NUMEL - 1], alone->curve.loss[STEP_NUMEL - 1]);
    return TESS_OK;
}

static tess_status body(tess_comm *comm)
{
    outcome alone[CHOICE_NUMEL];
    memset(alone, 0, sizeof alone);
    TESS_TRY(rank_test_alone(comm, find_all_alone, alone, sizeof alone));
    for (int i = 0; i < CHOICE_NUMEL; i++) {
        const flux_choice choice = choice_of(i);
        const tess_status st = check_choice(comm, &choice, &alone[i]);
        if (st != TESS_OK && tess_comm_rank(comm) == 0)
            fprintf(stderr, "%s behind %s activations:\n", tess_format_name(choice.base),
                    tess_dtype_name(choice.dt));
        TESS_TRY(st);
    }
    return TESS_OK;
}

int main(int argc, char **argv) { return rank_test_main(argc, argv, body); }
