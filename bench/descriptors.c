/*
 * Descriptors of real images: 128 numbers of u8 each, SIFT's histograms on a dense grid.
 *
 *   descriptors -o FOLDER [--train N] [--held-out N] [--seed S] IMAGE.jpg...
 *
 * Writes FOLDER/train.bvecs and FOLDER/held_out.bvecs and prints a JSON line with the SHA-256 of
 * both; bench/descriptors.sh fetches the images that bench/descriptors.txt lists and compares.
 *
 * [Note: the same bytes everywhere] JPEG luminance is decoded with the integer transform. After it
 * there are integers, and doubles of single operations that IEEE 754 rounds correctly (+ - * / and
 * square root), in one order; the angle is a polynomial, not atan2. So the bytes depend on the
 * images and the options alone.
 *
 * [Note: which patches] An image is halved while it is wider or higher than 1,600, then a pyramid
 * of halves is made. On each level a patch of 16 x 16 pixels lies at every sixth pixel; flat ones
 * (mean gradient below 4) are left out. Patches whose center lies in one of eleven tiles of
 * 256 x 256 pixels are held out, so that both sets see every image and few pixels are in both.
 * Each set is a draw without replacement by core/draw.h, in the order of the draw.
 *
 * @source Lowe, Distinctive Image Features from Scale-Invariant Keypoints (2004), section 6: 4 x 4
 * cells of 8 orientations, linear shares, a Gaussian window, clipping at 0.2, u8 of 512 v
 */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

#include "core/digest.h"
#include "core/draw.h"

enum {
    SIDE_MAX = 1600,
    LEVEL_SIDE_MIN = 64,
    PATCH = 16,
    STRIDE = 6,
    TILE = 256,
    TILES_OF_ONE = 11
};
enum { CELLS = 4, BINS = 8, DIM = CELLS * CELLS * BINS, RECORD = 4 + DIM };
enum { GRADIENT_MEAN_MIN = 4, GRADIENT_UNIT = 256, DRAW_TRAIN = 100, DRAW_HELD_OUT = 101 };

/* round(256 exp(-(u - 7.5)^2 / (2 x 8^2))): a window of half the patch's width. */
static const int window_of[PATCH] = {165, 184, 202, 219, 233, 244, 252, 256,
                                     256, 252, 244, 233, 219, 202, 184, 165};

typedef struct image {
    int width, height;
    uint8_t *pixel; /* [height, width] */
} image;

/* Shares of a pixel's gradient in two neighbouring orientations, in 1 / GRADIENT_UNIT. */
typedef struct gradient {
    int32_t share[2];
    int32_t magnitude;
    int32_t bin; /* of share[0]; the other is the next one, around */
} gradient;

typedef struct pool {
    uint8_t *record; /* [numel, RECORD] */
    int64_t numel, room_numel;
} pool;

static _Noreturn void fail(const char *what, const char *path)
{
    fprintf(stderr, "descriptors: %s: %s\n", path, what);
    exit(EXIT_FAILURE);
}

static void *room(void *old, size_t nbytes)
{
    void *p = realloc(old, nbytes);
    if (p == NULL)
        fail("out of memory", "descriptors");
    return p;
}

/* ---- images ---- */

typedef struct jpeg_failure {
    struct jpeg_error_mgr base;
    const char *path;
} jpeg_failure;

static void jpeg_fail(j_common_ptr common)
{
    char text[JMSG_LENGTH_MAX];
    common->err->format_message(common, text);
    fail(text, ((const jpeg_failure *)common->err)->path);
}

