/**
 * The communicators `self` and `mpi`: one implementation over the engine. A world of one has the
 * same queues, checks and copies; it only has no peers, so no MPI call is ever made for it.
 *
 * [Note: host collectives] They are exchanges on the control queue, so that deadlines, messages
 * about who was heard from and the record ring are those of data collectives. The control record
 * goes up and down a tree of fan-out TREE_FANOUT: a star for most worlds, where rank 0 hears from
 * everybody itself and can name who is missing. Ranks that wait for their parent's answer wait a
 * little longer than the parent waits for its children, so that the one who knows speaks first.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "dist/alarm_priv.h"
#include "dist/start_priv.h"

enum { TREE_FANOUT = 32, CONTROL_NUMEL = 4096 };

/* Pseudo entries of host collectives: part of the tag, so that different ones do not meet. */
enum { ENTRY_CONTROL_UP = 0xfff00001, ENTRY_CONTROL_DOWN, ENTRY_BCAST, ENTRY_GATHER };

typedef struct peer_comm {
    tess_comm base; /* first */
    engine *engine;
    engine_queue *gather;
    engine_queue *reduce;
    engine_queue *control;
    tess_piece *pieces; /* [world + 1] */
    int64_t *up;        /* [CONTROL_NUMEL] what goes to the parent */
    int64_t *down;      /* [CONTROL_NUMEL] the result */
    int64_t *child;     /* [children, CONTROL_NUMEL] */
    uint64_t host_seq;  /* host collectives so far: same on all ranks, unlike their steps */
} peer_comm;

static tess_status peer_create(const engine_queue_args *where, const MPI_Comm mpi[3], engine *e,
                               const char *name, tess_comm **out);

static peer_comm *peer_of(tess_comm *comm) { return (peer_comm *)comm; }
static const peer_comm *peer_of_const(const tess_comm *comm) { return (const peer_comm *)comm; }

/* ---- data collectives ---- */

static tess_status enqueue(const tess_wire *wire, engine_op *op, tess_stream *s)
{
    static char nothing; /* so that no pointer arithmetic starts at NULL */
    op->entry_idx = wire->entry_idx;
    if (op->row_nbytes == 0 && op->gathers == NULL)
        op->shard = op->full = &nothing;
    memcpy(op->name, wire->name, sizeof op->name);
    op->name[sizeof op->name - 1] = '\0';
    return engine_enqueue((engine_queue *)s, op);
}

static tess_status peer_all_gather(tess_comm *comm, const tess_wire *wire, tess_view shard,
                                   tess_view full, tess_stream *s)
{
    (void)comm;
    engine_op op = {.kind = ENGINE_ALL_GATHER,
                    .shard = shard.data,
                    .full = full.data,
                    .row_nbytes = tess_view_nbytes(shard)};
    return enqueue(wire, &op, s);
}

static tess_status peer_all_gather_list(tess_comm *comm, const tess_gather_piece *pieces,
                                        int piece_numel, tess_view full, tess_stream *s)
{
    (void)comm;
    const tess_wire wire = tess_gather_list_wire(pieces, piece_numel);
    engine_op op = {.kind = ENGINE_ALL_GATHER,
                    .gathers = pieces,
                    .gather_numel = piece_numel,
                    .full = full.data};
    return enqueue(&wire, &op, s);
}

static tess_status peer_reduce_scatter(tess_comm *comm, const tess_wire *wire, tess_view full,
                                       tess_view shard, tess_stream *s)
{
    (void)comm;
    engine_op op = {.kind = ENGINE_REDUCE_SCATTER,
                    .shard = shard.data,
                    .full = full.data,
                    .row_nbytes = tess_view_nbytes(shard)};
    return enqueue(wire, &op, s);
}

static tess_status peer_exchange(tess_comm *comm, const tess_wire *wire,
                                 const tess_comm_exchange_args *args, tess_stream *s)
{
    (void)comm;
    engine_op op = {.kind = ENGINE_EXCHANGE, .pieces = *args};
    return enqueue(wire, &op, s);
}

/* ---- host collectives, see [Note: host collectives] ---- */

typedef struct host_step {
    const char *name;
    uint32_t entry_idx;
    tess_comm_exchange_args lists;
    double grace_s;
} host_step;

static tess_status host_exchange(peer_comm *p, const host_step *step)
{
    engine_op op = {.kind = ENGINE_EXCHANGE,
                    .entry_idx = step->entry_idx,
                    .has_seq = true,
                    .seq = p->host_seq,
                    .pieces = step->lists};
    snprintf(op.name, sizeof op.name, "%s", step->name);
    TESS_TRY(engine_enqueue(p->control, &op));
    return engine_wait(p->control, p->control->enqueued, step->grace_s);
}

