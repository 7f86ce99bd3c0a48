#include "model/layers_priv.h"

#include "core/rng.h"

bool tess_linear_learns(const tess_linear *linear)
{
    return linear->is_trainable || linear->lora_rank > 0;
}

tess_status tess_linear_take_u(const tess_exec *ex, const tess_linear *linear, int64_t row_numel,
                               tess_carve *carve, tess_view *u)
{
    *u = tess_exec_view(ex, NULL, 0, ex->dt);
    if (linear->lora_rank == 0)
        return TESS_OK;
    return tess_carve_take_2d(carve, row_numel, linear->lora_rank, ex->dt, u);
}

static tess_gemm_term term_of(tess_view a, tess_matrix b, int64_t k, float scale)
{
    const tess_gemm_term term = {.a = a, .b = b, .k = k, .scale = scale};
    return term;
}

/* c = scale * a op b, one term. */
static tess_status product(tess_exec *ex, tess_gemm_kind kind, const tess_gemm_term *term,
                           int64_t m, int64_t n, tess_view c)
{
    tess_gemm_args args = {.kind = kind, .m = m, .n = n, .term_numel = 1, .c = c};
    args.term[0] = *term;
    return tess_exec_gemm(ex, &args);
}

/* grad += a^T b over the rows. */
static tess_status weight_grad(tess_exec *ex, tess_view a, tess_view b, int64_t row_numel,
                               int param_idx)
{
    const int64_t m = a.numel / row_numel, n = b.numel / row_numel;
    tess_gemm_args args = {.kind = TESS_GEMM_TN, .m = m, .n = n, .term_numel = 1};
    args.term[0] = term_of(a, tess_view_matrix(b, row_numel, n), row_numel, 1.0f);
    args.c = tess_exec_grad(ex, param_idx);
    args.accumulate = true;
    return tess_exec_gemm(ex, &args);
}

static tess_status bias_grad(tess_exec *ex, const tess_linear *linear, tess_view d_y,
                             int64_t row_numel)
{
    const size_t mark = tess_carve_mark(&ex->work);
    tess_view work = {0};
    TESS_TRY(tess_carve_take_2d(&ex->work, 16, linear->out_numel, TESS_F32, &work));
    const tess_sum_rows_args args = {.x = d_y,
                                     .row_numel = row_numel,
                                     .dim = linear->out_numel,
                                     .out = tess_exec_grad(ex, linear->bias_idx).data,
                                     .work = work.data};
    TESS_TRY(TESS_EXEC_RUN(ex, sum_rows, &args));
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}

/* out = add + mask * x / (1 - p) with the mask of this adapter and micro-batch; x is [R, in]. */
static tess_status drop(tess_exec *ex, const tess_linear *linear, const tess_linear_input *in,
                        tess_view x, tess_view add, tess_view out)
{
    tess_dropout_args args = {.x = x, .add = add, .out = out, .p = ex->dropout};
    args.first_idx = in->first_row * linear->in_numel;
    if (!ex->is_plan)
        args.rng = tess_rng_make(ex->call->seed, TESS_RNG_DROPOUT, linear->adapter_idx,
                                 (uint32_t)ex->call->micro_batch_idx);
    return TESS_EXEC_RUN(ex, dropout, &args);
}

/* Input of the adapter: x itself, or its dropped copy in `work`. */
static tess_status adapter_input(tess_exec *ex, const tess_linear *linear,
                                 const tess_linear_input *in, tess_view *out)
{
    *out = in->x;
    if (ex->dropout == 0.0f)
        return TESS_OK;
    TESS_TRY(tess_carve_take_2d(&ex->work, in->row_numel, linear->in_numel, ex->dt, out));
    return drop(ex, linear, in, in->x, tess_exec_view(ex, NULL, 0, ex->dt), *out);
}

static tess_status adapter_down(tess_exec *ex, const tess_linear_input *in,
                                const tess_linear_io *io)
{
    const tess_linear *linear = io->linear;
    const size_t mark = tess_carve_mark(&ex->work);
    tess_view x = {0};
    TESS_TRY(adapter_input(ex, linear, in, &x));
    const tess_gemm_term term =
        term_of(x, tess_exec_matrix(ex, linear->lora_a_idx), linear->in_numel, linear->lora_scale);
    TESS_TRY(product(ex, TESS_GEMM_NT, &term, in->row_numel, linear->lora_rank, io->u));
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}

tess_status tess_linear_forward(tess_exec *ex, const tess_linear_input *in,
                                const tess_linear_io *io)
{
    const tess_linear *linear = io->linear;
    if (linear->lora_rank > 0)
        TESS_TRY(adapter_down(ex, in, io));
    if (io->y.numel == 0)
        return TESS_OK;
    tess_gemm_args args = {.kind = TESS_GEMM_NT, .m = in->row_numel, .n = linear->out_numel};
    args.c = io->y;
    args.term[args.term_numel++] =
        term_of(in->x, tess_exec_matrix(ex, linear->weight_idx), linear->in_numel, 1.0f);
    if (linear->lora_rank > 0) {
        args.term[args.term_numel++] =
            term_of(io->u, tess_exec_matrix(ex, linear->lora_b_idx), linear->lora_rank, 1.0f);
    }
    tess_matrix bias = {0};
    if (linear->bias_idx >= 0) {
        bias = tess_exec_matrix(ex, linear->bias_idx);
        args.bias = &bias;
    }
    return tess_exec_gemm(ex, &args);
}

