#include "tests/kernels/op_support.h"

static const int64_t sizes[] = {0, 1, 5, 63, 64, 100, 40001};

/* Up to three inputs and two outputs of one length. */
typedef struct problem {
    op_buffer in[3], out[2];
    double *ref[2];
    double bound_absolute, bound_relative;
    int output_numel;
    tess_dropout_args dropout;
    tess_sum_rows_args sum_rows;
    tess_view bias;
} problem;

static problem problem_create(tess_dtype dt, int64_t numel)
{
    problem p = {.output_numel = 1};
    for (int i = 0; i < 3; i++)
        p.in[i] = buffer_random(dt, numel, (uint64_t)(20 + i), 3.0);
    for (int i = 0; i < 2; i++) {
        p.out[i] = buffer_create(dt, numel, i == 1);
        p.ref[i] = doubles(numel);
    }
    return p;
}

static void problem_destroy(problem *p)
{
    for (int i = 0; i < 3; i++)
        buffer_destroy(&p->in[i]);
    for (int i = 0; i < 2; i++) {
        buffer_destroy(&p->out[i]);
        tess_free(p->ref[i]);
    }
}

static void check(void *ctx)
{
    problem *p = ctx;
    for (int o = 0; o < p->output_numel; o++)
        assert_close(o == 0 ? "first output" : "second output", &p->out[o], p->ref[o],
                     p->bound_absolute, p->bound_relative);
}

static void run(problem *p, tess_status (*call)(void *, tess_stream *))
{
    const op_run r = {.call = call,
                      .ctx = p,
                      .outputs = {&p->out[0], &p->out[1]},
                      .output_numel = p->output_numel};
    run_everywhere(&r, check);
}

static tess_status call_swiglu(void *ctx, tess_stream *s)
{
    const problem *p = ctx;
    const tess_swiglu_args a = {.gate = p->in[0].view, .up = p->in[1].view, .out = p->out[0].view};
    return tess_cpu_swiglu_forward(&a, s);
}

static tess_status call_swiglu_backward(void *ctx, tess_stream *s)
{
    const problem *p = ctx;
    const tess_swiglu_backward_args a = {.gate = p->in[0].view,
                                         .up = p->in[1].view,
                                         .d_out = p->in[2].view,
                                         .d_gate = p->out[0].view,
                                         .d_up = p->out[1].view};
    return tess_cpu_swiglu_backward(&a, s);
}

/* exp 2 ulp = 4 u, sum, quotient, product: below 10 u32 relative, then one rounding. Backward adds
 * silu (1 - s), whose cancellation is at most |silu| u: covered by 10 u32 of |d||up|(1 + |g|). */
static void test_swiglu_matches_reference(void **state)
{
    (void)state;
    for (int i = 0; i < 2 * TESS_NELEM(sizes); i++) {
        const tess_dtype dt = i % 2 ? TESS_BF16 : TESS_F32;
        problem p = problem_create(dt, sizes[i / 2]);
        ref_swiglu(sizes[i / 2], p.in[0].value, p.in[1].value, p.ref[0]);
        p.bound_absolute = 1e-37;
        p.bound_relative = 10.0 * F32_U + unit_of(dt);
        run(&p, call_swiglu);
        p.output_numel = 2;
        ref_swiglu_backward(sizes[i / 2], p.in[0].value, p.in[1].value, p.in[2].value, p.ref[0],
                            p.ref[1]);
        const double g = largest(p.in[0].value, sizes[i / 2]);
        p.bound_absolute = 10.0 * F32_U * (1.0 + g) * largest(p.in[1].value, sizes[i / 2]) *
                           largest(p.in[2].value, sizes[i / 2]);
        run(&p, call_swiglu_backward);
        problem_destroy(&p);
    }
}

