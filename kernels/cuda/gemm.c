#include "kernels/cuda/gemm_priv.h"

#include <string.h>

#include "core/arith.h"
#include "core/trace.h"
#include "kernels/cuda/codec_priv.h"

enum { ALIGN_NBYTES = 256 };

typedef enum join_mode {
    JOIN_SEEN,    /* terms whose addresses say so */
    JOIN_ASSUMED, /* all that may lie side by side, as in planning without addresses */
    JOIN_NONE,
} join_mode;

/* Terms that are one product. */
typedef struct gemm_run {
    int first_term, term_numel;
    int64_t k;
    bool is_direct; /* B is used where it lies */
    int64_t b_stride;
    size_t offset_nbytes; /* of its B in scratch */
} gemm_run;

typedef struct gemm_plan {
    const tess_gemm_args *args;
    gemm_run run[TESS_GEMM_TERM_MAX];
    int run_numel;
    int64_t first_k[TESS_GEMM_TERM_MAX]; /* of a term in its run */
    bool has_sum;                        /* products add up in f32 scratch */
    bool has_epilogue;                   /* the last product adds the bias */
    bool is_finished;                    /* the small kernel has work to do */
    bool has_quantized;                  /* something is dequantized */
    int64_t chunk_rows;                  /* of C at a time */
    size_t sum_nbytes;                   /* f32 scratch, first in the workspace */
    size_t b_nbytes;                     /* B's, behind it */
} gemm_plan;

/* What a call runs with. */
typedef struct gemm_call {
    const gemm_plan *p;
    const tess_cuda_library *library;
    float *sum;
    char *b_scratch;
    tess_stream *stream;
} gemm_call;

static tess_dtype dtype_of(const tess_gemm_args *a) { return a->term[0].a.dt; }

static int64_t a_stride_of(const tess_gemm_args *a, const tess_gemm_term *t)
{
    if (t->a_stride != 0)
        return t->a_stride;
    return a->kind == TESS_GEMM_TN ? a->m : t->k;
}

/* Where the columns of `next` lie in a run that sums over k so far; -1: in another one. */
static int64_t column_in(const tess_gemm_args *a, const gemm_run *run, const tess_gemm_term *next,
                         join_mode mode)
{
    const tess_gemm_term *first = &a->term[run->first_term];
    const int64_t stride = a_stride_of(a, first);
    if (mode == JOIN_NONE || a->kind == TESS_GEMM_TN || first->scale != next->scale)
        return -1;
    if (mode == JOIN_ASSUMED)
        return run->k;
    const intptr_t distance = (intptr_t)next->a.data - (intptr_t)first->a.data;
    const int64_t elem_nbytes = (int64_t)tess_dtype_block_nbytes(dtype_of(a));
    const int64_t column = (int64_t)distance / elem_nbytes;
    const bool is_row = first->a.data != NULL && a_stride_of(a, next) == stride &&
                        (int64_t)distance % elem_nbytes == 0;
    const bool is_behind = column >= run->k && column - run->k <= TESS_CUDA_GEMM_GAP_MAX;
    return is_row && is_behind && column + next->k <= stride ? column : -1;
}

static void plan_runs(gemm_plan *p, join_mode mode)
{
    const tess_gemm_args *a = p->args;
    for (int t = 0; t < a->term_numel; t++) {
        gemm_run *run = p->run_numel > 0 ? &p->run[p->run_numel - 1] : NULL;
        int64_t column = -1;
        if (a->term[t].k == 0)
            continue;
        /* a term without elements between two others must not hide that they are neighbours */
        if (run != NULL && run->first_term + run->term_numel == t)
            column = column_in(a, run, &a->term[t], mode);
        if (column < 0) {
            run = &p->run[p->run_numel++];
            *run = (gemm_run){.first_term = t};
            column = 0;
        }
        run->term_numel++;
        run->k = column + a->term[t].k;
        p->first_k[t] = column;
    }
}

static void plan_scratch(gemm_plan *p)
{
    const tess_gemm_args *a = p->args;
    const size_t elem_nbytes = tess_dtype_block_nbytes(dtype_of(a));
    for (int r = 0; r < p->run_numel; r++) {
        gemm_run *run = &p->run[r];
        const tess_matrix *b = &a->term[run->first_term].b;
        run->is_direct = run->term_numel == 1 && tess_cuda_gemm_is_stored_as(b, dtype_of(a));
        run->b_stride = b->stride != 0 ? b->stride : b->cols;
        for (int t = 0; t < run->term_numel; t++)
            if (tess_format_is_quantized(a->term[run->first_term + t].b.codec.format))
                p->has_quantized = true;
        if (run->is_direct)
            continue;
        const bool is_nt = a->kind == TESS_GEMM_NT;
        const int64_t row_numel = is_nt ? a->n : run->k;
        run->b_stride = tess_round_up(is_nt ? run->k : a->n, TESS_CUDA_GEMM_LINE_NUMEL);
        run->offset_nbytes = p->b_nbytes;
        const int64_t nbytes = row_numel * run->b_stride * (int64_t)elem_nbytes;
        p->b_nbytes += (size_t)tess_round_up(nbytes, ALIGN_NBYTES);
    }
}

