#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "dist/comm_priv.h"

/* The list is reserved address space, so recording allocates nothing inside a step. */
enum { SPY_RECORD_NUMEL = 1 << 18 };

typedef struct spy_list {
    tess_arena *arena;
    tess_spy_record *records; /* [SPY_RECORD_NUMEL] */
    int64_t numel;
} spy_list;

typedef struct spy_comm {
    tess_comm base; /* first */
    tess_comm *inner;
    spy_list *list;
    bool owns; /* the wrapped group and nothing else; the first spy owns the list instead */
} spy_comm;

static tess_status wrap(tess_comm *inner, spy_list *list, bool owns, tess_comm **out);

static spy_comm *spy_of(tess_comm *comm) { return (spy_comm *)comm; }
static const spy_comm *spy_of_const(const tess_comm *comm) { return (const spy_comm *)comm; }

static tess_status add(spy_comm *spy, const tess_wire *wire, int64_t send_numel,
                       int64_t receive_numel, int together_numel, int send_piece_numel)
{
    TESS_CHECK(spy->list->numel < SPY_RECORD_NUMEL, TESS_E_RANGE,
               "communicator '%s' has recorded %d collectives, which is all it can; call "
               "tess_spy_clear",
               spy->base.name, (int)SPY_RECORD_NUMEL);
    tess_spy_record *r = &spy->list->records[spy->list->numel++];
    r->op = wire->op;
    r->entry_idx = wire->entry_idx;
    r->wire = wire->wire;
    r->send_numel = send_numel;
    r->receive_numel = receive_numel;
    r->send_piece_numel = send_piece_numel;
    r->world = spy->base.world;
    r->together_numel = together_numel;
    memcpy(r->name, wire->name, sizeof r->name);
    r->name[sizeof r->name - 1] = '\0';
    return TESS_OK;
}

static tess_status spy_all_gather(tess_comm *comm, const tess_wire *wire, tess_view shard,
                                  tess_view full, tess_stream *s)
{
    spy_comm *spy = spy_of(comm);
    TESS_TRY(add(spy, wire, shard.numel, full.numel - shard.numel, 1, 0));
    return tess_comm_all_gather(spy->inner, wire, shard, full, s);
}

/* A record a contract: what each of them promised is what is compared. */
static tess_status spy_all_gather_list(tess_comm *comm, const tess_gather_piece *pieces,
                                       int piece_numel, tess_view full, tess_stream *s)
{
    spy_comm *spy = spy_of(comm);
    for (int i = 0; i < piece_numel; i++) {
        const int64_t numel = pieces[i].shard.numel;
        TESS_TRY(add(spy, pieces[i].wire, numel, numel * (spy->base.world - 1), piece_numel, 0));
    }
    return tess_comm_all_gather_list(spy->inner, pieces, piece_numel, full, s);
}

static int64_t numel_of_others(const spy_comm *spy, const tess_piece *list, int list_numel)
{
    int64_t numel = 0;
    for (int i = 0; i < list_numel; i++)
        if (list[i].peer_rank != spy->base.rank)
            numel += list[i].view.numel;
    return numel;
}

static int pieces_to_others(const spy_comm *spy, const tess_piece *list, int list_numel)
{
    int numel = 0;
    for (int i = 0; i < list_numel; i++)
        numel += list[i].peer_rank != spy->base.rank && list[i].view.numel > 0;
    return numel;
}

static tess_status spy_exchange(tess_comm *comm, const tess_wire *wire,
                                const tess_comm_exchange_args *a, tess_stream *s)
{
    spy_comm *spy = spy_of(comm);
    TESS_TRY(add(spy, wire, numel_of_others(spy, a->sends, a->send_numel),
                 numel_of_others(spy, a->receives, a->receive_numel), 1,
                 pieces_to_others(spy, a->sends, a->send_numel)));
    return tess_comm_exchange(spy->inner, wire, a->sends, a->send_numel, a->receives,
                              a->receive_numel, s);
}

static tess_status spy_reduce_scatter(tess_comm *comm, const tess_wire *wire, tess_view full,
                                      tess_view shard, tess_stream *s)
{
    spy_comm *spy = spy_of(comm);
    const int64_t others_numel = full.numel - shard.numel;
    TESS_TRY(add(spy, wire, others_numel, others_numel, 1, 0));
    return tess_comm_reduce_scatter(spy->inner, wire, full, shard, s);
}

static tess_status spy_control(tess_comm *comm, int64_t *sum, int sum_numel, int64_t *max,
                               int max_numel)
{
    return tess_comm_control(spy_of(comm)->inner, sum, sum_numel, max, max_numel);
}

static tess_status spy_bcast(tess_comm *comm, int root_rank, void *data, size_t nbytes)
{
    return tess_comm_bcast(spy_of(comm)->inner, root_rank, data, nbytes);
}

static tess_status spy_gather_bytes(tess_comm *comm, int root_rank, const void *src, size_t nbytes,
                                    void *dst)
{
    return tess_comm_gather_bytes(spy_of(comm)->inner, root_rank, src, nbytes, dst);
}

