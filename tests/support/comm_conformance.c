#include "tests/support/comm_conformance.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/memory.h"

/* Bytes in front of and behind every output that must stay as they are. */
enum { GUARD_NBYTES = 64, GUARD_BYTE = 0xa5, MAX_PIECES = 64 };

typedef struct suite {
    tess_comm *comm;
    tess_device *device;  /* whose memory the views are in, NULL: the host's */
    tess_stream *copying; /* of the device */
    int rank;
    int world;
    int failures;
} suite;

#define EXPECT(t, cond)                                                                            \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            (t)->failures++;                                                                       \
            fprintf(stderr, "%s:%d: %s rank %d of %d: not true: %s (%s)\n", __FILE__, __LINE__,    \
                    tess_comm_name((t)->comm), (t)->rank, (t)->world, #cond,                       \
                    tess_error_message());                                                         \
        }                                                                                          \
    } while (0)
#define EXPECT_OK(t, call) EXPECT(t, (call) == TESS_OK)

/* A buffer between two guards, `skew` bytes off the allocator's alignment; on a device with a
 * mirror on the host, which push() and pull() keep equal. */
typedef struct guarded {
    unsigned char *base;
    unsigned char *data;
    size_t nbytes;
    unsigned char *far; /* of the device, as long as `base`; NULL on the host */
} guarded;

static size_t guarded_span(const guarded *g)
{
    return (size_t)(g->data - g->base) + g->nbytes + GUARD_NBYTES;
}

static guarded guarded_make(suite *t, size_t nbytes, size_t skew)
{
    guarded g = {NULL, NULL, nbytes, NULL};
    void *memory = NULL;
    void *far = NULL;
    if (tess_alloc(nbytes + 2 * GUARD_NBYTES + skew, &memory) != TESS_OK)
        return g;
    g.base = memory;
    g.data = g.base + GUARD_NBYTES + skew;
    memset(g.base, GUARD_BYTE, guarded_span(&g));
    if (t->device != NULL)
        EXPECT_OK(t, t->device->ops->alloc(t->device, TESS_DEVICE, guarded_span(&g), &far));
    g.far = far;
    return g;
}

static tess_view far_view(const suite *t, const guarded *g)
{
    return (tess_view){g->far, (int64_t)guarded_span(g), TESS_U8, t->device->space};
}

static void push(suite *t, const guarded *g)
{
    if (t->device == NULL)
        return;
    const tess_view near = tess_view_host(g->base, (int64_t)guarded_span(g), TESS_U8);
    EXPECT_OK(t, tess_device_copy(t->device, far_view(t, g), near, t->copying));
    EXPECT_OK(t, tess_stream_finish(t->copying));
}

static void pull(suite *t, const guarded *g)
{
    if (t->device == NULL)
        return;
    const tess_view near = tess_view_host(g->base, (int64_t)guarded_span(g), TESS_U8);
    EXPECT_OK(t, tess_device_copy(t->device, near, far_view(t, g), t->copying));
    EXPECT_OK(t, tess_stream_finish(t->copying));
}

/* Elements at `data` of the mirror, where the communicator wants them. */
static tess_view view_of(const suite *t, const guarded *g, unsigned char *data, int64_t numel,
                         tess_dtype dt)
{
    if (t->device == NULL)
        return tess_view_host(data, numel, dt);
    return (tess_view){g->far + (data - g->base), numel, dt, t->device->space};
}

static bool guarded_is_whole(const guarded *g)
{
    for (const unsigned char *at = g->base; at < g->data; at++)
        if (*at != GUARD_BYTE)
            return false;
    for (int i = 0; i < GUARD_NBYTES; i++)
        if (g->data[g->nbytes + (size_t)i] != GUARD_BYTE)
            return false;
    return true;
}

static void guarded_free(suite *t, guarded *g)
{
    if (g->far != NULL)
        t->device->ops->release(t->device, TESS_DEVICE, g->far, guarded_span(g));
    tess_free(g->base);
}

/* A byte that depends on who made it and where it stands. */
static unsigned char pattern(int maker, int receiver, size_t at)
{
    return (unsigned char)((size_t)maker * 89 + (size_t)receiver * 31 + at * 7 + (at >> 8) * 13 +
                           1);
}

static tess_wire wire_make(tess_comm_op op, tess_dtype dt, int64_t numel_per_rank, uint32_t entry)
{
    tess_wire w = {.op = op,
                   .entry_idx = entry,
                   .storage = dt,
                   .wire = dt,
                   .accumulate = dt,
                   .numel_per_rank = numel_per_rank,
                   .numel_total = numel_per_rank,
                   .config_key = "base.format"};
    snprintf(w.name, sizeof w.name, "blk.%u/test", entry);
    return w;
}

