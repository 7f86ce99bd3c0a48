/* What ops of codebooks, quantizers and images read and write. Rows of codes that indices name may
 * be any: all of them count as read, and those that indices name for writing as both. */
#include "emulation/emu_ranges_priv.h"

/* [row_numel, dim] f32, rows `stride` elements apart, 0: contiguous. */
static void floats(const emu_visitor *v, void *pointer_at, int64_t row_numel, int64_t dim,
                   int64_t stride, emu_access access)
{
    rows(v, pointer_at,
         (emu_operand){.row_numel = row_numel,
                       .row_nbytes = (size_t)dim * 4,
                       .stride_nbytes = (size_t)(stride != 0 ? stride : dim) * 4,
                       .access = access});
}

/* As `strided`, where the view may be empty. */
static void optional(const emu_visitor *v, tess_view *w, int64_t row_numel, int64_t dim,
                     int64_t stride, emu_access access)
{
    strided(v, w, w->numel > 0 ? row_numel : 0, dim, stride, access);
}

/* ---- codebooks ---- */

/* The pack may have room for more than this path's panels: it counts as scratch. */
void emu_visit_nearest_prepare(tess_nearest_prepare_args *a, const emu_visitor *v)
{
    view(v, &a->code, EMU_READ);
    view(v, &a->pack, EMU_UPDATE);
}

void emu_visit_nearest(tess_nearest_args *a, const emu_visitor *v)
{
    view(v, &a->x, EMU_READ);
    view(v, &a->code, EMU_READ);
    view(v, &a->pack, EMU_READ);
    view(v, &a->key, EMU_WRITE);
    view(v, &a->work, EMU_UPDATE);
}

void emu_visit_code_most(tess_code_most_args *a, const emu_visitor *v)
{
    array(v, &a->x, a->vector_numel * a->dim, 4, EMU_READ);
    array(v, &a->row, a->vector_numel, 4, EMU_READ);
    array(v, &a->most, 1, 4, EMU_UPDATE);
}

void emu_visit_code_value(tess_code_value_args *a, const emu_visitor *v)
{
    array(v, &a->sum, a->numel, 8, EMU_READ);
    array(v, &a->value, a->numel, 4, EMU_WRITE);
}

void emu_visit_code_sum(tess_code_sum_args *a, const emu_visitor *v)
{
    array(v, &a->x, a->vector_numel * a->dim, 4, EMU_READ);
    array(v, &a->row, a->vector_numel, 4, EMU_READ);
    array(v, &a->sum, a->row_numel * a->dim, 8, EMU_UPDATE);
    array(v, &a->count, a->row_numel, 8, EMU_UPDATE);
}

void emu_visit_code_mean(tess_code_mean_args *a, const emu_visitor *v)
{
    array(v, &a->sum, a->row_numel * a->dim, 8, EMU_READ);
    array(v, &a->count, a->row_numel, 8, EMU_READ);
    array(v, &a->code, a->row_numel * a->dim, 4, EMU_UPDATE);
}

/* Without parents: with them nobody says how many rows x has. */
void emu_visit_code_residual(tess_code_residual_args *a, const emu_visitor *v)
{
    array(v, &a->x, a->parent == NULL ? a->vector_numel * a->dim : 0, 4, EMU_READ);
    array(v, &a->code, a->code_numel * a->dim, 4, EMU_READ);
    array(v, &a->row, a->vector_numel, 4, EMU_READ);
    array(v, &a->dst, a->vector_numel * a->dim, 4, EMU_WRITE);
}

void emu_visit_code_row(tess_code_row_args *a, const emu_visitor *v)
{
    array(v, &a->key, a->vector_numel, 8, EMU_READ);
    array(v, &a->row, a->vector_numel, 4, EMU_WRITE);
}

void emu_visit_relu(tess_relu_args *a, const emu_visitor *v)
{
    view(v, &a->x, EMU_READ);
    view(v, &a->gate, EMU_READ);
    view(v, &a->out, EMU_WRITE);
}

