#include <stdio.h>

#include "dist/comm.h"
#include "dist/engine_priv.h"
#include "tests/support/comm_conformance.h"

int main(int argc, char **argv)
{
    tess_comm *comm = NULL;
    if (tess_comm_create_mpi(&argc, &argv, TESS_COMM_THREAD_OFF, NULL, &comm) != TESS_OK) {
        fprintf(stderr, "%s\n", tess_error_message());
        return 1;
    }
    int failures = comm_conformance(comm);
    tess_comm_destroy(&comm);
    return failures > 0;
}
