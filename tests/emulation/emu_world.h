/**
 * Ranks of one emulated job in one process, and what was found about them.
 *
 * Every rank is a thread with an emulated device and a communicator over its memory. One thread
 * runs at a time: wherever a rank waits, and by chance wherever it enqueues, a seeded draw picks
 * what comes next among the operations that may start and the ranks that may go on. So a seed is an
 * order, and an order can be repeated.
 *
 * Missing waits do not depend on that order: each operation's byte ranges are compared, as it is
 * enqueued, with all earlier ones that no chain of events puts before it (vector clocks).
 */
#pragma once

#include "core/device.h"
#include "dist/comm.h"
#include "emulation/emu_ranges.h"

TESS_BEGIN_DECLS

enum { EMU_RANK_MAX = 8, EMU_STREAM_MAX = 16, EMU_EXIT_TOUCHED = 97, EMU_TEXT_NBYTES = 1024 };

typedef struct emu_options {
    int rank_numel;
    uint64_t seed;
    /* A device runs one collective at a time, in the order its host issued them: what a GPU that is
     * full does. Orders that differ between ranks then end in a deadlock. */
    bool is_serial;
    /* Every kernel is held to its list of operands (emu_ranges.c): it runs twice, the second time
     * with all bytes changed that are not listed as read. Slow. */
    bool is_audited;
    /* Quantized matrices are decoded on a stream beside the compute stream, as CUDA does. */
    bool is_ahead;
    /* ... which does not wait for what the compute stream waits for: a mistake to be found. */
    bool is_lane_apart;
} emu_options;

/** One rank as its body sees it. */
typedef struct emu_rank {
    tess_device *device; /* TESS_DEVICE space: memory of its own, not the host's */
    tess_comm *comm;     /* world, over device memory */
    int rank;
} emu_rank;

typedef struct emu_report {
    tess_status status;              /* of the lowest rank that failed, TESS_OK */
    char error[2048];                /* its message */
    int64_t violation_numel;         /* missing waits and touched bytes that are not an operand's */
    char violation[EMU_TEXT_NBYTES]; /* the first */
    uint64_t order_hash;             /* of the operations as they ran */
    int64_t operation_numel;
    int64_t ahead_numel;            /* products whose matrices were decoded ahead */
    bool has_run[EMU_KERNEL_NUMEL]; /* kernels */
} emu_report;

typedef tess_status (*emu_body)(void *arg, const emu_rank *rank);

/** Run `body` on all ranks until it returns everywhere. */
void emu_run(const emu_options *options, emu_body body, void *arg, emu_report *out);
/** From now on waits of this rank for `ev` do nothing: a wait is taken away. NULL: for none. */
void emu_ignore_event(const emu_rank *rank, const tess_event *ev);
/** Waits that were taken away so far. */
int64_t emu_ignored_numel(const emu_rank *rank);

/** Allocations of this rank's device so far, pinned ones of the host among them. */
int emu_allocation_numel(const emu_rank *rank);
/** The event after which a slot of weights decoded ahead is filled, or free again (`is_free`). */
const tess_event *emu_lane_event(const emu_rank *rank, int slot_idx, bool is_free);

/** C twins, deferred. */
extern const tess_kernels emu_kernels;

TESS_END_DECLS
