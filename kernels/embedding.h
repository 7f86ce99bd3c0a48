/** Token embedding: gather rows forward; ordered scatter-add backward. */
#pragma once

#include "core/stream.h"
#include "core/view.h"
#include "kernels/gemm.h"

TESS_BEGIN_DECLS

typedef struct tess_embedding_args {
    const int32_t *tokens; /* [T], each in [0, table.rows) */
    int64_t token_numel;
    tess_matrix table; /* [V, H] any format */
    tess_view out;     /* [T, H] f32 or bf16 */
} tess_embedding_args;

typedef struct tess_embedding_backward_args {
    const int32_t *tokens; /* [T] */
    int64_t token_numel;
    tess_view d_out; /* [T, H] compute dtype */
    int64_t vocab_numel, hidden_numel;
    float *d_table; /* [V, H] f32; += rows of d_out, tokens in ascending position */
} tess_embedding_backward_args;

TESS_MUST_CHECK tess_status tess_embedding_check(const tess_embedding_args *a);
TESS_MUST_CHECK tess_status tess_embedding_backward_check(const tess_embedding_backward_args *a);

TESS_END_DECLS
