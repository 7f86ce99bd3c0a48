/*
 * The list of byte ranges that each kernel reads and writes: what the happens-before checker knows
 * of kernels. Scratch counts as read and written. A range that is missing here is one that the
 * emulation does not map, so the twin that touches it ends in a fault.
 */
#include "emulation/emu_ranges_priv.h"

#include <string.h>

/* ---- one function a kernel ---- */

static void visit_gemm(tess_gemm_args *a, const emu_visitor *v)
{
    for (int i = 0; i < a->term_numel; i++) {
        tess_gemm_term *t = &a->term[i];
        const bool is_tn = a->kind == TESS_GEMM_TN;
        strided(v, &t->a, is_tn ? t->k : a->m, is_tn ? a->m : t->k, t->a_stride, EMU_READ);
        matrix(v, &t->b);
    }
    strided(v, &a->c, a->m, a->n, a->c_stride, a->accumulate ? EMU_UPDATE : EMU_WRITE);
    view(v, &a->work, EMU_UPDATE);
}

static void visit_quantize(tess_quantize_args *a, const emu_visitor *v)
{
    view(v, &a->src, EMU_READ);
    parts(v, &a->codec, a->src.numel, a->part, EMU_WRITE);
    if (a->codec.double_quant)
        array(v, &a->absmax_work, tess_ceil_div(a->src.numel, a->codec.block_numel), 4, EMU_UPDATE);
}

/* All parts of the tensor, or up to the range's end, in whole blocks. */
static void visit_dequantize(tess_dequantize_args *a, const emu_visitor *v)
{
    const int64_t block_numel = TESS_MAX(tess_format_block(a->codec.format).numel, INT64_C(1));
    const int64_t end_idx = tess_round_up(a->first_idx + a->dst.numel, block_numel);
    parts(v, &a->codec, a->numel > 0 ? a->numel : end_idx, a->part, EMU_READ);
    view(v, &a->dst, EMU_WRITE);
}

static void visit_embedding_forward(tess_embedding_args *a, const emu_visitor *v)
{
    array(v, &a->tokens, a->token_numel, 4, EMU_READ);
    matrix(v, &a->table);
    view(v, &a->out, EMU_WRITE);
}

static void visit_embedding_backward(tess_embedding_backward_args *a, const emu_visitor *v)
{
    array(v, &a->tokens, a->token_numel, 4, EMU_READ);
    view(v, &a->d_out, EMU_READ);
    array(v, &a->d_table, a->vocab_numel * a->hidden_numel, 4, EMU_UPDATE);
}

static void visit_rmsnorm_forward(tess_rmsnorm_args *a, const emu_visitor *v)
{
    view(v, &a->x, EMU_READ);
    view(v, &a->w, EMU_READ);
    view(v, &a->residual, EMU_READ);
    view(v, &a->sum, EMU_WRITE);
    spaced(v, &a->y, a->row_numel, a->dim, a->y_stride, EMU_WRITE);
    array(v, &a->inv_rms, a->row_numel, 4, EMU_WRITE);
}

static void visit_rmsnorm_backward(tess_rmsnorm_backward_args *a, const emu_visitor *v)
{
    view(v, &a->x, EMU_READ);
    view(v, &a->w, EMU_READ);
    array(v, &a->inv_rms, a->row_numel, 4, EMU_READ);
    view(v, &a->d_y, EMU_READ);
    view(v, &a->residual, EMU_READ);
    view(v, &a->d_x, EMU_WRITE);
    array(v, &a->d_w, a->dim, 4, EMU_UPDATE);
    array(v, &a->work, 16 * a->dim, 4, EMU_UPDATE);
}

static void visit_rope(tess_rope_args *a, const emu_visitor *v)
{
    view(v, &a->x, EMU_UPDATE);
    array(v, &a->positions, a->token_numel, 4, EMU_READ);
    array(v, &a->cos_table, a->table_rows * (a->dim / 2), 4, EMU_READ);
    array(v, &a->sin_table, a->table_rows * (a->dim / 2), 4, EMU_READ);
}

static void visit_attention_forward(tess_attention_args *a, const emu_visitor *v)
{
    view(v, &a->q, EMU_READ);
    view(v, &a->k, EMU_READ);
    view(v, &a->v, EMU_READ);
    array(v, &a->doc_start, a->shape.token_numel, 4, EMU_READ);
    spaced(v, &a->out, a->shape.token_numel, a->shape.head_numel * a->shape.dim, a->out_stride,
           EMU_WRITE);
    array(v, &a->lse, a->shape.head_numel * a->shape.token_numel, 4, EMU_WRITE);
    view(v, &a->work, EMU_UPDATE);
}

