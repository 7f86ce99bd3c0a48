/* Tensors of the FLUX.1 family and their stages. */
#include "model/flux.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/arith.h"
#include "core/memory.h"
#include "model/flux_priv.h"
#include "model/model_priv.h"
#include "model/register_priv.h"

/* Random weights are for measurements: outputs must not be zero. */
static const double random_scale = 0.02;
static const float qk_norm_eps = 1e-6f;

/* ---- tensors ---- */

typedef struct builder {
    tess_builder base;
    tess_flux *m;
    bool learns; /* something of the stage at hand */
} builder;

/* A module of a block: "transformer_blocks.0." and "attn.to_q". */
typedef struct module {
    const char *prefix, *name;
    int64_t out_numel, in_numel;
    const tess_linear *first; /* of the parts of a matrix that other layouts have as one */
    bool is_outer;
} module;

static tess_status add_linear(builder *b, const module *at, tess_linear *linear)
{
    char path[TESS_NAME_NBYTES];
    snprintf(path, sizeof path, "%s%s", at->prefix, at->name);
    const tess_linear_place place = {.path = path,
                                     .out_numel = at->out_numel,
                                     .in_numel = at->in_numel,
                                     .has_bias = true,
                                     .is_outer = at->is_outer,
                                     .random_scale = random_scale,
                                     .first = at->first};
    TESS_TRY(tess_builder_linear(&b->base, &place, linear));
    b->learns = b->learns || tess_linear_learns(linear);
    return TESS_OK;
}

static tess_status add_norm(builder *b, const char *prefix, const char *name, tess_norm *norm)
{
    char path[TESS_NAME_NBYTES];
    snprintf(path, sizeof path, "%s%s", prefix, name);
    TESS_TRY(tess_builder_norm(&b->base, path, b->m->config.head_dim, qk_norm_eps, norm));
    b->learns = b->learns || norm->is_trainable;
    return TESS_OK;
}

static tess_status add_embedders(builder *b)
{
    static const char *const name[] = {"timestep_embedder.", "guidance_embedder.",
                                       "text_embedder."};
    tess_flux *m = b->m;
    const int64_t h = m->hidden_numel;
    const bool learns = b->learns;
    b->learns = false;
    for (int i = 0; i < TESS_FLUX_EMBEDDER_NUMEL; i++) {
        char prefix[64];
        if (i == TESS_FLUX_GUIDANCE && !m->config.has_guidance)
            continue;
        snprintf(prefix, sizeof prefix, "time_text_embed.%s", name[i]);
        const int64_t in = i == TESS_FLUX_POOLED ? m->config.pooled_dim : TESS_FLUX_SINUSOID_NUMEL;
        const module at[] = {{prefix, "linear_1", h, in, NULL, true},
                             {prefix, "linear_2", h, h, NULL, true}};
        TESS_TRY(add_linear(b, &at[0], &m->embedder[i].linear_1));
        TESS_TRY(add_linear(b, &at[1], &m->embedder[i].linear_2));
    }
    m->embedders_learn = b->learns;
    b->learns = learns;
    return TESS_OK;
}

static tess_status add_embed(builder *b)
{
    tess_flux *m = b->m;
    const int64_t h = m->hidden_numel;
    const module latent = {"", "x_embedder", h, m->config.in_channels, NULL, true};
    const module text = {"", "context_embedder", h, m->config.text_dim, NULL, true};
    TESS_TRY(add_linear(b, &latent, &m->latent_in));
    TESS_TRY(add_linear(b, &text, &m->text_in));
    return add_embedders(b);
}

/* Names of one stream's modules. */
typedef struct half_names {
    const char *modulation, *q, *k, *v, *out, *q_norm, *k_norm, *up, *down;
} half_names;

static const half_names half_name[TESS_FLUX_STREAM_NUMEL] = {
    [TESS_FLUX_TEXT] = {"norm1_context.linear", "attn.add_q_proj", "attn.add_k_proj",
                        "attn.add_v_proj", "attn.to_add_out", "attn.norm_added_q",
                        "attn.norm_added_k", "ff_context.net.0.proj", "ff_context.net.2"},
    [TESS_FLUX_IMAGE] = {"norm1.linear", "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0",
                         "attn.norm_q", "attn.norm_k", "ff.net.0.proj", "ff.net.2"},
};

