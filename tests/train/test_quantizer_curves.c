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
#include "train/data/vectors.h"
#include "train/metrics.h"
#include "train/session.h"

enum { STEPS = 12, N = 48, D = 6 };
enum { HEIGHT = 12, WIDTH = 8, CELL = 4, IMAGES = N * CELL * CELL / (HEIGHT * WIDTH) };

/* As the script has it; micro-batches of a third of the vectors, or of a quarter of the images. */
static const char run_text[] = "model: {family: %s}\n"
                               "data: {path: %s%s%s}\n"
                               "train: {steps: 12, %s, "
                               "learning_rate: 0.02, schedule: constant,\n"
                               "        warmup_steps: 0, clip_norm: 0.0, seed: 5, eval_every: 0}\n"
                               "quantizer: {%s, %s}\n"
                               "compute: {dtype: f32, memory_limit: 1GiB}\n"
                               "output: {dir: %s/%s, checkpoint_every: 0}\n";

static tess_comm *self;
static vector_run files;
static tess_golden *golden;
static char mask_file[400], image_folder[400], image_mask_file[400];

static void expect_ok(tess_status st)
{
    if (st != TESS_OK)
        fail_msg("%s: %s\n%s", tess_status_name(st), tess_error_message(), tess_error_trace_text());
}

static bool begins_with(const char *name, const char *start)
{
    return strncmp(name, start, strlen(start)) == 0;
}

static void train(const char *name)
{
    char text[2560], key[64];
    tess_session *session = NULL;
    snprintf(key, sizeof key, "%s.quantizer", name);
    const bool of_images = begins_with(name, "images-");
    const bool is_masked = of_images || begins_with(name, "masked-");
    const char *mask = of_images ? image_mask_file : mask_file;
    snprintf(text, sizeof text, run_text, of_images ? "vqvae" : "rqvae",
             of_images ? image_folder : files.file, is_masked ? ", mask_path: " : "",
             is_masked ? mask : "",
             of_images ? "micro_batch: 2, micro_batches: 4" : "micro_batch: 16, micro_batches: 3",
             tess_golden_text(golden, key),
             of_images ? "downsample: 2, channels: 4, residual_blocks: 1, residual_channels: 3"
                       : "encoder: [10]",
             files.dir, name);
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
 * adds what it does: 1e-5 of a loss near 1 for each. Of images sums have the terms of up to 192
 * pixels, of products of at most 64: as roundings fall, good to 2^-24 times the root of 256, 1e-6,
 * of their terms; 1e-6 x 0.02 over about 700 weights is 1.4e-5 a step, of which an entry that
 * cancels out has its part alone. No assignment differs: margins are recorded and above what
 * rounding moves a vector by.
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
    char cases[1024], *rest = cases;
    snprintf(cases, sizeof cases, "%s", tess_golden_text(golden, "cases"));
    int numel = 0;
    for (char *name = strtok_r(cases, " ", &rest); name != NULL;
         name = strtok_r(NULL, " ", &rest)) {
        check_curve(name);
        numel++;
    }
    assert_int_equal(numel, 30);
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

static void write_rows(const char *path, const float *x, int64_t numel, int64_t dim)
{
    tess_vectors_writer *writer = NULL;
    expect_ok(tess_vectors_writer_create(&files.ctx, path, numel, dim, &writer));
    expect_ok(tess_vectors_writer_append(writer, x, numel));
    expect_ok(tess_vectors_writer_finish(writer));
    tess_vectors_writer_destroy(&writer);
}

static const float *golden_rows(const char *tensor, int64_t expected_numel)
{
    int64_t numel = 0;
    const float *x = tess_golden_tensor(golden, tensor, TESS_F32, &numel);
    assert_int_equal(numel, expected_numel);
    return x;
}

/* An image a file: vectors of its lines. */
static void write_images(void)
{
    const float *x = golden_rows("data.images", IMAGES * HEIGHT * WIDTH);
    snprintf(image_folder, sizeof image_folder, "%s/images", files.dir);
    expect_ok(tess_io_mkdir(files.ctx.io, image_folder, false));
    for (int i = 0; i < IMAGES; i++) {
        char path[500];
        snprintf(path, sizeof path, "%s/%d.npy", image_folder, i);
        write_rows(path, x + i * HEIGHT * WIDTH, HEIGHT, WIDTH);
    }
}

/* The golden vectors in place of those that the support made. */
static int open_all(void **state)
{
    (void)state;
    expect_ok(tess_comm_create_self(&self));
    expect_ok(vector_run_create(self, N, D, VECTORS_ZERO, &files));
    expect_ok(tess_golden_open("tests/golden/quantizers/curves.golden", &golden));
    write_rows(files.file, golden_rows("data.vectors", N * D), N, D);
    snprintf(mask_file, sizeof mask_file, "%s/mask.npy", files.dir);
    write_rows(mask_file, golden_rows("data.mask", N), N, 1);
    snprintf(image_mask_file, sizeof image_mask_file, "%s/image-mask.npy", files.dir);
    write_rows(image_mask_file, golden_rows("data.mask", N), IMAGES, N / IMAGES);
    write_images();
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
