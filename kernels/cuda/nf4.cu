/* Encoders of NF4 and FP4: kernels/nf4.h. Decoders: codec_bnb4.cu. */
#include "core/arith.h"
#include "kernels/cuda/common_priv.cuh"

enum { THREADS = 256, WARPS = THREADS / 32 };

/* 1/absmax overflows at and below this, 2^-128. */
#define SMALLEST_INVERTED 2.938735877055719e-39f

enum { NESTED_CODE_OF_ZERO = 127 };

/* First element that is not finite; quantize waits for its stream, so one cell is enough. */
static __device__ unsigned long long bad_idx_dev;

struct quantize_job {
    const void *src;
    int64_t numel;
    int block_numel;
    uint8_t *codes;
    float *absmax;
    float threshold[15];
    unsigned magnitude_codes; /* FP4: 4 bits by the number of thresholds below */
    unsigned code_of_zero;
};

__global__ static void bad_reset_kernel(int64_t none) { bad_idx_dev = (unsigned long long)none; }

__device__ static inline float warp_max(float x)
{
#pragma unroll
    for (int step = 16; step > 0; step /= 2)
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
    return x;
}

template <bool IS_FP4>
__device__ static inline unsigned code_of(const quantize_job &j, float x, float absmax,
                                          float inverse)
{
    float u = x * inverse;
    if (absmax <= SMALLEST_INVERTED)
        u = absmax > 0.0f ? x / absmax : 0.0f;
    const float v = IS_FP4 ? fabsf(u) : u;
    unsigned below_numel = 0;
#pragma unroll
    for (int t = 0; t < (IS_FP4 ? 7 : 15); t++)
        below_numel += v > j.threshold[t];
    return IS_FP4 ? (j.magnitude_codes >> 4 * below_numel & 15u) | (u < 0.0f ? 8u : 0u)
                  : below_numel;
}

/* A warp per block of elements: its largest magnitude, then the codes, a byte per lane. */
template <bool IS_BF16, bool IS_FP4>
__global__ static void __launch_bounds__(THREADS) quantize_kernel(const quantize_job j)
{
    const int lane = threadIdx.x % 32;
    const int64_t block_numel = (j.numel + j.block_numel - 1) / j.block_numel;
    int64_t block = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
    for (; block < block_numel; block += (int64_t)gridDim.x * WARPS) {
        const int64_t first = block * j.block_numel;
        const int n = (int)TESS_MIN(j.numel - first, (int64_t)j.block_numel);
        float absmax = 0.0f;
        for (int i = lane; i < n; i += 32) {
            const float x = fabsf(tess_get<IS_BF16>(j.src, first + i));
            if (x < tess_f32_of_bits(0x7f800000u))
                absmax = fmaxf(absmax, x);
            else
                atomicMin(&bad_idx_dev, (unsigned long long)(first + i));
        }
        absmax = warp_max(absmax);
        const float inverse = absmax <= SMALLEST_INVERTED ? 0.0f : 1.0f / absmax;
        if (lane == 0)
            j.absmax[block] = absmax;
        for (int i = 2 * lane; i < n; i += 64) {
            const unsigned high =
                code_of<IS_FP4>(j, tess_get<IS_BF16>(j.src, first + i), absmax, inverse);
            const unsigned low =
                i + 1 < n
                    ? code_of<IS_FP4>(j, tess_get<IS_BF16>(j.src, first + i + 1), absmax, inverse)
                    : j.code_of_zero;
            j.codes[(first + i) / 2] = (uint8_t)(high << 4 | low);
        }
    }
}

/* offset = mean of the absmax: fp64, ascending. All threads load, the first one adds. */
__global__ static void __launch_bounds__(THREADS)
    nested_offset_kernel(const float *absmax, int64_t block_numel, float *offset)
{
    TESS_SHARED(float, tile, 2 * THREADS);
    double sum = 0.0;
    int half = 0;
    for (int64_t first = 0; first < block_numel; first += THREADS) {
        float *const part = tile + half * THREADS;
        const int n = (int)TESS_MIN(block_numel - first, (int64_t)THREADS);
        if ((int)threadIdx.x < n)
            part[threadIdx.x] = absmax[first + threadIdx.x];
        __syncthreads();
        if (threadIdx.x == 0)
            for (int i = 0; i < n; i++)
                sum = sum + (double)part[i];
        half = 1 - half;
    }
    if (threadIdx.x == 0)
        *offset = block_numel > 0 ? (float)(sum / (double)block_numel) : 0.0f;
}

struct nested_job {
    const float *absmax;
    int64_t block_numel;
    const float *offset;
    uint8_t *codes;
    float *nested_absmax;
    float map[256];
};

/* A warp per 256 absmax. */
__global__ static void __launch_bounds__(THREADS) nested_kernel(const nested_job j)
{
    TESS_SHARED(float, map, 256);
    const int lane = threadIdx.x % 32;
    const float offset = *j.offset;
    for (int i = (int)threadIdx.x; i < 256; i += THREADS)
        map[i] = j.map[i];
    __syncthreads();
    int64_t group = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
    for (; group * TESS_NESTED_BLOCK_NUMEL < j.block_numel; group += (int64_t)gridDim.x * WARPS) {
        const int64_t first = group * TESS_NESTED_BLOCK_NUMEL;
        const int n = (int)TESS_MIN(j.block_numel - first, (int64_t)TESS_NESTED_BLOCK_NUMEL);
        float largest = 0.0f;
        for (int i = lane; i < n; i += 32)
            largest = fmaxf(largest, fabsf(j.absmax[first + i] - offset));
        largest = warp_max(largest);
        if (lane == 0)
            j.nested_absmax[group] = largest;
        const bool is_divided = largest <= SMALLEST_INVERTED;
        const float inverse = is_divided ? 0.0f : 1.0f / largest;
        for (int i = lane; i < n; i += 32) {
            const float x = j.absmax[first + i] - offset;
            unsigned code = NESTED_CODE_OF_ZERO;
            if (largest > 0.0f)
                code = tess_map_code(map, is_divided ? x / largest : x * inverse);
            j.codes[first + i] = (uint8_t)code;
        }
    }
}

