/**
 * Entry points of the element-wise, row-wise and attention twins, and their shared pieces.
 *
 * Each op has one source of its inner loops (`*_body_priv.h`), compiled once per instruction path;
 * every loop fixes its order of operations, so that the paths give the same bits. Only the products
 * inside attention differ by path (fused multiply-add, bf16 dot products).
 */
#pragma once

#include "kernels/cpu/cpu_priv.h"
#include "kernels/math_priv.h"

TESS_BEGIN_DECLS

/** Inner loops over a range, one table per instruction path. Ranges are rows, tokens, elements or
 * columns as named. */
typedef struct tess_cpu_rows {
    void (*rmsnorm_forward)(const tess_rmsnorm_args *a, int64_t row_lo, int64_t row_hi);
    void (*rmsnorm_backward)(const tess_rmsnorm_backward_args *a, int64_t row_lo, int64_t row_hi);
    void (*rmsnorm_backward_w)(const tess_rmsnorm_backward_args *a, int chunk_idx);
    void (*rope)(const tess_rope_args *a, int64_t token_lo, int64_t token_hi);
    void (*swiglu_forward)(const tess_swiglu_args *a, int64_t lo, int64_t hi);
    void (*swiglu_backward)(const tess_swiglu_backward_args *a, int64_t lo, int64_t hi);
    void (*relu)(const tess_relu_args *a, int64_t lo, int64_t hi);
    void (*add)(const tess_add_args *a, int64_t lo, int64_t hi);
    void (*add_bias)(const tess_add_bias_args *a, int64_t row_lo, int64_t row_hi);
    void (*sum_rows)(const tess_sum_rows_args *a, int chunk_idx);
    void (*dropout)(const tess_dropout_args *a, int64_t lo, int64_t hi);
    void (*row_norm)(const tess_row_norm_args *a, int64_t row_lo, int64_t row_hi);
    void (*dora_forward)(const tess_dora_args *a, int64_t row_lo, int64_t row_hi);
    void (*dora_backward)(const tess_dora_backward_args *a, int chunk_idx);
    void (*cast)(const tess_cast_args *a, int64_t lo, int64_t hi);
    void (*cross_entropy)(const tess_cross_entropy_args *a, int64_t row_lo, int64_t row_hi);
    void (*embedding_backward)(const tess_embedding_backward_args *a, int64_t col_lo,
                               int64_t col_hi);
    void (*fold)(const tess_fold_args *a, int64_t lo, int64_t hi);
    /* out[block] = sum of squares of its 256 elements, NaN or infinite where an element is. */
    void (*square_blocks)(const float *x, int64_t numel, double *out);
    void (*adamw)(const tess_adamw_args *a, const tess_adamw_scalars *k, int64_t lo, int64_t hi);
    void (*lion)(const tess_lion_args *a, const tess_lion_scalars *k, int64_t lo, int64_t hi);
    void (*adamw_8bit)(const tess_adamw_8bit_args *a, const tess_adamw_8bit_scalars *k, int64_t lo,
                       int64_t hi);
    void (*schedule_free)(const tess_schedule_free_args *a, const tess_schedule_free_scalars *k,
                          int64_t lo, int64_t hi);
    void (*blend)(const tess_blend_args *a, int64_t lo, int64_t hi);
    void (*prodigy_measure)(const tess_prodigy_measure_args *a,
                            const tess_prodigy_measure_scalars *k, double (*sums)[2], int64_t lo,
                            int64_t hi);
    void (*prodigy_apply)(const tess_prodigy_apply_args *a, const tess_prodigy_apply_scalars *k,
                          int64_t lo, int64_t hi);
    void (*code_sum)(const tess_code_sum_args *a, int64_t col_lo, int64_t col_hi);
    void (*code_residual)(const tess_code_residual_args *a, int64_t lo, int64_t hi);
    void (*quantizer_enter)(const tess_quantizer_enter_args *a, int64_t row_lo, int64_t row_hi);
    void (*quantizer_enter_backward)(const tess_quantizer_enter_backward_args *a, int64_t row_lo,
                                     int64_t row_hi);
    void (*quantizer_gather)(const tess_quantizer_gather_args *a, int64_t row_lo, int64_t row_hi);
    void (*quantizer_residual)(const tess_quantizer_residual_args *a, int64_t row_lo,
                               int64_t row_hi);
    void (*quantizer_row_loss)(const tess_quantizer_row_loss_args *a, int64_t row_lo,
                               int64_t row_hi);
    void (*quantizer_backward)(const tess_quantizer_backward_args *a, int64_t row_lo,
                               int64_t row_hi);
    void (*quantizer_directed)(const tess_quantizer_directed_args *a, int64_t row_lo,
                               int64_t row_hi);
    void (*quantizer_directed_backward)(const tess_quantizer_directed_backward_args *a,
                                        int64_t row_lo, int64_t row_hi);
    void (*quantizer_code_gradient)(const tess_quantizer_code_gradient_args *a, int64_t col_lo,
                                    int64_t col_hi);
    void (*quantizer_layer_norm)(const tess_quantizer_layer_norm_args *a, int64_t row_lo,
                                 int64_t row_hi);
    void (*modulate)(const tess_modulate_args *a, int64_t row_lo, int64_t row_hi);
    void (*modulate_backward)(const tess_modulate_backward_args *a, int64_t row_lo, int64_t row_hi);
    void (*modulate_factors)(const tess_modulate_backward_args *a, int64_t sample, int chunk_idx);
    void (*gate)(const tess_gate_args *a, int64_t row_lo, int64_t row_hi);
    void (*gate_backward)(const tess_gate_backward_args *a, int64_t row_lo, int64_t row_hi);
    void (*gate_factor)(const tess_gate_backward_args *a, int64_t sample, int chunk_idx);
    void (*rotate)(const tess_rotate_args *a, int64_t row_lo, int64_t row_hi);
    void (*rotate_backward)(const tess_rotate_backward_args *a, int64_t row_lo, int64_t row_hi);
    void (*rotate_backward_w)(const tess_rotate_backward_args *a, int chunk_idx);
    void (*activation)(const tess_activation_args *a, int64_t row_lo, int64_t row_hi);
    void (*activation_backward)(const tess_activation_backward_args *a, int64_t row_lo,
                                int64_t row_hi);
    void (*square_error)(const tess_square_error_args *a, int64_t row_lo, int64_t row_hi);
    void (*fixed_add)(int64_t *sum, const float *x, double a, double factor, int64_t numel);
    /* acc += a x, and x . y. */
    void (*axpy_f64)(double *acc, const double *x, double a, int64_t numel);
    double (*dot_f64)(const double *x, const double *y, int64_t numel);
    /* out[i] = exp(x[i]): the exponentials of the ops above, for tests; `exp_below` for x <= 0. */
    void (*exp)(const float *x, float *out, int64_t numel);
    void (*exp_below)(const float *x, float *out, int64_t numel);
} tess_cpu_rows;

extern const tess_cpu_rows tess_cpu_rows_portable;
extern const tess_cpu_rows tess_cpu_rows_avx2;
extern const tess_cpu_rows tess_cpu_rows_avx512;

/** Table of the current path. Local. */
const tess_cpu_rows *tess_cpu_rows_get(void);

/** Parts to cut work of `cost_numel` element operations into: one when threads would cost more
 * than they give. Local. */
int tess_cpu_part_numel(const tess_stream *s, int64_t cost_numel);

/** Every code is a row of the codes or the mark of a masked vector. Local. */
TESS_MUST_CHECK tess_status tess_cpu_check_codes(const char *op, const tess_coded_rows *rows);

/** The rounded copy of masters [lo, hi) of a part. Local. */
void tess_cpu_copy_param(const tess_update_part *part, int64_t lo, int64_t hi);

/** out[i] += sum over the TESS_ROW_CHUNK_NUMEL chunks of work[chunk][i], ascending. Local. */
void tess_cpu_chunks_add(const float *work, int64_t dim, float *out);

TESS_END_DECLS
