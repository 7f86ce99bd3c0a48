/**
 * How a rank tells all others of a failure that no message of theirs would show: a receive that is
 * always posted on an MPI communicator of its own. The engine looks at it whenever it is driven,
 * so that ranks which wait for MPI hear it too.
 */
#pragma once

#include "dist/engine_priv.h"

TESS_BEGIN_DECLS

/** The engine of a communicator self or mpi, NULL for other kinds. Local. */
engine *engine_of_comm(const tess_comm *comm);
/** Collective over `comm`, self or mpi. */
TESS_MUST_CHECK tess_status engine_alarm_create(tess_comm *comm);
/** Collective unless the engine has failed. */
void engine_alarm_destroy(engine *e);
/** Fail the engine with `text` and tell all ranks; nothing when it has failed before. The lock is
 * not held. Local. */
void engine_alarm_raise(engine *e, tess_status st, const char *text);
/** Fail the engine with what a peer told. The lock is held. Local. */
void engine_alarm_hear(engine *e);

TESS_END_DECLS
