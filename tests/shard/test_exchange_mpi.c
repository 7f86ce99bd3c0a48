/*
 * Gradient pieces by node: the bits of one rank alone and of pieces sent straight, over nodes of
 * any sizes; and every message, seen by a spy, is the one that a walk over senders and owners
 * expects.
 *
 * Nodes are the plan's: ranks on one machine are dealt out to nodes of these sizes in turn. Units
 * of 3 and 4 blocks leave nodes without owners. Runs at 5 and 8 ranks too.
 */
#include <inttypes.h>
#include <string.h>

#include "core/digest.h"
#include "shard/loader.h"
#include "shard/plan_exchange.h"
#include "shard/runtime.h"
#include "support/rank_test.h"
#include "support/two_matrices.h"

enum { STEP_NUMEL = 4, WORLD_MAX = 8 };

typedef struct setting {
    int64_t m;
    int sizes[3]; /* of nodes, in turn */
    tess_exchange exchange;
    bool is_full;
} setting;

typedef struct trial {
    tess_comm *comm;
    const setting *s;
    int first_rank[WORLD_MAX + 1], node_of[WORLD_MAX], node_numel;
    tess_registry registry;
    tess_plan *plan;
    two_matrices model;
} trial;

typedef struct outcome {
    double loss[STEP_NUMEL], norm[STEP_NUMEL];
    tess_logical_hash master;
} outcome;

static void deal_out(trial *t)
{
    const int world = tess_comm_world(t->comm);
    int at = 0;
    for (; at < world; t->node_numel++) {
        const int size = t->s->sizes[t->node_numel % 3];
        for (int i = 0; i < size && at < world; i++)
            t->node_of[at++] = t->node_numel;
        t->first_rank[t->node_numel + 1] = at;
    }
}

/* ---- what must be seen ---- */

typedef struct tally {
    int64_t send_numel, receive_numel;
    int piece_numel;
} tally;

static int relay_of(const trial *t, int sender, int node)
{
    const int first = t->first_rank[node];
    return first + sender % (t->first_rank[node + 1] - first);
}

/* Elements of a unit that ranks of a node own. */
static int64_t node_numel_of(const trial *t, int unit, int node)
{
    int64_t numel = 0;
    for (int r = t->first_rank[node]; r < t->first_rank[node + 1]; r++) {
        int64_t lo = 0, hi = 0;
        tess_plan_owned(t->plan, unit, r, &lo, &hi);
        numel += hi - lo;
    }
    return numel;
}

static void message(tally *c, int rank, int from, int to, int64_t numel)
{
    if (from == to || numel == 0)
        return;
    c->send_numel += from == rank ? numel : 0;
    c->piece_numel += from == rank;
    c->receive_numel += to == rank ? numel : 0;
}

/* Both hops of a unit in a round; where pieces go straight, the second is empty. */
static void walk(const trial *t, int unit, int sender_numel, tally hop[2])
{
    const int world = tess_comm_world(t->comm), rank = tess_comm_rank(t->comm);
    const bool is_by_node = t->plan->unit[unit].is_by_node;
    for (int sender = 0; sender < sender_numel; sender++) {
        for (int owner = 0; owner < world; owner++) {
            int64_t lo = 0, hi = 0;
            tess_plan_owned(t->plan, unit, owner, &lo, &hi);
            const int node = t->node_of[owner];
            const bool is_far = is_by_node && node != t->node_of[sender];
            message(&hop[is_far], rank, is_far ? relay_of(t, sender, node) : sender, owner,
                    hi - lo);
        }
        for (int node = 0; node < t->node_numel && is_by_node; node++)
            if (node != t->node_of[sender])
                message(&hop[0], rank, sender, relay_of(t, sender, node),
                        node_numel_of(t, unit, node));
    }
}

static tess_status check_record(const tess_spy_record *r, const tess_wire *wire, const tally *want)
{
    TESS_CHECK(r->op == TESS_COMM_EXCHANGE && r->entry_idx == wire->entry_idx &&
                   strcmp(r->name, wire->name) == 0,
               TESS_E_STATE, "%s '%s' (entry %u), expected '%s' (%u)", tess_comm_op_name(r->op),
               r->name, r->entry_idx, wire->name, wire->entry_idx);
    TESS_CHECK(r->send_numel == want->send_numel && r->receive_numel == want->receive_numel &&
                   r->send_piece_numel == want->piece_numel,
               TESS_E_STATE,
               "'%s': sent %" PRId64 " in %d pieces, received %" PRId64 ", expected %" PRId64
               " in %d and %" PRId64,
               r->name, r->send_numel, r->send_piece_numel, r->receive_numel, want->send_numel,
               want->piece_numel, want->receive_numel);
    return TESS_OK;
}

/* Of a step, over both hops of all exchanges. */
typedef struct seen {
    int64_t record_idx;
    double sent, received, messages;
} seen;