static image read_jpeg(const char *path)
{
    jpeg_failure failure = {.path = path};
    struct jpeg_decompress_struct jpeg;
    FILE *file = fopen(path, "rb");
    if (file == NULL)
        fail(strerror(errno), path);
    jpeg.err = jpeg_std_error(&failure.base);
    failure.base.error_exit = jpeg_fail;
    jpeg_create_decompress(&jpeg);
    jpeg_stdio_src(&jpeg, file);
    (void)jpeg_read_header(&jpeg, TRUE);
    jpeg.out_color_space = JCS_GRAYSCALE;
    jpeg.dct_method = JDCT_ISLOW;
    jpeg_start_decompress(&jpeg);
    image im = {(int)jpeg.output_width, (int)jpeg.output_height, NULL};
    im.pixel = room(NULL, (size_t)im.width * (size_t)im.height);
    while (jpeg.output_scanline < jpeg.output_height) {
        uint8_t *row = im.pixel + (size_t)jpeg.output_scanline * (size_t)im.width;
        (void)jpeg_read_scanlines(&jpeg, &row, 1);
    }
    jpeg_finish_decompress(&jpeg);
    jpeg_destroy_decompress(&jpeg);
    fclose(file);
    return im;
}

/* Means of 2 x 2 pixels, in place; an odd last row or column is dropped. */
static void halve(image *im)
{
    const int width = im->width / 2, height = im->height / 2;
    for (int y = 0; y < height; y++) {
        const uint8_t *above = im->pixel + (size_t)(2 * y) * (size_t)im->width;
        const uint8_t *below = above + im->width;
        uint8_t *to = im->pixel + (size_t)y * (size_t)width;
        for (int x = 0; x < width; x++)
            to[x] =
                (uint8_t)((above[2 * x] + above[2 * x + 1] + below[2 * x] + below[2 * x + 1] + 2) /
                          4);
    }
    im->width = width;
    im->height = height;
}

/* Angle of (dx, dy) in units of 45 degrees, 0 <= a < 8; atan t by t (1.273 - 0.273 t) in them. */
static double angle_of(int dx, int dy)
{
    const double ax = abs(dx), ay = abs(dy);
    const double t = ax == ay ? 1.0 : ax > ay ? ay / ax : ax / ay;
    const double f = t * (1.273 - 0.273 * t);
    double a = ax >= ay ? f : 2.0 - f;
    if (dx < 0)
        a = 4.0 - a;
    if (dy < 0)
        a = 8.0 - a;
    return a >= 8.0 ? 0.0 : a;
}

static void fill_gradients(const image *im, gradient *g)
{
    memset(g, 0, (size_t)im->width * (size_t)im->height * sizeof *g);
    for (int y = 1; y + 1 < im->height; y++) {
        for (int x = 1; x + 1 < im->width; x++) {
            const size_t at = (size_t)y * (size_t)im->width + (size_t)x;
            const int dx = im->pixel[at + 1] - im->pixel[at - 1];
            const int dy = im->pixel[at + (size_t)im->width] - im->pixel[at - (size_t)im->width];
            if (dx == 0 && dy == 0)
                continue;
            const double magnitude = sqrt((double)(dx * dx + dy * dy)) * GRADIENT_UNIT;
            const double angle = angle_of(dx, dy);
            const int bin = (int)angle;
            const int total = (int)(magnitude + 0.5);
            const int next = (int)(magnitude * (angle - bin) + 0.5);
            g[at] = (gradient){{total - next, next}, total, bin % BINS};
        }
    }
}

/* ---- descriptors ---- */

/* Share of pixel `u` of a patch in cell `c`, in eighths: linear between the cells' centers. */
static int cell_share(int u, int c)
{
    const int distance = abs(2 * u - 3 - 8 * c);
    return distance < 8 ? 8 - distance : 0;
}

