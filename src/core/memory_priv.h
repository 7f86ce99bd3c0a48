/** What arenas of the host and of devices share. */
#pragma once

#include "core/device.h"

struct tess_arena {
    char *base;
    size_t nbytes;     /* promised */
    size_t map_nbytes; /* held */
    tess_space space;
    tess_device *device; /* that releases it, NULL: mapped here */
    char name[64];
};

/** Zero pages of the host, on large pages where the kernel gives them; NULL when it has none. */
void *memory_map(size_t nbytes);
/** An arena without memory. */
TESS_MUST_CHECK tess_status memory_arena(const char *name, size_t nbytes, tess_arena **out);
