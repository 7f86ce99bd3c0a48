#include "train/flux/flux_data.h"

#include <inttypes.h>
#include <string.h>

#include "core/arith.h"
#include "core/memory.h"
#include "train/describe/describe.h"

struct tess_flux_data {
    tess_latents *cache;
    tess_flux_order order;
    tess_objective objective;
    const tess_flux_config *config;
};

/* What decides a sample's content beside its arrays. */
typedef struct sample_draw {
    int64_t number; /* of the run, or of the held-out set */
    double sigma, weight, guidance;
    int64_t caption_idx;
    bool is_held_out;
} sample_draw;

/* ---- layout ---- */

static tess_status reserve(size_t *nbytes, int64_t row_numel, int64_t column_numel,
                           size_t elem_nbytes, size_t *offset)
{
    int64_t numel = 0, bytes = 0;
    TESS_TRY(tess_mul_i64(row_numel, column_numel, &numel));
    TESS_TRY(tess_mul_i64(numel, (int64_t)elem_nbytes, &bytes));
    TESS_TRY(tess_add_i64(bytes, TESS_ARENA_ALIGN_NBYTES, &bytes));
    *offset = *nbytes;
    TESS_TRY(tess_add_i64((int64_t)*nbytes,
                          bytes / TESS_ARENA_ALIGN_NBYTES * TESS_ARENA_ALIGN_NBYTES, &bytes));
    *nbytes = (size_t)bytes;
    return TESS_OK;
}

tess_status tess_flux_layout_make(const tess_flux_config *c, const tess_flux_shape *shape,
                                  tess_flux_layout *out)
{
    const int64_t b = shape->sample_numel, n = shape->image_numel, t = shape->text_numel;
    const size_t f32 = sizeof(float);
    tess_flux_layout at = {0};
    int64_t tokens = 0, texts = 0;
    TESS_TRY(tess_mul_i64(b, n, &tokens));
    TESS_TRY(tess_mul_i64(b, t, &texts));
    TESS_TRY(reserve(&at.nbytes, tokens, c->in_channels, f32, &at.latent));
    TESS_TRY(reserve(&at.nbytes, texts, c->text_dim, f32, &at.text));
    TESS_TRY(reserve(&at.nbytes, b, c->pooled_dim, f32, &at.pooled));
    TESS_TRY(reserve(&at.nbytes, b, TESS_FLUX_SINUSOID_NUMEL, f32, &at.time));
    TESS_TRY(reserve(&at.nbytes, b, TESS_FLUX_SINUSOID_NUMEL, f32, &at.guidance));
    TESS_TRY(reserve(&at.nbytes, t + n, c->head_dim / 2, f32, &at.cos));
    TESS_TRY(reserve(&at.nbytes, t + n, c->head_dim / 2, f32, &at.sin));
    TESS_TRY(reserve(&at.nbytes, tokens, c->out_channels, f32, &at.target));
    TESS_TRY(reserve(&at.nbytes, b, n, f32, &at.weight));
    at.read_nbytes = at.nbytes;
    TESS_TRY(reserve(&at.nbytes, n, c->in_channels, f32, &at.scratch[0]));
    TESS_TRY(reserve(&at.nbytes, n, c->in_channels, f32, &at.scratch[1]));
    TESS_TRY(reserve(&at.nbytes, b, 1, sizeof(int64_t), &at.sample));
    *out = at;
    return TESS_OK;
}

int64_t tess_flux_largest(const tess_latents *cache)
{
    const tess_latents_bucket *bucket = tess_latents_buckets(cache);
    int64_t most = 0;
    for (int64_t i = 0; i < tess_latents_get_info(cache)->bucket_numel; i++)
        most = TESS_MAX(most, tess_latents_token_numel(&bucket[i]));
    return most;
}

/* ---- open ---- */

