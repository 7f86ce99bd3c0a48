/*
 * Schedules of thousands of small models are replayed by a checker of its own: what every operation
 * reads and writes is written down here a second time, and what happens before what follows from
 * the order of lanes and the waits alone, pair by pair.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "core/rng.h"
#include "shard/schedule_waits.h"

enum { RESOURCE_MAX = 64, RANDOM_SPEC_NUMEL = 4000 };

static void point(model *m)
{
    m->spec.stage_unit = m->stage_unit;
    m->spec.stage_checkpoints = m->stage_checkpoints;
    m->spec.unit_bucket = m->unit_bucket;
    m->spec.unit_has_grad = m->unit_has_grad;
    m->spec.unit_stage_numel = m->unit_stage_numel;
    m->spec.unit_is_sent = m->unit_is_sent;
    m->spec.unit_is_owned = m->unit_is_owned;
    m->spec.unit_is_relayed = m->unit_is_relayed;
    m->spec.round_has_peer = m->round_has_peer;
}

/* One unit per stage, everything gathered and trained; every unit alone. */
static void make_chain(model *m, int stage_numel, int slot_numel, int prefetch, int round_numel)
{
    memset(m, 0, sizeof *m);
    for (int s = 0; s < stage_numel; s++) {
        m->stage_unit[s] = s;
        m->unit_bucket[s] = s;
        m->unit_has_grad[s] = true;
        m->unit_is_sent[s] = m->unit_is_owned[s] = true;
        m->unit_stage_numel[s] = 1;
    }
    m->spec = (tess_sched_spec){.stage_numel = stage_numel,
                                .unit_numel = stage_numel,
                                .bucket_numel = stage_numel,
                                .round_numel = round_numel,
                                .active_round_numel = round_numel,
                                .slot_numel = slot_numel,
                                .prefetch = prefetch};
    for (int r = 0; r < round_numel; r++)
        m->round_has_peer[r] = true;
    point(m);
}

static int below(const tess_rng *rng, uint64_t *draw, int end)
{
    return (int)tess_rng_below(rng, (*draw)++, (uint64_t)end);
}

static void make_random(model *m, uint32_t seed)
{
    const tess_rng rng = tess_rng_make(41, TESS_RNG_TEST, 0, seed);
    uint64_t draw = 0;
    tess_sched_spec *s = &m->spec;
    memset(m, 0, sizeof *m);
    s->stage_numel = 1 + below(&rng, &draw, STAGE_MAX);
    for (int i = 0; i < s->stage_numel; i++) {
        const bool is_tied = s->unit_numel > 0 && below(&rng, &draw, 4) == 0;
        m->stage_unit[i] = is_tied ? below(&rng, &draw, s->unit_numel) : s->unit_numel++;
        m->unit_stage_numel[m->stage_unit[i]]++;
        m->stage_checkpoints[i] = below(&rng, &draw, 2) == 0;
    }
    for (int u = 0; u < s->unit_numel; u++) {
        const bool is_gathered = below(&rng, &draw, 5) != 0;
        const bool is_first = s->bucket_numel == 0 || below(&rng, &draw, 3) != 0;
        s->bucket_numel += is_gathered && is_first;
        m->unit_bucket[u] = is_gathered ? s->bucket_numel - 1 : -1;
        m->unit_has_grad[u] = below(&rng, &draw, 5) != 0;
        m->unit_is_sent[u] = below(&rng, &draw, 4) != 0;
        m->unit_is_owned[u] = below(&rng, &draw, 4) != 0;
        m->unit_is_relayed[u] = below(&rng, &draw, 2) != 0;
    }
    if (s->bucket_numel == 1)
        s->slot_numel = 1 + below(&rng, &draw, 2);
    else if (s->bucket_numel > 0)
        s->slot_numel = 2 + below(&rng, &draw, s->bucket_numel);
    s->prefetch = below(&rng, &draw, s->slot_numel > 0 ? s->slot_numel : 2);
    s->round_numel = 1 + below(&rng, &draw, 4);
    s->active_round_numel = s->round_numel - below(&rng, &draw, 2);
    for (int r = 0; r < s->round_numel; r++)
        m->round_has_peer[r] = r + 1 < s->round_numel || below(&rng, &draw, 2) == 0;
    s->is_last_fused = below(&rng, &draw, 2) == 0;
    s->is_library = below(&rng, &draw, 3) == 0;
    s->is_library_once = s->is_library && below(&rng, &draw, 2) == 0;
    s->is_eval = below(&rng, &draw, 8) == 0;
    if (s->is_eval)
        s->round_numel = s->active_round_numel = 1;
    point(m);
}

