#include "shard/schedule.h"

#include <limits.h>
#include <string.h>

#include "core/memory.h"

/* Buffers that operations read and write. */
typedef struct resource {
    int writer;                  /* last operation that wrote it, -1 */
    int reader[TESS_LANE_NUMEL]; /* last reader per lane since then, -1 */
} resource;

/* For each lane, the last operation of it that is known to be finished. */
typedef struct clock_vector {
    int done[TESS_LANE_NUMEL];
} clock_vector;

typedef struct builder {
    const tess_sched_spec *spec;
    tess_schedule *out;
    int op_room;
    clock_vector *finish; /* [op_room] what is finished once op i is */
    clock_vector now[TESS_LANE_NUMEL];
    resource *resources; /* slots, gradient buffers, the receive buffer */
    int resource_numel;
    int *slot_bucket; /* [slot_numel] bucket in the slot, -1 */
    int filled_numel; /* slots with a bucket */
    int *visit_stage; /* [visit_numel] stages in order of a round: forward, then backward */
    int visit_numel;
    int *next_other;  /* [visit_numel] visits until another bucket is needed, round after round; 0:
                         none is */
    int *visit_of;    /* [visit_numel] visits that need a bucket, by bucket, then in order */
    int *first_visit; /* [bucket_numel + 1] where a bucket's begin there */
    int forward_numel;
    int *unit_grad; /* [unit_numel] dedicated gradient buffer, -1: the rotating pair */
    int rotation;
    tess_sched_op pending_fold;
    bool has_pending_fold;
} builder;

const char *tess_sched_kind_name(tess_sched_kind kind)
{
    switch (kind) {
    case TESS_SCHED_GATHER:
        return "gather";
    case TESS_SCHED_FORWARD:
        return "forward";
    case TESS_SCHED_BACKWARD:
        return "backward";
    case TESS_SCHED_SEND:
        return "send";
    case TESS_SCHED_FOLD:
        return "fold";
    case TESS_SCHED_CLEAR:
        return "clear";
    case TESS_SCHED_REDUCE:
        return "reduce";
    }
    return "unknown";
}

static int slot_resource(int slot_idx) { return slot_idx; }
static int grad_resource(const builder *b, int grad_idx) { return b->spec->slot_numel + grad_idx; }
static int receive_resource(const builder *b)
{
    return b->spec->slot_numel + b->out->grad_buffer_numel;
}

static void need(int *need_op, const tess_schedule *s, int op_idx)
{
    if (op_idx < 0)
        return;
    int *slot = &need_op[s->op[op_idx].lane];
    *slot = TESS_MAX(*slot, op_idx);
}

/* What `op` must wait for because of one buffer; afterwards the buffer's record includes op number
 * `idx`. */
static void touch(builder *b, int *need_op, int resource_idx, bool is_write)
{
    resource *r = &b->resources[resource_idx];
    const int idx = b->out->op_numel;
    need(need_op, b->out, r->writer);
    if (is_write) {
        for (int lane = 0; lane < TESS_LANE_NUMEL; lane++) {
            need(need_op, b->out, r->reader[lane]);
            r->reader[lane] = -1;
        }
        r->writer = idx;
    }
}

static void read_by(builder *b, int resource_idx, tess_lane lane)
{
    b->resources[resource_idx].reader[lane] = b->out->op_numel;
}

static bool holds(const bool *list, int idx) { return list == NULL || list[idx]; }

/* Whether a send reads this rank's gradient buffer; a library reduction always does. */
static bool gives(const builder *b, const tess_sched_op *op)
{
    const tess_sched_spec *spec = b->spec;
    return op->kind == TESS_SCHED_REDUCE ||
           (op->round_idx < spec->active_round_numel && holds(spec->unit_is_sent, op->unit_idx));
}

