#include "model/register_priv.h"

#include <stdio.h>

#include "model/adapter_priv.h"

tess_status tess_builder_name(tess_param *p, const char *path, const char *suffix)
{
    const int length = snprintf(p->name, sizeof p->name, "%s%s", path, suffix);
    TESS_CHECK(length > 0 && (size_t)length < sizeof p->name, TESS_E_ARG,
               "tensor name '%s%s' is longer than %d bytes", path, suffix, TESS_NAME_NBYTES - 1);
    return TESS_OK;
}

tess_status tess_builder_source(tess_builder *b, tess_param *p, bool is_linear, int *idx)
{
    const tess_model_options *o = b->options;
    p->unit_idx = b->unit_idx;
    const bool is_saved = o->is_saved != NULL && o->is_saved(o->arg, p->name);
    p->role = o->is_full || is_saved ? TESS_ROLE_TRAINABLE : TESS_ROLE_FROZEN;
    p->init = o->is_random ? p->random_init : TESS_INIT_SOURCE;
    p->init_scale = o->is_random ? p->random_scale : 0.0;
    p->learning_rate_ratio = 1.0;
    p->has_weight_decay = p->shape_rank > 1;
    tess_codec source = {.format = TESS_FORMAT_BF16};
    if (o->source_of != NULL)
        TESS_TRY(o->source_of(o->arg, p, &source));
    p->codec = source;
    if (p->role == TESS_ROLE_FROZEN && p->shape_rank == 2 && o->codec_of != NULL)
        TESS_TRY(o->codec_of(o->arg, p, is_linear, source, &p->codec));
    return tess_registry_add_param(b->reg, p, idx);
}

tess_status tess_builder_vector(tess_builder *b, const char *name, int64_t numel,
                                tess_init_kind random_init, int *idx)
{
    tess_param p = {.shape_rank = 1, .shape = {numel}, .random_init = random_init};
    TESS_TRY(tess_builder_name(&p, name, ""));
    return tess_builder_source(b, &p, false, idx);
}

tess_status tess_builder_norm(tess_builder *b, const char *path, int64_t dim, float eps,
                              tess_norm *norm)
{
    char name[TESS_NAME_NBYTES + 8];
    snprintf(name, sizeof name, "%s.weight", path);
    *norm = (tess_norm){.dim = dim, .eps = eps};
    TESS_TRY(tess_builder_vector(b, name, dim, TESS_INIT_ONE, &norm->weight_idx));
    norm->is_trainable = tess_builder_learns(b, norm->weight_idx);
    return TESS_OK;
}

static tess_status add_weight(tess_builder *b, const tess_linear_place *place, int *idx)
{
    tess_param p = {.shape_rank = 2,
                    .shape = {place->out_numel, place->in_numel},
                    .is_outer = place->is_outer,
                    .random_init = TESS_INIT_NORMAL,
                    .random_scale = place->random_scale};
    TESS_TRY(tess_builder_name(&p, place->path, ".weight"));
    return tess_builder_source(b, &p, true, idx);
}

tess_status tess_builder_linear(tess_builder *b, const tess_linear_place *place,
                                tess_linear *linear)
{
    *linear = (tess_linear){.weight_idx = place->weight_idx,
                            .bias_idx = -1,
                            .lora_a_idx = -1,
                            .lora_b_idx = -1,
                            .magnitude_idx = -1,
                            .in_numel = place->in_numel,
                            .out_numel = place->out_numel};
    if (!place->is_shared)
        TESS_TRY(add_weight(b, place, &linear->weight_idx));
    linear->is_trainable = tess_builder_learns(b, linear->weight_idx);
    if (place->has_bias) {
        char name[TESS_NAME_NBYTES + 8];
        snprintf(name, sizeof name, "%s.bias", place->path);
        TESS_TRY(tess_builder_vector(b, name, place->out_numel, TESS_INIT_ZERO, &linear->bias_idx));
    }
    const tess_adapter_place adapter = {.reg = b->reg,
                                        .options = b->options,
                                        .path = place->path,
                                        .unit_idx = b->unit_idx,
                                        .is_head = place->is_head,
                                        .is_shared = place->is_shared,
                                        .first = place->first};
    return tess_adapter_add(&adapter, &b->adapter_numel, linear);
}
