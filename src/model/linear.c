#include "model/linear_priv.h"

#include "core/arith.h"
#include "core/rng.h"

bool tess_linear_learns(const tess_linear *linear)
{
    return linear->is_trainable || linear->lora_rank > 0;
}

tess_group tess_group_of(const tess_exec *ex, const tess_linear *linear, const tess_rows *x,
                         const tess_rows *y)
{
    const tess_rows none = tess_rows_of(tess_exec_view(ex, NULL, 0, ex->dt), x->rows, 0);
    tess_group group = {.numel = 1, .linear = {linear}, .in = {.x = *x}, .y = {*y}};
    group.in.u[0] = group.in.z[0] = group.d_out = none;
    return group;
}

/* ---- buffers ---- */

/* Rows start at multiples of 16 bytes, which vector loads and matrix libraries like. */
static int64_t padded(const tess_exec *ex, int64_t cols)
{
    return tess_round_up(cols, 16 / (int64_t)tess_dtype_block_nbytes(ex->dt));
}

static tess_status take_wide(const tess_exec *ex, int64_t rows, int64_t cols, tess_carve *carve,
                             tess_rows *out)
{
    TESS_TRY(tess_carve_take_rows(carve, rows, padded(ex, cols), ex->dt, out));
    *out = tess_rows_cols(*out, 0, cols);
    return TESS_OK;
}

static int64_t rank_sum(const tess_group *group)
{
    int64_t sum = 0;
    for (int i = 0; i < group->numel; i++)
        sum += group->linear[i]->lora_rank;
    return sum;
}

static int64_t out_sum(const tess_group *group)
{
    int64_t sum = 0;
    for (int i = 0; i < group->numel; i++)
        sum += group->linear[i]->out_numel;
    return sum;
}

/* Whether linear `i` has the A of the one before it, and so its u. */
static bool has_same_a(const tess_group *group, int i)
{
    return i > 0 && group->linear[i]->lora_rank > 0 &&
           group->linear[i]->lora_a_idx == group->linear[i - 1]->lora_a_idx;
}

tess_status tess_group_take_input(const tess_exec *ex, const tess_group *group, int64_t row_numel,
                                  bool wants_x, tess_carve *carve, tess_group_input *in)
{
    const int64_t in_numel = group->linear[0]->in_numel;
    const bool is_padded = ex->is_padded && rank_sum(group) > 0;
    tess_rows wide = {.view = tess_exec_view(ex, NULL, 0, ex->dt), .rows = row_numel};
    *in = (tess_group_input){.x = tess_rows_of(wide.view, row_numel, in_numel)};
    if (is_padded)
        TESS_TRY(take_wide(ex, row_numel, in_numel + rank_sum(group), carve, &wide));
    else if (wants_x)
        TESS_TRY(tess_carve_take_rows(carve, row_numel, in_numel, ex->dt, &in->x));
    if (is_padded)
        in->x = tess_rows_cols(wide, 0, in_numel);
    for (int i = 0, at = 0; i < group->numel; i++) {
        const int64_t rank = group->linear[i]->lora_rank;
        in->u[i] = tess_rows_of(tess_exec_view(ex, NULL, 0, ex->dt), row_numel, 0);
        if (is_padded && rank > 0)
            in->u[i] = tess_rows_cols(wide, in_numel + at, rank);
        else if (has_same_a(group, i))
            in->u[i] = in->u[i - 1];
        else if (rank > 0)
            TESS_TRY(tess_carve_take_rows(carve, row_numel, rank, ex->dt, &in->u[i]));
        at += (int)rank;
    }
    return TESS_OK;
}

tess_status tess_group_take_gradient(tess_exec *ex, tess_group *group, int64_t row_numel)
{
    group->d_out = (tess_rows){.view = tess_exec_view(ex, NULL, 0, ex->dt)};
    if (ex->is_padded)
        TESS_TRY(
            take_wide(ex, row_numel, out_sum(group) + rank_sum(group), &ex->work, &group->d_out));
    int64_t at = 0;
    for (int i = 0; i < group->numel; i++) {
        const int64_t out_numel = group->linear[i]->out_numel;
        if (ex->is_padded)
            group->y[i] = tess_rows_cols(group->d_out, at, out_numel);
        else
            TESS_TRY(tess_carve_take_rows(&ex->work, row_numel, out_numel, ex->dt, &group->y[i]));
        at += out_numel;
    }
    return TESS_OK;
}

