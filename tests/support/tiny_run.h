/**
 * A whole run on files of its own: tiny Llama config, synthetic token files, run file, temporary
 * folder.
 *
 * The text is drawn from a first-order chain, so that a model can learn it and the loss falls.
 */
#pragma once

#include "core/ctx.h"
#include "core/digest.h"
#include "dist/comm.h"
#include "train/session.h"

typedef struct tiny_run {
    char dir[256]; /* temporary folder, the same path on every rank */
    char model[300], train[300], run_file[300];
    char eval[300]; /* empty: nothing is evaluated */
    tess_ctx ctx;   /* of this rank */
} tiny_run;

/** Collective: rank 0 makes the folder and its files. `log` lines are dropped. */
tess_status tiny_run_create(tess_comm *comm, tiny_run *t);
/** Collective: rank 0 removes the folder. */
void tiny_run_destroy(tess_comm *comm, tiny_run *t);

/** What a finished run left behind, as one digest a part: equal digests, equal bits. */
typedef struct tiny_outcome {
    tess_sha256 losses;  /* loss_bits and grad_norm of every step */
    tess_sha256 adapter; /* export/adapter_model.safetensors */
    double first_loss, last_loss;
    int64_t clipped_numel, step_numel;
} tiny_outcome;

enum { TINY_OVERRIDE_MAX = 16 };

/**
 * Train in `dir`/`name` with the overrides and read the outcome on every rank of `comm`.
 * Collective.
 * @param overrides  NULL-terminated
 */
tess_status tiny_run_train(tess_comm *comm, tiny_run *t, const char *name,
                           const char *const *overrides, tiny_outcome *out);
/**
 * Train and stop as a signal would after `step` steps; 0: to the end. The run must begin at step
 * `first`. Collective.
 */
tess_status tiny_run_until(tess_comm *comm, tiny_run *t, const char *name,
                           const char *const *overrides, int64_t first, int64_t step);
/** Open a session on `dir`/`name`. Collective. */
tess_status tiny_run_open(tess_comm *comm, tiny_run *t, const char *name,
                          const char *const *overrides, tess_session_kind kind, tess_session **out);
/** The same with further options of the session; files, overrides and kind are filled in. A
 * `run_text` replaces the run file. Collective. */
tess_status tiny_run_open_as(tess_comm *comm, tiny_run *t, const char *name,
                             const char *const *overrides, const tess_session_options *options,
                             tess_session **out);
/** The model gets weights: those of a short training of all of them, exported to `model`.
 * Collective.
 */
tess_status tiny_run_make_weights(tess_comm *comm, tiny_run *t);
/** What a run left behind so far. Local. */
tess_status tiny_run_outcome(tiny_run *t, const char *name, tiny_outcome *out);
