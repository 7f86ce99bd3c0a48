/**
 * PNG images as numbers: gray or RGB, each sample divided by the largest of its depth.
 *
 * Palettes are looked up, fewer than 8 bits a sample are widened, interlaced files are read.
 * Samples are taken as stored: no gamma, no color profile. An alpha channel or a transparent color
 * is refused, for what would lie behind it is unknown.
 *
 * @source PNG specification (third edition), libpng manual
 */
#pragma once

#include <stdint.h>

#include "core/io.h"

TESS_BEGIN_DECLS

enum { TESS_PNG_SIDE_MAX = 16384 };

/** Extents of an image. Plain data. */
typedef struct tess_png_info {
    int64_t width, height; /* 1 to TESS_PNG_SIDE_MAX */
    int64_t channel_numel; /* 1: gray, 3: red, green, blue */
    int64_t sample_nbytes; /* 1, or 2 for 16 bits */
} tess_png_info;

/** Bytes of all samples of an image. Local. */
size_t tess_png_nbytes(const tess_png_info *info);
/** Read the header. Local. @return TESS_E_FORMAT no PNG, or damaged; TESS_E_UNSUPPORTED an alpha
 * channel, or a side that is too long; TESS_E_IO */
TESS_MUST_CHECK tess_status tess_png_read_info(tess_io *io, const char *path, tess_png_info *out);
/**
 * Read an image whose header says `info`. Local; the library allocates its own tables.
 * @param      samples  [tess_png_nbytes(info)] scratch
 * @param[out] dst      [channel_numel, height, width] f32 in [0, 1]
 * @return TESS_E_FORMAT damaged, or another header; TESS_E_IO
 */
TESS_MUST_CHECK tess_status tess_png_read(tess_io *io, const char *path, const tess_png_info *info,
                                          uint8_t *samples, float *dst);

TESS_END_DECLS
