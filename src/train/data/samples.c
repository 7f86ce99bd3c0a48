#include "train/data/samples.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/arith.h"
#include "core/memory.h"

struct tess_samples {
    tess_vectors *vectors; /* one of both */
    tess_images *images;
    tess_mask *mask;       /* NULL: none is masked */
    int64_t cell_numel;    /* pixels of a position's side; 1 of vectors */
    int64_t rows, columns; /* of positions; 1 of vectors */
    int64_t sample_numel;
    tess_sample_size size;
    float *planes; /* [C, H, W] of an image */
};

void tess_sample_text(const tess_sample_size *size, char text[TESS_SAMPLE_TEXT_NBYTES])
{
    if (size->channel_numel == 0)
        snprintf(text, TESS_SAMPLE_TEXT_NBYTES, "vectors of %" PRId64 " dimensions", size->dim);
    else
        snprintf(text, TESS_SAMPLE_TEXT_NBYTES,
                 "images of %" PRId64 " x %" PRId64 " with %" PRId64 " channels", size->width,
                 size->height, size->channel_numel);
}

static tess_status open_vectors(tess_samples *s, const tess_ctx *ctx, const char *path)
{
    TESS_TRY(tess_vectors_open(ctx, path, &s->vectors));
    const tess_vectors_info *info = tess_vectors_get_info(s->vectors);
    s->sample_numel = info->vector_numel;
    s->size.dim = info->dim;
    return TESS_OK;
}

static tess_status open_images(tess_samples *s, const tess_ctx *ctx, const char *path)
{
    void *planes = NULL;
    TESS_TRY(tess_images_open(ctx, path, &s->images));
    const tess_images_info *info = tess_images_get_info(s->images);
    s->sample_numel = info->image_numel;
    s->size = (tess_sample_size){
        .channel_numel = info->channel_numel, .height = info->height, .width = info->width};
    TESS_TRY(tess_mul_i64(info->height, info->width, &s->size.dim));
    TESS_TRY(tess_mul_i64(s->size.dim, info->channel_numel, &s->size.dim));
    TESS_TRY(tess_alloc_array(s->size.dim, sizeof *s->planes, &planes));
    s->planes = planes;
    return TESS_OK;
}

tess_status tess_samples_open(const tess_ctx *ctx, const char *path, bool is_images,
                              tess_samples **out)
{
    void *object = NULL;
    TESS_TRY(tess_alloc(sizeof(tess_samples), &object));
    tess_samples *s = object;
    const tess_status st = is_images ? open_images(s, ctx, path) : open_vectors(s, ctx, path);
    if (st != TESS_OK) {
        tess_samples_close(&s);
        return st;
    }
    *out = s;
    return TESS_OK;
}

void tess_samples_close(tess_samples **samples)
{
    tess_samples *s = *samples;
    if (s == NULL)
        return;
    tess_vectors_close(&s->vectors);
    tess_mask_close(&s->mask);
    tess_images_close(&s->images);
    tess_free(s->planes);
    tess_free(s);
    *samples = NULL;
}

int64_t tess_samples_position_numel(const tess_samples *s) { return s->rows * s->columns; }

tess_status tess_samples_open_mask(const tess_ctx *ctx, tess_samples *s,
                                   const tess_samples_mask *mask)
{
    const int halvings = s->images != NULL ? mask->halving_numel : 0;
    s->cell_numel = (int64_t)1 << halvings;
    s->rows = TESS_MAX(s->size.height >> halvings, 1);
    s->columns = TESS_MAX(s->size.width >> halvings, 1);
    const tess_mask_shape shape = {s->sample_numel, tess_samples_position_numel(s)};
    return mask->path != NULL ? tess_mask_open(ctx, mask->path, mask->key, &shape, &s->mask)
                              : TESS_OK;
}

tess_status tess_samples_valid(tess_samples *s, int64_t first_idx, int64_t numel, uint8_t *valid)
{
    if (s->mask != NULL)
        return tess_mask_read(s->mask, first_idx, numel, valid);
    memset(valid, 1, (size_t)(numel * tess_samples_position_numel(s)));
    return TESS_OK;
}

/* Zeros in the cells of masked positions; a vector is a pixel of its dimensions. */
static void clear_masked(const tess_samples *s, const uint8_t *valid, float *x)
{
    const int64_t cell = s->cell_numel;
    const int64_t line = cell * s->size.dim / (s->rows * s->columns * cell * cell);
    for (int64_t p = 0; p < s->rows * s->columns; p++)
        for (int64_t r = 0; valid[p] == 0 && r < cell; r++)
            memset(x + ((p / s->columns * cell + r) * s->columns + p % s->columns) * line, 0,
                   (size_t)line * sizeof *x);
}

