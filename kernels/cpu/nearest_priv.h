/** The search for nearest codes, one table of inner loops per instruction path. */
#pragma once

#include "kernels/cpu/cpu_priv.h"

TESS_BEGIN_DECLS

enum {
    TESS_NEAREST_CANDIDATE_NUMEL = 96, /* of a vector's short list; above TESS_NEAREST_BEST_MAX */
    TESS_NEAREST_BLOCK_MAX = 512,      /* vectors that are searched together */
    TESS_NEAREST_PANEL_MAX = 32        /* codes of the widest panel */
};

/** Head of a pack; panels of `panel_numel` codes follow: -|c|^2 / 2, then per dimension the codes'
 * values less the offset. */
typedef struct tess_nearest_head {
    float norm_max;      /* of the codes less the offset, rounded up; NaN: not all are finite */
    float half_norm_max; /* of |c|^2 / 2 */
    int64_t code_numel, dim;
    size_t offset_nbytes; /* [dim] f32: subtracted from codes and vectors */
    size_t panel_nbytes;  /* of the first panel */
} tess_nearest_head;

/** A code that may be among the best. */
typedef struct tess_candidate {
    float score;
    uint32_t code_idx;
} tess_candidate;

/** What is known of one vector while panels go by. */
typedef struct tess_shortlist {
    float bar;    /* scores below it are out */
    float slack;  /* 2 E */
    float square; /* |x|^2 less the offset, rounded up */
    int candidate_numel;
    int top_numel; /* best scores so far, at most best_numel */
    bool is_overflown;
} tess_shortlist;

/** Vectors [0, vector_numel) of one block against all panels. */
typedef struct tess_nearest_block {
    const float *x; /* [vector_numel rounded up to rows of a tile, dim], less the offset */
    const float *panel;
    int64_t vector_numel, panel_numel, code_numel, dim;
    int best_numel;
    tess_shortlist *list;      /* [rounded up] */
    tess_candidate *candidate; /* [rounded up, TESS_NEAREST_CANDIDATE_NUMEL] */
    float *top;                /* [rounded up, best_numel] descending */
} tess_nearest_block;

typedef struct tess_nearest_path {
    int row_numel;   /* vectors of a tile */
    int panel_numel; /* codes of a panel */
    void (*scores)(const tess_nearest_block *block);
    /* dst = x - offset [dim]; the sum of squares in f32, lanes first. */
    float (*shift)(const float *x, const float *offset, int64_t dim, float *dst);
    /* Canonical distances of four pairs: out[i] = |x[i] - c[i]|^2 in f32. */
    void (*distances)(const float *const x[4], const float *const c[4], int64_t dim, float out[4]);
} tess_nearest_path;

extern const tess_nearest_path tess_nearest_portable, tess_nearest_avx2, tess_nearest_avx512;

/** The bar under a score that is among the best. */
static inline float tess_nearest_bar(const tess_shortlist *list, float score)
{
    /* Canonical distances that round to the same f32 lie within 2^-23 of each other. */
    const float distance = list->square - 2.0f * score + list->slack;
    return score - list->slack - (distance > 0.0f ? distance : 0.0f) * 0x1p-23f;
}

/** Drop candidates that fell below the bar. Local. */
void tess_nearest_compact(tess_shortlist *list, tess_candidate *candidate);

/** @return false: the list is full, and the vector left to a search of all codes */
static inline bool tess_nearest_append(tess_shortlist *list, tess_candidate *candidate, float score,
                                       uint32_t code_idx)
{
    if (list->candidate_numel == TESS_NEAREST_CANDIDATE_NUMEL)
        tess_nearest_compact(list, candidate);
    if (list->candidate_numel == TESS_NEAREST_CANDIDATE_NUMEL) {
        list->is_overflown = true;
        list->bar = __builtin_inff();
        return false;
    }
    candidate[list->candidate_numel++] = (tess_candidate){score, code_idx};
    return true;
}

/** Enter the scores of one vector and one panel that reach its bar. Local. */
void tess_nearest_enter(const tess_nearest_block *block, int64_t vector_idx, const float *score,
                        int64_t first_code_idx, int score_numel);

TESS_END_DECLS
