/* Conversion of caches: files of other programs, and every defect by name. */
#include "train/prepare/cache.h"

#include <inttypes.h>
#include <math.h>
#include <zip.h>

#include "format/format_test.h"
#include "format/npz.h"
#include "format/safetensors.h"

#define GOLDEN TESS_TEST_SOURCE_DIR "/tests/golden/caches/"

enum { CHANNELS = 16, TOKENS = 6, TEXT_DIM = 8, POOLED_DIM = 4, NUMEL_MAX = 16 * 4 * 6 };

/* As tests/golden/make_caches.py makes them. */
static float value_of(int64_t kind, int64_t row, int64_t i)
{
    return (float)((kind * 31 + row * 17 + i * 7) % 255 - 127) / 64.0F;
}

static tess_status convert_with(const fixture *f, const tess_cache_options *more, int input_numel,
                                const char *const *inputs, tess_cache_result *out)
{
    const tess_ctx ctx = {.io = f->io};
    char path[512];
    snprintf(path, sizeof path, "%s/out.h5", f->dir);
    tess_cache_options o = {.latent_dt = TESS_F32, .text_dt = TESS_F32};
    if (more != NULL)
        o = *more;
    o.inputs = inputs;
    o.input_numel = input_numel;
    o.output_path = path;
    return tess_cache_run(&ctx, &o, out);
}

static tess_status convert(const fixture *f, const char *input, tess_cache_result *out)
{
    return convert_with(f, NULL, 1, &input, out);
}

static tess_latents *open_output(const fixture *f)
{
    const tess_ctx ctx = {.io = f->io};
    tess_latents *file = NULL;
    assert_ok(tess_latents_open(&ctx, at(f, "out.h5"), &file));
    assert_ok(tess_latents_verify(file));
    return file;
}

/* ---- golden files ---- */

/* Sample `at` holds golden row `row` and a caption; `end` ends its name. */
static void check_sample(const tess_latents *file, int64_t at, int64_t row, int64_t caption,
                         const char *end, bool has_size)
{
    const tess_latents_info *info = tess_latents_get_info(file);
    const tess_latents_bucket *b = &tess_latents_buckets(file)[tess_latents_bucket_of(file, at)];
    const tess_latents_sample *s = tess_latents_sample_at(file, at);
    float latent[NUMEL_MAX], mask[6];
    char *name = NULL;
    assert_ok(tess_latents_read(file, at, latent));
    for (int64_t i = 0; i < tess_latents_numel(info, b); i++)
        assert_true(latent[i] == value_of(3, row, i));
    assert_ok(tess_latents_read_mask(file, at, mask));
    for (int64_t t = 0; t < tess_latents_token_numel(b); t++) {
        /* of 32 x 48 pixels the left half is 0, the first 8 rows of the right half 1/2 */
        const float of_masked = t % 3 == 0 ? 0.0F : (t % 3 == 1 ? 0.5F : 1.0F);
        assert_true(mask[t] == (row == 0 ? of_masked * (t < 3 ? 0.75F : 1.0F) : 1.0F));
    }
    assert_int_equal(s->caption_idx, caption);
    if (has_size)
        assert_true(s->width == 50 && s->height == 33 && s->left == 1 && s->top == 2 &&
                    s->right == 49 && s->bottom == 31);
    assert_ok(tess_latents_name(file, at, &name));
    assert_true(strlen(name) >= strlen(end));
    assert_string_equal(name + strlen(name) - strlen(end), end);
    tess_free(name);
}

static void check_captions(const tess_latents *file)
{
    static const char *const captions[] = {"", "a cat, \xc3\xa9"};
    for (int64_t c = 0; c < 2; c++) {
        float text[TOKENS * TEXT_DIM], pooled[POOLED_DIM];
        char *caption = NULL;
        assert_ok(tess_latents_read_text(file, c, text, pooled));
        for (int i = 0; i < TOKENS * TEXT_DIM; i++)
            assert_true(text[i] == value_of(1, c, i));
        for (int i = 0; i < POOLED_DIM; i++)
            assert_true(pooled[i] == value_of(2, c, i));
        assert_ok(tess_latents_caption(file, c, &caption));
        assert_string_equal(caption, captions[c]);
        tess_free(caption);
    }
}