static void visit_attention_backward(tess_attention_backward_args *a, const emu_visitor *v)
{
    view(v, &a->q, EMU_READ);
    view(v, &a->k, EMU_READ);
    view(v, &a->v, EMU_READ);
    spaced(v, &a->out, a->shape.token_numel, a->shape.head_numel * a->shape.dim, a->out_stride,
           EMU_READ);
    array(v, &a->lse, a->shape.head_numel * a->shape.token_numel, 4, EMU_READ);
    view(v, &a->d_out, EMU_READ);
    array(v, &a->doc_start, a->shape.token_numel, 4, EMU_READ);
    view(v, &a->d_q, EMU_WRITE);
    view(v, &a->d_k, EMU_WRITE);
    view(v, &a->d_v, EMU_WRITE);
    view(v, &a->work, EMU_UPDATE);
}

static int64_t row_count(const tess_view *w, int64_t dim) { return dim > 0 ? w->numel / dim : 1; }

static void visit_swiglu_forward(tess_swiglu_args *a, const emu_visitor *v)
{
    view(v, &a->gate, EMU_READ);
    view(v, &a->up, EMU_READ);
    spaced(v, &a->out, row_count(&a->gate, a->dim), a->dim, a->out_stride, EMU_WRITE);
}

static void visit_swiglu_backward(tess_swiglu_backward_args *a, const emu_visitor *v)
{
    view(v, &a->gate, EMU_READ);
    view(v, &a->up, EMU_READ);
    view(v, &a->d_out, EMU_READ);
    spaced(v, &a->d_gate, row_count(&a->gate, a->dim), a->dim, a->d_stride, EMU_WRITE);
    spaced(v, &a->d_up, row_count(&a->gate, a->dim), a->dim, a->d_stride, EMU_WRITE);
}

static void visit_add(tess_add_args *a, const emu_visitor *v)
{
    view(v, &a->a, EMU_READ);
    view(v, &a->b, EMU_READ);
    view(v, &a->out, EMU_WRITE);
}

static void visit_add_bias(tess_add_bias_args *a, const emu_visitor *v)
{
    view(v, &a->x, EMU_UPDATE);
    view(v, &a->bias, EMU_READ);
}

static void visit_sum_rows(tess_sum_rows_args *a, const emu_visitor *v)
{
    view(v, &a->x, EMU_READ);
    array(v, &a->out, a->dim, 4, EMU_UPDATE);
    array(v, &a->work, 16 * a->dim, 4, EMU_UPDATE);
}

static void visit_dropout(tess_dropout_args *a, const emu_visitor *v)
{
    view(v, &a->x, EMU_READ);
    view(v, &a->add, EMU_READ);
    view(v, &a->out, EMU_WRITE);
}

static void visit_row_norm(tess_row_norm_args *a, const emu_visitor *v)
{
    array(v, &a->x, a->row_numel * a->dim, 4, EMU_READ);
    array(v, &a->norm, a->row_numel, 4, EMU_WRITE);
}

static void visit_dora_forward(tess_dora_args *a, const emu_visitor *v)
{
    view(v, &a->z, EMU_READ);
    view(v, &a->magnitude, EMU_READ);
    array(v, &a->norm, a->dim, 4, EMU_READ);
    view(v, &a->bias, EMU_READ);
    spaced(v, &a->y, a->row_numel, a->dim, a->y_stride, a->accumulate ? EMU_UPDATE : EMU_WRITE);
}

static void visit_dora_backward(tess_dora_backward_args *a, const emu_visitor *v)
{
    spaced(v, &a->d_y, a->row_numel, a->dim, a->d_y_stride, EMU_READ);
    view(v, &a->z, EMU_READ);
    view(v, &a->magnitude, EMU_READ);
    array(v, &a->norm, a->dim, 4, EMU_READ);
    spaced(v, &a->d_z, a->row_numel, a->dim, a->d_z_stride, EMU_WRITE);
    view(v, &a->d_direct, EMU_WRITE);
    array(v, &a->d_magnitude, a->dim, 4, EMU_UPDATE);
    array(v, &a->work, 16 * a->dim, 4, EMU_UPDATE);
}

