/**
 * What the attention kernels share: parameters, tiles in shared memory, fragments, masks.
 *
 * [Note: swizzle] A tile is [rows][D] bf16 in chunks of 8 (16 bytes). Chunk c of row r stands at
 * place c ^ (r % 8), so that the 8 rows of an ldmatrix hit all 32 banks; where D is an odd multiple
 * of 32 two rows share a line of the banks, and the key is (r / 2) % 4.
 *
 * [Note: padding] A kernel for D columns serves every head dim up to D: chunks past `dim` and rows
 * past T are zeros in shared memory and are not stored.
 */
#pragma once

#include "kernels/cuda/flash_priv.h"
#include "kernels/cuda/mma_priv.cuh"

#include <type_traits>

#include "core/arith.h"

#define FLASH_LOG2E 1.4426950408889634f
#define FLASH_LN2 0.69314718055994531f

enum { FLASH_SEGMENT_MAX = 65535 };

/**
 * Arguments of every kernel; pointers to elements of the compute dtype where not typed.
 *
 * [Note: segments] A segment is an attention of its own: the grid's second dimension counts them,
 * and a kernel begins by moving its pointers to its segment. So tiles begin with a segment, and its
 * bits are those that it has alone.
 */
typedef struct flash_params {
    const void *q, *k, *v, *out, *d_out;
    void *out_dst, *d_q, *d_k, *d_v;
    float *lse_dst;           /* [heads, T] */
    const float *lse;         /* [heads, T] */
    float *delta;             /* [heads, T] row sums of d_out * out */
    const int32_t *doc_start; /* NULL: every token sees all of its segment */
    tess_flash_strides stride;
    int64_t head_stride; /* of lse and delta: T of all segments */
    int token_numel;     /* of a segment; all where there are none */
    int segment_numel;   /* segments; 1 where there are none */
    int head_numel, kv_head_numel, group_numel, dim;
    int window; /* 0: none */
    float scale;
} flash_params;

template <bool IS_BF16, typename T>
static __device__ __forceinline__ T *flash_moved(T *data, int64_t numel)
{
    using byte = typename std::conditional<std::is_const<T>::value, const char, char>::type;
    return data == nullptr ? nullptr : reinterpret_cast<byte *>(data) + numel * (IS_BF16 ? 2 : 4);
}

/** The parameters with their pointers at the segment of this block. */
template <bool IS_BF16>
static __device__ __forceinline__ flash_params flash_segment(const flash_params &params)
{
    flash_params p = params;
    const int64_t first = static_cast<int64_t>(blockIdx.y) * p.token_numel;
    p.q = flash_moved<IS_BF16>(p.q, first * p.stride.q);
    p.k = flash_moved<IS_BF16>(p.k, first * p.stride.k);
    p.v = flash_moved<IS_BF16>(p.v, first * p.stride.v);
    p.out = flash_moved<IS_BF16>(p.out, first * p.stride.out);
    p.out_dst = flash_moved<IS_BF16>(p.out_dst, first * p.stride.out);
    p.d_out = flash_moved<IS_BF16>(p.d_out, first * p.stride.d_out);
    p.d_q = flash_moved<IS_BF16>(p.d_q, first * p.stride.d_q);
    p.d_k = flash_moved<IS_BF16>(p.d_k, first * p.stride.d_k);
    p.d_v = flash_moved<IS_BF16>(p.d_v, first * p.stride.d_v);
    p.lse_dst = p.lse_dst == nullptr ? nullptr : p.lse_dst + first;
    p.lse = p.lse == nullptr ? nullptr : p.lse + first;
    p.delta = p.delta == nullptr ? nullptr : p.delta + first;
    return p;
}

/** First token that token i sees; never descends with i. */
static __device__ __forceinline__ int flash_first(const flash_params *p, int i)
{
    if (p->doc_start == nullptr)
        return 0;
    const int start = p->doc_start[i];
    return p->window > 0 ? TESS_MAX(start, i - p->window + 1) : start;
}

/** Last token that token i sees; never descends with i. */
static __device__ __forceinline__ int flash_last(const flash_params *p, int i)
{
    return p->doc_start == nullptr ? p->token_numel - 1 : i;
}

/** Offset of chunk `chunk` of row `row` in a tile, in elements. */
template <int D> static __device__ __forceinline__ int flash_place(int row, int chunk)
{
    const int key = D % 64 == 0 ? row & 7 : row >> 1 & 3;
    return row * D + (chunk ^ key) * 8;
}

