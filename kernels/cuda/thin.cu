/* Plain matrices in products with few rows, see [Note: few rows]. */
#include "kernels/cuda/codec_priv.cuh"

template <bool IS_BF16> struct plain_reader {
    struct source {
        const void *data;
    };
    struct chunk {
        tess_words<IS_BF16 ? TESS_DECODE_CHUNK / 2 : TESS_DECODE_CHUNK> words;
    };
    typedef tess_no_tables tables;
    enum { IS_TABLED = false };

    __device__ static inline chunk load(const source &s, unsigned at)
    {
        using element = typename tess_element<IS_BF16>::type;
        const element *from =
            static_cast<const element *>(s.data) + (int64_t)at * TESS_DECODE_CHUNK;
        const chunk c = {tess_words_load<sizeof(chunk) / 4>(from)};
        return c;
    }

    __device__ static inline void expand(const source &, const tables *, const chunk &c,
                                         float v[TESS_DECODE_CHUNK])
    {
#pragma unroll
        for (int k = 0; k < TESS_DECODE_CHUNK; k++) {
            const unsigned word = c.words.w[IS_BF16 ? k / 2 : k];
            v[k] = tess_f32_of_bits(!IS_BF16 ? word : k % 2 == 0 ? word << 16 : word & 0xffff0000u);
        }
    }
};

extern "C" bool tess_thin_covers(const tess_matrix *b)
{
    const int64_t block_numel = tess_format_block(b->codec.format).numel;
    const bool is_quantized = tess_format_is_quantized(b->codec.format);
    const int64_t extents =
        b->cols | b->stride | (is_quantized ? block_numel | b->codec.block_numel : 0);
    return extents % TESS_DECODE_CHUNK == 0 && (b->stride == 0 || b->stride == b->cols) &&
           tess_is_aligned(b->part[0]) &&
           b->rows * b->cols / TESS_DECODE_CHUNK < TESS_DECODE_CHUNK_MAX;
}

extern "C" tess_status tess_cuda_thin_plain(const tess_matrix *b, const tess_thin_args *thin,
                                            tess_stream *s)
{
    if (b->codec.format == TESS_FORMAT_BF16)
        return tess_thin_launch<plain_reader<true>>({b->part[0]}, b->rows, b->cols, thin, s);
    return tess_thin_launch<plain_reader<false>>({b->part[0]}, b->rows, b->cols, thin, s);
}
