/**
 * The kernels of all decoders: where elements come from and go to. What they are is the reader's.
 *
 * A reader is a struct of types and static device functions:
 *   source                    the stored tensor, a parameter of the kernel
 *   tables                    what it keeps in shared memory, filled by fill(); IS_TABLED says
 *                             whether there is any
 *   chunk                     codes and constants of TESS_DECODE_CHUNK elements, as loaded
 *   load(source, tables, i)   the chunk from element i on: a multiple of its length, in one block
 *   load_one(...)             a chunk whose first element is element i, wherever that lies
 *   expand(...)               the values of a chunk
 *   IS_EXACT                  bf16 also takes the bits of NaN from the CPU's rounding
 *
 * [Note: bandwidth] A thread takes four chunks that lie a block's width apart: loads of a warp are
 * consecutive, stores are 16 bytes a lane and whole lines a warp, and all loads of the four are
 * under way before the first value is made. Constants of a block are read by the neighbours that
 * share it in the same instruction. Nothing is divided in 64 bits where 32 do.
 */
#pragma once

#include "kernels/cuda/codec_priv.h"
#include "kernels/cuda/common_priv.cuh"

enum { TESS_DECODE_CHUNK = 8, TESS_DECODE_BATCH = 4, TESS_DECODE_THREADS = 256 };
enum { TESS_DECODE_TILE = TESS_DECODE_BATCH * TESS_DECODE_THREADS };

/** Where a kernel's elements lie; columns in units: chunks, or elements one by one. */
typedef struct tess_decode_target {
    int64_t unit_numel, col_units; /* of all rows; of a row */
    int64_t first_idx, cols;
    const int32_t *row_idx;
    void *dst;
    int64_t stride;
    int64_t fold_rows; /* rows of a plane; see codec_scaled.cu */
    int fold_shift;    /* log2 of the planes whose rows take turns, 0: rows ascend */
} tess_decode_target;

/** Quotient of numbers that are not negative. */
__device__ static inline int64_t tess_div(int64_t a, int64_t b)
{
    return ((uint64_t)(a | b) >> 32) == 0 ? (int64_t)((unsigned)a / (unsigned)b) : a / b;
}

/** A unit: its element in the tensor, and in dst. */
typedef struct tess_decode_place {
    int64_t idx, at;
} tess_decode_place;

/** Unit `col` of row `row`, counted on into the rows behind it. */
__device__ static inline tess_decode_place
tess_decode_place_of(const tess_decode_target &to, int64_t row, int64_t col, int unit_elements)
{
    if (col >= to.col_units) {
        const int64_t more = tess_div(col, to.col_units);
        row += more;
        col -= more * to.col_units;
    }
    row = (row & ((1 << to.fold_shift) - 1)) * to.fold_rows + (row >> to.fold_shift);
    const int64_t from = to.row_idx != nullptr ? to.row_idx[row] : row;
    const tess_decode_place place = {to.first_idx + from * to.cols + col * unit_elements,
                                     row * to.stride + col * unit_elements};
    return place;
}

/** Tables of a block of threads, filled. */
template <typename READER>
__device__ static inline const typename READER::tables *
tess_decode_tables(const typename READER::source &src)
{
    if constexpr (READER::IS_TABLED) {
        typedef typename READER::tables tables_type;
        TESS_SHARED(tables_type, tables, 1);
        READER::fill(tables, src);
        __syncthreads();
        return tables;
    } else {
        return nullptr;
    }
}

