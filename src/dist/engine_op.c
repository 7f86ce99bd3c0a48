#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "dist/engine_priv.h"

enum { COPY_STEP_NBYTES = 4 << 20, SUM_BLOCK_NUMEL = 2048 };

const char *engine_op_kind_name(engine_op_kind kind)
{
    switch (kind) {
    case ENGINE_WAIT:
        return "wait for an event";
    case ENGINE_ALL_GATHER:
        return "all_gather";
    case ENGINE_EXCHANGE:
        return "exchange";
    case ENGINE_REDUCE_SCATTER:
        return "reduce_scatter";
    }
    return "?";
}

/* ---- flows ---- */

static bool is_near(const engine_queue *q, int peer)
{
    return peer >= q->near_first && peer < q->near_end;
}

static size_t chunk_limit(const engine_queue *q, const engine_op *op, int peer)
{
    if (op->kind == ENGINE_REDUCE_SCATTER)
        return q->reduce_chunk_nbytes;
    if (is_near(q, peer))
        return q->owner->chunk_nbytes;
    return TESS_MIN(q->owner->chunk_nbytes, (size_t)ENGINE_FAR_CHUNK_NBYTES);
}

static int64_t reduce_chunk_numel(const engine_queue *q, const engine_op *op)
{
    return (int64_t)((op->row_nbytes + q->reduce_chunk_nbytes - 1) / q->reduce_chunk_nbytes);
}

/* Receives of a reduce-scatter land in the scratch: one chunk per slot and peer. */
static char *reduce_slot(const engine_queue *q, int64_t chunk_idx, int peer)
{
    tess_view v;
    const size_t at =
        ((size_t)(chunk_idx % ENGINE_REDUCE_SLOTS) * (size_t)q->world + (size_t)peer) *
        q->reduce_chunk_nbytes;
    const tess_status st =
        tess_arena_view(q->scratch, at, (int64_t)q->reduce_chunk_nbytes, TESS_U8, &v);
    TESS_ASSERT(st == TESS_OK);
    (void)st;
    return v.data;
}

/* What is gathered: one of a list, or the operation itself. */
typedef struct gather_part {
    char *shard;
    char *full;
    size_t row_nbytes;
} gather_part;

static int part_numel(const engine_op *op) { return op->gathers != NULL ? op->gather_numel : 1; }

static gather_part part_of(const engine_op *op, int idx)
{
    if (op->gathers == NULL)
        return (gather_part){op->shard, op->full, op->row_nbytes};
    const tess_gather_piece *p = &op->gathers[idx];
    return (gather_part){p->shard.data, op->full + p->place_nbytes, tess_view_nbytes(p->shard)};
}

/* Rows of a part that pass between this rank and a peer in the present phase, each way. */
static int row_numel(const engine_queue *q, const engine_op *op, int peer)
{
    const int k = q->node_rank_numel;
    if (op->kind != ENGINE_ALL_GATHER || k == 0)
        return 1;
    if (q->phase == 0)
        return peer % k == q->rank % k;
    return peer / k == q->rank / k ? q->world / k : 0;
}

/* Of the rows of all parts together. */
static size_t sum_row_nbytes(const engine_op *op)
{
    size_t nbytes = 0;
    for (int i = 0; i < part_numel(op); i++)
        nbytes += part_of(op, i).row_nbytes;
    return nbytes;
}

/* Set the flow on its next non-empty row; see [Note: gathers across nodes] and [Note: lists of
 * gathers]. */
static bool row_load(const engine_queue *q, const engine_op *op, int peer, bool is_receive)
{
    engine_flow *f = is_receive ? &q->receive[peer] : &q->send[peer];
    const int k = q->node_rank_numel, giver = is_receive ? peer : q->rank;
    const int rows = row_numel(q, op, peer);
    while (f->list_idx < rows * part_numel(op)) {
        const gather_part part = part_of(op, f->list_idx / rows);
        int row = op->kind == ENGINE_ALL_GATHER ? giver : peer;
        if (op->kind == ENGINE_ALL_GATHER && k > 0 && q->phase == 1)
            row = giver % k + f->list_idx % rows * k;
        f->list_idx++;
        f->at = part.full + (size_t)row * part.row_nbytes;
        if (op->kind == ENGINE_ALL_GATHER && !is_receive && row == q->rank)
            f->at = part.shard;
        f->left_nbytes = part.row_nbytes;
        if (f->left_nbytes > 0)
            return true;
    }
    return false;
}

