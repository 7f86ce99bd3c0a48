/** Inputs of a conversion, as both kinds of them are listed and loaded. */
#pragma once

#include "format/safetensors.h"
#include "train/prepare/cache.h"

TESS_BEGIN_DECLS

typedef enum cache_kind { CACHE_KIND_NONE, CACHE_KIND_KOHYA, CACHE_KIND_TENSORS } cache_kind;

/** Embeddings of a caption. Strings are owned. */
typedef struct cache_text {
    char *path, *key; /* key: its name in a safetensors file */
    char *caption;    /* NULL: not known */
    int64_t token_numel, dim, pooled_dim;
    tess_xxh128 digest;
    int64_t caption_idx; /* in the output; -1: none yet */
} cache_text;

/** A latent. */
typedef struct cache_image {
    char *name, *path;
    char *key; /* "_64x64" of arrays, or the name in a safetensors file */
    int64_t channel_numel, height, width;
    int64_t text_idx; /* of the set */
    char *text_name;  /* what it is called there, NULL once text_idx is known */
    bool has_mask;
} cache_image;

/** All inputs. Starts as {0} with ctx and options; fini. */
typedef struct cache_set {
    const tess_ctx *ctx;
    const tess_cache_options *options;
    cache_kind kind;
    char *first_path; /* of the first input file, for messages */
    tess_latents_origin origin;
    bool has_origin, is_raw, is_text_masked;
    cache_image *image; /* [image_numel] */
    cache_text *text;   /* [text_numel] */
    int64_t image_numel, image_room_numel, text_numel, text_room_numel;
    tess_safetensors *file; /* open now, NULL: none */
    int64_t empty_idx;      /* text of the empty caption, -1: none */
    int64_t flipped_numel;
} cache_set;

/** Add one; its strings are copied. Local. */
TESS_MUST_CHECK tess_status cache_add_image(cache_set *set, const cache_image *image);
TESS_MUST_CHECK tess_status cache_add_text(cache_set *set, const cache_text *text);
/** All inputs must come from one kind of tool. Local. @return TESS_E_CONFIG */
TESS_MUST_CHECK tess_status cache_take_kind(cache_set *set, cache_kind kind, const char *path);
/** What all inputs must agree about. Local. @return TESS_E_CONFIG */
TESS_MUST_CHECK tess_status cache_take_origin(cache_set *set, const tess_latents_origin *origin,
                                              bool is_raw, const char *path);
/** Values of an array are finite. Local. @return TESS_E_FORMAT */
TESS_MUST_CHECK tess_status cache_check_finite(const char *name, const float *x, int64_t numel);
/** Weights of packed tokens from a mask [rows, columns]. Local. @return TESS_E_FORMAT */
TESS_MUST_CHECK tess_status cache_mask(const char *name, const cache_image *image,
                                       const int64_t dim[2], const float *values, float *mask);

/** Arrays of an image or a text while it is converted: room for the largest. */
typedef struct cache_row {
    float *latent, *text, *pooled;
    float *mask; /* room for as many as tokens of a text, too */
    tess_latents_sample sample;
    int64_t length;
} cache_row;

/* Of each kind: list a file, and load what it holds. Local. */
TESS_MUST_CHECK tess_status cache_kohya_scan(cache_set *set, const char *path);
TESS_MUST_CHECK tess_status cache_kohya_image(cache_set *set, const cache_image *image,
                                              cache_row *row);
TESS_MUST_CHECK tess_status cache_kohya_text(cache_set *set, const cache_text *text,
                                             cache_row *row);
TESS_MUST_CHECK tess_status cache_kohya_add_empty(cache_set *set, const char *path);
TESS_MUST_CHECK tess_status cache_tensors_scan(cache_set *set, const char *path);
TESS_MUST_CHECK tess_status cache_tensors_image(cache_set *set, const cache_image *image,
                                                cache_row *row);
TESS_MUST_CHECK tess_status cache_tensors_text(cache_set *set, const cache_text *text,
                                               cache_row *row);

/* Whether a file is one of a kind, by its name. */
bool cache_kohya_is_latents(const char *path);
bool cache_kohya_is_text(const char *path);
bool cache_tensors_is(const char *path);

TESS_END_DECLS
