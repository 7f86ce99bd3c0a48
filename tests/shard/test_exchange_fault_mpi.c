/*
 * A rank that stops between the two hops of an exchange by node: it has what other nodes sent it
 * and passes nothing on. Those who wait for it stop after their deadline and name the hop and the
 * rank; nobody hangs, the late rank neither.
 *
 * The last rank is a node of its own, all others are one: rank (world - 1) mod (world - 1) = 0 of
 * these is the relay of what the last one sends. It stops in the backward pass of the first unit,
 * when the gradient of the second is under way.
 */
#include <stdio.h>
#include <string.h>
#include <time.h>

#include <mpi.h>

#include "shard/loader.h"
#include "shard/runtime.h"
#include "support/two_matrices.h"

enum { NAP_MS = 6000 };

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
    bool is_late;
} trial;

static trial t;

static tess_status backward(void *model, const tess_stage_call *call)
{
    const struct timespec nap = {NAP_MS / 1000, NAP_MS % 1000 * 1000000L};
    if (t.is_late && call->stage_idx == 0)
        nanosleep(&nap, NULL);
    return two_matrices_ops.backward(model, call);
}

static tess_status forward(void *model, const tess_stage_call *call)
{
    return two_matrices_ops.forward(model, call);
}

static const tess_stage_ops ops = {.forward = forward, .backward = backward};

static tess_status batch_of(void *arg, int64_t m, const void **batch)
{
    two_matrices_batch *b = arg;
    b->micro_batch_idx = m;
    *batch = b;
    return TESS_OK;
}

static tess_status step(int idx)
{
    two_matrices_batch batch = {0};
    tess_step_result result;
    const tess_step_request request = {
        .loss_token_numel = 1,
        .update = {.step = idx, .learning_rate = 0.1, .beta1 = 0.9, .beta2 = 0.99, .eps = 1e-8},
        .arg = &batch,
        .batch_of = batch_of,
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
    t.model = (two_matrices){.row_numel = 7, .in_numel = 19, .mid_numel = 33, .out_numel = 29};
    tess_registry_init(&t.registry, TESS_F32);
    TESS_TRY(two_matrices_describe(&t.model, &t.registry));
    TESS_TRY(tess_plan_create(&t.registry, &o, &t.plan));
    const tess_runtime_parts parts = {.plan = t.plan,
                                      .registry = &t.registry,
                                      .kernels = &tess_kernels_cpu,
                                      .world = t.comm,
                                      .ops = &ops,
                                      .model = &t.model};
    TESS_TRY(tess_runtime_create(&parts, &t.rt));
    TESS_TRY(tess_load(t.rt, &load, NULL));
    return tess_runtime_publish(t.rt);
}

static void run(void)
{
    const int rank = tess_comm_rank(t.comm);
    expect(set_up() == TESS_OK && t.plan->unit[1].is_by_node, "a run by node");
    expect(step(1) == TESS_OK, "a step where nobody is late");
    t.is_late = rank == 0;
    const double start_s = MPI_Wtime();
    const tess_status st = step(2);
    /* what it waited for, and the nap */
    expect(MPI_Wtime() - start_s < 20.0, "an end in time");
    expect(st == TESS_E_TIMEOUT, "a deadline that is over");
    /* Other ranks of the relay's node that own some of the unit wait for it in the second hop; the
     * second unit has 4 blocks, so that all do. */
    if (rank == 1)
        expect(strstr(tess_error_message(), "'second/grad inside nodes'") != NULL &&
                   strstr(tess_error_message(), "nothing heard from rank 0") != NULL,
               "the hop and the rank are named");
}

int main(int argc, char **argv)
{
    int provided = 0;
    MPI_Init_thread(&argc, &argv, MPI_THREAD_SERIALIZED, &provided);
    tess_error_clear();
    expect(tess_comm_create_mpi(NULL, NULL, TESS_COMM_THREAD_OFF, &SHORT, &t.comm) == TESS_OK,
           "a communicator");
    if (t.comm == NULL)
        return 1;
    const bool is_small = tess_comm_world(t.comm) < 3; /* a node of several ranks and another one */
    if (!is_small)
        run();
    tess_runtime_destroy(&t.rt);
    tess_plan_destroy(&t.plan);
    if (!is_small)
        tess_registry_fini(&t.registry);
    tess_comm_destroy(&t.comm);
    MPI_Barrier(MPI_COMM_WORLD);
    MPI_Finalize();
    if (is_small)
        return 77;
    return failures > 0;
}
