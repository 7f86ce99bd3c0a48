/**
 * A folder of images as training data: .png, and .npy of [H, W] or [H, W, C], C 1 or 3.
 *
 * Images are numbered by the bytewise order of their names. All have the size and the number of
 * channels of the first; another one is refused by name. Samples of PNG images and u8 of .npy are
 * divided by the largest value; floats in .npy are taken as they are and must lie in [0, 1]. Other
 * files are passed over, but pictures of other formats are refused: they would be missed.
 */
#pragma once

#include <stdint.h>

#include "core/ctx.h"
#include "core/status.h"

TESS_BEGIN_DECLS

typedef struct tess_images tess_images;

/** What a folder holds. Plain data. */
typedef struct tess_images_info {
    int64_t image_numel;   /* >= 1 */
    int64_t channel_numel; /* 1 or 3 */
    int64_t height, width;
} tess_images_info;

/**
 * Open a folder: the header of every image is read and compared with the first. Plans the memory
 * that reads use: the samples of one image. Local.
 * @return TESS_E_FORMAT no image, a damaged one, or one of another size: names it, expected and
 * found; TESS_E_UNSUPPORTED an image of a kind that is not read; TESS_E_IO
 */
TESS_MUST_CHECK tess_status tess_images_open(const tess_ctx *ctx, const char *folder,
                                             tess_images **out);
void tess_images_close(tess_images **images);
const tess_images_info *tess_images_get_info(const tess_images *images);
/** Name of an image in its folder, for messages. */
const char *tess_images_name(const tess_images *images, int64_t idx);
/**
 * Read images first .. first + numel - 1. Local; allocates nothing but what the PNG library needs
 * for itself. One reader at a time.
 * @param[out] dst  [numel, C, H, W] f32 in [0, 1], host
 * @return TESS_E_RANGE outside; TESS_E_FORMAT damaged, or a value outside [0, 1]: names it;
 * TESS_E_IO
 */
TESS_MUST_CHECK tess_status tess_images_read(tess_images *images, int64_t first_idx, int64_t numel,
                                             float *dst);

TESS_END_DECLS
