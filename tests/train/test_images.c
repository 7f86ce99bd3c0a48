#include "train/data/images.h"

#include <inttypes.h>

#include "format/format_test.h"
#include "format/npy.h"

#define GOLDEN TESS_TEST_SOURCE_DIR "/tests/golden/images/"

enum { HEIGHT = 9, WIDTH = 11 };

static tess_ctx ctx_of(const fixture *f) { return (tess_ctx){.io = f->io}; }

static void assert_folder(const fixture *f, const char *folder, const char *values, int64_t numel,
                          int64_t channels)
{
    const tess_ctx ctx = ctx_of(f);
    const size_t image_nbytes = (size_t)channels * HEIGHT * WIDTH * sizeof(float);
    tess_images *images = NULL;
    char *expected = NULL;
    size_t nbytes = 0;
    float *x = malloc((size_t)numel * image_nbytes);
    assert_ok(tess_io_read_all(f->io, values, 1 << 20, &expected, &nbytes));
    assert_int_equal(nbytes, (size_t)numel * image_nbytes);
    assert_ok(tess_images_open(&ctx, folder, &images));
    const tess_images_info *info = tess_images_get_info(images);
    assert_int_equal(info->image_numel, numel);
    assert_int_equal(info->channel_numel, channels);
    assert_int_equal(info->height, HEIGHT);
    assert_int_equal(info->width, WIDTH);
    assert_ok(tess_images_read(images, 0, numel, x));
    for (int64_t i = 0; i < numel; i++)
        if (memcmp((char *)x + (size_t)i * image_nbytes, expected + (size_t)i * image_nbytes,
                   image_nbytes) != 0)
            fail_msg("image %s differs from what Pillow reads", tess_images_name(images, i));
    assert_ok(tess_images_read(images, numel - 1, 1, x));
    assert_memory_equal(x, expected + (size_t)(numel - 1) * image_nbytes, image_nbytes);
    assert_refused(tess_images_read(images, numel, 1, x), TESS_E_RANGE, folder);
    tess_images_close(&images);
    tess_free(expected);
    free(x);
}

/* One bit, eight, sixteen, interlaced, palette; u8 and floats of numpy. */
static void test_read_golden_folders_match_pillow(void **state)
{
    assert_folder(*state, GOLDEN "gray", GOLDEN "gray.f32", 6, 1);
    assert_folder(*state, GOLDEN "rgb", GOLDEN "rgb.f32", 4, 3);
}

static const char *copy(const fixture *f, const char *from, const char *name, size_t keep_nbytes)
{
    char *bytes = NULL;
    size_t nbytes = 0;
    assert_ok(tess_io_read_all(f->io, from, 1 << 20, &bytes, &nbytes));
    const char *path = put_file(f, name, bytes, TESS_MIN(nbytes, keep_nbytes));
    tess_free(bytes);
    return path;
}

static void assert_folder_refused(const fixture *f, tess_status status, const char *name,
                                  const char *piece)
{
    const tess_ctx ctx = ctx_of(f);
    tess_images *images = NULL;
    assert_refused(tess_images_open(&ctx, f->dir, &images), status, name, piece);
    assert_null(images);
    unlink(at(f, name));
}

