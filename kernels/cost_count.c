#include "kernels/cost_count.h"

#include <string.h>

#include "kernels/cuda_work.h"

static double elem(tess_view v) { return (double)tess_dtype_block_nbytes(v.dt); }
static double nbytes_of(tess_view v) { return elem(v) * (double)v.numel; }
static double rows_nbytes(tess_view v, int64_t rows, int64_t cols)
{
    return elem(v) * (double)rows * (double)cols;
}

static void count(tess_cost *sum, tess_cost_op op, tess_cost one)
{
    const double amount = tess_cost_op_is_flops(op) ? one.hardware_flops : one.nbytes;
    *sum = tess_cost_sum(*sum, one);
    sum->op[op] += amount;
    sum->launch_numel += 1.0;
}

static void count_nbytes(tess_cost *sum, tess_cost_op op, double nbytes)
{
    count(sum, op, (tess_cost){.nbytes = nbytes});
}

void tess_cost_repeat(tess_cost *sum, const tess_cost *before, double times)
{
    const tess_cost added = tess_cost_sum(*sum, tess_cost_times(*before, -1.0));
    const double kept_nbytes = sum->kept_nbytes; /* the same matrices again */
    *sum = tess_cost_sum(*sum, tess_cost_times(added, times));
    sum->kept_nbytes = kept_nbytes;
}

/* ---- products ---- */

static double stored_nbytes(const tess_matrix *b)
{
    tess_codec_part part[TESS_CODEC_PART_MAX];
    int part_numel = 0;
    double nbytes = 0;
    /* A codec that does not fit is refused where the tensor is registered. */
    if (tess_codec_parts(&b->codec, b->rows * b->cols, part, &part_numel) != TESS_OK)
        return 0;
    for (int i = 0; i < part_numel; i++)
        nbytes += (double)part[i].nbytes;
    return nbytes;
}

static void count_term(tess_cost *sum, const tess_gemm_args *a, const tess_gemm_term *t)
{
    const double weight_numel = (double)t->b.rows * (double)t->b.cols;
    const double stored = stored_nbytes(&t->b), plain = elem(t->a) * weight_numel;
    sum->weight_numel[t->b.codec.format] += weight_numel;
    sum->nbytes += rows_nbytes(t->a, a->m, t->k);
    if (!tess_format_is_quantized(t->b.codec.format)) {
        sum->nbytes += stored;
        return;
    }
    sum->weight_nbytes += stored + plain;
    sum->nbytes += stored + 2.0 * plain;
}

void tess_count_gemm(tess_cost *sum, const tess_gemm_args *a)
{
    int64_t k = 0;
    for (int i = 0; i < a->term_numel; i++) {
        k += a->term[i].k;
        count_term(sum, a, &a->term[i]);
    }
    const double flops = 2.0 * (double)a->m * (double)a->n * (double)k;
    sum->model_flops += flops;
    sum->hardware_flops += flops;
    sum->nbytes += (a->accumulate ? 2.0 : 1.0) * rows_nbytes(a->c, a->m, a->n);
    const double kept_nbytes = (double)tess_cuda_gemm_kept_nbytes(a);
    sum->kept_nbytes += kept_nbytes;
    sum->widest_nbytes = TESS_MAX(sum->widest_nbytes, kept_nbytes);
    /* Terms go on in one sum: a short one beside a long one is not a short product. */
    sum->product_flops[tess_cost_extent_class(a->m, a->n, k)] += flops;
    sum->launch_numel += 1.0;
}

/* ---- attention ---- */

/* Pairs of a query and a key of one head that are seen. */
static double seen_pairs(const tess_attention_shape *s, int64_t window)
{
    const double length = (double)s->longest_numel, tokens = (double)s->token_numel;
    const double wide = window > 0 && window < s->longest_numel ? (double)window : length;
    if (s->segment_numel > 0)
        return tokens * (double)s->segment_numel;
    return (wide * (wide + 1.0) / 2.0 + (length - wide) * wide) * tokens / length;
}

/* `matrices` as wide as all queries and as many as wide as all keys, `rows` of one f32 a head. */
static double attention_nbytes(const tess_attention_shape *s, double matrices, double rows)
{
    const double width = (double)(s->head_numel + s->kv_head_numel) * (double)s->dim;
    return (double)s->token_numel * (matrices * (double)tess_dtype_block_nbytes(s->dt) * width +
                                     rows * sizeof(float) * (double)s->head_numel);
}

