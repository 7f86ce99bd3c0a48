/* Small kernels around the library's matrix products: operands into scratch, sums into C. */
#include "kernels/cuda/launch_priv.cuh"

#include "kernels/cuda/gemm_priv.h"

enum {
    THREAD_NUMEL = 256,
    GRID_MAX = 2112, /* 16 blocks on each of 132 multiprocessors */
    LINE_NUMEL = 8,  /* elements a thread takes at a time: 16 bytes of bf16, 4 of codes */
    BATCH_NUMEL = 4, /* lines a thread has in flight */
    MAP_NUMEL = 256,
    TABLE_NUMEL = 16,
};

/* SOURCE_BNB4: 4-bit codes with absmax in f32; SOURCE_BNB4_DOUBLE: absmax in 8 bits. */
typedef enum source_kind { SOURCE_F32, SOURCE_BF16, SOURCE_BNB4, SOURCE_BNB4_DOUBLE } source_kind;

/* By value: 1.2 KB of parameters, so that no table has to be uploaded first. */
typedef struct expand_params {
    const void *part[TESS_CODEC_PART_MAX];
    int64_t rows, cols;
    void *dst;
    int64_t dst_stride;
    int lane_shift;  /* log2 of the threads that share a row */
    int block_shift; /* log2 of the elements that share an absmax */
    float table[TABLE_NUMEL];
    float map[MAP_NUMEL];
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

/* absmax of the block of element `idx`; the product and the sum are rounded one by one. */
template <source_kind SOURCE>
static __device__ __forceinline__ float absmax_of(const expand_params &p, const float *map,
                                                  int64_t idx)
{
    const int64_t block = idx >> p.block_shift;
    if (SOURCE != SOURCE_BNB4_DOUBLE)
        return ((const float *)p.part[1])[block];
    const float nested = ((const float *)p.part[2])[block / TESS_NESTED_BLOCK_NUMEL];
    const float scaled = map[((const unsigned char *)p.part[1])[block]] * nested;
    return scaled + ((const float *)p.part[3])[0];
}

/* What a line is made of: raw loads first, so that several are in flight. */
typedef struct raw_line {
    uint4 lo, hi;
    float absmax;
} raw_line;

template <source_kind SOURCE>
static __device__ __forceinline__ void line_load(const expand_params &p, const float *map,
                                                 int64_t idx, raw_line *out)
{
    if (SOURCE == SOURCE_F32) {
        out->lo = ((const uint4 *)p.part[0])[idx / 4];
        out->hi = ((const uint4 *)p.part[0])[idx / 4 + 1];
    } else if (SOURCE == SOURCE_BF16) {
        out->lo = ((const uint4 *)p.part[0])[idx / 8];
    } else {
        out->lo.x = ((const unsigned *)p.part[0])[idx / 8];
        out->absmax = absmax_of<SOURCE>(p, map, idx);
    }
}

static __device__ __forceinline__ void pair_expand(unsigned bits, float *value)
{
    value[0] = __uint_as_float(bits << 16);
    value[1] = __uint_as_float(bits & 0xffff0000u);
}

template <source_kind SOURCE>
static __device__ __forceinline__ void line_expand(const raw_line &raw, const float *table,
                                                   float value[LINE_NUMEL])
{
    if (SOURCE == SOURCE_F32) {
        value[0] = __uint_as_float(raw.lo.x);
        value[1] = __uint_as_float(raw.lo.y);
        value[2] = __uint_as_float(raw.lo.z);
        value[3] = __uint_as_float(raw.lo.w);
        value[4] = __uint_as_float(raw.hi.x);
        value[5] = __uint_as_float(raw.hi.y);
        value[6] = __uint_as_float(raw.hi.z);
        value[7] = __uint_as_float(raw.hi.w);
    } else if (SOURCE == SOURCE_BF16) {
        pair_expand(raw.lo.x, value);
        pair_expand(raw.lo.y, value + 2);
        pair_expand(raw.lo.z, value + 4);
        pair_expand(raw.lo.w, value + 6);
    } else {
#pragma unroll
        for (int i = 0; i < LINE_NUMEL; i++) { /* byte i / 2, the high nibble first */
            const int shift = i / 2 * 8 + (i % 2 == 0 ? 4 : 0);
            value[i] = table[raw.lo.x >> shift & 15u] * raw.absmax;
        }
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

/* Tables in shared memory: 16 entries lie in 16 banks, so 32 lanes read them without conflict. */
template <source_kind SOURCE>
static __device__ __forceinline__ void tables_load(const expand_params &p, float *shared)
{
    if (SOURCE == SOURCE_BNB4 || SOURCE == SOURCE_BNB4_DOUBLE) {
        for (int i = (int)threadIdx.x; i < TABLE_NUMEL; i += THREAD_NUMEL)
            shared[i] = p.table[i];
        for (int i = (int)threadIdx.x; i < MAP_NUMEL; i += THREAD_NUMEL)
            shared[TABLE_NUMEL + i] = p.map[i];
        __syncthreads();
    }
}

/* Rows whose lines are whole and aligned. */
template <source_kind SOURCE, bool IS_BF16>
static __global__ void __launch_bounds__(THREAD_NUMEL)
    expand_lines(const __grid_constant__ expand_params p)
{
    TESS_DYN_SHARED(float, shared);
    tables_load<SOURCE>(p, shared);
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
                    line_load<SOURCE>(p, shared + TABLE_NUMEL, row * p.cols + line * LINE_NUMEL,
                                      &raw[i]);
            }
#pragma unroll
            for (int i = 0; i < BATCH_NUMEL; i++) {
                const int64_t line = first + i * lane_numel;
                float value[LINE_NUMEL];
                if (line >= line_numel)
                    break;
                line_expand<SOURCE>(raw[i], shared, value);
                line_store<IS_BF16>(p.dst, row * p.dst_stride + line * LINE_NUMEL, value);
            }
        }
    }
}

