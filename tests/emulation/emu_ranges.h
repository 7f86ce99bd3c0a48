/** What each kernel reads and writes, byte for byte; see emu_ranges.c. */
#pragma once

#include "kernels/kernels.h"

/* X(entry of the table, type of its arguments): every kernel that is enqueued, those of
 * tess_kernels.modulated in a list of their own. */
#define EMU_KERNEL_LIST(X)                                                                         \
    X(gemm, tess_gemm_args)                                                                        \
    X(quantize, tess_quantize_args)                                                                \
    X(dequantize, tess_dequantize_args)                                                            \
    X(embedding_forward, tess_embedding_args)                                                      \
    X(embedding_backward, tess_embedding_backward_args)                                            \
    X(rmsnorm_forward, tess_rmsnorm_args)                                                          \
    X(rmsnorm_backward, tess_rmsnorm_backward_args)                                                \
    X(rope, tess_rope_args)                                                                        \
    X(attention_forward, tess_attention_args)                                                      \
    X(attention_backward, tess_attention_backward_args)                                            \
    X(swiglu_forward, tess_swiglu_args)                                                            \
    X(swiglu_backward, tess_swiglu_backward_args)                                                  \
    X(add, tess_add_args)                                                                          \
    X(add_bias, tess_add_bias_args)                                                                \
    X(sum_rows, tess_sum_rows_args)                                                                \
    X(dropout, tess_dropout_args)                                                                  \
    X(row_norm, tess_row_norm_args)                                                                \
    X(dora_forward, tess_dora_args)                                                                \
    X(dora_backward, tess_dora_backward_args)                                                      \
    X(cast, tess_cast_args)                                                                        \
    X(cross_entropy, tess_cross_entropy_args)                                                      \
    X(fold, tess_fold_args)                                                                        \
    X(fold_pieces, tess_fold_pieces_args)                                                          \
    X(square_norm, tess_square_norm_args)                                                          \
    X(sum, tess_sum_args)                                                                          \
    X(exact_add, tess_exact_add_args)                                                              \
    X(adamw, tess_adamw_args)                                                                      \
    X(lion, tess_lion_args)                                                                        \
    X(adamw_8bit, tess_adamw_8bit_args)                                                            \
    X(schedule_free, tess_schedule_free_args)                                                      \
    X(blend, tess_blend_args)                                                                      \
    X(prodigy_measure, tess_prodigy_measure_args)                                                  \
    X(prodigy_apply, tess_prodigy_apply_args)                                                      \
    X(adafactor_most, tess_adafactor_args)                                                         \
    X(adafactor_sum, tess_adafactor_args)                                                          \
    X(adafactor_factor, tess_adafactor_args)                                                       \
    X(adafactor_size, tess_adafactor_args)                                                         \
    X(adafactor_apply, tess_adafactor_args)                                                        \
    X(muon_momentum, tess_muon_momentum_args)                                                      \
    X(muon_apply, tess_muon_apply_args)                                                            \
    X(scale, tess_scale_args)

#define EMU_MODULATED_LIST(X)                                                                      \
    X(modulate, tess_modulate_args)                                                                \
    X(modulate_backward, tess_modulate_backward_args)                                              \
    X(gate, tess_gate_args)                                                                        \
    X(gate_backward, tess_gate_backward_args)                                                      \
    X(rotate, tess_rotate_args)                                                                    \
    X(rotate_backward, tess_rotate_backward_args)                                                  \
    X(activation, tess_activation_args)                                                            \
    X(activation_backward, tess_activation_backward_args)                                          \
    X(square_error, tess_square_error_args)

/* Codebooks and what models around them need: entries of tess_kernels that a backend may lack. */
#define EMU_CODE_LIST(X)                                                                           \
    X(nearest_prepare, tess_nearest_prepare_args)                                                  \
    X(nearest, tess_nearest_args)                                                                  \
    X(code_most, tess_code_most_args)                                                              \
    X(code_value, tess_code_value_args)                                                            \
    X(code_sum, tess_code_sum_args)                                                                \
    X(code_mean, tess_code_mean_args)                                                              \
    X(code_residual, tess_code_residual_args)                                                      \
    X(code_row, tess_code_row_args)                                                                \
    X(relu, tess_relu_args)                                                                        \
    X(mix, tess_mix_args)                                                                          \
    X(im2col, tess_im2col_args)                                                                    \
    X(col2im, tess_col2im_args)

