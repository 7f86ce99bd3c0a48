/* Checkpoints that stay, files that are read back, disks without room: one outcome on all ranks,
 * and what is there stays good. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/memory.h"
#include "shard/ckpt_priv.h"
#include "support/ckpt_fixture.h"
#include "support/rank_test.h"

#define EXPECT(cond, ...) TESS_CHECK(cond, TESS_E_STATE, "not true: " #cond " " __VA_ARGS__)

/* What one case works with. */
typedef struct bench {
    tess_comm *comm;
    ckpt_fixture *f;
    tess_ckpt_store *store;
    char dir[256];
} bench;

/* A store and its fixture, whose I/O fails as `fault` says. */
static tess_status open_bench(bench *b, const char *fault)
{
    const int world = tess_comm_world(b->comm);
    if (fault != NULL)
        (void)setenv("TESSERA_FAULT", fault, 1);
    const tess_status st = ckpt_fixture_create(world, tess_comm_rank(b->comm),
                                               world % 2 == 0 ? world / 2 : world, 1, &b->f);
    (void)unsetenv("TESSERA_FAULT");
    TESS_TRY(tess_agree(b->comm, st));
    return ckpt_fixture_dir(b->comm, b->dir);
}

static void close_bench(bench *b)
{
    tess_ckpt_store_close(&b->store);
    ckpt_fixture_destroy(&b->f);
    if (tess_comm_barrier(b->comm) == TESS_OK && tess_comm_rank(b->comm) == 0)
        ckpt_fixture_remove(b->dir);
}

static tess_status open_store(bench *b)
{
    tess_ckpt_store_close(&b->store);
    TESS_TRY(tess_comm_barrier(b->comm));
    return ckpt_fixture_open(b->f, b->comm, b->dir, false, &b->store);
}

static tess_status save(bench *b, int64_t step, tess_ckpt_outcome wanted)
{
    tess_ckpt_report report;
    TESS_TRY(ckpt_fixture_save(b->f, b->store, step, &report));
    EXPECT(report.outcome == wanted, "(step %lld: %s)", (long long)step, report.message);
    return tess_comm_barrier(b->comm);
}

/* Steps of the directories that are there, as "3 6 7 ". */
static tess_status list_steps(const bench *b, char text[256])
{
    char **names = NULL;
    int64_t name_numel = 0, step = 0;
    size_t at = 0;
    TESS_TRY(tess_comm_barrier(b->comm)); /* rank 0 has removed what goes */
    TESS_TRY(tess_io_list(b->f->io, b->dir, &names, &name_numel));
    text[0] = '\0';
    for (int64_t i = 0; i < name_numel; i++)
        if (ckpt_parse_step_name(names[i], &step))
            at += (size_t)snprintf(text + at, 256 - at, "%lld ", (long long)step);
    tess_io_list_free(&names, name_numel);
    return TESS_OK;
}

static tess_status expect_steps(const bench *b, const char *wanted)
{
    char found[256];
    TESS_TRY(list_steps(b, found));
    EXPECT(strcmp(found, wanted) == 0, "(found %s, expected %s)", found, wanted);
    return tess_comm_barrier(b->comm);
}

/* ---- checkpoints that stay ---- */

static tess_status resume(bench *b, const char *path, int64_t wanted)
{
    int64_t seed = 0;
    TESS_TRY(open_store(b));
    TESS_TRY(ckpt_fixture_load(b->f, b->store, path, &seed, NULL));
    EXPECT(seed == wanted, "(step %lld)", (long long)seed);
    return ckpt_fixture_prepare(b->f, b->store);
}

static tess_status find_step(const bench *b, int64_t wanted, char path[PATH_MAX])
{
    char **names = NULL;
    int64_t name_numel = 0, step = 0;
    TESS_TRY(tess_io_list(b->f->io, b->dir, &names, &name_numel));
    for (int64_t i = 0; i < name_numel; i++)
        if (ckpt_parse_step_name(names[i], &step) && step == wanted)
            TESS_TRY(ckpt_join(path, b->dir, names[i]));
    tess_io_list_free(&names, name_numel);
    return TESS_OK;
}

static tess_status save_from_to(bench *b, int64_t first, int64_t last)
{
    for (int64_t step = first; step <= last; step++)
        TESS_TRY(save(b, step, TESS_CKPT_COMMITTED));
    return TESS_OK;
}