/* Sums of a patch whose top left pixel is (x, y); false: it is flat. */
static int sum_patch(const image *im, const gradient *g, int x, int y, int64_t sum[DIM])
{
    int64_t total = 0;
    memset(sum, 0, DIM * sizeof *sum);
    for (int v = 0; v < PATCH; v++) {
        for (int u = 0; u < PATCH; u++) {
            const gradient *at = g + (size_t)(y + v) * (size_t)im->width + (size_t)(x + u);
            total += at->magnitude;
            for (int cy = 0; cy < CELLS; cy++) {
                const int64_t row = (int64_t)window_of[v] * window_of[u] * cell_share(v, cy);
                for (int cx = 0; row > 0 && cx < CELLS; cx++) {
                    const int64_t weight = row * cell_share(u, cx);
                    int64_t *cell = sum + (cy * CELLS + cx) * BINS;
                    cell[at->bin] += weight * at->share[0];
                    cell[(at->bin + 1) % BINS] += weight * at->share[1];
                }
            }
        }
    }
    return total >= (int64_t)GRADIENT_MEAN_MIN * GRADIENT_UNIT * PATCH * PATCH;
}

static void scale_to_unit(double v[DIM])
{
    double square = 0.0;
    for (int i = 0; i < DIM; i++)
        square += v[i] * v[i];
    const double norm = sqrt(square);
    for (int i = 0; i < DIM; i++)
        v[i] /= norm;
}

static void encode(const int64_t sum[DIM], uint8_t record[RECORD])
{
    const int32_t dim = DIM;
    double v[DIM];
    for (int i = 0; i < DIM; i++)
        v[i] = (double)sum[i];
    scale_to_unit(v);
    for (int i = 0; i < DIM; i++)
        v[i] = v[i] < 0.2 ? v[i] : 0.2;
    scale_to_unit(v);
    memcpy(record, &dim, 4);
    for (int i = 0; i < DIM; i++) {
        const int scaled = (int)(512.0 * v[i] + 0.5);
        record[4 + i] = (uint8_t)(scaled < 255 ? scaled : 255);
    }
}

static uint8_t *next_record(pool *p)
{
    if (p->numel == p->room_numel) {
        p->room_numel = p->room_numel == 0 ? 1 << 16 : 2 * p->room_numel;
        p->record = room(p->record, (size_t)p->room_numel * RECORD);
    }
    return p->record + (size_t)p->numel++ * RECORD;
}

/* Patches of one level; `scale` is a pixel's side in pixels of level 0. pools: train, held out. */
static void take_level(const image *im, const gradient *g, int scale, int image_idx, pool pools[2])
{
    int64_t sum[DIM];
    for (int y = 1; y + PATCH < im->height; y += STRIDE) {
        for (int x = 1; x + PATCH < im->width; x += STRIDE) {
            if (!sum_patch(im, g, x, y, sum))
                continue;
            const int tile_x = (x + PATCH / 2) * scale / TILE,
                      tile_y = (y + PATCH / 2) * scale / TILE;
            const int is_held_out = (tile_x + 3 * tile_y + image_idx) % TILES_OF_ONE == 0;
            encode(sum, next_record(&pools[is_held_out]));
        }
    }
}

static void take_image(const char *path, int image_idx, pool pools[2])
{
    image im = read_jpeg(path);
    while (im.width > SIDE_MAX || im.height > SIDE_MAX)
        halve(&im);
    gradient *g = room(NULL, (size_t)im.width * (size_t)im.height * sizeof *g);
    for (int scale = 1; im.width >= LEVEL_SIDE_MIN && im.height >= LEVEL_SIDE_MIN; scale *= 2) {
        fill_gradients(&im, g);
        take_level(&im, g, scale, image_idx, pools);
        halve(&im);
    }
    free(g);
    free(im.pixel);
}

/* ---- the two sets ---- */

typedef struct drawn {
    uint64_t output, g;
} drawn;

static int by_output(const void *a, const void *b)
{
    const drawn *x = a, *y = b;
    if (x->output != y->output)
        return x->output < y->output ? -1 : 1;
    return (x->g > y->g) - (x->g < y->g);
}

