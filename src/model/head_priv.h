/**
 * Ends of a language model: token embedding, and the loss head in chunks of rows.
 *
 * [Note: chunked head] Logits exist for `chunk_numel` rows at a time. The chunk depends on
 * shape and backend alone, because the weight gradient adds chunk after chunk. Chunks without any
 * label are skipped: their gradient is zero.
 */
#pragma once

#include "model/layers_priv.h"

TESS_BEGIN_DECLS

/** Final norm and output projection. */
typedef struct tess_head {
    tess_norm norm;
    tess_linear linear;  /* lm_head, or the embedding read as a linear layer when tied */
    int64_t chunk_numel; /* rows whose logits exist at once */
} tess_head;

/** Rows per chunk: what `kernels` wants of logits, at most half of the micro-batch. Local. */
int64_t tess_head_chunk_numel(const tess_kernels *kernels, int64_t row_numel, int64_t vocab_numel);

/** Labels of all rows, -1 where a row has no loss. */
typedef struct tess_labels {
    const int32_t *label; /* [T] where kernels read them */
    const int32_t *host;  /* [T] the same, host memory */
} tess_labels;

/** out[t] = table[tokens[t]]. @param[out] out [T, H] dt */
TESS_MUST_CHECK tess_status tess_embed_forward(tess_exec *ex, int table_idx, const int32_t *tokens,
                                               tess_view out);
/** Gradient of the table += rows of d_out, tokens ascending. */
TESS_MUST_CHECK tess_status tess_embed_backward(tess_exec *ex, int table_idx, const int32_t *tokens,
                                                tess_view d_out);

/** Loss of every row, no gradient. @param[in] h [T, H] dt  @param[out] loss_sum fp64 sum in row
 * order */
TESS_MUST_CHECK tess_status tess_head_loss(tess_exec *ex, const tess_head *head, tess_view h,
                                           tess_labels labels, double *loss_sum);
/** Loss, gradients of head parameters, and d_h [T, H] dt (numel 0: not wanted). */
TESS_MUST_CHECK tess_status tess_head_loss_backward(tess_exec *ex, const tess_head *head,
                                                    tess_view h, tess_labels labels,
                                                    double *loss_sum, tess_view d_h);
/** Logits of one row of `h`. @param[out] logits [V] f32, host memory */
TESS_MUST_CHECK tess_status tess_head_logits(tess_exec *ex, const tess_head *head, tess_view h,
                                             int64_t row_idx, float *logits);

TESS_END_DECLS