static tess_status nested_launch(const tess_quantize_args *a, int64_t block_numel, tess_stream *s)
{
    float *const offset = static_cast<float *>(a->part[3]);
    nested_job job = {a->absmax_work,
                      block_numel,
                      offset,
                      static_cast<uint8_t *>(a->part[1]),
                      static_cast<float *>(a->part[2]),
                      {}};
    memcpy(job.map, tess_dynamic_map_signed(), sizeof job.map);
    TESS_LAUNCH(nested_offset_kernel, 1, THREADS, 0, s, a->absmax_work, block_numel, offset);
    if (block_numel > 0)
        TESS_LAUNCH(nested_kernel, tess_grid(block_numel, TESS_NESTED_BLOCK_NUMEL * WARPS), THREADS,
                    0, s, job);
    return TESS_OK;
}

/* Refuse by name what NF4 cannot hold, as the CPU twin does. */
static tess_status finite_check(const tess_quantize_args *a, tess_stream *s)
{
    unsigned long long bad_idx = 0;
    TESS_CUDA_TRY(cudaMemcpyFromSymbolAsync(&bad_idx, bad_idx_dev, sizeof bad_idx, 0,
                                            cudaMemcpyDeviceToHost, tess_cuda_stream(s)));
    TESS_CUDA_TRY(cudaStreamSynchronize(tess_cuda_stream(s)));
    if (bad_idx == (unsigned long long)a->src.numel)
        return TESS_OK;
    const bool is_bf16 = a->src.dt == TESS_BF16;
    const size_t elem_nbytes = is_bf16 ? sizeof(uint16_t) : sizeof(float);
    uint32_t bits = 0;
    TESS_CUDA_TRY(cudaMemcpyAsync(&bits,
                                  static_cast<const char *>(a->src.data) + bad_idx * elem_nbytes,
                                  elem_nbytes, cudaMemcpyDeviceToHost, tess_cuda_stream(s)));
    TESS_CUDA_TRY(cudaStreamSynchronize(tess_cuda_stream(s)));
    const float value = is_bf16 ? tess_bf16_to_f32((uint16_t)bits) : tess_f32_of_bits(bits);
    return TESS_FAIL(
        TESS_E_FORMAT,
        "tensor '%s': element %" PRId64 " is %f, expected finite values; nf4 cannot hold "
        "it, so repair the source or keep this tensor in bf16",
        a->tensor_name != nullptr ? a->tensor_name : "", (int64_t)bad_idx, (double)value);
}

static quantize_job quantize_job_make(const tess_quantize_args *a)
{
    const bool is_fp4 = a->codec.format == TESS_FORMAT_FP4;
    quantize_job job = {};
    job.src = a->src.data;
    job.numel = a->src.numel;
    job.block_numel = (int)a->codec.block_numel;
    job.codes = static_cast<uint8_t *>(a->part[0]);
    job.absmax = a->codec.double_quant ? a->absmax_work : static_cast<float *>(a->part[1]);
    if (is_fp4)
        memcpy(job.threshold, tess_fp4_threshold, sizeof tess_fp4_threshold);
    else
        memcpy(job.threshold, tess_nf4_threshold, sizeof tess_nf4_threshold);
    for (int i = 0; i < TESS_NELEM(tess_fp4_code); i++)
        job.magnitude_codes |= (unsigned)tess_fp4_code[i] << 4 * i;
    job.code_of_zero = is_fp4 ? 0 : 7;
    return job;
}

template <bool IS_FP4>
static tess_status quantize_launch(const quantize_job &job, bool is_bf16, int64_t block_numel,
                                   tess_stream *s)
{
    const unsigned grid = tess_grid(block_numel, WARPS);
    if (is_bf16)
        TESS_LAUNCH((quantize_kernel<true, IS_FP4>), grid, THREADS, 0, s, job);
    else
        TESS_LAUNCH((quantize_kernel<false, IS_FP4>), grid, THREADS, 0, s, job);
    return TESS_OK;
}

extern "C" tess_status tess_cuda_quantize(const tess_quantize_args *a, tess_stream *s)
{
    TESS_TRY(tess_quantize_check(a));
    const tess_format format = a->codec.format;
    TESS_CHECK(format == TESS_FORMAT_NF4 || format == TESS_FORMAT_FP4, TESS_E_UNSUPPORTED,
               "%s: base format %s has no encoder on a CUDA device, expected nf4 or fp4; quantize "
               "on the host and copy the parts",
               a->tensor_name != nullptr ? a->tensor_name : "quantize", tess_format_name(format));
    const bool is_double = a->codec.double_quant;
    const int64_t numel = a->src.numel, block_numel = tess_ceil_div(numel, a->codec.block_numel);
    const quantize_job job = quantize_job_make(a);
    if (numel > 0) {
        TESS_LAUNCH(bad_reset_kernel, 1, 1, 0, s, numel);
        if (format == TESS_FORMAT_FP4)
            TESS_TRY(quantize_launch<true>(job, a->src.dt == TESS_BF16, block_numel, s));
        else
            TESS_TRY(quantize_launch<false>(job, a->src.dt == TESS_BF16, block_numel, s));
        TESS_TRY(finite_check(a, s));
    }
    return is_double ? nested_launch(a, block_numel, s) : TESS_OK;
}
