/**
 * Caches of a diffusion run: latents of images, embeddings of their captions, loss masks.
 *
 * [Note: cache file] An HDF5 file (format bounds V110) of contiguous datasets behind a user block.
 * The reader works from the user block with pread alone; h5dump, h5py and others see
 *
 *     /latent_<h>x<w>  [n, C h w]   one row per sample of this latent size, C x h x w
 *     /mask_<h>x<w>    [n, h/2 w/2] f32, loss weight of each packed token (where there are masks)
 *     /sample          [N, 7] u32   caption, height and width of the image, crop left, top, right,
 *                                   bottom, all in pixels
 *     /name            u8           names of samples, each with a NUL; /name_at [N + 1] u64
 *     /text            [K, T d]     T5 states of each caption, /pooled [K, p] of CLIP
 *     /text_length     [K] u32      tokens of a caption that are no padding, 0: not known
 *     /caption         u8           texts of captions, each with a NUL; /caption_at [K + 1] u64
 *
 * with latents and texts in bf16 (as u16) or f32 as attributes latent_dtype and text_dtype say.
 * Samples are ordered by bucket, then as they were appended: sample numbers, caption numbers and
 * bucket numbers count from 0 in these orders. Caption 0 is the empty one where attribute has_empty
 * is 1.
 *
 * Latents are model space: z = (enc - 0.1159) 0.3611 of the autoencoder's enc; attribute space says
 * so, and a reader refuses anything else.
 *
 * The user block, a power of two of at least 4096 bytes: "TESSERA-CACHE 1" and a NUL, the block's
 * size and the length of a JSON text as u32, that text, zeros, and in the last 16 bytes the
 * XXH3-128 of all before them. The text adds to the attributes where each dataset lies, the
 * order-free hash of its elements (core/digest.h) and the XXH3-128 of all other bytes.
 *
 * [Note: identity of a cache] Digest over the shapes, dtypes and hashes of what training reads:
 * latents, masks, texts and the table of samples; not names, captions and where it came from.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "core/ctx.h"
#include "core/digest.h"
#include "core/dtype.h"

TESS_BEGIN_DECLS

enum {
    TESS_LATENTS_VERSION = 1,
    TESS_LATENTS_PATCH = 2,  /* rows and columns of a packed token */
    TESS_LATENTS_PIXELS = 8, /* of an image for one of a latent */
    TESS_LATENTS_SIDE_MAX = 4096,
    TESS_LATENTS_BUCKET_MAX = 1024,
    TESS_LATENTS_TEXT_NBYTES = 160 /* of a word on provenance, with its NUL */
};
/* Model space of the FLUX.1 autoencoder. */
#define TESS_LATENTS_SHIFT 0.1159
#define TESS_LATENTS_SCALE 0.3611

/** Samples of one latent size. */
typedef struct tess_latents_bucket {
    int64_t height, width; /* of latents: even, 2 to 4096 */
    int64_t sample_numel;  /* at least 1 */
    int64_t first_idx;     /* of its samples; ignored by the writer */
} tess_latents_bucket;

/** Where a cache came from; texts for people, "" where nothing is known. */
typedef struct tess_latents_origin {
    char tool[TESS_LATENTS_TEXT_NBYTES];
    char vae[TESS_LATENTS_TEXT_NBYTES];
    char text_encoders[TESS_LATENTS_TEXT_NBYTES];
    char posterior[TESS_LATENTS_TEXT_NBYTES]; /* "sample", "mean" or "unknown" */
} tess_latents_origin;

/** What a cache holds. Plain data. */
typedef struct tess_latents_info {
    int64_t sample_numel, caption_numel, bucket_numel;
    int64_t channel_numel;         /* C: 16 */
    int64_t text_numel;            /* T */
    int64_t text_dim, pooled_dim;  /* d: 4096, p: 768 */
    tess_dtype latent_dt, text_dt; /* TESS_BF16 or TESS_F32 */
    bool has_masks;
    bool has_empty;                      /* caption 0 is the empty one */
    bool is_text_masked;                 /* T5 did not attend to padding */
    int64_t name_nbytes, caption_nbytes; /* texts of samples and of captions with their NULs */
    tess_latents_origin origin;
    int64_t file_nbytes; /* ignored by the writer, as is the digest */
    tess_xxh128 digest;
} tess_latents_info;

/** One sample beside its arrays. */
typedef struct tess_latents_sample {
    uint32_t caption_idx;
    uint32_t height, width;            /* of the image as it was found, 0: not known */
    uint32_t left, top, right, bottom; /* crop of the resized image */
} tess_latents_sample;

