/*
 * Whole runs with the sources of kernels/cuda, thread by thread: the tiny Llama, LoRA over a
 * quantized base, on a device of which the host sees nothing but copies. At any number of ranks the
 * bits are those of one rank; against the CPU's kernels losses and norms of gradients differ by
 * rounding alone
 * ([Note: bounds of runs] in tests/support/run_curve.c).
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "dist/gpu.h"
#include "support/rank_test.h"
#include "support/run_curve.h"
#include "support/tiny_run.h"
#include "tests/emulation/emulated_device.h"
#include "tests/emulation/emulation.h"
#include "train/session_priv.h"

enum { STEP_NUMEL = 2 };

/* ---- runs ---- */

typedef struct run_case {
    const char *name;
    const char *bound;
    bool is_short; /* nothing is evaluated */
    const char *overrides[TINY_OVERRIDE_MAX];
} run_case;

typedef struct outcome {
    tiny_outcome run;
    run_curve curve;
    int64_t late_numel; /* products that nobody announced */
} outcome;

/* Tensors of the adapter: the file's header names the folder of the model. */
static tess_status hash_adapter(tiny_run *t, tess_sha256 *out)
{
    char path[400];
    char *text = NULL;
    size_t nbytes = 0;
    uint64_t header_nbytes = 0;
    snprintf(path, sizeof path, "%s/run/export/adapter_model.safetensors", t->dir);
    TESS_TRY(tess_io_read_all(t->ctx.io, path, 16 << 20, &text, &nbytes));
    memcpy(&header_nbytes, text, sizeof header_nbytes);
    const size_t front = sizeof header_nbytes + (size_t)header_nbytes;
    const tess_status st = front < nbytes
                               ? tess_sha256_of(text + front, nbytes - front, out)
                               : TESS_FAIL(TESS_E_FORMAT, "adapter of %zu bytes", nbytes);
    tess_free(text);
    return st;
}

static tess_status train(tess_comm *comm, const tess_session_options *options, const run_case *c,
                         outcome *out)
{
    char dir[400];
    tiny_run t;
    tess_session *s = NULL;
    TESS_TRY(tiny_run_create(comm, &t));
    if (c->is_short)
        t.eval[0] = '\0';
    tess_status st = tiny_run_open_as(comm, &t, "run", c->overrides, options, &s);
    if (st == TESS_OK)
        st = tess_session_train(s);
    if (st == TESS_OK)
        st = tiny_run_outcome(&t, "run", &out->run);
    if (st == TESS_OK)
        st = hash_adapter(&t, &out->run.adapter);
    snprintf(dir, sizeof dir, "%s/run", t.dir);
    if (st == TESS_OK)
        st = run_curve_read(t.ctx.io, dir, &out->curve);
    tess_session_close(&s);
    st = tess_agree(comm, st);
    tiny_run_destroy(comm, &t);
    return st;
}

static tess_status train_emulated(tess_comm *host, tess_emulation_order order, const run_case *c,
                                  outcome *out)
{
    tess_device device = emulated_device;
    const tess_session_options options = {
        .kind = TESS_SESSION_TRAIN, .device = &device, .kernels = &tess_kernels_cuda};
    tess_comm *comm = NULL;
    TESS_TRY(emulated_open(order));
    TESS_TRY(tess_comm_create_staged(host, &device, TESS_STAGED_CHUNK_AUTO, &comm));
    const tess_status st = train(comm, &options, c, out);
    out->late_numel = blas.base.late_numel;
    tess_comm_destroy(&comm);
    emulated_close();
    return st;
}

/* One rank alone, on the CPU and emulated: what all must find. */
static tess_status find_alone(const run_case *c, outcome *out)
{
    const tess_session_options host = {.kind = TESS_SESSION_TRAIN, .kernels = &tess_kernels_cpu};
    const run_bound *bound = NULL;
    tess_comm *self = NULL;
    outcome cpu;
    TESS_TRY(run_bound_find(c->bound, &bound));
    TESS_TRY(tess_comm_create_self(&self));
    tess_status st = train(self, &host, c, &cpu);
    if (st == TESS_OK)
        st = train_emulated(self, TESS_EMULATION_FORWARD, c, out);
    tess_comm_destroy(&self);
    TESS_TRY(st);
    TESS_CHECK(cpu.curve.step_numel == STEP_NUMEL, TESS_E_STATE, "%d steps", cpu.curve.step_numel);
    TESS_TRY(run_curve_compare(bound, &cpu.curve, &out->curve));
    TESS_CHECK(memcmp(&out->run.adapter, &cpu.run.adapter, sizeof cpu.run.adapter) != 0,
               TESS_E_STATE, "the emulated kernels gave the CPU's very bits: were they run?");
    return TESS_OK;
}

static tess_status check_case(tess_comm *comm, const run_case *c, const outcome *alone)
{
    outcome together;
    TESS_TRY(train_emulated(comm, TESS_EMULATION_REVERSED, c, &together));
    TESS_CHECK(memcmp(&together.run.losses, &alone->run.losses, sizeof alone->run.losses) == 0 &&
                   memcmp(&together.run.adapter, &alone->run.adapter, sizeof alone->run.adapter) ==
                       0,
               TESS_E_STATE, "%d ranks gave other bits than one: loss %.17g against %.17g",
               tess_comm_world(comm), together.run.last_loss, alone->run.last_loss);
    TESS_CHECK(together.late_numel == 0, TESS_E_STATE, "%lld products were not announced",
               (long long)together.late_numel);
    return TESS_OK;
}

