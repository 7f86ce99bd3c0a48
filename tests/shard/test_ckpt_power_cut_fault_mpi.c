/*
 * A power cut at every point of a run that writes its base, saves, prunes, drops a save and
 * resumes: the newest checkpoint that was reported committed, or a newer one that was published,
 * loads to the bit, and no published manifest stands for data that is not there.
 *
 * The run is recorded once. For every point of it the simulated disk gives directories that a power
 * cut there could have left, and each is loaded as a run loads it. At one rank the same is then
 * done with one fsync after the other left out of the record. A loss must be found, but where
 * another fsync does the same: so the test shows that it can fail, and what each fsync is for.
 *
 * Chooses the communication thread itself: none, it makes no difference to files.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/memory.h"
#include "shard/ckpt_priv.h"
#include "support/ckpt_session.h"
#include "support/disk_model.h"
#include "support/rank_test.h"

enum { CHOICE_FIXED_NUMEL = 6, CHOICE_NUMEL = 10, LIFE_EVERY = 25, LOSS_NBYTES = 600 };

/* ---- the run ---- */

static tess_status save(ckpt_fixture *f, tess_ckpt_store *store, int64_t step, disk_trace *t)
{
    tess_ckpt_value state[8];
    tess_ckpt_report report;
    ckpt_fixture_fill(f, (uint64_t)step);
    TESS_TRY(tess_ckpt_save_begin(store, step, state, ckpt_fixture_state((uint64_t)step, state),
                                  &report));
    TESS_TRY(tess_ckpt_commit(store, &report));
    TESS_CHECK(report.outcome == TESS_CKPT_COMMITTED, TESS_E_STATE, "step %lld: %s",
               (long long)step, report.message);
    if (t->rank == 0)
        disk_trace_mark(t, "committed", step);
    tess_ckpt_drain(store);
    return TESS_OK;
}

/* From what is there: load, base, saves up to `last`, and one that is dropped. */
static tess_status live(ckpt_fixture *f, tess_comm *comm, const char *dir, int64_t last,
                        disk_trace *t)
{
    tess_ckpt_store *store = NULL;
    tess_ckpt_value state[8];
    tess_ckpt_report report;
    int64_t step = -1;
    TESS_TRY(ckpt_fixture_open(f, comm, dir, false, &store));
    tess_status st = ckpt_fixture_load(f, store, NULL, &step, NULL);
    if (st == TESS_OK)
        st = ckpt_fixture_prepare(f, store);
    for (step = TESS_MAX(step, (int64_t)0) + 1; st == TESS_OK && step <= last; step++)
        st = save(f, store, step, t);
    if (st == TESS_OK)
        st = tess_ckpt_save_begin(store, step, state, ckpt_fixture_state((uint64_t)step, state),
                                  &report);
    /* Closing drops it: by then all ranks have written. */
    tess_ckpt_drain(store);
    if (st == TESS_OK)
        st = tess_comm_barrier(comm);
    tess_ckpt_store_close(&store);
    return st;
}

static tess_status record(tess_comm *comm, const char *root, disk_trace *t)
{
    ckpt_fixture *f = NULL;
    char dir[300];
    const int world = tess_comm_world(comm), rank = tess_comm_rank(comm);
    snprintf(dir, sizeof dir, "%s/out/run", root);
    tess_status st = TESS_OK;
    for (int64_t last = 3; st == TESS_OK && last <= 5; last += 2) {
        st = ckpt_fixture_create(world, rank, world % 2 == 0 ? world / 2 : world, 1, &f);
        TESS_TRY(tess_agree(comm, st));
        tess_io_observe(f->io, disk_trace_record, t);
        st = live(f, comm, dir, last, t);
        ckpt_fixture_destroy(&f);
    }
    TESS_TRY(tess_agree(comm, st));
    return disk_trace_join(t, comm);
}

/* ---- what is in a directory ---- */

/* A digest of a directory, and what loading it gave; loading does not depend on the instant. */
typedef struct outcome {
    uint64_t digest;
    int64_t found; /* step, -1 none */
    bool is_known, is_sound;
    char message[400];
} outcome;

