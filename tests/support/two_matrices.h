/**
 * The smallest model with everything the runtime handles: two units with a frozen and a trainable
 * matrix each.
 *
 * Stage 0: h = tanh(x (F0 + T0)^T); stage 1: y = h (F1 + T1)^T, loss = 0.5 sum y^2. Plain f32
 * loops, fixed order. The micro-batch's input comes from its global number, so it does not depend
 * on ranks.
 */
#pragma once

#include "shard/registry.h"

typedef struct two_matrices {
    int64_t row_numel, in_numel, mid_numel, out_numel;
    int frozen[2], trainable[2]; /* parameter indices */
    bool is_tied;                /* both stages use unit 0 (in = mid = out) */
    bool is_poisoned; /* micro-batch `poisoned_idx` gives one NaN in the first stage's gradient */
    int64_t poisoned_idx;
} two_matrices;

typedef struct two_matrices_batch {
    int64_t micro_batch_idx;
} two_matrices_batch;

/** Register into an empty registry and lay it out. */
tess_status two_matrices_describe(two_matrices *m, tess_registry *reg);
extern const tess_stage_ops two_matrices_ops;
