/*
 * The gather of a decoder layer's codes and the reduction of its adapters' gradients, alone, by the
 * collective library of the CUDA part: one JSON line each.
 *
 *   [mpirun -n N] bench_gather_device --plugin LIBRARY [--repeats N] [--layer 70b|8b|tiny]...
 *
 * A layer of Llama 3 in nf4, double-quantized, as one string of bytes from and to all ranks, and
 * f32 gradients of rank 16 on all its linears. Rank r of a node takes device --index + r.
 * "gb_per_s" are the bytes that every rank ends up with over the time of the slowest rank,
 * "bus_gb_per_s" is (n - 1) / n of it, what a link carries: 0 with one rank, whose gather is a
 * copy. "copy_gb_per_s": a copy of a rank's bytes on the device, read and written.
 */
#include <inttypes.h>

#include "bench/measured.h"
#include "dist/comm.h"

enum { LORA_RANK = 16, LAYER_MAX = 8 };

typedef struct layer {
    const char *name;
    int64_t hidden_numel, kv_numel, inner_numel;
} layer;

static const layer layers[] = {
    {"70b", 8192, 1024, 28672}, {"8b", 4096, 1024, 14336}, {"tiny", 64, 32, 128}};

typedef struct bench {
    bench_device at;
    bench_options options;
    const layer *layer[LAYER_MAX];
    int layer_numel;
    tess_comm *comm;
    tess_gpu_group *group;
} bench;

typedef struct traffic {
    bench *b;
    char *full, *shard; /* [world, shard_nbytes]; [shard_nbytes] */
    size_t shard_nbytes;
} traffic;

/* Work that NCCL has not taken yet must not be measured: see nccl.c on calls in progress. */
static tess_status settle(bench *b)
{
    bool is_ready = false;
    const double until_s = tess_clock_s() + 60.0;
    while (!is_ready) {
        TESS_TRY(b->at.plugin->collectives->poll(b->group, &is_ready));
        TESS_CHECK(tess_clock_s() < until_s, TESS_E_COMM, "collectives: not ready within 60 s");
    }
    return TESS_OK;
}

static tess_status gather(void *arg)
{
    const traffic *t = arg;
    bench *b = t->b;
    TESS_TRY(b->at.plugin->collectives->all_gather(b->group, t->shard, t->full, t->shard_nbytes,
                                                   b->at.stream));
    return settle(b);
}

static tess_status reduce(void *arg)
{
    const traffic *t = arg;
    bench *b = t->b;
    TESS_TRY(b->at.plugin->collectives->reduce_scatter(
        b->group, (const float *)(const void *)t->full, (float *)(void *)t->shard,
        (int64_t)(t->shard_nbytes / sizeof(float)), b->at.stream));
    return settle(b);
}

static tess_status copy(void *arg)
{
    const traffic *t = arg;
    const int64_t numel = (int64_t)t->shard_nbytes;
    return tess_device_copy(t->b->at.device, (tess_view){t->full, numel, TESS_U8, TESS_DEVICE},
                            (tess_view){t->shard, numel, TESS_U8, TESS_DEVICE}, t->b->at.stream);
}

/* ---- sizes ---- */

static tess_status sizes(const layer *l, int64_t *base_nbytes, int64_t *gradient_nbytes)
{
    const int64_t h = l->hidden_numel, linear[][2] = {{h, h},
                                                      {l->kv_numel, h},
                                                      {l->kv_numel, h},
                                                      {h, h},
                                                      {l->inner_numel, h},
                                                      {l->inner_numel, h},
                                                      {h, l->inner_numel}};
    const tess_codec codec = {.format = TESS_FORMAT_NF4, .block_numel = 64, .double_quant = true};
    *base_nbytes = *gradient_nbytes = 0;
    for (int i = 0; i < TESS_NELEM(linear); i++) {
        tess_codec_part part[TESS_CODEC_PART_MAX];
        int part_numel = 0;
        TESS_TRY(tess_codec_parts(&codec, linear[i][0] * linear[i][1], part, &part_numel));
        for (int k = 0; k < part_numel; k++)
            *base_nbytes += (int64_t)part[k].nbytes;
        *gradient_nbytes += (int64_t)sizeof(float) * LORA_RANK * (linear[i][0] + linear[i][1]);
    }
    return TESS_OK;
}

