/*
 * All streams of a device at once: gathers, weights that are dequantized ahead, products,
 * reductions, and copies of a snapshot. At least 200 distinct orders at 1, 2, 3 and 4 ranks leave
 * the host's bits and touch nothing that is not ordered; every wait of the lane that dequantizes,
 * taken away, is found in every order.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "emulation/emu_case.h"
#include "emulation/emu_snapshot.h"

enum { ORDER_NUMEL = 200, RUN_NUMEL = 320, SEED_NUMEL = 12, SLOT_NUMEL = 2 };

/* Settings in turn: prefetch, recomputation, slabs through slots, units that are kept. */
static emu_case setting(int idx, int rank_numel)
{
    static const int64_t m[] = {5, 1, 8};
    return (emu_case){.step_numel = 2,
                      .m = m[idx % 3],
                      .group = idx % 4 == 3 && rank_numel % 2 == 0 ? 2 : rank_numel,
                      .prefetch = idx & 1,
                      .is_full = (idx & 2) != 0,
                      .checkpoints = (idx & 4) != 0,
                      .keeps = idx % 5 == 4,
                      .between_numel = idx % 3,
                      .is_quantized = true};
}

static void check_report(const emu_case *c, const emu_options *o, const emu_report *r)
{
    if (r->status != TESS_OK || r->violation_numel != 0)
        fail_msg("%d ranks, seed %llu, M %d, group %d, prefetch %d, full %d: %s %s", o->rank_numel,
                 (unsigned long long)o->seed, (int)c->m, c->group, c->prefetch, c->is_full,
                 r->violation, r->error);
    if (r->ahead_numel == 0)
        fail_msg("%d ranks: nothing was dequantized ahead", o->rank_numel);
}

static int add_order(uint64_t *list, int numel, uint64_t hash)
{
    for (int i = 0; i < numel; i++)
        if (list[i] == hash)
            return numel;
    list[numel] = hash;
    return numel + 1;
}

static void check_orders(int rank_numel)
{
    uint64_t order[RUN_NUMEL];
    int numel = 0;
    for (int i = 0; i < RUN_NUMEL; i++) {
        emu_snapshot snapshot = {.is_held = true};
        emu_case c = setting(i % 16, rank_numel);
        emu_outcome want, got;
        emu_report report;
        const emu_options o = {.rank_numel = rank_numel,
                               .seed = (uint64_t)i,
                               .is_serial = i % 4 == 0,
                               .is_ahead = true};
        assert_int_equal(emu_case_on_host(&c, &want), TESS_OK);
        c.loaded = emu_snapshot_take;
        c.end = emu_snapshot_drop;
        c.arg = &snapshot;
        emu_case_run(&o, &c, &report, &got);
        check_report(&c, &o, &report);
        if (memcmp(&want, &got, sizeof want) != 0)
            fail_msg("%d ranks, seed %d: loss %.17g, the host has %.17g", rank_numel, i,
                     got.loss[0], want.loss[0]);
        numel = add_order(order, numel, report.order_hash);
    }
    print_message("%d ranks: %d distinct orders in %d runs\n", rank_numel, numel, RUN_NUMEL);
    assert_true(numel >= ORDER_NUMEL);
}

static void test_all_streams_of_1(void **state)
{
    (void)state;
    check_orders(1);
}

static void test_all_streams_of_2(void **state)
{
    (void)state;
    check_orders(2);
}

static void test_all_streams_of_3(void **state)
{
    (void)state;
    check_orders(3);
}

static void test_all_streams_of_4(void **state)
{
    (void)state;
    check_orders(4);
}

/* ---- waits of the lane ---- */

typedef struct removal {
    int rank, slot_idx;
    bool is_free;
    int64_t ignored_numel;
} removal;

static void ignore_event(void *arg, const emu_rank *rank, tess_runtime *rt)
{
    const removal *r = arg;
    (void)rt;
    if (rank->rank == r->rank)
        emu_ignore_event(rank, emu_lane_event(rank, r->slot_idx, r->is_free));
}

static void count_ignored(void *arg, const emu_rank *rank)
{
    removal *r = arg;
    if (rank->rank == r->rank)
        r->ignored_numel = emu_ignored_numel(rank);
    emu_ignore_event(rank, NULL);
}

static void check_removal(int rank_numel, removal r)
{
    for (int seed = 0; seed < SEED_NUMEL; seed++) {
        emu_case c = setting(seed, rank_numel);
        emu_outcome out;
        emu_report report;
        const emu_options o = {.rank_numel = rank_numel, .seed = (uint64_t)seed, .is_ahead = true};
        c.m = 8; /* with fewer, a slot's next use is behind a wait of the host */
        c.begin = ignore_event;
        c.end = count_ignored;
        c.arg = &r;
        r.ignored_numel = 0;
        emu_case_run(&o, &c, &report, &out);
        assert_true(r.ignored_numel > 0);
        if (report.violation_numel == 0 || strstr(report.violation, "dequantize") == NULL)
            fail_msg("%d ranks, seed %d: without the wait for slot %d %s found '%s'", rank_numel,
                     seed, r.slot_idx, r.is_free ? "free" : "ready", report.violation);
    }
}

static void test_slots_without_their_events(void **state)
{
    (void)state;
    for (int rank_numel = 1; rank_numel <= 3; rank_numel++)
        for (int slot_idx = 0; slot_idx < SLOT_NUMEL; slot_idx++)
            for (int is_free = 0; is_free < 2; is_free++)
                check_removal(rank_numel, (removal){.rank = rank_numel - 1,
                                                    .slot_idx = slot_idx,
                                                    .is_free = is_free != 0});
}

/* Codes are read on the lane: it has to wait for what brings them, as the compute stream does. */
static void test_lane_that_does_not_wait_for_codes(void **state)
{
    (void)state;
    for (int rank_numel = 2; rank_numel <= 3; rank_numel++)
        for (int seed = 0; seed < SEED_NUMEL; seed++) {
            const emu_case c = setting(seed, rank_numel);
            emu_outcome out;
            emu_report report;
            const emu_options o = {.rank_numel = rank_numel,
                                   .seed = (uint64_t)seed,
                                   .is_ahead = true,
                                   .is_lane_apart = true};
            emu_case_run(&o, &c, &report, &out);
            if (report.violation_numel == 0 ||
                strstr(report.violation, "'dequantize' (stream dequantize") == NULL)
                fail_msg("%d ranks, seed %d: found '%s'", rank_numel, seed, report.violation);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_streams_of_1),
        cmocka_unit_test(test_all_streams_of_2),
        cmocka_unit_test(test_all_streams_of_3),
        cmocka_unit_test(test_all_streams_of_4),
        cmocka_unit_test(test_slots_without_their_events),
        cmocka_unit_test(test_lane_that_does_not_wait_for_codes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
