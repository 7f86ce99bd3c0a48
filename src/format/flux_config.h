/**
 * Sizes of a FLUX.1 transformer: read from diffusers' config.json, or found from the weights of a
 * file that has none.
 *
 * @source diffusers 0.42 transformer_flux.py; flux src/flux/util.py; sd-scripts flux_utils.py
 * (analyze_checkpoint_state)
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "format/json.h"

TESS_BEGIN_DECLS

enum { TESS_FLUX_AXIS_NUMEL = 3, TESS_FLUX_BLOCK_MAX = 1024 };

/** Sizes under the names of diffusers' transformer/config.json. Plain data. */
typedef struct tess_flux_config {
    int64_t in_channels, out_channels;      /* 64 */
    int64_t double_numel, single_numel;     /* blocks: num_layers 19, num_single_layers 38 */
    int64_t head_numel, head_dim;           /* 24, 128; H is their product */
    int64_t text_dim;                       /* joint_attention_dim 4096 */
    int64_t pooled_dim;                     /* pooled_projection_dim 768 */
    bool has_guidance;                      /* guidance_embeds: dev true, schnell false */
    int64_t axis_dim[TESS_FLUX_AXIS_NUMEL]; /* axes_dims_rope 16, 56, 56; their sum is head_dim */
} tess_flux_config;

/** A tensor as the finder below asks for it: its shape [dim_numel <= 8] or dim_numel -1 when it is
 * absent. */
typedef int (*tess_flux_shape_of)(void *arg, const char *name, int64_t dim[8]);

/** Whether a parsed config.json is a FLUX transformer's. Local. */
bool tess_flux_config_is(const tess_json *root);
/** Check ranges and relations. Local. @return TESS_E_CONFIG names the field */
TESS_MUST_CHECK tess_status tess_flux_config_check(const tess_flux_config *config);
/** Read a parsed config.json. Local. @return TESS_E_FORMAT; TESS_E_UNSUPPORTED names the field */
TESS_MUST_CHECK tess_status tess_flux_config_parse(const tess_json *root, tess_flux_config *out);
/** A config.json from which diffusers builds the same model, to which members may be added. Local.
 */
TESS_MUST_CHECK tess_status tess_flux_config_json(const tess_flux_config *config, tess_json **out);
/**
 * Sizes from the shapes of weights under diffusers' names. Local.
 * @param source  of the weights, for messages
 * @return TESS_E_FORMAT a tensor that must be there is not, or has another rank; TESS_E_UNSUPPORTED
 * heads of another size than 128, whose rotation axes no weight tells
 */
TESS_MUST_CHECK tess_status tess_flux_config_find(const char *source, tess_flux_shape_of shape_of,
                                                  void *arg, tess_flux_config *out);

TESS_END_DECLS
