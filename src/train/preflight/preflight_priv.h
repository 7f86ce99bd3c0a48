/** Measured links and the order in which they are measured. */
#pragma once

#include "train/preflight/preflight.h"

TESS_BEGIN_DECLS

/** Ranks and nodes that a schedule is made for; nodes are consecutive ranks. */
typedef struct preflight_shape {
    int world;
    int node_numel;
    const int *first_rank; /* [node_numel + 1] */
} preflight_shape;

/** Rounds of the schedule of all ranks. Local. */
int64_t preflight_round_numel(const preflight_shape *s);
/** Who `rank` measures with in a round, -1: nobody. Both ends say each other. Local. */
int preflight_partner(const preflight_shape *s, int64_t round, int rank);

/** Measure and collect on rank 0. Collective. */
TESS_MUST_CHECK tess_status preflight_links(tess_comm *world, tess_preflight *p);

TESS_END_DECLS
