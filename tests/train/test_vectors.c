#include "train/data/vectors.h"

#include <math.h>

#include "format/format_test.h"
#include "train/data/vectors_priv.h"

#define GOLDEN TESS_TEST_SOURCE_DIR "/tests/golden/vectors/"

static tess_ctx ctx_of(const fixture *f) { return (tess_ctx){.io = f->io}; }

static void assert_values(const fixture *f, const char *path, const char *expected_name,
                          const tess_vectors_info *expected)
{
    const tess_ctx ctx = ctx_of(f);
    tess_vectors *v = NULL;
    char *bytes = NULL, name[256];
    size_t nbytes = 0;
    float x[15], one[3];
    assert_ok(tess_vectors_open(&ctx, path, &v));
    const tess_vectors_info *info = tess_vectors_get_info(v);
    snprintf(name, sizeof name, GOLDEN "%s.f32", expected_name);
    assert_ok(tess_io_read_all(f->io, name, sizeof x, &bytes, &nbytes));
    assert_int_equal(info->vector_numel, expected->vector_numel);
    assert_int_equal(info->dim, 3);
    assert_int_equal(info->vector_numel * 12, nbytes);
    assert_string_equal(info->dtype, expected->dtype);
    assert_string_equal(info->format, expected->format);
    if (expected->dataset != NULL)
        assert_string_equal(info->dataset, expected->dataset);
    else
        assert_null(info->dataset);
    const int64_t events = tess_alloc_events();
    assert_ok(tess_vectors_read(v, 0, info->vector_numel, x));
    assert_memory_equal(x, bytes, nbytes);
    for (int64_t i = 0; i < info->vector_numel; i++) {
        assert_ok(tess_vectors_read(v, i, 1, one));
        assert_memory_equal(one, bytes + i * 12, 12);
    }
    assert_int_equal(tess_alloc_events(), events);
    assert_refused(tess_vectors_read(v, info->vector_numel, 1, one), TESS_E_RANGE, info->path);
    assert_refused(tess_vectors_read(v, 0, INT64_MAX, one), TESS_E_RANGE, info->path);
    tess_free(bytes);
    tess_vectors_close(&v);
    assert_null(v);
}

static void test_read_golden_files_match_their_writers(void **state)
{
    static const struct {
        const char *path, *expected;
        tess_vectors_info info;
    } cases[] = {
        {"a.bvecs", "a.bvecs", {5, .dtype = "u8", .format = "bvecs"}},
        {"f64.npy", "f64.npy", {3, .dtype = "f64", .format = "npy"}},
        {"ann.h5", "ann.h5", {5, .dtype = "f32", .format = "hdf5", .dataset = "train"}},
        {"ann.h5:train", "ann.h5", {5, .dtype = "f32", .format = "hdf5", .dataset = "train"}},
        {"ann.h5:neighbors",
         "a.ivecs",
         {2, .dtype = "i32", .format = "hdf5", .dataset = "neighbors"}},
        {"only.hdf5", "only.hdf5", {5, .dtype = "u8", .format = "hdf5", .dataset = "x"}},
        {"chunked.h5", "chunked.h5", {3, .dtype = "f64", .format = "hdf5", .dataset = "x"}},
        {"half.h5", "half.h5", {2, .dtype = "f16", .format = "hdf5", .dataset = "x"}},
    };
    for (int i = 0; i < TESS_NELEM(cases); i++) {
        char path[256];
        snprintf(path, sizeof path, GOLDEN "%s", cases[i].path);
        assert_values(*state, path, cases[i].expected, &cases[i].info);
    }
}

