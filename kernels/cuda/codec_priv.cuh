/**
 * The kernels of all decoders: where elements come from and go to. What they are is the reader's.
 *
 * A reader is a struct of types and static device functions:
 *   source                    the stored tensor, a parameter of the kernel
 *   tables                    what it keeps in shared memory, filled by fill(); IS_TABLED says
 *                             whether there is any
 *   chunk                     codes and constants of TESS_DECODE_CHUNK elements, as they lie there
 *   load(source, c)           chunk number c of the tensor, which is in one block
 *   load_one(source, i)       a chunk whose first element is element i, wherever that lies
 *   expand(source, tables, chunk, v)   its values
 *   IS_EXACT                  bf16 also takes the bits of NaN from the CPU's rounding
 *
 * [Note: bandwidth] A thread takes four chunks that lie a block's width apart: loads of a warp are
 * consecutive, stores are 16 bytes a lane and whole lines a warp. Places are found without a branch
 * and load() does nothing but load, so that all loads of the four are under way before the first of
 * them is waited for. Constants of a block are read by the neighbours that share it in the same
 * instruction.
 */
#pragma once

#include "kernels/cuda/codec_priv.h"
#include "kernels/cuda/common_priv.cuh"

enum { TESS_DECODE_CHUNK = 8, TESS_DECODE_BATCH = 4, TESS_DECODE_THREADS = 256 };
enum { TESS_DECODE_TILE = TESS_DECODE_BATCH * TESS_DECODE_THREADS };
/* Chunks of a tensor that are counted so: 2^34 elements. */
#define TESS_DECODE_CHUNK_MAX (INT64_C(1) << 31)

/**
 * Division of numbers below 2^31 by one of them: with factor = ceil(2^shift / d) and shift = 31 +
 * ceil(log2 d), n * factor exceeds n * 2^shift / d by less than 2^shift / d.
 */
typedef struct tess_divisor {
    unsigned factor;
    int shift;
} tess_divisor;

static inline tess_divisor tess_divisor_make(int64_t divisor)
{
    /* what is not divided by: 0 where nothing is whole, more where elements go one by one */
    const int64_t d = TESS_MIN(TESS_MAX(divisor, INT64_C(1)), TESS_DECODE_CHUNK_MAX - 1);
    int bits = 0;
    while ((INT64_C(1) << bits) < d)
        bits++;
    const uint64_t power = UINT64_C(1) << (31 + bits);
    const tess_divisor r = {(unsigned)((power + (uint64_t)d - 1) / (uint64_t)d), 31 + bits};
    return r;
}

__device__ static inline unsigned tess_divide(unsigned n, tess_divisor d)
{
    return (unsigned)((uint64_t)n * d.factor >> d.shift);
}

