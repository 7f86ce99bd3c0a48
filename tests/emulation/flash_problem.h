/**
 * Attention on a device against fp64 and against the CPU twin: operands, exact values, bounds,
 * runs. The program that includes this says how its device runs (set_order, device_forward,
 * device_backward, after_case); device memory is that of emulation.h.
 *
 * [Note: bounds] Per element, worst case, of one implementation against exact arithmetic on the
 * stored operands. u = 2^-24, w = unit roundoff of the compute dtype for roundings to it (0 inside
 * for f32), n terms in a sum, D the head dim, a the relative error of an addition: u where each sum
 * is rounded, 2 u where tensor cores may cut it off (flash_addition_u):
 *   score       S_i = largest scale * sum |q k| of row i; D products added: (D + 2) a S_i
 *   forward p   twice that (itself and its share of the sum), the exponent's rounding 4 u S_i, the
 *               sum (n + 8) a, the exponential 2^-21:  e_p
 *   out         sum p |v| (e_p + w + (n + 2) a) + w' |out|,  w' = max(w, u)
 *   lse         e_p + 4 u |lse| + (n / 32 + 1) 2^-22: at a new maximum, at most once for each tile
 *               of 32 keys or more, the sum so far is scaled by an exponential. In out the same
 *               factors stand above and below
 *   backward p  lse is given: (D + 6) a S_i + 4 u |lse| + 2^-21:  e_b
 *   d_p, delta  (D + 2) a sum |d_out v|, (D + 2) a sum |d_out out|
 *   d_s         p (e_b |x| + e_dp + e_delta + 3 u |x|) + w |d_s|,  x = d_p - delta
 *   sums        each term's error, and (n + 3) a times the sum of magnitudes, then w' |result|
 * A kernel must be within one bound of fp64, and so within two of the twin, which is checked too.
 */
#pragma once

#include "kernels/attention.h"
#include "tests/emulation/emulation.h"
#include "tests/kernels/op_support.h"
#include "tests/support/must.h"

/** Relative error of an addition where tensor cores cut off what a rounding would look at. */
#define FLASH_TRUNCATED_U (2.0 * F32_U)

static double flash_addition_u = F32_U;

enum { OPERANDS = 10, EXP_LOG2 = -21, SCALED_KEYS = 32 };

/* What a case varies. */
typedef struct flash_case {
    tess_dtype dt;
    int64_t token_numel, head_numel, kv_head_numel, dim, window;
    int64_t doc_numel; /* 0: every token is a document */
    int64_t gap;       /* elements behind each row of every operand */
    int64_t shift;     /* elements that operands start behind an aligned address */
    int64_t segment;   /* 0: causal; else tokens of a segment, and there are no documents */
} flash_case;

/* An operand with its copy on the device, exact values and error bounds. */
typedef struct operand {
    op_buffer host;
    int64_t rows, cols, stride;
    uint8_t *result; /* what the device holds, gaps included */
    void *device, *device_base;
    double *exact, *bound;
} operand;

enum { Q, K, V, OUT, LSE, D_OUT, D_Q, D_K, D_V, DOC };

typedef struct problem {
    flash_case c;
    operand x[OPERANDS];
    int32_t *doc_start;
    int64_t longest_numel;
    float scale;
    int64_t document_numel;
    int64_t out_gap; /* elements behind each row of `out`, which its arguments know */
    bool varies;     /* the backward may have other bits in another run */
} problem;

static size_t elem_nbytes(const operand *x) { return tess_dtype_block_nbytes(x->host.view.dt); }

static size_t device_nbytes(const operand *x)
{
    return x->rows == 0 ? 0 : (size_t)((x->rows - 1) * x->stride + x->cols) * elem_nbytes(x);
}

static void operand_init(problem *p, int which, tess_dtype dt, int64_t rows, int64_t cols)
{
    operand *x = &p->x[which];
    const bool is_rows = which != LSE && which != DOC;
    *x = (operand){.rows = rows, .cols = cols, .stride = cols + (is_rows ? p->c.gap : 0)};
    x->host = buffer_create(dt, rows * cols, false);
    x->exact = doubles(rows * cols);
    x->bound = doubles(rows * cols);
    x->result = must_alloc(device_nbytes(x) + 1);
}

