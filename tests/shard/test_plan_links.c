/* Traffic by link: a closed form against a walk over every message of a step. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "shard/plan_links.h"

enum { UNITS = 3, WORLD_MAX = 12 };

/* A plan with what the links depend on: shards of three units and the bytes of gathers. */
typedef struct fixture {
    tess_plan plan;
    tess_unit_plan unit[UNITS];
} fixture;

static void fill(fixture *f, int world, int node, int group)
{
    static const int64_t blocks[UNITS] = {7, 24, 1};
    memset(f, 0, sizeof *f);
    tess_plan *p = &f->plan;
    p->options = (tess_plan_options){.world = world,
                                     .node_rank_numel = node,
                                     .gather_group_numel = group,
                                     .micro_batch_numel = world + 1}; /* one rank has two rounds */
    p->round_numel = 2;
    p->unit = f->unit;
    p->unit_numel = UNITS;
    for (int i = 0; i < UNITS; i++) {
        f->unit[i].slab_numel = 256 * blocks[i];
        f->unit[i].slab_shard_numel = 256 * ((blocks[i] + world - 1) / world);
        p->slab_nbytes_per_step += 2.0 * (double)f->unit[i].slab_shard_numel * (world - 1);
    }
    p->gather_nbytes_per_step = 4096.0 * (group - 1);
    p->options.codes = (tess_plan_codes){.has_books = true,
                                         .step_nbytes = (1024.0 + 512.0) * (world - 1),
                                         .gathered_nbytes = 1024.0 * (world - 1)};
}

typedef struct ledger {
    double inside[WORLD_MAX], across[WORLD_MAX]; /* sent by each rank */
    double node_sent[WORLD_MAX], node_received[WORLD_MAX];
} ledger;

static void message(ledger *l, const tess_plan *p, int from, int to, double nbytes)
{
    const int k = p->options.node_rank_numel;
    if (from == to)
        return;
    if (from / k == to / k) {
        l->inside[from] += nbytes;
        return;
    }
    l->across[from] += nbytes;
    l->node_sent[from / k] += nbytes;
    l->node_received[to / k] += nbytes;
}

/* One row from each of the ranks [lo, hi) to all others: straight, or over whole nodes in two
 * phases, spelled out message by message. */
static void gather(ledger *l, const tess_plan *p, int lo, int hi, double nbytes)
{
    const int k = p->options.node_rank_numel, numel = hi - lo;
    const bool is_two_phase = k > 1 && numel > k && numel % k == 0 && lo % k == 0;
    for (int from = lo; from < hi; from++)
        for (int to = lo; to < hi; to++) {
            if (!is_two_phase || from % k == to % k)
                message(l, p, from, to, nbytes);
            if (is_two_phase && from / k == to / k)
                for (int row = lo + from % k; row < hi; row += k) /* the rows of its place */
                    message(l, p, from, to, nbytes);
        }
}

/* A part of a unit's pieces, straight or over the rank that takes it in for the owner's node. */
static void part(ledger *l, const tess_plan *p, int from, int owner, bool is_by_node, double nbytes)
{
    const int k = p->options.node_rank_numel, first = owner / k * k;
    const int node_numel = first + k < p->options.world ? k : p->options.world - first;
    if (!is_by_node || from / k == owner / k) {
        message(l, p, from, owner, nbytes);
        return;
    }
    const int relay = first + from % node_numel;
    message(l, p, from, relay, nbytes);
    message(l, p, relay, owner, nbytes);
}

static void gradients(ledger *l, const tess_plan *p)
{
    for (int64_t m = 0; m < p->options.micro_batch_numel; m++)
        for (int owner = 0; owner < p->options.world; owner++)
            for (int u = 0; u < p->unit_numel; u++) {
                int64_t lo = 0, hi = 0;
                tess_plan_owned(p, u, owner, &lo, &hi);
                part(l, p, (int)(m % p->options.world), owner, p->unit[u].is_by_node,
                     4.0 * (double)(hi - lo));
            }
}

static void check_units(int world, int node, int group, bool is_by_node)
{
    fixture f;
    fill(&f, world, node, group);
    f.unit[0].is_by_node = f.unit[1].is_by_node = is_by_node;
    const tess_plan *p = &f.plan;
    ledger kind[TESS_TRAFFIC_NUMEL];
    memset(kind, 0, sizeof kind);
    for (int lo = 0; lo < world; lo += group)
        gather(&kind[TESS_TRAFFIC_GATHER], p, lo, lo + group, 4096.0);
    gradients(&kind[TESS_TRAFFIC_GRADIENT], p);
    for (int u = 0; u < UNITS; u++)
        gather(&kind[TESS_TRAFFIC_TRAINABLE], p, 0, world,
               2.0 * (double)f.unit[u].slab_shard_numel);
    gather(&kind[TESS_TRAFFIC_CODEBOOK], p, 0, world, 1024.0);
    for (int from = 0; from < world; from++)
        for (int to = 0; to < world; to++)
            message(&kind[TESS_TRAFFIC_CODEBOOK], p, from, to, 512.0);
    for (int t = 0; t < TESS_TRAFFIC_NUMEL; t++)
        for (int r = 0; r < world; r++) {
            const tess_link_nbytes b = tess_plan_rank_sends(p, (tess_traffic)t, r);
            assert_true(b.inside == kind[t].inside[r]);
            assert_true(b.across == kind[t].across[r]);
        }
    for (int n = 0; n < tess_plan_node_numel(p); n++) {
        double sent = 0, received = 0, want_sent = 0, want_received = 0;
        tess_plan_node_traffic(p, n, &sent, &received);
        for (int t = 0; t < TESS_TRAFFIC_NUMEL; t++) {
            want_sent += kind[t].node_sent[n];
            want_received += kind[t].node_received[n];
        }
        assert_true(sent == want_sent);
        assert_true(received == want_received);
    }
}

static void check(int world, int node, int group)
{
    check_units(world, node, group, false);
    check_units(world, node, group, true);
}

static void test_traffic_equals_a_walk_over_messages(void **state)
{
    (void)state;
    check(1, 1, 1);
    check(4, 4, 4); /* one node */
    check(4, 2, 2); /* groups are nodes */
    check(4, 2, 4);
    check(4, 1, 4);  /* a rank a node */
    check(8, 4, 2);  /* groups inside nodes */
    check(8, 2, 4);  /* groups of two nodes */
    check(12, 2, 3); /* groups lie across nodes */
    check(12, 4, 6);
    check(12, 3, 12);
    check(12, 8, 4); /* the last node is smaller */
}

static void test_link_name_says_the_widest(void **state)
{
    (void)state;
    fixture f;
    fill(&f, 8, 4, 2);
    assert_string_equal(tess_plan_link_name(&f.plan, TESS_TRAFFIC_GATHER), "node");
    assert_string_equal(tess_plan_link_name(&f.plan, TESS_TRAFFIC_GRADIENT), "network");
    fill(&f, 8, 4, 8);
    assert_string_equal(tess_plan_link_name(&f.plan, TESS_TRAFFIC_GATHER), "network");
    fill(&f, 12, 4, 3); /* fits a node and yet lies on two */
    assert_string_equal(tess_plan_link_name(&f.plan, TESS_TRAFFIC_GATHER), "network");
    fill(&f, 8, 8, 1);
    assert_string_equal(tess_plan_link_name(&f.plan, TESS_TRAFFIC_GATHER), "one rank");
    assert_string_equal(tess_plan_link_name(&f.plan, TESS_TRAFFIC_TRAINABLE), "node");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_traffic_equals_a_walk_over_messages),
        cmocka_unit_test(test_link_name_says_the_widest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