/* Whether a send, or the sum behind it, uses the receive buffer. */
static bool takes(const builder *b, const tess_sched_op *op)
{
    const tess_sched_spec *spec = b->spec;
    const bool is_owned = holds(spec->unit_is_owned, op->unit_idx);
    if (spec->is_library) /* it writes the padding too */
        return op->kind == TESS_SCHED_REDUCE || is_owned;
    const bool is_passed =
        op->kind == TESS_SCHED_SEND && holds(spec->unit_is_relayed, op->unit_idx);
    return (is_owned || is_passed) && holds(spec->round_has_peer, op->round_idx);
}

static bool is_send(const tess_sched_op *op)
{
    return op->kind == TESS_SCHED_SEND || op->kind == TESS_SCHED_REDUCE;
}

static void touch_all(builder *b, const tess_sched_op *op, int *need_op)
{
    if (op->slot_idx >= 0) {
        const int slot = slot_resource(op->slot_idx);
        touch(b, need_op, slot, op->kind == TESS_SCHED_GATHER);
        if (op->kind != TESS_SCHED_GATHER)
            read_by(b, slot, op->lane);
    }
    if (op->grad_idx >= 0 && (!is_send(op) || gives(b, op))) {
        const int grad = grad_resource(b, op->grad_idx);
        const bool is_write = op->kind == TESS_SCHED_BACKWARD || op->kind == TESS_SCHED_CLEAR;
        touch(b, need_op, grad, is_write);
        if (!is_write)
            read_by(b, grad, op->lane);
    }
    if (is_send(op) && takes(b, op))
        touch(b, need_op, receive_resource(b), true);
    if (op->kind == TESS_SCHED_FOLD && takes(b, op)) {
        touch(b, need_op, receive_resource(b), false);
        read_by(b, receive_resource(b), op->lane);
    }
}

/* Keep only waits that nothing else implies, and merge their knowledge into the lane's clock. */
static void settle_waits(builder *b, tess_sched_op *op, const int *need_op)
{
    clock_vector *now = &b->now[op->lane];
    for (int lane = 0; lane < TESS_LANE_NUMEL; lane++) {
        op->wait[lane] = -1;
        const int wanted = need_op[lane];
        if (wanted < 0 || lane == (int)op->lane || now->done[lane] >= wanted)
            continue;
        bool is_implied = false;
        for (int other = 0; other < TESS_LANE_NUMEL; other++)
            if (other != lane && other != (int)op->lane && need_op[other] > now->done[other] &&
                b->finish[need_op[other]].done[lane] >= wanted)
                is_implied = true;
        if (!is_implied)
            op->wait[lane] = wanted;
    }
    for (int lane = 0; lane < TESS_LANE_NUMEL; lane++) {
        if (op->wait[lane] < 0)
            continue;
        b->out->op[op->wait[lane]].is_recorded = true;
        for (int other = 0; other < TESS_LANE_NUMEL; other++)
            now->done[other] = TESS_MAX(now->done[other], b->finish[op->wait[lane]].done[other]);
    }
}

static tess_status emit(builder *b, tess_sched_op op)
{
    tess_schedule *s = b->out;
    if (s->op_numel == b->op_room) {
        const int room = b->op_room * 2 + 256;
        void *ops = s->op;
        void *finish = b->finish;
        TESS_TRY(tess_realloc_array(b->op_room, room, sizeof *s->op, &ops));
        s->op = ops;
        TESS_TRY(tess_realloc_array(b->op_room, room, sizeof *b->finish, &finish));
        b->finish = finish;
        b->op_room = room;
    }
    int need_op[TESS_LANE_NUMEL] = {-1, -1, -1};
    touch_all(b, &op, need_op);
    settle_waits(b, &op, need_op);
    clock_vector *now = &b->now[op.lane];
    now->done[op.lane] = s->op_numel;
    b->finish[s->op_numel] = *now;
    s->op[s->op_numel++] = op;
    return TESS_OK;
}

static tess_sched_op make_op(tess_sched_kind kind, tess_lane lane, int round_idx, int unit_idx)
{
    const tess_sched_op op = {.kind = kind,
                              .lane = lane,
                              .round_idx = round_idx,
                              .stage_idx = -1,
                              .unit_idx = unit_idx,
                              .bucket_idx = -1,
                              .slot_idx = -1,
                              .grad_idx = -1,
                              .wait = {-1, -1, -1}};
    return op;
}

