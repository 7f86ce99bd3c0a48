/** What the parts of `tessera bench` share. */
#pragma once

#include <stdio.h>

#include "core/ctx.h"
#include "core/stream.h"
#include "dist/comm.h"
#include "format/json.h"
#include "launch/options.h"

TESS_BEGIN_DECLS

enum { TESS_BENCH_REPEAT_MAX = 1000, TESS_BENCH_PASS_MAX = 5, TESS_BENCH_TIMED_MAX = 1024 };

/** One measuring rank. */
typedef struct tess_bench {
    const tess_ctx *ctx;
    const tess_bench_options *options;
    tess_comm *comm; /* device: NULL */
    tess_pool *pool;
    tess_stream stream;
    char *memory; /* operands, filled with ordinary values; taken from the front */
    size_t memory_nbytes, used_nbytes;
    int pass_idx, pass_numel, timed_idx;    /* of tess_bench_time(); see [Note: passes] */
    double (*timed_s)[TESS_BENCH_PASS_MAX]; /* [TESS_BENCH_TIMED_MAX] */
    FILE *file;                             /* of -o, rank 0 */
    bool is_broken;                         /* this rank failed where others wait */
    char command[1024], kernels[64];
} tess_bench;

typedef tess_status (*tess_bench_call)(void *arg, tess_stream *stream);

/**
 * Median seconds of a call: one warm-up, then the repeats of the options, each of so many calls
 * that it takes a millisecond. Local.
 *
 * [Note: passes] A machine's speed drifts within seconds. So the same sequence of calls is timed in
 * `pass_numel` passes, which share the repeats; a call's result is the median over the passes so
 * far.
 */
TESS_MUST_CHECK tess_status tess_bench_time(tess_bench *b, tess_bench_call call, void *arg,
                                            double *out_s);
/** Room for operands at a multiple of 256 bytes; NULL when there is no more. Local. */
void *tess_bench_take(tess_bench *b, size_t nbytes);
/** Median of `numel` values, which are sorted. Local. */
double tess_bench_median(double *value, int numel);
/** Machine, versions, command and time in one line, as the `source` of a description. Local. */
void tess_bench_source(const tess_bench *b, char *text, size_t text_nbytes);

/* ---- results ---- */

/** Open the file of -o, on rank 0. Collective. @return TESS_E_IO */
TESS_MUST_CHECK tess_status tess_bench_open(tess_bench *b);
/** Write a line: members of `root`, then where it comes from. Rank 0 gives `root`, which is
 * destroyed, or what went wrong when it was made. Collective. @return TESS_E_IO */
TESS_MUST_CHECK tess_status tess_bench_line(tess_bench *b, tess_json *root, tess_status st);
/** Close it. Collective. @return TESS_E_IO */
TESS_MUST_CHECK tess_status tess_bench_close(tess_bench *b);
/** A row of the table for people, on stderr of rank 0. Local. */
void tess_bench_row(const tess_bench *b, const char *fmt, ...) TESS_PRINTF(2, 3);

/** Rates of this machine's own kernels into a description of a device. Local. */
TESS_MUST_CHECK tess_status tess_bench_device(tess_bench *b);
/** Latency and rate of the links between ranks into a description of a network. Collective. */
TESS_MUST_CHECK tess_status tess_bench_links(tess_bench *b);
/** Every collective at every size, checked, as JSON lines. Collective. */
TESS_MUST_CHECK tess_status tess_bench_collectives(tess_bench *b);
/** Training steps over shapes, formats and lengths. Collective. */
TESS_MUST_CHECK tess_status tess_bench_step(tess_bench *b);
/** The same steps on 1 to all ranks, and where the loss of efficiency comes from. Collective. */
TESS_MUST_CHECK tess_status tess_bench_scaling(tess_bench *b);
/** Saves while training goes on, and loads at other numbers of ranks. Collective. */
TESS_MUST_CHECK tess_status tess_bench_checkpoint(tess_bench *b);
/** Time to the first step from every kind of source. Collective. */
TESS_MUST_CHECK tess_status tess_bench_load(tess_bench *b);

TESS_END_DECLS
