/**
 * Codebooks of one size over all ranks: who holds a code, how vectors find the nearest one, how
 * statistics reach its owner.
 *
 * Codebook rows are cut over the world like slabs: c = ceil(K / W), rank r owns rows [r c,
 * min((r+1) c, K)) with their sums and counts. Replicated, every rank also holds all codes and
 * searches alone; sums go to owners, new codes come back. Row-sharded, a round of vectors (a block
 * of every rank) is gathered, each rank searches its rows, the least key of all ranks wins, and
 * owners add what they own. Keys, sums and codes are the same bits either way
 * (kernels/nearest.h, kernels/codebook.h).
 *
 * [Note: codebooks on a device] Codes, vectors, keys and sums of a pass lie where kernels work, and
 * travel between ranks from there. What owners set codes from lies on the host: their rows and
 * counts, and the sums that arrived at end_sums. Rows that the host chose go up with every call,
 * keys come down.
 *
 * Functions named Collective are called by all ranks of the communicator in the same order, also by
 * ranks without vectors. One that fails in the middle is fatal for the launch.
 */
#pragma once

#include "core/digest.h"
#include "core/device.h"
#include "dist/comm.h"
#include "dist/contract.h"
#include "kernels/kernels.h"

TESS_BEGIN_DECLS

/** What decides memory and traffic. */
typedef struct tess_codebook_shape {
    int world;
    int book_numel;      /* codebooks */
    int64_t code_numel;  /* K of each */
    int64_t dim;         /* d */
    int64_t block_numel; /* vectors of a rank that are searched at once */
    int best_numel;      /* keys per vector, at most */
    int thread_numel;
    bool is_sharded; /* codes live with their owners alone */
    bool has_sums;   /* statistics are taken, not only assignments */
    bool is_device;  /* kernels work on a device */
    /* Codes are set from vectors of the ranks: so many at once on their way to owners; 0: not. */
    int64_t route_numel;
} tess_codebook_shape;

/** One planned buffer of a rank. */
typedef struct tess_codebook_buffer {
    const char *name;
    size_t nbytes, offset_nbytes;
    bool is_beside; /* on the host of a device */
} tess_codebook_buffer;

typedef enum tess_codebook_place {
    TESS_BOOK_CODE,     /* [book, W c or c, d] f32 */
    TESS_BOOK_COUNT,    /* [book, c] i64: vectors of each owned code; of the host */
    TESS_BOOK_PACK,     /* [book] codes as the search wants them */
    TESS_BOOK_SUM,      /* [K or c, d] i64 */
    TESS_BOOK_TALLY,    /* [K or c] i64: counts while they are taken */
    TESS_BOOK_RECEIVE,  /* pieces of sums, or code rows */
    TESS_BOOK_GATHERED, /* [W, block, d] f32 */
    TESS_BOOK_KEY,      /* [2, W, block, best] u64; replicated: none, of a device [block, best] */
    TESS_BOOK_ROW,      /* [W + 1, block] rows; of a device [W + 2, block] */
    TESS_BOOK_ROUTE,    /* [2, route, d] f32: vectors on their way to owners */
    TESS_BOOK_WORK,     /* of the search */
    /* Beside a device, on the host: */
    TESS_BOOK_OWN_CODE,  /* [book, c, d] f32 */
    TESS_BOOK_OWN_SUM,   /* [c, d] i64 */
    TESS_BOOK_OWN_TALLY, /* [c] i64 */
    TESS_BOOK_OWN_ROW,   /* [W + 2, block] rows on their way up */
    TESS_BOOK_LANDED,    /* pieces of sums, or keys, that came down */
    TESS_BOOK_PLACE_NUMEL
} tess_codebook_place;

typedef struct tess_codebook_plan {
    tess_codebook_shape shape;
    int64_t row_numel;   /* c */
    int64_t slice_numel; /* rows of a piece of sums on its way to the owner */
    tess_codebook_buffer buffer[TESS_BOOK_PLACE_NUMEL];
    size_t total_nbytes;  /* where kernels work */
    size_t beside_nbytes; /* of a device's host; 0 on the host */
} tess_codebook_plan;

