/* f16, and the blocks of GGUF files: every product and sum rounded by itself, as in the reference.
 * Layouts: kernels/cpu/codec_gguf_body_priv.h. */
#include "kernels/cuda/codec_priv.cuh"

/* ---- f16 ---- */

struct half_source {
    const uint16_t *values;
};

struct half_reader {
    typedef half_source source;
    typedef tess_no_tables tables;
    typedef tess_words<4> chunk;
    enum { IS_TABLED = false, IS_EXACT = true };

    __device__ static inline chunk load(const source &s, unsigned at)
    {
        return tess_words_load<4>(s.values + (int64_t)at * TESS_DECODE_CHUNK);
    }

    __device__ static inline chunk load_one(const source &s, int64_t idx)
    {
        const chunk c = {{s.values[idx]}};
        return c;
    }

    __device__ static inline void expand(const source &, const tables *, const chunk &c,
                                         float v[TESS_DECODE_CHUNK])
    {
        unsigned special = 0; /* exponents of all ones carry into the sign */
#pragma unroll
        for (int i = 0; i < TESS_DECODE_CHUNK / 2; i++)
            special |= (c.w[i] & 0x7c007c00u) + 0x04000400u;
        if ((special & 0x80008000u) == 0) {
#pragma unroll
            for (int k = 0; k < TESS_DECODE_CHUNK; k += 2) {
                __half2 halves;
                memcpy(&halves, &c.w[k / 2], sizeof halves);
                const float2 pair = __half22float2(halves);
                v[k] = pair.x;
                v[k + 1] = pair.y;
            }
        } else {
#pragma unroll
            for (int k = 0; k < TESS_DECODE_CHUNK; k++)
                v[k] = tess_half_of(c.w[k / 2] >> 16 * (k % 2) & 0xffffu);
        }
    }
};

extern "C" tess_status tess_cuda_decode_half(const tess_decode_args *a, tess_stream *s)
{
    const half_source src = {static_cast<const uint16_t *>(a->part[0])};
    return tess_decode_launch<half_reader>(a, src, tess_decode_is_whole(a, 0), 0, s);
}

/* ---- GGUF ---- */

/* A chunk as it lies in its block. */
struct gguf_chunk {
    tess_words<2> low, high; /* bytes with codes, or with parts of them */
    unsigned constants;      /* one or two f16 */
    unsigned scales;         /* bytes of scales of groups, or the chunk's fifth bits */
    int c;                   /* its number in the block */
    int first;               /* which of its elements comes first: 0 but for single elements */
};

/* Codes of eight elements, a byte each; a value is (code - OFFSET) * scale [+ shift]. */
struct gguf_codes {
    tess_words<2> code;
    float scale, shift;
};

/* A format is a struct of constants and two functions. load<ALIGN>(block, c, r): what chunk c
 * needs, from an address that is a multiple of ALIGN, at most the format's own. decode(r, o): codes
 * and constants; codes of one place in their bytes are taken out of four bytes at a time. */
enum : unsigned { LOW_4 = 0x0f0f0f0fu, LOW_2 = 0x03030303u, LOW_1 = 0x01010101u };

__device__ static inline void codes_set(gguf_codes *o, tess_words<2> low, int shift, unsigned mask)
{
    o->code.w[0] = low.w[0] >> shift & mask;
    o->code.w[1] = low.w[1] >> shift & mask;
}

/* Bits of other bytes above them. */
__device__ static inline void codes_raise(gguf_codes *o, tess_words<2> high, int shift,
                                          unsigned mask, int to)
{
    o->code.w[0] |= (high.w[0] >> shift & mask) << to;
    o->code.w[1] |= (high.w[1] >> shift & mask) << to;
}

/* Bit k of a byte above the four low bits of element k. */
__device__ static inline void fifth_bits_set(gguf_codes *o, unsigned high)
{
#pragma unroll
    for (int k = 0; k < TESS_DECODE_CHUNK; k++)
        o->code.w[k / 4] |= (high >> k & 1u) << (8 * (k % 4) + 4);
}

__device__ static inline float low_half(unsigned constants)
{
    return tess_half_of(constants & 0xffffu);
}

