/* Small kernels around the library's matrix products: operands into scratch, sums into C. */
#include "kernels/cuda/common_priv.cuh"

#include "kernels/cuda/gemm_priv.h"

enum {
    THREAD_NUMEL = 256,
    LINE_NUMEL = 8,  /* elements a thread takes at a time: 16 bytes of bf16 */
    BATCH_NUMEL = 4, /* lines a thread has in flight */
};

typedef struct expand_params {
    const void *src;
    int64_t rows, cols;
    void *dst;
    int64_t dst_stride;
    int lane_shift; /* log2 of the threads that share a row */
} expand_params;

typedef struct finish_params {
    const float *sum;
    int64_t sum_stride;
    const void *bias;
    void *c;
    int64_t c_stride;
    int64_t rows, cols;
    int lane_shift;
    bool is_bias_bf16, is_added;
} finish_params;

static __device__ __forceinline__ float f32_of_bits(unsigned short bits)
{
    return __uint_as_float((unsigned)bits << 16);
}

static __device__ __forceinline__ unsigned short bits_of_f32(float x)
{
    return __bfloat16_as_ushort(__float2bfloat16_rn(x));
}

static __device__ __forceinline__ unsigned pair_of(float lo, float hi)
{
    return (unsigned)bits_of_f32(lo) | (unsigned)bits_of_f32(hi) << 16;
}

/* What a line is made of: raw loads first, so that several are in flight. */
typedef struct raw_line {
    uint4 lo, hi;
} raw_line;

template <bool FROM_BF16>
static __device__ __forceinline__ void line_load(const expand_params &p, int64_t idx, raw_line *out)
{
    const uint4 *src = (const uint4 *)p.src;
    out->lo = src[FROM_BF16 ? idx / 8 : idx / 4];
    if (!FROM_BF16)
        out->hi = src[idx / 4 + 1];
}

static __device__ __forceinline__ void pair_expand(unsigned bits, float *value)
{
    value[0] = __uint_as_float(bits << 16);
    value[1] = __uint_as_float(bits & 0xffff0000u);
}

template <bool FROM_BF16>
static __device__ __forceinline__ void line_expand(const raw_line &raw, float value[LINE_NUMEL])
{
    if (FROM_BF16) {
        pair_expand(raw.lo.x, value);
        pair_expand(raw.lo.y, value + 2);
        pair_expand(raw.lo.z, value + 4);
        pair_expand(raw.lo.w, value + 6);
    } else {
        value[0] = __uint_as_float(raw.lo.x);
        value[1] = __uint_as_float(raw.lo.y);
        value[2] = __uint_as_float(raw.lo.z);
        value[3] = __uint_as_float(raw.lo.w);
        value[4] = __uint_as_float(raw.hi.x);
        value[5] = __uint_as_float(raw.hi.y);
        value[6] = __uint_as_float(raw.hi.z);
        value[7] = __uint_as_float(raw.hi.w);
    }
}

template <bool IS_BF16>
static __device__ __forceinline__ void line_store(void *dst, int64_t at, const float v[LINE_NUMEL])
{
    if (IS_BF16) {
        ((uint4 *)dst)[at / 8] = make_uint4(pair_of(v[0], v[1]), pair_of(v[2], v[3]),
                                            pair_of(v[4], v[5]), pair_of(v[6], v[7]));
    } else {
        ((float4 *)dst)[at / 4] = make_float4(v[0], v[1], v[2], v[3]);
        ((float4 *)dst)[at / 4 + 1] = make_float4(v[4], v[5], v[6], v[7]);
    }
}