static problem problem_create(flash_case c)
{
    static const int inputs[] = {Q, K, V, D_OUT};
    problem p = {.c = c, .scale = (float)(1.0 / sqrt((double)c.dim))};
    const int64_t t = c.token_numel, query = c.head_numel * c.dim, key = c.kv_head_numel * c.dim;
    operand_init(&p, Q, c.dt, t, query);
    operand_init(&p, K, c.dt, t, key);
    operand_init(&p, V, c.dt, t, key);
    operand_init(&p, OUT, c.dt, t, query);
    operand_init(&p, LSE, TESS_F32, 1, t * c.head_numel);
    operand_init(&p, D_OUT, c.dt, t, query);
    operand_init(&p, D_Q, c.dt, t, query);
    operand_init(&p, D_K, c.dt, t, key);
    operand_init(&p, D_V, c.dt, t, key);
    operand_init(&p, DOC, TESS_F32, 1, t);
    p.doc_start = p.x[DOC].host.view.data;
    for (int i = 0; i < TESS_NELEM(inputs); i++)
        buffer_fill(&p.x[inputs[i]].host, (uint64_t)(20 + i), 1.0);
    for (int64_t i = 0; i < t; i++) {
        /* documents of unequal lengths: squares of the position */
        const int64_t doc = c.doc_numel * i * i / (t * t);
        const int64_t before = c.doc_numel * (i - 1) * (i - 1) / (t * t);
        const bool is_new = i == 0 || c.doc_numel == 0 || doc != before;
        p.doc_start[i] = is_new ? (int32_t)i : p.doc_start[i - 1];
        p.longest_numel = TESS_MAX(p.longest_numel, i - p.doc_start[i] + 1);
        p.document_numel += is_new;
    }
    if (c.segment > 0)
        p.longest_numel = c.segment;
    return p;
}

/* Rows of `out` lie apart on the device, those of the other operands do not. */
static inline void out_gap_set(problem *p, int64_t gap)
{
    operand *x = &p->x[OUT];
    p->out_gap = gap;
    x->stride = x->cols + gap;
    tess_free(x->result);
    x->result = must_alloc(device_nbytes(x) + 1);
}

static void problem_destroy(problem *p)
{
    for (int i = 0; i < OPERANDS; i++) {
        buffer_destroy(&p->x[i].host);
        tess_free(p->x[i].exact);
        tess_free(p->x[i].bound);
        tess_free(p->x[i].result);
    }
}

/* ---- exact values and bounds ---- */

typedef struct weights {
    double p, d_s, p_error, d_s_error;
} weights;

static int64_t first_seen(const problem *p, int64_t i)
{
    const int64_t start = p->doc_start[i];
    if (p->c.segment > 0)
        return i / p->c.segment * p->c.segment;
    return p->c.window > 0 ? TESS_MAX(start, i - p->c.window + 1) : start;
}

static int64_t last_seen(const problem *p, int64_t i)
{
    return p->c.segment > 0 ? first_seen(p, i) + p->c.segment - 1 : i;
}

static double inner_w(const problem *p) { return p->c.dt == TESS_BF16 ? BF16_U : 0.0; }

/* sum x y, and the sum of magnitudes */
static double dot(const double *x, const double *y, int64_t n, double *magnitude)
{
    double sum = 0.0;
    *magnitude = 0.0;
    for (int64_t d = 0; d < n; d++) {
        sum += x[d] * y[d];
        *magnitude += fabs(x[d] * y[d]);
    }
    return sum;
}

static const double *query(const problem *p, int which, int64_t i, int64_t head)
{
    return p->x[which].host.value + (i * p->c.head_numel + head) * p->c.dim;
}

static int64_t key_at(const problem *p, int64_t j, int64_t head)
{
    const int64_t kv = head / (p->c.head_numel / p->c.kv_head_numel);
    return (j * p->c.kv_head_numel + kv) * p->c.dim;
}