static double answer_grace_s(const peer_comm *p)
{
    return TESS_MIN(5.0, 0.2 + 0.1 * engine_deadline_s(p->engine));
}

static int child_numel(int virtual_rank, int world)
{
    const int64_t first = (int64_t)virtual_rank * TREE_FANOUT + 1;
    const int64_t numel = (int64_t)world - first;
    return (int)TESS_MAX((int64_t)0, TESS_MIN(numel, (int64_t)TREE_FANOUT));
}

static tess_piece piece_of(int peer_rank, void *data, size_t nbytes)
{
    const tess_piece piece = {peer_rank, {data, (int64_t)nbytes, TESS_U8, TESS_HOST}};
    return piece;
}

static void fold_child(peer_comm *p, const int64_t *child, int sum_numel, int max_numel)
{
    for (int i = 0; i < sum_numel; i++)
        p->up[i] = (int64_t)((uint64_t)p->up[i] + (uint64_t)child[i]); /* wraps as the wire does */
    for (int i = sum_numel; i < sum_numel + max_numel; i++)
        p->up[i] = TESS_MAX(p->up[i], child[i]);
}

/* One record of at most CONTROL_NUMEL values; the result is in p->down. */
static tess_status control_piece(peer_comm *p, int sum_numel, int max_numel)
{
    const int rank = p->base.rank;
    const int children = child_numel(rank, p->base.world);
    /* one byte more than nothing, so that a barrier travels too */
    const size_t nbytes = TESS_MAX((size_t)(sum_numel + max_numel) * sizeof(int64_t), (size_t)1);
    for (int i = 0; i < children; i++)
        p->pieces[i] =
            piece_of(rank * TREE_FANOUT + 1 + i, p->child + (int64_t)i * CONTROL_NUMEL, nbytes);
    const host_step from_children = {
        "control record", ENTRY_CONTROL_UP, {NULL, 0, p->pieces, children}, 0.0};
    TESS_TRY(host_exchange(p, &from_children));
    for (int i = 0; i < children; i++)
        fold_child(p, p->child + (int64_t)i * CONTROL_NUMEL, sum_numel, max_numel);
    if (rank > 0) {
        const int parent = (rank - 1) / TREE_FANOUT;
        const tess_piece up = piece_of(parent, p->up, nbytes);
        const tess_piece down = piece_of(parent, p->down, nbytes);
        const host_step send = {"control record", ENTRY_CONTROL_UP, {&up, 1, NULL, 0}, 0.0};
        TESS_TRY(host_exchange(p, &send));
        const host_step receive = {
            "control record", ENTRY_CONTROL_DOWN, {NULL, 0, &down, 1}, answer_grace_s(p)};
        TESS_TRY(host_exchange(p, &receive));
    } else
        memcpy(p->down, p->up, nbytes);
    for (int i = 0; i < children; i++)
        p->pieces[i] = piece_of(rank * TREE_FANOUT + 1 + i, p->down, nbytes);
    const host_step to_children = {
        "control record", ENTRY_CONTROL_DOWN, {p->pieces, children, NULL, 0}, 0.0};
    return host_exchange(p, &to_children);
}

static tess_status peer_control(tess_comm *comm, int64_t *sum, int sum_numel, int64_t *max,
                                int max_numel)
{
    peer_comm *p = peer_of(comm);
    int sum_at = 0;
    int max_at = 0;
    do {
        const int s = TESS_MIN(sum_numel - sum_at, CONTROL_NUMEL);
        const int m = TESS_MIN(max_numel - max_at, CONTROL_NUMEL - s);
        if (s > 0)
            memcpy(p->up, sum + sum_at, (size_t)s * sizeof *sum);
        if (m > 0)
            memcpy(p->up + s, max + max_at, (size_t)m * sizeof *max);
        p->host_seq++;
        TESS_TRY(control_piece(p, s, m));
        if (s > 0)
            memcpy(sum + sum_at, p->down, (size_t)s * sizeof *sum);
        if (m > 0)
            memcpy(max + max_at, p->down + s, (size_t)m * sizeof *max);
        sum_at += s;
        max_at += m;
    } while (sum_at < sum_numel || max_at < max_numel);
    return TESS_OK;
}

