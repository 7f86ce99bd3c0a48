/**
 * The smallest model for optimizers: tensors of the golden files of
 * tests/golden/make_optimizers.py, whose gradients are given. Two micro-batches bring half of each,
 * so that their sum is exact.
 */
#pragma once

#include "shard/registry.h"
#include "support/golden.h"

enum { GIVEN_TENSOR_NUMEL = 3, GIVEN_UNIT_NUMEL = 2, GIVEN_MICRO_BATCH_NUMEL = 2 };

typedef struct given_gradients {
    const tess_golden *golden; /* gradients.golden */
    int64_t step;              /* whose gradients are given, from 1 */
    int param[GIVEN_TENSOR_NUMEL];
} given_gradients;

/** Register into an empty registry and lay it out. */
tess_status given_gradients_describe(given_gradients *g, tess_registry *reg);
extern const tess_stage_ops given_gradients_ops;
