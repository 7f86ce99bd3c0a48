/**
 * One stage call as its layers see it: memory carved from the planned views, kernels, thread count.
 *
 * [Note: one source of sizes] A stage's code runs twice. In the describe phase `is_plan` is set:
 * views carry extents but no memory, kernels are not called, and the carves only count. In a call
 * the same code carves the same buffers in the same order. So `saved_nbytes` and `work_nbytes` of a
 * stage are what its code takes, and there is no second formula to keep in step. What the stage
 * costs is counted the same way, kernel by kernel, where `cost` points.
 */
#pragma once

#include "core/trace.h"
#include "kernels/cost_count.h"
#include "shard/registry.h"

TESS_BEGIN_DECLS

/** Stack of buffers in one view. */
typedef struct tess_carve {
    const char *name; /* "saved", "work": for messages */
    char *base;       /* NULL while planning */
    tess_space space;
    bool is_plan;
    size_t capacity_nbytes;
    size_t used_nbytes, peak_nbytes;
} tess_carve;

/** A matrix of activations: rows of `cols` elements, `stride` elements apart. */
typedef struct tess_rows {
    tess_view view; /* from the first element to the last, gaps included; numel 0: absent */
    int64_t rows, cols, stride;
} tess_rows;

/** What layers need of a call. Borrowed for the call. */
typedef struct tess_exec {
    const tess_kernels *kernels;
    const tess_registry *registry;
    const tess_stage_call *call; /* NULL while planning */
    tess_stream *stream;         /* NULL while planning */
    tess_space space;            /* of everything that kernels read and write */
    tess_dtype dt;               /* compute dtype */
    int thread_numel;
    bool is_plan;
    bool is_announced;      /* TESS_CALL_PREPARE_*: real addresses, no work but gemm_prepare */
    bool is_padded;         /* operands of one product lie side by side; see [Note: side by side] */
    float dropout;          /* LoRA dropout of this call; 0 in evaluation */
    int64_t row_numel;      /* tokens of the micro-batch */
    int64_t longest_numel;  /* sequence length */
    int64_t document_numel; /* of the micro-batch; 0: unknown */
    const int32_t *positions; /* [row_numel] */
    const int32_t *doc_start; /* [row_numel] */
    tess_carve saved, work;
    tess_cost *cost; /* where planned calls count; NULL: nowhere */
} tess_exec;

/** What every family's plan of a stage and its calls have: `saved` and `work` without bytes that
 * only count, or over the call's. The caller sets extents and dropout. Local. */
tess_exec tess_exec_plan(const tess_kernels *kernels, const tess_registry *reg, tess_dtype dt,
                         int thread_numel);
tess_exec tess_exec_begin(const tess_stage_call *call, tess_dtype dt, int thread_numel);

/** Count a planned call of a kernel. */
#define TESS_EXEC_COUNT(ex, args)                                                                  \
    ((ex)->cost != NULL ? TESS_COST_OF(args)((ex)->cost, (args)) : (void)0)

/** Run a kernel of a table, and record it where single kernels are; while planning only count it.
 */