static tess_status peer_bcast(tess_comm *comm, int root_rank, void *data, size_t nbytes)
{
    peer_comm *p = peer_of(comm);
    const int world = comm->world;
    p->host_seq++;
    const int place = (comm->rank - root_rank + world) % world; /* in the tree under the root */
    if (place > 0) {
        const int parent = ((place - 1) / TREE_FANOUT + root_rank) % world;
        const tess_piece from = piece_of(parent, data, nbytes);
        const host_step receive = {"bcast", ENTRY_BCAST, {NULL, 0, &from, 1}, answer_grace_s(p)};
        TESS_TRY(host_exchange(p, &receive));
    }
    const int children = child_numel(place, world);
    for (int i = 0; i < children; i++)
        p->pieces[i] = piece_of((place * TREE_FANOUT + 1 + i + root_rank) % world, data, nbytes);
    const host_step send = {"bcast", ENTRY_BCAST, {p->pieces, children, NULL, 0}, 0.0};
    return host_exchange(p, &send);
}

static tess_status peer_gather_bytes(tess_comm *comm, int root_rank, const void *src, size_t nbytes,
                                     void *dst)
{
    peer_comm *p = peer_of(comm);
    const bool is_root = comm->rank == root_rank;
    p->host_seq++;
    union {
        const void *in;
        void *out;
    } source = {src}; /* views are not const; an exchange only reads what it sends */
    const tess_piece send = piece_of(root_rank, source.out, nbytes);
    for (int r = 0; is_root && r < comm->world; r++)
        p->pieces[r] = piece_of(r, (char *)dst + (size_t)r * nbytes, nbytes);
    const host_step step = {
        "gather_bytes", ENTRY_GATHER, {&send, 1, p->pieces, is_root ? comm->world : 0}, 0.0};
    return host_exchange(p, &step);
}

/* ---- life ---- */

static void peer_free(peer_comm *p)
{
    engine_queue_destroy(&p->gather);
    engine_queue_destroy(&p->reduce);
    engine_queue_destroy(&p->control);
    tess_free(p->child);
    tess_free(p->down);
    tess_free(p->up);
    tess_free(p->pieces);
    tess_free(p);
}

static void free_mpi(MPI_Comm *mpi)
{
    if (*mpi != MPI_COMM_NULL)
        (void)MPI_Comm_free(mpi);
}

/* After a failure nothing collective is done any more: MPI_Comm_free and MPI_Finalize would wait
 * for ranks that may be gone. */
static void peer_destroy(tess_comm *comm)
{
    peer_comm *p = peer_of(comm);
    engine *e = p->engine;
    if (atomic_load(&e->failed) == TESS_OK) {
        tess_status st = engine_wait(p->gather, p->gather->enqueued, 0.0);
        st = engine_wait(p->reduce, p->reduce->enqueued, 0.0);
        (void)st; /* the engine remembers a failure, which is looked at below */
    }
    const bool is_healthy = atomic_load(&e->failed) == TESS_OK;
    MPI_Comm mpi[3] = {p->gather->mpi, p->reduce->mpi, p->control->mpi};
    peer_free(p);
    pthread_mutex_lock(&e->lock);
    for (int i = 0; i < 3 && is_healthy; i++)
        free_mpi(&mpi[i]);
    pthread_mutex_unlock(&e->lock);
    const bool finalizes = e->owns_mpi && is_healthy;
    if (engine_unref(e) && finalizes)
        (void)MPI_Finalize();
}

static void peer_describe(const tess_comm *comm, int fd)
{
    const peer_comm *p = peer_of_const(comm);
    const bool has_lock = engine_try_lock(p->engine, 1.0);
    const int failed = atomic_load(&p->engine->failed);
    if (failed != TESS_OK)
        tess_fd_line(fd, "rank %d: %s", tess_comm_launch_rank(comm), p->engine->failure);
    for (const engine_queue *q = p->engine->queues; q != NULL; q = q->next) {
        if (atomic_load(&q->done) >= q->enqueued)
            continue;
        char text[ENGINE_FAILURE_NBYTES];
        engine_op_describe(q, text, sizeof text);
        tess_fd_line(fd, "rank %d: in %s", tess_comm_launch_rank(comm), text);
    }
    if (has_lock)
        pthread_mutex_unlock(&p->engine->lock);
}

static void peer_abort(tess_comm *comm, int exit_code)
{
    const peer_comm *p = peer_of(comm);
    if (tess_error_status() != TESS_OK)
        tess_fd_line(STDERR_FILENO, "rank %d: %s: %s",
                     tess_error_rank() >= 0 ? tess_error_rank() : tess_comm_launch_rank(comm),
                     tess_status_text(tess_error_status()), tess_error_message());
    peer_describe(comm, STDERR_FILENO);
    if (p->control->mpi == MPI_COMM_NULL)
        return;
    /* a thread that is stuck inside MPI keeps the lock; the job ends all the same */
    (void)engine_try_lock(p->engine, 1.0);
    (void)MPI_Abort(MPI_COMM_WORLD, exit_code);
    _exit(exit_code);
}