/* ---- measuring ---- */

static tess_status slowest(const bench *b, double *s)
{
    int64_t ns = (int64_t)(1e9 * *s);
    if (b->comm != NULL)
        TESS_TRY(tess_comm_control(b->comm, NULL, 0, &ns, 1));
    *s = 1e-9 * (double)ns;
    return TESS_OK;
}

/* Ranks call as often as each other: no number of calls is chosen by a rank's own clock. */
static tess_status time_collective(bench *b, tess_status (*call)(void *arg), traffic *t,
                                   bench_time *out)
{
    double second[DEVICE_REPEAT_MAX];
    for (int i = -2; i < b->options.repeat_numel; i++) { /* two that warm up */
        double s = 0.0;
        TESS_TRY(bench_calls_s(&b->at, call, t, 1, &s));
        TESS_TRY(slowest(b, &s));
        second[TESS_MAX(i, 0)] = s;
    }
    const int last = b->options.repeat_numel - 1;
    qsort(second, (size_t)b->options.repeat_numel, sizeof *second, bench_by_value);
    *out = (bench_time){second[last / 2], second[last / 10], second[last - last / 10], 0.0};
    return TESS_OK;
}

static void print(const bench *b, const layer *l, const char *what, const bench_time t[2],
                  size_t shard_nbytes)
{
    const int world = b->comm != NULL ? tess_comm_world(b->comm) : 1;
    const size_t nbytes = shard_nbytes * (size_t)world;
    const double rate = 1e-9 * (double)nbytes / t[0].median_s;
    if (b->comm != NULL && tess_comm_rank(b->comm) != 0)
        return;
    printf("{\"bench\": \"gather_device\", \"what\": \"%s\", \"layer\": \"%s\", \"world\": %d, "
           "\"library\": \"%s\", \"bytes\": %zu, ",
           what, l->name, world, b->at.plugin->collectives->name, nbytes);
    bench_print_time(&b->at, &t[0], b->options.repeat_numel);
    printf(", \"gb_per_s\": %.1f, \"bus_gb_per_s\": %.1f, \"copy_gb_per_s\": %.1f}\n", rate,
           rate * (world - 1) / world, 2e-9 * (double)shard_nbytes / t[1].median_s);
    fflush(stdout);
}

static tess_status measure(bench *b, const layer *l, const char *what, int64_t nbytes,
                           tess_status (*call)(void *arg))
{
    const int world = b->comm != NULL ? tess_comm_world(b->comm) : 1;
    const size_t shard = (size_t)tess_round_up(tess_ceil_div(nbytes, world), 256);
    const size_t whole = shard * (size_t)world;
    bench_time time[2] = {0};
    void *full = NULL, *own = NULL;
    TESS_TRY(bench_take(&b->at, whole, &full));
    TESS_TRY(bench_take(&b->at, shard, &own));
    TESS_TRY(bench_draw(&b->at, full, whole, false));
    TESS_TRY(bench_draw(&b->at, own, shard, false));
    traffic t = {b, full, own, shard};
    TESS_TRY(time_collective(b, call, &t, &time[0]));
    TESS_TRY(bench_measure(&b->at, copy, &t, b->options.repeat_numel, &time[1]));
    print(b, l, what, time, shard);
    b->at.device->ops->release(b->at.device, TESS_DEVICE, full, whole);
    b->at.device->ops->release(b->at.device, TESS_DEVICE, own, shard);
    return TESS_OK;
}

