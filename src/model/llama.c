#include "model/llama_priv.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/arith.h"
#include "core/memory.h"
#include "model/model_priv.h"
#include "model/register_priv.h"

/* Standard deviation of random weights; projections back into the residual stream are smaller by
 * sqrt(2 L), as in GPT-2 (Radford et al. 2019, section 2.3). */
static const double random_scale = 0.02;

/* What registration carries along. */
typedef struct builder {
    tess_builder base;
    const tess_llm_config *config;
    tess_llama *m;
} builder;

/* Where a linear stands. */
typedef struct linear_place {
    const char *prefix; /* "model.layers.0." */
    const char *module; /* "self_attn.q_proj" */
    int64_t out_numel, in_numel;
    bool has_bias;
    bool is_residual_end; /* writes into the residual stream */
    bool is_head;
} linear_place;

static tess_status add_norm(builder *b, const char *prefix, const char *module, int64_t dim,
                            tess_norm *norm)
{
    char path[TESS_NAME_NBYTES];
    snprintf(path, sizeof path, "%s%s", prefix, module);
    return tess_builder_norm(&b->base, path, dim, (float)b->config->rms_eps, norm);
}

/* A linear over a weight that is registered already, or not yet (weight_idx -1). */
static tess_status add_linear(builder *b, const linear_place *place, int weight_idx,
                              tess_linear *linear)
{
    char path[TESS_NAME_NBYTES];
    snprintf(path, sizeof path, "%s%s", place->prefix, place->module);
    tess_linear_place base = {.path = path,
                              .out_numel = place->out_numel,
                              .in_numel = place->in_numel,
                              .has_bias = place->has_bias,
                              .is_head = place->is_head,
                              .is_outer = place->is_head,
                              .random_scale = random_scale,
                              .is_shared = weight_idx >= 0,
                              .weight_idx = weight_idx};
    if (place->is_residual_end)
        base.random_scale /= sqrt(2.0 * (double)b->config->layer_numel);
    return tess_builder_linear(&b->base, &base, linear);
}

static tess_status add_attention(builder *b, const char *prefix, int layer_idx, tess_attention *at)
{
    const tess_llm_config *c = b->config;
    const int64_t q_numel = c->head_numel * c->head_dim, kv_numel = c->kv_head_numel * c->head_dim;
    const int64_t h = c->hidden_numel;
    at->head_numel = c->head_numel;
    at->kv_head_numel = c->kv_head_numel;
    at->head_dim = c->head_dim;
    at->window = tess_llm_window(c, layer_idx);
    at->q_norm.weight_idx = at->k_norm.weight_idx = -1;
    const linear_place place[] = {
        {prefix, "self_attn.q_proj", q_numel, h, c->has_q_bias, false, false},
        {prefix, "self_attn.k_proj", kv_numel, h, c->has_k_bias, false, false},
        {prefix, "self_attn.v_proj", kv_numel, h, c->has_v_bias, false, false},
        {prefix, "self_attn.o_proj", h, q_numel, c->has_o_bias, true, false}};
    tess_linear *linear[] = {&at->q, &at->k, &at->v, &at->o};
    for (int i = 0; i < TESS_NELEM(place); i++)
        TESS_TRY(add_linear(b, &place[i], -1, linear[i]));
    if (!c->has_qk_norm)
        return TESS_OK;
    TESS_TRY(add_norm(b, prefix, "self_attn.q_norm", c->head_dim, &at->q_norm));
    return add_norm(b, prefix, "self_attn.k_norm", c->head_dim, &at->k_norm);
}

static tess_status add_mlp(builder *b, const char *prefix, tess_mlp *mlp)
{
    const tess_llm_config *c = b->config;
    const int64_t h = c->hidden_numel, inner = c->intermediate_numel;
    const linear_place place[] = {
        {prefix, "mlp.gate_proj", inner, h, c->has_mlp_bias, false, false},
        {prefix, "mlp.up_proj", inner, h, c->has_mlp_bias, false, false},
        {prefix, "mlp.down_proj", h, inner, c->has_mlp_bias, true, false}};
    tess_linear *linear[] = {&mlp->gate, &mlp->up, &mlp->down};
    for (int i = 0; i < TESS_NELEM(place); i++)
        TESS_TRY(add_linear(b, &place[i], -1, linear[i]));
    return TESS_OK;
}