static void describe(const model *m, char text[256])
{
    const tess_sched_spec *s = &m->spec;
    int used =
        snprintf(text, 256,
                 "%d stages, slots %d, prefetch %d, rounds %d/%d, fused %d, library %d/%d, "
                 "eval %d, units",
                 s->stage_numel, s->slot_numel, s->prefetch, s->active_round_numel, s->round_numel,
                 s->is_last_fused, s->is_library, s->is_library_once, s->is_eval);
    for (int i = 0; i < s->stage_numel; i++)
        used += snprintf(text + used, 256 - (size_t)used, " %d(%d)", m->stage_unit[i],
                         m->unit_bucket[m->stage_unit[i]]);
}

/* ---- what lies where ---- */

typedef struct grad_content {
    int unit_idx;   /* -1: nothing yet */
    int part_numel; /* backward calls added since the clearing */
    bool is_sent, is_folded, is_cleared;
} grad_content;

typedef struct place_state {
    const model *m;
    const tess_schedule *s;
    const char *name;
    int slot_bucket[RESOURCE_MAX];
    grad_content grad[RESOURCE_MAX];
    int forward_numel[4][STAGE_MAX], backward_numel[4][STAGE_MAX];
    int sent_numel[4][STAGE_MAX], folded_numel[4][STAGE_MAX];
    int open_send; /* the receive buffer holds this operation's pieces, not folded yet */
} place_state;

static bool is_compute(const tess_sched_op *op)
{
    return op->kind == TESS_SCHED_FORWARD || op->kind == TESS_SCHED_BACKWARD;
}

static bool is_send(const tess_sched_op *op)
{
    return op->kind == TESS_SCHED_SEND || op->kind == TESS_SCHED_REDUCE;
}

static void place_compute(place_state *p, const tess_sched_op *op)
{
    const tess_sched_spec *spec = &p->m->spec;
    const int u = op->unit_idx;
    const bool is_backward = op->kind == TESS_SCHED_BACKWARD;
    assert_int_equal(op->lane, TESS_LANE_COMPUTE);
    assert_int_equal(u, spec->stage_unit[op->stage_idx]);
    assert_true(op->round_idx < spec->active_round_numel);
    assert_int_equal(op->bucket_idx, -1);
    if (spec->unit_bucket[u] < 0)
        assert_int_equal(op->slot_idx, -1);
    else if (op->slot_idx < 0 || p->slot_bucket[op->slot_idx] != spec->unit_bucket[u])
        fail_msg("%s: stage %d computes with slot %d, its unit %d is not there", p->name,
                 op->stage_idx, op->slot_idx, u);
    if (!is_backward) {
        p->forward_numel[op->round_idx][op->stage_idx]++;
        assert_int_equal(op->grad_idx, -1);
        return;
    }
    p->backward_numel[op->round_idx][op->stage_idx]++;
    const bool is_fused = spec->is_last_fused && op->stage_idx == spec->stage_numel - 1;
    assert_int_equal(op->is_recomputed, spec->stage_checkpoints[op->stage_idx] && !is_fused);
    if (!spec->unit_has_grad[u]) {
        assert_int_equal(op->grad_idx, -1);
        return;
    }
    assert_in_range(op->grad_idx, 0, p->s->grad_buffer_numel - 1);
    const int owner = p->s->grad_unit[op->grad_idx];
    assert_true(owner == -1 || owner == u);
    grad_content *g = &p->grad[op->grad_idx];
    if (op->clears_grad) {
        if (g->is_sent && !g->is_folded)
            fail_msg("%s: buffer %d is written before it is summed", p->name, op->grad_idx);
        *g = (grad_content){.unit_idx = u};
    }
    if (g->unit_idx != u || g->is_sent)
        fail_msg("%s: stage %d adds to buffer %d that holds unit %d", p->name, op->stage_idx,
                 op->grad_idx, g->unit_idx);
    g->part_numel++;
}