/* Set the flow on its next non-empty piece; false: none left. */
static bool flow_load(const engine_queue *q, const engine_op *op, int peer, bool is_receive)
{
    engine_flow *f = is_receive ? &q->receive[peer] : &q->send[peer];
    if (f->left_nbytes > 0)
        return true;
    if (op->kind != ENGINE_EXCHANGE)
        return row_load(q, op, peer, is_receive);
    const tess_piece *list = is_receive ? op->pieces.receives : op->pieces.sends;
    const int list_numel = is_receive ? op->pieces.receive_numel : op->pieces.send_numel;
    while (f->list_idx < list_numel) {
        const tess_piece *p = &list[f->list_idx++];
        if (p->peer_rank != peer || p->view.numel == 0)
            continue;
        f->at = p->view.data;
        f->left_nbytes = tess_view_nbytes(p->view);
        return true;
    }
    return false;
}

/* Two ranks that are at different places of the program do not match by chance. */
static int op_tag(const engine_op *op)
{
    return (int)(((uint32_t)op->seq * 2654435761u ^ op->entry_idx * 40503u ^
                  (uint32_t)op->kind * 977u) &
                 0x7fff);
}

static bool flow_post(engine_queue *q, engine_op *op, int peer, bool is_receive)
{
    engine_flow *f = is_receive ? &q->receive[peer] : &q->send[peer];
    const size_t nbytes = TESS_MIN(f->left_nbytes, chunk_limit(q, op, peer));
    char *at = f->at;
    if (is_receive && op->kind == ENGINE_REDUCE_SCATTER)
        at = reduce_slot(q, f->chunk_idx, peer);
    MPI_Request *req = &q->request[q->active_numel];
    /* chunks are at most chunk_nbytes, which the setter keeps below 2^30 */
    const int rc = is_receive ? MPI_Irecv(at, (int)nbytes, MPI_BYTE, peer, op_tag(op), q->mpi, req)
                              : MPI_Isend(at, (int)nbytes, MPI_BYTE, peer, op_tag(op), q->mpi, req);
    if (rc != MPI_SUCCESS) {
        char text[MPI_MAX_ERROR_STRING] = "";
        int text_numel = 0;
        (void)MPI_Error_string(rc, text, &text_numel);
        engine_fail(q->owner, TESS_E_COMM, "%s '%s' (sequence %" PRIu64 "): %s rank %d: %s",
                    engine_op_kind_name(op->kind), op->name, op->seq,
                    is_receive ? "receiving from" : "sending to", q->first_world_rank + peer, text);
        return false;
    }
    q->posted[q->active_numel++] = (engine_posted){peer, is_receive, nbytes, f->chunk_idx};
    f->at += nbytes;
    f->left_nbytes -= nbytes;
    f->chunk_idx++;
    f->inflight++;
    return true;
}

static void flow_fill(engine_queue *q, engine_op *op, int peer, bool is_receive)
{
    const engine_flow *f = is_receive ? &q->receive[peer] : &q->send[peer];
    const int window = is_near(q, peer) ? ENGINE_FLOW_WINDOW : ENGINE_FAR_WINDOW;
    while (f->inflight < window && flow_load(q, op, peer, is_receive)) {
        if (is_receive && op->kind == ENGINE_REDUCE_SCATTER &&
            f->chunk_idx >= q->reduced_numel + ENGINE_REDUCE_SLOTS)
            return;
        if (!flow_post(q, op, peer, is_receive))
            return;
    }
}

/* ---- start ---- */

static void count_flows(engine_queue *q, const engine_op *op)
{
    memset(q->send, 0, (size_t)q->world * sizeof *q->send);
    memset(q->receive, 0, (size_t)q->world * sizeof *q->receive);
    q->left_nbytes = 0;
    if (op->kind != ENGINE_EXCHANGE) {
        const size_t each_nbytes = sum_row_nbytes(op);
        for (int peer = 0; peer < q->world; peer++)
            if (peer != q->rank)
                q->send[peer].total_nbytes = q->receive[peer].total_nbytes =
                    each_nbytes * (size_t)row_numel(q, op, peer);
    } else {
        for (int i = 0; i < op->pieces.send_numel; i++)
            q->send[op->pieces.sends[i].peer_rank].total_nbytes +=
                tess_view_nbytes(op->pieces.sends[i].view);
        for (int i = 0; i < op->pieces.receive_numel; i++)
            q->receive[op->pieces.receives[i].peer_rank].total_nbytes +=
                tess_view_nbytes(op->pieces.receives[i].view);
    }
    for (int peer = 0; peer < q->world; peer++)
        if (peer != q->rank)
            q->left_nbytes += q->send[peer].total_nbytes + q->receive[peer].total_nbytes;
}

