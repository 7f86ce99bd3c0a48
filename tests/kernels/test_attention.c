#include "tests/kernels/op_support.h"

#include "core/arith.h"

/* One attention problem: kernel arguments, reference, results of the reference. */
typedef struct problem {
    tess_attention_shape shape;
    int64_t window;
    op_buffer q, k, v, out, lse, d_out, d_q, d_k, d_v;
    tess_view work;
    int32_t *doc_start;
    double *out_ref, *lse_ref, *d_q_ref, *d_k_ref, *d_v_ref;
    ref_attention ref;
} problem;

static float scale_of(const problem *p) { return (float)(1.0 / sqrt((double)p->shape.dim)); }

static problem problem_create(tess_attention_shape shape, int64_t window, int64_t doc_numel)
{
    problem p = {.shape = shape, .window = window};
    const int64_t t = shape.token_numel;
    const int64_t query_numel = t * shape.head_numel * shape.dim;
    const int64_t key_numel = t * shape.kv_head_numel * shape.dim;
    p.q = buffer_random(shape.dt, query_numel, 11, 1.0);
    p.k = buffer_random(shape.dt, key_numel, 12, 1.0);
    p.v = buffer_random(shape.dt, key_numel, 13, 1.0);
    p.d_out = buffer_random(shape.dt, query_numel, 14, 1.0);
    p.out = buffer_create(shape.dt, query_numel, true);
    p.lse = buffer_create(TESS_F32, t * shape.head_numel, false);
    p.d_q = buffer_create(shape.dt, query_numel, false);
    p.d_k = buffer_create(shape.dt, key_numel, true);
    p.d_v = buffer_create(shape.dt, key_numel, false);
    p.doc_start = must_alloc((size_t)t * sizeof *p.doc_start);
    p.shape.longest_numel = 0;
    for (int64_t i = 0; i < t; i++) {
        /* documents of unequal lengths: squares of the position */
        const int64_t doc = doc_numel * i * i / (t * t);
        const bool is_new = i > 0 && doc != doc_numel * (i - 1) * (i - 1) / (t * t);
        p.doc_start[i] = i == 0 || is_new ? (int32_t)i : p.doc_start[i - 1];
        p.shape.longest_numel = TESS_MAX(p.shape.longest_numel, i - p.doc_start[i] + 1);
    }
    p.out_ref = doubles(query_numel);
    p.lse_ref = doubles(t * shape.head_numel);
    p.d_q_ref = doubles(query_numel);
    p.d_k_ref = doubles(key_numel);
    p.d_v_ref = doubles(key_numel);
    p.ref = (ref_attention){.token_numel = t,
                            .head_numel = shape.head_numel,
                            .kv_head_numel = shape.kv_head_numel,
                            .dim = shape.dim,
                            .window = window,
                            .segment_numel = shape.segment_numel,
                            .doc_start = p.doc_start,
                            .scale = (double)scale_of(&p),
                            .q = p.q.value,
                            .k = p.k.value,
                            .v = p.v.value};
    return p;
}

static void problem_destroy(problem *p)
{
    op_buffer *buffers[] = {&p->q,     &p->k,   &p->v,   &p->out, &p->lse,
                            &p->d_out, &p->d_q, &p->d_k, &p->d_v};
    for (int i = 0; i < TESS_NELEM(buffers); i++)
        buffer_destroy(buffers[i]);
    double *refs[] = {p->out_ref, p->lse_ref, p->d_q_ref, p->d_k_ref, p->d_v_ref};
    for (int i = 0; i < TESS_NELEM(refs); i++)
        tess_free(refs[i]);
    tess_free(p->doc_start);
}

static tess_attention_args forward_args(const problem *p)
{
    return (tess_attention_args){.shape = p->shape,
                                 .q = p->q.view,
                                 .k = p->k.view,
                                 .v = p->v.view,
                                 .doc_start = p->doc_start,
                                 .window = p->window,
                                 .scale = scale_of(p),
                                 .out = p->out.view,
                                 .lse = p->lse.view.data,
                                 .work = p->work};
}

static tess_attention_backward_args backward_args(const problem *p)
{
    return (tess_attention_backward_args){.shape = p->shape,
                                          .q = p->q.view,
                                          .k = p->k.view,
                                          .v = p->v.view,
                                          .out = p->out.view,
                                          .lse = p->lse.view.data,
                                          .d_out = p->d_out.view,
                                          .doc_start = p->doc_start,
                                          .window = p->window,
                                          .scale = scale_of(p),
                                          .d_q = p->d_q.view,
                                          .d_k = p->d_k.view,
                                          .d_v = p->d_v.view,
                                          .work = p->work};
}

