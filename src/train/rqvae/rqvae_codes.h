/**
 * Codes of an RQ-VAE that are set from vectors of a whole step, over all ranks: where they start,
 * moving averages that they follow, and gradients of those that live by rows.
 *
 * A rank keeps what its micro-batches gave, and owns rows of every codebook with their averages
 * (shard/codebook.h): sums come to owners, codes go from them to the masters, which have the cut of
 * all trainable tensors. Draws are keyed by a vector's place in the step, sums are integers at one
 * exponent that all vectors of the step give, so that codes do not depend on the number of ranks,
 * nor on where they are searched.
 */
#pragma once

#include "core/draw.h"
#include "shard/codebook.h"
#include "train/describe/describe_rqvae.h"
#include "train/session_priv.h"

TESS_BEGIN_DECLS

/** Bytes that this takes of the staging memory. Local, pure. */
TESS_MUST_CHECK tess_status tess_codes_room_nbytes(const tess_vector_layout *layout,
                                                   size_t *nbytes);
/** Where the masters of a tensor are cut, in its elements: bound [world + 1]. Local, pure. */
void tess_codes_bounds(const tess_registry *reg, int world, int param_idx, int64_t *bound);
/**
 * The codebooks of a layout that has them: in the DATA arena where rows are sharded, else one of
 * them at a time in the staging memory. Local.
 */
TESS_MUST_CHECK tess_status tess_codes_create(tess_session *s, const tess_vector_layout *layout,
                                              tess_codebooks **out);

/** Memory of the staging arena, free between steps. c owned rows. */
typedef struct codes_room {
    char *base; /* NULL: only counted */
    size_t used_nbytes;
    uint32_t *most;         /* [books] */
    int64_t *total;         /* [books] */
    float *value;           /* [c, d]: sums in f32, or drawn vectors */
    float *vector;          /* [d]: one of a device */
    float *share;           /* [range of a tensor] */
    int64_t *drawn;         /* [K] */
    void *draws;            /* scratch of drawing them */
    int64_t *row;           /* [c] */
    uint8_t *expired;       /* [c] */
    int64_t *expired_numel; /* [1] */
    uint64_t *key;          /* [row_numel] */
    uint32_t *code;         /* [row_numel] */
    int64_t *numel;         /* [world]: vectors of a round */
    int64_t *first;         /* [world + 1] */
    int64_t *bound;         /* [world + 1] */
    float *leaf;            /* codes that learn by rows: of a micro-batch, [1 or world, c, d] */
    float *level;           /* of their ordered sum, [level_numel, c, d] */
} codes_room;

/** The vectors that one codebook is set from. Vectors of the step are numbered part by part. */
typedef struct codes_job {
    tess_session *s;
    const tess_vector_layout *at;
    tess_codebooks *books;
    codes_room r;
    int world, rank;
    int64_t round_numel; /* of micro-batches of all ranks */
    int64_t batch_numel; /* micro-batches of this rank */
    int64_t all_numel;   /* vectors of a part in the step */
    int part_numel;      /* parts of every vector that have their codes in this book */
    float *x;            /* of part p, micro-batch t: [row_numel, d] f32 at x + p * part_stride +
                            t * stride */
    int64_t stride, part_stride; /* elements */
    bool is_far;                 /* x lies on the device */
    tess_status *fetched;        /* of vectors that were brought from there */
    int64_t lo_idx, hi_idx;      /* owned rows */
    /* Where vectors are masked: flags of this rank's, [batch_numel, row_numel], and [micro-batches
     * + 1] valid ones of the step in front of each micro-batch. Else NULL. */
    const uint8_t *valid;
    const int64_t *valid_before;
} codes_job;

/** Whether a device trains, and so moves averages and forms entropies. Local. */
static inline bool codes_are_far(tess_session *s)
{
    return tess_runtime_device(s->rt)->space != TESS_HOST;
}
/** The layout in the host's arena. Local. */
static inline char *codes_host_data(tess_session *s)
{
    return (char *)tess_runtime_arena(s->rt, TESS_LIFE_DATA).data;
}
/** The layout as kernels of a device find it, and in front of it the room that averages are moved
 * in. Local. */
static inline char *codes_far_data(tess_session *s, const tess_vector_layout *v)
{
    const tess_view mirror = tess_runtime_arena(s->rt, TESS_LIFE_MIRROR);
    return (char *)mirror.data + (mirror.numel - (int64_t)v->nbytes);
}
static inline char *codes_far_room(tess_session *s, const tess_vector_layout *v)
{
    return codes_far_data(s, v) - v->far.nbytes;
}
/** The layout where kernels work. Local. */
static inline char *codes_work_data(tess_session *s, const tess_vector_layout *v)
{
    return codes_are_far(s) ? codes_far_data(s, v) : codes_host_data(s);
}
/** Bytes of the layout to the device's copy of it, or back; the host may use them afterwards.
 * Nothing to do where the host computes. Local. */
TESS_MUST_CHECK tess_status codes_carry(tess_session *s, const tess_vector_layout *v,
                                        size_t offset_nbytes, int64_t nbytes, bool is_back);
