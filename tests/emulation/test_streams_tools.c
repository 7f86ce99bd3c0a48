/* The emulated device itself: what is wrong is found, and named, whatever the order. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "core/memory.h"
#include "emulation/emu_case.h"

enum { NUMEL = 64, SEED_NUMEL = 12 };

static const tess_wire gather_wire = {.op = TESS_COMM_ALL_GATHER,
                                      .storage = TESS_F32,
                                      .wire = TESS_F32,
                                      .accumulate = TESS_F32,
                                      .numel_per_rank = NUMEL,
                                      .numel_total = NUMEL,
                                      .name = "shard"};

/* Memory and streams of a small program. */
typedef struct bench {
    tess_device *device;
    tess_arena *arena;
    tess_stream *a, *b;
    tess_event ready;
    tess_view x, y, z; /* [NUMEL] f32 */
    tess_view full;    /* [world, NUMEL] f32 */
} bench;

static tess_status open_bench(const emu_rank *rank, bench *t)
{
    const int world = tess_comm_world(rank->comm);
    *t = (bench){.device = rank->device};
    TESS_TRY(tess_device_arena_create(t->device, TESS_DEVICE, "bench",
                                      (size_t)(3 + world) * NUMEL * 4, &t->arena));
    TESS_TRY(tess_device_stream_create(t->device, "a", false, &t->a));
    TESS_TRY(tess_device_stream_create(t->device, "b", true, &t->b));
    TESS_TRY(tess_event_init(&t->ready, t->a));
    TESS_TRY(tess_arena_view(t->arena, 0, NUMEL, TESS_F32, &t->x));
    TESS_TRY(tess_arena_view(t->arena, NUMEL * 4, NUMEL, TESS_F32, &t->y));
    TESS_TRY(tess_arena_view(t->arena, 2 * NUMEL * 4, NUMEL, TESS_F32, &t->z));
    return tess_arena_view(t->arena, 3 * NUMEL * 4, world * NUMEL, TESS_F32, &t->full);
}

static tess_status close_bench(bench *t, tess_status st)
{
    if (st == TESS_OK)
        st = tess_stream_finish(t->a);
    if (st == TESS_OK)
        st = tess_stream_finish(t->b);
    tess_event_fini(&t->ready, t->a);
    tess_device_stream_destroy(t->device, &t->a);
    tess_device_stream_destroy(t->device, &t->b);
    tess_arena_destroy(&t->arena);
    return st;
}

static tess_status add(tess_view a, tess_view b, tess_view out, tess_stream *s)
{
    const tess_add_args args = {.a = a, .b = b, .out = out};
    return emu_kernels.add(&args, s);
}

/* ---- missing waits ---- */

typedef struct plan {
    bool waits;
} plan;

/* Stream a makes x, stream b uses it. */
static tess_status hand_over(const emu_rank *rank, const plan *p, bench *t)
{
    (void)rank;
    TESS_TRY(tess_device_zero(t->device, t->x, t->a));
    TESS_TRY(tess_device_zero(t->device, t->y, t->b));
    TESS_TRY(tess_event_record(&t->ready, t->a));
    if (p->waits)
        TESS_TRY(tess_stream_wait(t->b, &t->ready));
    return add(t->x, t->y, t->z, t->b);
}

static tess_status hand_over_body(void *arg, const emu_rank *rank)
{
    bench t;
    tess_status st = open_bench(rank, &t);
    if (st == TESS_OK)
        st = hand_over(rank, arg, &t);
    return close_bench(&t, st);
}

static void test_missing_wait_is_named(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < SEED_NUMEL; seed++) {
        emu_report r;
        plan p = {.waits = true};
        const emu_options o = {.rank_numel = 1, .seed = seed};
        emu_run(&o, hand_over_body, &p, &r);
        assert_int_equal(r.status, TESS_OK);
        assert_int_equal(r.violation_numel, 0);
        p.waits = false;
        emu_run(&o, hand_over_body, &p, &r);
        assert_int_equal(r.violation_numel, 1);
        assert_string_equal(r.violation, "rank 0: 'add' (stream b, number 2) reads bytes [0, 256) "
                                         "of allocation 0, which 'zero' (stream a, number 1) "
                                         "writes; nothing orders the two: a wait is missing");
    }
}