/* ---- all_gather ---- */

static void gather_case(suite *t, size_t nbytes, size_t skew, bool is_alias)
{
    guarded full = guarded_make(t, nbytes * (size_t)t->world, skew);
    guarded shard = guarded_make(t, nbytes, skew);
    unsigned char *src = is_alias ? full.data + (size_t)t->rank * nbytes : shard.data;
    for (size_t i = 0; i < nbytes; i++)
        src[i] = pattern(t->rank, 0, i);
    const tess_wire w = wire_make(TESS_COMM_ALL_GATHER, TESS_U8, (int64_t)nbytes, 1);
    tess_stream *s = tess_comm_gather_stream(t->comm);
    const guarded *from = is_alias ? &full : &shard;
    push(t, &full);
    push(t, &shard);
    EXPECT_OK(t, tess_comm_all_gather(
                     t->comm, &w, view_of(t, from, src, (int64_t)nbytes, TESS_U8),
                     view_of(t, &full, full.data, (int64_t)nbytes * t->world, TESS_U8), s));
    EXPECT_OK(t, tess_stream_finish(s));
    pull(t, &full);
    pull(t, &shard);
    size_t wrong = 0;
    for (int r = 0; r < t->world; r++)
        for (size_t i = 0; i < nbytes; i++)
            wrong += full.data[(size_t)r * nbytes + i] != pattern(r, 0, i);
    EXPECT(t, wrong == 0);
    EXPECT(t, guarded_is_whole(&full) && guarded_is_whole(&shard));
    guarded_free(t, &full);
    guarded_free(t, &shard);
}

static void test_all_gather(suite *t)
{
    static const size_t nbytes[] = {0, 1, 3, 255, 4096, 65537, 300001};
    for (int i = 0; i < TESS_NELEM(nbytes); i++) {
        gather_case(t, nbytes[i], 0, false);
        gather_case(t, nbytes[i], 1 + (size_t)i, true);
    }
}

/* Pieces of any size, some empty, some at their row, each in a place of its own; the gaps between
 * places stay as they are. Two lists are under way at once. */
enum { LIST_NUMEL = 9, PLACE_GAP_NBYTES = 5 };

static size_t listed_nbytes(int k) { return (size_t)k * (size_t)k * (size_t)k * 997 % 70001; }

static void fill_gather_list(suite *t, const guarded *full, const guarded *shards, int list_idx,
                             tess_wire *wires, tess_gather_piece *pieces)
{
    size_t place = 0, from = 0;
    for (int k = 0; k < LIST_NUMEL; k++) {
        const size_t nbytes = listed_nbytes(k);
        const bool is_alias = k % 3 == 2;
        unsigned char *src =
            is_alias ? full->data + place + (size_t)t->rank * nbytes : shards->data + from;
        for (size_t i = 0; i < nbytes; i++)
            src[i] = pattern(t->rank, k + list_idx, i);
        wires[k] = wire_make(TESS_COMM_ALL_GATHER, TESS_U8, (int64_t)nbytes, 20 + (uint32_t)k);
        pieces[k] = (tess_gather_piece){
            &wires[k], view_of(t, is_alias ? full : shards, src, (int64_t)nbytes, TESS_U8), place};
        place += nbytes * (size_t)t->world + PLACE_GAP_NBYTES;
        from += nbytes;
    }
}

static size_t wrong_in_list(const suite *t, const guarded *full, int list_idx)
{
    size_t wrong = 0, at = 0;
    for (int k = 0; k < LIST_NUMEL; k++) {
        for (int r = 0; r < t->world; r++)
            for (size_t i = 0; i < listed_nbytes(k); i++)
                wrong += full->data[at++] != pattern(r, k + list_idx, i);
        for (int i = 0; i < PLACE_GAP_NBYTES; i++)
            wrong += full->data[at++] != GUARD_BYTE;
    }
    return wrong;
}

