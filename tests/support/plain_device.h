/**
 * The plainest device that is not the host: memory of its own, streams that run at once except for
 * collectives, which are under way until somebody waits for them.
 */
#pragma once

#include "core/device.h"

TESS_BEGIN_DECLS

/**
 * Local. @param is_far  addresses of device memory are not the host's: whoever reads them dies.
 * Without it kernels of the CPU can serve as those of the device.
 */
TESS_MUST_CHECK tess_status plain_device_create(const char *name, bool is_far, tess_device **out);
void plain_device_destroy(tess_device **d);
/** Where the host finds what `data` of device memory is. Local. */
void *plain_device_near(const tess_device *d, const void *data);
/** Memory that is reported as whole, and what can be had of it; 0: no limit. Local. */
void plain_device_set_memory(tess_device *d, size_t total_nbytes, size_t limit_nbytes);

/** Put work on a stream: it is done when `step` returns true, and what follows on `s` waits for it.
 * Local.
 */
TESS_MUST_CHECK tess_status plain_stream_defer(tess_stream *s, bool (*step)(void *arg), void *arg);

TESS_END_DECLS
