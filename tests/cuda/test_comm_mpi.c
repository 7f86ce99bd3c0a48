/*
 * Communicators over the memory of a device, under what every communicator must do: through host
 * memory at any number of ranks, and by the library of collectives where it takes several ranks on
 * one device. Chooses the communication thread itself. Every wait has a deadline.
 */
#include <stdlib.h>
#include <string.h>

#include "dist/gpu.h"
#include "tests/support/comm_conformance.h"
#include "tests/support/cuda_door.h"
#include "tests/support/expect.h"

enum { NUMEL = 4096, MULTI_RANK_VERSION = 23003 };

static const tess_deadlines DEADLINES = {60.0, 30.0};
static const tess_deadlines SHORT = {60.0, 2.0}; /* the short one after the first collective */

static tess_cuda_door door;
static size_t taken_nbytes(void)
{
    size_t free_nbytes = 0, total_nbytes = 0;
    EXPECT(tess_device_memory(door.device, &free_nbytes, &total_nbytes) == TESS_OK);
    return total_nbytes - free_nbytes;
}

/* NCCL takes two ranks on one device from 2.30.3 on, where the environment says so. */
static const char *why_not_direct(int world)
{
    const char *version = strstr(door.plugin->versions, "NCCL ");
    int major = 0, minor = 0, patch = 0;
    if (door.plugin->collectives == NULL)
        return "the CUDA part was built without NCCL";
    if (world == 1 || version == NULL) /* the fake's collectives */
        return NULL;
    if (sscanf(version, "NCCL %d.%d.%d", &major, &minor, &patch) != 3 ||
        major * 10000 + minor * 100 + patch < MULTI_RANK_VERSION)
        return "NCCL takes several ranks on one GPU from 2.30.3 on";
    (void)setenv("NCCL_MULTI_RANK_GPU_ENABLE", "1", 1);
    return NULL;
}

static void test_staged(tess_comm *host, size_t chunk_nbytes)
{
    tess_comm *comm = NULL;
    EXPECT(tess_comm_create_staged(host, door.device, chunk_nbytes, &comm) == TESS_OK);
    if (comm != NULL)
        failures += comm_conformance_of_groups(comm, door.device);
    tess_comm_destroy(&comm);
}

static void test_direct(tess_comm *host)
{
    tess_comm *comm = NULL;
    const size_t before_nbytes = taken_nbytes();
    EXPECT(tess_comm_create_gpu(host, door.device, door.plugin->collectives, &DEADLINES, &comm) ==
           TESS_OK);
    if (comm == NULL)
        return;
    failures += comm_conformance_of_groups(comm, door.device);
    if (tess_comm_rank(comm) == 0)
        printf("%s at %d ranks: %zu MiB of the device are taken beside what ranks had\n",
               door.plugin->collectives->name, tess_comm_world(comm),
               (taken_nbytes() - before_nbytes) >> 20);
    tess_comm_destroy(&comm);
    EXPECT(door.device->watch.look == NULL);
}

/* Memory that the library reaches without copies, withdrawn and given again. */
static void test_enrolled(tess_comm *host)
{
    tess_comm *comm = NULL;
    void *memory = NULL;
    EXPECT(tess_comm_create_gpu(host, door.device, door.plugin->collectives, &DEADLINES, &comm) ==
           TESS_OK);
    if (comm == NULL)
        return;
    const int world = tess_comm_world(comm), rank = tess_comm_rank(comm);
    const size_t nbytes = (size_t)NUMEL * (size_t)world;
    uint8_t *all = NULL;
    void *here = NULL;
    EXPECT(tess_alloc(nbytes, &here) == TESS_OK);
    all = here;
    EXPECT(door.device->ops->alloc(door.device, TESS_DEVICE, nbytes, &memory) == TESS_OK);
    const tess_view full = {memory, (int64_t)nbytes, TESS_U8, TESS_DEVICE};
    const tess_view host_full = tess_view_host(all, (int64_t)nbytes, TESS_U8);
    tess_stream *s = tess_comm_gather_stream(comm);
    const tess_wire w = {.op = TESS_COMM_ALL_GATHER,
                         .storage = TESS_U8,
                         .wire = TESS_U8,
                         .accumulate = TESS_U8,
                         .numel_per_rank = NUMEL,
                         .numel_total = NUMEL,
                         .name = "enrolled"};
    for (int i = 0; i < 2; i++) {
        memset(all, rank + 1 + 10 * i, nbytes);
        EXPECT(tess_device_copy(door.device, full, host_full, s) == TESS_OK);
        EXPECT(tess_comm_enroll(comm, full) == TESS_OK);
        EXPECT(tess_comm_all_gather(comm, &w, tess_view_slice(full, (int64_t)rank * NUMEL, NUMEL),
                                    full, s) == TESS_OK);
        EXPECT(tess_device_copy(door.device, host_full, full, s) == TESS_OK);
        EXPECT(tess_stream_finish(s) == TESS_OK);
        for (int r = 0; r < world; r++)
            EXPECT(all[r * NUMEL] == r + 1 + 10 * i && all[(r + 1) * NUMEL - 1] == r + 1 + 10 * i);
        tess_comm_withdraw(comm);
    }
    door.device->ops->release(door.device, TESS_DEVICE, memory, nbytes);
    tess_free(here);
    tess_comm_destroy(&comm);
}