/* Any shape and alignment, one element at a time. */
template <source_kind SOURCE, bool IS_BF16>
static __global__ void __launch_bounds__(THREAD_NUMEL)
    expand_elements(const __grid_constant__ expand_params p)
{
    TESS_DYN_SHARED(float, shared);
    tables_load<SOURCE>(p, shared);
    const int64_t numel = p.rows * p.cols;
    int64_t idx = (int64_t)blockIdx.x * THREAD_NUMEL + threadIdx.x;
    for (; idx < numel; idx += (int64_t)gridDim.x * THREAD_NUMEL) {
        const int64_t row = idx / p.cols;
        const int64_t at = row * p.dst_stride + (idx - row * p.cols);
        float value = 0.0f;
        if (p.part[0] == NULL) {
            value = 0.0f;
        } else if (SOURCE == SOURCE_F32) {
            value = ((const float *)p.part[0])[idx];
        } else if (SOURCE == SOURCE_BF16) {
            value = f32_of_bits(((const unsigned short *)p.part[0])[idx]);
        } else {
            const unsigned byte = ((const unsigned char *)p.part[0])[idx / 2];
            value = shared[idx % 2 == 0 ? byte >> 4 : byte & 15u] *
                    absmax_of<SOURCE>(p, shared + TABLE_NUMEL, idx);
        }
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
    const int64_t rows_per_block = THREAD_NUMEL >> lane_shift;
    const int64_t blocks = (rows + rows_per_block - 1) / rows_per_block;
    const int64_t most = GRID_MAX;
    return (unsigned)(blocks < most ? blocks : most);
}

static bool is_aligned(const void *p, uintptr_t nbytes) { return (uintptr_t)p % nbytes == 0; }

template <source_kind SOURCE, bool IS_BF16>
static tess_status expand_launch(expand_params *p, tess_stream *s)
{
    const bool is_quantized = SOURCE == SOURCE_BNB4 || SOURCE == SOURCE_BNB4_DOUBLE;
    const bool is_whole = p->cols % LINE_NUMEL == 0 && p->dst_stride % LINE_NUMEL == 0;
    const bool is_placed = p->part[0] != NULL && is_aligned(p->dst, 16) &&
                           is_aligned(p->part[0], is_quantized ? 4 : 16);
    const size_t shared_nbytes = (TABLE_NUMEL + MAP_NUMEL) * sizeof(float);
    if (is_whole && is_placed) {
        p->lane_shift = lane_shift_of(p->cols / LINE_NUMEL);
        TESS_LAUNCH((expand_lines<SOURCE, IS_BF16>), grid_of(p->rows, p->lane_shift), THREAD_NUMEL,
                    shared_nbytes, s, *p);
        return TESS_OK;
    }
    TESS_LAUNCH((expand_elements<SOURCE, IS_BF16>), grid_of(p->rows * p->cols, 0), THREAD_NUMEL,
                shared_nbytes, s, *p);
    return TESS_OK;
}

template <source_kind SOURCE>
static tess_status expand_to(expand_params *p, bool is_bf16, tess_stream *s)
{
    return is_bf16 ? expand_launch<SOURCE, true>(p, s) : expand_launch<SOURCE, false>(p, s);
}

extern "C" tess_status tess_cuda_gemm_expand(const tess_gemm_expand_args *a, tess_stream *s)
{
    expand_params p = {};
    if (a->rows == 0 || a->cols == 0)
        return TESS_OK;
    TESS_CHECK(a->dt == TESS_F32 || a->dt == TESS_BF16, TESS_E_DTYPE,
               "gemm: scratch is %s, expected f32 or bf16", tess_dtype_name(a->dt));
    for (int i = 0; i < TESS_CODEC_PART_MAX; i++)
        p.part[i] = a->part[i];
    p.rows = a->rows;
    p.cols = a->cols;
    p.dst = a->dst;
    p.dst_stride = a->dst_stride;
    const bool is_bf16 = a->dt == TESS_BF16;
    if (a->codec.format == TESS_FORMAT_F32)
        return expand_to<SOURCE_F32>(&p, is_bf16, s);
    if (a->codec.format == TESS_FORMAT_BF16)
        return expand_to<SOURCE_BF16>(&p, is_bf16, s);
    TESS_CHECK(a->codec.format == TESS_FORMAT_NF4 || a->codec.format == TESS_FORMAT_FP4,
               TESS_E_UNSUPPORTED,
               "gemm: the device has no kernel for weights in %s; use nf4, fp4, bf16 or f32",
               tess_format_name(a->codec.format));
    while ((int64_t)1 << p.block_shift < a->codec.block_numel)
        p.block_shift++;
    for (int i = 0; i < TABLE_NUMEL; i++)
        p.table[i] = tess_codec_table16(a->codec.format)[i];
    for (int i = 0; i < MAP_NUMEL; i++)
        p.map[i] = tess_dynamic_map_signed()[i];
    return a->codec.double_quant ? expand_to<SOURCE_BNB4_DOUBLE>(&p, is_bf16, s)
                                 : expand_to<SOURCE_BNB4>(&p, is_bf16, s);
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
