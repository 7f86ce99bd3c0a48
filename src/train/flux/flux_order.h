/**
 * Which samples a micro-batch of a FLUX.1 run holds: B of one bucket, a pure function of
 * (seed, epoch, number).
 *
 * [Note: order of samples] A bucket of N samples is an endless stream: entry v is entry v % N of
 * the permutation of the bucket's epoch v / N, and its K-th micro-batch takes entries K B to
 * K B + B - 1. By the end of epoch e it has given floor((e + 1) N / B) micro-batches; those of all
 * buckets that an epoch adds are shuffled together. So nothing is dropped and nothing is filled
 * up: what is left of an epoch comes first in the next one, every sample is seen as often as any
 * other, and after e epochs each was seen e times, or e - 1 times if it is among the last of a
 * bucket. A bucket of fewer than B samples gives a micro-batch every B / N epochs, in which they
 * come again with other noise.
 */
#pragma once

#include <stdint.h>

#include "train/data/latents.h"

TESS_BEGIN_DECLS

typedef struct tess_flux_order {
    uint64_t seed;
    int64_t batch_numel;               /* B */
    const tess_latents_bucket *bucket; /* [bucket_numel], borrowed */
    int64_t bucket_numel;
} tess_flux_order;

/** Micro-batches of the first `epoch_numel` epochs. Local, pure. */
int64_t tess_flux_order_numel(const tess_flux_order *order, int64_t epoch_numel);
/**
 * Micro-batch `micro_batch` of the run. Local, pure.
 * @param[out] sample  [B] numbers of samples of the cache
 * @return its bucket
 */
int64_t tess_flux_order_at(const tess_flux_order *order, int64_t micro_batch, int64_t *sample);

/** Held-out micro-batches, bucket by bucket in the file's order, the last of each bucket smaller.
 * Local, pure. */
int64_t tess_flux_held_out_numel(const tess_flux_order *order);
/** @param[out] first  its first sample; the others follow  @return samples in it, 1 to B */
int64_t tess_flux_held_out_at(const tess_flux_order *order, int64_t micro_batch, int64_t *bucket,
                              int64_t *first);

TESS_END_DECLS
