#include "kernels/cpu/cpu_priv.h"

static const char *path_text(void) { return tess_cpu_path_name(tess_cpu_path_current()); }

static const tess_quantizer_kernels quantizers = {
    .enter = tess_cpu_quantizer_enter,
    .enter_backward = tess_cpu_quantizer_enter_backward,
    .gather = tess_cpu_quantizer_gather,
    .residual = tess_cpu_quantizer_residual,
    .row_loss = tess_cpu_quantizer_row_loss,
    .backward = tess_cpu_quantizer_backward,
    .directed = tess_cpu_quantizer_directed,
    .directed_backward = tess_cpu_quantizer_directed_backward,
    .code_gradient = tess_cpu_quantizer_code_gradient,
    .gram = tess_cpu_quantizer_gram,
    .orthogonal = tess_cpu_quantizer_orthogonal,
    .mask = tess_cpu_quantizer_mask,
    .sample = tess_cpu_quantizer_sample,
    .average = tess_cpu_quantizer_average,
    .total = tess_cpu_quantizer_total,
    .embed = tess_cpu_quantizer_embed,
    .expire = tess_cpu_quantizer_expire,
    .replace = tess_cpu_quantizer_replace,
    .layer_norm = tess_cpu_quantizer_layer_norm,
    .level = tess_cpu_quantizer_level,
    .level_decode = tess_cpu_quantizer_level_decode,
    .level_backward = tess_cpu_quantizer_level_backward,
    .soft_clamp = tess_cpu_quantizer_soft_clamp,
    .soft_clamp_backward = tess_cpu_quantizer_soft_clamp_backward,
    .latent = tess_cpu_quantizer_latent,
    .latent_decode = tess_cpu_quantizer_latent_decode,
    .latent_gradient = tess_cpu_quantizer_latent_gradient,
    .sign = tess_cpu_quantizer_sign,
    .sign_decode = tess_cpu_quantizer_sign_decode,
    .sign_loss = tess_cpu_quantizer_sign_loss,
    .sign_backward = tess_cpu_quantizer_sign_backward,
    .pbar = tess_cpu_quantizer_pbar,
    .batch_entropy = tess_cpu_quantizer_batch_entropy,
    .batch_entropy_backward = tess_cpu_quantizer_batch_entropy_backward,
};

static const tess_modulated_kernels modulated = {
    .modulate = tess_cpu_modulate,
    .modulate_backward = tess_cpu_modulate_backward,
    .gate = tess_cpu_gate,
    .gate_backward = tess_cpu_gate_backward,
    .rotate = tess_cpu_rotate,
    .rotate_backward = tess_cpu_rotate_backward,
    .activation = tess_cpu_activation,
    .activation_backward = tess_cpu_activation_backward,
    .square_error = tess_cpu_square_error,
};

const tess_kernels tess_kernels_cpu = {
    .name = "cpu",
    .path = path_text,
    .logits_row_max = 256, /* 64 MiB of f32: what packs of the projection share caches with */
    .logits_max_numel = 16 << 20,
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
    .fold_pieces = tess_cpu_fold_pieces,
    .square_norm = tess_cpu_square_norm,
    .sum = tess_cpu_sum,
    .exact_add = tess_cpu_exact_add,
    .adamw = tess_cpu_adamw,
    .lion = tess_cpu_lion,
    .adamw_8bit = tess_cpu_adamw_8bit,
    .schedule_free = tess_cpu_schedule_free,
    .blend = tess_cpu_blend,
    .prodigy_measure = tess_cpu_prodigy_measure,
    .prodigy_apply = tess_cpu_prodigy_apply,
    .adafactor_most = tess_cpu_adafactor_most,
    .adafactor_sum = tess_cpu_adafactor_sum,
    .adafactor_factor = tess_cpu_adafactor_factor,
    .adafactor_size = tess_cpu_adafactor_size,
    .adafactor_apply = tess_cpu_adafactor_apply,
    .muon_momentum = tess_cpu_muon_momentum,
    .muon_apply = tess_cpu_muon_apply,
    .scale = tess_cpu_scale,
    .nearest_pack_nbytes = tess_cpu_nearest_pack_nbytes,
    .nearest_work_nbytes = tess_cpu_nearest_work_nbytes,
    .nearest_prepare = tess_cpu_nearest_prepare,
    .nearest = tess_cpu_nearest,
    .code_most = tess_cpu_code_most,
    .code_value = tess_cpu_code_value,
    .code_sum = tess_cpu_code_sum,
    .code_mean = tess_cpu_code_mean,
    .code_residual = tess_cpu_code_residual,
    .code_row = tess_cpu_code_row,
    .relu = tess_cpu_relu,
    .mix = tess_cpu_mix,
    .quantizers = &quantizers,
    .modulated = &modulated,
    .im2col = tess_cpu_im2col,
    .col2im = tess_cpu_col2im,
};