/* ---- slots ---- */

static int unit_of_visit(const builder *b, int64_t visit)
{
    return b->spec->stage_unit[b->visit_stage[visit % b->visit_numel]];
}

static int bucket_of_visit(const builder *b, int64_t visit)
{
    return b->spec->unit_bucket[unit_of_visit(b, visit)];
}

static int64_t visit_end(const builder *b)
{
    return (int64_t)b->visit_numel * b->spec->round_numel;
}

static int slot_of(const builder *b, int bucket_idx)
{
    for (int i = 0; i < b->spec->slot_numel; i++)
        if (b->slot_bucket[i] == bucket_idx)
            return i;
    return -1;
}

/* Visits from `visit` on until a bucket is needed; INT_MAX when it is not needed any more. */
static int distance(const builder *b, int64_t visit, int bucket_idx)
{
    const int place = (int)(visit % b->visit_numel);
    const int first = b->first_visit[bucket_idx], end = b->first_visit[bucket_idx + 1];
    int lo = first, hi = end; /* the first of its visits at `place` or later in the round */
    while (lo < hi) {
        const int mid = lo + (hi - lo) / 2;
        if (b->visit_of[mid] < place)
            lo = mid + 1;
        else
            hi = mid;
    }
    const int d = lo < end ? b->visit_of[lo] - place : b->visit_of[first] + b->visit_numel - place;
    return visit + d < visit_end(b) ? d : INT_MAX;
}

/* The slot to fill for `visit + ahead`: free, or the one needed last; -1 when all are needed
 * sooner. */
static int choose_slot(const builder *b, int64_t visit, int ahead)
{
    int best = -1, best_distance = ahead;
    for (int i = 0; i < b->spec->slot_numel; i++) {
        if (b->slot_bucket[i] < 0)
            return i;
        const int d = distance(b, visit, b->slot_bucket[i]);
        if (d > best_distance) {
            best = i;
            best_distance = d;
        }
    }
    return best;
}

static tess_status ensure_gathered(builder *b, int64_t visit, int ahead)
{
    const int bucket_idx = bucket_of_visit(b, visit + ahead);
    if (bucket_idx < 0 || slot_of(b, bucket_idx) >= 0)
        return TESS_OK;
    const int slot_idx = choose_slot(b, visit, ahead);
    if (slot_idx < 0)
        return TESS_OK;
    b->filled_numel += b->slot_bucket[slot_idx] < 0;
    b->slot_bucket[slot_idx] = bucket_idx;
    tess_sched_op op =
        make_op(TESS_SCHED_GATHER, TESS_LANE_GATHER, (int)((visit + ahead) / b->visit_numel),
                unit_of_visit(b, visit + ahead));
    op.bucket_idx = bucket_idx;
    op.slot_idx = slot_idx;
    b->out->gather_numel++;
    return emit(b, op);
}

/* The bucket of this visit, and of the next `prefetch` that are others. */
static tess_status gather_for(builder *b, int64_t visit)
{
    int ahead = 0;
    if (b->filled_numel == b->spec->bucket_numel)
        return TESS_OK;
    TESS_TRY(ensure_gathered(b, visit, 0));
    for (int i = 0; i < b->spec->prefetch; i++) {
        const int step = b->next_other[(visit + ahead) % b->visit_numel];
        ahead += step;
        if (step == 0 || ahead > b->visit_numel || visit + ahead >= visit_end(b))
            return TESS_OK;
        TESS_TRY(ensure_gathered(b, visit, ahead));
    }
    return TESS_OK;
}

/* ---- gradients ---- */

static int grad_buffer_of(builder *b, int unit_idx)
{
    return b->unit_grad[unit_idx] >= 0 ? b->unit_grad[unit_idx] : b->rotation;
}

static tess_status flush_fold(builder *b)
{
    if (!b->has_pending_fold)
        return TESS_OK;
    b->has_pending_fold = false;
    return emit(b, b->pending_fold);
}

