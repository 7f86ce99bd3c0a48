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
    X(prodigy_apply, tess_prodigy_apply_args)

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

#define EMU_ALL_LIST(X)                                                                            \
    EMU_KERNEL_LIST(X)                                                                             \
    EMU_MODULATED_LIST(X)

typedef enum emu_kernel {
#define X(name, args) EMU_KERNEL_##name,
    EMU_ALL_LIST(X)
#undef X
        EMU_KERNEL_NUMEL
} emu_kernel;

/** Arguments of any kernel, with room for the one thing that arguments point to beside memory. */
typedef struct emu_kernel_call {
    emu_kernel kernel;
    union {
#define X(name, args) args name;
        EMU_ALL_LIST(X)
#undef X
    } args;
    tess_matrix bias; /* of a gemm */
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
