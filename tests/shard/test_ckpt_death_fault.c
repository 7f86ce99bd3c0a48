/* One rank: a kill at every I/O call of a run that loads and saves, a file size limit, a full
 * /dev/shm. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mount.h>
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

/* Shared memory may be full of what killed ranks left: files are then built elsewhere. */
static void test_full_shared_memory_drops_nothing(void **state)
{
    enum { CANNOT_MOUNT = 77 };
    bench *b = *state;
    int status = 0;
    snprintf(b->dir, sizeof b->dir, "/tmp/tessera-ckpt-XXXXXX"); /* TMPDIR may be /dev/shm */
    assert_non_null(mkdtemp(b->dir));
    const pid_t pid = fork();
    if (pid == 0) {
        ckpt_session s;
        if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
            mount("none", "/dev/shm", "tmpfs", 0, "size=4k") != 0)
            _exit(CANNOT_MOUNT);
        const tess_status st = ckpt_session_run(b->comm, b->dir, NULL, &s);
        _exit(st == TESS_OK && s.status == TESS_OK && s.committed_numel == 2 ? 0 : 3);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    ckpt_fixture_remove(b->dir);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == CANNOT_MOUNT)
        skip();
    assert_int_equal(WEXITSTATUS(status), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kill_at_every_call_leaves_the_newest_loadable),
        cmocka_unit_test(test_file_size_limit_drops_the_checkpoint),
        cmocka_unit_test(test_full_shared_memory_drops_nothing),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