/* Scores of row i in score[j - first]; returns S_i. */
static double row_scores(const problem *p, int64_t i, int64_t head, double *score)
{
    double largest_score = 0.0, magnitude = 0.0;
    for (int64_t j = first_seen(p, i); j <= last_seen(p, i); j++) {
        const double s = dot(query(p, Q, i, head), p->x[K].host.value + key_at(p, j, head),
                             p->c.dim, &magnitude);
        score[j - first_seen(p, i)] = s * (double)p->scale;
        largest_score = fmax(largest_score, magnitude * (double)p->scale);
    }
    return largest_score;
}

static void exact_forward_row(problem *p, int64_t i, int64_t head, double *score)
{
    const double add_u = flash_addition_u;
    const int64_t first = first_seen(p, i), last = last_seen(p, i), dim = p->c.dim;
    const double n = (double)(last - first + 1), s = row_scores(p, i, head, score);
    double max = -INFINITY, sum = 0.0;
    for (int64_t j = first; j <= last; j++)
        max = fmax(max, score[j - first]);
    for (int64_t j = first; j <= last; j++)
        sum += exp(score[j - first] - max);
    const double e_p = 2.0 * ((double)dim + 2.0) * add_u * s + 4.0 * F32_U * s + (n + 8.0) * add_u +
                       ldexp(1.0, EXP_LOG2);
    const double lse = max + log(sum), u = unit_of(p->c.dt);
    const double scaled = (n / SCALED_KEYS + 1.0) * ldexp(1.0, EXP_LOG2 - 1);
    p->x[LSE].exact[head * p->c.token_numel + i] = lse;
    p->x[LSE].bound[head * p->c.token_numel + i] = e_p + 4.0 * F32_U * fabs(lse) + scaled;
    const int64_t at = (i * p->c.head_numel + head) * dim;
    for (int64_t d = 0; d < dim; d++) {
        double out = 0.0, magnitude = 0.0;
        for (int64_t j = first; j <= last; j++) {
            const double v = p->x[V].host.value[key_at(p, j, head) + d];
            out += exp(score[j - first] - lse) * v;
            magnitude += exp(score[j - first] - lse) * fabs(v);
        }
        p->x[OUT].exact[at + d] = out;
        p->x[OUT].bound[at + d] =
            magnitude * (e_p + inner_w(p) + (n + 2.0) * add_u) + u * fabs(out);
    }
}

/* Weights of key j for row i, from the stored lse and out. */
static weights row_weights(const problem *p, int64_t i, int64_t head, int64_t j,
                           const double facts[4])
{
    const double score = facts[0], s = facts[1], delta = facts[2], e_delta = facts[3];
    const double lse = p->x[LSE].host.value[head * p->c.token_numel + i];
    const double length = (double)p->c.dim;
    double magnitude = 0.0;
    const double d_p = dot(query(p, D_OUT, i, head), p->x[V].host.value + key_at(p, j, head),
                           p->c.dim, &magnitude);
    const double e_b =
        (length + 6.0) * flash_addition_u * s + 4.0 * F32_U * fabs(lse) + ldexp(1.0, EXP_LOG2);
    const double prob = exp(score - lse), x = d_p - delta;
    const double e_dp = (length + 2.0) * flash_addition_u * magnitude;
    weights w = {.p = prob, .d_s = prob * x, .p_error = prob * (e_b + inner_w(p))};
    w.d_s_error =
        prob * (e_b * fabs(x) + e_dp + e_delta + 3.0 * F32_U * fabs(x)) + inner_w(p) * fabs(w.d_s);
    return w;
}

/* sum and its bound, grown by one term of `terms` */
static void add_term(operand *x, int64_t at, double weight, double error, double value,
                     double terms)
{
    x->exact[at] += weight * value;
    x->bound[at] += (error + (terms + 3.0) * flash_addition_u * fabs(weight)) * fabs(value);
}

