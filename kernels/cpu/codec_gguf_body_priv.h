/*
 * Decoders of GGUF blocks in C that compilers turn into vector code; a path's file includes this
 * once. Every product and sum is rounded by itself (no contraction), as in the reference.
 *
 * @source ggml src/ggml-quants.c dequantize_row_*, src/ggml-common.h block_*
 */
#pragma once

#include "core/half.h"
#include "kernels/cpu/codec_gguf_priv.h"
#include "kernels/elementwise.h"

static inline float half_at(const uint8_t *p)
{
    return tess_f16_to_f32((uint16_t)(p[0] | p[1] << 8));
}

static inline int8_t signed_of(uint8_t byte) { return (int8_t)byte; }

/* ---- blocks of 32 ---- */

static void q8_0(const uint8_t *restrict b, float *restrict y)
{
    const float d = half_at(b);
    for (int i = 0; i < 32; i++)
        y[i] = (float)signed_of(b[2 + i]) * d;
}

static void q4_0(const uint8_t *restrict b, float *restrict y)
{
    const float d = half_at(b);
    for (int i = 0; i < 16; i++) {
        y[i] = (float)((b[2 + i] & 15) - 8) * d;
        y[i + 16] = (float)((b[2 + i] >> 4) - 8) * d;
    }
}

static void q4_1(const uint8_t *restrict b, float *restrict y)
{
    const float d = half_at(b), m = half_at(b + 2);
    for (int i = 0; i < 16; i++) {
        y[i] = (float)(b[4 + i] & 15) * d + m;
        y[i + 16] = (float)(b[4 + i] >> 4) * d + m;
    }
}

/* Bit i of a word of 32 goes above the four low bits of element i. */
static void q5_codes(const uint8_t *restrict high, const uint8_t *restrict low, int32_t *restrict q)
{
    const uint32_t word = (uint32_t)high[0] | (uint32_t)high[1] << 8 | (uint32_t)high[2] << 16 |
                          (uint32_t)high[3] << 24;
    for (int i = 0; i < 16; i++) {
        q[i] = (int32_t)((low[i] & 15U) | (word >> i & 1U) << 4);
        q[i + 16] = (int32_t)((uint32_t)low[i] >> 4 | (word >> (i + 16) & 1U) << 4);
    }
}

static void q5_0(const uint8_t *restrict b, float *restrict y)
{
    const float d = half_at(b);
    int32_t q[32];
    q5_codes(b + 2, b + 6, q);
    for (int i = 0; i < 32; i++)
        y[i] = (float)(q[i] - 16) * d;
}

static void q5_1(const uint8_t *restrict b, float *restrict y)
{
    const float d = half_at(b), m = half_at(b + 2);
    int32_t q[32];
    q5_codes(b + 4, b + 8, q);
    for (int i = 0; i < 32; i++)
        y[i] = (float)q[i] * d + m;
}

/* ---- blocks of 256 ---- */

/* 6-bit scale and minimum j of eight in 12 bytes. */
static void k_scale(const uint8_t *s, int j, float *scale, float *least)
{
    if (j < 4) {
        *scale = (float)(s[j] & 63);
        *least = (float)(s[j + 4] & 63);
        return;
    }
    *scale = (float)((s[j + 4] & 15) | (s[j - 4] >> 6) << 4);
    *least = (float)(s[j + 4] >> 4 | (s[j] >> 6) << 4);
}

static void q2_k(const uint8_t *restrict b, float *restrict y)
{
    const float d = half_at(b + 80), dmin = half_at(b + 82);
    for (int g = 0; g < 16; g++) { /* groups of 16 */
        const uint8_t *q = b + 16 + 32 * (g / 8) + 16 * (g % 2);
        const int shift = 2 * (g / 2 % 4);
        const float scale = d * (float)(b[g] & 15), least = dmin * (float)(b[g] >> 4);
        for (int i = 0; i < 16; i++)
            y[16 * g + i] = scale * (float)(q[i] >> shift & 3) - least;
    }
}

static void q3_k(const uint8_t *restrict b, float *restrict y)
{
    const uint8_t *s = b + 96;
    const float d = half_at(b + 108);
    for (int g = 0; g < 16; g++) {
        const uint8_t *q = b + 32 + 32 * (g / 8) + 16 * (g % 2), *high = b + 16 * (g % 2);
        const int shift = 2 * (g / 2 % 4), bit = g / 2;
        const int low = g < 8 ? s[g] & 15 : s[g - 8] >> 4;
        const int code = low | (s[8 + g % 4] >> (2 * (g / 4)) & 3) << 4;
        const float scale = d * (float)(code - 32);
        for (int i = 0; i < 16; i++)
            y[16 * g + i] = scale * (float)((q[i] >> shift & 3) + ((high[i] >> bit & 1) << 2) - 4);
    }
}