static tess_status add_block(builder *b, int layer_idx, tess_llama_block *block)
{
    char unit[32], prefix[48];
    const int64_t h = b->config->hidden_numel;
    snprintf(unit, sizeof unit, "blk.%d", layer_idx);
    snprintf(prefix, sizeof prefix, "model.layers.%d.", layer_idx);
    TESS_TRY(tess_registry_add_unit(b->base.reg, unit, &b->base.unit_idx));
    TESS_TRY(add_norm(b, prefix, "input_layernorm", h, &block->norm1));
    TESS_TRY(add_attention(b, prefix, layer_idx, &block->attention));
    TESS_TRY(add_norm(b, prefix, "post_attention_layernorm", h, &block->norm2));
    return add_mlp(b, prefix, &block->mlp);
}

/* PEFT trains a copy of one of the two, so that they are tied no more: not what was asked for. */
static tess_status check_tied(const builder *b)
{
    static const char *const name[] = {"model.embed_tokens.weight", "lm_head.weight"};
    const tess_model_options *o = b->base.options;
    for (int i = 0; i < TESS_NELEM(name) && b->config->is_tied && o->is_saved != NULL; i++)
        TESS_CHECK(
            !o->is_saved(o->arg, name[i]), TESS_E_UNSUPPORTED,
            "lora.modules_to_save: '%s' is tied (tie_word_embeddings): '%s' and '%s' are one "
            "tensor; leave it out, or untie it in the model's files",
            name[i], name[0], name[1]);
    return TESS_OK;
}

/* Embedding table; when tied also norm and head, in the same unit. */
static tess_status add_embed(builder *b)
{
    const tess_llm_config *c = b->config;
    tess_param p = {.shape_rank = 2,
                    .shape = {c->vocab_numel, c->hidden_numel},
                    .is_outer = true,
                    .random_init = TESS_INIT_NORMAL,
                    .random_scale = random_scale};
    TESS_TRY(tess_builder_name(&p, "model.embed_tokens", ".weight"));
    TESS_TRY(tess_registry_add_unit(b->base.reg, "embed", &b->base.unit_idx));
    TESS_TRY(check_tied(b));
    TESS_TRY(tess_builder_source(&b->base, &p, false, &b->m->embed_idx));
    b->m->is_embed_trainable = tess_builder_learns(&b->base, b->m->embed_idx);
    return TESS_OK;
}

static tess_status add_head(builder *b)
{
    const tess_llm_config *c = b->config;
    tess_head *head = &b->m->head;
    const linear_place place = {.prefix = "",
                                .module = "lm_head",
                                .out_numel = c->vocab_numel,
                                .in_numel = c->hidden_numel,
                                .is_head = true};
    head->chunk_numel = tess_head_chunk_numel(b->m->kernels, b->m->token_numel, c->vocab_numel);
    TESS_TRY(add_norm(b, "", "model.norm", c->hidden_numel, &head->norm));
    return add_linear(b, &place, c->is_tied ? b->m->embed_idx : -1, &head->linear);
}

static tess_status register_all(builder *b)
{
    TESS_TRY(add_embed(b));
    if (b->config->is_tied)
        TESS_TRY(add_head(b));
    const int embed_unit_idx = b->base.unit_idx;
    for (int i = 0; i < b->m->layer_numel; i++)
        TESS_TRY(add_block(b, i, &b->m->block[i]));
    int head_unit_idx = embed_unit_idx;
    if (!b->config->is_tied) {
        TESS_TRY(tess_registry_add_unit(b->base.reg, "head", &b->base.unit_idx));
        TESS_TRY(add_head(b));
        head_unit_idx = b->base.unit_idx;
    }
    for (int s = 0; s < b->m->layer_numel + 2; s++) {
        tess_stage stage = {.unit_idx = embed_unit_idx + s};
        if (s == 0)
            snprintf(stage.name, sizeof stage.name, "embed");
        else if (s <= b->m->layer_numel)
            snprintf(stage.name, sizeof stage.name, "blk.%d", s - 1);
        else
            snprintf(stage.name, sizeof stage.name, "head");
        if (s == b->m->layer_numel + 1)
            stage.unit_idx = head_unit_idx;
        TESS_TRY(tess_llama_plan_stage(b->m, b->base.reg, s, &stage));
        TESS_TRY(tess_registry_add_stage(b->base.reg, &stage));
    }
    return tess_registry_lay_out(b->base.reg);
}

