#include <stdio.h>
#include <string.h>

#include <mpi.h>

#include "dist/comm.h"
#include "dist/engine_priv.h"
#include "tests/support/comm_conformance.h"
#include "tests/support/expect.h"

static void test_world_and_groups_conform(tess_comm *comm)
{
    failures += comm_conformance(comm);
    /* 257 bytes: every transfer is many chunks, and floats are never cut by it */
    tess_comm_set_chunk(comm, 257);
    failures += comm_conformance(comm);
    for (int k = 2; k < tess_comm_world(comm); k++) { /* as on nodes of k ranks */
        if (tess_comm_world(comm) % k != 0)
            continue;
        tess_comm_set_nodes(comm, k);
        failures += comm_conformance(comm);
        tess_comm_set_chunk(comm, ENGINE_CHUNK_NBYTES);
        failures += comm_conformance(comm);
        tess_comm_set_chunk(comm, 257);
        tess_comm_set_nodes(comm, 0);
    }
    tess_comm_set_chunk(comm, ENGINE_CHUNK_NBYTES);
    for (int group = 1; group <= tess_comm_world(comm); group++) {
        tess_comm *part = NULL;
        const tess_status st = tess_comm_split_group(comm, group, &part);
        if (tess_comm_world(comm) % group != 0) {
            EXPECT(st == TESS_E_ARG && strstr(tess_error_message(), "does not divide") != NULL);
            tess_error_clear();
            continue;
        }
        EXPECT(st == TESS_OK);
        EXPECT(tess_comm_world(part) == group);
        EXPECT(tess_comm_rank(part) == tess_comm_rank(comm) % group);
        EXPECT(tess_comm_launch_rank(part) == tess_comm_rank(comm));
        failures += comm_conformance(part);
        tess_comm_destroy(&part);
    }
}

/* Some ranks alone, whether or not their number divides the world: they work, the others wait. */
static void test_split_first_leaves_the_others(tess_comm *comm)
{
    const int world = tess_comm_world(comm), rank = tess_comm_rank(comm);
    for (int numel = 1; numel <= world; numel++) {
        tess_comm *part = NULL;
        const int first = rank / numel * numel;
        EXPECT(tess_comm_split_first(comm, numel, &part) == TESS_OK);
        EXPECT(tess_comm_world(part) == (first + numel <= world ? numel : world - first));
        EXPECT(tess_comm_rank(part) == rank - first);
        EXPECT(tess_comm_launch_rank(part) == rank);
        if (rank < numel) {
            int ranks = 0;
            for (int n = 0; n < tess_comm_node_numel(part); n++)
                ranks += tess_comm_node_rank_numel(part, n);
            EXPECT(ranks == numel && tess_comm_node_of(part, 0) == 0);
            failures += comm_conformance(part);
        }
        EXPECT(tess_comm_barrier(comm) == TESS_OK);
        tess_comm_destroy(&part);
    }
    tess_comm *part = NULL;
    EXPECT(tess_comm_split_first(comm, world + 1, &part) == TESS_E_ARG);
    EXPECT(strstr(tess_error_message(), "ranks to split off, found") != NULL);
    tess_error_clear();
}