static void test_open_refuses_what_is_no_source(void **state)
{
    static const struct {
        const char *path;
        tess_status status;
        const char *piece, *fix;
    } cases[] = {
        {"ann.h5:none", TESS_E_FORMAT, "no dataset 'none'", "'train'"},
        {"ann.h5:no/where", TESS_E_FORMAT, "no dataset 'no/where'", "'train'"},
        {"ann.h5:", TESS_E_ARG, "dataset name of 0 bytes", "ann.h5"},
        {"only.hdf5:flat", TESS_E_FORMAT, "'flat' has 1 dimensions", "expected 2"},
        {"links.h5", TESS_E_FORMAT, "4 datasets of two dimensions at the root ('",
         "FILE.h5:DATASET"},
        {"links.h5:away", TESS_E_FORMAT, "links.h5", "H5Dopen2"},
        {"links.h5:external", TESS_E_UNSUPPORTED, "in another file", "h5repack"},
        {"links.h5:big", TESS_E_UNSUPPORTED, "'big' has elements of another type", "astype"},
        {"links.h5:wide", TESS_E_UNSUPPORTED, "'wide' has elements of another type", "astype"},
        {"links.h5:late", TESS_E_FORMAT, "'late' was never written", "write it again"},
        {"versions.txt", TESS_E_UNSUPPORTED, "versions.txt", ".fvecs"},
        {"none.h5", TESS_E_IO, "none.h5", "No such file"},
    };
    const tess_ctx ctx = ctx_of(*state);
    for (int i = 0; i < TESS_NELEM(cases); i++) {
        tess_vectors *v = NULL;
        char path[256];
        snprintf(path, sizeof path, GOLDEN "%s", cases[i].path);
        assert_refused(tess_vectors_open(&ctx, path, &v), cases[i].status, cases[i].piece,
                       cases[i].fix);
        assert_null(v);
    }
}

static void test_open_refuses_files_that_are_cut_or_foreign(void **state)
{
    const fixture *f = *state;
    const tess_ctx ctx = ctx_of(f);
    tess_vectors *v = NULL;
    char *bytes = NULL;
    size_t nbytes = 0;
    assert_ok(tess_io_read_all(f->io, GOLDEN "ann.h5", 1 << 16, &bytes, &nbytes));
    assert_refused(tess_vectors_open(&ctx, put_file(f, "cut.h5", bytes, nbytes / 2), &v),
                   TESS_E_FORMAT, "cut.h5");
    tess_free(bytes);
    assert_refused(tess_vectors_open(&ctx, put_text(f, "text.h5", "no vectors"), &v), TESS_E_FORMAT,
                   "text.h5", "no HDF5 file of vectors");
    assert_refused(tess_vectors_open(&ctx, put_text(f, "tokens.h5", "TESSERA-TOKENS 1"), &v),
                   TESS_E_FORMAT, "tokens.h5", "no HDF5 file of vectors");
    assert_null(v);
}

static void test_is_path_tells_by_suffix(void **state)
{
    (void)state;
    assert_true(tess_vectors_is_path("a.h5"));
    assert_true(tess_vectors_is_path("dir.h5/a.hdf5:group/x"));
    assert_true(tess_vectors_is_path("a.fbin"));
    assert_false(tess_vectors_is_path("a.h5x"));
    assert_false(tess_vectors_is_path("model.safetensors"));
}

/* The identity does not depend on how vectors were cut among readers, nor on the file's format, and
 * every value and place counts. */