static void exact_backward_row(problem *p, int64_t i, int64_t head, double *score)
{
    const int64_t first = first_seen(p, i), last = last_seen(p, i), dim = p->c.dim;
    const int64_t at = (i * p->c.head_numel + head) * dim;
    const double group = (double)(p->c.head_numel / p->c.kv_head_numel);
    /* no key is seen by more rows than the longest document (or window, or segment) has */
    const double rows = (double)p->longest_numel * group, scale = (double)p->scale;
    double magnitude = 0.0;
    const double s = row_scores(p, i, head, score);
    const double delta = dot(query(p, D_OUT, i, head), query(p, OUT, i, head), dim, &magnitude);
    const double e_delta = ((double)dim + 2.0) * flash_addition_u * magnitude;
    for (int64_t j = first; j <= last; j++) {
        const double facts[] = {score[j - first], s, delta, e_delta};
        const weights w = row_weights(p, i, head, j, facts);
        const int64_t key = key_at(p, j, head);
        for (int64_t d = 0; d < dim; d++) {
            add_term(&p->x[D_Q], at + d, w.d_s * scale, w.d_s_error * scale,
                     p->x[K].host.value[key + d], (double)(last - first + 1));
            add_term(&p->x[D_K], key + d, w.d_s * scale, w.d_s_error * scale,
                     p->x[Q].host.value[at + d], rows);
            add_term(&p->x[D_V], key + d, w.p, w.p_error, p->x[D_OUT].host.value[at + d], rows);
        }
    }
}

static void exact_run(problem *p, void (*row)(problem *p, int64_t i, int64_t head, double *score))
{
    double *score = doubles(p->c.token_numel);
    for (int64_t head = 0; head < p->c.head_numel; head++)
        for (int64_t i = 0; i < p->c.token_numel; i++)
            row(p, i, head, score);
    tess_free(score);
}

static void exact_backward(problem *p)
{
    static const int gradients[] = {D_Q, D_K, D_V};
    for (int g = 0; g < 3; g++) {
        operand *x = &p->x[gradients[g]];
        memset(x->exact, 0, (size_t)(x->rows * x->cols) * sizeof *x->exact);
        memset(x->bound, 0, (size_t)(x->rows * x->cols) * sizeof *x->bound);
    }
    exact_run(p, exact_backward_row);
    for (int g = 0; g < 3; g++) {
        operand *x = &p->x[gradients[g]];
        for (int64_t i = 0; i < x->rows * x->cols; i++)
            x->bound[i] += unit_of(p->c.dt) * fabs(x->exact[i]);
    }
}

/* ---- the two implementations ---- */

static tess_attention_shape shape_of(const problem *p)
{
    return (tess_attention_shape){
        .dt = p->c.dt,
        .token_numel = p->c.token_numel,
        .head_numel = p->c.head_numel,
        .kv_head_numel = p->c.kv_head_numel,
        .dim = p->c.dim,
        .longest_numel = p->longest_numel,
        .document_numel = p->c.segment > 0 ? 0 : p->document_numel,
        .segment_numel = p->c.segment,
    };
}

static tess_view view_of(const problem *p, int which, bool is_device)
{
    tess_view v = p->x[which].host.view;
    if (is_device) {
        v.data = p->x[which].device;
        v.space = TESS_DEVICE;
    }
    return v;
}

/* Of a device that has gaps behind the rows of `out` alone; the twin has none. */
static int64_t out_stride_of(const problem *p, bool is_device)
{
    return is_device && p->out_gap > 0 ? p->x[OUT].stride : 0;
}

static tess_view out_view(const problem *p, bool is_device)
{
    tess_view v = view_of(p, OUT, is_device);
    if (out_stride_of(p, is_device) > 0)
        v.numel = (p->x[OUT].rows - 1) * p->x[OUT].stride + p->x[OUT].cols;
    return v;
}

static const int32_t *doc_start_of(const problem *p, bool is_device)
{
    return p->c.segment > 0 ? NULL : view_of(p, DOC, is_device).data;
}

static tess_attention_args forward_args(const problem *p, bool is_device, tess_view work)
{
    return (tess_attention_args){
        .shape = shape_of(p),
        .q = view_of(p, Q, is_device),
        .k = view_of(p, K, is_device),
        .v = view_of(p, V, is_device),
        .doc_start = doc_start_of(p, is_device),
        .window = p->c.window,
        .scale = p->scale,
        .out = out_view(p, is_device),
        .out_stride = out_stride_of(p, is_device),
        .lse = view_of(p, LSE, is_device).data,
        .work = work,
    };
}

