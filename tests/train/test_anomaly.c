/* Spikes in series and slow ranks, by values that are known beforehand. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "train/anomaly.h"
#include "train/median.h"

static const double LIMIT = 8.0;

static void test_median_is_a_value_that_is_there(void **state)
{
    (void)state;
    double one[] = {3}, two[] = {5, 2}, odd[] = {9, 1, 4}, even[] = {8, 1, 6, 2};
    double ties[] = {2, 1, 2, 2, 1};
    assert_true(tess_median_low(one, 1) == 3);
    assert_true(tess_median_low(two, 2) == 2);
    assert_true(tess_median_low(odd, 3) == 4);
    assert_true(tess_median_low(even, 4) == 2);
    assert_true(tess_median_low(ties, 5) == 2);
}

/* ---- spikes ---- */

/* A series without a trend that no two neighbours are equal in: 2 +- 0.1 in eleven places. */
static double wave(int i) { return 2.0 + 0.02 * (double)(i * 7 % 11 - 5); }

static void test_spike_is_found_once_and_forgotten(void **state)
{
    (void)state;
    tess_spike_window w = {0};
    for (int i = 0; i < 200; i++)
        assert_true(fabs(tess_spike_score(&w, wave(i)).score) < 2.0);
    const tess_spike spike = tess_spike_score(&w, 5.0);
    assert_true(spike.median == 2.0);
    /* deviations 0, 0.02, .. 0.1 and as many below: half of them are within 0.06 */
    assert_true(fabs(spike.score - 3.0 / (1.4826 * 0.06)) < 1e-9);
    for (int i = 200; i < 600; i++)
        assert_true(fabs(tess_spike_score(&w, wave(i)).score) < 2.0);
    assert_true(tess_spike_score(&w, -5.0).score < -LIMIT); /* downwards it is none */
}

static void test_spike_needs_values_before_it(void **state)
{
    (void)state;
    tess_spike_window w = {0};
    for (int i = 0; i < TESS_SPIKE_LEAST_NUMEL; i++)
        assert_true(tess_spike_score(&w, 1.0 + 100.0 * i).score == 0.0);
    assert_true(tess_spike_score(&w, 1e9).score > LIMIT);
}

static void test_spike_window_is_of_the_last_values(void **state)
{
    (void)state;
    tess_spike_window w = {0};
    for (int i = 0; i < 1000; i++)
        (void)tess_spike_score(&w, 100.0 + wave(i));
    for (int i = 0; i < TESS_SPIKE_WINDOW_NUMEL; i++)
        (void)tess_spike_score(&w, wave(i));
    assert_true(tess_spike_score(&w, 2.0).median == 2.0);
    assert_true(tess_spike_score(&w, 100.0).score > LIMIT);
}

static void test_constant_series_has_no_spikes_of_noise(void **state)
{
    (void)state;
    tess_spike_window w = {0}, zero = {0};
    for (int i = 0; i < 300; i++)
        assert_true(tess_spike_score(&w, 3.0).score == 0.0);
    assert_true(tess_spike_score(&w, nextafter(3.0, 4.0)).score < 1e-9);
    assert_true(tess_spike_score(&w, 3.2).score < LIMIT);
    assert_true(tess_spike_score(&w, 3.3).score > LIMIT); /* 10 % above */
    for (int i = 0; i < 300; i++)
        assert_true(tess_spike_score(&zero, 0.0).score == 0.0);
    assert_true(tess_spike_score(&zero, 1.0).score == 0.0); /* nothing to measure by */
}

static void test_ramps_have_no_spikes(void **state)
{
    (void)state;
    tess_spike_window up = {0}, down = {0}, decay = {0};
    for (int i = 0; i < 1000; i++) {
        assert_true(fabs(tess_spike_score(&up, 0.01 * i).score) < LIMIT);
        assert_true(tess_spike_score(&down, 20.0 - 0.01 * i).score < LIMIT);
        assert_true(tess_spike_score(&decay, 2.0 + 9.0 * exp(-0.01 * i)).score < LIMIT);
    }
}

