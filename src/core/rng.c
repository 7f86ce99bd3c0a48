#include "core/rng.h"

#include <math.h>

/* The four normals of one quad: words (0, 1) and (2, 3) are a pair each. */
static void normal_quad(const tess_rng *rng, uint64_t quad_idx, double out[4])
{
    uint32_t quad[4];
    tess_rng_quad(rng, quad_idx, quad);
    for (int pair = 0; pair < 4; pair += 2) {
        const double u = ((double)quad[pair] + 0.5) * 0x1p-32;
        const double angle = 6.283185307179586476925286766559 * ((double)quad[pair + 1] * 0x1p-32);
        const double radius = sqrt(-2.0 * log(u));
        out[pair] = radius * cos(angle);
        out[pair + 1] = radius * sin(angle);
    }
}

double tess_rng_normal(const tess_rng *rng, uint64_t element_idx)
{
    double out[4];
    normal_quad(rng, element_idx / 4, out);
    return out[element_idx % 4];
}

void tess_rng_normal_fill(const tess_rng *rng, uint64_t first_idx, int64_t numel, float scale,
                          float *dst)
{
    double out[4];
    for (int64_t i = 0; i < numel; i++) {
        const uint64_t element_idx = first_idx + (uint64_t)i;
        if (i == 0 || element_idx % 4 == 0)
            normal_quad(rng, element_idx / 4, out);
        dst[i] = (float)(out[element_idx % 4] * scale);
    }
}

uint64_t tess_rng_below(const tess_rng *rng, uint64_t draw_idx, uint64_t bound)
{
    uint32_t quad[4];
    tess_rng_quad(rng, draw_idx, quad);
    const uint64_t word = (uint64_t)quad[0] << 32 | quad[1];
    return (uint64_t)(((unsigned __int128)word * bound) >> 64);
}

static uint64_t feistel(const tess_rng *rng, int half_bits, uint64_t x)
{
    const uint64_t mask = ((uint64_t)1 << half_bits) - 1;
    uint64_t left = x >> half_bits, right = x & mask;
    for (uint64_t round = 0; round < 6; round++) {
        uint32_t quad[4];
        tess_rng_quad(rng, right | round << 60, quad);
        const uint64_t next = left ^ (((uint64_t)quad[0] << 32 | quad[1]) & mask);
        left = right;
        right = next;
    }
    return left << half_bits | right;
}

int64_t tess_rng_permute(const tess_rng *rng, int64_t numel, int64_t i)
{
    int half_bits = 1;
    while (((int64_t)1 << (2 * half_bits)) < numel)
        half_bits++;
    uint64_t x = (uint64_t)i;
    do
        x = feistel(rng, half_bits, x);
    while (x >= (uint64_t)numel);
    return (int64_t)x;
}
