/* Save at n ranks, load at every number of ranks; asynchronous saves; retention; two runs in one
 * directory. */
#include <stdio.h>
#include <string.h>

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

/* Every rank of every world m reads its ranges, one after the other in this process. */
static tess_status check_all_worlds(bench *b, const char *dir, int64_t seed,
                                    const tess_ckpt_set *set)
{
    char *text = NULL;
    size_t nbytes = 0;
    ckpt_reader r;
    TESS_TRY(ckpt_manifest_read_bytes(b->f->io, dir, &text, &nbytes));
    tess_status st = ckpt_reader_open(b->f->io, dir, text, nbytes, &r);
    tess_free(text);
    TESS_TRY(st);
    for (int64_t i = 0; st == TESS_OK && i < set->record_numel; i++) {
        const tess_ckpt_record *record = &set->records[i];
        void *found = NULL, *expected = NULL;
        TESS_TRY(tess_alloc_array(record->total_numel, 8, &found));
        TESS_TRY(tess_alloc_array(record->total_numel, 8, &expected));
        const int64_t at = ckpt_index_record(&r.manifest.index, record->unit, record->role);
        EXPECT(at >= 0);
        for (int m = 1; st == TESS_OK && m <= 8; m++) {
            for (int k = 0; st == TESS_OK && k < m; k++) {
                int64_t lo = 0, hi = 0;
                tess_ckpt_range(record, m, k, &lo, &hi);
                st = ckpt_reader_read(&r, at, lo, hi, found);
                ckpt_fixture_expect(record, lo, hi, (uint64_t)seed, expected);
                if (st == TESS_OK &&
                    memcmp(found, expected,
                           (size_t)(hi - lo) * tess_dtype_block_nbytes(record->dt)) != 0)
                    st = TESS_FAIL(TESS_E_STATE, "%s/%s: rank %d of %d reads something else",
                                   record->unit, record->role, k, m);
            }
        }
        tess_free(found);
        tess_free(expected);
    }
    if (st == TESS_OK)
        st = ckpt_verify_dir(b->f->io, dir);
    ckpt_reader_close(&r);
    return st;
}

static tess_status reopen(bench *b, bool is_reader)
{
    tess_ckpt_store_close(&b->store);
    TESS_TRY(tess_comm_barrier(b->comm));
    return ckpt_fixture_open(b->f, b->comm, b->dir, is_reader, &b->store);
}

/* One process alone reads what all ranks wrote. */
static tess_status load_alone(bench *b, int64_t expected)
{
    tess_comm *self = NULL;
    ckpt_fixture *f = NULL;
    tess_ckpt_store *store = NULL;
    int64_t seed = 0;
    TESS_TRY(tess_comm_create_self(&self));
    tess_status st = ckpt_fixture_create(1, 0, 1, 1, &f);
    if (st == TESS_OK)
        st = ckpt_fixture_open(f, self, b->dir, true, &store);
    if (st == TESS_OK)
        st = ckpt_fixture_load(f, store, NULL, &seed, NULL);
    if (st == TESS_OK && seed != expected)
        st = TESS_FAIL(TESS_E_STATE, "alone: step %lld, expected %lld", (long long)seed,
                       (long long)expected);
    tess_ckpt_store_close(&store);
    ckpt_fixture_destroy(&f);
    tess_comm_destroy(&self);
    return st;
}

