/* Algorithms of the products of a step: chosen before it, the same on all ranks. */
#include "kernels/cuda/cuda_priv.h"
#include "kernels/cuda/gemm_priv.h"

static tess_status blas_of(tess_stream *s, tess_blas **out)
{
    const tess_cuda_library *library = NULL;
    TESS_TRY(tess_cuda_stream_library(s, &library));
    *out = library->blas;
    return TESS_OK;
}

tess_status tess_cuda_gemm_prepare(const tess_gemm_args *a, tess_stream *s)
{
    const tess_cuda_library *library = NULL;
    TESS_TRY(tess_gemm_check(a));
    TESS_TRY(tess_cuda_stream_library(s, &library));
    return tess_cuda_gemm_plan(a, library);
}

size_t tess_cuda_choices_nbytes(tess_stream *s)
{
    tess_blas *blas = NULL;
    return blas_of(s, &blas) == TESS_OK ? tess_blas_export_nbytes(blas) : 0;
}

tess_status tess_cuda_choices_export(tess_stream *s, void *data)
{
    tess_blas *blas = NULL;
    TESS_TRY(blas_of(s, &blas));
    tess_blas_export(blas, data);
    return TESS_OK;
}

tess_status tess_cuda_choices_import(tess_stream *s, const void *data, size_t nbytes)
{
    tess_blas *blas = NULL;
    TESS_TRY(blas_of(s, &blas));
    TESS_TRY(tess_blas_import(blas, data, nbytes));
    tess_blas_settle(blas);
    return TESS_OK;
}