static void visit_cast(tess_cast_args *a, const emu_visitor *v)
{
    view(v, &a->src, EMU_READ);
    view(v, &a->dst, EMU_WRITE);
}

static void visit_cross_entropy(tess_cross_entropy_args *a, const emu_visitor *v)
{
    view(v, &a->logits, EMU_READ);
    array(v, &a->labels, a->row_numel, 4, EMU_READ);
    array(v, &a->row_loss, a->row_numel, 8, EMU_WRITE);
    view(v, &a->d_logits, EMU_WRITE);
}

static void visit_fold(tess_fold_args *a, const emu_visitor *v)
{
    array(v, &a->a, a->numel, 4, EMU_READ);
    array(v, &a->b, a->numel, 4, EMU_READ);
    array(v, &a->dst, a->numel, 4, EMU_WRITE);
}

static void visit_fold_pieces(tess_fold_pieces_args *a, const emu_visitor *v)
{
    rows(v, &a->pieces,
         (emu_operand){.row_numel = a->piece_numel - (a->own != NULL),
                       .row_nbytes = (size_t)a->numel * 4,
                       .stride_nbytes = (size_t)a->stride_numel * 4,
                       .access = EMU_READ});
    array(v, &a->own, a->own != NULL ? a->numel : 0, 4, EMU_READ);
    rows(v, &a->levels,
         (emu_operand){.row_numel = a->level_numel,
                       .row_nbytes = (size_t)a->numel * 4,
                       .stride_nbytes = (size_t)a->level_stride_numel * 4,
                       .access = EMU_UPDATE});
}

static void visit_square_norm(tess_square_norm_args *a, const emu_visitor *v)
{
    array(v, &a->x, a->numel, 4, EMU_READ);
    array(v, &a->acc, 1, sizeof *a->acc, EMU_UPDATE);
    array(v, &a->nonfinite_numel, 1, 8, EMU_UPDATE);
}

static void visit_sum(tess_sum_args *a, const emu_visitor *v)
{
    array(v, &a->x, a->numel, 8, EMU_READ);
    array(v, &a->out, 1, 8, EMU_WRITE);
}

static void visit_exact_add(tess_exact_add_args *a, const emu_visitor *v)
{
    array(v, &a->x, 1, 8, EMU_READ);
    array(v, &a->acc, 1, sizeof *a->acc, EMU_UPDATE);
    array(v, &a->nonfinite_numel, 1, 8, EMU_UPDATE);
}

static void visit_adamw(tess_adamw_args *a, const emu_visitor *v)
{
    array(v, &a->master, a->numel, 4, EMU_UPDATE);
    array(v, &a->exp_avg, a->numel, 4, EMU_UPDATE);
    array(v, &a->exp_avg_sq, a->numel, 4, EMU_UPDATE);
    array(v, &a->grad, a->numel, 4, EMU_READ);
    view(v, &a->param, EMU_WRITE);
}

static void visit_part(tess_update_part *a, const emu_visitor *v)
{
    array(v, &a->master, a->numel, 4, EMU_UPDATE);
    array(v, &a->grad, a->numel, 4, EMU_READ);
    view(v, &a->param, EMU_WRITE);
}

static void visit_lion(tess_lion_args *a, const emu_visitor *v)
{
    visit_part(&a->part, v);
    array(v, &a->exp_avg, a->part.numel, 4, EMU_UPDATE);
}

static void visit_adamw_8bit(tess_adamw_8bit_args *a, const emu_visitor *v)
{
    const int64_t block_numel = tess_ceil_div(a->part.numel, 256);
    visit_part(&a->part, v);
    array(v, &a->exp_avg, a->part.numel, 1, EMU_UPDATE);
    array(v, &a->exp_avg_sq, a->part.numel, 1, EMU_UPDATE);
    array(v, &a->exp_avg_absmax, block_numel, 4, EMU_UPDATE);
    array(v, &a->exp_avg_sq_absmax, block_numel, 4, EMU_UPDATE);
}

static void visit_schedule_free(tess_schedule_free_args *a, const emu_visitor *v)
{
    visit_part(&a->part, v);
    array(v, &a->z, a->part.numel, 4, EMU_UPDATE);
    array(v, &a->exp_avg_sq, a->part.numel, 4, EMU_UPDATE);
}

static void visit_blend(tess_blend_args *a, const emu_visitor *v)
{
    array(v, &a->a, a->dst.numel, 4, EMU_READ);
    array(v, &a->b, a->dst.numel, 4, EMU_READ);
    view(v, &a->dst, EMU_WRITE);
}

