/** A snapshot of the state on a stream of its own, as the store of checkpoints takes it. */
#pragma once

#include "emulation/emu_world.h"
#include "shard/runtime.h"

TESS_BEGIN_DECLS

/** What a rank copies to. */
typedef struct emu_copying {
    tess_stream *copy;
    tess_event ready, copied;
    tess_arena *arena;
    tess_runtime *rt;
} emu_copying;

typedef struct emu_snapshot {
    bool is_held; /* updates wait for the copies */
    emu_copying of[EMU_RANK_MAX];
} emu_snapshot;

/** emu_case.loaded, `arg` an emu_snapshot: what units hold goes to the host beside the steps. */
TESS_MUST_CHECK tess_status emu_snapshot_take(void *arg, const emu_rank *rank, tess_runtime *rt);
/** emu_case.end. */
void emu_snapshot_drop(void *arg, const emu_rank *rank);

TESS_END_DECLS
