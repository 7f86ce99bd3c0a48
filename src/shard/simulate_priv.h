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

TESS_END_DECLS