/* The exchanges of one send of the schedule. */
static tess_status check_send(const trial *t, const tess_sched_op *op, seen *total)
{
    const int world = tess_comm_world(t->comm), rank = tess_comm_rank(t->comm);
    const tess_unit_plan *u = &t->plan->unit[op->unit_idx];
    const int64_t left = t->s->m - (int64_t)op->round_idx * world;
    const tess_spy_record *record = NULL;
    const int64_t record_numel = tess_spy_records(t->comm, &record);
    tally hop[2] = {0};
    double sent = 0;
    walk(t, op->unit_idx, (int)TESS_MIN(left, (int64_t)world), hop);
    for (int h = 0; h < 1 + u->is_by_node; h++) {
        const int wire_idx = h == 0 ? u->grad_wire_idx : u->pass_wire_idx;
        int64_t *at = &total->record_idx;
        while (*at < record_numel && record[*at].op != TESS_COMM_EXCHANGE)
            ++*at;
        TESS_CHECK(*at < record_numel, TESS_E_STATE, "fewer exchanges than planned");
        TESS_TRY(check_record(&record[(*at)++], &t->plan->wire[wire_idx], &hop[h]));
        sent += 4.0 * (double)hop[h].send_numel;
        total->received += 4.0 * (double)hop[h].receive_numel;
        total->messages += hop[h].piece_numel;
    }
    total->sent += sent;
    TESS_CHECK((double)tess_plan_op_nbytes(t->plan, rank, op) == sent, TESS_E_STATE,
               "the plan says another size of a send than %.0f", sent);
    return TESS_OK;
}

/* What the plan says of all of them. */
static tess_status check_totals(const trial *t, const seen *total)
{
    const int rank = tess_comm_rank(t->comm);
    tess_rank_cost cost;
    tess_plan_rank_cost(t->plan, &t->registry, rank, &cost);
    const double rest = t->plan->gather_nbytes_per_step + t->plan->slab_nbytes_per_step;
    TESS_CHECK(cost.sent_nbytes == total->sent + rest &&
                   cost.received_nbytes == total->received + rest,
               TESS_E_STATE, "the plan says %.0f sent and %.0f received, seen %.0f and %.0f",
               cost.sent_nbytes, cost.received_nbytes, total->sent + rest, total->received + rest);
    TESS_CHECK(rank > 0 || t->plan->grad_nbytes_per_step == total->sent, TESS_E_STATE,
               "the plan says %.0f bytes of rank 0, seen %.0f", t->plan->grad_nbytes_per_step,
               total->sent);
    const tess_link_messages planned = tess_plan_gradient_messages(t->plan, rank);
    TESS_CHECK(planned.inside + planned.across == total->messages, TESS_E_STATE,
               "the plan says %.0f messages inside and %.0f across, seen %.0f", planned.inside,
               planned.across, total->messages);
    return TESS_OK;
}

static tess_status check_step(const trial *t)
{
    const tess_spy_record *record = NULL;
    const int64_t record_numel = tess_spy_records(t->comm, &record);
    tess_schedule sched = {0};
    seen total = {0};
    tess_status st =
        tess_plan_schedule(t->plan, &t->registry, tess_comm_rank(t->comm), false, &sched);
    for (int i = 0; i < sched.op_numel && st == TESS_OK; i++)
        if (sched.op[i].kind == TESS_SCHED_SEND)
            st = check_send(t, &sched.op[i], &total);
    tess_schedule_fini(&sched);
    TESS_TRY(st);
    for (int64_t at = total.record_idx; at < record_numel; at++)
        TESS_CHECK(record[at].op != TESS_COMM_EXCHANGE, TESS_E_STATE,
                   "more exchanges than planned");
    return check_totals(t, &total);
}

/* ---- a run ---- */

static tess_status run_step(trial *t, tess_runtime *rt, int step, outcome *out)
{
    two_matrices_feed f = {.first_idx = step * t->s->m};
    tess_step_result result;
    const tess_step_request request = {
        .first_micro_batch_idx = f.first_idx,
        .loss_token_numel = 7 * t->s->m,
        .update = {.step = step + 1,
                   .learning_rate = 0.01,
                   .beta1 = 0.9,
                   .beta2 = 0.99,
                   .eps = 1e-8,
                   .weight_decay = 0.1,
                   .clip_norm = 0.05},
        .arg = &f,
        .batch_of = two_matrices_batch_of,
    };
    tess_spy_clear(t->comm);
    TESS_TRY(tess_runtime_step(rt, &request, &result));
    out->loss[step] = result.loss;
    out->norm[step] = result.grad_norm;
    return tess_comm_world(t->comm) > 1 ? check_step(t) : TESS_OK;
}

static tess_status run_all(trial *t, tess_runtime *rt, outcome *out)
{
    const tess_load_request load = {.wants_frozen = true, .wants_trainable = true, .seed = 5};
    TESS_TRY(tess_load(rt, &load, NULL));
    TESS_TRY(tess_runtime_publish(rt));
    for (int step = 0; step < STEP_NUMEL; step++)
        TESS_TRY(run_step(t, rt, step, out));
    for (int u = 0; u < t->plan->unit_numel; u++) {
        int64_t lo = 0, hi = 0;
        const tess_view v = tess_runtime_state(rt, u, TESS_STATE_MASTER);
        tess_plan_owned(t->plan, u, tess_comm_rank(t->comm), &lo, &hi);
        tess_logical_hash_add(&out->master, v.data, v.numel, 4, lo + ((int64_t)u << 40));
    }
    return tess_comm_control(t->comm, (int64_t *)(void *)out->master.lane, 2, NULL, 0);
}

