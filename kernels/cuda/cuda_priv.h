/**
 * Entry points of the CUDA backend: one function per entry of tess_kernels, named tess_cuda_ +
 * entry. table.c puts them in tess_kernels_cuda; nothing outside this folder and its tests calls
 * them by name.
 *
 * Every entry checks its arguments as the CPU twin does, enqueues on `s` and returns. Views are in
 * TESS_DEVICE space, so values of indices are not read here.
 */
#pragma once

#include "kernels/cuda_work.h"

TESS_BEGIN_DECLS

/** The table that the plugin hands out. */
extern const tess_kernels tess_kernels_cuda;

/** "sm_90": architecture of the open device, part of the numerics digest. */
const char *tess_cuda_path(void);

tess_status tess_cuda_gemm(const tess_gemm_args *a, tess_stream *s);
/** Waits for the stream: a value that is not finite is refused by name, as on the CPU. */
tess_status tess_cuda_quantize(const tess_quantize_args *a, tess_stream *s);
tess_status tess_cuda_dequantize(const tess_dequantize_args *a, tess_stream *s);

tess_status tess_cuda_embedding_forward(const tess_embedding_args *a, tess_stream *s);
tess_status tess_cuda_embedding_backward(const tess_embedding_backward_args *a, tess_stream *s);
tess_status tess_cuda_rmsnorm_forward(const tess_rmsnorm_args *a, tess_stream *s);
tess_status tess_cuda_rmsnorm_backward(const tess_rmsnorm_backward_args *a, tess_stream *s);
tess_status tess_cuda_rope(const tess_rope_args *a, tess_stream *s);
tess_status tess_cuda_attention_forward(const tess_attention_args *a, tess_stream *s);
tess_status tess_cuda_attention_backward(const tess_attention_backward_args *a, tess_stream *s);
tess_status tess_cuda_swiglu_forward(const tess_swiglu_args *a, tess_stream *s);
tess_status tess_cuda_swiglu_backward(const tess_swiglu_backward_args *a, tess_stream *s);
tess_status tess_cuda_add(const tess_add_args *a, tess_stream *s);
tess_status tess_cuda_add_bias(const tess_add_bias_args *a, tess_stream *s);
tess_status tess_cuda_sum_rows(const tess_sum_rows_args *a, tess_stream *s);
tess_status tess_cuda_dropout(const tess_dropout_args *a, tess_stream *s);
tess_status tess_cuda_row_norm(const tess_row_norm_args *a, tess_stream *s);
tess_status tess_cuda_dora_forward(const tess_dora_args *a, tess_stream *s);
tess_status tess_cuda_dora_backward(const tess_dora_backward_args *a, tess_stream *s);
tess_status tess_cuda_cast(const tess_cast_args *a, tess_stream *s);
tess_status tess_cuda_cross_entropy(const tess_cross_entropy_args *a, tess_stream *s);
tess_status tess_cuda_fold(const tess_fold_args *a, tess_stream *s);
tess_status tess_cuda_fold_pieces(const tess_fold_pieces_args *a, tess_stream *s);
tess_status tess_cuda_square_norm(const tess_square_norm_args *a, tess_stream *s);
tess_status tess_cuda_sum(const tess_sum_args *a, tess_stream *s);
tess_status tess_cuda_exact_add(const tess_exact_add_args *a, tess_stream *s);
tess_status tess_cuda_adamw(const tess_adamw_args *a, tess_stream *s);
tess_status tess_cuda_lion(const tess_lion_args *a, tess_stream *s);
tess_status tess_cuda_adamw_8bit(const tess_adamw_8bit_args *a, tess_stream *s);
tess_status tess_cuda_schedule_free(const tess_schedule_free_args *a, tess_stream *s);
tess_status tess_cuda_blend(const tess_blend_args *a, tess_stream *s);
tess_status tess_cuda_prodigy_measure(const tess_prodigy_measure_args *a, tess_stream *s);
tess_status tess_cuda_prodigy_apply(const tess_prodigy_apply_args *a, tess_stream *s);
tess_status tess_cuda_adafactor_most(const tess_adafactor_args *a, tess_stream *s);
tess_status tess_cuda_adafactor_sum(const tess_adafactor_args *a, tess_stream *s);
tess_status tess_cuda_adafactor_factor(const tess_adafactor_args *a, tess_stream *s);
tess_status tess_cuda_adafactor_size(const tess_adafactor_args *a, tess_stream *s);
tess_status tess_cuda_adafactor_apply(const tess_adafactor_args *a, tess_stream *s);
tess_status tess_cuda_muon_momentum(const tess_muon_momentum_args *a, tess_stream *s);
tess_status tess_cuda_muon_apply(const tess_muon_apply_args *a, tess_stream *s);
tess_status tess_cuda_scale(const tess_scale_args *a, tess_stream *s);

tess_status tess_cuda_modulate(const tess_modulate_args *a, tess_stream *s);
tess_status tess_cuda_modulate_backward(const tess_modulate_backward_args *a, tess_stream *s);
tess_status tess_cuda_gate(const tess_gate_args *a, tess_stream *s);
tess_status tess_cuda_gate_backward(const tess_gate_backward_args *a, tess_stream *s);
tess_status tess_cuda_rotate(const tess_rotate_args *a, tess_stream *s);
tess_status tess_cuda_rotate_backward(const tess_rotate_backward_args *a, tess_stream *s);
tess_status tess_cuda_activation(const tess_activation_args *a, tess_stream *s);
tess_status tess_cuda_activation_backward(const tess_activation_backward_args *a, tess_stream *s);
tess_status tess_cuda_square_error(const tess_square_error_args *a, tess_stream *s);

