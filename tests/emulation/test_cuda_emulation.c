/* The emulation itself: legal code runs, and each kind of mistake is named. */
#include "tests/emulation/emulation.h"
#include "tests/emulation/emulation_probe.h"
#include "tests/kernels/op_support.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

enum { OUT_NUMEL = 128 };

static const tess_emulation_settings orders[] = {
    {TESS_EMULATION_FORWARD, 0, 0, 0, -1}, {TESS_EMULATION_REVERSED, 0, 0, 0, -1},
    {TESS_EMULATION_SEEDED, 1, 0, 0, -1},  {TESS_EMULATION_SEEDED, 2, 0, 0, -1},
    {TESS_EMULATION_SEEDED, 3, 0, 0, -1},
};

static unsigned *device_words(int64_t numel)
{
    void *p = NULL;
    assert_int_equal(tess_emulation_alloc("out", (size_t)numel * sizeof(unsigned), &p), TESS_OK);
    return p;
}

static tess_status probe(probe_kind kind, const tess_emulation_settings *settings,
                         unsigned out[OUT_NUMEL])
{
    tess_stream s;
    tess_stream_init_inline(&s, "test", NULL);
    tess_emulation_set(settings);
    tess_error_clear();
    unsigned *out_dev = device_words(OUT_NUMEL);
    const tess_status st = emulation_probe(kind, out_dev, &s);
    assert_int_equal(tess_emulation_read(out, out_dev, OUT_NUMEL * sizeof *out), TESS_OK);
    tess_emulation_release_all();
    return st;
}

static void test_legal_code_runs(void **state)
{
    (void)state;
    for (int o = 0; o < TESS_NELEM(orders); o++) {
        unsigned out[OUT_NUMEL];
        assert_int_equal(probe(PROBE_LEGAL, &orders[o], out), TESS_OK);
        for (unsigned i = 0; i < OUT_NUMEL; i++) {
            const unsigned thread = i % 64;
            assert_int_equal(out[i], 496 + thread / 16 * 16 + (thread % 32 < 16 ? 8 : 0));
        }
        assert_int_equal(probe(PROBE_NAMED, &orders[o], out), TESS_OK);
        for (unsigned i = 0; i < OUT_NUMEL; i++)
            assert_int_equal(out[i], i % 64 / 32 * 32 + 31 - i % 32);
        assert_int_equal(probe(PROBE_READ_HIGHER, &orders[o], out), TESS_OK);
        for (unsigned i = 0; i < OUT_NUMEL; i++)
            assert_int_equal(out[i], TESS_MIN(i % 64 + 1, 63u));
    }
}

/* What each mistake is called, in every order. */
static const struct {
    probe_kind kind;
    const char *text[3];
} mistakes[] = {
    {PROBE_BARRIERS_DIFFER,
     {"kernel barriers_differ_kernel, block", "different barriers", "emulation_probe.cpp:"}},
    {PROBE_THREAD_LEAVES, {"thread 5: left the kernel", "at __syncthreads", "of 64 threads"}},
    {PROBE_MASKS_DIFFER, {"lanes of a warp meet with different", "fffffffe", "ffffffff"}},
    {PROBE_SITES_DIFFER, {"lanes of a warp meet with different", "__shfl_sync", "cpp:"}},
    {PROBE_LANE_LEAVES, {"kernel lane_leaves_kernel", "__shfl_sync", "lane"}},
    {PROBE_NAMED_NUMBERS, {"threads expect different numbers", "barrier 3 of 48", "of 64 threads"}},
    {PROBE_WRITES_BEHIND_SHARED, {"wrote behind a shared array of 256 bytes", "kernel", ""}},
    {PROBE_WRITES_BEHIND_DYNAMIC, {"wrote behind a shared array of 64 bytes", "kernel", ""}},
    {PROBE_MISALIGNED, {"access of 16 bytes", "kernel misaligned_kernel", ""}},
    {PROBE_SHARED_LARGE, {"50176 bytes of dynamic shared memory", "at most 49152", "attribute"}},
#if !defined(__SANITIZE_ADDRESS__)
    {PROBE_WRITES_BEHIND, {"wrote behind 'out' of 512 bytes", "kernel writes_kernel", ""}},
    {PROBE_WRITES_BEFORE, {"wrote before 'out'", "kernel writes_kernel", ""}},
#endif
};