void emu_visit_mix(tess_mix_args *a, const emu_visitor *v)
{
    array(v, &a->x, a->term_numel * a->row_numel, 8, EMU_READ);
    array(v, &a->out, a->row_numel, 8, EMU_WRITE);
}

void emu_visit_im2col(tess_im2col_args *a, const emu_visitor *v)
{
    view(v, &a->image, EMU_READ);
    view(v, &a->patches, EMU_WRITE);
}

void emu_visit_col2im(tess_col2im_args *a, const emu_visitor *v)
{
    view(v, &a->patches, EMU_READ);
    view(v, &a->bias, EMU_READ);
    view(v, &a->image, EMU_WRITE);
}

/* ---- vectors with codes ---- */

static void coded(const emu_visitor *v, tess_coded_rows *r)
{
    array(v, &r->codes, r->code_numel * r->dim, 4, EMU_READ);
    array(v, &r->code, r->row_numel, 4, EMU_READ);
}

static int64_t numel_of(const tess_coded_rows *r) { return r->row_numel * r->dim; }

void emu_visit_quantizer_enter(tess_quantizer_enter_args *a, const emu_visitor *v)
{
    strided(v, &a->x, a->row_numel, a->dim, a->x_stride, EMU_READ);
    array(v, &a->core, a->row_numel * a->dim, 4, EMU_WRITE);
    array(v, &a->norm, a->length > 0.0f ? a->row_numel : 0, 4, EMU_WRITE);
}

void emu_visit_quantizer_enter_backward(tess_quantizer_enter_backward_args *a, const emu_visitor *v)
{
    const int64_t row_numel = a->length > 0.0f ? a->row_numel : 0;
    array(v, &a->core, row_numel * a->dim, 4, EMU_READ);
    array(v, &a->norm, row_numel, 4, EMU_READ);
    array(v, &a->d_core, a->row_numel * a->dim, 4, EMU_READ);
    strided(v, &a->d_x, a->row_numel, a->dim, a->d_stride, a->accumulate ? EMU_UPDATE : EMU_WRITE);
}

void emu_visit_quantizer_layer_norm(tess_quantizer_layer_norm_args *a, const emu_visitor *v)
{
    view(v, &a->x, EMU_READ);
    view(v, &a->y, EMU_WRITE);
}

void emu_visit_quantizer_gather(tess_quantizer_gather_args *a, const emu_visitor *v)
{
    coded(v, &a->rows);
    optional(v, &a->masked, a->rows.row_numel, a->rows.dim, a->out_stride, EMU_READ);
    strided(v, &a->out, a->rows.row_numel, a->rows.dim, a->out_stride, EMU_WRITE);
}

void emu_visit_quantizer_mask(tess_quantizer_mask_args *a, const emu_visitor *v)
{
    array(v, &a->valid, a->row_numel, 1, EMU_READ);
    array(v, &a->code, a->index_numel * a->row_numel, 4, EMU_UPDATE);
}

void emu_visit_quantizer_residual(tess_quantizer_residual_args *a, const emu_visitor *v)
{
    coded(v, &a->rows);
    array(v, &a->r, a->next != NULL ? numel_of(&a->rows) : 0, 4, EMU_READ);
    array(v, &a->next, numel_of(&a->rows), 4, EMU_WRITE);
    array(v, &a->sum, numel_of(&a->rows), 4, EMU_UPDATE);
}

void emu_visit_quantizer_row_loss(tess_quantizer_row_loss_args *a, const emu_visitor *v)
{
    coded(v, &a->rows);
    array(v, &a->x, numel_of(&a->rows), 4, EMU_READ);
    array(v, &a->out, a->rows.row_numel, 8, EMU_WRITE);
}

