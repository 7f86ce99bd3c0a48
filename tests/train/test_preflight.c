/* The preflight: who measures with whom, and what is called odd. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "train/preflight/preflight_priv.h"

enum { WORLD_MAX = 12 };

/* ---- schedule ---- */

/* Every pair exactly once, both ends agree, and no two pairs of a round share a node's link. */
static void check_schedule(const int *first_rank, int node_numel)
{
    const preflight_shape s = {first_rank[node_numel], node_numel, first_rank};
    int met[WORLD_MAX][WORLD_MAX] = {{0}};
    for (int64_t round = 0; round < preflight_round_numel(&s); round++) {
        int busy[WORLD_MAX] = {0}; /* pairs across nodes that use a node's link */
        for (int r = 0; r < s.world; r++) {
            const int other = preflight_partner(&s, round, r);
            if (other < 0)
                continue;
            assert_true(other != r && other < s.world);
            assert_int_equal(preflight_partner(&s, round, other), r);
            met[r][other]++;
            int node = 0, other_node = 0;
            while (first_rank[node + 1] <= r)
                node++;
            while (first_rank[other_node + 1] <= other)
                other_node++;
            if (node != other_node)
                assert_int_equal(++busy[node], 1);
        }
    }
    for (int a = 0; a < s.world; a++)
        for (int b = 0; b < s.world; b++)
            assert_int_equal(met[a][b], a != b);
}

static void test_partner_any_shape_meets_every_pair_once(void **state)
{
    (void)state;
    check_schedule((const int[]){0, 1}, 1);
    check_schedule((const int[]){0, 2}, 1);
    check_schedule((const int[]){0, 5}, 1);
    check_schedule((const int[]){0, 1, 2}, 2);
    check_schedule((const int[]){0, 1, 2, 3}, 3);
    check_schedule((const int[]){0, 2, 4}, 2);
    check_schedule((const int[]){0, 2, 4, 6}, 3);
    check_schedule((const int[]){0, 4, 8, 12}, 3);
    check_schedule((const int[]){0, 3, 4}, 2); /* uneven */
    check_schedule((const int[]){0, 1, 4, 6, 7}, 4);
}

static void test_partner_many_ranks_covers_every_pair_of_nodes(void **state)
{
    (void)state;
    enum { NODES = 64, EACH = 8 };
    static int first_rank[NODES + 1];
    static int met[NODES][NODES];
    for (int n = 0; n <= NODES; n++)
        first_rank[n] = n * EACH;
    const preflight_shape s = {NODES * EACH, NODES, first_rank};
    const int64_t numel = preflight_round_numel(&s);
    assert_int_equal(numel, EACH - 1 + (NODES - 1) * EACH); /* 63 * 8 * 8 would be too many */
    for (int64_t round = EACH - 1; round < numel; round++)
        for (int r = 0; r < s.world; r++) {
            const int other = preflight_partner(&s, round, r);
            if (other >= 0)
                met[r / EACH][other / EACH]++;
        }
    for (int a = 0; a < NODES; a++)
        for (int b = 0; b < NODES; b++)
            assert_int_equal(met[a][b], a == b ? 0 : EACH);
}

/* ---- verdicts ---- */

typedef struct fixture {
    tess_preflight p;
    tess_preflight_card card[6];
    tess_preflight_pair pair[15];
    char finding[TESS_PREFLIGHT_FINDING_MAX][TESS_PREFLIGHT_TEXT_NBYTES];
} fixture;

/* Three nodes of two ranks, everything alike; 1 GB/s across nodes, 4 GB/s inside. */
static void fill(fixture *f)
{
    memset(f, 0, sizeof *f);
    f->p = (tess_preflight){.world = 6,
                            .node_numel = 3,
                            .dir = "/shared",
                            .card = f->card,
                            .pair = f->pair,
                            .finding = f->finding};
    for (int r = 0; r < 6; r++) {
        tess_preflight_card *c = &f->card[r];
        c->node = r / 2;
        snprintf(c->host, sizeof c->host, "host%d", r / 2);
        snprintf(c->program, sizeof c->program, "1.0 build aa");
        snprintf(c->mpi, sizeof c->mpi, "Open MPI v4");
        c->sees_folder = true;
        c->memory_free_nbytes = 1LL << 34;
        c->disk_free_nbytes = 1LL << 40;
        c->clock_s = 1e9;
        for (int o = r + 1; o < 6; o++)
            f->pair[f->p.pair_numel++] =
                (tess_preflight_pair){r, o, 1e-4, r / 2 == o / 2 ? 4.0 : 1.0};
    }
}

