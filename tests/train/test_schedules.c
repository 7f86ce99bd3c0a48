/* Learning rates against transformers' get_*_schedule (tests/golden/make_optimizers.py). Theirs
 * warms up from 0, ours reaches the peak a step earlier: afterwards both are equal step by step. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "core/memory.h"
#include "support/golden.h"
#include "train/learning_rate.h"

static const char minimal[] = "model: {path: MODEL}\n"
                              "data: {path: TRAIN}\n"
                              "output: {dir: OUT}\n"
                              "train: {learning_rate: 1.0, steps: 40, warmup_steps: 5}\n";

typedef struct schedule {
    const char *name, *keys[4];
} schedule;

static const schedule schedules[] = {
    {"constant", {"train.schedule=constant"}},
    {"linear", {"train.schedule=linear"}},
    {"cosine", {"train.schedule=cosine"}},
    {"cosine-restarts", {"train.schedule=cosine", "train.cycles=3"}},
    {"cosine-least", {"train.schedule=cosine", "train.min_learning_rate_ratio=0.25"}},
    {"polynomial",
     {"train.schedule=polynomial", "train.power=2.5", "train.min_learning_rate_ratio=0.25"}},
    {"wsd-cosine",
     {"train.schedule=wsd", "train.decay_steps=8", "train.min_learning_rate_ratio=0.25"}},
    {"wsd-linear", {"train.schedule=wsd", "train.decay_steps=8", "train.decay_shape=linear"}},
    {"wsd-1-sqrt",
     {"train.schedule=wsd", "train.decay_steps=8", "train.decay_shape=1-sqrt",
      "train.min_learning_rate_ratio=0.25"}},
};

static tess_run *parse(const char *const *keys, int numel)
{
    tess_run_override overrides[6];
    tess_run *run = NULL;
    for (int i = 0; i < numel; i++)
        overrides[i] = (tess_run_override){keys[i], i + 1};
    if (tess_run_parse(minimal, sizeof minimal - 1, "run.yaml", overrides, numel, &run) != TESS_OK)
        fail_msg("%s", tess_error_message());
    return run;
}

/* Both sides take fewer than 16 roundings of values up to the peak, which is 1. */
static void check(const schedule *s, const double *want, int64_t steps, int64_t warmup)
{
    int numel = 0;
    while (numel < 4 && s->keys[numel] != NULL)
        numel++;
    tess_run *run = parse(s->keys, numel);
    const bool begins_at_zero = want[0] == 0.0; /* theirs may begin at the least rate */
    for (int64_t step = begins_at_zero ? 0 : warmup; step < steps; step++) {
        const int64_t theirs = step < warmup ? step + 1 : step;
        const double found = tess_learning_rate(run, step);
        if (!(fabs(found - want[theirs]) <= 16 * 0x1p-52))
            fail_msg("%s: step %d has %.17g, expected %.17g", s->name, (int)step, found,
                     want[theirs]);
    }
    tess_run_destroy(&run);
}

static void test_schedules_are_those_of_transformers(void **state)
{
    (void)state;
    tess_golden *golden = NULL;
    assert_int_equal(tess_golden_open("tests/golden/optimizers/schedules.golden", &golden),
                     TESS_OK);
    const int64_t steps = (int64_t)tess_golden_number(golden, "steps");
    const int64_t warmup = (int64_t)tess_golden_number(golden, "warmup");
    int seen_numel = 0;
    while (tess_golden_tensor_name(golden, seen_numel) != NULL)
        seen_numel++;
    assert_int_equal(seen_numel, TESS_NELEM(schedules));
    for (int i = 0; i < TESS_NELEM(schedules); i++) {
        int64_t numel = 0;
        const double *want = tess_golden_tensor(golden, schedules[i].name, TESS_F64, &numel);
        assert_non_null(want);
        assert_int_equal(numel, steps);
        check(&schedules[i], want, steps, warmup);
    }
    tess_golden_close(&golden);
}

/* Every cycle of a linear or polynomial schedule is the first one again. */
static void test_cycles_repeat(void **state)
{
    (void)state;
    static const char *const shapes[] = {"train.schedule=linear", "train.schedule=polynomial"};
    for (int i = 0; i < 2; i++) {
        const char *keys[] = {shapes[i], "train.cycles=5"};
        tess_run *run = parse(keys, 2);
        for (int64_t step = 5; step < 40; step++) { /* 35 steps: 7 a cycle */
            const double want = 1.0 - (double)((step - 5) % 7) / 7.0;
            assert_true(fabs(tess_learning_rate(run, step) - want) <= 4 * 0x1p-52);
        }
        tess_run_destroy(&run);
    }
}

static void test_keys_that_do_not_fit_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *key, *message;
    } cases[] = {
        {"train.power=2", "train.power: has no meaning here"},
        {"train.decay_steps=2", "train.decay_steps: has no meaning here"},
        {"train.cycles=36",
         "train.cycles: expected at most a cycle per step after the warm-up (35)"},
        {"train.eval_weights=ema", "train.eval_weights: ema needs train.ema_decay above 0"},
        {"output.export_weights=ema", "output.export_weights: ema needs train.ema_decay above 0"},
    };
    for (int i = 0; i < TESS_NELEM(cases); i++) {
        const tess_run_override override = {cases[i].key, 1};
        tess_run *run = NULL;
        tess_error_clear();
        assert_int_equal(
            tess_run_parse(minimal, sizeof minimal - 1, "run.yaml", &override, 1, &run),
            TESS_E_CONFIG);
        if (strstr(tess_error_message(), cases[i].message) == NULL)
            fail_msg("message '%s' lacks '%s'", tess_error_message(), cases[i].message);
    }
    tess_error_clear();
}

/* An optimizer that averages wants a constant rate, and gets it where none is given. */
static void test_schedule_free_is_constant(void **state)
{
    (void)state;
    const char *keys[] = {"train.optimizer=adamw-schedule-free"};
    tess_run *run = parse(keys, 1);
    assert_int_equal(run->train.schedule, TESS_RUN_SCHEDULE_CONSTANT);
    tess_run_destroy(&run);
    const tess_run_override both[] = {{keys[0], 1}, {"train.schedule=cosine", 2}};
    assert_int_equal(tess_run_parse(minimal, sizeof minimal - 1, "run.yaml", both, 2, &run),
                     TESS_E_CONFIG);
    assert_non_null(strstr(tess_error_message(), "argument 2: train.schedule: "));
    tess_error_clear();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_schedules_are_those_of_transformers),
        cmocka_unit_test(test_cycles_repeat),
        cmocka_unit_test(test_keys_that_do_not_fit_are_refused),
        cmocka_unit_test(test_schedule_free_is_constant),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
