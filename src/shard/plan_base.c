#include <string.h>

#include "core/memory.h"
#include "kernels/cuda_work.h"
#include "shard/plan.h"

/* How products take a frozen matrix that is stored so. */
static const char *products_of(const tess_param *p, tess_dtype compute_dt, bool is_device)
{
    const tess_matrix stored = {.codec = p->codec};
    if (tess_format_is_quantized(p->codec.format))
        return is_device ? "dequantized, then multiplied" : "dequantized panel by panel";
    if (tess_cuda_gemm_is_stored_as(&stored, compute_dt))
        return "multiplied as stored";
    return is_device ? "converted, then multiplied" : "converted panel by panel";
}

tess_status tess_plan_base(const tess_plan *plan, const tess_registry *reg, tess_plan_format **out,
                           int *out_numel)
{
    void *memory = NULL;
    int numel = 0;
    TESS_TRY(tess_alloc_array(reg->param_numel, sizeof(tess_plan_format), &memory));
    tess_plan_format *list = memory;
    for (int i = 0; i < reg->param_numel; i++) {
        const tess_param *p = &reg->param[i];
        char text[TESS_CODEC_TEXT_NBYTES];
        int at = 0;
        if (p->role == TESS_ROLE_TRAINABLE || p->shape_rank != 2)
            continue;
        tess_codec_describe(&p->codec, text);
        while (at < numel && strcmp(list[at].format, text) != 0)
            at++;
        if (at == numel) {
            numel++;
            list[at] = (tess_plan_format){
                .products = products_of(p, reg->compute_dt, plan->options.is_device)};
            memcpy(list[at].format, text, sizeof text);
        }
        list[at].matrix_numel++;
        list[at].numel += p->numel;
        for (int k = 0; k < p->part_numel; k++)
            list[at].nbytes += p->part[k].nbytes;
    }
    *out = list;
    *out_numel = numel;
    return TESS_OK;
}
