#include "model/rqvae_priv.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>

#include "core/memory.h"
#include "model/model_priv.h"

/* ---- tensors ---- */

tess_status tess_rqvae_add_param(tess_registry *reg, tess_param *p, int *idx)
{
    p->role = TESS_ROLE_TRAINABLE;
    return tess_registry_add_param(reg, p, idx);
}

/* A layer as PyTorch begins it: weight and bias uniform in 1 / sqrt(in). */
static tess_status add_linear(tess_registry *reg, int unit_idx, const char *path, bool has_bias,
                              tess_linear *linear)
{
    const double scale = 1.0 / sqrt((double)linear->in_numel);
    tess_param weight = {.unit_idx = unit_idx,
                         .shape_rank = 2,
                         .shape = {linear->out_numel, linear->in_numel},
                         .init = TESS_INIT_UNIFORM,
                         .init_scale = scale,
                         .learning_rate_ratio = 1.0,
                         .has_weight_decay = true};
    tess_param bias = {.unit_idx = unit_idx,
                       .shape_rank = 1,
                       .shape = {linear->out_numel},
                       .init = TESS_INIT_UNIFORM,
                       .init_scale = scale,
                       .learning_rate_ratio = 1.0};
    snprintf(weight.name, sizeof weight.name, "%s.weight", path);
    snprintf(bias.name, sizeof bias.name, "%s.bias", path);
    linear->is_trainable = true;
    linear->bias_idx = linear->lora_a_idx = linear->lora_b_idx = linear->magnitude_idx = -1;
    TESS_TRY(tess_rqvae_add_param(reg, &weight, &linear->weight_idx));
    return has_bias ? tess_rqvae_add_param(reg, &bias, &linear->bias_idx) : TESS_OK;
}

/* size [layer_numel + 1] */
static tess_status add_perceptron(const tess_rqvae *m, tess_registry *reg, const char *name,
                                  const int64_t *size, tess_perceptron *p)
{
    int unit_idx = 0;
    char path[64];
    p->layer_numel = m->config.hidden_numel + 1;
    TESS_TRY(tess_registry_add_unit(reg, name, &unit_idx));
    for (int i = 0; i < p->layer_numel; i++) {
        p->layer[i] = (tess_linear){.in_numel = size[i], .out_numel = size[i + 1]};
        snprintf(path, sizeof path, "%s.%d", name, i);
        TESS_TRY(add_linear(reg, unit_idx, path, m->config.has_bias, &p->layer[i]));
    }
    return TESS_OK;
}

static tess_status add_quantizer(tess_rqvae *m, tess_registry *reg)
{
    int unit_idx = 0;
    if (m->ops->add_tensors == NULL)
        return TESS_OK;
    TESS_TRY(tess_registry_add_unit(reg, "quantizer", &unit_idx));
    TESS_TRY(tess_registry_widen_unit(reg, unit_idx));
    return m->ops->add_tensors(m, reg, unit_idx);
}

static tess_status add_tensors(tess_rqvae *m, const tess_rqvae_config *c, tess_registry *reg)
{
    int64_t size[TESS_RQVAE_HIDDEN_MAX + 2], mirrored[TESS_RQVAE_HIDDEN_MAX + 2];
    const int layers = c->hidden_numel + 1;
    size[0] = c->dim;
    for (int i = 0; i < c->hidden_numel; i++)
        size[i + 1] = c->hidden[i];
    size[layers] = c->code_dim;
    for (int i = 0; i <= layers; i++)
        mirrored[i] = size[layers - i];
    TESS_TRY(add_perceptron(m, reg, "encoder", size, &m->encoder));
    TESS_TRY(add_quantizer(m, reg));
    return add_perceptron(m, reg, "decoder", mirrored, &m->decoder);
}

/* A quantizer without tensors uses the encoder's unit, which is there anyway. */
static tess_status add_stages(const tess_rqvae *m, tess_registry *reg)
{
    const int first = m->ops->add_tensors != NULL ? 1 : 0;
    const int unit[TESS_RQVAE_STAGE_NUMEL] = {0, first, first + 1};
    static const char *const name[TESS_RQVAE_STAGE_NUMEL] = {"encoder", "quantizer", "decoder"};
    for (int s = 0; s < TESS_RQVAE_STAGE_NUMEL; s++) {
        tess_stage stage = {.unit_idx = unit[s]};
        snprintf(stage.name, sizeof stage.name, "%s", name[s]);
        TESS_TRY(tess_rqvae_plan_stage(m, reg, s, &stage));
        TESS_TRY(tess_registry_add_stage(reg, &stage));
    }
    return tess_registry_lay_out(reg);
}