static void start_flows(engine_queue *q, engine_op *op)
{
    count_flows(q, op);
    for (int d = 1; d < q->world; d++)
        flow_fill(q, op, (q->rank + q->world - d) % q->world, true);
    for (int d = 1; d < q->world; d++)
        flow_fill(q, op, (q->rank + d) % q->world, false);
}

void engine_op_start(engine_queue *q, engine_op *op)
{
    q->phase = 0;
    q->copied_nbytes = 0;
    q->own_send_idx = q->own_receive_idx = 0;
    q->is_copied = op->kind == ENGINE_REDUCE_SCATTER;
    q->reduced_numel = 0;
    memset(q->arrived, 0, sizeof q->arrived);
    start_flows(q, op);
}

/* ---- own part ---- */

static bool copy_row(engine_queue *q, const engine_op *op)
{
    const gather_part part = part_of(op, q->own_send_idx);
    char *dst = part.full + (size_t)q->rank * part.row_nbytes;
    const size_t left = part.row_nbytes - q->copied_nbytes;
    const size_t nbytes = TESS_MIN(left, (size_t)COPY_STEP_NBYTES);
    if (dst != part.shard && nbytes > 0)
        memcpy(dst + q->copied_nbytes, part.shard + q->copied_nbytes, nbytes);
    q->copied_nbytes = dst == part.shard ? part.row_nbytes : q->copied_nbytes + nbytes;
    if (q->copied_nbytes < part.row_nbytes)
        return true;
    q->copied_nbytes = 0;
    q->is_copied = ++q->own_send_idx == part_numel(op);
    return true;
}

static const tess_piece *next_own(const tess_piece *list, int list_numel, int rank, int *idx)
{
    while (*idx < list_numel) {
        const tess_piece *p = &list[(*idx)++];
        if (p->peer_rank == rank && p->view.numel > 0)
            return p;
    }
    return NULL;
}

/* Pairs were checked when the exchange was enqueued. */
static bool copy_own_piece(engine_queue *q, const engine_op *op)
{
    const tess_piece *from =
        next_own(op->pieces.sends, op->pieces.send_numel, q->rank, &q->own_send_idx);
    const tess_piece *to =
        next_own(op->pieces.receives, op->pieces.receive_numel, q->rank, &q->own_receive_idx);
    if (from == NULL || to == NULL) {
        q->is_copied = true;
        return false;
    }
    if (from->view.data != to->view.data)
        memcpy(to->view.data, from->view.data, tess_view_nbytes(from->view));
    return true;
}

/* acc[0..numel) = the sum over ranks of one block, in rank order. Sources may be misaligned. */
static void sum_block(const engine_queue *q, const engine_op *op, size_t at_nbytes, size_t nbytes)
{
    float acc[SUM_BLOCK_NUMEL];
    float term[SUM_BLOCK_NUMEL];
    const size_t in_chunk = at_nbytes % q->reduce_chunk_nbytes;
    const size_t numel = nbytes / sizeof(float);
    for (int k = 0; k < q->world; k++) {
        const char *src = k == q->rank ? op->full + (size_t)k * op->row_nbytes + at_nbytes
                                       : reduce_slot(q, q->reduced_numel, k) + in_chunk;
        memcpy(k == 0 ? acc : term, src, nbytes);
        if (k > 0)
            for (size_t i = 0; i < numel; i++)
                acc[i] += term[i];
    }
    memcpy(op->shard + at_nbytes, acc, nbytes);
}

static bool reduce_ready(engine_queue *q, engine_op *op)
{
    const int64_t chunk_numel = reduce_chunk_numel(q, op);
    bool moved = false;
    while (q->reduced_numel < chunk_numel &&
           q->arrived[q->reduced_numel % ENGINE_REDUCE_SLOTS] == q->world - 1) {
        const size_t lo = (size_t)q->reduced_numel * q->reduce_chunk_nbytes;
        const size_t hi = TESS_MIN(lo + q->reduce_chunk_nbytes, op->row_nbytes);
        for (size_t at = lo; at < hi; at += SUM_BLOCK_NUMEL * sizeof(float))
            sum_block(q, op, at, TESS_MIN(hi - at, SUM_BLOCK_NUMEL * sizeof(float)));
        q->arrived[q->reduced_numel % ENGINE_REDUCE_SLOTS] = 0;
        q->reduced_numel++;
        moved = true;
        for (int d = 1; d < q->world; d++)
            flow_fill(q, op, (q->rank + q->world - d) % q->world, true);
    }
    return moved;
}

