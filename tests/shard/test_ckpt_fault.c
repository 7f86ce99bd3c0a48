/* One rank: an error and a short count at every I/O call of a run that loads and saves. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

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

/* One fault after the other in the same directory: each life starts from what the last one left. */
static void sweep_errors(bench *b, const char *kind, int64_t stride)
{
    const bool is_told = strcmp(kind, "short") != 0;
    int64_t call_numel = 0;
    ok(ckpt_session_calls(b->comm, &call_numel));
    int64_t committed = 2, noticed_numel = 0, silent_numel = 0;
    ok(ckpt_session_start(b->comm, b->dir));
    for (int64_t n = 1; n <= call_numel; n += stride) {
        ckpt_session s;
        char fault[64];
        snprintf(fault, sizeof fault, "0:any:%lld:%s", (long long)n, kind);
        if (ckpt_session_run(b->comm, b->dir, fault, &s) != TESS_OK)
            fail_msg("%s: %s", fault, tess_error_message());
        committed = TESS_MAX(committed, s.committed);
        /* the call was made, so it failed */
        if (s.call_numel < n)
            fail_msg("%s: only %lld calls", fault, (long long)s.call_numel);
        noticed_numel += s.is_noticed;
        silent_numel += !s.is_noticed;
        if (!s.is_noticed && is_told && n >= s.first_write_call)
            fail_msg("%s: nobody noticed, and LOCK was written at call %lld", fault,
                     (long long)s.first_write_call);
        if (ckpt_session_check(b->comm, b->dir, committed) != TESS_OK)
            fail_msg("after %s: %s", fault, tess_error_message());
    }
    ckpt_fixture_remove(b->dir);
    /* Short counts are completed by the loop. An error is told, but for reads while the directory
     * is listed: the manifest of an older checkpoint, which nothing needs then (open, pread, close
     * of the at most two that are kept and one that could not be removed), and the epoch in LOCK
     * (open, pread), which is in the manifests too. */
    if (!is_told)
        assert_int_equal(noticed_numel, 0);
    else
        assert_in_range(silent_numel, 0, 3 * 3 + 2);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_error_at_every_call_leaves_the_newest_loadable),
        cmocka_unit_test(test_full_disk_at_every_call_leaves_the_newest_loadable),
        cmocka_unit_test(test_short_count_at_every_call_is_completed),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