static tess_attention_backward_args backward_args(const problem *p, bool is_device, tess_view work)
{
    return (tess_attention_backward_args){
        .shape = shape_of(p),
        .q = view_of(p, Q, is_device),
        .k = view_of(p, K, is_device),
        .v = view_of(p, V, is_device),
        .out = out_view(p, is_device),
        .out_stride = out_stride_of(p, is_device),
        .lse = view_of(p, LSE, is_device).data,
        .d_out = view_of(p, D_OUT, is_device),
        .doc_start = doc_start_of(p, is_device),
        .window = p->c.window,
        .scale = p->scale,
        .d_q = view_of(p, D_Q, is_device),
        .d_k = view_of(p, D_K, is_device),
        .d_v = view_of(p, D_V, is_device),
        .work = work,
    };
}

static void twin_run(problem *p, bool is_backward)
{
    tess_stream s;
    const tess_attention_shape shape = shape_of(p);
    const size_t nbytes = tess_cpu_attention_work_nbytes(&shape, 1);
    void *memory = must_alloc(nbytes);
    const tess_view work = tess_view_host(memory, (int64_t)nbytes, TESS_U8_OPAQUE);
    const tess_attention_args forward = forward_args(p, false, work);
    const tess_attention_backward_args backward = backward_args(p, false, work);
    tess_stream_init_inline(&s, "test", NULL);
    must(is_backward ? tess_cpu_attention_backward(&backward, &s)
                     : tess_cpu_attention_forward(&forward, &s));
    for (int i = OUT; i <= D_V; i++)
        buffer_read(&p->x[i].host);
    tess_free(memory);
}

/* Rows of the host to the device, gaps of the device left as they are, and back. */
static void upload(problem *p, int which)
{
    operand *x = &p->x[which];
    const size_t row_nbytes = (size_t)x->cols * elem_nbytes(x);
    for (int64_t r = 0; r < x->rows; r++)
        must(tess_emulation_write((uint8_t *)x->device + (size_t)(r * x->stride) * elem_nbytes(x),
                                  (const uint8_t *)x->host.view.data + (size_t)r * row_nbytes,
                                  row_nbytes));
}

static void device_create(problem *p)
{
    static const int uploads[] = {Q, K, V, D_OUT, DOC};
    static const char *const names[] = {"q",     "k",   "v",   "out", "lse",
                                        "d_out", "d_q", "d_k", "d_v", "doc_start"};
    tess_emulation_release_all();
    for (int i = 0; i < OPERANDS; i++) {
        operand *x = &p->x[i];
        const size_t shift = i == LSE || i == DOC ? 0 : (size_t)p->c.shift * elem_nbytes(x);
        must(tess_emulation_alloc(names[i], device_nbytes(x) + shift, &x->device_base));
        x->device = (uint8_t *)x->device_base + shift;
    }
    for (int i = 0; i < TESS_NELEM(uploads); i++)
        upload(p, uploads[i]);
}

static void check_gaps(const char *name, const operand *x, uint8_t poison)
{
    for (int64_t r = 0; r + 1 < x->rows; r++)
        for (size_t i = (size_t)(r * x->stride + x->cols) * elem_nbytes(x);
             i < (size_t)((r + 1) * x->stride) * elem_nbytes(x); i++)
            if (x->result[i] != poison)
                fail_msg("%s: byte %zu behind row %" PRId64 " was written", name, i, r);
}

static double result_value(const operand *x, int64_t at)
{
    const int64_t i = at / x->cols * x->stride + at % x->cols;
    return x->host.view.dt == TESS_BF16
               ? (double)tess_bf16_to_f32(((uint16_t *)(void *)x->result)[i])
               : (double)((float *)(void *)x->result)[i];
}