static void test_open_names_the_image_that_does_not_fit(void **state)
{
    const fixture *f = *state;
    const tess_ctx ctx = ctx_of(f);
    tess_images *images = NULL;
    assert_refused(tess_images_open(&ctx, f->dir, &images), TESS_E_FORMAT, f->dir, "without .png");
    copy(f, GOLDEN "gray/b8.png", "a.png", SIZE_MAX);
    copy(f, GOLDEN "rgb/a.png", "b.png", SIZE_MAX);
    assert_folder_refused(f, TESS_E_FORMAT, "b.png",
                          "with 3 channels, expected 11 x 9 with 1 as in 'a.png'");
    copy(f, GOLDEN "refused/alpha.png", "b.png", SIZE_MAX);
    assert_folder_refused(f, TESS_E_UNSUPPORTED, "b.png", "without alpha channel");
    copy(f, GOLDEN "refused/transparent.png", "b.png", SIZE_MAX);
    assert_folder_refused(f, TESS_E_UNSUPPORTED, "b.png", "transparent");
    put_text(f, "b.jpeg", "x");
    assert_folder_refused(f, TESS_E_UNSUPPORTED, "b.jpeg", "convert it");
    put_text(f, "b.png", "no image");
    assert_folder_refused(f, TESS_E_FORMAT, "b.png", "Not a PNG file");
    copy(f, GOLDEN "gray/d.npy", "b.npy", 200);
    assert_folder_refused(f, TESS_E_FORMAT, "b.npy", "expected 227");
    assert_refused(tess_images_open(&ctx, at(f, "nowhere"), &images), TESS_E_IO, "nowhere");
}

/* Damage behind the header is found when the image is read. */
static void test_read_a_damaged_image_is_named(void **state)
{
    const fixture *f = *state;
    const tess_ctx ctx = ctx_of(f);
    tess_images *images = NULL;
    float x[HEIGHT * WIDTH];
    char *bytes = NULL;
    size_t nbytes = 0;
    copy(f, GOLDEN "gray/b8.png", "a.png", SIZE_MAX);
    copy(f, GOLDEN "gray/b8.png", "b.png", 60);
    assert_ok(tess_images_open(&ctx, f->dir, &images));
    assert_ok(tess_images_read(images, 0, 1, x));
    assert_refused(tess_images_read(images, 1, 1, x), TESS_E_FORMAT, "b.png", "cut off");
    assert_ok(tess_io_read_all(f->io, GOLDEN "gray/b8.png", 1 << 20, &bytes, &nbytes));
    bytes[70] = (char)(bytes[70] ^ 4);
    put_file(f, "b.png", bytes, nbytes);
    assert_refused(tess_images_read(images, 1, 1, x), TESS_E_FORMAT, "b.png", "PNG image");
    tess_free(bytes);
    /* Replaced by wider samples than were planned for, then by another size. */
    copy(f, GOLDEN "gray/c16.png", "b.png", SIZE_MAX);
    assert_refused(tess_images_read(images, 1, 1, x), TESS_E_FORMAT, "b.png", "wider samples");
    copy(f, GOLDEN "rgb/a.png", "b.png", SIZE_MAX);
    assert_refused(tess_images_read(images, 1, 1, x), TESS_E_FORMAT, "b.png", "3 channels");
    tess_images_close(&images);
}

static void test_read_values_outside_0_and_1_are_refused(void **state)
{
    static const float outside[] = {1.0001F, -0.001F, __builtin_nanf(""), __builtin_inff()};
    const fixture *f = *state;
    const tess_ctx ctx = ctx_of(f);
    for (int i = 0; i < TESS_NELEM(outside); i++) {
        tess_npy_header h = {.descr = "<f4", .dim_numel = 2, .dim = {2, 3}};
        char bytes[TESS_NPY_MADE_NBYTES + 24];
        float x[6] = {0, 1, 0.5F, 0.25F, outside[i], 0}, y[6];
        tess_images *images = NULL;
        tess_npy_make_header(&h, bytes);
        memcpy(bytes + h.data_offset_nbytes, x, sizeof x);
        put_file(f, "x.npy", bytes, (size_t)h.data_offset_nbytes + sizeof x);
        assert_ok(tess_images_open(&ctx, f->dir, &images));
        assert_refused(tess_images_read(images, 0, 1, y), TESS_E_FORMAT, "x.npy", "row 1, column 1",
                       "0 to 1");
        tess_images_close(&images);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        format_test(test_read_golden_folders_match_pillow),
        format_test(test_open_names_the_image_that_does_not_fit),
        format_test(test_read_a_damaged_image_is_named),
        format_test(test_read_values_outside_0_and_1_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