static tess_status test_milestones_stay(bench *b)
{
    char path[PATH_MAX];
    b->f->keep_every = 3;
    TESS_TRY(open_store(b));
    TESS_TRY(ckpt_fixture_prepare(b->f, b->store));
    TESS_TRY(save_from_to(b, 1, 8));
    TESS_TRY(expect_steps(b, "3 6 7 8 "));
    /* a milestone among the newest two is one of them */
    TESS_TRY(resume(b, NULL, 8));
    TESS_TRY(save(b, 9, TESS_CKPT_COMMITTED));
    TESS_TRY(expect_steps(b, "3 6 8 9 "));
    TESS_TRY(save(b, 10, TESS_CKPT_COMMITTED));
    TESS_TRY(expect_steps(b, "3 6 9 10 "));
    /* back to a milestone by name: those of the line that is left stay, its others go */
    TESS_TRY(find_step(b, 6, path));
    TESS_TRY(resume(b, path, 6));
    TESS_TRY(save(b, 7, TESS_CKPT_COMMITTED));
    TESS_TRY(expect_steps(b, "3 6 7 9 10 "));
    TESS_TRY(save_from_to(b, 8, 9));
    TESS_TRY(expect_steps(b, "3 6 8 9 9 "));
    /* no longer asked for: they go as all others */
    b->f->keep_every = 0;
    TESS_TRY(resume(b, NULL, 9));
    TESS_TRY(save_from_to(b, 10, 11));
    return expect_steps(b, "10 11 ");
}

static tess_status expect_need(bench *b, const char *text)
{
    const tess_status st = tess_ckpt_preflight(b->store);
    EXPECT(st != TESS_OK && strstr(tess_error_message(), text) != NULL, "(expected %s)", text);
    tess_error_clear();
    return TESS_OK;
}

/* Enough of them that no disk has room. */
static tess_status test_preflight_counts_milestones(bench *b)
{
    b->f->keep_every = 5;
    b->f->last_step = INT64_C(5000000000004);
    TESS_TRY(open_store(b));
    TESS_TRY(ckpt_fixture_prepare(b->f, b->store));
    TESS_TRY(expect_need(b, "1000000000003 checkpoint(s) need"));
    TESS_TRY(save(b, 11, TESS_CKPT_COMMITTED));
    TESS_TRY(resume(b, NULL, 11)); /* two of them are behind */
    TESS_TRY(expect_need(b, "1000000000001 checkpoint(s) need"));
    b->f->last_step = INT64_MAX;
    TESS_TRY(resume(b, NULL, 11));
    TESS_TRY(expect_need(b, "overflows"));
    b->f->last_step = 20;
    TESS_TRY(resume(b, NULL, 11));
    return tess_ckpt_preflight(b->store);
}

/* ---- files that are read back ---- */

/* Flips a bit of a file as soon as that is durable: the disk has lost it. */
typedef struct damage {
    const char *in;       /* part of the file's path */
    int64_t at_nbytes;    /* of 16 places over the file, the one; -1: none */
    int64_t change_numel; /* files that were changed */
} damage;

static void flip_bit(void *arg, const tess_io_change *change)
{
    damage *d = arg;
    uint8_t byte = 0;
    if (change->op != TESS_IO_FSYNC || d->at_nbytes < 0 || strstr(change->path, d->in) == NULL)
        return;
    const int fd = open(change->path, O_RDWR | O_CLOEXEC);
    const off_t end = fd >= 0 ? lseek(fd, 0, SEEK_END) : 0;
    const off_t at = end * (off_t)d->at_nbytes / 16;
    if (end > 0 && pread(fd, &byte, 1, at) == 1) {
        byte ^= 1;
        d->change_numel += pwrite(fd, &byte, 1, at) == 1;
    }
    if (fd >= 0)
        (void)close(fd);
}

static tess_status save_damaged(bench *b, damage *d, int64_t step)
{
    tess_ckpt_report report;
    char found[256];
    TESS_TRY(ckpt_fixture_save(b->f, b->store, step, &report));
    EXPECT(report.outcome == TESS_CKPT_DROPPED && !report.is_disk_full);
    EXPECT(strstr(report.message, "read back otherwise") != NULL, "(%s)", report.message);
    EXPECT(strstr(report.message, d->in) != NULL, "(%s)", report.message);
    TESS_TRY(list_steps(b, found));
    EXPECT(strcmp(found, "1 2 ") == 0, "(found %s)", found);
    return tess_comm_barrier(b->comm);
}