static tess_status check_extent(const tess_flux_data_request *r, const char *what, int64_t found,
                                int64_t expected)
{
    TESS_CHECK(found == expected, TESS_E_CONFIG,
               "%s: '%s' holds %s of %" PRId64 ", the model takes %" PRId64
               "; make a cache for this model",
               r->key, r->path, what, found, expected);
    return TESS_OK;
}

static tess_status check_extents(const tess_flux_data_request *r, const tess_latents *cache)
{
    const tess_latents_info *info = tess_latents_get_info(cache);
    const int64_t packed = info->channel_numel * TESS_LATENTS_PATCH * TESS_LATENTS_PATCH;
    TESS_TRY(check_extent(r, "packed latents", packed, r->config->in_channels));
    TESS_TRY(check_extent(r, "packed latents", packed, r->config->out_channels));
    TESS_TRY(check_extent(r, "text embeddings", info->text_dim, r->config->text_dim));
    TESS_TRY(check_extent(r, "pooled embeddings", info->pooled_dim, r->config->pooled_dim));
    TESS_CHECK(info->text_numel == r->shape->text_numel, TESS_E_CONFIG,
               "%s: '%s' holds texts of %" PRId64 " tokens, the run plans %" PRId64
               "; make both caches with one --text-length, and remove data.text_length or set it "
               "to that",
               r->key, r->path, info->text_numel, r->shape->text_numel);
    TESS_CHECK(tess_flux_largest(cache) <= r->shape->image_numel, TESS_E_CONFIG,
               "%s: '%s' has images of %" PRId64 " packed tokens, the run plans %" PRId64
               "; raise data.resolution or remove it (auto), or make the cache at a lower one",
               r->key, r->path, tess_flux_largest(cache), r->shape->image_numel);
    return TESS_OK;
}

static tess_status check_wishes(const tess_flux_data_request *r, const tess_latents_info *info)
{
    const tess_run_objective_keys *o = &r->run->objective;
    const int64_t table_nbytes = info->sample_numel * (int64_t)sizeof(tess_latents_sample);
    TESS_CHECK(!r->is_training || !(o->caption_dropout > 0.0) || info->has_empty, TESS_E_CONFIG,
               "%s: '%s' has no empty caption, which objective.caption_dropout %g needs: convert "
               "again with one (--empty), or set it to 0",
               r->key, r->path, o->caption_dropout);
    TESS_CHECK(!o->masked_loss || info->has_masks, TESS_E_CONFIG,
               "%s: '%s' has no masks, which objective.masked_loss needs: make the cache with "
               "masks, or set it to false",
               r->key, r->path);
    TESS_CHECK(table_nbytes <= TESS_DATA_NBYTES / 2, TESS_E_FIT,
               "%s: '%s' has %" PRId64 " samples, a table of %d fits; split it", r->key, r->path,
               info->sample_numel, TESS_DATA_NBYTES / 2 / (int)sizeof(tess_latents_sample));
    return TESS_OK;
}

static tess_status open_cache(const tess_ctx *ctx, const tess_flux_data_request *r,
                              tess_flux_data *d)
{
    TESS_TRY(tess_latents_open(ctx, r->path, &d->cache));
    const tess_latents_info *info = tess_latents_get_info(d->cache);
    TESS_TRY(check_extents(r, d->cache));
    TESS_TRY(check_wishes(r, info));
    d->config = r->config;
    d->objective = tess_objective_of(r->run);
    d->order = (tess_flux_order){d->objective.seed, r->shape->sample_numel,
                                 tess_latents_buckets(d->cache), info->bucket_numel};
    return TESS_OK;
}

tess_status tess_flux_data_open(const tess_ctx *ctx, const tess_flux_data_request *request,
                                tess_flux_data **out)
{
    void *object = NULL;
    TESS_TRY(tess_alloc(sizeof(tess_flux_data), &object));
    tess_flux_data *d = object;
    const tess_status st = open_cache(ctx, request, d);
    if (st != TESS_OK) {
        tess_flux_data_close(&d);
        return st;
    }
    *out = d;
    return TESS_OK;
}