/** Begin to copy rows first .. first + ROWS - 1 of one head into a tile. A thread keeps its column
 * of chunks, so that its addresses advance by constants. */
template <int D, int ROWS, int THREADS>
static __device__ __forceinline__ void flash_load(uint16_t *tile, const uint16_t *src,
                                                  int64_t stride, int first, const flash_params *p)
{
    enum { CHUNKS = D / 8, LINE = CHUNKS % 3 == 0 ? CHUNKS / 3 : CHUNKS, STEP = THREADS / LINE };
    const int row = static_cast<int>(threadIdx.x) / LINE;
    const int row_end = p->token_numel - first;
#pragma unroll
    for (int c = 0; c < CHUNKS; c += LINE) {
        const int chunk = static_cast<int>(threadIdx.x) % LINE + c;
        const int limit = chunk * 8 < p->dim ? row_end : 0;
        const uint16_t *from = src + (first + row) * stride + chunk * 8;
#pragma unroll
        for (int r = 0; r < ROWS; r += STEP) {
            const bool has = row + r < limit;
            tess_cp_async_16(tile + flash_place<D>(row + r, chunk), has ? from : src, has);
            from += STEP * stride;
        }
    }
}

/** flash_place() of row + fixed_row, chunk + fixed_chunk, where `row` and `chunk` (0 or 1) depend
 * on the lane, fixed_row is a multiple of 8 and fixed_chunk even: the fixed parts cost one xor. */
template <int D>
static __device__ __forceinline__ int flash_lane_place(int row, int chunk, int fixed_row,
                                                       int fixed_chunk)
{
    enum { LOW = D % 64 == 0 ? 7 : 3 };
    const int key = D % 64 == 0 ? row & 7 : row >> 1 & 3;
    const int lane = (chunk ^ key) * 8;
    return row * D + (lane ^ (fixed_chunk & LOW) * 8) + fixed_row * D + (fixed_chunk & ~LOW) * 8;
}

/** A fragment: rows row .. row+15, columns 8 chunk .. 8 chunk + 15. */
template <int D>
static __device__ __forceinline__ void flash_frag_a(uint32_t *a, const uint16_t *tile, int row,
                                                    int fixed_row, int chunk)
{
    const int lane = threadIdx.x & 31;
    const int at = flash_lane_place<D>(row + (lane & 15), lane >> 4, fixed_row, chunk);
    tess_ldmatrix(a, tile + at);
}

/** Two B fragments of the transposed tile: n = rows row .. row+15, k = 16 columns from chunk. */
template <int D>
static __device__ __forceinline__ void flash_frag_b_rows(uint32_t *b, const uint16_t *tile, int row,
                                                         int chunk)
{
    const int lane = threadIdx.x & 31, lane_row = (lane >> 4) * 8 + (lane & 7);
    tess_ldmatrix(b, tile + flash_lane_place<D>(lane_row, lane >> 3 & 1, row, chunk));
}

/** Two B fragments of the tile as it stands: k = rows row .. row+15, n = 16 columns from chunk. */
template <int D>
static __device__ __forceinline__ void flash_frag_b(uint32_t *b, const uint16_t *tile, int row,
                                                    int chunk)
{
    const int lane = threadIdx.x & 31;
    tess_ldmatrix_trans(b, tile + flash_lane_place<D>(lane & 15, lane >> 4, row, chunk));
}

/** s [16, 8 NT] = rows a_row .. of tile a times the transposed tile b of 8 NT rows. */
template <int D, int NT>
static __device__ __forceinline__ void flash_scores(float (*s)[4], const uint16_t *a_tile,
                                                    int a_row, const uint16_t *b_tile)
{
#pragma unroll
    for (int n = 0; n < NT; n++)
        s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0.0f;
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        uint32_t a[4];
        flash_frag_a<D>(a, a_tile, a_row, 0, 2 * k);
#pragma unroll
        for (int n = 0; n < NT; n += 2) {
            uint32_t b[4];
            flash_frag_b_rows<D>(b, b_tile, 8 * n, 2 * k);
            tess_mma(s[n], a, b);
            tess_mma(s[n + 1], a, b + 2);
        }
    }
}

