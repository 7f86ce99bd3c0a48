/**
 * The oracle of the kernels: every op in plain fp64 C, one loop nest each, no tiles, no rounding.
 *
 * Arrays are row-major doubles. Backward functions overwrite their outputs unless the op itself
 * accumulates (d_w, d_table, sums), where they add. Nothing here is shared with the kernels.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

/** As tess_gemm_kind: y = x W^T, dx = dy W, dW = dy^T x. */
typedef enum ref_gemm_kind { REF_NT, REF_NN, REF_TN } ref_gemm_kind;

typedef struct ref_gemm_shape {
    ref_gemm_kind kind;
    int64_t m, n, k;
} ref_gemm_shape;

/** c[m, n] += scale * a op b. NT: a [m, k], b [n, k]; NN: a [m, k], b [k, n]; TN: a [k, m], b [k,
 * n].
 */
void ref_gemm(ref_gemm_shape shape, const double *a, const double *b, double scale, double *c);
/** d_a and d_b += gradients of sum(d_c * c). */
void ref_gemm_backward(ref_gemm_shape shape, const double *a, const double *b, const double *d_c,
                       double *d_a, double *d_b);

/** One NF4 tensor, with or without double quantization (nested_* NULL). */
typedef struct ref_nf4 {
    int64_t numel, block_numel;
    const uint8_t *codes;       /* [ceil(numel / 2)] */
    const float *absmax;        /* [blocks], NULL with double quantization */
    const uint8_t *absmax_code; /* [blocks] */
    const float *nested_absmax; /* [ceil(blocks / 256)] */
    float nested_offset;
} ref_nf4;

/** out[i] = f32(table[code] * absmax): the one op whose f32 roundings are part of its meaning. */
void ref_nf4_dequantize(const ref_nf4 *t, double *out);

void ref_embedding(const double *table, int64_t dim, const int32_t *tokens, int64_t token_numel,
                   double *out);
void ref_embedding_backward(const double *d_out, int64_t dim, const int32_t *tokens,
                            int64_t token_numel, double *d_table);

typedef struct ref_rows {
    int64_t row_numel, dim;
} ref_rows;

void ref_rmsnorm(ref_rows shape, const double *x, const double *w, double eps, double *y);
/** d_x = gradient; d_w += gradient. */
void ref_rmsnorm_backward(ref_rows shape, const double *x, const double *w, double eps,
                          const double *d_y, double *d_x_d_w[2]);

typedef struct ref_rope_shape {
    int64_t token_numel, head_numel, dim;
} ref_rope_shape;

/** In place; angle tables as the kernel takes them, sign -1 for the inverse. */
void ref_rope(ref_rope_shape shape, const int32_t *positions, const double *cos_table,
              const double *sin_table, double sign, double *x);

typedef struct ref_attention {
    int64_t token_numel, head_numel, kv_head_numel, dim, window;
    int64_t segment_numel; /* 0: causal in documents; else whole segments */
    const int32_t *doc_start;
    double scale;
    const double *q, *k, *v;
} ref_attention;

/** out [T, heads, D], lse [heads, T] (may be NULL). */
void ref_attention_forward(const ref_attention *a, double *out, double *lse);
/** Gradients of sum(d_out * out): d_q [T, heads, D], d_k, d_v [T, kv, D]. */
void ref_attention_backward(const ref_attention *a, const double *d_out, double *d_q, double *d_k,
                            double *d_v);

void ref_swiglu(int64_t numel, const double *gate, const double *up, double *out);
void ref_swiglu_backward(int64_t numel, const double *gate, const double *up, const double *d_out,
                         double *d_gate, double *d_up);
void ref_add(int64_t numel, const double *a, const double *b, double *out);
void ref_add_bias(ref_rows shape, const double *bias, double *x);
/** out += column sums. */
void ref_sum_rows(ref_rows shape, const double *x, double *out);
/** y = m / n * z per column, 0 where n is 0. */
void ref_dora(ref_rows shape, const double *z, const double *m, const double *n, double *y);
/** Gradients of sum(d_y * y) in `grads`: of z, of another z that enters as (m / n - 1) z, and += of
 * m. */
void ref_dora_backward(ref_rows shape, const double *z, const double *m, const double *n,
                       const double *d_y, double *const grads[3]);
/** out = keep ? x / (1 - p) : 0; keep[i] from ref_philox. */
void ref_dropout(int64_t numel, const double *x, const bool *keep, double p, double *out);
/** Philox4x32-10 (Salmon et al., 2011), written from the paper. */
void ref_philox(const uint32_t key[2], const uint32_t counter[4], uint32_t out[4]);

/** loss[r] of each row, 0 where label < 0; d_logits = (softmax - onehot) * scale, may be NULL. */
void ref_cross_entropy(ref_rows shape, const double *logits, const int32_t *labels, double scale,
                       double *loss, double *d_logits);

/** Singular values of w [rows, cols], descending, min(rows, cols) of them: cyclic Jacobi on the
 * smaller Gram matrix. Small ones err by 2^-26 of the largest. */
void ref_singular_values(int64_t rows, int64_t cols, const double *w, double *sigma);
/** Sum of squares. */
double ref_square_norm(int64_t numel, const double *x);

typedef struct ref_adamw_args {
    double learning_rate, beta1, beta2, eps, weight_decay, clip_factor;
    int64_t step;
} ref_adamw_args;

void ref_adamw(const ref_adamw_args *a, int64_t numel, const double *grad, double *param,
               double *exp_avg, double *exp_avg_sq);