static tess_status test_save_then_load_at_every_world(bench *b)
{
    tess_ckpt_report report;
    int64_t seed = 0, fallback = -1;
    char dir[PATH_MAX], base_dir[PATH_MAX];
    TESS_TRY(ckpt_fixture_load(b->f, b->store, NULL, &seed, &fallback));
    EXPECT(seed == -1 && fallback == 0);
    TESS_TRY(ckpt_fixture_prepare(b->f, b->store));
    TESS_TRY(ckpt_fixture_save(b->f, b->store, 5, &report));
    EXPECT(report.outcome == TESS_CKPT_COMMITTED, "(%s)", report.message);
    TESS_TRY(reopen(b, false));
    EXPECT(tess_ckpt_epoch(b->store) == 2);
    TESS_TRY(ckpt_fixture_load(b->f, b->store, NULL, &seed, &fallback));
    EXPECT(seed == 5 && fallback == 0);
    tess_status st = TESS_OK;
    if (tess_comm_rank(b->comm) == 0) {
        TESS_TRY(ckpt_join(dir, b->dir, report.dir));
        TESS_TRY(ckpt_base_dir(dir, ckpt_fixture_base_id, base_dir));
        st = check_all_worlds(b, dir, 5, &b->f->step);
        if (st == TESS_OK)
            st = check_all_worlds(b, base_dir, 5, &b->f->base);
        if (st == TESS_OK && b->f->base_records[0].total_numel < 10000)
            st = load_alone(b, 5);
    }
    return tess_agree(b->comm, st);
}

/* ---- slabs that a run no longer has ---- */

static bool is_left(void *arg, const char *unit)
{
    (void)arg;
    return strcmp(unit, "blk.0") == 0 || strcmp(unit, "book") == 0;
}

/* Of blk.0, whose tensors lie in every slab of theirs, the masters and the copy behind the moments;
 * of unit book nothing. Everything else stays as it is. */
static void cut_set(const ckpt_fixture *f, tess_ckpt_record *records, tess_ckpt_set *set)
{
    *set = f->step;
    set->records = records;
    set->record_numel = 0;
    set->tensor_numel = f->step.tensor_numel - 1; /* book.usage is the last */
    for (int64_t i = 0; i < f->step.record_numel; i++) {
        const tess_ckpt_record *r = &f->step.records[i];
        if (strcmp(r->unit, "book") != 0 &&
            (strcmp(r->unit, "blk.0") != 0 || strncmp(r->role, "exp_avg", 7) != 0))
            records[set->record_numel++] = *r;
    }
}

/* The wanted slabs come back, the others are not touched. */
static tess_status check_cut(const bench *b, const tess_ckpt_set *set, int64_t seed)
{
    for (int64_t i = 0; i < set->record_numel; i++) {
        const tess_ckpt_record *r = &set->records[i];
        const size_t nbytes = (size_t)(r->hi_idx - r->lo_idx) * tess_dtype_block_nbytes(r->dt);
        void *expected = NULL;
        TESS_TRY(tess_alloc(nbytes + 1, &expected));
        ckpt_fixture_expect(r, r->lo_idx, r->hi_idx, (uint64_t)seed, expected);
        const bool is_same = nbytes == 0 || memcmp(r->view.data, expected, nbytes) == 0;
        tess_free(expected);
        TESS_CHECK(is_same, TESS_E_STATE, "%s/%s came back changed on rank %d", r->unit, r->role,
                   tess_comm_rank(b->comm));
    }
    return TESS_OK;
}

static tess_status test_slabs_beyond_the_run_are_left_only_where_it_may(bench *b)
{
    tess_ckpt_record records[16];
    tess_ckpt_report report;
    tess_ckpt_set set;
    tess_ckpt_loaded loaded = {0};
    TESS_TRY(ckpt_fixture_prepare(b->f, b->store));
    TESS_TRY(ckpt_fixture_save(b->f, b->store, 5, &report));
    TESS_TRY(reopen(b, true));
    cut_set(b->f, records, &set);
    EXPECT(set.record_numel == b->f->step.record_numel - 3);
    tess_ckpt_load_request request = {.set = &set};
    ckpt_fixture_poison(b->f);
    tess_status st = tess_ckpt_load(b->store, &request, &loaded);
    TESS_CHECK(st == TESS_E_FORMAT &&
                   strstr(tess_error_message(), "this run does not have") != NULL,
               TESS_E_STATE, "slabs that the run does not have are not refused");
    tess_error_clear();
    tess_ckpt_loaded_fini(&loaded);
    request.may_leave = is_left;
    TESS_TRY(tess_ckpt_load(b->store, &request, &loaded));
    EXPECT(loaded.found == TESS_CKPT_LOADED && loaded.step == 5);
    tess_ckpt_loaded_fini(&loaded);
    return tess_agree(b->comm, check_cut(b, &set, 5));
}