/* Rows whose lines are whole and aligned. */
template <bool FROM_BF16, bool IS_BF16>
static __global__ void __launch_bounds__(THREAD_NUMEL) expand_lines(const expand_params p)
{
    const int lane_numel = 1 << p.lane_shift;
    const int lane = (int)threadIdx.x & (lane_numel - 1);
    const int rows_per_block = THREAD_NUMEL >> p.lane_shift;
    const int64_t line_numel = p.cols / LINE_NUMEL;
    int64_t row = (int64_t)blockIdx.x * rows_per_block + ((int)threadIdx.x >> p.lane_shift);
    for (; row < p.rows; row += (int64_t)gridDim.x * rows_per_block) {
        for (int64_t first = lane; first < line_numel; first += BATCH_NUMEL * lane_numel) {
            raw_line raw[BATCH_NUMEL];
#pragma unroll
            for (int i = 0; i < BATCH_NUMEL; i++) {
                const int64_t line = first + i * lane_numel;
                if (line < line_numel)
                    line_load<FROM_BF16>(p, row * p.cols + line * LINE_NUMEL, &raw[i]);
            }
#pragma unroll
            for (int i = 0; i < BATCH_NUMEL; i++) {
                const int64_t line = first + i * lane_numel;
                float value[LINE_NUMEL];
                if (line >= line_numel)
                    break;
                line_expand<FROM_BF16>(raw[i], value);
                line_store<IS_BF16>(p.dst, row * p.dst_stride + line * LINE_NUMEL, value);
            }
        }
    }
}

/* Any shape and alignment, one element at a time. */
template <bool FROM_BF16, bool IS_BF16>
static __global__ void __launch_bounds__(THREAD_NUMEL) expand_elements(const expand_params p)
{
    const int64_t numel = p.rows * p.cols;
    int64_t idx = (int64_t)blockIdx.x * THREAD_NUMEL + threadIdx.x;
    for (; idx < numel; idx += (int64_t)gridDim.x * THREAD_NUMEL) {
        const int64_t row = idx / p.cols;
        const int64_t at = row * p.dst_stride + (idx - row * p.cols);
        float value = 0.0f;
        if (p.src != NULL)
            value = FROM_BF16 ? f32_of_bits(((const unsigned short *)p.src)[idx])
                              : ((const float *)p.src)[idx];
        if (IS_BF16)
            ((unsigned short *)p.dst)[at] = bits_of_f32(value);
        else
            ((float *)p.dst)[at] = value;
    }
}

static __device__ __forceinline__ float c_of(const finish_params &p, int64_t row, int64_t col)
{
    float value = p.sum != NULL ? p.sum[row * p.sum_stride + col] : 0.0f;
    if (p.bias != NULL)
        value += p.is_bias_bf16 ? f32_of_bits(((const unsigned short *)p.bias)[col])
                                : ((const float *)p.bias)[col];
    if (p.is_added)
        value = ((const float *)p.c)[row * p.c_stride + col] + value;
    return value;
}

/* VEC elements at a time; 4 needs aligned rows of the sum and a bf16 C. */
template <int VEC, bool IS_BF16>
static __global__ void __launch_bounds__(THREAD_NUMEL) finish_rows(const finish_params p)
{
    const int lane_numel = 1 << p.lane_shift;
    const int lane = (int)threadIdx.x & (lane_numel - 1);
    const int rows_per_block = THREAD_NUMEL >> p.lane_shift;
    int64_t row = (int64_t)blockIdx.x * rows_per_block + ((int)threadIdx.x >> p.lane_shift);
    for (; row < p.rows; row += (int64_t)gridDim.x * rows_per_block) {
        for (int64_t col = (int64_t)lane * VEC; col < p.cols; col += (int64_t)lane_numel * VEC) {
            if (VEC == 4) {
                const float4 sum = ((const float4 *)p.sum)[(row * p.sum_stride + col) / 4];
                float v[4] = {sum.x, sum.y, sum.z, sum.w};
#pragma unroll
                for (int i = 0; i < 4 && p.bias != NULL; i++)
                    v[i] += p.is_bias_bf16 ? f32_of_bits(((const unsigned short *)p.bias)[col + i])
                                           : ((const float *)p.bias)[col + i];
                ((uint2 *)p.c)[(row * p.c_stride + col) / 4] =
                    make_uint2(pair_of(v[0], v[1]), pair_of(v[2], v[3]));
            } else if (IS_BF16) {
                ((unsigned short *)p.c)[row * p.c_stride + col] = bits_of_f32(c_of(p, row, col));
            } else {
                ((float *)p.c)[row * p.c_stride + col] = c_of(p, row, col);
            }
        }
    }
}

