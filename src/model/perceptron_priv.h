/** Linear layers one after the other with ReLU between them and none behind the last. */
#pragma once

#include "model/layers_priv.h"

TESS_BEGIN_DECLS

enum { TESS_PERCEPTRON_LAYER_MAX = 17 };

typedef struct tess_perceptron {
    tess_linear layer[TESS_PERCEPTRON_LAYER_MAX];
    int layer_numel; /* at least 1 */
} tess_perceptron;

/** What backward reads beside the input: what each layer but the last gave, after ReLU. */
typedef struct tess_perceptron_saved {
    tess_rows hidden[TESS_PERCEPTRON_LAYER_MAX - 1]; /* [R, out of the layer] dt */
} tess_perceptron_saved;

/** Carve them; the same order in forward and backward. Local. */
TESS_MUST_CHECK tess_status tess_perceptron_take_saved(const tess_exec *ex,
                                                       const tess_perceptron *p, tess_carve *carve,
                                                       tess_perceptron_saved *saved);
/** @param[in] x [R, in] dt  @param[out] y [R, out] dt or f32; numel 0: only `saved`. Local. */
TESS_MUST_CHECK tess_status tess_perceptron_forward(tess_exec *ex, const tess_perceptron *p,
                                                    const tess_rows *x,
                                                    const tess_perceptron_saved *saved,
                                                    const tess_rows *y);

/** Operands of a backward pass. */
typedef struct tess_perceptron_gradients {
    tess_rows x;   /* [R, in] dt, as of the forward */
    tess_rows d_y; /* [R, out] dt */
    tess_view d_x; /* [R, in] dt out; numel 0: not wanted */
} tess_perceptron_gradients;

/** Gradients of all weights and biases, and of the input. Local. */
TESS_MUST_CHECK tess_status tess_perceptron_backward(tess_exec *ex, const tess_perceptron *p,
                                                     const tess_perceptron_saved *saved,
                                                     const tess_perceptron_gradients *g);

TESS_END_DECLS
