/* Communicators over a device through host memory: the same bytes as on the host. */
#include <stdio.h>
#include <string.h>

#include "dist/gpu.h"
#include "tests/support/comm_conformance.h"
#include "tests/support/expect.h"
#include "tests/support/plain_device.h"
#include "tests/support/rank_test.h"

/* Small chunks: every transfer is many rounds, of different numbers per pair. */
static void test_world_and_groups_conform(tess_comm *host, tess_device *d, size_t chunk_nbytes)
{
    tess_comm *comm = NULL;
    EXPECT(tess_comm_create_staged(host, d, chunk_nbytes, &comm) == TESS_OK);
    if (comm == NULL)
        return;
    EXPECT(strcmp(tess_comm_name(comm), "staged(mpi)") == 0 && tess_comm_host(comm) == host);
    failures += comm_conformance_of_groups(comm, d);
    tess_comm_destroy(&comm);
}

/* Pinned memory that is not there is an error of all ranks, which names it. */
static void test_short_of_memory_is_agreed(tess_comm *host, tess_device *d)
{
    tess_comm *comm = NULL;
    EXPECT(tess_comm_create_staged(host, d, (size_t)1 << 52, &comm) == TESS_E_MEMORY);
    EXPECT(comm == NULL && strstr(tess_error_message(), "arena 'staging of collectives'") != NULL);
    tess_error_clear();
}

static tess_status body(tess_comm *host)
{
    tess_device *d = NULL;
    TESS_TRY(plain_device_create("plain:0", true, &d));
    test_world_and_groups_conform(host, d, TESS_STAGED_CHUNK_AUTO);
    test_world_and_groups_conform(host, d, 4097);
    test_short_of_memory_is_agreed(host, d);
    plain_device_destroy(&d);
    return tess_agree(host, failures == 0 ? TESS_OK : TESS_FAIL(TESS_E_STATE, "%d", failures));
}

int main(int argc, char **argv) { return rank_test_main(argc, argv, body); }
