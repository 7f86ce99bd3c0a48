/* Simulated steps: a toy's against arithmetic by hand, and what holds for all. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include <math.h>

#include "core/memory.h"
#include "core/rng.h"
#include "shard/plan_exchange.h"
#include "shard/simulate_priv.h"

enum { STAGE_MAX = 8, MEMORY_RATE = 1000 };

static void expect_ok(tess_status st)
{
    if (st != TESS_OK)
        fail_msg("%s: %s\n%s", tess_status_name(st), tess_error_message(), tess_error_trace_text());
}

/* ---- a toy ---- */

static void add_param(tess_registry *reg, int unit_idx, tess_role role, int64_t rows, int64_t cols)
{
    int idx = 0;
    tess_param p = {.unit_idx = unit_idx,
                    .role = role,
                    .shape_rank = 2,
                    .shape = {rows, cols},
                    .codec = {.format = TESS_FORMAT_BF16},
                    .init = TESS_INIT_ZERO,
                    .learning_rate_ratio = 1.0};
    snprintf(p.name, sizeof p.name, "u%d.%d", unit_idx, reg->param_numel);
    expect_ok(tess_registry_add_param(reg, &p, &idx));
}

/* Work that takes a device of memory_rate MEMORY_RATE so many seconds. */
static tess_cost seconds(double s)
{
    tess_cost c = {.launch_numel = 1.0};
    c.op[TESS_COST_ELEMENT] = s * MEMORY_RATE;
    return c;
}

/* Stages of a unit each: forward 2 s, backward 3 s; the last fused. */
static void make_model(tess_registry *reg, int stage_numel)
{
    tess_registry_init(reg, TESS_BF16);
    for (int i = 0; i < stage_numel; i++) {
        const bool is_last = i == stage_numel - 1;
        char name[16];
        int idx = 0;
        snprintf(name, sizeof name, "unit%d", i);
        expect_ok(tess_registry_add_unit(reg, name, &idx));
        add_param(reg, i, TESS_ROLE_FROZEN, 1000, 256);
        add_param(reg, i, TESS_ROLE_TRAINABLE, 5 + i, 256);
        tess_stage stage = {
            .unit_idx = i,
            .output_nbytes = is_last ? 0 : 1024,
            .saved_nbytes = is_last ? 0 : 1024,
            .work_nbytes = 1024,
            .is_fused_loss = is_last,
            .cost = {.forward = seconds(2.0), .again = seconds(1.0), .backward = seconds(3.0)}};
        stage.cost.forward.model_flops = 10.0;
        stage.cost.backward.model_flops = 20.0;
        snprintf(stage.name, sizeof stage.name, "stage%d", i);
        expect_ok(tess_registry_add_stage(reg, &stage));
    }
    expect_ok(tess_registry_lay_out(reg));
}

static tess_plan *make_plan(const tess_registry *reg, tess_plan_options o)
{
    tess_plan *plan = NULL;
    o.outside_nbytes = 1 << 20;
    o.kernel_path = "cpu/plain";
    expect_ok(tess_plan_create(reg, &o, &plan));
    return plan;
}

/* Folds, squares and updates take no time worth counting: rates of 1e30. A link of constant rate.
 */
static tess_device_profile make_device(double link_rate, bool has_overlap)
{
    tess_device_profile d = {.node_rank_numel = 64,
                             .peak_flops = 100.0,
                             .memory_rate = MEMORY_RATE,
                             .has_overlap = has_overlap};
    d.product_flops = (tess_curve){.point_numel = 1, .size = {1}, .rate = {1}};
    d.op_rate[TESS_COST_FOLD] = d.op_rate[TESS_COST_SQUARES] = 1e30;
    d.op_rate[TESS_COST_OPTIMIZER] = 1e30;
    d.link = (tess_link){.adapter_numel = 1};
    d.link.rate = (tess_curve){.point_numel = 1, .size = {1}, .rate = {link_rate}};
    return d;
}

static tess_network_profile make_network(const tess_device_profile *d)
{
    return (tess_network_profile){.across = d->link};
}

static void simulate(const tess_registry *reg, const tess_plan *plan, const tess_device_profile *d,
                     tess_simulation *out)
{
    const tess_network_profile n = make_network(d);
    const tess_sim_options o = {.device = d, .network = &n, .item_numel = 7.0, .has_spans = true};
    expect_ok(tess_simulate(plan, reg, &o, out));
}

static void expect_near(double found, double want)
{
    if (fabs(found - want) > 1e-6 * (1.0 + fabs(want)))
        fail_msg("found %.9f, expected %.9f", found, want);
}