__device__ static inline float high_half(unsigned constants)
{
    return tess_half_of(constants >> 16);
}

/* Bytes at `offset`, a multiple of 4, of a block at a multiple of 2. Where the block begins in the
 * middle of a word, three whole words take the place of four halves: the bytes in front of a block
 * and behind these are the tensor's, whose address is a multiple of 16, and the block's. */
template <int ALIGN>
__device__ static inline tess_words<2> inner_bytes8(const uint8_t *block, int offset)
{
    if constexpr (ALIGN != 2) {
        return tess_bytes8<ALIGN>(block + offset);
    } else {
        const unsigned shift = (unsigned)(uintptr_t)block % 4 * 8;
        const uint8_t *p = block - shift / 8 + offset;
        const uint64_t lo = tess_bytes4<4>(p), mid = tess_bytes4<4>(p + 4);
        const uint64_t hi = tess_bytes4<4>(p + 8);
        const tess_words<2> r = {
            {(unsigned)((mid << 32 | lo) >> shift), (unsigned)((hi << 32 | mid) >> shift)}};
        return r;
    }
}

struct q8_0 {
    enum { NUMEL = 32, NBYTES = 34, ALIGN = 2, OFFSET = 128, HAS_SHIFT = false };
    template <int A> __device__ static inline void load(const uint8_t *b, int c, gguf_chunk *r)
    {
        r->constants = tess_bytes2<A>(b);
        r->low = tess_bytes8<A>(b + 2 + 8 * c);
    }
    __device__ static inline void decode(const gguf_chunk &r, gguf_codes *o)
    {
        o->code = tess_signed_codes(r.low);
        o->scale = low_half(r.constants);
    }
};

/* Q4_0, Q4_1, Q5_0, Q5_1: chunks 0 and 1 lie in the low halves of the bytes, 2 and 3 in the high
 * ones; with 5 bits there is a word with the fifth ones of all. */
template <int BITS, bool IS_SHIFTED> struct q45 {
    enum {
        NUMEL = 32,
        WORD_AT = IS_SHIFTED ? 4 : 2,
        CODES_AT = WORD_AT + (BITS == 5 ? 4 : 0),
        NBYTES = CODES_AT + 16,
        ALIGN = !IS_SHIFTED ? 2
                : BITS == 4 ? 4
                            : 8,
        OFFSET = IS_SHIFTED ? 0 : 1 << (BITS - 1),
        HAS_SHIFT = IS_SHIFTED
    };
    template <int A> __device__ static inline void load(const uint8_t *b, int c, gguf_chunk *r)
    {
        r->constants = IS_SHIFTED ? tess_bytes4<A>(b) : tess_bytes2<A>(b);
        r->low = tess_bytes8<A>(b + CODES_AT + 8 * (c % 2));
        if (BITS == 5)
            r->scales = b[WORD_AT + c];
    }
    __device__ static inline void decode(const gguf_chunk &r, gguf_codes *o)
    {
        codes_set(o, r.low, 4 * (r.c / 2), LOW_4);
        if (BITS == 5)
            fifth_bits_set(o, r.scales);
        o->scale = low_half(r.constants);
        o->shift = high_half(r.constants);
    }
};

/* Of blocks of 256: 8 * (c % 4) is the place in a run of 32 bytes, c / 4 the number of 32
 * elements, c / 2 that of 16. */
struct q2_k {
    enum { NUMEL = 256, NBYTES = 84, ALIGN = 4, OFFSET = 0, HAS_SHIFT = true };
    template <int A> __device__ static inline void load(const uint8_t *b, int c, gguf_chunk *r)
    {
        r->constants = tess_bytes4<A>(b + 80);
        r->scales = b[c / 2];
        r->low = tess_bytes8<A>(b + 16 + 32 * (c / 16) + 8 * (c % 4));
    }
    __device__ static inline void decode(const gguf_chunk &r, gguf_codes *o)
    {
        codes_set(o, r.low, 2 * (r.c / 4 % 4), LOW_2);
        o->scale = low_half(r.constants) * (float)(r.scales & 15u);
        o->shift = -(high_half(r.constants) * (float)(r.scales >> 4));
    }
};

