/**
 * The nearest codes of each vector: search fused with its minimum, no [n, K] anywhere.
 *
 * An assignment is a key (ordered distance << 32 | row): the smaller key is the nearer code, and
 * among equally near ones the lower row. The distance is canonical: acc = fma(t, t, acc) in fp64,
 * t = (double)x_j - (double)c_j, j ascending from acc = 0, rounded once to f32. So a key depends on
 * its vector and its code alone: not on tiles, threads, instruction paths or on which rank holds
 * the code, and minima over parts of a codebook combine to the minimum over the whole.
 *
 * [Note: two stages] A product in f32 on values less a common offset gives the score
 * x.c - |c|^2 / 2 of every code; while it runs, codes whose score lies within the rounding error
 * of the best are kept in a short list, whose canonical distances then decide. With u = 2^-24 the
 * error of a score is at most u 1.1 (d + 8) (|x| max|c| + max|c|^2 / 2): rounding of both
 * differences (2u each), of |c|^2 / 2, of d fused or separate multiply-adds, and of the bar.
 * Distances that are equal only after rounding to f32 lie within 2^-23 of each other. A vector
 * whose list overflows, or whose bound is not finite, is searched canonically over all codes.
 */
#pragma once

#include "core/stream.h"
#include "core/view.h"

TESS_BEGIN_DECLS

enum {
    TESS_NEAREST_BEST_MAX = 64, /* keys per vector */
    TESS_NEAREST_DIM_MAX = 65536
};

/** Key of no code: greater than all others. */
#define TESS_NO_KEY UINT64_MAX
/** Row of no code. */
#define TESS_NO_CODE UINT32_MAX

/** Bits of `x` that compare as unsigned integers like the numbers; -0 counts as +0, NaN is last. */
TESS_HD static inline uint32_t tess_ordered_bits(float x)
{
    union {
        float f;
        uint32_t u;
    } v = {x};
    if (x != x)
        return UINT32_MAX;
    if (x == 0.0f)
        return UINT32_C(0x80000000);
    return v.u & UINT32_C(0x80000000) ? ~v.u : v.u | UINT32_C(0x80000000);
}

/** The number with these bits; NaN for UINT32_MAX. */
TESS_HD static inline float tess_ordered_value(uint32_t bits)
{
    union {
        uint32_t u;
        float f;
    } v = {bits & UINT32_C(0x80000000) ? bits & UINT32_C(0x7fffffff) : ~bits};
    return v.f;
}

TESS_HD static inline uint64_t tess_key_make(float distance, uint32_t row)
{
    return (uint64_t)tess_ordered_bits(distance) << 32 | row;
}
TESS_HD static inline uint32_t tess_key_row(uint64_t key) { return (uint32_t)key; }
TESS_HD static inline float tess_key_distance(uint64_t key)
{
    return tess_ordered_value((uint32_t)(key >> 32));
}

/** Codes as the search wants them. */
typedef struct tess_nearest_prepare_args {
    tess_view code; /* [code_numel, dim] f32 */
    tess_view pack; /* nearest_pack_nbytes() u8_opaque, 64-byte aligned */
    int64_t code_numel, dim;
} tess_nearest_prepare_args;

typedef struct tess_nearest_args {
    tess_view x;    /* [vector_numel, dim] f32 */
    tess_view code; /* [code_numel, dim] f32 */
    tess_view pack; /* made from `code` by nearest_prepare */
    tess_view key;  /* [vector_numel, best_numel] u64, ascending; TESS_NO_KEY where there are
                       fewer codes */
    tess_view work; /* nearest_work_nbytes() u8_opaque */
    int64_t vector_numel, code_numel, dim;
    int64_t first_row_idx; /* row of the first code; rows stay below TESS_NO_CODE */
    int best_numel;        /* 1 .. TESS_NEAREST_BEST_MAX */
} tess_nearest_args;

TESS_MUST_CHECK tess_status tess_nearest_prepare_check(const tess_nearest_prepare_args *a,
                                                       size_t pack_nbytes);
TESS_MUST_CHECK tess_status tess_nearest_check(const tess_nearest_args *a, size_t pack_nbytes,
                                               size_t work_nbytes);

TESS_END_DECLS
