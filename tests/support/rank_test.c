#include "support/rank_test.h"

#include <stdio.h>
#include <string.h>

/* The communication thread is chosen when MPI starts, so one run covers one of the two. */
static tess_comm_thread thread_of(int argc, char **argv)
{
    return argc > 1 && strcmp(argv[1], "--comm-thread") == 0 ? TESS_COMM_THREAD_ON
                                                             : TESS_COMM_THREAD_OFF;
}

int rank_test_main(int argc, char **argv, rank_test_body body)
{
    tess_comm *comm = NULL;
    tess_status st = tess_comm_create_mpi(&argc, &argv, thread_of(argc, argv), NULL, &comm);
    if (st == TESS_OK) {
        st = body(comm);
        if (st != TESS_OK)
            fprintf(stderr, "rank %d: %s\n%s", tess_comm_rank(comm), tess_error_message(),
                    tess_error_trace_text());
        if (tess_agree(comm, st) != TESS_OK)
            st = TESS_E_STATE;
    }
    tess_comm_destroy(&comm);
    return st == TESS_OK ? 0 : 1;
}
