#include "model/head_priv.h"

#include "core/arith.h"
#include "model/linear_priv.h"

enum { CHUNK_GRAIN_NUMEL = 16 };

int64_t tess_head_chunk_numel(const tess_kernels *kernels, int64_t row_numel, int64_t vocab_numel)
{
    int64_t chunk = TESS_MIN(kernels->logits_max_numel / vocab_numel, kernels->logits_row_max);
    chunk = TESS_MIN(chunk, tess_ceil_div(row_numel, 2));
    return TESS_MAX(tess_round_up(chunk, CHUNK_GRAIN_NUMEL), (int64_t)CHUNK_GRAIN_NUMEL);
}

tess_status tess_embed_forward(tess_exec *ex, int table_idx, const int32_t *tokens, tess_view out)
{
    const tess_embedding_args args = {.tokens = tokens,
                                      .token_numel = ex->row_numel,
                                      .table = tess_exec_matrix(ex, table_idx),
                                      .out = out};
    return TESS_EXEC_RUN(ex, embedding_forward, &args);
}

tess_status tess_embed_backward(tess_exec *ex, int table_idx, const int32_t *tokens,
                                tess_view d_out)
{
    const tess_param *p = &ex->registry->param[table_idx];
    const tess_embedding_backward_args args = {.tokens = tokens,
                                               .token_numel = ex->row_numel,
                                               .d_out = d_out,
                                               .vocab_numel = p->shape[0],
                                               .hidden_numel = p->shape[1],
                                               .d_table = tess_exec_grad(ex, table_idx).data};
    return TESS_EXEC_RUN(ex, embedding_backward, &args);
}

static const int32_t *at(const int32_t *labels, int64_t row)
{
    return labels != NULL ? labels + row : NULL;
}

/* Buffers of the head for one call. */
typedef struct head_run {
    const tess_head *head;
    tess_labels labels;
    tess_group_input n; /* [T, H] dt: normed input */
    tess_view inv_rms;  /* [T] f32 */
    tess_view d_n;      /* [T, H] dt; numel 0: loss only */
    tess_view row_loss; /* [T] f64 */
    tess_view logits;   /* [chunk, V] f32 */
    tess_view d_logits; /* [chunk, V] dt; the logits themselves when dt is f32 */
} head_run;

static tess_status begin(tess_exec *ex, head_run *run, tess_view h, bool has_gradient)
{
    const tess_head *head = run->head;
    const int64_t vocab_numel = head->linear.out_numel;
    run->d_n = tess_exec_view(ex, NULL, 0, ex->dt);
    run->d_logits = run->d_n;
    const tess_group group = {.numel = 1, .linear = {&head->linear}};
    TESS_TRY(tess_group_take_input(ex, &group, ex->row_numel, true, &ex->work, &run->n));
    TESS_TRY(tess_group_take_dora(ex, &group, head->chunk_numel, &ex->work, &run->n));
    TESS_TRY(tess_carve_take(&ex->work, ex->row_numel, TESS_F32, &run->inv_rms));
    TESS_TRY(tess_carve_take(&ex->work, ex->row_numel, TESS_F64, &run->row_loss));
    TESS_TRY(tess_carve_take_2d(&ex->work, head->chunk_numel, vocab_numel, TESS_F32, &run->logits));
    if (has_gradient) {
        TESS_TRY(tess_carve_take(&ex->work, h.numel, ex->dt, &run->d_n));
        run->d_logits = run->logits;
        if (ex->dt != TESS_F32)
            TESS_TRY(tess_carve_take_2d(&ex->work, head->chunk_numel, vocab_numel, ex->dt,
                                        &run->d_logits));
    }
    const tess_group rows = {.numel = 1, .linear = {&head->linear}, .in = run->n};
    TESS_TRY(tess_dora_norms(ex, &rows));
    const tess_norm_io io = {.x = h, .y = run->n.x, .inv_rms = run->inv_rms};
    return tess_norm_forward(ex, &head->norm, &io);
}

/* Every chunk has one when products are announced. */
static bool has_label(const int32_t *labels, int64_t row_numel)
{
    if (labels == NULL)
        return true;
    for (int64_t i = 0; i < row_numel; i++)
        if (labels[i] >= 0)
            return true;
    return false;
}

/* Rows [first, first + row_numel): logits, losses, and with a gradient the whole backward of the
 * projection. */
