/** What every communicator must do; one source for all kinds at any world size. */
#pragma once

#include "core/device.h"
#include "dist/comm.h"

/** Runs all cases; prints each violation on stderr. Collective over `comm`. @return their number */
int comm_conformance(tess_comm *comm);
/** The same for a communicator over memory of `device`; NULL: the host's. */
int comm_conformance_on(tess_comm *comm, tess_device *device);
/** The same for `comm` and for its groups of every size that divides it. */
int comm_conformance_of_groups(tess_comm *comm, tess_device *device);
