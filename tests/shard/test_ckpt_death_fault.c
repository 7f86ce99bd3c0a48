/* One rank: a kill at every I/O call of a run that loads and saves, and a file size limit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

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

static void test_kill_at_every_call_leaves_the_newest_loadable(void **state)
{
    bench *b = *state;
    int64_t call_numel = 0;
    ok(ckpt_session_calls(b->comm, &call_numel));
    int64_t killed_numel = 0;
    ok(ckpt_session_start(b->comm, b->dir));
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
    ok(ckpt_session_start(b->comm, b->dir));
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
        cmocka_unit_test(test_kill_at_every_call_leaves_the_newest_loadable),
        cmocka_unit_test(test_file_size_limit_drops_the_checkpoint),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
