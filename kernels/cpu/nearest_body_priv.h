/** Inner loops of the search, compiled once per instruction path. */
#pragma once

#include <math.h>

#include "kernels/cpu/nearest_priv.h"
#include "kernels/cpu/vec_priv.h"

/* Vectors of a tile: their sums, two codes and a value fill the registers. */
#if defined(__AVX512F__)
#define NEAREST_TABLE tess_nearest_avx512
enum { ROWS = 12 };
#elif defined(__AVX2__)
#define NEAREST_TABLE tess_nearest_avx2
enum { ROWS = 6 };
#else
#define NEAREST_TABLE tess_nearest_portable
enum { ROWS = 4 };
#endif
enum { PANEL = 2 * VL };

/* Fused where the path has it: scores only make the short list. */
INLINE vf vf_madd(vf a, vf b, vf c)
{
#if defined(__AVX512F__)
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

/* Scores of ROWS vectors and one panel. */
INLINE void score_tile(const float *restrict x, int64_t dim, const float *restrict panel,
                       float score[ROWS][PANEL])
{
    vf acc[ROWS][2];
    const vf low = vf_load(panel), high = vf_load(panel + VL);
    for (int r = 0; r < ROWS; r++)
        acc[r][0] = low, acc[r][1] = high;
    const float *c = panel + PANEL;
    for (int64_t j = 0; j < dim; j++, c += PANEL) {
        const vf c0 = vf_load(c), c1 = vf_load(c + VL);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++) {
            const vf value = vf_set1(x[r * dim + j]);
            acc[r][0] = vf_madd(value, c0, acc[r][0]);
            acc[r][1] = vf_madd(value, c1, acc[r][1]);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++) {
        vf_store(score[r], acc[r][0]);
        vf_store(score[r] + VL, acc[r][1]);
    }
}

/* Bit i: lane i is at least `bar`. */
INLINE uint32_t lanes_from(vf score, float bar)
{
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask((__m512)score, (__m512)vf_set1(bar), _CMP_GE_OQ);
#elif defined(__AVX2__)
    return (uint32_t)_mm256_movemask_ps(
        _mm256_cmp_ps((__m256)score, (__m256)vf_set1(bar), _CMP_GE_OQ));
#else
    uint32_t mask = 0;
    for (int i = 0; i < VL; i++)
        mask |= (uint32_t)(score[i] >= bar) << i;
    return mask;
#endif
}

INLINE float greatest(vf score)
{
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)score);
#elif defined(__AVX2__)
    const __m256 v = (__m256)score;
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
#else
    float most = score[0];
    for (int i = 1; i < VL; i++)
        most = score[i] > most ? score[i] : most;
    return most;
#endif
}

/* Where one key is wanted: the panel's best sets the bar, then few others reach it. */
INLINE void enter_best(const tess_nearest_block *block, int64_t vector_idx,
                       const float score[PANEL], int64_t first_code_idx)
{
    const vf low = vf_load(score), high = vf_load(score + VL);
    const float most = greatest(vf_max(low, high));
    tess_shortlist *list = &block->list[vector_idx];
    tess_candidate *candidate = block->candidate + vector_idx * TESS_NEAREST_CANDIDATE_NUMEL;
    if (list->top_numel == 0 || most > block->top[vector_idx]) {
        list->top_numel = 1;
        block->top[vector_idx] = most;
        list->bar = tess_nearest_bar(list, most);
    }
    uint64_t mask = lanes_from(low, list->bar) | (uint64_t)lanes_from(high, list->bar) << VL;
    for (; mask != 0; mask &= mask - 1) {
        const int i = __builtin_ctzll(mask);
        if (!tess_nearest_append(list, candidate, score[i], (uint32_t)(first_code_idx + i)))
            return;
    }
}