static void test_all_gather_list(suite *t)
{
    size_t shard_nbytes = 0;
    guarded full[2], shards[2];
    tess_wire wires[2][LIST_NUMEL];
    tess_gather_piece pieces[2][LIST_NUMEL];
    tess_stream *s = tess_comm_gather_stream(t->comm);
    for (int k = 0; k < LIST_NUMEL; k++)
        shard_nbytes += listed_nbytes(k);
    const size_t full_nbytes = shard_nbytes * (size_t)t->world + LIST_NUMEL * PLACE_GAP_NBYTES;
    for (int i = 0; i < 2; i++) {
        full[i] = guarded_make(t, full_nbytes, 3);
        shards[i] = guarded_make(t, shard_nbytes, 0);
        memset(full[i].data, GUARD_BYTE, full_nbytes);
        fill_gather_list(t, &full[i], &shards[i], i, wires[i], pieces[i]);
        push(t, &full[i]);
        push(t, &shards[i]);
    }
    for (int i = 0; i < 2; i++)
        EXPECT_OK(t,
                  tess_comm_all_gather_list(
                      t->comm, pieces[i], LIST_NUMEL,
                      view_of(t, &full[i], full[i].data, (int64_t)full_nbytes, TESS_U8_OPAQUE), s));
    EXPECT_OK(t, tess_comm_all_gather_list(
                     t->comm, NULL, 0, view_of(t, &full[0], full[0].data, 0, TESS_U8_OPAQUE), s));
    EXPECT_OK(t, tess_stream_finish(s));
    for (int i = 0; i < 2; i++) {
        pull(t, &full[i]);
        EXPECT(t, wrong_in_list(t, &full[i], i) == 0);
        EXPECT(t, guarded_is_whole(&full[i]) && guarded_is_whole(&shards[i]));
        guarded_free(t, &full[i]);
        guarded_free(t, &shards[i]);
    }
}

/* ---- exchange ---- */

/* Bytes rank a sends to rank b as its k-th piece; 0 for some pairs, many for others. */
static size_t piece_nbytes(int a, int b, int k)
{
    return (size_t)((a * 5 + b * 3 + k * 7) % 4) * 1237;
}

static int fill_lists(suite *t, tess_piece *sends, tess_piece *receives, const guarded *give_to,
                      const guarded *take_from)
{
    unsigned char *out = give_to->data;
    unsigned char *in = take_from->data;
    /* receives are listed in the opposite order of peers: only the order of one pair counts */
    int n = 0;
    for (int k = 0; k < 3; k++)
        for (int p = 0; p < t->world; p++, n++) {
            const int q = t->world - 1 - p;
            const size_t give = piece_nbytes(t->rank, p, k);
            const size_t take = piece_nbytes(q, t->rank, k);
            for (size_t i = 0; i < give; i++)
                out[i] = pattern(t->rank, p, i + (size_t)k);
            sends[n] = (tess_piece){p, view_of(t, give_to, out, (int64_t)give, TESS_U8)};
            receives[n] = (tess_piece){q, view_of(t, take_from, in, (int64_t)take, TESS_U8)};
            out += give;
            in += take + 5; /* a gap that must stay as it is */
        }
    return n;
}

static size_t count_wrong(suite *t, const tess_piece *receives, int n, const guarded *in)
{
    size_t wrong = 0;
    for (int i = 0; i < n; i++) {
        const unsigned char *at = receives[i].view.data;
        if (in->far != NULL)
            at = in->base + (at - in->far);
        const size_t nbytes = tess_view_nbytes(receives[i].view);
        for (size_t b = 0; b < nbytes; b++)
            wrong += at[b] != pattern(receives[i].peer_rank, t->rank, b + (size_t)(i / t->world));
        for (size_t b = nbytes; b < nbytes + 5; b++)
            wrong += at[b] != GUARD_BYTE;
    }
    return wrong;
}

static void test_exchange_uneven(suite *t)
{
    if (3 * t->world > MAX_PIECES)
        return;
    const size_t room = (size_t)t->world * 3 * (3 * 1237 + 5);
    guarded out = guarded_make(t, room, 3);
    guarded in = guarded_make(t, room, 1);
    tess_piece sends[MAX_PIECES];
    tess_piece receives[MAX_PIECES];
    const int n = fill_lists(t, sends, receives, &out, &in);
    const tess_wire w = wire_make(TESS_COMM_EXCHANGE, TESS_U8, (int64_t)room, 2);
    tess_stream *s = tess_comm_reduce_stream(t->comm);
    push(t, &out);
    push(t, &in);
    EXPECT_OK(t, tess_comm_exchange(t->comm, &w, sends, n, receives, n, s));
    EXPECT_OK(t, tess_comm_exchange(t->comm, &w, NULL, 0, NULL, 0, s));
    EXPECT_OK(t, tess_stream_finish(s));
    pull(t, &in);
    EXPECT(t, count_wrong(t, receives, n, &in) == 0);
    EXPECT(t, guarded_is_whole(&in));
    guarded_free(t, &in);
    guarded_free(t, &out);
}