static void test_mistakes_are_named(void **state)
{
    (void)state;
    for (int m = 0; m < TESS_NELEM(mistakes); m++) {
        for (int o = 0; o < TESS_NELEM(orders); o++) {
            unsigned out[OUT_NUMEL];
            assert_int_equal(probe(mistakes[m].kind, &orders[o], out), TESS_E_STATE);
            for (int i = 0; i < 3; i++)
                if (strstr(tess_error_message(), mistakes[m].text[i]) == NULL)
                    fail_msg("order %d: message '%s' lacks '%s'", o, tess_error_message(),
                             mistakes[m].text[i]);
            assert_int_equal(probe(PROBE_LEGAL, &orders[o], out), TESS_OK);
        }
    }
}

/* A thread that reads a higher one is caught forward, not in reverse: both are needed. */
static void test_missing_barrier_shows_in_one_order(void **state)
{
    (void)state;
    unsigned want[OUT_NUMEL], out[OUT_NUMEL];
    assert_int_equal(probe(PROBE_READ_HIGHER, &orders[0], want), TESS_OK);
    int barrier = -1;
    for (int b = 0; b < tess_emulation_barrier_numel(); b++)
        if (tess_emulation_barrier_get(b).pass_numel == OUT_NUMEL)
            barrier = b;
    assert_true(barrier >= 0);
    assert_string_equal(tess_emulation_barrier_get(barrier).kind, "__syncthreads");
    for (int o = 0; o < 2; o++) {
        tess_emulation_settings settings = orders[o];
        settings.dropped_barrier = barrier;
        assert_int_equal(probe(PROBE_READ_HIGHER, &settings, out), TESS_OK);
        assert_int_equal(memcmp(out, want, sizeof out) == 0, o == 1);
    }
}

static void test_host_addresses_are_refused(void **state)
{
    (void)state;
    unsigned on_host = 3, out[OUT_NUMEL] = {0};
    tess_stream s;
    tess_stream_init_inline(&s, "test", NULL);
    tess_emulation_set(&orders[0]);
    assert_refused(emulation_probe(PROBE_LEGAL, out, &s), TESS_E_STATE, "not in device memory");
    unsigned *out_dev = device_words(1), *in_dev = device_words(1);
    assert_refused(emulation_probe_struct(out_dev, &on_host, &s), TESS_E_STATE,
                   "argument 1 holds the host address");
    assert_int_equal(tess_emulation_write(in_dev, &on_host, sizeof on_host), TESS_OK);
    assert_int_equal(emulation_probe_struct(out_dev, in_dev, &s), TESS_OK);
    assert_int_equal(tess_emulation_read(out, out_dev, sizeof *out), TESS_OK);
    assert_int_equal(out[0], 3);
    assert_refused(tess_emulation_read(out, out_dev, 2 * sizeof *out), TESS_E_ARG,
                   "not inside one allocation");
    tess_emulation_release_all();
}

static void test_static_shared_is_poisoned_per_block(void **state)
{
    (void)state;
    for (int o = 0; o < TESS_NELEM(orders); o++) {
        unsigned out[2];
        tess_stream s;
        tess_stream_init_inline(&s, "test", NULL);
        tess_emulation_set(&orders[o]);
        unsigned *out_dev = device_words(2);
        assert_int_equal(emulation_probe_static(out_dev, &s), TESS_OK);
        assert_int_equal(tess_emulation_read(out, out_dev, sizeof out), TESS_OK);
        for (int b = 0; b < 2; b++)
            assert_true(out[b] != 7 && out[b] != 0);
        tess_emulation_release_all();
    }
}

/* The host must not look into device memory: a process that does is stopped. */
static void test_host_read_of_device_memory_stops(void **state)
{
    (void)state;
    tess_emulation_set(&orders[0]);
    const volatile unsigned *out_dev = device_words(1);
    const pid_t child = fork();
    if (child == 0) {
        const struct rlimit no_core = {0, 0};
        (void)setrlimit(RLIMIT_CORE, &no_core);
        (void)signal(SIGSEGV, SIG_DFL);
        _exit(*out_dev == 0 ? 1 : 2);
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
    tess_emulation_release_all();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_legal_code_runs),
        cmocka_unit_test(test_mistakes_are_named),
        cmocka_unit_test(test_missing_barrier_shows_in_one_order),
        cmocka_unit_test(test_host_addresses_are_refused),
        cmocka_unit_test(test_static_shared_is_poisoned_per_block),
        cmocka_unit_test(test_host_read_of_device_memory_stops),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