static void q4_k(const uint8_t *restrict b, float *restrict y)
{
    const float d = half_at(b), dmin = half_at(b + 2);
    for (int j = 0; j < 8; j++) {
        const uint8_t *q = b + 16 + 32 * (j / 2);
        const int shift = 4 * (j % 2);
        float scale = 0.0F, least = 0.0F;
        k_scale(b + 4, j, &scale, &least);
        scale *= d;
        least *= dmin;
        for (int i = 0; i < 32; i++)
            y[32 * j + i] = scale * (float)(q[i] >> shift & 15) - least;
    }
}

static void q5_k(const uint8_t *restrict b, float *restrict y)
{
    const float d = half_at(b), dmin = half_at(b + 2);
    const uint8_t *high = b + 16;
    for (int j = 0; j < 8; j++) {
        const uint8_t *q = b + 48 + 32 * (j / 2);
        const int shift = 4 * (j % 2);
        float scale = 0.0F, least = 0.0F;
        k_scale(b + 4, j, &scale, &least);
        scale *= d;
        least *= dmin;
        for (int i = 0; i < 32; i++)
            y[32 * j + i] =
                scale * (float)((q[i] >> shift & 15) + ((high[i] >> j & 1) << 4)) - least;
    }
}

static void q6_k(const uint8_t *restrict b, float *restrict y)
{
    const float d = half_at(b + 208);
    for (int g = 0; g < 16; g++) {
        const int quarter = g % 8 / 2; /* 32 elements of a half block */
        const uint8_t *low = b + 64 * (g / 8) + 32 * (quarter & 1) + 16 * (g % 2);
        const uint8_t *high = b + 128 + 32 * (g / 8) + 16 * (g % 2);
        const int low_shift = quarter < 2 ? 0 : 4, high_shift = 2 * quarter;
        const float scale = d * (float)signed_of(b[192 + g]);
        for (int i = 0; i < 16; i++)
            y[16 * g + i] =
                scale *
                (float)(((low[i] >> low_shift & 15) | (high[i] >> high_shift & 3) << 4) - 32);
    }
}

/* ---- runs of blocks ---- */

#define GGUF_RUN(name, numel, nbytes)                                                              \
    static void name##_run(const uint8_t *block, int64_t block_numel, float *y)                    \
    {                                                                                              \
        for (int64_t i = 0; i < block_numel; i++)                                                  \
            name(block + i * (nbytes), y + i * (numel));                                           \
    }

GGUF_RUN(q8_0, 32, 34)
GGUF_RUN(q4_0, 32, 18)
GGUF_RUN(q4_1, 32, 20)
GGUF_RUN(q5_0, 32, 22)
GGUF_RUN(q5_1, 32, 24)
GGUF_RUN(q2_k, 256, 84)
GGUF_RUN(q3_k, 256, 110)
GGUF_RUN(q4_k, 256, 144)
GGUF_RUN(q5_k, 256, 176)
GGUF_RUN(q6_k, 256, 210)
#undef GGUF_RUN

static void half_run(const uint16_t *x, int64_t numel, float *y)
{
    for (int64_t i = 0; i < numel; i++)
        y[i] = tess_f16_to_f32(x[i]);
}

static void round_run(const float *x, int64_t numel, uint16_t *y)
{
    for (int64_t i = 0; i < numel; i++)
        y[i] = tess_bf16_from_f32(x[i]);
}

#define GGUF_PATH                                                                                  \
    {                                                                                              \
        .decode = {[TESS_FORMAT_Q8_0] = q8_0_run, [TESS_FORMAT_Q4_0] = q4_0_run,                   \
                   [TESS_FORMAT_Q4_1] = q4_1_run, [TESS_FORMAT_Q5_0] = q5_0_run,                   \
                   [TESS_FORMAT_Q5_1] = q5_1_run, [TESS_FORMAT_Q2_K] = q2_k_run,                   \
                   [TESS_FORMAT_Q3_K] = q3_k_run, [TESS_FORMAT_Q4_K] = q4_k_run,                   \
                   [TESS_FORMAT_Q5_K] = q5_k_run, [TESS_FORMAT_Q6_K] = q6_k_run},                  \
        .half = half_run, .round = round_run,                                                      \
    }
