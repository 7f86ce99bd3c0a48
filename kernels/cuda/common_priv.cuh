/**
 * What the kernels share: bounded grids, loads and stores of chunks, and the loop over them.
 *
 * [Note: chunks] A thread handles N consecutive elements: 16 bytes of the narrowest operand.
 * Whole chunks of aligned operands go as vectors; the last one, and everything that is not aligned,
 * goes element by element. Kernels loop over the grid, so that any size fits and grids stay small.
 */
#pragma once

#include "kernels/cuda/cuda_priv.h"
#include "kernels/cuda/launch_priv.cuh"
#include "kernels/math_priv.h"

enum { TESS_BLOCK_THREADS = 256, TESS_GRID_MAX = 4096 };

/** Most blocks of a grid; kernels loop over what is left. */
static inline int64_t tess_grid_max(void)
{
#ifdef TESS_EMULATE
    if (tess_emulation::block_max() > 0)
        return tess_emulation::block_max();
#endif
    return TESS_GRID_MAX;
}

/** Blocks for `numel` items (at least one) of which each block takes `per_block` at a time. */
static inline unsigned tess_grid(int64_t numel, int64_t per_block)
{
    const int64_t block_numel = numel / per_block + (numel % per_block != 0);
    return (unsigned)TESS_MIN(block_numel, tess_grid_max());
}

/** Whether 16-byte accesses may start at each of these addresses (NULL counts as aligned). */
static inline bool tess_is_aligned(const void *a, const void *b = nullptr, const void *c = nullptr,
                                   const void *d = nullptr, const void *e = nullptr)
{
    return (((uintptr_t)a | (uintptr_t)b | (uintptr_t)c | (uintptr_t)d | (uintptr_t)e) & 15) == 0;
}

/** Elements per thread and step of an op whose narrowest operand is of this dtype. */
template <bool IS_BF16> struct tess_chunk {
    enum { NUMEL = IS_BF16 ? 8 : 4 };
};

/** Two f32 to nearest bf16, ties to even, `lo` in the lower half. NaN is 0x7fff, as the device has
 * it; where the bits of NaN are defined, tess_bf16_from_f32() says them. */
__device__ static inline unsigned tess_bf16_pack(float lo, float hi)
{
    const __nv_bfloat162 v = __floats2bfloat162_rn(lo, hi);
    unsigned bits;
    memcpy(&bits, &v, sizeof bits);
    return bits;
}

/** Round to the storage dtype and stay in f32. */
template <bool IS_BF16> __device__ static inline float tess_round(float x)
{
    return IS_BF16 ? __bfloat162float(__float2bfloat16_rn(x)) : x;
}

template <bool IS_BF16> struct tess_element {
    typedef float type;
};
template <> struct tess_element<true> {
    typedef uint16_t type;
};

__device__ static inline float tess_widen(float x) { return x; }
__device__ static inline float tess_widen(uint16_t x) { return tess_bf16_to_f32(x); }

/** Round all to the storage dtype and stay in f32: by pairs, which on sm_90 go four times as fast
 * as single numbers. */
template <bool IS_BF16, int N> __device__ static inline void tess_round_all(float v[N])
{
    static_assert(N % 2 == 0, "pairs");
#pragma unroll
    for (int k = 0; IS_BF16 && k < N; k += 2) {
        const unsigned pair = tess_bf16_pack(v[k], v[k + 1]);
        v[k] = tess_f32_of_bits(pair << 16);
        v[k + 1] = tess_f32_of_bits(pair & 0xffff0000u);
    }
}

/**
 * 8 and 16 bytes to global memory in one store. Written as an assignment, nvcc 13.0 makes four
 * stores of it where it also strength-reduces the address.
 */
__device__ static inline void tess_put(uint4 *p, uint4 v)
{
#ifdef TESS_EMULATE
    *p = v;
#else
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(v.x), "r"(v.y), "r"(v.z),
                 "r"(v.w)
                 : "memory");
#endif
}

__device__ static inline void tess_put(uint2 *p, uint2 v)
{
#ifdef TESS_EMULATE
    *p = v;
#else
    asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(p), "r"(v.x), "r"(v.y) : "memory");
#endif
}

/** 4-byte words of N elements; N * size is 8, 16 or 32 bytes and so is the alignment asked for. */
template <int WORDS> struct tess_words {
    unsigned w[WORDS];
};