/* Gradient pieces of a unit in a round. */
static double exchange_s(const sim_model *m, int rank, int unit_idx, int round_idx)
{
    const tess_sched_op op = {
        .kind = TESS_SCHED_SEND, .unit_idx = unit_idx, .round_idx = round_idx};
    const sim_collective c = sim_op_collective(m, rank, &op);
    return sim_collective_s(&c);
}

/* ---- by hand ---- */

/*
 * Two stages, two ranks with the whole base each, one micro-batch each. In order on the compute
 * lane: forward 0 (2 s), backward 1 (3 s), backward 0 (3 s), fold of unit 1, fold of unit 0. The
 * slabs are 5 and 6 blocks; rank 0 owns 3 of each and sends 2 and 3, receives 3 and 3 of 1024
 * bytes. Send 1 begins after backward 1; send 0 after backward 0 and, as it uses the same receive
 * buffer, after the fold of unit 1. Gradient buffers are cleared: 6 blocks of 1024 bytes written
 * at MEMORY_RATE, 6.144 s, before each backward. A fold reads 3 blocks of each of two micro-batches
 * and writes as many at that rate, 9.216 s. In the end the kept copies travel: 3 blocks of 512
 * bytes for each unit.
 */
static void test_two_stages_by_hand(void **state)
{
    static const double rates[] = {1e30, 512.0, 100.0};
    (void)state;
    for (int i = 0; i < TESS_NELEM(rates); i++) {
        tess_registry reg;
        tess_simulation sim;
        make_model(&reg, 2);
        tess_plan *plan = make_plan(
            &reg, (tess_plan_options){
                      .world = 2, .gather_group_numel = 1, .micro_batch_numel = 2, .prefetch = 1});
        tess_device_profile d = make_device(rates[i], true);
        d.op_rate[TESS_COST_FOLD] = MEMORY_RATE;
        const double clear = 6.144, fold = 9.216, send = 3.0 * 1024.0 / rates[i];
        const double copies = 2.0 * 3.0 * 512.0 / rates[i];
        const double backward1 = 2.0 + clear + 3.0, backward0 = backward1 + clear + 3.0;
        const double fold1 = fmax(backward0, backward1 + send) + fold;
        const double fold0 = fold1 + send + fold;
        simulate(&reg, plan, &d, &sim);
        assert_int_equal(sim.rank_numel, 2);
        expect_near(sim.step_s, fold0 + copies);
        expect_near(sim.publish_s, copies);
        expect_near(sim.rank[0].compute_s, 2.0 + 2.0 * (clear + 3.0) + 2.0 * fold);
        expect_near(sim.rank[0].exposed_s, fmax(0.0, backward1 + send - backward0) + send + copies);
        expect_near(sim.rank[0].reduce_s, 2.0 * send);
        expect_near(sim.items_per_s, 14.0 / sim.step_s);
        /* 10 + 2 x 20 a micro-batch, two of them, on two ranks of 100 */
        expect_near(sim.utilization, 100.0 / (200.0 * sim.step_s));
        tess_simulation_fini(&sim);
        tess_plan_destroy(&plan);
        tess_registry_fini(&reg);
    }
}

/* Weights of 4 s in every forward, 2 s of them by their rate, the others by their bytes; plain ones
 * are not decoded. Half of them stay decoded, then all. */
static void test_kept_weights_are_not_decoded_by_hand(void **state)
{
    static const double share[] = {0.0, 0.5, 1.0};
    double step_s[TESS_NELEM(share)];
    (void)state;
    for (int i = 0; i < TESS_NELEM(share); i++) {
        tess_registry reg;
        tess_simulation sim;
        make_model(&reg, 2);
        reg.stage[0].cost.forward.weight_numel[TESS_FORMAT_NF4] = 10.0;
        reg.stage[0].cost.forward.weight_numel[TESS_FORMAT_INT8] = 1.0;
        reg.stage[0].cost.forward.weight_numel[TESS_FORMAT_BF16] = 7.0;
        reg.stage[0].cost.forward.weight_nbytes = 2.0 * MEMORY_RATE;
        tess_plan *plan = make_plan(&reg, (tess_plan_options){.world = 1,
                                                              .gather_group_numel = 1,
                                                              .micro_batch_numel = 1,
                                                              .prefetch = 1,
                                                              .kept_share = share[i]});
        tess_device_profile d = make_device(1e30, true);
        d.weight_rate[TESS_FORMAT_NF4] = 5.0;
        d.weight_rate[TESS_FORMAT_BF16] = 7.0;
        simulate(&reg, plan, &d, &sim);
        step_s[i] = sim.step_s;
        tess_simulation_fini(&sim);
        tess_plan_destroy(&plan);
        tess_registry_fini(&reg);
    }
    expect_near(step_s[0] - step_s[1], 2.0);
    expect_near(step_s[0] - step_s[2], 4.0);
}

