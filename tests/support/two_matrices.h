/**
 * The smallest model with everything the runtime handles: two units with a frozen and a trainable
 * matrix each.
 *
 * Stage 0: z = x (F0 + T0)^T, h = silu(z) z; stage 1: logits = h (F1 + T1)^T, loss = cross-entropy
 * with label r % out_numel of row r. All f32, all by kernels of the call's table, so that it runs
 * on any device. The micro-batch's input (zeros and twos) is drawn from its global number, so it
 * does not depend on ranks. Between them may stand more stages like stage 0, of mid x mid, with
 * units of their own: then slots are used again.
 */
#pragma once

#include "shard/registry.h"

enum { TWO_MATRICES_INPUT_MAX = 512, TWO_MATRICES_ROW_MAX = 16, TWO_MATRICES_STAGE_MAX = 6 };

/** What calls read beside parameters; copied to a device as a whole. */
typedef struct two_matrices_table {
    float one[TWO_MATRICES_INPUT_MAX];
    int32_t label[TWO_MATRICES_ROW_MAX];
    float nan;
} two_matrices_table;

typedef struct two_matrices {
    int64_t row_numel, in_numel, mid_numel, out_numel;
    int between_numel; /* stages between the two */
    int frozen[TWO_MATRICES_STAGE_MAX], trainable[TWO_MATRICES_STAGE_MAX]; /* [stage] parameters */
    bool is_tied;      /* both stages use unit 0 (in = mid = out) */
    bool is_quantized; /* frozen matrices are NF4 in blocks of 64, else f32 */
    /* Micro-batch `poisoned_idx` gives one NaN: element `poisoned_element` of the gradient of stage
     * `poisoned_stage`. */
    bool is_poisoned;
    int64_t poisoned_idx, poisoned_element;
    int poisoned_stage;
    two_matrices_table table;        /* the host's */
    const two_matrices_table *place; /* where a device has it; NULL: the host's */
} two_matrices;

typedef struct two_matrices_batch {
    int64_t micro_batch_idx;
} two_matrices_batch;

/** Batches of a step; the first is global number `first_idx`. */
typedef struct two_matrices_feed {
    two_matrices_batch batch;
    int64_t first_idx;
} two_matrices_feed;

/** `batch_of` of a step request; `arg`: a two_matrices_feed. */
tess_status two_matrices_batch_of(void *arg, int64_t m, const void **batch);

/** Register into an empty registry and lay it out. */
tess_status two_matrices_describe(two_matrices *m, tess_registry *reg);
extern const tess_stage_ops two_matrices_ops;
