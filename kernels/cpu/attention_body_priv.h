/** Inner loops of attention for one kind of operands; see [Note: blocks] in attention_priv.h. */
#pragma once

#include "core/arith.h"
#include "kernels/cpu/attention_mm_priv.h"

enum { PANEL = TESS_ATTENTION_PANEL, FWD_ROWS = TESS_ATTENTION_FWD_ROWS };
enum { BWD_ROWS = TESS_ATTENTION_BWD_ROWS };

INLINE operand operand_at(const void *x, int64_t i, bool is_bf16)
{
#ifdef TESS_ATTENTION_BF16
    (void)is_bf16;
    return ((const uint16_t *)x)[i];
#else
    return is_bf16 ? tess_bf16_to_f32(((const uint16_t *)x)[i]) : ((const float *)x)[i];
#endif
}

INLINE bool job_is_bf16(const tess_attention_job *job) { return job->layout.shape.dt == TESS_BF16; }

/* A piece of the scratch memory of a part. */
INLINE void *take(char **scratch, int64_t numel)
{
    void *const piece = *scratch;
    *scratch += ((size_t)numel * sizeof(float) + 64 + 255) / 256 * 256;
    return piece;
}

INLINE operand *packed(const tess_attention_job *job, int kind, int64_t kv)
{
    return (operand *)(void *)(job->work + (size_t)kind * job->layout.pack_kind_nbytes +
                               (size_t)kv * job->layout.pack_head_nbytes);
}

INLINE float *grad_of(const tess_attention_job *job, int kind, int64_t head)
{
    const tess_attention_layout *l = &job->layout;
    const int64_t head_numel = l->wave_kv_numel * l->group_numel;
    return (float *)(void *)(job->work + l->grad_offset +
                             (size_t)(kind * head_numel + head) * l->grad_head_nbytes);
}

/* dst [D / PAIR][64][PAIR] from rows first .. of x; tokens past the end are 0. */
static void pack_transposed(const tess_attention_job *job, const void *x, int64_t head,
                            int64_t panel, operand *dst)
{
    const tess_attention_shape *shape = &job->layout.shape;
    const bool is_bf16 = job_is_bf16(job);
    const int64_t first = panel * PANEL, dim = shape->dim;
    const int64_t row_numel = TESS_MIN(PANEL, shape->token_numel - first);
    operand *panel_dst = dst + panel * PANEL * job->layout.pair_dim;
    memset(panel_dst, 0, (size_t)(PANEL * job->layout.pair_dim) * sizeof *dst);
    for (int64_t j = 0; j < row_numel; j++) {
        const int64_t row = ((first + j) * shape->kv_head_numel + head) * dim;
        for (int64_t d = 0; d < dim; d++)
            panel_dst[(d / PAIR * PANEL + j) * PAIR + d % PAIR] = operand_at(x, row + d, is_bf16);
    }
}

/* dst [T / PAIR][vec_dim][PAIR] */
static void pack_straight(const tess_attention_job *job, const void *x, int64_t head, int64_t panel,
                          operand *dst)
{
    const tess_attention_shape *shape = &job->layout.shape;
    const bool is_bf16 = job_is_bf16(job);
    const int64_t first = panel * PANEL, dim = shape->dim, width = job->layout.vec_dim;
    const int64_t row_numel = TESS_MIN(PANEL, shape->token_numel - first);
    operand *panel_dst = dst + first * width;
    memset(panel_dst, 0, (size_t)(PANEL * width) * sizeof *dst);
    for (int64_t j = 0; j < row_numel; j++) {
        const int64_t row = ((first + j) * shape->kv_head_numel + head) * dim;
        operand *line = panel_dst + j / PAIR * PAIR * width + j % PAIR;
        for (int64_t d = 0; d < dim; d++)
            line[d * PAIR] = operand_at(x, row + d, is_bf16);
    }
}