typedef struct bench {
    tess_comm *self;
    ckpt_fixture *fixture; /* of one rank */
    char dir[300];
    outcome *outcomes; /* open addressing */
    int64_t outcome_numel, outcome_room;
    int64_t state_numel; /* directories that were asked for */
    int64_t life_numel;  /* that were lived in */
    disk_trace *trace;
} bench;

static tess_status verify_base(bench *b, const char *run)
{
    char dir[PATH_MAX], manifest[PATH_MAX];
    tess_io_kind kind = TESS_IO_MISSING;
    int64_t nbytes = 0;
    snprintf(dir, sizeof dir, "%s/base/%s", run, ckpt_fixture_base_id);
    TESS_TRY(ckpt_join(manifest, dir, "MANIFEST"));
    TESS_TRY(tess_io_stat(b->fixture->io, manifest, &kind, &nbytes));
    return kind == TESS_IO_MISSING ? TESS_OK : ckpt_verify_dir(b->fixture->io, dir);
}

/* Every published manifest stands for what is there. */
static tess_status verify_published(bench *b, const char *run)
{
    ckpt_list list = {0};
    char path[PATH_MAX];
    if (access(run, F_OK) != 0)
        return TESS_OK;
    TESS_TRY(ckpt_list_scan(b->fixture->io, run, false, &list));
    tess_status st = verify_base(b, run);
    for (int64_t i = 0; st == TESS_OK && i < list.numel; i++) {
        st = ckpt_join(path, run, list.entries[i].name);
        if (st == TESS_OK)
            st = ckpt_verify_dir(b->fixture->io, path);
    }
    ckpt_list_fini(&list);
    return st;
}

static tess_status load(bench *b, const char *run, int64_t *found)
{
    tess_ckpt_store *store = NULL;
    int64_t fallback_numel = 0;
    TESS_TRY(ckpt_fixture_open(b->fixture, b->self, run, false, &store));
    tess_status st = ckpt_fixture_load(b->fixture, store, NULL, found, &fallback_numel);
    if (st == TESS_OK && fallback_numel != 0)
        st = TESS_FAIL(TESS_E_STATE, "%lld newer checkpoint(s) did not load",
                       (long long)fallback_numel);
    tess_ckpt_store_close(&store);
    return st;
}

/* The next run goes on in it: two more checkpoints, which load. */
static tess_status live_on(bench *b, const char *run, int64_t found)
{
    ckpt_session s;
    TESS_TRY(ckpt_session_run(b->self, run, NULL, &s));
    TESS_CHECK(s.status == TESS_OK && s.loaded == found && s.committed_numel == 2, TESS_E_STATE,
               "the next run loads step %lld and commits %lld of 2", (long long)s.loaded,
               (long long)s.committed_numel);
    b->life_numel++;
    return ckpt_session_check(b->self, run, s.committed);
}

static tess_status try_state(bench *b, const disk *d, disk_choice choice, outcome *o)
{
    char run[320];
    snprintf(run, sizeof run, "%s/out/run", b->dir);
    TESS_TRY(disk_state_write(d, choice, b->dir));
    tess_status st = verify_published(b, run);
    if (st == TESS_OK)
        st = load(b, run, &o->found);
    if (st == TESS_OK && b->outcome_numel % LIFE_EVERY == 0)
        st = live_on(b, run, o->found);
    o->is_sound = st == TESS_OK;
    snprintf(o->message, sizeof o->message, "%s", st == TESS_OK ? "" : tess_error_message());
    tess_error_clear();
    ckpt_fixture_remove(b->dir);
    return TESS_OK;
}

static outcome *slot_of(outcome *list, int64_t room, uint64_t digest)
{
    int64_t at = (int64_t)(digest % (uint64_t)room);
    while (list[at].is_known && list[at].digest != digest)
        at = (at + 1) % room;
    return &list[at];
}