tess_status tess_cuda_nearest_prepare(const tess_nearest_prepare_args *a, tess_stream *s);
tess_status tess_cuda_nearest(const tess_nearest_args *a, tess_stream *s);
tess_status tess_cuda_code_most(const tess_code_most_args *a, tess_stream *s);
tess_status tess_cuda_code_value(const tess_code_value_args *a, tess_stream *s);
tess_status tess_cuda_code_sum(const tess_code_sum_args *a, tess_stream *s);
tess_status tess_cuda_code_mean(const tess_code_mean_args *a, tess_stream *s);
tess_status tess_cuda_code_residual(const tess_code_residual_args *a, tess_stream *s);
tess_status tess_cuda_code_row(const tess_code_row_args *a, tess_stream *s);
tess_status tess_cuda_relu(const tess_relu_args *a, tess_stream *s);
tess_status tess_cuda_mix(const tess_mix_args *a, tess_stream *s);
tess_status tess_cuda_im2col(const tess_im2col_args *a, tess_stream *s);
tess_status tess_cuda_col2im(const tess_col2im_args *a, tess_stream *s);

tess_status tess_cuda_quantizer_enter(const tess_quantizer_enter_args *a, tess_stream *s);
tess_status tess_cuda_quantizer_enter_backward(const tess_quantizer_enter_backward_args *a,
                                               tess_stream *s);
tess_status tess_cuda_quantizer_gather(const tess_quantizer_gather_args *a, tess_stream *s);
tess_status tess_cuda_quantizer_residual(const tess_quantizer_residual_args *a, tess_stream *s);
tess_status tess_cuda_quantizer_row_loss(const tess_quantizer_row_loss_args *a, tess_stream *s);
tess_status tess_cuda_quantizer_backward(const tess_quantizer_backward_args *a, tess_stream *s);
tess_status tess_cuda_quantizer_directed(const tess_quantizer_directed_args *a, tess_stream *s);
tess_status tess_cuda_quantizer_directed_backward(const tess_quantizer_directed_backward_args *a,
                                                  tess_stream *s);
tess_status tess_cuda_quantizer_code_gradient(const tess_quantizer_code_gradient_args *a,
                                              tess_stream *s);
tess_status tess_cuda_quantizer_gram(const tess_quantizer_gram_args *a, tess_stream *s);
tess_status tess_cuda_quantizer_orthogonal(const tess_quantizer_orthogonal_args *a, tess_stream *s);
tess_status tess_cuda_quantizer_mask(const tess_quantizer_mask_args *a, tess_stream *s);
tess_status tess_cuda_quantizer_sample(const tess_quantizer_sample_args *a, tess_stream *s);
tess_status tess_cuda_quantizer_average(const tess_quantizer_average_args *a, tess_stream *s);
tess_status tess_cuda_quantizer_total(const tess_quantizer_total_args *a, tess_stream *s);
tess_status tess_cuda_quantizer_embed(const tess_quantizer_embed_args *a, tess_stream *s);
tess_status tess_cuda_quantizer_expire(const tess_quantizer_expire_args *a, tess_stream *s);
tess_status tess_cuda_quantizer_replace(const tess_quantizer_replace_args *a, tess_stream *s);
tess_status tess_cuda_quantizer_layer_norm(const tess_quantizer_layer_norm_args *a, tess_stream *s);
tess_status tess_cuda_quantizer_level(const tess_quantizer_level_args *a, tess_stream *s);
tess_status tess_cuda_quantizer_level_decode(const tess_quantizer_level_decode_args *a,
                                             tess_stream *s);
tess_status tess_cuda_quantizer_level_backward(const tess_quantizer_level_backward_args *a,
                                               tess_stream *s);
tess_status tess_cuda_quantizer_soft_clamp(const tess_quantizer_soft_clamp_args *a, tess_stream *s);
tess_status
tess_cuda_quantizer_soft_clamp_backward(const tess_quantizer_soft_clamp_backward_args *a,
                                        tess_stream *s);
tess_status tess_cuda_quantizer_latent(const tess_quantizer_latent_args *a, tess_stream *s);
tess_status tess_cuda_quantizer_latent_decode(const tess_quantizer_latent_decode_args *a,
                                              tess_stream *s);
tess_status tess_cuda_quantizer_latent_gradient(const tess_quantizer_latent_gradient_args *a,
                                                tess_stream *s);
tess_status tess_cuda_quantizer_sign(const tess_quantizer_sign_args *a, tess_stream *s);
tess_status tess_cuda_quantizer_sign_decode(const tess_quantizer_sign_decode_args *a,
                                            tess_stream *s);
tess_status tess_cuda_quantizer_sign_loss(const tess_quantizer_sign_loss_args *a, tess_stream *s);
tess_status tess_cuda_quantizer_sign_backward(const tess_quantizer_sign_backward_args *a,
                                              tess_stream *s);
tess_status tess_cuda_quantizer_pbar(const tess_quantizer_pbar_args *a, tess_stream *s);
tess_status tess_cuda_quantizer_batch_entropy(const tess_quantizer_batch_entropy_args *a,
                                              tess_stream *s);
tess_status
tess_cuda_quantizer_batch_entropy_backward(const tess_quantizer_batch_entropy_backward_args *a,
                                           tess_stream *s);

tess_status tess_cuda_gemm_prepare(const tess_gemm_args *a, tess_stream *s);
size_t tess_cuda_choices_nbytes(tess_stream *s);
tess_status tess_cuda_choices_export(tess_stream *s, void *data);
tess_status tess_cuda_choices_import(tess_stream *s, const void *data, size_t nbytes);

TESS_END_DECLS