/** Codes start in host memory whatever trains: the kernels and the stream for that. It happens once
 * in a run, level by level on what the level before left, and k-means' rounds are collective over
 * host memory (shard/codebook.h). Local. */
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
                                        tess_codebooks *books, codes_job *job);
/** Vectors of part p in round t of all ranks; `key` is the room's. Local. */
tess_codebook_round codes_round(const codes_job *job, int book, int part, int64_t t);
/** A codebook among those that are in memory. Local. */
static inline int codes_place(const codes_job *job, int book)
{
    return job->at->book.shape.is_sharded ? book : 0;
}
/** The owned rows of its codes, [hi_idx - lo_idx, d]. Local. */
static inline float *codes_rows(const codes_job *job, int book)
{
    return tess_codebooks_rows(job->books, codes_place(job, book));
}
/** Draw `numel` valid vectors of the step; vectors first[r] .. first[r + 1] in the order of drawing
 * go to rank r, into dst. Collective. */
TESS_MUST_CHECK tess_status codes_draw(codes_job *job, const tess_draw *draw, int64_t numel,
                                       float *dst);
/** Exponent for sums over the vectors of all ranks. Collective. @return TESS_E_NUMERIC a number
 * that is not finite */
TESS_MUST_CHECK tess_status codes_exponent(const codes_job *job, int *exponent);
/** Whether row i of micro-batch t of this rank is masked. Local. */
static inline bool codes_is_masked(const codes_job *job, int64_t t, int64_t i)
{
    return job->valid != NULL && job->valid[t * job->at->row_numel + i] == 0;
}
/** Exponent for sums of numbers up to that of these bits (tess_ordered_bits). Local. @return
 * TESS_E_NUMERIC it is not finite */
TESS_MUST_CHECK tess_status codes_exponent_of(const codes_job *job, uint32_t most, int *exponent);
/** Where part p of micro-batch t lies. Local. */
static inline float *codes_vectors(const codes_job *job, int part, int64_t t)
{
    return job->x + part * job->part_stride + t * job->stride;
}
/** This rank's range of a tensor; empty where it owns none. Local. */
typedef struct codes_range {
    tess_view master, copy;
    int64_t first_idx; /* element of the tensor */
    int64_t shard_idx; /* element of the rank's part of the unit */
} codes_range;
codes_range codes_range_of(tess_session *s, int param_idx);
/** This rank's range of a tensor into its masters and compute copies. Local. */
TESS_MUST_CHECK tess_status codes_keep_param(tess_session *s, int param_idx, const float *value);
/** Codes of a book from their owners to the masters and compute copies of all ranks. Collective. */
TESS_MUST_CHECK tess_status codes_keep(codes_job *job, int book);
/** Owned rows of numbers of a book, [hi_idx - lo_idx, d], to the masters' cut: into the room's
 * `share`. Collective. */
TESS_MUST_CHECK tess_status codes_share(codes_job *job, int book, float *rows);
/** A book's codes, as masters or as compute copies have them, to the owners of their rows.
 * Collective. */
TESS_MUST_CHECK tess_status codes_load(codes_job *job, int book, bool is_copy, float *rows);
/** Where row-sharded: all codes as the compute copies have them, ready to be searched.
 * Collective. */
TESS_MUST_CHECK tess_status tess_codes_load(tess_session *s, const tess_vector_layout *layout,
                                            tess_codebooks *books);

/** Set the masters of all codes from the kept vectors z of step 0. Collective. */
TESS_MUST_CHECK tess_status tess_codes_start(tess_session *s, const tess_vector_layout *layout,
                                             tess_codebooks *books);

/** Averages of a fresh run: every code stands for one vector, itself. Collective. */
TESS_MUST_CHECK tess_status tess_averages_start(tess_session *s, const tess_vector_layout *layout,
                                                tess_codebooks *books);
/** Averages between their owners and the ranges that checkpoints hold. Collective. */
TESS_MUST_CHECK tess_status tess_averages_recut(tess_session *s, const tess_vector_layout *layout,
                                                tess_codebooks *books, bool to_rows);
/**
 * One update from the kept vectors and codes of the step that was: averages, codes, and where the
 * run has a threshold, replacement of dead codes. Collective.
 */
TESS_MUST_CHECK tess_status tess_averages_update(tess_session *s, const tess_vector_layout *layout,
                                                 tess_codebooks *books);

/** Gradients of row-sharded codes from the kept vectors and codes of the step that is, of losses
 * times `grad_scale`, to where the optimizer finds them. Collective. */
TESS_MUST_CHECK tess_status tess_codes_gradient(tess_session *s, const tess_vector_layout *layout,
                                                tess_codebooks *books, float grad_scale);

/** What a model sees of the flags [row_numel] of vectors: their numbers [row_numel], and of images
 * those of lines [row_numel, lines]. Local. @return how many are valid */
int64_t tess_mask_spread(const tess_vector_layout *layout, const uint8_t *valid, int64_t row_numel,
                         uint32_t *own, uint32_t *line);

/** Entropy of the mean assignment of a step, from this rank's sums where kernels work: its value
 * and slopes for the micro-batches, the same on all ranks, in the same memory. Collective. */
TESS_MUST_CHECK tess_status tess_mean_entropy(tess_session *s, const tess_vector_layout *layout);

TESS_END_DECLS
