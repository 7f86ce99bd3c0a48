#include "train/data/images.h"

#include <inttypes.h>
#include <string.h>
#include <strings.h>

#include "core/arith.h"
#include "core/memory.h"
#include "format/npy.h"
#include "format/png.h"
#include "format/vector_file.h"

/* Header of one image, whichever kind. */
typedef struct image_header {
    bool is_png;
    tess_png_info png; /* extents of both kinds; sample_nbytes of PNG only */
    tess_vector_elem elem;
    int64_t offset_nbytes;
} image_header;

struct tess_images {
    tess_ctx ctx;
    char **name; /* [name_numel] everything in the folder; images come first */
    int64_t name_numel;
    char *folder;
    char *path; /* room for the path of any of them */
    tess_images_info info;
    uint8_t *samples; /* [samples_nbytes] of one image, as wide as they were at open */
    int64_t samples_nbytes;
    float *values; /* [H, W, C] of one .npy */
    char *header;  /* [TESS_NPY_HEADER_MAX_NBYTES] of one .npy */
};

static bool ends_in(const char *name, const char *tail)
{
    const size_t name_nbytes = strlen(name), tail_nbytes = strlen(tail);
    return name_nbytes > tail_nbytes && strcasecmp(name + name_nbytes - tail_nbytes, tail) == 0;
}

static bool is_image(const char *name) { return ends_in(name, ".png") || ends_in(name, ".npy"); }

static const char *path_of(tess_images *images, int64_t idx)
{
    char *at = stpcpy(images->path, images->folder);
    *at++ = '/';
    (void)stpcpy(at, images->name[idx]);
    return images->path;
}

const char *tess_images_name(const tess_images *images, int64_t idx) { return images->name[idx]; }

const tess_images_info *tess_images_get_info(const tess_images *images) { return &images->info; }

/* ---- names ---- */

/* Images to the front, in their order. */
static tess_status sort_names(tess_images *images)
{
    static const char *const others[] = {".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"};
    size_t longest = 0;
    for (int64_t i = 0; i < images->name_numel; i++) {
        char *name = images->name[i];
        for (int k = 0; k < TESS_NELEM(others); k++)
            TESS_CHECK(!ends_in(name, others[k]), TESS_E_UNSUPPORTED,
                       "'%s/%s': images are read as .png or .npy; convert it", images->folder,
                       name);
        if (!is_image(name))
            continue;
        memmove(images->name + images->info.image_numel + 1,
                images->name + images->info.image_numel,
                (size_t)(i - images->info.image_numel) * sizeof *images->name);
        images->name[images->info.image_numel++] = name;
        longest = TESS_MAX(longest, strlen(name));
    }
    TESS_CHECK(images->info.image_numel > 0, TESS_E_FORMAT,
               "'%s': a folder without .png or .npy images", images->folder);
    void *path = NULL;
    TESS_TRY(tess_alloc(strlen(images->folder) + 1 + longest + 1, &path));
    images->path = path;
    return TESS_OK;
}

/* ---- headers ---- */

static tess_status take_npy(const char *path, int64_t file_nbytes, const tess_npy_header *npy,
                            image_header *h)
{
    static const struct {
        const char *descr;
        tess_vector_elem elem;
    } types[] = {{"|u1", TESS_VECTOR_U8},
                 {"<f2", TESS_VECTOR_F16},
                 {"<f4", TESS_VECTOR_F32},
                 {"<f8", TESS_VECTOR_F64}};
    int i = 0;
    while (i < TESS_NELEM(types) && strcmp(types[i].descr, npy->descr) != 0)
        i++;
    TESS_CHECK(i < TESS_NELEM(types), TESS_E_UNSUPPORTED,
               "'%s': image of type %s, expected |u1, <f2, <f4 or <f8", path, npy->descr);
    const int64_t channels = npy->dim_numel == 3 ? npy->dim[2] : 1;
    TESS_CHECK((npy->dim_numel == 2 || npy->dim_numel == 3) && (channels == 1 || channels == 3),
               TESS_E_FORMAT,
               "'%s': image of %d dimensions, expected [H, W], [H, W, 1] or "
               "[H, W, 3]",
               path, npy->dim_numel);
    TESS_CHECK(npy->dim[0] >= 1 && npy->dim[1] >= 1 && npy->dim[0] <= TESS_PNG_SIDE_MAX &&
                   npy->dim[1] <= TESS_PNG_SIDE_MAX,
               TESS_E_FORMAT, "'%s': image of %" PRId64 " x %" PRId64 ", expected sides of 1 to %d",
               path, npy->dim[1], npy->dim[0], TESS_PNG_SIDE_MAX);
    h->elem = types[i].elem;
    h->offset_nbytes = npy->data_offset_nbytes;
    h->png = (tess_png_info){npy->dim[1], npy->dim[0], channels, 0};
    const int64_t nbytes =
        npy->dim[0] * npy->dim[1] * channels * (int64_t)tess_vector_elem_nbytes(h->elem);
    TESS_CHECK(file_nbytes == h->offset_nbytes + nbytes, TESS_E_FORMAT,
               "'%s': %" PRId64 " bytes, expected %" PRId64 "; copy it again", path, file_nbytes,
               h->offset_nbytes + nbytes);
    return TESS_OK;
}

