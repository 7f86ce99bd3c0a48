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
    tess_piece *piece; /* [2, world] */
    int64_t *extent;   /* [2 world + 1] */
    int64_t *size;     /* [4 world] behind them: pairs, then each of their numbers */
    tess_arena *arena;
    char *memory; /* of the arena, or the caller's */
};

static inline size_t pack_nbytes(const tess_kernels *kernels, int64_t code_numel, int64_t dim)
{
    return (kernels->nearest_pack_nbytes(code_numel, dim) + 255) / 256 * 256;
}

float *codebook_code(const tess_codebooks *b, int book_idx);
tess_view codebook_pack(const tess_codebooks *b, int book_idx);
void *codebook_place(const tess_codebooks *b, tess_codebook_place which);
int64_t *codebook_own_sum(const tess_codebooks *b);
int64_t *codebook_own_tally(const tess_codebooks *b);
/** A block of every rank, rank-major, each at its multiple of the planned one. Collective. */
TESS_MUST_CHECK tess_status codebook_gather(tess_codebooks *b, wire_idx wire, const void *own,
                                            size_t own_nbytes, void *all);
/** Vectors of every rank's block, and rows of them, to all: at codebook_vectors() and
 * codebook_rows() of a rank. Collective. */
TESS_MUST_CHECK tess_status codebook_gather_vectors(tess_codebooks *b, const float *x,
                                                    int64_t vector_numel);
TESS_MUST_CHECK tess_status codebook_gather_rows(tess_codebooks *b, const uint32_t *row,
                                                 int64_t numel);
float *codebook_vectors(const tess_codebooks *b, int rank);
uint32_t *codebook_rows(const tess_codebooks *b, int rank);
/** Scratch of a block's rows behind those of all ranks. */
uint32_t *codebook_own_rows(const tess_codebooks *b);
/** `b->piece`: sends to, and receives from, every rank. Collective. */
TESS_MUST_CHECK tess_status codebook_exchange(tess_codebooks *b, wire_idx wire);

TESS_END_DECLS