static bool is_bias_of(const tess_gemm_args *a, tess_dtype dt)
{
    return a->bias != NULL && tess_matrix_dtype(a->bias) == dt;
}

static void plan_make(gemm_plan *p, const tess_gemm_args *a, join_mode mode)
{
    memset(p, 0, sizeof(*p));
    p->args = a;
    plan_runs(p, mode);
    plan_scratch(p);
    const bool has_bias = a->bias != NULL;
    const bool is_plain_bias = !has_bias || is_bias_of(a, a->c.dt);
    p->has_sum = a->c.dt == TESS_BF16 && p->run_numel > 0 && (p->run_numel > 1 || !is_plain_bias);
    p->has_epilogue = has_bias && is_plain_bias && !p->has_sum && p->run_numel > 0;
    p->is_finished = p->has_sum || p->run_numel == 0 || (has_bias && !p->has_epilogue);
    p->chunk_rows = p->has_sum ? tess_cuda_gemm_sum_rows(a) : a->m;
    p->sum_nbytes = p->has_sum ? tess_cuda_gemm_sum_nbytes(a) : 0;
}

/* -------- one product -------- */

static const char *a_data(const gemm_plan *p, const gemm_run *run, int64_t first_row)
{
    const tess_gemm_args *a = p->args;
    const tess_gemm_term *term = &a->term[run->first_term];
    const int64_t skip = a->kind == TESS_GEMM_TN ? first_row : first_row * a_stride_of(a, term);
    if (term->a.data == NULL)
        return NULL;
    return (const char *)term->a.data + (size_t)skip * tess_dtype_block_nbytes(dtype_of(a));
}

static int64_t c_stride_of(const gemm_plan *p)
{
    if (p->has_sum)
        return p->args->n;
    return p->args->c_stride != 0 ? p->args->c_stride : p->args->n;
}

static void *c_data(const tess_gemm_args *a, int64_t first_row)
{
    const int64_t stride = a->c_stride != 0 ? a->c_stride : a->n;
    if (a->c.data == NULL)
        return NULL;
    return (char *)a->c.data + (size_t)(first_row * stride) * tess_dtype_block_nbytes(a->c.dt);
}

/* Rows [first_row, first_row + row_numel) of one run. */
static void product_make(const gemm_call *call, int run_idx, int64_t first_row, int64_t row_numel,
                         tess_blas_product *out, tess_blas_operands *o)
{
    const gemm_plan *p = call->p;
    const gemm_run *run = &p->run[run_idx];
    const tess_gemm_args *a = p->args;
    const tess_gemm_term *term = &a->term[run->first_term];
    const bool is_last = run_idx == p->run_numel - 1;
    *o = (tess_blas_operands){
        .a = a_data(p, run, first_row), .alpha = term->scale, .work = call->library->work};
    o->b = run->is_direct ? term->b.part[0] : call->b_scratch + run->offset_nbytes;
    o->c = p->has_sum ? call->sum : c_data(a, first_row);
    memset(out, 0, sizeof(*out));
    out->m = row_numel;
    out->n = a->n;
    out->k = run->k;
    out->a_stride = a_stride_of(a, term);
    out->b_stride = run->b_stride;
    out->c_stride = c_stride_of(p);
    out->work_nbytes = call->library->work_nbytes;
    out->kind = (int32_t)a->kind;
    out->dt = (int32_t)dtype_of(a);
    out->c_dt = (int32_t)(p->has_sum ? TESS_F32 : a->c.dt);
    out->is_added = run_idx > 0 || a->accumulate;
    out->may_split = a->kind == TESS_GEMM_TN;
    out->sm_numel = call->library->sm_numel;
    out->a_align = tess_blas_align(o->a);
    out->b_align = run->is_direct ? tess_blas_align(o->b) : TESS_BLAS_ALIGN_MAX;
    out->c_align = p->has_sum ? TESS_BLAS_ALIGN_MAX : tess_blas_align(o->c);
    if (p->has_epilogue && is_last) {
        out->has_bias = 1;
        o->bias = a->bias->part[0];
    }
}

