/*
 * Every wait is needed and every missing wait is found: each one that the schedule generates, each
 * event after which a slot is free, and each that the runtime holds by hand is taken away in turn.
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
#include "shard/runtime_priv.h"

typedef struct place {
    int rank, op_idx, lane;
} place;

enum { PLACE_MAX = 4096 };

typedef struct removal {
    place list[PLACE_MAX]; /* all waits of a setting */
    int numel;
    place taken; /* rank -1: none */
    char what[160];
} removal;

static void list_waits(removal *r, int rank, const tess_schedule *s)
{
    for (int i = 0; i < s->op_numel; i++)
        for (int lane = 0; lane < TESS_LANE_NUMEL; lane++)
            if (s->op[i].wait[lane] >= 0) {
                assert_true(r->numel < PLACE_MAX);
                r->list[r->numel++] = (place){rank, i, lane};
            }
}

static void begin(void *arg, const emu_rank *rank, tess_runtime *rt)
{
    removal *r = arg;
    if (r->taken.rank < 0)
        list_waits(r, rank->rank, &rt->train.schedule);
    if (r->taken.rank != rank->rank)
        return;
    tess_sched_op *op = &rt->train.schedule.op[r->taken.op_idx];
    const tess_sched_op *from = &rt->train.schedule.op[op->wait[r->taken.lane]];
    snprintf(r->what, sizeof r->what,
             "rank %d: %s of unit %d, round %d, for %s of unit %d, round %d", rank->rank,
             tess_sched_kind_name(op->kind), op->unit_idx, op->round_idx,
             tess_sched_kind_name(from->kind), from->unit_idx, from->round_idx);
    op->wait[r->taken.lane] = -1;
}

static int check_case(emu_case c, int rank_numel, uint64_t seed)
{
    static removal r;
    emu_report report;
    emu_outcome out;
    const emu_options o = {.rank_numel = rank_numel, .seed = seed};
    int missed = 0;
    memset(&r, 0, sizeof r);
    c.begin = begin;
    c.arg = &r;
    r.taken.rank = -1;
    emu_case_run(&o, &c, &report, &out);
    assert_int_equal(report.status, TESS_OK);
    if (report.violation_numel != 0) fail_msg("W %d M %d: %s", rank_numel, (int)c.m, report.violation);
    for (int i = 0; i < r.numel; i++) {
        r.taken = r.list[i];
        emu_case_run(&o, &c, &report, &out);
        if (report.violation_numel > 0)
            continue;
        missed++;
        print_message("W %d M %d group %d full %d: not missed: %s\n", rank_numel, (int)c.m, c.group,
                      c.is_full, r.what);
    }
    print_message("W %d M %d group %d full %d lib %d: %d waits\n", rank_numel, (int)c.m, c.group,
                  c.is_full, c.is_library, r.numel);
    return missed;
}

static void test_generated(void **state)
{
    (void)state;
    int missed = 0;
    for (int w = 1; w <= 3; w++)
        for (int v = 0; v < 16; v++) {
            const emu_case c = {.step_numel = 2,
                                .m = v & 4 ? 5 : 1,
                                .group = v & 1 ? w : 1,
                                .is_full = (v & 2) != 0,
                                .prefetch = (v & 8) != 0};
            missed += check_case(c, w, (uint64_t)v);
        }
    assert_int_equal(missed, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_generated),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