static const run_case full_cases[] = {
    {"nf4 behind f32 activations",
     "llama-f32",
     false,
     {"train.steps=2", "train.micro_batches=3", "compute.dtype=f32", "train.eval_every=0",
      "output.checkpoint_every=0"}},
    {"nf4 behind bf16 activations, replayed",
     "llama-bf16",
     false,
     {"train.steps=2", "train.micro_batches=3", "compute.dtype=bf16", "train.eval_every=0",
      "output.checkpoint_every=0", "lora.dropout=0.1", "compute.activation_checkpointing=on"}},
    {"DoRA with dropout: lengths of rows are dequantized in steps",
     "llama-f32",
     false,
     {"train.steps=2", "train.micro_batches=1", "compute.dtype=f32", "train.eval_every=0",
      "output.checkpoint_every=0", "lora.dora=true", "lora.targets=[v_proj, down_proj]"}},
};

#define SHORT_STEPS                                                                                \
    "train.steps=2", "train.micro_batches=2", "train.micro_batch=1", "data.sequence_length=16",    \
        "output.checkpoint_every=0"

/* Little work: what a format adds is how its bytes are cut, gathered and decoded. */
static const run_case format_cases[] = {
    {"int4 behind f32 activations",
     "llama-f32",
     true,
     {SHORT_STEPS, "base.format=int4", "compute.dtype=f32"}},
    {"int4 behind bf16 activations",
     "llama-bf16",
     true,
     {SHORT_STEPS, "base.format=int4", "compute.dtype=bf16"}},
    {"int2 behind f32 activations",
     "llama-f32",
     true,
     {SHORT_STEPS, "base.format=int2", "compute.dtype=f32"}},
    {"int2 behind bf16 activations",
     "llama-bf16",
     true,
     {SHORT_STEPS, "base.format=int2", "compute.dtype=bf16"}},
    {"int8 behind f32 activations",
     "llama-f32",
     true,
     {SHORT_STEPS, "base.format=int8", "compute.dtype=f32"}},
    {"fp8 behind bf16 activations",
     "llama-bf16",
     true,
     {SHORT_STEPS, "base.format=e4m3", "compute.dtype=bf16"}},
};

/* Updates that exchange something: lines of matrices that lie on several ranks, matrices that
 * travel to be whole. A step moves a weight by its rate at most, and gradients that differ by
 * rounding move it otherwise by as little, so the bounds are those above. */
static const run_case optimizer_cases[] = {
    {"Adafactor of adapters",
     "llama-f32",
     true,
     {SHORT_STEPS, "train.optimizer=adafactor", "compute.dtype=f32",
      "train.adafactor_scale_parameter=true"}},
    {"Adafactor with momentum behind bf16 activations",
     "llama-bf16",
     true,
     {SHORT_STEPS, "train.optimizer=adafactor-momentum", "compute.dtype=bf16"}},
    {"Muon of adapters",
     "llama-f32",
     true,
     {SHORT_STEPS, "train.optimizer=muon", "compute.dtype=f32"}},
    {"Muon behind bf16 activations",
     "llama-bf16",
     true,
     {SHORT_STEPS, "train.optimizer=muon", "compute.dtype=bf16", "train.muon_scale=original"}},
};

/* Every case, in the order of their outcomes. */
static const struct {
    const run_case *cases;
    int numel;
} lists[] = {{optimizer_cases, TESS_NELEM(optimizer_cases)},
             {format_cases, TESS_NELEM(format_cases)},
             {full_cases, TESS_NELEM(full_cases)}};

enum {
    CASE_NUMEL = TESS_NELEM(optimizer_cases) + TESS_NELEM(format_cases) + TESS_NELEM(full_cases)
};

static const run_case *case_at(int idx)
{
    int l = 0;
    for (; idx >= lists[l].numel; l++)
        idx -= lists[l].numel;
    return &lists[l].cases[idx];
}

/* What one rank finds: ranks take turns, so that no core waits for another's. */
static tess_status find_all_alone(tess_comm *comm, void *alone)
{
    const int world = tess_comm_world(comm);
    outcome *out = alone;
    tess_status st = TESS_OK;
    for (int i = tess_comm_rank(comm); i < CASE_NUMEL && st == TESS_OK; i += world) {
        st = find_alone(case_at(i), &out[i]);
        if (st != TESS_OK)
            fprintf(stderr, "%s:\n", case_at(i)->name);
    }
    TESS_TRY(tess_agree(comm, st));
    for (int i = 0; i < CASE_NUMEL; i++)
        TESS_TRY(tess_comm_bcast(comm, i % world, &out[i], sizeof out[i]));
    return TESS_OK;
}

static tess_status body(tess_comm *comm)
{
    outcome alone[CASE_NUMEL];
    memset(alone, 0, sizeof alone);
    TESS_TRY(rank_test_alone(comm, find_all_alone, alone, sizeof alone));
    for (int i = 0; i < CASE_NUMEL; i++) {
        const tess_status st = check_case(comm, case_at(i), &alone[i]);
        if (st != TESS_OK && tess_comm_rank(comm) == 0)
            fprintf(stderr, "%s:\n", case_at(i)->name);
        TESS_TRY(st);
    }
    return TESS_OK;
}

int main(int argc, char **argv) { return rank_test_main(argc, argv, body); }