/* A library reduction of a rank that has nothing to add reads zeros. */
static void place_clear(place_state *p, const tess_sched_op *op)
{
    const tess_sched_spec *spec = &p->m->spec;
    assert_int_equal(op->lane, TESS_LANE_COMPUTE);
    assert_true(spec->is_library);
    assert_true(spec->is_library_once ? spec->active_round_numel == 0
                                      : op->round_idx >= spec->active_round_numel);
    p->grad[op->grad_idx] = (grad_content){.unit_idx = op->unit_idx, .is_cleared = true};
}

static void place_send(place_state *p, int op_idx)
{
    const tess_sched_spec *spec = &p->m->spec;
    const tess_sched_op *op = &p->s->op[op_idx];
    grad_content *g = &p->grad[op->grad_idx];
    assert_int_equal(op->lane, TESS_LANE_REDUCE);
    assert_int_equal(op->kind == TESS_SCHED_REDUCE, spec->is_library);
    assert_true(spec->unit_has_grad[op->unit_idx]);
    if (p->open_send != NO_OP)
        fail_msg("%s: op %d overwrites the pieces of op %d", p->name, op_idx, p->open_send);
    p->open_send = op_idx;
    p->sent_numel[op->round_idx][op->unit_idx]++;
    const int round_numel = spec->is_library_once                      ? spec->active_round_numel
                            : op->round_idx < spec->active_round_numel ? 1
                                                                       : 0;
    const int want = round_numel * spec->unit_stage_numel[op->unit_idx];
    if (want == 0 && !spec->is_library)
        *g = (grad_content){.unit_idx = op->unit_idx}; /* nothing of it is sent */
    assert_int_equal(g->is_cleared, want == 0 && spec->is_library);
    if (g->unit_idx != op->unit_idx || g->part_numel != want || g->is_sent)
        fail_msg("%s: op %d sends unit %d with %d of %d parts", p->name, op_idx, g->unit_idx,
                 g->part_numel, want);
    g->is_sent = true;
}

static void place_fold(place_state *p, int op_idx)
{
    const tess_sched_op *op = &p->s->op[op_idx];
    assert_int_equal(op->lane, TESS_LANE_COMPUTE);
    if (p->open_send == NO_OP)
        fail_msg("%s: op %d folds what nobody sent", p->name, op_idx);
    const tess_sched_op *send = &p->s->op[p->open_send];
    assert_int_equal(send->unit_idx, op->unit_idx);
    assert_int_equal(send->round_idx, op->round_idx);
    assert_int_equal(send->grad_idx, op->grad_idx);
    /* The exact reduction reads this rank's own piece from the buffer. */
    assert_int_equal(p->grad[op->grad_idx].unit_idx, op->unit_idx);
    p->grad[op->grad_idx].is_folded = true;
    p->folded_numel[op->round_idx][op->unit_idx]++;
    p->open_send = NO_OP;
}

/* A stage is visited backwards where it, or one below, has a gradient to give, or a loss. */
static bool has_backward(const tess_sched_spec *spec, int stage_idx)
{
    bool has = spec->is_last_fused && stage_idx == spec->stage_numel - 1;
    for (int s = 0; s <= stage_idx; s++)
        has = has || spec->unit_has_grad[spec->stage_unit[s]];
    return has && !spec->is_eval;
}

static void check_counts(const place_state *p)
{
    const tess_sched_spec *spec = &p->m->spec;
    for (int r = 0; r < spec->round_numel; r++) {
        const int active = r < spec->active_round_numel;
        for (int s = 0; s < spec->stage_numel; s++) {
            const bool is_fused =
                spec->is_last_fused && !spec->is_eval && s == spec->stage_numel - 1;
            assert_int_equal(p->forward_numel[r][s], active && !is_fused);
            assert_int_equal(p->backward_numel[r][s], active && has_backward(spec, s));
        }
        for (int u = 0; u < spec->unit_numel; u++) {
            const bool is_due = !spec->is_library_once || r == spec->round_numel - 1;
            const int want = spec->unit_has_grad[u] && !spec->is_eval && is_due;
            if (p->sent_numel[r][u] != want || p->folded_numel[r][u] != want)
                fail_msg("%s: unit %d of round %d sent %d, folded %d, expected %d", p->name, u, r,
                         p->sent_numel[r][u], p->folded_numel[r][u], want);
        }
    }
}

