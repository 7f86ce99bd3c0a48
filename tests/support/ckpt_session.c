#include "support/ckpt_session.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "shard/ckpt_priv.h"

static int group_of(int world) { return world % 2 == 0 ? world / 2 : world; }

static tess_status live(ckpt_fixture *f, tess_comm *comm, const char *dir, ckpt_session *out)
{
    tess_ckpt_store *store = NULL;
    tess_ckpt_report report;
    TESS_TRY(ckpt_fixture_open(f, comm, dir, false, &store));
    tess_status st = ckpt_fixture_load(f, store, NULL, &out->loaded, NULL);
    if (st == TESS_OK)
        st = ckpt_fixture_prepare(f, store);
    if (st == TESS_OK)
        st = tess_ckpt_probe(store);
    /* A run would end; what a probe that failed leaves must not harm one that goes on. */
    out->has_probe_failed =
        st == TESS_E_IO && strstr(tess_error_message(), "output.probe_disk") != NULL;
    if (out->has_probe_failed) {
        tess_error_clear();
        st = TESS_OK;
    }
    for (int64_t i = 1; st == TESS_OK && i <= 2; i++) {
        const int64_t step = TESS_MAX(out->loaded, (int64_t)0) + i;
        st = ckpt_fixture_save(f, store, step, &report);
        if (st != TESS_OK)
            break;
        out->committed_numel += report.outcome == TESS_CKPT_COMMITTED;
        if (report.outcome == TESS_CKPT_COMMITTED)
            out->committed = step;
        else if (report.message[0] == '\0')
            st = TESS_FAIL(TESS_E_STATE, "a dropped checkpoint gave no reason");
    }
    tess_ckpt_store_close(&store);
    return st;
}

/* The same on all ranks? */
static tess_status check_agreement(tess_comm *comm, const ckpt_session *s)
{
    int64_t max[6] = {s->loaded,     -s->loaded,         s->committed,
                      -s->committed, (int64_t)s->status, -(int64_t)s->status};
    TESS_TRY(tess_comm_control(comm, NULL, 0, max, 6));
    for (int i = 0; i < 6; i += 2)
        TESS_CHECK(max[i] == -max[i + 1], TESS_E_STATE, "ranks report different outcomes (%d)", i);
    return TESS_OK;
}

typedef struct first_write {
    const tess_io *io;
    int64_t call;
} first_write;

static void note_write(void *arg, const tess_io_change *change)
{
    first_write *w = arg;
    if (change->op == TESS_IO_PWRITE && w->call == INT64_MAX)
        w->call = tess_io_calls(w->io, TESS_IO_OP_NUMEL);
}

tess_status ckpt_session_run(tess_comm *comm, const char *dir, const char *fault, ckpt_session *out)
{
    ckpt_fixture *f = NULL;
    *out = (ckpt_session){.loaded = -1, .committed = -1};
    if (fault != NULL)
        (void)setenv("TESSERA_FAULT", fault, 1);
    const int world = tess_comm_world(comm);
    tess_status st = ckpt_fixture_create(world, tess_comm_rank(comm), group_of(world), 1, &f);
    (void)unsetenv("TESSERA_FAULT");
    TESS_TRY(tess_agree(comm, st));
    f->has_read_back = true;
    first_write w = {f->io, INT64_MAX};
    tess_io_observe(f->io, note_write, &w);
    out->status = live(f, comm, dir, out);
    out->first_write_call = w.call;
    out->call_numel = tess_io_calls(f->io, TESS_IO_OP_NUMEL);
    out->is_noticed = out->status != TESS_OK || out->has_probe_failed || out->committed_numel < 2 ||
                      f->log[0] != '\0';
    ckpt_fixture_destroy(&f);
    if (out->status == TESS_E_STATE || tess_status_is_fatal(out->status))
        return out->status;
    tess_error_clear();
    return check_agreement(comm, out);
}

tess_status ckpt_session_start(tess_comm *comm, char dir[256])
{
    ckpt_session s;
    if (access("/dev/shm", W_OK) == 0)
        (void)setenv("TMPDIR", "/dev/shm", 0);
    TESS_TRY(ckpt_fixture_dir(comm, dir));
    TESS_TRY(ckpt_session_run(comm, dir, NULL, &s));
    TESS_CHECK(s.status == TESS_OK && s.committed == 2, TESS_E_STATE,
               "a first life without fault committed step %lld", (long long)s.committed);
    return TESS_OK;
}

tess_status ckpt_session_calls(tess_comm *comm, int64_t *call_numel)
{
    char dir[256];
    ckpt_session s;
    TESS_TRY(ckpt_session_start(comm, dir));
    TESS_TRY(ckpt_session_run(comm, dir, NULL, &s));
    TESS_CHECK(s.loaded == 2 && s.committed == 4, TESS_E_STATE,
               "a second life without fault committed step %lld", (long long)s.committed);
    if (tess_comm_rank(comm) == 0)
        ckpt_fixture_remove(dir);
    *call_numel = s.call_numel;
    return TESS_OK;
}

static tess_status verify_all(ckpt_fixture *f, const char *dir)
{
    ckpt_list list = {0};
    char path[PATH_MAX];
    TESS_TRY(ckpt_list_scan(f->io, dir, false, &list));
    tess_status st = TESS_OK;
    for (int64_t i = 0; st == TESS_OK && i < list.numel; i++) {
        st = ckpt_join(path, dir, list.entries[i].name);
        if (st == TESS_OK)
            st = ckpt_verify_dir(f->io, path);
    }
    ckpt_list_fini(&list);
    return st;
}

tess_status ckpt_session_check(tess_comm *comm, const char *dir, int64_t least)
{
    ckpt_fixture *f = NULL;
    tess_ckpt_store *store = NULL;
    int64_t seed = -1;
    const int world = tess_comm_world(comm);
    TESS_TRY(
        tess_agree(comm, ckpt_fixture_create(world, tess_comm_rank(comm), group_of(world), 1, &f)));
    tess_status st = ckpt_fixture_open(f, comm, dir, false, &store);
    if (st == TESS_OK)
        st = ckpt_fixture_load(f, store, NULL, &seed, NULL);
    if (st == TESS_OK && seed < least)
        st = TESS_FAIL(TESS_E_STATE, "step %lld was found, step %lld had been committed",
                       (long long)seed, (long long)least);
    if (st == TESS_OK && tess_comm_rank(comm) == 0)
        st = verify_all(f, dir);
    tess_ckpt_store_close(&store);
    ckpt_fixture_destroy(&f);
    return tess_agree(comm, st);
}
