/* One rank: an error, a short count and a kill at every I/O call of a run that loads and saves. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/base.h"
#include "support/ckpt_session.h"

typedef struct bench {
    tess_comm *comm;
    char dir[256];
} bench;

static void ok(tess_status st)
{
    if (st != TESS_OK)
        fail_msg("%s\n%s", tess_error_message(), tess_error_trace_text());
}

static int set_up(void **state)
{
    static bench b;
    if (access("/dev/shm", W_OK) == 0)
        (void)setenv("TMPDIR", "/dev/shm", 0);
    ok(tess_comm_create_self(&b.comm));
    *state = &b;
    return 0;
}

static int tear_down(void **state)
{
    bench *b = *state;
    tess_comm_destroy(&b->comm);
    return 0;
}

/* A new directory with steps 1 and 2 committed. */
static void start(bench *b)
{
    ckpt_session s;
    ok(ckpt_fixture_dir(b->comm, b->dir));
    ok(ckpt_session_run(b->comm, b->dir, NULL, &s));
    assert_int_equal(s.status, TESS_OK);
    assert_int_equal(s.committed, 2);
}

static int64_t count_calls(bench *b)
{
    ckpt_session s;
    start(b);
    ok(ckpt_session_run(b->comm, b->dir, NULL, &s));
    assert_true(s.loaded == 2 && s.committed == 4);
    ckpt_fixture_remove(b->dir);
    return s.call_numel;
}

/* One fault after the other in the same directory: each life starts from what the last one left. */
static void sweep_errors(bench *b, const char *kind, int64_t stride)
{
    const int64_t call_numel = count_calls(b);
    int64_t committed = 2, noticed_numel = 0, life_numel = 0;
    start(b);
    for (int64_t n = 1; n <= call_numel; n += stride) {
        ckpt_session s;
        char fault[64];
        snprintf(fault, sizeof fault, "0:any:%lld:%s", (long long)n, kind);
        if (ckpt_session_run(b->comm, b->dir, fault, &s) != TESS_OK)
            fail_msg("%s: %s", fault, tess_error_message());
        committed = TESS_MAX(committed, s.committed);
        noticed_numel += s.is_noticed;
        life_numel++;
        if (ckpt_session_check(b->comm, b->dir, committed) != TESS_OK)
            fail_msg("after %s: %s", fault, tess_error_message());
    }
    ckpt_fixture_remove(b->dir);
    /* Short counts are completed by the loop; errors are told. Only a manifest that the
     * load did not need may fail in silence. */
    if (strcmp(kind, "short") == 0)
        assert_int_equal(noticed_numel, 0);
    else
        assert_true(noticed_numel * 20 > life_numel * 19);
}

static void test_error_at_every_call_leaves_the_newest_loadable(void **state)
{
    sweep_errors(*state, "eio", 1);
}

static void test_full_disk_at_every_call_leaves_the_newest_loadable(void **state)
{
    sweep_errors(*state, "enospc", 5);
}

static void test_short_count_at_every_call_is_completed(void **state)
{
    sweep_errors(*state, "short", 5);
}

static void test_kill_at_every_call_leaves_the_newest_loadable(void **state)
{
    bench *b = *state;
    const int64_t call_numel = count_calls(b);
    int64_t killed_numel = 0;
    start(b);
    for (int64_t n = 1; n <= call_numel; n++) {
        char fault[64];
        int status = 0;
        snprintf(fault, sizeof fault, "0:any:%lld:kill", (long long)n);
        const pid_t pid = fork();
        if (pid == 0) {
            ckpt_session s;
            _exit(ckpt_session_run(b->comm, b->dir, fault, &s) == TESS_OK ? 0 : 3);
        }
        assert_int_equal(waitpid(pid, &status, 0), pid);
        killed_numel += WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
        assert_true(WIFSIGNALED(status) || WEXITSTATUS(status) == 0);
        if (ckpt_session_check(b->comm, b->dir, 2) != TESS_OK)
            fail_msg("after %s: %s", fault, tess_error_message());
    }
    ckpt_fixture_remove(b->dir);
    assert_true(killed_numel > call_numel * 3 / 4);
}

/* A file size limit is a dropped checkpoint, not the end of the process. */
static void test_file_size_limit_drops_the_checkpoint(void **state)
{
    bench *b = *state;
    int status = 0;
    start(b);
    const pid_t pid = fork();
    if (pid == 0) {
        const struct rlimit limit = {20000, 20000};
        ckpt_session s;
        (void)setrlimit(RLIMIT_FSIZE, &limit);
        const tess_status st = ckpt_session_run(b->comm, b->dir, NULL, &s);
        _exit(st == TESS_OK && s.status == TESS_OK && s.loaded == 2 && s.committed == -1 ? 0 : 3);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    ok(ckpt_session_check(b->comm, b->dir, 2));
    ckpt_fixture_remove(b->dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_error_at_every_call_leaves_the_newest_loadable),
        cmocka_unit_test(test_full_disk_at_every_call_leaves_the_newest_loadable),
        cmocka_unit_test(test_short_count_at_every_call_is_completed),
        cmocka_unit_test(test_kill_at_every_call_leaves_the_newest_loadable),
        cmocka_unit_test(test_file_size_limit_drops_the_checkpoint),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
