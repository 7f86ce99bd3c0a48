#include "train/flux/flux_order.h"

#include "core/arith.h"
#include "core/rng.h"

/* floor(epochs N / B), without the product. */
static int64_t given_numel(const tess_flux_order *o, int64_t bucket_idx, int64_t epoch_numel)
{
    const int64_t n = o->bucket[bucket_idx].sample_numel, b = o->batch_numel;
    return epoch_numel / b * n + epoch_numel % b * n / b;
}

int64_t tess_flux_order_numel(const tess_flux_order *o, int64_t epoch_numel)
{
    int64_t numel = 0;
    for (int64_t i = 0; i < o->bucket_numel; i++)
        numel += given_numel(o, i, epoch_numel);
    return numel;
}

/* The epoch that adds micro-batch `g`. */
static int64_t epoch_of(const tess_flux_order *o, int64_t g)
{
    int64_t low = 0, high = 1; /* numel(low) <= g < numel(high) */
    while (tess_flux_order_numel(o, high) <= g) {
        low = high;
        high *= 2;
    }
    while (high - low > 1) {
        const int64_t middle = low + (high - low) / 2;
        if (tess_flux_order_numel(o, middle) <= g)
            low = middle;
        else
            high = middle;
    }
    return low;
}

static void take(const tess_flux_order *o, int64_t bucket_idx, int64_t first, int64_t *sample)
{
    const tess_latents_bucket *b = &o->bucket[bucket_idx];
    for (int64_t i = 0; i < o->batch_numel; i++) {
        const int64_t v = first * o->batch_numel + i;
        const tess_rng rng = tess_rng_make(o->seed, TESS_RNG_SHUFFLE, 1 + (uint32_t)bucket_idx,
                                           (uint32_t)(uint64_t)(v / b->sample_numel));
        sample[i] = b->first_idx + tess_rng_permute(&rng, b->sample_numel, v % b->sample_numel);
    }
}

int64_t tess_flux_order_at(const tess_flux_order *o, int64_t micro_batch, int64_t *sample)
{
    const int64_t epoch = epoch_of(o, micro_batch), begun = tess_flux_order_numel(o, epoch);
    const int64_t numel = tess_flux_order_numel(o, epoch + 1) - begun;
    const tess_rng rng = tess_rng_make(o->seed, TESS_RNG_SHUFFLE, 0, (uint32_t)(uint64_t)epoch);
    int64_t at = tess_rng_permute(&rng, numel, micro_batch - begun), bucket_idx = 0;
    for (;; bucket_idx++) {
        const int64_t first = given_numel(o, bucket_idx, epoch);
        const int64_t of_bucket = given_numel(o, bucket_idx, epoch + 1) - first;
        if (at < of_bucket) {
            take(o, bucket_idx, first + at, sample);
            return bucket_idx;
        }
        at -= of_bucket;
    }
}

int64_t tess_flux_held_out_numel(const tess_flux_order *o)
{
    int64_t numel = 0;
    for (int64_t i = 0; i < o->bucket_numel; i++)
        numel += tess_ceil_div(o->bucket[i].sample_numel, o->batch_numel);
    return numel;
}

int64_t tess_flux_held_out_at(const tess_flux_order *o, int64_t micro_batch, int64_t *bucket,
                              int64_t *first)
{
    const tess_latents_bucket *b = o->bucket;
    for (;; b++) {
        const int64_t numel = tess_ceil_div(b->sample_numel, o->batch_numel);
        if (micro_batch < numel)
            break;
        micro_batch -= numel;
    }
    const int64_t done = micro_batch * o->batch_numel;
    *bucket = b - o->bucket;
    *first = b->first_idx + done;
    return TESS_MIN(b->sample_numel - done, o->batch_numel);
}