static void test_values_that_are_not_finite_are_no_part(void **state)
{
    (void)state;
    tess_spike_window w = {0}, without = {0};
    for (int i = 0; i < 100; i++) {
        assert_true(tess_spike_score(&w, NAN).score == 0.0);
        assert_true(tess_spike_score(&w, INFINITY).score == 0.0);
        assert_true(tess_spike_score(&w, wave(i)).score ==
                    tess_spike_score(&without, wave(i)).score);
    }
    assert_true(tess_spike_score(&w, 5.0).score > LIMIT);
}

/* Filled in part, in full and around; scores behind a checkpoint have the bits they would have. */
static void test_window_in_text_goes_on_with_the_same_bits(void **state)
{
    (void)state;
    static const int numels[] = {0, 1, 40, TESS_SPIKE_WINDOW_NUMEL, 200, 1000};
    for (int k = 0; k < TESS_NELEM(numels); k++) {
        tess_spike_window w = {0}, read = {0};
        char text[TESS_SPIKE_TEXT_NBYTES], again[TESS_SPIKE_TEXT_NBYTES];
        for (int i = 0; i < numels[k]; i++)
            (void)tess_spike_score(&w, wave(i) / 3.0);
        tess_spike_window_write(&w, text);
        assert_int_equal(strlen(text), 16 * TESS_MIN(numels[k], (int)TESS_SPIKE_WINDOW_NUMEL));
        assert_true(tess_spike_window_read(text, &read));
        tess_spike_window_write(&read, again);
        assert_string_equal(text, again);
        for (int i = 0; i < 300; i++) {
            const tess_spike a = tess_spike_score(&w, wave(3 * i)),
                             b = tess_spike_score(&read, wave(3 * i));
            assert_true(a.score == b.score && a.median == b.median);
        }
    }
}

static void test_text_that_is_no_window_is_refused(void **state)
{
    (void)state;
    char many[TESS_SPIKE_TEXT_NBYTES + 16];
    memset(many, '0', sizeof many);
    many[sizeof many - 1] = '\0';
    const char *const wrong[] = {"0",
                                 "3ff000000000000",
                                 "3ff000000000000G",
                                 "3FF0000000000000",
                                 "-ff0000000000000",
                                 "7ff0000000000000",
                                 "3ff00000000000007ff8000000000000",
                                 many};
    for (int i = 0; i < TESS_NELEM(wrong); i++) {
        tess_spike_window w = {.value = {5.0}, .seen_numel = 1};
        assert_false(tess_spike_window_read(wrong[i], &w));
        assert_true(w.seen_numel == 1 && w.value[0] == 5.0);
    }
}

/* ---- slow ranks ---- */

enum { WORLD_MAX = 8 };

static tess_rank_pace pace[WORLD_MAX];

/* Ranks of one step each: times, and micro-batches (0: one each); bit r: rank r is slow, or news.
 */
static unsigned judge(int world, const double *own_s, const int64_t *micro, unsigned *news)
{
    double scratch[WORLD_MAX];
    unsigned slow = 0;
    *news = 0;
    for (int i = 0; i < world; i++) {
        pace[i].own_s = own_s[i];
        pace[i].micro_batch_numel = micro != NULL ? micro[i] : 1;
    }
    tess_rank_pace_judge(pace, world, scratch);
    for (int i = 0; i < world; i++) {
        slow |= (unsigned)pace[i].is_slow << i;
        *news |= (unsigned)pace[i].is_news << i;
    }
    return slow;
}

static unsigned fresh(int world, const double *own_s, const int64_t *micro)
{
    unsigned news = 0;
    memset(pace, 0, sizeof pace);
    const unsigned slow = judge(world, own_s, micro, &news);
    assert_int_equal(news, slow);
    return slow;
}

