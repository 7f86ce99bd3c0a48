/**
 * Losses and norms of gradients of a run, and how far those of the same run on a device may be from
 * the CPU's: the one place of these bounds, for devices in the emulation and for real ones.
 */
#pragma once

#include "core/io.h"
#include "core/status.h"

enum { RUN_CURVE_STEP_MAX = 16 };

/** Plain bytes, zero where a step has nothing: curves compare by memcmp(). */
typedef struct run_curve {
    int step_numel;
    double loss[RUN_CURVE_STEP_MAX];
    double norm[RUN_CURVE_STEP_MAX]; /* of gradients, before clipping */
} run_curve;

/** Relative distances; infinite: nothing is promised, but a finite number. */
typedef struct run_bound {
    const char *name;
    double loss, norm;
} run_bound;

/** By name, as "llama-f32"; an unknown one is an error that lists all. Local. */
tess_status run_bound_find(const char *name, const run_bound **out);
/** All steps of `dir`/metrics.jsonl, which are numbered from 1 without a gap. Local. */
tess_status run_curve_read(tess_io *io, const char *dir, run_curve *out);
/** Every step of `got` against `want`; the error names the first that is too far off. Local. */
tess_status run_curve_compare(const run_bound *bound, const run_curve *want, const run_curve *got);
/** The largest distance of two curves that compare well, as a share of its bound. Local. */
double run_curve_share(const run_bound *bound, const run_curve *want, const run_curve *got);
/** One number against another, by the bound of losses. Local. */
tess_status run_bound_check(const run_bound *bound, const char *what, double want, double got);
