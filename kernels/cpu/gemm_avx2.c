/* AVX2 with fused multiply-add: bf16 operands are widened to f32 while they are packed. */
#include <immintrin.h>

#include "kernels/cpu/gemm_generic_priv.h"

enum { LANES = 8, ROWS = 6, VECTORS = 2 };

TESS_INLINE void multiply(const tess_gemm_tile *t, const int rows, const int vectors)
{
    __m256 sum[ROWS][VECTORS];
    const float *a = (const float *)(const void *)t->a;
    const float *b = (const float *)(const void *)t->b;
    const int64_t c_stride = t->c_stride;
    TESS_UNROLL
    for (int i = 0; i < rows; i++) {
        TESS_UNROLL
        for (int j = 0; j < vectors; j++)
            sum[i][j] = t->mode == TESS_GEMM_NEXT ? _mm256_loadu_ps(t->c + i * c_stride + LANES * j)
                                                  : _mm256_setzero_ps();
    }
    for (int64_t u = 0; u < t->unit_numel; u++) {
        __m256 bv[VECTORS];
        TESS_UNROLL
        for (int j = 0; j < vectors; j++)
            bv[j] = _mm256_loadu_ps(b + LANES * j);
        TESS_UNROLL
        for (int i = 0; i < rows; i++) {
            const __m256 av = _mm256_broadcast_ss(a + i);
            TESS_UNROLL
            for (int j = 0; j < vectors; j++)
                sum[i][j] = _mm256_fmadd_ps(av, bv[j], sum[i][j]);
        }
        a += rows;
        b += LANES * vectors;
    }
    const __m256 scale = _mm256_set1_ps(t->scale);
    TESS_UNROLL
    for (int i = 0; i < rows; i++) {
        TESS_UNROLL
        for (int j = 0; j < vectors; j++) {
            float *dst = t->c + i * c_stride + LANES * j;
            __m256 x = sum[i][j];
            if (t->mode == TESS_GEMM_SCALED)
                x = _mm256_add_ps(_mm256_loadu_ps(dst), _mm256_mul_ps(scale, x));
            _mm256_storeu_ps(dst, x);
        }
    }
}

#define KERNEL(rows, vectors)                                                                      \
    static void micro_##rows##x##vectors(const tess_gemm_tile *t) { multiply(t, rows, vectors); }
KERNEL(1, 1)
KERNEL(2, 1)
KERNEL(3, 1)
KERNEL(4, 1)
KERNEL(5, 1)
KERNEL(6, 1)
KERNEL(1, 2)
KERNEL(2, 2)
KERNEL(3, 2)
KERNEL(4, 2)
KERNEL(5, 2)
KERNEL(6, 2)

static void pack_across(const tess_gemm_pack *p) { generic_pack_across(p); }
static void pack_along(const tess_gemm_pack *p) { generic_pack_along(p); }
static void add_scaled(float *dst, const float *src, float scale, int64_t numel)
{
    generic_add_scaled(dst, src, scale, numel);
}
static void write_rows(const tess_gemm_out *o) { generic_write(o); }
static void lut16_rows(const tess_lut16_rows *r) { generic_lut16_rows(r); }

static const tess_gemm_micro micro_f32[VECTORS][TESS_GEMM_BLOCK_MAX] = {
    {micro_1x1, micro_2x1, micro_3x1, micro_4x1, micro_5x1, micro_6x1},
    {micro_1x2, micro_2x2, micro_3x2, micro_4x2, micro_5x2, micro_6x2}};

const tess_gemm_path tess_gemm_path_avx2 = {
    .bf16_unit = TESS_GEMM_UNIT_F32,
    .lane_numel = LANES,
    .vector_max = VECTORS,
    .block_rows = {0, ROWS, ROWS, 0, 0},
    .micro = {[TESS_GEMM_UNIT_F32] = micro_f32},
    .pack_across = pack_across,
    .pack_along = pack_along,
    .add_scaled = add_scaled,
    .write = write_rows,
    .lut16_rows = lut16_rows,
};
