/**
 * Communicator `staged`: memory of a device through pinned host memory and the host communicator's
 * engine, a chunk per peer and round. For several ranks on one device and for machines without a
 * library of collectives.
 */
#include <stdio.h>
#include <string.h>

#include "core/arith.h"
#include "core/device.h"
#include "core/memory.h"
#include "dist/alarm_priv.h"
#include "dist/gpu.h"
#include "dist/over_priv.h"

/* Both directions of all peers share so much pinned memory; a peer's chunk has bounds of its own.
 */
enum { ROOM_NBYTES = 32 << 20, CHUNK_LEAST_NBYTES = 64 << 10, CHUNK_MOST_NBYTES = 4 << 20 };

/* Where a flow of pieces to or from one peer stands. */
typedef struct flow {
    int list_idx;        /* piece to go on with */
    size_t at_nbytes;    /* done of it */
    size_t round_nbytes; /* of the flow in this round */
} flow;

typedef struct staged_comm {
    over_comm over;  /* first */
    engine *engine;  /* of the host communicator; NULL: it has none to tell others by */
    bool owns_alarm; /* the engine's: groups share it */
    size_t chunk_nbytes;
    tess_arena *arena;
    char *give;           /* [world, chunk_nbytes] pinned */
    char *take;           /* [world, chunk_nbytes] pinned */
    tess_stream gather;   /* runs at once: its work is done when a call returns */
    tess_stream reduce;   /* same */
    tess_stream *copying; /* of the device */
    flow *send;           /* [world] */
    flow *receive;        /* [world] */
    tess_piece *pieces;   /* [2 * world] */
} staged_comm;

static tess_status staged_create(tess_comm *host, bool owns_host, tess_device *d,
                                 size_t chunk_nbytes, tess_comm **out);

static staged_comm *staged_of(tess_comm *comm) { return (staged_comm *)comm; }

/* The host communicator's stream of the same kind. */
static tess_stream *host_stream(const staged_comm *c, const tess_stream *s)
{
    return s == &c->gather ? c->over.base.host->gather : c->over.base.host->reduce;
}

static tess_status copy(const staged_comm *c, tess_view dst, tess_view src)
{
    return tess_device_copy(c->over.device, dst, src, c->copying);
}

/* A copy that fails on this rank alone, in the middle of a collective: peers wait for its part, so
 * the collective has failed for all, with this cause. */
static tess_status settle(staged_comm *c, const tess_wire *wire, tess_status st)
{
    if (st == TESS_OK || c->engine == NULL)
        return st;
    if (engine_verdict(c->engine) == TESS_OK) {
        char text[ENGINE_FAILURE_NBYTES];
        snprintf(text, sizeof text, "rank %d: '%s' through host memory: %.1200s",
                 tess_comm_launch_rank(&c->over.base), wire->name, tess_error_message());
        tess_error_clear(); /* what all ranks will say replaces it */
        engine_alarm_raise(c->engine, TESS_E_COMM, text);
    }
    return engine_verdict(c->engine);
}

/* ---- rows ---- */

static tess_status gather_chunk(staged_comm *c, const tess_wire *wire, tess_view shard,
                                tess_view full, int64_t first_idx, tess_stream *s)
{
    const int64_t n = wire->numel_per_rank; /* of this chunk */
    const int64_t row_numel = shard.numel;
    const tess_view give = tess_view_host(c->give, n, shard.dt);
    const tess_view take = tess_view_host(c->take, n * c->over.base.world, shard.dt);
    TESS_TRY(copy(c, give, tess_view_slice(shard, first_idx, n)));
    TESS_TRY(tess_stream_finish(c->copying));
    TESS_TRY(tess_comm_all_gather(c->over.base.host, wire, give, take, s));
    TESS_TRY(tess_stream_finish(s));
    for (int r = 0; r < c->over.base.world; r++)
        TESS_TRY(copy(c, tess_view_slice(full, r * row_numel + first_idx, n),
                      tess_view_slice(take, r * n, n)));
    return tess_stream_finish(c->copying);
}