static void pack(const tess_attention_job *job, int64_t kv, int64_t panel)
{
    const int64_t head = job->kv_lo + kv;
    pack_transposed(job, job->k, head, panel, packed(job, TESS_PACK_K_T, kv));
    if (job->forward != NULL) {
        pack_straight(job, job->v, head, panel, packed(job, TESS_PACK_V, kv));
    } else {
        pack_transposed(job, job->v, head, panel, packed(job, TESS_PACK_V_T, kv));
        pack_straight(job, job->k, head, panel, packed(job, TESS_PACK_K, kv));
    }
}

/* Rows of a query head as A operands [rows][pair_dim]. */
static void copy_rows(const tess_attention_job *job, const void *x, int64_t first, int64_t rows,
                      int64_t head, operand *dst)
{
    const tess_attention_shape *shape = &job->layout.shape;
    const bool is_bf16 = job_is_bf16(job);
    const int64_t dim = shape->dim, stride = job->layout.pair_dim;
    for (int64_t r = 0; r < rows; r++) {
        const int64_t row = ((first + r) * shape->head_numel + head) * dim;
        dst[r * stride + stride - 1] = 0;
        for (int64_t d = 0; d < dim; d++)
            dst[r * stride + d] = operand_at(x, row + d, is_bf16);
    }
}

/* The same transposed: [D][BWD_ROWS], rows past the end 0. */
static void transpose_rows(const operand *src, int64_t rows, int64_t dim, int64_t src_stride,
                           operand *dst)
{
    for (int64_t d = 0; d < dim; d++)
        for (int64_t r = 0; r < BWD_ROWS; r++)
            dst[d * BWD_ROWS + r] = r < rows ? src[r * src_stride + d] : 0;
}

/* Lanes of columns c .. c+VL-1 inside [first, last]. */
INLINE vi visible(int64_t c, int64_t first, int64_t last)
{
    const vi column = vi_iota(0) + (int32_t)c;
    return (column >= (int32_t)first) & (column <= (int32_t)last);
}

/* One row of scores: token i, columns [lo, hi) relative to `base`. */
typedef struct row_span {
    int64_t i, base, lo, hi;
} row_span;

/* Operands round once to the storage dtype; a NaN here comes from arithmetic on stored values. */
INLINE void store_operand(operand *dst, vf x, bool is_bf16)
{
#ifdef TESS_ATTENTION_BF16
    (void)is_bf16;
    const vh h = __builtin_convertvector(vf_bf16_bits_quiet(x) >> 16, vh);
    memcpy(dst, &h, sizeof h);
#else
    vf_store(dst, is_bf16 ? (vf)vf_bf16_bits_quiet(x) : x);
#endif
}

/* Columns of one panel before column `col_hi`, as whole vectors relative to the panel. */
typedef struct panel_range {
    int64_t lo, hi;
} panel_range;

INLINE panel_range panel_columns(int64_t panel, int64_t first_col, int64_t col_hi)
{
    const int64_t base = panel * PANEL;
    const int64_t lo = TESS_MAX(first_col - base, 0) / TESS_ATTENTION_VECTOR;
    const int64_t hi = TESS_MIN(col_hi - base, PANEL);
    const panel_range range = {lo * TESS_ATTENTION_VECTOR,
                               tess_round_up(hi, TESS_ATTENTION_VECTOR)};
    return range;
}

/* Largest score of a row; columns the row does not see become -infinity. */
INLINE float row_largest(const tess_attention_job *job, float *score, const row_span *span)
{
    const int64_t first = tess_attention_first(job, span->i) - span->base;
    const int64_t last = tess_attention_last(job, span->i) - span->base;
    const vf hidden = vf_set1(-__builtin_inff());
    vf best[LANE_VECTORS];
    for (int h = 0; h < LANE_VECTORS; h++)
        best[h] = hidden;
    for (int64_t c = span->lo; c < span->hi; c += LANES)
        for (int h = 0; h < LANE_VECTORS; h++) {
            const int64_t at = c + h * VL;
            vf s = vf_load(score + at);
            if (at < first || at + VL - 1 > last) {
                s = vf_select(visible(at, first, last), s, hidden);
                vf_store(score + at, s);
            }
            best[h] = vf_max(best[h], s);
        }
    float lane[LANES];
    memcpy(lane, best, sizeof lane);
    float largest = lane[0];
    for (int l = 1; l < LANES; l++)
        largest = lane[l] > largest ? lane[l] : largest;
    return largest;
}

