/**
 * tess_gpu_collectives over MPI between plain devices (tests/support/plain_device.h): what a
 * library between devices does, with its failures on request.
 *
 * Joining and splitting take a few polls; a collective is under way until somebody waits for its
 * stream, and needs all its peers. The communication thread of the engine must be off.
 */
#pragma once

#include "kernels/cuda/plugin.h"

TESS_BEGIN_DECLS

extern const tess_gpu_collectives collectives_mpi;

/**
 * "" or NULL: no fault; "fail:R:N": on rank R of the launch `poll` reports an error after N
 * collectives; "hang:R:N": there, collective N is never begun; "join:R": joining never ends there.
 * Local.
 */
void collectives_mpi_inject(const char *fault);
/** Groups that were aborted since the last call. Local. */
int collectives_mpi_aborted(void);

TESS_END_DECLS
