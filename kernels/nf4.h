/**
 * NF4 and FP4: quantize and dequantize (constants and rules: bitsandbytes 4-bit formats, CUDA
 * thresholds).
 *
 * The tensor is one flat row-major array in blocks of `block_numel`; blocks may cross rows. Per
 * block absmax f32, inv = 1/absmax (IEEE; absmax <= 2^-128: divide instead), code = number of
 * thresholds t with x*inv > t. FP4: number of thresholds below |x*inv| gives the magnitude's code,
 * bit 3 is set when x < 0. Byte k holds element 2k in the high nibble; an odd tail's low nibble is
 * the code of zero (7; FP4: 0), and so are all codes of a zero block, with absmax 0. Double
 * quantization: offset = mean(absmax) in fp64 ascending rounded to f32; absmax - offset in blocks
 * of 256 by the signed dynamic 8-bit map, nearest entry by the f32 midpoint, ties to the even code
 * index, a zero block: 127. No fused multiply-add anywhere, so that CPU and GPU give the same
 * bytes.
 */
#pragma once

#include "kernels/quantize.h"

TESS_BEGIN_DECLS

/** The 16 table values, ascending. */
extern const float tess_nf4_table[16];
/** The 15 thresholds. */
extern const float tess_nf4_threshold[15];
/** FP4: the 16 values by code, the 7 thresholds of magnitudes ascending, and the magnitude's code
 * by the number of thresholds below it. */
extern const float tess_fp4_table[16];
extern const float tess_fp4_threshold[7];
extern const uint8_t tess_fp4_code[8];
/** The 16 values of NF4 or FP4. Local. */
const float *tess_codec_table16(tess_format format);
/** The signed dynamic map: 256 ascending values; the unsigned one. Local. */
const float *tess_dynamic_map_signed(void);
const float *tess_dynamic_map_unsigned(void);

TESS_END_DECLS