static void test_files_of_numpy_are_converted(void **state)
{
    const fixture *f = *state;
    tess_cache_result r;
    assert_ok(convert(f, GOLDEN "kohya", &r));
    assert_int_equal(r.flipped_numel, 1);
    tess_latents *file = open_output(f);
    const tess_latents_info *info = tess_latents_get_info(file);
    assert_true(info->has_empty && info->has_masks && !info->is_text_masked);
    assert_int_equal(info->sample_numel, 4);
    assert_int_equal(info->caption_numel, 2); /* a and b have the same text */
    assert_string_equal(info->origin.tool, "sd-scripts");
    check_sample(file, 0, 1, 1, "/sub/a_2x4", true);
    check_sample(file, 1, 2, 1, "/b_4x4", true);
    check_sample(file, 2, 3, 0, "/c", true);
    check_sample(file, 3, 0, 1, "/sub/a_4x6", true);
    check_captions(file);
    tess_latents_close(&file);
}

static void test_safetensors_are_converted(void **state)
{
    const fixture *f = *state;
    tess_cache_result r;
    assert_ok(convert(f, GOLDEN "tensors/all.safetensors", &r));
    tess_latents *file = open_output(f);
    const tess_latents_info *info = tess_latents_get_info(file);
    assert_true(info->has_empty && info->has_masks);
    assert_int_equal(info->caption_numel, 2);
    assert_string_equal(info->origin.posterior, "mean");
    check_sample(file, 0, 1, 1, "a.small", true);
    check_sample(file, 1, 2, 1, "b", true);
    check_sample(file, 2, 0, 1, "a", true);
    check_sample(file, 3, 3, 0, "c", true);
    check_captions(file);
    tess_latents_close(&file);
}

static void test_conversion_is_the_same_twice(void **state)
{
    const fixture *f = *state;
    char *bytes[2] = {NULL, NULL};
    size_t nbytes[2] = {0, 0};
    tess_cache_result r;
    for (int i = 0; i < 2; i++) {
        assert_ok(convert(f, GOLDEN "kohya", &r));
        assert_ok(tess_io_read_all(f->io, at(f, "out.h5"), 1 << 20, &bytes[i], &nbytes[i]));
    }
    assert_int_equal(nbytes[0], nbytes[1]);
    assert_memory_equal(bytes[0], bytes[1], nbytes[0]);
    tess_free(bytes[0]);
    tess_free(bytes[1]);
}

static void test_options_choose_dtypes_and_length(void **state)
{
    const fixture *f = *state;
    const char *input = GOLDEN "kohya";
    const tess_cache_options narrow = {
        .latent_dt = TESS_BF16, .text_dt = TESS_BF16, .text_numel = TOKENS};
    const tess_cache_options other = {
        .latent_dt = TESS_F32, .text_dt = TESS_F32, .text_numel = 512};
    tess_cache_result r;
    assert_ok(convert_with(f, &narrow, 1, &input, &r));
    assert_int_equal(r.info.latent_dt, TESS_BF16);
    assert_int_equal(r.info.text_dt, TESS_BF16);
    assert_refused(convert_with(f, &other, 1, &input, &r), TESS_E_FORMAT, "texts of 6 tokens",
                   "--text-length is 512");
}

static void test_tools_are_not_mixed(void **state)
{
    const fixture *f = *state;
    const char *const inputs[] = {GOLDEN "kohya", GOLDEN "tensors"};
    tess_cache_result r;
    assert_refused(convert_with(f, NULL, 2, inputs, &r), TESS_E_CONFIG, "all.safetensors",
                   "cache of safetensors", "one of sd-scripts");
}