/* Scores and values: two multiply-adds a pair and element. */
static double attention_flops(const tess_attention_shape *s, int64_t window)
{
    return 4.0 * seen_pairs(s, window) * ((double)s->head_numel * (double)s->dim);
}

void tess_count_attention(tess_cost *sum, const tess_attention_args *a)
{
    const double flops = attention_flops(&a->shape, a->window);
    count(sum, TESS_COST_ATTENTION,
          (tess_cost){.model_flops = flops,
                      .hardware_flops = flops,
                      .nbytes = attention_nbytes(&a->shape, 2.0, 1.0)});
}

/* dV, dP, dQ, dK: twice the forward's products. Scores once more are the hardware's. */
void tess_count_attention_backward(tess_cost *sum, const tess_attention_backward_args *a)
{
    const double flops = attention_flops(&a->shape, a->window);
    count(sum, TESS_COST_ATTENTION_BACKWARD,
          (tess_cost){.model_flops = 2.0 * flops,
                      .hardware_flops = 2.5 * flops,
                      .nbytes = attention_nbytes(&a->shape, 4.0, 2.0)});
}

/* ---- rows ---- */

void tess_count_rmsnorm(tess_cost *sum, const tess_rmsnorm_args *a)
{
    count_nbytes(sum, TESS_COST_NORM, (a->residual.numel > 0 ? 4.0 : 2.0) * nbytes_of(a->x));
}

void tess_count_rmsnorm_backward(tess_cost *sum, const tess_rmsnorm_backward_args *a)
{
    count_nbytes(sum, TESS_COST_NORM_BACKWARD,
                 (a->residual.numel > 0 ? 4.0 : 3.0) * nbytes_of(a->x));
}

/* In place. */
void tess_count_rope(tess_cost *sum, const tess_rope_args *a)
{
    count_nbytes(sum, TESS_COST_ROPE,
                 2.0 * rows_nbytes(a->x, a->token_numel, a->head_numel * a->dim));
}

void tess_count_swiglu(tess_cost *sum, const tess_swiglu_args *a)
{
    count_nbytes(sum, TESS_COST_SWIGLU, 3.0 * nbytes_of(a->gate));
}

void tess_count_swiglu_backward(tess_cost *sum, const tess_swiglu_backward_args *a)
{
    count_nbytes(sum, TESS_COST_SWIGLU_BACKWARD, 5.0 * nbytes_of(a->gate));
}

/* Logits are read twice, for the sum of exponentials and for the gradient. */
void tess_count_cross_entropy(tess_cost *sum, const tess_cross_entropy_args *a)
{
    const double read = rows_nbytes(a->logits, a->row_numel, a->vocab_numel);
    const double written = a->d_logits.numel > 0 ? read + nbytes_of(a->d_logits) : 0.0;
    count_nbytes(sum, TESS_COST_LOSS, read + written);
}

void tess_count_embedding(tess_cost *sum, const tess_embedding_args *a)
{
    count_nbytes(sum, TESS_COST_EMBEDDING, 2.0 * nbytes_of(a->out));
}

void tess_count_embedding_backward(tess_cost *sum, const tess_embedding_backward_args *a)
{
    const double numel = (double)a->token_numel * (double)a->hidden_numel;
    count_nbytes(sum, TESS_COST_EMBEDDING, nbytes_of(a->d_out) + 2.0 * sizeof(float) * numel);
}

/* ---- elements ---- */

void tess_count_add(tess_cost *sum, const tess_add_args *a)
{
    count_nbytes(sum, TESS_COST_ELEMENT, 3.0 * nbytes_of(a->a));
}

void tess_count_sum_rows(tess_cost *sum, const tess_sum_rows_args *a)
{
    count_nbytes(sum, TESS_COST_ELEMENT, nbytes_of(a->x));
}

void tess_count_dropout(tess_cost *sum, const tess_dropout_args *a)
{
    count_nbytes(sum, TESS_COST_ELEMENT, nbytes_of(a->x) + nbytes_of(a->add) + nbytes_of(a->out));
}

void tess_count_cast(tess_cost *sum, const tess_cast_args *a)
{
    count_nbytes(sum, TESS_COST_ELEMENT, nbytes_of(a->src) + nbytes_of(a->dst));
}

void tess_count_relu(tess_cost *sum, const tess_relu_args *a)
{
    count_nbytes(sum, TESS_COST_ELEMENT, 3.0 * nbytes_of(a->x));
}

void tess_count_dora(tess_cost *sum, const tess_dora_args *a)
{
    count_nbytes(sum, TESS_COST_ELEMENT,
                 nbytes_of(a->z) +
                     (a->accumulate ? 2.0 : 1.0) * rows_nbytes(a->y, a->row_numel, a->dim));
}

