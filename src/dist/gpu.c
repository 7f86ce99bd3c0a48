/** Communicator `gpu`: thin over a library of collectives between devices; see gpu.h. */
#include "dist/gpu.h"

#include <inttypes.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "core/clock.h"
#include "core/memory.h"
#include "dist/alarm_priv.h"
#include "dist/over_priv.h"

enum { MARK_NUMEL = 256, LANE_NUMEL = TESS_COMM_STREAM_NUMEL, COMM_MAX = 8 };

/* The point after one collective of a lane. */
typedef struct gpu_mark {
    tess_event event;
    uint64_t record_serial;
    tess_comm_op op;
    uint32_t entry_idx;
    char name[64];
} gpu_mark;

/* One stream and the library's group that runs on it. */
typedef struct gpu_lane {
    tess_stream *stream;
    tess_gpu_group *group;
    gpu_mark mark[MARK_NUMEL]; /* ring of collectives under way */
    uint64_t first;            /* oldest that is not known to be done */
    uint64_t last;             /* collectives so far */
} gpu_lane;

typedef struct gpu_comm gpu_comm;

/* What the communicators of one device share. */
typedef struct gpu_link {
    int refs;
    tess_device *device;
    const tess_gpu_collectives *library;
    engine *engine; /* of the host communicator */
    tess_deadlines deadlines;
    gpu_comm *comm[COMM_MAX]; /* as made: parents stand before what was split from them */
    int comm_numel;
    bool is_warm; /* a collective is done: collective_s applies */
    bool is_aborted;
    double moved_s; /* last time one was done */
    double blocked_s;
    int launch_rank;
} gpu_link;

struct gpu_comm {
    over_comm over; /* first */
    gpu_link *link;
    gpu_lane lane[LANE_NUMEL]; /* gather, reduce */
};

static gpu_comm *gpu_of(tess_comm *comm) { return (gpu_comm *)comm; }

/* ---- failures ---- */

/* All groups of the device at once: kernels of one may wait for those of another. */
static void abort_groups(gpu_link *l)
{
    tess_gpu_group *group[COMM_MAX * LANE_NUMEL];
    int numel = 0;
    if (l->is_aborted)
        return;
    l->is_aborted = true;
    for (int k = 0; k < l->comm_numel; k++)
        for (int i = 0; i < LANE_NUMEL; i++)
            if (l->comm[k]->lane[i].group != NULL)
                group[numel++] = l->comm[k]->lane[i].group;
    l->library->abort_all(group, numel);
}

/* TESS_OK, or the first cause, whoever found it. */
static tess_status verdict(gpu_link *l)
{
    const tess_status st = engine_verdict(l->engine);
    if (st != TESS_OK)
        abort_groups(l);
    return st;
}

static tess_status fail(gpu_link *l, tess_status st, const char *fmt, ...) TESS_PRINTF(3, 4);

static tess_status fail(gpu_link *l, tess_status st, const char *fmt, ...)
{
    char text[ENGINE_FAILURE_NBYTES];
    va_list args;
    va_start(args, fmt);
    (void)vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    tess_error_clear(); /* what all ranks will say replaces it */
    engine_alarm_raise(l->engine, st, text);
    return verdict(l);
}

/* A call of the library failed: the record has its text. */
static tess_status library_failed(gpu_link *l, const char *doing)
{
    char text[TESS_ERROR_MESSAGE_NBYTES];
    snprintf(text, sizeof text, "%s", tess_error_message());
    return fail(l, TESS_E_COMM, "rank %d: %s, %s: %.1200s", l->launch_rank, l->library->name, doing,
                text);
}

static double limit_s(const gpu_link *l)
{
    return l->is_warm ? l->deadlines.collective_s : l->deadlines.start_s;
}

/* ---- progress ---- */

/* The engine's lock is held. */
static void advance(gpu_link *l)
{
    for (int k = 0; k < l->comm_numel; k++)
        for (int i = 0; i < LANE_NUMEL; i++) {
            gpu_lane *lane = &l->comm[k]->lane[i];
            for (; lane->first < lane->last; lane->first++) {
                const gpu_mark *mark = &lane->mark[lane->first % MARK_NUMEL];
                bool is_reached = false;
                if (tess_event_query(&mark->event, &is_reached) != TESS_OK || !is_reached)
                    break;
                engine_record_mark(l->engine, mark->record_serial, ENGINE_DONE);
                l->moved_s = tess_clock_s();
                l->is_warm = true;
            }
        }
}