/* ---- products ---- */

/* c = scale * a op b, one term. */
static tess_status product(tess_exec *ex, tess_gemm_kind kind, const tess_gemm_term *term,
                           const tess_rows *c)
{
    tess_gemm_args args = {.kind = kind,
                           .m = c->rows,
                           .n = c->cols,
                           .term_numel = 1,
                           .c = c->view,
                           .c_stride = tess_rows_gap(c)};
    args.term[0] = *term;
    return tess_exec_gemm(ex, &args);
}

/* grad += a^T b over the rows. */
static tess_status weight_grad(tess_exec *ex, const tess_rows *a, const tess_rows *b,
                               tess_view grad)
{
    tess_gemm_args args = {.kind = TESS_GEMM_TN, .m = a->cols, .n = b->cols, .term_numel = 1};
    args.term[0] = tess_linear_term(a, tess_rows_matrix(b), a->rows, 1.0f);
    args.c = grad;
    args.accumulate = true;
    return tess_exec_gemm(ex, &args);
}

tess_status tess_linear_bias_grad(tess_exec *ex, int bias_idx, const tess_rows *d_y)
{
    const size_t mark = tess_carve_mark(&ex->work);
    tess_view work = {0};
    tess_rows x = *d_y;
    if (tess_rows_gap(d_y) != 0) {
        TESS_TRY(tess_carve_take_rows(&ex->work, d_y->rows, d_y->cols, ex->dt, &x));
        TESS_TRY(tess_exec_copy_rows(ex, x, *d_y));
    }
    TESS_TRY(tess_carve_take_2d(&ex->work, 16, d_y->cols, TESS_F32, &work));
    const tess_sum_rows_args args = {.x = x.view,
                                     .row_numel = x.rows,
                                     .dim = d_y->cols,
                                     .out = tess_exec_grad(ex, bias_idx).data,
                                     .work = work.data};
    TESS_TRY(TESS_EXEC_RUN(ex, sum_rows, &args));
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}

/* ---- adapters ---- */

/* out = add + mask * x / (1 - p) with the mask of this adapter and micro-batch; x is [R, in]. */
static tess_status drop(tess_exec *ex, const tess_group *group, const tess_linear *linear,
                        tess_view x, tess_view add, tess_view out)
{
    tess_dropout_args args = {.x = x, .add = add, .out = out, .p = ex->dropout};
    args.first_idx = group->first_row * linear->in_numel;
    if (!ex->is_plan)
        args.rng = tess_rng_make(ex->call->seed, TESS_RNG_DROPOUT, linear->adapter_idx,
                                 (uint32_t)ex->call->micro_batch_idx);
    return TESS_EXEC_RUN(ex, dropout, &args);
}

tess_status tess_linear_adapter_input(tess_exec *ex, const tess_group *group,
                                      const tess_linear *linear, tess_rows *out)
{
    const tess_rows *x = &group->in.x;
    const tess_view none = tess_exec_view(ex, NULL, 0, ex->dt);
    *out = *x;
    if (ex->dropout == 0.0f)
        return TESS_OK;
    TESS_TRY(tess_carve_take_rows(&ex->work, x->rows, x->cols, ex->dt, out));
    if (tess_rows_gap(x) == 0)
        return drop(ex, group, linear, x->view, none, out->view);
    TESS_TRY(tess_exec_copy_rows(ex, *out, *x));
    return drop(ex, group, linear, out->view, none, out->view);
}

/* Adapters [first, first + n) whose matrices A follow each other in the slab, as do their columns
 * of u: one product makes all of them. */
static int adapters_in_row(const tess_exec *ex, const tess_group *group, int first)
{
    const tess_linear *a = group->linear[first];
    int n = 1;
    for (; ex->is_padded && ex->dropout == 0.0f && first + n < group->numel; n++) {
        const tess_linear *b = group->linear[first + n];
        if (b->lora_rank == 0 || b->lora_scale != a->lora_scale)
            break;
        if (!tess_registry_is_behind(ex->registry, group->linear[first + n - 1]->lora_a_idx,
                                     b->lora_a_idx))
            break;
    }
    return n;
}