/* A rank without a micro-batch has nothing to add: its part of a library reduction must be zero. */
static bool is_stale(const tess_sched_spec *spec, int round_idx)
{
    if (!spec->is_library)
        return false;
    return spec->is_library_once ? spec->active_round_numel == 0
                                 : round_idx >= spec->active_round_numel;
}

static tess_status emit_gradient(builder *b, int round_idx, int unit_idx, int grad_idx)
{
    const tess_sched_spec *spec = b->spec;
    const bool is_last_round = round_idx == spec->round_numel - 1;
    if (spec->is_library && spec->is_library_once && !is_last_round)
        return TESS_OK;
    TESS_TRY(flush_fold(b));
    tess_sched_op op = make_op(spec->is_library ? TESS_SCHED_REDUCE : TESS_SCHED_SEND,
                               TESS_LANE_REDUCE, round_idx, unit_idx);
    op.grad_idx = grad_idx;
    if (is_stale(spec, round_idx)) {
        tess_sched_op clear = make_op(TESS_SCHED_CLEAR, TESS_LANE_COMPUTE, round_idx, unit_idx);
        clear.grad_idx = grad_idx;
        TESS_TRY(emit(b, clear));
    }
    TESS_TRY(emit(b, op));
    b->pending_fold = make_op(TESS_SCHED_FOLD, TESS_LANE_COMPUTE, round_idx, unit_idx);
    b->pending_fold.grad_idx = grad_idx;
    b->has_pending_fold = true;
    if (b->unit_grad[unit_idx] < 0)
        b->rotation = 1 - b->rotation;
    return TESS_OK;
}

/* ---- visits ---- */

static bool is_first_backward(const builder *b, int stage_idx)
{
    for (int s = stage_idx + 1; s < b->spec->stage_numel; s++)
        if (b->spec->stage_unit[s] == b->spec->stage_unit[stage_idx])
            return false;
    return true;
}

static bool is_last_backward(const builder *b, int stage_idx)
{
    for (int s = 0; s < stage_idx; s++)
        if (b->spec->stage_unit[s] == b->spec->stage_unit[stage_idx])
            return false;
    return true;
}

static tess_status emit_visit(builder *b, int round_idx, int place, int64_t visit)
{
    const tess_sched_spec *spec = b->spec;
    const int stage_idx = b->visit_stage[place];
    const int unit_idx = spec->stage_unit[stage_idx];
    const bool is_backward = place >= b->forward_numel;
    const bool is_active = round_idx < spec->active_round_numel;
    TESS_TRY(gather_for(b, visit));
    tess_sched_op op = make_op(is_backward ? TESS_SCHED_BACKWARD : TESS_SCHED_FORWARD,
                               TESS_LANE_COMPUTE, round_idx, unit_idx);
    op.stage_idx = stage_idx;
    op.slot_idx = spec->unit_bucket[unit_idx] >= 0 ? slot_of(b, spec->unit_bucket[unit_idx]) : -1;
    const bool has_grad = is_backward && spec->unit_has_grad[unit_idx];
    if (has_grad)
        op.grad_idx = grad_buffer_of(b, unit_idx);
    op.clears_grad = has_grad && is_first_backward(b, stage_idx) &&
                     (round_idx == 0 || !spec->is_library || !spec->is_library_once);
    op.is_recomputed = is_backward && spec->stage_checkpoints[stage_idx] &&
                       !(spec->is_last_fused && stage_idx == spec->stage_numel - 1);
    /* A buffer that is about to be written again is summed first. */
    if (has_grad && b->pending_fold.grad_idx == op.grad_idx)
        TESS_TRY(flush_fold(b));
    if (is_active ||
        (!is_backward && spec->stage_is_joint != NULL && spec->stage_is_joint[stage_idx]))
        TESS_TRY(emit(b, op));
    if (has_grad && is_last_backward(b, stage_idx))
        return emit_gradient(b, round_idx, unit_idx, op.grad_idx);
    return TESS_OK;
}

