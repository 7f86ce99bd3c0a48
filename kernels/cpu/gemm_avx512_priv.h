/**
 * 512-bit vectors: what the two paths that have them share. Include only from files compiled for
 * AVX-512.
 */
#pragma once

#include <immintrin.h>

#include "kernels/cpu/gemm_priv.h"

enum { AVX512_LANES = 16 };

extern const tess_gemm_micro tess_avx512_micro_f32[TESS_GEMM_VECTOR_MAX][TESS_GEMM_BLOCK_MAX];
void tess_avx512_pack_across(const tess_gemm_pack *p);
void tess_avx512_pack_along(const tess_gemm_pack *p);
void tess_avx512_add_scaled(float *dst, const float *src, float scale, int64_t numel);
void tess_avx512_write(const tess_gemm_out *o);
void tess_avx512_lut16_rows(const tess_lut16_rows *r);

TESS_INLINE __m512 avx512_step(__m512 sum, __m512 a, __m512 b, tess_gemm_unit unit)
{
#ifdef __AVX512BF16__
    if (unit == TESS_GEMM_UNIT_PAIR)
        return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
#endif
    (void)unit;
    return _mm512_fmadd_ps(a, b, sum);
}

/* rows x vectors sums in registers: 24 of the 32, so that the latency of one multiply-add is hidden
 * and four vectors of B plus one of A fit beside them. The next tile's A and sums are fetched
 * meanwhile: they lie further away than B, in runs too short for the hardware to foresee. */
TESS_INLINE void avx512_multiply(const tess_gemm_tile *t, const int rows, const int vectors,
                                 const tess_gemm_unit unit)
{
    __m512 sum[TESS_GEMM_BLOCK_MAX][TESS_GEMM_VECTOR_MAX];
    const uint32_t *a = t->a;
    const uint32_t *b = t->b;
    float *c = t->c;
    const int64_t c_stride = t->c_stride;
    TESS_UNROLL
    for (int i = 0; i < rows; i++) {
        TESS_UNROLL
        for (int j = 0; j < vectors; j++)
            sum[i][j] = t->mode == TESS_GEMM_NEXT ? _mm512_loadu_ps(c + i * c_stride + 16 * j)
                                                  : _mm512_setzero_ps();
    }
    const uint32_t *next_a = t->next_a;
    TESS_UNROLL
    for (int i = 0; i < rows * vectors; i++)
        _mm_prefetch((const char *)(t->next_c + 16 * i), _MM_HINT_T0);
    for (int64_t u = 0; u < t->unit_numel; u++) {
        __m512 bv[TESS_GEMM_VECTOR_MAX];
        _mm_prefetch((const char *)next_a, _MM_HINT_T0);
        TESS_UNROLL
        for (int j = 0; j < vectors; j++)
            bv[j] = _mm512_loadu_ps((const void *)(b + 16 * j));
        TESS_UNROLL
        for (int i = 0; i < rows; i++) {
            const __m512 av = _mm512_castsi512_ps(_mm512_set1_epi32((int)a[i]));
            TESS_UNROLL
            for (int j = 0; j < vectors; j++)
                sum[i][j] = avx512_step(sum[i][j], av, bv[j], unit);
        }
        a += rows;
        next_a += rows;
        b += 16 * vectors;
    }
    const __m512 scale = _mm512_set1_ps(t->scale);
    TESS_UNROLL
    for (int i = 0; i < rows; i++) {
        TESS_UNROLL
        for (int j = 0; j < vectors; j++) {
            float *dst = c + i * c_stride + 16 * j;
            __m512 x = sum[i][j];
            if (t->mode == TESS_GEMM_SCALED)
                x = _mm512_add_ps(_mm512_loadu_ps(dst), _mm512_mul_ps(scale, x));
            _mm512_storeu_ps(dst, x);
        }
    }
}

#define AVX512_KERNEL(name, rows, vectors, unit)                                                   \
    static void name##_##rows##x##vectors(const tess_gemm_tile *t)                                 \
    {                                                                                              \
        avx512_multiply(t, rows, vectors, unit);                                                   \
    }
#define AVX512_KERNELS_6(name, v, unit)                                                            \
    AVX512_KERNEL(name, 1, v, unit)                                                                \
    AVX512_KERNEL(name, 2, v, unit)                                                                \
    AVX512_KERNEL(name, 3, v, unit)                                                                \
    AVX512_KERNEL(name, 4, v, unit)                                                                \
    AVX512_KERNEL(name, 5, v, unit) AVX512_KERNEL(name, 6, v, unit)
#define AVX512_KERNELS_8(name, v, unit)                                                            \
    AVX512_KERNELS_6(name, v, unit)                                                                \
    AVX512_KERNEL(name, 7, v, unit) AVX512_KERNEL(name, 8, v, unit)
#define AVX512_KERNELS_12(name, v, unit)                                                           \
    AVX512_KERNELS_8(name, v, unit)                                                                \
    AVX512_KERNEL(name, 9, v, unit)                                                                \
    AVX512_KERNEL(name, 10, v, unit)                                                               \
    AVX512_KERNEL(name, 11, v, unit) AVX512_KERNEL(name, 12, v, unit)
#define AVX512_KERNELS_16(name, v, unit)                                                           \
    AVX512_KERNELS_12(name, v, unit)                                                               \
    AVX512_KERNEL(name, 13, v, unit)                                                               \
    AVX512_KERNEL(name, 14, v, unit)                                                               \
    AVX512_KERNEL(name, 15, v, unit) AVX512_KERNEL(name, 16, v, unit)
#define AVX512_KERNELS(name, unit)                                                                 \
    AVX512_KERNELS_16(name, 1, unit)                                                               \
    AVX512_KERNELS_12(name, 2, unit)                                                               \
    AVX512_KERNELS_8(name, 3, unit) AVX512_KERNELS_6(name, 4, unit)

#define AVX512_NAMES_6(name, v)                                                                    \
    name##_1x##v, name##_2x##v, name##_3x##v, name##_4x##v, name##_5x##v, name##_6x##v
#define AVX512_NAMES_8(name, v) AVX512_NAMES_6(name, v), name##_7x##v, name##_8x##v
#define AVX512_NAMES_12(name, v)                                                                   \
    AVX512_NAMES_8(name, v), name##_9x##v, name##_10x##v, name##_11x##v, name##_12x##v
#define AVX512_NAMES_16(name, v)                                                                   \
    AVX512_NAMES_12(name, v), name##_13x##v, name##_14x##v, name##_15x##v, name##_16x##v
#define AVX512_NAMES(name)                                                                         \
    {                                                                                              \
        {AVX512_NAMES_16(name, 1)}, {AVX512_NAMES_12(name, 2)}, {AVX512_NAMES_8(name, 3)},         \
        {                                                                                          \
            AVX512_NAMES_6(name, 4)                                                                \
        }                                                                                          \
    }