template <int WORDS> __device__ static inline tess_words<WORDS> tess_words_load(const void *p)
{
    tess_words<WORDS> r;
    TESS_ALIGNED(p, TESS_MIN(WORDS, 4) * 4);
    static_assert(WORDS == 1 || WORDS == 2 || WORDS % 4 == 0, "vectors of 4, 8 or 16 bytes");
    if constexpr (WORDS == 1) {
        r.w[0] = *static_cast<const unsigned *>(p);
    } else if constexpr (WORDS == 2) {
        const uint2 v = *static_cast<const uint2 *>(p);
        r.w[0] = v.x;
        r.w[1] = v.y;
    } else {
#pragma unroll
        for (int i = 0; i < WORDS / 4; i++) {
            const uint4 v = static_cast<const uint4 *>(p)[i];
            r.w[4 * i] = v.x;
            r.w[4 * i + 1] = v.y;
            r.w[4 * i + 2] = v.z;
            r.w[4 * i + 3] = v.w;
        }
    }
    return r;
}

template <int WORDS> __device__ static inline void tess_words_store(void *p, tess_words<WORDS> r)
{
    TESS_ALIGNED(p, TESS_MIN(WORDS, 4) * 4);
    if constexpr (WORDS == 1) {
        *static_cast<unsigned *>(p) = r.w[0];
    } else if constexpr (WORDS == 2) {
        tess_put(static_cast<uint2 *>(p), make_uint2(r.w[0], r.w[1]));
    } else {
#pragma unroll
        for (int i = 0; i < WORDS / 4; i++)
            tess_put(static_cast<uint4 *>(p) + i,
                     make_uint4(r.w[4 * i], r.w[4 * i + 1], r.w[4 * i + 2], r.w[4 * i + 3]));
    }
}

/** Elements i .. i+n-1 of an f32 or bf16 array; those past n are 0. IS_WHOLE: n is N and the
 * address is a multiple of what N elements take. */
template <bool IS_BF16, bool IS_WHOLE, int N>
__device__ static inline void tess_load(const void *p, int64_t i, int n, float v[N])
{
    using element = typename tess_element<IS_BF16>::type;
    const element *src = static_cast<const element *>(p) + i;
    if constexpr (!IS_WHOLE) {
#pragma unroll
        for (int k = 0; k < N; k++)
            v[k] = k < n ? tess_widen(src[k]) : 0.0f;
    } else if constexpr (IS_BF16) {
        const tess_words<N / 2> r = tess_words_load<N / 2>(src);
#pragma unroll
        for (int k = 0; k < N; k++)
            v[k] = tess_f32_of_bits(k % 2 == 0 ? r.w[k / 2] << 16 : r.w[k / 2] & 0xffff0000u);
    } else {
        const tess_words<N> r = tess_words_load<N>(src);
#pragma unroll
        for (int k = 0; k < N; k++)
            v[k] = tess_f32_of_bits(r.w[k]);
    }
}

/** Words of N elements, bf16 by one rounding. IS_EXACT: also the bits of NaN are those of the CPU.
 */
template <bool IS_BF16, int N, bool IS_EXACT>
__device__ static inline tess_words<IS_BF16 ? N / 2 : N> tess_pack(const float v[N])
{
    tess_words<IS_BF16 ? N / 2 : N> r;
    if constexpr (!IS_BF16) {
#pragma unroll
        for (int k = 0; k < N; k++)
            r.w[k] = tess_f32_bits(v[k]);
    } else {
        bool has_nan = false;
#pragma unroll
        for (int k = 0; k < N; k++)
            has_nan = has_nan || (IS_EXACT && v[k] != v[k]);
#pragma unroll
        for (int k = 0; k < N; k += 2)
            r.w[k / 2] = tess_bf16_pack(v[k], v[k + 1]);
        if (has_nan) { /* all else is rounded alike */
#pragma unroll
            for (int k = 0; k < N; k += 2)
                r.w[k / 2] = (unsigned)tess_bf16_from_f32(v[k]) |
                             (unsigned)tess_bf16_from_f32(v[k + 1]) << 16;
        }
    }
    return r;
}

/** The reverse of tess_load(). */
template <bool IS_BF16, bool IS_WHOLE, int N, bool IS_EXACT = false>
__device__ static inline void tess_store(void *p, int64_t i, int n, const float v[N])
{
    using element = typename tess_element<IS_BF16>::type;
    element *dst = static_cast<element *>(p) + i;
    const auto r = tess_pack<IS_BF16, N, IS_EXACT>(v);
    if constexpr (IS_WHOLE) {
        tess_words_store(dst, r);
    } else if constexpr (IS_BF16) {
#pragma unroll
        for (int k = 0; k < N; k++)
            if (k < n)
                dst[k] = (uint16_t)(r.w[k / 2] >> 16 * (k % 2));
    } else {
#pragma unroll
        for (int k = 0; k < N; k++)
            if (k < n)
                dst[k] = v[k];
    }
}