/* A .npy that stays open for the samples when it is sound. */
static tess_status open_npy(const tess_images *images, const char *path, image_header *h, int *fd)
{
    tess_io *io = images->ctx.io;
    tess_npy_header npy;
    int64_t file_nbytes = 0;
    TESS_TRY(tess_io_open_read(io, path, true, fd, &file_nbytes));
    tess_status st = tess_npy_read_header_in(io, path, *fd, file_nbytes, images->header, &npy);
    if (st == TESS_OK)
        st = take_npy(path, file_nbytes, &npy, h);
    if (st != TESS_OK)
        (void)!tess_io_close(io, path, fd);
    return st;
}

static tess_status read_header(tess_images *images, int64_t idx, image_header *h)
{
    const char *path = path_of(images, idx);
    int fd = -1;
    *h = (image_header){.is_png = ends_in(images->name[idx], ".png")};
    if (h->is_png)
        return tess_png_read_info(images->ctx.io, path, &h->png);
    TESS_TRY(open_npy(images, path, h, &fd));
    return tess_io_close(images->ctx.io, path, &fd);
}

static tess_status check_size(tess_images *images, int64_t idx, const image_header *h)
{
    const tess_images_info *info = &images->info;
    TESS_CHECK(h->png.width == info->width && h->png.height == info->height &&
                   h->png.channel_numel == info->channel_numel,
               TESS_E_FORMAT,
               "'%s': image of %" PRId64 " x %" PRId64 " with %" PRId64
               " channels, expected %" PRId64 " x %" PRId64 " with %" PRId64
               " as in '%s'; resize or convert it",
               path_of(images, idx), h->png.width, h->png.height, h->png.channel_numel, info->width,
               info->height, info->channel_numel, images->name[0]);
    return TESS_OK;
}

/* ---- open and close ---- */

static int64_t samples_nbytes_of(const image_header *h)
{
    return h->png.width * h->png.height * h->png.channel_numel *
           (h->is_png ? h->png.sample_nbytes : (int64_t)tess_vector_elem_nbytes(h->elem));
}

static tess_status read_headers(tess_images *images)
{
    image_header h;
    int64_t value_numel = 0;
    void *room = NULL;
    for (int64_t i = 0; i < images->info.image_numel; i++) {
        TESS_TRY(read_header(images, i, &h));
        if (i == 0) {
            images->info.width = h.png.width;
            images->info.height = h.png.height;
            images->info.channel_numel = h.png.channel_numel;
        }
        TESS_TRY(check_size(images, i, &h));
        images->samples_nbytes = TESS_MAX(images->samples_nbytes, samples_nbytes_of(&h));
        if (!h.is_png)
            value_numel = h.png.width * h.png.height * h.png.channel_numel;
    }
    TESS_TRY(tess_alloc((size_t)images->samples_nbytes, &room));
    images->samples = room;
    TESS_TRY(tess_alloc_array(value_numel, sizeof *images->values, &room));
    images->values = room;
    return TESS_OK;
}

static tess_status open_folder(tess_images *images, const char *folder)
{
    void *header = NULL;
    TESS_TRY(tess_strdup(folder, &images->folder));
    TESS_TRY(tess_io_list(images->ctx.io, folder, &images->name, &images->name_numel));
    TESS_TRY(sort_names(images));
    TESS_TRY(tess_alloc(TESS_NPY_HEADER_MAX_NBYTES, &header));
    images->header = header;
    return read_headers(images);
}