/* Damage to the file of each rank, anywhere; then to the manifest. */
static tess_status test_damage_is_found_before_it_counts(bench *b)
{
    damage d = {.at_nbytes = -1};
    char name[CKPT_SHARD_NAME_NBYTES];
    const int world = tess_comm_world(b->comm), rank = tess_comm_rank(b->comm);
    b->f->has_read_back = true;
    TESS_TRY(open_store(b));
    TESS_TRY(ckpt_fixture_prepare(b->f, b->store));
    TESS_TRY(save_from_to(b, 1, 2));
    tess_ckpt_drain(b->store);
    tess_io_observe(b->f->io, flip_bit, &d);
    for (int r = 0; r <= world; r++) {
        ckpt_shard_name(r, world, name);
        d.in = r < world ? name : "MANIFEST.tmp";
        for (int place = 0; place < 16; place++) {
            const bool is_mine = rank == r % world;
            const int64_t wanted = d.change_numel + is_mine;
            d.at_nbytes = is_mine ? place : -1;
            TESS_TRY(save_damaged(b, &d, 3));
            EXPECT(d.change_numel == wanted);
        }
    }
    d.at_nbytes = -1;
    TESS_TRY(save_from_to(b, 3, 4));
    tess_io_observe(b->f->io, NULL, NULL);
    TESS_TRY(expect_steps(b, "3 4 "));
    int64_t seed = 0;
    TESS_TRY(ckpt_fixture_load(b->f, b->store, NULL, &seed, NULL));
    EXPECT(seed == 4);
    return TESS_OK;
}

/* What the option is for: without it such a checkpoint counts. */
static tess_status test_damage_is_not_looked_for_unasked(bench *b)
{
    damage d = {.in = "shard-", .at_nbytes = 8};
    char path[PATH_MAX];
    TESS_TRY(open_store(b));
    TESS_TRY(ckpt_fixture_prepare(b->f, b->store));
    tess_io_observe(b->f->io, flip_bit, &d);
    TESS_TRY(save(b, 1, TESS_CKPT_COMMITTED));
    tess_io_observe(b->f->io, NULL, NULL);
    EXPECT(d.change_numel > 0);
    TESS_TRY(find_step(b, 1, path));
    EXPECT(ckpt_verify_dir(b->f->io, path) == TESS_E_FORMAT);
    tess_error_clear();
    return TESS_OK;
}

/* A base that reads back otherwise ends the start, as a failure of the disk. */
static tess_status test_damaged_base_is_refused(bench *b)
{
    damage d = {.in = "/base/", .at_nbytes = 8};
    bool was_there = false;
    b->f->has_read_back = true;
    TESS_TRY(open_store(b));
    tess_io_observe(b->f->io, flip_bit, &d);
    ckpt_fixture_fill(b->f, 0);
    const tess_status st =
        tess_ckpt_save_base(b->store, ckpt_fixture_base_id, &b->f->base, &was_there);
    tess_io_observe(b->f->io, NULL, NULL);
    EXPECT(st == TESS_E_IO && strstr(tess_error_message(), "read back otherwise") != NULL);
    tess_error_clear();
    return TESS_OK;
}

/* ---- disks without room ---- */

/* A dropped save is tried again from its snapshot, whatever the records hold by then. */
static tess_status drop_and_try_again(bench *b, bool is_full)
{
    tess_ckpt_report report;
    int64_t seed = 0;
    TESS_TRY(open_store(b));
    TESS_TRY(ckpt_fixture_prepare(b->f, b->store));
    EXPECT(tess_ckpt_save_again(b->store, &report) == TESS_E_STATE);
    tess_error_clear();
    TESS_TRY(ckpt_fixture_save(b->f, b->store, 7, &report));
    EXPECT(report.outcome == TESS_CKPT_DROPPED);
    EXPECT(report.is_disk_full == is_full, "(%s)", report.message);
    EXPECT((strstr(report.message, "a checkpoint needs ") != NULL) == is_full, "(%s)",
           report.message);
    TESS_TRY(expect_steps(b, ""));
    ckpt_fixture_fill(b->f, 99);
    TESS_TRY(tess_ckpt_save_again(b->store, &report));
    EXPECT(report.outcome == TESS_CKPT_PENDING && report.step == 7);
    TESS_TRY(tess_ckpt_commit(b->store, &report));
    EXPECT(report.outcome == TESS_CKPT_COMMITTED && report.step == 7 && !report.is_disk_full);
    EXPECT(tess_ckpt_save_again(b->store, &report) == TESS_E_STATE);
    tess_error_clear();
    TESS_TRY(ckpt_fixture_load(b->f, b->store, NULL, &seed, NULL));
    EXPECT(seed == 7);
    return TESS_OK;
}

