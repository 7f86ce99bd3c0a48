/** Durations of what a step does, for the simulation. All functions are Local and pure. */
#pragma once

#include "shard/link_time.h"
#include "shard/simulate.h"

TESS_BEGIN_DECLS

typedef struct sim_model {
    const tess_plan *plan;
    const tess_registry *reg;
    const tess_device_profile *device;
    const tess_link *node, *across;
} sim_model;

/** A collective of one rank: legs one behind the other. */
typedef struct sim_collective {
    tess_leg leg[2];
} sim_collective;

double sim_collective_s(const sim_collective *c);
/** An operation of a communication lane. */
sim_collective sim_op_collective(const sim_model *m, int rank, const tess_sched_op *op);
/** An operation of the compute lane. */
double sim_op_s(const sim_model *m, int rank, const tess_sched_op *op);
/** The share of a collective that the network carries while ranks compute and drive nothing: what
 * the engine hands over at once (TESS_COMM_FAR_NBYTES a peer), where no rank shares a node. */
double sim_carried(const sim_model *m, int rank, const tess_sched_op *op);
/** What of a collective's bytes from other nodes is left to the core that waits for them, however
 * early they came: out of the kernel's buffers. 0 where communication overlaps by itself. */
double sim_arrived_s(const sim_model *m, int rank, const tess_sched_op *op);
/** All owned gradients: the last sums and their squares; the optimizer. */
double sim_sum_s(const sim_model *m, int rank);
double sim_squares_s(const sim_model *m, int rank);
double sim_optimizer_s(const sim_model *m, int rank);
/** The control record. */
double sim_agree_s(const sim_model *m);
/** A unit's trainable copy to all ranks; 0 where slabs are not kept. */
double sim_publish_s(const sim_model *m, int rank, int unit_idx);
/** Gradients of a step on their lane under a reduction, of rank 0. */
double sim_reduction_s(const sim_model *m, tess_reduction kind);

/* ---- collectives under way ---- */

enum { SIM_PART_MAX = 4, SIM_FLOW_MAX = 2 * TESS_SIM_RANK_MAX };

/** A leg that begins when those before it are over, and not before its time. */
typedef struct sim_part {
    double from_s;
    tess_leg left;
} sim_part;

/** [Note: shared links] A collective of some of the simulated ranks. While one of the other lane
 * that has a rank in common moves bytes over the same kind of hop, both move half as many. Latency
 * and messages leave the link to others. */
typedef struct sim_flow {
    bool is_under_way;
    tess_lane lane;
    unsigned rank_bits;    /* of the simulated ranks that take part */
    double start_s, end_s; /* end < 0: not over */
    sim_part part[SIM_PART_MAX];
    int part_numel, part_idx;
} sim_flow;

/** Append a share of a collective's legs. */
void sim_flow_add(sim_flow *flow, double from_s, const sim_collective *c, double share);
/** Let time go by, from `*now_s` until the first flow under way is over, or to `until_s`. */
void sim_flows_run(sim_flow *flow, int numel, double *now_s, double until_s);

TESS_END_DECLS
