/** The learning rate of a run, step by step. */
#pragma once

#include "train/run_file/run_file.h"

TESS_BEGIN_DECLS

/**
 * Of step `step` (from 0): linear warm-up to the peak, then the schedule down to
 * train.min_learning_rate_ratio of it (docs/optimizers.md). Local.
 *
 * @source the shapes are those of transformers, optimization.py, whose warm-up begins a step
 * earlier, at 0
 */
double tess_learning_rate(const tess_run *run, int64_t step);

TESS_END_DECLS