#define TESS_EXEC_RUN_OF(ex, table, op, args)                                                      \
    ((ex)->is_plan ? (TESS_EXEC_COUNT(ex, args), (tess_status)TESS_OK)                             \
     : (ex)->is_announced                                                                          \
         ? TESS_OK                                                                                 \
         : (tess_trace_kernel_begin((ex)->stream, #op),                                            \
            tess_trace_kernel_end((ex)->stream, (table)->op((args), (ex)->stream))))
#define TESS_EXEC_RUN(ex, op, args) TESS_EXEC_RUN_OF(ex, (ex)->kernels, op, args)

/** A view in the space of a call's kernels. Local. */
static inline tess_view tess_exec_view(const tess_exec *ex, void *data, int64_t numel,
                                       tess_dtype dt)
{
    return (tess_view){data, numel, dt, ex->space};
}
/** Enqueue zero bytes, or nothing while planning. Local. */
TESS_MUST_CHECK tess_status tess_exec_zero(const tess_exec *ex, tess_view v);

/** Carve over a U8_OPAQUE view; only counting when `is_plan`. Local. */
tess_carve tess_carve_make(const char *name, tess_view view, bool is_plan);
/** Next `numel` elements, at a multiple of 256 bytes. Local. @return TESS_E_STATE beyond what was
 * planned */
TESS_MUST_CHECK tess_status tess_carve_take(tess_carve *carve, int64_t numel, tess_dtype dt,
                                            tess_view *out);
/** Rows x cols elements. Local. @return as tess_carve_take, TESS_E_RANGE */
TESS_MUST_CHECK tess_status tess_carve_take_2d(tess_carve *carve, int64_t rows, int64_t cols,
                                               tess_dtype dt, tess_view *out);
/** Place to go back to. Local. */
static inline size_t tess_carve_mark(const tess_carve *carve) { return carve->used_nbytes; }
static inline void tess_carve_release(tess_carve *carve, size_t mark) { carve->used_nbytes = mark; }

/** Contiguous rows over a view. Local. */
static inline tess_rows tess_rows_of(tess_view v, int64_t rows, int64_t cols)
{
    return (tess_rows){v, rows, cols, cols};
}
/** Columns [first, first + cols) of all rows; legal while planning. Local. */
tess_rows tess_rows_cols(tess_rows m, int64_t first, int64_t cols);
/** Rows [first, first + rows); legal while planning. Local. */
tess_rows tess_rows_slice(tess_rows m, int64_t first, int64_t rows);
/** Next rows of `cols` elements, contiguous. Local. @return as tess_carve_take */
TESS_MUST_CHECK tess_status tess_carve_take_rows(tess_carve *carve, int64_t rows, int64_t cols,
                                                 tess_dtype dt, tess_rows *out);
/** 0 for contiguous rows, as kernels take it. Local. */
static inline int64_t tess_rows_gap(const tess_rows *m)
{
    return m->stride == m->cols ? 0 : m->stride;
}
/** Enqueue a copy between rows of equal extents, or nothing while planning. Local. */
TESS_MUST_CHECK tess_status tess_exec_copy_rows(const tess_exec *ex, tess_rows dst, tess_rows src);

/** Rows [first, first + rows) of a [?, cols] view; legal while planning. Local. */
tess_view tess_view_rows(tess_view v, int64_t first_row, int64_t row_numel, int64_t col_numel);
/** Typed alias of the first `numel` elements of a U8_OPAQUE view. Local. @return TESS_E_ARG too
 * small */
TESS_MUST_CHECK tess_status tess_exec_typed(const tess_exec *ex, const char *what, tess_view bytes,
                                            int64_t numel, tess_dtype dt, tess_view *out);
/** An activation as a matrix operand. Local. */
tess_matrix tess_rows_matrix(const tess_rows *m);
/** Parameter of this call as a stored matrix; shape only while planning. Local. */
tess_matrix tess_exec_matrix(const tess_exec *ex, int param_idx);
/** Parameter with plain storage as a view [numel] f32 or bf16. Local. @return TESS_E_DTYPE when
 * quantized */
TESS_MUST_CHECK tess_status tess_exec_vector(const tess_exec *ex, int param_idx, tess_view *out);
/** Gradient of a trainable parameter as a view [numel] f32. Local. */
tess_view tess_exec_grad(const tess_exec *ex, int param_idx);
/** out = x where gate is above 0, else 0; out may be either. Local. */
TESS_MUST_CHECK static inline tess_status tess_exec_relu(const tess_exec *ex, tess_view x,
                                                         tess_view gate, tess_view out)
{
    const tess_relu_args args = {.x = x, .gate = gate, .out = out};
    return TESS_EXEC_RUN(ex, relu, &args);
}
/** Matrix product with its workspace from `work`. Local. */
TESS_MUST_CHECK tess_status tess_exec_gemm(tess_exec *ex, tess_gemm_args *args);

TESS_END_DECLS
