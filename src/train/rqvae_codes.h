/**
 * Codes of an RQ-VAE that are set from vectors of a whole step, over all ranks: where they start,
 * and moving averages that they follow.
 *
 * A rank keeps what its micro-batches gave. Draws are keyed by a vector's place in the step, sums
 * are integers at one exponent that all vectors of the step give, so that codes do not depend on
 * the number of ranks.
 */
#pragma once

#include "train/describe_rqvae.h"
#include "core/draw.h"
#include "train/session_priv.h"

TESS_BEGIN_DECLS

/** Bytes that this takes of the staging memory. Local, pure. */
TESS_MUST_CHECK tess_status tess_codes_room_nbytes(const tess_run *run,
                                                   const tess_vector_layout *layout,
                                                   const tess_kernels *kernels, size_t *nbytes);

/** Memory of the staging arena, free between steps. */
typedef struct codes_room {
    char *base; /* NULL: only counted */
    size_t used_nbytes;
    float *code;            /* [K, d] */
    int64_t *sum;           /* [K, d] */
    int64_t *count, *drawn; /* [K] */
    uint8_t *expired;       /* [K] */
    uint64_t *key;          /* [kept_numel] */
    uint32_t *row;          /* [kept_numel] */
    tess_view pack, work;
} codes_room;

/** The vectors that one codebook is set from. Vectors of the step are numbered part by part. */
typedef struct codes_job {
    tess_session *s;
    const tess_vector_layout *at;
    codes_room r;
    int64_t batch_numel; /* micro-batches of this rank */
    int64_t all_numel;   /* vectors of a part in the step */
    int part_numel;      /* parts of every vector that have their codes in this book */
    float *x;            /* of part p, micro-batch t: [row_numel, d] f32 at x + p * part_stride +
                            t * stride */
    int64_t stride, part_stride; /* elements */
} codes_job;

/** Codes are set in host memory whatever trains: the kernels and the stream for that. Local. */
static inline const tess_kernels *codes_kernels(tess_session *s)
{
    return tess_runtime_device(s->rt)->space == TESS_HOST ? s->kernels : &tess_kernels_cpu;
}
static inline tess_stream *codes_stream(tess_session *s)
{
    return tess_runtime_device(s->rt)->space == TESS_HOST ? tess_runtime_stream(s->rt)
                                                          : &s->codes_stream;
}

/** Lay the room out; x and strides are the caller's. Collective. */
TESS_MUST_CHECK tess_status codes_begin(tess_session *s, const tess_vector_layout *layout,
                                        codes_job *job);
/** Sums over ranks, in place. Collective. */
TESS_MUST_CHECK tess_status codes_share(const codes_job *job, int64_t *words, int64_t numel);
/** Draw `numel` vectors of the step into r.code [numel, d]; overwrites r.sum and r.drawn.
 * Collective. */
TESS_MUST_CHECK tess_status codes_draw(codes_job *job, const tess_draw *draw, int64_t numel);
/** Exponent for sums over the vectors of all ranks. Collective. @return TESS_E_NUMERIC a number
 * that is not finite */
TESS_MUST_CHECK tess_status codes_exponent(const codes_job *job, int *exponent);
/** Where part p of micro-batch t lies. Local. */
static inline float *codes_vectors(const codes_job *job, int part, int64_t t)
{
    return job->x + part * job->part_stride + t * job->stride;
}
/** This rank's range of a tensor; empty where it owns none. Local. */
typedef struct codes_range {
    tess_view master, copy;
    int64_t first_idx; /* element of the tensor */
} codes_range;
codes_range codes_range_of(tess_session *s, int param_idx);
/** This rank's range of a tensor into its masters and compute copies. Local. */
TESS_MUST_CHECK tess_status codes_keep_param(tess_session *s, int param_idx, const float *value);
/** The same of a book's codes [K, d]. Local. */
TESS_MUST_CHECK tess_status codes_keep(const codes_job *job, int book, const float *code);
/** A book's codes from the masters of all ranks; overwrites r.sum. Collective. */
TESS_MUST_CHECK tess_status codes_gather(codes_job *job, int book, float *code);
/** Numbers of which every rank holds some and zeros else, whole on all ranks; overwrites r.sum.
 * Collective. */
TESS_MUST_CHECK tess_status codes_join(codes_job *job, float *value, int64_t numel);

/** Set the masters of all codes from the kept vectors z of step 0. Collective. */
TESS_MUST_CHECK tess_status tess_codes_start(tess_session *s, const tess_vector_layout *layout);

/** Averages of a fresh run: every code stands for one vector, itself. Collective. */
TESS_MUST_CHECK tess_status tess_averages_start(tess_session *s, const tess_vector_layout *layout);
/** After a checkpoint: averages of all ranks come together. Collective. */
TESS_MUST_CHECK tess_status tess_averages_resume(tess_session *s, const tess_vector_layout *layout);
/**
 * One update from the kept vectors and codes of the step that was: averages, codes, and where the
 * run has a threshold, replacement of dead codes. Collective.
 */
TESS_MUST_CHECK tess_status tess_averages_update(tess_session *s, const tess_vector_layout *layout);

/** Entropy of the mean assignment of a step, from this rank's sums in `mean_sum`: its value and
 * slopes for the micro-batches, the same on all ranks. Collective. */
TESS_MUST_CHECK tess_status tess_mean_entropy(tess_session *s, const tess_vector_layout *layout);

TESS_END_DECLS
