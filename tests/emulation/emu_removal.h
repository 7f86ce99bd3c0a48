/** One of the waits that schedules generate is taken away. */
#pragma once

#include "emulation/emu_world.h"
#include "shard/runtime.h"

TESS_BEGIN_DECLS

enum { EMU_PLACE_MAX = 1024 };

/** Where a wait stands. */
typedef struct emu_place {
    int rank; /* -1: none */
    bool is_eval;
    int op_idx, lane;
} emu_place;

typedef struct emu_removal {
    emu_place list[EMU_PLACE_MAX]; /* all waits of a setting */
    int numel, slot_numel;         /* slot: of gathers for the last use of what they replace */
    emu_place taken;
    char what[160]; /* of the wait that was taken */
    /* It is that of the first stage's backward for its weights. Schedules take for granted that
     * backward reads them; where only their gradient is wanted, as of an embedding, it does not. */
    bool may_be_idle;
} emu_removal;

/** `arg`: an emu_removal. Where `taken` is none the rank's waits are listed, else that one goes.
 * Every rank calls it when its runtime is there. Local. */
void emu_take_away(void *arg, const emu_rank *rank, tess_runtime *rt);

TESS_END_DECLS
