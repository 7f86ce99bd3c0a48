#include "train/samples.h"

#include <inttypes.h>
#include <stdio.h>

#include "core/arith.h"
#include "core/memory.h"

struct tess_samples {
    tess_vectors *vectors; /* one of both */
    tess_images *images;
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
    tess_images_close(&s->images);
    tess_free(s->planes);
    tess_free(s);
    *samples = NULL;
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
        return tess_vectors_read(s->vectors, first_idx, numel, dst);
    for (int64_t i = 0; i < numel; i++)
        TESS_TRY(read_image(s, first_idx + i, dst + i * s->size.dim));
    return TESS_OK;
}

static tess_status scan_own(tess_comm *comm, tess_samples *s, tess_logical_hash *digest)
{
    void *x = NULL;
    tess_status st = TESS_OK;
    TESS_TRY(tess_alloc_array(s->size.dim, sizeof(float), &x));
    for (int64_t i = tess_comm_rank(comm); i < s->sample_numel && st == TESS_OK;
         i += tess_comm_world(comm)) {
        st = read_image(s, i, x);
        if (st == TESS_OK)
            tess_vectors_digest_add(digest, x, s->size.dim, i, 1);
    }
    tess_free(x);
    return st;
}

tess_status tess_samples_scan(tess_comm *comm, tess_samples *s, const char *key,
                              tess_logical_hash *digest)
{
    if (s->vectors != NULL)
        return tess_vectors_scan(comm, s->vectors, key, digest);
    *digest = (tess_logical_hash){0};
    TESS_TRY(tess_agree(comm, scan_own(comm, s, digest)));
    return tess_vectors_digest_join(comm, digest);
}
