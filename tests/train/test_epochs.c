/* train.epochs and train.warmup_ratio as other ways to say train.steps and train.warmup_steps. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "train/run_file/run_file.h"

static const char bare[] = "model: {path: m}\n"
                           "data: {path: d.h5}\n"
                           "output: {dir: out}\n";

/* Counts how often it was asked. */
typedef struct epoch {
    int64_t sequence_numel;
    int *asked_numel;
} epoch;

static tess_status epoch_of(const void *arg, const tess_run *run, int64_t *sequence_numel)
{
    const epoch *e = arg;
    (void)run;
    (*e->asked_numel)++;
    *sequence_numel = e->sequence_numel;
    return TESS_OK;
}

static tess_status parse(const char *train, const char *const arguments[2], int64_t sequence_numel,
                         tess_run **run)
{
    char text[512];
    int asked_numel = 0;
    const epoch e = {sequence_numel, &asked_numel};
    tess_run_override overrides[2];
    int64_t numel = 0;
    for (; numel < 2 && arguments[numel] != NULL; numel++)
        overrides[numel] = (tess_run_override){arguments[numel], (int)numel + 1};
    snprintf(text, sizeof text, "%strain: {%s}\n", bare, train);
    const tess_run_source source = {text, strlen(text), "run.yaml", overrides, numel, epoch_of};
    tess_error_clear();
    const tess_status st = tess_run_parse_with(&source, NULL, &e, run);
    if (st == TESS_OK)
        assert_int_equal(asked_numel, (*run)->train.epochs > 0.0);
    return st;
}

static void test_run_epochs_given_are_rounded_up_to_steps(void **state)
{
    (void)state;
    static const struct {
        const char *train;
        int64_t sequence_numel, step_numel;
    } cases[] = {
        {"epochs: 1, micro_batches: 8", 80, 10},
        {"epochs: 1, micro_batches: 8", 81, 11},
        {"epochs: 3, micro_batches: 4, micro_batch: 2", 100, 38}, /* 37.5 */
        {"epochs: 0.5, micro_batches: 8", 80, 5},
        {"epochs: 0.07, micro_batches: 1", 100, 7}, /* 7.000000000000001 in fp64 */
        {"epochs: 0.001, micro_batches: 8", 80, 1},
        {"epochs: 1, micro_batches: 8", 1, 1},
    };
    for (int i = 0; i < TESS_NELEM(cases); i++) {
        tess_run *run = NULL;
        assert_int_equal(
            parse(cases[i].train, (const char *const[2]){NULL}, cases[i].sequence_numel, &run),
            TESS_OK);
        assert_int_equal(run->train.steps, cases[i].step_numel);
        assert_false(tess_run_has_open_end(run));
        tess_run_destroy(&run);
    }
}

/* What depends on steps depends on the resolved ones, and a resolved run is one of steps. */
static void test_run_epochs_given_are_kept_as_steps(void **state)
{
    (void)state;
    tess_run *run = NULL, *again = NULL;
    char *text = NULL;
    size_t nbytes = 0;
    assert_int_equal(
        parse("epochs: 2, micro_batches: 8, schedule: wsd", (const char *const[2]){NULL}, 16, &run),
        TESS_OK);
    assert_int_equal(run->train.steps, 4);
    assert_int_equal(run->train.warmup_steps, 4);
    assert_int_equal(tess_run_yaml(run, &text, &nbytes), TESS_OK);
    assert_non_null(strstr(text, "  steps: 4\n"));
    assert_null(strstr(text, "epochs"));
    assert_int_equal(tess_run_parse(text, nbytes, "run.yaml", NULL, 0, &again), TESS_OK);
    assert_int_equal(again->train.steps, 4);
    tess_run_destroy(&again);
    tess_free(text);
    assert_int_equal(tess_run_numerics(run, &text, &nbytes), TESS_OK);
    assert_non_null(strstr(text, "train.steps=4\n"));
    assert_null(strstr(text, "epochs"));
    tess_free(text);
    tess_run_destroy(&run);
    assert_int_equal(parse("epochs: 2, micro_batches: 8, warmup_steps: 5",
                           (const char *const[2]){NULL}, 16, &run),
                     TESS_E_CONFIG);
    assert_non_null(strstr(tess_error_message(), "train.steps (4), found 5"));
}