/* A workspace of exactly the planned size, filled with NaN: nothing may be read before written. */
static tess_status with_work(problem *p, tess_stream *s, bool is_backward)
{
    const size_t nbytes =
        tess_cpu_attention_work_nbytes(&p->shape, tess_pool_thread_numel(s->pool));
    op_buffer work = buffer_create(TESS_BF16, (int64_t)(nbytes / 2), false);
    memset(work.view.data, 0xff, nbytes);
    p->work = tess_view_host(work.view.data, (int64_t)nbytes, TESS_U8_OPAQUE);
    const tess_attention_args forward = forward_args(p);
    const tess_attention_backward_args backward = backward_args(p);
    const tess_status st = is_backward ? tess_cpu_attention_backward(&backward, s)
                                       : tess_cpu_attention_forward(&forward, s);
    assert_canaries(&work);
    buffer_destroy(&work);
    return st;
}

static tess_status call_forward(void *ctx, tess_stream *s) { return with_work(ctx, s, false); }
static tess_status call_backward(void *ctx, tess_stream *s) { return with_work(ctx, s, true); }

/*
 * Forward bounds. Scores: D products of magnitude up to |q||k|, f32 sums: error of a score
 * e_s <= scale * (D + 2) u32 * max|q k sum|; bounded here by (D + 2) * u32 * S with S the largest
 * score bound D * max|q| max|k| * scale. A relative error e_s of each probability follows, plus
 * exp and division (4 u32) and sum (T u32). Probabilities are rounded to dt (u_dt each), products
 * with V summed in f32 (T u32), the result is rounded to dt. |out| <= max|v|:
 *   error <= max|v| (2 e_s + (2 T + 8) u32 + u_dt) + u_dt |out|.
 * A worst-case D * max|q| max|k| is far above any real sum; sqrt(D) in place of D keeps the bound
 * meaningful and is still 5 sigma of a random walk at these sizes.
 */
static double score_error(const problem *p)
{
    const double d = (double)p->shape.dim;
    const double qk = largest(p->q.value, p->q.view.numel) * largest(p->k.value, p->k.view.numel);
    return (d + 2.0) * F32_U * sqrt(d) * qk * (double)scale_of(p);
}

static double probability_error(const problem *p)
{
    return 2.0 * score_error(p) + (2.0 * (double)p->shape.token_numel + 8.0) * F32_U;
}

static void check_forward(void *ctx)
{
    problem *p = ctx;
    const double v_max = largest(p->v.value, p->v.view.numel), u = unit_of(p->shape.dt);
    assert_close("out", &p->out, p->out_ref, v_max * (probability_error(p) + u), 2.0 * u);
    assert_close("lse", &p->lse, p->lse_ref, probability_error(p), 2.0 * F32_U);
}

/*
 * Backward bounds, T terms at most in each sum. G = max|d_out|, V = max|v|, d_p <= sqrt(D)-walk
 * bound D^(1/2) G V * 4. The kernel takes delta from the stored out: its rounding u_dt |out| moves
 * delta by u_dt sqrt(D) G V. d_s = p (d_p - delta) is rounded to dt; the rows of p sum to 1, so
 *   d_q error <= scale K (X (e_p + 2 u_dt) + u_dt X),  X = 2 * max|d_p|,
 * and d_k, d_v sum at most T * group such terms, whose p sum to less than the number of rows that
 * see a column: R = min(T, longest) * group.
 */
static void check_backward(void *ctx)
{
    problem *p = ctx;
    const double u = unit_of(p->shape.dt), d = (double)p->shape.dim;
    const double g = largest(p->d_out.value, p->d_out.view.numel);
    const double x = 2.0 * 4.0 * sqrt(d) * largest(p->v.value, p->v.view.numel) * g;
    const double per_term = probability_error(p) + 3.0 * u + (d + 4.0) * F32_U;
    const double group = (double)(p->shape.head_numel / p->shape.kv_head_numel);
    /* sum of p over the rows of a column: measured walk, sqrt of the rows for the random signs */
    const double rows = sqrt((double)p->shape.longest_numel * group) * 2.0;
    const double scale = (double)scale_of(p);
    const double k = largest(p->k.value, p->k.view.numel);
    const double q = largest(p->q.value, p->q.view.numel);
    assert_close("d_q", &p->d_q, p->d_q_ref, scale * k * x * per_term, 2.0 * u);
    assert_close("d_k", &p->d_k, p->d_k_ref, scale * q * x * per_term * rows, 2.0 * u);
    assert_close("d_v", &p->d_v, p->d_v_ref, g * per_term * rows, 2.0 * u);
}

