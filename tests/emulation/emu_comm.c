/*
 * Communicators between emulated ranks, over device memory and over the host's.
 *
 * A data collective sits in the queue of each of its ranks. It starts on a rank when it is in front
 * of the stream there; it runs, on all ranks at once, when it has started on all of them. Host
 * collectives meet in the group: the last rank to come does the work.
 */
#include "emulation/emu_comm.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/arith.h"

static emu_comm *ours(tess_comm *c) { return (emu_comm *)(void *)c; }
static const emu_comm *ours_const(const tess_comm *c) { return (const emu_comm *)(const void *)c; }

/* ---- host collectives ---- */

static void sum_up(const emu_group *g, const emu_meeting *first)
{
    for (int i = 0; i < first->sum_numel; i++) {
        uint64_t total = 0;
        for (int r = 0; r < g->rank_numel; r++)
            total += (uint64_t)g->meeting[r]->sum[i];
        for (int r = 0; r < g->rank_numel; r++)
            g->meeting[r]->sum[i] = (int64_t)total;
    }
    for (int i = 0; i < first->max_numel; i++) {
        int64_t most = first->max[i];
        for (int r = 1; r < g->rank_numel; r++)
            most = TESS_MAX(most, g->meeting[r]->max[i]);
        for (int r = 0; r < g->rank_numel; r++)
            g->meeting[r]->max[i] = most;
    }
}

static void complete(emu_world *w, const emu_group *g)
{
    const emu_meeting *first = g->meeting[0];
    for (int r = 1; r < g->rank_numel; r++) {
        const emu_meeting *m = g->meeting[r];
        if (strcmp(m->what, first->what) == 0 && m->sum_numel == first->sum_numel &&
            m->max_numel == first->max_numel && m->root_rank == first->root_rank &&
            m->nbytes == first->nbytes)
            continue;
        emu_fail(w, "rank %d is in %s of %zu bytes, rank %d in %s of %zu", g->first_rank,
                 first->what, first->nbytes, g->first_rank + r, m->what, m->nbytes);
        return;
    }
    sum_up(g, first);
    const emu_meeting *root = g->meeting[first->root_rank];
    for (int r = 0; r < g->rank_numel && first->nbytes > 0; r++) {
        if (first->src != NULL)
            memcpy((char *)root->data + (size_t)r * first->nbytes, g->meeting[r]->src,
                   first->nbytes);
        else if (r != first->root_rank)
            memcpy(g->meeting[r]->data, root->data, first->nbytes);
    }
}

typedef struct awaited {
    const emu_group *group;
    uint64_t round;
} awaited;

static bool is_over(const void *arg)
{
    const awaited *a = arg;
    return a->group->round > a->round;
}

static tess_status meet(tess_comm *base, const emu_meeting *m)
{
    emu_comm *c = ours(base);
    emu_group *g = c->group;
    const awaited a = {g, g->round};
    TESS_CHECK(!c->device->world->is_failed, TESS_E_COMM, "%s", c->device->world->failure);
    g->meeting[base->rank] = m;
    if (++g->met_numel == g->rank_numel) {
        complete(c->device->world, g);
        g->met_numel = 0;
        g->round++;
    }
    return emu_block(c->device, m->what, is_over, &a);
}

static tess_status comm_control(tess_comm *base, int64_t *sum, int sum_numel, int64_t *max,
                                int max_numel)
{
    const emu_meeting m = {
        .what = "control", .sum = sum, .max = max, .sum_numel = sum_numel, .max_numel = max_numel};
    return meet(base, &m);
}

static tess_status comm_bcast(tess_comm *base, int root_rank, void *data, size_t nbytes)
{
    const emu_meeting m = {.what = "bcast", .root_rank = root_rank, .data = data, .nbytes = nbytes};
    return meet(base, &m);
}

static tess_status comm_gather_bytes(tess_comm *base, int root_rank, const void *src, size_t nbytes,
                                     void *dst)
{
    const emu_meeting m = {
        .what = "gather_bytes", .root_rank = root_rank, .src = src, .data = dst, .nbytes = nbytes};
    return meet(base, &m);
}

/* ---- data collectives: enqueueing ---- */

