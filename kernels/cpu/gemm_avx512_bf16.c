/*
 * AVX-512 with bf16 products: vdpbf16ps adds the product of the odd element of a pair first, then
 * the even one's, and flushes subnormals; nothing else differs from the other paths.
 */
#include "kernels/cpu/gemm_avx512_priv.h"

AVX512_KERNELS(pair, TESS_GEMM_UNIT_PAIR)

static const tess_gemm_micro micro_pair[TESS_GEMM_VECTOR_MAX][TESS_GEMM_BLOCK_MAX] =
    AVX512_NAMES(pair);

const tess_gemm_path tess_gemm_path_avx512_bf16 = {
    .bf16_unit = TESS_GEMM_UNIT_PAIR,
    .lane_numel = AVX512_LANES,
    .vector_max = TESS_GEMM_VECTOR_MAX,
    .block_rows = {0, 16, 12, 8, 6},
    .micro = {[TESS_GEMM_UNIT_F32] = tess_avx512_micro_f32, [TESS_GEMM_UNIT_PAIR] = micro_pair},
    .pack_across = tess_avx512_pack_across,
    .pack_along = tess_avx512_pack_along,
    .add_scaled = tess_avx512_add_scaled,
    .write = tess_avx512_write,
    .lut16_rows = tess_avx512_lut16_rows,
};