/* Read results of one order of threads; the second order must give the bits of the first. */
static void take_results(problem *p, const int *outputs, int numel, tess_emulation_order order)
{
    for (int o = 0; o < numel; o++) {
        operand *x = &p->x[outputs[o]];
        const size_t nbytes = device_nbytes(x), row_nbytes = (size_t)x->cols * elem_nbytes(x);
        const bool is_compared =
            order != TESS_EMULATION_FORWARD && !(p->varies && outputs[o] >= D_Q);
        uint8_t *before = must_alloc(nbytes);
        memcpy(before, x->result, nbytes);
        must(tess_emulation_read(x->result, x->device, nbytes));
        check_gaps("output", x, order == TESS_EMULATION_FORWARD ? 0xFF : 0xCB);
        for (int64_t r = 0; is_compared && r < x->rows; r++) {
            const size_t at = (size_t)(r * x->stride) * elem_nbytes(x);
            if (memcmp(before + at, x->result + at, row_nbytes) != 0)
                fail_msg("output %d: row %" PRId64 " differs between two runs", outputs[o], r);
        }
        tess_free(before);
    }
}

static void check_results(const problem *p, const int *outputs, int numel)
{
    static const char *const names[] = {"q", "k", "v", "out", "lse", "d_out", "d_q", "d_k", "d_v"};
    for (int o = 0; o < numel; o++) {
        const operand *x = &p->x[outputs[o]];
        for (int64_t i = 0; i < x->rows * x->cols; i++) {
            const double got = result_value(x, i), twin = x->host.value[i];
            if (!(fabs(got - x->exact[i]) <= x->bound[i]))
                fail_msg("%s[%" PRId64 "]: got %.9g, exact %.9g, bound %.3g", names[outputs[o]], i,
                         got, x->exact[i], x->bound[i]);
            if (!(fabs(got - twin) <= 2.0 * x->bound[i]))
                fail_msg("%s[%" PRId64 "]: got %.9g, twin %.9g, bound %.3g", names[outputs[o]], i,
                         got, twin, 2.0 * x->bound[i]);
        }
    }
}

static const int forward_outputs[] = {OUT, LSE}, backward_outputs[] = {D_Q, D_K, D_V};

/** Of the program: the order of threads, or the poison, of a run. */
static void set_order(tess_emulation_order order);
/** Of the program: one call on its device, for operands that device_create() put there. */
static tess_status device_forward(problem *p);
static tess_status device_backward(problem *p);
/** Of the program: what results do not show. */
static void after_case(const problem *p);

/* In two orders: within bounds of fp64 and of the twin, the same bits, gaps left alone. */
static void check_problem(problem *p)
{
    tess_error_clear();
    twin_run(p, false);
    exact_run(p, exact_forward_row);
    twin_run(p, true);
    exact_backward(p);
    for (int order = TESS_EMULATION_FORWARD; order <= TESS_EMULATION_REVERSED; order++) {
        set_order((tess_emulation_order)order);
        device_create(p);
        must(device_forward(p));
        take_results(p, forward_outputs, 2, (tess_emulation_order)order);
        must(device_backward(p));
        take_results(p, backward_outputs, 3, (tess_emulation_order)order);
    }
    check_results(p, forward_outputs, 2);
    check_results(p, backward_outputs, 3);
    after_case(p);
    tess_emulation_release_all();
}

/* Whether outputs [first, end) are those of the run before; where `keep` is NULL they are kept. */
static inline bool is_same_output(problem *p, int first, int end, uint8_t **keep)
{
    static const int outputs[] = {OUT, LSE, D_Q, D_K, D_V};
    bool is_same = true;
    for (int o = first; o < end; o++) {
        operand *x = &p->x[outputs[o]];
        const size_t nbytes = device_nbytes(x);
        must(tess_emulation_read(x->result, x->device, nbytes));
        if (keep[o] == NULL) {
            keep[o] = must_alloc(nbytes);
            memcpy(keep[o], x->result, nbytes);
        }
        is_same = is_same && memcmp(keep[o], x->result, nbytes) == 0;
    }
    return is_same;
}

/* The backward starts from the results of the twin, which it writes over those of the forward. */
static inline bool is_same_run(problem *p, uint8_t **keep)
{
    device_create(p);
    bool is_same = device_forward(p) == TESS_OK && is_same_output(p, 0, 2, keep);
    is_same = device_backward(p) == TESS_OK && is_same_output(p, 2, 5, keep) && is_same;
    tess_error_clear();
    return is_same;
}