static tess_status make_room(bench *b)
{
    void *memory = NULL;
    if (b->outcome_numel * 2 < b->outcome_room)
        return TESS_OK;
    const int64_t room = b->outcome_room * 2 + 1024;
    TESS_TRY(tess_alloc_array(room, sizeof(outcome), &memory));
    for (int64_t i = 0; i < b->outcome_room; i++)
        if (b->outcomes[i].is_known)
            *slot_of(memory, room, b->outcomes[i].digest) = b->outcomes[i];
    tess_free(b->outcomes);
    b->outcomes = memory;
    b->outcome_room = room;
    return TESS_OK;
}

static tess_status outcome_of(bench *b, const disk *d, disk_choice choice, outcome **out)
{
    uint64_t digest = 0;
    TESS_TRY(make_room(b));
    TESS_TRY(disk_state_digest(d, choice, &digest));
    outcome *o = slot_of(b->outcomes, b->outcome_room, digest);
    b->state_numel++;
    *out = o;
    if (o->is_known)
        return TESS_OK;
    *o = (outcome){.digest = digest, .found = -1, .is_known = true};
    b->outcome_numel++;
    return try_state(b, d, choice, o);
}

/* ---- one cut after the other ---- */

/* The extremes, then anything. */
static disk_choice choice_of(int64_t cut, int k)
{
    static const disk_choice fixed[CHOICE_FIXED_NUMEL] = {
        {0, 0, 0, 0},   {100, 100, 100, 0}, {0, 100, 100, 0},
        {100, 0, 0, 0}, {100, 100, 0, 0},   {100, 0, 100, 0},
    };
    static const int percents[] = {50, 50, 15, 85};
    if (k < CHOICE_FIXED_NUMEL)
        return fixed[k];
    const int percent = percents[(k - CHOICE_FIXED_NUMEL) % TESS_NELEM(percents)];
    return (disk_choice){percent, percent, percent, (uint64_t)(cut * CHOICE_NUMEL + k + 1)};
}

/* Steps that the run may rely on, and that it may find. */
typedef struct promise {
    int64_t committed, published;
} promise;

static void keep_promise(promise *p, const disk_event *e)
{
    long long step = 0;
    if (e->op == TESS_IO_OP_NUMEL)
        p->committed = e->nbytes;
    const char *name = strstr(e->path, "/MANIFEST");
    if (e->op == TESS_IO_LINK && name != NULL && name[9] == '\0' &&
        sscanf(e->path, "out/run/step-%lld.", &step) == 1)
        p->published = step;
}

static tess_status check_cut(bench *b, const disk *d, int64_t cut, int k, promise p,
                             char loss[LOSS_NBYTES])
{
    outcome *o = NULL;
    TESS_TRY(outcome_of(b, d, choice_of(cut, k), &o));
    if (!o->is_sound)
        snprintf(loss, LOSS_NBYTES, "cut %lld choice %d: %s", (long long)cut, k, o->message);
    else if (o->found < p.committed)
        snprintf(loss, LOSS_NBYTES,
                 "cut %lld choice %d: step %lld was committed, step %lld is found", (long long)cut,
                 k, (long long)p.committed, (long long)o->found);
    else if (o->found > p.published)
        snprintf(loss, LOSS_NBYTES,
                 "cut %lld choice %d: step %lld is found, step %lld was the last linked",
                 (long long)cut, k, (long long)o->found, (long long)p.published);
    return TESS_OK;
}

/* ---- fsyncs by what they are for ---- */

enum { SITE_NBYTES = 64, OMIT_MAX = 5 };

/* Fsyncs of the run that one case leaves out, named as in site_of(). */
typedef struct omission {
    bool is_loss; /* a power cut must then lose something */
    const char *sites[OMIT_MAX];
} omission;