/* Gates far out: silu(-200) = -0, silu(200) = 200, no NaN from exp overflow. */
static void test_swiglu_extreme_gates_are_finite(void **state)
{
    (void)state;
    float gate[4] = {-200.0f, 200.0f, -88.0f, 88.0f}, up[4] = {1, 1, 1, 1}, d[4] = {1, 1, 1, 1};
    float out[4], d_gate[4], d_up[4];
    tess_stream s;
    tess_stream_init_inline(&s, "test", NULL);
    const tess_swiglu_args f = {.gate = tess_view_host(gate, 4, TESS_F32),
                                .up = tess_view_host(up, 4, TESS_F32),
                                .out = tess_view_host(out, 4, TESS_F32)};
    assert_int_equal(tess_cpu_swiglu_forward(&f, &s), TESS_OK);
    const tess_swiglu_backward_args b = {.gate = f.gate,
                                         .up = f.up,
                                         .d_out = tess_view_host(d, 4, TESS_F32),
                                         .d_gate = tess_view_host(d_gate, 4, TESS_F32),
                                         .d_up = tess_view_host(d_up, 4, TESS_F32)};
    assert_int_equal(tess_cpu_swiglu_backward(&b, &s), TESS_OK);
    assert_true(out[0] == 0.0f && out[1] == 200.0f && fabsf(out[2]) < 1e-30f && out[3] == 88.0f);
    for (int i = 0; i < 4; i++)
        assert_true(isfinite(d_gate[i]) && isfinite(d_up[i]));
    assert_true(d_gate[1] == 1.0f && d_gate[0] == 0.0f);
}

static tess_status call_relu(void *ctx, tess_stream *s)
{
    const problem *p = ctx;
    const tess_relu_args a = {p->in[0].view, p->in[1].view, p->out[0].view};
    return tess_cpu_relu(&a, s);
}

/* Nothing is rounded: the input itself or 0. */
static void test_relu_matches_rule(void **state)
{
    (void)state;
    for (int i = 0; i < 2 * TESS_NELEM(sizes); i++) {
        problem p = problem_create(i % 2 ? TESS_BF16 : TESS_F32, sizes[i / 2]);
        for (int64_t k = 0; k < sizes[i / 2]; k++)
            p.ref[0][k] = p.in[1].value[k] <= 0.0 ? 0.0 : p.in[0].value[k];
        run(&p, call_relu);
        problem_destroy(&p);
    }
}

/* In place, and NaN is not hidden. */
static void test_relu_keeps_nan_and_clears_minus_zero(void **state)
{
    (void)state;
    float x[5] = {NAN, -0.0f, -1.0f, 2.0f, INFINITY};
    tess_stream s;
    tess_stream_init_inline(&s, "test", NULL);
    const tess_view v = tess_view_host(x, 5, TESS_F32);
    const tess_relu_args a = {v, v, v};
    assert_int_equal(tess_cpu_relu(&a, &s), TESS_OK);
    assert_true(isnan(x[0]) && x[1] == 0.0f && !signbit(x[1]) && x[2] == 0.0f && x[3] == 2.0f &&
                isinf(x[4]));
    const tess_relu_args crossed = {tess_view_host(x + 1, 4, TESS_F32),
                                    tess_view_host(x, 4, TESS_F32), tess_view_host(x, 4, TESS_F32)};
    assert_refused(tess_cpu_relu(&crossed, &s), TESS_E_ARG, "overlaps x in part");
}

static tess_status call_add(void *ctx, tess_stream *s)
{
    const problem *p = ctx;
    const tess_add_args a = {p->in[0].view, p->in[1].view, p->out[0].view};
    return tess_cpu_add(&a, s);
}

static tess_status call_add_bias(void *ctx, tess_stream *s)
{
    const problem *p = ctx;
    const tess_add_bias_args a = {p->out[0].view, p->bias};
    return tess_cpu_add_bias(&a, s);
}