/* ---- archives made here ---- */

typedef struct array {
    const char *name;
    int dim_numel;
    int64_t dim[3];
    int64_t kind, row;
    float bad; /* instead of element 3; 0: none */
} array;

static void add_array(zip_t *zip, const array *a)
{
    tess_npy_header h = {.descr = "<f4", .dim_numel = a->dim_numel};
    char header[TESS_NPY_MADE_NBYTES], name[64];
    int64_t numel = 1;
    for (int i = 0; i < a->dim_numel; i++)
        numel *= h.dim[i] = a->dim[i];
    tess_npy_make_header(&h, header);
    const size_t nbytes = (size_t)h.data_offset_nbytes + (size_t)numel * sizeof(float);
    char *bytes = malloc(nbytes);
    memcpy(bytes, header, (size_t)h.data_offset_nbytes);
    for (int64_t i = 0; i < numel; i++) {
        float x = a->kind == 0 ? 0.0F : value_of(a->kind, a->row, i);
        if (i == 3 && (a->bad != 0.0F || isnan(a->bad)))
            x = a->bad;
        memcpy(bytes + h.data_offset_nbytes + i * (int64_t)sizeof x, &x, sizeof x);
    }
    snprintf(name, sizeof name, "%s.npy", a->name);
    zip_source_t *source = zip_source_buffer(zip, bytes, nbytes, 1);
    assert_true(zip_file_add(zip, name, source, ZIP_FL_OVERWRITE) >= 0);
}

static const char *put_npz(const fixture *f, const char *name, const array *arrays, int numel)
{
    const char *path = at(f, name);
    int error = 0;
    zip_t *zip = zip_open(path, ZIP_CREATE | ZIP_TRUNCATE, &error);
    assert_non_null(zip);
    for (int i = 0; i < numel; i++)
        add_array(zip, &arrays[i]);
    assert_int_equal(zip_close(zip), 0);
    return path;
}

static void put_te(const fixture *f, const char *name, int64_t tokens, int64_t row, float bad)
{
    const array arrays[] = {{"t5_out", 2, {tokens, TEXT_DIM}, 1, row, bad},
                            {"l_pooled", 1, {POOLED_DIM}, 2, row, 0},
                            {"t5_attn_mask", 1, {tokens}, 0, 0, 0},
                            {"apply_t5_attn_mask", 1, {1}, 0, 0, 0}};
    put_npz(f, name, arrays, 4);
}

static void put_good(const fixture *f, const char *latents, const char *text, int64_t row)
{
    const array a = {"latents_4x6", 3, {CHANNELS, 4, 6}, 3, row, 0};
    put_npz(f, latents, &a, 1);
    put_te(f, text, TOKENS, row, 0);
}

static void refuse(const fixture *f, tess_status status, const char *file, const char *message)
{
    tess_cache_result r;
    assert_refused(convert(f, f->dir, &r), status, file, message);
    tess_io_kind kind = TESS_IO_FILE;
    int64_t nbytes = 0;
    assert_ok(tess_io_stat(f->io, at(f, "out.h5"), &kind, &nbytes));
    assert_int_equal(kind, TESS_IO_MISSING);
}

static void refuse_latents(const fixture *f, const array *a, const char *message)
{
    put_npz(f, "x_flux.npz", a, 1);
    refuse(f, TESS_E_FORMAT, "x_flux.npz", message);
}