void tess_flux_data_close(tess_flux_data **data)
{
    if (*data == NULL)
        return;
    tess_latents_close(&(*data)->cache);
    tess_free(*data);
    *data = NULL;
}

const tess_latents *tess_flux_data_cache(const tess_flux_data *d) { return d->cache; }
const tess_flux_order *tess_flux_data_order(const tess_flux_data *d) { return &d->order; }

/* ---- fill ---- */

void tess_flux_put_rotations(const tess_flux_config *config, int64_t text_numel, int64_t height,
                             int64_t width, tess_flux_arrays *a)
{
    if (a->rope_height == height && a->rope_width == width && a->rope_text_numel == text_numel)
        return;
    tess_flux_rope(config, text_numel, height / TESS_LATENTS_PATCH, width / TESS_LATENTS_PATCH,
                   tess_flux_array(a, a->at.cos), tess_flux_array(a, a->at.sin));
    a->rope_height = height;
    a->rope_width = width;
    a->rope_text_numel = text_numel;
}

static void put_rotations(const tess_flux_data *d, const tess_latents_bucket *b,
                          tess_flux_arrays *a)
{
    tess_flux_put_rotations(d->config, tess_latents_get_info(d->cache)->text_numel, b->height,
                            b->width, a);
}

/* Weights of the n tokens of a sample, see [Note: weight of a token]. */
static tess_status put_weights(const tess_flux_data *d, int64_t sample, const sample_draw *draw,
                               int64_t token_numel, float *weight)
{
    const double scale = draw->weight / ((double)token_numel * (double)d->config->out_channels);
    if (d->objective.keys->masked_loss)
        TESS_TRY(tess_latents_read_mask(d->cache, sample, weight));
    for (int64_t t = 0; t < token_numel; t++)
        weight[t] = (float)(scale * (d->objective.keys->masked_loss ? (double)weight[t] : 1.0));
    return TESS_OK;
}

/* Sample `sample` of the cache as row `row` of the micro-batch. */
static tess_status put_sample(const tess_flux_data *d, int64_t sample, int64_t row,
                              const sample_draw *draw, const tess_flux_arrays *a)
{
    const tess_latents_info *info = tess_latents_get_info(d->cache);
    const tess_latents_bucket *b =
        &tess_latents_buckets(d->cache)[tess_latents_bucket_of(d->cache, sample)];
    const int64_t numel = tess_latents_numel(info, b), token_numel = tess_latents_token_numel(b);
    const tess_flux_image image = {info->channel_numel, b->height, b->width};
    float *latent = tess_flux_array(a, a->at.scratch[0]),
          *noise = tess_flux_array(a, a->at.scratch[1]);
    TESS_TRY(tess_latents_read(d->cache, sample, latent));
    if (draw->is_held_out)
        tess_objective_held_out_noise(draw->number, numel, noise);
    else
        tess_objective_noise(&d->objective, draw->number, numel, noise);
    tess_objective_mix(draw->sigma, numel, latent, noise);
    tess_flux_pack(&image, latent, tess_flux_array(a, a->at.latent) + row * numel);
    tess_flux_pack(&image, noise, tess_flux_array(a, a->at.target) + row * numel);
    tess_flux_sinusoid(1000.0 * draw->sigma,
                       tess_flux_array(a, a->at.time) + row * TESS_FLUX_SINUSOID_NUMEL);
    tess_flux_sinusoid(1000.0 * draw->guidance,
                       tess_flux_array(a, a->at.guidance) + row * TESS_FLUX_SINUSOID_NUMEL);
    TESS_TRY(put_weights(d, sample, draw, token_numel,
                         tess_flux_array(a, a->at.weight) + row * token_numel));
    return tess_latents_read_text(d->cache, draw->caption_idx,
                                  tess_flux_array(a, a->at.text) +
                                      row * info->text_numel * info->text_dim,
                                  tess_flux_array(a, a->at.pooled) + row * info->pooled_dim);
}