static tess_status run_trial(trial *t, outcome *out)
{
    tess_runtime *rt = NULL;
    deal_out(t);
    const tess_plan_options o = {.world = tess_comm_world(t->comm),
                                 .gather_group_numel = 1,
                                 .reshard = TESS_ON,
                                 .checkpointing = TESS_OFF,
                                 .prefetch = 1,
                                 .is_full = t->s->is_full,
                                 .micro_batch_numel = t->s->m,
                                 .node_first_rank = t->first_rank,
                                 .node_numel = t->node_numel,
                                 .exchange = t->s->exchange,
                                 .load_nbytes = 1 << 16};
    t->model = (two_matrices){.row_numel = 7, .in_numel = 19, .mid_numel = 33, .out_numel = 29};
    tess_registry_init(&t->registry, TESS_F32);
    TESS_TRY(two_matrices_describe(&t->model, &t->registry));
    TESS_TRY(tess_plan_create(&t->registry, &o, &t->plan));
    const tess_runtime_parts parts = {.plan = t->plan,
                                      .registry = &t->registry,
                                      .kernels = &tess_kernels_cpu,
                                      .world = t->comm,
                                      .ops = &two_matrices_ops,
                                      .model = &t->model};
    tess_status st = tess_runtime_create(&parts, &rt);
    if (st == TESS_OK)
        st = run_all(t, rt, out);
    tess_runtime_destroy(&rt);
    return st;
}

/* One node, or nodes of one rank: nothing to group. */
static tess_status check_choice(const trial *t)
{
    const int world = tess_comm_world(t->comm), found = tess_plan_by_node_numel(t->plan);
    const bool has_groups = t->node_numel > 1 && t->node_numel < world;
    const int want = t->s->exchange == TESS_EXCHANGE_BY_NODE && has_groups ? 2 : 0;
    TESS_CHECK(found == want, TESS_E_STATE, "%d units go by node, expected %d", found, want);
    return TESS_OK;
}

static tess_status run_setting(tess_comm *comm, const setting *s, outcome *out)
{
    trial t = {.comm = comm, .s = s};
    memset(out, 0, sizeof *out);
    tess_status st = run_trial(&t, out);
    if (st == TESS_OK)
        st = check_choice(&t);
    tess_plan_destroy(&t.plan);
    tess_registry_fini(&t.registry);
    return st;
}

static tess_status check_setting(tess_comm *spy, tess_comm *self, setting s)
{
    outcome alone, straight, by_node;
    s.exchange = TESS_EXCHANGE_DIRECT;
    TESS_TRY(run_setting(self, &s, &alone));
    TESS_TRY(run_setting(spy, &s, &straight));
    s.exchange = TESS_EXCHANGE_BY_NODE;
    TESS_TRY(run_setting(spy, &s, &by_node));
    TESS_CHECK(memcmp(&alone, &straight, sizeof alone) == 0 &&
                   memcmp(&straight, &by_node, sizeof by_node) == 0,
               TESS_E_STATE, "loss %.17g by node, %.17g straight, %.17g of one rank",
               by_node.loss[STEP_NUMEL - 1], straight.loss[STEP_NUMEL - 1],
               alone.loss[STEP_NUMEL - 1]);
    return TESS_OK;
}

static tess_status check_all(tess_comm *spy, tess_comm *self)
{
    static const int sizes[][3] = {{2, 2, 2}, {3, 1, 3}, {1, 2, 1},
                                   {1, 3, 2}, {4, 4, 4}, {1, 1, 1}};
    static const int64_t numels[] = {1, 3, 7, 12};
    for (int i = 0; i < TESS_NELEM(sizes); i++)
        for (int k = 0; k < TESS_NELEM(numels); k++) {
            const setting s = {.m = numels[k],
                               .sizes = {sizes[i][0], sizes[i][1], sizes[i][2]},
                               .is_full = (i + k) % 2 != 0};
            const tess_status st = check_setting(spy, self, s);
            TESS_CHECK(st == TESS_OK, st, "nodes of %d, %d, ... ranks, %" PRId64 " micro-batches",
                       sizes[i][0], sizes[i][1], numels[k]);
        }
    return TESS_OK;
}

static tess_status run(tess_comm *comm)
{
    tess_comm *spy = NULL, *self = NULL;
    TESS_CHECK(tess_comm_world(comm) <= WORLD_MAX, TESS_E_ARG, "the test has room for 8 ranks");
    TESS_TRY(tess_comm_create_self(&self));
    tess_status st = tess_comm_create_spy(comm, &spy);
    if (st == TESS_OK)
        st = check_all(spy, self);
    tess_comm_destroy(&spy);
    tess_comm_destroy(&self);
    return st;
}

int main(int argc, char **argv) { return rank_test_main(argc, argv, run); }
