/**
 * Counter-based random numbers: Philox4x32-10.
 *
 * key = seed (lo, hi); counter = (element/4 lo, element/4 hi, index, purpose << 24 | layer).
 * `index` is the global sample or step as the purpose says; the rank never enters, so a draw is the
 * same at any number of ranks.
 */
#pragma once

#include <stdint.h>

#include "core/base.h"

TESS_BEGIN_DECLS

typedef enum tess_rng_purpose {
    TESS_RNG_INIT = 1, /* parameter initialization; index 0, layer = tensor number (24 bits) */
    TESS_RNG_DROPOUT =
        2, /* index = global micro-batch number modulo 2^32, layer = adapter number */
    TESS_RNG_SHUFFLE = 3, /* index = epoch; layer = 0, or 1 + bucket */
    TESS_RNG_SAMPLE = 4,  /* text sampling; index = position */
    TESS_RNG_TEST = 5,
    /* of the FLUX.1 objective; (layer, index) = sample of the run, 56 bits */
    TESS_RNG_SIGMA = 6,
    TESS_RNG_NOISE = 7, /* element = that of the latent [C, h, w] */
    TESS_RNG_GUIDANCE = 8,
    TESS_RNG_CAPTION = 9,
    TESS_RNG_HELD_OUT_SIGMA = 10, /* index = 0 */
    TESS_RNG_HELD_OUT_NOISE = 11, /* (layer, index) = held-out sample */
    TESS_RNG_LATENT = 12,         /* where sampling begins; index = image */
    TESS_RNG_QUANTIZER = 13, /* draws and noise of codes; index 0, layer = index of the vector */
} tess_rng_purpose;

typedef struct tess_rng {
    uint32_t key[2];
    uint32_t index;
    uint32_t purpose_layer;
} tess_rng;

/** Stream of draws for one purpose. `layer` < 2^24. Local. */
static inline tess_rng tess_rng_make(uint64_t seed, tess_rng_purpose purpose, uint32_t layer,
                                     uint32_t index)
{
    const tess_rng rng = {{(uint32_t)seed, (uint32_t)(seed >> 32)},
                          index,
                          (uint32_t)purpose << 24 | (layer & 0xffffffu)};
    return rng;
}

/** The four 32-bit words of elements 4*quad .. 4*quad+3. Local. */
TESS_HD static inline void tess_rng_quad(const tess_rng *rng, uint64_t quad, uint32_t out[4])
{
    uint32_t c0 = (uint32_t)quad, c1 = (uint32_t)(quad >> 32), c2 = rng->index,
             c3 = rng->purpose_layer;
    uint32_t k0 = rng->key[0], k1 = rng->key[1];
    for (int round = 0; round < 10; round++) {
        const uint64_t p0 = (uint64_t)0xD2511F53u * c0;
        const uint64_t p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

/** The 32-bit word of one element. Local. */
TESS_HD static inline uint32_t tess_rng_u32(const tess_rng *rng, uint64_t element_idx)
{
    uint32_t quad[4];
    tess_rng_quad(rng, element_idx / 4, quad);
    return quad[element_idx % 4];
}

/** Uniform in [0, 1): 24 bits, exact in f32. Local. */
TESS_HD static inline float tess_rng_uniform(const tess_rng *rng, uint64_t element_idx)
{
    return (float)(tess_rng_u32(rng, element_idx) >> 8) * 0x1p-24f;
}

/** Standard normal by Box-Muller in fp64; elements 2i and 2i+1 share a pair of words. Local. */
double tess_rng_normal(const tess_rng *rng, uint64_t element_idx);

/**
 * dst[i] = f32(scale * normal(first + i)), by the same formula as tess_rng_normal(). Local.
 *
 * @param[out] dst  [numel] f32
 */
void tess_rng_normal_fill(const tess_rng *rng, uint64_t first_idx, int64_t numel, float scale,
                          float *dst);

/** Uniform integer below `bound` (>= 1) by 64-bit multiply-shift of two words, bias below 2^-32.
 * Local. */
uint64_t tess_rng_below(const tess_rng *rng, uint64_t draw_idx, uint64_t bound);

/**
 * Entry `i` of a pseudo-random permutation of [0, numel): a Feistel network with cycle walking, so
 * that any entry is found without the others. Local.
 */
int64_t tess_rng_permute(const tess_rng *rng, int64_t numel, int64_t i);

TESS_END_DECLS
