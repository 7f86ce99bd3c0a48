#include "support/rank_test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/io.h"
#include "core/memory.h"

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

/* One rank wrote the file in this run of ctest, with this program. */
static tess_status read_alone(tess_io *io, const char *path, void *out, size_t nbytes)
{
    char *bytes = NULL;
    size_t found_nbytes = 0;
    TESS_TRY(tess_io_read_all(io, path, nbytes, &bytes, &found_nbytes));
    const bool is_whole = found_nbytes == nbytes;
    if (is_whole)
        memcpy(out, bytes, nbytes);
    tess_free(bytes);
    TESS_CHECK(is_whole, TESS_E_FORMAT,
               "'%s' has %zu bytes, expected %zu: run the test at one rank", path, found_nbytes,
               nbytes);
    return TESS_OK;
}

tess_status rank_test_alone(tess_comm *comm, rank_test_finder find, void *out, size_t nbytes)
{
    const char *path = getenv("TESS_TEST_ALONE");
    const bool is_alone = tess_comm_world(comm) == 1;
    tess_io *io = NULL;
    if (path == NULL || is_alone)
        TESS_TRY(find(comm, out));
    if (path == NULL)
        return TESS_OK;
    tess_status st = TESS_OK;
    if (tess_comm_rank(comm) == 0)
        st = tess_io_create(0, &io);
    if (st == TESS_OK && io != NULL)
        st =
            is_alone ? tess_io_write_all(io, path, out, nbytes) : read_alone(io, path, out, nbytes);
    tess_io_destroy(&io);
    TESS_TRY(tess_agree(comm, st));
    return tess_comm_bcast(comm, 0, out, nbytes);
}
