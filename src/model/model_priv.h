/** Body of a model: what the trainer calls, whatever the family. */
#pragma once

#include "model/model.h"

TESS_BEGIN_DECLS

struct tess_model {
    const tess_stage_ops *ops;
    void *self; /* owned, freed by destroy_self */
    void (*destroy_self)(void *self);
};

/** Whether a family may describe itself into `reg`: empty, of the options' dtype. Local.
 * @return TESS_E_STATE */
TESS_MUST_CHECK tess_status tess_model_check_registry(const tess_model_options *options,
                                                      const tess_registry *reg);
/** A model of a family's `self`, which it owns where this returns TESS_OK. Local.
 * @return TESS_E_MEMORY */
TESS_MUST_CHECK tess_status tess_model_adopt(const tess_stage_ops *ops, void *self,
                                             void (*destroy_self)(void *self), tess_model **out);

TESS_END_DECLS