/* What the host has waited for orders also what it enqueues on other streams. */
static tess_status host_order_body(void *arg, const emu_rank *rank)
{
    bench t;
    float host[NUMEL];
    (void)arg;
    tess_status st = open_bench(rank, &t);
    if (st == TESS_OK)
        st = tess_device_zero(t.device, t.x, t.a);
    if (st == TESS_OK)
        st = tess_stream_finish(t.a);
    if (st == TESS_OK)
        st = tess_device_copy(t.device, tess_view_host(host, NUMEL, TESS_F32), t.x, t.b);
    if (st == TESS_OK && host[3] == 0.0f)
        st = TESS_FAIL(TESS_E_STATE, "bytes came before the host waited for them");
    if (st == TESS_OK)
        st = tess_stream_finish(t.b);
    if (st == TESS_OK && host[3] != 0.0f)
        st = TESS_FAIL(TESS_E_STATE, "bytes did not come: %g", (double)host[3]);
    return close_bench(&t, st);
}

static void test_host_waits_order(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < SEED_NUMEL; seed++) {
        emu_report r;
        const emu_options o = {.rank_numel = 1, .seed = seed};
        emu_run(&o, host_order_body, NULL, &r);
        assert_string_equal(r.error, "");
        assert_int_equal(r.violation_numel, 0);
    }
}

/* ---- memory ---- */

static tess_status early_release_body(void *arg, const emu_rank *rank)
{
    bench t;
    (void)arg;
    TESS_TRY(open_bench(rank, &t));
    TESS_TRY(tess_device_zero(t.device, t.x, t.a));
    tess_arena_destroy(&t.arena);
    return close_bench(&t, TESS_OK);
}

static void test_release_before_the_end(void **state)
{
    (void)state;
    emu_report r;
    const emu_options o = {.rank_numel = 1, .seed = 2};
    emu_run(&o, early_release_body, NULL, &r);
    assert_true(r.violation_numel > 0);
    assert_non_null(strstr(r.violation, "allocation 0 is released, and the host has not waited for "
                                        "'zero' (stream a, number 1)"));
}

static tess_status touch_body(void *arg, const emu_rank *rank)
{
    bench t;
    (void)arg;
    TESS_TRY(open_bench(rank, &t));
    volatile float *x = t.y.data;
    x[1] = 1.0f;
    return close_bench(&t, TESS_OK);
}

/* Host code that follows an address of the device ends the program, and says where. */
static void test_touch_of_the_host(void **state)
{
    (void)state;
    int out[2], code = 0;
    char line[200] = "";
    assert_int_equal(pipe(out), 0);
    const pid_t child = fork();
    if (child == 0) {
        emu_report r;
        const emu_options o = {.rank_numel = 2};
        dup2(out[1], 2);
        emu_run(&o, touch_body, NULL, &r);
        _exit(0);
    }
    close(out[1]);
    assert_true(read(out[0], line, sizeof line - 1) > 0);
    close(out[0]);
    assert_int_equal(waitpid(child, &code, 0), child);
    assert_true(WIFEXITED(code));
    assert_int_equal(WEXITSTATUS(code), EMU_EXIT_TOUCHED);
    assert_non_null(strstr(line, "host code touched device memory: rank "));
    assert_non_null(strstr(line, "allocation 0, byte 260 of"));
}

/* ---- collectives ---- */

typedef struct dance {
    bool crosses; /* rank 1 enqueues the two in the other order */
    bool differs; /* rank 1 gathers something else */
    bool skips;   /* rank 1 leaves without */
} dance;