/* The n-th calls are those of the first save, after LOCK and base. */
static tess_status test_full_disk_is_told(tess_comm *comm)
{
    static const struct {
        const char *fault; /* behind the rank */
        bool is_full, is_of_rank0;
    } faults[] = {{"fallocate:2:enospc", true, false}, {"fallocate:2:edquot", true, false},
                  {"fallocate:2:efbig", true, false},  {"fallocate:2:eio", false, false},
                  {"link:2:enospc", true, true},       {"link:2:eio", false, true}};
    for (int i = 0; i < TESS_NELEM(faults); i++) {
        for (int r = 0; r < (faults[i].is_of_rank0 ? 1 : tess_comm_world(comm)); r++) {
            bench b = {.comm = comm};
            char fault[64];
            snprintf(fault, sizeof fault, "%d:%s", r, faults[i].fault);
            tess_status st = open_bench(&b, fault);
            /* ranks that hold no base reserve nothing for it */
            if (st == TESS_OK && r < b.f->base.shard_world)
                st = drop_and_try_again(&b, faults[i].is_full);
            close_bench(&b);
            if (st != TESS_OK)
                fprintf(stderr, "TESSERA_FAULT=%s\n", fault);
            TESS_TRY(tess_agree(comm, st));
        }
    }
    return TESS_OK;
}

/* ---- probe ---- */

static void count_written(void *arg, const tess_io_change *change)
{
    if (change->op == TESS_IO_PWRITE && strstr(change->path, "/step-0000000000.") != NULL)
        *(int64_t *)arg += change->nbytes;
}

static tess_status test_probe_writes_as_much_and_leaves_nothing(bench *b)
{
    int64_t written_nbytes = 0;
    tess_ckpt_sizes sizes;
    TESS_TRY(open_store(b));
    EXPECT(tess_ckpt_probe(b->store) == TESS_E_STATE);
    tess_error_clear();
    TESS_TRY(ckpt_fixture_prepare(b->f, b->store));
    TESS_TRY(tess_ckpt_plan(&b->f->step, tess_comm_rank(b->comm), &sizes));
    tess_io_observe(b->f->io, count_written, &written_nbytes);
    TESS_TRY(tess_ckpt_probe(b->store));
    tess_io_observe(b->f->io, NULL, NULL);
    EXPECT(written_nbytes >= (int64_t)sizes.payload_nbytes);
    TESS_TRY(expect_steps(b, ""));
    TESS_TRY(save(b, 4, TESS_CKPT_COMMITTED));
    int64_t seed = 0;
    TESS_TRY(ckpt_fixture_load(b->f, b->store, NULL, &seed, NULL));
    EXPECT(seed == 4);
    TESS_TRY(resume(b, NULL, 4));
    TESS_TRY(tess_ckpt_probe(b->store));
    return expect_steps(b, "4 ");
}

static tess_status test_probe_finds_a_full_disk(tess_comm *comm)
{
    bench b = {.comm = comm};
    tess_status st = open_bench(&b, "0:fallocate:2:edquot");
    if (st == TESS_OK)
        st = open_store(&b);
    if (st == TESS_OK)
        st = ckpt_fixture_prepare(b.f, b.store);
    if (st == TESS_OK) {
        const bool is_told = tess_ckpt_probe(b.store) == TESS_E_IO &&
                             strstr(tess_error_message(), "output.probe_disk: rank 0: ") != NULL &&
                             strstr(tess_error_message(), "a checkpoint needs ") != NULL;
        tess_error_clear();
        st = is_told ? expect_steps(&b, "") : TESS_FAIL(TESS_E_STATE, "the probe found nothing");
    }
    close_bench(&b);
    return tess_agree(comm, st);
}

