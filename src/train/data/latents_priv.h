/** Datasets and user block of a cache; see [Note: cache file]. */
#pragma once

#include "format/json.h"
#include "train/data/hdf5_layout.h"
#include "train/data/latents.h"

TESS_BEGIN_DECLS

#define TESS_LATENTS_MAGIC "TESSERA-CACHE "

enum {
    TESS_LATENTS_MAGIC_NBYTES = 16, /* with version and NUL */
    TESS_LATENTS_AT_TEXT = 24,
    TESS_LATENTS_BLOCK_MIN_NBYTES = 4096,
    TESS_LATENTS_BLOCK_MAX_NBYTES = 1 << 20,
    TESS_LATENTS_SAMPLE_WORDS = 7
};
_Static_assert(sizeof(tess_latents_sample) == TESS_LATENTS_SAMPLE_WORDS * sizeof(uint32_t),
               "row of /sample");

/* Sections by number; then a latent for each bucket, then a mask for each. */
enum {
    TESS_LATENTS_AT_SAMPLE,
    TESS_LATENTS_AT_TEXTS,
    TESS_LATENTS_AT_POOLED,
    TESS_LATENTS_AT_LENGTH,
    TESS_LATENTS_AT_NAME,
    TESS_LATENTS_AT_NAME_AT,
    TESS_LATENTS_AT_CAPTION,
    TESS_LATENTS_AT_CAPTION_AT,
    TESS_LATENTS_FIXED_NUMEL
};

/** One dataset. */
typedef struct latents_section {
    char name[40];
    tess_h5_type type;
    size_t elem_nbytes;
    int64_t row_numel, column_numel;
    bool decides; /* what training reads */
    int64_t offset_nbytes;
    tess_logical_hash hash;
} latents_section;

/** What reader and writer have in common. Starts as {0}; fini. */
typedef struct latents_layout {
    tess_latents_info info;
    tess_latents_bucket *bucket; /* [bucket_numel], first_idx set */
    latents_section *section;    /* [section_numel] */
    int section_numel;
    tess_xxh128 metadata;
} latents_layout;

static inline int latents_at_latent(int64_t bucket_idx)
{
    return TESS_LATENTS_FIXED_NUMEL + (int)bucket_idx;
}
static inline int latents_at_mask(const latents_layout *l, int64_t bucket_idx)
{
    return latents_at_latent(l->info.bucket_numel + bucket_idx);
}
static inline int64_t latents_row_nbytes(const latents_section *s)
{
    return s->column_numel * (int64_t)s->elem_nbytes;
}

/** Check counts and make the sections that follow from them. Local. @return `code`, naming the
 * field */
TESS_MUST_CHECK tess_status latents_layout_init(const char *path, tess_status code,
                                                const tess_latents_info *info,
                                                const tess_latents_bucket *bucket,
                                                latents_layout *out);
void latents_layout_fini(latents_layout *l);
/** Bytes of the user block. Local. */
int64_t latents_block_nbytes(const latents_layout *l);
/** Set info.digest from the sections. Local. */
TESS_MUST_CHECK tess_status latents_identify(latents_layout *l);
/** Encode the user block. Local. @param[out] block  [latents_block_nbytes()] */
TESS_MUST_CHECK tess_status latents_block_encode(const latents_layout *l, uint8_t *block);
/** Decode and check everything the user block alone can tell. Local. `out` is initialized.
 * @return TESS_E_FORMAT; TESS_E_UNSUPPORTED another version */
TESS_MUST_CHECK tess_status latents_block_decode(const char *path, const uint8_t *block,
                                                 int64_t block_nbytes, int64_t file_nbytes,
                                                 latents_layout *out);
/** "TESSERA-CACHE 1" at the begin of a block, and how large the block is. Local. */
TESS_MUST_CHECK tess_status latents_block_size(const char *path,
                                               const uint8_t start[TESS_LATENTS_AT_TEXT],
                                               int64_t *nbytes);

TESS_END_DECLS