static tess_status staged_all_gather(tess_comm *comm, const tess_wire *wire, tess_view shard,
                                     tess_view full, tess_stream *s)
{
    staged_comm *c = staged_of(comm);
    const int64_t most = (int64_t)(c->chunk_nbytes / tess_dtype_block_nbytes(shard.dt));
    tess_wire part = *wire;
    tess_status st = TESS_OK;
    for (int64_t at = 0; at < shard.numel && st == TESS_OK; at += part.numel_per_rank) {
        part.numel_per_rank = TESS_MIN(most, shard.numel - at);
        st = gather_chunk(c, &part, shard, full, at, host_stream(c, s));
    }
    return settle(c, wire, st);
}

/* Every piece is done when its call returns. */
static tess_status staged_all_gather_list(tess_comm *comm, const tess_gather_piece *pieces,
                                          int piece_numel, tess_view full, tess_stream *s)
{
    for (int i = 0; i < piece_numel; i++)
        TESS_TRY(staged_all_gather(comm, pieces[i].wire, pieces[i].shard,
                                   tess_gather_piece_rows(comm, &pieces[i], full), s));
    return TESS_OK;
}

static tess_status reduce_chunk(staged_comm *c, const tess_wire *wire, tess_view full,
                                tess_view shard, int64_t first_idx, tess_stream *s)
{
    const int64_t n = wire->numel_per_rank; /* of this chunk */
    const tess_view give = tess_view_host(c->give, n * c->over.base.world, full.dt);
    const tess_view take = tess_view_host(c->take, n, full.dt);
    for (int r = 0; r < c->over.base.world; r++)
        TESS_TRY(copy(c, tess_view_slice(give, r * n, n),
                      tess_view_slice(full, r * shard.numel + first_idx, n)));
    TESS_TRY(tess_stream_finish(c->copying));
    TESS_TRY(tess_comm_reduce_scatter(c->over.base.host, wire, give, take, s));
    TESS_TRY(tess_stream_finish(s));
    TESS_TRY(copy(c, tess_view_slice(shard, first_idx, n), take));
    return tess_stream_finish(c->copying);
}

static tess_status staged_reduce_scatter(tess_comm *comm, const tess_wire *wire, tess_view full,
                                         tess_view shard, tess_stream *s)
{
    staged_comm *c = staged_of(comm);
    const int64_t most = (int64_t)(c->chunk_nbytes / tess_dtype_block_nbytes(shard.dt));
    tess_wire part = *wire;
    tess_status st = TESS_OK;
    for (int64_t at = 0; at < shard.numel && st == TESS_OK; at += part.numel_per_rank) {
        part.numel_per_rank = TESS_MIN(most, shard.numel - at);
        st = reduce_chunk(c, &part, full, shard, at, host_stream(c, s));
    }
    return settle(c, wire, st);
}

/* ---- exchange ---- */

static void flows_start(staged_comm *c, flow *flows)
{
    memset(flows, 0, (size_t)c->over.base.world * sizeof *flows);
}

/* Rounds until all flows of a list are through. */
static int64_t rounds_of(const staged_comm *c, const tess_piece *list, int numel, flow *flows)
{
    int64_t most = 0;
    for (int i = 0; i < numel; i++)
        if (list[i].peer_rank != c->over.base.rank)
            flows[list[i].peer_rank].round_nbytes += tess_view_nbytes(list[i].view);
    for (int p = 0; p < c->over.base.world; p++) {
        most =
            TESS_MAX(most, tess_ceil_div((int64_t)flows[p].round_nbytes, (int64_t)c->chunk_nbytes));
        flows[p].round_nbytes = 0;
    }
    return most;
}

/* The next chunk of one flow between the device and its room on the host. */
static tess_status move_chunk(staged_comm *c, const tess_piece *list, int numel, int peer_rank,
                              bool is_receive)
{
    flow *f = is_receive ? &c->receive[peer_rank] : &c->send[peer_rank];
    char *room = (is_receive ? c->take : c->give) + (size_t)peer_rank * c->chunk_nbytes;
    f->round_nbytes = 0;
    for (; f->list_idx < numel && f->round_nbytes < c->chunk_nbytes; f->list_idx++) {
        const tess_piece *piece = &list[f->list_idx];
        const size_t left = tess_view_nbytes(piece->view) - f->at_nbytes;
        if (piece->peer_rank != peer_rank || left == 0) {
            f->at_nbytes = 0;
            continue;
        }
        const size_t n = TESS_MIN(left, c->chunk_nbytes - f->round_nbytes);
        const tess_view near = tess_view_host(room + f->round_nbytes, (int64_t)n, TESS_U8);
        const tess_view far = {(char *)piece->view.data + f->at_nbytes, (int64_t)n, TESS_U8,
                               piece->view.space};
        TESS_TRY(is_receive ? copy(c, far, near) : copy(c, near, far));
        f->round_nbytes += n;
        if (n < left) {
            f->at_nbytes += n;
            return TESS_OK;
        }
        f->at_nbytes = 0;
    }
    return TESS_OK;
}