/** Rows of whole chunks, everything aligned. */
template <typename READER, bool IS_BF16>
__global__ static void __launch_bounds__(TESS_DECODE_THREADS, 4)
    tess_decode_chunks(const typename READER::source src, const tess_decode_target to)
{
    const typename READER::tables *tables = tess_decode_tables<READER>(src);
    const int64_t step = (int64_t)gridDim.x * TESS_DECODE_TILE;
    for (int64_t first = (int64_t)blockIdx.x * TESS_DECODE_TILE; first < to.unit_numel;
         first += step) {
        const int64_t row = first < to.col_units ? 0 : tess_div(first, to.col_units);
        const int64_t col = first - row * to.col_units + threadIdx.x;
        const int64_t left = to.unit_numel - first - threadIdx.x;
        typename READER::chunk chunk[TESS_DECODE_BATCH];
        int64_t at[TESS_DECODE_BATCH];
#pragma unroll
        for (int b = 0; b < TESS_DECODE_BATCH; b++) {
            if (b * TESS_DECODE_THREADS < left) {
                const tess_decode_place place =
                    tess_decode_place_of(to, row, col + b * TESS_DECODE_THREADS, TESS_DECODE_CHUNK);
                chunk[b] = READER::load(src, tables, place.idx);
                at[b] = place.at;
            }
        }
#pragma unroll
        for (int b = 0; b < TESS_DECODE_BATCH; b++) {
            if (b * TESS_DECODE_THREADS < left) {
                float v[TESS_DECODE_CHUNK];
                READER::expand(src, tables, chunk[b], v);
                tess_store<IS_BF16, true, TESS_DECODE_CHUNK, READER::IS_EXACT>(
                    to.dst, at[b], TESS_DECODE_CHUNK, v);
            }
        }
    }
}

/** Any rows, element by element. */
template <typename READER, bool IS_BF16>
__global__ static void __launch_bounds__(TESS_DECODE_THREADS)
    tess_decode_elements(const typename READER::source src, const tess_decode_target to)
{
    const typename READER::tables *tables = tess_decode_tables<READER>(src);
    const int64_t step = (int64_t)gridDim.x * TESS_DECODE_THREADS;
    for (int64_t i = (int64_t)blockIdx.x * TESS_DECODE_THREADS + threadIdx.x; i < to.unit_numel;
         i += step) {
        const tess_decode_place place = tess_decode_place_of(to, 0, i, 1);
        float v[TESS_DECODE_CHUNK];
        READER::expand(src, tables, READER::load_one(src, tables, place.idx), v);
        tess_store<IS_BF16, false, 2, READER::IS_EXACT>(to.dst, place.at, 1, v);
    }
}

/* Whole units of `unit` elements. */
static inline tess_decode_target tess_decode_target_of(const tess_decode_args *a, int fold_shift,
                                                       int unit)
{
    tess_decode_target to = {};
    to.col_units = a->cols / unit;
    to.unit_numel = a->rows * to.col_units;
    to.first_idx = a->first_idx;
    to.cols = a->cols;
    to.row_idx = a->row_idx;
    to.dst = a->dst;
    to.stride = a->dst_stride;
    to.fold_shift = fold_shift;
    to.fold_rows = a->rows >> fold_shift;
    return to;
}

template <typename READER, bool IS_BF16>
TESS_MUST_CHECK static inline tess_status
tess_decode_elements_launch(const tess_decode_args *a, const typename READER::source &src,
                            tess_stream *s)
{
    const tess_decode_target to = tess_decode_target_of(a, 0, 1);
    if (to.unit_numel > 0)
        TESS_LAUNCH((tess_decode_elements<READER, IS_BF16>),
                    tess_grid(to.unit_numel, TESS_DECODE_THREADS), TESS_DECODE_THREADS, 0, s, src,
                    to);
    return TESS_OK;
}

template <typename READER, bool IS_BF16>
TESS_MUST_CHECK static inline tess_status
tess_decode_chunks_launch(const tess_decode_args *a, const typename READER::source &src,
                          int fold_shift, tess_stream *s)
{
    const tess_decode_target to = tess_decode_target_of(a, fold_shift, TESS_DECODE_CHUNK);
    const int64_t tail_numel = a->cols % TESS_DECODE_CHUNK;
    if (to.unit_numel > 0)
        TESS_LAUNCH((tess_decode_chunks<READER, IS_BF16>),
                    tess_grid(to.unit_numel, TESS_DECODE_TILE), TESS_DECODE_THREADS, 0, s, src, to);
    if (tail_numel == 0) /* else it is one row */
        return TESS_OK;
    tess_decode_args tail = *a;
    tail.first_idx += a->cols - tail_numel;
    tail.cols = tail_numel;
    tail.dst = static_cast<char *>(a->dst) +
               (size_t)(a->cols - tail_numel) * tess_dtype_block_nbytes(a->dt);
    return tess_decode_elements_launch<READER, IS_BF16>(&tail, src, s);
}

