/*
 * Collectives between devices that end badly: an error of the library on one rank, also in the
 * middle of a list, a rank that never begins one, a rank that never joins. Every rank leaves with
 * the first cause, and its groups are aborted.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <mpi.h>

#include "dist/gpu.h"
#include "tests/emulation/collectives_mpi.h"
#include "tests/support/expect.h"
#include "tests/support/plain_device.h"

/* SHORT where a wait is to end: its second one applies after the first data collective, so that a
 * slow start fails nothing. */
static const tess_deadlines LONG = {60.0, 60.0};
static const tess_deadlines SHORT = {60.0, 0.3};
static const tess_deadlines SHORT_START = {0.4, 60.0};
enum { NUMEL = 1000, ROUNDS = 6 };

static tess_comm *make_host(void)
{
    tess_comm *host = NULL;
    tess_error_clear();
    EXPECT(tess_comm_create_mpi(NULL, NULL, TESS_COMM_THREAD_OFF, NULL, &host) == TESS_OK);
    return host;
}

static void expect_message(const char *part)
{
    if (strstr(tess_error_message(), part) == NULL) {
        failures++;
        fprintf(stderr, "message '%s' lacks '%s'\n", tess_error_message(), part);
    }
}

/* The wait that a message tells was over by a short deadline, however late that was seen. */
static void expect_short_wait(void)
{
    const char *at = strstr(tess_error_message(), " waited ");
    const double waited_s = at != NULL ? strtod(at + strlen(" waited "), NULL) : 0.0;
    if (waited_s < 0.25 || waited_s > 30.0) {
        failures++;
        fprintf(stderr, "message '%s' tells no wait of 0.3 s\n", tess_error_message());
    }
}

/* Gathers of lists of two until one fails; the device's own stream waits for each, and the host for
 * that stream. */
static tess_status run(tess_comm *comm, tess_device *d, tess_stream *compute)
{
    void *memory = NULL;
    tess_event ev;
    tess_stream *s = tess_comm_gather_stream(comm);
    tess_wire w = {.op = TESS_COMM_ALL_GATHER, .entry_idx = 9, .wire = TESS_U8, .name = "blk.3/f"};
    const int64_t full_numel = 2 * (int64_t)NUMEL * tess_comm_world(comm);
    w.numel_per_rank = NUMEL;
    TESS_TRY(d->ops->alloc(d, TESS_DEVICE, (size_t)full_numel, &memory));
    const tess_view full = {memory, full_numel, TESS_U8_OPAQUE, TESS_DEVICE};
    tess_gather_piece list[2];
    for (int i = 0; i < 2; i++) {
        const int64_t place = i * full_numel / 2,
                      at = place + (int64_t)NUMEL * tess_comm_rank(comm);
        list[i] = (tess_gather_piece){
            &w, {(char *)memory + at, NUMEL, TESS_U8, TESS_DEVICE}, (size_t)place};
    }
    tess_status st = tess_event_init(&ev, s);
    for (int k = 0; k < ROUNDS && st == TESS_OK; k++) {
        st = tess_comm_all_gather_list(comm, list, 2, full, s);
        if (st == TESS_OK)
            st = tess_event_record(&ev, s);
        if (st == TESS_OK)
            st = tess_stream_wait(compute, &ev);
        if (st == TESS_OK)
            st = tess_stream_finish(compute);
    }
    tess_event_fini(&ev, s);
    d->ops->release(d, TESS_DEVICE, memory, (size_t)full_numel);
    return st;
}

/* After the first failure every call gives it again, on the host communicator too. */
static void expect_lasting(tess_comm *host, tess_comm *comm, tess_status want, const char *part)
{
    tess_error_clear();
    EXPECT(tess_comm_barrier(host) == want);
    expect_message(part);
    tess_error_clear();
    const tess_wire w = {.op = TESS_COMM_ALL_GATHER, .wire = TESS_U8, .name = "later"};
    const tess_view nothing = {NULL, 0, TESS_U8, TESS_DEVICE};
    EXPECT(tess_comm_all_gather(comm, &w, nothing, nothing, tess_comm_gather_stream(comm)) == want);
    expect_message(part);
    tess_error_clear();
}