static tess_status gather_on(const emu_rank *rank, const bench *t, tess_stream *s, uint32_t entry)
{
    tess_wire wire = gather_wire;
    wire.entry_idx = entry;
    snprintf(wire.name, sizeof wire.name, "shard %u", entry);
    const tess_view shard = s == tess_comm_gather_stream(rank->comm) ? t->x : t->y;
    const tess_view full = s == tess_comm_gather_stream(rank->comm) ? t->full : t->z;
    wire.numel_per_rank = full.numel / tess_comm_world(rank->comm);
    return tess_comm_all_gather(rank->comm, &wire, tess_view_slice(shard, 0, wire.numel_per_rank),
                                full, s);
}

static tess_status dance_steps(const emu_rank *rank, const dance *d, const bench *t)
{
    tess_stream *s[2] = {tess_comm_gather_stream(rank->comm), tess_comm_reduce_stream(rank->comm)};
    const bool crosses = d->crosses && rank->rank == 1;
    TESS_TRY(tess_device_zero(t->device, t->x, s[0]));
    TESS_TRY(tess_device_zero(t->device, t->y, s[1]));
    for (int i = 0; i < 2 && !(d->skips && rank->rank == 1); i++) {
        const int which = crosses ? 1 - i : i;
        const bool is_odd = d->differs && rank->rank == 1 && i == 1;
        TESS_TRY(gather_on(rank, t, s[which], (uint32_t)which + (is_odd ? 7 : 0)));
    }
    TESS_TRY(tess_stream_finish(s[0]));
    return tess_stream_finish(s[1]);
}

static tess_status dance_body(void *arg, const emu_rank *rank)
{
    bench t;
    tess_status st = open_bench(rank, &t);
    if (st == TESS_OK)
        st = dance_steps(rank, arg, &t);
    return close_bench(&t, st);
}

static void check_dance(dance d, bool is_serial, const char *want)
{
    for (uint64_t seed = 0; seed < SEED_NUMEL; seed++) {
        emu_report r;
        const emu_options o = {.rank_numel = 2, .seed = seed, .is_serial = is_serial};
        emu_run(&o, dance_body, &d, &r);
        if (want == NULL) {
            assert_string_equal(r.error, "");
            assert_int_equal(r.violation_numel, 0);
            continue;
        }
        assert_int_equal(r.status, TESS_E_COMM);
        if (strstr(r.error, want) == NULL)
            fail_msg("expected '%s', found '%s'", want, r.error);
    }
}

/* Two streams in other orders on two ranks: fine where both collectives have room on a device, a
 * deadlock where one occupies it. */
static void test_order_of_issue(void **state)
{
    (void)state;
    check_dance((dance){.crosses = false}, true, NULL);
    check_dance((dance){.crosses = true}, false, NULL);
    check_dance((dance){.crosses = true}, true,
                "deadlock: rank 0 waits for gather, stream gather "
                "is at 'all_gather shard 0'");
}

static void test_unequal_collectives(void **state)
{
    (void)state;
    check_dance((dance){.differs = true}, false,
                "rank 0 is in 'all_gather shard 1', rank 1 in "
                "'all_gather shard 8'");
    check_dance((dance){.skips = true}, false, "deadlock: rank 0 waits for gather");
}

/* ---- the list of operands ---- */

/* Every kernel of the model and the runtime touches what the list says, and nothing else. */
static void test_operands(void **state)
{
    (void)state;
    for (int rank_numel = 1; rank_numel <= 2; rank_numel++) {
        const emu_case c = {
            .step_numel = 1, .m = 3, .group = rank_numel, .is_full = true, .between_numel = 1};
        const emu_options o = {.rank_numel = rank_numel, .is_audited = true};
        emu_report r;
        emu_outcome want, got;
        assert_int_equal(emu_case_on_host(&c, &want), TESS_OK);
        emu_case_run(&o, &c, &r, &got);
        assert_string_equal(r.error, "");
        assert_string_equal(r.violation, "");
        assert_memory_equal(&want, &got, sizeof want);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_missing_wait_is_named),
        cmocka_unit_test(test_host_waits_order),
        cmocka_unit_test(test_release_before_the_end),
        cmocka_unit_test(test_touch_of_the_host),
        cmocka_unit_test(test_order_of_issue),
        cmocka_unit_test(test_unequal_collectives),
        cmocka_unit_test(test_operands),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
