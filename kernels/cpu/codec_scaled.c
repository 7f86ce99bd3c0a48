/*
 * Decoders of quanto's formats and of fp8: runs of bytes with their scales.
 *
 * Rounding: quanto computes in the dtype of its scale, and so do we: round(scale * code), then
 * round(that - shift). fp8 is f32(code * scale), or f32(code * f32(1 / scale)) where the scale is
 * the one that weights were multiplied with. What comes out is rounded once more to what is asked
 * for.
 */
#include <math.h>

#include "core/arith.h"
#include "core/half.h"
#include "kernels/cpu/codec_scaled_priv.h"
#include "kernels/elementwise.h"

const tess_scaled_path *tess_scaled_path_current(void)
{
    switch (tess_cpu_path_current()) {
    case TESS_CPU_AVX512_BF16:
    case TESS_CPU_AVX512:
        return &tess_scaled_avx512;
    case TESS_CPU_AVX2:
        return &tess_scaled_avx2;
    case TESS_CPU_PORTABLE:
        break;
    }
    return &tess_scaled_portable;
}

float tess_scaled_get(const void *array, tess_dtype dt, int64_t idx)
{
    if (dt == TESS_F32)
        return ((const float *)array)[idx];
    const uint16_t x = ((const uint16_t *)array)[idx];
    return dt == TESS_BF16 ? tess_bf16_to_f32(x) : tess_f16_to_f32(x);
}

bool tess_scaled_put(void *array, tess_dtype dt, int64_t idx, float x)
{
    if (dt == TESS_F32)
        ((float *)array)[idx] = x;
    else
        ((uint16_t *)array)[idx] = dt == TESS_BF16 ? tess_bf16_from_f32(x) : tess_f16_from_f32(x);
    return isfinite(tess_scaled_get(array, dt, idx));
}

float tess_scaled_round(tess_dtype dt, float x)
{
    return dt == TESS_BF16  ? tess_bf16_to_f32(tess_bf16_from_f32(x))
           : dt == TESS_F16 ? tess_f16_to_f32(tess_f16_from_f32(x))
                            : x;
}

static tess_code_kind kind_of(tess_format format)
{
    if (format == TESS_FORMAT_QINT8)
        return TESS_CODE_INT8;
    if (format == TESS_FORMAT_QFLOAT8 || format == TESS_FORMAT_E4M3)
        return TESS_CODE_E4M3;
    return format == TESS_FORMAT_QINT4 || format == TESS_FORMAT_QINT2 ? TESS_CODE_BITS
                                                                      : TESS_CODE_E5M2;
}

static const char *array_at(const void *array, tess_dtype dt, int64_t idx)
{
    return (const char *)array + (size_t)idx * tess_dtype_block_nbytes(dt);
}

/* A scale per row or tensor, or none. */
static void bytes_decode(const tess_coded *from, int64_t first_idx, tess_view dst)
{
    const tess_codec *c = from->codec;
    const bool is_fp8 = c->format == TESS_FORMAT_E4M3 || c->format == TESS_FORMAT_E5M2;
    const bool is_raw = is_fp8 && c->scaling == TESS_SCALING_RAW;
    const int64_t block_numel = c->block_numel > 0 ? c->block_numel : first_idx + dst.numel + 1;
    tess_scaled_run r = {
        .kind = kind_of(c->format),
        .codes = (const uint8_t *)from->part[0] + first_idx,
        .numel = dst.numel,
        .block_numel = block_numel,
        .skip_numel = first_idx % block_numel,
        .scale_dt = c->scale_dt,
        .is_inverse = is_fp8 && c->meaning == TESS_SCALE_QUANT,
        .round = is_fp8 ? TESS_F32 : c->scale_dt,
        .is_dst_bf16 = dst.dt == TESS_BF16,
        .dst = dst.data,
    };
    if (!is_raw)
        r.scale = array_at(from->part[1], c->scale_dt, first_idx / block_numel);
    r.is_inverse = r.is_inverse && !is_raw;
    tess_scaled_path_current()->decode(&r);
}

/* Groups in planes: a run ends where a plane does. */
static void planes_decode(const tess_coded *from, int64_t first_idx, tess_view dst)
{
    const tess_codec *c = from->codec;
    const int64_t block_numel = c->block_numel, row_numel = tess_codec_plane_rows(c, from->numel);
    const int code_bits = tess_format_code_bits(c->format);
    const size_t elem_nbytes = tess_dtype_block_nbytes(dst.dt);
    for (int64_t done = 0, numel = 0; done < dst.numel; done += numel) {
        const int64_t idx = first_idx + done, group = idx / block_numel;
        const int64_t plane = group / row_numel, skip = idx % block_numel;
        numel = TESS_MIN((plane + 1) * row_numel * block_numel - idx, dst.numel - done);
        const tess_scaled_run r = {
            .kind = TESS_CODE_BITS,
            .codes = (const uint8_t *)from->part[0] + (group % row_numel) * block_numel + skip,
            .first_bit = (int)plane * code_bits,
            .code_bits = code_bits,
            .numel = numel,
            .block_numel = block_numel,
            .skip_numel = skip,
            .scale = array_at(from->part[1], c->scale_dt, group),
            .shift = array_at(from->part[2], c->scale_dt, group),
            .scale_dt = c->scale_dt,
            .round = c->scale_dt,
            .is_dst_bf16 = dst.dt == TESS_BF16,
            .dst = (char *)dst.data + (size_t)done * elem_nbytes,
        };
        tess_scaled_path_current()->decode(&r);
    }
}

const tess_cpu_codec tess_cpu_codec_quanto8 = {.decode = bytes_decode,
                                               .encode = tess_scaled_rows_encode};
const tess_cpu_codec tess_cpu_codec_fp8 = {.decode = bytes_decode,
                                           .encode = tess_scaled_rows_encode};
const tess_cpu_codec tess_cpu_codec_quanto = {.decode = planes_decode,
                                              .encode = tess_scaled_groups_encode};