/** acc [16, D] += s [16, 8 NT] rounded to bf16 times the tile of 8 NT rows. */
template <int D, int NT>
static __device__ __forceinline__ void flash_accumulate(float (*acc)[4], float (*s)[4],
                                                        const uint16_t *tile)
{
#pragma unroll
    for (int k = 0; k < NT / 2; k++) {
        const float *const left = s[2 * k], *const right = s[2 * k + 1];
        const uint32_t a[4] = {tess_pack_bf16(left[0], left[1]), tess_pack_bf16(left[2], left[3]),
                               tess_pack_bf16(right[0], right[1]),
                               tess_pack_bf16(right[2], right[3])};
#pragma unroll
        for (int n = 0; n < D / 8; n += 2) {
            uint32_t b[4];
            flash_frag_b<D>(b, tile, 16 * k, n);
            tess_mma(acc[n], a, b);
            tess_mma(acc[n + 1], a, b + 2);
        }
    }
}

/** Rows row and row + 8 of this lane, times factor[0] and factor[1], to dst rows below T. */
template <int D>
static __device__ __forceinline__ void flash_store(const float (*acc)[4], const float *factor,
                                                   uint16_t *dst, int64_t stride, int row,
                                                   const flash_params *p)
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        if (row + 8 * r >= p->token_numel)
            continue;
        uint16_t *const line = dst + (row + 8 * r) * stride + 2 * (threadIdx.x & 3);
#pragma unroll
        for (int n = 0; n < D / 8; n++)
            if (n * 8 < p->dim)
                *reinterpret_cast<uint32_t *>(line + 8 * n) =
                    tess_pack_bf16(acc[n][2 * r] * factor[r], acc[n][2 * r + 1] * factor[r]);
    }
}

static __device__ __forceinline__ float flash_from_bf16(uint16_t bits)
{
    const uint32_t word = static_cast<uint32_t>(bits) << 16;
    float x;
    memcpy(&x, &word, sizeof x);
    return x;
}

/** Blocks of `rows` rows of one head; segments in the second dimension. */
static inline dim3 flash_grid(const flash_params *p, int rows, int head_numel)
{
    return dim3(static_cast<unsigned>(tess_ceil_div(p->token_numel, rows) * head_numel),
                static_cast<unsigned>(p->segment_numel));
}

/** Head dims are rounded up to the kernels there are. */
static inline int flash_dim(int dim)
{
    return dim <= 32 ? 32 : dim <= 64 ? 64 : dim <= 96 ? 96 : dim <= 128 ? 128 : 256;
}

/** Whether the tensor-core kernels can read and write this operand by 16 bytes. */
static inline bool flash_is_aligned(const void *data, int64_t stride)
{
    return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride % 8 == 0;
}

/** Shape limits of the kernels, and the parameters that forward and backward share. */
static inline tess_status flash_params_init(flash_params *p, const tess_attention_shape *shape,
                                            const tess_flash_strides *strides, int64_t window)
{
    TESS_CHECK(shape->dim <= TESS_FLASH_DIM_MAX, TESS_E_UNSUPPORTED,
               "attention: head dim is %lld, own CUDA kernels have 256 at most; use the CPU",
               static_cast<long long>(shape->dim));
    /* blocks are counted in one dimension, 8 rows of one head at least */
    TESS_CHECK((shape->token_numel / 8 + 1) <= INT32_MAX / shape->head_numel, TESS_E_UNSUPPORTED,
               "attention: %lld tokens of %lld heads are more blocks than a grid holds; use "
               "smaller micro-batches",
               static_cast<long long>(shape->token_numel),
               static_cast<long long>(shape->head_numel));
    p->stride = *strides;
    p->head_stride = shape->token_numel;
    p->token_numel = static_cast<int>(shape->token_numel);
    p->segment_numel = 1;
    if (shape->segment_numel > 0) {
        p->token_numel = static_cast<int>(shape->segment_numel);
        p->segment_numel = static_cast<int>(shape->token_numel / shape->segment_numel);
    }
    TESS_CHECK(p->segment_numel <= FLASH_SEGMENT_MAX, TESS_E_UNSUPPORTED,
               "attention: %d segments are more than a grid holds (%d); use smaller micro-batches",
               p->segment_numel, FLASH_SEGMENT_MAX);
    p->head_numel = static_cast<int>(shape->head_numel);
    p->kv_head_numel = static_cast<int>(shape->kv_head_numel);
    p->group_numel = p->head_numel / p->kv_head_numel;
    p->dim = static_cast<int>(shape->dim);
    p->window = static_cast<int>(TESS_MIN(window, shape->token_numel));
    return TESS_OK;
}
