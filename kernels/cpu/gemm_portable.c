#include "kernels/cpu/gemm_generic_priv.h"

enum { ROWS = 4, COLS = 8, LANES = 4, VECTORS = COLS / LANES };

/* Four f32 in whatever the machine has: element-wise operators, no fused steps. */
typedef float vector __attribute__((vector_size(16)));

TESS_INLINE vector load(const void *src)
{
    vector x;
    memcpy(&x, src, sizeof(x));
    return x;
}

/* A multiply and an add per unit, K ascending. */
TESS_INLINE void multiply(const tess_gemm_tile *t, const int rows)
{
    vector sum[ROWS][VECTORS];
    TESS_UNROLL
    for (int i = 0; i < rows; i++) {
        TESS_UNROLL
        for (int j = 0; j < VECTORS; j++)
            sum[i][j] = t->mode == TESS_GEMM_NEXT ? load(t->c + i * t->c_stride + j * LANES)
                                                  : (vector){0.0F, 0.0F, 0.0F, 0.0F};
    }
    for (int64_t u = 0; u < t->unit_numel; u++) {
        TESS_UNROLL
        for (int i = 0; i < rows; i++) {
            float a = 0.0F;
            memcpy(&a, t->a + u * rows + i, sizeof(a));
            const vector av = {a, a, a, a};
            TESS_UNROLL
            for (int j = 0; j < VECTORS; j++)
                sum[i][j] += av * load(t->b + u * COLS + j * LANES);
        }
    }
    const vector scale = {t->scale, t->scale, t->scale, t->scale};
    TESS_UNROLL
    for (int i = 0; i < rows; i++) {
        TESS_UNROLL
        for (int j = 0; j < VECTORS; j++) {
            float *c = t->c + i * t->c_stride + j * LANES;
            const vector x = t->mode == TESS_GEMM_SCALED ? load(c) + scale * sum[i][j] : sum[i][j];
            memcpy(c, &x, sizeof(x));
        }
    }
}

static void micro_1(const tess_gemm_tile *t) { multiply(t, 1); }
static void micro_2(const tess_gemm_tile *t) { multiply(t, 2); }
static void micro_3(const tess_gemm_tile *t) { multiply(t, 3); }
static void micro_4(const tess_gemm_tile *t) { multiply(t, 4); }

static void pack_across(const tess_gemm_pack *p) { generic_pack_across(p); }
static void pack_along(const tess_gemm_pack *p) { generic_pack_along(p); }
static void add_scaled(float *dst, const float *src, float scale, int64_t numel)
{
    generic_add_scaled(dst, src, scale, numel);
}
static void write_rows(const tess_gemm_out *o) { generic_write(o); }
static void lut16_rows(const tess_lut16_rows *r) { generic_lut16_rows(r); }

static const tess_gemm_micro micro_f32[1][TESS_GEMM_BLOCK_MAX] = {
    {micro_1, micro_2, micro_3, micro_4}};

const tess_gemm_path tess_gemm_path_portable = {
    .bf16_unit = TESS_GEMM_UNIT_F32,
    .lane_numel = COLS,
    .vector_max = 1,
    .block_rows = {0, ROWS, 0, 0, 0},
    .micro = {[TESS_GEMM_UNIT_F32] = micro_f32},
    .pack_across = pack_across,
    .pack_along = pack_along,
    .add_scaled = add_scaled,
    .write = write_rows,
    .lut16_rows = lut16_rows,
};