/* Entries of tess_kernels.quantizers. */
#define EMU_QUANTIZER_LIST(X)                                                                      \
    X(enter, tess_quantizer_enter_args)                                                            \
    X(enter_backward, tess_quantizer_enter_backward_args)                                          \
    X(gather, tess_quantizer_gather_args)                                                          \
    X(residual, tess_quantizer_residual_args)                                                      \
    X(row_loss, tess_quantizer_row_loss_args)                                                      \
    X(backward, tess_quantizer_backward_args)                                                      \
    X(directed, tess_quantizer_directed_args)                                                      \
    X(directed_backward, tess_quantizer_directed_backward_args)                                    \
    X(code_gradient, tess_quantizer_code_gradient_args)                                            \
    X(gram, tess_quantizer_gram_args)                                                              \
    X(orthogonal, tess_quantizer_orthogonal_args)                                                  \
    X(mask, tess_quantizer_mask_args)                                                              \
    X(sample, tess_quantizer_sample_args)                                                          \
    X(average, tess_quantizer_average_args)                                                        \
    X(total, tess_quantizer_total_args)                                                            \
    X(embed, tess_quantizer_embed_args)                                                            \
    X(expire, tess_quantizer_expire_args)                                                          \
    X(replace, tess_quantizer_replace_args)                                                        \
    X(layer_norm, tess_quantizer_layer_norm_args)                                                  \
    X(level, tess_quantizer_level_args)                                                            \
    X(level_decode, tess_quantizer_level_decode_args)                                              \
    X(level_backward, tess_quantizer_level_backward_args)                                          \
    X(soft_clamp, tess_quantizer_soft_clamp_args)                                                  \
    X(soft_clamp_backward, tess_quantizer_soft_clamp_backward_args)                                \
    X(latent, tess_quantizer_latent_args)                                                          \
    X(latent_decode, tess_quantizer_latent_decode_args)                                            \
    X(latent_gradient, tess_quantizer_latent_gradient_args)                                        \
    X(sign, tess_quantizer_sign_args)                                                              \
    X(sign_decode, tess_quantizer_sign_decode_args)                                                \
    X(sign_loss, tess_quantizer_sign_loss_args)                                                    \
    X(sign_backward, tess_quantizer_sign_backward_args)                                            \
    X(pbar, tess_quantizer_pbar_args)                                                              \
    X(batch_entropy, tess_quantizer_batch_entropy_args)                                            \
    X(batch_entropy_backward, tess_quantizer_batch_entropy_backward_args)

#define EMU_TABLE_LIST(X)                                                                          \
    EMU_KERNEL_LIST(X)                                                                             \
    EMU_MODULATED_LIST(X)                                                                          \
    EMU_CODE_LIST(X)

typedef enum emu_kernel {
#define X(name, args) EMU_KERNEL_##name,
    EMU_TABLE_LIST(X)
#undef X
#define X(name, args) EMU_KERNEL_quantizer_##name,
        EMU_QUANTIZER_LIST(X)
#undef X
            EMU_KERNEL_NUMEL
} emu_kernel;

/** Arguments of any kernel, with room for what arguments point to in memory of the host. */
typedef struct emu_kernel_call {
    emu_kernel kernel;
    union {
#define X(name, args) args name;
        EMU_TABLE_LIST(X)
#undef X
#define X(name, args) args quantizer_##name;
        EMU_QUANTIZER_LIST(X)
#undef X
    } args;
    tess_matrix bias;                  /* of a gemm */
    int32_t level[TESS_LEVEL_DIM_MAX]; /* of a quantizer of levels */
    float scale[TESS_LEVEL_DIM_MAX];
} emu_kernel_call;

typedef enum emu_access { EMU_READ = 1, EMU_WRITE = 2, EMU_UPDATE = 3 } emu_access;

/** From `*pointer_at` on, `group_numel` times `row_numel` rows of `row_nbytes`; rows and groups of
 * them are as far apart as the strides say. */
typedef struct emu_operand {
    void **pointer_at; /* the field that holds the address */
    int64_t group_numel, row_numel;
    size_t row_nbytes, stride_nbytes, group_stride_nbytes;
    emu_access access;
} emu_operand;

/** Row i of all of them. */
static inline char *emu_operand_row(const emu_operand *o, int64_t i)
{
    return (char *)*o->pointer_at + (size_t)(i / o->row_numel) * o->group_stride_nbytes +
           (size_t)(i % o->row_numel) * o->stride_nbytes;
}

typedef struct emu_visitor {
    void (*operand)(void *arg, const emu_operand *o);
    void *arg;
    bool makes_host; /* views of the call become views of host memory */
} emu_visitor;

/** Show every operand of a call to the visitor, which may move its pointer. */
void emu_visit(emu_kernel_call *call, const emu_visitor *v);
const char *emu_kernel_name(emu_kernel kernel);
/** What the arguments of a copied call point to in memory of the host becomes the copy's own. */
void emu_own(emu_kernel_call *call);
