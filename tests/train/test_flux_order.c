/* Micro-batches of one bucket: what they hold, over epochs and whoever asks. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "train/flux/flux_order.h"

enum { BATCH_MAX = 8, SAMPLE_MAX = 64 };

static const tess_latents_bucket buckets[] = {
    {4, 4, 13, 0}, {4, 8, 1, 13}, {6, 4, 7, 14}, {8, 8, 20, 21}};
enum { SAMPLE_NUMEL = 41, BUCKET_NUMEL = 4 };

static tess_flux_order order_of(uint64_t seed, int64_t batch_numel)
{
    return (tess_flux_order){seed, batch_numel, buckets, BUCKET_NUMEL};
}

static int64_t bucket_of(int64_t sample)
{
    int64_t b = BUCKET_NUMEL - 1;
    while (buckets[b].first_idx > sample)
        b--;
    return b;
}

/* After e epochs every sample was seen e times, but for less than B of a bucket, the last of its
 * stream; and e B epochs leave nothing over. */
static void test_every_sample_is_seen_as_often_as_any_other(void **state)
{
    (void)state;
    for (int64_t batch = 1; batch <= BATCH_MAX; batch++) {
        const tess_flux_order order = order_of(5, batch);
        int64_t seen[SAMPLE_MAX] = {0}, g = 0;
        for (int64_t epoch = 1; epoch <= 2 * batch; epoch++) {
            for (; g < tess_flux_order_numel(&order, epoch); g++) {
                int64_t sample[BATCH_MAX];
                const int64_t b = tess_flux_order_at(&order, g, sample);
                for (int64_t i = 0; i < batch; i++) {
                    assert_int_equal(bucket_of(sample[i]), b);
                    seen[sample[i]]++;
                }
            }
            for (int64_t b = 0; b < BUCKET_NUMEL; b++) {
                int64_t missing = 0;
                for (int64_t i = 0; i < buckets[b].sample_numel; i++) {
                    const int64_t times = seen[buckets[b].first_idx + i];
                    assert_true(times <= epoch);
                    assert_true(buckets[b].sample_numel < batch || times >= epoch - 1);
                    missing += epoch - times;
                }
                assert_true(missing < batch);
                assert_true(epoch % batch != 0 || missing == 0);
            }
        }
    }
}

/* Any number of ranks takes the same micro-batches: each is found without the others. */
static void test_order_does_not_depend_on_ranks(void **state)
{
    (void)state;
    const tess_flux_order order = order_of(9, 3);
    enum { NUMEL = 120 };
    static int64_t expected[NUMEL][3], found[NUMEL][3];
    for (int64_t g = 0; g < NUMEL; g++)
        tess_flux_order_at(&order, g, expected[g]);
    for (int world = 1; world <= 5; world++) {
        memset(found, 0xff, sizeof found);
        for (int rank = world - 1; rank >= 0; rank--)
            for (int64_t g = rank; g < NUMEL; g += world)
                tess_flux_order_at(&order, g, found[g]);
        assert_memory_equal(found, expected, sizeof expected);
    }
}

static void test_order_depends_on_seed_and_epoch(void **state)
{
    (void)state;
    const tess_flux_order one = order_of(1, 1), two = order_of(2, 1);
    int same_seed = 0, same_epoch = 0;
    for (int64_t g = 0; g < SAMPLE_NUMEL; g++) {
        int64_t a = -1, b = -1, c = -1;
        tess_flux_order_at(&one, g, &a);
        tess_flux_order_at(&two, g, &b);
        tess_flux_order_at(&one, g + SAMPLE_NUMEL, &c);
        same_seed += a == b;
        same_epoch += a == c;
    }
    /* two permutations of 41 agree in one place on average */
    assert_true(same_seed < 8 && same_epoch < 8);
}

/* Buckets are mixed: an epoch is no run of one bucket after the other. */
static void test_buckets_are_mixed(void **state)
{
    (void)state;
    const tess_flux_order order = order_of(3, 1);
    int changes = 0;
    int64_t sample = 0, last = -1;
    for (int64_t g = 0; g < SAMPLE_NUMEL; g++) {
        const int64_t b = tess_flux_order_at(&order, g, &sample);
        changes += b != last;
        last = b;
    }
    assert_true(changes > 12);
}

static void test_order_reaches_far(void **state)
{
    (void)state;
    const tess_flux_order order = order_of(3, 7);
    int64_t sample[7];
    const int64_t g = (int64_t)1000000000 * 1000;
    const int64_t b = tess_flux_order_at(&order, g, sample);
    for (int i = 0; i < 7; i++)
        assert_int_equal(bucket_of(sample[i]), b);
}

static void test_held_out_covers_each_once(void **state)
{
    (void)state;
    for (int64_t batch = 1; batch <= 25; batch++) {
        const tess_flux_order order = order_of(0, batch);
        int64_t next = 0;
        for (int64_t m = 0; m < tess_flux_held_out_numel(&order); m++) {
            int64_t bucket = -1, first = -1;
            const int64_t numel = tess_flux_held_out_at(&order, m, &bucket, &first);
            assert_true(numel >= 1 && numel <= batch);
            assert_int_equal(first, next);
            assert_int_equal(bucket_of(first), bucket);
            assert_int_equal(bucket_of(first + numel - 1), bucket);
            next += numel;
        }
        assert_int_equal(next, SAMPLE_NUMEL);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_sample_is_seen_as_often_as_any_other),
        cmocka_unit_test(test_order_does_not_depend_on_ranks),
        cmocka_unit_test(test_order_depends_on_seed_and_epoch),
        cmocka_unit_test(test_buckets_are_mixed),
        cmocka_unit_test(test_order_reaches_far),
        cmocka_unit_test(test_held_out_covers_each_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
