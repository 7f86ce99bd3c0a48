/**
 * The device whose memory emulation.h's functions are in programs that run on one: for tests that
 * need its streams, its libraries or its table beside that.
 */
#pragma once

#include "tests/emulation/emulation.h"
#include "tests/support/cuda_door.h"

TESS_BEGIN_DECLS

/** Open since tess_emulation_setup(). Local. */
const tess_cuda_door *on_device_door(void);
/** Every canary around device memory is whole. @return TESS_E_STATE names `op` and the byte */
TESS_MUST_CHECK tess_status on_device_check(const char *op);

/** Bytes of the device that are taken, by whatever program; 0 where it does not say. Local. */
static inline size_t on_device_taken_nbytes(void)
{
    size_t free_nbytes = 0, total_nbytes = 0;
    if (tess_device_memory(on_device_door()->device, &free_nbytes, &total_nbytes) != TESS_OK)
        return 0;
    return total_nbytes - free_nbytes;
}

/**
 * What `steps` take of the device, negative: give back. Other programs may come and go meanwhile,
 * so that the first of several tries without a change decides. Local.
 */
static inline int64_t on_device_taken_by(void (*steps)(void *arg), void *arg)
{
    enum { TRY_NUMEL = 50 };
    int64_t taken = 0;
    for (int i = 0; i < TRY_NUMEL; i++) {
        const size_t before_nbytes = on_device_taken_nbytes();
        steps(arg);
        taken = (int64_t)on_device_taken_nbytes() - (int64_t)before_nbytes;
        if (taken == 0)
            break;
    }
    return taken;
}

TESS_END_DECLS