static void test_bad_latents_are_named(void **state)
{
    const fixture *f = *state;
    put_te(f, "x_flux_te.npz", TOKENS, 1, 0);
    refuse_latents(f, &(array){"latents_3x6", 3, {CHANNELS, 3, 6}, 3, 0, 0},
                   "is [16, 3, 6], expected [16, h, w] with even");
    refuse_latents(f, &(array){"latents_4x6", 3, {CHANNELS, 6, 4}, 3, 0, 0},
                   "'latents_4x6' is 6 x 4");
    refuse_latents(f, &(array){"latents_4x6", 2, {CHANNELS, 24}, 3, 0, 0},
                   "has 2 dimensions, expected 3");
    refuse_latents(f, &(array){"latents_4x6", 3, {CHANNELS, 4, 6}, 3, 0, NAN},
                   "latents_4x6': element 3 is nan");
    refuse_latents(f, &(array){"latents_4x6", 3, {CHANNELS, 4, 6}, 3, 0, INFINITY},
                   "latents_4x6': element 3 is inf");
    refuse_latents(f, &(array){"other", 3, {CHANNELS, 4, 6}, 3, 0, 0},
                   "has no array 'latents_<h>x<w>'");
    refuse_latents(f, &(array){"latents_4x6", 3, {CHANNELS, 4, 6}, 3, 0, 1e6F},
                   "standard deviation of");
    const array masked[] = {{"latents_4x6", 3, {CHANNELS, 4, 6}, 3, 0, 0},
                            {"alpha_mask_4x6", 2, {5, 6}, 0, 0, 0}};
    put_npz(f, "x_flux.npz", masked, 2);
    refuse(f, TESS_E_FORMAT, "x_flux.npz", "a mask of 5 x 6, expected a whole multiple of 2 x 3");
    const array outside[] = {{"latents_4x6", 3, {CHANNELS, 4, 6}, 3, 0, 0},
                             {"alpha_mask_4x6", 2, {4, 6}, 0, 0, 1.5F}};
    put_npz(f, "x_flux.npz", outside, 2);
    refuse(f, TESS_E_FORMAT, "x_flux.npz", "element 3 of the mask is 1.5");
}

static void test_bad_texts_are_named(void **state)
{
    const fixture *f = *state;
    const array a = {"latents_4x6", 3, {CHANNELS, 4, 6}, 3, 0, 0};
    put_npz(f, "x_flux.npz", &a, 1);
    refuse(f, TESS_E_FORMAT, "x_flux.npz", "x_flux_te.npz'; cache them with");
    put_npz(f, "x_flux_te.npz", &a, 1);
    refuse(f, TESS_E_FORMAT, "x_flux_te.npz", "has no array 'apply_t5_attn_mask'");
    put_te(f, "x_flux_te.npz", TOKENS, 0, NAN);
    refuse(f, TESS_E_FORMAT, "x_flux_te.npz", "t5_out': element 3 is nan");
    put_te(f, "x_flux_te.npz", TOKENS, 0, 0);
    put_npz(f, "y_flux.npz", &a, 1);
    put_te(f, "y_flux_te.npz", TOKENS + 1, 0, 0);
    refuse(f, TESS_E_FORMAT, "y_flux_te.npz", "has texts of 7 x 8 and 4");
}

static void test_damaged_archives_are_named(void **state)
{
    const fixture *f = *state;
    char *bytes = NULL;
    size_t nbytes = 0;
    put_good(f, "x_flux.npz", "x_flux_te.npz", 1);
    assert_ok(tess_io_read_all(f->io, at(f, "x_flux.npz"), 1 << 20, &bytes, &nbytes));
    for (size_t keep = 0; keep < nbytes; keep += 97) {
        put_file(f, "x_flux.npz", bytes, keep);
        refuse(f, TESS_E_FORMAT, "x_flux.npz", "make it again");
    }
    int found = 0;
    for (size_t i = 0; i < nbytes; i += 53) { /* an accident in the middle: CRC or structure */
        tess_cache_result r;
        bytes[i] = (char)(bytes[i] ^ 0x10);
        put_file(f, "x_flux.npz", bytes, nbytes);
        tess_error_clear();
        found += convert(f, f->dir, &r) != TESS_OK;
        bytes[i] = (char)(bytes[i] ^ 0x10);
        remove(at(f, "out.h5"));
    }
    /* all but what no reader looks at, such as times in headers */
    assert_true(found >= (int)(nbytes / 53) * 9 / 10);
    tess_free(bytes);
}

