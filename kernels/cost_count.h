/**
 * The cost of one call of a kernel, from its arguments: what stages count while they are planned.
 *
 * [Note: an op's closed form] A function here and its line in TESS_COST_OF. Arguments of planned
 * calls have extents and no memory. Ops that are not listed count as launches without a closed form
 * (tess_cost.unlisted_numel), which predictions report.
 */
#pragma once

#include "kernels/cost.h"
#include "kernels/kernels.h"

TESS_BEGIN_DECLS

void tess_count_gemm(tess_cost *sum, const tess_gemm_args *a);
/** Over whole segments; else causal over whole sequences of `longest_numel`: boundaries of
 * documents are data. */
void tess_count_attention(tess_cost *sum, const tess_attention_args *a);
void tess_count_attention_backward(tess_cost *sum, const tess_attention_backward_args *a);
void tess_count_rmsnorm(tess_cost *sum, const tess_rmsnorm_args *a);
void tess_count_rmsnorm_backward(tess_cost *sum, const tess_rmsnorm_backward_args *a);
void tess_count_rope(tess_cost *sum, const tess_rope_args *a);
void tess_count_swiglu(tess_cost *sum, const tess_swiglu_args *a);
void tess_count_swiglu_backward(tess_cost *sum, const tess_swiglu_backward_args *a);
void tess_count_cross_entropy(tess_cost *sum, const tess_cross_entropy_args *a);
void tess_count_embedding(tess_cost *sum, const tess_embedding_args *a);
void tess_count_embedding_backward(tess_cost *sum, const tess_embedding_backward_args *a);
void tess_count_add(tess_cost *sum, const tess_add_args *a);
void tess_count_sum_rows(tess_cost *sum, const tess_sum_rows_args *a);
void tess_count_dropout(tess_cost *sum, const tess_dropout_args *a);
void tess_count_cast(tess_cost *sum, const tess_cast_args *a);
void tess_count_relu(tess_cost *sum, const tess_relu_args *a);
void tess_count_dora(tess_cost *sum, const tess_dora_args *a);
void tess_count_dora_backward(tess_cost *sum, const tess_dora_backward_args *a);
void tess_count_row_norm(tess_cost *sum, const tess_row_norm_args *a);
void tess_count_mix(tess_cost *sum, const tess_mix_args *a);
void tess_count_sum(tess_cost *sum, const tess_sum_args *a);
void tess_count_nearest(tess_cost *sum, const tess_nearest_args *a);
void tess_count_nearest_prepare(tess_cost *sum, const tess_nearest_prepare_args *a);
void tess_count_code_row(tess_cost *sum, const tess_code_row_args *a);
void tess_count_code_sum(tess_cost *sum, const tess_code_sum_args *a);
void tess_count_code_mean(tess_cost *sum, const tess_code_mean_args *a);
void tess_count_code_residual(tess_cost *sum, const tess_code_residual_args *a);
/* Rows of a quantizer: every operand that the op may have, as f32. */
void tess_count_enter(tess_cost *sum, const tess_quantizer_enter_args *a);
void tess_count_enter_backward(tess_cost *sum, const tess_quantizer_enter_backward_args *a);
void tess_count_gather(tess_cost *sum, const tess_quantizer_gather_args *a);
void tess_count_residual(tess_cost *sum, const tess_quantizer_residual_args *a);
void tess_count_row_loss(tess_cost *sum, const tess_quantizer_row_loss_args *a);
void tess_count_backward(tess_cost *sum, const tess_quantizer_backward_args *a);
void tess_count_code_gradient(tess_cost *sum, const tess_quantizer_code_gradient_args *a);
/* Modulated transformers. */
void tess_count_modulate(tess_cost *sum, const tess_modulate_args *a);
void tess_count_modulate_backward(tess_cost *sum, const tess_modulate_backward_args *a);
void tess_count_gate(tess_cost *sum, const tess_gate_args *a);
void tess_count_gate_backward(tess_cost *sum, const tess_gate_backward_args *a);
void tess_count_rotate(tess_cost *sum, const tess_rotate_args *a);
void tess_count_rotate_backward(tess_cost *sum, const tess_rotate_backward_args *a);
void tess_count_activation(tess_cost *sum, const tess_activation_args *a);
void tess_count_activation_backward(tess_cost *sum, const tess_activation_backward_args *a);
void tess_count_square_error(tess_cost *sum, const tess_square_error_args *a);
/* An update of the optimizer's state. */
void tess_count_adamw(tess_cost *sum, const tess_adamw_args *a);
void tess_count_unlisted(tess_cost *sum, const void *a);

