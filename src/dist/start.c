#include "core/clock.h"
#include "dist/start_priv.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

tess_status start_mpi(int *argc, char ***argv, tess_comm_thread thread, bool *owns_mpi)
{
    int is_started = 0;
    TESS_MPI(MPI_Initialized(&is_started));
    int provided = MPI_THREAD_SINGLE;
    if (is_started) {
        TESS_MPI(MPI_Query_thread(&provided));
    } else {
        engine_mpi_prepare(thread);
        TESS_MPI(MPI_Init_thread(argc, argv, MPI_THREAD_SERIALIZED, &provided));
        *owns_mpi = true;
    }
    engine_mpi_keep_plugins();
    TESS_CHECK(thread == TESS_COMM_THREAD_OFF || provided >= MPI_THREAD_SERIALIZED,
               TESS_E_UNSUPPORTED,
               "this MPI offers thread level %d, a communication thread needs %d; set "
               "compute.comm_thread: off",
               provided, MPI_THREAD_SERIALIZED);
    TESS_MPI(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN));
    return TESS_OK;
}

/* Waiting while there is no engine yet. */
static tess_status finish_request(MPI_Request *req, double limit_s)
{
    const double until_s = tess_clock_s() + limit_s;
    int is_done = 0;
    for (;;) {
        TESS_MPI(MPI_Test(req, &is_done, MPI_STATUS_IGNORE));
        if (is_done)
            return TESS_OK;
        TESS_CHECK(tess_clock_s() < until_s, TESS_E_TIMEOUT,
                   "starting the communicators: not all ranks came within %.0f s", limit_s);
        const struct timespec nap = {0, 20000};
        nanosleep(&nap, NULL);
    }
}

static tess_status dup_world(MPI_Comm world, double limit_s, MPI_Comm mpi[3])
{
    for (int i = 0; i < 3; i++) {
        MPI_Request req = MPI_REQUEST_NULL;
        TESS_MPI(MPI_Comm_idup(world, &mpi[i], &req));
        TESS_TRY(finish_request(&req, limit_s));
        TESS_MPI(MPI_Comm_set_errhandler(mpi[i], MPI_ERRORS_RETURN));
    }
    return TESS_OK;
}

/* The verdict about creation cannot use the communicator that may not exist. */
tess_status start_agree(tess_status local, double limit_s)
{
    int rank = 0;
    int world = 0;
    TESS_MPI(MPI_Comm_rank(MPI_COMM_WORLD, &rank));
    TESS_MPI(MPI_Comm_size(MPI_COMM_WORLD, &world));
    const int mine = local == TESS_OK ? 0 : world - rank; /* the lowest failing rank wins */
    int worst = 0;
    MPI_Request req = MPI_REQUEST_NULL;
    TESS_MPI(MPI_Iallreduce(&mine, &worst, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD, &req));
    TESS_TRY(finish_request(&req, limit_s));
    if (local != TESS_OK)
        return local;
    TESS_CHECK(worst == 0, TESS_E_COMM, "rank %d could not create its communicator", world - worst);
    return TESS_OK;
}

/* ---- nodes ---- */

/* MPI says who shares memory; the split has no deadline, and everybody has just agreed. */
static tess_status find_lowest(int rank, double limit_s, int *lowest_rank)
{
    MPI_Comm node = MPI_COMM_NULL;
    MPI_Request req = MPI_REQUEST_NULL;
    int lowest = rank;
    TESS_MPI(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, &node));
    TESS_MPI(MPI_Iallreduce(&rank, &lowest, 1, MPI_INT, MPI_MIN, node, &req));
    TESS_TRY(finish_request(&req, limit_s));
    TESS_MPI(MPI_Comm_free(&node));
    TESS_MPI(MPI_Iallgather(&lowest, 1, MPI_INT, lowest_rank, 1, MPI_INT, MPI_COMM_WORLD, &req));
    return finish_request(&req, limit_s);
}

static tess_status order_world(int rank, int world, double limit_s, int *table, dist_nodes **nodes,
                               MPI_Comm *out)
{
    int *lowest_rank = table, *new_rank = table + world;
    TESS_TRY(find_lowest(rank, limit_s, lowest_rank));
    TESS_TRY(start_agree(dist_nodes_create(lowest_rank, world, new_rank, nodes), limit_s));
    TESS_MPI(MPI_Comm_split(MPI_COMM_WORLD, 0, new_rank[rank], out));
    return TESS_OK;
}

tess_status start_worlds(double limit_s, dist_nodes **nodes, MPI_Comm mpi[3])
{
    int rank = 0, world = 0;
    void *table = NULL;
    MPI_Comm ordered = MPI_COMM_NULL;
    TESS_MPI(MPI_Comm_rank(MPI_COMM_WORLD, &rank));
    TESS_MPI(MPI_Comm_size(MPI_COMM_WORLD, &world));
    TESS_TRY(start_agree(tess_alloc_array(2 * (int64_t)world, sizeof(int), &table), limit_s));
    tess_status st = order_world(rank, world, limit_s, table, nodes, &ordered);
    tess_free(table);
    if (st == TESS_OK)
        st = dup_world(ordered, limit_s, mpi);
    if (st == TESS_OK)
        (void)MPI_Comm_free(&ordered);
    return st;
}

/* ---- what is linked ---- */

void tess_comm_library(char *text, size_t text_nbytes)
{
    char whole[MPI_MAX_LIBRARY_VERSION_STRING] = "";
    int numel = 0;
    (void)MPI_Get_library_version(whole, &numel);
    whole[strcspn(whole, ",\n")] = '\0';
    snprintf(text, text_nbytes, "%s", whole);
}
