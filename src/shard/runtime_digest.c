/* Digests of memory that only the runtime itself may change, or that all ranks hold alike. */
#include "shard/runtime_priv.h"

enum { PART_NBYTES = 4 << 20 };

/* Of bytes one part after another, so that those of a device pass through a part of host memory. */
static tess_status digest_bytes(tess_runtime *rt, tess_view bytes, tess_xxh128 *chain)
{
    tess_view near = {0};
    if (bytes.space != TESS_HOST)
        TESS_TRY(tess_runtime_host_work(rt, &near));
    const int64_t part_nbytes =
        bytes.space == TESS_HOST ? PART_NBYTES : TESS_MIN(near.numel, (int64_t)PART_NBYTES);
    for (int64_t first = 0; first < bytes.numel; first += part_nbytes) {
        tess_view part = tess_view_slice(bytes, first, TESS_MIN(part_nbytes, bytes.numel - first));
        if (bytes.space != TESS_HOST) {
            const tess_view copy = tess_view_slice(near, 0, part.numel);
            TESS_TRY(tess_runtime_copy(rt, copy, part));
            part = copy;
        }
        const tess_xxh128 pair[2] = {*chain, tess_xxh128_of(part.data, (size_t)part.numel)};
        *chain = tess_xxh128_of(pair, sizeof pair);
    }
    return TESS_OK;
}

tess_status runtime_digest(tess_runtime *rt, tess_view v, tess_xxh128 *chain)
{
    return digest_bytes(rt, runtime_view(rt, v.data, (int64_t)tess_view_nbytes(v), TESS_U8_OPAQUE),
                        chain);
}

tess_status tess_runtime_frozen_digest(tess_runtime *rt, int unit_idx, tess_xxh128 *out)
{
    const tess_plan *plan = rt->parts.plan;
    const tess_unit_plan *u = &plan->unit[unit_idx];
    const int64_t c = (int64_t)u->frozen_shard_nbytes;
    const int64_t first = c * (rt->rank % plan->options.gather_group_numel);
    const int64_t numel = TESS_MAX(TESS_MIN((int64_t)u->frozen_nbytes - first, c), (int64_t)0);
    tess_xxh128 chain = {{0}};
    TESS_TRY(runtime_digest(rt, tess_view_slice(tess_runtime_frozen_shard(rt, unit_idx), 0, numel),
                            &chain));
    *out = chain;
    return TESS_OK;
}

tess_status tess_runtime_copies_digest(tess_runtime *rt, int unit_idx, tess_xxh128 *out)
{
    const tess_plan *plan = rt->parts.plan;
    const tess_unit_plan *u = &plan->unit[unit_idx];
    tess_xxh128 chain = {{0}};
    if (!plan->options.is_full && u->slab_wire_idx >= 0)
        TESS_TRY(runtime_digest(rt, runtime_whole_slab(rt, unit_idx), &chain));
    for (int i = 0; i < plan->state_array_numel; i++) {
        if (plan->state[i].array.grain != TESS_GRAIN_FACTOR || u->factor_numel == 0)
            continue;
        const tess_view all = runtime_view(rt, optimizer_array(rt, i, u->factor_first_idx),
                                           u->factor_numel, plan->state[i].array.dt);
        TESS_TRY(runtime_digest(rt, all, &chain));
    }
    *out = chain;
    return TESS_OK;
}
