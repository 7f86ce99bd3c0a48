#include "kernels/cuda_work.h"

const tess_kernels *tess_kernels_cuda_planned(void)
{
    static _Thread_local tess_kernels planned;
    planned = tess_kernels_cpu;
    planned.name = "cuda";
    planned.wants_adjacent_terms = true;
    planned.logits_row_max = TESS_CUDA_LOGITS_ROW_MAX;
    planned.logits_max_numel = TESS_CUDA_LOGITS_MAX_NUMEL;
    planned.gemm_work_nbytes = tess_cuda_gemm_work_nbytes;
    planned.nearest_pack_nbytes = tess_cuda_nearest_pack_nbytes;
    planned.nearest_work_nbytes = tess_cuda_nearest_work_nbytes;
    planned.attention_work_nbytes = tess_cuda_attention_work_nbytes;
    return &planned;
}
