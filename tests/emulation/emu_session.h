/** Steps of a session of any family by hand, on the host and on emulated ranks: what they leave, in
 * any order of streams, and what is found when waits are taken away. */
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

/** A run of some family, to be run again and again. */
typedef struct emu_subject {
    const char *name; /* for messages */
    const void *launch;
    /* The whole of it, by emu_session_use() with the last three. Collective over `comm`. */
    tess_status (*run)(const void *launch, tess_comm *comm, const emu_rank *rank,
                       emu_removal *removal, emu_trained *out);
    bool is_ahead; /* products are prepared ahead where the device offers it */
} emu_subject;

/** Nothing failed, nothing was touched that is not ordered. */
void emu_session_check(const char *name, const emu_options *o, const emu_report *r);
/** On emulated ranks: nothing fails, and nothing touches what is not ordered. */
void emu_session_run(const emu_subject *subject, const emu_options *o, emu_report *report);
/** At 1 to 3 ranks, all streams at once and one after another, every rank has the host's bits.
 * `seed` varies the orders; of `o` the ranks, seed and orders are set here. */
void emu_session_check_orders(const emu_subject *subject, emu_options o, uint64_t seed);
/** Take every generated wait away in turn: each must show. @return how many there were */
int emu_session_take_each(const emu_subject *subject, const emu_options *o);

TESS_END_DECLS