static const omission omissions[] = {
    {true, {"parent after mkdir parent"}},
    {true, {"parent after mkdir run"}},
    {true, {"base after mkdir base id"}},
    {true, {"base shard after write base shard"}},
    {true, {"base id after fsync base shard"}},
    {true, {"base manifest after write base manifest"}},
    {true, {"base id after unlink base manifest"}},
    {true, {"shard after write shard"}},
    {true, {"step after fsync shard"}},
    {true, {"manifest after write manifest"}},
    {true, {"step after unlink manifest"}},
    {true, {"step after unlink MANIFEST"}}, /* pruning */
    /* The name of a step in the run folder is made durable twice, before and after its files. */
    {false, {"run after mkdir step"}},
    {false, {"run after fsync step"}},
    {true, {"run after mkdir step", "run after fsync step"}},
    /* The name `base` four times until a step is published. */
    {false, {"run after mkdir base", "run after fsync base", "run after fsync base id"}},
    {true,
     {"run after mkdir base", "run after fsync base", "run after fsync base id",
      "run after mkdir step"}},
    /* Nothing that loads depends on them: the epoch is also in the manifests, LATEST is a hint, a
     * dropped save has no manifest. */
    {false,
     {"LOCK after write LOCK", "run after fsync LOCK", "LATEST.tmp after write LATEST.tmp",
      "run after rename LATEST", "step after fsync step"}},
};

/* What a path is. */
static const char *kind_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    const char *name = slash != NULL ? slash + 1 : path;
    const bool is_base = strncmp(path, "out/run/base/", 13) == 0;
    if (strncmp(path, "out/run", 7) != 0)
        return "parent";
    if (path[7] == '\0')
        return "run";
    if (strncmp(name, "shard-", 6) == 0)
        return is_base ? "base shard" : "shard";
    if (strcmp(name, "MANIFEST.tmp") == 0)
        return is_base ? "base manifest" : "manifest";
    if (strncmp(name, "step-", 5) == 0)
        return "step";
    return is_base && strcmp(name, "MANIFEST") != 0 ? "base id" : name;
}

/* "run after mkdir step": an fsync by what it is of, and by what its rank had done before. "" is
 * another change. */
static void site_of(const disk_trace *t, int64_t idx, char site[SITE_NBYTES])
{
    static const char *const verbs[TESS_IO_OP_NUMEL + 1] = {
        [TESS_IO_OPEN] = "open",     [TESS_IO_PWRITE] = "write", [TESS_IO_FALLOCATE] = "reserve",
        [TESS_IO_FSYNC] = "fsync",   [TESS_IO_LINK] = "link",    [TESS_IO_UNLINK] = "unlink",
        [TESS_IO_RENAME] = "rename", [TESS_IO_MKDIR] = "mkdir",  [TESS_IO_RMDIR] = "rmdir"};
    const disk_event *e = &t->events[idx];
    site[0] = '\0';
    if (e->op != TESS_IO_FSYNC)
        return;
    int64_t last = idx - 1;
    while (last >= 0 && (t->events[last].rank != e->rank || t->events[last].op == TESS_IO_OP_NUMEL))
        last--;
    const disk_event *before = last >= 0 ? &t->events[last] : e;
    snprintf(site, SITE_NBYTES, "%s after %s %s", kind_of(e->path), verbs[before->op],
             kind_of(before->path));
}

static bool is_omitted(const omission *o, const char *site)
{
    for (int i = 0; o != NULL && i < OMIT_MAX && o->sites[i] != NULL; i++)
        if (strcmp(o->sites[i], site) == 0)
            return true;
    return false;
}

/* The table above names every fsync of the run, and no other. */
static tess_status check_sites(const disk_trace *t)
{
    char site[SITE_NBYTES];
    for (int64_t i = 0; i < t->numel; i++) {
        bool is_listed = t->events[i].op != TESS_IO_FSYNC;
        site_of(t, i, site);
        for (int k = 0; k < TESS_NELEM(omissions); k++)
            is_listed = is_listed || is_omitted(&omissions[k], site);
        TESS_CHECK(is_listed, TESS_E_STATE, "fsync '%s' is in no case of this test", site);
    }
    for (int k = 0; k < TESS_NELEM(omissions); k++)
        for (int j = 0; j < OMIT_MAX && omissions[k].sites[j] != NULL; j++) {
            bool is_seen = false;
            for (int64_t i = 0; i < t->numel && !is_seen; i++) {
                site_of(t, i, site);
                is_seen = strcmp(site, omissions[k].sites[j]) == 0;
            }
            TESS_CHECK(is_seen, TESS_E_STATE, "the run has no fsync '%s'", omissions[k].sites[j]);
        }
    return TESS_OK;
}

