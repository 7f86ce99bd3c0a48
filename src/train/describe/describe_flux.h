/** A FLUX.1 transformer from its run file: weights in every layout, targets by the names that
 * trainers know, shapes from the cache. */
#pragma once

#include "train/describe/describe.h"

TESS_BEGIN_DECLS

/** Targets of adapters under one word, such as "mmdit". */
typedef struct tess_flux_targets {
    const char *name;
    tess_peft_modules modules;
    bool shares_a; /* q, k, v (and the MLP of a single block) of one matrix have one A */
} tess_flux_targets;

/** NULL: no such word. Local. */
const tess_flux_targets *tess_flux_targets_find(const char *name);

/** All words, each with ", " behind it, into `text`. Local. */
void tess_flux_targets_words(size_t nbytes, char *text);

/**
 * Open the weights and find the sizes: a diffusers directory (a pipeline, or its transformer), a
 * single .safetensors or GGUF file; the config of a run that was begun where they are gone. Fills
 * flux, dir, config_text and config_root of `d`. Local.
 * @return TESS_E_CONFIG, TESS_E_FORMAT, TESS_E_UNSUPPORTED, TESS_E_IO
 */
TESS_MUST_CHECK tess_status tess_describe_flux_open(const tess_ctx *ctx, tess_description *d);
/** Every tensor of the files has a place in the model. Local. @return TESS_E_FORMAT names the first
 * without one */
TESS_MUST_CHECK tess_status tess_describe_flux_left(const tess_description *d);
/** Shape and bytes of the largest micro-batch, from data.resolution and data.text_length or from
 * the cache. Local. @return TESS_E_CONFIG; as tess_latents_open */
TESS_MUST_CHECK tess_status tess_describe_flux_data(const tess_ctx *ctx, tess_description *d);
/** tess_base_codec_of() that leaves x_embedder, context_embedder, norm_out and proj_out as they
 * are, unless base.overrides names them. */
TESS_MUST_CHECK tess_status tess_flux_codec_of(void *arg, const tess_param *p, bool is_linear,
                                               tess_codec source, tess_codec *out);

TESS_END_DECLS
