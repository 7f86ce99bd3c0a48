/** Parts of the planner shared by its files. */
#pragma once

#include "shard/plan.h"

TESS_BEGIN_DECLS

/** Plan with nothing left on auto, limit not checked. */
TESS_MUST_CHECK tess_status tess_plan_build(const tess_registry *reg,
                                            const tess_plan_options *options, tess_plan **out);

/** Place a buffer at the end of an arena; none for no elements. */
TESS_MUST_CHECK tess_status plan_add_buffer(tess_plan *plan, const char *name, tess_lifetime life,
                                            tess_dtype dt, int64_t numel);

/* plan_schedule.c */
/** Schedule of a rank; `spec` holds its rounds. */
TESS_MUST_CHECK tess_status plan_make_schedule(const tess_plan *plan, const tess_registry *reg,
                                               int rank, tess_sched_spec spec, tess_schedule *out);

/* plan_bucket.c */
/** What TESS_BUCKET_AUTO is, buckets, the places of units in slots, and the slots. */
TESS_MUST_CHECK tess_status plan_buckets(tess_plan *plan, const tess_registry *reg);

/* plan_wire.c */
/** List the contracts of all units and of the optimizer. */
TESS_MUST_CHECK tess_status plan_wires(tess_plan *plan, const tess_registry *reg);

/* plan_exchange.c */
/** Copy the map of nodes that the options point at. */
TESS_MUST_CHECK tess_status plan_keep_nodes(tess_plan *plan);
/** Decide for every unit how its pieces go. */
void plan_exchanges(tess_plan *plan);
/** Elements of the largest unit's pieces that a rank may hold at once. */
int64_t plan_received_numel(const tess_plan *plan);

/* plan_state.c */
TESS_MUST_CHECK tess_status plan_state_arrays(tess_plan *plan);
/** A copy of what a rank saves, at most. */
int64_t plan_snapshot_nbytes(const tess_plan *plan);

TESS_END_DECLS