static double peer_blocked_s(const tess_comm *comm)
{
    engine *e = peer_of_const(comm)->engine;
    pthread_mutex_lock(&e->lock);
    const double blocked_s = e->blocked_s;
    pthread_mutex_unlock(&e->lock);
    return blocked_s;
}

static void peer_dump(const tess_comm *comm, int fd)
{
    engine_record_dump(peer_of_const(comm)->engine, tess_comm_launch_rank(comm), fd);
}

static uint64_t peer_collective_numel(const tess_comm *comm)
{
    return engine_record_count(peer_of_const(comm)->engine);
}

static bool peer_collective_times(const tess_comm *comm, uint64_t serial, tess_comm_times *out)
{
    return engine_record_times(peer_of_const(comm)->engine, serial, out);
}

static void peer_set_checking(tess_comm *comm, bool is_on)
{
    comm->is_checking = is_on;
    memset(comm->checked_seq, 0, sizeof comm->checked_seq);
}

void tess_comm_set_chunk(tess_comm *comm, size_t nbytes)
{
    peer_of(comm)->engine->chunk_nbytes = TESS_MAX((size_t)1, TESS_MIN(nbytes, (size_t)1 << 30));
}

void tess_comm_set_nodes(tess_comm *comm, int node_rank_numel)
{
    peer_comm *p = peer_of(comm);
    p->gather->node_rank_numel = p->reduce->node_rank_numel = node_rank_numel;
}

/* ---- groups ---- */

static tess_status split_mpi(peer_comm *p, int group_numel, MPI_Comm mpi[3])
{
    const int color = p->base.rank / group_numel;
    const MPI_Comm from[3] = {p->gather->mpi, p->reduce->mpi, p->control->mpi};
    pthread_mutex_lock(&p->engine->lock); /* the only blocking MPI call after start */
    int rc = MPI_SUCCESS;
    for (int i = 0; i < 3 && rc == MPI_SUCCESS; i++)
        rc = MPI_Comm_split(from[i], color, p->base.rank, &mpi[i]);
    pthread_mutex_unlock(&p->engine->lock);
    TESS_MPI(rc);
    return TESS_OK;
}

static tess_status peer_split_group(tess_comm *comm, int group_numel, tess_comm **out)
{
    peer_comm *p = peer_of(comm);
    MPI_Comm mpi[3] = {MPI_COMM_NULL, MPI_COMM_NULL, MPI_COMM_NULL};
    if (p->control->mpi != MPI_COMM_NULL) {
        /* MPI_Comm_split has no deadline: enter it only when everybody is here */
        TESS_TRY(tess_comm_barrier(comm));
        TESS_TRY(split_mpi(p, group_numel, mpi));
    }
    const int first_rank = comm->rank / group_numel * group_numel;
    const engine_queue_args where = {
        .rank = comm->rank - first_rank,
        .world = TESS_MIN(group_numel, comm->world - first_rank),
        .first_world_rank = comm->first_world_rank + first_rank,
    };
    tess_comm *group = NULL;
    tess_status st = peer_create(&where, mpi, p->engine, comm->name, &group);
    st = tess_agree(comm, st);
    if (st != TESS_OK) {
        for (int i = 0; group == NULL && i < 3; i++)
            free_mpi(&mpi[i]);
        tess_comm_destroy(&group);
        return st;
    }
    group->is_checking = comm->is_checking;
    *out = group;
    return TESS_OK;
}

static const tess_comm_ops peer_ops = {
    .all_gather = peer_all_gather,
    .all_gather_list = peer_all_gather_list,
    .exchange = peer_exchange,
    .reduce_scatter = peer_reduce_scatter,
    .control = peer_control,
    .bcast = peer_bcast,
    .gather_bytes = peer_gather_bytes,
    .split_group = peer_split_group,
    .destroy = peer_destroy,
    .abort = peer_abort,
    .blocked_s = peer_blocked_s,
    .dump = peer_dump,
    .collective_numel = peer_collective_numel,
    .collective_times = peer_collective_times,
    .describe = peer_describe,
    .set_checking = peer_set_checking,
};

engine *engine_of_comm(const tess_comm *comm)
{
    return comm->ops == &peer_ops ? peer_of_const(comm)->engine : NULL;
}