/* Traffic of a group and of the world runs side by side through one engine. */
static void test_group_and_world_interleave(tess_comm *comm)
{
    enum { NUMEL = 30000, ROUNDS = 8 };
    static int32_t world_full[8 * NUMEL];
    static int32_t group_full[8 * NUMEL];
    const int world = tess_comm_world(comm);
    const int rank = tess_comm_rank(comm);
    const int group = world % 2 == 0 ? 2 : world;
    if (world > 8)
        return;
    tess_comm *part = NULL;
    EXPECT(tess_comm_split_group(comm, group, &part) == TESS_OK);
    tess_wire w = {.op = TESS_COMM_ALL_GATHER, .wire = TESS_I32, .numel_per_rank = NUMEL};
    snprintf(w.name, sizeof w.name, "both");
    int wrong = 0;
    for (int k = 0; k < ROUNDS; k++) {
        int32_t *mine = world_full + rank * NUMEL;
        int32_t *in_group = group_full + (rank % group) * NUMEL;
        for (int i = 0; i < NUMEL; i++) {
            mine[i] = rank * 1000003 + i * 7 + k;
            in_group[i] = rank * 500009 + i * 3 + k;
        }
        tess_stream *ws = tess_comm_reduce_stream(comm);
        tess_stream *gs = tess_comm_gather_stream(part);
        EXPECT(tess_comm_all_gather(comm, &w, tess_view_host(mine, NUMEL, TESS_I32),
                                    tess_view_host(world_full, world * NUMEL, TESS_I32),
                                    ws) == TESS_OK);
        EXPECT(tess_comm_all_gather(part, &w, tess_view_host(in_group, NUMEL, TESS_I32),
                                    tess_view_host(group_full, group * NUMEL, TESS_I32),
                                    gs) == TESS_OK);
        EXPECT(tess_comm_barrier(k % 2 == 0 ? comm : part) == TESS_OK);
        EXPECT(tess_stream_finish(rank % 2 == 0 ? ws : gs) == TESS_OK);
        EXPECT(tess_stream_finish(rank % 2 == 0 ? gs : ws) == TESS_OK);
        for (int i = 0; i < NUMEL; i++) {
            for (int r = 0; r < world; r++)
                wrong += world_full[r * NUMEL + i] != r * 1000003 + i * 7 + k;
            for (int r = 0; r < group; r++)
                wrong +=
                    group_full[r * NUMEL + i] != (rank / group * group + r) * 500009 + i * 3 + k;
        }
    }
    EXPECT(wrong == 0);
    tess_comm_destroy(&part);
}

static void test_spy_records_world_and_group(tess_comm *comm)
{
    const int world = tess_comm_world(comm);
    const int rank = tess_comm_rank(comm);
    static float full[64];
    tess_comm *spy = NULL;
    tess_comm *part = NULL;
    EXPECT(tess_comm_create_spy(comm, &spy) == TESS_OK);
    EXPECT(strcmp(tess_comm_name(spy), "spy(mpi)") == 0);
    EXPECT(tess_comm_split_group(spy, 1, &part) == TESS_OK);
    tess_wire w = {.op = TESS_COMM_ALL_GATHER,
                   .entry_idx = 3,
                   .wire = TESS_F32,
                   .accumulate = TESS_F32,
                   .numel_per_rank = 4};
    snprintf(w.name, sizeof w.name, "blk.3/frozen");
    EXPECT(tess_comm_all_gather(spy, &w, tess_view_host(full + 4 * rank, 4, TESS_F32),
                                tess_view_host(full, 4 * world, TESS_F32),
                                tess_comm_gather_stream(spy)) == TESS_OK);
    w.op = TESS_COMM_EXCHANGE;
    w.entry_idx = 4;
    const tess_piece send[2] = {{rank, tess_view_host(full, 3, TESS_F32)},
                                {(rank + 1) % world, tess_view_host(full, 2, TESS_F32)}};
    const tess_piece receive[2] = {
        {rank, tess_view_host(full + 40, 3, TESS_F32)},
        {(rank + world - 1) % world, tess_view_host(full + 50, 2, TESS_F32)}};
    EXPECT(tess_comm_exchange(spy, &w, send, 2, receive, 2, tess_comm_reduce_stream(spy)) ==
           TESS_OK);
    w.op = TESS_COMM_REDUCE_SCATTER;
    w.entry_idx = 5;
    EXPECT(tess_comm_reduce_scatter(part, &w, tess_view_host(full, 4, TESS_F32),
                                    tess_view_host(full + 60, 4, TESS_F32),
                                    tess_comm_reduce_stream(part)) == TESS_OK);
    EXPECT(tess_stream_finish(tess_comm_gather_stream(spy)) == TESS_OK);
    EXPECT(tess_stream_finish(tess_comm_reduce_stream(spy)) == TESS_OK);
    EXPECT(tess_stream_finish(tess_comm_reduce_stream(part)) == TESS_OK);
    const tess_spy_record *r = NULL;
    const int others = world > 1 ? 2 : 0;
    EXPECT(tess_spy_records(spy, &r) == 3);
    EXPECT(r[0].op == TESS_COMM_ALL_GATHER && r[0].entry_idx == 3 && r[0].wire == TESS_F32);
    EXPECT(r[0].send_numel == 4 && r[0].receive_numel == 4 * (world - 1) && r[0].world == world);
    EXPECT(strcmp(r[0].name, "blk.3/frozen") == 0);
    EXPECT(r[1].op == TESS_COMM_EXCHANGE && r[1].send_numel == others);
    EXPECT(r[1].receive_numel == others);
    EXPECT(r[2].op == TESS_COMM_REDUCE_SCATTER && r[2].world == 1 && r[2].send_numel == 0);
    tess_spy_clear(spy);
    EXPECT(tess_spy_records(part, &r) == 0);
    tess_comm_destroy(&part);
    tess_comm_destroy(&spy);
}

