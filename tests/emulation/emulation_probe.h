/** Small kernels with and without mistakes, to test the emulation itself. */
#pragma once

#include "core/stream.h"

TESS_BEGIN_DECLS

typedef enum probe_kind {
    PROBE_LEGAL,           /* one warp shuffles while another waits for the block; sub-warps */
    PROBE_NAMED,           /* two halves of a block meet at barriers of their own */
    PROBE_READ_HIGHER,     /* needs a barrier, has one */
    PROBE_BARRIERS_DIFFER, /* half of the threads at one line, half at another */
    PROBE_THREAD_LEAVES,   /* thread 5 returns before a barrier */
    PROBE_MASKS_DIFFER,    /* lanes shuffle with different masks */
    PROBE_SITES_DIFFER,    /* lanes shuffle at different lines */
    PROBE_LANE_LEAVES,     /* lane 7 returns before a shuffle of all */
    PROBE_NAMED_NUMBERS,   /* one barrier, two numbers of threads */
    PROBE_WRITES_BEHIND,   /* device memory */
    PROBE_WRITES_BEFORE,
    PROBE_WRITES_BEHIND_SHARED,
    PROBE_WRITES_BEHIND_DYNAMIC,
    PROBE_MISALIGNED,
    PROBE_SHARED_LARGE, /* more dynamic shared memory than was asked for */
    PROBE_NUMEL,
} probe_kind;

/** Write one word per thread of two blocks of 64 to `out` [128]. */
tess_status emulation_probe(probe_kind kind, unsigned *out, tess_stream *s);
/** Pass an address inside a struct. */
tess_status emulation_probe_struct(unsigned *out, const unsigned *hidden, tess_stream *s);
/** out[block] = what thread 0 of each block finds in a static shared variable; then it writes 7. */
tess_status emulation_probe_static(unsigned *out, tess_stream *s);

TESS_END_DECLS