static tess_status peer_alloc(peer_comm *p, const engine_queue_args *where, const MPI_Comm mpi[3])
{
    static const char *const name[3] = {"gather", "reduce", "control"};
    engine_queue **queue[3] = {&p->gather, &p->reduce, &p->control};
    for (int i = 0; i < 3; i++) {
        engine_queue_args args = *where;
        args.name = name[i];
        args.mpi = mpi[i];
        args.has_reduce = i == 1;
        args.node_rank_numel =
            dist_nodes_even(p->engine->nodes, where->first_world_rank, where->world);
        TESS_TRY(engine_queue_create(p->engine, &args, queue[i]));
    }
    void *pieces = NULL;
    void *values[3] = {NULL};
    TESS_TRY(tess_alloc_array(where->world + TREE_FANOUT, sizeof *p->pieces, &pieces));
    p->pieces = pieces;
    TESS_TRY(tess_alloc_array(CONTROL_NUMEL, sizeof(int64_t), &values[0]));
    p->up = values[0];
    TESS_TRY(tess_alloc_array(CONTROL_NUMEL, sizeof(int64_t), &values[1]));
    p->down = values[1];
    const int children = child_numel(where->rank, where->world);
    TESS_TRY(tess_alloc_array((int64_t)children * CONTROL_NUMEL, sizeof(int64_t), &values[2]));
    p->child = values[2];
    return TESS_OK;
}

/* The engine gains a reference only when this succeeds. */
static tess_status peer_create(const engine_queue_args *where, const MPI_Comm mpi[3], engine *e,
                               const char *name, tess_comm **out)
{
    TESS_TRY(tess_comm_ops_check(&peer_ops, name));
    void *memory = NULL;
    TESS_TRY(tess_alloc(sizeof(peer_comm), &memory));
    peer_comm *p = memory;
    p->engine = e;
    p->base.ops = &peer_ops;
    p->base.rank = where->rank;
    p->base.world = where->world;
    p->base.first_world_rank = where->first_world_rank;
    p->base.space = TESS_HOST;
    p->base.nodes = e->nodes;
    snprintf(p->base.name, sizeof p->base.name, "%s", name);
    const tess_status st = peer_alloc(p, where, mpi);
    if (st != TESS_OK) {
        peer_free(p);
        return st;
    }
    p->base.gather = &p->gather->base;
    p->base.reduce = &p->reduce->base;
    engine_ref(e);
    *out = &p->base;
    return TESS_OK;
}

tess_status tess_comm_create_self(tess_comm **out)
{
    engine *e = NULL;
    TESS_TRY(engine_create(TESS_COMM_THREAD_OFF, NULL, &e));
    const MPI_Comm mpi[3] = {MPI_COMM_NULL, MPI_COMM_NULL, MPI_COMM_NULL};
    const engine_queue_args where = {.rank = 0, .world = 1};
    const tess_status st = peer_create(&where, mpi, e, "self", out);
    (void)engine_unref(e);
    return st;
}

/* ---- world over MPI ---- */

static tess_status create_world(engine *e, tess_comm **out)
{
    engine_queue_args where = {.first_world_rank = 0};
    MPI_Comm mpi[3] = {MPI_COMM_NULL, MPI_COMM_NULL, MPI_COMM_NULL};
    TESS_TRY(start_worlds(e->deadlines.start_s, &e->nodes, mpi));
    TESS_MPI(MPI_Comm_rank(mpi[0], &where.rank));
    TESS_MPI(MPI_Comm_size(mpi[0], &where.world));
    tess_comm *comm = NULL;
    tess_status st = peer_create(&where, mpi, e, "mpi", &comm);
    st = start_agree(st, e->deadlines.start_s);
    if (st != TESS_OK) {
        if (comm != NULL) {
            peer_free(peer_of(comm));
            (void)engine_unref(e); /* the caller has its own reference */
        }
        return st;
    }
    *out = comm;
    return TESS_OK;
}

tess_status tess_comm_create_mpi(int *argc, char ***argv, tess_comm_thread thread,
                                 const tess_deadlines *deadlines, tess_comm **out)
{
    bool owns_mpi = false;
    TESS_TRY(start_mpi(argc, argv, thread, &owns_mpi));
    engine *e = NULL;
    const double limit_s =
        deadlines != NULL && deadlines->start_s > 0.0 ? deadlines->start_s : 600.0;
    tess_status st = start_agree(engine_create(thread, deadlines, &e), limit_s);
    if (st == TESS_OK) {
        e->owns_mpi = owns_mpi;
        st = create_world(e, out);
    }
    if (e != NULL)
        (void)engine_unref(e);
    return st;
}