static tess_status plan_products(const gemm_plan *p, const tess_cuda_library *library)
{
    const gemm_call call = {.p = p, .library = library};
    const int64_t m = p->args->m;
    const int64_t tail = p->chunk_rows > 0 ? m % p->chunk_rows : 0;
    const int64_t rows[] = {TESS_MIN(p->chunk_rows, m), tail};
    for (int r = 0; r < p->run_numel; r++) {
        for (int i = 0; i < TESS_NELEM(rows); i++) {
            tess_blas_product product;
            tess_blas_operands unused;
            if (rows[i] == 0)
                continue;
            product_make(&call, r, 0, rows[i], &product, &unused);
            TESS_TRY(tess_blas_plan(library->blas, &product));
        }
    }
    return TESS_OK;
}

tess_status tess_cuda_gemm_plan(const tess_gemm_args *a, const tess_cuda_library *library)
{
    gemm_plan p;
    if (a->m == 0 || a->n == 0)
        return TESS_OK;
    const bool is_placed = a->term[0].a.data != NULL;
    plan_make(&p, a, is_placed ? JOIN_SEEN : JOIN_ASSUMED);
    TESS_TRY(plan_products(&p, library));
    if (is_placed || a->term_numel == 1)
        return TESS_OK;
    plan_make(&p, a, JOIN_NONE);
    return plan_products(&p, library);
}

/* -------- scratch -------- */

static char *scratch_at(const gemm_call *call, const gemm_run *run, int64_t k)
{
    const tess_gemm_args *a = call->p->args;
    const int64_t skip = a->kind == TESS_GEMM_NT ? k : k * run->b_stride;
    return call->b_scratch + run->offset_nbytes +
           (size_t)skip * tess_dtype_block_nbytes(dtype_of(a));
}

/* Zeros for the columns of A between two terms: what lies there is finite and does not count. */
static tess_status clear_gap(const gemm_call *call, const gemm_run *run, int64_t first_k,
                             int64_t k_numel, tess_stream *s)
{
    const tess_gemm_args *a = call->p->args;
    const bool is_nt = a->kind == TESS_GEMM_NT;
    const tess_gemm_expand_args args = {.src_dt = TESS_F32,
                                        .rows = is_nt ? a->n : k_numel,
                                        .cols = is_nt ? k_numel : a->n,
                                        .dst = scratch_at(call, run, first_k),
                                        .dst_stride = run->b_stride,
                                        .dt = dtype_of(a)};
    return tess_cuda_gemm_expand(&args, s);
}

/* Matrix of one term to its place in the scratch of its run. */
static tess_status expand_term(const gemm_call *call, const gemm_run *run, int term_idx,
                               tess_stream *s)
{
    const tess_gemm_args *a = call->p->args;
    const tess_matrix *b = &a->term[term_idx].b;
    const tess_dtype dt = dtype_of(a);
    char *dst = scratch_at(call, run, call->p->first_k[term_idx]);
    if (tess_format_is_quantized(b->codec.format)) {
        tess_decode_args args = {.codec = b->codec,
                                 .numel = b->rows * b->cols,
                                 .rows = b->rows,
                                 .cols = b->cols,
                                 .dst = dst,
                                 .dst_stride = run->b_stride,
                                 .dt = dt};
        memcpy(args.part, b->part, sizeof(args.part));
        return tess_cuda_decode(&args, s);
    }
    const tess_gemm_expand_args args = {.src = b->part[0],
                                        .src_dt = tess_matrix_dtype(b),
                                        .rows = b->rows,
                                        .cols = b->cols,
                                        .dst = dst,
                                        .dst_stride = run->b_stride,
                                        .dt = dt};
    return tess_cuda_gemm_expand(&args, s);
}

/* The quantized matrices of all runs, or the plain ones that are copied. */
static tess_status expand_all(const gemm_call *call, bool is_quantized, tess_stream *s)
{
    const gemm_plan *p = call->p;
    for (int r = 0; r < p->run_numel; r++) {
        const gemm_run *run = &p->run[r];
        int64_t end_k = 0;
        for (int i = 0; i < run->term_numel && !run->is_direct; i++) {
            const int t = run->first_term + i;
            const tess_gemm_term *term = &p->args->term[t];
            if (term->k == 0)
                continue;
            if (tess_format_is_quantized(term->b.codec.format) == is_quantized)
                TESS_TRY(expand_term(call, run, t, s));
            if (!is_quantized && p->first_k[t] > end_k)
                TESS_TRY(clear_gap(call, run, end_k, p->first_k[t] - end_k, s));
            end_k = p->first_k[t] + term->k;
        }
    }
    return TESS_OK;
}