/*
 * A gather from 0 s and a send from 2 s, both with a second of latency inside; bytes of the gather
 * take 4 s inside and 6 s across, those of the send 1 s and, after another second of latency, 1 s.
 * From 3 s on both are on both links with 2, 3, 1 and 1 s left: the send is over at 5 s, and leaves
 * 1 and 2 s to the gather. Without a rank in common they do not meet.
 */
static void test_flows_that_share_links_by_hand(void **state)
{
    static const sim_collective gather = {{{{{1.0, 4.0}, {0.0, 6.0}}}}};
    static const sim_collective send = {{{{{1.0, 1.0}, {1.0, 1.0}}}}};
    (void)state;
    for (int is_shared = 0; is_shared < 2; is_shared++) {
        sim_flow flow[2] = {{.is_under_way = true, .lane = TESS_LANE_GATHER, .end_s = -1.0},
                            {.is_under_way = true, .lane = TESS_LANE_REDUCE, .end_s = -1.0}};
        double now_s = 0.0;
        flow[0].rank_bits = 1;
        flow[1].rank_bits = is_shared ? 3 : 2;
        sim_flow_add(&flow[0], 0.0, &gather, 1.0);
        sim_flow_add(&flow[1], 2.0, &send, 1.0);
        sim_flows_run(flow, 2, &now_s, 1.5);
        expect_near(now_s, 1.5);
        sim_flows_run(flow, 2, &now_s, INFINITY);
        expect_near(flow[1].end_s, is_shared ? 5.0 : 4.0);
        assert_true(flow[0].end_s < 0.0);
        flow[1].is_under_way = false;
        sim_flows_run(flow, 2, &now_s, INFINITY);
        expect_near(flow[0].end_s, is_shared ? 7.0 : 6.0);
    }
}

/*
 * Three stages whose units are given back, on two ranks: unit 0 is gathered again in the slot of
 * unit 2 from the end of its backward on, as long as gradients of unit 2 and then of unit 1
 * travel beside it. At a rate of 10,000, a gather's 256,000 bytes take 25.6 s; pieces are 4, 3 and
 * 3 blocks of 1024 bytes for units 2, 1 and 0. A piece takes twice its time, and the gather as much
 * longer as a piece takes alone. Gradient buffers of 8, 6 and 6 blocks are cleared.
 */
static void test_gather_beside_sends_by_hand(void **state)
{
    static const double rate = 1e4;
    tess_registry reg;
    tess_simulation sim;
    (void)state;
    make_model(&reg, 3);
    tess_plan *plan = make_plan(&reg, (tess_plan_options){.world = 2,
                                                          .gather_group_numel = 2,
                                                          .micro_batch_numel = 2,
                                                          .prefetch = 1,
                                                          .reshard = TESS_ON,
                                                          .checkpointing = TESS_OFF});
    const tess_device_profile d = make_device(rate, true);
    simulate(&reg, plan, &d, &sim);
    const double gather = 256000.0 / rate, send2 = 4096.0 / rate, send = 3072.0 / rate;
    const double copies = 10.0 * 512.0 / rate;
    const double backward2 = 3.0 * gather + 8.192 + 3.0;
    const double gathered = backward2 + gather + send2 + send;
    expect_near(sim.step_s, gathered + 6.144 + 3.0 + send + copies);
    expect_near(sim.rank[0].gather_s, 4.0 * gather + send2 + send);
    expect_near(sim.rank[0].reduce_s, 2.0 * send2 + 2.0 * send + send);
    tess_simulation_fini(&sim);
    tess_plan_destroy(&plan);
    tess_registry_fini(&reg);
}

/*
 * Without a core for communication nothing is hidden: the same two stages, each send behind what
 * waits for it.
 */
static void test_no_overlap_adds_everything(void **state)
{
    tess_registry reg;
    tess_simulation sim;
    (void)state;
    make_model(&reg, 2);
    tess_plan *plan = make_plan(
        &reg, (tess_plan_options){.world = 2, .gather_group_numel = 2, .micro_batch_numel = 2});
    const tess_device_profile d = make_device(100.0, false);
    simulate(&reg, plan, &d, &sim);
    const tess_sim_rank *r = &sim.rank[0];
    assert_true(r->gather_s > 0.0 && r->reduce_s > 0.0);
    expect_near(r->exposed_s, r->gather_s + r->reduce_s + sim.publish_s);
    tess_simulation_fini(&sim);
    tess_plan_destroy(&plan);
    tess_registry_fini(&reg);
}

