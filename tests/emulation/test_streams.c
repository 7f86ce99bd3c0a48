/*
 * The runtime on emulated devices: the host's bits in every order of its streams, and no access
 * that nothing orders. At least 200 distinct orders at 1, 2, 3 and 4 ranks.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/memory.h"
#include "emulation/emu_case.h"

enum { ORDER_NUMEL = 200, ORDER_ROOM = 4096 };

/* Distinct executed orders. */
typedef struct order_set {
    uint64_t hash[ORDER_ROOM];
    int numel;
    uint64_t seed; /* of the next run */
} order_set;

static void add_order(order_set *set, uint64_t hash)
{
    for (int i = 0; i < set->numel; i++)
        if (set->hash[i] == hash)
            return;
    assert_true(set->numel < ORDER_ROOM);
    set->hash[set->numel++] = hash;
}

static void check_report(const emu_case *c, const emu_options *o, const emu_report *r)
{
    if (r->status == TESS_OK && r->violation_numel == 0)
        return;
    fail_msg("%d ranks, seed %llu, M %lld, group %d, prefetch %d, full %d, library %d: status %s, "
             "%lld violations; %s %s",
             o->rank_numel, (unsigned long long)o->seed, (long long)c->m, c->group, c->prefetch,
             c->is_full, c->is_library, tess_status_name(r->status), (long long)r->violation_numel,
             r->violation, r->error);
}

/* One setting in `seed_numel` orders against the host alone. */
static void check_case(const emu_case *c, int rank_numel, int seed_numel, order_set *orders)
{
    emu_outcome want, got;
    assert_int_equal(emu_case_on_host(c, &want), TESS_OK);
    for (int i = 0; i < seed_numel; i++) {
        emu_report report;
        const emu_options o = {
            .rank_numel = rank_numel, .seed = orders->seed++, .is_serial = orders->seed % 4 == 0};
        emu_case_run(&o, c, &report, &got);
        check_report(c, &o, &report);
        if (memcmp(&want, &got, sizeof want) != 0)
            fail_msg("%d ranks, seed %llu, M %lld: loss %.17g, the host has %.17g", rank_numel,
                     (unsigned long long)o.seed, (long long)c->m, got.loss[0], want.loss[0]);
        add_order(orders, report.order_hash);
    }
}

/* Groups that divide the ranks, in turn. */
static int group_of(int rank_numel, int variant)
{
    if (variant % 3 == 0)
        return 1;
    return variant % 3 == 2 && rank_numel % 2 == 0 ? 2 : rank_numel;
}

static void check_ranks(int rank_numel)
{
    static const int64_t m[] = {1, 5, 8};
    order_set orders = {.numel = 0};
    int case_numel = 0;
    for (int variant = 0; variant < 24; variant++)
        for (int i = 0; i < TESS_NELEM(m); i++, case_numel++) {
            const emu_case c = {.step_numel = 2,
                                .m = m[i],
                                .group = group_of(rank_numel, case_numel),
                                .prefetch = variant & 1,
                                .is_full = (variant & 2) != 0,
                                /* four units, in one case of two as two buckets */
                                .bucket_nbytes = case_numel % 8 == 1 ? 18 << 10 : 0,
                                .between_numel = case_numel % 4 == 1 ? 2 : 0,
                                .is_tied = (variant & 4) != 0,
                                .checkpoints = (variant & 8) != 0,
                                .keeps = variant >= 16};
            check_case(&c, rank_numel, 8, &orders);
        }
    print_message("%d ranks: %d settings, %d distinct orders\n", rank_numel, case_numel,
                  orders.numel);
    assert_true(orders.numel >= ORDER_NUMEL);
}

/* One setting alone has that many orders too. */
static void check_one_setting(int rank_numel)
{
    const emu_case c = {.step_numel = 2, .m = 8, .group = rank_numel, .is_full = true};
    order_set orders = {.numel = 0};
    int run_numel = 0;
    for (; orders.numel < ORDER_NUMEL && run_numel < 3 * ORDER_NUMEL; run_numel++)
        check_case(&c, rank_numel, 1, &orders);
    print_message("%d ranks: one setting, %d distinct orders in %d runs\n", rank_numel,
                  orders.numel, run_numel);
    assert_true(orders.numel >= ORDER_NUMEL);
}

static void test_one_rank(void **state)
{
    (void)state;
    check_ranks(1);
    check_one_setting(1);
}

static void test_two_ranks(void **state)
{
    (void)state;
    check_ranks(2);
    check_one_setting(2);
}

static void test_three_ranks(void **state)
{
    (void)state;
    check_ranks(3);
    check_one_setting(3);
}

static void test_four_ranks(void **state)
{
    (void)state;
    check_ranks(4);
    check_one_setting(4);
}

/* The library reduction: its order of additions is its own, so the bits are not the host's; but
 * they are the same in every order of streams, and nothing races. */
static void test_library(void **state)
{
    (void)state;
    for (int rank_numel = 1; rank_numel <= 4; rank_numel++)
        for (int variant = 0; variant < 16; variant++) {
            const emu_case c = {.step_numel = 2,
                                .m = variant & 8 ? 1 : 5,
                                .group = group_of(rank_numel, variant),
                                .is_full = (variant & 1) != 0,
                                .is_library = true,
                                .is_once = (variant & 2) != 0,
                                .is_tied = (variant & 4) != 0};
            emu_outcome first, again;
            for (int seed = 0; seed < 6; seed++) {
                emu_report report;
                const emu_options o = {.rank_numel = rank_numel, .seed = (uint64_t)seed};
                emu_case_run(&o, &c, &report, seed == 0 ? &first : &again);
                check_report(&c, &o, &report);
                if (seed > 0)
                    assert_memory_equal(&first, &again, sizeof first);
            }
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_rank),    cmocka_unit_test(test_two_ranks),
        cmocka_unit_test(test_three_ranks), cmocka_unit_test(test_four_ranks),
        cmocka_unit_test(test_library),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