/* One f32 sum and one rounding. */
static void test_add_matches_reference(void **state)
{
    (void)state;
    for (int i = 0; i < 2 * TESS_NELEM(sizes); i++) {
        const tess_dtype dt = i % 2 ? TESS_BF16 : TESS_F32;
        problem p = problem_create(dt, sizes[i / 2]);
        ref_add(sizes[i / 2], p.in[0].value, p.in[1].value, p.ref[0]);
        p.bound_relative = F32_U + unit_of(dt);
        run(&p, call_add);
        problem_destroy(&p);
    }
}

static void test_add_bias_matches_reference(void **state)
{
    (void)state;
    const ref_rows rows = {13, 37};
    for (int i = 0; i < 4; i++) {
        const tess_dtype dt = i % 2 ? TESS_BF16 : TESS_F32;
        problem p = problem_create(dt, rows.row_numel * rows.dim);
        op_buffer bias = buffer_random(i >= 2 ? TESS_BF16 : TESS_F32, rows.dim, 31, 1.0);
        p.bias = bias.view;
        buffer_fill(&p.out[0], 32, 2.0);
        memcpy(p.ref[0], p.out[0].value, (size_t)(rows.row_numel * rows.dim) * sizeof(double));
        ref_add_bias(rows, bias.value, p.ref[0]);
        p.bound_relative = F32_U + unit_of(dt);
        run(&p, call_add_bias);
        buffer_destroy(&bias);
        problem_destroy(&p);
    }
}

static tess_status call_sum_rows(void *ctx, tess_stream *s)
{
    return tess_cpu_sum_rows(&((problem *)ctx)->sum_rows, s);
}

/* R additions in f32: R u32 of the sum of magnitudes. The old contents stay in the sum. */
static void test_sum_rows_matches_reference(void **state)
{
    (void)state;
    static const ref_rows shapes[] = {{0, 5}, {1, 7}, {15, 33}, {16, 16}, {333, 130}};
    for (int i = 0; i < 2 * TESS_NELEM(shapes); i++) {
        const ref_rows rows = shapes[i / 2];
        problem p = problem_create(i % 2 ? TESS_BF16 : TESS_F32, rows.row_numel * rows.dim);
        op_buffer out = buffer_random(TESS_F32, rows.dim, 33, 1.0);
        op_buffer work = buffer_create(TESS_F32, rows.dim * 16, true);
        double *ref = doubles(rows.dim);
        memcpy(ref, out.value, (size_t)rows.dim * sizeof *ref);
        ref_sum_rows(rows, p.in[0].value, ref);
        p.sum_rows = (tess_sum_rows_args){p.in[0].view, rows.row_numel, rows.dim, out.view.data,
                                          work.view.data};
        buffer_destroy(&p.out[0]);
        tess_free(p.ref[0]);
        p.out[0] = out;
        p.ref[0] = ref;
        p.bound_absolute =
            (double)(rows.row_numel + 2) * F32_U *
            ((double)rows.row_numel * largest(p.in[0].value, p.in[0].view.numel) + 5.0);
        run(&p, call_sum_rows);
        assert_canaries(&work);
        buffer_destroy(&work);
        problem_destroy(&p);
    }
}

static tess_status call_dropout(void *ctx, tess_stream *s)
{
    return tess_cpu_dropout(&((problem *)ctx)->dropout, s);
}

/* keep[i] of elements first .. by the reference generator and the rule of the header. */
static bool *keep_of(const tess_dropout_args *a)
{
    bool *keep = must_alloc((size_t)a->x.numel + 1);
    for (int64_t i = 0; i < a->x.numel; i++) {
        const uint64_t element = (uint64_t)(a->first_idx + i);
        const uint32_t counter[4] = {(uint32_t)(element / 4), (uint32_t)(element / 4 >> 32),
                                     a->rng.index, a->rng.purpose_layer};
        uint32_t word[4];
        ref_philox(a->rng.key, counter, word);
        keep[i] = (double)word[element % 4] >= (double)a->p * 0x1p32;
    }
    return keep;
}

