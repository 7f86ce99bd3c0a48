/* Runs of the quantizers against what PyTorch and the peer's quantizers make of the same weights
 * and vectors (tests/golden/make_quantizer_curves.py), step by step. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "tests/support/golden.h"
#include "tests/support/vector_run.h"
#include "train/metrics.h"
#include "train/session.h"
#include "train/vectors.h"

enum { STEPS = 12, N = 48, D = 6 };

/* As the script has it. */
static const char run_text[] = "model: {family: rqvae}\n"
                               "data: {path: %s%s%s}\n"
                               "train: {steps: 12, micro_batch: 16, micro_batches: 3, "
                               "learning_rate: 0.02, schedule: constant,\n"
                               "        warmup_steps: 0, clip_norm: 0.0, seed: 5, eval_every: 0}\n"
                               "quantizer: {%s, encoder: [10]}\n"
                               "compute: {dtype: f32, memory_limit: 1GiB}\n"
                               "output: {dir: %s/%s, checkpoint_every: 0}\n";

static tess_comm *self;
static vector_run files;
static tess_golden *golden;
static char mask_file[400];

static void expect_ok(tess_status st)
{
    if (st != TESS_OK)
        fail_msg("%s: %s\n%s", tess_status_name(st), tess_error_message(), tess_error_trace_text());
}

static void train(const char *name)
{
    char text[2048], key[64];
    tess_session *session = NULL;
    snprintf(key, sizeof key, "%s.quantizer", name);
    const bool is_masked = strncmp(name, "masked-", strlen("masked-")) == 0;
    snprintf(text, sizeof text, run_text, files.file, is_masked ? ", mask_path: " : "",
             is_masked ? mask_file : "", tess_golden_text(golden, key), files.dir, name);
    const tess_session_options options = {
        .kind = TESS_SESSION_TRAIN, .run_path = "run.yaml", .run_text = text, .needs_data = true};
    expect_ok(tess_session_open(&files.ctx, self, &options, &session));
    expect_ok(tess_session_train(session));
    tess_session_close(&session);
}

static void losses_of(const char *name, double loss[STEPS])
{
    char path[300], *text = NULL;
    size_t nbytes = 0;
    snprintf(path, sizeof path, "%s/%s/metrics.jsonl", files.dir, name);
    expect_ok(tess_io_read_all(files.ctx.io, path, 1 << 20, &text, &nbytes));
    int numel = 0;
    for (const char *p = strstr(text, "\"loss\": "); p != NULL && numel < STEPS;
         p = strstr(p + 1, "\"loss\": "))
        loss[numel++] = strtod(p + 8, NULL);
    assert_int_equal(numel, STEPS);
    tess_free(text);
}

/*
 * Both sides compute in f32: a gradient is a sum of N = 48 terms of products of at most 10, so good
 * to 60 x 2^-24 = 4e-6 of its terms. AdamW divides by the gradient's own size: an entry that
 * cancels out to that error moves the wrong way by up to the learning rate, and changes the loss by
 * its gradient times that, 4e-6 x 0.02; over about 150 weights 1.2e-5 a step, to which every step
 * adds what it does: 1e-5 of a loss near 1 for each. No assignment differs: margins are recorded
 * and above what rounding moves a vector by.
 */
static void check_curve(const char *name)
{
    char key[64];
    double loss[STEPS];
    int64_t numel = 0;
    snprintf(key, sizeof key, "%s.loss", name);
    const double *expected = tess_golden_tensor(golden, key, TESS_F64, &numel);
    assert_non_null(expected);
    assert_int_equal(numel, STEPS);
    snprintf(key, sizeof key, "%s.margin", name);
    assert_true(tess_golden_number(golden, key) > 8e-6);
    train(name);
    losses_of(name, loss);
    for (int i = 0; i < STEPS; i++)
        if (!(fabs(loss[i] - expected[i]) <= 1e-5 * (i + 1) * expected[i]))
            fail_msg("%s: loss of step %d is %.9g, expected %.9g", name, i, loss[i], expected[i]);
}

static void test_curves_are_those_of_the_peer(void **state)
{
    (void)state;
    char cases[512], *rest = cases;
    snprintf(cases, sizeof cases, "%s", tess_golden_text(golden, "cases"));
    int numel = 0;
    for (char *name = strtok_r(cases, " ", &rest); name != NULL;
         name = strtok_r(NULL, " ", &rest)) {
        check_curve(name);
        numel++;
    }
    assert_int_equal(numel, 23);
}

/* vq.md's example: exp(-(1/2 ln 1/2 + 1/4 ln 1/4 + 2/8 ln 1/8)) = 2^(7/4). */
static void test_perplexity_of_counts(void **state)
{
    (void)state;
    static const int64_t some[] = {4, 2, 1, 1}, one[] = {0, 9, 0}, none[] = {0, 0};
    int64_t used = 0;
    assert_true(fabs(tess_perplexity(some, 4, &used) - 3.363585661) < 2e-9);
    assert_int_equal(used, 4);
    assert_true(fabs(tess_perplexity(one, 3, &used) - 1.0) < 1e-9);
    assert_int_equal(used, 1);
    assert_true(tess_perplexity(none, 2, &used) == 1.0);
    assert_int_equal(used, 0);
}

/* ---- files ---- */

static void write_file(const char *path, const char *tensor, int64_t dim)
{
    int64_t numel = 0;
    tess_vectors_writer *writer = NULL;
    const float *x = tess_golden_tensor(golden, tensor, TESS_F32, &numel);
    assert_int_equal(numel, N * dim);
    expect_ok(tess_vectors_writer_create(&files.ctx, path, N, dim, &writer));
    expect_ok(tess_vectors_writer_append(writer, x, N));
    expect_ok(tess_vectors_writer_finish(writer));
    tess_vectors_writer_destroy(&writer);
}

/* The golden vectors in place of those that the support made. */
static int open_all(void **state)
{
    (void)state;
    expect_ok(tess_comm_create_self(&self));
    expect_ok(vector_run_create(self, N, D, VECTORS_ZERO, &files));
    expect_ok(tess_golden_open("tests/golden/quantizers/curves.golden", &golden));
    write_file(files.file, "data.vectors", D);
    snprintf(mask_file, sizeof mask_file, "%s/mask.npy", files.dir);
    write_file(mask_file, "data.mask", 1);
    return 0;
}

static int close_all(void **state)
{
    (void)state;
    tess_golden_close(&golden);
    vector_run_destroy(self, &files);
    tess_comm_destroy(&self);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_curves_are_those_of_the_peer),
                                       cmocka_unit_test(test_perplexity_of_counts)};
    return cmocka_run_group_tests(tests, open_all, close_all);
}
