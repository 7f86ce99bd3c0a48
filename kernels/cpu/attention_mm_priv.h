/**
 * Small products of attention: C[m, n] (+)= A[m, k] B[k, n], k ascending, all of it in registers.
 *
 * A is row-major; B is packed as [k / PAIR][columns][PAIR]. With f32 operands PAIR is 1; with bf16
 * operands (TESS_ATTENTION_BF16) it is 2 and k even.
 */
#pragma once

#include "kernels/cpu/attention_priv.h"
#include "kernels/cpu/vec_priv.h"

#ifdef TESS_ATTENTION_BF16
typedef uint16_t operand;
enum { PAIR = 2 };
#else
typedef float operand;
enum { PAIR = 1 };
#endif

/* Registers of a tile: TILE_ROWS x TILE_VECTORS accumulators. */
#if defined(__AVX512F__)
#define TILE_ROWS_MAX 6
#define TILE_VECTORS_MAX 4
#elif defined(__AVX2__)
#define TILE_ROWS_MAX 6
#define TILE_VECTORS_MAX 2
#else
#define TILE_ROWS_MAX 3
#define TILE_VECTORS_MAX 4
#endif
enum { TILE_ROWS = TILE_ROWS_MAX, TILE_VECTORS = TILE_VECTORS_MAX };

typedef struct small_mm {
    int64_t m, n, k; /* n a multiple of 16 */
    const operand *a;
    int64_t a_stride;
    const operand *b;
    int64_t b_stride; /* operands from one k / PAIR to the next */
    float *c;
    int64_t c_stride;
    bool accumulate;
} small_mm;

/* acc + a b: two bf16 products, or one fused or plain f32 product */
INLINE vf multiply_add(vf acc, const operand *a, const operand *b)
{
#if defined(TESS_ATTENTION_BF16)
    int32_t pair = 0;
    memcpy(&pair, a, sizeof pair);
    return (vf)_mm512_dpbf16_ps((__m512)acc, (__m512bh)_mm512_set1_epi32(pair),
                                (__m512bh)_mm512_loadu_si512(b));
#elif defined(__AVX512F__)
    return (vf)_mm512_fmadd_ps(_mm512_set1_ps(*a), _mm512_loadu_ps(b), (__m512)acc);
#elif defined(__AVX2__)
    return (vf)_mm256_fmadd_ps(_mm256_set1_ps(*a), _mm256_loadu_ps(b), (__m256)acc);
#else
    return acc + *a * vf_load(b);
#endif
}

INLINE void tile(const small_mm *mm, int64_t row, int64_t col, const int rows, const int vectors)
{
    const operand *a = mm->a + row * mm->a_stride;
    const operand *b = mm->b + col * PAIR;
    float *c = mm->c + row * mm->c_stride + col;
    vf acc[TILE_ROWS][TILE_VECTORS];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++)
            acc[r][v] = mm->accumulate ? vf_load(c + r * mm->c_stride + v * VL) : (vf){0};
    const int64_t a_stride = mm->a_stride, b_stride = mm->b_stride;
    for (int64_t k = 0; k < mm->k; k += PAIR, b += b_stride)
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++)
                acc[r][v] = multiply_add(acc[r][v], a + r * a_stride + k, b + v * VL * PAIR);
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++)
            vf_store(c + r * mm->c_stride + v * VL, acc[r][v]);
}

#define TILE_CASE(rows, vectors)                                                                   \
    case (rows)*8 + (vectors):                                                                     \
        tile(mm, row, col, rows, vectors);                                                         \
        break;

static void tile_any(const small_mm *mm, int64_t row, int64_t col, int rows, int vectors)
{
    switch (rows * 8 + vectors) {
        TILE_CASE(1, 1)
        TILE_CASE(2, 1)
        TILE_CASE(3, 1)
        TILE_CASE(1, 2)
        TILE_CASE(2, 2)
        TILE_CASE(3, 2)
#if TILE_VECTORS_MAX > 2
        TILE_CASE(1, 3)
        TILE_CASE(2, 3)
        TILE_CASE(3, 3)
        TILE_CASE(1, 4)
        TILE_CASE(2, 4)
        TILE_CASE(3, 4)
#endif
#if TILE_ROWS_MAX > 3
        TILE_CASE(4, 1)
        TILE_CASE(5, 1)
        TILE_CASE(6, 1)
        TILE_CASE(4, 2)
        TILE_CASE(5, 2)
        TILE_CASE(6, 2)
#endif
#if TILE_ROWS_MAX > 3 && TILE_VECTORS_MAX > 2
        TILE_CASE(4, 3)
        TILE_CASE(5, 3)
        TILE_CASE(6, 3)
        TILE_CASE(4, 4)
        TILE_CASE(5, 4)
        TILE_CASE(6, 4)
#endif
    default:
        break;
    }
}

/* Rows of the next tile: never leaves one or two rows when an even cut is possible. */
INLINE int next_rows(int64_t left)
{
    if (left > TILE_ROWS && left < 2 * TILE_ROWS)
        return (int)((left + 1) / 2);
    return (int)TESS_MIN(left, TILE_ROWS);
}

static void multiply(const small_mm *mm)
{
    const int64_t vector_numel = mm->n / VL;
    for (int64_t v = 0; v < vector_numel; v += TILE_VECTORS) {
        const int vectors = (int)TESS_MIN(TILE_VECTORS, vector_numel - v);
        for (int64_t row = 0; row < mm->m;) {
            const int rows = next_rows(mm->m - row);
            tile_any(mm, row, v * VL, rows, vectors);
            row += rows;
        }
    }
}