/* ---- an older one of the same run ---- */

static bool is_even(void *arg, int64_t step)
{
    (void)arg;
    return step % 2 == 0;
}

/* `path` NULL: the newest even one of the run's own past, -1: there is none. */
static tess_status expect_loaded(bench *b, const char *path, int64_t step)
{
    const tess_ckpt_load_request request = {
        .path = path, .set = &b->f->step, .may_load = path == NULL ? is_even : NULL};
    tess_ckpt_loaded loaded = {0};
    TESS_TRY(tess_ckpt_load(b->store, &request, &loaded));
    const int64_t found = loaded.found == TESS_CKPT_LOADED ? loaded.step : -1;
    EXPECT(found == step && loaded.fallback_numel == 0);
    EXPECT(found < 0 || ckpt_fixture_wrong(b->f, (uint64_t)found, false) == 0);
    tess_ckpt_loaded_fini(&loaded);
    return TESS_OK;
}

/* Not what another process wrote unless it led to the checkpoint that this one went on from. */
static tess_status test_older_one_is_of_the_same_run(bench *b)
{
    tess_ckpt_report report;
    char dir[5][PATH_MAX];
    TESS_TRY(ckpt_fixture_prepare(b->f, b->store));
    for (int64_t step = 1; step <= 4; step++) {
        TESS_TRY(expect_loaded(b, NULL, step > 2 ? 2 : -1));
        TESS_TRY(ckpt_fixture_save(b->f, b->store, step, &report));
        EXPECT(report.outcome == TESS_CKPT_COMMITTED, "(%s)", report.message);
        TESS_TRY(ckpt_join(dir[step], b->dir, report.dir));
    }
    TESS_TRY(expect_loaded(b, NULL, 4));
    TESS_TRY(reopen(b, false)); /* a fresh start beside them */
    TESS_TRY(expect_loaded(b, NULL, -1));
    TESS_TRY(expect_loaded(b, dir[3], 3));
    TESS_TRY(expect_loaded(b, NULL, -1)); /* 2 was removed, 4 is left behind */
    TESS_TRY(expect_loaded(b, dir[4], 4));
    return expect_loaded(b, NULL, 4);
}

/* ---- damage that needs several files; rank 0 handles the files ---- */

static tess_status save_two(bench *b, char step_dir[2][PATH_MAX])
{
    tess_ckpt_report report;
    TESS_TRY(ckpt_fixture_prepare(b->f, b->store));
    for (int i = 0; i < 2; i++) {
        TESS_TRY(ckpt_fixture_save(b->f, b->store, i + 1, &report));
        EXPECT(report.outcome == TESS_CKPT_COMMITTED);
        TESS_TRY(ckpt_join(step_dir[i], b->dir, report.dir));
    }
    return reopen(b, true);
}

static tess_status move(tess_comm *comm, const char *from, const char *to)
{
    TESS_TRY(tess_comm_barrier(comm));
    const bool is_bad = tess_comm_rank(comm) == 0 && rename(from, to) != 0;
    return tess_agree(comm, is_bad ? TESS_FAIL(TESS_E_IO, "rename to '%s'", to) : TESS_OK);
}

/* The newest does not load by name, naming `file` on all ranks; auto takes the older one. */
static tess_status expect_refused(bench *b, const char *dir, const char *file)
{
    int64_t seed = 0, fallback = 0;
    tess_status st = ckpt_fixture_load(b->f, b->store, dir, &seed, NULL);
    TESS_CHECK(st == TESS_E_FORMAT && strstr(tess_error_message(), file) != NULL, TESS_E_STATE,
               "'%s' was not refused", file);
    tess_error_clear();
    TESS_TRY(ckpt_fixture_load(b->f, b->store, NULL, &seed, &fallback));
    EXPECT(seed == 1 && fallback == 1);
    return TESS_OK;
}