static void test_a_sample_twice_is_named(void **state)
{
    const fixture *f = *state;
    const char *const inputs[] = {at(f, "x_flux.npz"), at(f, "x_flux.npz")};
    tess_cache_result r;
    put_good(f, "x_flux.npz", "x_flux_te.npz", 1);
    assert_refused(convert_with(f, NULL, 2, inputs, &r), TESS_E_FORMAT, "x_flux.npz", "4 x 6 is in",
                   "leave one out");
}

static void test_inputs_that_are_none_are_named(void **state)
{
    const fixture *f = *state;
    tess_cache_result r;
    refuse(f, TESS_E_CONFIG, f->dir, "holds no latents");
    refuse(f, TESS_E_CONFIG, "make_flux_cache.py", "docs/data.md");
    assert_refused(convert(f, at(f, "missing"), &r), TESS_E_CONFIG, "missing' is missing");
    assert_refused(convert(f, put_file(f, "x.pt", "x", 1), &r), TESS_E_CONFIG, "x.pt' is no cache");
}

static void test_the_empty_caption_can_be_given(void **state)
{
    const fixture *f = *state;
    const char *input = f->dir;
    char path[512];
    tess_cache_result r;
    float text[TOKENS * TEXT_DIM], pooled[POOLED_DIM];
    put_good(f, "x_flux.npz", "x_flux_te.npz", 1);
    assert_ok(convert(f, input, &r));
    assert_false(r.info.has_empty);
    put_te(f, "nothing_flux_te.npz", TOKENS, 5, 0);
    snprintf(path, sizeof path, "%s", at(f, "nothing_flux_te.npz"));
    const tess_cache_options o = {.latent_dt = TESS_F32, .text_dt = TESS_F32, .empty_path = path};
    assert_ok(convert_with(f, &o, 1, &input, &r));
    assert_true(r.info.has_empty);
    tess_latents *file = open_output(f);
    assert_ok(tess_latents_read_text(file, 0, text, pooled));
    assert_true(text[0] == value_of(1, 5, 0) && pooled[1] == value_of(2, 5, 1));
    assert_int_equal(tess_latents_sample_at(file, 0)->caption_idx, 1);
    tess_latents_close(&file);
}

/* ---- safetensors made here ---- */

typedef struct tensors {
    int64_t dim[3];
    const char *space, *text;
    float scale; /* of the latent */
    bool has_pooled;
} tensors;

static void put_set(const fixture *f, const tensors *t)
{
    const tess_st_tensor made[] = {
        {.name = "s.latent",
         .dtype = TESS_ST_F32,
         .dim_numel = 3,
         .dim = {t->dim[0], t->dim[1], t->dim[2]}},
        {.name = "s.t5", .dtype = TESS_ST_F32, .dim_numel = 2, .dim = {TOKENS, TEXT_DIM}},
        {.name = "s.pooled", .dtype = TESS_ST_F32, .dim_numel = 1, .dim = {POOLED_DIM}}};
    const tess_st_pair pairs[] = {{"space", t->space}, {"s.text", t->text}};
    const int64_t numel[] = {t->dim[0] * t->dim[1] * t->dim[2], TOKENS * TEXT_DIM, POOLED_DIM};
    tess_safetensors_writer *w = NULL;
    assert_ok(tess_safetensors_writer_create(f->io, at(f, "s.safetensors"), made,
                                             t->has_pooled ? 3 : 2, pairs, t->text != NULL ? 2 : 1,
                                             &w));
    for (int i = 0; i < (t->has_pooled ? 3 : 2); i++)
        for (int64_t k = 0; k < numel[i]; k++) {
            const float x = value_of(3 - i, 1, k) * (i == 0 ? t->scale : 1.0F);
            assert_ok(tess_safetensors_writer_append(w, i, &x, sizeof x));
        }
    assert_ok(tess_safetensors_writer_finish(w));
    tess_safetensors_writer_destroy(&w);
}

