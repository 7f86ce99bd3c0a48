/*
 * A rank that stops in one of the two hops of an exchange by node: those who wait for it stop after
 * their deadline and name the hop and the rank; nobody hangs, the late rank neither. What the
 * others have posted for it is still under way when their runtimes are gone, and moves once it
 * wakes up.
 *
 * The last rank is a node of its own, all others are one: rank (world - 1) mod (world - 1) = 0 of
 * these is the relay of what the last one sends. In the first hop it posts its receives and stops
 * before the others send, so that their messages, above MPI's eager limit, wait for its word. In
 * the second it stops when the first is over on all ranks, and passes nothing on.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <mpi.h>

#include "shard/loader.h"
#include "shard/runtime.h"
#include "support/two_matrices.h"

enum { NAP_MS = 6000 };

typedef enum hop { HOP_NONE, HOP_FIRST, HOP_SECOND } hop;

/* the short one applies after the first data collective */
static const tess_deadlines SHORT = {20.0, 2.0};

static int failures;

static void expect(bool is_true, const char *what)
{
    if (is_true)
        return;
    failures++;
    fprintf(stderr, "not true: %s (%s)\n", what, tess_error_message());
}

typedef struct trial {
    tess_comm *comm;
    two_matrices model;
    tess_registry registry;
    tess_plan *plan;
    tess_runtime *rt;
    hop late;        /* where rank 0 stops */
    char signal[64]; /* a file that goes when it does; MPI's own signals would move messages */
} trial;

static trial t;

/* The linker calls these in place of tess_comm_exchange(). */
tess_status __real_tess_comm_exchange(tess_comm *comm, const tess_wire *wire,
                                      const tess_piece *sends, int send_numel,
                                      const tess_piece *receives, int receive_numel,
                                      tess_stream *s);
tess_status __wrap_tess_comm_exchange(tess_comm *comm, const tess_wire *wire,
                                      const tess_piece *sends, int send_numel,
                                      const tess_piece *receives, int receive_numel,
                                      tess_stream *s);

static void make_signal(void)
{
    int fd = -1;
    if (tess_comm_rank(t.comm) == 0) {
        snprintf(t.signal, sizeof t.signal, "/tmp/tessera-test-XXXXXX");
        fd = mkstemp(t.signal);
        expect(fd >= 0, "a file in /tmp");
        close(fd);
    }
    expect(tess_comm_bcast(t.comm, 0, t.signal, sizeof t.signal) == TESS_OK, "its name");
}

static void wait_for_signal(void)
{
    const struct timespec pause = {0, 1000000};
    while (access(t.signal, F_OK) == 0)
        nanosleep(&pause, NULL);
}

static void take_a_nap(void)
{
    const struct timespec nap = {NAP_MS / 1000, NAP_MS % 1000 * 1000000L};
    nanosleep(&nap, NULL);
}

tess_status __wrap_tess_comm_exchange(tess_comm *comm, const tess_wire *wire,
                                      const tess_piece *sends, int send_numel,
                                      const tess_piece *receives, int receive_numel, tess_stream *s)
{
    const bool is_first = t.late == HOP_FIRST && strcmp(wire->name, "second/grad") == 0;
    const bool is_second =
        t.late == HOP_SECOND && strcmp(wire->name, "second/grad inside nodes") == 0;
    const bool is_late = (is_first || is_second) && tess_comm_rank(comm) == 0;
    if (is_first || is_second)
        t.late = HOP_NONE;
    if (is_second)
        TESS_TRY(tess_stream_finish(s));
    if (is_second)
        MPI_Barrier(MPI_COMM_WORLD);
    if (is_first && !is_late)
        wait_for_signal();
    if (is_second && is_late)
        take_a_nap();
    const tess_status st =
        __real_tess_comm_exchange(comm, wire, sends, send_numel, receives, receive_numel, s);
    if (is_first && is_late) {
        unlink(t.signal);
        take_a_nap();
    }
    return st;
}

