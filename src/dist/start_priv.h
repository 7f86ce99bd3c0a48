/** MPI before there is an engine: start, agreement and the communicators that everything else
 * uses. */
#pragma once

#include <mpi.h>

#include "dist/engine_priv.h"
#include "dist/nodes_priv.h"

TESS_BEGIN_DECLS

/** Start MPI unless it runs; `owns_mpi` says whether this call did. Collective over the launch. */
TESS_MUST_CHECK tess_status start_mpi(int *argc, char ***argv, tess_comm_thread thread,
                                      bool *owns_mpi);
/** One verdict before there is a communicator: the caller's own failure, or TESS_E_COMM that names
 * the lowest rank that failed. Collective over the launch. */
TESS_MUST_CHECK tess_status start_agree(tess_status local, double limit_s);
/** The map of nodes and three communicators of all ranks in its order. Collective over the launch.
 */
TESS_MUST_CHECK tess_status start_worlds(double limit_s, dist_nodes **nodes, MPI_Comm mpi[3]);

TESS_END_DECLS