static tess_status chunk(tess_exec *ex, const head_run *run, int64_t first_row, int64_t row_numel)
{
    const tess_linear *linear = &run->head->linear;
    const int64_t vocab_numel = linear->out_numel;
    tess_group group = {.numel = 1, .linear = {linear}, .first_row = first_row, .has_norms = true};
    const tess_view logits = tess_view_rows(run->logits, 0, row_numel, vocab_numel);
    group.in.x = tess_rows_slice(run->n.x, first_row, row_numel);
    group.in.u[0] = tess_rows_slice(run->n.u[0], first_row, row_numel);
    group.in.z[0] = tess_rows_slice(run->n.z[0], 0, row_numel);
    group.in.norm[0] = run->n.norm[0];
    group.y[0] = tess_rows_of(logits, row_numel, vocab_numel);
    TESS_TRY(tess_group_forward(ex, &group));

    tess_cross_entropy_args args = {
        .logits = logits, .row_numel = row_numel, .vocab_numel = vocab_numel};
    args.d_logits = run->d_logits;
    if (!ex->is_plan) {
        args.labels = at(run->labels.label, first_row);
        args.row_loss = (double *)run->row_loss.data + first_row;
        args.grad_scale = ex->call->grad_scale;
    }
    if (run->d_logits.numel > 0)
        args.d_logits = tess_view_rows(run->d_logits, 0, row_numel, vocab_numel);
    TESS_TRY(TESS_EXEC_RUN(ex, cross_entropy, &args));
    if (run->d_n.numel == 0)
        return TESS_OK;
    group.y[0] = tess_rows_of(args.d_logits, row_numel, vocab_numel);
    return tess_group_backward(ex, &group,
                               tess_view_rows(run->d_n, first_row, row_numel, linear->in_numel));
}

static tess_status skip(const tess_exec *ex, const head_run *run, int64_t first_row,
                        int64_t row_numel)
{
    TESS_TRY(tess_exec_zero(ex, tess_view_slice(run->row_loss, first_row, row_numel)));
    if (run->d_n.numel == 0)
        return TESS_OK;
    return tess_exec_zero(
        ex, tess_view_rows(run->d_n, first_row, row_numel, run->head->linear.in_numel));
}

/* Workspaces need not grow with the number of rows: count the full chunk and the short one at the
 * end. All of them are counted. */
static tess_status plan_chunks(tess_exec *ex, const head_run *run)
{
    const int64_t tail_numel = ex->row_numel % run->head->chunk_numel;
    const int64_t full_numel = ex->row_numel / run->head->chunk_numel;
    const tess_cost before = ex->cost != NULL ? *ex->cost : (tess_cost){0};
    if (full_numel > 0)
        TESS_TRY(chunk(ex, run, 0, run->head->chunk_numel));
    if (full_numel > 0 && ex->cost != NULL)
        tess_cost_repeat(ex->cost, &before, (double)(full_numel - 1));
    return tail_numel > 0 ? chunk(ex, run, 0, tail_numel) : TESS_OK;
}

static tess_status all_chunks(tess_exec *ex, const head_run *run, double *loss_sum)
{
    if (ex->is_plan)
        return plan_chunks(ex, run);
    for (int64_t row = 0; row < ex->row_numel; row += run->head->chunk_numel) {
        const int64_t row_numel = TESS_MIN(run->head->chunk_numel, ex->row_numel - row);
        if (has_label(at(run->labels.host, row), row_numel))
            TESS_TRY(chunk(ex, run, row, row_numel));
        else
            TESS_TRY(skip(ex, run, row, row_numel));
    }
    const tess_sum_args args = {.x = run->row_loss.data, .numel = ex->row_numel, .out = loss_sum};
    return TESS_EXEC_RUN(ex, sum, &args);
}

tess_status tess_head_loss(tess_exec *ex, const tess_head *head, tess_view h, tess_labels labels,
                           double *loss_sum)
{
    const size_t mark = tess_carve_mark(&ex->work);
    head_run run = {.head = head, .labels = labels};
    TESS_TRY(begin(ex, &run, h, false));
    TESS_TRY(all_chunks(ex, &run, loss_sum));
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}

tess_status tess_head_loss_backward(tess_exec *ex, const tess_head *head, tess_view h,
                                    tess_labels labels, double *loss_sum, tess_view d_h)
{
    const size_t mark = tess_carve_mark(&ex->work);
    head_run run = {.head = head, .labels = labels};
    TESS_TRY(begin(ex, &run, h, true));
    TESS_TRY(all_chunks(ex, &run, loss_sum));
    tess_view none = {.dt = ex->dt};
    TESS_TRY(tess_norm_backward(ex, &head->norm, h, run.inv_rms, run.d_n, none,
                                d_h.numel > 0 ? d_h : run.d_n));
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}

tess_status tess_head_logits(tess_exec *ex, const tess_head *head, tess_view h, int64_t row_idx,
                             float *logits)
{
    const size_t mark = tess_carve_mark(&ex->work);
    const int64_t hidden_numel = head->linear.in_numel;
    tess_group group = {.numel = 1, .linear = {&head->linear}, .first_row = row_idx};
    tess_view row = {0};
    TESS_TRY(tess_group_take_input(ex, &group, 1, true, &ex->work, &group.in));
    TESS_TRY(tess_group_take_dora(ex, &group, 1, &ex->work, &group.in));
    const tess_norm_io io = {.x = tess_view_rows(h, row_idx, 1, hidden_numel), .y = group.in.x};
    TESS_TRY(tess_norm_forward(ex, &head->norm, &io));
    TESS_TRY(tess_carve_take(&ex->work, head->linear.out_numel, TESS_F32, &row));
    group.y[0] = tess_rows_of(row, 1, head->linear.out_numel);
    TESS_TRY(tess_group_forward(ex, &group));
    if (!ex->is_plan && !ex->is_announced)
        TESS_TRY(tess_device_copy(ex->call->device, tess_view_host(logits, row.numel, TESS_F32),
                                  row, ex->stream));
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}