static tess_status begin(tess_comm *base, const tess_wire *wire, tess_stream *stream, emu_op **out)
{
    emu_comm *c = ours(base);
    emu_stream *s = NULL;
    char what[EMU_WHAT_NBYTES];
    snprintf(what, sizeof what, "%s %.60s", tess_comm_op_name(wire->op), wire->name);
    TESS_TRY(emu_stream_of(what, stream, &s));
    TESS_TRY(emu_begin(s, EMU_OP_COLLECTIVE, what, out));
    emu_collective *k = calloc(1, sizeof *k);
    *k = (emu_collective){.comm = c, .stream = stream == base->gather ? 0 : 1, .wire = *wire};
    (*out)->collective = k;
    (*out)->issue = c->device->issue_numel++;
    return TESS_OK;
}

static tess_piece *copy_pieces(const tess_piece *list, int numel)
{
    tess_piece *copy = calloc((size_t)numel + 1, sizeof *copy);
    if (numel > 0)
        memcpy(copy, list, (size_t)numel * sizeof *copy);
    return copy;
}

/* The own row of a gather is not written where the shard lies in it already. */
static void touch_rows(const emu_comm *c, uint32_t entry, tess_view shard, tess_view full)
{
    for (int r = 0; r < c->base.world; r++) {
        const tess_view row = tess_view_slice(full, r * shard.numel, shard.numel);
        if (row.data != shard.data)
            emu_touch_view(c->device, entry, row, EMU_WRITE);
    }
}

static tess_status comm_all_gather(tess_comm *base, const tess_wire *wire, tess_view shard,
                                   tess_view full, tess_stream *s)
{
    emu_comm *c = ours(base);
    emu_op *op = NULL;
    TESS_TRY(begin(base, wire, s, &op));
    op->collective->shard = shard;
    op->collective->full = full;
    emu_touch_view(c->device, op->entry, shard, EMU_READ);
    touch_rows(c, op->entry, shard, full);
    return emu_enqueue((emu_stream *)(void *)s, op);
}

/* Pieces have no order among them; here they run one after another. */
static tess_status comm_all_gather_list(tess_comm *base, const tess_gather_piece *pieces,
                                        int piece_numel, tess_view full, tess_stream *s)
{
    for (int i = 0; i < piece_numel; i++)
        TESS_TRY(comm_all_gather(base, pieces[i].wire, pieces[i].shard,
                                 tess_gather_piece_rows(base, &pieces[i], full), s));
    return TESS_OK;
}

static tess_status comm_exchange(tess_comm *base, const tess_wire *wire,
                                 const tess_comm_exchange_args *a, tess_stream *s)
{
    emu_comm *c = ours(base);
    emu_op *op = NULL;
    TESS_TRY(begin(base, wire, s, &op));
    emu_collective *k = op->collective;
    k->sends = copy_pieces(a->sends, a->send_numel);
    k->receives = copy_pieces(a->receives, a->receive_numel);
    k->send_numel = a->send_numel;
    k->receive_numel = a->receive_numel;
    for (int i = 0; i < k->send_numel; i++)
        emu_touch_view(c->device, op->entry, k->sends[i].view, EMU_READ);
    for (int i = 0; i < k->receive_numel; i++)
        emu_touch_view(c->device, op->entry, k->receives[i].view, EMU_WRITE);
    return emu_enqueue((emu_stream *)(void *)s, op);
}

static tess_status comm_reduce_scatter(tess_comm *base, const tess_wire *wire, tess_view full,
                                       tess_view shard, tess_stream *s)
{
    emu_comm *c = ours(base);
    emu_op *op = NULL;
    TESS_TRY(begin(base, wire, s, &op));
    op->collective->shard = shard;
    op->collective->full = full;
    emu_touch_view(c->device, op->entry, full, EMU_READ);
    emu_touch_view(c->device, op->entry, shard, EMU_WRITE);
    return emu_enqueue((emu_stream *)(void *)s, op);
}

void emu_collective_destroy(emu_collective *k)
{
    free(k->sends);
    free(k->receives);
    free(k);
}

/* ---- data collectives: running ---- */

static emu_stream *stream_at(const emu_collective *k, int member)
{
    const tess_comm *c = &k->comm->group->comm[member]->base;
    return (emu_stream *)(void *)(k->stream == 0 ? c->gather : c->reduce);
}

bool emu_collective_is_met(const emu_collective *k)
{
    const emu_group *g = k->comm->group;
    for (int r = 0; r < g->rank_numel; r++) {
        if (g->comm[r] == NULL)
            return false;
        const emu_stream *s = stream_at(k, r);
        const emu_device *d = s->device;
        if (s->head == NULL || s->head->kind != EMU_OP_COLLECTIVE)
            return false;
        if (d->world->options.is_serial && s->head->issue != d->issued_done_numel)
            return false;
    }
    return true;
}

