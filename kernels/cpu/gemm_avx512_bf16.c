/*
 * AVX-512 with bf16 products: vdpbf16ps adds the product of the odd element of a pair first, then
 * the even one's, and flushes subnormals; nothing else differs from the other paths.
 */
#include "kernels/cpu/gemm_avx512.h"

AVX512_KERNELS(pair, TESS_GEMM_UNIT_PAIR)

const tess_gemm_path tess_gemm_path_avx512_bf16 = {
    .bf16_unit = TESS_GEMM_UNIT_PAIR,
    .lane_numel = AVX512_LANES,
    .vector_max = 4,
    .block_rows = {0, 16, 12, 8, 6},
    .micro = {[TESS_GEMM_UNIT_F32] = AVX512_NAMES(f32), [TESS_GEMM_UNIT_PAIR] = AVX512_NAMES(pair)},
    .pack_across = avx512_pack_across,
    .pack_along = avx512_pack_along,
    .add_scaled = avx512_add_scaled,
    .write = avx512_write,
    .nf4_run = avx512_nf4_run,
};