static float to_compute(float x, tess_dtype dt)
{
    return dt == TESS_BF16 ? tess_bf16_to_f32(tess_bf16_from_f32(x)) : x;
}

/* cos and sin of f32 angles, times yarn's factor, rounded to the compute dtype, as transformers
 * casts them. */
static tess_status make_rope(const tess_llm_config *c, tess_llama *m)
{
    const int64_t half = c->head_dim / 2;
    int64_t numel = 0;
    void *table = NULL, *inv = NULL;
    TESS_TRY(tess_mul_i64(m->sequence_length, half, &numel));
    for (int i = 0; i < 2; i++) {
        TESS_TRY(tess_alloc_array(numel, sizeof(float), &table));
        m->rope_host[i] = table;
    }
    m->rope = (tess_rope_table){.cos = m->rope_host[0],
                                .sin = m->rope_host[1],
                                .row_numel = m->sequence_length,
                                .half_numel = half};
    TESS_TRY(tess_alloc_array(half, sizeof(float), &inv));
    tess_rope_inv_freq(c, inv);
    const float factor = tess_rope_attention_factor(&c->rope);
    for (int64_t i = 0; i < numel; i++) {
        const float angle = (float)(i / half) * ((const float *)inv)[i % half];
        m->rope_host[0][i] = to_compute((float)cos((double)angle) * factor, m->dt);
        m->rope_host[1][i] = to_compute((float)sin((double)angle) * factor, m->dt);
    }
    tess_free(inv);
    return TESS_OK;
}

static void destroy_llama(void *self)
{
    tess_llama *m = self;
    if (m == NULL)
        return;
    tess_free(m->block);
    tess_free(m->rope_host[0]);
    tess_free(m->rope_host[1]);
    tess_free(m);
}

static tess_status check_options(const tess_model_options *o)
{
    TESS_CHECK(o->compute_dt == TESS_F32 || o->compute_dt == TESS_BF16, TESS_E_DTYPE,
               "compute dtype: expected f32 or bf16, found %s", tess_dtype_name(o->compute_dt));
    TESS_CHECK(o->sequence_length > 0 && o->micro_batch > 0 && o->thread_numel > 0, TESS_E_ARG,
               "sequence length %" PRId64 ", micro-batch %" PRId64
               ", threads %d: expected all above 0",
               o->sequence_length, o->micro_batch, o->thread_numel);
    TESS_CHECK(o->dropout >= 0.0 && o->dropout < 1.0, TESS_E_CONFIG,
               "lora.dropout: expected 0 <= p < 1, found %g", o->dropout);
    return TESS_OK;
}

static tess_status fill(tess_llama *m, const tess_llm_config *config,
                        const tess_model_options *options, tess_registry *reg)
{
    m->dt = options->compute_dt;
    m->kernels = options->kernels != NULL ? options->kernels : &tess_kernels_cpu;
    TESS_TRY(tess_kernels_check(m->kernels));
    m->thread_numel = options->thread_numel;
    m->sequence_length = options->sequence_length;
    m->hidden_numel = config->hidden_numel;
    m->vocab_numel = config->vocab_numel;
    m->dropout = (float)options->dropout;
    m->layer_numel = (int)config->layer_numel;
    TESS_TRY(tess_mul_i64(options->micro_batch, options->sequence_length, &m->token_numel));
    void *block = NULL;
    TESS_TRY(tess_alloc_array(config->layer_numel, sizeof(tess_llama_block), &block));
    m->block = block;
    TESS_TRY(make_rope(config, m));
    builder b = {.base = {.options = options, .reg = reg}, .config = config, .m = m};
    return register_all(&b);
}

tess_status tess_llama_create(const tess_llm_config *config, const tess_model_options *options,
                              tess_registry *reg, tess_model **out)
{
    TESS_TRY(tess_llm_config_check(config));
    TESS_TRY(check_options(options));
    TESS_TRY(tess_model_check_registry(options, reg));
    void *self = NULL;
    tess_status st = TESS_OK;
    TESS_TRY_GOTO(st, fail, tess_alloc(sizeof(tess_llama), &self));
    TESS_TRY_GOTO(st, fail, fill(self, config, options, reg));
    TESS_TRY_GOTO(st, fail, tess_model_adopt(&tess_llama_stage_ops, self, destroy_llama, out));
    return TESS_OK;
fail:
    destroy_llama(self);
    return st;
}
