/**
 * Communicators over memory of a device: `gpu`, by a library of collectives between devices, and
 * `staged`, through host memory and MPI. Host collectives of both are those of the host
 * communicator they were made over.
 *
 * [Note: deadlines on a device] Work of a device cannot be asked which peer it waits for, and a
 * host thread that waits for a kernel waits for all collectives before it. So `gpu` sits in the
 * device's watch: every wait for the device looks at the library's errors, at failures that peers
 * have told of, and at the deadline. The first failure is told to all ranks over MPI, then every
 * rank aborts its groups and leaves with that one cause.
 */
#pragma once

#include "dist/comm.h"
#include "kernels/cuda/plugin.h"

TESS_BEGIN_DECLS

/**
 * Communicator of all ranks of `host` over memory of `d`.
 *
 * Collective over `host`, which is self or mpi (no spy), is borrowed and outlives the result, as do
 * `d` and `collectives`. Takes the watch of `d`. One thread issues all collectives of a device.
 * @return TESS_E_COMM, TESS_E_TIMEOUT: fatal
 */
TESS_MUST_CHECK tess_status tess_comm_create_gpu(tess_comm *host, tess_device *d,
                                                 const tess_gpu_collectives *collectives,
                                                 const tess_deadlines *deadlines, tess_comm **out);

/**
 * Let the library's collectives reach `memory`, of the device, without copies. The same memory in
 * the same order on all ranks, which stays until tess_comm_withdraw() or the end of `comm`. Nothing
 * for other kinds of communicators. Collective over `comm`.
 */
TESS_MUST_CHECK tess_status tess_comm_enroll(tess_comm *comm, tess_view memory);

/** Wait for what is under way and end every tess_comm_enroll() of `comm`, so that its memory can be
 * released. NULL is fine. Local. */
void tess_comm_withdraw(tess_comm *comm);

/** `chunk_nbytes` of tess_comm_create_staged() for the default. */
enum { TESS_STAGED_CHUNK_AUTO = 0 };

/**
 * Communicator of all ranks of `host` that moves memory of `d` through pinned host memory in
 * chunks. Every collective is done when the call that enqueues it returns, so all ranks enqueue in
 * one order over both streams.
 *
 * Collective over `host`, which is borrowed and outlives the result, as does `d`.
 * @param chunk_nbytes  bytes per peer and round, equal on all ranks
 */
TESS_MUST_CHECK tess_status tess_comm_create_staged(tess_comm *host, tess_device *d,
                                                    size_t chunk_nbytes, tess_comm **out);

TESS_END_DECLS
