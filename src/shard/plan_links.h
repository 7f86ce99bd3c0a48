/**
 * Which links the traffic of a plan takes: inside a node, or across nodes.
 *
 * Nodes are runs of `options.node_rank_numel` consecutive ranks (dist/comm.h numbers ranks so). All
 * functions are Local and pure. Exchanges of an optimizer and sums ahead of a step are not counted.
 */
#pragma once

#include "shard/plan.h"

TESS_BEGIN_DECLS

typedef enum tess_traffic {
    TESS_TRAFFIC_GATHER,    /* units in their groups; in full mode their slabs over the world */
    TESS_TRAFFIC_GRADIENT,  /* of micro-batches, to their owners */
    TESS_TRAFFIC_TRAINABLE, /* copies of trainable slabs, once a step */
    TESS_TRAFFIC_CODEBOOK,  /* searches and sums of codes, as if of all ranks alike */
    TESS_TRAFFIC_NUMEL
} tess_traffic;

/** "unit gathers", "gradients", "trainable copies", "codebooks". */
const char *tess_traffic_name(tess_traffic traffic);

/** Payload of a step in bytes, by whether sender and receiver share a node. */
typedef struct tess_link_nbytes {
    double inside, across;
} tess_link_nbytes;

/** Whether the plan has such traffic to tell of. */
static inline bool tess_plan_has_traffic(const tess_plan *plan, tess_traffic traffic)
{
    return traffic != TESS_TRAFFIC_CODEBOOK || plan->options.codes.has_books;
}
/** Nodes of the plan; 0 where they have different numbers of ranks. */
int tess_plan_node_numel(const tess_plan *plan);
/** What `rank` sends in a step. Needs equal nodes. */
tess_link_nbytes tess_plan_rank_sends(const tess_plan *plan, tess_traffic traffic, int rank);
/** What all ranks of `node` send to and receive from other nodes in a step. Needs equal nodes. */
void tess_plan_node_traffic(const tess_plan *plan, int node, double *sent_nbytes,
                            double *received_nbytes);
/** Whether no collective of that kind leaves a node. Needs only options. */
bool tess_plan_is_inside(const tess_plan *plan, tess_traffic traffic);
/** "one rank", "node" or "network": the widest link of a collective of that kind. */
const char *tess_plan_link_name(const tess_plan *plan, tess_traffic traffic);

TESS_END_DECLS
