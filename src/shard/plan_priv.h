/** Parts of the planner shared by its files. */
#pragma once

#include "shard/plan.h"

TESS_BEGIN_DECLS

/** Plan with nothing left on auto, limit not checked. */
TESS_MUST_CHECK tess_status tess_plan_build(const tess_registry *reg,
                                            const tess_plan_options *options, tess_plan **out);

TESS_END_DECLS