/* Between nodes the network carries what fits the engine's window, 3 KB here, beside kernels. */
static void test_no_overlap_far_messages_are_hidden(void **state)
{
    tess_registry reg;
    tess_simulation far, beside;
    (void)state;
    make_model(&reg, 2);
    tess_plan *plan = make_plan(
        &reg, (tess_plan_options){
                  .world = 2, .gather_group_numel = 2, .micro_batch_numel = 2, .prefetch = 1});
    tess_device_profile d = make_device(100.0, false);
    d.node_rank_numel = 1;
    simulate(&reg, plan, &d, &far);
    d.has_overlap = true;
    simulate(&reg, plan, &d, &beside);
    assert_true(far.exposed_s < far.rank[0].gather_s + far.rank[0].reduce_s + far.publish_s - 1.0);
    expect_near(far.step_s, beside.step_s);
    expect_near(far.exposed_least_s, beside.exposed_least_s);
    tess_simulation_fini(&far);
    tess_simulation_fini(&beside);
    tess_plan_destroy(&plan);
    tess_registry_fini(&reg);
}

/*
 * Messages that are there at once still have to be taken in, 1 kB/s here: of two units half a
 * frozen string each (1000 x 256 of bf16), of gradients what rank 0 owns (of 5 and 6 x 256 elements
 * 3 x 256, as shards of slabs are multiples of 256).
 */
static void test_what_came_is_taken_in(void **state)
{
    tess_registry reg;
    tess_simulation sim;
    (void)state;
    make_model(&reg, 2);
    tess_plan *plan = make_plan(
        &reg, (tess_plan_options){
                  .world = 2, .gather_group_numel = 2, .micro_batch_numel = 2, .prefetch = 1});
    tess_device_profile d = make_device(1e15, false);
    d.node_rank_numel = 1;
    d.link.arrived_rate = 1e3;
    simulate(&reg, plan, &d, &sim);
    expect_near(sim.rank[0].exposed_s, 2.0 * 256.0 + 2.0 * 3.072);
    expect_near(sim.exposed_least_s, sim.rank[1].exposed_s + sim.rank[1].imbalance_s);
    tess_simulation_fini(&sim);
    d.has_overlap = true;
    simulate(&reg, plan, &d, &sim);
    expect_near(sim.rank[0].exposed_s, 0.0);
    tess_simulation_fini(&sim);
    tess_plan_destroy(&plan);
    tess_registry_fini(&reg);
}

/* ---- what always holds ---- */

static void check_spans(const tess_sim_rank *r)
{
    double end_s[TESS_TRACE_LANE_NUMEL] = {0}, busy_s[TESS_TRACE_LANE_NUMEL] = {0};
    double waits_s = 0.0;
    for (int i = 0; i < r->span_numel; i++) {
        const tess_sim_span *s = &r->span[i];
        assert_true(s->start_s >= end_s[s->lane] - 1e-9); /* kept in order of their lanes */
        end_s[s->lane] = s->end_s;
        if (strncmp(s->name, "wait", 4) == 0)
            waits_s += s->end_s - s->start_s;
        else
            busy_s[s->lane] += s->end_s - s->start_s;
        assert_true(s->end_s <= r->end_s + 1e-9);
    }
    expect_near(busy_s[TESS_TRACE_COMPUTE], r->compute_s);
    expect_near(busy_s[TESS_TRACE_GATHER], r->gather_s);
    expect_near(busy_s[TESS_TRACE_REDUCE], r->reduce_s);
    expect_near(waits_s, r->exposed_s);
}

/* A step is what its compute lane does and waits for; no lane is longer than the step. */
static void check_ranks(const tess_simulation *sim)
{
    for (int i = 0; i < sim->rank_numel; i++) {
        const tess_sim_rank *r = &sim->rank[i];
        expect_near(r->end_s, r->compute_s + r->exposed_s + r->imbalance_s);
        assert_true(r->gather_s <= r->end_s && r->reduce_s <= r->end_s);
        assert_true(sim->step_s >= r->end_s);
        check_spans(r);
    }
}

