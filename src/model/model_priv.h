/** Body of a model: what the trainer calls, whatever the family. */
#pragma once

#include "model/model.h"

TESS_BEGIN_DECLS

struct tess_model {
    const tess_stage_ops *ops;
    void *self; /* owned, freed by destroy_self */
    void (*destroy_self)(void *self);
    double flops_per_token;
};

TESS_END_DECLS
