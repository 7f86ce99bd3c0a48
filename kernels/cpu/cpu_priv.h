/**
 * Entry points of the CPU backend: one function per entry of tess_kernels, named tess_cpu_ + entry.
 * table.c puts them in tess_kernels_cpu; nothing outside this folder calls them by name.
 */
#pragma once

#include "kernels/kernels.h"

TESS_BEGIN_DECLS

/**
 * Instruction path of this process: the selected one, or tess_cpu_path_best() before any selection.
 * Local. Ops with one source for all paths (plain C compiled for several) switch on it.
 */
tess_cpu_path tess_cpu_path_current(void);
/** Highest path whose instructions this CPU has; tess_cpu_path_best() may prefer a lower one.
 * Local. */
tess_cpu_path tess_cpu_path_highest(void);
/** Forget the selection so that a test can visit every path in one process. Local, tests only. */
void tess_cpu_path_reset(void);

tess_status tess_cpu_gemm(const tess_gemm_args *a, tess_stream *s);
size_t tess_cpu_gemm_work_nbytes(const tess_gemm_args *a, int thread_numel);
tess_status tess_cpu_quantize(const tess_quantize_args *a, tess_stream *s);
tess_status tess_cpu_dequantize(const tess_dequantize_args *a, tess_stream *s);

tess_status tess_cpu_embedding_forward(const tess_embedding_args *a, tess_stream *s);
tess_status tess_cpu_embedding_backward(const tess_embedding_backward_args *a, tess_stream *s);
tess_status tess_cpu_rmsnorm_forward(const tess_rmsnorm_args *a, tess_stream *s);
tess_status tess_cpu_rmsnorm_backward(const tess_rmsnorm_backward_args *a, tess_stream *s);
tess_status tess_cpu_rope(const tess_rope_args *a, tess_stream *s);
tess_status tess_cpu_attention_forward(const tess_attention_args *a, tess_stream *s);
tess_status tess_cpu_attention_backward(const tess_attention_backward_args *a, tess_stream *s);
size_t tess_cpu_attention_work_nbytes(const tess_attention_shape *shape, int thread_numel);
tess_status tess_cpu_swiglu_forward(const tess_swiglu_args *a, tess_stream *s);
tess_status tess_cpu_swiglu_backward(const tess_swiglu_backward_args *a, tess_stream *s);
tess_status tess_cpu_relu(const tess_relu_args *a, tess_stream *s);
tess_status tess_cpu_add(const tess_add_args *a, tess_stream *s);
tess_status tess_cpu_add_bias(const tess_add_bias_args *a, tess_stream *s);
tess_status tess_cpu_sum_rows(const tess_sum_rows_args *a, tess_stream *s);
tess_status tess_cpu_dropout(const tess_dropout_args *a, tess_stream *s);
tess_status tess_cpu_row_norm(const tess_row_norm_args *a, tess_stream *s);
tess_status tess_cpu_dora_forward(const tess_dora_args *a, tess_stream *s);
tess_status tess_cpu_dora_backward(const tess_dora_backward_args *a, tess_stream *s);
tess_status tess_cpu_cast(const tess_cast_args *a, tess_stream *s);
tess_status tess_cpu_cross_entropy(const tess_cross_entropy_args *a, tess_stream *s);
tess_status tess_cpu_fold(const tess_fold_args *a, tess_stream *s);
tess_status tess_cpu_fold_pieces(const tess_fold_pieces_args *a, tess_stream *s);
tess_status tess_cpu_square_norm(const tess_square_norm_args *a, tess_stream *s);
tess_status tess_cpu_sum(const tess_sum_args *a, tess_stream *s);
tess_status tess_cpu_mix(const tess_mix_args *a, tess_stream *s);
tess_status tess_cpu_exact_add(const tess_exact_add_args *a, tess_stream *s);
tess_status tess_cpu_adamw(const tess_adamw_args *a, tess_stream *s);
tess_status tess_cpu_lion(const tess_lion_args *a, tess_stream *s);
tess_status tess_cpu_adamw_8bit(const tess_adamw_8bit_args *a, tess_stream *s);
tess_status tess_cpu_schedule_free(const tess_schedule_free_args *a, tess_stream *s);
tess_status tess_cpu_blend(const tess_blend_args *a, tess_stream *s);
tess_status tess_cpu_prodigy_measure(const tess_prodigy_measure_args *a, tess_stream *s);
tess_status tess_cpu_prodigy_apply(const tess_prodigy_apply_args *a, tess_stream *s);
tess_status tess_cpu_adafactor_most(const tess_adafactor_args *a, tess_stream *s);
tess_status tess_cpu_adafactor_sum(const tess_adafactor_args *a, tess_stream *s);
tess_status tess_cpu_adafactor_factor(const tess_adafactor_args *a, tess_stream *s);
tess_status tess_cpu_adafactor_size(const tess_adafactor_args *a, tess_stream *s);
tess_status tess_cpu_adafactor_apply(const tess_adafactor_args *a, tess_stream *s);
tess_status tess_cpu_muon_momentum(const tess_muon_momentum_args *a, tess_stream *s);
tess_status tess_cpu_muon_apply(const tess_muon_apply_args *a, tess_stream *s);
tess_status tess_cpu_scale(const tess_scale_args *a, tess_stream *s);
size_t tess_cpu_nearest_pack_nbytes(int64_t code_numel, int64_t dim);
size_t tess_cpu_nearest_work_nbytes(int64_t dim, int best_numel, int thread_numel);
tess_status tess_cpu_nearest_prepare(const tess_nearest_prepare_args *a, tess_stream *s);
tess_status tess_cpu_nearest(const tess_nearest_args *a, tess_stream *s);
tess_status tess_cpu_code_most(const tess_code_most_args *a, tess_stream *s);
tess_status tess_cpu_code_value(const tess_code_value_args *a, tess_stream *s);
tess_status tess_cpu_code_sum(const tess_code_sum_args *a, tess_stream *s);
tess_status tess_cpu_code_mean(const tess_code_mean_args *a, tess_stream *s);
tess_status tess_cpu_code_residual(const tess_code_residual_args *a, tess_stream *s);
tess_status tess_cpu_code_row(const tess_code_row_args *a, tess_stream *s);