static tess_status check_spec(const tess_sched_spec *spec)
{
    const bool is_short = spec->slot_numel < spec->bucket_numel;
    TESS_CHECK(spec->stage_numel > 0 && spec->unit_numel > 0 && spec->round_numel > 0, TESS_E_ARG,
               "schedule needs stages, units and rounds, found %d, %d, %d", spec->stage_numel,
               spec->unit_numel, spec->round_numel);
    for (int u = 0; u < spec->unit_numel; u++)
        TESS_CHECK(spec->unit_bucket[u] < spec->bucket_numel, TESS_E_ARG,
                   "unit %d is gathered with bucket %d of %d", u, spec->unit_bucket[u],
                   spec->bucket_numel);
    TESS_CHECK(!is_short || spec->slot_numel >= 2, TESS_E_ARG,
               "%d buckets of gathered units need at least 2 slots, found %d", spec->bucket_numel,
               spec->slot_numel);
    TESS_CHECK(spec->prefetch >= 0 &&
                   (spec->prefetch == 0 || spec->prefetch < spec->slot_numel || !is_short),
               TESS_E_ARG, "prefetch %d needs %d slots, found %d", spec->prefetch,
               spec->prefetch + 1, spec->slot_numel);
    return TESS_OK;
}

/* The lowest stage with a backward. Nothing below it learns, so nobody wants its input's gradient.
 * A fused last stage has its loss to give, whatever learns. */
static int last_backward_stage(const tess_sched_spec *spec)
{
    const int end = spec->stage_numel - (spec->is_last_fused ? 1 : 0);
    int s = 0;
    while (s < end && !spec->unit_has_grad[spec->stage_unit[s]])
        s++;
    return s;
}

static tess_status plan_visits(builder *b)
{
    const tess_sched_spec *spec = b->spec;
    const int n = spec->stage_numel;
    void *array = NULL;
    TESS_TRY(tess_alloc_array(2 * (int64_t)n, sizeof(int), &array));
    b->visit_stage = array;
    b->forward_numel = n - (spec->is_last_fused && !spec->is_eval ? 1 : 0);
    for (int s = 0; s < b->forward_numel; s++)
        b->visit_stage[b->visit_numel++] = s;
    for (int s = n - 1; s >= last_backward_stage(spec) && !spec->is_eval; s--)
        b->visit_stage[b->visit_numel++] = s;
    return TESS_OK;
}

/* From the next visit's answer: twice around, so that the first visits are behind the last ones. */
static int next_other_of(const builder *b, int place)
{
    const int next = (place + 1) % b->visit_numel;
    const int bucket_idx = bucket_of_visit(b, place), next_idx = bucket_of_visit(b, next);
    const int step = b->next_other[next];
    if (next_idx >= 0 && next_idx != bucket_idx)
        return 1;
    if (step == 0)
        return 0;
    if (next_idx == bucket_idx)
        return 1 + step;
    /* the next visit needs none, what comes then may be this one's own bucket */
    const int then = (next + step) % b->visit_numel;
    if (bucket_of_visit(b, then) != bucket_idx)
        return 1 + step;
    return b->next_other[then] > 0 ? 1 + step + b->next_other[then] : 0;
}

/* Where buckets are needed, so that no visit looks through the others. */
static tess_status plan_needs(builder *b)
{
    const int bucket_numel = b->spec->bucket_numel;
    void *array = NULL;
    TESS_TRY(tess_alloc_array(b->visit_numel, sizeof(int), &array));
    b->next_other = array;
    TESS_TRY(tess_alloc_array(b->visit_numel, sizeof(int), &array));
    b->visit_of = array;
    TESS_TRY(tess_alloc_array((int64_t)bucket_numel + 1, sizeof(int), &array));
    b->first_visit = array;
    for (int i = 2 * b->visit_numel - 1; i >= 0; i--)
        b->next_other[i % b->visit_numel] = next_other_of(b, i % b->visit_numel);
    for (int place = 0; place < b->visit_numel; place++)
        if (bucket_of_visit(b, place) >= 0)
            b->first_visit[bucket_of_visit(b, place)]++;
    for (int i = 0, at = 0; i <= bucket_numel; i++)
        b->first_visit[i] = at += b->first_visit[i]; /* its end */
    for (int place = b->visit_numel - 1; place >= 0; place--)
        if (bucket_of_visit(b, place) >= 0)
            b->visit_of[--b->first_visit[bucket_of_visit(b, place)]] = place;
    return TESS_OK;
}

