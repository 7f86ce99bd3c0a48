/** One life of a run under an injected fault, and the check of what it left. */
#pragma once

#include "support/ckpt_fixture.h"

typedef struct ckpt_session {
    int64_t loaded;          /* step found at start, -1 fresh */
    int64_t committed;       /* newest step that was reported committed by this life, -1 none */
    int64_t committed_numel; /* of two saves */
    int64_t call_numel;
    int64_t first_write_call; /* number of the first call that wrote: LOCK; INT64_MAX none */
    bool has_probe_failed;
    bool is_noticed;    /* something failed or was logged */
    tess_status status; /* how it ended */
} ckpt_session;

/**
 * Open `dir`, load, write the base, probe the disk, save the next two steps, read back. `fault` as
 * in TESSERA_FAULT, NULL none. Collective; the outcome must be equal on all ranks, else
 * TESS_E_STATE.
 */
TESS_MUST_CHECK tess_status ckpt_session_run(tess_comm *comm, const char *dir, const char *fault,
                                             ckpt_session *out);
/** A new directory with steps 1 and 2 committed, below /dev/shm where there is one. Collective. */
TESS_MUST_CHECK tess_status ckpt_session_start(tess_comm *comm, char dir[256]);
/** I/O calls of this rank in a life that follows ckpt_session_start(). Collective. */
TESS_MUST_CHECK tess_status ckpt_session_calls(tess_comm *comm, int64_t *call_numel);
/**
 * The newest checkpoint loads, holds what its step held, is at least `least`; every directory with
 * a MANIFEST verifies. Collective.
 */
TESS_MUST_CHECK tess_status ckpt_session_check(tess_comm *comm, const char *dir, int64_t least);
