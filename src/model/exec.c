#include "model/exec_priv.h"

#include "core/arith.h"
#include "core/memory.h"

tess_carve tess_carve_make(const char *name, tess_view view, bool is_plan)
{
    const tess_carve carve = {.name = name,
                              .base = view.data,
                              .space = view.space,
                              .is_plan = is_plan,
                              .capacity_nbytes = tess_view_nbytes(view)};
    return carve;
}

tess_exec tess_exec_plan(const tess_kernels *kernels, const tess_registry *reg, tess_dtype dt,
                         int thread_numel)
{
    return (tess_exec){.kernels = kernels,
                       .registry = reg,
                       .dt = dt,
                       .thread_numel = thread_numel,
                       .is_plan = true,
                       .is_padded = kernels->wants_adjacent_terms,
                       .saved = tess_carve_make("saved", (tess_view){0}, true),
                       .work = tess_carve_make("work", (tess_view){0}, true)};
}

tess_exec tess_exec_begin(const tess_stage_call *call, tess_dtype dt, int thread_numel)
{
    return (tess_exec){.kernels = call->kernels,
                       .registry = call->registry,
                       .call = call,
                       .stream = call->stream,
                       .space = call->device->space,
                       .dt = dt,
                       .thread_numel = thread_numel,
                       .is_announced = tess_call_is_announced(call->mode),
                       .is_padded = call->kernels->wants_adjacent_terms,
                       .saved = tess_carve_make("saved", call->saved, false),
                       .work = tess_carve_make("work", call->work, false)};
}

tess_status tess_carve_take(tess_carve *carve, int64_t numel, tess_dtype dt, tess_view *out)
{
    size_t nbytes = 0;
    TESS_TRY(tess_nbytes(dt, numel, &nbytes));
    int64_t end_nbytes = 0;
    TESS_TRY(tess_add_i64((int64_t)carve->used_nbytes, (int64_t)nbytes, &end_nbytes));
    TESS_CHECK(carve->is_plan || (size_t)end_nbytes <= carve->capacity_nbytes, TESS_E_STATE,
               "stage memory '%s': %" PRId64 " bytes needed, %zu given; pass views of the planned "
               "sizes and a batch no larger than the planned micro-batch",
               carve->name, end_nbytes, carve->capacity_nbytes);
    *out = (tess_view){carve->is_plan || numel == 0 ? NULL : carve->base + carve->used_nbytes,
                       numel, dt, carve->space};
    /* The peak ends at the last byte used; only the next buffer needs the alignment. */
    carve->peak_nbytes = TESS_MAX(carve->peak_nbytes, (size_t)end_nbytes);
    carve->used_nbytes = (size_t)tess_round_up(end_nbytes, TESS_ARENA_ALIGN_NBYTES);
    return TESS_OK;
}

tess_status tess_carve_take_2d(tess_carve *carve, int64_t rows, int64_t cols, tess_dtype dt,
                               tess_view *out)
{
    int64_t numel = 0;
    TESS_TRY(tess_mul_i64(rows, cols, &numel));
    return tess_carve_take(carve, numel, dt, out);
}

tess_view tess_view_rows(tess_view v, int64_t first_row, int64_t row_numel, int64_t col_numel)
{
    if (v.data != NULL)
        return tess_view_slice(v, first_row * col_numel, row_numel * col_numel);
    v.numel = row_numel * col_numel;
    return v;
}

tess_status tess_exec_typed(const tess_exec *ex, const char *what, tess_view bytes, int64_t numel,
                            tess_dtype dt, tess_view *out)
{
    size_t nbytes = 0;
    TESS_TRY(tess_nbytes(dt, numel, &nbytes));
    TESS_CHECK(ex->is_plan || (bytes.data != NULL && tess_view_nbytes(bytes) >= nbytes), TESS_E_ARG,
               "stage view '%s': expected at least %zu bytes, found %zu", what, nbytes,
               tess_view_nbytes(bytes));
    *out = (tess_view){bytes.data, numel, dt, bytes.space};
    return TESS_OK;
}

static tess_format plain_format(tess_dtype dt)
{
    return dt == TESS_F32 ? TESS_FORMAT_F32 : TESS_FORMAT_BF16;
}

tess_matrix tess_rows_matrix(const tess_rows *m)
{
    const tess_matrix out = {.codec = {.format = plain_format(m->view.dt)},
                             .rows = m->rows,
                             .cols = m->cols,
                             .stride = tess_rows_gap(m),
                             .part = {m->view.data}};
    return out;
}