static void check_places(const model *m, const tess_schedule *s, const char *name)
{
    static place_state p;
    int gather_numel = 0;
    memset(&p, 0, sizeof p);
    p.m = m;
    p.s = s;
    p.name = name;
    p.open_send = NO_OP;
    for (int i = 0; i < RESOURCE_MAX; i++)
        p.slot_bucket[i] = p.grad[i].unit_idx = -1;
    for (int i = 0; i < s->op_numel; i++) {
        const tess_sched_op *op = &s->op[i];
        if (op->kind == TESS_SCHED_GATHER) {
            assert_int_equal(op->lane, TESS_LANE_GATHER);
            assert_in_range(op->slot_idx, 0, m->spec.slot_numel - 1);
            assert_in_range(op->bucket_idx, 0, m->spec.bucket_numel - 1);
            assert_int_equal(m->unit_bucket[op->unit_idx], op->bucket_idx);
            for (int k = 0; k < m->spec.slot_numel; k++)
                assert_int_not_equal(p.slot_bucket[k], op->bucket_idx);
            p.slot_bucket[op->slot_idx] = op->bucket_idx;
            gather_numel++;
        } else if (is_compute(op)) {
            place_compute(&p, op);
        } else if (op->kind == TESS_SCHED_CLEAR) {
            place_clear(&p, op);
        } else if (is_send(op)) {
            place_send(&p, i);
        } else {
            place_fold(&p, i);
        }
    }
    assert_int_equal(p.open_send, NO_OP);
    assert_int_equal(gather_numel, s->gather_numel);
    check_counts(&p);
}

/* ---- order of gathers ---- */

static int next_compute(const tess_schedule *s, int op_idx)
{
    for (int i = op_idx + 1; i < s->op_numel; i++)
        if (is_compute(&s->op[i]))
            return i;
    return NO_OP;
}

/* The first computation from `op_idx` on that reads a slot with another bucket than `bucket_idx`.
 */
static int next_of_other_bucket(const model *m, const tess_schedule *s, int op_idx, int bucket_idx)
{
    for (int i = op_idx; i < s->op_numel; i++)
        if (is_compute(&s->op[i]) && m->unit_bucket[s->op[i].unit_idx] >= 0 &&
            m->unit_bucket[s->op[i].unit_idx] != bucket_idx)
            return i;
    return NO_OP;
}

/*
 * Without prefetch a gather comes right before the operation that needs it. With one it is that of
 * the bucket after the one of the operation that follows, whose first computation it comes before:
 * so that it travels while all of that bucket computes.
 */
static void check_prefetch(const model *m, const tess_schedule *s, const char *name)
{
    int before = NO_OP; /* the last computation */
    if (m->spec.prefetch > 1 || m->spec.active_round_numel < m->spec.round_numel)
        return;
    for (int i = 0; i < s->op_numel; i++) {
        const tess_sched_op *op = &s->op[i];
        if (is_compute(op))
            before = i;
        if (op->kind != TESS_SCHED_GATHER)
            continue;
        const int next = next_compute(s, i), here = m->unit_bucket[s->op[next].unit_idx];
        const bool is_due = here == op->bucket_idx;
        if (m->spec.prefetch == 0 || is_due) {
            if (!is_due)
                fail_msg("%s: gather %d of bucket %d is not for the operation that follows", name,
                         i, op->bucket_idx);
            const bool is_late = before != NO_OP && m->spec.prefetch == 1;
            if (is_late)
                fail_msg("%s: gather %d of bucket %d is not ahead", name, i, op->bucket_idx);
            continue;
        }
        const int user = next_of_other_bucket(m, s, next, here);
        if (user == NO_OP || m->unit_bucket[s->op[user].unit_idx] != op->bucket_idx)
            fail_msg("%s: gather %d of bucket %d is not for the bucket that follows", name, i,
                     op->bucket_idx);
        /* no sooner was possible: the computation before was of another bucket */
        if (before != NO_OP && here >= 0 && m->unit_bucket[s->op[before].unit_idx] == here)
            fail_msg("%s: gather %d of bucket %d comes in the middle of a bucket", name, i,
                     op->bucket_idx);
    }
}

static int next_on_lane(const tess_schedule *s, tess_lane lane, int op_idx)
{
    for (int i = op_idx + 1; i < s->op_numel; i++)
        if (s->op[i].lane == lane)
            return i;
    return NO_OP;
}

