/* AVX-512 without bf16 products: bf16 operands are widened to f32 while they are packed. */
#include "kernels/cpu/gemm_avx512_priv.h"

AVX512_KERNELS(f32, TESS_GEMM_UNIT_F32)

const tess_gemm_micro tess_avx512_micro_f32[TESS_GEMM_VECTOR_MAX][TESS_GEMM_BLOCK_MAX] =
    AVX512_NAMES(f32);

const tess_gemm_path tess_gemm_path_avx512 = {
    .bf16_unit = TESS_GEMM_UNIT_F32,
    .lane_numel = AVX512_LANES,
    .vector_max = TESS_GEMM_VECTOR_MAX,
    .block_rows = {0, 16, 12, 8, 6},
    .micro = {[TESS_GEMM_UNIT_F32] = tess_avx512_micro_f32},
    .pack_across = tess_avx512_pack_across,
    .pack_along = tess_avx512_pack_along,
    .add_scaled = tess_avx512_add_scaled,
    .write = tess_avx512_write,
    .lut16_rows = tess_avx512_lut16_rows,
};
