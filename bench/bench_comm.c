/*
 * Bandwidth of the communicator's collectives beside MPI's own, alternating, one JSON line each.
 *
 * Run: mpirun --oversubscribe -n 2 build/bin/bench_comm [mebibytes of the whole] [chunk bytes]
 * Bandwidth is received payload per rank: nbytes * (world - 1) / world / time (nccl-tests: busbw).
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <mpi.h>

#include "core/clock.h"
#include "core/memory.h"
#include "dist/comm.h"
#include "dist/engine_priv.h"

enum { WARM = 3, RUNS = 25 };

typedef struct bench {
    tess_comm *comm;
    int rank;
    int world;
    size_t row_nbytes;
    char *full;
    char *other;
    double time_s[RUNS];
} bench;

static void must(tess_status st)
{
    if (st != TESS_OK) {
        fprintf(stderr, "%s\n", tess_error_message());
        MPI_Abort(MPI_COMM_WORLD, 1);
    }
}

static void ours_gather(bench *b)
{
    tess_wire w = {.op = TESS_COMM_ALL_GATHER, .wire = TESS_U8, .name = "bench"};
    w.numel_per_rank = (int64_t)b->row_nbytes;
    tess_stream *s = tess_comm_gather_stream(b->comm);
    char *mine = b->full + (size_t)b->rank * b->row_nbytes;
    must(tess_comm_all_gather(b->comm, &w, tess_view_host(mine, w.numel_per_rank, TESS_U8),
                              tess_view_host(b->full, w.numel_per_rank * b->world, TESS_U8), s));
    must(tess_stream_finish(s));
}

static void mpi_gather(bench *b)
{
    MPI_Allgather(MPI_IN_PLACE, 0, MPI_BYTE, b->full, (int)b->row_nbytes, MPI_BYTE, MPI_COMM_WORLD);
}

static void ours_exchange(bench *b)
{
    tess_wire w = {.op = TESS_COMM_EXCHANGE, .wire = TESS_U8, .name = "bench"};
    tess_piece send[64];
    tess_piece receive[64];
    for (int p = 0; p < b->world && p < 64; p++) {
        const size_t at = (size_t)p * b->row_nbytes;
        send[p] = (tess_piece){p, tess_view_host(b->full + at, (int64_t)b->row_nbytes, TESS_U8)};
        receive[p] =
            (tess_piece){p, tess_view_host(b->other + at, (int64_t)b->row_nbytes, TESS_U8)};
    }
    tess_stream *s = tess_comm_reduce_stream(b->comm);
    must(tess_comm_exchange(b->comm, &w, send, b->world, receive, b->world, s));
    must(tess_stream_finish(s));
}

static void mpi_exchange(bench *b)
{
    MPI_Alltoall(b->full, (int)b->row_nbytes, MPI_BYTE, b->other, (int)b->row_nbytes, MPI_BYTE,
                 MPI_COMM_WORLD);
}

static void ours_reduce(bench *b)
{
    tess_wire w = {
        .op = TESS_COMM_REDUCE_SCATTER, .wire = TESS_F32, .accumulate = TESS_F32, .name = "bench"};
    w.numel_per_rank = (int64_t)(b->row_nbytes / 4);
    tess_stream *s = tess_comm_reduce_stream(b->comm);
    must(tess_comm_reduce_scatter(b->comm, &w,
                                  tess_view_host(b->full, w.numel_per_rank * b->world, TESS_F32),
                                  tess_view_host(b->other, w.numel_per_rank, TESS_F32), s));
    must(tess_stream_finish(s));
}

static void mpi_reduce(bench *b)
{
    MPI_Reduce_scatter_block(b->full, b->other, (int)(b->row_nbytes / 4), MPI_FLOAT, MPI_SUM,
                             MPI_COMM_WORLD);
}

static void ours_control(bench *b)
{
    int64_t v[16] = {0};
    must(tess_comm_control(b->comm, v, 8, v + 8, 8));
}

static void mpi_control(bench *b)
{
    (void)b;
    int64_t v[16] = {0};
    MPI_Allreduce(MPI_IN_PLACE, v, 16, MPI_INT64_T, MPI_SUM, MPI_COMM_WORLD);
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a;
    const double y = *(const double *)b;
    return (x > y) - (x < y);
}

static void report(bench *b, const char *name, double *time_s, size_t nbytes)
{
    qsort(time_s, RUNS, sizeof *time_s, by_value);
    if (b->rank != 0)
        return;
    const double moved = (double)nbytes * (b->world - 1);
    printf("{\"bench\":\"%s\",\"world\":%d,\"row_nbytes\":%zu,\"median_us\":%.1f,\"p10_us\":%.1f,"
           "\"p90_us\":%.1f,\"bus_gbps\":%.2f}\n",
           name, b->world, nbytes, 1e6 * time_s[RUNS / 2], 1e6 * time_s[RUNS / 10],
           1e6 * time_s[RUNS * 9 / 10], moved / time_s[RUNS / 2] * 1e-9);
}

static void pair(bench *b, const char *name, void (*ours)(bench *), void (*theirs)(bench *),
                 size_t nbytes)
{
    static double ours_s[RUNS];
    static double theirs_s[RUNS];
    char label[64];
    for (int i = -WARM; i < RUNS; i++) {
        MPI_Barrier(MPI_COMM_WORLD);
        const double a = tess_clock_s();
        ours(b);
        const double c = tess_clock_s();
        MPI_Barrier(MPI_COMM_WORLD);
        const double d = tess_clock_s();
        theirs(b);
        const double e = tess_clock_s();
        if (i >= 0) {
            ours_s[i] = c - a;
            theirs_s[i] = e - d;
        }
    }
    snprintf(label, sizeof label, "%s", name);
    report(b, label, ours_s, nbytes);
    snprintf(label, sizeof label, "MPI for %s", name);
    report(b, label, theirs_s, nbytes);
}

int main(int argc, char **argv)
{
    const size_t whole_mib = argc > 1 ? (size_t)strtoul(argv[1], NULL, 10) : 16;
    const size_t chunk_nbytes = argc > 2 ? (size_t)strtoul(argv[2], NULL, 10) : 0;
    engine_mpi_prepare(TESS_COMM_THREAD_OFF);
    int provided = 0;
    MPI_Init_thread(&argc, &argv, MPI_THREAD_SERIALIZED, &provided);
    bench b = {0};
    must(tess_comm_create_mpi(&argc, &argv, TESS_COMM_THREAD_OFF, NULL, &b.comm));
    b.rank = tess_comm_rank(b.comm);
    b.world = tess_comm_world(b.comm);
    b.row_nbytes = (whole_mib << 20) / (size_t)b.world / 4096 * 4096;
    if (chunk_nbytes > 0)
        tess_comm_set_chunk(b.comm, chunk_nbytes);
    void *full = NULL;
    void *other = NULL;
    must(tess_alloc(b.row_nbytes * (size_t)b.world, &full));
    must(tess_alloc(b.row_nbytes * (size_t)b.world, &other));
    memset(full, 0, b.row_nbytes * (size_t)b.world);
    memset(other, 0, b.row_nbytes * (size_t)b.world);
    b.full = full;
    b.other = other;
    pair(&b, "all_gather", ours_gather, mpi_gather, b.row_nbytes);
    pair(&b, "exchange", ours_exchange, mpi_exchange, b.row_nbytes);
    pair(&b, "reduce_scatter", ours_reduce, mpi_reduce, b.row_nbytes);
    pair(&b, "control", ours_control, mpi_control, 128);
    tess_free(other);
    tess_free(full);
    tess_comm_destroy(&b.comm);
    MPI_Finalize();
    return 0;
}