/* A unit of several stages, or one whose rounds are added locally, keeps a buffer of its own. */
static tess_status plan_grad_buffers(builder *b)
{
    const tess_sched_spec *spec = b->spec;
    bool is_pair_used = false;
    void *array = NULL;
    TESS_TRY(tess_alloc_array(spec->unit_numel, sizeof(int), &array));
    b->unit_grad = array;
    TESS_TRY(tess_alloc_array(spec->unit_numel + 2, sizeof(int), &array));
    b->out->grad_unit = array;
    for (int u = 0; u < spec->unit_numel; u++) {
        b->unit_grad[u] = -1;
        const bool is_kept = spec->is_library && spec->is_library_once;
        if (spec->unit_has_grad[u] && spec->unit_stage_numel[u] == 1 && !is_kept)
            is_pair_used = true;
    }
    int used = is_pair_used ? 2 : 0;
    for (int i = 0; i < used; i++)
        b->out->grad_unit[i] = -1;
    for (int u = 0; u < spec->unit_numel; u++) {
        const bool is_kept = spec->is_library && spec->is_library_once;
        if (!spec->unit_has_grad[u] || (spec->unit_stage_numel[u] == 1 && !is_kept))
            continue;
        b->unit_grad[u] = used;
        b->out->grad_unit[used++] = u;
    }
    b->out->grad_buffer_numel = spec->is_eval ? 0 : used;
    return TESS_OK;
}

static tess_status plan_resources(builder *b)
{
    void *array = NULL;
    TESS_TRY(tess_alloc_array(b->spec->slot_numel, sizeof(int), &array));
    b->slot_bucket = array;
    for (int i = 0; i < b->spec->slot_numel; i++)
        b->slot_bucket[i] = -1;
    b->resource_numel = b->spec->slot_numel + b->out->grad_buffer_numel + 1;
    TESS_TRY(tess_alloc_array(b->resource_numel, sizeof(resource), &array));
    b->resources = array;
    for (int i = 0; i < b->resource_numel; i++) {
        b->resources[i].writer = -1;
        for (int lane = 0; lane < TESS_LANE_NUMEL; lane++)
            b->resources[i].reader[lane] = -1;
    }
    for (int lane = 0; lane < TESS_LANE_NUMEL; lane++)
        for (int other = 0; other < TESS_LANE_NUMEL; other++)
            b->now[lane].done[other] = -1;
    return TESS_OK;
}

static tess_status build(builder *b)
{
    TESS_TRY(check_spec(b->spec));
    TESS_TRY(plan_visits(b));
    TESS_TRY(plan_needs(b));
    TESS_TRY(plan_grad_buffers(b));
    TESS_TRY(plan_resources(b));
    for (int round = 0; round < b->spec->round_numel; round++)
        for (int place = 0; place < b->visit_numel; place++)
            TESS_TRY(emit_visit(b, round, place, (int64_t)round * b->visit_numel + place));
    return flush_fold(b);
}

tess_status tess_schedule_create(const tess_sched_spec *spec, tess_schedule *out)
{
    tess_schedule made = {0};
    builder b = {.spec = spec, .out = &made};
    const tess_status st = build(&b);
    tess_free(b.finish);
    tess_free(b.resources);
    tess_free(b.slot_bucket);
    tess_free(b.visit_stage);
    tess_free(b.next_other);
    tess_free(b.visit_of);
    tess_free(b.first_visit);
    tess_free(b.unit_grad);
    if (st != TESS_OK) {
        tess_schedule_fini(&made);
        return st;
    }
    *out = made;
    return TESS_OK;
}

void tess_schedule_fini(tess_schedule *sched)
{
    tess_free(sched->op);
    tess_free(sched->grad_unit);
    memset(sched, 0, sizeof *sched);
}