/* ---- one that is asked for by its digest ---- */

static tess_status load_pinned(bench *b, const char *path, const char *sha256, tess_status wanted,
                               const char *word)
{
    tess_ckpt_loaded loaded = {0};
    const tess_ckpt_load_request request = {
        .path = path, .manifest_sha256 = sha256, .set = &b->f->step, .base = &b->f->base};
    const tess_status st = tess_ckpt_load(b->store, &request, &loaded);
    const bool is_named = st == TESS_OK || strstr(tess_error_message(), word) != NULL;
    EXPECT(st == wanted && is_named, "(%s: %.900s)", tess_status_name(st), tess_error_message());
    EXPECT(st != TESS_OK || loaded.step == 2);
    tess_error_clear();
    tess_ckpt_loaded_fini(&loaded);
    return TESS_OK;
}

/* The last line of its MANIFEST. */
static tess_status read_digest(const bench *b, const char *dir, char digest[TESS_SHA256_HEX_NBYTES])
{
    char path[PATH_MAX], *text = NULL;
    size_t nbytes = 0;
    TESS_TRY(ckpt_join(path, dir, "MANIFEST"));
    TESS_TRY(tess_io_read_all(b->f->io, path, 1 << 20, &text, &nbytes));
    snprintf(digest, TESS_SHA256_HEX_NBYTES, "%.64s", text + nbytes - 65);
    tess_free(text);
    return TESS_OK;
}

/* No other one is taken: not the older one that a fallback would find, nor a fresh start. */
static tess_status test_no_other_manifest_is_taken(bench *b)
{
    char older[PATH_MAX] = "", newest[PATH_MAX] = "";
    char of_older[TESS_SHA256_HEX_NBYTES], of_newest[TESS_SHA256_HEX_NBYTES];
    TESS_TRY(open_store(b));
    TESS_TRY(load_pinned(b, NULL, ckpt_fixture_base_id, TESS_E_NOT_FOUND, "holds no checkpoint"));
    TESS_TRY(ckpt_fixture_prepare(b->f, b->store));
    TESS_TRY(save_from_to(b, 1, 2));
    TESS_TRY(find_step(b, 1, older));
    TESS_TRY(find_step(b, 2, newest));
    TESS_TRY(read_digest(b, older, of_older));
    TESS_TRY(read_digest(b, newest, of_newest));
    TESS_TRY(load_pinned(b, NULL, of_newest, TESS_OK, ""));
    TESS_TRY(load_pinned(b, newest, of_newest, TESS_OK, ""));
    TESS_TRY(load_pinned(b, NULL, of_older, TESS_E_FORMAT, of_newest));
    return load_pinned(b, older, of_newest, TESS_E_FORMAT, of_older);
}

/* ---- all ---- */

typedef tess_status (*case_fn)(bench *b);

static tess_status run_case(tess_comm *comm, const char *name, case_fn fn)
{
    bench b = {.comm = comm};
    tess_status st = open_bench(&b, NULL);
    if (st == TESS_OK)
        st = fn(&b);
    if (st != TESS_OK)
        fprintf(stderr, "rank %d: case %s: %s\n%s", tess_comm_rank(comm), name,
                tess_error_message(), tess_error_trace_text());
    const tess_status verdict = tess_agree(comm, st);
    close_bench(&b);
    return verdict;
}

static tess_status run(tess_comm *comm)
{
    if (access("/dev/shm", W_OK) == 0)
        (void)setenv("TMPDIR", "/dev/shm", 0);
    TESS_TRY(run_case(comm, "milestones", test_milestones_stay));
    TESS_TRY(run_case(comm, "preflight", test_preflight_counts_milestones));
    TESS_TRY(run_case(comm, "damage", test_damage_is_found_before_it_counts));
    TESS_TRY(run_case(comm, "damage unasked", test_damage_is_not_looked_for_unasked));
    TESS_TRY(run_case(comm, "damaged base", test_damaged_base_is_refused));
    TESS_TRY(run_case(comm, "probe", test_probe_writes_as_much_and_leaves_nothing));
    TESS_TRY(run_case(comm, "digest", test_no_other_manifest_is_taken));
    TESS_TRY(test_probe_finds_a_full_disk(comm));
    return test_full_disk_is_told(comm);
}

int main(int argc, char **argv) { return rank_test_main(argc, argv, run); }
