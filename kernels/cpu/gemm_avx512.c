/* AVX-512 without bf16 products: bf16 operands are widened to f32 while they are packed. */
#include "kernels/cpu/gemm_avx512.h"

const tess_gemm_path tess_gemm_path_avx512 = {
    .bf16_unit = TESS_GEMM_UNIT_F32,
    .lane_numel = AVX512_LANES,
    .vector_max = 4,
    .block_rows = {0, 16, 12, 8, 6},
    .micro = {[TESS_GEMM_UNIT_F32] = AVX512_NAMES(f32)},
    .pack_across = avx512_pack_across,
    .pack_along = avx512_pack_along,
    .add_scaled = avx512_add_scaled,
    .write = avx512_write,
    .nf4_run = avx512_nf4_run,
};