int64_t tess_samples_numel(const tess_samples *samples) { return samples->sample_numel; }

const tess_sample_size *tess_samples_size(const tess_samples *samples) { return &samples->size; }

static tess_status read_image(tess_samples *s, int64_t idx, float *dst)
{
    const int64_t channels = s->size.channel_numel, pixels = s->size.height * s->size.width;
    TESS_TRY(tess_images_read(s->images, idx, 1, s->planes));
    for (int64_t p = 0; p < pixels; p++)
        for (int64_t c = 0; c < channels; c++)
            dst[p * channels + c] = 2.0f * s->planes[c * pixels + p] - 1.0f;
    return TESS_OK;
}

static tess_status read_unmasked(tess_samples *s, int64_t first_idx, int64_t numel, float *dst)
{
    if (s->vectors != NULL)
        return tess_vectors_read(s->vectors, first_idx, numel, dst);
    for (int64_t i = 0; i < numel; i++)
        TESS_TRY(read_image(s, first_idx + i, dst + i * s->size.dim));
    return TESS_OK;
}

tess_status tess_samples_read(tess_samples *s, int64_t first_idx, int64_t numel, float *dst,
                              uint8_t *valid)
{
    TESS_CHECK(s->mask == NULL || valid != NULL, TESS_E_ARG, "samples: flags have no place");
    TESS_TRY(read_unmasked(s, first_idx, numel, dst));
    if (valid == NULL)
        return TESS_OK;
    TESS_TRY(tess_samples_valid(s, first_idx, numel, valid));
    for (int64_t i = 0; i < numel && s->mask != NULL; i++)
        clear_masked(s, valid + i * tess_samples_position_numel(s), dst + i * s->size.dim);
    return TESS_OK;
}

/* One sample's elements and flags. */
typedef struct scan {
    const char *key;
    float *x;           /* [dim + flag_numel] */
    uint8_t *valid;     /* [positions] */
    int64_t flag_numel; /* 0: none is masked, and flags are no part of the identity */
} scan;

/* A masked vector's numbers may be none: they are not looked at. */
static tess_status scan_sample(tess_samples *s, int64_t idx, const scan *c)
{
    const int64_t dim = s->size.dim;
    TESS_TRY(tess_samples_read(s, idx, 1, c->x, c->valid));
    for (int64_t j = 0; j < dim && s->vectors != NULL; j++)
        TESS_CHECK(isfinite(c->x[j]), TESS_E_FORMAT,
                   "%s: '%s': dimension %" PRId64 " of vector %" PRId64
                   " is %g, expected a finite number; remove or mask the vector",
                   c->key, tess_vectors_get_info(s->vectors)->path, j, idx, (double)c->x[j]);
    for (int64_t p = 0; p < c->flag_numel; p++)
        c->x[dim + p] = (float)c->valid[p];
    return TESS_OK;
}

static tess_status scan_own(tess_comm *comm, tess_samples *s, const char *key,
                            tess_logical_hash *digest)
{
    void *x = NULL, *valid = NULL;
    scan c = {.key = key, .flag_numel = s->mask != NULL ? tess_samples_position_numel(s) : 0};
    tess_status st = tess_alloc_array(s->size.dim + c.flag_numel, sizeof *c.x, &x);
    if (st == TESS_OK && c.flag_numel > 0)
        st = tess_alloc_array(c.flag_numel, sizeof *c.valid, &valid);
    c.x = x;
    c.valid = valid;
    for (int64_t i = tess_comm_rank(comm); i < s->sample_numel && st == TESS_OK;
         i += tess_comm_world(comm)) {
        st = scan_sample(s, i, &c);
        if (st == TESS_OK)
            tess_vectors_digest_add(digest, c.x, s->size.dim + c.flag_numel, i, 1);
    }
    tess_free(x);
    tess_free(valid);
    return st;
}

tess_status tess_samples_scan(tess_comm *comm, tess_samples *s, const char *key,
                              tess_logical_hash *digest)
{
    if (s->vectors != NULL && s->mask == NULL)
        return tess_vectors_scan(comm, s->vectors, key, digest);
    *digest = (tess_logical_hash){0};
    TESS_TRY(tess_agree(comm, scan_own(comm, s, key, digest)));
    return tess_vectors_digest_join(comm, digest);
}