/* Scores of one row to probabilities as operands, in place. Returns the log of the sum. */
INLINE float softmax_row(const tess_attention_job *job, float *score, const row_span *span)
{
    const float scale = job->scale;
    const float max = row_largest(job, score, span) * scale;
    vf acc[LANE_VECTORS] = {{0}};
    for (int64_t c = span->lo; c < span->hi; c += LANES)
        for (int h = 0; h < LANE_VECTORS; h++) {
            const vf e = vf_exp_below(vf_load(score + c + h * VL) * scale - max);
            vf_store(score + c + h * VL, e);
            acc[h] = acc[h] + e;
        }
    const float sum = lanes_sum(acc);
    const float inv = 1.0f / sum;
    const bool is_bf16 = job_is_bf16(job);
    for (int64_t c = span->lo; c < span->hi; c += VL)
        store_operand((operand *)(void *)score + c, vf_load(score + c) * inv, is_bf16);
    return sum < 0x1p100f ? max + (float)tess_log_f64((double)sum) : sum;
}

/* One block of rows of the forward: what it sees, and where its buffers are. */
typedef struct forward_block {
    int64_t head, kv; /* query head of the call, key-value head of the wave */
    int64_t i_lo, i_hi;
    int64_t col_hi;                    /* behind the last column that a row sees */
    int64_t first_panel, base, lo, hi; /* columns [lo, hi) relative to base = 64 first_panel */
    operand *q;
    float *score; /* [rows][stride] */
    float *out;   /* [rows][vec_dim] */
    int64_t stride;
} forward_block;

static void forward_scores(const tess_attention_job *job, const forward_block *b, int64_t first_col)
{
    const int64_t pair_dim = job->layout.pair_dim;
    const operand *keys = packed(job, TESS_PACK_K_T, b->kv);
    for (int64_t panel = b->first_panel; panel * PANEL < b->col_hi; panel++) {
        const panel_range range = panel_columns(panel, first_col, b->col_hi);
        const small_mm mm = {
            .m = b->i_hi - b->i_lo,
            .n = range.hi - range.lo,
            .k = pair_dim,
            .a = b->q,
            .a_stride = pair_dim,
            .b = keys + panel * PANEL * pair_dim + range.lo * PAIR,
            .b_stride = PANEL * PAIR,
            .c = b->score + panel * PANEL - b->base + range.lo,
            .c_stride = b->stride,
        };
        multiply(&mm);
    }
}

/* Elements between tokens of the output. */
INLINE int64_t out_stride(const tess_attention_shape *shape, int64_t stride)
{
    return stride != 0 ? stride : shape->head_numel * shape->dim;
}

static void forward_store(const tess_attention_job *job, const forward_block *b)
{
    const tess_attention_shape *shape = &job->layout.shape;
    for (int64_t i = b->i_lo; i < b->i_hi; i++) {
        const float *row = b->out + (i - b->i_lo) * job->layout.vec_dim;
        const int64_t start =
            i * out_stride(shape, job->forward->out_stride) + b->head * shape->dim;
        for (int64_t d = 0; d < shape->dim; d += VL) {
            const int64_t n = TESS_MIN(VL, shape->dim - d);
            vf_put(job->forward->out.data, start + d, n, vf_load(row + d), job_is_bf16(job));
        }
    }
}

