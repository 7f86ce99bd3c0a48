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

#include "core/memory.h"
#include "emulation/emu_case.h"

enum { ROOM_NBYTES = 1 << 16, SEED_NUMEL = 12 };

typedef struct snapshot {
    tess_stream *copy;
    tess_event ready, copied;
    tess_arena *arena;
    tess_runtime *rt;
} snapshot;

typedef struct bench {
    bool is_held;
    snapshot of[EMU_RANK_MAX];
} bench;

/* What the store does on a device: copies on a stream of its own behind the compute stream. */
static tess_status take(void *arg, const emu_rank *rank, tess_runtime *rt)
{
    bench *b = arg;
    snapshot *s = &b->of[rank->rank];
    size_t at = 0;
    s->rt = rt;
    TESS_TRY(tess_device_arena_create(rank->device, TESS_HOST, "snapshot", ROOM_NBYTES, &s->arena));
    TESS_TRY(tess_device_stream_create(rank->device, "copy", false, &s->copy));
    TESS_TRY(tess_event_init(&s->ready, tess_runtime_stream(rt)));
    TESS_TRY(tess_event_init(&s->copied, s->copy));
    TESS_TRY(tess_event_record(&s->ready, tess_runtime_stream(rt)));
    TESS_TRY(tess_stream_wait(s->copy, &s->ready));
    for (int i = 0; i < 2 * TESS_STATE_NUMEL; i++) {
        const tess_view v =
            tess_runtime_state(rt, i / TESS_STATE_NUMEL, (tess_state_kind)(i % TESS_STATE_NUMEL));
        tess_view place = {0};
        TESS_TRY(tess_arena_view(s->arena, at, v.numel, v.dt, &place));
        TESS_TRY(tess_device_copy(rank->device, place, v, s->copy));
        at += (tess_view_nbytes(v) + 255) / 256 * 256;
    }
    TESS_TRY(tess_event_record(&s->copied, s->copy));
    tess_runtime_hold(rt, b->is_held ? &s->copied : NULL);
    return TESS_OK;
}

static void drop(void *arg, const emu_rank *rank)
{
    snapshot *s = &((bench *)arg)->of[rank->rank];
    if (s->copy == NULL)
        return;
    if (tess_event_finish(&s->copied) != TESS_OK)
        tess_error_clear();
    tess_event_fini(&s->ready, tess_runtime_stream(s->rt));
    tess_event_fini(&s->copied, s->copy);
    tess_device_stream_destroy(rank->device, &s->copy);
    tess_arena_destroy(&s->arena);
}

static void run(int rank_numel, bool is_held)
{
    for (int seed = 0; seed < SEED_NUMEL; seed++) {
        bench b = {.is_held = is_held};
        emu_outcome want, got;
        emu_report report;
        const emu_case c = {.step_numel = 2,
                            .m = 5,
                            .group = rank_numel,
                            .is_full = seed % 2 != 0,
                            .loaded = take,
                            .end = drop,
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