/* The quantized ones, which is work of its own on the device. */
static tess_status dequantize_all(const gemm_call *call, tess_stream *s)
{
    tess_tracer *tracer = call->p->has_quantized ? call->stream->tracer : NULL;
    const int span =
        tess_trace_begin(tracer, TESS_TRACE_DEQUANTIZE, "weights", (int64_t)call->p->b_nbytes, s);
    const tess_status st = expand_all(call, true, s);
    tess_trace_end(tracer, span, s);
    return st;
}

/* -------- the call -------- */

static tess_status finish_rows(const gemm_call *call, int64_t first_row, int64_t row_numel)
{
    const gemm_plan *p = call->p;
    const tess_gemm_args *a = p->args;
    tess_gemm_finish_args args = {.sum = p->has_sum ? call->sum : NULL,
                                  .sum_stride = a->n,
                                  .c = c_data(a, first_row),
                                  .c_stride = a->c_stride != 0 ? a->c_stride : a->n,
                                  .rows = row_numel,
                                  .cols = a->n,
                                  .c_dt = a->c.dt,
                                  .is_added = p->run_numel == 0 && a->accumulate};
    if (!p->has_sum && p->run_numel > 0) { /* an f32 C that only misses its bias */
        args.sum = args.c;
        args.sum_stride = args.c_stride;
    }
    if (a->bias != NULL && !p->has_epilogue) {
        args.bias = a->bias->part[0];
        args.bias_dt = tess_matrix_dtype(a->bias);
    }
    return tess_cuda_gemm_finish(&args, call->stream);
}

static tess_status run_products(const gemm_call *call)
{
    const gemm_plan *p = call->p;
    const int64_t m = p->args->m;
    for (int64_t first = 0; first < m; first += p->chunk_rows) {
        const int64_t rows = TESS_MIN(p->chunk_rows, m - first);
        for (int r = 0; r < p->run_numel; r++) {
            tess_blas_product product;
            tess_blas_operands operands;
            product_make(call, r, first, rows, &product, &operands);
            TESS_TRY(tess_blas_run(call->library->blas, &product, &operands, call->stream));
        }
        if (p->is_finished)
            TESS_TRY(finish_rows(call, first, rows));
    }
    return TESS_OK;
}

/* With the scratch in a slot of the lane, see [Note: dequantizing ahead]. */
static tess_status run_ahead(gemm_call *call, tess_dequant_lane *lane)
{
    tess_dequant_slot *slot = &lane->slot[lane->next_idx];
    lane->next_idx = (lane->next_idx + 1) % TESS_NELEM(lane->slot);
    call->b_scratch = slot->data;
    TESS_TRY(tess_stream_wait(lane->stream, &slot->free));
    TESS_TRY(dequantize_all(call, lane->stream));
    TESS_TRY(tess_event_record(&slot->ready, lane->stream));
    TESS_TRY(tess_stream_wait(call->stream, &slot->ready));
    TESS_TRY(expand_all(call, false, call->stream));
    TESS_TRY(run_products(call));
    return tess_event_record(&slot->free, call->stream);
}

/* -------- kept -------- */

/* See [Note: kept weights]. NULL: the call decodes for itself. */
static tess_kept_place *kept_place(const gemm_plan *p, tess_kept *kept)
{
    const tess_gemm_args *a = p->args;
    tess_kept_key key;
    if (kept == NULL || !p->has_quantized)
        return NULL;
    memset(&key, 0, sizeof(key));
    key.n = a->n;
    key.kind = (int32_t)a->kind;
    key.dt = (int32_t)dtype_of(a);
    for (int r = 0; r < p->run_numel; r++) {
        const gemm_run *run = &p->run[r];
        for (int t = run->first_term; t < run->first_term + run->term_numel; t++) {
            const tess_matrix *b = &a->term[t].b;
            if (run->is_direct || a->term[t].k == 0)
                continue;
            if (tess_format_is_quantized(b->codec.format))
                key.term[t].codes = b->part[0];
            key.term[t].rows = b->rows;
            key.term[t].cols = b->cols;
            key.term[t].first_k = p->first_k[t];
            key.term[t].offset_nbytes = (int64_t)run->offset_nbytes;
            key.term[t].stride = run->b_stride;
            key.term[t].format = (int64_t)b->codec.format;
        }
    }
    return tess_kept_take(kept, &key, p->b_nbytes);
}

