#include "train/samples.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/arith.h"
#include "core/memory.h"

struct tess_samples {
    tess_vectors *vectors; /* one of both */
    tess_images *images;
    tess_vectors *mask; /* of vectors, or NULL: none is masked */
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
    tess_vectors_close(&s->mask);
    tess_images_close(&s->images);
    tess_free(s->planes);
    tess_free(s);
    *samples = NULL;
}

tess_status tess_samples_open_mask(const tess_ctx *ctx, tess_samples *s, const char *mask_path,
                                   const char *key)
{
    TESS_CHECK(s->vectors != NULL, TESS_E_CONFIG, "%s: images have no mask: remove it", key);
    TESS_TRY(tess_vectors_open(ctx, mask_path, &s->mask));
    const tess_vectors_info *info = tess_vectors_get_info(s->mask);
    TESS_CHECK(info->vector_numel == s->sample_numel && info->dim == 1, TESS_E_CONFIG,
               "%s: '%s' is [%" PRId64 ", %" PRId64 "], expected [%" PRId64
               ", 1]: a number for each vector, 0 where it is masked, else 1",
               key, mask_path, info->vector_numel, info->dim, s->sample_numel);
    return TESS_OK;
}

tess_status tess_samples_valid(tess_samples *s, int64_t first_idx, int64_t numel, uint8_t *valid)
{
    for (int64_t i = 0; i < numel; i++) {
        float value = 1.0f;
        if (s->mask != NULL)
            TESS_TRY(tess_vectors_read(s->mask, first_idx + i, 1, &value));
        TESS_CHECK(value == 0.0f || value == 1.0f, TESS_E_FORMAT,
                   "'%s': vector %" PRId64 " has %g, expected 0 (masked) or 1",
                   tess_vectors_get_info(s->mask)->path, first_idx + i, (double)value);
        valid[i] = value != 0.0f;
    }
    return TESS_OK;
}

static tess_status read_vectors(tess_samples *s, int64_t first_idx, int64_t numel, float *dst)
{
    TESS_TRY(tess_vectors_read(s->vectors, first_idx, numel, dst));
    for (int64_t i = 0; i < numel && s->mask != NULL; i++) {
        uint8_t valid = 0;
        TESS_TRY(tess_samples_valid(s, first_idx + i, 1, &valid));
        if (valid == 0)
            memset(dst + i * s->size.dim, 0, (size_t)s->size.dim * sizeof *dst);
    }
    return TESS_OK;
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

tess_status tess_samples_read(tess_samples *s, int64_t first_idx, int64_t numel, float *dst)
{
    if (s->vectors != NULL)
        return read_vectors(s, first_idx, numel, dst);
    for (int64_t i = 0; i < numel; i++)
        TESS_TRY(read_image(s, first_idx + i, dst + i * s->size.dim));
    return TESS_OK;
}

/* A masked vector's numbers may be none: they are not looked at. */
static tess_status scan_vector(tess_samples *s, const char *key, int64_t idx, float *x)
{
    const int64_t dim = s->size.dim;
    uint8_t valid = 0;
    TESS_TRY(read_vectors(s, idx, 1, x));
    TESS_TRY(tess_samples_valid(s, idx, 1, &valid));
    for (int64_t j = 0; j < dim; j++)
        TESS_CHECK(isfinite(x[j]), TESS_E_FORMAT,
                   "%s: '%s': dimension %" PRId64 " of vector %" PRId64
                   " is %g, expected a finite number; remove or mask the vector",
                   key, tess_vectors_get_info(s->vectors)->path, j, idx, (double)x[j]);
    x[dim] = (float)valid;
    return TESS_OK;
}

static tess_status scan_own(tess_comm *comm, tess_samples *s, const char *key,
                            tess_logical_hash *digest)
{
    const bool is_masked = s->mask != NULL;
    void *x = NULL;
    tess_status st = TESS_OK;
    TESS_TRY(tess_alloc_array(s->size.dim + is_masked, sizeof(float), &x));
    for (int64_t i = tess_comm_rank(comm); i < s->sample_numel && st == TESS_OK;
         i += tess_comm_world(comm)) {
        st = is_masked ? scan_vector(s, key, i, x) : read_image(s, i, x);
        if (st == TESS_OK)
            tess_vectors_digest_add(digest, x, s->size.dim + is_masked, i, 1);
    }
    tess_free(x);
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
