/*
 * Links and collectives between the ranks of this launch, with the program's own communicators.
 *
 * Sizes and bandwidths are those of nccl-tests: a collective's size is the whole buffer, algorithm
 * bandwidth is size over time, bus bandwidth counts what every rank must receive, (n - 1) / n of
 * the size. Times are of the slowest rank.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/clock.h"
#include "core/memory.h"
#include "launch/bench.h"
#include "launch/launch.h"
#include "shard/profile.h"

enum { SIZE_FIRST_NBYTES = 4096, PIECE_MAX = 4096 };

/* One collective at one size. */
typedef struct collective {
    tess_bench *b;
    tess_comm_op op;
    int rank, world;
    int64_t row_numel; /* f32 elements of a rank's row */
    float *shard, *full;
    tess_piece *sends, *receives; /* [world] */
    double wrong_numel;           /* elements of the last call, of all ranks */
} collective;

/* Small whole numbers: sums over ranks are exact in f32 whatever their order. */
static float value_of(int rank, int64_t i) { return (float)((rank * 7 + i) % 1021); }

static tess_view f32(float *data, int64_t numel) { return tess_view_host(data, numel, TESS_F32); }

static tess_status enqueue(collective *c)
{
    const tess_wire wire = {.op = c->op,
                            .storage = TESS_F32,
                            .wire = TESS_F32,
                            .accumulate = TESS_F32,
                            .numel_per_rank = c->row_numel,
                            .numel_total = c->row_numel * c->world,
                            .name = "bench",
                            .config_key = "bench"};
    const tess_view shard = f32(c->shard, c->row_numel);
    const tess_view full = f32(c->full, c->row_numel * c->world);
    if (c->op == TESS_COMM_ALL_GATHER)
        return tess_comm_all_gather(c->b->comm, &wire, shard, full,
                                    tess_comm_gather_stream(c->b->comm));
    if (c->op == TESS_COMM_REDUCE_SCATTER)
        return tess_comm_reduce_scatter(c->b->comm, &wire, full, shard,
                                        tess_comm_reduce_stream(c->b->comm));
    return tess_comm_exchange(c->b->comm, &wire, c->sends, c->world - 1, c->receives, c->world - 1,
                              tess_comm_reduce_stream(c->b->comm));
}

static tess_status run_once(collective *c)
{
    tess_stream *s = c->op == TESS_COMM_ALL_GATHER ? tess_comm_gather_stream(c->b->comm)
                                                   : tess_comm_reduce_stream(c->b->comm);
    TESS_TRY(enqueue(c));
    return tess_stream_finish(s);
}

/* ---- results ---- */

static void prepare(collective *c)
{
    for (int64_t i = 0; i < c->row_numel; i++)
        c->shard[i] = value_of(c->rank, i);
    memset(c->full, 0, (size_t)(c->row_numel * c->world) * sizeof(float));
    if (c->op == TESS_COMM_REDUCE_SCATTER)
        for (int64_t i = 0; i < c->row_numel * c->world; i++)
            c->full[i] = value_of(c->rank, i);
    /* everybody gives its row to every other rank and keeps theirs in the order of ranks */
    for (int p = 0, k = 0; p < c->world; p++) {
        if (p == c->rank)
            continue;
        c->sends[k] = (tess_piece){p, f32(c->shard, c->row_numel)};
        c->receives[k++] = (tess_piece){p, f32(c->full + p * c->row_numel, c->row_numel)};
    }
}

static double count_wrong(const collective *c)
{
    double wrong = 0.0;
    if (c->op == TESS_COMM_REDUCE_SCATTER) {
        for (int64_t i = 0; i < c->row_numel; i++) {
            float want = 0.0F;
            for (int p = 0; p < c->world; p++)
                want += value_of(p, c->rank * c->row_numel + i);
            wrong += c->shard[i] == want ? 0.0 : 1.0;
        }
        return wrong;
    }
    for (int p = 0; p < c->world; p++)
        for (int64_t i = 0; i < c->row_numel; i++)
            if (p != c->rank || c->op == TESS_COMM_ALL_GATHER)
                wrong += c->full[p * c->row_numel + i] == value_of(p, i) ? 0.0 : 1.0;
    return wrong;
}

/* Nanoseconds of the slowest rank, and wrong elements of all. */
static tess_status agree_on(collective *c, double *s)
{
    int64_t most = (int64_t)llround(*s * 1e9), wrong = (int64_t)c->wrong_numel;
    TESS_TRY(tess_comm_control(c->b->comm, &wrong, 1, &most, 1));
    *s = 1e-9 * (double)most;
    c->wrong_numel = (double)wrong;
    return TESS_OK;
}

/* One repeat: the first call is not timed, those after it follow each other at once, as in a run;
 * what a link holds back for a burst is gone by then. */
static tess_status repeat_once(collective *c, int call_numel, double *s)
{
    prepare(c);
    TESS_TRY(tess_comm_barrier(c->b->comm));
    TESS_TRY(run_once(c));
    const double start_s = tess_clock_s();
    for (int i = 0; i < call_numel; i++)
        TESS_TRY(run_once(c));
    *s = (tess_clock_s() - start_s) / call_numel;
    c->wrong_numel = count_wrong(c);
    return agree_on(c, s);
}

