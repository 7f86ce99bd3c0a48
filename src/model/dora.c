/*
 * Linears with learned lengths (kernels/dora.h): y = g z + bias, z = x W^T + u B^T, g = m / n.
 *
 * [Note: dropout] With dropout the adapter and the rescaling see drop(x), the base x itself, as in
 * PEFT: z = drop(x) W^T + u B^T and y = (x - drop(x)) W^T + g z + bias.
 */
#include "core/arith.h"
#include "kernels/weight_rows.h"
#include "model/linear_priv.h"

/* Elements of W that are plain at once while norms are taken: 4 MiB of f32. */
enum { NORM_WORK_NUMEL = 1 << 20 };

tess_status tess_group_take_dora(const tess_exec *ex, const tess_group *group, int64_t row_numel,
                                 tess_carve *carve, tess_group_input *in)
{
    for (int i = 0; i < group->numel; i++) {
        const tess_linear *linear = group->linear[i];
        in->z[i] = tess_rows_of(tess_exec_view(ex, NULL, 0, ex->dt), row_numel, 0);
        in->norm[i] = tess_exec_view(ex, NULL, 0, TESS_F32);
        if (linear->magnitude_idx < 0)
            continue;
        TESS_TRY(tess_carve_take_rows(carve, row_numel, linear->out_numel, ex->dt, &in->z[i]));
        TESS_TRY(tess_carve_take(carve, linear->out_numel, TESS_F32, &in->norm[i]));
    }
    return TESS_OK;
}

/* ---- norms ---- */

/* Rows of W as products have them (in the compute dtype), in f32. */
static tess_status weight_rows(tess_exec *ex, const tess_matrix *w, int64_t first_row,
                               tess_view out)
{
    const size_t mark = tess_carve_mark(&ex->work);
    tess_view narrow = out;
    if (ex->dt != TESS_F32)
        TESS_TRY(tess_carve_take(&ex->work, out.numel, ex->dt, &narrow));
    if (!ex->is_plan && !ex->is_announced)
        TESS_TRY(tess_weight_rows(ex->kernels, w, first_row, narrow, out, ex->stream));
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}

/* Norms of rows [first, first + numel) of W + s B A. */
static tess_status norm_rows(tess_exec *ex, const tess_linear *linear, const tess_matrix *w,
                             int64_t first, tess_view norm)
{
    const size_t mark = tess_carve_mark(&ex->work);
    tess_view sum = {0}, b = {0};
    TESS_TRY(tess_carve_take_2d(&ex->work, norm.numel, linear->in_numel, TESS_F32, &sum));
    TESS_TRY(weight_rows(ex, w, first, sum));
    TESS_TRY(tess_exec_vector(ex, linear->lora_b_idx, &b));
    const tess_rows rows = tess_rows_of(tess_view_rows(b, first, norm.numel, linear->lora_rank),
                                        norm.numel, linear->lora_rank);
    tess_gemm_args product = {.kind = TESS_GEMM_NN,
                              .m = norm.numel,
                              .n = linear->in_numel,
                              .term_numel = 1,
                              .c = sum,
                              .accumulate = true};
    product.term[0] = tess_linear_term(&rows, tess_exec_matrix(ex, linear->lora_a_idx),
                                       linear->lora_rank, linear->lora_scale);
    TESS_TRY(tess_exec_gemm(ex, &product));
    const tess_row_norm_args args = {.x = sum.data,
                                     .row_numel = norm.numel,
                                     .dim = linear->in_numel,
                                     .dt = ex->dt,
                                     .norm = norm.data};
    TESS_TRY(TESS_EXEC_RUN(ex, row_norm, &args));
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}

tess_status tess_dora_norms(tess_exec *ex, const tess_group *group)
{
    for (int i = 0; i < group->numel; i++) {
        const tess_linear *linear = group->linear[i];
        if (linear->magnitude_idx < 0)
            continue;
        const tess_matrix w = tess_exec_matrix(ex, linear->weight_idx);
        const int64_t step = TESS_MAX(NORM_WORK_NUMEL / linear->in_numel, (int64_t)1);
        for (int64_t first = 0; first < linear->out_numel; first += step)
            TESS_TRY(norm_rows(ex, linear, &w, first,
                               tess_view_rows(group->in.norm[i], first,
                                              TESS_MIN(step, linear->out_numel - first), 1)));
    }
    return TESS_OK;
}