void tess_count_dora_backward(tess_cost *sum, const tess_dora_backward_args *a)
{
    const double one = rows_nbytes(a->z, a->row_numel, a->dim);
    count_nbytes(sum, TESS_COST_ELEMENT, (a->d_direct.numel > 0 ? 4.0 : 3.0) * one);
}

void tess_count_row_norm(tess_cost *sum, const tess_row_norm_args *a)
{
    count_nbytes(sum, TESS_COST_ELEMENT, sizeof(float) * (double)a->row_numel * (double)a->dim);
}

void tess_count_mix(tess_cost *sum, const tess_mix_args *a)
{
    count_nbytes(sum, TESS_COST_ELEMENT,
                 sizeof(double) * (1.0 + (double)a->term_numel) * (double)a->row_numel);
}

void tess_count_sum(tess_cost *sum, const tess_sum_args *a)
{
    count_nbytes(sum, TESS_COST_ELEMENT, sizeof(double) * (double)a->numel);
}

/* ---- codes ---- */

/* The score of a code is a product of d terms; codes are read once, vectors once. The nearest ones'
 * distances are sums in order, which are much slower: of the hardware alone. */
void tess_count_nearest(tess_cost *sum, const tess_nearest_args *a)
{
    const double d = (double)a->dim;
    const double distances = (double)a->vector_numel * TESS_MAX(a->best_numel, 1);
    const double flops = 2.0 * (double)a->vector_numel * (double)a->code_numel * d;
    count(sum, TESS_COST_SEARCH,
          (tess_cost){.model_flops = flops,
                      .hardware_flops = flops,
                      .nbytes =
                          sizeof(float) * d * ((double)a->vector_numel + (double)a->code_numel)});
    sum->op[TESS_COST_DISTANCE] += 2.0 * distances * d;
}

void tess_count_nearest_prepare(tess_cost *sum, const tess_nearest_prepare_args *a)
{
    count_nbytes(sum, TESS_COST_ELEMENT, 2.0 * nbytes_of(a->code));
}

void tess_count_code_row(tess_cost *sum, const tess_code_row_args *a)
{
    count_nbytes(sum, TESS_COST_ELEMENT,
                 (sizeof(uint64_t) + sizeof(uint32_t)) * (double)a->vector_numel);
}

/* A sum is read and written, a vector and its row are read; counts beside them. */
void tess_count_code_sum(tess_cost *sum, const tess_code_sum_args *a)
{
    const double each = (double)a->dim * (sizeof(float) + 2.0 * sizeof(int64_t)) +
                        sizeof(uint32_t) + 2.0 * sizeof(int64_t);
    count_nbytes(sum, TESS_COST_ELEMENT, (double)a->vector_numel * each);
}

void tess_count_code_mean(tess_cost *sum, const tess_code_mean_args *a)
{
    const double each = (double)a->dim * (sizeof(int64_t) + sizeof(float)) + sizeof(int64_t);
    count_nbytes(sum, TESS_COST_ELEMENT, (double)a->row_numel * each);
}

void tess_count_code_residual(tess_cost *sum, const tess_code_residual_args *a)
{
    const double each = 3.0 * sizeof(float) * (double)a->dim + sizeof(uint32_t);
    count_nbytes(sum, TESS_COST_ELEMENT, (double)a->vector_numel * each);
}

static void count_rows(tess_cost *sum, int64_t rows, int64_t dim, double operand_numel)
{
    count_nbytes(sum, TESS_COST_ELEMENT,
                 operand_numel * sizeof(float) * (double)rows * (double)dim);
}

void tess_count_enter(tess_cost *sum, const tess_quantizer_enter_args *a)
{
    count_rows(sum, a->row_numel, a->dim, 2.0);
}

void tess_count_enter_backward(tess_cost *sum, const tess_quantizer_enter_backward_args *a)
{
    count_rows(sum, a->row_numel, a->dim, a->accumulate ? 3.0 : 2.0);
}

void tess_count_gather(tess_cost *sum, const tess_quantizer_gather_args *a)
{
    count_rows(sum, a->rows.row_numel, a->rows.dim, 2.0);
}

void tess_count_residual(tess_cost *sum, const tess_quantizer_residual_args *a)
{
    count_rows(sum, a->rows.row_numel, a->rows.dim, 5.0); /* code; r and sum, read and written */
}