/* du = round(s dy B); dB += dy^T u; dA += du^T drop(x). `d_u` stays in work for the input gradient.
 */
static tess_status adapter_backward(tess_exec *ex, const tess_linear_input *in,
                                    const tess_linear_io *io, tess_view *d_u)
{
    const tess_linear *linear = io->linear;
    TESS_TRY(tess_carve_take_2d(&ex->work, in->row_numel, linear->lora_rank, ex->dt, d_u));
    const tess_gemm_term term = term_of(io->y, tess_exec_matrix(ex, linear->lora_b_idx),
                                        linear->out_numel, linear->lora_scale);
    TESS_TRY(product(ex, TESS_GEMM_NN, &term, in->row_numel, linear->lora_rank, *d_u));
    TESS_TRY(weight_grad(ex, io->y, io->u, in->row_numel, linear->lora_b_idx));
    const size_t mark = tess_carve_mark(&ex->work);
    tess_view x = {0};
    TESS_TRY(adapter_input(ex, linear, in, &x));
    TESS_TRY(weight_grad(ex, *d_u, x, in->row_numel, linear->lora_a_idx));
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}

/* Adapter part of dx under dropout: every branch is masked by itself and added in f32; the last
 * addition rounds. */
static tess_status dropped_branches(tess_exec *ex, const tess_linear_input *in,
                                    const tess_linear_io *io, const tess_view *d_u, int io_numel,
                                    tess_view sum, tess_view d_x)
{
    tess_view branch = {0};
    TESS_TRY(tess_carve_take(&ex->work, sum.numel, TESS_F32, &branch));
    int last = -1;
    for (int i = 0; i < io_numel; i++)
        last = io[i].linear->lora_rank > 0 ? i : last;
    for (int i = 0; i <= last; i++) {
        const tess_linear *linear = io[i].linear;
        if (linear->lora_rank == 0)
            continue;
        const tess_gemm_term term =
            term_of(d_u[i], tess_exec_matrix(ex, linear->lora_a_idx), linear->lora_rank, 1.0f);
        TESS_TRY(product(ex, TESS_GEMM_NN, &term, in->row_numel, linear->in_numel, branch));
        TESS_TRY(drop(ex, linear, in, branch, sum, i == last ? d_x : sum));
    }
    return TESS_OK;
}

static tess_status input_grad(tess_exec *ex, const tess_linear_input *in, const tess_linear_io *io,
                              const tess_view *d_u, int io_numel, tess_view d_x)
{
    const int64_t in_numel = io[0].linear->in_numel;
    tess_gemm_args args = {.kind = TESS_GEMM_NN, .m = in->row_numel, .n = in_numel, .c = d_x};
    bool is_split = false;
    for (int i = 0; i < io_numel; i++) {
        const tess_linear *linear = io[i].linear;
        args.term[args.term_numel++] =
            term_of(io[i].y, tess_exec_matrix(ex, linear->weight_idx), linear->out_numel, 1.0f);
        if (linear->lora_rank == 0)
            continue;
        if (ex->dropout > 0.0f)
            is_split = true;
        else
            args.term[args.term_numel++] =
                term_of(d_u[i], tess_exec_matrix(ex, linear->lora_a_idx), linear->lora_rank, 1.0f);
    }
    if (!is_split)
        return tess_exec_gemm(ex, &args);
    tess_view sum = {0};
    TESS_TRY(tess_carve_take(&ex->work, d_x.numel, TESS_F32, &sum));
    args.c = sum;
    TESS_TRY(tess_exec_gemm(ex, &args));
    return dropped_branches(ex, in, io, d_u, io_numel, sum, d_x);
}

tess_status tess_linear_group_backward(tess_exec *ex, const tess_linear_input *in,
                                       const tess_linear_io *io, int io_numel, tess_view d_x)
{
    TESS_CHECK(io_numel >= 1 && io_numel <= TESS_GROUP_MAX, TESS_E_ARG,
               "group of %d linears: expected 1 to %d", io_numel, TESS_GROUP_MAX);
    const size_t mark = tess_carve_mark(&ex->work);
    tess_view d_u[TESS_GROUP_MAX] = {0};
    for (int i = 0; i < io_numel; i++) {
        const tess_linear *linear = io[i].linear;
        if (linear->lora_rank > 0)
            TESS_TRY(adapter_backward(ex, in, &io[i], &d_u[i]));
        if (!linear->is_trainable)
            continue;
        TESS_TRY(weight_grad(ex, io[i].y, in->x, in->row_numel, linear->weight_idx));
        if (linear->bias_idx >= 0)
            TESS_TRY(bias_grad(ex, linear, io[i].y, in->row_numel));
    }
    if (d_x.numel > 0)
        TESS_TRY(input_grad(ex, in, io, d_u, io_numel, d_x));
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}