tess_status tess_cpu_im2col(const tess_im2col_args *a, tess_stream *s);
tess_status tess_cpu_col2im(const tess_col2im_args *a, tess_stream *s);
tess_status tess_cpu_modulate(const tess_modulate_args *a, tess_stream *s);
tess_status tess_cpu_modulate_backward(const tess_modulate_backward_args *a, tess_stream *s);
tess_status tess_cpu_gate(const tess_gate_args *a, tess_stream *s);
tess_status tess_cpu_gate_backward(const tess_gate_backward_args *a, tess_stream *s);
tess_status tess_cpu_rotate(const tess_rotate_args *a, tess_stream *s);
tess_status tess_cpu_rotate_backward(const tess_rotate_backward_args *a, tess_stream *s);
tess_status tess_cpu_activation(const tess_activation_args *a, tess_stream *s);
tess_status tess_cpu_activation_backward(const tess_activation_backward_args *a, tess_stream *s);
tess_status tess_cpu_square_error(const tess_square_error_args *a, tess_stream *s);

tess_status tess_cpu_quantizer_enter(const tess_quantizer_enter_args *a, tess_stream *s);
tess_status tess_cpu_quantizer_enter_backward(const tess_quantizer_enter_backward_args *a,
                                              tess_stream *s);
tess_status tess_cpu_quantizer_gather(const tess_quantizer_gather_args *a, tess_stream *s);
tess_status tess_cpu_quantizer_residual(const tess_quantizer_residual_args *a, tess_stream *s);
tess_status tess_cpu_quantizer_row_loss(const tess_quantizer_row_loss_args *a, tess_stream *s);
tess_status tess_cpu_quantizer_backward(const tess_quantizer_backward_args *a, tess_stream *s);
tess_status tess_cpu_quantizer_directed(const tess_quantizer_directed_args *a, tess_stream *s);
tess_status tess_cpu_quantizer_directed_backward(const tess_quantizer_directed_backward_args *a,
                                                 tess_stream *s);
tess_status tess_cpu_quantizer_code_gradient(const tess_quantizer_code_gradient_args *a,
                                             tess_stream *s);
tess_status tess_cpu_quantizer_gram(const tess_quantizer_gram_args *a, tess_stream *s);
tess_status tess_cpu_quantizer_orthogonal(const tess_quantizer_orthogonal_args *a, tess_stream *s);
tess_status tess_cpu_quantizer_mask(const tess_quantizer_mask_args *a, tess_stream *s);
tess_status tess_cpu_quantizer_sample(const tess_quantizer_sample_args *a, tess_stream *s);
tess_status tess_cpu_quantizer_average(const tess_quantizer_average_args *a, tess_stream *s);
tess_status tess_cpu_quantizer_total(const tess_quantizer_total_args *a, tess_stream *s);
tess_status tess_cpu_quantizer_embed(const tess_quantizer_embed_args *a, tess_stream *s);
tess_status tess_cpu_quantizer_expire(const tess_quantizer_expire_args *a, tess_stream *s);
tess_status tess_cpu_quantizer_replace(const tess_quantizer_replace_args *a, tess_stream *s);
tess_status tess_cpu_quantizer_layer_norm(const tess_quantizer_layer_norm_args *a, tess_stream *s);
tess_status tess_cpu_quantizer_level(const tess_quantizer_level_args *a, tess_stream *s);
tess_status tess_cpu_quantizer_level_decode(const tess_quantizer_level_decode_args *a,
                                            tess_stream *s);
tess_status tess_cpu_quantizer_level_backward(const tess_quantizer_level_backward_args *a,
                                              tess_stream *s);
tess_status tess_cpu_quantizer_soft_clamp(const tess_quantizer_soft_clamp_args *a, tess_stream *s);
tess_status tess_cpu_quantizer_soft_clamp_backward(const tess_quantizer_soft_clamp_backward_args *a,
                                                   tess_stream *s);
tess_status tess_cpu_quantizer_latent(const tess_quantizer_latent_args *a, tess_stream *s);
tess_status tess_cpu_quantizer_latent_decode(const tess_quantizer_latent_decode_args *a,
                                             tess_stream *s);
tess_status tess_cpu_quantizer_latent_gradient(const tess_quantizer_latent_gradient_args *a,
                                               tess_stream *s);
tess_status tess_cpu_quantizer_sign(const tess_quantizer_sign_args *a, tess_stream *s);
tess_status tess_cpu_quantizer_sign_decode(const tess_quantizer_sign_decode_args *a,
                                           tess_stream *s);
tess_status tess_cpu_quantizer_sign_loss(const tess_quantizer_sign_loss_args *a, tess_stream *s);
tess_status tess_cpu_quantizer_sign_backward(const tess_quantizer_sign_backward_args *a,
                                             tess_stream *s);
tess_status tess_cpu_quantizer_pbar(const tess_quantizer_pbar_args *a, tess_stream *s);
tess_status tess_cpu_quantizer_batch_entropy(const tess_quantizer_batch_entropy_args *a,
                                             tess_stream *s);
tess_status
tess_cpu_quantizer_batch_entropy_backward(const tess_quantizer_batch_entropy_backward_args *a,
                                          tess_stream *s);

TESS_END_DECLS