/* Ranks that compute less enqueue the same collectives, stream by stream. */
static void check_collectives(const model *m, const tess_schedule *s, const char *name)
{
    for (int active = 0; active < m->spec.active_round_numel; active++) {
        model passive = *m;
        tess_schedule other;
        passive.spec.active_round_numel = active;
        point(&passive);
        assert_int_equal(tess_schedule_create(&passive.spec, &other), TESS_OK);
        for (tess_lane lane = TESS_LANE_GATHER; lane < TESS_LANE_NUMEL; lane++) {
            int a = NO_OP, b = NO_OP;
            do {
                a = next_on_lane(s, lane, a);
                b = next_on_lane(&other, lane, b);
                if ((a == NO_OP) != (b == NO_OP))
                    fail_msg("%s: %d active rounds have another number of collectives", name,
                             active);
                if (a != NO_OP && (s->op[a].kind != other.op[b].kind ||
                                   s->op[a].unit_idx != other.op[b].unit_idx ||
                                   s->op[a].bucket_idx != other.op[b].bucket_idx ||
                                   s->op[a].round_idx != other.op[b].round_idx ||
                                   s->op[a].slot_idx != other.op[b].slot_idx))
                    fail_msg("%s: %d active rounds: op %d is another collective", name, active, b);
            } while (a != NO_OP);
        }
        tess_schedule_fini(&other);
    }
}

static void check_model(const model *m)
{
    tess_schedule s;
    char name[256];
    describe(m, name);
    assert_int_equal(tess_schedule_create(&m->spec, &s), TESS_OK);
    assert_in_range(s.op_numel, 0, OP_MAX);
    check_places(m, &s, name);
    check_waits(m, &s, name);
    check_prefetch(m, &s, name);
    check_collectives(m, &s, name);
    tess_schedule_fini(&s);
}

/* ---- tests ---- */

static void test_random_specs(void **state)
{
    (void)state;
    for (uint32_t seed = 0; seed < RANDOM_SPEC_NUMEL; seed++) {
        model m;
        make_random(&m, seed);
        check_model(&m);
    }
    print_message("%d models, %lld waits\n", (int)RANDOM_SPEC_NUMEL, (long long)checked_wait_numel);
    assert_true(checked_wait_numel > 9 * RANDOM_SPEC_NUMEL);
}

static void test_chains(void **state)
{
    (void)state;
    for (int stages = 1; stages <= STAGE_MAX; stages++)
        for (int slots = 2; slots <= STAGE_MAX; slots++)
            for (int variant = 0; variant < 16; variant++) {
                model m;
                make_chain(&m, stages, slots, variant & 1, 1 + (variant >> 1 & 1) * 2);
                m.spec.is_last_fused = (variant & 4) != 0;
                m.spec.is_library = (variant & 8) != 0;
                check_model(&m);
            }
}

/* A tied embedding: first and last stage use unit 0, its buffer collects both and is sent once. */
static void test_tied_unit_sent_once(void **state)
{
    (void)state;
    model m;
    tess_schedule s;
    make_chain(&m, 4, 2, 1, 2);
    m.stage_unit[3] = 0;
    m.unit_stage_numel[0] = 2;
    m.spec.unit_numel = m.spec.bucket_numel = 3;
    check_model(&m);
    assert_int_equal(tess_schedule_create(&m.spec, &s), TESS_OK);
    int sends = 0, clears = 0, adds = 0;
    for (int i = 0; i < s.op_numel; i++) {
        if (s.op[i].unit_idx != 0)
            continue;
        sends += s.op[i].kind == TESS_SCHED_SEND;
        clears += s.op[i].clears_grad;
        adds += s.op[i].kind == TESS_SCHED_BACKWARD && !s.op[i].clears_grad;
    }
    assert_int_equal(sends, 2);
    assert_int_equal(clears, 2);
    assert_int_equal(adds, 2);
    tess_schedule_fini(&s);
}

/*
 * With a slot for every unit nothing is gathered twice in a step. With two, forward gathers n, the
 * turn at either end finds two units in place, so every further half round gathers n - 2.
 */