static const float *read_at(const tess_flux_arrays *a, size_t offset_nbytes)
{
    return (const float *)(const void *)(a->read + offset_nbytes);
}

tess_flux_batch tess_flux_batch_over(const tess_flux_config *config, const tess_flux_arrays *a,
                                     tess_flux_shape shape)
{
    return (tess_flux_batch){.sample_numel = shape.sample_numel,
                             .image_numel = shape.image_numel,
                             .text_numel = shape.text_numel,
                             .latent = read_at(a, a->at.latent),
                             .text = read_at(a, a->at.text),
                             .pooled = read_at(a, a->at.pooled),
                             .time = read_at(a, a->at.time),
                             .guidance = config->has_guidance ? read_at(a, a->at.guidance) : NULL,
                             .rope_cos = read_at(a, a->at.cos),
                             .rope_sin = read_at(a, a->at.sin),
                             .target = read_at(a, a->at.target),
                             .weight = read_at(a, a->at.weight)};
}

static void describe_batch(const tess_flux_data *d, int64_t bucket_idx, int64_t sample_numel,
                           const tess_flux_arrays *a, tess_flux_batch *batch)
{
    const tess_flux_shape shape = {
        sample_numel, tess_latents_token_numel(&tess_latents_buckets(d->cache)[bucket_idx]),
        tess_latents_get_info(d->cache)->text_numel};
    *batch = tess_flux_batch_over(d->config, a, shape);
}

tess_status tess_flux_data_fill(const tess_flux_data *d, int64_t micro_batch, tess_flux_arrays *a,
                                tess_flux_batch *batch)
{
    const tess_objective *o = &d->objective;
    int64_t *sample = (int64_t *)(void *)(a->base + a->at.sample);
    const int64_t bucket_idx = tess_flux_order_at(&d->order, micro_batch, sample);
    const tess_latents_bucket *b = &tess_latents_buckets(d->cache)[bucket_idx];
    put_rotations(d, b, a);
    for (int64_t i = 0; i < d->order.batch_numel; i++) {
        const int64_t number = micro_batch * d->order.batch_numel + i;
        const double sigma = tess_objective_sigma(o, number, tess_latents_token_numel(b));
        const sample_draw draw = {
            .number = number,
            .sigma = sigma,
            .weight = tess_objective_weight(o->keys, sigma),
            .guidance = tess_objective_guidance(o, number),
            .caption_idx = tess_objective_drops_caption(o, number)
                               ? 0
                               : tess_latents_sample_at(d->cache, sample[i])->caption_idx};
        TESS_TRY(put_sample(d, sample[i], i, &draw, a));
    }
    describe_batch(d, bucket_idx, d->order.batch_numel, a, batch);
    return TESS_OK;
}

tess_status tess_flux_data_fill_held_out(const tess_flux_data *d, int64_t micro_batch,
                                         tess_flux_arrays *a, tess_flux_batch *batch)
{
    int64_t bucket_idx = 0, first = 0;
    const int64_t numel = tess_flux_held_out_at(&d->order, micro_batch, &bucket_idx, &first);
    put_rotations(d, &tess_latents_buckets(d->cache)[bucket_idx], a);
    for (int64_t i = 0; i < numel; i++) {
        const int64_t sample = first + i;
        const sample_draw draw = {
            .number = sample,
            .sigma = tess_objective_held_out_sigma(sample,
                                                   tess_latents_get_info(d->cache)->sample_numel),
            .weight = 1.0,
            .guidance = d->objective.keys->guidance,
            .caption_idx = tess_latents_sample_at(d->cache, sample)->caption_idx,
            .is_held_out = true};
        TESS_TRY(put_sample(d, sample, i, &draw, a));
    }
    describe_batch(d, bucket_idx, numel, a, batch);
    return TESS_OK;
}
