/*
 * NF4 and FP4: f32(table * absmax), then one rounding.
 *
 * [Note: table in lanes] The 16 values are kept once per lane of a warp, so that lookups with 32
 * different codes hit 32 different banks.
 */
#include "kernels/cuda/codec_priv.cuh"

struct bnb4_tables {
    float value[16 * 32];
    float map[256];
    float nested_offset;
};

/* The tables go by value into a kernel, so that none has to be uploaded first. */
struct bnb4_source {
    const uint8_t *codes;
    const float *absmax;         /* [nb], NULL: double quantization */
    const uint8_t *absmax_codes; /* [nb] */
    const float *nested_absmax;  /* [ceil(nb / 256)] */
    const float *nested_offset;  /* [1] */
    int block_shift;             /* log2 of the elements per block */
    float value[16];
    float map[256];
};

struct bnb4_chunk {
    unsigned word;        /* byte i / 2 has element i, the high half first */
    float absmax;         /* or what its code is multiplied with */
    unsigned absmax_code; /* double quantization */
};

struct bnb4_reader {
    typedef bnb4_source source;
    typedef bnb4_tables tables;
    typedef bnb4_chunk chunk;
    enum { IS_TABLED = true, IS_EXACT = false };

    __device__ static inline void fill(tables *t, const source &s)
    {
#pragma unroll
        for (int i = 0; i < 16 * 32; i += TESS_DECODE_THREADS)
            t->value[i + threadIdx.x] = s.value[(i + threadIdx.x) / 32];
        static_assert(TESS_DECODE_THREADS == TESS_NELEM(t->map), "an entry a thread");
        t->map[threadIdx.x] = s.map[threadIdx.x];
        if (threadIdx.x == 0 && s.absmax == nullptr)
            t->nested_offset = s.nested_offset[0];
    }

    __device__ static inline void absmax_load(const source &s, int64_t idx, chunk *c)
    {
        const int64_t block = idx >> s.block_shift;
        const bool is_double = s.absmax == nullptr;
        c->absmax_code = is_double ? s.absmax_codes[block] : 0u;
        c->absmax = is_double ? s.nested_absmax[block / TESS_NESTED_BLOCK_NUMEL] : s.absmax[block];
    }

    __device__ static inline chunk load(const source &s, unsigned at)
    {
        chunk c;
        c.word = tess_bytes4<4>(s.codes + (int64_t)at * (TESS_DECODE_CHUNK / 2));
        absmax_load(s, (int64_t)at * TESS_DECODE_CHUNK, &c);
        return c;
    }

    __device__ static inline chunk load_one(const source &s, int64_t idx)
    {
        chunk c;
        const unsigned byte = s.codes[idx / 2];
        c.word = idx % 2 == 0 ? byte : byte << 4;
        absmax_load(s, idx, &c);
        return c;
    }

    __device__ static inline void expand(const source &s, const tables *t, const chunk &c,
                                         float v[TESS_DECODE_CHUNK])
    {
        float absmax = c.absmax;
        if (s.absmax == nullptr) {
            const float scaled = t->map[c.absmax_code] * absmax;
            absmax = scaled + t->nested_offset;
        }
        /* A code is moved to where it counts bytes of rows of the table: no index is scaled. */
        const char *const own = reinterpret_cast<const char *>(t->value + threadIdx.x % 32);
#pragma unroll
        for (int k = 0; k < TESS_DECODE_CHUNK; k++) {
            const int shift = 8 * (k / 2) + (k % 2 == 0 ? 4 : 0) - 7;
            const unsigned row = shift < 0 ? c.word << -shift : c.word >> shift;
            v[k] = *reinterpret_cast<const float *>(own + (row & 15u << 7)) * absmax;
        }
    }
};

extern "C" tess_status tess_cuda_decode_bnb4(const tess_decode_args *a, tess_stream *s)
{
    const bool is_double = a->codec.double_quant;
    bnb4_source src = {};
    src.codes = static_cast<const uint8_t *>(a->part[0]);
    src.absmax = is_double ? nullptr : static_cast<const float *>(a->part[1]);
    src.absmax_codes = is_double ? static_cast<const uint8_t *>(a->part[1]) : nullptr;
    src.nested_absmax = static_cast<const float *>(a->part[2]);
    src.nested_offset = static_cast<const float *>(a->part[3]);
    src.block_shift = __builtin_ctzll((unsigned long long)a->codec.block_numel);
    memcpy(src.value, tess_codec_table16(a->codec.format), sizeof src.value);
    memcpy(src.map, tess_dynamic_map_signed(), sizeof src.map);
    return tess_decode_launch<bnb4_reader>(a, src, tess_decode_is_whole(a, 0), 0, s);
}