static tess_plan_options draw_options(uint32_t seed)
{
    static const int worlds[] = {1, 2, 3, 4, 6, 12};
    const tess_rng rng = tess_rng_make(7, TESS_RNG_TEST, 0, seed);
    tess_plan_options o = {.world = worlds[tess_rng_below(&rng, 0, 6)]};
    o.gather_group_numel = tess_rng_below(&rng, 1, 2) == 0 ? 1 : o.world;
    if (o.world % 2 == 0 && tess_rng_below(&rng, 2, 2) == 0)
        o.gather_group_numel = 2;
    o.micro_batch_numel = 1 + (int64_t)tess_rng_below(&rng, 3, 20);
    o.prefetch = (int)tess_rng_below(&rng, 4, 2);
    o.reshard = tess_rng_below(&rng, 5, 2) == 0 ? TESS_ON : TESS_OFF;
    o.checkpointing = tess_rng_below(&rng, 6, 2) == 0 ? TESS_ON : TESS_OFF;
    o.is_library = tess_rng_below(&rng, 7, 3) == 0;
    o.is_full = tess_rng_below(&rng, 8, 4) == 0;
    return o;
}

static void test_invariants_of_many_plans(void **state)
{
    (void)state;
    for (uint32_t seed = 0; seed < 400; seed++) {
        static const double rates[] = {1e30, 1e5, 2e3, 50.0};
        tess_registry reg;
        tess_simulation with, without;
        make_model(&reg, 1 + (int)(seed % STAGE_MAX));
        tess_plan *plan = make_plan(&reg, draw_options(seed));
        const tess_device_profile beside = make_device(rates[seed % 4], true);
        const tess_device_profile behind = make_device(rates[seed % 4], false);
        simulate(&reg, plan, &beside, &with);
        simulate(&reg, plan, &behind, &without);
        check_ranks(&with);
        check_ranks(&without);
        /* Overlap never loses, and never beats the longest lane. */
        assert_true(with.step_s <= without.step_s + 1e-9 * without.step_s);
        for (int i = 0; i < with.rank_numel; i++) {
            expect_near(with.rank[i].compute_s, without.rank[i].compute_s);
            assert_true(with.step_s >= with.rank[i].compute_s - 1e-9);
        }
        if (plan->options.world == 1)
            expect_near(with.exposed_s, 0.0);
        tess_simulation_fini(&with);
        tess_simulation_fini(&without);
        tess_plan_destroy(&plan);
        tess_registry_fini(&reg);
    }
}

/* A unit gathered while its predecessor computes cannot come later than one gathered when it is
 * needed. */
static void test_prefetch_is_no_slower(void **state)
{
    (void)state;
    for (int i = 1; i <= 40; i++) {
        tess_registry reg;
        tess_simulation off, on;
        make_model(&reg, 6);
        tess_plan_options o = {.world = 4,
                               .gather_group_numel = 4,
                               .micro_batch_numel = 8,
                               .reshard = TESS_ON,
                               .checkpointing = TESS_OFF};
        const tess_device_profile d = make_device(20.0 * i * i, true);
        tess_plan *plan = make_plan(&reg, o);
        simulate(&reg, plan, &d, &off);
        tess_plan_destroy(&plan);
        o.prefetch = 1;
        plan = make_plan(&reg, o);
        simulate(&reg, plan, &d, &on);
        assert_true(on.step_s <= off.step_s + 1e-9);
        assert_true(on.rank[0].exposed_s < off.rank[0].exposed_s);
        tess_simulation_fini(&off);
        tess_simulation_fini(&on);
        tess_plan_destroy(&plan);
        tess_registry_fini(&reg);
    }
}

/* 5 micro-batches on 4 ranks: rank 0 has the last round to itself, and the others wait for it. */
static void test_ranks_that_differ_are_simulated(void **state)
{
    tess_registry reg;
    tess_simulation sim;
    (void)state;
    make_model(&reg, 3);
    tess_plan *plan = make_plan(&reg, (tess_plan_options){.world = 4,
                                                          .gather_group_numel = 1,
                                                          .micro_batch_numel = 6,
                                                          .checkpointing = TESS_OFF});
    const tess_device_profile d = make_device(1e30, true);
    simulate(&reg, plan, &d, &sim);
    assert_int_equal(sim.rank_numel, 3);
    assert_int_equal(sim.rank[0].rank, 0);
    assert_int_equal(sim.rank[1].rank, 1); /* the last with two micro-batches */
    assert_int_equal(sim.rank[2].rank, 3);
    assert_true(sim.rank[2].compute_s < sim.rank[1].compute_s);
    assert_true(sim.rank[2].exposed_s > 0.0);
    tess_simulation_fini(&sim);
    tess_plan_destroy(&plan);
    tess_registry_fini(&reg);
}

/* ---- single ranks ---- */

