/*
 * A snapshot of the state beside the steps that follow it, on emulated devices: with the hold of
 * the runtime nothing touches what is being copied, in any order; without it the checker says so in
 * every run.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "emulation/emu_case.h"
#include "emulation/emu_snapshot.h"

enum { SEED_NUMEL = 12 };

static void run(int rank_numel, bool is_held)
{
    for (int seed = 0; seed < SEED_NUMEL; seed++) {
        emu_snapshot b = {.is_held = is_held};
        emu_outcome want, got;
        emu_report report;
        const emu_case c = {.step_numel = 2,
                            .m = 5,
                            .group = rank_numel,
                            .is_full = seed % 2 != 0,
                            .loaded = emu_snapshot_take,
                            .end = emu_snapshot_drop,
                            .arg = &b};
        const emu_options o = {.rank_numel = rank_numel, .seed = 700 + (uint64_t)seed};
        assert_int_equal(emu_case_on_host(&c, &want), TESS_OK);
        emu_case_run(&o, &c, &report, &got);
        if (!is_held) {
            assert_true(report.violation_numel > 0);
            continue;
        }
        if (report.status != TESS_OK || report.violation_numel > 0)
            fail_msg("%d ranks, seed %d: %s %s", rank_numel, seed, report.error, report.violation);
        assert_memory_equal(&want, &got, sizeof want);
    }
}

static void test_held_updates_leave_a_snapshot_alone(void **state)
{
    (void)state;
    for (int rank_numel = 1; rank_numel <= 3; rank_numel++)
        run(rank_numel, true);
}

static void test_updates_without_hold_are_found(void **state)
{
    (void)state;
    for (int rank_numel = 1; rank_numel <= 2; rank_numel++)
        run(rank_numel, false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_held_updates_leave_a_snapshot_alone),
        cmocka_unit_test(test_updates_without_hold_are_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