tess_matrix tess_exec_matrix(const tess_exec *ex, int param_idx)
{
    if (!ex->is_plan)
        return tess_call_matrix(ex->call, param_idx);
    const tess_param *p = &ex->registry->param[param_idx];
    tess_matrix m = {.codec = p->codec};
    if (p->role == TESS_ROLE_TRAINABLE)
        m.codec = (tess_codec){.format = plain_format(tess_param_compute_dt(ex->registry, p))};
    m.rows = p->shape_rank == 1 ? 1 : p->shape[0];
    m.cols = p->numel / m.rows;
    return m;
}

tess_status tess_exec_vector(const tess_exec *ex, int param_idx, tess_view *out)
{
    const tess_matrix m = tess_exec_matrix(ex, param_idx);
    const tess_param *p = &ex->registry->param[param_idx];
    TESS_CHECK(!tess_format_is_quantized(m.codec.format), TESS_E_DTYPE,
               "tensor '%s': expected f32 or bf16, found %s; only 2-D weights can be quantized",
               p->name, tess_format_name(m.codec.format));
    /* Views carry no const; kernels take weights as inputs only. */
    *out = tess_exec_view(ex, (void *)m.part[0], p->numel,
                          m.codec.format == TESS_FORMAT_F32 ? TESS_F32 : TESS_BF16);
    return TESS_OK;
}

tess_view tess_exec_grad(const tess_exec *ex, int param_idx)
{
    const int64_t numel = ex->registry->param[param_idx].numel;
    return tess_exec_view(ex, ex->is_plan ? NULL : tess_call_grad(ex->call, param_idx), numel,
                          TESS_F32);
}

tess_status tess_exec_gemm(tess_exec *ex, tess_gemm_args *args)
{
    const size_t mark = tess_carve_mark(&ex->work);
    const size_t nbytes = ex->kernels->gemm_work_nbytes(args, ex->thread_numel);
    TESS_TRY(tess_carve_take(&ex->work, (int64_t)nbytes, TESS_U8_OPAQUE, &args->work));
    if (ex->is_announced)
        TESS_TRY(ex->kernels->gemm_prepare(args, ex->stream));
    else
        TESS_TRY(TESS_EXEC_RUN(ex, gemm, args));
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}

tess_status tess_exec_zero(const tess_exec *ex, tess_view v)
{
    if (ex->is_plan && ex->cost != NULL)
        tess_count_copy(ex->cost, 0.5 * (double)tess_view_nbytes(v));
    if (ex->is_plan || ex->is_announced)
        return TESS_OK;
    tess_trace_kernel_begin(ex->stream, "zero");
    return tess_trace_kernel_end(ex->stream, tess_device_zero(ex->call->device, v, ex->stream));
}

static int64_t span(int64_t rows, int64_t cols, int64_t stride)
{
    return rows > 0 ? (rows - 1) * stride + cols : 0;
}

tess_rows tess_rows_cols(tess_rows m, int64_t first, int64_t cols)
{
    if (m.view.data != NULL)
        m.view = tess_view_slice(m.view, first, 0);
    m.cols = cols;
    m.view.numel = span(m.rows, cols, m.stride);
    return m;
}

tess_rows tess_rows_slice(tess_rows m, int64_t first, int64_t rows)
{
    if (m.view.data != NULL)
        m.view = tess_view_slice(m.view, first * m.stride, 0);
    m.rows = rows;
    m.view.numel = span(rows, m.cols, m.stride);
    return m;
}

tess_status tess_carve_take_rows(tess_carve *carve, int64_t rows, int64_t cols, tess_dtype dt,
                                 tess_rows *out)
{
    tess_view v = {0};
    TESS_TRY(tess_carve_take_2d(carve, rows, cols, dt, &v));
    *out = tess_rows_of(v, rows, cols);
    return TESS_OK;
}

tess_status tess_exec_copy_rows(const tess_exec *ex, tess_rows dst, tess_rows src)
{
    const int64_t item = (int64_t)tess_dtype_block_nbytes(src.view.dt);
    if (ex->is_plan && ex->cost != NULL)
        tess_count_copy(ex->cost, (double)item * (double)src.rows * (double)src.cols);
    if (ex->is_plan || ex->is_announced)
        return TESS_OK;
    const tess_rows_copy copy = {.dst = dst.view.data,
                                 .src = src.view.data,
                                 .dst_stride_nbytes = dst.stride * item,
                                 .src_stride_nbytes = src.stride * item,
                                 .row_numel = src.rows,
                                 .row_nbytes = src.cols * item};
    tess_trace_kernel_begin(ex->stream, "copy_rows");
    return tess_trace_kernel_end(ex->stream,
                                 tess_device_copy_rows(ex->call->device, &copy, ex->stream));
}
