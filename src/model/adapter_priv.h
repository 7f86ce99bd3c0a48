/** Parameters of the adapter of one linear layer. */
#pragma once

#include "model/layers_priv.h"
#include "model/model.h"

TESS_BEGIN_DECLS

/** Where an adapter is registered. */
typedef struct tess_adapter_place {
    tess_registry *reg;
    const tess_model_options *options;
    const char *path; /* of the linear's module */
    int unit_idx;
    bool is_head;
    bool is_shared;           /* another layer reads the same weight */
    const tess_linear *first; /* first part of the matrix that this linear is a part of, NULL: it is
                                 no part, or the first; see tess_lora_choice, shares_a */
} tess_adapter_place;

/**
 * Ask for the adapter of `linear`, whose weight is registered, and register what it has: A, B, a
 * magnitude, and frozen copies of A and B where the weights gave them. Local.
 * @param[in,out] adapter_numel  adapters so far
 */
TESS_MUST_CHECK tess_status tess_adapter_add(const tess_adapter_place *place,
                                             uint32_t *adapter_numel, tess_linear *linear);

TESS_END_DECLS