/** Local, pure. @return TESS_E_RANGE sizes overflow; TESS_E_UNSUPPORTED `kernels` has no codebooks
 */
TESS_MUST_CHECK tess_status tess_codebook_plan_make(const tess_codebook_shape *shape,
                                                    const tess_kernels *kernels,
                                                    tess_codebook_plan *out);
/**
 * Bytes that a rank receives in one pass over all vectors, statistics and new codes included; the
 * most of any rank. Local, pure.
 *
 * @param round_numel  blocks of the rank that has the most
 */
double tess_codebook_pass_nbytes(const tess_codebook_plan *plan, int64_t round_numel);

/** Enter the collectives into a contract, behind the wires that it has. Local. */
TESS_MUST_CHECK tess_status tess_codebook_plan_contract(const tess_codebook_plan *plan,
                                                        tess_contract *contract);

typedef struct tess_codebooks tess_codebooks;

/** All pointers are borrowed until destroy. */
typedef struct tess_codebooks_parts {
    const tess_codebook_plan *plan;
    const tess_kernels *kernels;
    tess_device *device; /* NULL: the host; of `kernels`, `stream` and the memory of `comm` */
    tess_stream *stream; /* on the host with its threads */
    tess_comm *comm;
    uint32_t first_entry_idx; /* wires in front of these in the contract */
    /* [total_nbytes] host memory of the caller's plan, aligned as an arena; where it is scratch,
     * nothing stays in it but what a caller of these functions brings there. numel 0: own memory,
     * that begins with zeros. */
    tess_view memory;
} tess_codebooks_parts;

/** Allocates what the plan says, codes and counts are zero; or takes the given memory. Local. */
TESS_MUST_CHECK tess_status tess_codebooks_create(const tess_codebooks_parts *parts,
                                                  tess_codebooks **out);
void tess_codebooks_destroy(tess_codebooks **books);
/** Enter the collectives into a contract that is still empty. Local. */
TESS_MUST_CHECK tess_status tess_codebooks_contract(const tess_codebooks *books,
                                                    tess_contract *contract);

/** Rows [lo, hi) that `rank` owns. Local. */
void tess_codebook_owned(const tess_codebook_plan *plan, int rank, int64_t *lo_idx,
                         int64_t *hi_idx);
int tess_codebooks_world(const tess_codebooks *books);
/** The owned rows [hi - lo, d] f32 of a codebook, host. Whoever changes them publishes. Local. */
float *tess_codebooks_rows(tess_codebooks *books, int book_idx);
/** Their counts [hi - lo] i64, host, kept beside them. Local. */
int64_t *tess_codebooks_counts(tess_codebooks *books, int book_idx);
/** Replicated on the host: all codes [K, d] f32, valid after publish; else NULL. Local. */
const float *tess_codebooks_all(const tess_codebooks *books, int book_idx);

/** Bring owned rows where searches need them. Collective. */
TESS_MUST_CHECK tess_status tess_codebooks_publish(tess_codebooks *books, int book_idx);

/** Digest of all codes as this rank searches them: the same on all ranks, of nothing where codes
 * are row-sharded. Local. */
TESS_MUST_CHECK tess_status tess_codebooks_copies_digest(tess_codebooks *books, int book_idx,
                                                         tess_xxh128 *out);

/** Codes that are drawn by their distances (quantizer_vector.h, sample). */
typedef struct tess_codebook_draw {
    double temperature; /* above 0 */
    bool is_cosine;
    tess_rng rng;
    const int64_t *first_idx; /* [world] number of the first vector of every rank's block */
} tess_codebook_draw;