struct q3_k {
    enum { NUMEL = 256, NBYTES = 110, ALIGN = 2, OFFSET = 4, HAS_SHIFT = false };
    template <int A> __device__ static inline void load(const uint8_t *b, int c, gguf_chunk *r)
    {
        const int group = c / 2;
        r->constants = tess_bytes2<A>(b + 108);
        r->scales = (unsigned)b[96 + group % 8] | (unsigned)b[104 + group % 4] << 8;
        r->low = inner_bytes8<A>(b, 32 + 32 * (c / 16) + 8 * (c % 4));
        r->high = inner_bytes8<A>(b, 8 * (c % 4));
    }
    __device__ static inline void decode(const gguf_chunk &r, gguf_codes *o)
    {
        const int group = r.c / 2;
        const unsigned low = r.scales >> 4 * (group / 8) & 15u;
        const unsigned high = r.scales >> (8 + 2 * (group / 4)) & 3u;
        codes_set(o, r.low, 2 * (r.c / 4 % 4), LOW_2);
        codes_raise(o, r.high, r.c / 4, LOW_1, 2);
        o->scale = low_half(r.constants) * (float)((int)(low | high << 4) - 32);
    }
};

/* d and dmin, and three of the twelve bytes behind them: the 6-bit scale and minimum j of eight,
 * j < 4, lie in the low bits of the first two, those of j + 4 in the third and in the high bits. */
template <int A> __device__ static inline void k_scale_load(const uint8_t *b, int c, gguf_chunk *r)
{
    const int j = c / 4 % 4;
    r->constants = tess_bytes4<A>(b);
    r->scales = (unsigned)b[4 + j] | (unsigned)b[8 + j] << 8 | (unsigned)b[12 + j] << 16;
}

__device__ static inline void k_scale_set(const gguf_chunk &r, gguf_codes *o)
{
    const bool is_upper = r.c >= 16;
    const unsigned own = r.scales & 255u, other = r.scales >> 8 & 255u, third = r.scales >> 16;
    const unsigned scale = is_upper ? (third & 15u) | own >> 6 << 4 : own & 63u;
    const unsigned least = is_upper ? third >> 4 | other >> 6 << 4 : other & 63u;
    o->scale = (float)scale * low_half(r.constants);
    o->shift = -((float)least * high_half(r.constants));
}

struct q4_k {
    enum { NUMEL = 256, NBYTES = 144, ALIGN = 16, OFFSET = 0, HAS_SHIFT = true };
    template <int A> __device__ static inline void load(const uint8_t *b, int c, gguf_chunk *r)
    {
        k_scale_load<A>(b, c, r);
        r->low = tess_bytes8<A>(b + 16 + 32 * (c / 8) + 8 * (c % 4));
    }
    __device__ static inline void decode(const gguf_chunk &r, gguf_codes *o)
    {
        codes_set(o, r.low, 4 * (r.c / 4 % 2), LOW_4);
        k_scale_set(r, o);
    }
};

struct q5_k {
    enum { NUMEL = 256, NBYTES = 176, ALIGN = 16, OFFSET = 0, HAS_SHIFT = true };
    template <int A> __device__ static inline void load(const uint8_t *b, int c, gguf_chunk *r)
    {
        k_scale_load<A>(b, c, r);
        r->low = tess_bytes8<A>(b + 48 + 32 * (c / 8) + 8 * (c % 4));
        r->high = tess_bytes8<A>(b + 16 + 8 * (c % 4));
    }
    __device__ static inline void decode(const gguf_chunk &r, gguf_codes *o)
    {
        codes_set(o, r.low, 4 * (r.c / 4 % 2), LOW_4);
        codes_raise(o, r.high, r.c / 4, LOW_1, 4);
        k_scale_set(r, o);
    }
};