/* One quotient, one sum, one rounding. */
static void test_dropout_matches_reference(void **state)
{
    (void)state;
    static const int64_t firsts[] = {0, 3, 17, INT64_C(0x3fffffffe), 64};
    static const float probabilities[] = {0.1f, 0.0f, 0.999f};
    for (int i = 0; i < TESS_NELEM(sizes) * 5 * 2; i++) {
        const int64_t numel = sizes[i % TESS_NELEM(sizes)];
        const tess_dtype dt = i % 2 ? TESS_BF16 : TESS_F32;
        const bool with_add = i % 3 == 0;
        problem p = problem_create(dt, numel);
        p.dropout = (tess_dropout_args){
            .x = p.in[0].view,
            .add = with_add ? p.in[1].view : tess_view_host(NULL, 0, TESS_F32),
            .out = p.out[0].view,
            .p = probabilities[i % 3],
            .rng = tess_rng_make(UINT64_C(0x123456789abcdef), TESS_RNG_DROPOUT, 12, 34),
            .first_idx = firsts[i % 5]};
        bool *keep = keep_of(&p.dropout);
        ref_dropout(numel, p.in[0].value, keep, (double)p.dropout.p, p.ref[0]);
        /* 1 - p in f32 is off by u32 / (1 - p); a sum may cancel the quotient, not its error */
        const double quotient = (2.0 + 1.0 / (1.0 - (double)p.dropout.p)) * F32_U;
        p.bound_relative = quotient + unit_of(dt) * 1.01;
        p.bound_absolute = with_add ? 1.01 * quotient * largest(p.ref[0], numel) : 0.0;
        if (with_add)
            ref_add(numel, p.ref[0], p.in[1].value, p.ref[0]);
        run(&p, call_dropout);
        tess_free(keep);
        problem_destroy(&p);
    }
}

static tess_status call_cast(void *ctx, tess_stream *s)
{
    const problem *p = ctx;
    const tess_cast_args a = {p->in[0].view, p->out[0].view};
    return tess_cpu_cast(&a, s);
}

static void no_check(void *ctx) { (void)ctx; }

/* Every 16-bit pattern widened and narrowed again; NaN keeps class and sign. */
static void test_cast_all_bf16_patterns_round_trip(void **state)
{
    (void)state;
    problem p = problem_create(TESS_BF16, 65536), back = problem_create(TESS_BF16, 65536);
    for (int i = 0; i < 65536; i++)
        ((uint16_t *)p.in[0].view.data)[i] = (uint16_t)i;
    buffer_destroy(&p.out[0]);
    p.out[0] = buffer_create(TESS_F32, 65536, true);
    const op_run widen = {.call = call_cast, .ctx = &p, .outputs = {&p.out[0]}, .output_numel = 1};
    run_everywhere(&widen, no_check);
    buffer_destroy(&back.in[0]);
    back.in[0] = p.out[0];
    const op_run narrow = {
        .call = call_cast, .ctx = &back, .outputs = {&back.out[0]}, .output_numel = 1};
    run_everywhere(&narrow, no_check);
    for (uint32_t i = 0; i < 65536; i++) {
        const uint16_t got = ((const uint16_t *)back.out[0].view.data)[i];
        if ((i & 0x7fffu) > 0x7f80u)
            assert_int_equal(got, (i & 0x8000u) | 0x7fc0u);
        else
            assert_int_equal(got, i);
    }
    p.out[0] = buffer_create(TESS_F32, 0, false);
    problem_destroy(&p);
    problem_destroy(&back);
}