/* One rank gives, everybody else only takes. */
static void test_exchange_one_sided(suite *t)
{
    enum { NBYTES = 70001 };
    guarded buf = guarded_make(t, NBYTES, 0);
    tess_piece sends[MAX_PIECES];
    tess_piece receive = {0, view_of(t, &buf, buf.data, NBYTES, TESS_U8)};
    int n = 0;
    if (t->rank == 0)
        for (size_t i = 0; i < NBYTES; i++)
            buf.data[i] = pattern(0, 9, i);
    for (int p = 1; t->rank == 0 && p < t->world && p < MAX_PIECES; p++)
        sends[n++] = (tess_piece){p, view_of(t, &buf, buf.data, NBYTES, TESS_U8)};
    const tess_wire w = wire_make(TESS_COMM_EXCHANGE, TESS_U8, NBYTES, 3);
    tess_stream *s = tess_comm_reduce_stream(t->comm);
    push(t, &buf);
    EXPECT_OK(t, tess_comm_exchange(t->comm, &w, sends, n, &receive, t->rank > 0, s));
    EXPECT_OK(t, tess_stream_finish(s));
    pull(t, &buf);
    size_t wrong = 0;
    for (size_t i = 0; i < NBYTES; i++)
        wrong += buf.data[i] != pattern(0, 9, i);
    EXPECT(t, wrong == 0 && guarded_is_whole(&buf));
    guarded_free(t, &buf);
}

/* ---- reduce_scatter ---- */

/* Small integers: every order of additions gives the same sum. */
static float value(int maker, int64_t row, int64_t i)
{
    return (float)((maker * 3 + row * 5 + i * 11) % 97 - 48);
}

static void reduce_case(suite *t, int64_t numel, size_t skew, bool is_alias)
{
    guarded full = guarded_make(t, (size_t)(numel * t->world) * sizeof(float), skew);
    guarded shard = guarded_make(t, (size_t)numel * sizeof(float), skew);
    for (int64_t r = 0; r < t->world; r++)
        for (int64_t i = 0; i < numel; i++) {
            const float v = value(t->rank, r, i);
            memcpy(full.data + (size_t)(r * numel + i) * sizeof v, &v, sizeof v);
        }
    unsigned char *dst =
        is_alias ? full.data + (size_t)(t->rank * numel) * sizeof(float) : shard.data;
    const tess_wire w = wire_make(TESS_COMM_REDUCE_SCATTER, TESS_F32, numel, 4);
    tess_stream *s = tess_comm_reduce_stream(t->comm);
    const guarded *to = is_alias ? &full : &shard;
    push(t, &full);
    push(t, &shard);
    EXPECT_OK(t, tess_comm_reduce_scatter(t->comm, &w,
                                          view_of(t, &full, full.data, numel * t->world, TESS_F32),
                                          view_of(t, to, dst, numel, TESS_F32), s));
    EXPECT_OK(t, tess_stream_finish(s));
    pull(t, &full);
    pull(t, &shard);
    int64_t wrong = 0;
    for (int64_t i = 0; i < numel; i++) {
        float want = 0.0f;
        float got = 0.0f;
        for (int m = 0; m < t->world; m++)
            want += value(m, t->rank, i);
        memcpy(&got, dst + (size_t)i * sizeof got, sizeof got);
        wrong += got != want;
    }
    EXPECT(t, wrong == 0 && guarded_is_whole(&full) && guarded_is_whole(&shard));
    guarded_free(t, &shard);
    guarded_free(t, &full);
}

static void test_reduce_scatter(suite *t)
{
    /* 200001 floats are several chunks of any size the engine takes */
    static const int64_t numel[] = {0, 1, 17, 2049, 200001};
    /* kernels of a device load whole elements, at multiples of their size */
    const size_t skew = t->device != NULL ? sizeof(float) : 2;
    for (int i = 0; i < TESS_NELEM(numel); i++) {
        reduce_case(t, numel[i], 0, false);
        reduce_case(t, numel[i], skew, true);
    }
}

/* ---- streams ---- */

