/** Steps of a session of any family by hand, on the host or on an emulated rank: what they leave,
 * and what is found when waits are taken away. */
#pragma once

#include "emulation/emu_removal.h"
#include "train/session.h"

TESS_BEGIN_DECLS

enum { EMU_SESSION_STEPS = 2 };

/** What came out; equal bytes, equal bits. */
typedef struct emu_trained {
    double loss[EMU_SESSION_STEPS], norm[EMU_SESSION_STEPS], eval_loss;
    int64_t master[2]; /* logical hash of all masters */
} emu_trained;

/** Train EMU_SESSION_STEPS steps, evaluate. `rank` NULL: the host; `removal` NULL: nothing is taken
 * away. Collective. */
TESS_MUST_CHECK tess_status emu_session_use(tess_session *s, const emu_rank *rank,
                                            emu_removal *removal, emu_trained *out);

/** Runs of one setting on emulated ranks. */
typedef struct emu_setting {
    const char *name; /* for messages */
    emu_options options;
    emu_body body; /* runs with `removal`, where that is not NULL */
    void *arg;
    emu_removal **removal; /* the body's, set by emu_session_take_each() */
} emu_setting;

/** Take every generated wait away in turn: each must show. @return how many there were */
int emu_session_take_each(const emu_setting *setting);
/** Nothing failed, nothing was not ordered. */
void emu_session_check(const char *name, const emu_options *o, const emu_report *r);
/** `out` [rank_numel]: every rank has what the host has. */
void emu_session_check_bits(const char *name, const emu_options *o, const emu_trained *want,
                            const emu_trained *out);

TESS_END_DECLS