/* ---- progress ---- */

static void settle(engine_queue *q, const engine_op *op, int idx, const MPI_Status *status)
{
    const engine_posted *p = &q->posted[idx];
    engine_flow *f = p->is_receive ? &q->receive[p->peer] : &q->send[p->peer];
    int nbytes = (int)p->nbytes;
    if (p->is_receive)
        (void)MPI_Get_count(status, MPI_BYTE, &nbytes);
    if ((size_t)nbytes != p->nbytes) {
        engine_fail(q->owner, TESS_E_COMM,
                    "%s '%s' (sequence %" PRIu64 "): rank %d sent %d bytes where rank %d expects "
                    "%zu in chunk %" PRId64 "; the ranks' plans differ",
                    engine_op_kind_name(op->kind), op->name, op->seq, q->first_world_rank + p->peer,
                    nbytes, q->first_world_rank + q->rank, p->nbytes, p->chunk_idx);
        return;
    }
    f->inflight--;
    f->done_nbytes += p->nbytes;
    q->left_nbytes -= p->nbytes;
    if (p->is_receive && op->kind == ENGINE_REDUCE_SCATTER)
        q->arrived[p->chunk_idx % ENGINE_REDUCE_SLOTS]++;
}

static void fail_request(engine_queue *q, const engine_op *op, int idx, int code)
{
    char text[MPI_MAX_ERROR_STRING] = "";
    int text_numel = 0;
    (void)MPI_Error_string(code, text, &text_numel);
    const engine_posted *p = &q->posted[idx];
    engine_fail(q->owner, TESS_E_COMM,
                "%s '%s' (sequence %" PRIu64 "): %s rank %d, %zu bytes: %s; the ranks' plans "
                "differ or the link failed",
                engine_op_kind_name(op->kind), op->name, op->seq,
                p->is_receive ? "receiving from" : "sending to", q->first_world_rank + p->peer,
                p->nbytes, text);
}

static void drop_null_requests(engine_queue *q)
{
    int kept = 0;
    for (int i = 0; i < q->active_numel; i++) {
        if (q->request[i] == MPI_REQUEST_NULL)
            continue;
        q->request[kept] = q->request[i];
        q->posted[kept++] = q->posted[i];
    }
    q->active_numel = kept;
}

static bool test_requests(engine_queue *q, engine_op *op)
{
    if (q->active_numel == 0)
        return false;
    int done_numel = 0;
    const int rc = MPI_Testsome(q->active_numel, q->request, &done_numel, q->finished, q->statuses);
    if (rc != MPI_SUCCESS && rc != MPI_ERR_IN_STATUS) {
        fail_request(q, op, 0, rc);
        return false;
    }
    if (done_numel == MPI_UNDEFINED || done_numel == 0)
        return false;
    for (int i = 0; i < done_numel; i++) {
        if (rc == MPI_ERR_IN_STATUS && q->statuses[i].MPI_ERROR != MPI_SUCCESS)
            fail_request(q, op, q->finished[i], q->statuses[i].MPI_ERROR);
        else
            settle(q, op, q->finished[i], &q->statuses[i]);
    }
    /* the table is compacted before new chunks are posted, so peers are kept in `finished` */
    for (int i = 0; i < done_numel; i++) {
        const engine_posted *p = &q->posted[q->finished[i]];
        q->finished[i] = p->is_receive ? p->peer : ~p->peer;
    }
    drop_null_requests(q);
    for (int i = 0; i < done_numel && atomic_load(&q->owner->failed) == TESS_OK; i++)
        flow_fill(q, op, q->finished[i] >= 0 ? q->finished[i] : ~q->finished[i],
                  q->finished[i] >= 0);
    return true;
}

static bool has_another_phase(const engine_queue *q, const engine_op *op)
{
    return op->kind == ENGINE_ALL_GATHER && q->node_rank_numel > 0 && q->phase == 0;
}

