/* The map of nodes: ranks sorted by node, whatever order the launcher gave them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "dist/nodes_priv.h"

typedef struct nodes_case {
    int world;
    int lowest_rank[8]; /* of the node of each rank */
    int new_rank[8];
    int node_numel;
    int first_rank[9];
} nodes_case;

static void check(const nodes_case *c)
{
    dist_nodes *nodes = NULL;
    int new_rank[8];
    assert_int_equal(dist_nodes_create(c->lowest_rank, c->world, new_rank, &nodes), TESS_OK);
    assert_int_equal(nodes->node_numel, c->node_numel);
    for (int n = 0; n <= c->node_numel; n++)
        assert_int_equal(nodes->first_rank[n], c->first_rank[n]);
    for (int r = 0; r < c->world; r++) {
        assert_int_equal(new_rank[r], c->new_rank[r]);
        for (int o = 0; o < c->world; o++) { /* the same node before and after */
            const bool is_before = c->lowest_rank[r] == c->lowest_rank[o];
            const bool is_after =
                dist_nodes_find(nodes, new_rank[r]) == dist_nodes_find(nodes, new_rank[o]);
            assert_int_equal(is_before, is_after);
        }
    }
    dist_nodes_destroy(&nodes);
    assert_null(nodes);
}

static void test_create_ranks_by_slot_keeps_the_order(void **state)
{
    (void)state;
    check(&(nodes_case){4, {0, 0, 2, 2}, {0, 1, 2, 3}, 2, {0, 2, 4}});
    check(&(nodes_case){1, {0}, {0}, 1, {0, 1}});
    check(&(nodes_case){3, {0, 1, 2}, {0, 1, 2}, 3, {0, 1, 2, 3}});
}

static void test_create_ranks_by_node_makes_nodes_consecutive(void **state)
{
    (void)state;
    check(&(nodes_case){4, {0, 1, 0, 1}, {0, 2, 1, 3}, 2, {0, 2, 4}});
    check(&(nodes_case){6, {0, 1, 2, 0, 1, 2}, {0, 2, 4, 1, 3, 5}, 3, {0, 2, 4, 6}});
}

static void test_create_uneven_nodes_counts_each(void **state)
{
    (void)state;
    check(&(nodes_case){5, {0, 1, 0, 0, 1}, {0, 3, 1, 2, 4}, 2, {0, 3, 5}});
    check(&(nodes_case){5, {0, 1, 1, 3, 1}, {0, 1, 2, 4, 3}, 3, {0, 1, 4, 5}});
}

static void test_even_only_whole_equal_nodes_count(void **state)
{
    (void)state;
    int first[] = {0, 2, 4, 6, 7, 10}; /* 2 2 2 1 3 */
    const dist_nodes nodes = {5, first};
    assert_int_equal(dist_nodes_even(&nodes, 0, 4), 2);
    assert_int_equal(dist_nodes_even(&nodes, 0, 6), 2);
    assert_int_equal(dist_nodes_even(&nodes, 2, 4), 2);
    assert_int_equal(dist_nodes_even(&nodes, 0, 2), 0);  /* one node */
    assert_int_equal(dist_nodes_even(&nodes, 1, 4), 0);  /* begins inside one */
    assert_int_equal(dist_nodes_even(&nodes, 0, 8), 0);  /* ends inside one */
    assert_int_equal(dist_nodes_even(&nodes, 0, 10), 0); /* uneven */
    assert_int_equal(dist_nodes_even(&nodes, 6, 1), 0);
    assert_int_equal(dist_nodes_even(NULL, 0, 4), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_create_ranks_by_slot_keeps_the_order),
        cmocka_unit_test(test_create_ranks_by_node_makes_nodes_consecutive),
        cmocka_unit_test(test_create_uneven_nodes_counts_each),
        cmocka_unit_test(test_even_only_whole_equal_nodes_count),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