static void test_gather_numbers(void **state)
{
    (void)state;
    for (int n = 2; n <= STAGE_MAX; n++)
        for (int prefetch = 0; prefetch <= 1; prefetch++)
            for (int rounds = 1; rounds <= 4; rounds++)
                for (int fused = 0; fused <= 1; fused++) {
                    model m;
                    tess_schedule s;
                    make_chain(&m, n, n, prefetch, rounds);
                    m.spec.is_last_fused = fused != 0;
                    assert_int_equal(tess_schedule_create(&m.spec, &s), TESS_OK);
                    assert_int_equal(s.gather_numel, n);
                    tess_schedule_fini(&s);
                    m.spec.slot_numel = 2;
                    assert_int_equal(tess_schedule_create(&m.spec, &s), TESS_OK);
                    assert_int_equal(s.gather_numel, n + (n - 2) * (2 * rounds - 1));
                    tess_schedule_fini(&s);
                }
}

/* Of four units the lowest two do not learn, as an embedding under adapters: backward gathers and
 * visits the others alone. */
static void test_nothing_below_what_learns_is_visited(void **state)
{
    (void)state;
    for (int fused = 0; fused <= 1; fused++) {
        model m;
        tess_schedule s;
        make_chain(&m, 4, 2, 1, 1);
        m.unit_has_grad[0] = m.unit_has_grad[1] = false;
        m.spec.is_last_fused = fused != 0;
        check_model(&m);
        assert_int_equal(tess_schedule_create(&m.spec, &s), TESS_OK);
        assert_int_equal(s.gather_numel, 4); /* the turn finds both in place */
        assert_int_equal(s.op[s.op_numel - 1].unit_idx, 2);
        tess_schedule_fini(&s);
        m.unit_has_grad[2] = m.unit_has_grad[3] = false;
        check_model(&m);
        assert_int_equal(tess_schedule_create(&m.spec, &s), TESS_OK);
        assert_int_equal(s.op[s.op_numel - 1].stage_idx, 3);
        assert_int_equal(s.op[s.op_numel - 1].kind,
                         fused != 0 ? TESS_SCHED_BACKWARD : TESS_SCHED_FORWARD);
        tess_schedule_fini(&s);
    }
}

/* Units {0,1} {2,3} {4,5} with two slots: the buckets of test_gather_numbers(), each gathered once
 * for both its stages and read by them from one slot; the middle one is gathered ahead. */
static void test_buckets(void **state)
{
    (void)state;
    for (int prefetch = 0; prefetch <= 1; prefetch++)
        for (int rounds = 1; rounds <= 4; rounds++) {
            model m;
            tess_schedule s;
            make_chain(&m, 6, 2, prefetch, rounds);
            m.spec.bucket_numel = 3;
            for (int u = 0; u < 6; u++)
                m.unit_bucket[u] = u / 2;
            check_model(&m);
            assert_int_equal(tess_schedule_create(&m.spec, &s), TESS_OK);
            assert_int_equal(s.gather_numel, 3 + (3 - 2) * (2 * rounds - 1));
            int at = 0; /* forward: bucket 0, then 1 before stage 0, or after stage 1 */
            while (s.op[at].kind != TESS_SCHED_GATHER || s.op[at].bucket_idx != 1)
                at++;
            assert_int_equal(at, prefetch == 1 ? 1 : 3);
            assert_int_equal(s.op[at].unit_idx, 2);
            /* backward: bucket 0 again, named after the unit that comes first then */
            at = s.op_numel - 1;
            while (s.op[at].kind != TESS_SCHED_GATHER)
                at--;
            assert_int_equal(s.op[at].bucket_idx, 0);
            assert_int_equal(s.op[at].unit_idx, 1);
            const int next = next_compute(&s, at);
            assert_int_equal(s.op[next].stage_idx, prefetch == 1 ? 3 : 1);
            tess_schedule_fini(&s);
        }
}

/* Everything in one bucket needs one slot, and is gathered once. */
static void test_one_bucket(void **state)
{
    (void)state;
    model m;
    tess_schedule s;
    make_chain(&m, 5, 1, 1, 3);
    m.spec.bucket_numel = 1;
    memset(m.unit_bucket, 0, sizeof m.unit_bucket);
    check_model(&m);
    assert_int_equal(tess_schedule_create(&m.spec, &s), TESS_OK);
    assert_int_equal(s.gather_numel, 1);
    tess_schedule_fini(&s);
}