/* Bytes that the next move_chunk() of a receiving flow will take. */
static size_t next_nbytes(const staged_comm *c, const tess_piece *list, int numel, int peer_rank)
{
    const flow *f = &c->receive[peer_rank];
    size_t sum = 0;
    for (int i = f->list_idx; i < numel && sum < c->chunk_nbytes; i++)
        if (list[i].peer_rank == peer_rank)
            sum += tess_view_nbytes(list[i].view) - (i == f->list_idx ? f->at_nbytes : 0);
    return TESS_MIN(sum, c->chunk_nbytes);
}

static tess_piece piece_of(int peer_rank, char *data, size_t nbytes)
{
    return (tess_piece){peer_rank, tess_view_host(data, (int64_t)nbytes, TESS_U8)};
}

static tess_status exchange_round(staged_comm *c, const tess_wire *wire,
                                  const tess_comm_exchange_args *a, tess_stream *s)
{
    const int world = c->over.base.world;
    const int rank = c->over.base.rank;
    tess_piece *sends = c->pieces;
    tess_piece *receives = c->pieces + world;
    int send_numel = 0, receive_numel = 0;
    for (int p = 0; p < world; p++) {
        if (p == rank)
            continue;
        TESS_TRY(move_chunk(c, a->sends, a->send_numel, p, false));
        sends[send_numel++] =
            piece_of(p, c->give + (size_t)p * c->chunk_nbytes, c->send[p].round_nbytes);
        receives[receive_numel++] = piece_of(p, c->take + (size_t)p * c->chunk_nbytes,
                                             next_nbytes(c, a->receives, a->receive_numel, p));
    }
    TESS_TRY(tess_stream_finish(c->copying));
    TESS_TRY(
        tess_comm_exchange(c->over.base.host, wire, sends, send_numel, receives, receive_numel, s));
    TESS_TRY(tess_stream_finish(s));
    for (int p = 0; p < world; p++)
        if (p != rank)
            TESS_TRY(move_chunk(c, a->receives, a->receive_numel, p, true));
    return tess_stream_finish(c->copying);
}

/* Flows differ between ranks, the number of exchanges must not: the longest flow decides. */
static tess_status staged_exchange(tess_comm *comm, const tess_wire *wire,
                                   const tess_comm_exchange_args *args, tess_stream *s)
{
    staged_comm *c = staged_of(comm);
    tess_wire bytes = *wire;
    bytes.storage = bytes.wire = bytes.accumulate = TESS_U8;
    flows_start(c, c->send);
    flows_start(c, c->receive);
    int64_t rounds = rounds_of(c, args->sends, args->send_numel, c->send);
    rounds = TESS_MAX(rounds, rounds_of(c, args->receives, args->receive_numel, c->receive));
    TESS_TRY(tess_comm_control(c->over.base.host, NULL, 0, &rounds, 1));
    tess_status st = over_copy_own(&c->over, args, c->copying);
    if (st == TESS_OK)
        st = tess_stream_finish(c->copying);
    for (int64_t k = 0; k < rounds && st == TESS_OK; k++)
        st = exchange_round(c, &bytes, args, host_stream(c, s));
    return settle(c, wire, st);
}

/* ---- life ---- */

static void staged_destroy(tess_comm *comm)
{
    staged_comm *c = staged_of(comm);
    if (c->owns_alarm)
        engine_alarm_destroy(c->engine);
    tess_device_stream_destroy(c->over.device, &c->copying);
    tess_arena_destroy(&c->arena);
    tess_free(c->send);
    tess_free(c->receive);
    tess_free(c->pieces);
    over_fini(&c->over);
    tess_free(c);
}