/* ---- forward and backward ---- */

/* z = x W^T + u B^T; x dropped under dropout. */
static tess_status products(tess_exec *ex, const tess_group *group, int i, const tess_rows *x)
{
    const tess_linear *linear = group->linear[i];
    tess_gemm_args args = {.kind = TESS_GEMM_NT,
                           .m = x->rows,
                           .n = linear->out_numel,
                           .term_numel = 2,
                           .c = group->in.z[i].view};
    args.term[0] =
        tess_linear_term(x, tess_exec_matrix(ex, linear->weight_idx), linear->in_numel, 1.0f);
    args.term[1] = tess_linear_term(&group->in.u[i], tess_exec_matrix(ex, linear->lora_b_idx),
                                    linear->lora_rank, 1.0f);
    return tess_exec_gemm(ex, &args);
}

/* y = (x - drop(x)) W^T, one rounding. */
static tess_status dropped_rest(tess_exec *ex, const tess_group *group, int i,
                                const tess_rows *dropped)
{
    const tess_linear *linear = group->linear[i];
    const tess_matrix w = tess_exec_matrix(ex, linear->weight_idx);
    tess_gemm_args args = {.kind = TESS_GEMM_NT,
                           .m = dropped->rows,
                           .n = linear->out_numel,
                           .term_numel = 2,
                           .c = group->y[i].view,
                           .c_stride = tess_rows_gap(&group->y[i])};
    args.term[0] = tess_linear_term(&group->in.x, w, linear->in_numel, 1.0f);
    args.term[1] = tess_linear_term(dropped, w, linear->in_numel, -1.0f);
    return tess_exec_gemm(ex, &args);
}

tess_status tess_dora_output(tess_exec *ex, const tess_group *group, int i)
{
    const tess_linear *linear = group->linear[i];
    const bool is_dropped = ex->dropout > 0.0f, is_wanted = group->y[i].view.numel > 0;
    const size_t mark = tess_carve_mark(&ex->work);
    tess_rows x = {0};
    TESS_TRY(tess_linear_adapter_input(ex, group, linear, &x));
    TESS_TRY(products(ex, group, i, &x));
    if (is_wanted && is_dropped)
        TESS_TRY(dropped_rest(ex, group, i, &x));
    tess_dora_args args = {.z = group->in.z[i].view,
                           .norm = group->in.norm[i].data,
                           .row_numel = x.rows,
                           .dim = linear->out_numel,
                           .accumulate = is_dropped,
                           .y = group->y[i].view,
                           .y_stride = tess_rows_gap(&group->y[i])};
    args.bias = tess_exec_view(ex, NULL, 0, ex->dt);
    TESS_TRY(tess_exec_vector(ex, linear->magnitude_idx, &args.magnitude));
    if (linear->bias_idx >= 0)
        TESS_TRY(tess_exec_vector(ex, linear->bias_idx, &args.bias));
    if (is_wanted)
        TESS_TRY(TESS_EXEC_RUN(ex, dora_forward, &args));
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}

tess_status tess_dora_backward(tess_exec *ex, const tess_group *group, int i,
                               const tess_dora_gradients *g)
{
    const tess_linear *linear = group->linear[i];
    const tess_rows *d_y = &group->y[i];
    const size_t mark = tess_carve_mark(&ex->work);
    tess_view work = {0};
    TESS_TRY(tess_carve_take_2d(&ex->work, 16, linear->out_numel, TESS_F32, &work));
    tess_dora_backward_args args = {.d_y = d_y->view,
                                    .d_y_stride = tess_rows_gap(d_y),
                                    .z = group->in.z[i].view,
                                    .norm = group->in.norm[i].data,
                                    .row_numel = d_y->rows,
                                    .dim = linear->out_numel,
                                    .d_z = g->d_z.view,
                                    .d_z_stride = tess_rows_gap(&g->d_z),
                                    .d_direct = g->d_direct,
                                    .d_magnitude = tess_exec_grad(ex, linear->magnitude_idx).data,
                                    .work = work.data};
    TESS_TRY(tess_exec_vector(ex, linear->magnitude_idx, &args.magnitude));
    TESS_TRY(TESS_EXEC_RUN(ex, dora_backward, &args));
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}
