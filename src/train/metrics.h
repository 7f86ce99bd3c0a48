/**
 * What a run reports about itself: metrics.jsonl (one object per step), eval.jsonl (one object per
 * evaluation) and a TensorBoard event file, all in output.dir; of quantizers also levels.jsonl.
 *
 * [Note: resume] A resumed run repeats the steps after its checkpoint. Their old lines are dropped
 * when the files are opened, so a file always reads like one uninterrupted run; TensorBoard is told
 * by a session start.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "core/ctx.h"
#include "core/status.h"

TESS_BEGIN_DECLS

/** One optimizer step. */
typedef struct tess_metrics_step_row {
    int64_t step;                /* from 1 */
    double loss;                 /* mean over the step's loss tokens */
    double grad_norm;            /* before clipping */
    const char *skipped;         /* why the update was not applied; NULL: it was */
    int64_t rollback_numel;      /* of the run, before this step; 0 is not written */
    double learning_rate;        /* of this step */
    int64_t token_numel;         /* tokens of the step, over all ranks */
    double tokens_per_s;         /* over all ranks */
    double step_s;               /* wall time */
    double exposed_comm_s;       /* time a rank computed nothing because its compute lane waited for
                                    gathers and gradient traffic: maximum over ranks */
    double exposed_comm_least_s; /* minimum over ranks, with the wait for the record of a step */
    int64_t mem_device_peak_nbytes; /* maximum over ranks */
    int64_t mem_host_peak_nbytes;
} tess_metrics_step_row;

/** One pass, mini-batch or refinement of a k-means job. */
typedef struct tess_metrics_pass_row {
    int64_t step;     /* from 1 */
    int group, level; /* level -1: a refinement */
    int64_t pass;     /* of the level, from 1 */
    double error;     /* mean over vectors of the squared distance, summed over dimensions */
    double relative;  /* of the mean squared length */
    double perplexity;
    int64_t used_numel, dead_numel, split_numel; /* codes */
    int64_t vector_numel;                        /* of the pass, over all ranks */
    double vectors_per_s;                        /* over all ranks */
    double step_s;
    int64_t mem_device_peak_nbytes; /* maximum over ranks */
    int64_t mem_host_peak_nbytes;
} tess_metrics_pass_row;

/** One evaluation. */
typedef struct tess_metrics_eval_row {
    int64_t step; /* steps done before it, from 0 */
    double loss;  /* mean over the loss tokens */
    int64_t loss_token_numel;
} tess_metrics_eval_row;

/** One level of a quantizer in a window of steps, or in an evaluation; level -1: what the whole
 * model leaves of the vectors. */
typedef struct tess_metrics_level_row {
    int64_t step; /* steps done */
    bool is_eval;
    int level;
    int64_t vector_numel;           /* of the window, over all ranks */
    double square_error;            /* mean over vectors of the squared length of what is left */
    int64_t code_numel;             /* that usage is counted of; 0: it is not */
    double perplexity;              /* from here on of levels whose usage is counted */
    int64_t used_numel, dead_numel; /* codes that were hit in the window, and the others */
} tess_metrics_level_row;

/** exp(-sum p ln(p + 1e-10)) with p = count / sum of counts: of codes that are hit as `count` says
 * (van den Oord et al.; 1 where all are alike), and how many are hit at all. Local. */
double tess_perplexity(const int64_t *count, int64_t code_numel, int64_t *used_numel);

typedef struct tess_metrics tess_metrics;

/**
 * Open the three files in `folder`, which exists.
 *
 * Local; rank 0 only, the caller agrees on the status. Lines of steps after `resumed_step`, and
 * whatever a crash left after the last whole line, are dropped.
 *
 * @param[in]  resumed_step  steps that are done; 0: a fresh run
 * @return TESS_E_IO names the file
 */
TESS_MUST_CHECK tess_status tess_metrics_open(const tess_ctx *ctx, const char *folder,
                                              int64_t resumed_step, tess_metrics **out);
/** Append a step; allocates nothing. Local. @return TESS_E_IO */
TESS_MUST_CHECK tess_status tess_metrics_step(tess_metrics *metrics,
                                              const tess_metrics_step_row *row);
/** Append a pass; allocates nothing. Local. @return TESS_E_IO */
TESS_MUST_CHECK tess_status tess_metrics_pass(tess_metrics *metrics,
                                              const tess_metrics_pass_row *row);
/** Append an evaluation; allocates nothing. Local. @return TESS_E_IO */
TESS_MUST_CHECK tess_status tess_metrics_eval(tess_metrics *metrics,
                                              const tess_metrics_eval_row *row);
/** Open levels.jsonl beside the other files, by the same rules. Local. @return TESS_E_IO */
TESS_MUST_CHECK tess_status tess_metrics_open_levels(const tess_ctx *ctx, const char *folder,
                                                     int64_t resumed_step, tess_metrics *metrics);
/** Append a level to it. Local. @return TESS_E_IO */
TESS_MUST_CHECK tess_status tess_metrics_level(tess_metrics *metrics,
                                               const tess_metrics_level_row *row);
/** Flush to disk, so that a checkpoint never knows more steps than the files. Local. */
TESS_MUST_CHECK tess_status tess_metrics_sync(tess_metrics *metrics);
/** Flush and close; errors of both are reported. NULL is fine. Local. */
TESS_MUST_CHECK tess_status tess_metrics_close(tess_metrics **metrics);

TESS_END_DECLS