static tess_status staged_split_group(tess_comm *comm, int group_numel, tess_comm **out)
{
    staged_comm *c = staged_of(comm);
    tess_comm *host = NULL;
    TESS_TRY(tess_comm_split_group(comm->host, group_numel, &host));
    tess_comm *group = NULL;
    tess_status st = staged_create(host, true, c->over.device, c->chunk_nbytes, &group);
    if (st != TESS_OK)
        tess_comm_destroy(&host);
    st = tess_agree(comm, st);
    if (st != TESS_OK) {
        tess_comm_destroy(&group);
        return st;
    }
    group->is_checking = comm->is_checking;
    *out = group;
    return TESS_OK;
}

static const tess_comm_ops staged_ops = {
    .all_gather = staged_all_gather,
    .all_gather_list = staged_all_gather_list,
    .exchange = staged_exchange,
    .reduce_scatter = staged_reduce_scatter,
    .control = over_control,
    .bcast = over_bcast,
    .gather_bytes = over_gather_bytes,
    .split_group = staged_split_group,
    .destroy = staged_destroy,
    .abort = over_abort,
    .blocked_s = over_blocked_s,
    .dump = over_dump,
    .describe = over_describe,
    .set_checking = over_set_checking,
};

static tess_status staged_fill(staged_comm *c)
{
    const int world = c->over.base.world;
    const size_t room_nbytes = (size_t)world * c->chunk_nbytes;
    void *array[3] = {NULL};
    tess_view room;
    TESS_TRY(tess_alloc_array(world, sizeof *c->send, &array[0]));
    c->send = array[0];
    TESS_TRY(tess_alloc_array(world, sizeof *c->receive, &array[1]));
    c->receive = array[1];
    TESS_TRY(tess_alloc_array(2 * (int64_t)world, sizeof *c->pieces, &array[2]));
    c->pieces = array[2];
    TESS_TRY(tess_device_arena_create(c->over.device, TESS_HOST, "staging of collectives",
                                      2 * room_nbytes, &c->arena));
    TESS_TRY(tess_arena_view(c->arena, 0, (int64_t)(2 * room_nbytes), TESS_U8, &room));
    c->give = room.data;
    c->take = c->give + room_nbytes;
    return tess_device_stream_create(c->over.device, "staging", true, &c->copying);
}

static size_t chunk_of(int world, size_t asked_nbytes)
{
    if (asked_nbytes != TESS_STAGED_CHUNK_AUTO)
        return (size_t)tess_round_up((int64_t)asked_nbytes, TESS_ARENA_ALIGN_NBYTES);
    const size_t share = ROOM_NBYTES / 2 / (size_t)world / CHUNK_LEAST_NBYTES * CHUNK_LEAST_NBYTES;
    return TESS_MIN(TESS_MAX(share, (size_t)CHUNK_LEAST_NBYTES), (size_t)CHUNK_MOST_NBYTES);
}

/* `host` stays the caller's when this fails. */
static tess_status staged_create(tess_comm *host, bool owns_host, tess_device *d,
                                 size_t chunk_nbytes, tess_comm **out)
{
    void *object = NULL;
    TESS_TRY(tess_comm_ops_check(&staged_ops, "staged"));
    TESS_TRY(tess_alloc(sizeof(staged_comm), &object));
    staged_comm *c = object;
    over_init(&c->over, &staged_ops, host, d, "staged");
    c->engine = engine_of_comm(host);
    c->chunk_nbytes = chunk_of(host->world, chunk_nbytes);
    tess_stream_init_inline(&c->gather, "gather", NULL);
    tess_stream_init_inline(&c->reduce, "reduce", NULL);
    c->over.base.gather = &c->gather;
    c->over.base.reduce = &c->reduce;
    const tess_status st = staged_fill(c);
    if (st != TESS_OK) {
        staged_destroy(&c->over.base);
        return st;
    }
    c->over.owns_host = owns_host;
    *out = &c->over.base;
    return TESS_OK;
}

tess_status tess_comm_create_staged(tess_comm *host, tess_device *d, size_t chunk_nbytes,
                                    tess_comm **out)
{
    tess_comm *comm = NULL;
    tess_status st = tess_agree(host, staged_create(host, false, d, chunk_nbytes, &comm));
    if (st == TESS_OK && staged_of(comm)->engine != NULL) {
        st = engine_alarm_create(host);
        staged_of(comm)->owns_alarm = st == TESS_OK;
    }
    if (st != TESS_OK) {
        tess_comm_destroy(&comm);
        return st;
    }
    *out = comm;
    return TESS_OK;
}