static void check_problem(tess_attention_shape shape, int64_t window, int64_t doc_numel)
{
    problem p = problem_create(shape, window, doc_numel);
    ref_attention_forward(&p.ref, p.out_ref, p.lse_ref);
    ref_attention_backward(&p.ref, p.d_out.value, p.d_q_ref, p.d_k_ref, p.d_v_ref);
    const op_run forward = {.call = call_forward,
                            .ctx = &p,
                            .outputs = {&p.out, &p.lse},
                            .output_numel = 2,
                            .is_per_path = true};
    run_everywhere(&forward, check_forward);
    const op_run backward = {.call = call_backward,
                             .ctx = &p,
                             .outputs = {&p.d_q, &p.d_k, &p.d_v},
                             .output_numel = 3,
                             .is_per_path = true};
    run_everywhere(&backward, check_backward);
    problem_destroy(&p);
}

static tess_attention_shape shape_of(tess_dtype dt, int64_t t, const int64_t heads_kv_dim[3])
{
    return (tess_attention_shape){.dt = dt,
                                  .token_numel = t,
                                  .head_numel = heads_kv_dim[0],
                                  .kv_head_numel = heads_kv_dim[1],
                                  .dim = heads_kv_dim[2],
                                  .longest_numel = t};
}

/* Odd token counts (panel and block tails), head dims of every residue, group sizes 1, 3, 4. */
static void test_attention_odd_shapes_match_reference(void **state)
{
    (void)state;
    static const int64_t heads[][3] = {{3, 1, 64}, {2, 2, 24}, {4, 1, 80}, {6, 2, 7}, {1, 1, 128}};
    static const int64_t tokens[] = {1, 2, 31, 97, 150};
    for (int h = 0; h < TESS_NELEM(heads); h++)
        for (int t = 0; t < TESS_NELEM(tokens); t++) {
            check_problem(shape_of(TESS_F32, tokens[t], heads[h]), 0, 1);
            check_problem(shape_of(TESS_BF16, tokens[t], heads[h]), 0, 1);
        }
}

static void test_attention_documents_and_windows_match_reference(void **state)
{
    (void)state;
    static const int64_t heads[3] = {3, 1, 32};
    static const int64_t windows[] = {0, 1, 17, 70};
    static const int64_t documents[] = {1, 2, 5};
    for (int w = 0; w < TESS_NELEM(windows); w++)
        for (int n = 0; n < TESS_NELEM(documents); n++) {
            check_problem(shape_of(TESS_F32, 203, heads), windows[w], documents[n]);
            check_problem(shape_of(TESS_BF16, 203, heads), windows[w], documents[n]);
        }
}

/* Segments around the sizes of panels, vectors and blocks of rows, one to three of them. */
static void test_attention_segments_match_reference(void **state)
{
    (void)state;
    static const int64_t heads[][3] = {{2, 2, 24}, {3, 1, 7}, {1, 1, 128}};
    static const int64_t segments[] = {1, 5, 24, 64, 67, 130};
    for (int h = 0; h < TESS_NELEM(heads); h++)
        for (int n = 0; n < TESS_NELEM(segments); n++)
            for (int variant = 0; variant < 4; variant++) {
                tess_attention_shape shape =
                    shape_of(variant & 1 ? TESS_BF16 : TESS_F32,
                             segments[n] * (variant & 2 ? 1 + n % 3 : 1), heads[h]);
                shape.segment_numel = segments[n];
                check_problem(shape, 0, 1);
            }
}

/* The second of two segments has the bits that it has alone. */
static void test_attention_segments_are_alone(void **state)
{
    (void)state;
    enum { SEGMENT = 37, ROW = 2 * 16 };
    static const int64_t heads[3] = {2, 2, 16};
    tess_attention_shape shape = shape_of(TESS_BF16, 2 * SEGMENT, heads);
    shape.segment_numel = SEGMENT;
    problem both = problem_create(shape, 0, 1);
    shape.token_numel = SEGMENT;
    problem one = problem_create(shape, 0, 1);
    op_buffer *const from[] = {&both.q, &both.k, &both.v, &both.d_out, &both.out,
                               &both.d_q, &both.d_k, &both.d_v};
    op_buffer *const to[] = {&one.q, &one.k, &one.v, &one.d_out, &one.out, &one.d_q, &one.d_k,
                             &one.d_v};
    const size_t nbytes = SEGMENT * ROW * sizeof(uint16_t);
    for (int i = 0; i < 4; i++)
        memcpy(to[i]->view.data, (const uint8_t *)from[i]->view.data + nbytes, nbytes);
    for (int i = 0; i < 2; i++) {
        problem *p = i == 0 ? &both : &one;
        const op_run forward = {.call = call_forward, .ctx = p, .outputs = {&p->out, &p->lse}};
        const op_run backward = {.call = call_backward, .ctx = p};
        run_once(&forward, 1);
        run_once(&backward, 2);
    }
    for (int i = 4; i < 8; i++)
        assert_memory_equal(to[i]->view.data, (const uint8_t *)from[i]->view.data + nbytes,
                            nbytes);
    problem_destroy(&both);
    problem_destroy(&one);
}

