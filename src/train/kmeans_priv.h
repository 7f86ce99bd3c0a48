/** Inner structure of a k-means job, shared by its files. */
#pragma once

#include "core/arith.h"
#include "core/exact.h"
#include "core/memory.h"
#include "train/kmeans.h"

TESS_BEGIN_DECLS

enum { KMEANS_BLOCK = TESS_KMEANS_BLOCK_NUMEL };

struct tess_kmeans {
    tess_kmeans_parts parts;
    tess_kmeans_plan plan;
    int rank, world;
    tess_codebooks *books;
    tess_kmeans_progress progress;
    tess_kmeans_scan_result scan;
    void (*tick)(void *arg); /* called before every block that is read; NULL: nobody's */
    void *tick_arg;
    double *mean;           /* [dim] */
    double *square;         /* [groups] mean over vectors of |x|^2 */
    int64_t *numel;         /* [2, world]: vectors, entries of a round */
    uint32_t *state;        /* [held, beam, levels] codes of the group in work */
    int64_t *tally;         /* [K] counts of all codes */
    float *x;               /* [block, dim] as read */
    float *slice;           /* [block, group dim]: `x` itself with one group */
    float *residual;        /* [block * beam, group dim] */
    uint64_t *key;          /* [block * beam, best] */
    uint32_t *row, *parent; /* [block * beam] */
    uint32_t *code;         /* [block, beam, levels]: of vectors that are not kept */
    float *seed;            /* [seed held, group dim], then distances and weights; k-means++ */
};

/** Entries that continue into a level: min(beam, K^level). Local. */
int kmeans_entries(const tess_kmeans_config *c, int level);
/** Keys per entry. Local. */
int kmeans_best(const tess_kmeans_config *c);

/* ---- rounds: block t W + r of rank r ---- */

/** Vectors of every rank in a round, into numel[0 .. world-1]. Local. */
void kmeans_round(tess_kmeans *job, int64_t vector_numel, int64_t round);
/** Read and prepare the own block of a round. Collective where codebooks are row-sharded. */
TESS_MUST_CHECK tess_status kmeans_read(tess_kmeans *job, tess_vectors *vectors, int64_t round);
/** x / max(|x|, 1e-6). Local. */
void kmeans_make_unit(float *x, int64_t dim);
/** Dimensions of a group, of the block in `x`, into `slice`. Local. */
void kmeans_slice(tess_kmeans *job, int group);
/** One verdict where ranks go together through a round; this rank's own else. */
TESS_MUST_CHECK tess_status kmeans_round_verdict(tess_kmeans *job, tess_status st);
/** One verdict at the end of a pass. Collective. */
TESS_MUST_CHECK tess_status kmeans_pass_verdict(tess_kmeans *job, tess_status st);

/**
 * Entries [lo, lo + block) of every rank's vectors with `entry_numel` entries each, into
 * numel[world
 * ..]: a round of the codebooks. Local. @return false: no rank has any there
 */
bool kmeans_part(tess_kmeans *job, int entry_numel, int64_t lo);

/** What codes leave of the vectors of `slice`: the best entry's, or all `entry_numel`. */
typedef struct kmeans_residual {
    int group;
    int level;            /* levels 0 .. level - 1 are taken off ... */
    int but;              /* ... but this one; -1: none left out */
    int entry_numel;      /* 1: the best */
    const uint32_t *code; /* [block, beam, levels] of the own block */
} kmeans_residual;
/** Into `residual` [own vectors * entry_numel, group dim]. Collective where row-sharded. */
TESS_MUST_CHECK tess_status kmeans_residuals(tess_kmeans *job, const kmeans_residual *what);
/** Add a level's codes to those of a block; error[i] may be NULL. Collective where row-sharded. */
TESS_MUST_CHECK tess_status kmeans_extend(tess_kmeans *job, int group, int level, uint32_t *code,
                                          float *error);

/** Start codes of a level, published. Collective. */
TESS_MUST_CHECK tess_status kmeans_start_level(tess_kmeans *job, int group, int level);
/** Split populous codes in favour of those without a vector; `tally` [K] holds counts. Collective.
 */
TESS_MUST_CHECK tess_status kmeans_repair(tess_kmeans *job, int book_idx, int64_t *split_numel);
/** Exponent of sums of residuals of the levels before `level`. Collective. */
TESS_MUST_CHECK tess_status kmeans_exponent(tess_kmeans *job, int group, int level, int *exponent);
/** Counts of all codes of the pass into `tally`. Collective. */
TESS_MUST_CHECK tess_status kmeans_share_tally(tess_kmeans *job);

TESS_END_DECLS
