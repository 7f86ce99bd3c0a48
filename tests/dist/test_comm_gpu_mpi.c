/* Communicators over a library of collectives between devices: the same bytes as on the host. */
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "dist/gpu.h"
#include "tests/emulation/collectives_mpi.h"
#include "tests/support/comm_conformance.h"
#include "tests/support/expect.h"
#include "tests/support/plain_device.h"

static void test_world_and_groups_conform(tess_comm *host, tess_device *d)
{
    tess_comm *comm = NULL;
    EXPECT(tess_comm_create_gpu(host, d, &collectives_mpi, NULL, &comm) == TESS_OK);
    if (comm == NULL)
        return;
    EXPECT(strncmp(tess_comm_name(comm), "gpu(", 4) == 0 && tess_comm_host(comm) == host);
    failures += comm_conformance_of_groups(comm, d);
    failures += comm_conformance_on(comm, d);
    tess_comm_destroy(&comm);
    EXPECT(d->watch.look == NULL);
}

/* The watch of a device has one owner, and the host communicator must have an engine. */
static void test_refusals(tess_comm *host, tess_device *d)
{
    tess_comm *comm = NULL, *second = NULL, *spy = NULL;
    EXPECT(tess_comm_create_gpu(host, d, &collectives_mpi, NULL, &comm) == TESS_OK);
    EXPECT(tess_comm_create_gpu(host, d, &collectives_mpi, NULL, &second) == TESS_E_STATE);
    EXPECT(strstr(tess_error_message(), "plain:0 is watched by another communicator") != NULL);
    tess_error_clear();
    tess_comm_destroy(&comm);
    EXPECT(tess_comm_create_spy(host, &spy) == TESS_OK);
    EXPECT(tess_comm_create_gpu(spy, d, &collectives_mpi, NULL, &second) == TESS_E_ARG);
    EXPECT(strstr(tess_error_message(), "cannot carry one between devices") != NULL);
    tess_error_clear();
    tess_comm_destroy(&spy);
}

/* Ranks that enqueue different collectives are told so, by the check that costs a record each. */
static void test_checked_mode(tess_comm *host, tess_device *d)
{
    tess_comm *comm = NULL;
    EXPECT(tess_comm_create_gpu(host, d, &collectives_mpi, NULL, &comm) == TESS_OK);
    tess_comm_set_checking(comm, true);
    failures += comm_conformance_on(comm, d);
    tess_wire w = {.op = TESS_COMM_ALL_GATHER, .wire = TESS_U8, .name = "blk.1/frozen"};
    const tess_view nothing = {NULL, 0, TESS_U8, TESS_DEVICE};
    w.entry_idx = tess_comm_rank(comm) == tess_comm_world(comm) - 1 ? 4 : 3;
    const tess_status st =
        tess_comm_all_gather(comm, &w, nothing, nothing, tess_comm_gather_stream(comm));
    EXPECT(st == (tess_comm_world(comm) > 1 ? TESS_E_CONTRACT : TESS_OK));
    EXPECT(tess_comm_world(comm) == 1 || strstr(tess_error_message(), "(entry 4,") != NULL);
    tess_error_clear();
    tess_comm_destroy(&comm);
}

static void test_self(tess_device *d)
{
    tess_comm *host = NULL;
    EXPECT(tess_comm_create_self(&host) == TESS_OK);
    test_world_and_groups_conform(host, d);
    tess_comm_destroy(&host);
}

int main(int argc, char **argv)
{
    tess_comm *host = NULL;
    tess_device *d = NULL;
    if (tess_comm_create_mpi(&argc, &argv, TESS_COMM_THREAD_OFF, NULL, &host) != TESS_OK ||
        plain_device_create("plain:0", true, &d) != TESS_OK) {
        fprintf(stderr, "%s\n", tess_error_message());
        return 1;
    }
    test_self(d);
    test_world_and_groups_conform(host, d);
    test_checked_mode(host, d);
    test_refusals(host, d);
    EXPECT(collectives_mpi_aborted().call_numel == 0);
    plain_device_destroy(&d);
    tess_comm_destroy(&host);
    return failures > 0;
}