static void fail_while_running(tess_device *d, const char *fault, tess_status want,
                               const char *const part[2])
{
    tess_comm *host = make_host(), *comm = NULL, *group = NULL;
    tess_stream *compute = NULL;
    collectives_mpi_inject(fault);
    const tess_deadlines *deadlines = want == TESS_E_TIMEOUT ? &SHORT : &LONG;
    EXPECT(tess_comm_create_gpu(host, d, &collectives_mpi, deadlines, &comm) == TESS_OK);
    EXPECT(tess_comm_split_group(comm, 1, &group) == TESS_OK);
    EXPECT(tess_device_stream_create(d, "compute", false, &compute) == TESS_OK);
    MPI_Barrier(MPI_COMM_WORLD); /* a rank that still joins would hear of the failure there */
    EXPECT(run(comm, d, compute) == want);
    expect_message(part[0]);
    expect_message(part[1]);
    if (want == TESS_E_TIMEOUT)
        expect_short_wait();
    /* A kernel of one group may stand behind one of any other: none is waited for before all are
     * told, and the world's groups, whose splits may be under way, come first. */
    const collectives_mpi_aborts aborts = collectives_mpi_aborted();
    EXPECT(aborts.call_numel == 1 && aborts.group_numel == 4 && aborts.is_ordered);
    expect_lasting(host, comm, want, part[0]);
    tess_device_stream_destroy(d, &compute);
    tess_comm_destroy(&group);
    tess_comm_destroy(&comm);
    EXPECT(d->watch.look == NULL);
    tess_comm_destroy(&host);
    collectives_mpi_inject(NULL);
}

/* A peer that waits for MPI alone hears of it as well. */
static void test_error_reaches_a_rank_that_waits_for_the_host(tess_device *d)
{
    tess_comm *host = make_host(), *comm = NULL;
    tess_stream *compute = NULL;
    const int last = tess_comm_world(host) - 1;
    collectives_mpi_inject("fail:0:0");
    EXPECT(tess_comm_create_gpu(host, d, &collectives_mpi, &LONG, &comm) == TESS_OK);
    EXPECT(tess_device_stream_create(d, "compute", false, &compute) == TESS_OK);
    MPI_Barrier(MPI_COMM_WORLD); /* a rank that still joins would hear of the failure there */
    if (tess_comm_rank(host) == last && last > 0)
        EXPECT(tess_comm_barrier(host) == TESS_E_COMM);
    else
        EXPECT(run(comm, d, compute) == TESS_E_COMM);
    expect_message("rank 0: emulated collectives, blk.3/f and 1 more: emulated failure");
    tess_error_clear();
    tess_device_stream_destroy(d, &compute);
    tess_comm_destroy(&comm);
    tess_comm_destroy(&host);
    collectives_mpi_inject(NULL);
}

static void test_rank_that_never_joins(tess_device *d)
{
    tess_comm *host = make_host(), *comm = NULL;
    collectives_mpi_inject("join:0:0");
    EXPECT(tess_comm_create_gpu(host, d, &collectives_mpi, &SHORT_START, &comm) == TESS_E_TIMEOUT);
    expect_short_wait(); /* of the first to give up, the same on all */
    expect_message("s for emulated collectives: joining");
    EXPECT(comm == NULL && d->watch.look == NULL);
    tess_error_clear();
    tess_comm_destroy(&host);
    collectives_mpi_inject(NULL);
    (void)collectives_mpi_aborted();
}

int main(int argc, char **argv)
{
    static const char *const error[2] = {"rank 0: emulated collectives, ",
                                         "emulated failure: unhandled system error"};
    static const char *const piece[2] = {"rank 0: emulated collectives, blk.3/f and 1 more: ",
                                         "emulated failure: a call inside a group"};
    static const char *const late[2] = {"s: all_gather 'blk.3/f and 1 more' (entry 9) of gpu(mpi) "
                                        "on stream gather is not done",
                                        " waited "};
    tess_device *d = NULL;
    int provided = 0, all = 0;
    MPI_Init_thread(&argc, &argv, MPI_THREAD_SERIALIZED, &provided);
    EXPECT(plain_device_create("plain:0", true, &d) == TESS_OK);
    fail_while_running(d, "fail:0:2", TESS_E_COMM, error);
    fail_while_running(d, "piece:0:2", TESS_E_COMM, piece);
    fail_while_running(d, "hang:0:2", TESS_E_TIMEOUT, late);
    test_error_reaches_a_rank_that_waits_for_the_host(d);
    test_rank_that_never_joins(d);
    plain_device_destroy(&d);
    MPI_Allreduce(&failures, &all, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    MPI_Finalize();
    return all > 0;
}