/* log2 of the threads per row: enough for `numel` elements or lines, at most a block. */
static int lane_shift_of(int64_t numel)
{
    int shift = 0;
    while (shift < 8 && (int64_t)1 << shift < numel)
        shift++;
    return shift;
}

static unsigned grid_of(int64_t rows, int lane_shift)
{
    return tess_grid(rows, THREAD_NUMEL >> lane_shift);
}

static bool is_aligned(const void *p, uintptr_t nbytes) { return (uintptr_t)p % nbytes == 0; }

template <bool FROM_BF16, bool IS_BF16>
static tess_status expand_launch(expand_params p, tess_stream *s)
{
    const bool is_whole = p.cols % LINE_NUMEL == 0 && p.dst_stride % LINE_NUMEL == 0;
    if (is_whole && p.src != NULL && is_aligned(p.dst, 16) && is_aligned(p.src, 16)) {
        p.lane_shift = lane_shift_of(p.cols / LINE_NUMEL);
        TESS_LAUNCH((expand_lines<FROM_BF16, IS_BF16>), grid_of(p.rows, p.lane_shift), THREAD_NUMEL,
                    0, s, p);
        return TESS_OK;
    }
    TESS_LAUNCH((expand_elements<FROM_BF16, IS_BF16>), grid_of(p.rows * p.cols, 0), THREAD_NUMEL, 0,
                s, p);
    return TESS_OK;
}

extern "C" tess_status tess_cuda_gemm_expand(const tess_gemm_expand_args *a, tess_stream *s)
{
    const expand_params p = {a->src, a->rows, a->cols, a->dst, a->dst_stride, 0};
    if (a->rows == 0 || a->cols == 0)
        return TESS_OK;
    TESS_CHECK(a->dt == TESS_F32 || a->dt == TESS_BF16, TESS_E_DTYPE,
               "gemm: scratch is %s, expected f32 or bf16", tess_dtype_name(a->dt));
    if (a->src_dt == TESS_BF16)
        return a->dt == TESS_BF16 ? expand_launch<true, true>(p, s)
                                  : expand_launch<true, false>(p, s);
    return a->dt == TESS_BF16 ? expand_launch<false, true>(p, s)
                              : expand_launch<false, false>(p, s);
}

extern "C" tess_status tess_cuda_gemm_finish(const tess_gemm_finish_args *a, tess_stream *s)
{
    finish_params p = {};
    if (a->rows == 0 || a->cols == 0)
        return TESS_OK;
    p.sum = a->sum;
    p.sum_stride = a->sum_stride;
    p.bias = a->bias;
    p.c = a->c;
    p.c_stride = a->c_stride;
    p.rows = a->rows;
    p.cols = a->cols;
    p.is_bias_bf16 = a->bias_dt == TESS_BF16;
    p.is_added = a->is_added;
    const bool is_bf16 = a->c_dt == TESS_BF16;
    const bool is_whole = a->cols % 4 == 0 && a->sum_stride % 4 == 0 && a->c_stride % 4 == 0;
    if (is_bf16 && a->sum != NULL && is_whole && is_aligned(a->sum, 16) && is_aligned(a->c, 8)) {
        p.lane_shift = lane_shift_of(a->cols / 4);
        TESS_LAUNCH((finish_rows<4, true>), grid_of(a->rows, p.lane_shift), THREAD_NUMEL, 0, s, p);
        return TESS_OK;
    }
    p.lane_shift = lane_shift_of(a->cols);
    if (is_bf16)
        TESS_LAUNCH((finish_rows<1, true>), grid_of(a->rows, p.lane_shift), THREAD_NUMEL, 0, s, p);
    else
        TESS_LAUNCH((finish_rows<1, false>), grid_of(a->rows, p.lane_shift), THREAD_NUMEL, 0, s, p);
    return TESS_OK;
}