static int64_t ranks_of(const tess_group *group, int first, int numel)
{
    int64_t sum = 0;
    for (int i = first; i < first + numel; i++)
        sum += group->linear[i]->lora_rank;
    return sum;
}

/* u = s x A^T of adapters in a row. */
static tess_status adapters_down(tess_exec *ex, const tess_group *group, int first, int numel)
{
    const tess_linear *linear = group->linear[first];
    const size_t mark = tess_carve_mark(&ex->work);
    tess_rows x = {0};
    TESS_TRY(tess_linear_adapter_input(ex, group, linear, &x));
    const int64_t rank = ranks_of(group, first, numel);
    tess_matrix a = tess_exec_matrix(ex, linear->lora_a_idx);
    a.rows = rank;
    const tess_gemm_term term = tess_linear_term(&x, a, linear->in_numel, linear->lora_scale);
    const tess_rows u = tess_rows_cols(group->in.u[first], 0, rank);
    TESS_TRY(product(ex, TESS_GEMM_NT, &term, &u));
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}

static tess_status output(tess_exec *ex, const tess_group *group, int i)
{
    const tess_linear *linear = group->linear[i];
    const tess_rows *x = &group->in.x, *y = &group->y[i];
    tess_gemm_args args = {.kind = TESS_GEMM_NT, .m = x->rows, .n = linear->out_numel};
    args.c = y->view;
    args.c_stride = tess_rows_gap(y);
    args.term[args.term_numel++] =
        tess_linear_term(x, tess_exec_matrix(ex, linear->weight_idx), linear->in_numel, 1.0f);
    if (linear->lora_rank > 0)
        args.term[args.term_numel++] = tess_linear_term(
            &group->in.u[i], tess_exec_matrix(ex, linear->lora_b_idx), linear->lora_rank, 1.0f);
    tess_matrix bias = {0};
    if (linear->bias_idx >= 0) {
        bias = tess_exec_matrix(ex, linear->bias_idx);
        args.bias = &bias;
    }
    return tess_exec_gemm(ex, &args);
}

tess_status tess_group_forward(tess_exec *ex, const tess_group *group)
{
    if (!group->has_norms)
        TESS_TRY(tess_dora_norms(ex, group));
    for (int i = 0, n = 1; i < group->numel; i += n) {
        n = 1;
        if (group->linear[i]->lora_rank == 0 || (has_same_a(group, i) && !ex->is_padded))
            continue;
        n = adapters_in_row(ex, group, i);
        TESS_TRY(adapters_down(ex, group, i, n));
    }
    for (int i = 0; i < group->numel; i++) {
        if (group->linear[i]->magnitude_idx >= 0)
            TESS_TRY(tess_dora_output(ex, group, i));
        else if (group->y[i].view.numel > 0)
            TESS_TRY(output(ex, group, i));
    }
    return TESS_OK;
}

/* ---- backward ---- */

/* What backward works on: the caller's gradients, side by side where the backend wants them so. */
typedef struct gradients {
    tess_rows d_y[TESS_GROUP_MAX]; /* of x W^T */
    tess_rows d_u[TESS_GROUP_MAX];
    tess_dora_gradients dora[TESS_GROUP_MAX]; /* d_z: of u B^T, d_y itself without DoRA */
} gradients;

/* Where the gradients of a DoRA linear go. Without dropout x W^T and u B^T have the same one. */
static tess_status take_dora_gradients(tess_exec *ex, const tess_group *group, gradients *g, int i,
                                       bool is_wide)
{
    const int64_t rows = group->y[i].rows, out_numel = group->linear[i]->out_numel;
    tess_dora_gradients *dora = &g->dora[i];
    tess_rows direct = {0};
    if (ex->dropout > 0.0f) {
        TESS_TRY(tess_carve_take_rows(&ex->work, rows, out_numel, ex->dt, &dora->d_z));
        TESS_TRY(tess_carve_take_rows(&ex->work, rows, out_numel, ex->dt, &direct));
        dora->d_direct = direct.view;
    } else if (!is_wide) {
        TESS_TRY(tess_carve_take_rows(&ex->work, rows, out_numel, ex->dt, &g->d_y[i]));
    }
    if (ex->dropout == 0.0f)
        dora->d_z = g->d_y[i];
    return tess_dora_backward(ex, group, i, dora);
}

