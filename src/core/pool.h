/** A fixed set of compute threads for data-parallel loops inside one rank. */
#pragma once

#include <stdint.h>

#include "core/status.h"

TESS_BEGIN_DECLS

typedef struct tess_pool tess_pool;

/** Body of a parallel loop: part `part_idx` of `part_numel`. Must not fail; kernels check arguments
 * before. */
typedef void (*tess_pool_body)(void *arg, int part_idx, int part_numel);

/** `thread_numel` >= 1 threads, the caller counts as one. Local. */
TESS_MUST_CHECK tess_status tess_pool_create(int thread_numel, tess_pool **out);
void tess_pool_destroy(tess_pool **pool);
int tess_pool_thread_numel(const tess_pool *pool);
/**
 * Run `body` once for every part 0 .. part_numel-1 and return when all are done. Which thread runs
 * a part is not defined, so a result must not depend on it. NULL pool runs on the caller. Not
 * reentrant. Local.
 */
void tess_pool_run(tess_pool *pool, int part_numel, tess_pool_body body, void *arg);

/** Split [0, numel) in `part_numel` ranges of multiples of `grain` (the last may be short). Local.
 */
static inline void tess_pool_range(int64_t numel, int64_t grain, int part_idx, int part_numel,
                                   int64_t *lo_idx, int64_t *hi_idx)
{
    const int64_t grains = (numel + grain - 1) / grain;
    const int64_t lo = grains * part_idx / part_numel * grain;
    const int64_t hi = grains * (part_idx + 1) / part_numel * grain;
    *lo_idx = lo < numel ? lo : numel;
    *hi_idx = hi < numel ? hi : numel;
}

TESS_END_DECLS