static void forward(const tess_attention_job *job, int64_t head, int64_t block, char *scratch)
{
    const tess_attention_layout *l = &job->layout;
    forward_block b = {.kv = head / l->group_numel, .i_lo = block * FWD_ROWS};
    b.head = job->kv_lo * l->group_numel + head;
    b.i_hi = TESS_MIN(b.i_lo + FWD_ROWS, l->shape.token_numel);
    b.col_hi = tess_attention_last(job, b.i_hi - 1) + 1;
    const int64_t first_col = tess_attention_first(job, b.i_lo);
    b.first_panel = first_col / PANEL;
    b.base = b.first_panel * PANEL;
    b.lo = (first_col - b.base) / TESS_ATTENTION_VECTOR * TESS_ATTENTION_VECTOR;
    b.hi = tess_round_up(b.col_hi - b.base, TESS_ATTENTION_VECTOR);
    b.stride = l->visible_numel;
    b.q = take(&scratch, FWD_ROWS * l->vec_dim);
    b.out = take(&scratch, FWD_ROWS * l->vec_dim);
    b.score = take(&scratch, FWD_ROWS * l->visible_numel);
    copy_rows(job, job->q, b.i_lo, b.i_hi - b.i_lo, b.head, b.q);
    forward_scores(job, &b, first_col);
    for (int64_t i = b.i_lo; i < b.i_hi; i++) {
        const row_span span = {i, b.base, b.lo, b.hi};
        job->forward->lse[b.head * job->lse_stride + i] =
            softmax_row(job, b.score + (i - b.i_lo) * b.stride, &span);
    }
    const int64_t operand_stride = b.stride * (int64_t)(sizeof(float) / sizeof(operand));
    const small_mm mm = {
        .m = b.i_hi - b.i_lo,
        .n = l->vec_dim,
        .k = b.hi - b.lo,
        .a = (const operand *)(const void *)b.score + b.lo,
        .a_stride = operand_stride,
        .b = packed(job, TESS_PACK_V, b.kv) + (b.base + b.lo) * l->vec_dim,
        .b_stride = l->vec_dim * PAIR,
        .c = b.out,
        .c_stride = l->vec_dim,
    };
    multiply(&mm);
    forward_store(job, &b);
}

/* One block of rows of the backward. */
typedef struct backward_block {
    int64_t head, kv, wave_head;
    int64_t i_lo, i_hi, rows, first_col;
    operand *q, *d_out;     /* [rows][pair_dim] */
    operand *q_t, *d_out_t; /* [D][BWD_ROWS] */
    float *d_q;             /* [rows][vec_dim] */
    float *score, *d_p;     /* [rows][64] */
    operand *p_pairs;       /* [rows / PAIR][64][PAIR] */
    operand *d_s, *d_s_pairs;
    float *delta; /* [rows] sum over d of d_out * out */
} backward_block;

static void delta_of_rows(const tess_attention_job *job, const backward_block *b)
{
    const tess_attention_shape *shape = &job->layout.shape;
    const tess_attention_backward_args *a = job->backward;
    const bool is_bf16 = job_is_bf16(job);
    for (int64_t i = b->i_lo; i < b->i_hi; i++) {
        const int64_t row = (i * shape->head_numel + b->head) * shape->dim;
        const int64_t out_row = i * out_stride(shape, a->out_stride) + b->head * shape->dim;
        vf acc[LANE_VECTORS] = {{0}};
        for (int64_t d = 0; d < shape->dim; d += LANES)
            for (int h = 0; h < LANE_VECTORS && d + h * VL < shape->dim; h++) {
                const int64_t at = d + h * VL, n = TESS_MIN(VL, shape->dim - at);
                acc[h] = acc[h] + vf_get(a->d_out.data, row + at, n, is_bf16) *
                                      vf_get(a->out.data, out_row + at, n, is_bf16);
            }
        b->delta[i - b->i_lo] = lanes_sum(acc);
    }
}

