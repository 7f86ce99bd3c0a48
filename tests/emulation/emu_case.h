/** The two-matrix model under the runtime, on the host or on emulated ranks, for a few steps. */
#pragma once

#include "emulation/emu_world.h"
#include "shard/runtime.h"
#include "support/two_matrices.h"

TESS_BEGIN_DECLS

enum { EMU_STEP_MAX = 4 };

/** A setting of the runtime. */
typedef struct emu_case {
    int step_numel;
    int64_t m; /* micro-batches a step */
    int group; /* ranks of a gather group */
    int prefetch;
    int64_t bucket_nbytes; /* units that travel together */
    int between_numel;     /* stages between the two */
    bool is_full, is_tied, is_library, is_once;
    bool checkpoints;                /* recompute activations */
    bool is_quantized;               /* the base */
    bool keeps;                      /* gathered units stay until the end of the round */
    const tess_optimizer *optimizer; /* NULL: AdamW */
    /* Called on every rank when its runtime is there, and before it goes; may be NULL. */
    void (*begin)(void *arg, const emu_rank *rank, tess_runtime *rt);
    void (*end)(void *arg, const emu_rank *rank);
    /* On every emulated rank before the first step; may be NULL. */
    tess_status (*loaded)(void *arg, const emu_rank *rank, tess_runtime *rt);
    void *arg;
} emu_case;

/** What came out; equal bytes, equal bits. */
typedef struct emu_outcome {
    double loss[EMU_STEP_MAX], norm[EMU_STEP_MAX], eval;
    int64_t master[2]; /* logical hash of all masters */
} emu_outcome;

/** On one rank of the host, without emulation. */
TESS_MUST_CHECK tess_status emu_case_on_host(const emu_case *c, emu_outcome *out);
/** On emulated ranks; every rank's outcome must be the same. */
void emu_case_run(const emu_options *options, const emu_case *c, emu_report *report,
                  emu_outcome *out);
/** Steps have allocated nothing of the device since it had `numel` allocations. */
TESS_MUST_CHECK tess_status emu_check_allocations(const emu_rank *rank, int numel);
/** The logical hash of all masters. Collective over `comm`. */
TESS_MUST_CHECK tess_status emu_hash_masters(tess_comm *comm, tess_runtime *rt,
                                             const tess_plan *plan, int64_t lane[2]);

TESS_END_DECLS
