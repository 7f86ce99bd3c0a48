/* Patches are copied row by row of the image, pixels summed one by one: every output is written by
 * one thread in a fixed order. */
#include <string.h>

#include "kernels/cpu/ops_priv.h"

enum { CHANNEL_BLOCK = 256 };

/* Elements [lo, hi) of a row of `width` pixels that lie in the image, from column x. */
static void clip(int64_t x, int64_t width, int64_t numel, int64_t *lo, int64_t *hi)
{
    *lo = TESS_MIN(TESS_MAX(-x, 0), numel);
    *hi = TESS_MAX(TESS_MIN(width - x, numel), *lo);
}

/* One patch: its rows of k pixels lie side by side in the image, but for what is outside. */
static void copy_patch(const tess_im2col_args *a, int64_t sample, int64_t y, int64_t x, char *out)
{
    const tess_patch_shape *s = &a->shape;
    const size_t pixel = (size_t)s->channel_numel * tess_dtype_block_nbytes(a->image.dt);
    const size_t row = (size_t)s->kernel * pixel;
    int64_t lo = 0, hi = 0;
    clip(x, s->width, s->kernel, &lo, &hi);
    for (int64_t ky = 0; ky < s->kernel; ky++, out += row) {
        const bool is_inside = y + ky >= 0 && y + ky < s->height;
        if (!is_inside || hi - lo < s->kernel)
            memset(out, 0, row);
        if (is_inside && hi > lo)
            memcpy(out + (size_t)lo * pixel,
                   (const char *)a->image.data +
                       (size_t)((sample * s->height + y + ky) * s->width + x + lo) * pixel,
                   (size_t)(hi - lo) * pixel);
    }
}

static void im2col_part(void *arg, int part_idx, int part_numel)
{
    const tess_im2col_args *a = arg;
    const tess_patch_shape *s = &a->shape;
    const int64_t h = tess_patch_numel(s, s->height), w = tess_patch_numel(s, s->width);
    const size_t nbytes =
        (size_t)(s->kernel * s->kernel * s->channel_numel) * tess_dtype_block_nbytes(a->image.dt);
    int64_t lo = 0, hi = 0;
    tess_pool_range(s->sample_numel * h * w, 1, part_idx, part_numel, &lo, &hi);
    for (int64_t i = lo; i < hi; i++)
        copy_patch(a, i / (h * w), i / w % h * s->stride - s->pad, i % w * s->stride - s->pad,
                   (char *)a->patches.data + (size_t)i * nbytes);
}

tess_status tess_cpu_im2col(const tess_im2col_args *a, tess_stream *s)
{
    TESS_TRY(tess_im2col_check(a));
    tess_im2col_args args = *a;
    tess_pool_run(s->pool, tess_cpu_part_numel(s, a->patches.numel), im2col_part, &args);
    return TESS_OK;
}

/* ---- sums ---- */

static void load(float *out, tess_view v, int64_t first, int64_t numel)
{
    if (v.dt == TESS_F32) {
        memcpy(out, (const float *)v.data + first, (size_t)numel * sizeof *out);
        return;
    }
    for (int64_t c = 0; c < numel; c++)
        out[c] = tess_bf16_to_f32(((const uint16_t *)v.data)[first + c]);
}

static void add(float *sum, tess_view v, int64_t first, int64_t numel)
{
    if (v.dt == TESS_F32) {
        const float *x = (const float *)v.data + first;
        for (int64_t c = 0; c < numel; c++)
            sum[c] = sum[c] + x[c];
        return;
    }
    for (int64_t c = 0; c < numel; c++)
        sum[c] = sum[c] + tess_bf16_to_f32(((const uint16_t *)v.data)[first + c]);
}

static void store(const float *sum, tess_view v, int64_t first, int64_t numel)
{
    if (v.dt == TESS_F32) {
        memcpy((float *)v.data + first, sum, (size_t)numel * sizeof *sum);
        return;
    }
    for (int64_t c = 0; c < numel; c++)
        ((uint16_t *)v.data)[first + c] = tess_bf16_from_f32(sum[c]);
}

/* The patch of `numel` whose element `k` is pixel `at`; -1: none. */
static int64_t patch_of(const tess_patch_shape *s, int64_t at, int64_t k, int64_t numel)
{
    const int64_t from = at + s->pad - k;
    return from >= 0 && from % s->stride == 0 && from / s->stride < numel ? from / s->stride : -1;
}

/* Channels [first, first + numel) of a pixel. */
static void add_pixel(const tess_col2im_args *a, int64_t pixel, int64_t first, int64_t numel)
{
    const tess_patch_shape *s = &a->shape;
    const int64_t h = tess_patch_numel(s, s->height), w = tess_patch_numel(s, s->width);
    const int64_t sample = pixel / (s->height * s->width);
    float sum[CHANNEL_BLOCK] = {0.0f};
    if (a->bias.numel > 0)
        load(sum, a->bias, first, numel);
    for (int64_t ky = 0; ky < s->kernel; ky++) {
        const int64_t oy = patch_of(s, pixel / s->width % s->height, ky, h);
        for (int64_t kx = 0; oy >= 0 && kx < s->kernel; kx++) {
            const int64_t ox = patch_of(s, pixel % s->width, kx, w);
            const int64_t row = ((sample * h + oy) * w + ox) * s->kernel * s->kernel;
            if (ox >= 0)
                add(sum, a->patches, (row + ky * s->kernel + kx) * s->channel_numel + first, numel);
        }
    }
    store(sum, a->image, pixel * s->channel_numel + first, numel);
}

static void col2im_part(void *arg, int part_idx, int part_numel)
{
    const tess_col2im_args *a = arg;
    const tess_patch_shape *s = &a->shape;
    int64_t lo = 0, hi = 0;
    tess_pool_range(s->sample_numel * s->height * s->width, 1, part_idx, part_numel, &lo, &hi);
    for (int64_t i = lo; i < hi; i++)
        for (int64_t c = 0; c < s->channel_numel; c += CHANNEL_BLOCK)
            add_pixel(a, i, c, TESS_MIN(s->channel_numel - c, (int64_t)CHANNEL_BLOCK));
}

tess_status tess_cpu_col2im(const tess_col2im_args *a, tess_stream *s)
{
    TESS_TRY(tess_col2im_check(a));
    tess_col2im_args args = *a;
    tess_pool_run(s->pool, tess_cpu_part_numel(s, a->patches.numel), col2im_part, &args);
    return TESS_OK;
}
