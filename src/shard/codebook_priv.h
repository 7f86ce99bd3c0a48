/** Inner structure of codebooks, shared by the files of their plan and their rounds. */
#pragma once

#include "core/memory.h"
#include "shard/codebook.h"

TESS_BEGIN_DECLS

typedef enum wire_idx {
    WIRE_CODE,   /* owned rows to all */
    WIRE_SUM,    /* sums to owners */
    WIRE_TALLY,  /* counts to owners */
    WIRE_VECTOR, /* blocks to all */
    WIRE_KEY,    /* keys to the vectors' rank */
    WIRE_ROW,    /* winners, or wanted rows, to all */
    WIRE_FETCH,  /* code rows to who wants them */
    WIRE_SIZE,   /* sizes of a round to all */
    WIRE_CUT,    /* rows from one cut to another */
    WIRE_ROUTE,  /* vectors to rows' owners */
    WIRE_NUMEL
} wire_idx;

struct tess_codebooks {
    tess_codebook_plan plan;
    tess_codebooks_parts parts;
    int rank;
    int64_t lo, hi; /* owned rows */
    int exponent;
    tess_wire wire[WIRE_NUMEL];
    tess_piece *piece;     /* [2, world] */
    int64_t *extent;       /* [2 world + 1] */
    int64_t *size;         /* [4 world] behind them: pairs, then each of their numbers */
    tess_space space;      /* where kernels work */
    tess_arena *arena[2];  /* there, and beside it on the host */
    char *memory, *beside; /* of the arenas, or the caller's */
    tess_event enqueued;   /* of a device: what communicators wait for */
    tess_event rows_up;    /* the last rows that went up */
};

static inline size_t pack_nbytes(const tess_kernels *kernels, int64_t code_numel, int64_t dim)
{
    return (kernels->nearest_pack_nbytes(code_numel, dim) + 255) / 256 * 256;
}

/** All codes that are here, where kernels work. */
float *codebook_code(const tess_codebooks *b, int book_idx);
tess_view codebook_pack(const tess_codebooks *b, int book_idx);
void *codebook_place(const tess_codebooks *b, tess_codebook_place which);
int64_t *codebook_own_sum(const tess_codebooks *b);
int64_t *codebook_own_tally(const tess_codebooks *b);

/* ---- between a device and its host; on the host nothing moves ---- */

static inline bool codebook_is_far(const tess_codebooks *b) { return b->space == TESS_DEVICE; }
/** Memory where kernels work. */
static inline tess_view codebook_view(const tess_codebooks *b, const void *data, int64_t numel,
                                      tess_dtype dt)
{
    return (tess_view){(void *)(uintptr_t)data, numel, dt, b->space};
}
/** Rows of rank `slot` in the last gather, on the host; W: scratch; of a device W + 1: more. */
static inline uint32_t *codebook_rows_of(const tess_codebooks *b, int slot)
{
    const tess_codebook_place which = codebook_is_far(b) ? TESS_BOOK_OWN_ROW : TESS_BOOK_ROW;
    return (uint32_t *)codebook_place(b, which) + slot * b->plan.shape.block_numel;
}
/** The same where kernels read them. */
static inline uint32_t *codebook_near_rows(const tess_codebooks *b, int slot)
{
    return (uint32_t *)codebook_place(b, TESS_BOOK_ROW) + slot * b->plan.shape.block_numel;
}
/** Before the host writes rows: those on their way have gone up. */
TESS_MUST_CHECK tess_status codebook_rows_wait(tess_codebooks *b);
/** Bring rows of slots [slot, ...) up, `numel` in all. */
TESS_MUST_CHECK tess_status codebook_rows_send(tess_codebooks *b, int slot, int64_t numel);
/** The caller's rows, where kernels read them: by way of a slot on a device, `row` itself else. */
TESS_MUST_CHECK tess_status codebook_rows_put(tess_codebooks *b, int slot, const uint32_t *row,
                                              int64_t numel, const uint32_t **near);
/** Enqueue a copy between the device and memory of its host. */
TESS_MUST_CHECK tess_status codebook_move(tess_codebooks *b, void *dst, const void *src,
                                          int64_t numel, tess_dtype dt, bool is_up);
/** Let a communicator's stream start after what is enqueued here. */
TESS_MUST_CHECK tess_status codebook_before(tess_codebooks *b, tess_stream *stream);
/** A block of every rank, rank-major, each at its multiple of the planned one: vectors where
 * kernels work, all else on the host. Collective. */
TESS_MUST_CHECK tess_status codebook_gather(tess_codebooks *b, wire_idx wire, const void *own,
                                            size_t own_nbytes, void *all);
/** Vectors of every rank's block, and rows of them, to all: at codebook_vectors() and
 * codebook_rows_of() a rank. Collective. */
TESS_MUST_CHECK tess_status codebook_gather_vectors(tess_codebooks *b, const float *x,
                                                    int64_t vector_numel);
TESS_MUST_CHECK tess_status codebook_gather_rows(tess_codebooks *b, const uint32_t *row,
                                                 int64_t numel);
float *codebook_vectors(const tess_codebooks *b, int rank);
/** `b->piece`: sends to, and receives from, every rank. Collective. */
TESS_MUST_CHECK tess_status codebook_exchange(tess_codebooks *b, wire_idx wire);

TESS_END_DECLS
