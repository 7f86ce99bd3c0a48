/**
 * Whole FLUX.1 runs on files of their own: a small transformer with weights by hash in the layouts
 * that people have, caches with buckets and captions, a run file, a temporary folder.
 */
#pragma once

#include "core/ctx.h"
#include "core/digest.h"
#include "dist/comm.h"
#include "format/flux_config.h"
#include "train/session.h"

/** Small enough for rows of 64 (the configuration of flux.md section 8), or with tensors that
 * shards cut: hidden 256, heads of 64, 1 + 1 blocks. */
typedef enum flux_size { FLUX_RUN_TINY, FLUX_RUN_WIDE, FLUX_RUN_SIZE_NUMEL } flux_size;

typedef struct flux_run {
    char dir[256];                         /* temporary folder, the same path on every rank */
    char model[FLUX_RUN_SIZE_NUMEL][300];  /* diffusers directories, bf16 */
    char single[FLUX_RUN_SIZE_NUMEL][300]; /* the same weights as Black Forest Labs keeps them */
    char train[300], eval[300];            /* caches */
    tess_ctx ctx;
} flux_run;

tess_flux_config flux_run_config(flux_size size);

/** Collective: rank 0 makes the folder and the files. */
tess_status flux_run_create(tess_comm *comm, flux_run *r);
/** Collective: rank 0 removes the folder. */
void flux_run_destroy(tess_comm *comm, flux_run *r);

/** What is trained. */
typedef struct flux_launch {
    const char *name;            /* folder of the run */
    const char *model;           /* path */
    const char *override[10];    /* ends with NULL */
    bool is_stopped;             /* as a signal would, after one step */
    const char *adapter;         /* readers: instead of a checkpoint; NULL: none */
    const char *checkpoint;      /* readers: "none" is the base alone; NULL: the newest */
    tess_device *device;         /* NULL: what compute.device says */
    const tess_kernels *kernels; /* of the device */
} flux_launch;

/** Open a session. Collective. */
tess_status flux_run_open(tess_comm *comm, flux_run *r, const flux_launch *l,
                          tess_session_kind kind, tess_session **out);
/** A reader that opens no data, as exports and samples do. Collective. */
tess_status flux_run_open_without(tess_comm *comm, flux_run *r, const flux_launch *l,
                                  tess_session **out);
/** Train to the end, or for one step. Collective. */
tess_status flux_run_train(tess_comm *comm, flux_run *r, const flux_launch *l, bool *is_done);

/** What a run left behind. */
typedef struct flux_outcome {
    tess_sha256 digest; /* losses and norms of all steps, evaluations, the adapter */
    double first_loss, last_loss;
    int step_numel;
} flux_outcome;

/** Local. */
tess_status flux_run_outcome(flux_run *r, const char *name, flux_outcome *out);