static void visit_prodigy_measure(tess_prodigy_measure_args *a, const emu_visitor *v)
{
    const int64_t numel = a->part.numel;
    array(v, &a->part.master, numel, 4, EMU_READ);
    array(v, &a->part.grad, numel, 4, EMU_READ);
    array(v, &a->start, numel, 4, EMU_READ);
    array(v, &a->exp_avg, numel, 4, EMU_UPDATE);
    array(v, &a->exp_avg_sq, numel, 4, EMU_UPDATE);
    array(v, &a->s, numel, 4, EMU_UPDATE);
    array(v, &a->sums, 1, sizeof *a->sums, EMU_UPDATE);
}

static void visit_prodigy_apply(tess_prodigy_apply_args *a, const emu_visitor *v)
{
    visit_part(&a->part, v);
    array(v, &a->exp_avg, a->part.numel, 4, EMU_READ);
    array(v, &a->exp_avg_sq, a->part.numel, 4, EMU_READ);
}

/* A part lies in some of its tensor's lines; which ones is left open. */
static void lines(const emu_visitor *v, void *pointer_at, const tess_adafactor_args *a,
                  size_t elem_nbytes, emu_access access)
{
    array(v, pointer_at, a->rows + a->cols, elem_nbytes, access);
}

static void visit_adafactor_most(tess_adafactor_args *a, const emu_visitor *v)
{
    array(v, &a->part.grad, a->part.numel, 4, EMU_READ);
    lines(v, &a->most, a, 8, EMU_UPDATE);
}

static void visit_adafactor_sum(tess_adafactor_args *a, const emu_visitor *v)
{
    array(v, &a->part.grad, a->part.numel, 4, EMU_READ);
    lines(v, &a->most, a, 8, EMU_READ);
    lines(v, &a->sum, a, 8, EMU_UPDATE);
}

static void visit_adafactor_factor(tess_adafactor_args *a, const emu_visitor *v)
{
    lines(v, &a->most, a, 8, EMU_READ);
    lines(v, &a->sum, a, 8, EMU_READ);
    lines(v, &a->moment, a, 4, EMU_UPDATE);
    lines(v, &a->root, a, 4, EMU_WRITE);
}

static void visit_adafactor_size(tess_adafactor_args *a, const emu_visitor *v)
{
    array(v, &a->part.master, a->part.numel, 4, EMU_READ);
    array(v, &a->part.grad, a->part.numel, 4, EMU_READ);
    lines(v, &a->root, a, 4, EMU_READ);
    array(v, &a->update_square, 1, sizeof *a->update_square, EMU_UPDATE);
    array(v, &a->param_square, 1, sizeof *a->param_square, EMU_UPDATE);
}

static void visit_adafactor_apply(tess_adafactor_args *a, const emu_visitor *v)
{
    visit_part(&a->part, v);
    lines(v, &a->root, a, 4, EMU_READ);
    array(v, &a->exp_avg, a->part.numel, 4, EMU_UPDATE);
}

static void visit_muon_momentum(tess_muon_momentum_args *a, const emu_visitor *v)
{
    array(v, &a->exp_avg, a->numel, 4, EMU_UPDATE);
    array(v, &a->grad, a->numel, 4, EMU_UPDATE);
}

static void visit_muon_apply(tess_muon_apply_args *a, const emu_visitor *v)
{
    visit_part(&a->part, v);
}

static void visit_scale(tess_scale_args *a, const emu_visitor *v)
{
    array(v, &a->x, a->numel, 4, EMU_READ);
    array(v, &a->dst, a->numel, 4, EMU_WRITE);
}

/* Rows of samples, `head_numel` times the dim of `shape` wide. */
static void samples(const emu_visitor *v, tess_sample_rows *r, const tess_sample_shape *shape,
                    int64_t head_numel, emu_access access)
{
    const size_t elem_nbytes = tess_dtype_block_nbytes(r->view.dt);
    if (shape->sample_numel > 0 && r->view.numel > 0)
        rows(v, &r->view.data,
             (emu_operand){.group_numel = shape->sample_numel,
                           .row_numel = shape->row_numel,
                           .row_nbytes = (size_t)(head_numel * shape->dim) * elem_nbytes,
                           .stride_nbytes = (size_t)r->row_stride * elem_nbytes,
                           .group_stride_nbytes = (size_t)r->sample_stride * elem_nbytes,
                           .access = access});
    if (v->makes_host)
        r->view.space = TESS_HOST;
}

