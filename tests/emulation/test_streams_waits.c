/*
 * Every wait is needed and every missing wait is found: each one that the schedule generates (those
 * after which a slot is free are among them), and each that the runtime holds by hand, is taken
 * away in turn, and the checker must name what is not ordered then.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "core/memory.h"
#include "emulation/emu_case.h"
#include "emulation/emu_removal.h"
#include "shard/runtime_priv.h"

static void check_whole(const emu_case *c, const emu_options *o, const emu_report *r)
{
    if (r->status != TESS_OK || r->violation_numel != 0)
        fail_msg("%d ranks, M %d, group %d: nothing was taken away, but: %s %s", o->rank_numel,
                 (int)c->m, c->group, r->violation, r->error);
}

/* ---- generated waits ---- */

typedef struct tally {
    int wait_numel, slot_numel;
} tally;

static void take_each(emu_case c, int rank_numel, uint64_t seed, tally *sum)
{
    static emu_removal r;
    emu_report report;
    emu_outcome out;
    const emu_options o = {.rank_numel = rank_numel, .seed = seed, .is_ahead = c.is_quantized};
    memset(&r, 0, sizeof r);
    c.begin = emu_take_away;
    c.arg = &r;
    r.taken.rank = -1;
    emu_case_run(&o, &c, &report, &out);
    check_whole(&c, &o, &report);
    for (int i = 0; i < r.numel; i++) {
        r.taken = r.list[i];
        emu_case_run(&o, &c, &report, &out);
        if (report.violation_numel == 0)
            fail_msg("%d ranks, M %d, group %d, full %d, library %d: nothing shows without the "
                     "wait of %s; the generator must not make it",
                     rank_numel, (int)c.m, c.group, c.is_full, c.is_library, r.what);
        assert_non_null(strstr(report.violation, "nothing orders the two"));
    }
    sum->wait_numel += r.numel;
    sum->slot_numel += r.slot_numel;
}

static void take_all(int rank_numel)
{
    static const int64_t m[] = {1, 3, 5};
    tally sum = {0};
    for (int variant = 0; variant < 32; variant++) {
        const emu_case c = {.step_numel = 2,
                            .m = m[variant % 3],
                            .group = variant & 1           ? rank_numel
                                     : rank_numel % 2 == 0 ? 2
                                                           : 1,
                            .is_full = (variant & 2) != 0,
                            .between_numel = variant % 5 == 0 ? 0 : 2,
                            .prefetch = (variant & 4) != 0,
                            .is_tied = variant >= 24,
                            .is_quantized = variant % 3 == 1,
                            .keeps = variant >= 16,
                            .checkpoints = (variant & 8) != 0};
        take_each(c, rank_numel, (uint64_t)variant, &sum);
    }
    print_message("%d ranks: %d waits taken away, %d of them for slots\n", rank_numel,
                  sum.wait_numel, sum.slot_numel);
    assert_true(rank_numel == 1 || sum.slot_numel > 0);
}

static void test_generated_1(void **state)
{
    (void)state;
    take_all(1);
}

static void test_generated_2(void **state)
{
    (void)state;
    take_all(2);
}

static void test_generated_3(void **state)
{
    (void)state;
    take_all(3);
}

static void test_generated_library(void **state)
{
    (void)state;
    tally sum = {0};
    for (int rank_numel = 1; rank_numel <= 3; rank_numel++)
        for (int variant = 0; variant < 16; variant++) {
            const emu_case c = {.step_numel = 2,
                                .m = variant & 8 ? 2 : 5,
                                .group = variant & 1 ? rank_numel : 1,
                                .is_full = (variant & 2) != 0,
                                .is_library = true,
                                .is_once = (variant & 4) != 0};
            take_each(c, rank_numel, (uint64_t)variant, &sum);
        }
    print_message("library: %d waits taken away\n", sum.wait_numel);
}

/* ---- waits that the runtime holds by hand ---- */

