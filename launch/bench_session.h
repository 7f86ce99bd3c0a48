/** Measured sessions on some of the ranks of `tessera bench`. */
#pragma once

#include "launch/bench_case.h"
#include "train/session.h"

TESS_BEGIN_DECLS

/** Middle and spread of repeats. */
typedef struct tess_bench_spread {
    double p10, median, p90;
} tess_bench_spread;

/** Of `numel` values, which are sorted: nearest ranks. Local. */
tess_bench_spread tess_bench_spread_of(double *value, int numel);
/** Members NAME_s, NAME_p10_s and NAME_p90_s. Local. */
TESS_MUST_CHECK tess_status tess_bench_add_spread(tess_json *root, const char *name,
                                                  tess_bench_spread spread);

enum { TESS_BENCH_SETTING_MAX = 8 };

/** One session to be measured. */
typedef struct tess_bench_job {
    const tess_bench_case *what;
    const char *setting[TESS_BENCH_SETTING_MAX]; /* KEY=VALUE, before those of the user */
    int setting_numel;
    const char *format; /* NULL: the case's own */
    const char *dir;    /* output.dir */
    bool has_no_keys;   /* those of the command line are left out */
    bool may_resume;    /* go on from what is there; else begin anew */
    bool needs_waits;   /* of steps: runs that do not know theirs are refused */
    tess_session_measure measure;
} tess_bench_job;

/** What was resolved; equal on all ranks. Plain data. */
typedef struct tess_bench_run {
    char family[32], format[32];
    const char *unit;                                           /* "tokens", "samples", "vectors" */
    int64_t micro_batch, micro_batch_numel, length, item_numel; /* items: of a step */
    int64_t planned_nbytes;
    double model_flops; /* of a step, all ranks */
    double setup_s;     /* from the call to the first step, on rank 0 */
    tess_cost cost;     /* of a step, rank 0 */
} tess_bench_run;

/** Work inside a session; `arg` is the caller's. Called on every rank of the group. */
typedef tess_status (*tess_bench_body)(tess_session *session, tess_comm *group, void *arg);

/**
 * Open a session on the first `rank_numel` ranks, run `body`, close; the others wait. Collective
 * over b->comm, and all its ranks leave with the same status.
 * @param run  may be NULL; written on ranks of the group
 */
TESS_MUST_CHECK tess_status tess_bench_on_ranks(tess_bench *b, const tess_bench_job *job,
                                                int rank_numel, tess_bench_body body, void *arg,
                                                tess_bench_run *run);

enum { TESS_BENCH_SPAN_MAX = 96 };

/** Spans of one kind, summed over traced steps. */
typedef struct tess_bench_span {
    tess_trace_lane lane;
    char name[48];
    int64_t numel, nbytes;
    double s;
} tess_bench_span;

typedef struct tess_bench_spans {
    int numel;
    tess_bench_span span[TESS_BENCH_SPAN_MAX];
} tess_bench_spans;

/** Steps of one rank as they came. */
typedef struct tess_bench_steps {
    int64_t warmup_numel;
    int64_t seen_numel; /* warm-up included */
    double step_s[TESS_BENCH_REPEAT_MAX], wait_s[TESS_BENCH_REPEAT_MAX];
    tess_measured_step last;
    int64_t traced_numel; /* behind those */
    double traced_s;
    tess_bench_spans spans;
} tess_bench_steps;

/** What all ranks' steps come to; on rank 0. */
typedef struct tess_bench_times {
    tess_bench_spread step;   /* of the slowest rank */
    double exposed_s;         /* median over steps of the least wait of any rank; NaN: not known */
    double imbalance_s;       /* median over steps of the mean wait less the least; NaN with that */
    int64_t host_peak_nbytes; /* most of any rank */
    int64_t device_peak_nbytes;
    int64_t traced_numel; /* steps of rank 0, see --kernels */
    double traced_s;
    tess_bench_spans spans;
} tess_bench_times;

/** Warm-up and repeats of the options on `rank_numel` ranks. Collective over b->comm.
 * @param[out] times  on rank 0 */
TESS_MUST_CHECK tess_status tess_bench_time_steps(tess_bench *b, tess_bench_job *job,
                                                  int rank_numel, tess_bench_run *run,
                                                  tess_bench_times *times);
/** Members that say what was run. Local. */
TESS_MUST_CHECK tess_status tess_bench_add_run(tess_json *root, const tess_bench_case *what,
                                               const tess_bench_run *run, int rank_numel);
/** Rank counts, ascending: those of --ranks, or powers of two and all; with 1 where `has_one`.
 * Local; the same answer on all ranks. @return TESS_E_ARG more ranks than the launch has */
TESS_MUST_CHECK tess_status tess_bench_ranks(const tess_bench *b, bool has_one,
                                             int rank[TESS_BENCH_LIST_MAX + 1], int *numel);

/** One place of a grid: a subject at a length in a format. */
typedef tess_status (*tess_bench_place)(tess_bench *b, const tess_bench_scratch *scratch,
                                        const tess_bench_case *what, const char *format);
/** Visit every subject, length and format of the options, in that order. Collective. */
TESS_MUST_CHECK tess_status tess_bench_grid(tess_bench *b, tess_bench_place place);

TESS_END_DECLS