/* gather -> event -> reduce: the exchange must see what the gather brought. */
static void test_streams_are_chained_by_events(suite *t)
{
    enum { NBYTES = 40000, ROUNDS = 12 };
    guarded full = guarded_make(t, (size_t)t->world * NBYTES, 0);
    guarded got = guarded_make(t, NBYTES, 0);
    tess_stream *g = tess_comm_gather_stream(t->comm);
    tess_stream *r = tess_comm_reduce_stream(t->comm);
    tess_event gathered;
    tess_event passed_on;
    EXPECT_OK(t, tess_event_init(&gathered, g));
    EXPECT_OK(t, tess_event_init(&passed_on, r));
    const int next = (t->rank + 1) % t->world;
    const int before = (t->rank + t->world - 1) % t->world;
    unsigned char *mine = full.data + (size_t)t->rank * NBYTES;
    for (int k = 0; k < ROUNDS; k++) {
        for (size_t i = 0; i < NBYTES; i++)
            mine[i] = pattern(t->rank, k, i);
        const tess_wire wg = wire_make(TESS_COMM_ALL_GATHER, TESS_U8, NBYTES, 5);
        const tess_wire wx = wire_make(TESS_COMM_EXCHANGE, TESS_U8, NBYTES, 6);
        /* send on the row of the rank before, two away from its maker at the receiver */
        const tess_piece send = {
            next, view_of(t, &full, full.data + (size_t)before * NBYTES, NBYTES, TESS_U8)};
        const tess_piece receive = {before, view_of(t, &got, got.data, NBYTES, TESS_U8)};
        push(t, &full);
        push(t, &got);
        EXPECT_OK(t, tess_comm_all_gather(t->comm, &wg, view_of(t, &full, mine, NBYTES, TESS_U8),
                                          view_of(t, &full, full.data, NBYTES * t->world, TESS_U8),
                                          g));
        EXPECT_OK(t, tess_event_record(&gathered, g));
        EXPECT_OK(t, tess_stream_wait(r, &gathered));
        EXPECT_OK(t, tess_comm_exchange(t->comm, &wx, &send, 1, &receive, 1, r));
        EXPECT_OK(t, tess_event_record(&passed_on, r));
        EXPECT_OK(t, tess_stream_wait(g, &passed_on)); /* the next gather writes what was sent */
        EXPECT_OK(t, tess_event_finish(&passed_on));
        pull(t, &full);
        pull(t, &got);
        const int maker = (before + t->world - 1) % t->world;
        size_t wrong = 0;
        for (size_t i = 0; i < NBYTES; i++)
            wrong += got.data[i] != pattern(maker, k, i);
        EXPECT(t, wrong == 0);
    }
    tess_event_fini(&passed_on, r);
    tess_event_fini(&gathered, g);
    EXPECT(t, guarded_is_whole(&full) && guarded_is_whole(&got));
    guarded_free(t, &got);
    guarded_free(t, &full);
}

/* An event of a host stream, one that was never recorded, and one long past. */
static void test_events_of_other_kinds(suite *t)
{
    tess_stream compute;
    tess_stream_init_inline(&compute, "compute", NULL);
    tess_stream *g = tess_comm_gather_stream(t->comm);
    tess_event ev;
    EXPECT_OK(t, tess_event_init(&ev, &compute));
    EXPECT_OK(t, tess_stream_wait(g, &ev));
    EXPECT_OK(t, tess_event_record(&ev, &compute));
    EXPECT_OK(t, tess_stream_wait(g, &ev));
    EXPECT_OK(t, tess_stream_finish(g));
    tess_event past;
    EXPECT_OK(t, tess_event_init(&past, g));
    EXPECT_OK(t, tess_event_record(&past, g));
    EXPECT_OK(t, tess_stream_wait(&compute, &past));
    EXPECT_OK(t, tess_event_finish(&past));
    tess_event_fini(&past, g);
}

/* More operations than a queue holds, nothing allocated while they are enqueued. */
static void test_enqueue_allocates_nothing_and_pushes_back(suite *t)
{
    enum { ROUNDS = 1300, NBYTES = 24 };
    guarded full = guarded_make(t, (size_t)t->world * NBYTES, 0);
    memset(full.data, t->rank, full.nbytes);
    const tess_wire w = wire_make(TESS_COMM_ALL_GATHER, TESS_U8, NBYTES, 7);
    tess_stream *g = tess_comm_gather_stream(t->comm);
    tess_stream *r = tess_comm_reduce_stream(t->comm);
    tess_event ev;
    EXPECT_OK(t, tess_event_init(&ev, g));
    push(t, &full);
    const int64_t before = tess_alloc_events();
    tess_alloc_freeze();
    for (int i = 0; i < ROUNDS; i++) {
        tess_stream *s = i % 3 == 0 ? r : g;
        EXPECT_OK(t, tess_comm_all_gather(
                         t->comm, &w,
                         view_of(t, &full, full.data + (size_t)t->rank * NBYTES, NBYTES, TESS_U8),
                         view_of(t, &full, full.data, NBYTES * t->world, TESS_U8), s));
        if (i % 5 == 0) {
            EXPECT_OK(t, tess_event_record(&ev, s));
            EXPECT_OK(t, tess_stream_wait(s == g ? r : g, &ev));
        }
    }
    EXPECT_OK(t, tess_stream_finish(g));
    EXPECT_OK(t, tess_stream_finish(r));
    tess_alloc_thaw();
    EXPECT(t, tess_alloc_events() == before);
    tess_event_fini(&ev, g);
    pull(t, &full);
    for (int k = 0; k < t->world; k++)
        EXPECT(t, full.data[(size_t)k * NBYTES + NBYTES - 1] == k);
    EXPECT(t, guarded_is_whole(&full));
    guarded_free(t, &full);
}

