/**
 * k-means over vectors that are streamed from a file: residual levels with a beam, groups of
 * dimensions, full passes or mini-batches, over any number of ranks.
 *
 * A group is a slice of the dimensions with a stack of levels of its own; a level is a codebook
 * that learns what the levels before it leave. A step is one pass (or mini-batch) of one level, or
 * one refinement of a whole stack. Vectors are dealt out in blocks, block k to rank k mod W; a rank
 * keeps codes of its vectors, never the vectors.
 *
 * [Note: bits] One scan gives N, max |x| and refuses values that are not finite. All sums are
 * integers at an exponent that max |x| and the codes give, assignments are canonical
 * (kernels/nearest.h), draws are keyed by vector numbers (core/draw.h): codes do not depend on
 * ranks, threads, blocks or on how codebooks are sharded.
 *
 * [Note: beam] Codes of a level are chosen for every entry of the beam; the best `beam` of all
 * continue, by (distance, entry, row). A level trains on what every entry leaves: more points than
 * vectors, so that later levels do not learn the training set by heart.
 *
 * [Note: refinement] With the codes fixed, each level in turn becomes the mean of what all other
 * levels leave of its vectors; then vectors are encoded again.
 *
 * [Note: empty codes] After a pass the i-th code without a vector, in row order, takes the place of
 * the i-th most populous one (ties: lower row) times 1 + 1/1024 in even and 1 - 1/1024 in odd
 * dimensions, and that one the opposite; only codes of vectors that are not all equal are split.
 *
 * [Note: k-means on a device] Vectors go up block by block, the next one while kernels work on this
 * one; residuals, searches and sums stay there (shard/codebook.h). The host reads files, chooses
 * which entries of a beam go on, and sets codes from sums. The bits are the host's.
 */
#pragma once

#include "core/ctx.h"
#include "dist/comm.h"
#include "shard/codebook.h"
#include "train/data/vectors.h"

TESS_BEGIN_DECLS

typedef enum tess_kmeans_init {
    TESS_KMEANS_PLUS_PLUS, /* on a sample of 64 vectors per code; Arthur & Vassilvitskii 2007 */
    TESS_KMEANS_SAMPLE,    /* vectors, drawn without replacement */
    TESS_KMEANS_RANDOM,    /* normal, with the data's mean and spread */
} tess_kmeans_init;

typedef struct tess_kmeans_config {
    int64_t code_numel; /* K */
    int level_numel;
    int group_numel; /* divides the dimension */
    int beam_numel;
    int64_t pass_numel;   /* of a level, at most: it ends when the error repeats */
    int64_t refine_numel; /* of a stack */
    int64_t batch_numel;  /* vectors of a mini-batch; 0: full passes */
    bool is_spherical;    /* vectors and codes of length 1; one level */
    tess_kmeans_init init;
    uint64_t seed;
} tess_kmeans_config;

enum { TESS_KMEANS_BLOCK_NUMEL = 1024, TESS_KMEANS_BEAM_MAX = 32, TESS_KMEANS_LEVEL_MAX = 64 };

/** Memory of a rank, beside the codebooks' own. */
typedef struct tess_kmeans_plan {
    tess_kmeans_config config;
    int64_t vector_numel, dim; /* N, d of the file */
    int world;
    int64_t group_dim;   /* d / groups */
    int64_t block_numel; /* blocks of all ranks */
    int64_t round_numel; /* blocks of the rank with the most */
    int64_t held_numel;  /* vectors of the rank with the most */
    int64_t seed_numel;  /* sample that k-means++ works on; 0: none */
    tess_codebook_plan book;
    tess_codebook_plan other; /* the sharding that was not chosen */
    bool is_device;           /* kernels work on a device */
    size_t near_nbytes;       /* where they work: blocks, residuals, the sample of k-means++ */
    size_t state_nbytes;      /* codes of the rank's vectors; these and the next on the host */
    size_t block_nbytes;      /* what goes there and comes back, codes of a block */
    size_t seed_nbytes;       /* weights of the sample */
    size_t snapshot_nbytes;   /* codes and counts on their way into a checkpoint */
    size_t total_nbytes;      /* with the codebooks; of a device what lies there */
    size_t beside_nbytes;     /* of a device's host; 0 on the host, where it is in the total */
} tess_kmeans_plan;

typedef enum tess_kmeans_sharding {
    TESS_KMEANS_SHARD_AUTO,
    TESS_KMEANS_REPLICATED,
    TESS_KMEANS_ROWS
} tess_kmeans_sharding;

typedef struct tess_kmeans_plan_request {
    tess_kmeans_config config;
    int64_t vector_numel, dim;
    int world, thread_numel;
    tess_kmeans_sharding sharding;
    size_t memory_limit_nbytes; /* 0: none */
    bool is_reader; /* only encodes: no statistics, no codes are kept, N bounds no batch */
    bool is_device; /* the limit is that of a device */
} tess_kmeans_plan_request;

/**
 * Plan a job: auto takes the sharding that sends less among those that fit. Local, pure.
 * @return TESS_E_CONFIG settings that do not fit together (names the key); TESS_E_FIT
 */
TESS_MUST_CHECK tess_status tess_kmeans_plan_make(const tess_kmeans_plan_request *request,
                                                  const tess_kernels *kernels,
                                                  tess_kmeans_plan *out);