/* What one row of a panel needs: visible columns relative to the panel, lse, delta. */
typedef struct row_facts {
    int64_t first, last;
    float lse, delta, scale;
    const float *score, *d_p;
} row_facts;

INLINE row_facts facts_of(const tess_attention_job *job, const backward_block *b, int64_t panel,
                          int64_t r)
{
    const int64_t i = b->i_lo + r;
    const row_facts row = {
        .first = tess_attention_first(job, i) - panel * PANEL,
        .last = tess_attention_last(job, i) - panel * PANEL,
        .lse = job->backward->lse[b->head * job->lse_stride + i],
        .delta = b->delta[r],
        .scale = job->scale,
        .score = b->score + r * PANEL,
        .d_p = b->d_p + r * PANEL,
    };
    return row;
}

/* Probabilities and d_s of one row at columns c .. c+VL-1. */
INLINE void row_vector(const row_facts *row, int64_t c, vf *p_out, vf *d_s_out)
{
    /* A difference above 0 is the rounding of lse: exp_below takes it. */
    vf p = vf_exp_below(vf_load(row->score + c) * row->scale - row->lse);
    if (c < row->first || c + VL - 1 > row->last)
        p = (vf)((vi)p & visible(c, row->first, row->last));
    *p_out = p;
    *d_s_out = p * (vf_load(row->d_p + c) - row->delta);
}

#ifdef TESS_ATTENTION_BF16

INLINE void store_pair(uint16_t *dst, vf even, vf odd)
{
    const vu word = vf_bf16_bits_quiet(even) >> 16 | vf_bf16_bits_quiet(odd);
    memcpy(dst, &word, sizeof word);
}

static void softmax_backward(const tess_attention_job *job, const backward_block *b, int64_t panel,
                             panel_range range)
{
    for (int64_t r = 0; r < b->rows; r += 2) {
        const bool has_odd = r + 1 < b->rows;
        const row_facts even = facts_of(job, b, panel, r);
        const row_facts odd = facts_of(job, b, panel, has_odd ? r + 1 : r);
        for (int64_t c = range.lo; c < range.hi; c += VL) {
            vf p[2] = {{0}}, d_s[2] = {{0}};
            row_vector(&even, c, &p[0], &d_s[0]);
            store_operand(b->d_s + r * PANEL + c, d_s[0], true);
            if (has_odd) {
                row_vector(&odd, c, &p[1], &d_s[1]);
                store_operand(b->d_s + (r + 1) * PANEL + c, d_s[1], true);
            }
            store_pair(b->p_pairs + r * PANEL + 2 * c, p[0], p[1]);
            store_pair(b->d_s_pairs + r * PANEL + 2 * c, d_s[0], d_s[1]);
        }
    }
}

#else

static void softmax_backward(const tess_attention_job *job, const backward_block *b, int64_t panel,
                             panel_range range)
{
    const bool is_bf16 = job_is_bf16(job);
    for (int64_t r = 0; r < b->rows; r++) {
        const row_facts row = facts_of(job, b, panel, r);
        for (int64_t c = range.lo; c < range.hi; c += VL) {
            vf p = {0}, d_s = {0};
            row_vector(&row, c, &p, &d_s);
            store_operand(b->p_pairs + r * PANEL + c, p, is_bf16);
            store_operand(b->d_s + r * PANEL + c, d_s, is_bf16);
        }
    }
}

#endif

/* scores and d_p of the panel: A [rows][pair_dim] times a transposed panel */
INLINE void panel_scores(const tess_attention_job *job, const backward_block *b, int64_t panel,
                         panel_range range)
{
    const int64_t pair_dim = job->layout.pair_dim;
    const int64_t offset = panel * PANEL * pair_dim + range.lo * PAIR;
    small_mm mm = {
        .m = b->rows,
        .n = range.hi - range.lo,
        .k = pair_dim,
        .a = b->q,
        .a_stride = pair_dim,
        .b = packed(job, TESS_PACK_K_T, b->kv) + offset,
        .b_stride = PANEL * PAIR,
        .c = b->score + range.lo,
        .c_stride = PANEL,
    };
    multiply(&mm);
    mm.a = b->d_out;
    mm.b = packed(job, TESS_PACK_V_T, b->kv) + offset;
    mm.c = b->d_p + range.lo;
    multiply(&mm);
}