/* ---- host collectives ---- */

static void test_control(suite *t)
{
    enum { NUMEL = 5000 }; /* more than one record holds */
    static int64_t sum[NUMEL];
    static int64_t max[NUMEL];
    for (int i = 0; i < NUMEL; i++) {
        sum[i] = (int64_t)(i + 1) * (t->rank + 1) - ((int64_t)1 << 40);
        max[i] = i % t->world == t->rank ? i : -i - 1;
    }
    EXPECT_OK(t, tess_comm_control(t->comm, sum, NUMEL, max, NUMEL));
    int wrong = 0;
    const int64_t ranks = (int64_t)t->world * (t->world + 1) / 2;
    for (int i = 0; i < NUMEL; i++) {
        wrong += sum[i] != (i + 1) * ranks - t->world * ((int64_t)1 << 40);
        wrong += max[i] != i;
    }
    EXPECT(t, wrong == 0);
    int64_t one = INT64_MIN + t->rank;
    EXPECT_OK(t, tess_comm_control(t->comm, NULL, 0, &one, 1));
    EXPECT(t, one == INT64_MIN + t->world - 1);
    EXPECT_OK(t, tess_comm_barrier(t->comm));
}

static void test_bcast_and_gather_bytes(suite *t)
{
    enum { NBYTES = 100003 };
    guarded data = guarded_make(t, NBYTES, 1);
    guarded all = guarded_make(t, (size_t)t->world * 7, 0);
    for (int root = 0; root < t->world; root++) {
        for (size_t i = 0; i < NBYTES; i++)
            data.data[i] = t->rank == root ? pattern(root, 1, i) : 0;
        EXPECT_OK(t, tess_comm_bcast(t->comm, root, data.data, NBYTES));
        size_t wrong = 0;
        for (size_t i = 0; i < NBYTES; i++)
            wrong += data.data[i] != pattern(root, 1, i);
        EXPECT(t, wrong == 0);
        unsigned char mine[7];
        for (size_t i = 0; i < sizeof mine; i++)
            mine[i] = pattern(t->rank, root, i);
        EXPECT_OK(t, tess_comm_gather_bytes(t->comm, root, mine, sizeof mine,
                                            t->rank == root ? all.data : NULL));
        for (int r = 0; t->rank == root && r < t->world; r++)
            for (size_t i = 0; i < sizeof mine; i++)
                wrong += all.data[(size_t)r * 7 + i] != pattern(r, root, i);
        EXPECT(t, wrong == 0);
    }
    EXPECT_OK(t, tess_comm_bcast(t->comm, 0, NULL, 0));
    EXPECT(t, guarded_is_whole(&data) && guarded_is_whole(&all));
    guarded_free(t, &all);
    guarded_free(t, &data);
}

/* ---- refusals ---- */

static void expect_refusal(suite *t, tess_status got, tess_status want, const char *part)
{
    EXPECT(t, got == want);
    if (strstr(tess_error_message(), part) == NULL) {
        t->failures++;
        fprintf(stderr, "message '%s' lacks '%s'\n", tess_error_message(), part);
    }
    tess_error_clear();
}

