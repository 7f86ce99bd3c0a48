/*
 * quanto's formats and fp8: codes that stand for numbers, times a scale, less a shift. Every
 * operation is rounded by itself, to the dtype of the scale where the format says so: as
 * kernels/cpu/codec_scaled.c.
 *
 * [Note: planes take turns] A byte of qint4 or qint2 has codes of 2 or 4 groups that lie a plane
 * apart. Where planes are whole rows, row i of a kernel is row i / P of plane i mod P, so that the
 * bytes are used again while they are in the cache.
 */
#include "kernels/cuda/codec_priv.cuh"

/* What a code stands for. BITS: an unsigned number of some bits of its byte. */
enum code_kind { CODE_INT8, CODE_E4M3, CODE_E5M2, CODE_BITS };

struct scaled_source {
    const uint8_t *codes;
    const void *scale, *shift; /* of `scale_dt`; NULL: 1, and 0 */
    int64_t block_numel;       /* elements that share them */
    int64_t plane_rows;        /* BITS: blocks of a plane */
    tess_divisor by_block_chunks, by_plane_rows;
    int code_bits; /* BITS */
    tess_dtype scale_dt;
    tess_dtype round; /* of product and difference */
    bool is_inverse;  /* the scale is 1 over the number */
};

/* Number `idx` of an array of f32, bf16 or f16: its bits, and what they say. */
__device__ static inline unsigned constant_load(const void *array, tess_dtype dt, int64_t idx)
{
    return dt == TESS_F32 ? static_cast<const unsigned *>(array)[idx]
                          : static_cast<const uint16_t *>(array)[idx];
}

__device__ static inline float constant_of(unsigned bits, tess_dtype dt)
{
    if (dt == TESS_F16)
        return tess_half_of(bits);
    return tess_f32_of_bits(dt == TESS_BF16 ? bits << 16 : bits);
}

/* What the bytes stand for. fp8: a shift that keeps the sign puts exponent and fraction where an
 * f32 has them, and a factor corrects the bias, exactly; only where one of the eight has an
 * exponent of all ones is each looked at. */
template <code_kind KIND>
__device__ static inline void numbers_of(tess_words<2> bytes, float v[TESS_DECODE_CHUNK])
{
    constexpr bool IS_E4M3 = KIND == CODE_E4M3;
    constexpr unsigned LEAST_SPECIAL = IS_E4M3 ? 0x7f : 0x7c;
    constexpr float FACTOR = IS_E4M3 ? 0x1p120f : 0x1p112f;
    if constexpr (KIND == CODE_INT8 || KIND == CODE_BITS) {
        const tess_words<2> codes = KIND == CODE_INT8 ? tess_signed_codes(bytes) : bytes;
#pragma unroll
        for (int k = 0; k < TESS_DECODE_CHUNK; k++)
            v[k] = tess_number_of < KIND == CODE_INT8 ? 128 : 0 > (codes, k);
    } else if (!tess_any_byte_from(bytes, LEAST_SPECIAL)) {
#pragma unroll
        for (int k = 0; k < TESS_DECODE_CHUNK; k++) {
            const int top = (int)((k < 4 ? bytes.w[0] : bytes.w[1]) << (24 - 8 * (k % 4)));
            const unsigned bits = (unsigned)(top >> (IS_E4M3 ? 4 : 3));
            v[k] = tess_f32_of_bits(bits & (IS_E4M3 ? 0x87f00000u : 0x8fe00000u)) * FACTOR;
        }
    } else {
#pragma unroll
        for (int k = 0; k < TESS_DECODE_CHUNK; k++) {
            const unsigned byte = tess_byte_of(bytes, k), magnitude = byte & 0x7fu;
            v[k] = tess_widen_small(magnitude << (IS_E4M3 ? 20 : 21), (byte & 0x80u) << 24, FACTOR,
                                    magnitude >= LEAST_SPECIAL);
        }
    }
}

/* All rounded to a dtype. */
__device__ static inline void values_round(tess_dtype dt, float v[TESS_DECODE_CHUNK])
{
#pragma unroll
    for (int k = 0; k < TESS_DECODE_CHUNK; k += 2) {
        if (dt == TESS_BF16) {
            const unsigned pair = tess_bf16_pack(v[k], v[k + 1]);
            v[k] = tess_f32_of_bits(pair << 16);
            v[k + 1] = tess_f32_of_bits(pair & 0xffff0000u);
        } else if (dt == TESS_F16) {
            const float2 pair = __half22float2(__floats2half2_rn(v[k], v[k + 1]));
            v[k] = pair.x;
            v[k + 1] = pair.y;
        }
    }
}

/* Codes as they lie in their bytes, constants as they are stored. */
struct scaled_chunk {
    tess_words<2> bytes;
    unsigned scale, shift;
    int first_bit; /* BITS */
};