/* ---- create ---- */

static tess_status check_sizes(const tess_rqvae_config *c)
{
    TESS_CHECK(c->dim >= 1, TESS_E_CONFIG, "quantizer.dim: %" PRId64 ", expected at least 1",
               c->dim);
    TESS_CHECK(c->hidden_numel >= 0 && c->hidden_numel <= TESS_RQVAE_HIDDEN_MAX, TESS_E_CONFIG,
               "quantizer.encoder: expected at most %d sizes, found %d", TESS_RQVAE_HIDDEN_MAX,
               c->hidden_numel);
    for (int i = 0; i < c->hidden_numel; i++)
        TESS_CHECK(c->hidden[i] >= 1, TESS_E_CONFIG,
                   "quantizer.encoder: size %d is %" PRId64 ", expected at least 1", i,
                   c->hidden[i]);
    return TESS_OK;
}

static tess_status check_backend(const tess_kernels *k)
{
    TESS_TRY(tess_kernels_check(k));
    TESS_CHECK(k->quantizers != NULL && k->nearest != NULL && k->relu != NULL, TESS_E_UNSUPPORTED,
               "model.family: rqvae has no kernels on %s; set compute.device to cpu", k->name);
    return TESS_OK;
}

/* Forward 2 per multiply-add, backward 4; a search 2 per code and dimension. */
static double count_flops(const tess_rqvae *m)
{
    double weights = 0.0;
    for (int i = 0; i < m->encoder.layer_numel; i++)
        weights += 2.0 * (double)m->encoder.layer[i].in_numel *
                   (double)m->encoder.layer[i].out_numel; /* the decoder has as many */
    return 6.0 * weights + 2.0 * m->ops->count_products(m);
}

static tess_status fill(tess_rqvae *m, const tess_rqvae_config *config,
                        const tess_model_options *options, tess_registry *reg)
{
    m->config = *config;
    m->config.hidden = m->config.axis_level = NULL;
    for (int j = 0; j < config->axis_numel && j < TESS_LEVEL_DIM_MAX; j++)
        m->axis_level[j] = (int32_t)config->axis_level[j];
    m->dt = options->compute_dt;
    m->kernels = options->kernels != NULL ? options->kernels : &tess_kernels_cpu;
    m->thread_numel = options->thread_numel;
    m->row_numel = options->micro_batch;
    m->reconstruction_weight = config->is_sum ? 1.0 : 1.0 / (double)config->dim;
    m->level_weight = config->is_sum ? 1.0 : 1.0 / (double)config->code_dim;
    TESS_TRY(tess_quantizer_shape_make(config, &m->shape));
    m->ops = tess_quantizer_ops_of(config->kind);
    m->ops->terms(m, &m->terms);
    TESS_TRY(check_backend(m->kernels));
    TESS_TRY(add_tensors(m, config, reg));
    return add_stages(m, reg);
}

static void destroy_rqvae(void *self) { tess_free(self); }

tess_status tess_rqvae_create(const tess_rqvae_config *config, const tess_model_options *options,
                              tess_registry *reg, tess_model **out)
{
    TESS_TRY(check_sizes(config));
    TESS_CHECK(options->micro_batch > 0 && options->thread_numel > 0, TESS_E_ARG,
               "micro-batch %" PRId64 ", threads %d: expected both above 0", options->micro_batch,
               options->thread_numel);
    TESS_CHECK(
        reg->compute_dt == options->compute_dt && reg->param_numel == 0 && !reg->is_laid_out,
        TESS_E_STATE, "registry: expected an empty one of dtype %s, found %s with %d tensors",
        tess_dtype_name(options->compute_dt), tess_dtype_name(reg->compute_dt), reg->param_numel);
    void *self = NULL, *model = NULL;
    tess_status st = TESS_OK;
    TESS_TRY_GOTO(st, fail, tess_alloc(sizeof(tess_rqvae), &self));
    TESS_TRY_GOTO(st, fail, fill(self, config, options, reg));
    TESS_TRY_GOTO(st, fail, tess_alloc(sizeof(tess_model), &model));
    *(tess_model *)model = (tess_model){.ops = &tess_rqvae_stage_ops,
                                        .self = self,
                                        .destroy_self = destroy_rqvae,
                                        .flops_per_token = count_flops(self)};
    *out = model;
    return TESS_OK;
fail:
    destroy_rqvae(self);
    return st;
}

int tess_rqvae_codebook(const tess_model *model, int book_idx)
{
    const tess_rqvae *m = model->self;
    return m->book_idx[book_idx];
}