static tess_status join(bench *b)
{
    uint8_t id[TESS_CUDA_UNIQUE_ID_NBYTES] = {0};
    const tess_gpu_collectives *c = b->at.plugin->collectives;
    const int rank = b->comm != NULL ? tess_comm_rank(b->comm) : 0;
    tess_status st = TESS_OK;
    if (c == NULL)
        st = TESS_FAIL(TESS_E_UNSUPPORTED, "the CUDA part was built without a collective library");
    else if (rank == 0)
        st = c->unique_id(id);
    if (b->comm != NULL) {
        TESS_TRY(tess_agree(b->comm, st));
        TESS_TRY(tess_comm_bcast(b->comm, 0, id, sizeof id));
    }
    TESS_TRY(st);
    TESS_TRY(c->join(b->at.device, id, rank, b->comm != NULL ? tess_comm_world(b->comm) : 1,
                     "bench", &b->group));
    return settle(b);
}

static tess_status run(bench *b)
{
    static const tess_deadlines deadlines = {.start_s = 120.0, .collective_s = 120.0};
    if (tess_comm_is_launched())
        TESS_TRY(tess_comm_create_mpi(NULL, NULL, TESS_COMM_THREAD_OFF, &deadlines, &b->comm));
    tess_status st = TESS_OK;
    if (b->comm != NULL)
        b->options.index += tess_comm_node_rank(b->comm);
    st = bench_open(&b->options, &b->at);
    if (b->comm != NULL)
        st = tess_agree(b->comm, st);
    TESS_TRY(st);
    TESS_TRY(join(b));
    for (int i = 0; i < b->layer_numel; i++) {
        int64_t base = 0, gradient = 0;
        TESS_TRY(sizes(b->layer[i], &base, &gradient));
        TESS_TRY(measure(b, b->layer[i], "gather", base, gather));
        TESS_TRY(measure(b, b->layer[i], "reduce_scatter", gradient, reduce));
    }
    b->at.plugin->collectives->leave(b->group);
    tess_comm_destroy(&b->comm);
    return TESS_OK;
}

static tess_status add(bench *b, const char *name)
{
    for (int i = 0; i < TESS_NELEM(layers) && b->layer_numel < LAYER_MAX; i++)
        if (strcmp(layers[i].name, name) == 0) {
            b->layer[b->layer_numel++] = &layers[i];
            return TESS_OK;
        }
    return TESS_FAIL(TESS_E_ARG, "--layer '%s': expected 70b, 8b or tiny", name);
}

static tess_status parse(int argc, char **argv, bench *b)
{
    for (int i = 1; i < argc; i += 2) {
        TESS_CHECK(i + 1 < argc, TESS_E_ARG, "option '%s' has no value", argv[i]);
        if (bench_option_set(&b->options, argv[i], argv[i + 1]))
            continue;
        TESS_CHECK(strcmp(argv[i], "--layer") == 0, TESS_E_ARG,
                   "unknown option '%s' (usage: head of bench_gather_device.c)", argv[i]);
        TESS_TRY(add(b, argv[i + 1]));
    }
    TESS_CHECK(b->options.plugin != NULL, TESS_E_ARG, "--plugin LIBRARY is missing");
    if (b->layer_numel == 0) {
        TESS_TRY(add(b, "70b"));
        TESS_TRY(add(b, "8b"));
    }
    return TESS_OK;
}

int main(int argc, char **argv)
{
    bench b = {.options = {.thread_numel = 1, .repeat_numel = 20}};
    tess_status st = parse(argc, argv, &b);
    if (st == TESS_OK)
        st = run(&b);
    if (st == TESS_OK)
        return 0;
    fprintf(stderr, "bench_gather_device: %s\n", tess_error_message());
    if (b.comm != NULL) /* others may wait */
        tess_comm_abort(b.comm, tess_status_exit_code(st));
    return tess_status_exit_code(st);
}