/* Any communicator's oldest collective that is under way; NULL: none. */
static const gpu_mark *oldest(const gpu_link *l, const gpu_comm **comm, const gpu_lane **lane)
{
    for (int k = 0; k < l->comm_numel; k++)
        for (int i = 0; i < LANE_NUMEL; i++) {
            const gpu_lane *at = &l->comm[k]->lane[i];
            if (at->first == at->last)
                continue;
            *comm = l->comm[k];
            *lane = at;
            return &at->mark[at->first % MARK_NUMEL];
        }
    return NULL;
}

static tess_status expire(gpu_link *l, double waited_s)
{
    const gpu_comm *comm = NULL;
    const gpu_lane *lane = NULL;
    const gpu_mark *mark = oldest(l, &comm, &lane);
    return fail(l, TESS_E_TIMEOUT,
                "rank %d waited %.1f s: %s '%s' (entry %u) of %s on stream %s is not done, %" PRIu64
                " after it are enqueued",
                l->launch_rank, waited_s, tess_comm_op_name(mark->op), mark->name, mark->entry_idx,
                comm->over.base.name, lane->stream->name, lane->last - lane->first - 1);
}

static tess_status poll_groups(gpu_link *l)
{
    for (int k = 0; k < l->comm_numel; k++)
        for (int i = 0; i < LANE_NUMEL; i++) {
            const gpu_lane *lane = &l->comm[k]->lane[i];
            bool is_ready = false;
            if (lane->group != NULL && l->library->poll(lane->group, &is_ready) != TESS_OK)
                return library_failed(l, lane->stream->name);
        }
    return TESS_OK;
}

static bool is_lane(const gpu_link *l, const tess_stream *s)
{
    for (int k = 0; k < l->comm_numel; k++)
        if (s == l->comm[k]->lane[0].stream || s == l->comm[k]->lane[1].stream)
            return true;
    return false;
}

/* The device's watch, see [Note: deadlines on a device]. */
static tess_status look(void *self, const tess_stream *s, double waited_s, double slice_s)
{
    gpu_link *l = self;
    const gpu_comm *comm = NULL;
    const gpu_lane *lane = NULL;
    if (pthread_mutex_trylock(&l->engine->lock) != 0)
        return TESS_OK; /* another thread looks */
    if (is_lane(l, s))
        l->blocked_s += slice_s;
    (void)engine_drive(l->engine);
    advance(l);
    const double still_s = TESS_MIN(waited_s, tess_clock_s() - l->moved_s);
    const bool is_late = still_s > limit_s(l) && oldest(l, &comm, &lane) != NULL;
    pthread_mutex_unlock(&l->engine->lock);
    TESS_TRY(verdict(l));
    TESS_TRY(poll_groups(l));
    return is_late ? expire(l, still_s) : TESS_OK;
}

/* Libraries enqueue within some 10 us; a rank that waits for its peers leaves the core. */
static void settle_pause(double waited_s)
{
    const struct timespec nap = {0, 20000};
    if (waited_s < 200e-6)
        sched_yield();
    else
        nanosleep(&nap, NULL);
}

/* What was called has been enqueued, or a group is ready, when this returns. */
static tess_status settle(gpu_link *l, tess_gpu_group *group, const char *doing)
{
    const double since_s = tess_clock_s();
    for (;;) {
        bool is_ready = false;
        if (l->library->poll(group, &is_ready) != TESS_OK)
            return library_failed(l, doing);
        if (is_ready)
            return TESS_OK;
        if (pthread_mutex_trylock(&l->engine->lock) == 0) {
            (void)engine_drive(l->engine);
            pthread_mutex_unlock(&l->engine->lock);
        }
        TESS_TRY(verdict(l));
        const double waited_s = tess_clock_s() - since_s;
        if (waited_s > limit_s(l))
            return fail(l, TESS_E_TIMEOUT, "rank %d waited %.1f s for %s: %s", l->launch_rank,
                        waited_s, l->library->name, doing);
        settle_pause(waited_s);
    }
}

