/* What the host reads of the device inside a step: the record, and what an update exchanges. */
#include "shard/runtime_priv.h"

size_t runtime_record_nbytes(const tess_runtime *rt)
{
    return sizeof(step_record) + (size_t)rt->parts.plan->unit_numel * sizeof(int64_t);
}

tess_status runtime_host_create(tess_runtime *rt)
{
    const size_t nbytes =
        TESS_MAX(runtime_record_nbytes(rt), rt->parts.plan->optimizer_host_nbytes);
    if (rt->device->space == TESS_HOST)
        return TESS_OK;
    return tess_device_arena_create(rt->device, TESS_HOST, "step record", nbytes, &rt->record_copy);
}

tess_status runtime_read(tess_runtime *rt, tess_view dev, void **out)
{
    tess_view copy = {0};
    *out = dev.data;
    if (rt->device->space == TESS_HOST)
        return TESS_OK;
    TESS_TRY(tess_arena_view(rt->record_copy, 0, dev.numel, TESS_U8_OPAQUE, &copy));
    *out = copy.data;
    return tess_runtime_copy(rt, copy, dev);
}

tess_status runtime_write(tess_runtime *rt, tess_view dev)
{
    tess_view copy = {0};
    if (rt->device->space == TESS_HOST)
        return TESS_OK;
    TESS_TRY(tess_arena_view(rt->record_copy, 0, dev.numel, TESS_U8_OPAQUE, &copy));
    return tess_runtime_copy(rt, dev, copy);
}