/* A panel stays in the first cache while the block's vectors pass by it. */
static void scores(const tess_nearest_block *block)
{
    _Alignas(64) float score[ROWS][PANEL];
    const int64_t dim = block->dim, stride = PANEL * (dim + 1);
    for (int64_t p = 0; p < block->panel_numel; p++)
        for (int64_t v = 0; v < block->vector_numel; v += ROWS) {
            score_tile(block->x + v * dim, dim, block->panel + p * stride, score);
            const int row_numel = (int)TESS_MIN(block->vector_numel - v, (int64_t)ROWS);
            for (int r = 0; r < row_numel; r++) {
                const vf best = vf_max(vf_load(score[r]), vf_load(score[r] + VL));
                if (lanes_from(best, block->list[v + r].bar) == 0)
                    continue;
                if (block->best_numel == 1)
                    enter_best(block, v + r, score[r], p * PANEL);
                else
                    tess_nearest_enter(block, v + r, score[r], p * PANEL, PANEL);
            }
        }
}

static float shift(const float *x, const float *offset, int64_t dim, float *dst)
{
    vf square[2] = {{0}, {0}};
    float sum = 0.0f;
    int64_t j = 0;
    for (; j + 2 * VL <= dim; j += 2 * VL)
        for (int i = 0; i < 2; i++) {
            const vf value = vf_load(x + j + i * VL) - vf_load(offset + j + i * VL);
            vf_store(dst + j + i * VL, value);
            square[i] = vf_madd(value, value, square[i]);
        }
    for (; j < dim; j++) {
        dst[j] = x[j] - offset[j];
        sum += dst[j] * dst[j];
    }
    square[0] += square[1];
    for (int i = 0; i < VL; i++)
        sum += square[0][i];
    return sum;
}

#if defined(__AVX2__)
/* Four chains side by side: lane i adds the squares of pair i in ascending dimension. */
static void distances(const float *const x[4], const float *const c[4], int64_t dim, float out[4])
{
    __m256d acc = _mm256_setzero_pd();
    int64_t j = 0;
    for (; j + 4 <= dim; j += 4) {
        __m256d t[4];
        for (int i = 0; i < 4; i++)
            t[i] = _mm256_sub_pd(_mm256_cvtps_pd(_mm_loadu_ps(x[i] + j)),
                                 _mm256_cvtps_pd(_mm_loadu_ps(c[i] + j)));
        const __m256d a = _mm256_unpacklo_pd(t[0], t[1]), b = _mm256_unpackhi_pd(t[0], t[1]);
        const __m256d e = _mm256_unpacklo_pd(t[2], t[3]), f = _mm256_unpackhi_pd(t[2], t[3]);
        const __m256d t0 = _mm256_permute2f128_pd(a, e, 0x20),
                      t1 = _mm256_permute2f128_pd(b, f, 0x20),
                      t2 = _mm256_permute2f128_pd(a, e, 0x31),
                      t3 = _mm256_permute2f128_pd(b, f, 0x31);
        acc = _mm256_fmadd_pd(t0, t0, acc);
        acc = _mm256_fmadd_pd(t1, t1, acc);
        acc = _mm256_fmadd_pd(t2, t2, acc);
        acc = _mm256_fmadd_pd(t3, t3, acc);
    }
    for (; j < dim; j++) {
        const __m256d t = _mm256_sub_pd(_mm256_set_pd(x[3][j], x[2][j], x[1][j], x[0][j]),
                                        _mm256_set_pd(c[3][j], c[2][j], c[1][j], c[0][j]));
        acc = _mm256_fmadd_pd(t, t, acc);
    }
    _mm_storeu_ps(out, _mm256_cvtpd_ps(acc));
}
#else
static void distances(const float *const x[4], const float *const c[4], int64_t dim, float out[4])
{
    for (int i = 0; i < 4; i++) {
        double acc = 0.0;
        for (int64_t j = 0; j < dim; j++) {
            const double t = (double)x[i][j] - (double)c[i][j];
            acc = fma(t, t, acc);
        }
        out[i] = (float)acc;
    }
}
#endif

const tess_nearest_path NEAREST_TABLE = {.row_numel = ROWS,
                                         .panel_numel = PANEL,
                                         .scores = scores,
                                         .shift = shift,
                                         .distances = distances};
