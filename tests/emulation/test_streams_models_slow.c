/*
 * Llama and FLUX.1 on emulated devices, in LoRA and full mode, resharded or kept, recomputed or
 * not, prefetched or not: any legal order of streams gives the host's bits, nothing is touched that
 * is not ordered, and each generated wait, taken away in turn, shows. Quantized weights are
 * dequantized ahead.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "emulation/emu_session.h"
#include "support/flux_run.h"
#include "support/tiny_run.h"

#define FEW "train.micro_batches=3", "output.checkpoint_every=0"
#define WORLD "shard.gather_group=world", "shard.reshard_after_forward=on"
#define AGAIN "compute.activation_checkpointing=on"

typedef struct launch {
    const char *name;
    bool is_flux;
    bool is_ahead; /* matrices are quantized */
    bool is_full;
    const char *override[10];
} launch;

static const launch launches[] = {
    {"llama, one ahead", false, true, false, {FEW, WORLD}},
    {"llama, none ahead, recomputed", false, true, false, {FEW, WORLD, AGAIN, "shard.prefetch=0"}},
    {"llama, kept",
     false,
     true,
     false,
     {FEW, "shard.gather_group=world", "shard.reshard_after_forward=off"}},
    {"llama, every weight", false, false, true, {FEW, WORLD, "train.mode=full"}},
    {"flux, one ahead, recomputed", true, true, false, {FEW, WORLD, AGAIN, "base.format=int8"}},
    {"flux, none ahead", true, true, false, {FEW, WORLD, "base.format=int8", "shard.prefetch=0"}},
    {"flux, kept",
     true,
     false,
     false,
     {FEW, "shard.gather_group=world", "shard.reshard_after_forward=off"}},
    {"flux, every weight", true, false, true, {FEW, WORLD, AGAIN, "train.mode=full"}},
};

static const char full_text[] = "model: {path: MODEL, init: random}\n"
                                "data: {path: TRAIN, sequence_length: 32}\n"
                                "train: {steps: 3, micro_batch: 2, clip_norm: 0.05, seed: 3}\n"
                                "output: {dir: OUT}\n";

/* Made once; every rank of every run reads them. */
static tiny_run tiny_files;
static flux_run flux_files;

/* ---- one run ---- */

static tess_status open_llama(const launch *l, const emu_rank *rank, tess_comm *comm, tiny_run *t,
                              tess_session **s)
{
    const tess_session_options options = {.kind = TESS_SESSION_TRAIN,
                                          .run_text = l->is_full ? full_text : NULL,
                                          .device = rank != NULL ? rank->device : NULL,
                                          .kernels =
                                              rank != NULL ? &emu_kernels : &tess_kernels_cpu};
    return tiny_run_open_as(comm, t, "run", l->override, &options, s);
}

static tess_status open_flux(const launch *l, const emu_rank *rank, tess_comm *comm, flux_run *f,
                             tess_session **s)
{
    flux_launch own = {.name = "run",
                       .model = f->model[FLUX_RUN_TINY],
                       .device = rank != NULL ? rank->device : NULL,
                       .kernels = rank != NULL ? &emu_kernels : &tess_kernels_cpu};
    for (int i = 0; i < TESS_NELEM(own.override); i++)
        own.override[i] = l->override[i];
    return flux_run_open(comm, f, &own, TESS_SESSION_TRAIN, s);
}

static tess_status run(const void *launch_of, tess_comm *comm, const emu_rank *rank,
                       emu_removal *removal, emu_trained *out)
{
    const launch *l = launch_of;
    tiny_run tiny = tiny_files;
    flux_run flux = flux_files;
    tess_session *s = NULL;
    tess_io *io = NULL;
    TESS_TRY(tess_io_create(tess_comm_rank(comm), &io));
    tiny.ctx.io = flux.ctx.io = io;
    tess_status st =
        l->is_flux ? open_flux(l, rank, comm, &flux, &s) : open_llama(l, rank, comm, &tiny, &s);
    if (st == TESS_OK)
        st = emu_session_use(s, rank, removal, out);
    tess_session_close(&s);
    tess_io_destroy(&io);
    return st;
}

static emu_subject subject_of(const launch *l)
{
    return (emu_subject){.name = l->name, .launch = l, .run = run, .is_ahead = l->is_ahead};
}

static void test_bits(void **state)
{
    (void)state;
    for (int i = 0; i < TESS_NELEM(launches); i++) {
        const emu_subject subject = subject_of(&launches[i]);
        emu_session_check_orders(&subject, (emu_options){.is_ahead = true}, (uint64_t)i);
    }
}

/* ---- waits ---- */

/* Adapters alone: where every weight learns, gradients of a small unit lie in a part of the buffer
 * that the large one before it does not send, so not every wait for whole buffers shows with these
 * sizes (those of test_streams_waits.c are made for it). */
static void test_missing_waits(void **state)
{
    (void)state;
    for (int i = 0; i < TESS_NELEM(launches); i++) {
        const emu_subject subject = subject_of(&launches[i]);
        const emu_options o = {.rank_numel = 2, .seed = (uint64_t)i, .is_ahead = true};
        if (launches[i].is_full)
            continue;
        const int numel = emu_session_take_each(&subject, &o);
        print_message("%s: %d waits taken away\n", subject.name, numel);
        assert_true(numel > 0);
    }
}

/* ---- files ---- */

static int make_files(void **state)
{
    tess_comm *self = NULL;
    (void)state;
    if (tess_comm_create_self(&self) != TESS_OK || tiny_run_create(self, &tiny_files) != TESS_OK ||
        flux_run_create(self, &flux_files) != TESS_OK) {
        print_error("no files: %s\n", tess_error_message());
        return 1;
    }
    tess_comm_destroy(&self);
    return 0;
}

static int remove_files(void **state)
{
    tess_comm *self = NULL;
    (void)state;
    if (tess_comm_create_self(&self) != TESS_OK)
        return 1;
    tiny_run_destroy(self, &tiny_files);
    flux_run_destroy(self, &flux_files);
    tess_comm_destroy(&self);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bits),
        cmocka_unit_test(test_missing_waits),
    };
    return cmocka_run_group_tests(tests, make_files, remove_files);
}
