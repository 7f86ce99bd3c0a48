/** What the parts of a group of linears share: linear.c its products, dora.c those with learned
 * lengths. */
#pragma once

#include "model/layers_priv.h"

TESS_BEGIN_DECLS

/** One term of a product, A from activations. Local. */
static inline tess_gemm_term tess_linear_term(const tess_rows *a, tess_matrix b, int64_t k,
                                              float scale)
{
    const tess_gemm_term term = {
        .a = a->view, .a_stride = tess_rows_gap(a), .b = b, .k = k, .scale = scale};
    return term;
}

/** Input of the adapter: x itself, or its dropped copy in `work`. Local. */
TESS_MUST_CHECK tess_status tess_linear_adapter_input(tess_exec *ex, const tess_group *group,
                                                      const tess_linear *linear, tess_rows *out);

/** Gradient of a bias: += the sum over rows of d_y [R, out]. Local. */
TESS_MUST_CHECK tess_status tess_linear_bias_grad(tess_exec *ex, int bias_idx,
                                                  const tess_rows *d_y);
/** Norms of all rows of W + s B A of the group's DoRA linears into `in.norm`. Local. */
TESS_MUST_CHECK tess_status tess_dora_norms(tess_exec *ex, const tess_group *group);
/** z of linear `i`, and where y is wanted, y. `u` is there. Local. */
TESS_MUST_CHECK tess_status tess_dora_output(tess_exec *ex, const tess_group *group, int i);

/** Gradients of what linear `i` gave, in rows of the caller. */
typedef struct tess_dora_gradients {
    tess_rows d_z;      /* [R, out] dt: of z; may be group->y[i] itself */
    tess_view d_direct; /* [R, out] dt: of x W^T under dropout; numel 0: there is none */
} tess_dora_gradients;

/** d_z and d_direct from group->y[i], and the gradient of the magnitudes. Local. */
TESS_MUST_CHECK tess_status tess_dora_backward(tess_exec *ex, const tess_group *group, int i,
                                               const tess_dora_gradients *g);

TESS_END_DECLS
