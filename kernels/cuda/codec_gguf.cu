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

    __device__ static inline chunk load(const source &s, const tables *, int64_t idx)
    {
        return tess_words_load<4>(s.values + idx);
    }

    __device__ static inline chunk load_one(const source &s, const tables *, int64_t idx)
    {
        const chunk c = {{s.values[idx]}};
        return c;
    }

    __device__ static inline void expand(const source &, const tables *, const chunk &c,
                                         float v[TESS_DECODE_CHUNK])
    {
#pragma unroll
        for (int k = 0; k < TESS_DECODE_CHUNK; k++)
            v[k] = tess_half_of(c.w[k / 2] >> 16 * (k % 2) & 0xffffu);
    }
};

extern "C" tess_status tess_cuda_decode_half(const tess_decode_args *a, tess_stream *s)
{
    const half_source src = {static_cast<const uint16_t *>(a->part[0])};
    return tess_decode_launch<half_reader>(a, src, tess_decode_is_whole(a, 0), 0, s);
}

/* ---- GGUF ---- */

/* What a format's codes mean, as a struct of constants: (code - OFFSET) * scale, plus `shift` where
 * HAS_SHIFT. load<ALIGN>(block, c): codes and constants of chunk c of the block at an address that
 * is a multiple of ALIGN, at most of the format's own. Codes of one place in their bytes are taken
 * out of four bytes at a time. */

__device__ static inline int signed_of(unsigned byte) { return (int)(int8_t)(uint8_t)byte; }

__device__ static inline void codes_set(tess_code_chunk *r, tess_words<2> low, int shift,
                                        unsigned mask)
{
    r->code[0] = low.w[0] >> shift & mask;
    r->code[1] = low.w[1] >> shift & mask;
}

/* Bits of other bytes above them. */
__device__ static inline void codes_raise(tess_code_chunk *r, tess_words<2> high, int shift,
                                          unsigned mask, int to)
{
    r->code[0] |= (high.w[0] >> shift & mask) << to;
    r->code[1] |= (high.w[1] >> shift & mask) << to;
}

enum : unsigned { LOW_4 = 0x0f0f0f0fu, LOW_2 = 0x03030303u, LOW_1 = 0x01010101u };

/* Chunks 0 and 1 of a block of 32 lie in the low halves of its bytes, 2 and 3 in the high ones. */
template <int ALIGN>
__device__ static inline void nibbles_set(tess_code_chunk *r, const uint8_t *q, int c)
{
    codes_set(r, tess_bytes8<ALIGN>(q + 8 * (c % 2)), 4 * (c / 2), LOW_4);
}

/* Bit k of a byte goes above the four low bits of element k. */
__device__ static inline void fifth_bits_set(tess_code_chunk *r, unsigned high)
{
#pragma unroll
    for (int k = 0; k < TESS_DECODE_CHUNK; k++)
        r->code[k / 4] |= (high >> k & 1u) << (8 * (k % 4) + 4);
}

struct q8_0 {
    enum { NUMEL = 32, NBYTES = 34, ALIGN = 2, OFFSET = 128, HAS_SHIFT = false };
    template <int A> __device__ static inline tess_code_chunk load(const uint8_t *b, int c)
    {
        tess_code_chunk r = {};
        const tess_words<2> q = tess_bytes8<A>(b + 2 + 8 * c);
        r.code[0] = q.w[0] ^ 0x80808080u; /* signed codes, plus 128 */
        r.code[1] = q.w[1] ^ 0x80808080u;
        r.scale = tess_half_of(tess_bytes2<A>(b));
        return r;
    }
};

struct q4_0 {
    enum { NUMEL = 32, NBYTES = 18, ALIGN = 2, OFFSET = 8, HAS_SHIFT = false };
    template <int A> __device__ static inline tess_code_chunk load(const uint8_t *b, int c)
    {
        tess_code_chunk r = {};
        nibbles_set<A>(&r, b + 2, c);
        r.scale = tess_half_of(tess_bytes2<A>(b));
        return r;
    }
};