static void test_digest_is_the_same_however_it_is_gathered(void **state)
{
    enum { NUMEL = 7, DIM = 3 };
    float x[NUMEL * DIM];
    tess_logical_hash whole = {{0}}, parts[2] = {{{0}}}, other;
    char text[2][TESS_VECTORS_DIGEST_TEXT_NBYTES];
    (void)state;
    for (int i = 0; i < NUMEL * DIM; i++)
        x[i] = (float)i / 3.0F;
    tess_vectors_digest_add(&whole, x, DIM, 0, NUMEL);
    tess_vectors_digest_add(&parts[1], x + 5 * DIM, DIM, 5, 2);
    tess_vectors_digest_add(&parts[0], x + 1 * DIM, DIM, 1, 4);
    tess_vectors_digest_add(&parts[1], x, DIM, 0, 1);
    for (int lane = 0; lane < 2; lane++)
        assert_int_equal(whole.lane[lane], parts[0].lane[lane] + parts[1].lane[lane]);
    for (int i = 0; i < NUMEL * DIM; i++) {
        const float kept = x[i];
        other = (tess_logical_hash){{0}};
        x[i] = nextafterf(kept, 100.0F);
        tess_vectors_digest_add(&other, x, DIM, 0, NUMEL);
        assert_true(other.lane[0] != whole.lane[0] && other.lane[1] != whole.lane[1]);
        x[i] = kept;
    }
    other = (tess_logical_hash){{0}};
    tess_vectors_digest_add(&other, x, DIM, 1, NUMEL);
    assert_true(other.lane[0] != whole.lane[0]);
    tess_vectors_digest_text(&whole, NUMEL, DIM, text[0]);
    tess_vectors_digest_text(&other, NUMEL, DIM, text[1]);
    assert_int_equal(strlen(text[0]), 4 + 32);
    assert_memory_equal(text[0], "7x3/", 4);
    assert_string_not_equal(text[0], text[1]);
}

static float *read_whole(const fixture *f, const char *path, int64_t numel, int64_t dim)
{
    const tess_ctx ctx = ctx_of(f);
    tess_vectors *v = NULL;
    float *x = malloc((size_t)(numel * dim) * sizeof *x);
    assert_ok(tess_vectors_open(&ctx, path, &v));
    assert_int_equal(tess_vectors_get_info(v)->vector_numel, numel);
    assert_int_equal(tess_vectors_get_info(v)->dim, dim);
    assert_ok(tess_vectors_read(v, 0, numel, x));
    tess_vectors_close(&v);
    return x;
}

/* The mean of the training vectors as the only code: its held-out error is what numpy computed from
 * the same files. Sums of 16,000 and 512,000 doubles in two orders differ by less than 512,000
 * units of 2^-53 relative, 6e-11. */
static void test_read_descriptors_have_the_error_of_numpy(void **state)
{
    enum { TRAIN = 16000, HELD_OUT = 4000, DIM = 128 };
    const fixture *f = *state;
    float *train =
        read_whole(f, TESS_TEST_SOURCE_DIR "/tests/golden/descriptors/train.bvecs", TRAIN, DIM);
    float *x = read_whole(f, TESS_TEST_SOURCE_DIR "/tests/golden/descriptors/held_out.bvecs",
                          HELD_OUT, DIM);
    double mean[DIM] = {0}, error = 0.0;
    char *text = NULL;
    size_t nbytes = 0;
    for (int64_t i = 0; i < (int64_t)TRAIN * DIM; i++)
        mean[i % DIM] += (double)train[i];
    for (int64_t i = 0; i < (int64_t)HELD_OUT * DIM; i++) {
        const double difference = (double)x[i] - mean[i % DIM] / TRAIN;
        error += difference * difference;
    }
    error /= HELD_OUT;
    assert_ok(tess_io_read_all(f->io, TESS_TEST_SOURCE_DIR "/tests/golden/descriptors/faiss.jsonl",
                               1 << 16, &text, &nbytes));
    const char *at = strstr(text, "\"error\": ");
    assert_non_null(at);
    const double expected = strtod(at + 9, NULL);
    assert_true(expected > 1e5 && fabs(error - expected) <= 6e-11 * expected);
    tess_free(text);
    free(train);
    free(x);
}

static float value_of(int64_t i) { return (float)(i % 1000003) * 0.37F - 1000.0F; }

/* What the writer wrote is what the reader reads, in any blocks; the bytes depend on values alone.
 */