static void expect(fixture *f, int numel, const char *text)
{
    tess_preflight_judge(&f->p);
    for (int i = 0; i < f->p.finding_numel; i++)
        if (numel != f->p.finding_numel || (text != NULL && strstr(f->finding[i], text) == NULL))
            print_message("found: %s\n", f->finding[i]);
    assert_int_equal(f->p.finding_numel, numel);
    if (text != NULL)
        assert_non_null(strstr(f->finding[0], text));
}

static void test_judge_all_alike_finds_nothing(void **state)
{
    (void)state;
    fixture f;
    fill(&f);
    expect(&f, 0, NULL);
}

static void test_judge_another_build_names_the_rank(void **state)
{
    (void)state;
    fixture f;
    fill(&f);
    snprintf(f.card[0].program, sizeof f.card[0].program, "1.0 build bb");
    expect(&f, 1,
           "rank 0 on 'host0' has tessera 1.0 build bb, most ranks have 1.0 build aa: install the "
           "same build");
    fill(&f);
    f.card[4].mpi[0] = '\0';
    expect(&f, 1, "rank 4 on 'host2' has MPI none, most ranks have Open MPI v4");
}

static void test_judge_clock_off_names_rank_and_seconds(void **state)
{
    (void)state;
    fixture f;
    fill(&f);
    f.card[3].clock_s -= 1.5;
    expect(&f, 1, "the clock of rank 3 on 'host1' is off by -1.5 s");
    fill(&f);
    f.card[3].clock_s -= 0.9;
    expect(&f, 0, NULL);
}

static void test_judge_folder_not_shared_names_both_hosts(void **state)
{
    (void)state;
    fixture f;
    fill(&f);
    f.card[5].sees_folder = false;
    snprintf(f.card[5].folder, sizeof f.card[5].folder, "no such file");
    expect(&f, 1, "rank 5 on 'host2' does not see what rank 0 on 'host0' writes in '/shared' (no");
}

static void test_judge_little_memory_or_disk_names_the_rank(void **state)
{
    (void)state;
    fixture f;
    fill(&f);
    f.card[1].memory_free_nbytes = 1LL << 32;
    expect(&f, 1, "rank 1 on 'host0' has 4.00 GiB of memory free, the median is 16.00 GiB");
    fill(&f);
    f.card[2].disk_free_nbytes = 0;
    expect(&f, 1, "rank 2 on 'host1' has 0.00 GiB of disk free");
}

static void set_rate(fixture *f, int node_a, int node_b, double gbps)
{
    for (int64_t i = 0; i < f->p.pair_numel; i++) {
        const int a = f->pair[i].a / 2, b = f->pair[i].b / 2;
        if (a != b && (a == node_a || b == node_a) && (node_b < 0 || a == node_b || b == node_b))
            f->pair[i].gbps = gbps;
    }
}

static void test_judge_slow_node_names_it_and_not_its_partners(void **state)
{
    (void)state;
    fixture f;
    fill(&f);
    set_rate(&f, 1, -1, 0.4);
    expect(&f, 1, "node 1 'host1' reaches others at 0.400 GB/s at best, the median of nodes is 1");
    fill(&f);
    set_rate(&f, 1, -1, 0.6); /* over half */
    expect(&f, 0, NULL);
}

static void test_judge_slow_path_names_the_pair(void **state)
{
    (void)state;
    fixture f;
    fill(&f);
    f.pair[5].gbps = 0.2; /* (1, 2) */
    expect(&f, 1,
           "ranks 1 on 'host0' and 2 on 'host1' reach each other at 0.200 GB/s, others at 1");
}

static void test_judge_more_than_fits_is_counted(void **state)
{
    (void)state;
    enum { WORLD = 100 };
    static tess_preflight_card card[WORLD];
    static char finding[TESS_PREFLIGHT_FINDING_MAX][TESS_PREFLIGHT_TEXT_NBYTES];
    tess_preflight p = {
        .world = WORLD, .node_numel = 1, .dir = "/x", .card = card, .finding = finding};
    tess_preflight_judge(&p);
    assert_int_equal(p.finding_numel, TESS_PREFLIGHT_FINDING_MAX);
    assert_int_equal(p.finding_more_numel, WORLD - TESS_PREFLIGHT_FINDING_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_partner_any_shape_meets_every_pair_once),
        cmocka_unit_test(test_partner_many_ranks_covers_every_pair_of_nodes),
        cmocka_unit_test(test_judge_all_alike_finds_nothing),
        cmocka_unit_test(test_judge_another_build_names_the_rank),
        cmocka_unit_test(test_judge_clock_off_names_rank_and_seconds),
        cmocka_unit_test(test_judge_folder_not_shared_names_both_hosts),
        cmocka_unit_test(test_judge_little_memory_or_disk_names_the_rank),
        cmocka_unit_test(test_judge_slow_node_names_it_and_not_its_partners),
        cmocka_unit_test(test_judge_slow_path_names_the_pair),
        cmocka_unit_test(test_judge_more_than_fits_is_counted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