static tess_status add_half(builder *b, const char *prefix, const half_names *name,
                            tess_flux_half *half)
{
    const int64_t h = b->m->hidden_numel, inner = TESS_FLUX_MLP_RATIO * h;
    const module at[] = {
        {prefix, name->modulation, 6 * h, h, NULL, false},
        {prefix, name->q, h, h, NULL, false},
        {prefix, name->k, h, h, &half->q, false},
        {prefix, name->v, h, h, &half->q, false},
        {prefix, name->out, h, h, NULL, false},
        {prefix, name->up, inner, h, NULL, false},
        {prefix, name->down, h, inner, NULL, false},
    };
    tess_linear *const linear[] = {&half->modulation, &half->q,  &half->k,   &half->v,
                                   &half->out,        &half->up, &half->down};
    for (int i = 0; i < TESS_NELEM(at); i++)
        TESS_TRY(add_linear(b, &at[i], linear[i]));
    TESS_TRY(add_norm(b, prefix, name->q_norm, &half->q_norm));
    return add_norm(b, prefix, name->k_norm, &half->k_norm);
}

static tess_status add_double(builder *b, int idx)
{
    char prefix[64];
    snprintf(prefix, sizeof prefix, "transformer_blocks.%d.", idx);
    for (int i = TESS_FLUX_STREAM_NUMEL - 1; i >= 0; i--)
        TESS_TRY(add_half(b, prefix, &half_name[i], &b->m->double_block[idx].half[i]));
    return TESS_OK;
}

static tess_status add_single(builder *b, int idx)
{
    char prefix[64];
    tess_flux_single *block = &b->m->single_block[idx];
    const int64_t h = b->m->hidden_numel, inner = TESS_FLUX_MLP_RATIO * h;
    snprintf(prefix, sizeof prefix, "single_transformer_blocks.%d.", idx);
    const module at[] = {
        {prefix, "norm.linear", 3 * h, h, NULL, false},
        {prefix, "attn.to_q", h, h, NULL, false},
        {prefix, "attn.to_k", h, h, &block->q, false},
        {prefix, "attn.to_v", h, h, &block->q, false},
        {prefix, "proj_mlp", inner, h, &block->q, false},
        {prefix, "proj_out", h, h + inner, NULL, false},
    };
    tess_linear *const linear[] = {&block->modulation, &block->q,  &block->k,
                                   &block->v,          &block->up, &block->down};
    for (int i = 0; i < TESS_NELEM(at); i++)
        TESS_TRY(add_linear(b, &at[i], linear[i]));
    TESS_TRY(add_norm(b, prefix, "attn.norm_q", &block->q_norm));
    return add_norm(b, prefix, "attn.norm_k", &block->k_norm);
}

static tess_status add_final(builder *b)
{
    tess_flux *m = b->m;
    const int64_t h = m->hidden_numel;
    const module modulation = {"", "norm_out.linear", 2 * h, h, NULL, false};
    const module out = {"", "proj_out", m->config.out_channels, h, NULL, true};
    TESS_TRY(add_linear(b, &modulation, &m->final.modulation));
    return add_linear(b, &out, &m->final.out);
}

static tess_status add_stage_tensors(builder *b, int stage_idx, tess_stage *stage)
{
    const int doubles = b->m->double_numel, block_idx = stage_idx - 1;
    const bool is_last = stage_idx == tess_flux_stage_numel(b->m) - 1;
    if (stage_idx == 0 || is_last)
        snprintf(stage->name, sizeof stage->name, "%s", is_last ? "final" : "embed");
    else if (block_idx < doubles)
        snprintf(stage->name, sizeof stage->name, "double.%d", block_idx);
    else
        snprintf(stage->name, sizeof stage->name, "single.%d", block_idx - doubles);
    TESS_TRY(tess_registry_add_unit(b->base.reg, stage->name, &b->base.unit_idx));
    stage->unit_idx = b->base.unit_idx;
    if (stage_idx == 0)
        return add_embed(b);
    if (is_last)
        return add_final(b);
    return block_idx < doubles ? add_double(b, block_idx) : add_single(b, block_idx - doubles);
}