void emu_visit_quantizer_backward(tess_quantizer_backward_args *a, const emu_visitor *v)
{
    coded(v, &a->rows);
    array(v, &a->x, numel_of(&a->rows), 4, EMU_READ);
    optional(v, &a->d_out, a->rows.row_numel, a->rows.dim, a->d_stride, EMU_READ);
    array(v, &a->d_next, numel_of(&a->rows), 4, EMU_READ);
    array(v, &a->d_x, numel_of(&a->rows), 4, a->accumulate ? EMU_UPDATE : EMU_WRITE);
}

void emu_visit_quantizer_directed(tess_quantizer_directed_args *a, const emu_visitor *v)
{
    coded(v, &a->rows);
    array(v, &a->x, numel_of(&a->rows), 4, EMU_READ);
    array(v, &a->noise, numel_of(&a->rows), 4, EMU_READ);
    strided(v, &a->out, a->rows.row_numel, a->rows.dim, a->out_stride, EMU_WRITE);
}

void emu_visit_quantizer_directed_backward(tess_quantizer_directed_backward_args *a,
                                           const emu_visitor *v)
{
    coded(v, &a->rows);
    array(v, &a->x, numel_of(&a->rows), 4, EMU_READ);
    array(v, &a->noise, numel_of(&a->rows), 4, EMU_READ);
    strided(v, &a->d_out, a->rows.row_numel, a->rows.dim, a->d_stride, EMU_READ);
    array(v, &a->d_x, numel_of(&a->rows), 4, a->accumulate ? EMU_UPDATE : EMU_WRITE);
    array(v, &a->d_q, numel_of(&a->rows), 4, EMU_WRITE);
}

void emu_visit_quantizer_code_gradient(tess_quantizer_code_gradient_args *a, const emu_visitor *v)
{
    coded(v, &a->rows);
    array(v, &a->d_q, numel_of(&a->rows), 4, EMU_READ);
    array(v, &a->x, a->d_q == NULL ? numel_of(&a->rows) : 0, 4, EMU_READ);
    array(v, &a->d_codes, a->rows.code_numel * a->rows.dim, 4, EMU_UPDATE);
}

void emu_visit_quantizer_gram(tess_quantizer_gram_args *a, const emu_visitor *v)
{
    array(v, &a->codes, a->code_numel * a->dim, 4, EMU_READ);
    array(v, &a->use, a->code_numel, 1, EMU_READ);
    array(v, &a->gram, a->dim * a->dim, 8, EMU_UPDATE);
}

void emu_visit_quantizer_orthogonal(tess_quantizer_orthogonal_args *a, const emu_visitor *v)
{
    array(v, &a->codes, a->code_numel * a->dim, 4, EMU_READ);
    array(v, &a->use, a->code_numel, 1, EMU_READ);
    array(v, &a->gram, a->dim * a->dim, 8, EMU_READ);
    array(v, &a->work, tess_orthogonal_work_numel(a->dim, 1), 8, EMU_UPDATE);
    array(v, &a->d_codes, a->code_numel * a->dim, 4, EMU_UPDATE);
    array(v, &a->loss, 1, 8, EMU_WRITE);
}

void emu_visit_quantizer_sample(tess_quantizer_sample_args *a, const emu_visitor *v)
{
    array(v, &a->x, a->row_numel * a->dim, 4, EMU_READ);
    array(v, &a->codes, a->code_numel * a->dim, 4, EMU_READ);
    array(v, &a->uniform, a->row_numel * a->code_numel, 4, EMU_READ);
    array(v, &a->key, a->row_numel, 8, a->is_first ? EMU_WRITE : EMU_UPDATE);
}

/* ---- averages ---- */

static void averages(const emu_visitor *v, tess_codebook_rows *r, emu_access access)
{
    array(v, &r->embed_avg, r->row_numel * r->dim, 4, access);
    array(v, &r->cluster_size, r->row_numel, 4, access);
}

void emu_visit_quantizer_average(tess_quantizer_average_args *a, const emu_visitor *v)
{
    averages(v, &a->rows, EMU_UPDATE);
    array(v, &a->count, a->rows.row_numel, 8, EMU_READ);
    array(v, &a->sum, a->rows.row_numel * a->rows.dim, 4, EMU_READ);
    array(v, &a->weight, a->rows.row_numel, 4, EMU_READ);
}

