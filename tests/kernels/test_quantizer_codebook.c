/* Moving averages of a codebook: the worked example on two ranks, owners with parts of the rows,
 * replacement. */
#include "kernels/quantizer_codebook.h"
#include "tests/kernels/op_support.h"

enum { K = 3, DIM = 2 };

typedef struct codebook {
    float embed[K * DIM], embed_avg[K * DIM], cluster_size[K];
} codebook;

static const codebook start = {
    .embed = {0, 0, 4, 0, 0, 4}, .embed_avg = {0, 0, 4, 0, 0, 4}, .cluster_size = {1, 1, 1}};

static tess_codebook_rows rows_of(codebook *c, int64_t first, int64_t numel)
{
    return (tess_codebook_rows){c->embed + first * DIM, c->embed_avg + first * DIM,
                                c->cluster_size + first, numel, DIM};
}

/* A whole step; rows of two owners, cut after `first`. */
static void step(codebook *c, int64_t first, bool is_cosine)
{
    static const int64_t count[K] = {2, 2, 0};
    static const float sum[K * DIM] = {1, 1, 8, 1, 0, 0};
    tess_stream s = inline_stream();
    int64_t total = 0;
    for (int owner = 0; owner < 2; owner++) {
        const int64_t lo = owner * first, numel = owner == 0 ? first : K - first;
        const tess_quantizer_average_args a = {.rows = rows_of(c, lo, numel),
                                               .count = count + lo,
                                               .sum = sum + lo * DIM,
                                               .decay = 0.8};
        assert_done(tess_cpu_quantizer_average(&a, &s));
        const tess_quantizer_total_args t = {
            .cluster_size = c->cluster_size + lo, .row_numel = numel, .total = &total};
        assert_done(tess_cpu_quantizer_total(&t, &s));
    }
    for (int owner = 0; owner < 2; owner++) {
        const int64_t lo = owner * first, numel = owner == 0 ? first : K - first;
        const tess_quantizer_embed_args e = {.rows = rows_of(c, lo, numel),
                                             .total = ldexp((double)total, -20),
                                             .code_numel = K,
                                             .eps = 1e-5,
                                             .is_cosine = is_cosine};
        assert_done(tess_cpu_quantizer_embed(&e, &s));
    }
}

static void assert_ulps(const float *got, const double *want, int numel)
{
    for (int i = 0; i < numel; i++) /* 2 ulp are 4 u of the larger of two neighbours */
        if (!(fabs((double)got[i] - want[i]) <= 4 * F32_U * fabs(want[i])))
            fail_msg("element %d: got %.9g, want %.9g", i, (double)got[i], want[i]);
}

static void test_two_ranks_example(void **state)
{
    (void)state;
    static const double size[] = {1.2, 1.2, 0.8}, avg[] = {0.2, 0.2, 4.8, 0.2, 0.0, 3.2};
    static const double embed[] = {
        0.166666840276, 0.166666840276, 4.00000416663, 0.166666840276, 0.0, 3.99998750016};
    codebook whole = start;
    step(&whole, K, false);
    assert_ulps(whole.cluster_size, size, K);
    assert_ulps(whole.embed_avg, avg, K * DIM);
    assert_ulps(whole.embed, embed, K * DIM);
    for (int64_t first = 0; first < K; first++) {
        codebook parts = start;
        step(&parts, first, false);
        assert_memory_equal(&parts, &whole, sizeof whole);
    }
}

static void test_cosine_rows_are_unit(void **state)
{
    (void)state;
    codebook c = start;
    step(&c, K, true);
    for (int k = 0; k < K; k++) /* a factor and two products are rounded */
        assert_true(fabs(hypot((double)c.embed[2 * k], (double)c.embed[2 * k + 1]) - 1.0) <=
                    4 * F32_U);
}

static void test_expired_rows_are_replaced(void **state)
{
    (void)state;
    codebook c = start;
    step(&c, K, false);
    const codebook before = c;
    uint8_t expired[K];
    int64_t expired_numel = 0;
    tess_stream s = inline_stream();
    tess_quantizer_expire_args e = {.cluster_size = c.cluster_size,
                                    .row_numel = K,
                                    .threshold = 1.0,
                                    .expired = expired,
                                    .expired_numel = &expired_numel};
    assert_done(tess_cpu_quantizer_expire(&e, &s));
    assert_true(expired_numel == 1 && !expired[0] && !expired[1] && expired[2]);
    e.threshold = 2.0;
    assert_done(tess_cpu_quantizer_expire(&e, &s));
    assert_int_equal(expired_numel, 3);
    /* 0.7 is above the f32 nearest to it: a size of that number is not below 0.7 */
    const float size = 0.7f;
    e.cluster_size = &size;
    e.row_numel = 1;
    e.threshold = 0.7;
    assert_done(tess_cpu_quantizer_expire(&e, &s));
    assert_int_equal(expired_numel, 0);
    const int64_t row[] = {2};
    const float vector[] = {3.0f, 4.0f};
    tess_quantizer_replace_args r = {
        .rows = rows_of(&c, 0, K), .row = row, .vector = vector, .replace_numel = 1, .reset = 2.0};
    assert_done(tess_cpu_quantizer_replace(&r, &s));
    assert_true(c.embed[4] == 3.0f && c.embed[5] == 4.0f);
    assert_true(c.embed_avg[4] == 6.0f && c.embed_avg[5] == 8.0f && c.cluster_size[2] == 2.0f);
    assert_memory_equal(c.embed, before.embed, 4 * sizeof(float));
    assert_memory_equal(c.embed_avg, before.embed_avg, 4 * sizeof(float));
    r.is_cosine = true;
    assert_done(tess_cpu_quantizer_replace(&r, &s));
    assert_true(fabs((double)c.embed[4] - 0.6) < 2 * F32_U);
    assert_true(c.embed_avg[5] == 2.0f * c.embed[5]);
    const int64_t outside[] = {3};
    r.row = outside;
    assert_refused(tess_cpu_quantizer_replace(&r, &s), TESS_E_RANGE,
                   "quantizer replace: row 3, expected below 3");
}