/* Of the piece of one sender: the rank's own part, or all parts of its node where it relays. */
static double received_of(const tess_plan *plan, int unit_idx, int rank, int sender, double own)
{
    const int k = plan->options.node_rank_numel;
    double numel = 0.0;
    if (sender == rank)
        return 0.0;
    if (!plan->unit[unit_idx].is_by_node || sender / k == rank / k ||
        sender % k != rank % k) /* the nodes are even */
        return 4.0 * own;
    for (int r = rank / k * k; r < rank / k * k + k; r++) {
        int64_t lo = 0, hi = 0;
        tess_plan_owned(plan, unit_idx, r, &lo, &hi);
        numel += (double)(hi - lo);
    }
    return 4.0 * numel;
}

/* What a rank sends and what a gather brings, counted over its own schedule. */
static void check_rank_cost(const tess_plan *plan, const tess_registry *reg, int rank)
{
    tess_schedule sched;
    tess_rank_cost cost;
    double sent = 0.0, gathered = 0.0, received = 0.0;
    expect_ok(tess_plan_schedule(plan, reg, rank, false, &sched));
    for (int i = 0; i < sched.op_numel; i++) {
        const tess_sched_op *op = &sched.op[i];
        const int64_t nbytes = tess_plan_op_nbytes(plan, rank, op);
        int64_t lo = 0, hi = 0;
        if (op->kind == TESS_SCHED_GATHER)
            gathered += (double)nbytes;
        if (op->kind != TESS_SCHED_SEND)
            continue;
        sent += (double)nbytes;
        tess_plan_owned(plan, op->unit_idx, rank, &lo, &hi);
        for (int64_t m = (int64_t)op->round_idx * plan->options.world;
             m < TESS_MIN((int64_t)(op->round_idx + 1) * plan->options.world,
                          plan->options.micro_batch_numel);
             m++)
            received += received_of(plan, op->unit_idx, rank, (int)(m % plan->options.world),
                                    (double)(hi - lo));
    }
    tess_schedule_fini(&sched);
    tess_plan_rank_cost(plan, reg, rank, &cost);
    expect_near(cost.received_nbytes, gathered + received + plan->slab_nbytes_per_step);
    expect_near(cost.sent_nbytes, gathered + sent + plan->slab_nbytes_per_step);
}

static void check_single_ranks(tess_exchange exchange)
{
    const tess_rng rng = tess_rng_make(11, TESS_RNG_TEST, 0, 0);
    tess_registry reg;
    tess_rank_ranges ranges = {0};
    make_model(&reg, 5);
    tess_plan *plan = make_plan(&reg, (tess_plan_options){.world = 1003 * 7,
                                                          .gather_group_numel = 7,
                                                          .micro_batch_numel = 9001,
                                                          .node_rank_numel = 7,
                                                          .exchange = exchange,
                                                          .prefetch = 1});
    tess_plan_rank_ranges(plan, &reg, &ranges);
    for (uint64_t i = 0; i < 20; i++) {
        const int rank = (int)tess_rng_below(&rng, i, (uint64_t)plan->options.world);
        tess_rank_cost c;
        check_rank_cost(plan, &reg, rank);
        tess_plan_rank_cost(plan, &reg, rank, &c);
        assert_true(c.sent_nbytes >= ranges.sent.least && c.sent_nbytes <= ranges.sent.most);
        assert_true(c.received_nbytes >= ranges.received.least &&
                    c.received_nbytes <= ranges.received.most);
        assert_true((double)c.memory_nbytes >= ranges.memory.least &&
                    (double)c.memory_nbytes <= ranges.memory.most);
        assert_true(c.memory_nbytes <= plan->total_nbytes);
    }
    /* ranks behind the last block own nothing and hold less */
    assert_true(ranges.memory.least < ranges.memory.most);
    assert_true(ranges.memory.least_rank > ranges.memory.most_rank);
    tess_plan_destroy(&plan);
    tess_registry_fini(&reg);
}

static void test_single_ranks_equal_their_schedules(void **state)
{
    (void)state;
    check_single_ranks(TESS_EXCHANGE_DIRECT);
    check_single_ranks(TESS_EXCHANGE_BY_NODE);
}

/*
 * Two nodes of two ranks, two micro-batches: ranks 0 and 1 send. A unit of 6 blocks: shards of 2,
 * rank 3 owns nothing. Straight, rank 0 sends 1 message of 2 blocks inside the node and 1 across.
 * By node: rank 2 takes node 1's 2 blocks from rank 0, and they are its own; rank 3 takes the same
 * from rank 1 and passes them on to rank 2. So a second hop of 2 blocks in one message follows.
 */
