/**
 * What is out of the ordinary in a run, by medians: steps whose loss or gradient norm spikes, and
 * ranks that take longer than others. Arithmetic alone; what is done about it is the caller's.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "core/base.h"

TESS_BEGIN_DECLS

/* ---- spikes ---- */

enum {
    TESS_SPIKE_WINDOW_NUMEL = 128,
    TESS_SPIKE_LEAST_NUMEL = 32,
    TESS_SPIKE_TEXT_NBYTES = 16 * TESS_SPIKE_WINDOW_NUMEL + 1
};

/** The last finite values of a series; all zeros: none yet. Fields are private to anomaly.c. */
typedef struct tess_spike_window {
    double value[TESS_SPIKE_WINDOW_NUMEL]; /* a ring */
    int64_t seen_numel;
} tess_spike_window;

typedef struct tess_spike {
    double median; /* of the window */
    double score;  /* how far above it, in deviations; 0: not finite, or too few values so far */
} tess_spike;

/**
 * Robust z-score of `value` among the last TESS_SPIKE_WINDOW_NUMEL finite values before it, from
 * TESS_SPIKE_LEAST_NUMEL on; then `value` is one of them. Local.
 *
 * A deviation is 1.4826 times the median absolute one, which is the standard deviation of normal
 * numbers, and at least 1 % of the median: a series that hardly moves has no noise to measure by.
 *
 * @source modified z-score, Iglewicz and Hoaglin, How to Detect and Handle Outliers, 1993
 */
tess_spike tess_spike_score(tess_spike_window *window, double value);

/** The window for a checkpoint: bits of its values, the oldest first, 16 hex digits each. Local. */
void tess_spike_window_write(const tess_spike_window *window, char text[TESS_SPIKE_TEXT_NBYTES]);
/** Take it back; later scores have the same bits. Local. @return false: `text` is none, and
 * `window` is as it was */
bool tess_spike_window_read(const char *text, tess_spike_window *window);

/* ---- slow ranks ---- */

#define TESS_SLOW_FACTOR 1.3

/** One rank among others. */
typedef struct tess_rank_pace {
    double own_s;              /* in: time of its steps without waits */
    int64_t micro_batch_numel; /* in: of its steps; 0: the rank is left out */
    double time_s, median_s;   /* out: what was compared; 0 where the rank is left out */
    bool is_by_step;           /* out: times of steps, else of micro-batches */
    bool is_slow;              /* in, out: time_s is above TESS_SLOW_FACTOR times median_s */
    bool is_news;              /* out: it was not before */
} tess_rank_pace;

/**
 * Find the ranks that are slow. Local.
 *
 * Ranks whose numbers of micro-batches differ have different work: by micro-batch those with fewer
 * look slower, since something of a step does not depend on their number, by step those with more.
 * The reading that speaks for a rank is taken.
 *
 * @param scratch  [world]
 */
void tess_rank_pace_judge(tess_rank_pace *pace, int world, double *scratch);

TESS_END_DECLS