static void factor(const emu_visitor *v, tess_factor *f, const tess_sample_shape *shape,
                   int64_t stride, emu_access access)
{
    strided(v, f, f->numel > 0 ? shape->sample_numel : 0, shape->dim, stride, access);
}

static int64_t sample_rows(const tess_sample_shape *shape)
{
    return shape->sample_numel * shape->row_numel;
}

static void visit_modulate(tess_modulate_args *a, const emu_visitor *v)
{
    samples(v, &a->x, &a->shape, 1, EMU_READ);
    factor(v, &a->shift, &a->shape, a->factor_stride, EMU_READ);
    factor(v, &a->scale, &a->shape, a->factor_stride, EMU_READ);
    samples(v, &a->y, &a->shape, 1, EMU_WRITE);
    array(v, &a->mean, sample_rows(&a->shape), 4, EMU_WRITE);
    array(v, &a->inv, sample_rows(&a->shape), 4, EMU_WRITE);
}

static void visit_modulate_backward(tess_modulate_backward_args *a, const emu_visitor *v)
{
    samples(v, &a->x, &a->shape, 1, EMU_READ);
    factor(v, &a->scale, &a->shape, a->factor_stride, EMU_READ);
    array(v, &a->mean, sample_rows(&a->shape), 4, EMU_READ);
    array(v, &a->inv, sample_rows(&a->shape), 4, EMU_READ);
    samples(v, &a->d_y, &a->shape, 1, EMU_READ);
    samples(v, &a->residual, &a->shape, 1, EMU_READ);
    samples(v, &a->d_x, &a->shape, 1, EMU_WRITE);
    factor(v, &a->d_shift, &a->shape, a->factor_stride, EMU_WRITE);
    factor(v, &a->d_scale, &a->shape, a->factor_stride, EMU_WRITE);
    array(v, &a->work, a->shape.sample_numel * 32 * a->shape.dim, 4, EMU_UPDATE);
}

static void visit_gate(tess_gate_args *a, const emu_visitor *v)
{
    samples(v, &a->x, &a->shape, 1, EMU_READ);
    samples(v, &a->f, &a->shape, 1, EMU_READ);
    factor(v, &a->gate, &a->shape, a->factor_stride, EMU_READ);
    samples(v, &a->y, &a->shape, 1, EMU_WRITE);
}

static void visit_gate_backward(tess_gate_backward_args *a, const emu_visitor *v)
{
    samples(v, &a->d_y, &a->shape, 1, EMU_READ);
    factor(v, &a->gate, &a->shape, a->factor_stride, EMU_READ);
    samples(v, &a->d_f, &a->shape, 1, EMU_WRITE);
    samples(v, &a->f, &a->shape, 1, EMU_READ);
    factor(v, &a->d_gate, &a->shape, a->factor_stride, EMU_WRITE);
    array(v, &a->work, a->shape.sample_numel * 16 * a->shape.dim, 4, EMU_UPDATE);
}

static void visit_rotate(tess_rotate_args *a, const emu_visitor *v)
{
    const int64_t angle_numel = a->shape.row_numel * (a->shape.dim / 2);
    samples(v, &a->x, &a->shape, a->head_numel, EMU_READ);
    view(v, &a->w, EMU_READ);
    array(v, &a->cos_table, angle_numel, 4, EMU_READ);
    array(v, &a->sin_table, angle_numel, 4, EMU_READ);
    samples(v, &a->y, &a->shape, a->head_numel, EMU_WRITE);
}

static void visit_rotate_backward(tess_rotate_backward_args *a, const emu_visitor *v)
{
    const int64_t angle_numel = a->shape.row_numel * (a->shape.dim / 2);
    samples(v, &a->x, &a->shape, a->head_numel, EMU_READ);
    view(v, &a->w, EMU_READ);
    array(v, &a->cos_table, angle_numel, 4, EMU_READ);
    array(v, &a->sin_table, angle_numel, 4, EMU_READ);
    samples(v, &a->d_y, &a->shape, a->head_numel, EMU_READ);
    samples(v, &a->d_x, &a->shape, a->head_numel, EMU_WRITE);
    array(v, &a->d_w, a->shape.dim, 4, EMU_UPDATE);
    array(v, &a->work, 16 * a->shape.dim, 4, EMU_UPDATE);
}

