/* Waits that end badly: a rank that is late, ranks whose plans differ in one size, wrong order. */
#include <stdio.h>
#include <string.h>

#include <mpi.h>

#include "core/clock.h"
#include "dist/comm.h"
#include "tests/support/expect.h"

/* the short one applies after the first data collective, so that a slow start fails nothing; ranks
 * that are not late have that long to send a few bytes, on a machine with other work too */
static const tess_deadlines SHORT = {20.0, 1.0};

static tess_comm *make(tess_comm_thread thread)
{
    tess_comm *comm = NULL;
    tess_error_clear();
    EXPECT(tess_comm_create_mpi(NULL, NULL, thread, &SHORT, &comm) == TESS_OK);
    return comm;
}

static void expect_message(const char *part)
{
    if (strstr(tess_error_message(), part) == NULL) {
        failures++;
        fprintf(stderr, "message '%s' lacks '%s'\n", tess_error_message(), part);
    }
}

static tess_status gather(tess_comm *comm, unsigned char *full, int numel)
{
    tess_wire w = {.op = TESS_COMM_ALL_GATHER, .entry_idx = 9, .wire = TESS_U8};
    w.numel_per_rank = numel;
    snprintf(w.name, sizeof w.name, "blk.3/frozen");
    tess_stream *s = tess_comm_gather_stream(comm);
    TESS_TRY(tess_comm_all_gather(
        comm, &w, tess_view_host(full + tess_comm_rank(comm) * numel, numel, TESS_U8),
        tess_view_host(full, numel * tess_comm_world(comm), TESS_U8), s));
    return tess_stream_finish(s);
}

/* The last rank comes when all others have given up: they name it; the late one finds their data
 * and is content. After the failure every call returns the same one. */
static void test_late_rank_is_named(tess_comm_thread thread)
{
    static unsigned char full[8 * 16];
    tess_comm *comm = make(thread);
    if (comm == NULL)
        return;
    const int last = tess_comm_world(comm) - 1;
    EXPECT(gather(comm, full, 16) == TESS_OK);
    tess_error_clear();
    MPI_Barrier(MPI_COMM_WORLD);
    if (tess_comm_rank(comm) == last)
        MPI_Barrier(MPI_COMM_WORLD);
    const double start_s = tess_clock_s();
    const tess_status st = gather(comm, full, 16);
    if (tess_comm_rank(comm) == last) {
        EXPECT(st == TESS_OK);
    } else {
        char want[64];
        EXPECT(st == TESS_E_TIMEOUT && tess_status_is_fatal(st));
        EXPECT(tess_clock_s() - start_s > 0.99);
        expect_message("all_gather 'blk.3/frozen' (sequence 1, entry 9, stream gather");
        snprintf(want, sizeof want, "nothing heard from rank %d", last);
        expect_message(want);
        if (last > 1)
            expect_message("all heard from rank ");
        tess_error_clear();
        EXPECT(tess_comm_barrier(comm) == TESS_E_TIMEOUT);
        expect_message("all_gather 'blk.3/frozen'");
        tess_error_clear();
        EXPECT(gather(comm, full, 16) == TESS_E_TIMEOUT);
        EXPECT(tess_comm_blocked_s(comm) > 0.9);
        MPI_Barrier(MPI_COMM_WORLD);
    }
    tess_comm_destroy(&comm);
    MPI_Barrier(MPI_COMM_WORLD);
}

/* The same in a host collective: rank 0 hears from all but the last. */
static void test_late_rank_is_named_by_control(void)
{
    tess_comm *comm = make(TESS_COMM_THREAD_OFF);
    if (comm == NULL)
        return;
    const int last = tess_comm_world(comm) - 1;
    static unsigned char full[8 * 16];
    EXPECT(gather(comm, full, 16) == TESS_OK);
    MPI_Barrier(MPI_COMM_WORLD);
    if (tess_comm_rank(comm) == last)
        MPI_Barrier(MPI_COMM_WORLD);
    tess_error_clear();
    const tess_status st = tess_agree(comm, TESS_OK);
    if (tess_comm_rank(comm) != last)
        MPI_Barrier(MPI_COMM_WORLD);
    EXPECT(st == TESS_E_TIMEOUT);
    char want[64];
    snprintf(want, sizeof want, "nothing heard from rank %d", tess_comm_rank(comm) == 0 ? last : 0);
    expect_message("'control record'");
    expect_message(want);
    tess_comm_destroy(&comm);
    MPI_Barrier(MPI_COMM_WORLD);
}

