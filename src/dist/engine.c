#include "core/clock.h"
#include "dist/alarm_priv.h"

#include <errno.h>
#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

static const tess_stream_ops queue_ops;

tess_status engine_mpi_fail(int code, const char *file, int line, const char *call)
{
    char text[MPI_MAX_ERROR_STRING] = "";
    int text_numel = 0;
    (void)MPI_Error_string(code, text, &text_numel);
    return tess_error_set(TESS_E_COMM, file, line, "%s failed: %s", call, text);
}

void engine_fail(engine *e, tess_status st, const char *fmt, ...)
{
    if (atomic_load(&e->failed) != TESS_OK)
        return;
    va_list args;
    va_start(args, fmt);
    vsnprintf(e->failure, sizeof e->failure, fmt, args);
    va_end(args);
    atomic_store(&e->failed, (int)st);
    pthread_cond_broadcast(&e->done_cond);
}

tess_status engine_verdict(engine *e)
{
    const tess_status st = (tess_status)atomic_load(&e->failed);
    if (TESS_LIKELY(st == TESS_OK))
        return TESS_OK;
    return TESS_FAIL(st, "%s", e->failure);
}

/* ---- waiting ---- */

/*
 * A rank that waits must leave the core to ranks that compute, but the parts of a chunk under way
 * move only while MPI is called: poll (MPI yields by itself where ranks share cores), then yield,
 * then, when nothing has finished for longer than a chunk takes, short sleeps.
 */
static void back_off(double idle_s)
{
    if (idle_s < 50e-6)
        return;
    if (idle_s < 5e-3) {
        sched_yield();
        return;
    }
    const struct timespec nap = {0, idle_s < 0.1 ? 50000 : 500000};
    nanosleep(&nap, NULL);
}

double engine_deadline_s(const engine *e)
{
    return e->is_warm ? e->deadlines.collective_s : e->deadlines.start_s;
}

static void expire(engine_queue *q, double waited_s)
{
    char text[ENGINE_FAILURE_NBYTES - 200];
    engine_op_describe(q, text, sizeof text);
    engine_fail(q->owner, TESS_E_TIMEOUT, "rank %d waited %.1f s: %s",
                q->first_world_rank + q->rank, waited_s, text);
}

static void expire_if_late(engine_queue *q, double since_s, double grace_s)
{
    const engine *e = q->owner;
    const double from_s = TESS_MAX(since_s, e->moved_s);
    const double waited_s = tess_clock_s() - from_s;
    if (waited_s > engine_deadline_s(e) + grace_s)
        expire(q, waited_s);
}

static void wait_for_thread(engine *e)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    t.tv_nsec += 20000000; /* the deadline is looked at this often */
    if (t.tv_nsec >= 1000000000) {
        t.tv_nsec -= 1000000000;
        t.tv_sec++;
    }
    pthread_cond_timedwait(&e->done_cond, &e->lock, &t);
}

tess_status engine_wait(engine_queue *q, uint64_t mark, double grace_s)
{
    engine *e = q->owner;
    const double start_s = tess_clock_s();
    double moved_s = start_s;
    pthread_mutex_lock(&e->lock);
    while (atomic_load(&e->failed) == TESS_OK && atomic_load(&q->done) < mark) {
        if (e->has_thread) {
            wait_for_thread(e);
            expire_if_late(q, start_s, grace_s);
            continue;
        }
        if (engine_drive(e)) {
            moved_s = tess_clock_s();
            continue;
        }
        expire_if_late(q, start_s, grace_s);
        pthread_mutex_unlock(&e->lock);
        back_off(tess_clock_s() - moved_s);
        pthread_mutex_lock(&e->lock);
    }
    e->blocked_s += tess_clock_s() - start_s;
    const bool is_done = atomic_load(&q->done) >= mark;
    pthread_mutex_unlock(&e->lock);
    return is_done ? TESS_OK : engine_verdict(e);
}

/* ---- driving ---- */

static bool event_is_reached(const tess_event *ev)
{
    const engine_queue *other = (const engine_queue *)ev->stream;
    return atomic_load(&other->done) >= ev->mark;
}

