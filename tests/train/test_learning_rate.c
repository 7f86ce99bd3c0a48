/* The learning rate that a run says it used, step by step, is the one of its run file. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "core/memory.h"
#include "format/json.h"
#include "support/tiny_run.h"

enum { STEP_NUMEL = 9 };

static const double PEAK = 3e-3;

typedef struct setting {
    const char *schedule;
    int warmup;
    double least;
} setting;

static tess_comm *self;
static tiny_run tiny;

/* Of step `step` from 1, written from the documentation: a line to the peak at the end of the
 * warm-up, then from the peak at the step after it towards `least` of it behind the last step. */
static double wanted(const setting *s, int step)
{
    if (step <= s->warmup)
        return PEAK * step / s->warmup;
    const double x = (double)(step - 1 - s->warmup) / (STEP_NUMEL - s->warmup);
    if (strcmp(s->schedule, "constant") == 0)
        return PEAK;
    if (strcmp(s->schedule, "linear") == 0)
        return PEAK - PEAK * (1.0 - s->least) * x;
    const double c = cos(0.5 * acos(-1.0) * x);
    return PEAK * s->least + PEAK * (1.0 - s->least) * c * c;
}

/* Both sides take fewer than 16 roundings of values up to the peak, and the text gives the bits. */
static void check_line(const setting *s, int step, const char *line, size_t nbytes)
{
    tess_json *root = NULL;
    int64_t found_step = 0;
    double found = 0.0;
    assert_int_equal(tess_json_parse("metrics.jsonl", line, nbytes, &root), TESS_OK);
    assert_int_equal(tess_json_get_i64(root, "step", &found_step), TESS_OK);
    assert_int_equal(tess_json_get_f64(root, "lr", &found), TESS_OK);
    tess_json_destroy(&root);
    assert_int_equal(found_step, step);
    if (!(fabs(found - wanted(s, step)) <= 16 * 0x1p-52 * PEAK))
        fail_msg("%s, warm-up %d, least %g: step %d has lr %.17g, expected %.17g", s->schedule,
                 s->warmup, s->least, step, found, wanted(s, step));
}

static void check_run(const setting *s, const char *name)
{
    char schedule[64], warmup[64], least[64], steps[64], peak[64], path[400];
    const char *const overrides[] = {schedule,
                                     warmup,
                                     least,
                                     steps,
                                     peak,
                                     "train.micro_batch=1",
                                     "train.micro_batches=1",
                                     "train.eval_every=0",
                                     NULL};
    tiny_outcome outcome;
    char *text = NULL;
    size_t nbytes = 0;
    snprintf(schedule, sizeof schedule, "train.schedule=%s", s->schedule);
    snprintf(warmup, sizeof warmup, "train.warmup_steps=%d", s->warmup);
    snprintf(least, sizeof least, "train.min_learning_rate_ratio=%.17g", s->least);
    snprintf(steps, sizeof steps, "train.steps=%d", STEP_NUMEL);
    snprintf(peak, sizeof peak, "train.learning_rate=%.17g", PEAK);
    if (tiny_run_train(self, &tiny, name, overrides, &outcome) != TESS_OK)
        fail_msg("%s", tess_error_message());
    snprintf(path, sizeof path, "%s/%s/metrics.jsonl", tiny.dir, name);
    assert_int_equal(tess_io_read_all(tiny.ctx.io, path, 1 << 20, &text, &nbytes), TESS_OK);
    const char *line = text;
    for (int step = 1; step <= STEP_NUMEL; step++) {
        const char *end = strchr(line, '\n');
        assert_non_null(end);
        check_line(s, step, line, (size_t)(end - line));
        line = end + 1;
    }
    assert_true(line == text + nbytes);
    tess_free(text);
}

static void test_every_schedule_is_followed(void **state)
{
    (void)state;
    static const char *const schedules[] = {"constant", "linear", "cosine"};
    static const int warmups[] = {0, 1, 4, STEP_NUMEL};
    static const double leasts[] = {0.0, 0.25};
    for (int i = 0; i < 3 * 4 * 2; i++) {
        char name[16];
        const double least = i % 3 == 0 ? 0.0 : leasts[i / 12]; /* constant has no other */
        const setting s = {schedules[i % 3], warmups[i / 3 % 4], least};
        snprintf(name, sizeof name, "run%d", i);
        check_run(&s, name);
    }
}

static int setup(void **state)
{
    (void)state;
    return tess_comm_create_self(&self) == TESS_OK && tiny_run_create(self, &tiny) == TESS_OK ? 0
                                                                                              : -1;
}

static int teardown(void **state)
{
    (void)state;
    tiny_run_destroy(self, &tiny);
    tess_comm_destroy(&self);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_schedule_is_followed)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