/** A block of every rank. Vectors lie where kernels work, rows and keys on the host. */
typedef struct tess_codebook_round {
    int book_idx;
    const float *x;              /* [vector_numel[own rank], d] f32, of this rank */
    const int64_t *vector_numel; /* [world] at most block_numel, the same on all ranks */
    int best_numel;              /* 1 .. the plan's */
    /* out: [own vector_numel, best_numel] u64, ascending; of a device when its stream has passed,
     * into memory that its copies reach */
    uint64_t *key;
    bool adds; /* each vector also enters the sums of its nearest code; best_numel is 1 */
    const tess_codebook_draw *draw; /* row-sharded, best_numel 1, on the host: a drawn code; NULL:
                                       the nearest */
} tess_codebook_round;

/** Keys of the nearest codes; with `adds` inside begin_sums and end_sums. Collective. */
TESS_MUST_CHECK tess_status tess_codebooks_search(tess_codebooks *books,
                                                  const tess_codebook_round *round);
/** Add vectors to the sums of given rows: `row` [own vector_numel]; TESS_NO_CODE adds nothing.
 * `key`, `best_numel` and `adds` of the round are not used. Collective. */
TESS_MUST_CHECK tess_status tess_codebooks_add(tess_codebooks *books,
                                               const tess_codebook_round *round,
                                               const uint32_t *row);
/**
 * dst[i] = x[parent[i]] - code[row[i]] for the entries of every rank (parent NULL: i; `dst` may be
 * `x` then). `entry_numel` [world] may exceed the block. Collective.
 */
typedef struct tess_codebook_subtraction {
    int book_idx;
    const float *x;             /* [., d] f32, where kernels work */
    const uint32_t *parent;     /* [entry_numel[own rank]] or NULL; host */
    const uint32_t *row;        /* the same; TESS_NO_CODE takes nothing off */
    const int64_t *entry_numel; /* [world], the same on all ranks */
    float *dst;                 /* [entry_numel[own rank], d] f32, where kernels work */
} tess_codebook_subtraction;

TESS_MUST_CHECK tess_status tess_codebooks_subtract(tess_codebooks *books,
                                                    const tess_codebook_subtraction *what);
/** dst[i] = x[row[i]], [numel, d], where kernels work; `row` on the host. Local. */
TESS_MUST_CHECK tess_status tess_codebooks_pick(tess_codebooks *books, const float *x,
                                                const uint32_t *row, int64_t numel, float *dst);
/**
 * dst[i] = code[row[i]], zeros for TESS_NO_CODE, for a round whose `vector_numel` says how many
 * rows each rank wants; row-sharded and on the host only. `x`, `key`, `best_numel` and `adds` of
 * the round are not used. Collective.
 */
TESS_MUST_CHECK tess_status tess_codebooks_fetch(tess_codebooks *books,
                                                 const tess_codebook_round *round,
                                                 const uint32_t *row, float *dst);
/** What no rank knows of the others' blocks. */
typedef struct tess_codebook_sizes {
    const int64_t *vector_numel; /* [world] */
    const int64_t *first_idx;    /* [world] */
} tess_codebook_sizes;

/** The own two numbers to all ranks; `all` is borrowed until the next call. Collective. */
TESS_MUST_CHECK tess_status tess_codebooks_share_sizes(tess_codebooks *books, int64_t vector_numel,
                                                       int64_t first_idx, tess_codebook_sizes *all);

/** Numbers [K, width] that owners of rows have, and ranks of another cut have too. */
typedef struct tess_codebook_cut {
    int64_t width;        /* numbers of a row */
    const int64_t *bound; /* [world + 1]: of the other cut rank r has [bound[r], bound[r + 1]) */
    float *rows;          /* [owned rows, width] f32 */
    float *other;         /* [bound[rank + 1] - bound[rank]] f32 */
    bool to_rows;         /* else from rows to the other cut */
} tess_codebook_cut;

/** Bring them from one cut to the other. Collective. */
TESS_MUST_CHECK tess_status tess_codebooks_recut(tess_codebooks *books,
                                                 const tess_codebook_cut *cut);