static void complete(engine_queue *q, engine_op *op)
{
    engine *e = q->owner;
    if (op->kind != ENGINE_WAIT) {
        engine_record_mark(e, op->record_serial, ENGINE_DONE);
        e->is_warm |= !op->has_seq; /* host collectives of the start do not count */
    }
    q->is_started = false;
    atomic_fetch_add(&q->done, 1);
    if (e->has_thread)
        pthread_cond_broadcast(&e->done_cond);
}

/* @return the operation in front is complete */
static bool run_front(engine_queue *q, bool *moved)
{
    engine_op *op = &q->ring[atomic_load(&q->done) % ENGINE_QUEUE_OP_NUMEL];
    if (op->kind == ENGINE_WAIT) {
        if (!event_is_reached(&op->event))
            return false;
        complete(q, op);
        return true;
    }
    if (!q->is_started) {
        q->is_started = true;
        engine_record_mark(q->owner, op->record_serial, ENGINE_STARTED);
        engine_op_start(q, op);
        *moved = true;
    }
    *moved |= engine_op_step(q, op);
    if (atomic_load(&q->owner->failed) != TESS_OK || !engine_op_is_done(q, op))
        return false;
    complete(q, op);
    return true;
}

bool engine_drive(engine *e)
{
    bool moved = false;
    if (e->alarm != NULL)
        engine_alarm_hear(e);
    for (engine_queue *q = e->queues; q != NULL; q = q->next)
        while (atomic_load(&e->failed) == TESS_OK && atomic_load(&q->done) < q->enqueued) {
            if (!run_front(q, &moved))
                break;
            moved = true;
        }
    if (moved)
        e->moved_s = tess_clock_s();
    return moved;
}

static bool is_idle(const engine *e)
{
    for (const engine_queue *q = e->queues; q != NULL; q = q->next)
        if (atomic_load(&q->done) < q->enqueued)
            return false;
    return true;
}

static void *thread_main(void *arg)
{
    engine *e = arg;
    double moved_s = tess_clock_s();
    pthread_mutex_lock(&e->lock);
    while (!e->is_stopping) {
        if (is_idle(e) || atomic_load(&e->failed) != TESS_OK) {
            pthread_cond_wait(&e->work_cond, &e->lock);
            moved_s = tess_clock_s();
            continue;
        }
        const bool moved = engine_drive(e);
        pthread_mutex_unlock(&e->lock);
        const double now_s = tess_clock_s();
        if (moved)
            moved_s = now_s;
        back_off(now_s - moved_s);
        pthread_mutex_lock(&e->lock);
    }
    pthread_mutex_unlock(&e->lock);
    return NULL;
}

/* ---- streams ---- */

static tess_status queue_record(tess_stream *s, tess_event *ev)
{
    engine_queue *q = (engine_queue *)s;
    pthread_mutex_lock(&q->owner->lock);
    ev->stream = s;
    ev->mark = q->enqueued;
    pthread_mutex_unlock(&q->owner->lock);
    return TESS_OK;
}

static tess_status queue_wait(tess_stream *s, const tess_event *ev)
{
    engine_queue *q = (engine_queue *)s;
    if (ev->stream == s)
        return TESS_OK; /* a queue is ordered */
    if (ev->stream->ops != &queue_ops || ((engine_queue *)ev->stream)->owner != q->owner)
        return tess_event_finish(ev); /* host streams have run by now; others cannot be queued */
    const engine_op op = {.kind = ENGINE_WAIT, .event = *ev};
    return engine_enqueue(q, &op);
}

static tess_status queue_finish(tess_stream *s, const tess_event *ev)
{
    engine_queue *q = (engine_queue *)s;
    return atomic_load(&q->done) >= ev->mark ? TESS_OK : engine_wait(q, ev->mark, 0.0);
}

static tess_status queue_query(tess_stream *s, const tess_event *ev, bool *is_reached)
{
    engine_queue *q = (engine_queue *)s;
    *is_reached = atomic_load(&q->done) >= ev->mark;
    return engine_verdict(q->owner);
}

