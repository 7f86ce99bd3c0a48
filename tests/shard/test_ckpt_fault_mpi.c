/*
 * Faults of one rank of several: all ranks report one outcome, the newest checkpoint loads.
 *
 * Without arguments: errors at a sample of I/O calls of every rank. With `live DIR` or `check DIR
 * LEAST`: one life under TESSERA_FAULT of the environment, for test_ckpt_kill_fault.sh.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "support/ckpt_session.h"
#include "support/rank_test.h"

static int arg_numel;
static char **args;

/* I/O calls of a life of `rank`, known to all. */
static tess_status count_calls(tess_comm *comm, const char *dir, int rank, int64_t *call_numel)
{
    ckpt_session s;
    TESS_TRY(ckpt_session_run(comm, dir, NULL, &s));
    *call_numel = s.call_numel;
    return tess_comm_bcast(comm, rank, call_numel, sizeof *call_numel);
}

static tess_status sweep_rank(tess_comm *comm, const char *dir, int rank, int64_t *committed)
{
    enum { LIFE_NUMEL = 16 };
    static const char *const kinds[] = {"eio", "enospc", "erofs"};
    int64_t told_numel = 0, call_numel = 0;
    TESS_TRY(count_calls(comm, dir, rank, &call_numel));
    for (int64_t i = 0; i < LIFE_NUMEL; i++) {
        ckpt_session s;
        char fault[64];
        const long long nth = (long long)(1 + i * (call_numel - 1) / (LIFE_NUMEL - 1));
        snprintf(fault, sizeof fault, "%d:any:%lld:%s", rank, nth, kinds[i % 3]);
        TESS_TRY(ckpt_session_run(comm, dir, fault, &s));
        told_numel += s.status != TESS_OK || s.committed_numel < 2;
        *committed = TESS_MAX(*committed, s.committed);
        TESS_TRY(ckpt_session_check(comm, dir, *committed));
    }
    TESS_CHECK(told_numel >= LIFE_NUMEL / 4, TESS_E_STATE,
               "only %lld of %d faults of rank %d had an effect", (long long)told_numel,
               (int)LIFE_NUMEL, rank);
    return TESS_OK;
}

static tess_status sweep(tess_comm *comm)
{
    char dir[256];
    ckpt_session s;
    if (access("/dev/shm", W_OK) == 0)
        (void)setenv("TMPDIR", "/dev/shm", 0);
    TESS_TRY(ckpt_fixture_dir(comm, dir));
    tess_status st = ckpt_session_run(comm, dir, NULL, &s);
    int64_t committed = s.committed;
    for (int rank = 0; st == TESS_OK && rank < tess_comm_world(comm); rank++)
        st = sweep_rank(comm, dir, rank, &committed);
    if (tess_comm_rank(comm) == 0)
        ckpt_fixture_remove(dir);
    return st;
}

static tess_status run(tess_comm *comm)
{
    if (arg_numel == 4 && strcmp(args[1], "check") == 0)
        return ckpt_session_check(comm, args[2], strtoll(args[3], NULL, 10));
    if (arg_numel != 3 || strcmp(args[1], "live") != 0)
        return sweep(comm);
    ckpt_session s;
    TESS_TRY(ckpt_session_run(comm, args[2], getenv("TESSERA_FAULT"), &s));
    if (tess_comm_rank(comm) == 0)
        printf("loaded %lld committed %lld\n", (long long)s.loaded, (long long)s.committed);
    return s.status;
}

int main(int argc, char **argv)
{
    arg_numel = argc;
    args = argv;
    return rank_test_main(argc, argv, run);
}