/* One gather of everybody, then one that the last rank stays away from: all ranks leave with one
 * cause, and not later than the deadline says. */
static void test_rank_that_stays_away(void)
{
    tess_comm *host = NULL, *comm = NULL;
    void *memory = NULL;
    EXPECT(tess_comm_create_mpi(NULL, NULL, TESS_COMM_THREAD_OFF, NULL, &host) == TESS_OK);
    EXPECT(tess_comm_create_gpu(host, door.device, door.plugin->collectives, &SHORT, &comm) ==
           TESS_OK);
    if (comm == NULL)
        return;
    const int world = tess_comm_world(comm), rank = tess_comm_rank(comm);
    EXPECT(door.device->ops->alloc(door.device, TESS_DEVICE, (size_t)(NUMEL * world), &memory) ==
           TESS_OK);
    const tess_view full = {memory, (int64_t)NUMEL * world, TESS_U8, TESS_DEVICE};
    const tess_view shard = tess_view_slice(full, (int64_t)rank * NUMEL, NUMEL);
    tess_stream *s = tess_comm_gather_stream(comm);
    tess_wire w = {.op = TESS_COMM_ALL_GATHER,
                   .entry_idx = 7,
                   .storage = TESS_U8,
                   .wire = TESS_U8,
                   .accumulate = TESS_U8,
                   .numel_per_rank = NUMEL,
                   .numel_total = NUMEL,
                   .name = "blk.7/frozen"};
    EXPECT(tess_comm_all_gather(comm, &w, shard, full, s) == TESS_OK);
    EXPECT(tess_stream_finish(s) == TESS_OK);
    EXPECT(tess_comm_barrier(host) == TESS_OK);
    const double begin_s = tess_clock_s();
    tess_status st = TESS_OK;
    if (rank == world - 1) {
        st = tess_comm_barrier(host);
    } else {
        st = tess_comm_all_gather(comm, &w, shard, full, s);
        if (st == TESS_OK)
            st = tess_stream_finish(s);
    }
    EXPECT(st == TESS_E_TIMEOUT);
    EXPECT(strstr(tess_error_message(), "all_gather 'blk.7/frozen' (entry 7)") != NULL);
    EXPECT(strstr(tess_error_message(), "is not done") != NULL);
    EXPECT(tess_clock_s() - begin_s < SHORT.start_s);
    tess_error_clear();
    tess_comm_destroy(&comm);
    tess_comm_destroy(&host);
    door.device->ops->release(door.device, TESS_DEVICE, memory, (size_t)(NUMEL * world));
}

int main(int argc, char **argv)
{
    tess_comm *host = NULL;
    cuda_door_open_or_skip(&door); /* before MPI: all ranks of a node leave alike */
    if (tess_comm_create_mpi(&argc, &argv, TESS_COMM_THREAD_OFF, NULL, &host) != TESS_OK) {
        fprintf(stderr, "%s\n", tess_error_message());
        return 1;
    }
    const int world = tess_comm_world(host);
    const char *why_not = why_not_direct(world);
    if (tess_comm_rank(host) == 0)
        printf("%s; %d ranks, collectives %s%s\n", door.plugin->versions, world,
               why_not == NULL ? "by the library as well" : "through host memory alone: ",
               why_not == NULL ? "" : why_not);
    test_staged(host, TESS_STAGED_CHUNK_AUTO);
    test_staged(host, 4097);
    if (why_not == NULL) {
        test_direct(host);
        test_enrolled(host);
    }
    if (why_not == NULL && world > 1)
        test_rank_that_stays_away();
    const tess_status st =
        tess_agree(host, failures == 0 ? TESS_OK : TESS_FAIL(TESS_E_STATE, "%d", failures));
    tess_comm_destroy(&host);
    return st != TESS_OK;
}