static tess_status time_collective(collective *c, double *median_s)
{
    enum { CALL_MAX = 16 };
    const double wanted_s = 0.01;
    double second[TESS_BENCH_REPEAT_MAX], s = 0.0;
    const int repeat_numel = (int)c->b->options->repeat_numel;
    TESS_TRY(repeat_once(c, 1, &s)); /* the same on all ranks */
    const int call_numel = (int)TESS_MIN(TESS_MAX(wanted_s / TESS_MAX(s, 1e-9), 1.0), CALL_MAX);
    double wrong = c->wrong_numel;
    for (int i = 0; i < repeat_numel; i++) {
        TESS_TRY(repeat_once(c, call_numel, &second[i]));
        wrong += c->wrong_numel;
    }
    c->wrong_numel = wrong;
    *median_s = tess_bench_median(second, repeat_numel);
    return TESS_OK;
}

static tess_status set_size(collective *c, int64_t nbytes)
{
    c->row_numel = TESS_MAX(nbytes / (int64_t)sizeof(float) / c->world, (int64_t)1);
    c->b->used_nbytes = 0;
    const size_t row_nbytes = (size_t)c->row_numel * sizeof(float);
    c->shard = tess_bench_take(c->b, row_nbytes);
    c->full = tess_bench_take(c->b, row_nbytes * (size_t)c->world);
    TESS_CHECK(c->shard != NULL && c->full != NULL, TESS_E_RANGE,
               "bench: %lld bytes a collective do not fit; lower --max-mib", (long long)nbytes);
    return TESS_OK;
}

static tess_status make(tess_bench *b, collective *c)
{
    void *array = NULL;
    *c = (collective){.b = b, .rank = tess_comm_rank(b->comm), .world = tess_comm_world(b->comm)};
    TESS_CHECK(c->world <= PIECE_MAX, TESS_E_UNSUPPORTED, "bench: at most %d ranks, found %d",
               PIECE_MAX, c->world);
    tess_status st = tess_alloc_array(2 * (int64_t)c->world, sizeof(tess_piece), &array);
    c->sends = array;
    c->receives = c->sends != NULL ? c->sends + c->world : NULL;
    return tess_agree(b->comm, st);
}

/* ---- collectives ---- */

static tess_status add_line(const collective *c, double s, tess_json *root)
{
    const double nbytes = (double)c->row_numel * c->world * (double)sizeof(float);
    const double share = (double)(c->world - 1) / c->world;
    TESS_TRY(tess_json_add_string(root, "collective", tess_comm_op_name(c->op)));
    TESS_TRY(tess_json_add_i64(root, "bytes", (int64_t)nbytes));
    TESS_TRY(tess_json_add_f64(root, "time_us", 1e6 * s));
    TESS_TRY(tess_json_add_f64(root, "algorithm_gb_per_s", 1e-9 * nbytes / s));
    TESS_TRY(tess_json_add_f64(root, "bus_gb_per_s", 1e-9 * nbytes * share / s));
    TESS_TRY(tess_json_add_i64(root, "wrong_elements", (int64_t)c->wrong_numel));
    return tess_json_add_i64(root, "repeats", c->b->options->repeat_numel);
}

static tess_status print_line(const collective *c, double s)
{
    tess_json *root = NULL;
    tess_status st = TESS_OK;
    if (c->rank == 0)
        st = tess_json_create_object(&root);
    if (root != NULL)
        st = add_line(c, s, root);
    return tess_bench_line(c->b, root, st);
}

static tess_status measure_all(collective *c, double *wrong)
{
    const int64_t most_nbytes = c->b->options->max_mib << 20;
    for (int op = 0; op < TESS_COMM_OP_NUMEL; op++) {
        c->op = (tess_comm_op)op;
        for (int64_t n = SIZE_FIRST_NBYTES; n <= most_nbytes; n *= 4) {
            double s = 0.0;
            TESS_TRY(set_size(c, n));
            TESS_TRY(time_collective(c, &s));
            *wrong += c->wrong_numel;
            TESS_TRY(print_line(c, s));
        }
    }
    return TESS_OK;
}

tess_status tess_bench_collectives(tess_bench *b)
{
    collective c;
    double wrong = 0.0;
    TESS_TRY(make(b, &c));
    tess_status st = measure_all(&c, &wrong);
    tess_free(c.sends);
    if (st == TESS_OK && wrong > 0.0) /* a sum over ranks: the same verdict everywhere */
        st = TESS_FAIL(TESS_E_COMM, "bench: %.0f elements of results are wrong", wrong);
    return st;
}

/* ---- links ---- */

/* A row from each to each: the rate of what a rank receives, over those bytes. Sizes are the same
 * on all ranks, and so is what does not fit. Collective. */