static tess_status spy_split_group(tess_comm *comm, int group_numel, tess_comm **out)
{
    spy_comm *spy = spy_of(comm);
    tess_comm *group = NULL;
    TESS_TRY(tess_comm_split_group(spy->inner, group_numel, &group));
    tess_comm *wrapped = NULL;
    tess_status st = tess_agree(spy->inner, wrap(group, spy->list, true, &wrapped));
    if (st == TESS_OK) {
        *out = wrapped;
        return TESS_OK;
    }
    if (wrapped != NULL)
        tess_comm_destroy(&wrapped);
    else
        tess_comm_destroy(&group);
    return st;
}

static void list_destroy(spy_list *list)
{
    tess_arena_destroy(&list->arena);
    tess_free(list);
}

static void spy_destroy(tess_comm *comm)
{
    spy_comm *spy = spy_of(comm);
    if (spy->owns)
        tess_comm_destroy(&spy->inner);
    else
        list_destroy(spy->list);
    tess_free(spy);
}

static void spy_abort(tess_comm *comm, int exit_code)
{
    tess_comm_abort(spy_of(comm)->inner, exit_code);
}

static double spy_blocked_s(const tess_comm *comm)
{
    return tess_comm_blocked_s(spy_of_const(comm)->inner);
}

static uint64_t spy_collective_numel(const tess_comm *comm)
{
    return tess_comm_collective_numel(spy_of_const(comm)->inner);
}

static bool spy_collective_times(const tess_comm *comm, uint64_t serial, tess_comm_times *out)
{
    return tess_comm_collective_times(spy_of_const(comm)->inner, serial, out);
}

static void spy_dump(const tess_comm *comm, int fd)
{
    tess_comm_dump(spy_of_const(comm)->inner, fd);
}

static void spy_describe(const tess_comm *comm, int fd)
{
    tess_comm_describe(spy_of_const(comm)->inner, fd);
}

static void spy_set_checking(tess_comm *comm, bool is_on)
{
    tess_comm_set_checking(spy_of(comm)->inner, is_on);
}

static const tess_comm_ops spy_ops = {
    .all_gather = spy_all_gather,
    .all_gather_list = spy_all_gather_list,
    .exchange = spy_exchange,
    .reduce_scatter = spy_reduce_scatter,
    .control = spy_control,
    .bcast = spy_bcast,
    .gather_bytes = spy_gather_bytes,
    .split_group = spy_split_group,
    .destroy = spy_destroy,
    .abort = spy_abort,
    .blocked_s = spy_blocked_s,
    .dump = spy_dump,
    .collective_numel = spy_collective_numel,
    .collective_times = spy_collective_times,
    .describe = spy_describe,
    .set_checking = spy_set_checking,
};

static tess_status wrap(tess_comm *inner, spy_list *list, bool owns, tess_comm **out)
{
    TESS_TRY(tess_comm_ops_check(&spy_ops, "spy"));
    void *memory = NULL;
    TESS_TRY(tess_alloc(sizeof(spy_comm), &memory));
    spy_comm *spy = memory;
    spy->base.ops = &spy_ops;
    spy->base.rank = inner->rank;
    spy->base.world = inner->world;
    spy->base.first_world_rank = inner->first_world_rank;
    spy->base.space = inner->space;
    spy->base.nodes = inner->host != NULL ? inner->host->nodes : inner->nodes;
    spy->base.gather = inner->gather;
    spy->base.reduce = inner->reduce;
    snprintf(spy->base.name, sizeof spy->base.name, "spy(%.24s)", inner->name);
    spy->inner = inner;
    spy->list = list;
    spy->owns = owns;
    *out = &spy->base;
    return TESS_OK;
}

static tess_status list_create(spy_list **out)
{
    void *memory = NULL;
    TESS_TRY(tess_alloc(sizeof(spy_list), &memory));
    spy_list *list = memory;
    tess_view v;
    const size_t nbytes = SPY_RECORD_NUMEL * sizeof(tess_spy_record);
    tess_status st = tess_arena_create("spy records", nbytes, &list->arena);
    if (st == TESS_OK)
        st = tess_arena_view(list->arena, 0, (int64_t)nbytes, TESS_U8, &v);
    if (st != TESS_OK) {
        list_destroy(list);
        return st;
    }
    list->records = v.data;
    *out = list;
    return TESS_OK;
}

tess_status tess_comm_create_spy(tess_comm *inner, tess_comm **out)
{
    spy_list *list = NULL;
    TESS_TRY(list_create(&list));
    const tess_status st = wrap(inner, list, false, out);
    if (st != TESS_OK)
        list_destroy(list);
    return st;
}

int64_t tess_spy_records(const tess_comm *spy, const tess_spy_record **records)
{
    if (spy->ops != &spy_ops) {
        *records = NULL;
        return 0;
    }
    *records = spy_of_const(spy)->list->records;
    return spy_of_const(spy)->list->numel;
}

void tess_spy_clear(tess_comm *spy)
{
    if (spy->ops == &spy_ops)
        spy_of(spy)->list->numel = 0;
}