/** Whether the rows are whole chunks of blocks of `block_numel` elements (0: of no blocks) and all
 * is aligned. */
static inline bool tess_decode_is_whole(const tess_decode_args *a, int64_t block_numel)
{
    const bool is_one_row = a->rows == 1 && a->row_idx == nullptr;
    const int64_t extents = is_one_row ? 0 : a->cols | a->dst_stride;
    return ((extents | a->first_idx | block_numel) & (TESS_DECODE_CHUNK - 1)) == 0 &&
           tess_is_aligned(a->dst, a->part[0]);
}

/** Start what decodes `a`; `fold_shift` as in tess_decode_target, 0 unless rows are whole. */
template <typename READER>
TESS_MUST_CHECK static inline tess_status
tess_decode_launch(const tess_decode_args *a, const typename READER::source &src, bool is_whole,
                   int fold_shift, tess_stream *s)
{
    if (a->dt == TESS_BF16)
        return is_whole ? tess_decode_chunks_launch<READER, true>(a, src, fold_shift, s)
                        : tess_decode_elements_launch<READER, true>(a, src, s);
    return is_whole ? tess_decode_chunks_launch<READER, false>(a, src, fold_shift, s)
                    : tess_decode_elements_launch<READER, false>(a, src, s);
}

/* ---- what readers share ---- */

struct tess_no_tables {
};

/** Eight codes, a byte each, and the constants of their block. */
typedef struct tess_code_chunk {
    unsigned code[2];
    float scale, shift;
} tess_code_chunk;

/** Number k of the bytes, from 0 to 255. */
__device__ static inline unsigned tess_byte_of(const unsigned code[2], int k)
{
    return (k < 4 ? code[0] : code[1]) >> 8 * (k % 4) & 255u;
}

/** Little-endian bytes at an address that is a multiple of ALIGN. */
template <int ALIGN> __device__ static inline unsigned tess_bytes2(const uint8_t *p)
{
    TESS_ALIGNED(p, TESS_MIN(ALIGN, 2));
    if constexpr (ALIGN >= 2)
        return *reinterpret_cast<const uint16_t *>(p);
    else
        return (unsigned)p[0] | (unsigned)p[1] << 8;
}

template <int ALIGN> __device__ static inline unsigned tess_bytes4(const uint8_t *p)
{
    if constexpr (ALIGN >= 4)
        return tess_words_load<1>(p).w[0];
    else
        return tess_bytes2<ALIGN>(p) | tess_bytes2<ALIGN>(p + 2) << 16;
}

template <int ALIGN> __device__ static inline tess_words<2> tess_bytes8(const uint8_t *p)
{
    if constexpr (ALIGN >= 8) {
        return tess_words_load<2>(p);
    } else {
        const tess_words<2> r = {{tess_bytes4<ALIGN>(p), tess_bytes4<ALIGN>(p + 4)}};
        return r;
    }
}

/**
 * A float of fewer bits, widened exactly. `magnitude`: its bits without the sign, moved to where
 * an f32 has exponent and fraction; `factor` corrects the exponent's bias, and makes subnormals of
 * one subnormals of the other; `special` has the exponent's bits where these are all ones.
 */
__device__ static inline float tess_widen_small(unsigned magnitude, unsigned sign, float factor,
                                                bool is_special)
{
    const unsigned bits = tess_f32_bits(tess_f32_of_bits(magnitude) * factor);
    return tess_f32_of_bits(bits | sign | (is_special ? 0x7f800000u : 0u));
}

/** The lower 16 bits as f16. */
__device__ static inline float tess_half_of(unsigned h)
{
    const unsigned magnitude = h & 0x7fffu;
    return tess_widen_small(magnitude << 13, (h & 0x8000u) << 16, 0x1p112f, magnitude >= 0x7c00u);
}
