/** Inner structure of a k-means job, shared by its files. */
#pragma once

#include "core/arith.h"
#include "core/device.h"
#include "core/exact.h"
#include "core/memory.h"
#include "train/vectors/kmeans.h"

TESS_BEGIN_DECLS

enum { KMEANS_BLOCK = TESS_KMEANS_BLOCK_NUMEL };

/** Memory where kernels work, then of the host that copies of a device reach. */
typedef enum kmeans_place {
    KMEANS_X,           /* [block, dim] f32, of a device two of them */
    KMEANS_SLICE,       /* [block, group dim] f32; one group: none */
    KMEANS_RESIDUAL,    /* [block * beam, group dim] f32 */
    KMEANS_SEED,        /* [seed, group dim] f32; the sample of k-means++ */
    KMEANS_SEED_KEY,    /* [seed] u64; on the host none */
    KMEANS_CENTER,      /* [centers, group dim] f32; on the host none */
    KMEANS_CENTER_PACK, /* as the search wants it */
    KMEANS_HOST_X,      /* [2, block, dim] f32; on the host none */
    KMEANS_HOST_KEY,    /* [block * beam, best] u64 */
    KMEANS_HOST_SEED_KEY,
    KMEANS_HOST_CENTER,
    KMEANS_PLACE_NUMEL
} kmeans_place;

typedef struct kmeans_layout {
    size_t offset_nbytes[KMEANS_PLACE_NUMEL];
    size_t near_nbytes, host_nbytes;
} kmeans_layout;

/** A block of vectors of this rank. */
typedef struct kmeans_block {
    float *x;              /* [block, dim] host */
    float *near;           /* the same where kernels read it; `x` itself on the host */
    tess_event up;         /* of a device: its last copy there */
    tess_vectors *vectors; /* read ahead: whose round it holds; NULL: none */
    int64_t round;
} kmeans_block;

struct tess_kmeans {
    tess_kmeans_parts parts;
    tess_device *device; /* the host's too */
    tess_host_device host;
    tess_arena *arena[2]; /* where kernels work, and of the host */
    kmeans_layout layout;
    tess_stream *copying;  /* of a device: blocks go up */
    kmeans_block block[2]; /* on the host one */
    int block_idx;
    tess_vectors *next; /* whose round comes after the one in work; NULL: none, or it is read */
    int64_t next_round;
    tess_kmeans_plan plan;
    int rank, world;
    tess_codebooks *books;
    tess_kmeans_progress progress;
    tess_kmeans_scan_result scan;
    void (*tick)(void *arg); /* called before every block that is read; NULL: nobody's */
    void *tick_arg;
    double *mean;    /* [dim] */
    double *square;  /* [groups] mean over vectors of |x|^2 */
    int64_t *numel;  /* [2, world]: vectors, entries of a round */
    uint32_t *state; /* [held, beam, levels] codes of the group in work */
    int64_t *tally;  /* [K] counts of all codes */
    int64_t *spread; /* [K] ordered bits of the largest distance of a pass; see kmeans_repair */
    float *x;        /* [block, dim] as read, host */
    float *near;     /* the same where kernels read it */
    float *slice;    /* [block, group dim], there: `near` itself with one group */
    float *residual; /* [block * beam, group dim], there */
    uint64_t *key;   /* [block * beam, best] host */
    uint32_t *row, *parent; /* [block * beam] host */
    uint32_t *code;         /* [block, beam, levels]: of vectors that are not kept */
};

TESS_MUST_CHECK tess_status kmeans_lay_out(const tess_kmeans_plan *plan,
                                           const tess_kernels *kernels, kmeans_layout *out);
/** Memory of a place. Local. */
void *kmeans_at(const tess_kmeans *job, kmeans_place which);
/** Memory where kernels work. Local. */
static inline tess_view kmeans_view(const tess_kmeans *job, const void *data, int64_t numel,
                                    tess_dtype dt)
{
    return (tess_view){(void *)(uintptr_t)data, numel, dt, job->device->space};
}
static inline bool kmeans_is_far(const tess_kmeans *job)
{
    return job->device->space == TESS_DEVICE;
}
/** What kernels left, where the host reads it: rows [numel, group dim] f32 in the place of the
 * block in `x`, at most a block; on the host itself `src`. Local. */