static tess_status measure_link(collective *c, tess_link *link)
{
    const int64_t most_nbytes = c->b->options->max_mib << 20;
    c->op = TESS_COMM_EXCHANGE;
    TESS_TRY(set_size(c, (int64_t)sizeof(float) * c->world));
    TESS_TRY(time_collective(c, &link->latency_s));
    for (int64_t n = 64 * SIZE_FIRST_NBYTES; n <= most_nbytes; n *= 4) {
        const int i = link->rate.point_numel++;
        double s = 0.0;
        TESS_TRY(set_size(c, n));
        TESS_TRY(time_collective(c, &s));
        link->rate.size[i] = (double)c->row_numel * (c->world - 1) * (double)sizeof(float);
        link->rate.rate[i] = link->rate.size[i] / TESS_MAX(s - link->latency_s, 0.1 * s);
    }
    return TESS_OK;
}

/* What is left of an exchange when ranks drive nothing for three times as long as it takes, as
 * kernels do: the core takes in what the network has brought. Of half the bytes that the engine
 * hands over to a peer at once. Collective. */
static tess_status measure_arrived(collective *c, tess_link *link)
{
    double second[TESS_BENCH_REPEAT_MAX];
    const int repeat_numel = (int)c->b->options->repeat_numel;
    const int64_t row_nbytes = TESS_COMM_FAR_NBYTES / 2;
    TESS_TRY(set_size(c, row_nbytes * c->world));
    const double nbytes = (double)row_nbytes * (c->world - 1);
    const double away_s = 3.0 * (nbytes / tess_curve_at(&link->rate, nbytes) + link->latency_s);
    for (int i = 0; i < repeat_numel; i++) {
        prepare(c);
        TESS_TRY(tess_comm_barrier(c->b->comm));
        TESS_TRY(enqueue(c));
        const double until_s = tess_clock_s() + away_s;
        while (tess_clock_s() < until_s) {
        }
        const double start_s = tess_clock_s();
        TESS_TRY(tess_stream_finish(tess_comm_reduce_stream(c->b->comm)));
        second[i] = tess_clock_s() - start_s;
        c->wrong_numel = count_wrong(c);
        TESS_TRY(agree_on(c, &second[i]));
    }
    link->arrived_rate = nbytes / TESS_MAX(tess_bench_median(second, repeat_numel), 1e-9);
    return TESS_OK;
}

static tess_status add_link(tess_json *root, const char *key, const tess_link *link)
{
    tess_json *v = NULL, *list = NULL, *point = NULL;
    TESS_TRY(tess_json_add_object(root, key, &v));
    TESS_TRY(tess_json_add_f64(v, "latency_us", 1e6 * link->latency_s));
    if (link->arrived_rate > 0.0)
        TESS_TRY(tess_json_add_f64(v, "arrived_gb_per_s", 1e-9 * link->arrived_rate));
    TESS_TRY(tess_json_add_array(v, "gb_per_s", &list));
    for (int i = 0; i < link->rate.point_numel; i++) {
        TESS_TRY(tess_json_add_array(list, NULL, &point));
        TESS_TRY(tess_json_add_f64(point, NULL, link->rate.size[i]));
        TESS_TRY(tess_json_add_f64(point, NULL, 1e-9 * link->rate.rate[i]));
    }
    return TESS_OK;
}

static tess_status fill_network(const collective *c, const tess_link *link, tess_json *root)
{
    char source[TESS_PROFILE_SOURCE_NBYTES];
    const int near = tess_comm_node_rank_numel(c->b->comm, 0);
    tess_bench_source(c->b, source, sizeof source);
    TESS_TRY(tess_json_add_string(root, "name", "this-network"));
    TESS_TRY(tess_json_add_string(root, "kind", "measured"));
    TESS_TRY(tess_json_add_string(root, "source", source));
    TESS_TRY(tess_json_add_i64(root, "ranks_per_node", near));
    TESS_TRY(add_link(root, "across", link));
    /* All on one node: what was measured is its link, and stands for both. */
    return near < c->world ? TESS_OK : add_link(root, "node", link);
}

static tess_status write_network(const collective *c, const tess_link *link)
{
    tess_json *root = NULL;
    if (c->rank != 0)
        return TESS_OK;
    TESS_TRY(tess_json_create_object(&root));
    tess_status st = fill_network(c, link, root);
    if (st == TESS_OK)
        st = tess_json_write(c->b->ctx->io, c->b->options->output, root, 2);
    tess_json_destroy(&root);
    return st;
}

tess_status tess_bench_links(tess_bench *b)
{
    collective c;
    tess_link link = {.latency_s = 0.0};
    TESS_CHECK(tess_comm_world(b->comm) > 1, TESS_E_CONFIG,
               "bench links: expected 2 ranks or more, found 1; start it with mpirun -n 2");
    TESS_TRY(make(b, &c));
    tess_status st = measure_link(&c, &link);
    if (st == TESS_OK && tess_comm_node_rank_numel(b->comm, 0) < c.world)
        st = measure_arrived(&c, &link);
    if (st == TESS_OK)
        st = tess_agree(b->comm, write_network(&c, &link));
    tess_free(c.sends);
    return st;
}