/* ---- data collectives ---- */

static gpu_lane *lane_of(gpu_comm *c, const tess_stream *s)
{
    return s == c->lane[0].stream ? &c->lane[0] : &c->lane[1];
}

static engine_op_kind kind_of(tess_comm_op op)
{
    return op == TESS_COMM_ALL_GATHER ? ENGINE_ALL_GATHER
           : op == TESS_COMM_EXCHANGE ? ENGINE_EXCHANGE
                                      : ENGINE_REDUCE_SCATTER;
}

/* Room for one more mark: the oldest collective of a full lane is waited for. */
static tess_status begin(gpu_comm *c, gpu_lane *lane)
{
    TESS_TRY(verdict(c->link));
    if (lane->last - lane->first < MARK_NUMEL)
        return TESS_OK;
    TESS_TRY(tess_event_finish(&lane->mark[lane->first % MARK_NUMEL].event));
    pthread_mutex_lock(&c->link->engine->lock);
    advance(c->link);
    pthread_mutex_unlock(&c->link->engine->lock);
    return TESS_OK;
}

/* `st`: of the library's calls. */
static tess_status end(gpu_comm *c, gpu_lane *lane, const tess_wire *wire, tess_status st)
{
    gpu_link *l = c->link;
    if (st != TESS_OK)
        return library_failed(l, wire->name);
    TESS_TRY(settle(l, lane->group, wire->name));
    engine_op op = {.kind = kind_of(wire->op), .entry_idx = wire->entry_idx, .seq = lane->last};
    snprintf(op.name, sizeof op.name, "%.95s", wire->name);
    gpu_mark *mark = &lane->mark[lane->last % MARK_NUMEL];
    const bool is_gather = lane == &c->lane[0];
    tess_stream *queue = is_gather ? c->over.base.host->gather : c->over.base.host->reduce;
    pthread_mutex_lock(&l->engine->lock);
    mark->record_serial = engine_record_add((engine_queue *)queue, &op);
    engine_record_mark(l->engine, mark->record_serial, ENGINE_STARTED);
    mark->op = wire->op;
    mark->entry_idx = wire->entry_idx;
    snprintf(mark->name, sizeof mark->name, "%.63s", wire->name);
    st = tess_event_record(&mark->event, lane->stream);
    lane->last += st == TESS_OK;
    if (st == TESS_OK)
        advance(l);
    pthread_mutex_unlock(&l->engine->lock);
    return st;
}

static tess_status gpu_all_gather(tess_comm *comm, const tess_wire *wire, tess_view shard,
                                  tess_view full, tess_stream *s)
{
    gpu_comm *c = gpu_of(comm);
    gpu_lane *lane = lane_of(c, s);
    if (shard.numel == 0)
        return verdict(c->link);
    TESS_TRY(begin(c, lane));
    return end(c, lane, wire,
               c->link->library->all_gather(lane->group, shard.data, full.data,
                                            tess_view_nbytes(shard), s));
}

/* One launch. A group that was begun is ended, whatever its calls say. */
static tess_status gpu_all_gather_list(tess_comm *comm, const tess_gather_piece *pieces,
                                       int piece_numel, tess_view full, tess_stream *s)
{
    gpu_comm *c = gpu_of(comm);
    gpu_lane *lane = lane_of(c, s);
    const tess_gpu_collectives *library = c->link->library;
    const tess_wire wire = tess_gather_list_wire(pieces, piece_numel);
    TESS_TRY(begin(c, lane));
    tess_status st = library->group_begin(lane->group);
    if (st != TESS_OK)
        return end(c, lane, &wire, st);
    for (int i = 0; i < piece_numel && st == TESS_OK; i++)
        if (pieces[i].shard.numel > 0)
            st = library->all_gather(lane->group, pieces[i].shard.data,
                                     tess_gather_piece_rows(comm, &pieces[i], full).data,
                                     tess_view_nbytes(pieces[i].shard), s);
    const tess_status closed = library->group_end(lane->group);
    return end(c, lane, &wire, st == TESS_OK ? closed : st);
}

