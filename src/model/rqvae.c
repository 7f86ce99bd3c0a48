#include "model/rqvae_priv.h"

#include <inttypes.h>
#include <stdio.h>

#include "core/memory.h"
#include "model/model_priv.h"

/* ---- tensors ---- */

static tess_status add_quantizer(tess_rqvae *m, tess_registry *reg)
{
    int unit_idx = 0;
    if (m->ops->add_tensors == NULL)
        return TESS_OK;
    TESS_TRY(tess_registry_add_unit(reg, "quantizer", &unit_idx));
    TESS_TRY(tess_registry_widen_unit(reg, unit_idx));
    return m->ops->add_tensors(m, reg, unit_idx);
}

static tess_status add_tensors(tess_rqvae *m, const int64_t *hidden, tess_registry *reg)
{
    TESS_TRY(tess_rqvae_add_body(m, hidden, reg, false));
    TESS_TRY(add_quantizer(m, reg));
    return tess_rqvae_add_body(m, hidden, reg, true);
}

/* A quantizer without tensors uses the encoder's unit, which is there anyway. */
static tess_status add_stages(const tess_rqvae *m, tess_registry *reg)
{
    const int first = m->ops->add_tensors != NULL ? 1 : 0;
    const int unit[TESS_RQVAE_STAGE_NUMEL] = {0, first, first + 1};
    static const char *const name[TESS_RQVAE_STAGE_NUMEL] = {"encoder", "quantizer", "decoder"};
    for (int s = 0; s < TESS_RQVAE_STAGE_NUMEL; s++) {
        tess_stage stage = {.unit_idx = unit[s],
                            .is_joint = m->config.is_sharded && s == TESS_RQVAE_QUANTIZER};
        snprintf(stage.name, sizeof stage.name, "%s", name[s]);
        TESS_TRY(tess_rqvae_plan_stage(m, reg, s, &stage));
        TESS_TRY(tess_registry_add_stage(reg, &stage));
    }
    return tess_registry_lay_out(reg);
}

/* ---- create ---- */

static tess_status check_backend(const tess_kernels *k, bool is_of_images)
{
    TESS_TRY(tess_kernels_check(k));
    TESS_CHECK(k->quantizers != NULL && k->nearest != NULL && k->relu != NULL, TESS_E_UNSUPPORTED,
               "model.family: %s has no kernels on %s; set compute.device to cpu",
               is_of_images ? "vqvae" : "rqvae", k->name);
    TESS_CHECK(!is_of_images || k->im2col != NULL, TESS_E_UNSUPPORTED,
               "model.family: vqvae has no convolutions on %s; set compute.device to cpu", k->name);
    return TESS_OK;
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
    TESS_TRY(check_backend(m->kernels, config->images.channel_numel > 0));
    TESS_TRY(add_tensors(m, config->hidden, reg));
    return add_stages(m, reg);
}

static void destroy_rqvae(void *self) { tess_free(self); }

tess_status tess_rqvae_create(const tess_rqvae_config *config, const tess_model_options *options,
                              tess_registry *reg, tess_model **out)
{
    TESS_TRY(tess_rqvae_check_config(config));
    TESS_CHECK(options->micro_batch > 0 && options->thread_numel > 0, TESS_E_ARG,
               "micro-batch %" PRId64 ", threads %d: expected both above 0", options->micro_batch,
               options->thread_numel);
    TESS_CHECK(options->micro_batch % tess_rqvae_position_numel(&config->images) == 0, TESS_E_ARG,
               "micro-batch of %" PRId64 " vectors: expected those of whole images",
               options->micro_batch);
    TESS_TRY(tess_model_check_registry(options, reg));
    void *self = NULL;
    tess_status st = TESS_OK;
    TESS_TRY_GOTO(st, fail, tess_alloc(sizeof(tess_rqvae), &self));
    TESS_TRY_GOTO(st, fail, fill(self, config, options, reg));
    TESS_TRY_GOTO(st, fail, tess_model_adopt(&tess_rqvae_stage_ops, self, destroy_rqvae, out));
    return TESS_OK;
fail:
    destroy_rqvae(self);
    return st;
}

void tess_rqvae_use_books(tess_model *model, tess_codebooks *books)
{
    tess_rqvae *m = model->self;
    m->books = books;
}

float tess_rqvae_code_scale(const tess_model *model, float grad_scale)
{
    return (float)tess_rqvae_level_scale(model->self, grad_scale);
}

int tess_rqvae_codebook(const tess_model *model, int book_idx)
{
    const tess_rqvae *m = model->self;
    return m->book_idx[book_idx];
}
