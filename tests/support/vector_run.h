/** Vectors in a temporary file, jobs over them, and whole runs with a run file of their own. */
#pragma once

#include "core/ctx.h"
#include "core/digest.h"
#include "dist/comm.h"
#include "train/session.h"
#include "train/vectors/kmeans.h"

typedef enum vector_kind {
    VECTORS_CLUSTERS, /* around 50 centers of spread 5, variance 1 */
    VECTORS_EQUAL,
    VECTORS_ZERO,
    VECTORS_BLANK,   /* two in three are one vector, the others clusters */
    VECTORS_ONE_NAN, /* clusters, but for dimension 1 of vector 1234 */
} vector_kind;

typedef struct vector_run {
    char dir[256]; /* temporary folder, the same path on every rank */
    char file[300];
    char mask[300]; /* beside `file` in whole runs; empty: none */
    int64_t n, d;
    float *x; /* [n, d] what the file holds */
    tess_ctx ctx;
} vector_run;

/** Collective: rank 0 makes the folder and the file. */
tess_status vector_run_create(tess_comm *comm, int64_t n, int64_t d, vector_kind kind,
                              vector_run *v);
/** Collective: rank 0 removes the folder. */
void vector_run_destroy(tess_comm *comm, vector_run *v);

/** A job with its file and threads. */
typedef struct vector_job {
    tess_vectors *vectors;
    tess_pool *pool;
    tess_stream stream;
    tess_kmeans *job;
} vector_job;

typedef struct vector_job_options {
    tess_kmeans_config config;
    tess_kmeans_sharding sharding;
    int thread_numel;
} vector_job_options;

/** Collective; the scan is the caller's. */
tess_status vector_job_open(tess_comm *comm, const vector_run *v, const vector_job_options *options,
                            vector_job *job);
void vector_job_close(vector_job *job);

enum { VECTOR_OVERRIDE_MAX = 8 };

/** A run over the file, in `dir`/`name`. */
typedef struct vector_launch {
    const char *name;
    const char *override[VECTOR_OVERRIDE_MAX]; /* ends with NULL */
    bool is_stopped;                           /* as a signal would, after one step */
    tess_device *device;                       /* NULL: the host */
    const tess_kernels *kernels;               /* of the device */
} vector_launch;

/** A session of the run: training, or a reader of its newest checkpoint. Collective over `comm`. */
tess_status vector_run_open(tess_comm *comm, vector_run *v, const vector_launch *l, bool is_reader,
                            tess_session **session);
/** Collective over `comm`. */
tess_status vector_run_train(tess_comm *comm, vector_run *v, const vector_launch *l, bool *is_done);
/** Two files in the folder are equal byte for byte. Local. */
tess_status vector_run_expect_same_file(vector_run *v, const char *a_name, const char *b_name);
/** A reader of the newest checkpoint of a run with one override, at the file's dimension.
 * Collective over `comm`. */
tess_status vector_run_read(tess_comm *comm, vector_run *v, const char *name, const char *override,
                            tess_session **session);
/**
 * A run over `whole` in one go, and one over `parts`, which lies in the same folder, that is
 * stopped after every step, with all ranks and with one in turn: the same bits. `idx` numbers the
 * runs in the folder. Collective over `comm`.
 */
tess_status vector_run_check_resume(tess_comm *comm, tess_comm *self, vector_run *whole,
                                    vector_run *parts, int idx, const char *override);
/** Errors of all steps and the exported codebooks of a finished run, as one digest. Local. */
tess_status vector_run_outcome(vector_run *v, const char *name, tess_sha256 *out);