/** dst[to + k] = src[from + k] for k < n <= N, the bits as they are. */
template <bool IS_BF16, bool IS_WHOLE, int N>
__device__ static inline void tess_copy(void *dst, int64_t to, const void *src, int64_t from, int n)
{
    using element = typename tess_element<IS_BF16>::type;
    element *d = static_cast<element *>(dst) + to;
    const element *s = static_cast<const element *>(src) + from;
    if constexpr (IS_WHOLE) {
        tess_words_store(d, tess_words_load < IS_BF16 ? N / 2 : N > (s));
    } else {
#pragma unroll
        for (int k = 0; k < N; k++)
            if (k < n)
                d[k] = s[k];
    }
}

/** A scalar of an f32 or bf16 array. */
template <bool IS_BF16> __device__ static inline float tess_get(const void *p, int64_t i)
{
    return tess_widen(static_cast<const typename tess_element<IS_BF16>::type *>(p)[i]);
}

/**
 * Run OP::chunk<IS_WHOLE>(a, i, n) for all chunks of OP::NUMEL elements of [0, numel), over the
 * whole grid.
 */
template <typename OP, typename ARGS>
__device__ static inline void tess_for_chunks(const ARGS &a, int64_t numel, bool is_aligned)
{
    const int64_t stride = (int64_t)gridDim.x * blockDim.x * OP::NUMEL;
    int64_t i = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * OP::NUMEL;
    for (; i < numel; i += stride) {
        const int64_t left = numel - i;
        if (is_aligned && left >= OP::NUMEL)
            OP::template chunk<true>(a, i, OP::NUMEL);
        else
            OP::template chunk<false>(a, i, (int)TESS_MIN(left, (int64_t)OP::NUMEL));
    }
}

template <typename OP, typename ARGS>
__global__ static void __launch_bounds__(TESS_BLOCK_THREADS)
    tess_chunks_kernel(const ARGS a, int64_t numel, bool is_aligned)
{
    tess_for_chunks<OP>(a, numel, is_aligned);
}

/** Start an element-wise op; nothing to do for no elements. */
template <typename OP, typename ARGS>
TESS_MUST_CHECK static inline tess_status tess_chunks_launch(const ARGS &a, int64_t numel,
                                                             bool is_aligned, tess_stream *s)
{
    if (numel > 0)
        TESS_LAUNCH((tess_chunks_kernel<OP, ARGS>),
                    tess_grid(numel, (int64_t)TESS_BLOCK_THREADS * OP::NUMEL), TESS_BLOCK_THREADS,
                    0, s, a, numel, is_aligned);
    return TESS_OK;
}

/** The same for ops with an output whose rows of `dim` are `stride` apart: a block per row, and
 * OP::chunk_at<IS_WHOLE>(a, i, n, shift) with how far the row has moved in the output. */
template <typename OP, typename ARGS>
__global__ static void __launch_bounds__(TESS_BLOCK_THREADS)
    tess_rows_kernel(const ARGS a, int64_t row_numel, int64_t dim, int64_t stride, bool is_aligned)
{
    for (int64_t row = blockIdx.x; row < row_numel; row += gridDim.x) {
        const int64_t shift = row * (stride - dim);
        for (int64_t i = (int64_t)threadIdx.x * OP::NUMEL; i < dim;
             i += (int64_t)blockDim.x * OP::NUMEL) {
            if (is_aligned)
                OP::template chunk_at<true>(a, row * dim + i, OP::NUMEL, shift);
            else
                OP::template chunk_at<false>(a, row * dim + i,
                                             (int)TESS_MIN(dim - i, (int64_t)OP::NUMEL), shift);
        }
    }
}

/** Where an op with such an output writes: `stride` 0 is contiguous. */
typedef struct tess_layout {
    int64_t numel, dim, stride;
} tess_layout;

template <typename OP, typename ARGS>
TESS_MUST_CHECK static inline tess_status tess_rows_launch(const ARGS &a, tess_layout layout,
                                                           bool is_aligned, tess_stream *s)
{
    if (layout.numel == 0)
        return TESS_OK;
    if (layout.stride == 0)
        return tess_chunks_launch<OP>(a, layout.numel, is_aligned, s);
    const int64_t row_numel = layout.numel / layout.dim;
    const bool is_whole = layout.dim % OP::NUMEL == 0 && layout.stride % OP::NUMEL == 0;
    TESS_LAUNCH((tess_rows_kernel<OP, ARGS>), tess_grid(row_numel, 1), TESS_BLOCK_THREADS, 0, s, a,
                row_numel, layout.dim, layout.stride, is_aligned && is_whole);
    return TESS_OK;
}
