/**
 * Devices that a plan can be made for without having one, and what their data sheets let expect.
 *
 * A prediction is bytes over bandwidth and products over peak rate: nothing is measured, latency
 * and overlap are left out. It says which way of sharding is worth a trial, not how long a step
 * takes.
 */
#pragma once

#include "shard/plan.h"

TESS_BEGIN_DECLS

typedef struct tess_plan_device {
    const char *name;
    const char *kernel_path; /* written into the plan; NULL: that of this machine's CPU */
    size_t memory_nbytes;    /* default of compute.memory_limit; 0: none */
    int node_rank_numel;     /* ranks that share the fast links */
    double intra_gb_per_s;   /* 1e9 bytes per second and rank, one direction, inside a node */
    double inter_gb_per_s;   /* the same between nodes */
    double bf16_tflop_per_s; /* dense, fp32 accumulation */
} tess_plan_device;

/** Local. @return TESS_E_UNSUPPORTED lists the known names */
TESS_MUST_CHECK tess_status tess_plan_device_find(const char *name, const tess_plan_device **out);

/** Seconds of one step on one rank. */
typedef struct tess_prediction {
    const tess_plan_device *device;
    tess_reduction reduction;                 /* of the plan */
    double gather_s;                          /* all gathers of units */
    double reduction_s[TESS_REDUCTION_NUMEL]; /* gradients to their owners */
    double trainable_s;                       /* copies gathered after the optimizer */
    double compute_s;                         /* matrix products, without attention scores */
} tess_prediction;

/**
 * Predict a step. Pure. Local.
 * @param token_numel  tokens of a micro-batch
 */
void tess_plan_predict(const tess_plan *plan, const tess_registry *reg,
                       const tess_plan_device *device, int64_t token_numel, tess_prediction *out);
/** Lines for people, into a new string. Local. */
TESS_MUST_CHECK tess_status tess_prediction_text(const tess_prediction *p, char **out);
/** Member "predicted" of a plan's JSON, which plan.json of a run does not have. Local. */
TESS_MUST_CHECK tess_status tess_prediction_json(const tess_prediction *p, tess_json *plan);

TESS_END_DECLS
