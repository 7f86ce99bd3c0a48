#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "core/memory.h"
#include "core/pool.h"

enum { PART_MAX = 64 };

typedef struct tally {
    atomic_int count[PART_MAX];
    atomic_int wrong_numel;
    int part_numel;
} tally;

static void count_part(void *arg, int part_idx, int part_numel)
{
    tally *t = arg;
    if (part_idx < 0 || part_idx >= t->part_numel || part_numel != t->part_numel)
        atomic_fetch_add(&t->wrong_numel, 1);
    else
        atomic_fetch_add(&t->count[part_idx], 1);
}

static void check_runs(tess_pool *pool, int repeat_numel)
{
    for (int repeat = 0; repeat < repeat_numel; repeat++)
        for (int part_numel = 1; part_numel <= PART_MAX; part_numel += 9) {
            tally t;
            memset(&t, 0, sizeof t);
            t.part_numel = part_numel;
            tess_pool_run(pool, part_numel, count_part, &t);
            assert_int_equal(t.wrong_numel, 0);
            for (int i = 0; i < PART_MAX; i++)
                assert_int_equal(t.count[i], i < part_numel ? 1 : 0);
        }
}

/* Parts fewer, equal and more than threads; each part exactly once, done on return. */
static void test_run_visits_every_part_once(void **state)
{
    (void)state;
    for (int threads = 1; threads <= 4; threads++) {
        tess_pool *pool = NULL;
        assert_int_equal(tess_pool_create(threads, &pool), TESS_OK);
        assert_int_equal(tess_pool_thread_numel(pool), threads);
        check_runs(pool, 50);
        tess_pool_destroy(&pool);
        assert_null(pool);
    }
    check_runs(NULL, 1);
    assert_int_equal(tess_pool_thread_numel(NULL), 1);
}

typedef struct sum_job {
    const int64_t *x;
    int64_t numel;
    int64_t part_sum[PART_MAX];
} sum_job;

static void sum_part(void *arg, int part_idx, int part_numel)
{
    sum_job *job = arg;
    int64_t lo = 0, hi = 0;
    tess_pool_range(job->numel, 8, part_idx, part_numel, &lo, &hi);
    job->part_sum[part_idx] = 0;
    for (int64_t i = lo; i < hi; i++)
        job->part_sum[part_idx] += job->x[i];
}

/* What one run wrote the next one reads: the run is a barrier for memory too. */
static void test_run_publishes_writes_between_runs(void **state)
{
    (void)state;
    enum { NUMEL = 1000 };
    int64_t x[NUMEL];
    tess_pool *pool = NULL;
    assert_int_equal(tess_pool_create(3, &pool), TESS_OK);
    for (int64_t round = 0; round < 300; round++) {
        sum_job job = {.x = x, .numel = NUMEL};
        int64_t total = 0;
        for (int64_t i = 0; i < NUMEL; i++)
            x[i] = i * round;
        tess_pool_run(pool, 7, sum_part, &job);
        for (int part = 0; part < 7; part++)
            total += job.part_sum[part];
        assert_int_equal(total, round * NUMEL * (NUMEL - 1) / 2);
    }
    tess_pool_destroy(&pool);
}

static void test_range_covers_without_overlap(void **state)
{
    (void)state;
    for (int64_t numel = 0; numel < 70; numel++)
        for (int64_t grain = 1; grain <= 32; grain *= 2)
            for (int part_numel = 1; part_numel < 9; part_numel++) {
                int64_t end = 0;
                for (int part = 0; part < part_numel; part++) {
                    int64_t lo = -1, hi = -1;
                    tess_pool_range(numel, grain, part, part_numel, &lo, &hi);
                    assert_int_equal(lo, end);
                    assert_true(hi >= lo && (lo % grain == 0 || lo == numel));
                    end = hi;
                }
                assert_int_equal(end, numel);
            }
}

static void test_create_refuses_impossible_counts(void **state)
{
    (void)state;
    tess_pool *pool = NULL;
    tess_error_clear();
    assert_int_equal(tess_pool_create(0, &pool), TESS_E_ARG);
    assert_string_equal(tess_error_message(), "compute threads: expected 1 to 1024, found 0");
    tess_error_clear();
    assert_int_equal(tess_pool_create(1025, &pool), TESS_E_ARG);
    assert_null(pool);
    tess_error_clear();
    tess_pool_destroy(&pool);
}

static void test_destroy_gives_all_memory_back(void **state)
{
    (void)state;
    const size_t before = tess_alloc_nbytes();
    tess_pool *pool = NULL;
    assert_int_equal(tess_pool_create(2, &pool), TESS_OK);
    assert_true(tess_alloc_nbytes() > before);
    tess_pool_destroy(&pool);
    assert_int_equal(tess_alloc_nbytes(), before);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_run_visits_every_part_once),
        cmocka_unit_test(test_run_publishes_writes_between_runs),
        cmocka_unit_test(test_range_covers_without_overlap),
        cmocka_unit_test(test_create_refuses_impossible_counts),
        cmocka_unit_test(test_destroy_gives_all_memory_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
