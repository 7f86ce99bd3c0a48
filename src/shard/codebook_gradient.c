/* Gradients of row-sharded codes: vectors come to the owners of rows, who add up in the order that
 * sums of gradients have. */
#include <string.h>

#include "shard/codebook_priv.h"

/* Where a rank's vectors have their codes among the owned rows. */
static const uint32_t *own_places(const tess_codebooks *b, int rank, int64_t numel)
{
    const uint32_t *row = codebook_rows_of(b, rank);
    uint32_t *local = codebook_rows_of(b, b->plan.shape.world);
    for (int64_t i = 0; i < numel; i++)
        local[i] = row[i] != TESS_NO_CODE && row[i] >= b->lo && row[i] < b->hi
                       ? row[i] - (uint32_t)b->lo
                       : TESS_NO_CODE;
    return local;
}

/* What a part of a rank's micro-batch adds to its leaf. */
static tess_status add_part(tess_codebooks *b, const tess_codebook_gradient *g, int rank,
                            float *leaf)
{
    const int64_t numel = g->vector_numel[rank];
    const tess_quantizer_code_gradient_args args = {.rows = {.codes = codebook_code(b, g->book_idx),
                                                             .code = own_places(b, rank, numel),
                                                             .row_numel = numel,
                                                             .dim = b->plan.shape.dim,
                                                             .code_numel = b->hi - b->lo},
                                                    .x = codebook_vectors(b, rank),
                                                    .coefficient = g->coefficient,
                                                    .d_codes = leaf};
    return b->parts.kernels->quantizers->code_gradient(&args, b->parts.stream);
}

static tess_status push(tess_codebooks *b, const tess_codebook_gradient *g, int rank,
                        const float *leaf, int64_t leaf_numel)
{
    const tess_fold_pieces_args args = {.pieces = leaf,
                                        .piece_numel = 1,
                                        .stride_numel = leaf_numel,
                                        .levels = g->level,
                                        .level_stride_numel = leaf_numel,
                                        .level_numel = g->level_numel,
                                        .first_idx = g->first_idx + rank,
                                        .numel = leaf_numel};
    return b->parts.kernels->fold_pieces(&args, b->parts.stream);
}

/* One leaf is enough where a micro-batch is one block: it is pushed before the next one begins. */
static tess_status add_rank(tess_codebooks *b, const tess_codebook_gradient *g, int part, int rank)
{
    const int64_t leaf_numel = (b->hi - b->lo) * b->plan.shape.dim;
    float *leaf = g->leaf + (g->part_numel > 1 ? rank * leaf_numel : 0);
    if (leaf_numel == 0 || g->vector_numel[rank] == 0)
        return TESS_OK;
    if (part == 0)
        memset(leaf, 0, (size_t)leaf_numel * sizeof *leaf);
    TESS_TRY(add_part(b, g, rank, leaf));
    return part == g->part_numel - 1 ? push(b, g, rank, leaf, leaf_numel) : TESS_OK;
}

tess_status tess_codebooks_add_gradient(tess_codebooks *b, const tess_codebook_gradient *g)
{
    const int64_t own = g->vector_numel[b->rank];
    TESS_CHECK(b->plan.shape.is_sharded, TESS_E_STATE,
               "codebooks: gradients of rows where all codes are");
    for (int part = 0; part < g->part_numel; part++) {
        TESS_TRY(codebook_gather_vectors(b, g->x + part * g->x_stride, own));
        TESS_TRY(codebook_gather_rows(b, g->row + part * g->row_stride, own));
        for (int r = 0; r < b->plan.shape.world; r++)
            TESS_TRY(add_rank(b, g, part, r));
    }
    return tess_stream_finish(b->parts.stream);
}

tess_status tess_codebooks_end_gradient(tess_codebooks *b, const tess_codebook_gradient *g,
                                        int64_t micro_batch_numel)
{
    const int64_t numel = (b->hi - b->lo) * b->plan.shape.dim;
    float *carried = NULL;
    for (int l = 0; l < g->level_numel && numel > 0; l++) {
        float *here = g->level + l * numel;
        const tess_fold_args args = {.a = here, .b = carried, .dst = here, .numel = numel};
        if ((micro_batch_numel >> l & 1) == 0)
            continue;
        if (carried != NULL)
            TESS_TRY(b->parts.kernels->fold(&args, b->parts.stream));
        carried = here;
    }
    return tess_stream_finish(b->parts.stream);
}
