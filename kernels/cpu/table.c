#include "kernels/cpu/cpu_priv.h"

static const char *path_text(void) { return tess_cpu_path_name(tess_cpu_path_current()); }

const tess_kernels tess_kernels_cpu = {
    .name = "cpu",
    .path = path_text,
    .gemm = tess_cpu_gemm,
    .gemm_work_nbytes = tess_cpu_gemm_work_nbytes,
    .quantize = tess_cpu_quantize,
    .dequantize = tess_cpu_dequantize,
    .embedding_forward = tess_cpu_embedding_forward,
    .embedding_backward = tess_cpu_embedding_backward,
    .rmsnorm_forward = tess_cpu_rmsnorm_forward,
    .rmsnorm_backward = tess_cpu_rmsnorm_backward,
    .rope = tess_cpu_rope,
    .attention_forward = tess_cpu_attention_forward,
    .attention_backward = tess_cpu_attention_backward,
    .attention_work_nbytes = tess_cpu_attention_work_nbytes,
    .swiglu_forward = tess_cpu_swiglu_forward,
    .swiglu_backward = tess_cpu_swiglu_backward,
    .add = tess_cpu_add,
    .add_bias = tess_cpu_add_bias,
    .sum_rows = tess_cpu_sum_rows,
    .dropout = tess_cpu_dropout,
    .row_norm = tess_cpu_row_norm,
    .dora_forward = tess_cpu_dora_forward,
    .dora_backward = tess_cpu_dora_backward,
    .cast = tess_cpu_cast,
    .cross_entropy = tess_cpu_cross_entropy,
    .fold = tess_cpu_fold,
    .square_norm = tess_cpu_square_norm,
    .sum = tess_cpu_sum,
    .exact_add = tess_cpu_exact_add,
    .adamw = tess_cpu_adamw,
};

tess_status tess_kernels_check(const tess_kernels *k)
{
    const bool has[] = {
        k->path != NULL,
        k->gemm != NULL,
        k->gemm_work_nbytes != NULL,
        k->quantize != NULL,
        k->dequantize != NULL,
        k->embedding_forward != NULL,
        k->embedding_backward != NULL,
        k->rmsnorm_forward != NULL,
        k->rmsnorm_backward != NULL,
        k->rope != NULL,
        k->attention_forward != NULL,
        k->attention_backward != NULL,
        k->attention_work_nbytes != NULL,
        k->swiglu_forward != NULL,
        k->swiglu_backward != NULL,
        k->add != NULL,
        k->add_bias != NULL,
        k->sum_rows != NULL,
        k->dropout != NULL,
        k->row_norm != NULL,
        k->dora_forward != NULL,
        k->dora_backward != NULL,
        k->cast != NULL,
        k->cross_entropy != NULL,
        k->fold != NULL,
        k->square_norm != NULL,
        k->sum != NULL,
        k->exact_add != NULL,
        k->adamw != NULL,
    };
    _Static_assert(sizeof(tess_kernels) == 6 * sizeof(k->path) + sizeof(has) * sizeof(k->path),
                   "an entry of the table is not checked");
    for (int i = 0; i < TESS_NELEM(has); i++)
        TESS_CHECK(has[i], TESS_E_UNSUPPORTED,
                   "kernel table '%s': entry %d of %d is missing (order of kernels/kernels.h)",
                   k->name != NULL ? k->name : "", i, TESS_NELEM(has));
    return TESS_OK;
}
