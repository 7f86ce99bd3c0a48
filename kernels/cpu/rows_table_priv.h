/** The table of one instruction path: TESS_ROWS_TABLE names it before this file is included. */
#pragma once

#include "kernels/cpu/rows_activation_body_priv.h"
#include "kernels/cpu/rows_codebook_body_priv.h"
#include "kernels/cpu/rows_dora_body_priv.h"
#include "kernels/cpu/rows_elementwise_body_priv.h"
#include "kernels/cpu/rows_loss_body_priv.h"
#include "kernels/cpu/rows_modulate_body_priv.h"
#include "kernels/cpu/rows_norm_body_priv.h"
#include "kernels/cpu/rows_quantizer_body_priv.h"
#include "kernels/cpu/rows_rotate_body_priv.h"
#include "kernels/cpu/rows_update_body_priv.h"

const tess_cpu_rows TESS_ROWS_TABLE = {
    .rmsnorm_forward = rmsnorm_forward,
    .rmsnorm_backward = rmsnorm_backward,
    .rmsnorm_backward_w = rmsnorm_backward_w,
    .rope = rope,
    .swiglu_forward = swiglu_forward,
    .swiglu_backward = swiglu_backward,
    .relu = relu,
    .add = add,
    .add_bias = add_bias,
    .sum_rows = sum_rows,
    .dropout = dropout,
    .row_norm = row_norm,
    .dora_forward = dora_forward,
    .dora_backward = dora_backward,
    .cast = cast,
    .cross_entropy = cross_entropy,
    .embedding_backward = embedding_backward,
    .fold = fold,
    .square_blocks = square_blocks,
    .adamw = adamw,
    .lion = lion,
    .adamw_8bit = adamw_8bit,
    .schedule_free = schedule_free,
    .blend = blend,
    .prodigy_measure = prodigy_measure,
    .prodigy_apply = prodigy_apply,
    .code_sum = code_sum,
    .code_residual = code_residual,
    .quantizer_enter = quantizer_enter,
    .quantizer_enter_backward = quantizer_enter_backward,
    .quantizer_gather = quantizer_gather,
    .quantizer_residual = quantizer_residual,
    .quantizer_row_loss = quantizer_row_loss,
    .quantizer_backward = quantizer_backward,
    .quantizer_directed = quantizer_directed,
    .quantizer_directed_backward = quantizer_directed_backward,
    .quantizer_code_gradient = quantizer_code_gradient,
    .quantizer_layer_norm = quantizer_layer_norm,
    .modulate = modulate,
    .modulate_backward = modulate_backward,
    .modulate_factors = modulate_factors,
    .gate = gate,
    .gate_backward = gate_backward,
    .gate_factor = gate_factor,
    .rotate = rotate,
    .rotate_backward = rotate_backward,
    .rotate_backward_w = rotate_backward_w,
    .activation = activation,
    .activation_backward = activation_backward,
    .square_error = square_error,
    .fixed_add = fixed_add,
    .axpy_f64 = axpy_f64,
    .dot_f64 = dot_f64_array,
    .exp = exp_array,
    .exp_below = exp_below_array,
};