/** Where elements lie. */
typedef struct tess_decode_target {
    int64_t rows, cols;
    int64_t first_idx;
    const int32_t *row_idx;
    void *dst;
    int64_t stride;
    unsigned chunk_numel, col_chunks; /* of all rows; of a row */
    tess_divisor by_col_chunks;
    unsigned fold_rows; /* rows of a plane, see codec_scaled.cu */
    int fold_shift;     /* log2 of the planes whose rows take turns, 0: rows ascend */
} tess_decode_target;

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
__global__ static void __launch_bounds__(TESS_DECODE_THREADS, 3)
    tess_decode_chunks(const typename READER::source src, const tess_decode_target to)
{
    const typename READER::tables *tables = tess_decode_tables<READER>(src);
    const unsigned first_chunk = (unsigned)(to.first_idx / TESS_DECODE_CHUNK);
    for (unsigned first = blockIdx.x * TESS_DECODE_TILE + threadIdx.x; first < to.chunk_numel;
         first += gridDim.x * TESS_DECODE_TILE) {
        typename READER::chunk chunk[TESS_DECODE_BATCH];
        unsigned row[TESS_DECODE_BATCH], col[TESS_DECODE_BATCH];
#pragma unroll
        for (int b = 0; b < TESS_DECODE_BATCH; b++) {
            const unsigned n = TESS_MIN(first + b * TESS_DECODE_THREADS, to.chunk_numel - 1);
            const unsigned i = tess_divide(n, to.by_col_chunks);
            col[b] = n - i * to.col_chunks;
            row[b] = (i & ((1u << to.fold_shift) - 1)) * to.fold_rows + (i >> to.fold_shift);
        }
#pragma unroll
        for (int b = 0; b < TESS_DECODE_BATCH; b++) {
            const unsigned from = to.row_idx != nullptr ? (unsigned)to.row_idx[row[b]] : row[b];
            chunk[b] = READER::load(src, first_chunk + from * to.col_chunks + col[b]);
        }
#pragma unroll
        for (int b = 0; b < TESS_DECODE_BATCH; b++) {
            if (first + b * TESS_DECODE_THREADS < to.chunk_numel) {
                float v[TESS_DECODE_CHUNK];
                READER::expand(src, tables, chunk[b], v);
                tess_store<IS_BF16, true, TESS_DECODE_CHUNK, READER::IS_EXACT>(
                    to.dst, row[b] * to.stride + (int64_t)col[b] * TESS_DECODE_CHUNK,
                    TESS_DECODE_CHUNK, v);
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
    const int64_t step = (int64_t)gridDim.x * TESS_DECODE_THREADS, numel = to.rows * to.cols;
    for (int64_t i = (int64_t)blockIdx.x * TESS_DECODE_THREADS + threadIdx.x; i < numel;
         i += step) {
        const int64_t row = i / to.cols, col = i - row * to.cols;
        const int64_t from = to.row_idx != nullptr ? to.row_idx[row] : row;
        float v[TESS_DECODE_CHUNK];
        READER::expand(src, tables, READER::load_one(src, to.first_idx + from * to.cols + col), v);
        tess_store<IS_BF16, false, 2, READER::IS_EXACT>(to.dst, row * to.stride + col, 1, v);
    }
}

static inline tess_decode_target tess_decode_target_of(const tess_decode_args *a, int fold_shift)
{
    tess_decode_target to = {};
    to.rows = a->rows;
    to.cols = a->cols;
    to.first_idx = a->first_idx;
    to.row_idx = a->row_idx;
    to.dst = a->dst;
    to.stride = a->dst_stride;
    to.col_chunks = (unsigned)(a->cols / TESS_DECODE_CHUNK);
    to.chunk_numel = (unsigned)a->rows * to.col_chunks;
    to.by_col_chunks = tess_divisor_make(a->cols / TESS_DECODE_CHUNK);
    to.fold_shift = fold_shift;
    to.fold_rows = (unsigned)(a->rows >> fold_shift);
    return to;
}

template <typename READER, bool IS_BF16>
TESS_MUST_CHECK static inline tess_status
tess_decode_elements_launch(const tess_decode_args *a, const typename READER::source &src,
                            tess_stream *s)
{
    TESS_LAUNCH((tess_decode_elements<READER, IS_BF16>),
                tess_grid(a->rows * a->cols, TESS_DECODE_THREADS), TESS_DECODE_THREADS, 0, s, src,
                tess_decode_target_of(a, 0));
    return TESS_OK;
}

template <typename READER, bool IS_BF16>
TESS_MUST_CHECK static inline tess_status
tess_decode_chunks_launch(const tess_decode_args *a, const typename READER::source &src,
                          int fold_shift, tess_stream *s)
{
    const tess_decode_target to = tess_decode_target_of(a, fold_shift);
    const int64_t tail_numel = a->cols % TESS_DECODE_CHUNK;
    if (to.chunk_numel > 0)
        TESS_LAUNCH((tess_decode_chunks<READER, IS_BF16>),
                    tess_grid(to.chunk_numel, TESS_DECODE_TILE), TESS_DECODE_THREADS, 0, s, src,
                    to);
    if (tail_numel == 0) /* else it is one row */
        return TESS_OK;
    tess_decode_args tail = *a;
    tail.first_idx += a->cols - tail_numel;
    tail.cols = tail_numel;
    tail.dst = static_cast<char *>(a->dst) +
               (size_t)(a->cols - tail_numel) * tess_dtype_block_nbytes(a->dt);
    return tess_decode_elements_launch<READER, IS_BF16>(&tail, src, s);
}

/** Whether the rows are whole chunks of blocks of `block_numel` elements (0: of no blocks), all is
 * aligned, and neither the tensor nor the rows have too many. */
static inline bool tess_decode_is_whole(const tess_decode_args *a, int64_t block_numel)
{
    const bool is_one_row = a->rows == 1 && a->row_idx == nullptr;
    const int64_t extents = is_one_row ? 0 : a->cols | a->dst_stride;
    return ((extents | a->first_idx | block_numel) & (TESS_DECODE_CHUNK - 1)) == 0 &&
           tess_is_aligned(a->dst, a->part[0]) &&
           TESS_MAX(a->numel, a->rows * a->cols) / TESS_DECODE_CHUNK < TESS_DECODE_CHUNK_MAX;
}

/* ---- few rows times the tensor ---- */

/**
 * [Note: few rows] A modulation or an embedding of a sample multiplies one row with a whole matrix:
 * reading the codes is all there is to it. A warp takes two rows of the matrix at a time, its lanes
 * chunks of them; what is decoded is rounded to bf16 as it would be on its way to a product, and
 * meets the rows of A, which stay in the first cache, in registers. Loads of four chunks are under
 * way at once. Order: chunks of a lane ascending, elements ascending, then a tree over the lanes;
 * it depends on nothing but the matrix's columns.
 */
enum { TESS_THIN_ROWS = 2, TESS_THIN_BATCH = 2 };

/** acc[r][m] += row r of the matrix times row m of A, over one chunk of columns. */
__device__ static inline void tess_thin_chunk(float acc[TESS_THIN_ROWS][TESS_THIN_ROW_MAX],
                                              const float w[TESS_THIN_ROWS][TESS_DECODE_CHUNK],
                                              const tess_thin_args &a, unsigned chunk)
{
#pragma unroll
    for (int m = 0; m < TESS_THIN_ROW_MAX; m++) {
        float x[TESS_DECODE_CHUNK];
        if (m >= a.m)
            break;
        tess_load<true, true, TESS_DECODE_CHUNK>(
            a.a, m * a.a_stride + (int64_t)chunk * TESS_DECODE_CHUNK, TESS_DECODE_CHUNK, x);
#pragma unroll
        for (int r = 0; r < TESS_THIN_ROWS; r++)
#pragma unroll
            for (int k = 0; k < TESS_DECODE_CHUNK; k++)
                acc[r][m] = fmaf(w[r][k], x[k], acc[r][m]);
    }
}

/** Sums of a warp's lanes to their places. */
__device__ static inline void tess_thin_store(const float acc[TESS_THIN_ROWS][TESS_THIN_ROW_MAX],
                                              const tess_thin_args &a, unsigned first_row,
                                              unsigned row_numel)
{
#pragma unroll
    for (int m = 0; m < TESS_THIN_ROW_MAX; m++) {
        if (m >= a.m)
            break;
#pragma unroll
        for (int r = 0; r < TESS_THIN_ROWS; r++) {
            float sum = acc[r][m];
#pragma unroll
            for (int step = 16; step > 0; step /= 2)
                sum = sum + __shfl_xor_sync(0xffffffffu, sum, step);
            if (threadIdx.x % 32 != 0 || first_row + r >= row_numel)
                continue;
            float *const place = a.sum + (int64_t)m * row_numel + first_row + r;
            *place = a.is_added ? *place + a.scale * sum : a.scale * sum;
        }
    }
}

template <typename READER>
__global__ static void __launch_bounds__(TESS_DECODE_THREADS)
    tess_thin_kernel(const typename READER::source src, const tess_thin_args a, unsigned row_numel,
                     unsigned col_chunks)
{
    const typename READER::tables *tables = tess_decode_tables<READER>(src);
    const unsigned step = gridDim.x * (TESS_DECODE_THREADS / 32) * TESS_THIN_ROWS;
    const unsigned warp = blockIdx.x * (TESS_DECODE_THREADS / 32) + threadIdx.x / 32;
    for (unsigned row = warp * TESS_THIN_ROWS; row < row_numel; row += step) {
        float acc[TESS_THIN_ROWS][TESS_THIN_ROW_MAX] = {};
        for (unsigned first = threadIdx.x % 32; first < col_chunks; first += 32 * TESS_THIN_BATCH) {
            typename READER::chunk chunk[TESS_THIN_BATCH][TESS_THIN_ROWS];
#pragma unroll
            for (int b = 0; b < TESS_THIN_BATCH; b++)
#pragma unroll
                for (int r = 0; r < TESS_THIN_ROWS; r++)
                    chunk[b][r] = READER::load(src, TESS_MIN(row + r, row_numel - 1) * col_chunks +
                                                        TESS_MIN(first + 32 * b, col_chunks - 1));
#pragma unroll
            for (int b = 0; b < TESS_THIN_BATCH; b++) {
                float w[TESS_THIN_ROWS][TESS_DECODE_CHUNK];
                if (first + 32 * b >= col_chunks)
                    break;
#pragma unroll
                for (int r = 0; r < TESS_THIN_ROWS; r++) {
                    READER::expand(src, tables, chunk[b][r], w[r]);
                    tess_round_all<true, TESS_DECODE_CHUNK>(w[r]);
                }
                tess_thin_chunk(acc, w, a, first + 32 * b);
            }
        }
        tess_thin_store(acc, a, row, row_numel);
    }
}

template <typename READER>
TESS_MUST_CHECK static inline tess_status
tess_thin_launch(const typename READER::source &src, int64_t rows, int64_t cols,
                 const tess_thin_args *thin, tess_stream *s)
{
    const tess_thin_args args = *thin;
    TESS_LAUNCH((tess_thin_kernel<READER>),
                tess_grid(rows, (int64_t)TESS_DECODE_THREADS / 32 * TESS_THIN_ROWS),
                TESS_DECODE_THREADS, 0, s, src, args, (unsigned)rows,
                (unsigned)(cols / TESS_DECODE_CHUNK));
    return TESS_OK;
}

/** Start what decodes `a`; `fold_shift` as in tess_decode_target, 0 unless rows are whole. */
template <typename READER>
TESS_MUST_CHECK static inline tess_status
tess_decode_launch(const tess_decode_args *a, const typename READER::source &src, bool is_whole,
                   int fold_shift, tess_stream *s)
{
    if (a->thin != nullptr) {
        TESS_CHECK(is_whole, TESS_E_STATE,
                   "product of few rows: rows of %lld elements are no whole chunks",
                   (long long)a->cols);
        return tess_thin_launch<READER>(src, a->rows, a->cols, a->thin, s);
    }
    if (a->dt == TESS_BF16)
        return is_whole ? tess_decode_chunks_launch<READER, true>(a, src, fold_shift, s)
                        : tess_decode_elements_launch<READER, true>(a, src, s);
    return is_whole ? tess_decode_chunks_launch<READER, false>(a, src, fold_shift, s)
                    : tess_decode_elements_launch<READER, false>(a, src, s);
}

/* ---- what readers share ---- */

struct tess_no_tables {
};

/** Byte k of two words; a compile-time k costs one instruction. */
__device__ static inline unsigned tess_byte_of(tess_words<2> words, int k)
{
    return (k < 4 ? words.w[0] : words.w[1]) >> 8 * (k % 4) & 255u;
}

/** Byte k less an offset as a number: 2^23 + byte is a permutation of bytes, and the difference is
 * exact. Half the work of a mask and a conversion, which share a pipe. */
template <int OFFSET> __device__ static inline float tess_number_of(tess_words<2> words, int k)
{
    const unsigned word = k < 4 ? words.w[0] : words.w[1];
    const unsigned shifted = __byte_perm(word, 0x4b000000u, 0x7440u | (unsigned)k % 4);
    return tess_f32_of_bits(shifted) - (float)(0x800000 + OFFSET);
}

/** Signed bytes, plus 128. */
__device__ static inline tess_words<2> tess_signed_codes(tess_words<2> bytes)
{
    const tess_words<2> r = {{bytes.w[0] ^ 0x80808080u, bytes.w[1] ^ 0x80808080u}};
    return r;
}

/** Whether any of eight bytes is `least` or more without its highest bit. */
__device__ static inline bool tess_any_byte_from(tess_words<2> bytes, unsigned least)
{
    const unsigned rise = 0x01010101u * (0x80u - least);
    const unsigned lo = (bytes.w[0] & 0x7f7f7f7fu) + rise, hi = (bytes.w[1] & 0x7f7f7f7fu) + rise;
    return ((lo | hi) & 0x80808080u) != 0;
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