struct q6_k {
    enum { NUMEL = 256, NBYTES = 210, ALIGN = 2, OFFSET = 32, HAS_SHIFT = false };
    template <int A> __device__ static inline void load(const uint8_t *b, int c, gguf_chunk *r)
    {
        const int half = c / 16;
        r->constants = tess_bytes2<A>(b + 208);
        r->scales = b[192 + c / 2];
        r->low = inner_bytes8<A>(b, 64 * half + 32 * (c / 4 % 2) + 8 * (c % 4));
        r->high = inner_bytes8<A>(b, 128 + 32 * half + 8 * (c % 4));
    }
    __device__ static inline void decode(const gguf_chunk &r, gguf_codes *o)
    {
        const int quarter = r.c / 4 % 4;
        codes_set(o, r.low, 4 * (quarter / 2), LOW_4);
        codes_raise(o, r.high, 2 * quarter, LOW_2, 4);
        o->scale = low_half(r.constants) * (float)(int)(int8_t)(uint8_t)r.scales;
    }
};

struct gguf_source {
    const uint8_t *blocks;
};

template <typename FORMAT> struct gguf_reader {
    typedef gguf_source source;
    typedef tess_no_tables tables;
    typedef gguf_chunk chunk;
    enum { IS_TABLED = false, IS_EXACT = false, BLOCK_CHUNKS = FORMAT::NUMEL / TESS_DECODE_CHUNK };

    __device__ static inline chunk load(const source &s, unsigned at)
    {
        chunk r = {};
        r.c = (int)(at % BLOCK_CHUNKS);
        FORMAT::template load<FORMAT::ALIGN>(
            s.blocks + (int64_t)(at / BLOCK_CHUNKS) * FORMAT::NBYTES, r.c, &r);
        return r;
    }

    __device__ static inline chunk load_one(const source &s, int64_t idx)
    {
        chunk r = {};
        r.c = (int)(idx % FORMAT::NUMEL) / TESS_DECODE_CHUNK;
        r.first = (int)(idx % TESS_DECODE_CHUNK);
        FORMAT::template load<1>(s.blocks + idx / FORMAT::NUMEL * FORMAT::NBYTES, r.c, &r);
        return r;
    }

    __device__ static inline void expand(const source &, const tables *, const chunk &r,
                                         float v[TESS_DECODE_CHUNK])
    {
        gguf_codes o = {};
        FORMAT::decode(r, &o);
        if (r.first != 0)
            o.code.w[0] = tess_byte_of(o.code, r.first);
#pragma unroll
        for (int k = 0; k < TESS_DECODE_CHUNK; k++) {
            const float product = tess_number_of<FORMAT::OFFSET>(o.code, k) * o.scale;
            v[k] = FORMAT::HAS_SHIFT ? product + o.shift : product;
        }
    }
};

template <typename FORMAT> static tess_status gguf_launch(const tess_decode_args *a, tess_stream *s)
{
    const gguf_source src = {static_cast<const uint8_t *>(a->part[0])};
    return tess_decode_launch<gguf_reader<FORMAT>>(a, src, tess_decode_is_whole(a, 0), 0, s);
}

extern "C" tess_status tess_cuda_decode_gguf(const tess_decode_args *a, tess_stream *s)
{
    switch (a->codec.format) {
    case TESS_FORMAT_Q8_0:
        return gguf_launch<q8_0>(a, s);
    case TESS_FORMAT_Q4_0:
        return gguf_launch<q45<4, false>>(a, s);
    case TESS_FORMAT_Q4_1:
        return gguf_launch<q45<4, true>>(a, s);
    case TESS_FORMAT_Q5_0:
        return gguf_launch<q45<5, false>>(a, s);
    case TESS_FORMAT_Q5_1:
        return gguf_launch<q45<5, true>>(a, s);
    case TESS_FORMAT_Q2_K:
        return gguf_launch<q2_k>(a, s);
    case TESS_FORMAT_Q3_K:
        return gguf_launch<q3_k>(a, s);
    case TESS_FORMAT_Q4_K:
        return gguf_launch<q4_k>(a, s);
    case TESS_FORMAT_Q5_K:
        return gguf_launch<q5_k>(a, s);
    case TESS_FORMAT_Q6_K:
        return gguf_launch<q6_k>(a, s);
    default:
        return TESS_FAIL(TESS_E_ARG, "decode: %s has no GGUF blocks",
                         tess_format_name(a->codec.format));
    }
}