static tess_status gpu_reduce_scatter(tess_comm *comm, const tess_wire *wire, tess_view full,
                                      tess_view shard, tess_stream *s)
{
    gpu_comm *c = gpu_of(comm);
    gpu_lane *lane = lane_of(c, s);
    if (shard.numel == 0)
        return verdict(c->link);
    TESS_TRY(begin(c, lane));
    return end(
        c, lane, wire,
        c->link->library->reduce_scatter(lane->group, full.data, shard.data, shard.numel, s));
}

/* Pieces of one pair meet in the order of their calls, which is that of the lists. */
static tess_status post_pieces(const gpu_comm *c, const gpu_lane *lane,
                               const tess_comm_exchange_args *a)
{
    const tess_gpu_collectives *library = c->link->library;
    const int rank = c->over.base.rank;
    for (int i = 0; i < a->receive_numel; i++) {
        const tess_piece *p = &a->receives[i];
        if (p->peer_rank != rank && p->view.numel > 0)
            TESS_TRY(library->receive(lane->group, p->view.data, tess_view_nbytes(p->view),
                                      p->peer_rank, lane->stream));
    }
    for (int i = 0; i < a->send_numel; i++) {
        const tess_piece *p = &a->sends[i];
        if (p->peer_rank != rank && p->view.numel > 0)
            TESS_TRY(library->send(lane->group, p->view.data, tess_view_nbytes(p->view),
                                   p->peer_rank, lane->stream));
    }
    return TESS_OK;
}

static tess_status gpu_exchange(tess_comm *comm, const tess_wire *wire,
                                const tess_comm_exchange_args *args, tess_stream *s)
{
    gpu_comm *c = gpu_of(comm);
    gpu_lane *lane = lane_of(c, s);
    TESS_TRY(begin(c, lane));
    TESS_TRY(over_copy_own(&c->over, args, s));
    tess_status st = c->link->library->group_begin(lane->group);
    if (st == TESS_OK) {
        st = post_pieces(c, lane, args);
        const tess_status closed = c->link->library->group_end(lane->group);
        st = st == TESS_OK ? closed : st;
    }
    return end(c, lane, wire, st);
}

/* ---- life ---- */

static const tess_comm_ops gpu_ops;

tess_status tess_comm_enroll(tess_comm *comm, tess_view memory)
{
    gpu_comm *c = gpu_of(comm);
    if (comm->ops != &gpu_ops || memory.numel == 0)
        return TESS_OK;
    for (int i = 0; i < LANE_NUMEL; i++) {
        const tess_status st =
            c->link->library->enroll(c->lane[i].group, memory.data, tess_view_nbytes(memory));
        if (st != TESS_OK)
            return library_failed(c->link, "enrolling memory");
        TESS_TRY(settle(c->link, c->lane[i].group, "enrolling memory"));
    }
    return TESS_OK;
}

/* What runs on the lane comes to its end, or all groups do. */
static void rest_lane(gpu_link *l, const gpu_lane *lane)
{
    if (lane->group != NULL && verdict(l) == TESS_OK && tess_stream_finish(lane->stream) != TESS_OK)
        abort_groups(l);
}

void tess_comm_withdraw(tess_comm *comm)
{
    if (comm == NULL || comm->ops != &gpu_ops)
        return;
    gpu_comm *c = gpu_of(comm);
    for (int i = 0; i < LANE_NUMEL; i++) {
        rest_lane(c->link, &c->lane[i]);
        c->link->library->withdraw(c->lane[i].group);
    }
}

static void unlink_comm(gpu_comm *c)
{
    gpu_link *l = c->link;
    int kept_numel = 0;
    for (int k = 0; k < l->comm_numel; k++)
        if (l->comm[k] != c)
            l->comm[kept_numel++] = l->comm[k];
    l->comm_numel = kept_numel;
}

static void link_unref(gpu_link *l)
{
    if (--l->refs > 0)
        return;
    l->device->watch = (tess_device_watch){NULL, NULL};
    engine_alarm_destroy(l->engine);
    tess_free(l);
}