static void visit_activation(tess_activation_args *a, const emu_visitor *v)
{
    view(v, &a->x, EMU_READ);
    spaced(v, &a->y, a->row_numel, a->dim, a->y_stride, EMU_WRITE);
}

static void visit_activation_backward(tess_activation_backward_args *a, const emu_visitor *v)
{
    view(v, &a->x, EMU_READ);
    spaced(v, &a->d_y, a->row_numel, a->dim, a->d_y_stride, EMU_READ);
    spaced(v, &a->d_x, a->row_numel, a->dim, a->d_x_stride, EMU_WRITE);
}

static void visit_square_error(tess_square_error_args *a, const emu_visitor *v)
{
    view(v, &a->y, EMU_READ);
    array(v, &a->target, a->row_numel * a->dim, 4, EMU_READ);
    array(v, &a->weight, a->row_numel, 4, EMU_READ);
    array(v, &a->row_loss, a->row_numel, 8, EMU_WRITE);
    view(v, &a->d_y, EMU_WRITE);
}

void emu_visit(emu_kernel_call *call, const emu_visitor *v)
{
    switch (call->kernel) {
#define X(name, type)                                                                              \
    case EMU_KERNEL_##name:                                                                        \
        visit_##name(&call->args.name, v);                                                         \
        break;
        EMU_KERNEL_LIST(X)
        EMU_MODULATED_LIST(X)
#undef X
#define X(name, type)                                                                              \
    case EMU_KERNEL_##name:                                                                        \
        emu_visit_##name(&call->args.name, v);                                                     \
        break;
        EMU_CODE_LIST(X)
#undef X
#define X(name, type)                                                                              \
    case EMU_KERNEL_quantizer_##name:                                                              \
        emu_visit_quantizer_##name(&call->args.quantizer_##name, v);                               \
        break;
        EMU_QUANTIZER_LIST(X)
#undef X
    case EMU_KERNEL_NUMEL:
        break;
    }
    if (call->kernel == EMU_KERNEL_gemm && call->args.gemm.bias != NULL)
        matrix(v, &call->bias);
}

const char *emu_kernel_name(emu_kernel kernel)
{
    static const char *const name[] = {
#define X(entry, type) #entry,
        EMU_TABLE_LIST(X)
#undef X
#define X(entry, type) "quantizer " #entry,
            EMU_QUANTIZER_LIST(X)
#undef X
    };
    return kernel < EMU_KERNEL_NUMEL ? name[kernel] : "unknown kernel";
}

/* ---- what lies in memory of the host ---- */

static const int32_t *own_levels(emu_kernel_call *call, const int32_t *levels, int64_t dim)
{
    memcpy(call->level, levels, (size_t)dim * sizeof *levels);
    return call->level;
}

static void own_axes(emu_kernel_call *call, tess_levels *l)
{
    l->levels = own_levels(call, l->levels, l->dim);
    if (l->scale != NULL)
        l->scale = memcpy(call->scale, l->scale, (size_t)l->dim * sizeof *l->scale);
}

static void own_lists(emu_kernel_call *call, tess_latents *l)
{
    l->levels = own_levels(call, l->levels, l->dim);
}

void emu_own(emu_kernel_call *call)
{
    if (call->kernel == EMU_KERNEL_gemm && call->args.gemm.bias != NULL) {
        call->bias = *call->args.gemm.bias;
        call->args.gemm.bias = &call->bias;
    }
#define X(name, what, own)                                                                         \
    if (call->kernel == EMU_KERNEL_quantizer_##name)                                               \
        own(call, &call->args.quantizer_##name.what);
    X(level, levels, own_axes)
    X(level_decode, levels, own_axes)
    X(level_backward, levels, own_axes)
    X(latent, latents, own_lists)
    X(latent_decode, latents, own_lists)
    X(latent_gradient, latents, own_lists)
#undef X
    if (call->kernel == EMU_KERNEL_quantizer_soft_clamp) {
        tess_quantizer_soft_clamp_args *a = &call->args.quantizer_soft_clamp;
        a->levels = own_levels(call, a->levels, a->dim);
    }
    if (call->kernel == EMU_KERNEL_quantizer_soft_clamp_backward) {
        tess_quantizer_soft_clamp_backward_args *a = &call->args.quantizer_soft_clamp_backward;
        a->levels = own_levels(call, a->levels, a->dim);
    }
}
