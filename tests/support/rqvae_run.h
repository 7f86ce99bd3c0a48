/** Whole runs of quantized autoencoders over a file of vectors, or a folder of images: what they
 * leave, and comparisons of such. */
#pragma once

#include "tests/support/vector_run.h"
#include "train/session.h"

enum { RQVAE_OVERRIDE_MAX = 12, RQVAE_STEPS = 12 };

/** A run and how it differs from the others. */
typedef struct rqvae_launch {
    const char *name;
    const char *quantizer; /* keys of that section; NULL: codes, levels and code_dim */
    const char *override[RQVAE_OVERRIDE_MAX]; /* ends with NULL */
    const char *images;  /* folder in that of the vectors: family vqvae over it; NULL: rqvae */
    bool is_stopped;     /* as a signal would, after one step */
    bool is_masked;      /* by rqvae_make_mask; images by a file `positions.fbin` of the test's */
    bool reads_data;     /* a reader too, which evaluates */
    tess_device *device; /* NULL: what compute.device says */
    const tess_kernels *kernels; /* of the device */
} rqvae_launch;

/** What a run leaves. */
typedef struct rqvae_outcome {
    tess_sha256 digest; /* losses, norms, levels, evaluations, tensors */
    double first_loss, last_loss;
    int step_numel;
} rqvae_outcome;

/** Images of 16 x 16 with 3 channels, a disk of one color on another, as .npy in `folder`.
 * Collective over `comm`. */
tess_status rqvae_make_images(tess_comm *comm, vector_run *v, const char *folder, int numel);
/** `mask.fbin` in the folder: seven of ten vectors, and in the first step micro-batches 1 to 3 of
 * 5, and so all of the last of up to 4 ranks. Checked on this number of ranks; the launches have
 * the seed and the sizes of the run's text. Collective over `comm`. */
tess_status rqvae_make_mask(tess_comm *comm, vector_run *v);
/** The vector at a place of the first epoch's order. Local. */
int64_t rqvae_vector_at(int64_t n, int64_t place);
/** Of n vectors. Local. */
bool rqvae_is_valid(int64_t n, int64_t vector_idx);
/** Vectors [numel, dim] of a file in the folder. Local. */
tess_status rqvae_write(vector_run *v, const char *name, const float *x, const int64_t shape[2]);
/** One image of another extent beside them. Local. */
tess_status rqvae_make_image(vector_run *v, const char *folder, int idx, int extent);
/** A session of the run: training, or a reader of its newest checkpoint. Collective over `comm`. */
tess_status rqvae_open(tess_comm *comm, vector_run *v, const rqvae_launch *l, bool is_reader,
                       tess_session **session);
/** Collective over `comm`. */
tess_status rqvae_train(tess_comm *comm, vector_run *v, const rqvae_launch *l, bool *is_done);
/** Local. */
tess_status rqvae_outcome_of(vector_run *v, const char *run, rqvae_outcome *out);
/** Two runs of RQVAE_STEPS steps left the same bits. Local. */
tess_status rqvae_expect_same(vector_run *v, const char *a_name, const char *b_name);
/** The run on all ranks and on one leave the same bits. Collective over `comm`. */
tess_status rqvae_check_alone(tess_comm *comm, tess_comm *self, vector_run *v,
                              const rqvae_launch *l);
/** The run, and one that is stopped after every step, with all ranks and with one in turn.
 * Collective over `comm`. */
tess_status rqvae_check_resume(tess_comm *comm, tess_comm *self, vector_run *v,
                               const rqvae_launch *whole);
/** Collective over `comm`. */
tess_status rqvae_expect_refused(tess_comm *comm, vector_run *v, const rqvae_launch *l,
                                 tess_status code, const char *words);
/** A number of the plan that run `run` left; `key` with its quotes. Local. */
tess_status rqvae_planned(vector_run *v, const char *run, const char *key, int64_t *out);
