/** A quantized autoencoder from its run file: nothing but keys and the size of a sample. */
#pragma once

#include "model/rqvae.h"
#include "shard/codebook.h"
#include "train/describe/describe.h"

TESS_BEGIN_DECLS

/** Where a device moves averages: memory beside the mirror of the layout, places in bytes. K codes
 * of a book, c owned rows. */
typedef struct tess_average_room {
    size_t most;          /* [books] u32: largest magnitudes */
    size_t total;         /* [books] i64: sizes of all codes */
    size_t sum, tally;    /* [K, d] and [K] i64 of one book */
    size_t value, embed;  /* [c, d] f32 of one book */
    size_t row, expired;  /* [c] i64, [c] u8 */
    size_t expired_numel; /* [1] i64 */
    size_t nbytes;
} tess_average_room;

/** What a rank keeps of one micro-batch, and counts over a window; places in bytes. */
typedef struct tess_vector_layout {
    int64_t position_numel; /* vectors of a sample: 1, or the positions of an image's latent */
    int64_t row_numel, dim; /* vectors of a micro-batch, and elements of samples for each */
    tess_quantizer_shape shape;
    /* Counters of an index: its values where they are countable, or one for all of them. */
    int64_t bin_numel;
    int64_t window_numel; /* words of a window: 1 + I exact sums of squares, then I x bins counts */
    bool is_averaged;     /* codes follow moving averages */
    bool learns_by_rows;  /* row-sharded codes that learn by gradients */
    int level_numel;      /* of the sum of their gradients over a step */
    int64_t kept_numel;   /* vectors of a rank in a step, where codes start from or follow them */
    bool has_books;       /* codes start from the vectors of a step, or follow them */
    tess_codebook_plan book; /* where they do: row-sharded all of them, else one at a time */
    int64_t average_numel;   /* of a codebook: averages [K, d], then sizes [K]; 0: there are none */
    size_t x, code, square, window[2]; /* training, evaluation */
    size_t kept, books;                /* vectors of a step; row-sharded codes */
    /* Averages: [books, c, d] and sizes [books, c] of owned rows; a rank's range of them as a
     * checkpoint has them. */
    size_t average, saved;
    /* Of the mean assignment of a step, where wanted, where kernels work: sums, entropies of
     * groups, their sum, slopes. */
    size_t mean_sum, mean_slope, mean_entropy, mean_value;
    /* Of runs with masks: flags of the kept vectors, or of a micro-batch; numbers of its vectors;
     * of images, of the lines of these (tess_vector_batch.line); [micro-batches + 1] valid vectors
     * of the step in front of each, and all. */
    bool is_masked;
    int64_t line_numel, column_numel; /* lines of a position, and positions beside each other */
    size_t valid, own, line, valid_before;
    size_t nbytes;
    tess_average_room far; /* nbytes 0: nothing is moved on a device */
} tess_vector_layout;

enum { TESS_COUNTED_CODES_MAX = 1 << 20 };

/** The model that a run file describes, for samples of this size; lists are borrowed from `run`.
 * Local, pure. */
tess_rqvae_config tess_rqvae_config_of(const tess_run *run, const tess_sample_size *sample);
/** Whether codes are set or moved by the vectors of a whole step, which are kept. Local. */
static inline bool tess_vector_layout_follows(const tess_vector_layout *v)
{
    return v->is_averaged || v->learns_by_rows;
}
/** Codes that one codebook has vectors of: parts of a vector that share it. Local. */
static inline int tess_vector_layout_pooled(const tess_vector_layout *v)
{
    return v->shape.book_numel > 0 ? v->shape.index_numel / v->shape.book_numel : 1;
}
/**
 * Local, pure.
 *
 * @param sharding  of codebooks: that of a description (tess_rqvae_sharding)
 * @return TESS_E_RANGE sizes overflow; TESS_E_CONFIG as tess_quantizer_shape_make
 */
TESS_MUST_CHECK tess_status tess_vector_layout_make(const tess_run *run,
                                                    const tess_sample_size *sample, int world,
                                                    tess_run_sharding sharding,
                                                    tess_vector_layout *out);
/** What a description chose. Local. */
static inline tess_run_sharding tess_rqvae_sharding(const tess_description *d)
{
    return d->codes.is_sharded ? TESS_RUN_SHARDING_ROWS : TESS_RUN_SHARDING_REPLICATED;
}
/** Numbers of all averages that a rank of `world` saves, at most. Local. */
static inline int64_t tess_vector_layout_saved(const tess_vector_layout *v, int world)
{
    return (v->shape.book_numel * v->average_numel + world - 1) / world;
}
/** quantizer.dim or quantizer.image of `run` as described: run.yaml as resolved says them, and
 * needs no data. Local. */
TESS_MUST_CHECK tess_status tess_rqvae_keep_size(tess_run *run, const tess_sample_size *sample);
/**
 * Describe the model: registry, model, texts and sizes of `d`, no plan; not what replicated codes
 * receive, which a plan knows. A sample has the size that `d` says already, or else of
 * quantizer.dim or quantizer.image, or else of what data.path holds. Local.
 * @param sharding  replicated or rows
 * @return TESS_E_CONFIG, TESS_E_UNSUPPORTED, and as tess_samples_open
 */
TESS_MUST_CHECK tess_status tess_describe_rqvae(const tess_ctx *ctx,
                                                const tess_launch_shape *launch,
                                                tess_run_sharding sharding, tess_description *d);

TESS_END_DECLS