static tess_status test_moved_files_are_refused(bench *b)
{
    char step_dir[2][PATH_MAX], first[PATH_MAX], second[PATH_MAX], old[PATH_MAX], spare[PATH_MAX];
    char name[2][CKPT_SHARD_NAME_NBYTES];
    const int world = tess_comm_world(b->comm);
    if (world < 2)
        return TESS_OK;
    TESS_TRY(save_two(b, step_dir));
    for (int i = 0; i < 2; i++)
        ckpt_shard_name(i, world, name[i]);
    TESS_TRY(ckpt_join(first, step_dir[1], name[0]));
    TESS_TRY(ckpt_join(second, step_dir[1], name[1]));
    TESS_TRY(ckpt_join(old, step_dir[0], name[0]));
    TESS_TRY(ckpt_join(spare, b->dir, "spare"));
    /* missing */
    TESS_TRY(move(b->comm, first, spare));
    TESS_TRY(expect_refused(b, step_dir[1], name[0]));
    /* renamed: the file of rank 1 under the name of rank 0, then both swapped */
    TESS_TRY(move(b->comm, second, first));
    TESS_TRY(expect_refused(b, step_dir[1], "shard-0000"));
    TESS_TRY(move(b->comm, spare, second));
    TESS_TRY(expect_refused(b, step_dir[1], "shard-0000"));
    TESS_TRY(move(b->comm, first, spare));
    TESS_TRY(move(b->comm, second, first));
    TESS_TRY(move(b->comm, spare, second));
    int64_t seed = 0;
    TESS_TRY(ckpt_fixture_load(b->f, b->store, NULL, &seed, NULL));
    EXPECT(seed == 2);
    /* two generations: the shard of step 1 has the same size */
    TESS_TRY(move(b->comm, first, spare));
    TESS_TRY(move(b->comm, old, first));
    int64_t fallback = 0;
    const tess_status st = ckpt_fixture_load(b->f, b->store, NULL, &seed, &fallback);
    EXPECT(st == TESS_E_NOT_FOUND && strstr(tess_error_message(), "none verifies") != NULL);
    tess_error_clear();
    TESS_TRY(move(b->comm, first, old));
    TESS_TRY(move(b->comm, spare, first));
    TESS_TRY(ckpt_fixture_load(b->f, b->store, step_dir[1], &seed, NULL));
    EXPECT(seed == 2);
    return TESS_OK;
}

/* ---- saves that overlap with steps ---- */

static tess_status test_async_saves_commit_everywhere(bench *b)
{
    tess_ckpt_value values[8];
    tess_ckpt_report report;
    int64_t seed = 0;
    TESS_TRY(ckpt_fixture_prepare(b->f, b->store));
    for (int step = 1; step <= 4; step++) {
        ckpt_fixture_fill(b->f, (uint64_t)step);
        tess_alloc_freeze();
        tess_status st = tess_ckpt_save_begin(b->store, step, values,
                                              ckpt_fixture_state((uint64_t)step, values), &report);
        /* As the step loop does: the control record carries "done" until all ranks have it. */
        int64_t is_busy = 1;
        while (st == TESS_OK && is_busy != 0) {
            ckpt_fixture_fill(b->f, 99);
            is_busy = tess_ckpt_poll(b->store) == TESS_CKPT_WRITING;
            st = tess_comm_control(b->comm, NULL, 0, &is_busy, 1);
        }
        if (st == TESS_OK)
            st = tess_ckpt_commit(b->store, &report);
        tess_alloc_thaw();
        TESS_TRY(st);
        EXPECT(report.outcome == TESS_CKPT_COMMITTED && report.disk_nbytes > 0);
    }
    TESS_TRY(ckpt_fixture_load(b->f, b->store, NULL, &seed, NULL));
    EXPECT(seed == 4);
    return TESS_OK;
}