static void test_views_are_checked_against_the_contract(suite *t)
{
    guarded data = guarded_make(t, 64 * sizeof(float), 0);
    tess_stream *s = tess_comm_gather_stream(t->comm);
    tess_wire w = wire_make(TESS_COMM_ALL_GATHER, TESS_BF16, 4, 8);
    const tess_view bf16 = view_of(t, &data, data.data, 4, TESS_BF16);
    const tess_view f32 = view_of(t, &data, data.data, 4, TESS_F32);
    const tess_view full = view_of(t, &data, data.data + 32, 4 * t->world, TESS_BF16);
    tess_error_clear();
    expect_refusal(t, tess_comm_all_gather(t->comm, &w, f32, full, s), TESS_E_DTYPE,
                   "all_gather 'blk.8/test': wire dtype bf16 but shard view is f32 (numel 4");
    expect_refusal(t, tess_comm_all_gather(t->comm, &w, f32, full, s), TESS_E_DTYPE,
                   "set base.format");
    tess_view longer = full;
    longer.numel++;
    expect_refusal(t, tess_comm_all_gather(t->comm, &w, bf16, longer, s), TESS_E_DTYPE,
                   "elements of bf16, the contract says");
    const tess_view null = {NULL, 4, TESS_BF16, bf16.space};
    expect_refusal(t, tess_comm_all_gather(t->comm, &w, null, full, s), TESS_E_ARG,
                   "shard view is NULL but has 4 elements");
    tess_view elsewhere = bf16;
    elsewhere.space = bf16.space == TESS_HOST ? TESS_DEVICE : TESS_HOST;
    expect_refusal(t, tess_comm_all_gather(t->comm, &w, elsewhere, full, s), TESS_E_ARG,
                   bf16.space == TESS_HOST ? "needs host memory" : "needs device memory");
    tess_stream other;
    tess_stream_init_inline(&other, "compute", NULL);
    expect_refusal(t, tess_comm_all_gather(t->comm, &w, bf16, full, &other), TESS_E_ARG,
                   "stream 'compute' is not a stream of communicator");
    expect_refusal(t, tess_comm_reduce_scatter(t->comm, &w, full, bf16, s), TESS_E_ARG,
                   "called reduce_scatter, but the contract (entry 8) is for all_gather");
    tess_view shifted = full;
    shifted.data = (char *)full.data + 2 * (t->rank == 0) + 8 * t->rank - 2 * (t->rank > 0);
    shifted.numel = 4;
    expect_refusal(t, tess_comm_all_gather(t->comm, &w, shifted, full, s), TESS_E_ARG,
                   "shard overlaps the full buffer but is not its row");
    w.op = TESS_COMM_REDUCE_SCATTER;
    expect_refusal(t, tess_comm_reduce_scatter(t->comm, &w, full, bf16, s), TESS_E_DTYPE,
                   "the library reduction needs f32");
    w.op = TESS_COMM_EXCHANGE;
    const tess_piece far = {t->world, bf16};
    expect_refusal(t, tess_comm_exchange(t->comm, &w, &far, 1, NULL, 0, s), TESS_E_ARG,
                   "send piece 0 names rank");
    const tess_piece own = {t->rank, bf16};
    expect_refusal(t, tess_comm_exchange(t->comm, &w, &own, 1, NULL, 0, s), TESS_E_CONTRACT,
                   "sends itself 4 elements where it expects 0");
    const tess_piece wide = {t->rank, f32};
    expect_refusal(t, tess_comm_exchange(t->comm, &w, NULL, 0, &wide, 1, s), TESS_E_DTYPE,
                   "wire dtype bf16 but receive view is f32");
    guarded_free(t, &data);
}

/* One piece that is wrong: none of the list travels. */
static void test_lists_are_checked_against_their_contracts(suite *t)
{
    guarded data = guarded_make(t, 256, 0);
    tess_stream *s = tess_comm_gather_stream(t->comm);
    tess_wire w[2] = {wire_make(TESS_COMM_ALL_GATHER, TESS_U8, 4, 8),
                      wire_make(TESS_COMM_ALL_GATHER, TESS_BF16, 2, 9)};
    const int64_t full_nbytes = 8 * t->world;
    const tess_view full = view_of(t, &data, data.data, full_nbytes, TESS_U8_OPAQUE);
    tess_gather_piece list[2] = {{&w[0], view_of(t, &data, data.data + 200, 4, TESS_U8), 0},
                                 {&w[1], view_of(t, &data, data.data + 208, 2, TESS_F32), 0}};
    list[1].place_nbytes = (size_t)(4 * t->world);
    tess_error_clear();
    expect_refusal(t, tess_comm_all_gather_list(t->comm, list, 2, full, s), TESS_E_DTYPE,
                   "all_gather 'blk.9/test': wire dtype bf16 but shard view is f32");
    list[1].shard = view_of(t, &data, data.data + 208, 3, TESS_BF16);
    expect_refusal(t, tess_comm_all_gather_list(t->comm, list, 2, full, s), TESS_E_DTYPE,
                   "shard view has 3 elements of bf16, the contract says 2");
    list[1].shard.numel = 2;
    list[1].place_nbytes++;
    expect_refusal(t, tess_comm_all_gather_list(t->comm, list, 2, full, s), TESS_E_ARG,
                   "do not lie in the ");
    list[1].place_nbytes = SIZE_MAX;
    expect_refusal(t, tess_comm_all_gather_list(t->comm, list, 2, full, s), TESS_E_ARG,
                   "all_gather 'blk.9/test': ");
    expect_refusal(t, tess_comm_all_gather_list(t->comm, NULL, 2, full, s), TESS_E_ARG,
                   "a list of 2 pieces");
    guarded_free(t, &data);
}