void emu_visit_quantizer_total(tess_quantizer_total_args *a, const emu_visitor *v)
{
    array(v, &a->cluster_size, a->row_numel, 4, EMU_READ);
    array(v, &a->total, 1, 8, EMU_UPDATE);
}

void emu_visit_quantizer_embed(tess_quantizer_embed_args *a, const emu_visitor *v)
{
    averages(v, &a->rows, EMU_READ);
    array(v, &a->rows.embed, a->rows.row_numel * a->rows.dim, 4, EMU_WRITE);
}

void emu_visit_quantizer_expire(tess_quantizer_expire_args *a, const emu_visitor *v)
{
    array(v, &a->cluster_size, a->row_numel, 4, EMU_READ);
    array(v, &a->expired, a->row_numel, 1, EMU_WRITE);
    array(v, &a->expired_numel, 1, 8, EMU_WRITE);
}

void emu_visit_quantizer_replace(tess_quantizer_replace_args *a, const emu_visitor *v)
{
    averages(v, &a->rows, EMU_UPDATE);
    array(v, &a->rows.embed, a->rows.row_numel * a->rows.dim, 4, EMU_UPDATE);
    array(v, &a->row, a->replace_numel, 8, EMU_READ);
    array(v, &a->vector, a->replace_numel * a->rows.dim, 4, EMU_READ);
}

/* ---- levels ---- */

void emu_visit_quantizer_level(tess_quantizer_level_args *a, const emu_visitor *v)
{
    const int64_t dim = a->levels.dim;
    strided(v, &a->x, a->row_numel, dim, a->x_stride, EMU_READ);
    strided(v, &a->out, a->row_numel, dim, a->out_stride, EMU_WRITE);
    array(v, &a->index, a->row_numel, 4, EMU_WRITE);
    array(v, &a->uniform, a->noise > 0.0 ? 2 * a->row_numel * dim : 0, 4, EMU_READ);
}

void emu_visit_quantizer_level_decode(tess_quantizer_level_decode_args *a, const emu_visitor *v)
{
    array(v, &a->index, a->row_numel, 4, EMU_READ);
    strided(v, &a->out, a->row_numel, a->levels.dim, a->out_stride, EMU_WRITE);
}

void emu_visit_quantizer_level_backward(tess_quantizer_level_backward_args *a, const emu_visitor *v)
{
    const int64_t dim = a->levels.dim;
    strided(v, &a->x, a->row_numel, dim, a->x_stride, EMU_READ);
    strided(v, &a->d_out, a->row_numel, dim, a->d_out_stride, EMU_READ);
    strided(v, &a->d_x, a->row_numel, dim, a->d_x_stride, a->accumulate ? EMU_UPDATE : EMU_WRITE);
}

void emu_visit_quantizer_soft_clamp(tess_quantizer_soft_clamp_args *a, const emu_visitor *v)
{
    view(v, &a->x, EMU_READ);
    array(v, &a->y, a->row_numel * a->dim, 4, EMU_WRITE);
}

void emu_visit_quantizer_soft_clamp_backward(tess_quantizer_soft_clamp_backward_args *a,
                                             const emu_visitor *v)
{
    view(v, &a->x, EMU_READ);
    array(v, &a->d_y, a->row_numel * a->dim, 4, EMU_READ);
    view(v, &a->d_x, EMU_WRITE);
}

static int64_t value_numel(const tess_latents *l)
{
    int64_t numel = 0;
    for (int64_t j = 0; j < l->dim; j++)
        numel += l->levels[j];
    return numel;
}

void emu_visit_quantizer_latent(tess_quantizer_latent_args *a, const emu_visitor *v)
{
    array(v, &a->latents.value, value_numel(&a->latents), 4, EMU_READ);
    array(v, &a->x, a->row_numel * a->latents.dim, 4, EMU_READ);
    array(v, &a->out, a->row_numel * a->latents.dim, 4, EMU_WRITE);
    array(v, &a->index, a->row_numel, 4, EMU_WRITE);
}