/* A rank with an empty range writes an empty dataset and reads it back; padding is nowhere. */
static tess_status test_files_hold_the_slabs_and_no_padding(bench *b)
{
    tess_ckpt_report report;
    char dir[PATH_MAX];
    ckpt_manifest m;
    int64_t stored = 0, wanted = 0;
    TESS_TRY(ckpt_fixture_prepare(b->f, b->store));
    TESS_TRY(ckpt_fixture_save(b->f, b->store, 1, &report));
    TESS_TRY(ckpt_join(dir, b->dir, report.dir));
    TESS_TRY(ckpt_manifest_read(b->f->io, dir, &m));
    tess_status st = TESS_OK;
    for (int i = 0; st == TESS_OK && i < m.set.shard_world; i++) {
        char path[PATH_MAX], name[CKPT_SHARD_NAME_NBYTES];
        ckpt_chunk *chunks = NULL;
        int64_t chunk_numel = 0;
        ckpt_shard_name(i, m.set.shard_world, name);
        st = ckpt_join(path, dir, name);
        if (st == TESS_OK)
            st = ckpt_shard_check(b->f->io, path, &m.files[i], &chunks, &chunk_numel);
        for (int64_t k = 0; st == TESS_OK && k < chunk_numel; k++)
            stored += chunks[k].nbytes;
        tess_free(chunks);
    }
    for (int64_t i = 0; i < b->f->step.record_numel; i++)
        wanted += b->f->step_records[i].total_numel *
                  (int64_t)tess_dtype_block_nbytes(b->f->step_records[i].dt);
    ckpt_manifest_fini(&m);
    TESS_TRY(st);
    EXPECT(stored == wanted);
    return TESS_OK;
}

/* Every rank asks for the lock error alike. */
static tess_status test_second_store_is_refused_on_all_ranks(bench *b)
{
    tess_ckpt_store *second = NULL;
    const tess_status st = ckpt_fixture_open(b->f, b->comm, b->dir, false, &second);
    EXPECT(st == TESS_E_IO && strstr(tess_error_message(), "is used by another run") != NULL);
    EXPECT(tess_error_rank() == 0);
    tess_error_clear();
    return TESS_OK;
}

typedef tess_status (*case_fn)(bench *b);

static tess_status run_case(tess_comm *comm, const char *name, int64_t scale, case_fn fn)
{
    bench b = {.comm = comm};
    const int world = tess_comm_world(comm);
    const int group = world % 2 == 0 ? world / 2 : world;
    tess_error_clear();
    TESS_TRY(ckpt_fixture_dir(comm, b.dir));
    tess_status st = ckpt_fixture_create(world, tess_comm_rank(comm), group, scale, &b.f);
    if (st == TESS_OK)
        st = ckpt_fixture_open(b.f, comm, b.dir, false, &b.store);
    if (st == TESS_OK)
        st = fn(&b);
    if (st != TESS_OK)
        fprintf(stderr, "rank %d: case %s: %s\n%s", tess_comm_rank(comm), name,
                tess_error_message(), tess_error_trace_text());
    tess_ckpt_store_close(&b.store);
    ckpt_fixture_destroy(&b.f);
    const tess_status verdict = tess_agree(comm, st);
    if (tess_comm_rank(comm) == 0)
        ckpt_fixture_remove(b.dir);
    return verdict;
}

static tess_status run(tess_comm *comm)
{
    TESS_TRY(run_case(comm, "every world", 1, test_save_then_load_at_every_world));
    TESS_TRY(run_case(comm, "every world, many chunks", 1500, test_save_then_load_at_every_world));
    TESS_TRY(run_case(comm, "left slabs", 1, test_slabs_beyond_the_run_are_left_only_where_it_may));
    TESS_TRY(run_case(comm, "older one", 1, test_older_one_is_of_the_same_run));
    TESS_TRY(run_case(comm, "moved files", 1, test_moved_files_are_refused));
    TESS_TRY(run_case(comm, "asynchronous saves", 40, test_async_saves_commit_everywhere));
    TESS_TRY(run_case(comm, "no padding", 1, test_files_hold_the_slabs_and_no_padding));
    TESS_TRY(run_case(comm, "second store", 1, test_second_store_is_refused_on_all_ranks));
    return TESS_OK;
}

int main(int argc, char **argv) { return rank_test_main(argc, argv, run); }