/* Without the plan check a wrong size is still never silent. */
static void test_sizes_that_differ_are_refused(int give, int take, const char *part)
{
    static unsigned char data[8192];
    tess_comm *comm = make(TESS_COMM_THREAD_OFF);
    if (comm == NULL)
        return;
    const int rank = tess_comm_rank(comm);
    tess_wire w = {.op = TESS_COMM_EXCHANGE, .wire = TESS_U8, .numel_per_rank = take};
    snprintf(w.name, sizeof w.name, "blk.0/lora_grad");
    const tess_piece send = {1, tess_view_host(data, give, TESS_U8)};
    const tess_piece receive = {0, tess_view_host(data, take, TESS_U8)};
    tess_stream *s = tess_comm_reduce_stream(comm);
    tess_status st = tess_comm_exchange(comm, &w, &send, rank == 0, &receive, rank == 1, s);
    if (st == TESS_OK)
        st = tess_stream_finish(s);
    if (rank == 1) {
        EXPECT(st == TESS_E_COMM);
        expect_message("exchange 'blk.0/lora_grad' (sequence 0): ");
        expect_message(part);
    } else {
        EXPECT(st == TESS_OK);
    }
    MPI_Barrier(MPI_COMM_WORLD);
    tess_comm_destroy(&comm);
    MPI_Barrier(MPI_COMM_WORLD);
}

/* The second gather of a list has another size on the last rank: every rank that gets a part of the
 * wrong size leaves with that cause, the others when nothing comes any more. */
static void test_list_with_a_size_that_differs(void)
{
    static unsigned char full[2][8 * 128];
    tess_comm *comm = make(TESS_COMM_THREAD_OFF);
    if (comm == NULL)
        return;
    const int world = tess_comm_world(comm), rank = tess_comm_rank(comm);
    tess_wire w[2];
    tess_gather_piece list[2];
    for (int i = 0; i < 2; i++) {
        const int numel = i == 1 && rank == world - 1 ? 100 : 120;
        w[i] = (tess_wire){.op = TESS_COMM_ALL_GATHER, .entry_idx = (uint32_t)i, .wire = TESS_U8};
        w[i].numel_per_rank = numel;
        snprintf(w[i].name, sizeof w[i].name, "blk.%d/frozen", i);
        list[i] = (tess_gather_piece){&w[i], tess_view_host(full[i] + rank * numel, numel, TESS_U8),
                                      (size_t)i * sizeof full[0]};
    }
    tess_stream *s = tess_comm_gather_stream(comm);
    tess_status st = tess_comm_all_gather_list(
        comm, list, 2, tess_view_host(full, sizeof full, TESS_U8_OPAQUE), s);
    if (st == TESS_OK)
        st = tess_stream_finish(s);
    EXPECT(st == TESS_E_COMM || (world > 2 && st == TESS_E_TIMEOUT));
    expect_message("all_gather 'blk.0/frozen and 1 more' (sequence 0");
    MPI_Barrier(MPI_COMM_WORLD);
    tess_comm_destroy(&comm);
    MPI_Barrier(MPI_COMM_WORLD);
}

/* A queue that waits for an event that never comes says which one. */
static void test_wait_for_an_event_has_a_deadline(void)
{
    static unsigned char full[8 * 16];
    tess_comm *comm = make(TESS_COMM_THREAD_OFF);
    if (comm == NULL)
        return;
    tess_stream *g = tess_comm_gather_stream(comm);
    tess_stream *r = tess_comm_reduce_stream(comm);
    EXPECT(gather(comm, full, 16) == TESS_OK);
    tess_event never = {r, 5, NULL}; /* as if five operations had been enqueued there */
    EXPECT(tess_stream_wait(g, &never) == TESS_OK);
    EXPECT(tess_stream_finish(g) == TESS_E_TIMEOUT);
    expect_message("stream gather waits for an event of stream reduce");
    tess_comm_destroy(&comm);
    MPI_Barrier(MPI_COMM_WORLD);
}

int main(int argc, char **argv)
{
    int provided = 0;
    int world = 0;
    MPI_Init_thread(&argc, &argv, MPI_THREAD_SERIALIZED, &provided);
    MPI_Comm_size(MPI_COMM_WORLD, &world);
    test_wait_for_an_event_has_a_deadline();
    if (world > 1) {
        test_sizes_that_differ_are_refused(100, 120,
                                           "rank 0 sent 100 bytes where rank 1 expects 120");
        test_sizes_that_differ_are_refused(5000, 120, "receiving from rank 0, 120 bytes");
        test_list_with_a_size_that_differs();
        test_late_rank_is_named(world % 2 == 0 ? TESS_COMM_THREAD_OFF : TESS_COMM_THREAD_ON);
        test_late_rank_is_named_by_control();
    }
    MPI_Finalize();
    return failures > 0;
}
