/** Registration of a family's tensors: what the options decide of each, in one place. */
#pragma once

#include "model/layers_priv.h"
#include "model/model.h"

TESS_BEGIN_DECLS

/** What registration carries along. */
typedef struct tess_builder {
    const tess_model_options *options;
    tess_registry *reg;
    int unit_idx; /* that takes what is added */
    uint32_t adapter_numel;
} tess_builder;

/** Where a linear stands. */
typedef struct tess_linear_place {
    const char *path; /* "model.layers.0.self_attn.q_proj" */
    int64_t out_numel, in_numel;
    bool has_bias;
    bool is_head;
    bool is_outer;       /* see tess_param */
    double random_scale; /* standard deviation of a random weight */
    bool is_shared;      /* weight_idx of another layer is its weight too */
    int weight_idx;
    const tess_linear *first; /* see tess_adapter_place */
} tess_linear_place;

/** Name of a parameter: `path`, then `suffix`. Local. @return TESS_E_ARG too long */
TESS_MUST_CHECK tess_status tess_builder_name(tess_param *p, const char *path, const char *suffix);
/** Add a tensor of the model files: name, shape and random rule are set, everything else is decided
 * here. Local. */
TESS_MUST_CHECK tess_status tess_builder_source(tess_builder *b, tess_param *p, bool is_linear,
                                                int *idx);
/** Add a vector of the model files. Local. */
TESS_MUST_CHECK tess_status tess_builder_vector(tess_builder *b, const char *name, int64_t numel,
                                                tess_init_kind random_init, int *idx);
/** Add a norm's weight [dim]. Local. */
TESS_MUST_CHECK tess_status tess_builder_norm(tess_builder *b, const char *path, int64_t dim,
                                              float eps, tess_norm *norm);
/** Add a linear with its bias and its adapter. Local. */
TESS_MUST_CHECK tess_status tess_builder_linear(tess_builder *b, const tess_linear_place *place,
                                                tess_linear *linear);
/** Whether a parameter learns. Local. */
static inline bool tess_builder_learns(const tess_builder *b, int idx)
{
    return b->reg->param[idx].role == TESS_ROLE_TRAINABLE;
}

TESS_END_DECLS