static void gpu_destroy(tess_comm *comm)
{
    gpu_comm *c = gpu_of(comm);
    gpu_link *l = c->link;
    for (int i = 0; i < LANE_NUMEL; i++) {
        gpu_lane *lane = &c->lane[i];
        rest_lane(l, lane);
        l->library->leave(lane->group);
        for (int k = 0; k < MARK_NUMEL && lane->stream != NULL; k++)
            tess_event_fini(&lane->mark[k].event, lane->stream);
    }
    pthread_mutex_lock(&l->engine->lock);
    unlink_comm(c);
    pthread_mutex_unlock(&l->engine->lock);
    for (int i = 0; i < LANE_NUMEL; i++)
        tess_device_stream_destroy(l->device, &c->lane[i].stream);
    link_unref(l);
    over_fini(&c->over);
    tess_free(c);
}

static double gpu_blocked_s(const tess_comm *comm)
{
    return ((const gpu_comm *)comm)->link->blocked_s + over_blocked_s(comm);
}

static void gpu_describe(const tess_comm *comm, int fd)
{
    const gpu_comm *c = (const gpu_comm *)comm;
    over_describe(comm, fd);
    for (int i = 0; i < LANE_NUMEL; i++) {
        const gpu_lane *lane = &c->lane[i];
        if (lane->first < lane->last)
            tess_fd_line(fd, "rank %d: %" PRIu64 " collectives of %s under way on %s, first '%s'",
                         c->link->launch_rank, lane->last - lane->first, comm->name,
                         lane->stream->name, lane->mark[lane->first % MARK_NUMEL].name);
    }
}

/* An object with streams and events, not yet in a group. Local. */
static tess_status make_comm(gpu_link *l, tess_comm *host, tess_comm **out)
{
    static const char *const name[LANE_NUMEL] = {"gather", "reduce"};
    void *object = NULL;
    TESS_TRY(tess_comm_ops_check(&gpu_ops, "gpu"));
    TESS_CHECK(l->comm_numel < COMM_MAX, TESS_E_STATE,
               "%s: more than %d communicators; destroy those that are not used", l->device->name,
               COMM_MAX);
    TESS_TRY(tess_alloc(sizeof(gpu_comm), &object));
    gpu_comm *c = object;
    over_init(&c->over, &gpu_ops, host, l->device, "gpu");
    c->link = l;
    l->refs++;
    *out = &c->over.base; /* destroyed by the caller, also when this fails */
    for (int i = 0; i < LANE_NUMEL; i++) {
        TESS_TRY(tess_device_stream_create(l->device, name[i], true, &c->lane[i].stream));
        for (int k = 0; k < MARK_NUMEL; k++)
            TESS_TRY(tess_event_init(&c->lane[i].mark[k].event, c->lane[i].stream));
    }
    c->over.base.gather = c->lane[0].stream;
    c->over.base.reduce = c->lane[1].stream;
    return TESS_OK;
}

static void link_comm(gpu_comm *c)
{
    pthread_mutex_lock(&c->link->engine->lock);
    c->link->comm[c->link->comm_numel++] = c;
    pthread_mutex_unlock(&c->link->engine->lock);
}

/* Two groups of the same ranks, so that gathers and gradients can be under way together. A split
 * keeps its parent busy, and one that fails may leave no child to ask: the parent says so. */
static tess_status split_lane(gpu_comm *parent, gpu_comm *c, int lane, int color)
{
    static const char *const name[LANE_NUMEL] = {"tessera gather group", "tessera reduce group"};
    gpu_link *l = c->link;
    if (l->library->split(parent->lane[lane].group, color, parent->over.base.rank, name[lane],
                          &c->lane[lane].group) != TESS_OK)
        return library_failed(l, name[lane]);
    TESS_TRY(settle(l, parent->lane[lane].group, name[lane]));
    return settle(l, c->lane[lane].group, name[lane]);
}

