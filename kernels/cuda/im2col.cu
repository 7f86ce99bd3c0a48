/* Words of pixels are copied as they are; every pixel of a sum is one thread's, as in the C twin.
 */
#include "kernels/im2col.h"

#include "kernels/cuda/common_priv.cuh"

/* A block per patch, a thread per word of type T; C counts words. */
template <typename T>
__global__ static void __launch_bounds__(TESS_BLOCK_THREADS)
    im2col_kernel(const tess_patch_shape s, const T *image, T *patches)
{
    const int64_t h = tess_patch_numel(&s, s.height), w = tess_patch_numel(&s, s.width);
    const int64_t row_numel = s.kernel * s.channel_numel, numel = s.kernel * row_numel;
    for (int64_t p = blockIdx.x; p < s.sample_numel * h * w; p += gridDim.x) {
        const int64_t sample = p / (h * w);
        const int64_t y = p / w % h * s.stride - s.pad, x = p % w * s.stride - s.pad;
        for (int64_t i = threadIdx.x; i < numel; i += blockDim.x) {
            const int64_t ky = i / row_numel, at = i - ky * row_numel, kx = at / s.channel_numel;
            const bool has = y + ky >= 0 && y + ky < s.height && x + kx >= 0 && x + kx < s.width;
            T word = {};
            if (has)
                word = image[((sample * s.height + y + ky) * s.width + x) * s.channel_numel + at];
            patches[p * numel + i] = word;
        }
    }
}

template <typename T> static tess_status im2col_launch(const tess_im2col_args *a, tess_stream *s)
{
    tess_patch_shape shape = a->shape;
    const T *image = static_cast<const T *>(a->image.data);
    shape.channel_numel =
        shape.channel_numel * (int64_t)tess_dtype_block_nbytes(a->image.dt) / (int64_t)sizeof(T);
    const int64_t patch_numel = shape.sample_numel * tess_patch_numel(&shape, shape.height) *
                                tess_patch_numel(&shape, shape.width);
    const int64_t word_numel = shape.kernel * shape.kernel * shape.channel_numel;
    const unsigned threads =
        (unsigned)TESS_MIN((word_numel + 31) / 32 * 32, (int64_t)TESS_BLOCK_THREADS);
    if (patch_numel > 0)
        TESS_LAUNCH(im2col_kernel<T>, tess_grid(patch_numel, 1), threads, 0, s, shape, image,
                    static_cast<T *>(a->patches.data));
    return TESS_OK;
}

extern "C" tess_status tess_cuda_im2col(const tess_im2col_args *a, tess_stream *s)
{
    TESS_TRY(tess_im2col_check(a));
    const int64_t elem_nbytes = (int64_t)tess_dtype_block_nbytes(a->image.dt);
    if (a->shape.channel_numel * elem_nbytes % 16 == 0 &&
        tess_is_aligned(a->image.data, a->patches.data))
        return im2col_launch<uint4>(a, s);
    return elem_nbytes == 4 ? im2col_launch<uint32_t>(a, s) : im2col_launch<uint16_t>(a, s);
}

/* ---- sums ---- */

/* The patch of `numel` whose element `k` is pixel `at`; -1: none. */
__device__ static inline int64_t patch_of(const tess_patch_shape &s, int64_t at, int64_t k,
                                          int64_t numel)
{
    const int64_t from = at + s.pad - k;
    return from >= 0 && from % s.stride == 0 && from / s.stride < numel ? from / s.stride : -1;
}

template <bool IS_BF16, bool IS_BIAS_BF16>
__global__ static void __launch_bounds__(TESS_BLOCK_THREADS) col2im_kernel(const tess_col2im_args a)
{
    const tess_patch_shape s = a.shape;
    const int64_t h = tess_patch_numel(&s, s.height), w = tess_patch_numel(&s, s.width);
    const int64_t numel = s.sample_numel * s.height * s.width * s.channel_numel;
    const int64_t step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < numel; i += step) {
        const int64_t pixel = i / s.channel_numel, c = i - pixel * s.channel_numel;
        const int64_t sample = pixel / (s.height * s.width);
        float sum[2] = {a.bias.numel > 0 ? tess_get<IS_BIAS_BF16>(a.bias.data, c) : 0.0f};
        for (int64_t ky = 0; ky < s.kernel; ky++) {
            const int64_t oy = patch_of(s, pixel / s.width % s.height, ky, h);
            for (int64_t kx = 0; oy >= 0 && kx < s.kernel; kx++) {
                const int64_t ox = patch_of(s, pixel % s.width, kx, w);
                const int64_t row = ((sample * h + oy) * w + ox) * s.kernel * s.kernel;
                if (ox >= 0)
                    sum[0] = sum[0] +
                             tess_get<IS_BF16>(a.patches.data,
                                               (row + ky * s.kernel + kx) * s.channel_numel + c);
            }
        }
        tess_store<IS_BF16, false, 2>(a.image.data, i, 1, sum);
    }
}

template <bool IS_BF16> static tess_status col2im_launch(const tess_col2im_args *a, tess_stream *s)
{
    const tess_col2im_args args = *a;
    const unsigned grid = tess_grid(a->image.numel, TESS_BLOCK_THREADS);
    if (a->bias.dt == TESS_BF16)
        TESS_LAUNCH((col2im_kernel<IS_BF16, true>), grid, TESS_BLOCK_THREADS, 0, s, args);
    else
        TESS_LAUNCH((col2im_kernel<IS_BF16, false>), grid, TESS_BLOCK_THREADS, 0, s, args);
    return TESS_OK;
}

extern "C" tess_status tess_cuda_col2im(const tess_col2im_args *a, tess_stream *s)
{
    TESS_TRY(tess_col2im_check(a));
    if (a->image.numel == 0)
        return TESS_OK;
    return a->image.dt == TESS_BF16 ? col2im_launch<true>(a, s) : col2im_launch<false>(a, s);
}
