/**
 * Which tokens a sequence holds: a pure function of (file, sequence_length, packing, seed, index).
 *
 * [Note: order] In epoch e document k of the order is tess_rng_permute(seed, SHUFFLE, e; k).
 * Packed: the documents in this order are one stream; sequence w of the epoch holds its tokens
 * w*S .. (w+1)*S-1; the tail that fills no sequence is dropped and counted. Not packed: sequence w
 * is document w of the order, cut at S or padded with masked tokens. Global sequence index q means
 * epoch q / sequences_per_epoch, place q % sequences_per_epoch; micro-batch g holds sequences
 * g*B .. g*B+B-1. Labels are the next token of the same document (also where that token opens the
 * next sequence), -1 at the end of a document, where the next token is masked, and in padding.
 * Positions and doc_start restart at each piece of a document and at each sequence.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/ctx.h"
#include "core/status.h"
#include "train/data/token_file.h"

TESS_BEGIN_DECLS

/* Token files up to this size are kept in memory; larger ones are read piece by piece. */
enum { TESS_DATASET_RESIDENT_NBYTES = 16 << 20 };

typedef struct tess_dataset_config {
    int64_t sequence_numel; /* S = data.sequence_length, 1 .. 2^31-1 */
    bool packing;
    bool ignores_mask;             /* every next token of a document counts, also masked ones */
    bool shuffle;                  /* false: file order in every epoch (evaluation) */
    uint64_t seed;                 /* train.seed */
    int64_t vocab_numel;           /* the model's; an id beyond it is refused; 0: any */
    int64_t resident_limit_nbytes; /* normally TESS_DATASET_RESIDENT_NBYTES */
} tess_dataset_config;

typedef struct tess_dataset_info {
    int64_t document_numel;
    int64_t token_numel;
    int64_t sequences_per_epoch;
    int64_t dropped_token_numel; /* per epoch: tail (packed), cut document ends (not packed) */
    int64_t padding_token_numel; /* per epoch; 0 when packed */
    bool has_mask;
    bool is_resident;
    tess_sha256 tokenizer;
    tess_xxh128 payload_digest; /* identity of the data, part of the numerics digest */
} tess_dataset_info;

/** What an open dataset allocates, to the byte. */
typedef struct tess_dataset_memory {
    size_t index_nbytes;    /* document offsets and the order of two epochs */
    size_t resident_nbytes; /* tokens and masks, 0 when read piece by piece */
    size_t scratch_nbytes;  /* one sequence */
} tess_dataset_memory;

typedef struct tess_dataset tess_dataset;

/** Sequences of an epoch of a file. Local. */
int64_t tess_dataset_sequence_numel(const tess_token_file_info *file, int64_t sequence_length,
                                    bool packing);

/** Memory for a file of this description. Local, pure. @return TESS_E_RANGE */
TESS_MUST_CHECK tess_status tess_dataset_plan(const tess_token_file_info *file,
                                              const tess_dataset_config *config,
                                              tess_dataset_memory *out);

/**
 * Open a token file as training or evaluation data. Local.
 *
 * @return TESS_E_FORMAT file refused; TESS_E_RANGE an id that the model lacks, or fewer
 * tokens than one sequence
 */
TESS_MUST_CHECK tess_status tess_dataset_open(const tess_ctx *ctx, const char *path,
                                              const tess_dataset_config *config,
                                              tess_dataset **out);
void tess_dataset_close(tess_dataset **dataset);
const tess_dataset_info *tess_dataset_get_info(const tess_dataset *dataset);

/** Where sequences go; row-major [sequences, S]. doc_start and positions as attention and rope want
 * them: doc_start counts from the first sequence of the buffer. */
typedef struct tess_dataset_batch {
    int32_t *tokens;    /* [n, S] */
    int32_t *labels;    /* [n, S] -1: no loss */
    int32_t *positions; /* [n, S] */
    int32_t *doc_start; /* [n, S] index of the first token of this piece, row * S + column */
} tess_dataset_batch;

/**
 * Sequences first .. first+sequence_numel-1, in any order of calls. Local; allocates nothing.
 *
 * @return TESS_E_RANGE n * S exceeds an int; TESS_E_FORMAT an id outside the vocabulary; TESS_E_IO
 */
TESS_MUST_CHECK tess_status tess_dataset_fill(tess_dataset *dataset, int64_t first_sequence_idx,
                                              int64_t sequence_numel,
                                              const tess_dataset_batch *batch);
/** Number of labels that are not -1 in these sequences, without reading tokens. Local; allocates
 * nothing. */
TESS_MUST_CHECK tess_status tess_dataset_loss_tokens(tess_dataset *dataset,
                                                     int64_t first_sequence_idx,
                                                     int64_t sequence_numel,
                                                     int64_t *loss_token_numel);

TESS_END_DECLS