/* Examples of the rounding rule: ties to even both ways, overflow, subnormal, NaN first. */
static void test_cast_known_answers(void **state)
{
    (void)state;
    static const uint32_t bits[] = {0x3f808000, 0x3f818000, 0x40490fdb, 0x7f7f8000,
                                    0x7f800001, 0x7fffffff, 0xffffffff, 0x7f800000,
                                    0x000116c2, 0x80000000, 0x7f7f7fff};
    static const uint16_t want[] = {0x3f80, 0x3f82, 0x4049, 0x7f80, 0x7fc0, 0x7fc0,
                                    0xffc0, 0x7f80, 0x0001, 0x8000, 0x7f7f};
    problem p = problem_create(TESS_BF16, TESS_NELEM(bits));
    buffer_destroy(&p.in[0]);
    p.in[0] = buffer_create(TESS_F32, TESS_NELEM(bits), true);
    memcpy(p.in[0].view.data, bits, sizeof bits);
    const op_run run_cast = {
        .call = call_cast, .ctx = &p, .outputs = {&p.out[0]}, .output_numel = 1};
    run_everywhere(&run_cast, no_check);
    assert_memory_equal(p.out[0].view.data, want, sizeof want);
    for (int i = 0; i < TESS_NELEM(bits); i++) {
        float x = 0.0f;
        memcpy(&x, &bits[i], sizeof x);
        assert_int_equal(tess_bf16_from_f32(x), want[i]);
    }
    problem_destroy(&p);
}

/* Error of one result in units of the last place of the exact value. */
static double ulp_error(float got, double want)
{
    const double ulp = ldexp(1.0, TESS_MAX(ilogb(want), -126) - 23);
    return fabs((double)got - want) / ulp;
}

/* exp within 2 ulp over its whole normal range, the same bits on every path, exact limits. */
static void test_exp_is_within_two_ulp_on_every_path(void **state)
{
    (void)state;
    enum { NUMEL = 1 << 18 };
    float *x = must_alloc(NUMEL * sizeof *x), *first = must_alloc(NUMEL * sizeof *x);
    float *got = must_alloc(NUMEL * sizeof *x);
    for (int i = 0; i < NUMEL; i++)
        x[i] = -87.33f + 176.05f * (float)i / (float)NUMEL;
    static const float special[] = {0.0f,     -0.0f, 88.7228f, 88.73f,   -87.4f,  -INFINITY,
                                    INFINITY, NAN,   1e-30f,   -1000.0f, 1000.0f, -87.3365f};
    memcpy(x, special, sizeof special);
    const int best = best_path();
    for (int path = 0; path <= best; path++) {
        use_path(path);
        tess_cpu_rows_get()->exp(x, path == 0 ? first : got, NUMEL);
        if (path > 0)
            assert_memory_equal(first, got, NUMEL * sizeof *x);
        tess_cpu_rows_get()->exp_below(x, got, NUMEL);
        for (int i = TESS_NELEM(special); i < NUMEL && x[i] <= 0.0f; i++)
            assert_true(got[i] == first[i]);
        assert_true(got[0] == 1.0f && got[4] == 0.0f && got[5] == 0.0f && isnan(got[7]));
    }
    use_path(-1);
    for (int i = TESS_NELEM(special); i < NUMEL; i++)
        if (!(ulp_error(first[i], exp((double)x[i])) <= 2.0))
            fail_msg("exp(%.9g) = %.9g is %.2f ulp off", (double)x[i], (double)first[i],
                     ulp_error(first[i], exp((double)x[i])));
    assert_true(first[0] == 1.0f && first[1] == 1.0f && isfinite(first[2]) && isinf(first[3]));
    assert_true(first[4] == 0.0f && first[5] == 0.0f && isinf(first[6]) && isnan(first[7]));
    assert_true(first[8] == 1.0f && first[9] == 0.0f && isinf(first[10]) && first[11] > 0.0f);
    tess_free(x);
    tess_free(first);
    tess_free(got);
}