/** Elements of a latent and tokens of a sample of bucket `b`. Local. */
static inline int64_t tess_latents_numel(const tess_latents_info *info,
                                         const tess_latents_bucket *b)
{
    return info->channel_numel * b->height * b->width;
}
static inline int64_t tess_latents_token_numel(const tess_latents_bucket *b)
{
    return (b->height / TESS_LATENTS_PATCH) * (b->width / TESS_LATENTS_PATCH);
}
/** Whether a file starts like a cache, of any version. Local. @return TESS_E_IO */
TESS_MUST_CHECK tess_status tess_latents_is(const tess_ctx *ctx, const char *path, bool *out);

typedef struct tess_latents_writer tess_latents_writer;

/** Start a file under a temporary name: all counts are known. Local. Everything is copied.
 * @param[in] bucket  [info->bucket_numel] no size twice
 * @return TESS_E_ARG an extent or a text out of range; TESS_E_IO */
TESS_MUST_CHECK tess_status tess_latents_writer_create(const tess_ctx *ctx, const char *path,
                                                       const tess_latents_info *info,
                                                       const tess_latents_bucket *bucket,
                                                       tess_latents_writer **out);
/** What belongs to a caption. */
typedef struct tess_latents_text {
    const char *caption;
    const float *text;   /* [T, d] */
    const float *pooled; /* [p] */
    int64_t length;      /* tokens without padding, 0: not known */
} tess_latents_text;
/** Append the next caption. Local. @return TESS_E_FORMAT a value that is not finite, or too large
 * for bf16; TESS_E_RANGE more captions than announced, or longer ones; TESS_E_IO */
TESS_MUST_CHECK tess_status tess_latents_writer_text(tess_latents_writer *w,
                                                     const tess_latents_text *text);
/** What belongs to a sample. */
typedef struct tess_latents_image {
    const char *name;
    tess_latents_sample sample;
    const float *latent; /* [C, h, w] */
    const float *mask;   /* [h/2, w/2], in [0, 1]; NULL: all 1 */
} tess_latents_image;
/** Append the next sample of a bucket; buckets in any order. Local. @return as above */
TESS_MUST_CHECK tess_status tess_latents_writer_image(tess_latents_writer *w, int64_t bucket_idx,
                                                      const tess_latents_image *image);
/** Write tables and user block, fsync, rename; an existing file is replaced. Local.
 * @return TESS_E_STATE something is missing; TESS_E_IO */
TESS_MUST_CHECK tess_status tess_latents_writer_finish(tess_latents_writer *w);
/** Release; without a successful finish nothing is left on disk. */
void tess_latents_writer_destroy(tess_latents_writer **w);

typedef struct tess_latents tess_latents;

/** Open: the user block against its digest and the file's size, HDF5's metadata against theirs, the
 * table of samples. Local. @return TESS_E_FORMAT names file, field, expected and found;
 * TESS_E_UNSUPPORTED another version; TESS_E_IO */
TESS_MUST_CHECK tess_status tess_latents_open(const tess_ctx *ctx, const char *path,
                                              tess_latents **out);
void tess_latents_close(tess_latents **file);
const char *tess_latents_path(const tess_latents *file);
const tess_latents_info *tess_latents_get_info(const tess_latents *file);
/** [bucket_numel], by height, then width. */
const tess_latents_bucket *tess_latents_buckets(const tess_latents *file);
/** Its number, and that of its bucket. Local. */
const tess_latents_sample *tess_latents_sample_at(const tess_latents *file, int64_t sample_idx);
int64_t tess_latents_bucket_of(const tess_latents *file, int64_t sample_idx);

/* Reads of one row. Local; allocate nothing. @return TESS_E_RANGE outside the file; TESS_E_IO */

/** @param[out] latent  [C, h, w] */
TESS_MUST_CHECK tess_status tess_latents_read(const tess_latents *file, int64_t sample_idx,
                                              float *latent);
/** @param[out] mask  [h/2, w/2]; all 1 in a file without masks */
TESS_MUST_CHECK tess_status tess_latents_read_mask(const tess_latents *file, int64_t sample_idx,
                                                   float *mask);
/** @param[out] text  [T, d]  @param[out] pooled  [p] */
TESS_MUST_CHECK tess_status tess_latents_read_text(const tess_latents *file, int64_t caption_idx,
                                                   float *text, float *pooled);
/** Name of a sample, or text of a caption; free with tess_free. Local. @return TESS_E_FORMAT */
TESS_MUST_CHECK tess_status tess_latents_name(const tess_latents *file, int64_t sample_idx,
                                              char **out);
TESS_MUST_CHECK tess_status tess_latents_caption(const tess_latents *file, int64_t caption_idx,
                                                 char **out);
/** Read everything: hashes, finite values, masks in [0, 1]. Local. @return TESS_E_FORMAT */
TESS_MUST_CHECK tess_status tess_latents_verify(const tess_latents *file);

TESS_END_DECLS