/* Each rank in turn enqueues something else: all ranks get the same refusal, nobody hangs. */
static void test_checked_mode_names_both_sides(tess_comm *comm)
{
    static float full[64];
    const int world = tess_comm_world(comm);
    const int rank = tess_comm_rank(comm);
    tess_comm_set_checking(comm, true);
    for (int odd = 1; odd < world; odd++) {
        tess_wire w = {.op = TESS_COMM_ALL_GATHER, .entry_idx = 7, .wire = TESS_F32};
        w.numel_per_rank = 4;
        snprintf(w.name, sizeof w.name, "blk.7/frozen");
        if (rank == odd) {
            w.entry_idx = 8;
            snprintf(w.name, sizeof w.name, "blk.8/frozen");
        }
        tess_error_clear();
        const tess_status st = tess_comm_all_gather(
            comm, &w, tess_view_host(full + 4 * rank, 4, TESS_F32),
            tess_view_host(full, 4 * world, TESS_F32), tess_comm_gather_stream(comm));
        EXPECT(st == TESS_E_CONTRACT);
        char want[96];
        snprintf(want, sizeof want, "rank %d enqueues all_gather 'blk.8/frozen' (entry 8", odd);
        EXPECT(strstr(tess_error_message(), want) != NULL);
        EXPECT(strstr(tess_error_message(), "rank 0 all_gather 'blk.7/frozen' (entry 7") != NULL);
    }
    tess_error_clear();
    tess_wire w = {.op = TESS_COMM_ALL_GATHER, .entry_idx = 7, .wire = TESS_F32};
    w.numel_per_rank = 4;
    snprintf(w.name, sizeof w.name, "blk.7/frozen");
    EXPECT(tess_comm_all_gather(comm, &w, tess_view_host(full + 4 * rank, 4, TESS_F32),
                                tess_view_host(full, 4 * world, TESS_F32),
                                tess_comm_gather_stream(comm)) == TESS_OK);
    EXPECT(tess_stream_finish(tess_comm_gather_stream(comm)) == TESS_OK);
    tess_comm_set_checking(comm, false);
}

static void run(tess_comm_thread thread)
{
    tess_comm *comm = NULL;
    EXPECT(tess_comm_create_mpi(NULL, NULL, thread, NULL, &comm) == TESS_OK);
    if (comm == NULL)
        return;
    test_world_and_groups_conform(comm);
    test_split_first_leaves_the_others(comm);
    test_group_and_world_interleave(comm);
    test_spy_records_world_and_group(comm);
    test_checked_mode_names_both_sides(comm);
    int64_t all = failures;
    EXPECT(tess_comm_control(comm, &all, 1, NULL, 0) == TESS_OK);
    tess_comm_destroy(&comm);
    EXPECT(comm == NULL);
}

int main(int argc, char **argv)
{
    int provided = 0;
    /* the program owns MPI here, so that two communicators can follow one another */
    MPI_Init_thread(&argc, &argv, MPI_THREAD_SERIALIZED, &provided);
    EXPECT(tess_comm_is_launched());
    run(TESS_COMM_THREAD_OFF);
    run(TESS_COMM_THREAD_ON);
    MPI_Finalize();
    return failures > 0;
}