void tess_count_row_loss(tess_cost *sum, const tess_quantizer_row_loss_args *a)
{
    count_rows(sum, a->rows.row_numel, a->rows.dim, 2.0);
}

void tess_count_backward(tess_cost *sum, const tess_quantizer_backward_args *a)
{
    count_rows(sum, a->rows.row_numel, a->rows.dim, a->accumulate ? 5.0 : 4.0);
}

void tess_count_code_gradient(tess_cost *sum, const tess_quantizer_code_gradient_args *a)
{
    count_rows(sum, a->rows.row_numel, a->rows.dim, 4.0);
}

/* ---- modulated transformers ---- */

static double samples_nbytes(tess_view v, const tess_sample_shape *s, int64_t head_numel)
{
    return elem(v) * (double)s->sample_numel * (double)s->row_numel * (double)s->dim *
           (double)head_numel;
}

void tess_count_modulate(tess_cost *sum, const tess_modulate_args *a)
{
    count_nbytes(sum, TESS_COST_NORM, 2.0 * samples_nbytes(a->x.view, &a->shape, 1));
}

void tess_count_modulate_backward(tess_cost *sum, const tess_modulate_backward_args *a)
{
    const double operands =
        2.0 + (a->residual.view.numel > 0 ? 1.0 : 0.0) + (a->d_x.view.numel > 0 ? 1.0 : 0.0);
    count_nbytes(sum, TESS_COST_NORM_BACKWARD, operands * samples_nbytes(a->x.view, &a->shape, 1));
}

void tess_count_gate(tess_cost *sum, const tess_gate_args *a)
{
    count_nbytes(sum, TESS_COST_ELEMENT, 3.0 * samples_nbytes(a->x.view, &a->shape, 1));
}

void tess_count_gate_backward(tess_cost *sum, const tess_gate_backward_args *a)
{
    const double operands = a->d_gate.numel > 0 ? 3.0 : 2.0;
    count_nbytes(sum, TESS_COST_ELEMENT, operands * samples_nbytes(a->d_y.view, &a->shape, 1));
}

void tess_count_rotate(tess_cost *sum, const tess_rotate_args *a)
{
    count_nbytes(sum, TESS_COST_NORM, 2.0 * samples_nbytes(a->x.view, &a->shape, a->head_numel));
}

void tess_count_rotate_backward(tess_cost *sum, const tess_rotate_backward_args *a)
{
    count_nbytes(sum, TESS_COST_NORM_BACKWARD,
                 3.0 * samples_nbytes(a->x.view, &a->shape, a->head_numel));
}

void tess_count_activation(tess_cost *sum, const tess_activation_args *a)
{
    count_nbytes(sum, TESS_COST_SWIGLU, 2.0 * rows_nbytes(a->x, a->row_numel, a->dim));
}

void tess_count_activation_backward(tess_cost *sum, const tess_activation_backward_args *a)
{
    count_nbytes(sum, TESS_COST_SWIGLU_BACKWARD, 3.0 * rows_nbytes(a->x, a->row_numel, a->dim));
}

void tess_count_square_error(tess_cost *sum, const tess_square_error_args *a)
{
    const double operands = a->d_y.numel > 0 ? 3.0 : 2.0;
    count_nbytes(sum, TESS_COST_ELEMENT, operands * rows_nbytes(a->y, a->row_numel, a->dim));
}

void tess_count_unlisted(tess_cost *sum, const void *a)
{
    (void)a;
    sum->launch_numel += 1.0;
    sum->unlisted_numel += 1.0;
}

/* ---- beside stages ---- */

void tess_count_fold(tess_cost *sum, double numel)
{
    count_nbytes(sum, TESS_COST_FOLD, 3.0 * sizeof(float) * numel);
}

void tess_count_fold_pieces(tess_cost *sum, double numel, double piece_numel, double level_numel)
{
    count_nbytes(sum, TESS_COST_FOLD, sizeof(float) * numel * (piece_numel + level_numel));
}

void tess_count_copy(tess_cost *sum, double nbytes)
{
    count_nbytes(sum, TESS_COST_ELEMENT, 2.0 * nbytes);
}

void tess_count_squares(tess_cost *sum, double numel)
{
    count_nbytes(sum, TESS_COST_SQUARES, sizeof(float) * numel);
}

/* Master, two moments and the gradient are read; master, moments and the rounded copy written. */
void tess_count_adamw(tess_cost *sum, const tess_adamw_args *a)
{
    count_nbytes(sum, TESS_COST_OPTIMIZER,
                 7.0 * sizeof(float) * (double)a->numel + nbytes_of(a->param));
}
