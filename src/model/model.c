#include "model/model_priv.h"

#include "core/memory.h"

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

double tess_model_flops_per_token(const tess_model *model) { return model->flops_per_token; }

size_t tess_model_constant_nbytes(const tess_model *model)
{
    return model->ops->constant_nbytes != NULL ? model->ops->constant_nbytes(model->self) : 0;
}