static void test_bad_safetensors_are_named(void **state)
{
    const fixture *f = *state;
    const tensors good = {{CHANNELS, 4, 6}, "model", NULL, 1.0F, true};
    tensors bad = good;
    tess_cache_result r;
    put_set(f, &good);
    assert_ok(convert(f, f->dir, &r));
    remove(at(f, "out.h5"));
    bad.space = "pixels";
    put_set(f, &bad);
    refuse(f, TESS_E_FORMAT, "s.safetensors", "'space' is 'pixels', expected 'model'");
    bad = good;
    bad.dim[2] = 5;
    put_set(f, &bad);
    refuse(f, TESS_E_FORMAT, "s.safetensors", "is [16, 4, 5]");
    bad = good;
    bad.text = "nobody";
    put_set(f, &bad);
    refuse(f, TESS_E_FORMAT, "s.safetensors",
           "sample 's' has no text: expected tensors 'nobody.t5'");
    bad = good;
    bad.has_pooled = false;
    put_set(f, &bad);
    refuse(f, TESS_E_FORMAT, "s.safetensors", "has 's.t5' and no 's.pooled'");
    bad = good;
    bad.scale = 2.8F;
    put_set(f, &bad);
    refuse(f, TESS_E_FORMAT, "s.safetensors", "set metadata 'space' to 'raw'");
}

/* A file of ai-toolkit has one tensor without a name in front, and no metadata of ours. */
static void test_safetensors_of_other_tools_are_told(void **state)
{
    const fixture *f = *state;
    const tess_st_tensor latent = {
        .name = "latent", .dtype = TESS_ST_F32, .dim_numel = 1, .dim = {1}};
    const float x = 1.0F;
    tess_safetensors_writer *w = NULL;
    assert_ok(
        tess_safetensors_writer_create(f->io, at(f, "a.safetensors"), &latent, 1, NULL, 0, &w));
    assert_ok(tess_safetensors_writer_append(w, 0, &x, sizeof x));
    assert_ok(tess_safetensors_writer_finish(w));
    tess_safetensors_writer_destroy(&w);
    refuse(f, TESS_E_FORMAT, "a.safetensors", "convert caches of SimpleTuner and ai-toolkit");
}

static void test_raw_latents_are_shifted_and_scaled(void **state)
{
    const fixture *f = *state;
    const tensors raw = {{CHANNELS, 4, 6}, "raw", NULL, 2.8F, true};
    tess_cache_result r;
    float latent[NUMEL_MAX];
    put_set(f, &raw);
    assert_ok(convert(f, f->dir, &r));
    tess_latents *file = open_output(f);
    assert_ok(tess_latents_read(file, 0, latent));
    for (int64_t i = 0; i < NUMEL_MAX; i++)
        assert_true(latent[i] == (float)(((double)(value_of(3, 1, i) * 2.8F) - 0.1159) * 0.3611));
    tess_latents_close(&file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        format_test(test_files_of_numpy_are_converted),
        format_test(test_safetensors_are_converted),
        format_test(test_conversion_is_the_same_twice),
        format_test(test_options_choose_dtypes_and_length),
        format_test(test_tools_are_not_mixed),
        format_test(test_bad_latents_are_named),
        format_test(test_bad_texts_are_named),
        format_test(test_damaged_archives_are_named),
        format_test(test_a_sample_twice_is_named),
        format_test(test_inputs_that_are_none_are_named),
        format_test(test_the_empty_caption_can_be_given),
        format_test(test_bad_safetensors_are_named),
        format_test(test_safetensors_of_other_tools_are_told),
        format_test(test_raw_latents_are_shifted_and_scaled),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