/* d_q += d_s K; d_v^T += d_out^T P; d_k^T += q^T d_s */
INLINE void panel_gradients(const tess_attention_job *job, const backward_block *b, int64_t panel,
                            panel_range range)
{
    const tess_attention_layout *l = &job->layout;
    const small_mm d_q = {
        .m = b->rows,
        .n = l->vec_dim,
        .k = range.hi - range.lo,
        .a = b->d_s + range.lo,
        .a_stride = PANEL,
        .b = packed(job, TESS_PACK_K, b->kv) + (panel * PANEL + range.lo) * l->vec_dim,
        .b_stride = l->vec_dim * PAIR,
        .c = b->d_q,
        .c_stride = l->vec_dim,
        .accumulate = true,
    };
    multiply(&d_q);
    const int64_t offset = panel * PANEL * l->shape.dim + range.lo;
    small_mm d_kv = {
        .m = l->shape.dim,
        .n = range.hi - range.lo,
        .k = tess_round_up(b->rows, PAIR),
        .a = b->d_out_t,
        .a_stride = BWD_ROWS,
        .b = b->p_pairs + range.lo * PAIR,
        .b_stride = PANEL * PAIR,
        .c = grad_of(job, 0, b->wave_head) + offset,
        .c_stride = PANEL,
        .accumulate = true,
    };
    multiply(&d_kv);
    d_kv.a = b->q_t;
    d_kv.b = b->d_s_pairs + range.lo * PAIR;
    d_kv.c = grad_of(job, 1, b->wave_head) + offset;
    multiply(&d_kv);
}

static void store_d_q(const tess_attention_job *job, const backward_block *b)
{
    const tess_attention_shape *shape = &job->layout.shape;
    for (int64_t r = 0; r < b->rows; r++) {
        const float *row = b->d_q + r * job->layout.vec_dim;
        const int64_t start = ((b->i_lo + r) * shape->head_numel + b->head) * shape->dim;
        for (int64_t d = 0; d < shape->dim; d += VL) {
            const int64_t n = TESS_MIN(VL, shape->dim - d);
            vf_put(job->backward->d_q.data, start + d, n, vf_load(row + d) * job->scale,
                   job_is_bf16(job));
        }
    }
}

static void backward_rows(const tess_attention_job *job, backward_block *b)
{
    const tess_attention_layout *l = &job->layout;
    b->rows = b->i_hi - b->i_lo;
    b->first_col = tess_attention_first(job, b->i_lo);
    copy_rows(job, job->q, b->i_lo, b->rows, b->head, b->q);
    copy_rows(job, job->backward->d_out.data, b->i_lo, b->rows, b->head, b->d_out);
    transpose_rows(b->q, b->rows, l->shape.dim, l->pair_dim, b->q_t);
    transpose_rows(b->d_out, b->rows, l->shape.dim, l->pair_dim, b->d_out_t);
    delta_of_rows(job, b);
    memset(b->d_q, 0, (size_t)(b->rows * l->vec_dim) * sizeof(float));
    const int64_t col_hi = tess_attention_last(job, b->i_hi - 1) + 1;
    for (int64_t panel = b->first_col / PANEL; panel * PANEL < col_hi; panel++) {
        const panel_range range = panel_columns(panel, b->first_col, col_hi);
        panel_scores(job, b, panel, range);
        softmax_backward(job, b, panel, range);
        panel_gradients(job, b, panel, range);
    }
    store_d_q(job, b);
}