static const tess_stream_ops queue_ops = {
    .record = queue_record,
    .wait = queue_wait,
    .finish = queue_finish,
    .query = queue_query,
};

tess_status engine_enqueue(engine_queue *q, const engine_op *op)
{
    engine *e = q->owner;
    TESS_TRY(engine_verdict(e));
    if (q->enqueued - atomic_load(&q->done) >= ENGINE_QUEUE_OP_NUMEL)
        TESS_TRY(engine_wait(q, q->enqueued - ENGINE_QUEUE_OP_NUMEL + 1, 0.0));
    pthread_mutex_lock(&e->lock);
    engine_op *slot = &q->ring[q->enqueued % ENGINE_QUEUE_OP_NUMEL];
    *slot = *op;
    if (op->kind != ENGINE_WAIT) {
        if (!op->has_seq)
            slot->seq = q->data_seq++;
        slot->record_serial = engine_record_add(q, slot);
    }
    q->enqueued++;
    if (e->has_thread)
        pthread_cond_signal(&e->work_cond);
    else
        (void)engine_drive(e); /* post what can be posted before the caller computes */
    pthread_mutex_unlock(&e->lock);
    return engine_verdict(e);
}

/* ---- life ---- */

static tess_status start_thread(engine *e)
{
    sigset_t all;
    sigset_t before;
    sigfillset(&all); /* signals are for the main thread */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int rc = pthread_create(&e->thread, NULL, thread_main, e);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    TESS_CHECK(rc == 0, TESS_E_MEMORY, "cannot start the communication thread: %s", strerror(rc));
    e->has_thread = true;
    return TESS_OK;
}

static void init_sync(engine *e)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&e->lock, NULL);
    pthread_cond_init(&e->work_cond, &attr);
    pthread_cond_init(&e->done_cond, &attr);
    pthread_condattr_destroy(&attr);
}

static void engine_free(engine *e)
{
    pthread_cond_destroy(&e->done_cond);
    pthread_cond_destroy(&e->work_cond);
    pthread_mutex_destroy(&e->lock);
    dist_nodes_destroy(&e->nodes);
    tess_free(e->records);
    tess_free(e);
}

tess_status engine_create(tess_comm_thread thread, const tess_deadlines *deadlines, engine **out)
{
    void *memory = NULL;
    TESS_TRY(tess_alloc(sizeof(engine), &memory));
    engine *e = memory;
    init_sync(e);
    e->refs = 1;
    e->chunk_nbytes = ENGINE_CHUNK_NBYTES;
    e->created_s = e->moved_s = tess_clock_s();
    if (deadlines != NULL)
        e->deadlines = *deadlines;
    if (!(e->deadlines.start_s > 0.0))
        e->deadlines.start_s = 600.0;
    if (!(e->deadlines.collective_s > 0.0))
        e->deadlines.collective_s = 300.0;
    void *records = NULL;
    tess_status st = tess_alloc_array(ENGINE_RECORD_NUMEL, sizeof(engine_record), &records);
    e->records = records;
    if (st == TESS_OK && thread == TESS_COMM_THREAD_ON)
        st = start_thread(e);
    if (st != TESS_OK) {
        engine_free(e);
        return st;
    }
    *out = e;
    return TESS_OK;
}

void engine_ref(engine *e) { e->refs++; }

bool engine_unref(engine *e)
{
    if (--e->refs > 0)
        return false;
    if (e->has_thread) {
        pthread_mutex_lock(&e->lock);
        e->is_stopping = true;
        pthread_cond_signal(&e->work_cond);
        pthread_mutex_unlock(&e->lock);
        pthread_join(e->thread, NULL);
    }
    engine_free(e);
    return true;
}