/* Write the first `numel` of a draw; hex of the file's SHA-256. */
static void write_set(const pool *p, const tess_draw *draw, int64_t numel, const char *path,
                      char hex[TESS_SHA256_HEX_NBYTES])
{
    tess_sha256_state *sha = NULL;
    tess_sha256 digest;
    if (p->numel < numel)
        fail("the images have too few patches; give more images", path);
    drawn *order = room(NULL, (size_t)p->numel * sizeof *order);
    for (int64_t i = 0; i < p->numel; i++)
        order[i] = (drawn){tess_draw_output(draw, (uint64_t)i), (uint64_t)i};
    qsort(order, (size_t)p->numel, sizeof *order, by_output);
    FILE *file = fopen(path, "wb");
    if (file == NULL)
        fail(strerror(errno), path);
    tess_status st = tess_sha256_create(&sha);
    for (int64_t i = 0; i < numel && st == TESS_OK; i++) {
        const uint8_t *record = p->record + order[i].g * RECORD;
        if (fwrite(record, RECORD, 1, file) != 1)
            fail(strerror(errno), path);
        st = tess_sha256_update(sha, record, RECORD);
    }
    if (st == TESS_OK)
        st = tess_sha256_final(sha, &digest);
    if (st != TESS_OK)
        fail(tess_error_message(), path);
    if (fclose(file) != 0)
        fail(strerror(errno), path);
    tess_hex(digest.byte, sizeof digest.byte, hex);
    tess_sha256_destroy(&sha);
    free(order);
}

typedef struct options {
    const char *folder;
    int64_t train_numel, held_out_numel;
    uint64_t seed;
    int first_image;
} options;

static options parse(int argc, char **argv)
{
    options o = {NULL, 200000, 20000, 0, 1};
    for (int i = 1; i + 1 < argc && argv[i][0] == '-'; i += 2, o.first_image = i) {
        if (strcmp(argv[i], "-o") == 0)
            o.folder = argv[i + 1];
        else if (strcmp(argv[i], "--train") == 0)
            o.train_numel = strtoll(argv[i + 1], NULL, 10);
        else if (strcmp(argv[i], "--held-out") == 0)
            o.held_out_numel = strtoll(argv[i + 1], NULL, 10);
        else if (strcmp(argv[i], "--seed") == 0)
            o.seed = strtoull(argv[i + 1], NULL, 10);
        else
            fail("unknown option", argv[i]);
    }
    if (o.folder == NULL || o.first_image >= argc)
        fail("give -o FOLDER and images", "usage");
    return o;
}

int main(int argc, char **argv)
{
    const options o = parse(argc, argv);
    const tess_draw draws[2] = {{.seed = o.seed, .purpose = DRAW_TRAIN},
                                {.seed = o.seed, .purpose = DRAW_HELD_OUT}};
    pool pools[2] = {{0}, {0}};
    char train[4096], held_out[4096], hex[2][TESS_SHA256_HEX_NBYTES];
    for (int i = o.first_image; i < argc; i++)
        take_image(argv[i], i - o.first_image, pools);
    snprintf(train, sizeof train, "%s/train.bvecs", o.folder);
    snprintf(held_out, sizeof held_out, "%s/held_out.bvecs", o.folder);
    write_set(&pools[0], &draws[0], o.train_numel, train, hex[0]);
    write_set(&pools[1], &draws[1], o.held_out_numel, held_out, hex[1]);
    printf("{\"images\": %d, \"train_patches\": %" PRId64 ", \"held_out_patches\": %" PRId64
           ", \"train\": %" PRId64 ", \"held_out\": %" PRId64 ", \"seed\": %" PRIu64
           ", \"train_sha256\": \"%s\", \"held_out_sha256\": \"%s\"}\n",
           argc - o.first_image, pools[0].numel, pools[1].numel, o.train_numel, o.held_out_numel,
           o.seed, hex[0], hex[1]);
    free(pools[0].record);
    free(pools[1].record);
    return 0;
}
