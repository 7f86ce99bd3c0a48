#include "kernels/im2col.h"

#include "kernels/check_priv.h"

static tess_status check_shape(const char *op, const tess_patch_shape *s)
{
    TESS_TRY(tess_check_extent(op, "sample_numel", s->sample_numel, 0));
    TESS_TRY(tess_check_extent(op, "height", s->height, 1));
    TESS_TRY(tess_check_extent(op, "width", s->width, 1));
    TESS_TRY(tess_check_extent(op, "channel_numel", s->channel_numel, 1));
    TESS_CHECK(s->kernel >= 1 && s->kernel <= TESS_PATCH_KERNEL_MAX && s->stride >= 1 &&
                   s->pad >= 0 && s->pad < s->kernel,
               TESS_E_ARG,
               "%s: kernel %" PRId64 ", stride %" PRId64 ", pad %" PRId64
               ": expected a kernel of 1 to %d, a stride above 0 and a pad below the kernel",
               op, s->kernel, s->stride, s->pad, TESS_PATCH_KERNEL_MAX);
    TESS_CHECK(
        s->height + 2 * s->pad >= s->kernel && s->width + 2 * s->pad >= s->kernel, TESS_E_ARG,
        "%s: images of %" PRId64 " x %" PRId64 " with pad %" PRId64 " hold no patch of %" PRId64,
        op, s->height, s->width, s->pad, s->kernel);
    return TESS_OK;
}

/* Elements of images and of patches. */
static tess_status count(const tess_patch_shape *s, int64_t *image_numel, int64_t *patch_numel)
{
    TESS_TRY(tess_mul_i64(s->sample_numel, s->channel_numel, image_numel));
    TESS_TRY(tess_mul_i64(*image_numel, s->kernel * s->kernel, patch_numel));
    TESS_TRY(tess_mul_i64(*image_numel, s->height, image_numel));
    TESS_TRY(tess_mul_i64(*image_numel, s->width, image_numel));
    TESS_TRY(tess_mul_i64(*patch_numel, tess_patch_numel(s, s->height), patch_numel));
    return tess_mul_i64(*patch_numel, tess_patch_numel(s, s->width), patch_numel);
}

static tess_status check_pair(const char *op, const tess_patch_shape *s, tess_view image,
                              tess_view patches)
{
    int64_t image_numel = 0, patch_numel = 0;
    TESS_TRY(check_shape(op, s));
    TESS_TRY(count(s, &image_numel, &patch_numel));
    TESS_TRY(tess_check_float(op, "image", image));
    TESS_TRY(tess_check_operand(op, "image", image, image_numel, image.dt));
    return tess_check_operand(op, "patches", patches, patch_numel, image.dt);
}

tess_status tess_im2col_check(const tess_im2col_args *a)
{
    static const char op[] = "im2col";
    TESS_TRY(check_pair(op, &a->shape, a->image, a->patches));
    return tess_check_disjoint(op, "image", a->patches, a->image);
}

tess_status tess_col2im_check(const tess_col2im_args *a)
{
    static const char op[] = "col2im";
    TESS_TRY(check_pair(op, &a->shape, a->image, a->patches));
    if (a->bias.numel > 0) {
        TESS_TRY(tess_check_float(op, "bias", a->bias));
        TESS_TRY(tess_check_numel(op, "bias", a->bias, a->shape.channel_numel));
        TESS_TRY(tess_check_disjoint(op, "bias", a->image, a->bias));
    }
    return tess_check_disjoint(op, "patches", a->image, a->patches);
}