static tess_status run_kept(gemm_call *call, tess_kept_place *place)
{
    call->b_scratch = place->data;
    if (!place->is_decoded)
        TESS_TRY(dequantize_all(call, call->stream));
    place->is_decoded = true;
    TESS_TRY(expand_all(call, false, call->stream));
    return run_products(call);
}

/* -------- few rows -------- */

/* Whether the rows are so few that decoding and multiplying are one kernel. The f32 sums take the
 * place of matrices in the workspace. */
static bool is_thin(const gemm_plan *p, size_t work_nbytes)
{
    const tess_gemm_args *a = p->args;
    bool covers = a->kind == TESS_GEMM_NT && a->m <= TESS_THIN_ROW_MAX && p->has_quantized &&
                  dtype_of(a) == TESS_BF16 && a->n < INT32_MAX / 2 &&
                  (size_t)(a->m * a->n) * sizeof(float) + ALIGN_NBYTES <= work_nbytes;
    for (int t = 0; t < a->term_numel && covers; t++) {
        const tess_gemm_term *term = &a->term[t];
        covers = term->k == 0 || (tess_thin_covers(&term->b) && (uintptr_t)term->a.data % 16 == 0 &&
                                  a_stride_of(a, term) % 8 == 0);
    }
    return covers;
}

static tess_status thin_term(const tess_gemm_term *term, const tess_thin_args *thin, tess_stream *s)
{
    const tess_matrix *b = &term->b;
    if (!tess_format_is_quantized(b->codec.format))
        return tess_cuda_thin_plain(b, thin, s);
    tess_decode_args args = {.codec = b->codec,
                             .numel = b->rows * b->cols,
                             .rows = b->rows,
                             .cols = b->cols,
                             .dst_stride = b->cols,
                             .dt = TESS_BF16,
                             .thin = thin};
    memcpy(args.part, b->part, sizeof(args.part));
    return tess_cuda_decode(&args, s);
}

static tess_status run_thin(const tess_gemm_args *a, float *sum, tess_stream *s)
{
    bool is_added = false;
    for (int t = 0; t < a->term_numel; t++) {
        const tess_gemm_term *term = &a->term[t];
        const tess_thin_args thin = {.a = term->a.data,
                                     .a_stride = a_stride_of(a, term),
                                     .m = (int)a->m,
                                     .scale = term->scale,
                                     .sum = sum,
                                     .is_added = is_added};
        if (term->k == 0)
            continue;
        TESS_TRY(thin_term(term, &thin, s));
        is_added = true;
    }
    tess_gemm_finish_args finish = {.sum = sum,
                                    .sum_stride = a->n,
                                    .c = a->c.data,
                                    .c_stride = a->c_stride != 0 ? a->c_stride : a->n,
                                    .rows = a->m,
                                    .cols = a->n,
                                    .c_dt = a->c.dt,
                                    .is_added = a->accumulate};
    if (a->bias != NULL) {
        finish.bias = a->bias->part[0];
        finish.bias_dt = tess_matrix_dtype(a->bias);
    }
    return tess_cuda_gemm_finish(&finish, s);
}

tess_status tess_cuda_gemm(const tess_gemm_args *a, tess_stream *s)
{
    gemm_plan p;
    TESS_TRY(tess_gemm_check(a));
    if (a->m == 0 || a->n == 0)
        return TESS_OK;
    plan_make(&p, a, JOIN_SEEN);
    const size_t needed = tess_cuda_gemm_work_nbytes(a, 1);
    TESS_CHECK(tess_view_nbytes(a->work) >= needed, TESS_E_ARG,
               "gemm: work has %zu bytes, expected %zu; take it from gemm_work_nbytes",
               tess_view_nbytes(a->work), needed);
    gemm_call call = {.p = &p, .stream = s};
    TESS_TRY(tess_cuda_stream_library(s, &call.library));
    const uintptr_t work = (uintptr_t)a->work.data;
    char *scratch = a->work.data;
    scratch += (ALIGN_NBYTES - work % ALIGN_NBYTES) % ALIGN_NBYTES;
    call.sum = (float *)(void *)scratch;
    if (is_thin(&p, tess_view_nbytes(a->work)))
        return run_thin(a, call.sum, s);
    tess_kept_place *place = kept_place(&p, call.library->kept);
    if (place != NULL)
        return run_kept(&call, place);
    call.b_scratch = scratch + p.sum_nbytes;
    tess_dequant_lane *lane = call.library->lane;
    if (lane != NULL && p.has_quantized && p.b_nbytes <= lane->slot[0].nbytes)
        return run_ahead(&call, lane);
    TESS_TRY(dequantize_all(&call, s));
    TESS_TRY(expand_all(&call, false, s));
    return run_products(&call);
}