/* Plans come last: what a stage keeps depends on what learns in others. */
static tess_status add_all(builder *b)
{
    tess_flux *m = b->m;
    const int stage_numel = tess_flux_stage_numel(m);
    void *memory = NULL;
    TESS_TRY(tess_alloc_array(stage_numel, sizeof(tess_stage), &memory));
    tess_stage *stage = memory;
    tess_status st = TESS_OK;
    for (int s = 0; s < stage_numel; s++) {
        b->learns = false;
        TESS_TRY_GOTO(st, done, add_stage_tensors(b, s, &stage[s]));
        m->stage_learns[s] = b->learns;
    }
    for (int s = 0; s < stage_numel; s++) {
        TESS_TRY_GOTO(st, done, tess_flux_plan_stage(m, b->base.reg, s, &stage[s]));
        TESS_TRY_GOTO(st, done, tess_registry_add_stage(b->base.reg, &stage[s]));
    }
    st = tess_registry_lay_out(b->base.reg);
done:
    tess_free(memory);
    return st;
}

/* ---- create ---- */

static tess_status check_options(const tess_flux_shape *shape, const tess_model_options *o)
{
    TESS_CHECK(o->compute_dt == TESS_F32 || o->compute_dt == TESS_BF16, TESS_E_DTYPE,
               "compute dtype: expected f32 or bf16, found %s", tess_dtype_name(o->compute_dt));
    TESS_CHECK(shape->sample_numel > 0 && shape->image_numel > 0 && shape->text_numel > 0 &&
                   o->thread_numel > 0,
               TESS_E_ARG,
               "%" PRId64 " samples of %" PRId64 " image and %" PRId64
               " text tokens, %d threads: expected all above 0",
               shape->sample_numel, shape->image_numel, shape->text_numel, o->thread_numel);
    TESS_CHECK(o->dropout >= 0.0 && o->dropout < 1.0, TESS_E_CONFIG,
               "lora.dropout: expected 0 <= p < 1, found %g", o->dropout);
    return TESS_OK;
}

static tess_status check_backend(const tess_kernels *k)
{
    TESS_TRY(tess_kernels_check(k));
    TESS_CHECK(k->modulated != NULL, TESS_E_UNSUPPORTED,
               "model.family: flux has no kernels on %s; set compute.device to cpu", k->name);
    return TESS_OK;
}

static tess_status alloc(int64_t numel, size_t item_nbytes, void *slot)
{
    void *memory = NULL;
    TESS_TRY(tess_alloc_array(TESS_MAX(numel, 1), item_nbytes, &memory));
    memcpy(slot, &memory, sizeof memory);
    return TESS_OK;
}

static tess_status fill(tess_flux *m, const tess_flux_config *config, const tess_flux_shape *shape,
                        const tess_model_options *options, tess_registry *reg)
{
    m->config = *config;
    m->shape = *shape;
    m->dt = options->compute_dt;
    m->kernels = options->kernels != NULL ? options->kernels : &tess_kernels_cpu;
    m->thread_numel = options->thread_numel;
    m->dropout = (float)options->dropout;
    m->double_numel = (int)config->double_numel;
    m->single_numel = (int)config->single_numel;
    TESS_TRY(check_backend(m->kernels));
    TESS_TRY(tess_mul_i64(config->head_numel, config->head_dim, &m->hidden_numel));
    TESS_TRY(alloc(m->double_numel, sizeof *m->double_block, &m->double_block));
    TESS_TRY(alloc(m->single_numel, sizeof *m->single_block, &m->single_block));
    TESS_TRY(alloc(tess_flux_stage_numel(m), sizeof *m->stage_learns, &m->stage_learns));
    builder b = {.base = {.options = options, .reg = reg}, .m = m};
    return add_all(&b);
}

static void destroy_flux(void *self)
{
    tess_flux *m = self;
    if (m == NULL)
        return;
    tess_free(m->double_block);
    tess_free(m->single_block);
    tess_free(m->stage_learns);
    tess_free(m);
}

tess_status tess_flux_create(const tess_flux_config *config, const tess_flux_shape *shape,
                             const tess_model_options *options, tess_registry *reg,
                             tess_model **out)
{
    TESS_TRY(tess_flux_config_check(config));
    TESS_TRY(check_options(shape, options));
    TESS_TRY(tess_model_check_registry(options, reg));
    void *self = NULL;
    tess_status st = TESS_OK;
    TESS_TRY_GOTO(st, fail, tess_alloc(sizeof(tess_flux), &self));
    TESS_TRY_GOTO(st, fail, fill(self, config, shape, options, reg));
    TESS_TRY_GOTO(st, fail, tess_model_adopt(&tess_flux_stage_ops, self, destroy_flux, out));
    return TESS_OK;
fail:
    destroy_flux(self);
    return st;
}