template <code_kind KIND> struct scaled_reader {
    typedef scaled_source source;
    typedef tess_no_tables tables;
    typedef scaled_chunk chunk;
    enum { IS_TABLED = false, IS_EXACT = false };

    __device__ static inline void constants_load(const source &s, int64_t block, chunk *c)
    {
        c->scale = s.scale != nullptr ? constant_load(s.scale, s.scale_dt, block) : 0u;
        if (KIND == CODE_BITS)
            c->shift = constant_load(s.shift, s.scale_dt, block);
    }

    __device__ static inline chunk load(const source &s, unsigned at)
    {
        chunk c = {};
        const unsigned block = tess_divide(at, s.by_block_chunks);
        const unsigned plane = KIND == CODE_BITS ? tess_divide(block, s.by_plane_rows) : 0u;
        c.first_bit = (int)plane * s.code_bits;
        c.bytes = tess_bytes8<8>(s.codes + (int64_t)at * TESS_DECODE_CHUNK -
                                 plane * s.plane_rows * s.block_numel);
        constants_load(s, block, &c);
        return c;
    }

    __device__ static inline chunk load_one(const source &s, int64_t idx)
    {
        chunk c = {};
        const int64_t block = idx / s.block_numel;
        const int64_t plane = KIND == CODE_BITS ? block / s.plane_rows : 0;
        c.first_bit = (int)plane * s.code_bits;
        c.bytes.w[0] = s.codes[idx - plane * s.plane_rows * s.block_numel];
        constants_load(s, block, &c);
        return c;
    }

    __device__ static inline void expand(const source &s, const tables *, const chunk &c,
                                         float v[TESS_DECODE_CHUNK])
    {
        tess_words<2> codes = c.bytes;
        float scale = s.scale != nullptr ? constant_of(c.scale, s.scale_dt) : 1.0f;
        if (s.is_inverse)
            scale = 1.0f / scale;
        if (KIND == CODE_BITS) {
            const unsigned mask = 0x01010101u * ((1u << s.code_bits) - 1u);
            codes.w[0] = codes.w[0] >> c.first_bit & mask;
            codes.w[1] = codes.w[1] >> c.first_bit & mask;
        }
        numbers_of<KIND>(codes, v);
#pragma unroll
        for (int k = 0; k < TESS_DECODE_CHUNK; k++)
            v[k] = scale * v[k];
        values_round(s.round, v);
        if constexpr (KIND == CODE_BITS) {
            const float shift = constant_of(c.shift, s.scale_dt);
#pragma unroll
            for (int k = 0; k < TESS_DECODE_CHUNK; k++)
                v[k] = v[k] - shift;
            values_round(s.round, v);
        }
    }
};

template <code_kind KIND>
static tess_status bytes_launch(const tess_decode_args *a, const scaled_source &src, tess_stream *s)
{
    const bool is_whole = tess_decode_is_whole(a, src.block_numel);
    return tess_decode_launch<scaled_reader<KIND>>(a, src, is_whole, 0, s);
}

/* A scale per row or tensor, or none. */
extern "C" tess_status tess_cuda_decode_bytes(const tess_decode_args *a, tess_stream *s)
{
    const tess_codec *codec = &a->codec;
    const bool is_fp8 = codec->format == TESS_FORMAT_E4M3 || codec->format == TESS_FORMAT_E5M2;
    const bool is_raw = is_fp8 && codec->scaling == TESS_SCALING_RAW;
    scaled_source src = {};
    src.codes = static_cast<const uint8_t *>(a->part[0]);
    src.scale = is_raw ? nullptr : a->part[1];
    /* one scale in all, or none: a block that no element lies behind */
    const int64_t all_numel = TESS_DECODE_CHUNK * (TESS_DECODE_CHUNK_MAX - 1);
    const bool is_by_row = !is_raw && codec->block_numel > 0;
    src.block_numel = is_by_row ? codec->block_numel : TESS_MAX(a->numel, all_numel);
    src.by_block_chunks = tess_divisor_make(src.block_numel / TESS_DECODE_CHUNK);
    src.scale_dt = codec->scale_dt;
    src.round = is_fp8 ? TESS_F32 : codec->scale_dt;
    src.is_inverse = is_fp8 && !is_raw && codec->meaning == TESS_SCALE_QUANT;
    if (codec->format == TESS_FORMAT_QINT8)
        return bytes_launch<CODE_INT8>(a, src, s);
    if (codec->format == TESS_FORMAT_QFLOAT8 || codec->format == TESS_FORMAT_E4M3)
        return bytes_launch<CODE_E4M3>(a, src, s);
    return bytes_launch<CODE_E5M2>(a, src, s);
}

/* Groups in planes. All of a tensor without rows is taken in rows of one group. */
extern "C" tess_status tess_cuda_decode_planes(const tess_decode_args *a, tess_stream *s)
{
    const tess_codec *codec = &a->codec;
    scaled_source src = {};
    src.codes = static_cast<const uint8_t *>(a->part[0]);
    src.scale = a->part[1];
    src.shift = a->part[2];
    src.block_numel = codec->block_numel;
    src.plane_rows = tess_codec_plane_rows(codec, a->numel);
    src.by_block_chunks = tess_divisor_make(src.block_numel / TESS_DECODE_CHUNK);
    src.by_plane_rows = tess_divisor_make(src.plane_rows);
    src.code_bits = tess_format_code_bits(codec->format);
    src.scale_dt = src.round = codec->scale_dt;
    const bool is_whole = tess_decode_is_whole(a, src.block_numel);
    const int plane_shift = src.code_bits == 4 ? 1 : 2;
    const bool is_all = a->row_idx == nullptr && a->rows * a->cols == a->numel;
    tess_decode_args rows = *a;
    if (is_all && a->rows == 1 && a->thin == nullptr) {
        rows.rows = a->numel / codec->block_numel;
        rows.cols = rows.dst_stride = codec->block_numel;
    }
    const bool is_folded = is_whole && is_all && rows.rows % (1 << plane_shift) == 0;
    return tess_decode_launch<scaled_reader<CODE_BITS>>(&rows, src, is_whole,
                                                        is_folded ? plane_shift : 0, s);
}
