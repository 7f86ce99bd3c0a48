#include "train/learning_rate.h"

#include <math.h>

#include "core/arith.h"

/* From 1 at x = 0 to 0 at x = 1. */
static double half_cosine(double x) { return 0.5 * (1.0 + cos(3.14159265358979323846 * x)); }

/* How far a cycle of the schedule has come at a step after the warm-up. Steps are counted in whole
 * numbers, so that a cycle begins exactly at its first step. */
static double progress(const tess_run *run, int64_t step)
{
    const int64_t span = TESS_MAX(run->train.steps - run->train.warmup_steps, 1);
    const int64_t done = (step - run->train.warmup_steps) * run->train.cycles;
    return (double)(done % span) / (double)span;
}

/* Steps into the last decay_steps, negative before. */
static int64_t decay_step(const tess_run *run, int64_t step)
{
    return step - (run->train.steps - run->train.decay_steps);
}

static double wsd(const tess_run *run, int64_t step)
{
    const double x = (double)decay_step(run, step) / (double)run->train.decay_steps;
    switch (run->train.decay_shape) {
    case TESS_RUN_DECAY_COSINE:
        return half_cosine(x);
    case TESS_RUN_DECAY_LINEAR:
        return 1.0 - x;
    case TESS_RUN_DECAY_ROOT:
        return 1.0 - sqrt(x);
    }
    return 1.0;
}

static bool is_flat(const tess_run *run, int64_t step)
{
    return run->train.schedule == TESS_RUN_SCHEDULE_CONSTANT ||
           (run->train.schedule == TESS_RUN_SCHEDULE_WSD && decay_step(run, step) < 0);
}

/* The part of the way from the least to the peak. */
static double shape(const tess_run *run, int64_t step)
{
    switch (run->train.schedule) {
    case TESS_RUN_SCHEDULE_CONSTANT:
        break;
    case TESS_RUN_SCHEDULE_LINEAR:
        return 1.0 - progress(run, step);
    case TESS_RUN_SCHEDULE_COSINE:
        return half_cosine(progress(run, step));
    case TESS_RUN_SCHEDULE_POLYNOMIAL:
        return pow(1.0 - progress(run, step), run->train.power);
    case TESS_RUN_SCHEDULE_WSD:
        return wsd(run, step);
    }
    return 1.0;
}

double tess_learning_rate(const tess_run *run, int64_t step)
{
    const double peak = run->train.learning_rate, least = run->train.min_learning_rate_ratio;
    const int64_t warmup = run->train.warmup_steps;
    if (step < warmup)
        return peak * (double)(step + 1) / (double)warmup;
    if (is_flat(run, step))
        return peak;
    return peak * (least + (1.0 - least) * shape(run, step));
}