/* What a step does beside its stages. */
void tess_count_fold(tess_cost *sum, double numel); /* f32: dst = a + b */
/** One call over `piece_numel` pieces that reads and writes so many levels. */
void tess_count_fold_pieces(tess_cost *sum, double numel, double piece_numel, double level_numel);
void tess_count_copy(tess_cost *sum, double nbytes);   /* read and written */
void tess_count_squares(tess_cost *sum, double numel); /* f32 */

/** `sum` gains what was added to it since `before` so many times more. Local. */
void tess_cost_repeat(tess_cost *sum, const tess_cost *before, double times);

#define TESS_COST_CASE(type, op) const type * : tess_count_##op, type * : tess_count_##op

/** The counting function of a kernel's arguments, by their type. */
#define TESS_COST_OF(args)                                                                         \
    _Generic((args), TESS_COST_CASE(tess_gemm_args, gemm),                                         \
             TESS_COST_CASE(tess_attention_args, attention),                                       \
             TESS_COST_CASE(tess_attention_backward_args, attention_backward),                     \
             TESS_COST_CASE(tess_rmsnorm_args, rmsnorm),                                           \
             TESS_COST_CASE(tess_rmsnorm_backward_args, rmsnorm_backward),                         \
             TESS_COST_CASE(tess_rope_args, rope), TESS_COST_CASE(tess_swiglu_args, swiglu),       \
             TESS_COST_CASE(tess_swiglu_backward_args, swiglu_backward),                           \
             TESS_COST_CASE(tess_cross_entropy_args, cross_entropy),                               \
             TESS_COST_CASE(tess_embedding_args, embedding),                                       \
             TESS_COST_CASE(tess_embedding_backward_args, embedding_backward),                     \
             TESS_COST_CASE(tess_add_args, add), TESS_COST_CASE(tess_sum_rows_args, sum_rows),     \
             TESS_COST_CASE(tess_dropout_args, dropout), TESS_COST_CASE(tess_cast_args, cast),     \
             TESS_COST_CASE(tess_relu_args, relu), TESS_COST_CASE(tess_dora_args, dora),           \
             TESS_COST_CASE(tess_dora_backward_args, dora_backward),                               \
             TESS_COST_CASE(tess_row_norm_args, row_norm), TESS_COST_CASE(tess_mix_args, mix),     \
             TESS_COST_CASE(tess_sum_args, sum), TESS_COST_CASE(tess_nearest_args, nearest),       \
             TESS_COST_CASE(tess_nearest_prepare_args, nearest_prepare),                           \
             TESS_COST_CASE(tess_code_row_args, code_row),                                         \
             TESS_COST_CASE(tess_code_sum_args, code_sum),                                         \
             TESS_COST_CASE(tess_code_mean_args, code_mean),                                       \
             TESS_COST_CASE(tess_code_residual_args, code_residual),                               \
             TESS_COST_CASE(tess_quantizer_enter_args, enter),                                     \
             TESS_COST_CASE(tess_quantizer_enter_backward_args, enter_backward),                   \
             TESS_COST_CASE(tess_quantizer_gather_args, gather),                                   \
             TESS_COST_CASE(tess_quantizer_residual_args, residual),                               \
             TESS_COST_CASE(tess_quantizer_row_loss_args, row_loss),                               \
             TESS_COST_CASE(tess_quantizer_backward_args, backward),                               \
             TESS_COST_CASE(tess_quantizer_code_gradient_args, code_gradient),                     \
             TESS_COST_CASE(tess_modulate_args, modulate),                                         \
             TESS_COST_CASE(tess_modulate_backward_args, modulate_backward),                       \
             TESS_COST_CASE(tess_gate_args, gate),                                                 \
             TESS_COST_CASE(tess_gate_backward_args, gate_backward),                               \
             TESS_COST_CASE(tess_rotate_args, rotate),                                             \
             TESS_COST_CASE(tess_rotate_backward_args, rotate_backward),                           \
             TESS_COST_CASE(tess_activation_args, activation),                                     \
             TESS_COST_CASE(tess_activation_backward_args, activation_backward),                   \
             TESS_COST_CASE(tess_square_error_args, square_error),                                 \
             TESS_COST_CASE(tess_adamw_args, adamw), default                                       \
             : tess_count_unlisted)

TESS_END_DECLS
