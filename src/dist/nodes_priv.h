/**
 * Which ranks share a node, and the order of ranks that follows from it.
 *
 * [Note: rank order] Gather groups are consecutive ranks, so the ranks of a node are made
 * consecutive: nodes in the order of their lowest rank in the launch, ranks of a node in the
 * launch's own order. Under the default mapping of mpirun and Slurm nothing changes; under `mpirun
 * --map-by node` it does. Rank 0 always stays rank 0.
 */
#pragma once

#include "core/base.h"
#include "core/status.h"

TESS_BEGIN_DECLS

typedef struct dist_nodes {
    int node_numel;
    int *first_rank; /* [node_numel + 1], in the order of the note; the last is the world */
} dist_nodes;

/**
 * Sort ranks by node. `lowest_rank` [world] holds, for each rank of the launch, the lowest rank on
 * its node. `new_rank` [world] receives each one's number in the order of the note. Local.
 */
TESS_MUST_CHECK tess_status dist_nodes_create(const int *lowest_rank, int world, int *new_rank,
                                              dist_nodes **out);
void dist_nodes_destroy(dist_nodes **nodes);
/** Node of a rank in the new order. */
int dist_nodes_find(const dist_nodes *nodes, int rank);
/** Ranks of each node where [first_rank, first_rank + numel) are two or more whole nodes of the
 * same number of ranks, more than one; else 0. `nodes` may be NULL. Local. */
int dist_nodes_even(const dist_nodes *nodes, int first_rank, int numel);

TESS_END_DECLS