static void test_write_every_format_round_trips(void **state)
{
    enum { NUMEL = 40000, DIM = 17 };
    static const char *const names[] = {"w.fvecs", "w.fbin", "w.npy", "w.h5", "w.hdf5:codes"};
    const fixture *f = *state;
    const tess_ctx ctx = ctx_of(f);
    float *x = malloc(sizeof *x * NUMEL * DIM), *y = malloc(sizeof *y * NUMEL * DIM);
    for (int64_t i = 0; i < NUMEL * DIM; i++)
        x[i] = value_of(i);
    for (int i = 0; i < TESS_NELEM(names); i++) {
        tess_vectors_writer *w = NULL;
        tess_vectors *v = NULL;
        assert_ok(tess_vectors_writer_create(&ctx, at(f, names[i]), NUMEL, DIM, &w));
        const int64_t events = tess_alloc_events();
        for (int64_t done = 0; done < NUMEL; done += TESS_MIN(NUMEL - done, 16001))
            assert_ok(tess_vectors_writer_append(w, x + done * DIM, TESS_MIN(NUMEL - done, 16001)));
        assert_int_equal(tess_alloc_events(), events);
        assert_refused(tess_vectors_writer_append(w, x, 1), TESS_E_RANGE, "1 more given");
        assert_ok(tess_vectors_writer_finish(w));
        tess_vectors_writer_destroy(&w);
        assert_ok(tess_vectors_open(&ctx, at(f, names[i]), &v));
        assert_int_equal(tess_vectors_get_info(v)->vector_numel, NUMEL);
        assert_int_equal(tess_vectors_get_info(v)->dim, DIM);
        assert_ok(tess_vectors_read(v, 0, NUMEL, y));
        assert_memory_equal(x, y, sizeof *x * NUMEL * DIM);
        tess_vectors_close(&v);
    }
    free(x);
    free(y);
}

static void test_write_refuses_and_leaves_nothing_behind(void **state)
{
    const fixture *f = *state;
    const tess_ctx ctx = ctx_of(f);
    tess_vectors_writer *w = NULL;
    const float x[4] = {0};
    char **name = NULL;
    int64_t numel = -1;
    assert_refused(tess_vectors_writer_create(&ctx, at(f, "w.bvecs"), 2, 2, &w), TESS_E_UNSUPPORTED,
                   "w.bvecs", ".fvecs");
    assert_refused(tess_vectors_writer_create(&ctx, at(f, "w.npy"), 0, 2, &w), TESS_E_ARG,
                   "0 vectors");
    assert_refused(tess_vectors_writer_create(&ctx, at(f, "w.npy"), 2, TESS_VECTOR_DIM_MAX + 1, &w),
                   TESS_E_ARG, "w.npy");
    assert_refused(tess_vectors_writer_create(&ctx, at(f, "w.fbin"), 1LL << 32, 1, &w),
                   TESS_E_RANGE, "w.fbin", ".npy");
    assert_refused(tess_vectors_writer_create(&ctx, at(f, "w.h5:a/b"), 2, 2, &w), TESS_E_ARG,
                   "a/b");
    static const char *const names[] = {"w.fvecs", "w.h5"};
    for (int i = 0; i < TESS_NELEM(names); i++) {
        assert_ok(tess_vectors_writer_create(&ctx, at(f, names[i]), 2, 2, &w));
        assert_ok(tess_vectors_writer_append(w, x, 1));
        assert_refused(tess_vectors_writer_finish(w), TESS_E_STATE, names[i], "only 1 are written");
        tess_vectors_writer_destroy(&w);
    }
    assert_ok(tess_io_list(f->io, f->dir, &name, &numel));
    assert_int_equal(numel, 0);
    tess_io_list_free(&name, numel);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        format_test(test_read_golden_files_match_their_writers),
        format_test(test_open_refuses_what_is_no_source),
        format_test(test_open_refuses_files_that_are_cut_or_foreign),
        format_test(test_is_path_tells_by_suffix),
        format_test(test_digest_is_the_same_however_it_is_gathered),
        format_test(test_read_descriptors_have_the_error_of_numpy),
        format_test(test_write_every_format_round_trips),
        format_test(test_write_refuses_and_leaves_nothing_behind),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
