#include "kernels/cuda/attention_priv.h"

#include <stdio.h>

#include "core/arith.h"
#include "kernels/cuda/cuda_priv.h"
#include "kernels/cuda/flash_priv.h"
#include "kernels/cuda/library_priv.h"

tess_attention_path tess_cuda_attention_path(const tess_sdpa *sdpa,
                                             const tess_attention_shape *shape, int64_t window,
                                             bool is_backward, char why[TESS_SDPA_REASON_NBYTES])
{
    if (sdpa != NULL && tess_sdpa_covers(sdpa, shape, window, is_backward, why))
        return TESS_ATTENTION_CUDNN;
    if (sdpa == NULL)
        (void)snprintf(why, TESS_SDPA_REASON_NBYTES, "cuDNN is not used");
    return TESS_ATTENTION_OWN;
}

/* A zero number of tokens has no document. */
static bool is_library(const tess_attention_shape *shape, int64_t window, bool is_backward,
                       const tess_cuda_library *library)
{
    char why[TESS_SDPA_REASON_NBYTES];
    return shape->token_numel > 0 &&
           tess_cuda_attention_path(library->sdpa, shape, window, is_backward, why) ==
               TESS_ATTENTION_CUDNN;
}

tess_status tess_cuda_attention_forward(const tess_attention_args *a, tess_stream *s)
{
    const tess_cuda_library *library = NULL;
    TESS_TRY(tess_attention_check(a));
    TESS_TRY(tess_cuda_stream_library(s, &library));
    return is_library(&a->shape, a->window, false, library) ? tess_sdpa_forward(library->sdpa, a, s)
                                                            : tess_flash_forward(a, s);
}

tess_status tess_cuda_attention_backward(const tess_attention_backward_args *a, tess_stream *s)
{
    const tess_cuda_library *library = NULL;
    TESS_TRY(tess_attention_backward_check(a));
    TESS_TRY(tess_cuda_stream_library(s, &library));
    return is_library(&a->shape, a->window, true, library) ? tess_sdpa_backward(library->sdpa, a, s)
                                                           : tess_flash_backward(a, s);
}
