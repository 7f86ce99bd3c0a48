/**
 * A step on ranks that are not there: the operations of the real schedule on three lanes, with
 * times from what they cost, how fast a device is and what links carry.
 *
 * Ranks that can differ are simulated together, and collectives begin when all of them have come:
 * rank 0, which computes in every round; the last rank with a micro-batch in the last round; the
 * last rank, which may have none, and owns least.
 *
 * [Note: no overlap] Where no core is free for communication, collectives go on only while the
 * compute lane waits: they are then behind each other, and exposed.
 */
#pragma once

#include "core/trace.h"
#include "shard/plan.h"
#include "shard/profile.h"
#include "shard/trace.h"

TESS_BEGIN_DECLS

enum { TESS_SIM_RANK_MAX = 3 };

typedef struct tess_sim_options {
    const tess_device_profile *device;
    const tess_network_profile *network;
    double item_numel; /* of a micro-batch: tokens, vectors, images */
    bool has_spans;    /* keep the timeline */
} tess_sim_options;

/** Something a lane did. */
typedef struct tess_sim_span {
    tess_trace_lane lane;
    const char *name;
    int op_idx;   /* operation of the rank's schedule, -1: none */
    int unit_idx; /* -1: none */
    int stage_idx, round_idx;
    int64_t nbytes; /* -1: none */
    double start_s, end_s;
} tess_sim_span;

/** One simulated rank. Seconds of a step. */
typedef struct tess_sim_rank {
    int rank;
    double compute_s;          /* kernels of the compute lane */
    double gather_s, reduce_s; /* busy lanes */
    double exposed_s;          /* the compute lane waits for gathers, reductions or publication */
    double imbalance_s;        /* it waits for other ranks to agree on the step */
    double end_s;
    tess_sim_span *span; /* [span_numel] */
    int span_numel;
} tess_sim_rank;

typedef struct tess_simulation {
    tess_sim_rank rank[TESS_SIM_RANK_MAX];
    int rank_numel;
    double step_s;          /* of the slowest */
    double exposed_s;       /* most of any */
    double exposed_least_s; /* least of any, with its imbalance */
    double publish_s;   /* of exposed_s of rank 0: copies of trainable slabs after the optimizer */
    double items_per_s; /* of all ranks */
    double model_flops; /* of rank 0 */
    double utilization; /* model FLOPs of all ranks over what all could do at the device's peak */
    double reduction_s[TESS_REDUCTION_NUMEL]; /* gradients' time on their lane for every choice */
    double unlisted_numel; /* kernel launches without a closed form, of a micro-batch */
} tess_simulation;

/** Simulate one step of a plan. Pure but for memory. Local. @return TESS_E_MEMORY */
TESS_MUST_CHECK tess_status tess_simulate(const tess_plan *plan, const tess_registry *reg,
                                          const tess_sim_options *options, tess_simulation *out);
void tess_simulation_fini(tess_simulation *sim);
/** Model FLOPs of forward and backward of one micro-batch of full shape; launches without a closed
 * form are added to `*unlisted`. Local. */
double tess_model_flops(const tess_registry *reg, double *unlisted);
/** The timeline of a simulated rank, in order of beginnings. Local. @return what `sink` returned */
TESS_MUST_CHECK tess_status tess_simulation_trace(const tess_sim_rank *rank,
                                                  const tess_registry *reg, tess_trace_sink sink,
                                                  void *arg);

TESS_END_DECLS