static tess_status queue_alloc(engine_queue *q)
{
    const int64_t near = q->near_end - q->near_first, far = q->world - near;
    const int64_t slots = 2 * (near * ENGINE_FLOW_WINDOW + far * ENGINE_FAR_WINDOW);
    void *part[7] = {NULL};
    const struct {
        int64_t numel;
        size_t nbytes;
    } want[7] = {
        {ENGINE_QUEUE_OP_NUMEL, sizeof(engine_op)},
        {q->world, sizeof(engine_flow)},
        {q->world, sizeof(engine_flow)},
        {slots, sizeof(MPI_Request)},
        {slots, sizeof(engine_posted)},
        {slots, sizeof(MPI_Status)},
        {slots, sizeof(int)},
    };
    tess_status st = TESS_OK;
    for (int i = 0; i < 7 && st == TESS_OK; i++)
        st = tess_alloc_array(want[i].numel, want[i].nbytes, &part[i]);
    q->ring = part[0];
    q->send = part[1];
    q->receive = part[2];
    q->request = part[3];
    q->posted = part[4];
    q->statuses = part[5];
    q->finished = part[6];
    return st;
}

static void queue_free(engine_queue *q)
{
    tess_arena_destroy(&q->scratch);
    tess_free(q->finished);
    tess_free(q->statuses);
    tess_free(q->posted);
    tess_free(q->request);
    tess_free(q->receive);
    tess_free(q->send);
    tess_free(q->ring);
    tess_free(q);
}

static void find_near(engine_queue *q)
{
    const dist_nodes *nodes = q->owner->nodes;
    q->near_end = q->world;
    if (nodes == NULL)
        return;
    const int node = dist_nodes_find(nodes, q->first_world_rank + q->rank);
    q->near_first = TESS_MAX(nodes->first_rank[node] - q->first_world_rank, 0);
    q->near_end = TESS_MIN(nodes->first_rank[node + 1] - q->first_world_rank, q->world);
}

/* Untouched pages of the scratch cost nothing, so a run without library reductions pays nothing.
 * Chunks are the same on all ranks of the queue, so also where it lies on one node. */
static tess_status queue_scratch(engine_queue *q)
{
    const dist_nodes *nodes = q->owner->nodes;
    const size_t most =
        nodes != NULL && nodes->node_numel > 1 ? ENGINE_FAR_CHUNK_NBYTES : 256u << 10;
    const size_t per_peer = ENGINE_REDUCE_SCRATCH_NBYTES / ENGINE_REDUCE_SLOTS / (size_t)q->world;
    q->reduce_chunk_nbytes = TESS_MIN(TESS_MAX(per_peer / 4096 * 4096, (size_t)4096), most);
    return tess_arena_create("reduce-scatter scratch",
                             q->reduce_chunk_nbytes * ENGINE_REDUCE_SLOTS * (size_t)q->world,
                             &q->scratch);
}

tess_status engine_queue_create(engine *e, const engine_queue_args *args, engine_queue **out)
{
    void *memory = NULL;
    TESS_TRY(tess_alloc(sizeof(engine_queue), &memory));
    engine_queue *q = memory;
    q->base.ops = &queue_ops;
    q->base.name = args->name;
    q->owner = e;
    q->mpi = args->mpi;
    q->rank = args->rank;
    q->world = args->world;
    q->first_world_rank = args->first_world_rank;
    q->node_rank_numel = args->node_rank_numel;
    find_near(q);
    tess_status st = queue_alloc(q);
    if (st == TESS_OK && args->has_reduce)
        st = queue_scratch(q);
    if (st != TESS_OK) {
        queue_free(q);
        return st;
    }
    pthread_mutex_lock(&e->lock);
    q->next = e->queues;
    e->queues = q;
    pthread_mutex_unlock(&e->lock);
    *out = q;
    return TESS_OK;
}

void engine_queue_destroy(engine_queue **queue)
{
    engine_queue *q = *queue;
    if (q == NULL)
        return;
    engine *e = q->owner;
    pthread_mutex_lock(&e->lock);
    for (engine_queue **link = &e->queues; *link != NULL; link = &(*link)->next)
        if (*link == q) {
            *link = q->next;
            break;
        }
    engine_op_cancel(q);
    pthread_mutex_unlock(&e->lock);
    queue_free(q);
    *queue = NULL;
}