struct q4_1 {
    enum { NUMEL = 32, NBYTES = 20, ALIGN = 4, OFFSET = 0, HAS_SHIFT = true };
    template <int A> __device__ static inline tess_code_chunk load(const uint8_t *b, int c)
    {
        tess_code_chunk r = {};
        const unsigned constants = tess_bytes4<A>(b);
        nibbles_set<A>(&r, b + 4, c);
        r.scale = tess_half_of(constants & 0xffffu);
        r.shift = tess_half_of(constants >> 16);
        return r;
    }
};

struct q5_0 {
    enum { NUMEL = 32, NBYTES = 22, ALIGN = 2, OFFSET = 16, HAS_SHIFT = false };
    template <int A> __device__ static inline tess_code_chunk load(const uint8_t *b, int c)
    {
        tess_code_chunk r = {};
        nibbles_set<A>(&r, b + 6, c);
        fifth_bits_set(&r, b[2 + c]);
        r.scale = tess_half_of(tess_bytes2<A>(b));
        return r;
    }
};

struct q5_1 {
    enum { NUMEL = 32, NBYTES = 24, ALIGN = 8, OFFSET = 0, HAS_SHIFT = true };
    template <int A> __device__ static inline tess_code_chunk load(const uint8_t *b, int c)
    {
        tess_code_chunk r = {};
        const unsigned constants = tess_bytes4<A>(b);
        nibbles_set<A>(&r, b + 8, c);
        fifth_bits_set(&r, b[4 + c]);
        r.scale = tess_half_of(constants & 0xffffu);
        r.shift = tess_half_of(constants >> 16);
        return r;
    }
};

struct q2_k {
    enum { NUMEL = 256, NBYTES = 84, ALIGN = 4, OFFSET = 0, HAS_SHIFT = true };
    template <int A> __device__ static inline tess_code_chunk load(const uint8_t *b, int c)
    {
        tess_code_chunk r = {};
        const unsigned constants = tess_bytes4<A>(b + 80), scales = b[c / 2];
        codes_set(&r, tess_bytes8<A>(b + 16 + 32 * (c / 16) + 8 * (c % 4)), 2 * (c / 4 % 4), LOW_2);
        r.scale = tess_half_of(constants & 0xffffu) * (float)(scales & 15u);
        r.shift = -(tess_half_of(constants >> 16) * (float)(scales >> 4));
        return r;
    }
};

struct q3_k {
    enum { NUMEL = 256, NBYTES = 110, ALIGN = 2, OFFSET = 4, HAS_SHIFT = false };
    template <int A> __device__ static inline tess_code_chunk load(const uint8_t *b, int c)
    {
        tess_code_chunk r = {};
        const int group = c / 2;
        const unsigned low = (unsigned)b[96 + group % 8] >> 4 * (group / 8) & 15u;
        const unsigned high = (unsigned)b[104 + group % 4] >> 2 * (group / 4) & 3u;
        codes_set(&r, tess_bytes8<A>(b + 32 + 32 * (c / 16) + 8 * (c % 4)), 2 * (c / 4 % 4), LOW_2);
        codes_raise(&r, tess_bytes8<A>(b + 8 * (c % 4)), c / 4, LOW_1, 2);
        r.scale = tess_half_of(tess_bytes2<A>(b + 108)) * (float)((int)(low | high << 4) - 32);
        return r;
    }
};

/* d and dmin, times the 6-bit scale and minimum j of eight, which lie in 12 bytes behind them. */
template <int A>
__device__ static inline void k_scale_set(tess_code_chunk *r, const uint8_t *b, int j)
{
    const unsigned constants = tess_bytes4<A>(b);
    const unsigned own = b[4 + j % 4], other = b[8 + j % 4]; /* of j < 4; high bits of j + 4 */
    unsigned scale = own & 63u, least = other & 63u;
    if (j >= 4) {
        const unsigned low = b[12 + j % 4];
        scale = (low & 15u) | own >> 6 << 4;
        least = low >> 4 | other >> 6 << 4;
    }
    r->scale = (float)scale * tess_half_of(constants & 0xffffu);
    r->shift = -((float)least * tess_half_of(constants >> 16));
}

