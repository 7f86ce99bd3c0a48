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
 * collectives; "hang:R:N": there, collective N is never begun; "join:R": joining never ends there;
 * "wrong:R:N": there, gathers after N collectives have a wrong byte. Local.
 */
void collectives_mpi_inject(const char *fault);

/** Aborts of this process. */
typedef struct collectives_mpi_aborts {
    int call_numel;
    int group_numel;
    bool is_ordered; /* in each call, groups stood in the order in which they were made */
} collectives_mpi_aborts;

/** Those since the last call of this. Local. */
collectives_mpi_aborts collectives_mpi_aborted(void);

TESS_END_DECLS
