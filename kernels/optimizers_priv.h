/** The updates of one element, one source for both backends: products and sums are never contracted
 * and sqrt and / are IEEE, so both give the same bits. */
#pragma once

#include <math.h>

#include "kernels/math_priv.h"
#include "kernels/optimizers.h"

TESS_BEGIN_DECLS

enum { TESS_STATE_BLOCK_NUMEL = 256, TESS_CODE_OF_ZERO_SIGNED = 127 };

TESS_HD static inline float tess_lion_one(float p, float g, float *m, const tess_lion_scalars *k)
{
    const float c = k->beta1 * *m + k->one_minus_beta1 * g;
    const float sign = c > 0.0f ? 1.0f : c < 0.0f ? -1.0f : 0.0f;
    *m = k->beta2 * *m + k->one_minus_beta2 * g;
    return p * k->decay - k->rate * sign;
}

/** The point between x and z where gradients are taken. */
TESS_HD static inline float tess_blend_one(float a, float b, float weight)
{
    return a + weight * (b - a);
}

/** @return the new x */
TESS_HD static inline float tess_schedule_free_one(float x, float g, float *z, float *v,
                                                   const tess_schedule_free_scalars *k)
{
    const float y = tess_blend_one(x, *z, k->blend);
    *v = k->beta2 * *v + k->one_minus_beta2 * (g * g);
    const float n = g / (sqrtf(*v / k->bias2) + k->eps) + k->decay * y;
    *z = *z - k->rate * n;
    return tess_blend_one(x, *z, k->average);
}

/** What one element adds to the two sums of Prodigy. */
typedef struct tess_prodigy_terms {
    double numerator, denominator;
} tess_prodigy_terms;

TESS_HD static inline tess_prodigy_terms
tess_prodigy_measure_one(float p, float start, float g, float *m, float *v, float *s,
                         const tess_prodigy_measure_scalars *k)
{
    *m = k->beta1 * *m + k->one_minus_beta1 * g;
    *v = k->beta2 * *v + k->one_minus_beta2 * (g * g);
    *s = k->beta3 * *s + k->s_rate * g;
    const tess_prodigy_terms terms = {(double)g * ((double)start - (double)p), fabs((double)*s)};
    return terms;
}

TESS_HD static inline float tess_prodigy_apply_one(float p, float m, float v,
                                                   const tess_prodigy_apply_scalars *k)
{
    return p * k->decay - k->rate * m / (sqrtf(v) + k->eps);
}

/** The moments after a gradient, in f32; both are lost where it is not finite. */
TESS_HD static inline void tess_adamw_8bit_moments(float g, float *m, float *v,
                                                   const tess_adamw_8bit_scalars *k)
{
    const bool is_finite = g - g == 0.0f;
    *m = is_finite ? k->beta1 * *m + k->one_minus_beta1 * g : 0.0f;
    *v = is_finite ? k->beta2 * *v + k->one_minus_beta2 * (g * g) : 0.0f;
}

TESS_HD static inline float tess_adamw_8bit_one(float p, float g, float m, float v,
                                                const tess_adamw_8bit_scalars *k)
{
    if (!(g - g == 0.0f))
        return p;
    return (p + k->step_size * (m / (sqrtf(v) + k->eps))) * k->decay;
}

/** Code of a first moment in a block of this largest magnitude. */
TESS_HD static inline unsigned tess_signed_code(const float *map, float m, float absmax)
{
    if (!(absmax > 0.0f))
        return TESS_CODE_OF_ZERO_SIGNED;
    const unsigned code = tess_map_code(map, m / absmax);
    const bool is_negative = (tess_f32_bits(m) >> 31) != 0;
    if (((tess_f32_bits(map[code]) >> 31) != 0) == is_negative)
        return code;
    return m > 0.0f ? code + 1 : code - 1;
}

/** Code of a second moment. */
TESS_HD static inline unsigned tess_unsigned_code(const float *map, float v, float absmax)
{
    return absmax > 0.0f ? tess_map_code(map, v / absmax) : 0;
}

TESS_END_DECLS