struct q4_k {
    enum { NUMEL = 256, NBYTES = 144, ALIGN = 16, OFFSET = 0, HAS_SHIFT = true };
    template <int A> __device__ static inline tess_code_chunk load(const uint8_t *b, int c)
    {
        tess_code_chunk r = {};
        codes_set(&r, tess_bytes8<A>(b + 16 + 32 * (c / 8) + 8 * (c % 4)), 4 * (c / 4 % 2), LOW_4);
        k_scale_set<A>(&r, b, c / 4);
        return r;
    }
};

struct q5_k {
    enum { NUMEL = 256, NBYTES = 176, ALIGN = 16, OFFSET = 0, HAS_SHIFT = true };
    template <int A> __device__ static inline tess_code_chunk load(const uint8_t *b, int c)
    {
        tess_code_chunk r = {};
        codes_set(&r, tess_bytes8<A>(b + 48 + 32 * (c / 8) + 8 * (c % 4)), 4 * (c / 4 % 2), LOW_4);
        codes_raise(&r, tess_bytes8<A>(b + 16 + 8 * (c % 4)), c / 4, LOW_1, 4);
        k_scale_set<A>(&r, b, c / 4);
        return r;
    }
};

struct q6_k {
    enum { NUMEL = 256, NBYTES = 210, ALIGN = 2, OFFSET = 32, HAS_SHIFT = false };
    template <int A> __device__ static inline tess_code_chunk load(const uint8_t *b, int c)
    {
        tess_code_chunk r = {};
        const int half = c / 16, quarter = c / 4 % 4; /* 128 and 32 elements */
        const uint8_t *low = b + 64 * half + 32 * (quarter % 2) + 8 * (c % 4);
        codes_set(&r, tess_bytes8<A>(low), 4 * (quarter / 2), LOW_4);
        codes_raise(&r, tess_bytes8<A>(b + 128 + 32 * half + 8 * (c % 4)), 2 * quarter, LOW_2, 4);
        r.scale = tess_half_of(tess_bytes2<A>(b + 208)) * (float)signed_of(b[192 + c / 2]);
        return r;
    }
};

struct gguf_source {
    const uint8_t *blocks;
};

template <typename FORMAT> struct gguf_reader {
    typedef gguf_source source;
    typedef tess_no_tables tables;
    typedef tess_code_chunk chunk;
    enum { IS_TABLED = false, IS_EXACT = false };

    template <int A> __device__ static inline chunk load_from(const source &s, int64_t idx)
    {
        const int in_block = (int)(idx % FORMAT::NUMEL);
        return FORMAT::template load<A>(s.blocks + idx / FORMAT::NUMEL * FORMAT::NBYTES,
                                        in_block / TESS_DECODE_CHUNK);
    }

    __device__ static inline chunk load(const source &s, const tables *, int64_t idx)
    {
        return load_from<FORMAT::ALIGN>(s, idx);
    }

    __device__ static inline chunk load_one(const source &s, const tables *, int64_t idx)
    {
        chunk c = load_from<1>(s, idx);
        c.code[0] = tess_byte_of(c.code, (int)(idx % TESS_DECODE_CHUNK));
        return c;
    }

    __device__ static inline void expand(const source &, const tables *, const chunk &c,
                                         float v[TESS_DECODE_CHUNK])
    {
#pragma unroll
        for (int k = 0; k < TESS_DECODE_CHUNK; k++) {
            const float product = (float)((int)tess_byte_of(c.code, k) - FORMAT::OFFSET) * c.scale;
            v[k] = FORMAT::HAS_SHIFT ? product + c.shift : product;
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
        return gguf_launch<q4_0>(a, s);
    case TESS_FORMAT_Q4_1:
        return gguf_launch<q4_1>(a, s);
    case TESS_FORMAT_Q5_0:
        return gguf_launch<q5_0>(a, s);
    case TESS_FORMAT_Q5_1:
        return gguf_launch<q5_1>(a, s);
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
