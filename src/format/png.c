#include "format/png.h"

#include <inttypes.h>
#include <setjmp.h>
#include <stdio.h>
#include <string.h>

#include <png.h>

#include "format/text_priv.h"

/* A file while the library reads it. What is set after setjmp lies here, not in locals. */
typedef struct png_file {
    tess_io *io;
    const char *path;
    int fd;
    int64_t file_nbytes, at_nbytes;
    png_structp png;
    png_infop about;
    tess_png_info info;
    tess_status st; /* of a read that failed */
    char cause[128];
} png_file;

static void keep_cause(png_structp png, png_const_charp text)
{
    png_file *f = png_get_error_ptr(png);
    (void)tess_text_tame(text, f->cause, sizeof f->cause);
    png_longjmp(png, 1);
}

static void pass_over(png_structp png, png_const_charp text)
{
    (void)png;
    (void)text;
}

static void read_bytes(png_structp png, png_bytep dst, size_t nbytes)
{
    png_file *f = png_get_io_ptr(png);
    if ((int64_t)nbytes > f->file_nbytes - f->at_nbytes)
        png_error(png, "the file is cut off");
    f->st = tess_io_pread(f->io, f->path, f->fd, dst, nbytes, f->at_nbytes);
    if (f->st != TESS_OK)
        png_error(png, "read failed");
    f->at_nbytes += (int64_t)nbytes;
}

/* Header and conversions; on failure the library does not come back from here. */
static void start(png_file *f)
{
    png_set_user_limits(f->png, TESS_PNG_SIDE_MAX, TESS_PNG_SIDE_MAX);
    png_set_read_fn(f->png, f, read_bytes);
    png_read_info(f->png, f->about);
    const int color = png_get_color_type(f->png, f->about);
    if ((color & PNG_COLOR_MASK_ALPHA) != 0 ||
        png_get_valid(f->png, f->about, PNG_INFO_tRNS) != 0) {
        f->st = TESS_E_UNSUPPORTED;
        png_error(f->png, "transparent, expected gray or RGB; save it without alpha channel");
    }
    png_set_expand(f->png);
    f->info = (tess_png_info){
        .width = png_get_image_width(f->png, f->about),
        .height = png_get_image_height(f->png, f->about),
        .channel_numel = (color & PNG_COLOR_MASK_COLOR) != 0 ? 3 : 1,
        .sample_nbytes = png_get_bit_depth(f->png, f->about) == 16 ? 2 : 1,
    };
}

static bool read_header(png_file *f)
{
    if (setjmp(png_jmpbuf(f->png)) != 0)
        return false;
    start(f);
    return true;
}

static bool read_samples(png_file *f, uint8_t *samples)
{
    if (setjmp(png_jmpbuf(f->png)) != 0)
        return false;
    const size_t row_nbytes = tess_png_nbytes(&f->info) / (size_t)f->info.height;
    const int pass_numel = png_set_interlace_handling(f->png);
    png_read_update_info(f->png, f->about);
    if (png_get_rowbytes(f->png, f->about) != row_nbytes)
        png_error(f->png, "rows of another length than the header says");
    for (int pass = 0; pass < pass_numel; pass++)
        for (int64_t y = 0; y < f->info.height; y++)
            png_read_row(f->png, samples + (size_t)y * row_nbytes, NULL);
    png_read_end(f->png, NULL);
    return true;
}

static tess_status verdict(const png_file *f, bool is_read)
{
    if (is_read)
        return TESS_OK;
    if (f->st != TESS_OK && f->st != TESS_E_UNSUPPORTED)
        return f->st; /* recorded by the read */
    return TESS_FAIL(f->st == TESS_OK ? TESS_E_FORMAT : f->st, "'%s': PNG image: %s", f->path,
                     f->cause);
}

static tess_status open_file(png_file *f)
{
    TESS_TRY(tess_io_open_read(f->io, f->path, true, &f->fd, &f->file_nbytes));
    f->png = png_create_read_struct(PNG_LIBPNG_VER_STRING, f, keep_cause, pass_over);
    f->about = f->png != NULL ? png_create_info_struct(f->png) : NULL;
    TESS_CHECK(f->about != NULL, TESS_E_MEMORY, "'%s': libpng does not start", f->path);
    return verdict(f, read_header(f));
}

static void close_file(png_file *f)
{
    if (f->png != NULL)
        png_destroy_read_struct(&f->png, &f->about, NULL);
    if (f->fd >= 0)
        (void)!tess_io_close(f->io, f->path, &f->fd);
}

size_t tess_png_nbytes(const tess_png_info *info)
{
    return (size_t)(info->width * info->height * info->channel_numel * info->sample_nbytes);
}

tess_status tess_png_read_info(tess_io *io, const char *path, tess_png_info *out)
{
    png_file f = {.io = io, .path = path, .fd = -1};
    const tess_status st = open_file(&f);
    close_file(&f);
    TESS_TRY(st);
    *out = f.info;
    return TESS_OK;
}

/* [height, width, channels] samples, 16 bits most significant byte first, to [channels, height,
 * width]. */
static void take_samples(const tess_png_info *info, const uint8_t *samples, float *dst)
{
    const int64_t pixel_numel = info->width * info->height;
    for (int64_t i = 0; i < pixel_numel * info->channel_numel; i++) {
        const float sample = info->sample_nbytes == 1
                                 ? (float)samples[i] / 255.0F
                                 : (float)(samples[2 * i] << 8 | samples[2 * i + 1]) / 65535.0F;
        dst[i % info->channel_numel * pixel_numel + i / info->channel_numel] = sample;
    }
}

static tess_status read_image(png_file *f, const tess_png_info *info, uint8_t *samples)
{
    TESS_TRY(open_file(f));
    TESS_CHECK(memcmp(&f->info, info, sizeof *info) == 0, TESS_E_FORMAT,
               "'%s': PNG image of %" PRId64 " x %" PRId64 " with %" PRId64
               " channels, expected %" PRId64 " x %" PRId64 " with %" PRId64
               "; it was replaced while it was used",
               f->path, f->info.width, f->info.height, f->info.channel_numel, info->width,
               info->height, info->channel_numel);
    return verdict(f, read_samples(f, samples));
}

tess_status tess_png_read(tess_io *io, const char *path, const tess_png_info *info,
                          uint8_t *samples, float *dst)
{
    png_file f = {.io = io, .path = path, .fd = -1};
    const tess_status st = read_image(&f, info, samples);
    close_file(&f);
    TESS_TRY(st);
    take_samples(info, samples, dst);
    return TESS_OK;
}