/* All or none. */
static tess_status check_quantizers(const char *name, const tess_quantizer_kernels *q)
{
    const bool has[] = {
        q->enter != NULL,           q->enter_backward != NULL,
        q->gather != NULL,          q->residual != NULL,
        q->row_loss != NULL,        q->backward != NULL,
        q->directed != NULL,        q->directed_backward != NULL,
        q->code_gradient != NULL,   q->gram != NULL,
        q->orthogonal != NULL,      q->mask != NULL,
        q->sample != NULL,          q->average != NULL,
        q->total != NULL,           q->embed != NULL,
        q->expire != NULL,          q->replace != NULL,
        q->layer_norm != NULL,      q->level != NULL,
        q->level_decode != NULL,    q->level_backward != NULL,
        q->soft_clamp != NULL,      q->soft_clamp_backward != NULL,
        q->latent != NULL,          q->latent_decode != NULL,
        q->latent_gradient != NULL, q->sign != NULL,
        q->sign_decode != NULL,     q->sign_loss != NULL,
        q->sign_backward != NULL,   q->pbar != NULL,
        q->batch_entropy != NULL,   q->batch_entropy_backward != NULL,
    };
    _Static_assert(sizeof(tess_quantizer_kernels) == sizeof(has) * sizeof(q->enter),
                   "an entry of the quantizers is not checked");
    for (int i = 0; i < TESS_NELEM(has); i++)
        TESS_CHECK(has[i], TESS_E_UNSUPPORTED,
                   "kernel table '%s': entry %d of %d of the quantizers is missing (order of "
                   "kernels/kernels.h); a backend has all of them or none",
                   name, i, TESS_NELEM(has));
    return TESS_OK;
}

/* All or none. */
static tess_status check_modulated(const char *name, const tess_modulated_kernels *m)
{
    const bool has[] = {
        m->modulate != NULL,     m->modulate_backward != NULL,
        m->gate != NULL,         m->gate_backward != NULL,
        m->rotate != NULL,       m->rotate_backward != NULL,
        m->activation != NULL,   m->activation_backward != NULL,
        m->square_error != NULL,
    };
    _Static_assert(sizeof(tess_modulated_kernels) == sizeof(has) * sizeof(m->gate),
                   "an entry of the modulated ops is not checked");
    for (int i = 0; i < TESS_NELEM(has); i++)
        TESS_CHECK(has[i], TESS_E_UNSUPPORTED,
                   "kernel table '%s': entry %d of %d of the modulated ops is missing (order of "
                   "kernels/kernels.h); a backend has all of them or none",
                   name, i, TESS_NELEM(has));
    return TESS_OK;
}

tess_status tess_kernels_check(const tess_kernels *k)
{
    const bool has[] = {
        k->path != NULL,
        k->logits_row_max > 0,
        k->logits_max_numel > 0,
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
        k->fold_pieces != NULL,
        k->square_norm != NULL,
        k->sum != NULL,
        k->exact_add != NULL,
        k->adamw != NULL,
        k->lion != NULL,
        k->adamw_8bit != NULL,
        k->schedule_free != NULL,
        k->blend != NULL,
        k->prodigy_measure != NULL,
        k->prodigy_apply != NULL,
    };
    _Static_assert(sizeof(tess_kernels) == 30 * sizeof(k->path) + sizeof(has) * sizeof(k->path),
                   "an entry of the table is not checked");
    for (int i = 0; i < TESS_NELEM(has); i++)
        TESS_CHECK(has[i], TESS_E_UNSUPPORTED,
                   "kernel table '%s': entry %d of %d is missing (order of kernels/kernels.h)",
                   k->name != NULL ? k->name : "", i, TESS_NELEM(has));
    TESS_CHECK((k->im2col != NULL) == (k->col2im != NULL), TESS_E_UNSUPPORTED,
               "kernel table '%s': im2col or col2im is missing; a backend has both or none",
               k->name);
    if (k->quantizers != NULL)
        TESS_TRY(check_quantizers(k->name, k->quantizers));
    return k->modulated != NULL ? check_modulated(k->name, k->modulated) : TESS_OK;
}
