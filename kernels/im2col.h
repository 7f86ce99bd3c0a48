/**
 * Convolutions as matrix products: patches of images as rows, and the sum of patches as images.
 *
 * Images are [B, H, W, C], channels innermost, so that the rows of a product are images again. Row
 * (b, oy, ox) of `patches` holds [k, k, C]: the pixels (oy s - p + ky, ox s - p + kx), 0 outside. A
 * convolution is patches W^T with W [C_out, k k C]; a transposed one is the sum of patches x W with
 * W [k k C, C_in], and what backward does to the input of either is the other op.
 */
#pragma once

#include "core/stream.h"
#include "core/view.h"

TESS_BEGIN_DECLS

enum { TESS_PATCH_KERNEL_MAX = 64 };

/** Images and their patches. */
typedef struct tess_patch_shape {
    int64_t sample_numel;                 /* B */
    int64_t height, width, channel_numel; /* H, W, C: of the images */
    int64_t kernel, stride, pad;          /* k, s, p < k; H + 2p and W + 2p at least k */
} tess_patch_shape;

/** Patches along an extent of the image. Local. */
TESS_HD static inline int64_t tess_patch_numel(const tess_patch_shape *s, int64_t extent)
{
    return (extent + 2 * s->pad - s->kernel) / s->stride + 1;
}

/** patches = copies of pixels, bit by bit. */
typedef struct tess_im2col_args {
    tess_patch_shape shape;
    tess_view image;   /* [B, H, W, C] f32 or bf16 */
    tess_view patches; /* [B, h, w, k, k, C] same dtype out */
} tess_im2col_args;

/** image = bias + every element of patches that stands for the pixel, ky and then kx ascending; f32
 * inside, rounded once. */
typedef struct tess_col2im_args {
    tess_patch_shape shape;
    tess_view patches; /* [B, h, w, k, k, C] f32 or bf16 */
    tess_view bias;    /* [C] f32 or bf16; numel 0: 0 */
    tess_view image;   /* [B, H, W, C] dtype of patches out */
} tess_col2im_args;

TESS_MUST_CHECK tess_status tess_im2col_check(const tess_im2col_args *a);
TESS_MUST_CHECK tess_status tess_col2im_check(const tess_col2im_args *a);

TESS_END_DECLS
