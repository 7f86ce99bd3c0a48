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
    return TESS_OK;
}

int main(int argc, char **argv) { return rank_test_main(argc, argv, run); }