static tess_status gather_gradients(tess_exec *ex, const tess_group *group, gradients *g)
{
    const int64_t rows = group->y[0].rows, out_numel = out_sum(group), rank = rank_sum(group);
    const bool is_padded = ex->is_padded && (group->numel > 1 || rank > 0);
    tess_rows wide = group->d_out;
    if (is_padded && wide.view.numel == 0)
        TESS_TRY(take_wide(ex, rows, out_numel + rank, &ex->work, &wide));
    int64_t at = 0, u_at = out_numel;
    for (int i = 0; i < group->numel; i++) {
        const tess_linear *linear = group->linear[i];
        const bool is_dora = linear->magnitude_idx >= 0;
        const bool is_rescaled = is_dora && ex->dropout == 0.0f; /* d_y is written there */
        g->d_y[i] = group->y[i];
        g->d_u[i] = tess_rows_of(tess_exec_view(ex, NULL, 0, ex->dt), rows, 0);
        if (is_padded && group->d_out.view.numel == 0) {
            g->d_y[i] = tess_rows_cols(wide, at, linear->out_numel);
            if (!is_rescaled)
                TESS_TRY(tess_exec_copy_rows(ex, g->d_y[i], group->y[i]));
        }
        if (is_dora)
            TESS_TRY(take_dora_gradients(ex, group, g, i, is_padded));
        else
            g->dora[i].d_z = g->d_y[i];
        if (is_padded && linear->lora_rank > 0)
            g->d_u[i] = tess_rows_cols(wide, u_at, linear->lora_rank);
        else if (linear->lora_rank > 0)
            TESS_TRY(tess_carve_take_rows(&ex->work, rows, linear->lora_rank, ex->dt, &g->d_u[i]));
        at += linear->out_numel;
        u_at += linear->lora_rank;
    }
    return TESS_OK;
}

/* du = round(s dz B); dB += dz^T u; dz = dy without DoRA. */
static tess_status adapter_up(tess_exec *ex, const tess_group *group, const gradients *g, int i)
{
    const tess_linear *linear = group->linear[i];
    const tess_rows *d_z = &g->dora[i].d_z;
    const tess_gemm_term term = tess_linear_term(d_z, tess_exec_matrix(ex, linear->lora_b_idx),
                                                 linear->out_numel, linear->lora_scale);
    TESS_TRY(product(ex, TESS_GEMM_NN, &term, &g->d_u[i]));
    return weight_grad(ex, d_z, &group->in.u[i], tess_exec_grad(ex, linear->lora_b_idx));
}

/* dA += du^T drop(x) of adapters in a row: their gradients follow each other as they do. */
static tess_status adapters_grad(tess_exec *ex, const tess_group *group, const gradients *g,
                                 int first, int numel)
{
    const tess_linear *linear = group->linear[first];
    const int64_t rank = ranks_of(group, first, numel);
    const size_t mark = tess_carve_mark(&ex->work);
    tess_rows x = {0};
    TESS_TRY(tess_linear_adapter_input(ex, group, linear, &x));
    const tess_rows d_u = tess_rows_cols(g->d_u[first], 0, rank);
    tess_view grad = tess_exec_grad(ex, linear->lora_a_idx);
    grad.numel = rank * linear->in_numel;
    TESS_TRY(weight_grad(ex, &d_u, &x, grad));
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}

/* What goes into drop(x): du A, and with DoRA the rescaling of the base. */
static tess_status dropped_branch(tess_exec *ex, const tess_linear *linear, const gradients *g,
                                  int i, const tess_rows *branch)
{
    const tess_rows direct = tess_rows_of(g->dora[i].d_direct, branch->rows, linear->out_numel);
    tess_gemm_args args = {.kind = TESS_GEMM_NN,
                           .m = branch->rows,
                           .n = branch->cols,
                           .c = branch->view,
                           .c_stride = tess_rows_gap(branch)};
    if (linear->magnitude_idx >= 0)
        args.term[args.term_numel++] = tess_linear_term(
            &direct, tess_exec_matrix(ex, linear->weight_idx), linear->out_numel, 1.0f);
    args.term[args.term_numel++] = tess_linear_term(
        &g->d_u[i], tess_exec_matrix(ex, linear->lora_a_idx), linear->lora_rank, 1.0f);
    return tess_exec_gemm(ex, &args);
}