/* ---- all cuts ---- */

/* Cuts of this rank; `loss` tells the first loss, "" none. */
static tess_status check_cuts(bench *b, tess_comm *comm, const omission *omitted,
                              char loss[LOSS_NBYTES])
{
    disk *d = NULL;
    char site[SITE_NBYTES];
    promise p = {-1, -1};
    const int rank = tess_comm_rank(comm), world = tess_comm_world(comm);
    loss[0] = '\0';
    tess_status st = disk_create(&d);
    for (int64_t i = 0; st == TESS_OK && i < b->trace->numel && loss[0] == '\0'; i++) {
        const disk_event *e = &b->trace->events[i];
        site_of(b->trace, i, site);
        if (!is_omitted(omitted, site))
            st = disk_apply(d, e);
        keep_promise(&p, e);
        for (int k = 0; i % world == rank && k < CHOICE_NUMEL; k++)
            if (st == TESS_OK && loss[0] == '\0')
                st = check_cut(b, d, i, k, p, loss);
    }
    disk_destroy(&d);
    return st;
}

static tess_status check_trace(bench *b, tess_comm *comm)
{
    char loss[LOSS_NBYTES];
    TESS_TRY(check_cuts(b, comm, NULL, loss));
    TESS_CHECK(loss[0] == '\0', TESS_E_STATE, "a power cut loses: %s", loss);
    /* The run ends with steps 4 and 5: cuts, states and lives were not a few. */
    TESS_CHECK(b->outcome_numel > 100 && b->life_numel >= b->outcome_numel / LIFE_EVERY,
               TESS_E_STATE, "only %lld different directories, %lld lives",
               (long long)b->outcome_numel, (long long)b->life_numel);
    fprintf(stderr, "rank %d: %lld changes, %lld directories, %lld different, %lld lived in\n",
            tess_comm_rank(comm), (long long)b->trace->numel, (long long)b->state_numel,
            (long long)b->outcome_numel, (long long)b->life_numel);
    if (tess_comm_world(comm) > 1)
        return TESS_OK;
    TESS_TRY(check_sites(b->trace));
    for (int k = 0; k < TESS_NELEM(omissions); k++) {
        TESS_TRY(check_cuts(b, comm, &omissions[k], loss));
        fprintf(stderr, "without '%s'%s: %s\n", omissions[k].sites[0],
                omissions[k].sites[1] != NULL ? " and others" : "",
                loss[0] != '\0' ? loss : "no loss");
        TESS_CHECK((loss[0] != '\0') == omissions[k].is_loss, TESS_E_STATE,
                   "without '%s': expected %s; %s", omissions[k].sites[0],
                   omissions[k].is_loss ? "a loss" : "no loss", loss);
    }
    return TESS_OK;
}

static tess_status run_in(tess_comm *comm, const char *root)
{
    disk_trace t;
    bench b = {.trace = &t};
    disk_trace_init(&t, root, tess_comm_rank(comm));
    snprintf(b.dir, sizeof b.dir, "%s-%d", root, tess_comm_rank(comm));
    tess_status st = record(comm, root, &t);
    if (st == TESS_OK)
        st = tess_comm_create_self(&b.self);
    if (st == TESS_OK)
        st = ckpt_fixture_create(1, 0, 1, 1, &b.fixture);
    if (st == TESS_OK)
        st = check_trace(&b, comm);
    tess_free(b.outcomes);
    ckpt_fixture_destroy(&b.fixture);
    tess_comm_destroy(&b.self);
    disk_trace_fini(&t);
    return st;
}

static tess_status run(tess_comm *comm)
{
    char root[256];
    if (access("/dev/shm", W_OK) == 0)
        (void)setenv("TMPDIR", "/dev/shm", 0);
    TESS_TRY(ckpt_fixture_dir(comm, root));
    const tess_status st = run_in(comm, root);
    if (tess_comm_rank(comm) == 0)
        ckpt_fixture_remove(root);
    return st;
}

int main(int argc, char **argv) { return rank_test_main(argc, argv, run); }