/* In bf16 the averages would stall: 100 toward 110 by a hundredth stays 100; the state is f32. */
static void test_averages_do_not_stall(void **state)
{
    (void)state;
    float embed = 100.0f, avg = 100.0f, size = 100.0f;
    const int64_t count = 110;
    const float sum = 110.0f;
    tess_stream s = inline_stream();
    const tess_quantizer_average_args a = {
        .rows = {&embed, &avg, &size, 1, 1}, .count = &count, .sum = &sum, .decay = 0.99};
    assert_done(tess_cpu_quantizer_average(&a, &s));
    assert_true(fabs((double)avg - 100.1) < 2 * F32_U * 100.1);
    assert_true(avg == size);
}

/* Weights of half and more go from the new end, as PyTorch's do: decay 0 gives the new value. */
static void test_weights_of_rows(void **state)
{
    (void)state;
    codebook c = start;
    static const int64_t count[K] = {7, 7, 7};
    static const float sum[K * DIM] = {0.1f, 0.3f, 0.1f, 0.3f, 0.1f, 0.3f};
    const float weight[K] = {1.0f, 0.0f, 0.5f};
    tess_stream s = inline_stream();
    const tess_quantizer_average_args a = {
        .rows = rows_of(&c, 0, K), .count = count, .sum = sum, .weight = weight};
    assert_done(tess_cpu_quantizer_average(&a, &s));
    assert_true(c.cluster_size[0] == 7.0f && c.embed_avg[0] == 0.1f && c.embed_avg[1] == 0.3f);
    assert_true(c.cluster_size[1] == 1.0f && c.embed_avg[2] == 4.0f);
    assert_true(c.cluster_size[2] == 4.0f);
}

typedef struct large {
    op_buffer embed, avg, size, sum;
    int64_t *count;
} large;

static tess_status call_large(void *ctx, tess_stream *s)
{
    const large *p = ctx;
    const tess_codebook_rows rows = {p->embed.view.data, p->avg.view.data, p->size.view.data,
                                     p->size.view.numel, p->avg.view.numel / p->size.view.numel};
    const tess_quantizer_average_args a = {
        .rows = rows, .count = p->count, .sum = p->sum.view.data, .decay = 0.9};
    const tess_quantizer_embed_args e = {
        .rows = rows, .total = 900.0, .code_numel = 1000, .eps = 1e-5, .is_cosine = true};
    TESS_TRY(tess_cpu_quantizer_average(&a, s));
    return tess_cpu_quantizer_embed(&e, s);
}

static void ignore(void *ctx) { (void)ctx; }

static void test_paths_and_threads_give_the_same_bits(void **state)
{
    (void)state;
    enum { LARGE_K = 700, LARGE_DIM = 101 };
    large p = {.embed = buffer_create(TESS_F32, LARGE_K * LARGE_DIM, true),
               .avg = buffer_random(TESS_F32, LARGE_K * LARGE_DIM, 3, 1.0),
               .size = buffer_create(TESS_F32, LARGE_K, true),
               .sum = buffer_random(TESS_F32, LARGE_K * LARGE_DIM, 4, 1.0),
               .count = must_alloc(LARGE_K * sizeof(int64_t))};
    for (int64_t k = 0; k < LARGE_K; k++)
        p.count[k] = k * k % 19;
    op_run run = {
        .call = call_large, .ctx = &p, .outputs = {&p.embed, &p.avg, &p.size}, .output_numel = 3};
    run_everywhere(&run, ignore);
    buffer_destroy(&p.embed);
    buffer_destroy(&p.avg);
    buffer_destroy(&p.size);
    buffer_destroy(&p.sum);
    tess_free(p.count);
}

static void test_wrong_arguments_are_refused(void **state)
{
    (void)state;
    codebook c = start;
    const tess_quantizer_average_args a = {.rows = rows_of(&c, 0, K), .decay = 1.0};
    assert_refused(tess_quantizer_average_check(&a), TESS_E_RANGE, "decay is 1");
    const tess_quantizer_embed_args e = {.rows = rows_of(&c, 0, K), .code_numel = K};
    assert_refused(tess_quantizer_embed_check(&e), TESS_E_RANGE, "cluster sizes add up to 0");
    const tess_quantizer_replace_args r = {.rows = rows_of(&c, 0, K), .replace_numel = K + 1};
    assert_refused(tess_quantizer_replace_check(&r), TESS_E_ARG, "4 vectors for 3 rows");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_two_ranks_example),
        cmocka_unit_test(test_cosine_rows_are_unit),
        cmocka_unit_test(test_expired_rows_are_replaced),
        cmocka_unit_test(test_averages_do_not_stall),
        cmocka_unit_test(test_weights_of_rows),
        cmocka_unit_test(test_paths_and_threads_give_the_same_bits),
        cmocka_unit_test(test_wrong_arguments_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
