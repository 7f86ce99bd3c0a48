/**
 * Draws keyed by global numbers: which vectors of a set are taken does not depend on who holds
 * them.
 *
 * Element g gives the first two words of Philox4x32-10 with key (seed lo, seed hi ^ purpose) and
 * counter (g lo, g hi, step, layer). Drawing m of N without replacement takes the m elements with
 * the smallest outputs, ties by g; with replacement slot j takes element floor(output(j) N / 2^64).
 */
#pragma once

#include <stdint.h>

#include "core/rng.h"

TESS_BEGIN_DECLS

typedef enum tess_draw_purpose {
    TESS_DRAW_INIT = 1,   /* start codes; step: 0 */
    TESS_DRAW_SEED = 2,   /* sample that k-means++ works on */
    TESS_DRAW_CENTER = 3, /* element: number of the center */
    TESS_DRAW_REPLACE = 4 /* replacements of dead codes; step: of the run */
} tess_draw_purpose;

typedef struct tess_draw {
    uint64_t seed;
    uint32_t purpose; /* tess_draw_purpose, or a test's own */
    uint32_t step, layer;
} tess_draw;

static inline uint64_t tess_draw_output(const tess_draw *draw, uint64_t g)
{
    const tess_rng rng = {
        .key = {(uint32_t)draw->seed, (uint32_t)(draw->seed >> 32) ^ draw->purpose},
        .index = draw->step,
        .purpose_layer = draw->layer};
    uint32_t word[4];
    tess_rng_quad(&rng, g, word);
    return (uint64_t)word[0] << 32 | word[1];
}

/** floor(output(g) bound / 2^64). */
static inline uint64_t tess_draw_below(const tess_draw *draw, uint64_t g, uint64_t bound)
{
    __extension__ typedef unsigned __int128 u128;
    return (uint64_t)((u128)tess_draw_output(draw, g) * bound >> 64);
}

TESS_END_DECLS
