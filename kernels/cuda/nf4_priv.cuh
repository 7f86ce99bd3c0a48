/**
 * Reading NF4 and FP4 on the device: f32(table * absmax), then one rounding, as the CPU twin.
 *
 * [Note: table in lanes] The 16 values are kept once per lane of a warp, so that lookups with 32
 * different codes hit 32 different banks.
 */
#pragma once

#include "kernels/cuda/common_priv.cuh"

/** The tables, by value into a kernel. */
typedef struct tess_nf4_constants {
    float value[16];
    float map[256];
} tess_nf4_constants;

/** A stored tensor as a kernel reads it. */
typedef struct tess_nf4_source {
    const uint8_t *codes;
    const float *absmax;         /* [nb], NULL: double quantization */
    const uint8_t *absmax_codes; /* [nb] */
    const float *nested_absmax;  /* [ceil(nb / 256)] */
    const float *nested_offset;  /* [1] */
    int block_shift;             /* log2 of the elements per block */
} tess_nf4_source;

/** The tables in shared memory. */
typedef struct tess_nf4_tables {
    float value[16 * 32];
    float map[256];
} tess_nf4_tables;

/** Whether these kernels read a format: other families have no decoder on the device.
 * @return TESS_E_UNSUPPORTED */
TESS_MUST_CHECK static inline tess_status tess_nf4_format_check(const char *op, tess_format format)
{
    TESS_CHECK(
        format == TESS_FORMAT_NF4 || format == TESS_FORMAT_FP4, TESS_E_UNSUPPORTED,
        "%s: base format %s has no decoder on a CUDA device, expected f32, bf16, nf4 or fp4; "
        "choose one of these or run on the CPU",
        op, tess_format_name(format));
    return TESS_OK;
}

static inline tess_nf4_constants tess_nf4_constants_get(tess_format format)
{
    tess_nf4_constants c;
    memcpy(c.value, tess_codec_table16(format), sizeof c.value);
    memcpy(c.map, tess_dynamic_map_signed(), sizeof c.map);
    return c;
}

static inline tess_nf4_source tess_nf4_source_make(const tess_codec *codec, const void *const *part)
{
    const bool is_double = codec->double_quant;
    const tess_nf4_source s = {
        static_cast<const uint8_t *>(part[0]),
        is_double ? nullptr : static_cast<const float *>(part[1]),
        is_double ? static_cast<const uint8_t *>(part[1]) : nullptr,
        is_double ? static_cast<const float *>(part[2]) : nullptr,
        is_double ? static_cast<const float *>(part[3]) : nullptr,
        __builtin_ctzll((unsigned long long)codec->block_numel),
    };
    return s;
}

/** All threads of the block; a barrier has to follow. */
__device__ static inline void tess_nf4_tables_fill(tess_nf4_tables *t, const tess_nf4_constants &c)
{
    for (int i = (int)threadIdx.x; i < 16 * 32; i += (int)blockDim.x)
        t->value[i] = c.value[i / 32];
    for (int i = (int)threadIdx.x; i < 256; i += (int)blockDim.x)
        t->map[i] = c.map[i];
}

__device__ static inline float tess_nf4_absmax(const tess_nf4_source &s, const tess_nf4_tables *t,
                                               int64_t idx)
{
    const int64_t block = idx >> s.block_shift;
    if (s.absmax != nullptr)
        return s.absmax[block];
    const float scaled =
        t->map[s.absmax_codes[block]] * s.nested_absmax[block / TESS_NESTED_BLOCK_NUMEL];
    return scaled + s.nested_offset[0];
}

__device__ static inline float tess_nf4_value(const tess_nf4_tables *t, unsigned code)
{
    return t->value[code * 32 + threadIdx.x % 32];
}

/** One element, wherever it lies. */
__device__ static inline float tess_nf4_element(const tess_nf4_source &s, const tess_nf4_tables *t,
                                                int64_t idx)
{
    const unsigned byte = s.codes[idx / 2];
    const unsigned code = idx % 2 == 0 ? byte >> 4 : byte & 15u;
    return tess_nf4_value(t, code) * tess_nf4_absmax(s, t, idx);
}

/** Eight elements of one block from the word of their codes. */
__device__ static inline void tess_nf4_decode(const tess_nf4_tables *t, unsigned word, float absmax,
                                              float v[8])
{
#pragma unroll
    for (int k = 0; k < 8; k++) {
        const int shift = 8 * (k / 2) + (k % 2 == 0 ? 4 : 0);
        v[k] = tess_nf4_value(t, word >> shift & 15u) * absmax;
    }
}

/** Store one element. */
template <bool IS_BF16> __device__ static inline void tess_nf4_store(void *dst, int64_t i, float x)
{
    const float pair[2] = {x, 0.0f};
    tess_store<IS_BF16, false, 2>(dst, i, 1, pair);
}