static void test_run_epochs_beside_steps_are_refused_unless_an_argument_chooses(void **state)
{
    (void)state;
    static const struct {
        const char *train, *arguments[2];
        int64_t step_numel; /* 0: refused */
    } cases[] = {
        {"steps: 7, epochs: 2, micro_batches: 1", {NULL}, 0},
        {"micro_batches: 1", {"train.steps=7", "train.epochs=2"}, 0},
        {"steps: 7, micro_batches: 1", {"train.epochs=2"}, 20},
        {"epochs: 2, micro_batches: 1", {"train.steps=7"}, 7},
    };
    for (int i = 0; i < TESS_NELEM(cases); i++) {
        tess_run *run = NULL;
        const tess_status st = parse(cases[i].train, cases[i].arguments, 10, &run);
        assert_int_equal(st, cases[i].step_numel > 0 ? TESS_OK : TESS_E_CONFIG);
        if (st == TESS_OK)
            assert_int_equal(run->train.steps, cases[i].step_numel);
        else
            assert_non_null(strstr(tess_error_message(),
                                   "train.epochs: stands beside train.steps, which it is another "
                                   "way to say: remove one of both"));
        tess_run_destroy(&run);
    }
}

static void test_run_warmup_ratio_is_a_share_of_the_steps(void **state)
{
    (void)state;
    static const struct {
        const char *train, *arguments[2];
        int64_t warmup_numel; /* -1: refused */
    } cases[] = {
        {"steps: 100, warmup_ratio: 0.07", {NULL}, 7},
        {"steps: 101, warmup_ratio: 0.03", {NULL}, 4},
        {"epochs: 2, micro_batches: 1, warmup_ratio: 0.5", {NULL}, 10},
        {"steps: 5, warmup_ratio: 0", {NULL}, 0},
        {"steps: 5, warmup_ratio: 1", {NULL}, 5},
        {"steps: 50, warmup_ratio: 0.1, warmup_steps: 3", {NULL}, -1},
        {"steps: 50, warmup_ratio: 0.1", {"train.warmup_steps=3"}, 3},
        {"steps: 50, warmup_steps: 3", {"train.warmup_ratio=0.1"}, 5},
    };
    for (int i = 0; i < TESS_NELEM(cases); i++) {
        tess_run *run = NULL;
        char *text = NULL;
        size_t nbytes = 0;
        const tess_status st = parse(cases[i].train, cases[i].arguments, 10, &run);
        assert_int_equal(st, cases[i].warmup_numel >= 0 ? TESS_OK : TESS_E_CONFIG);
        if (st != TESS_OK)
            continue;
        assert_int_equal(run->train.warmup_steps, cases[i].warmup_numel);
        assert_int_equal(tess_run_yaml(run, &text, &nbytes), TESS_OK);
        assert_null(strstr(text, "warmup_ratio"));
        tess_free(text);
        tess_run_destroy(&run);
    }
}

static void test_run_epochs_of_unknown_data_have_an_open_end(void **state)
{
    (void)state;
    tess_run *run = NULL;
    assert_int_equal(parse("epochs: 3, warmup_steps: 5000", (const char *const[2]){NULL}, 0, &run),
                     TESS_OK);
    assert_true(tess_run_has_open_end(run));
    tess_run_destroy(&run);
    assert_int_equal(parse("epochs: 1000000, micro_batches: 1", (const char *const[2]){NULL},
                           INT64_C(1) << 40, &run),
                     TESS_E_CONFIG);
    assert_non_null(strstr(tess_error_message(), "expected fewer than 1000000000 steps"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_run_epochs_given_are_rounded_up_to_steps),
        cmocka_unit_test(test_run_epochs_given_are_kept_as_steps),
        cmocka_unit_test(test_run_epochs_beside_steps_are_refused_unless_an_argument_chooses),
        cmocka_unit_test(test_run_warmup_ratio_is_a_share_of_the_steps),
        cmocka_unit_test(test_run_epochs_of_unknown_data_have_an_open_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