/* The last compute operation of unit u comes after the gather of u+1 only with prefetch. */
static void test_prefetch_overlaps(void **state)
{
    (void)state;
    for (int prefetch = 0; prefetch <= 1; prefetch++) {
        model m;
        tess_schedule s;
        make_chain(&m, 5, 2, prefetch, 1);
        assert_int_equal(tess_schedule_create(&m.spec, &s), TESS_OK);
        for (int u = 0; u + 1 < 5; u++) {
            int gather = NO_OP, forward = NO_OP;
            for (int i = s.op_numel - 1; i >= 0; i--) {
                if (s.op[i].kind == TESS_SCHED_GATHER && s.op[i].unit_idx == u + 1)
                    gather = i;
                if (s.op[i].kind == TESS_SCHED_FORWARD && s.op[i].unit_idx == u)
                    forward = i;
            }
            assert_int_equal(gather < forward, prefetch == 1);
        }
        tess_schedule_fini(&s);
    }
}

/* A unit's pieces travel while the next stage computes: they are folded only after it. */
static void test_sends_overlap(void **state)
{
    (void)state;
    for (int prefetch = 0; prefetch <= 1; prefetch++) {
        model m;
        tess_schedule s;
        make_chain(&m, 5, 2, prefetch, 2);
        assert_int_equal(tess_schedule_create(&m.spec, &s), TESS_OK);
        for (int i = 0; i < s.op_numel; i++) {
            if (s.op[i].kind != TESS_SCHED_SEND || s.op[i].unit_idx == 0)
                continue;
            const int next = next_compute(&s, i);
            assert_int_equal(s.op[next].kind, TESS_SCHED_BACKWARD);
            assert_int_equal(s.op[next].unit_idx, s.op[i].unit_idx - 1);
            for (int k = i; k < next; k++)
                assert_int_not_equal(s.op[k].kind, TESS_SCHED_FOLD);
            assert_int_equal(s.op[next].wait[TESS_LANE_REDUCE], NO_OP);
        }
        tess_schedule_fini(&s);
    }
}

/* A checker that finds nothing proves nothing: waits taken away from a schedule must show. */
static void test_checker_sees_missing_waits(void **state)
{
    (void)state;
    model m;
    tess_schedule s;
    int pair[2], wait_numel = 0;
    make_chain(&m, 3, 2, 1, 2);
    assert_int_equal(tess_schedule_create(&m.spec, &s), TESS_OK);
    for (int i = 0; i < s.op_numel; i++)
        for (int lane = 0; lane < TESS_LANE_NUMEL; lane++) {
            wait_numel += s.op[i].wait[lane] != NO_OP;
            s.op[i].wait[lane] = NO_OP;
        }
    assert_true(wait_numel > 10);
    assert_true(find_hazard(&m, &s, NO_OP, NO_OP, pair));
    assert_int_equal(s.op[pair[0]].kind, TESS_SCHED_GATHER);
    assert_int_equal(s.op[pair[1]].kind, TESS_SCHED_FORWARD);
    tess_schedule_fini(&s);
}

static void refuse(const model *m, const char *want)
{
    tess_schedule s;
    tess_error_clear();
    assert_int_equal(tess_schedule_create(&m->spec, &s), TESS_E_ARG);
    if (strstr(tess_error_message(), want) == NULL)
        fail_msg("'%s' does not say '%s'", tess_error_message(), want);
}

static void test_refusals(void **state)
{
    (void)state;
    model m;
    make_chain(&m, 3, 1, 0, 1);
    refuse(&m, "3 buckets of gathered units need at least 2 slots, found 1");
    make_chain(&m, 3, 2, 2, 1);
    refuse(&m, "prefetch 2 needs 3 slots, found 2");
    make_chain(&m, 3, 2, 0, 0);
    refuse(&m, "schedule needs stages, units and rounds, found 3, 3, 0");
    make_chain(&m, 3, 2, -1, 1);
    refuse(&m, "prefetch -1");
    make_chain(&m, 3, 2, 1, 1);
    m.spec.bucket_numel = 2;
    refuse(&m, "unit 2 is gathered with bucket 2 of 2");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_specs),
        cmocka_unit_test(test_chains),
        cmocka_unit_test(test_tied_unit_sent_once),
        cmocka_unit_test(test_gather_numbers),
        cmocka_unit_test(test_nothing_below_what_learns_is_visited),
        cmocka_unit_test(test_buckets),
        cmocka_unit_test(test_one_bucket),
        cmocka_unit_test(test_prefetch_overlaps),
        cmocka_unit_test(test_checker_sees_missing_waits),
        cmocka_unit_test(test_sends_overlap),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
