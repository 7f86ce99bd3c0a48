/** Arithmetic of Adafactor, one source for both backends (adafactor.h): no contraction, and what is
 * multiplied by powers of two is exact, so both give the same bits. */
#pragma once

#include <math.h>

#include "kernels/adafactor.h"

TESS_BEGIN_DECLS

TESS_HD static inline double tess_adafactor_square(float g) { return (double)g * (double)g; }

/** Bits of a number that is not negative: they order as the numbers do. */
TESS_HD static inline int64_t tess_adafactor_bits(double square)
{
    union {
        double f;
        int64_t i;
    } v = {square};
    return v.i;
}

/** Squares in a line. */
TESS_HD static inline int64_t tess_adafactor_term_numel(const tess_adafactor_args *a, int64_t line)
{
    return a->cols == 0 ? 1 : line < a->rows ? a->cols : a->rows;
}

/** Bits of a count: `term_numel` squares below 2^e have a sum below 2^(e + bits). */
TESS_HD static inline int tess_adafactor_term_bits(int64_t term_numel)
{
    int bits = 0;
    for (; term_numel > 0; term_numel /= 2)
        bits++;
    return bits;
}

/** What the squares of a line are multiplied by, a power of two; 0 where all are zero. `most` is
 * no subnormal number: the square of the smallest f32 is 2^-298. */
TESS_HD static inline double tess_adafactor_scale(int64_t most, int term_bits)
{
    union {
        uint64_t u;
        double f;
    } v;
    const int end_exponent = (int)(most >> 52) - 1022; /* squares are below 2^this */
    v.u = (uint64_t)(1023 + 62 - term_bits - end_exponent) << 52;
    return most == 0 ? 0.0 : v.f;
}

TESS_HD static inline int64_t tess_adafactor_multiple(double square, double scale)
{
    return llrint(square * scale);
}

/** The new moment of a line. */
TESS_HD static inline float tess_adafactor_moment(const tess_adafactor_args *a, int64_t line)
{
    const int64_t term_numel = tess_adafactor_term_numel(a, line);
    const double scale = tess_adafactor_scale(a->most[line], tess_adafactor_term_bits(term_numel));
    const double mean = scale == 0.0 ? 0.0 : (double)a->sum[line] / scale / (double)term_numel;
    return (float)(a->beta2 * (double)a->moment[line] + (1.0 - a->beta2) * (mean + a->eps));
}

/** `row_mean`: what moments of rows are divided by; 1 for columns, and where there are none. */
TESS_HD static inline float tess_adafactor_root(float moment, double row_mean)
{
    return (float)(1.0 / sqrt((double)moment / row_mean));
}

/** Factors of a step. */
typedef struct tess_adafactor_scalars {
    float rate, keep, beta1, one_minus_beta1;
} tess_adafactor_scalars;

static inline tess_adafactor_scalars tess_adafactor_scalars_make(const tess_adafactor_args *a)
{
    const tess_adafactor_scalars k = {(float)a->rate, (float)(1.0 - a->decay), (float)a->beta1,
                                      (float)(1.0 - a->beta1)};
    return k;
}

/** @return the first moment, which takes the place of the update */
TESS_HD static inline float tess_adafactor_average(float u, float *m,
                                                   const tess_adafactor_scalars *k)
{
    *m = k->beta1 * *m + k->one_minus_beta1 * u;
    return *m;
}

/** @return the new master; `u` has its rate */
TESS_HD static inline float tess_adafactor_apply_one(float p, float u,
                                                     const tess_adafactor_scalars *k)
{
    return p * k->keep - u;
}

TESS_END_DECLS