static void test_exchange_by_node_by_hand(void **state)
{
    static const tess_link link = {
        .latency_s = 0.5, .message_s = 2.0, .rate = {1, {1}, {1024.0}}, .adapter_numel = 2};
    tess_registry reg;
    (void)state;
    make_model(&reg, 2);
    tess_device_profile d = make_device(1024.0, true);
    d.node_rank_numel = 2;
    for (int by_node = 0; by_node < 2; by_node++) {
        tess_plan *plan =
            make_plan(&reg, (tess_plan_options){.world = 4,
                                                .gather_group_numel = 1,
                                                .micro_batch_numel = 2,
                                                .node_rank_numel = 2,
                                                .exchange = by_node ? TESS_EXCHANGE_BY_NODE
                                                                    : TESS_EXCHANGE_DIRECT});
        const sim_model m = {
            .plan = plan, .reg = &reg, .device = &d, .node = &link, .across = &link};
        assert_int_equal(plan->unit[1].slab_numel, 6 * 256);
        assert_int_equal(plan->unit[1].is_by_node, by_node);
        const double hop_s = 0.5 + 2.0 + 2.0; /* two blocks in a message */
        const double pass_s = by_node ? hop_s : 0.0;
        expect_near(exchange_s(&m, 0, 1, 0), hop_s);
        expect_near(exchange_s(&m, 3, 1, 0), by_node ? hop_s + pass_s : 0.0);
        /* both senders reach rank 2, which as a relay hears of one alone */
        expect_near(exchange_s(&m, 2, 1, 0), by_node ? hop_s + pass_s : 0.5 + 4.0 + 4.0);
        const tess_link_messages first = tess_plan_gradient_messages(plan, 0);
        const tess_link_messages last = tess_plan_gradient_messages(plan, 3);
        assert_true(first.inside == 2.0 && first.across == 2.0);
        assert_true(last.inside == (by_node ? 2.0 : 0.0) && last.across == 0.0);
        tess_plan_destroy(&plan);
    }
    tess_registry_fini(&reg);
}

/*
 * Nodes of 3, 3 and 1 ranks, shards of one block, the last rank with none: 6 owners on 2 nodes. By
 * node, rank 6 sends 1 message to each, 2 in all and not a third of 6 messages of its own node's 1;
 * all messages are dear, bytes next to free.
 */
static void test_messages_are_counted_by_owners_nodes(void **state)
{
    static const tess_link link = {.message_s = 2.0, .rate = {1, {1}, {1e12}}, .adapter_numel = 1};
    tess_registry reg;
    (void)state;
    make_model(&reg, 2);
    tess_device_profile d = make_device(1024.0, true);
    d.node_rank_numel = 3;
    tess_plan *plan = make_plan(&reg, (tess_plan_options){.world = 7,
                                                          .gather_group_numel = 1,
                                                          .micro_batch_numel = 7,
                                                          .node_rank_numel = 3,
                                                          .exchange = TESS_EXCHANGE_BY_NODE});
    const sim_model m = {.plan = plan, .reg = &reg, .device = &d, .node = &link, .across = &link};
    assert_int_equal(plan->unit[1].slab_shard_numel, 256);
    assert_int_equal(tess_plan_owner_nodes(plan, 1), 2);
    expect_near(exchange_s(&m, 6, 1, 0), 2 * 2.0);
    plan->unit[1].is_set = true; /* the trainer sets it: nothing travels */
    expect_near(exchange_s(&m, 6, 1, 0), 0.0);
    tess_plan_destroy(&plan);
    tess_registry_fini(&reg);
}

/*
 * Two nodes of three ranks, shards of one block. Straight, rank 0 sends 3 messages across, by node
 * 1, and passes 2 on. So it saves 2 messages across and adds 20 us, 2 messages inside of 1 us each
 * and 2 KiB at 1 GB/s: worth it where a message across takes more than 24.048 / 2 us.
 */
static void test_auto_weighs_messages_against_bytes(void **state)
{
    static const tess_link inside = {
        .latency_s = 20e-6, .message_s = 1e-6, .rate = {1, {1}, {1e9}}, .adapter_numel = 1};
    tess_link across = inside;
    tess_registry reg;
    (void)state;
    make_model(&reg, 2);
    tess_plan_options o = {
        .world = 6, .gather_group_numel = 1, .micro_batch_numel = 6, .node_rank_numel = 3};
    tess_plan *plan = make_plan(&reg, o); /* the usual 15 us */
    assert_int_equal(plan->options.exchange, TESS_EXCHANGE_AUTO);
    assert_true(plan->unit[1].is_by_node);
    tess_plan_destroy(&plan);
    o.link_inside = &inside;
    o.link_across = &across;
    for (int is_dear = 0; is_dear < 2; is_dear++) {
        across.message_s = is_dear ? 12.1e-6 : 12.0e-6;
        plan = make_plan(&reg, o);
        assert_int_equal(plan->unit[1].is_by_node, is_dear);
        tess_plan_destroy(&plan);
    }
    o.is_device = true; /* NCCL's own */
    plan = make_plan(&reg, o);
    assert_false(plan->unit[1].is_by_node);
    tess_plan_destroy(&plan);
    tess_registry_fini(&reg);
}