static void test_elementwise_aliases_give_the_same_bits(void **state)
{
    (void)state;
    problem p = problem_create(TESS_BF16, 1000), q = problem_create(TESS_BF16, 1000);
    tess_stream s;
    tess_stream_init_inline(&s, "test", NULL);
    const size_t nbytes = tess_view_nbytes(p.out[0].view);
    assert_int_equal(call_swiglu(&p, &s), TESS_OK);
    const tess_swiglu_args over_up = {
        .gate = q.in[0].view, .up = q.in[1].view, .out = q.in[1].view};
    assert_int_equal(tess_cpu_swiglu_forward(&over_up, &s), TESS_OK);
    assert_memory_equal(q.in[1].view.data, p.out[0].view.data, nbytes);
    buffer_fill(&q.in[1], 21, 3.0);
    assert_int_equal(call_swiglu_backward(&p, &s), TESS_OK);
    const tess_swiglu_backward_args b = {.gate = q.in[0].view,
                                         .up = q.in[1].view,
                                         .d_out = q.in[2].view,
                                         .d_gate = q.in[0].view,
                                         .d_up = q.in[1].view};
    assert_int_equal(tess_cpu_swiglu_backward(&b, &s), TESS_OK);
    assert_memory_equal(q.in[0].view.data, p.out[0].view.data, nbytes);
    assert_memory_equal(q.in[1].view.data, p.out[1].view.data, nbytes);
    assert_int_equal(call_add(&p, &s), TESS_OK);
    const tess_add_args in_place = {p.in[0].view, p.in[1].view, p.in[0].view};
    assert_int_equal(tess_cpu_add(&in_place, &s), TESS_OK);
    assert_memory_equal(p.in[0].view.data, p.out[0].view.data, nbytes);
    problem_destroy(&p);
    problem_destroy(&q);
}

static void test_elementwise_wrong_arguments_are_refused(void **state)
{
    (void)state;
    problem p = problem_create(TESS_F32, 12);
    tess_swiglu_args swiglu = {.gate = p.in[0].view, .up = p.in[1].view, .out = p.out[0].view};
    swiglu.up.numel = 11;
    assert_refused(tess_swiglu_check(&swiglu), TESS_E_ARG, "up holds 11 elements, expected 12");
    tess_add_args add = {p.in[0].view, p.in[1].view, p.out[0].view};
    add.b.dt = TESS_I32;
    assert_refused(tess_add_check(&add), TESS_E_DTYPE, "b is i32, expected f32");
    tess_add_bias_args bias = {p.in[0].view, tess_view_slice(p.in[1].view, 0, 5)};
    assert_refused(tess_add_bias_check(&bias), TESS_E_ARG, "expected whole rows of 5");
    tess_dropout_args dropout = {.x = p.in[0].view, .out = p.out[0].view, .p = 1.0f};
    assert_refused(tess_dropout_check(&dropout), TESS_E_RANGE, "p is 1, expected 0 <= p < 1");
    tess_cast_args cast = {p.in[0].view, p.in[0].view};
    assert_refused(tess_cast_check(&cast), TESS_E_ARG, "overlaps src");
    cast.dst = p.out[0].view;
    cast.dst.dt = TESS_U8;
    assert_refused(tess_cast_check(&cast), TESS_E_DTYPE, "dst is u8, expected f32 or bf16");
    problem_destroy(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_swiglu_matches_reference),
        cmocka_unit_test(test_swiglu_extreme_gates_are_finite),
        cmocka_unit_test(test_relu_matches_rule),
        cmocka_unit_test(test_relu_keeps_nan_and_clears_minus_zero),
        cmocka_unit_test(test_add_matches_reference),
        cmocka_unit_test(test_add_bias_matches_reference),
        cmocka_unit_test(test_sum_rows_matches_reference),
        cmocka_unit_test(test_dropout_matches_reference),
        cmocka_unit_test(test_cast_all_bf16_patterns_round_trip),
        cmocka_unit_test(test_cast_known_answers),
        cmocka_unit_test(test_exp_is_within_two_ulp_on_every_path),
        cmocka_unit_test(test_elementwise_aliases_give_the_same_bits),
        cmocka_unit_test(test_elementwise_wrong_arguments_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
