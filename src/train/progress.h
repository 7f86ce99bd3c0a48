/** Progress of a run for a person: a bar on a terminal, a line now and then elsewhere. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "core/base.h"

TESS_BEGIN_DECLS

/** Receives text to show, as it is. */
typedef void (*tess_progress_write)(void *arg, const char *text);

typedef struct tess_progress_options {
    const char *unit;          /* what is counted: NULL: "tokens" */
    tess_progress_write write; /* NULL: nothing is shown */
    void *arg;
    bool is_terminal;   /* a bar that is drawn over itself, at most ten times a second */
    int columns;        /* width of the terminal, 0: 80 */
    int64_t done_numel; /* steps done before this start */
    int64_t step_numel; /* steps of the whole run */
    double interval_s;  /* without a terminal: least time between lines; first and last always */
} tess_progress_options;

/** In the caller's memory; nothing is allocated. Fields are private to progress.c. */
typedef struct tess_progress {
    tess_progress_options options;
    double shown_s;     /* when something was last shown */
    double mean_step_s; /* of recent steps; 0: none yet */
    bool is_bar_shown;
    bool has_shown;
} tess_progress;

/** One finished step. */
typedef struct tess_progress_row {
    int64_t step;
    double loss;
    double tokens_per_s;
    double step_s;
    double now_s; /* a clock that never goes back, any origin */
} tess_progress_row;

void tess_progress_init(tess_progress *progress, const tess_progress_options *options);
/** Show a finished step, if it is time to. Local; rank 0 only. */
void tess_progress_step(tess_progress *progress, const tess_progress_row *row);
/** Take the bar away before other text is written to the same terminal; the next step draws it
 * again. Local. */
void tess_progress_hide(tess_progress *progress);
/** Leave the bar standing and go to a new line. Local. */
void tess_progress_fini(tess_progress *progress);

/** "2:03:04" or "03:04"; "?" for what is not a time. Local. */
void tess_progress_time_text(double seconds, char text[24]);

TESS_END_DECLS