static void backward(const tess_attention_job *job, int64_t head, char *scratch)
{
    const tess_attention_layout *l = &job->layout;
    backward_block b = {.wave_head = head, .kv = head / l->group_numel};
    b.head = job->kv_lo * l->group_numel + head;
    b.q = take(&scratch, BWD_ROWS * l->vec_dim);
    b.d_out = take(&scratch, BWD_ROWS * l->vec_dim);
    b.q_t = take(&scratch, BWD_ROWS * l->vec_dim);
    b.d_out_t = take(&scratch, BWD_ROWS * l->vec_dim);
    b.d_q = take(&scratch, BWD_ROWS * l->vec_dim);
    b.score = take(&scratch, BWD_ROWS * PANEL);
    b.d_p = take(&scratch, BWD_ROWS * PANEL);
    b.p_pairs = take(&scratch, BWD_ROWS * PANEL);
    b.d_s = take(&scratch, BWD_ROWS * PANEL);
#ifdef TESS_ATTENTION_BF16
    b.d_s_pairs = take(&scratch, BWD_ROWS * PANEL);
#else
    b.d_s_pairs = b.d_s;
#endif
    b.delta = take(&scratch, BWD_ROWS);
    memset(grad_of(job, 0, head), 0, l->grad_head_nbytes);
    memset(grad_of(job, 1, head), 0, l->grad_head_nbytes);
    for (b.i_lo = 0; b.i_lo < l->shape.token_numel; b.i_lo += BWD_ROWS) {
        b.i_hi = TESS_MIN(b.i_lo + BWD_ROWS, l->shape.token_numel);
        backward_rows(job, &b);
    }
}

/* Add the panel of the group's other heads to the first head's, ascending; its address. */
static float *sum_group(const tess_attention_job *job, int kind, int64_t kv, int64_t panel)
{
    const int64_t group_numel = job->layout.group_numel, numel = job->layout.shape.dim * PANEL;
    float *sum = grad_of(job, kind, kv * group_numel) + panel * numel;
    for (int64_t g = 1; g < group_numel; g++) {
        const float *other = grad_of(job, kind, kv * group_numel + g) + panel * numel;
        for (int64_t i = 0; i < numel; i += VL)
            vf_store(sum + i, vf_load(sum + i) + vf_load(other + i));
    }
    return sum;
}

/* dst rows of the panel [64, D] from src [D][64] */
static void store_panel(const tess_attention_job *job, int64_t kv, int64_t panel, const float *src,
                        tess_view dst)
{
    const tess_attention_shape *shape = &job->layout.shape;
    const int64_t first = panel * PANEL, dim = shape->dim;
    const int64_t row_numel = TESS_MIN(PANEL, shape->token_numel - first);
    for (int64_t j = 0; j < row_numel; j++) {
        const int64_t to = ((first + j) * shape->kv_head_numel + job->kv_lo + kv) * dim;
        for (int64_t d = 0; d < dim; d += VL) {
            const int64_t n = TESS_MIN(VL, dim - d);
            float column[VL] = {0};
            for (int64_t l = 0; l < n; l++)
                column[l] = src[(d + l) * PANEL + j];
            vf_put(dst.data, to + d, n, vf_load(column), job_is_bf16(job));
        }
    }
}

static void reduce(const tess_attention_job *job, int64_t kv, int64_t panel)
{
    const int64_t numel = job->layout.shape.dim * PANEL;
    store_panel(job, kv, panel, sum_group(job, 0, kv, panel), job->backward->d_v);
    float *d_k = sum_group(job, 1, kv, panel);
    for (int64_t i = 0; i < numel; i += VL)
        vf_store(d_k + i, vf_load(d_k + i) * job->scale);
    store_panel(job, kv, panel, d_k, job->backward->d_k);
}

const tess_attention_ops TESS_ATTENTION_TABLE = {
    .pack = pack,
    .forward = forward,
    .backward = backward,
    .reduce = reduce,
};
