/** Which attention a call gets: the library's graphs, or own kernels. */
#pragma once

#include "kernels/cuda/sdpa_priv.h"

TESS_BEGIN_DECLS

typedef enum tess_attention_path { TESS_ATTENTION_CUDNN, TESS_ATTENTION_OWN } tess_attention_path;

/**
 * The path of a shape, and why in one line, for `plan` and the log. `sdpa` NULL: no cuDNN; then
 * `why` says so. Local.
 */
tess_attention_path tess_cuda_attention_path(const tess_sdpa *sdpa,
                                             const tess_attention_shape *shape, int64_t window,
                                             bool is_backward, char why[TESS_SDPA_REASON_NBYTES]);

TESS_END_DECLS
