/**
 * Caches of other trainers into one cache file (train/data/latents.h).
 *
 * Inputs are folders, searched with all below them, or single files:
 *
 *   sd-scripts: NAME_<W>x<H>_flux.npz, or NAME_flux.npz, with arrays latents_<h>x<w>,
 *     original_size_<h>x<w>, crop_ltrb_<h>x<w> and perhaps alpha_mask_<h>x<w> (older ones without
 *     the size); each size is a sample. NAME_flux_te.npz beside it with l_pooled, t5_out,
 *     t5_attn_mask, apply_t5_attn_mask. NAME.txt or NAME.caption is the caption. Latents are model
 *     space already: its autoencoder shifts and scales. Flipped latents are left out.
 *   safetensors: NAME.latent [C, h, w]; NAME.t5 [T, d] and NAME.pooled [p], or metadata
 *     NAME.text: another name that has them; NAME.mask, optional; metadata NAME.caption,
 *     NAME.original_size "W H", NAME.crop "left top right bottom", and for the file: space ("model"
 *     or "raw"), tool, vae, text_encoders, posterior. docs/data.md describes it.
 *
 * A mask has a whole number of values for each row and column of packed tokens; a token's weight is
 * their mean. Equal texts are stored once. Latents in space "raw" are shifted and scaled.
 */
#pragma once

#include "train/data/latents.h"

TESS_BEGIN_DECLS

typedef struct tess_cache_options {
    const char *const *inputs; /* [input_numel] */
    int64_t input_numel;
    const char *output_path;
    const char *empty_path; /* file with the embeddings of the empty caption; NULL: as found */
    int64_t text_numel;     /* tokens that texts must have; 0: what the first has */
    tess_dtype latent_dt, text_dt;
} tess_cache_options;

typedef struct tess_cache_result {
    tess_latents_info info;
    int64_t flipped_numel; /* left out */
    double deviation;      /* standard deviation of all latents */
} tess_cache_result;

/**
 * Convert. Local; an existing file is replaced.
 * @return TESS_E_CONFIG no inputs, two tools, or samples that do not belong together; TESS_E_FORMAT
 * names the file, what was expected, what was found, and the fix; TESS_E_IO
 */
TESS_MUST_CHECK tess_status tess_cache_run(const tess_ctx *ctx, const tess_cache_options *options,
                                           tess_cache_result *out);

TESS_END_DECLS
