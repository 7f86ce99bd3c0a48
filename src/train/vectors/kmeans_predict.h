/**
 * How long a k-means job takes on a described device and network: closed forms of what its passes
 * compute and send, replicated or row-sharded, at any number of ranks.
 *
 * [Note: what is predicted] Rank 0, which has the most blocks and in row-sharded jobs goes through
 * every round with all others. Communication is behind computation, as it is in a pass: nothing
 * overlaps. Codes that vectors choose lie with all owners alike. Left out: files that are not in
 * memory, checkpoints, evaluation, codes that were split, and that a level may end early.
 */
#pragma once

#include "format/json.h"
#include "shard/profile.h"
#include "shard/trace.h"
#include "train/vectors/kmeans.h"

TESS_BEGIN_DECLS

/** Seconds of a part of a job. */
typedef struct tess_kmeans_time {
    double compute_s, comm_s;
} tess_kmeans_time;
static inline double tess_kmeans_time_s(tess_kmeans_time t) { return t.compute_s + t.comm_s; }

typedef struct tess_kmeans_prediction {
    tess_kmeans_time scan;
    tess_kmeans_time start[TESS_KMEANS_LEVEL_MAX];  /* start codes of a level */
    tess_kmeans_time pass[TESS_KMEANS_LEVEL_MAX];   /* or mini-batch of it */
    tess_kmeans_time encode[TESS_KMEANS_LEVEL_MAX]; /* of all vectors when it ends */
    tess_kmeans_time refine;                        /* once a stack */
    tess_kmeans_time job;                           /* all steps at most, of all groups */
    double vectors_per_s;                           /* of a pass of the first level, all ranks */
    double flops;                                   /* of its searches, all ranks */
    double utilization; /* these over what all ranks' rate of searches allows in the time */
} tess_kmeans_prediction;

typedef struct tess_kmeans_predict_request {
    const tess_kmeans_plan *plan;
    const tess_codebook_plan *book; /* one of the plan's two shardings */
    const tess_device_profile *device;
    const tess_network_profile *network;
} tess_kmeans_predict_request;

/** Local, pure. */
void tess_kmeans_predict(const tess_kmeans_predict_request *request, tess_kmeans_prediction *out);
/** The whole job as rank 0 goes through it: what the first steps of every level do, rounds
 * together, and in one span what the others take. Local.
 * @return what `sink` returned */
TESS_MUST_CHECK tess_status tess_kmeans_predict_trace(const tess_kmeans_predict_request *request,
                                                      tess_trace_sink sink, void *arg);

/** A job's prediction under both shardings. */
typedef struct tess_kmeans_outlook {
    const tess_kmeans_plan *plan;
    const tess_device_profile *device;
    const tess_network_profile *network;
    tess_kmeans_prediction way[2]; /* replicated, rows */
} tess_kmeans_outlook;

/** Predict both. Local, pure. */
void tess_kmeans_look_ahead(const tess_kmeans_plan *plan, const tess_device_profile *device,
                            const tess_network_profile *network, tess_kmeans_outlook *out);
/** Lines for people, into a new string. Local. */
TESS_MUST_CHECK tess_status tess_kmeans_outlook_text(const tess_kmeans_outlook *outlook,
                                                     char **text);
/** Member "predicted" of a plan's JSON. Local. */
TESS_MUST_CHECK tess_status tess_kmeans_outlook_json(const tess_kmeans_outlook *outlook,
                                                     tess_json *plan);

TESS_END_DECLS