static void test_slow_rank_is_above_the_median(void **state)
{
    (void)state;
    assert_int_equal(fresh(1, (const double[]){9}, NULL), 0);
    assert_int_equal(fresh(2, (const double[]){1, 1.29}, NULL), 0);
    assert_int_equal(fresh(2, (const double[]){1.31, 1}, NULL), 1);
    assert_int_equal(fresh(3, (const double[]){1, 1.2, 5}, NULL), 4);
    assert_true(pace[2].time_s == 5 && pace[2].median_s == 1.2);
    assert_int_equal(fresh(3, (const double[]){0.1, 1.2, 1.2}, NULL), 0); /* a fast one is fine */
    assert_int_equal(fresh(4, (const double[]){1, 2, 1, 2}, NULL), 2 | 8);
    assert_int_equal(fresh(4, (const double[]){2, 2, 2, 2}, NULL), 0);
    assert_int_equal(fresh(4, (const double[]){0, 0, 0, 1}, NULL), 0); /* nothing to measure by */
    assert_int_equal(fresh(5, (const double[]){3, 3, 1, 3, 3}, NULL), 0);
}

static void test_slow_rank_is_news_once(void **state)
{
    (void)state;
    unsigned news = 0;
    memset(pace, 0, sizeof pace);
    assert_int_equal(judge(3, (const double[]){1, 1, 2}, NULL, &news), 4);
    assert_int_equal(news, 4);
    assert_int_equal(judge(3, (const double[]){2, 1, 2}, NULL, &news), 0); /* the median is 2 */
    assert_int_equal(judge(3, (const double[]){1, 1, 3}, NULL, &news), 4);
    assert_int_equal(news, 4); /* again */
    assert_int_equal(judge(3, (const double[]){1, 1, 4}, NULL, &news), 4);
    assert_int_equal(news, 0);
}

/* Every rank takes 1 for a micro-batch and `rest` for what does not depend on their number. */
static void expect_innocent(int world, int64_t micro_batches, double rest)
{
    double own_s[WORLD_MAX];
    int64_t micro[WORLD_MAX];
    for (int i = 0; i < world; i++) {
        micro[i] = micro_batches / world + (i < micro_batches % world);
        own_s[i] = rest + (double)micro[i];
    }
    assert_int_equal(fresh(world, own_s, micro), 0);
}

static void test_unequal_micro_batches_accuse_nobody(void **state)
{
    (void)state;
    for (int world = 2; world <= WORLD_MAX; world++)
        for (int64_t m = 1; m <= 4 * WORLD_MAX; m++)
            for (double rest = 0.0; rest < 5.0; rest += 0.5)
                expect_innocent(world, m, rest);
}

static void test_slow_rank_among_unequal_ones_is_found(void **state)
{
    (void)state;
    const int64_t micro[] = {2, 2, 1};
    assert_int_equal(fresh(3, (const double[]){4, 2, 1}, micro), 1);
    assert_true(!pace[0].is_by_step && pace[0].time_s == 2 && pace[0].median_s == 1);
    assert_int_equal(fresh(3, (const double[]){2, 2, 4}, micro), 4);
    assert_true(pace[2].is_by_step && pace[2].time_s == 4 && pace[2].median_s == 2);
    /* a rank without micro-batches is none of them, whatever it does */
    assert_int_equal(fresh(4, (const double[]){1, 1, 9, 1}, (const int64_t[]){1, 1, 0, 0}), 0);
    assert_true(pace[2].time_s == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_median_is_a_value_that_is_there),
        cmocka_unit_test(test_spike_is_found_once_and_forgotten),
        cmocka_unit_test(test_spike_needs_values_before_it),
        cmocka_unit_test(test_spike_window_is_of_the_last_values),
        cmocka_unit_test(test_constant_series_has_no_spikes_of_noise),
        cmocka_unit_test(test_ramps_have_no_spikes),
        cmocka_unit_test(test_values_that_are_not_finite_are_no_part),
        cmocka_unit_test(test_window_in_text_goes_on_with_the_same_bits),
        cmocka_unit_test(test_text_that_is_no_window_is_refused),
        cmocka_unit_test(test_slow_rank_is_above_the_median),
        cmocka_unit_test(test_slow_rank_is_news_once),
        cmocka_unit_test(test_unequal_micro_batches_accuse_nobody),
        cmocka_unit_test(test_slow_rank_among_unequal_ones_is_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