typedef struct by_hand {
    size_t offset; /* of the event in the runtime */
    int rank;      /* where its waits are taken away */
    int64_t ignored_numel;
} by_hand;

static void ignore_event(void *arg, const emu_rank *rank, tess_runtime *rt)
{
    const by_hand *h = arg;
    if (rank->rank == h->rank)
        emu_ignore_event(rank, (const tess_event *)(const void *)((const char *)rt + h->offset));
}

static void count_ignored(void *arg, const emu_rank *rank)
{
    by_hand *h = arg;
    if (rank->rank == h->rank)
        h->ignored_numel = emu_ignored_numel(rank);
    emu_ignore_event(rank, NULL);
}

/* `want`: what the report names; every seed finds it. */
static void check_by_hand(emu_case c, int rank_numel, by_hand h, const char *want)
{
    for (uint64_t seed = 0; seed < 12; seed++) {
        emu_report report;
        emu_outcome out;
        const emu_options o = {.rank_numel = rank_numel, .seed = seed};
        c.begin = NULL;
        c.end = NULL;
        emu_case_run(&o, &c, &report, &out);
        check_whole(&c, &o, &report);
        c.begin = ignore_event;
        c.end = count_ignored;
        c.arg = &h;
        emu_case_run(&o, &c, &report, &out);
        assert_true(h.ignored_numel > 0);
        if (report.violation_numel == 0 || strstr(report.violation, want) == NULL)
            fail_msg("seed %llu: expected a report of '%s', found '%s'", (unsigned long long)seed,
                     want, report.violation);
    }
}

#define EVENT(name) offsetof(struct tess_runtime, name)

/* Compute copies are written before they travel, kept ones are there before they are read. */
static void test_updated_and_published(void **state)
{
    (void)state;
    const emu_case lora = {.step_numel = 2, .m = 2, .group = 1};
    const emu_case full = {.step_numel = 2, .m = 2, .group = 1, .is_full = true};
    check_by_hand(lora, 1, (by_hand){.offset = EVENT(updated)}, "which 'cast'");
    check_by_hand(lora, 2, (by_hand){.offset = EVENT(updated), .rank = 1}, "'all_gather");
    check_by_hand(full, 2, (by_hand){.offset = EVENT(updated), .rank = 1}, "'all_gather");
    check_by_hand(lora, 2, (by_hand){.offset = EVENT(published)}, "which 'all_gather");
}

/* A rank without a micro-batch gathers what it does not use: the optimizer writes it. */
static void test_drained_gathers(void **state)
{
    (void)state;
    const emu_case full = {.step_numel = 2, .m = 1, .group = 1, .is_full = true};
    check_by_hand(full, 2, (by_hand){.offset = EVENT(drained[0]), .rank = 1}, "all_gather");
}

/* A rank that sends and receives nothing: the next step writes what it sends. */
static void test_drained_sends(void **state)
{
    (void)state;
    const emu_case lora = {.step_numel = 2, .m = 1, .group = 1};
    check_by_hand(lora, 2, (by_hand){.offset = EVENT(drained[1]), .rank = 0}, "'exchange");
}

/* Slabs travel on the world's stream beside the lane of a smaller group. */
static void test_joined(void **state)
{
    (void)state;
    const emu_case c = {.step_numel = 2, .m = 4, .group = 2, .is_full = true, .between_numel = 2};
    check_by_hand(c, 4, (by_hand){.offset = EVENT(joined[0]), .rank = 3}, "'all_gather");
    check_by_hand(c, 4, (by_hand){.offset = EVENT(joined[1]), .rank = 3}, "which 'all_gather");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_generated_1),           cmocka_unit_test(test_generated_2),
        cmocka_unit_test(test_generated_3),           cmocka_unit_test(test_generated_library),
        cmocka_unit_test(test_updated_and_published), cmocka_unit_test(test_drained_gathers),
        cmocka_unit_test(test_drained_sends),         cmocka_unit_test(test_joined),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