/** What a pass found; equal on all ranks. */
typedef struct tess_kmeans_report {
    int group, level; /* level -1: a refinement */
    int64_t pass;     /* of the level, from 1 */
    double error;     /* mean over vectors of |x - code|^2 before the update, summed over d */
    double relative;  /* of the sum of |x|^2 of the group's dimensions */
    double perplexity;
    int64_t used_numel;  /* codes with a vector */
    int64_t split_numel; /* codes that took the place of another's half */
    int64_t vector_numel;
} tess_kmeans_report;

typedef struct tess_kmeans tess_kmeans;

/** All pointers are borrowed until destroy. */
typedef struct tess_kmeans_parts {
    const tess_ctx *ctx;
    const tess_kmeans_plan *plan;
    const tess_kernels *kernels;
    tess_device *device;      /* of the kernels; NULL: the host */
    tess_stream *stream;      /* of the kernels */
    tess_stream *host_stream; /* with threads: what owners of codes do; may be `stream` */
    tess_comm *comm;          /* over memory of the device */
    tess_vectors *vectors;    /* training vectors; NULL for a reader */
} tess_kmeans_parts;

/** Allocate. Local. */
TESS_MUST_CHECK tess_status tess_kmeans_create(const tess_kmeans_parts *parts, tess_kmeans **out);
void tess_kmeans_destroy(tess_kmeans **job);
tess_codebooks *tess_kmeans_books(tess_kmeans *job);
const tess_kmeans_plan *tess_kmeans_get_plan(const tess_kmeans *job);
/** Index of a codebook. */
static inline int tess_kmeans_book(const tess_kmeans_config *c, int group, int level)
{
    return group * c->level_numel + level;
}

/** Read all vectors once: max, mean, sums of squares, identity. Before any step. Collective.
 * @return TESS_E_FORMAT a value that is not finite: vector and dimension are named */
TESS_MUST_CHECK tess_status tess_kmeans_scan(tess_kmeans *job);
typedef struct tess_kmeans_scan_result {
    float largest;      /* max |x| */
    double mean_square; /* mean over vectors of |x|^2 */
    const double *mean; /* [dim] */
    tess_logical_hash digest;
} tess_kmeans_scan_result;
const tess_kmeans_scan_result *tess_kmeans_scanned(const tess_kmeans *job);

/** Where a job stands: what a checkpoint keeps beside codes and counts. */
typedef struct tess_kmeans_progress {
    int64_t step;      /* done, of this run */
    int group, level;  /* in work; level == levels: refining */
    int64_t pass;      /* done of that level, or refinements */
    double error;      /* of the last pass of the level; negative: none yet */
    int64_t batch_idx; /* mini-batches taken so far, of all levels */
} tess_kmeans_progress;
tess_kmeans_progress *tess_kmeans_get_progress(tess_kmeans *job);
bool tess_kmeans_is_done(const tess_kmeans *job);
/** Steps of the whole job where no level ends early. */
int64_t tess_kmeans_step_numel(const tess_kmeans_config *config);

/** After progress, codes and counts were restored: publish, and encode what is finished again.
 * Collective. */
TESS_MUST_CHECK tess_status tess_kmeans_restore(tess_kmeans *job);
/** Steps call `tick` before every block of vectors and every center: signs of life. Local. */
void tess_kmeans_set_tick(tess_kmeans *job, void (*tick)(void *arg), void *arg);
/** One pass, mini-batch or refinement; a level's first one also makes its start codes. Collective.
 */
TESS_MUST_CHECK tess_status tess_kmeans_step(tess_kmeans *job, tess_kmeans_report *out);

/** Codes of a round of vectors with all codebooks, which are published. Collective. */
typedef struct tess_kmeans_encoding {
    const float *x;              /* [vector_numel[own], dim] f32 of this rank, as in the file */
    const int64_t *vector_numel; /* [world], at most TESS_KMEANS_BLOCK_NUMEL each */
    uint32_t *code;              /* out: [own, groups * levels], group-major */
    float *error;                /* out: [own] f32 squared distance to what the codes say */
} tess_kmeans_encoding;
TESS_MUST_CHECK tess_status tess_kmeans_encode(tess_kmeans *job, const tess_kmeans_encoding *round);
/** Mean squared error over all vectors of a file. Collective. */
TESS_MUST_CHECK tess_status tess_kmeans_evaluate(tess_kmeans *job, tess_vectors *vectors,
                                                 double *error, double *mean_square);
/** Codes of a codebook, published: rows first .. first + numel - 1, at most
 * TESS_KMEANS_BLOCK_NUMEL, into `out` [numel, group dim] f32 of rank 0. Collective. */
TESS_MUST_CHECK tess_status tess_kmeans_collect(tess_kmeans *job, int book_idx, int64_t first,
                                                int64_t numel, float *out);
/** What codes of a round say: x' = sum of codes, levels ascending. Collective. */
typedef struct tess_kmeans_decoding {
    const uint32_t *code; /* [own, groups * levels], group-major; TESS_NO_CODE adds nothing */
    const int64_t *vector_numel; /* [world], at most TESS_KMEANS_BLOCK_NUMEL each */
    float *x;                    /* out: [own, dim] f32 */
} tess_kmeans_decoding;
TESS_MUST_CHECK tess_status tess_kmeans_decode(tess_kmeans *job, const tess_kmeans_decoding *round);

TESS_END_DECLS