/* The collective as each rank enqueued it. */
typedef struct party {
    const emu_collective *k[EMU_RANK_MAX];
    emu_device *d[EMU_RANK_MAX];
    uint32_t entry[EMU_RANK_MAX];
    int numel;
} party;

static bool is_same(const emu_collective *a, const emu_collective *b)
{
    return a->wire.op == b->wire.op && a->wire.entry_idx == b->wire.entry_idx &&
           a->wire.wire == b->wire.wire && a->wire.numel_per_rank == b->wire.numel_per_rank;
}

static void deliver(const party *p, int to, tess_view dst, int from, tess_view src)
{
    emu_deliver(p->d[to], p->entry[to], dst, emu_source(p->d[from], src));
}

static void run_all_gather(const party *p)
{
    for (int to = 0; to < p->numel; to++)
        for (int from = 0; from < p->numel; from++) {
            const int64_t numel = p->k[to]->shard.numel;
            const tess_view row = tess_view_slice(p->k[to]->full, from * numel, numel);
            if (numel > 0 && row.data != p->k[to]->shard.data)
                deliver(p, to, row, from, p->k[from]->shard);
        }
}

static const tess_piece *next_piece(const tess_piece *list, int numel, int peer, int *at)
{
    while (*at < numel && (list[*at].peer_rank != peer || list[*at].view.numel == 0))
        ++*at;
    return *at < numel ? &list[(*at)++] : NULL;
}

static void run_exchange(const party *p)
{
    for (int from = 0; from < p->numel; from++)
        for (int to = 0; to < p->numel; to++) {
            int i = 0, j = 0;
            for (;;) {
                const tess_piece *s = next_piece(p->k[from]->sends, p->k[from]->send_numel, to, &i);
                const tess_piece *r =
                    next_piece(p->k[to]->receives, p->k[to]->receive_numel, from, &j);
                if (s == NULL && r == NULL)
                    break;
                if (s == NULL || r == NULL || s->view.numel != r->view.numel) {
                    emu_fail(p->d[0]->world, "exchange '%s': what %d sends is not what %d expects",
                             p->k[0]->wire.name, from, to);
                    return;
                }
                deliver(p, to, r->view, from, s->view);
            }
        }
}

/* Every rank adds in an order of its own, as a ring does. */
static void run_reduce_scatter(const party *p)
{
    for (int to = 0; to < p->numel; to++) {
        const tess_view shard = p->k[to]->shard;
        float *sum = calloc((size_t)shard.numel + 1, sizeof *sum);
        for (int i = 0; i < p->numel; i++) {
            const int from = (to + 1 + i) % p->numel;
            const float *row = (const float *)(const void *)emu_source(
                p->d[from], tess_view_slice(p->k[from]->full, to * shard.numel, shard.numel));
            for (int64_t e = 0; e < shard.numel; e++)
                sum[e] += row[e];
        }
        if (shard.numel > 0)
            emu_deliver(p->d[to], p->entry[to], shard, (const char *)sum);
        free(sum);
    }
}

void emu_collective_run(const emu_collective *any)
{
    const emu_group *g = any->comm->group;
    emu_stream *stream[EMU_RANK_MAX] = {0};
    party p = {.numel = g->rank_numel};
    for (int r = 0; r < g->rank_numel; r++) {
        stream[r] = stream_at(any, r);
        p.k[r] = stream[r]->head->collective;
        p.d[r] = stream[r]->device;
        p.entry[r] = stream[r]->head->entry;
        if (is_same(p.k[0], p.k[r]))
            continue;
        emu_fail(p.d[r]->world, "rank %d is in '%s', rank %d in '%s'", g->first_rank,
                 p.d[0]->entry[p.entry[0] - 1].what, g->first_rank + r,
                 p.d[r]->entry[p.entry[r] - 1].what);
        return;
    }
    if (any->wire.op == TESS_COMM_ALL_GATHER)
        run_all_gather(&p);
    else if (any->wire.op == TESS_COMM_EXCHANGE)
        run_exchange(&p);
    else
        run_reduce_scatter(&p);
    for (int r = 0; r < g->rank_numel; r++) {
        p.d[r]->issued_done_numel++;
        emu_retire(stream[r]);
    }
}

/* ---- communicators ---- */

static emu_group *find_group(emu_world *w, const emu_group *wanted)
{
    emu_group *g = w->groups;
    while (g != NULL && !(g->parent == wanted->parent && g->split_idx == wanted->split_idx &&
                          g->color == wanted->color && g->is_host == wanted->is_host))
        g = g->next;
    if (g != NULL)
        return g;
    g = calloc(1, sizeof *g);
    *g = *wanted;
    g->next = w->groups;
    w->groups = g;
    return g;
}