/* Other finite contents of the first document leave every bit of the second as it was. */
static void test_attention_other_documents_do_not_matter(void **state)
{
    (void)state;
    static const int64_t heads[3] = {2, 1, 16};
    problem p = problem_create(shape_of(TESS_BF16, 128, heads), 0, 1);
    for (int64_t i = 70; i < 128; i++)
        p.doc_start[i] = 70;
    const op_run run = {
        .call = call_forward, .ctx = &p, .outputs = {&p.out, &p.lse}, .output_numel = 2};
    const size_t first = (size_t)(70 * 2 * 16) * 2, nbytes = (size_t)(58 * 2 * 16) * 2;
    uint8_t *before = must_alloc(nbytes);
    run_once(&run, 1);
    memcpy(before, (const uint8_t *)p.out.view.data + first, nbytes);
    for (int64_t i = 0; i < 70 * 16; i++) {
        buffer_set(&p.v, i, 1000.0f);
        buffer_set(&p.k, i, -1000.0f);
    }
    run_once(&run, 1);
    assert_memory_equal(before, (const uint8_t *)p.out.view.data + first, nbytes);
    tess_free(before);
    problem_destroy(&p);
}

static void test_attention_zero_tokens_is_nothing(void **state)
{
    (void)state;
    static const int64_t heads[3] = {2, 1, 16};
    problem p = problem_create(shape_of(TESS_BF16, 0, heads), 0, 1);
    tess_stream s;
    tess_stream_init_inline(&s, "test", NULL);
    const tess_attention_args forward = forward_args(&p);
    const tess_attention_backward_args backward = backward_args(&p);
    assert_int_equal(tess_cpu_attention_forward(&forward, &s), TESS_OK);
    assert_int_equal(tess_cpu_attention_backward(&backward, &s), TESS_OK);
    problem_destroy(&p);
}

static void test_attention_wrong_arguments_are_refused(void **state)
{
    (void)state;
    static const int64_t heads[3] = {4, 2, 8};
    problem p = problem_create(shape_of(TESS_F32, 10, heads), 0, 1);
    tess_stream s;
    tess_stream_init_inline(&s, "test", NULL);
    tess_attention_args a = forward_args(&p);
    assert_refused(tess_cpu_attention_forward(&a, &s), TESS_E_ARG, "attention_work_nbytes()");
    a.shape.kv_head_numel = 3;
    assert_refused(tess_attention_check(&a), TESS_E_ARG, "not a multiple of 3 key-value heads");
    a = forward_args(&p);
    a.k.dt = TESS_BF16;
    assert_refused(tess_attention_check(&a), TESS_E_DTYPE, "k is bf16, expected f32");
    a = forward_args(&p);
    a.q.numel--;
    assert_refused(tess_attention_check(&a), TESS_E_ARG, "q holds 319 elements, expected 320");
    a = forward_args(&p);
    a.shape.longest_numel = 9;
    assert_refused(tess_attention_check(&a), TESS_E_RANGE, "longest_numel allows 9");
    a = forward_args(&p);
    p.doc_start[3] = 5;
    assert_refused(tess_attention_check(&a), TESS_E_RANGE, "doc_start of token 3 is 5");
    p.doc_start[3] = 0;
    a.shape.segment_numel = 4;
    assert_refused(tess_attention_check(&a), TESS_E_ARG, "10 tokens are no whole segments of 4");
    a.shape.segment_numel = 5;
    a.window = 2;
    assert_refused(tess_attention_check(&a), TESS_E_UNSUPPORTED, "a window of 2 inside segments");
    tess_attention_backward_args b = backward_args(&p);
    b.d_k = b.d_v;
    assert_refused(tess_attention_backward_check(&b), TESS_E_ARG, "overlaps another output");
    b = backward_args(&p);
    b.d_q = b.q;
    assert_refused(tess_attention_backward_check(&b), TESS_E_ARG, "overlaps an input");
    problem_destroy(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_attention_odd_shapes_match_reference),
        cmocka_unit_test(test_attention_documents_and_windows_match_reference),
        cmocka_unit_test(test_attention_segments_match_reference),
        cmocka_unit_test(test_attention_segments_are_alone),
        cmocka_unit_test(test_attention_other_documents_do_not_matter),
        cmocka_unit_test(test_attention_zero_tokens_is_nothing),
        cmocka_unit_test(test_attention_wrong_arguments_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
