/**
 * Host emulation of CUDA kernels, thread by thread: what a test sets and asks.
 *
 * A launch runs its blocks one after another; the threads of a block are fibers that run from one
 * barrier to the next, in a chosen order. A launch fails with TESS_E_STATE, and a message naming
 * kernel, block, threads and source lines, when threads wait at different barriers, when one leaves
 * while others wait, when lanes of a warp disagree, when a canary around device or shared memory is
 * overwritten, or when a kernel is given an address outside device memory.
 *
 * Tests that say "Runs on a device too" are built a second time (cuda.<name>) against
 * tests/cuda/kernels_on_device.c, where the same functions, and the entries of
 * kernels/cuda/cuda_priv.h, are those of a device opened through the CUDA part's door. Orders of
 * threads, limits of blocks and barriers are the hardware's there: settings have no effect but for
 * what memory is filled with, and what needs barriers is skipped by name.
 */
#pragma once

#include <stdint.h>

#include "kernels/kernels.h"

TESS_BEGIN_DECLS

/** Which of the threads that could run does, and in which order blocks come. */
typedef enum tess_emulation_order {
    TESS_EMULATION_FORWARD, /* ascending: shows a missing barrier before a read of higher threads */
    TESS_EMULATION_REVERSED, /* descending: ... of lower threads */
    TESS_EMULATION_SEEDED,
} tess_emulation_order;

typedef struct tess_emulation_settings {
    tess_emulation_order order;
    uint64_t seed;         /* of SEEDED */
    int64_t block_max;     /* most blocks that tess_grid() gives, 0: as on a device */
    int shared_max_nbytes; /* most shared memory of a block, 0: an A100's */
    int dropped_barrier;   /* number of a barrier that lets every thread pass, -1: none */
} tess_emulation_settings;

/** One barrier in the source of a kernel, known from its first execution on. */
typedef struct tess_emulation_barrier {
    const char *kind; /* "__syncthreads" */
    const char *file; /* path as compiled */
    int line;
    int64_t pass_numel; /* threads that came here since tess_emulation_set() */
} tess_emulation_barrier;

/** Whether the kernels are those of a device. */
bool tess_emulation_is_device(void);
/** Setup of a group of tests: on a device it is opened, or the program ends with code 77 and says
 * what is missing; in the emulation nothing. @return 0 */
int tess_emulation_setup(void **state);
/** A table whose `*_nbytes` functions say what workspaces the entries under test need. */
const tess_kernels *tess_emulation_sizes(void);

/** For launches from now on; forgets pass counts. */
void tess_emulation_set(const tess_emulation_settings *settings);
int tess_emulation_barrier_numel(void);
tess_emulation_barrier tess_emulation_barrier_get(int idx);

/**
 * Device memory, aligned to 256 bytes, poisoned, between canaries. The host cannot touch it but by
 * the copies below: any other access stops the process.
 */
TESS_MUST_CHECK tess_status tess_emulation_alloc(const char *name, size_t nbytes, void **out);
/** All device memory at once. */
void tess_emulation_release_all(void);
/** Bytes into (from) device memory. @return TESS_E_ARG not inside one allocation */
TESS_MUST_CHECK tess_status tess_emulation_write(void *device, const void *host, size_t nbytes);
TESS_MUST_CHECK tess_status tess_emulation_read(void *host, const void *device, size_t nbytes);

TESS_END_DECLS