TESS_MUST_CHECK tess_status kmeans_land(tess_kmeans *job, float *src, int64_t numel, float **out);

/** Entries that continue into a level: min(beam, K^level). Local. */
int kmeans_entries(const tess_kmeans_config *c, int level);
/** Keys per entry. Local. */
int kmeans_best(const tess_kmeans_config *c);

/** Centers of k-means++ that are drawn at once when `chosen_numel` are there; it never falls. */
int64_t kmeans_center_numel(int64_t chosen_numel);

/* ---- rounds: block t W + r of rank r ---- */

/** Vectors of every rank in a round, into numel[0 .. world-1]. Local. */
void kmeans_round(tess_kmeans *job, int64_t vector_numel, int64_t round);
/** Read and prepare the own block of a round, and bring it where kernels read. Collective where
 * codebooks are row-sharded. */
TESS_MUST_CHECK tess_status kmeans_read(tess_kmeans *job, tess_vectors *vectors, int64_t round);
/** The same, of training vectors, and the dimensions of a group of it. */
TESS_MUST_CHECK tess_status kmeans_read_group(tess_kmeans *job, int group, int64_t round);
/** While a device works on the block in `x`: read the next round's, and send it. On the host, and
 * where there is none, nothing. What fails is tried again when it is due. Local. */
void kmeans_read_ahead(tess_kmeans *job);
/** The own block of a round for the host alone. Local. */
TESS_MUST_CHECK tess_status kmeans_read_host(tess_kmeans *job, tess_vectors *vectors,
                                             int64_t round);
/** A new block in `x` that the caller fills; then bring it where kernels read. Local. */
TESS_MUST_CHECK tess_status kmeans_open_block(tess_kmeans *job);
TESS_MUST_CHECK tess_status kmeans_send_block(tess_kmeans *job);
/** x / max(|x|, 1e-6). Local. */
void kmeans_make_unit(float *x, int64_t dim);
/** Dimensions of a group, of the block in work, into `slice`. Local. */
TESS_MUST_CHECK tess_status kmeans_slice(tess_kmeans *job, int group);
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
/** Less the codes of rows that ranks want, numel[rank] each, at most a block: [own numel, group
 * dim] f32, host, until the next block. Collective. */
TESS_MUST_CHECK tess_status kmeans_fetch_negated(tess_kmeans *job, int book_idx,
                                                 const uint32_t *row, const int64_t *numel,
                                                 float **out);
/** Add a level's codes to those of a block; error[i] may be NULL. Collective where row-sharded. */
TESS_MUST_CHECK tess_status kmeans_extend(tess_kmeans *job, int group, int level, uint32_t *code,
                                          float *error);

/** The owned codes become the means of what was summed. Local. */
TESS_MUST_CHECK tess_status kmeans_take_means(tess_kmeans *job, int book_idx);
/** Start codes of a level, published. Collective. */
TESS_MUST_CHECK tess_status kmeans_start_level(tess_kmeans *job, int group, int level);
/** Before codes become means, where any is without a vector: `spread` [K] from largest distances of
 * this rank's vectors to 1 where a code's vectors are not all equal, else 0. Collective. */
TESS_MUST_CHECK tess_status kmeans_find_spread(tess_kmeans *job, int book_idx);
/** Split populous codes in favour of those without a vector; `tally` [K] holds counts, `spread` [K]
 * what may be split. Collective. */
TESS_MUST_CHECK tess_status kmeans_repair(tess_kmeans *job, int book_idx, int64_t *split_numel);
/** Exponent of sums of residuals of the levels before `level`. Collective. */
TESS_MUST_CHECK tess_status kmeans_exponent(tess_kmeans *job, int group, int level, int *exponent);
/** Counts of all codes of the pass into `tally`. Collective. */
TESS_MUST_CHECK tess_status kmeans_share_tally(tess_kmeans *job);

TESS_END_DECLS