tess_status tess_images_open(const tess_ctx *ctx, const char *folder, tess_images **out)
{
    void *object = NULL;
    TESS_TRY(tess_alloc(sizeof(tess_images), &object));
    tess_images *images = object;
    images->ctx = *ctx;
    const tess_status st = open_folder(images, folder);
    if (st != TESS_OK) {
        tess_images_close(&images);
        return st;
    }
    *out = images;
    return TESS_OK;
}

void tess_images_close(tess_images **images)
{
    tess_images *m = *images;
    if (m == NULL)
        return;
    if (m->name != NULL)
        tess_io_list_free(&m->name, m->name_numel);
    tess_free(m->folder);
    tess_free(m->path);
    tess_free(m->samples);
    tess_free(m->values);
    tess_free(m->header);
    tess_free(m);
    *images = NULL;
}

/* ---- reading ---- */

/* The file may have been replaced since open: it still fits the memory. */
static tess_status check_again(tess_images *images, int64_t idx, const image_header *h)
{
    TESS_TRY(check_size(images, idx, h));
    TESS_CHECK(samples_nbytes_of(h) <= images->samples_nbytes, TESS_E_FORMAT,
               "'%s': wider samples than when the folder was opened; leave its files alone",
               path_of(images, idx));
    return TESS_OK;
}

/* [H, W, C] values to [C, H, W]; u8 was widened and is divided here. */
static tess_status take_values(const tess_images *images, const char *path, bool is_u8, float *dst)
{
    const tess_images_info *info = &images->info;
    const int64_t pixel_numel = info->height * info->width, channels = info->channel_numel;
    for (int64_t i = 0; i < pixel_numel * channels; i++) {
        const float value = is_u8 ? images->values[i] / 255.0F : images->values[i];
        TESS_CHECK(value >= 0.0F && value <= 1.0F, TESS_E_FORMAT,
                   "'%s': value %g in row %" PRId64 ", column %" PRId64
                   ", expected 0 to 1; scale the image or save it as u8",
                   path, (double)value, i / channels / info->width, i / channels % info->width);
        dst[i % channels * pixel_numel + i / channels] = value;
    }
    return TESS_OK;
}

static tess_status read_npy(tess_images *images, int64_t idx, float *dst)
{
    tess_io *io = images->ctx.io;
    const char *path = path_of(images, idx);
    const tess_images_info *info = &images->info;
    const int64_t numel = info->height * info->width * info->channel_numel;
    image_header h = {0};
    int fd = -1;
    TESS_TRY(open_npy(images, path, &h, &fd));
    tess_status st = check_again(images, idx, &h);
    if (st == TESS_OK)
        st = tess_io_pread(io, path, fd, images->samples, (size_t)samples_nbytes_of(&h),
                           h.offset_nbytes);
    (void)!tess_io_close(io, path, &fd);
    TESS_TRY(st);
    tess_vector_convert(h.elem, images->samples, numel, images->values);
    return take_values(images, path, h.elem == TESS_VECTOR_U8, dst);
}

tess_status tess_images_read(tess_images *images, int64_t first_idx, int64_t numel, float *dst)
{
    const tess_images_info *info = &images->info;
    const int64_t image_numel = info->channel_numel * info->height * info->width;
    TESS_CHECK(first_idx >= 0 && numel >= 0 && numel <= info->image_numel &&
                   first_idx <= info->image_numel - numel,
               TESS_E_RANGE, "'%s': images %" PRId64 " and %" PRId64 " more of %" PRId64,
               images->folder, first_idx, numel, info->image_numel);
    for (int64_t i = 0; i < numel; i++, dst += image_numel) {
        image_header h;
        if (!ends_in(images->name[first_idx + i], ".png")) {
            TESS_TRY(read_npy(images, first_idx + i, dst));
            continue;
        }
        TESS_TRY(read_header(images, first_idx + i, &h));
        TESS_TRY(check_again(images, first_idx + i, &h));
        TESS_TRY(tess_png_read(images->ctx.io, path_of(images, first_idx + i), &h.png,
                               images->samples, dst));
    }
    return TESS_OK;
}