static tess_status join_world(gpu_comm *c)
{
    gpu_link *l = c->link;
    tess_comm *host = c->over.base.host;
    uint8_t id[TESS_CUDA_UNIQUE_ID_NBYTES] = {0};
    TESS_TRY(tess_agree(host, host->rank == 0 ? l->library->unique_id(id) : TESS_OK));
    TESS_TRY(tess_comm_bcast(host, 0, id, sizeof id));
    if (l->library->join(l->device, id, host->rank, host->world, "tessera gather",
                         &c->lane[0].group) != TESS_OK)
        return library_failed(l, "joining");
    TESS_TRY(settle(l, c->lane[0].group, "joining"));
    if (l->library->split(c->lane[0].group, 0, host->rank, "tessera reduce", &c->lane[1].group) !=
        TESS_OK)
        return library_failed(l, "splitting");
    TESS_TRY(settle(l, c->lane[0].group, "splitting"));
    return settle(l, c->lane[1].group, "splitting");
}

static tess_status gpu_split_group(tess_comm *comm, int group_numel, tess_comm **out)
{
    gpu_comm *parent = gpu_of(comm);
    tess_comm *host = NULL;
    tess_comm *group = NULL;
    TESS_TRY(tess_comm_split_group(comm->host, group_numel, &host));
    tess_status st = tess_agree(comm, make_comm(parent->link, host, &group));
    if (st == TESS_OK)
        link_comm(gpu_of(group));
    for (int i = 0; i < LANE_NUMEL && st == TESS_OK; i++)
        st = split_lane(parent, gpu_of(group), i, comm->rank / group_numel);
    if (st != TESS_OK) {
        tess_comm_destroy(&group);
        tess_comm_destroy(&host);
        return st;
    }
    gpu_of(group)->over.owns_host = true;
    group->is_checking = comm->is_checking;
    *out = group;
    return TESS_OK;
}

static const tess_comm_ops gpu_ops = {
    .all_gather = gpu_all_gather,
    .all_gather_list = gpu_all_gather_list,
    .exchange = gpu_exchange,
    .reduce_scatter = gpu_reduce_scatter,
    .control = over_control,
    .bcast = over_bcast,
    .gather_bytes = over_gather_bytes,
    .split_group = gpu_split_group,
    .destroy = gpu_destroy,
    .abort = over_abort,
    .blocked_s = gpu_blocked_s,
    .dump = over_dump,
    .describe = gpu_describe,
    .set_checking = over_set_checking,
};

static tess_status make_link(tess_comm *host, tess_device *d, const tess_gpu_collectives *library,
                             const tess_deadlines *deadlines, gpu_link **out)
{
    void *object = NULL;
    TESS_CHECK(engine_of_comm(host) != NULL, TESS_E_ARG,
               "communicator '%s' cannot carry one between devices; give self or mpi", host->name);
    TESS_CHECK(d->watch.look == NULL, TESS_E_STATE, "%s is watched by another communicator",
               d->name);
    TESS_TRY(tess_alloc(sizeof(gpu_link), &object));
    gpu_link *l = object;
    l->refs = 1;
    l->device = d;
    l->library = library;
    l->engine = engine_of_comm(host);
    l->launch_rank = tess_comm_launch_rank(host);
    l->moved_s = tess_clock_s();
    if (deadlines != NULL)
        l->deadlines = *deadlines;
    if (!(l->deadlines.start_s > 0.0))
        l->deadlines.start_s = 600.0;
    if (!(l->deadlines.collective_s > 0.0))
        l->deadlines.collective_s = 300.0;
    *out = l;
    return TESS_OK;
}

tess_status tess_comm_create_gpu(tess_comm *host, tess_device *d,
                                 const tess_gpu_collectives *collectives,
                                 const tess_deadlines *deadlines, tess_comm **out)
{
    gpu_link *l = NULL;
    tess_comm *comm = NULL;
    tess_status st = tess_agree(host, make_link(host, d, collectives, deadlines, &l));
    if (st == TESS_OK)
        st = engine_alarm_create(host);
    if (st != TESS_OK) {
        tess_free(l);
        return st;
    }
    d->watch = (tess_device_watch){look, l};
    st = tess_agree(host, make_comm(l, host, &comm));
    if (st == TESS_OK) {
        link_comm(gpu_of(comm));
        st = join_world(gpu_of(comm));
    }
    if (st != TESS_OK)
        tess_comm_destroy(&comm);
    link_unref(l); /* the communicator has its own */
    if (st == TESS_OK)
        *out = comm;
    return st;
}