bool engine_op_step(engine_queue *q, engine_op *op)
{
    bool moved = test_requests(q, op);
    if (atomic_load(&q->owner->failed) != TESS_OK)
        return moved;
    if (op->kind == ENGINE_REDUCE_SCATTER)
        moved |= reduce_ready(q, op);
    else if (!q->is_copied)
        moved |= op->kind == ENGINE_ALL_GATHER ? copy_row(q, op) : copy_own_piece(q, op);
    if (has_another_phase(q, op) && q->left_nbytes == 0 && q->is_copied) {
        q->phase = 1;
        start_flows(q, op);
        moved = true;
    }
    return moved;
}

bool engine_op_is_done(const engine_queue *q, const engine_op *op)
{
    if (q->left_nbytes > 0 || !q->is_copied || has_another_phase(q, op))
        return false;
    return op->kind != ENGINE_REDUCE_SCATTER || q->reduced_numel == reduce_chunk_numel(q, op);
}

void engine_op_cancel(engine_queue *q)
{
    for (int i = 0; i < q->active_numel; i++) {
        if (q->request[i] == MPI_REQUEST_NULL)
            continue;
        if (q->posted[i].is_receive)
            (void)MPI_Cancel(&q->request[i]);
        (void)MPI_Request_free(&q->request[i]);
    }
    q->active_numel = 0;
}

/* ---- what is known when a wait ends badly ---- */

typedef struct text_out {
    char *at;
    size_t left_nbytes;
} text_out;

__attribute__((format(printf, 2, 3))) static void put(text_out *out, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    const int n = vsnprintf(out->at, out->left_nbytes, fmt, args);
    va_end(args);
    if (n <= 0 || out->left_nbytes == 0)
        return;
    const size_t used = TESS_MIN((size_t)n, out->left_nbytes - 1);
    out->at += used;
    out->left_nbytes -= used;
}

typedef enum heard { HEARD_ALL, HEARD_PART, HEARD_NOTHING } heard;

static heard flow_heard(const engine_flow *f)
{
    if (f->done_nbytes >= f->total_nbytes)
        return HEARD_ALL;
    return f->done_nbytes > 0 ? HEARD_PART : HEARD_NOTHING;
}

static void put_ranks(text_out *out, const engine_queue *q, heard which, const char *title)
{
    enum { LISTED = 8 };
    int numel = 0;
    for (int peer = 0; peer < q->world; peer++) {
        const engine_flow *f = &q->receive[peer];
        if (peer == q->rank || f->total_nbytes == 0 || flow_heard(f) != which)
            continue;
        if (numel < LISTED)
            put(out, "%s%d", numel == 0 ? title : ", ", q->first_world_rank + peer);
        numel++;
    }
    if (numel > LISTED)
        put(out, " and %d more", numel - LISTED);
}

static void put_untaken(text_out *out, const engine_queue *q)
{
    int numel = 0;
    for (int peer = 0; peer < q->world && numel < 8; peer++)
        if (peer != q->rank && flow_heard(&q->send[peer]) != HEARD_ALL)
            put(out, "%s%d", numel++ == 0 ? "; data not yet taken by rank " : ", ",
                q->first_world_rank + peer);
}

void engine_op_describe(const engine_queue *q, char *text, size_t nbytes)
{
    text_out out = {text, nbytes};
    const uint64_t done = atomic_load(&q->done);
    if (done >= q->enqueued) {
        put(&out, "stream %s is idle", q->base.name);
        return;
    }
    const engine_op *op = &q->ring[done % ENGINE_QUEUE_OP_NUMEL];
    if (op->kind == ENGINE_WAIT) {
        put(&out, "stream %s waits for an event of stream %s", q->base.name,
            op->event.stream->name);
        const engine_queue *other = (const engine_queue *)op->event.stream;
        if (atomic_load(&other->done) >= other->enqueued)
            return;
        const engine_op *front = &other->ring[atomic_load(&other->done) % ENGINE_QUEUE_OP_NUMEL];
        if (front->kind != ENGINE_WAIT) {
            put(&out, ", where ");
            engine_op_describe(other, out.at, out.left_nbytes);
        }
        return;
    }
    put(&out, "%s '%s' (sequence %" PRIu64 ", entry %u, stream %s, %d ranks)",
        engine_op_kind_name(op->kind), op->name, op->seq, op->entry_idx, q->base.name, q->world);
    if (!q->is_started)
        put(&out, " has not started");
    else {
        put_ranks(&out, q, HEARD_NOTHING, ": nothing heard from rank ");
        put_ranks(&out, q, HEARD_PART, "; part heard from rank ");
        put_ranks(&out, q, HEARD_ALL, "; all heard from rank ");
        put_untaken(&out, q);
    }
}