/** Bytes that `rank` receives where rows of numbers go to the other cut, or come from it. Local,
 * pure. */
double tess_codebook_recut_nbytes(const tess_codebook_plan *plan, int64_t width,
                                  const int64_t *bound, int rank, bool to_rows);

/**
 * Gradients of a row-sharded codebook's codes in one round of micro-batches, a block of every rank:
 * owners make them from the vectors (quantizer_vector.h, code_gradient), one leaf for each
 * micro-batch, and push the leaves into the ordered sum of all micro-batches of the step
 * (gradient.c, [Note: ordered sum]): the bits of codes that every rank holds.
 */
typedef struct tess_codebook_gradient {
    int book_idx;
    int part_numel;              /* blocks of a micro-batch that have their codes in this book */
    const int64_t *vector_numel; /* [world] of a block, the same on all ranks; 0: no micro-batch */
    const float *x;              /* [vector_numel[own rank], d] of part p at x + p * x_stride */
    const uint32_t *row;         /* [vector_numel[own rank]] at row + p * row_stride */
    int64_t x_stride, row_stride;
    float coefficient;
    int64_t first_idx; /* of the step's micro-batches, that of rank 0 in this round */
    float *leaf;       /* [1, or world where there are several parts; owned rows, d] scratch */
    float *level;      /* [level_numel, owned rows, d] of the sum, in and out */
    int level_numel;   /* floor(log2 of the step's micro-batches) + 1 */
} tess_codebook_gradient;

/** One round, in ascending order of rounds. Collective. */
TESS_MUST_CHECK tess_status tess_codebooks_add_gradient(tess_codebooks *books,
                                                        const tess_codebook_gradient *round);
/** After all rounds the sum of `micro_batch_numel` leaves is the last level. Local. */
TESS_MUST_CHECK tess_status tess_codebooks_end_gradient(tess_codebooks *books,
                                                        const tess_codebook_gradient *round,
                                                        int64_t micro_batch_numel);

/** Vectors that ranks hold, numbered over all of them, to ranks. */
typedef struct tess_codebook_route {
    const int64_t *first;                                 /* [world + 1]: vectors first[r] ..
                                                             first[r + 1] go to rank r */
    int (*holder)(const void *arg, int64_t idx);          /* the same on all ranks */
    const float *(*vector)(const void *arg, int64_t idx); /* [d], of those that this rank holds */
    const void *arg;
    float *dst; /* [first[rank + 1] - first[rank], d] f32 */
} tess_codebook_route;

/** In rounds of `route_numel` vectors. Collective. */
TESS_MUST_CHECK tess_status tess_codebooks_route(tess_codebooks *books,
                                                 const tess_codebook_route *route);

/** Sums at exponent S (kernels/codebook.h) begin at zero. Local. */
TESS_MUST_CHECK tess_status tess_codebooks_begin_sums(tess_codebooks *books, int exponent);
/** Sums and counts of all ranks arrive at their owners. Collective. */
TESS_MUST_CHECK tess_status tess_codebooks_end_sums(tess_codebooks *books);
/** After end_sums: of the owned rows, [hi - lo, d] and [hi - lo] i64, host. Local. */
const int64_t *tess_codebooks_sum(const tess_codebooks *books);
const int64_t *tess_codebooks_tally(const tess_codebooks *books);
/** Between begin_sums and end_sums, replicated: those of all codes, [K, d] and [K] i64, for vectors
 * that are added up elsewhere. Local. */
int64_t *tess_codebooks_all_sums(const tess_codebooks *books);
int64_t *tess_codebooks_all_tallies(const tess_codebooks *books);
int tess_codebooks_exponent(const tess_codebooks *books);
/** The search's work memory, for searches of the caller's own between rounds. Local. */
tess_view tess_codebooks_work(const tess_codebooks *books);

TESS_END_DECLS
