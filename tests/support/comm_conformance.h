/** What every communicator must do; one source for self, mpi and spy at any world size. */
#pragma once

#include "dist/comm.h"

/** Runs all cases; prints each violation on stderr. Collective over `comm`. @return their number */
int comm_conformance(tess_comm *comm);