void emu_visit_quantizer_latent_decode(tess_quantizer_latent_decode_args *a, const emu_visitor *v)
{
    array(v, &a->latents.value, value_numel(&a->latents), 4, EMU_READ);
    array(v, &a->index, a->row_numel, 4, EMU_READ);
    array(v, &a->out, a->row_numel * a->latents.dim, 4, EMU_WRITE);
}

void emu_visit_quantizer_latent_gradient(tess_quantizer_latent_gradient_args *a,
                                         const emu_visitor *v)
{
    array(v, &a->latents.value, value_numel(&a->latents), 4, EMU_READ);
    array(v, &a->x, a->row_numel * a->latents.dim, 4, EMU_READ);
    array(v, &a->index, a->row_numel, 4, EMU_READ);
    array(v, &a->d_value, value_numel(&a->latents), 4, EMU_UPDATE);
}

/* ---- signs ---- */

static void signs(const emu_visitor *v, tess_sign_rows *r)
{
    floats(v, &r->x, r->row_numel, r->dim, r->stride, EMU_READ);
    array(v, &r->valid, r->row_numel, 1, EMU_READ);
}

void emu_visit_quantizer_sign(tess_quantizer_sign_args *a, const emu_visitor *v)
{
    signs(v, &a->rows);
    optional(v, &a->out, a->rows.row_numel, a->rows.dim, a->out_stride, EMU_WRITE);
    array(v, &a->index, a->rows.row_numel, 4, EMU_WRITE);
}

void emu_visit_quantizer_sign_decode(tess_quantizer_sign_decode_args *a, const emu_visitor *v)
{
    array(v, &a->index, a->row_numel, 4, EMU_READ);
    strided(v, &a->out, a->row_numel, a->dim, a->out_stride, EMU_WRITE);
}

void emu_visit_quantizer_sign_loss(tess_quantizer_sign_loss_args *a, const emu_visitor *v)
{
    signs(v, &a->rows);
    array(v, &a->loss, a->rows.row_numel, 8, EMU_WRITE);
    array(v, &a->entropy, a->rows.row_numel, 8, EMU_WRITE);
}

void emu_visit_quantizer_sign_backward(tess_quantizer_sign_backward_args *a, const emu_visitor *v)
{
    const tess_sign_rows *r = &a->rows;
    signs(v, &a->rows);
    optional(v, &a->d_out, r->row_numel, r->dim, a->d_out_stride, EMU_READ);
    floats(v, &a->d_x, r->row_numel, r->dim, r->stride, a->accumulate ? EMU_UPDATE : EMU_WRITE);
}

void emu_visit_quantizer_pbar(tess_quantizer_pbar_args *a, const emu_visitor *v)
{
    signs(v, &a->rows);
    array(v, &a->sum, INT64_C(1) << a->rows.dim, 8, EMU_UPDATE);
    array(v, &a->work, tess_entropy_work_numel(a->rows.dim), 8, EMU_UPDATE);
}

void emu_visit_quantizer_batch_entropy(tess_quantizer_batch_entropy_args *a, const emu_visitor *v)
{
    array(v, &a->sum, INT64_C(1) << a->dim, 8, EMU_READ);
    array(v, &a->loss, 1, 8, EMU_WRITE);
    array(v, &a->slope, INT64_C(1) << a->dim, 8, EMU_WRITE);
}

void emu_visit_quantizer_batch_entropy_backward(tess_quantizer_batch_entropy_backward_args *a,
                                                const emu_visitor *v)
{
    signs(v, &a->rows);
    array(v, &a->slope, INT64_C(1) << a->rows.dim, 8, EMU_READ);
    floats(v, &a->d_x, a->rows.row_numel, a->rows.dim, a->rows.stride, EMU_UPDATE);
}