/* ---- agreement ---- */

static void test_agree_with_each_rank_failing(suite *t)
{
    char want[64];
    tess_error_clear();
    EXPECT_OK(t, tess_agree(t->comm, TESS_OK));
    EXPECT(t, tess_error_status() == TESS_OK);
    for (int bad = 0; bad < t->world; bad++) {
        tess_status st = TESS_OK;
        tess_error_clear();
        if (t->rank >= bad) /* all above fail too; the lowest is reported */
            st = TESS_FAIL(t->rank == bad ? TESS_E_IO : TESS_E_ARG, "shard %d is gone", t->rank);
        st = tess_agree(t->comm, st);
        snprintf(want, sizeof want, "shard %d is gone", bad);
        EXPECT(t, st == TESS_E_IO && tess_error_status() == TESS_E_IO);
        EXPECT(t, strcmp(tess_error_message(), want) == 0);
        EXPECT(t, tess_error_rank() == bad);
    }
    tess_error_clear();
    const int last = t->world - 1;
    tess_status st = TESS_FAIL(t->rank == last ? TESS_E_TIMEOUT : TESS_E_IO, "from %d", t->rank);
    st = tess_agree(t->comm, st);
    snprintf(want, sizeof want, "from %d", last);
    EXPECT(t, st == TESS_E_TIMEOUT && strcmp(tess_error_message(), want) == 0);
    tess_error_clear();
    st = tess_agree(t->comm, t->rank == last ? TESS_E_MEMORY : TESS_OK); /* without a record */
    EXPECT(t, st == TESS_E_MEMORY && strcmp(tess_error_message(), "out of memory") == 0);
    tess_error_clear();
}

static void test_dump_lists_the_records(suite *t)
{
    FILE *f = tmpfile();
    EXPECT(t, f != NULL);
    if (f == NULL)
        return;
    tess_comm_dump(t->comm, fileno(f));
    rewind(f);
    char line[512];
    int lines = 0;
    bool has_gather = false;
    while (fgets(line, sizeof line, f) != NULL) {
        lines++;
        has_gather |=
            strstr(line, "all_gather 7 done") != NULL && strstr(line, "blk.7/test") != NULL;
    }
    fclose(f);
    EXPECT(t, has_gather && lines > 1000 && lines <= 4096 + 2);
    EXPECT(t, tess_comm_blocked_s(t->comm) >= 0.0);
}

int comm_conformance(tess_comm *comm) { return comm_conformance_on(comm, NULL); }

int comm_conformance_on(tess_comm *comm, tess_device *device)
{
    suite t = {comm, device, NULL, tess_comm_rank(comm), tess_comm_world(comm), 0};
    if (device != NULL)
        EXPECT_OK(&t, tess_device_stream_create(device, "test", false, &t.copying));
    test_all_gather(&t);
    test_all_gather_list(&t);
    test_exchange_uneven(&t);
    test_exchange_one_sided(&t);
    test_reduce_scatter(&t);
    test_streams_are_chained_by_events(&t);
    test_events_of_other_kinds(&t);
    test_control(&t);
    test_bcast_and_gather_bytes(&t);
    test_enqueue_allocates_nothing_and_pushes_back(&t);
    test_views_are_checked_against_the_contract(&t);
    test_lists_are_checked_against_their_contracts(&t);
    test_dump_lists_the_records(&t);
    if (tess_comm_launch_rank(comm) == tess_comm_rank(comm))
        test_agree_with_each_rank_failing(&t);
    if (device != NULL)
        tess_device_stream_destroy(device, &t.copying);
    return t.failures;
}

int comm_conformance_of_groups(tess_comm *comm, tess_device *device)
{
    suite t = {comm, device, NULL, tess_comm_rank(comm), tess_comm_world(comm), 0};
    int failures = comm_conformance_on(comm, device);
    for (int group = 1; group <= t.world; group++) {
        tess_comm *part = NULL;
        if (t.world % group != 0)
            continue;
        EXPECT_OK(&t, tess_comm_split_group(comm, group, &part));
        if (part == NULL) /* the same on all ranks */
            break;
        EXPECT(&t, tess_comm_world(part) == group);
        EXPECT(&t, tess_comm_rank(part) == t.rank % group);
        failures += comm_conformance_on(part, device);
        tess_comm_destroy(&part);
    }
    return failures + t.failures;
}