/* Adapter part of dx under dropout: every branch is masked by itself and added in f32; the last
 * addition rounds. */
static tess_status dropped_branches(tess_exec *ex, const tess_group *group, const gradients *g,
                                    tess_view sum, tess_view d_x)
{
    tess_rows branch = {0};
    TESS_TRY(tess_carve_take_rows(&ex->work, g->d_y[0].rows, group->linear[0]->in_numel, TESS_F32,
                                  &branch));
    int last = -1;
    for (int i = 0; i < group->numel; i++)
        last = group->linear[i]->lora_rank > 0 ? i : last;
    for (int i = 0; i <= last; i++) {
        const tess_linear *linear = group->linear[i];
        if (linear->lora_rank == 0)
            continue;
        TESS_TRY(dropped_branch(ex, linear, g, i, &branch));
        TESS_TRY(drop(ex, group, linear, branch.view, sum, i == last ? d_x : sum));
    }
    return TESS_OK;
}

static tess_status input_grad(tess_exec *ex, const tess_group *group, const gradients *g,
                              tess_view d_x)
{
    const int64_t in_numel = group->linear[0]->in_numel;
    tess_gemm_args args = {.kind = TESS_GEMM_NN, .m = g->d_y[0].rows, .n = in_numel, .c = d_x};
    const bool is_split = ex->dropout > 0.0f && rank_sum(group) > 0;
    for (int i = 0; i < group->numel; i++)
        args.term[args.term_numel++] =
            tess_linear_term(&g->d_y[i], tess_exec_matrix(ex, group->linear[i]->weight_idx),
                             group->linear[i]->out_numel, 1.0f);
    /* Behind them, in the order of columns where they lie side by side. */
    for (int i = 0; i < group->numel && !is_split; i++) {
        const tess_linear *linear = group->linear[i];
        if (linear->lora_rank > 0)
            args.term[args.term_numel++] = tess_linear_term(
                &g->d_u[i], tess_exec_matrix(ex, linear->lora_a_idx), linear->lora_rank, 1.0f);
    }
    if (!is_split)
        return tess_exec_gemm(ex, &args);
    tess_view sum = {0};
    TESS_TRY(tess_carve_take(&ex->work, d_x.numel, TESS_F32, &sum));
    args.c = sum;
    TESS_TRY(tess_exec_gemm(ex, &args));
    return dropped_branches(ex, group, g, sum, d_x);
}

static tess_status parameter_grads(tess_exec *ex, const tess_group *group, const gradients *g)
{
    for (int i = 0; i < group->numel; i++) {
        const tess_linear *linear = group->linear[i];
        if (linear->lora_rank > 0)
            TESS_TRY(adapter_up(ex, group, g, i));
        if (!linear->is_trainable)
            continue;
        TESS_TRY(weight_grad(ex, &g->d_y[i], &group->in.x, tess_exec_grad(ex, linear->weight_idx)));
        if (linear->bias_idx >= 0)
            TESS_TRY(tess_linear_bias_grad(ex, linear->bias_idx, &g->d_y[i]));
    }
    for (int i = 0, n = 1; i < group->numel; i += n) {
        n = 1;
        if (group->linear[i]->lora_rank == 0)
            continue;
        n = adapters_in_row(ex, group, i);
        TESS_TRY(adapters_grad(ex, group, g, i, n));
    }
    return TESS_OK;
}

tess_status tess_group_backward(tess_exec *ex, const tess_group *group, tess_view d_x)
{
    TESS_CHECK(group->numel >= 1 && group->numel <= TESS_GROUP_MAX, TESS_E_ARG,
               "group of %d linears: expected 1 to %d", group->numel, TESS_GROUP_MAX);
    const size_t mark = tess_carve_mark(&ex->work);
    gradients g = {0};
    TESS_TRY(gather_gradients(ex, group, &g));
    TESS_TRY(parameter_grads(ex, group, &g));
    if (d_x.numel > 0)
        TESS_TRY(input_grad(ex, group, &g, d_x));
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}