/* Groups so large that their link asks for more than the whole model: auto takes an eighth of it,
 * or the largest unit, so that giving units back still gives memory back. */
static void test_auto_buckets_of_large_groups(void **state)
{
    (void)state;
    for (int unit_numel = 1; unit_numel <= 64; unit_numel++)
        for (int is_device = 0; is_device < 2; is_device++) {
            tess_registry reg;
            tess_plan_options o = {.world = 1024,
                                   .gather_group_numel = 1024,
                                   .micro_batch_numel = 1024,
                                   .reshard = TESS_ON,
                                   .is_device = is_device};
            make_model(&reg, unit_numel);
            tess_plan *alone = make_plan(&reg, o); /* units of one size */
            o.bucket_nbytes = TESS_BUCKET_AUTO;
            tess_plan *plan = make_plan(&reg, o);
            assert_int_equal(alone->bucket_numel, unit_numel);
            const int64_t each = (int64_t)alone->slot_nbytes, eighth = each * unit_numel / 8;
            const int64_t most = eighth > each ? eighth : each;
            assert_int_equal(plan->options.bucket_nbytes, most);
            assert_true(plan->bucket_numel >= (unit_numel < 8 ? unit_numel : 8));
            assert_true(plan->slot_numel <= 2 && (int64_t)plan->slot_nbytes <= most);
            tess_plan_destroy(&alone);
            tess_plan_destroy(&plan);
            tess_registry_fini(&reg);
        }
}

/* What relays take in needs room: where that alone does not fit, auto sends straight. The JSON
 * tells which links decided. */
static void test_straight_where_relays_do_not_fit(void **state)
{
    static const tess_link cheap = {.rate = {1, {1}, {1e9}}, .adapter_numel = 1};
    tess_link dear = cheap;
    tess_registry reg;
    tess_json *json = NULL;
    char *text = NULL;
    (void)state;
    dear.message_s = 1.0;
    make_model(&reg, 5);
    tess_plan_options o = {.world = 6,
                           .gather_group_numel = 1,
                           .micro_batch_numel = 12,
                           .checkpointing = TESS_OFF,
                           .node_rank_numel = 3,
                           .link_inside = &cheap,
                           .link_across = &dear};
    tess_plan *plan = make_plan(&reg, o);
    assert_true(tess_plan_by_node_numel(plan) > 0);
    expect_ok(tess_plan_json(plan, &reg, &json));
    expect_ok(tess_json_dump(json, 2, &text, NULL));
    assert_non_null(strstr(text, "\"exchange_links\": \"described\""));
    tess_free(text);
    tess_json_destroy(&json);
    o.memory_limit_nbytes = plan->total_nbytes - 1;
    tess_plan_destroy(&plan);
    plan = make_plan(&reg, o);
    assert_int_equal(tess_plan_by_node_numel(plan), 0);
    tess_plan_destroy(&plan);
    tess_registry_fini(&reg);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_two_stages_by_hand),
        cmocka_unit_test(test_kept_weights_are_not_decoded_by_hand),
        cmocka_unit_test(test_flows_that_share_links_by_hand),
        cmocka_unit_test(test_gather_beside_sends_by_hand),
        cmocka_unit_test(test_no_overlap_adds_everything),
        cmocka_unit_test(test_no_overlap_far_messages_are_hidden),
        cmocka_unit_test(test_what_came_is_taken_in),
        cmocka_unit_test(test_invariants_of_many_plans),
        cmocka_unit_test(test_prefetch_is_no_slower),
        cmocka_unit_test(test_ranks_that_differ_are_simulated),
        cmocka_unit_test(test_single_ranks_equal_their_schedules),
        cmocka_unit_test(test_exchange_by_node_by_hand),
        cmocka_unit_test(test_messages_are_counted_by_owners_nodes),
        cmocka_unit_test(test_auto_buckets_of_large_groups),
        cmocka_unit_test(test_straight_where_relays_do_not_fit),
        cmocka_unit_test(test_auto_weighs_messages_against_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