static tess_status step(int idx)
{
    two_matrices_feed feed = {0};
    tess_step_result result;
    const tess_step_request request = {
        .loss_token_numel = 1,
        .update = {.step = idx, .learning_rate = 0.1, .beta1 = 0.9, .beta2 = 0.99, .eps = 1e-8},
        .arg = &feed,
        .batch_of = two_matrices_batch_of,
    };
    return tess_runtime_step(t.rt, &request, &result);
}

static tess_status set_up(void)
{
    const int world = tess_comm_world(t.comm);
    const int first_rank[] = {0, world - 1, world};
    const tess_plan_options o = {.world = world,
                                 .gather_group_numel = 1,
                                 .micro_batch_numel = world,
                                 .node_first_rank = first_rank,
                                 .node_numel = 2,
                                 .exchange = TESS_EXCHANGE_BY_NODE,
                                 .load_nbytes = 1 << 16};
    const tess_load_request load = {.wants_frozen = true, .wants_trainable = true, .seed = 5};
    /* 64 blocks of 256 elements in the second unit: every rank owns some, and at 4 ranks a piece
     * takes 16 KiB, 4 times what MPI sends without a word inside a machine */
    t.model = (two_matrices){.row_numel = 7, .in_numel = 19, .mid_numel = 129, .out_numel = 127};
    tess_registry_init(&t.registry, TESS_F32);
    TESS_TRY(two_matrices_describe(&t.model, &t.registry));
    TESS_TRY(tess_plan_create(&t.registry, &o, &t.plan));
    const tess_runtime_parts parts = {.plan = t.plan,
                                      .registry = &t.registry,
                                      .kernels = &tess_kernels_cpu,
                                      .world = t.comm,
                                      .ops = &two_matrices_ops,
                                      .model = &t.model};
    TESS_TRY(tess_runtime_create(&parts, &t.rt));
    TESS_TRY(tess_load(t.rt, &load, NULL));
    return tess_runtime_publish(t.rt);
}

/* On every rank; a communicator lives as long as nothing fails. */
static void run(hop late, const char *named)
{
    t = (trial){0};
    expect(tess_comm_create_mpi(NULL, NULL, TESS_COMM_THREAD_OFF, &SHORT, &t.comm) == TESS_OK,
           "a communicator");
    if (t.comm == NULL)
        MPI_Abort(MPI_COMM_WORLD, 1);
    const int rank = tess_comm_rank(t.comm);
    expect(set_up() == TESS_OK && t.plan->unit[1].is_by_node, "a run by node");
    expect(step(1) == TESS_OK, "a step where nobody is late");
    make_signal();
    t.late = late;
    const double start_s = MPI_Wtime();
    const tess_status st = step(2);
    /* what it waited for, and the nap */
    expect(MPI_Wtime() - start_s < 20.0, "an end in time");
    expect(st == TESS_E_TIMEOUT, "a deadline that is over");
    const char *message = tess_error_message();
    if (rank == 1) {
        expect(strstr(message, named) != NULL, "the hop is named");
        /* the late rank's own pieces are under way in the first hop, and may have arrived */
        expect(strstr(message, "nothing heard from rank 0") != NULL ||
                   (late == HOP_FIRST && strstr(message, "not yet taken by rank 0") != NULL),
               "the rank is named");
    }
    tess_runtime_destroy(&t.rt);
    tess_plan_destroy(&t.plan);
    tess_registry_fini(&t.registry);
    tess_comm_destroy(&t.comm);
    tess_error_clear();
    if (rank == 0)
        unlink(t.signal);
    MPI_Barrier(MPI_COMM_WORLD); /* the late rank is awake, and what was posted moves */
}

int main(int argc, char **argv)
{
    int provided = 0, world = 0;
    MPI_Init_thread(&argc, &argv, MPI_THREAD_SERIALIZED, &provided);
    MPI_Comm_size(MPI_COMM_WORLD, &world);
    tess_error_clear();
    if (world >= 3) { /* a node of several ranks and another one */
        run(HOP_FIRST, "'second/grad'");
        run(HOP_SECOND, "'second/grad inside nodes'");
    }
    MPI_Finalize();
    if (world < 3)
        return 77;
    return failures > 0;
}
