#include "model/model_priv.h"

#include "core/memory.h"

tess_status tess_model_check_registry(const tess_model_options *options, const tess_registry *reg)
{
    TESS_CHECK(
        reg->compute_dt == options->compute_dt && reg->param_numel == 0 && !reg->is_laid_out,
        TESS_E_STATE, "registry: expected an empty one of dtype %s, found %s with %d tensors",
        tess_dtype_name(options->compute_dt), tess_dtype_name(reg->compute_dt), reg->param_numel);
    return TESS_OK;
}

tess_status tess_model_adopt(const tess_stage_ops *ops, void *self,
                             void (*destroy_self)(void *self), tess_model **out)
{
    void *model = NULL;
    TESS_TRY(tess_alloc(sizeof(tess_model), &model));
    *(tess_model *)model = (tess_model){.ops = ops, .self = self, .destroy_self = destroy_self};
    *out = model;
    return TESS_OK;
}

void tess_model_destroy(tess_model **model)
{
    if (model == NULL || *model == NULL)
        return;
    (*model)->destroy_self((*model)->self);
    tess_free(*model);
    *model = NULL;
}

const tess_stage_ops *tess_model_stage_ops(const tess_model *model) { return model->ops; }

void *tess_model_self(tess_model *model) { return model->self; }

size_t tess_model_constant_nbytes(const tess_model *model)
{
    return model->ops->constant_nbytes != NULL ? model->ops->constant_nbytes(model->self) : 0;
}