void emu_groups_destroy(emu_world *w)
{
    while (w->groups != NULL) {
        emu_group *next = w->groups->next;
        free(w->groups);
        w->groups = next;
    }
}

static const tess_comm_ops comm_ops;

/* A communicator of one space; `host` is its twin for host memory, NULL: it is one. */
static tess_status create_one(emu_device *d, const emu_group *wanted, tess_comm *host,
                              tess_comm **out)
{
    emu_stream *stream[2] = {0};
    char name[2][24];
    emu_group *g = find_group(d->world, wanted);
    const char *where = g->is_host ? "host " : "", *who = g->parent != NULL ? "group " : "";
    for (int i = 0; i < 2; i++) {
        snprintf(name[i], sizeof name[i], "%s%s%s", who, where, i == 0 ? "gather" : "reduce");
        TESS_TRY(emu_stream_create(d, name[i], &stream[i]));
    }
    emu_comm *c = calloc(1, sizeof *c);
    c->base = (tess_comm){.ops = &comm_ops,
                          .rank = d->rank - g->first_rank,
                          .world = g->rank_numel,
                          .first_world_rank = g->first_rank,
                          .space = g->is_host ? TESS_HOST : TESS_DEVICE,
                          .host = host,
                          .gather = &stream[0]->base,
                          .reduce = &stream[1]->base};
    snprintf(c->base.name, sizeof c->base.name, g->is_host ? "emulated host" : "emulated");
    c->device = d;
    c->group = g;
    g->comm[c->base.rank] = c;
    *out = &c->base;
    return tess_comm_ops_check(&comm_ops, c->base.name);
}

static tess_status create_pair(emu_device *d, emu_group wanted, tess_comm **out)
{
    tess_comm *host = NULL;
    wanted.is_host = true;
    TESS_TRY(create_one(d, &wanted, NULL, &host));
    wanted.is_host = false;
    return create_one(d, &wanted, host, out);
}

tess_status emu_comm_create(emu_device *d, tess_comm **out)
{
    return create_pair(d, (emu_group){.rank_numel = d->world->options.rank_numel}, out);
}

static tess_status comm_split_group(tess_comm *base, int group_numel, tess_comm **out)
{
    emu_comm *c = ours(base);
    const emu_group wanted = {.parent = c->group,
                              .split_idx = c->split_numel++,
                              .color = base->rank / group_numel,
                              .first_rank = c->device->rank - base->rank % group_numel,
                              .rank_numel = group_numel};
    TESS_TRY(create_pair(c->device, wanted, out));
    (*out)->is_checking = base->is_checking;
    return TESS_OK;
}

static void comm_destroy(tess_comm *base)
{
    emu_comm *c = ours(base);
    tess_comm_destroy(&base->host);
    const bool was_well = tess_error_status() == TESS_OK;
    if (!c->device->world->is_failed && meet(base, &(emu_meeting){.what = "destroy"}) != TESS_OK &&
        was_well)
        tess_error_clear(); /* a destructor does not fail */
    c->group->comm[base->rank] = NULL;
    emu_stream_destroy((emu_stream *)(void *)base->gather);
    emu_stream_destroy((emu_stream *)(void *)base->reduce);
    free(c);
}

static void comm_abort(tess_comm *base, int exit_code)
{
    emu_fail(ours(base)->device->world, "rank %d aborts with code %d", ours(base)->device->rank,
             exit_code);
}

static double comm_blocked_s(const tess_comm *base)
{
    (void)base;
    return 0.0; /* there is no time here */
}

static void comm_dump(const tess_comm *base, int fd)
{
    tess_fd_line(fd, "emulated rank %d", ours_const(base)->device->rank);
}

static void comm_describe(const tess_comm *base, int fd) { comm_dump(base, fd); }

static void comm_set_checking(tess_comm *base, bool is_on) { base->is_checking = is_on; }

static const tess_comm_ops comm_ops = {
    .all_gather = comm_all_gather,
    .all_gather_list = comm_all_gather_list,
    .exchange = comm_exchange,
    .reduce_scatter = comm_reduce_scatter,
    .control = comm_control,
    .bcast = comm_bcast,
    .gather_bytes = comm_gather_bytes,
    .split_group = comm_split_group,
    .destroy = comm_destroy,
    .abort = comm_abort,
    .blocked_s = comm_blocked_s,
    .dump = comm_dump,
    .describe = comm_describe,
    .set_checking = comm_set_checking,
};
