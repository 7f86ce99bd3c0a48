/*
 * int8 by row: f32(f32(code * scb) / 127), as kernels/cpu/codec_int8.c.
 *
 * [Note: divided by 127] With r the rounded 1/127 and q = f32(x * r), f32(q + r * (x - 127 q)) is
 * the rounded quotient: r is within 2^-29 of 1/127, so q is one of the two neighbours of the
 * quotient and the remainder is exact (Markstein, "Computation of elementary functions on the IBM
 * RISC System/6000 processor", 1990). That also holds among subnormal numbers: remainders are whole
 * multiples of 2^-149, and 127 is odd, so no quotient lies within 2^-8 of a step from the middle of
 * two. Two fused operations where a division takes about ten. What is left to the division: scales
 * whose products may overflow, and those that are not positive, for the sign of zero.
 */
#include "kernels/cuda/codec_priv.cuh"

#define MOST_SCB 0x1p113f

struct int8_source {
    const uint8_t *codes;
    const float *scb;
    int64_t row_numel;
    tess_divisor by_row_chunks;
};

struct int8_chunk {
    tess_words<2> codes;
    float scb;
};

struct int8_reader {
    typedef int8_source source;
    typedef tess_no_tables tables;
    typedef int8_chunk chunk;
    enum { IS_TABLED = false, IS_EXACT = false };

    __device__ static inline chunk load(const source &s, unsigned at)
    {
        const chunk c = {tess_bytes8<8>(s.codes + (int64_t)at * TESS_DECODE_CHUNK),
                         s.scb[tess_divide(at, s.by_row_chunks)]};
        return c;
    }

    __device__ static inline chunk load_one(const source &s, int64_t idx)
    {
        const chunk c = {{{s.codes[idx]}}, s.scb[idx / s.row_numel]};
        return c;
    }

    __device__ static inline void expand(const source &, const tables *, const chunk &c,
                                         float v[TESS_DECODE_CHUNK])
    {
        const bool is_plain = c.scb > 0.0f && c.scb <= MOST_SCB;
        const tess_words<2> codes = tess_signed_codes(c.codes);
#pragma unroll
        for (int k = 0; k < TESS_DECODE_CHUNK; k++)
            v[k] = tess_number_of<128>(codes, k) * c.scb;
        if (is_plain) {
#pragma unroll
            for (int k = 0; k < TESS_DECODE_CHUNK; k++) {
                const float q = v[k] * (1.0f / 127.0f);
                v[k] = __fmaf_rn(__fmaf_rn(-q, 127.0f, v[k]), 1.0f / 127.0f, q);
            }
        } else {
#pragma unroll
            for (int k = 0; k < TESS_DECODE_CHUNK; k++)
                v[k] = v[k] / 127.0f;
        }
    }
};

extern "C" tess_status tess_cuda_decode_int8(const tess_decode_args *a, tess_stream *s)
{
    const int8_source src = {static_cast<const uint8_t *>(a->part[0]),
                             static_cast<const float *>(a->part[1]), a->codec.block_numel,
                             tess_divisor_make(a->codec.block_numel / TESS_DECODE_CHUNK)};
    return tess_decode_launch<int8_reader>(a, src, tess_decode_is_whole(a, src.row_numel), 0, s);
}
