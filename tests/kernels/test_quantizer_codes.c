/* What visits all codes: orthogonal regularization, and codes drawn by their scores. */
#include "kernels/codebook.h"
#include "kernels/quantizer_vector.h"
#include "tests/kernels/op_support.h"

enum { CODES = 11 };

#define STEP 0x1p-10
#define STEP_ERROR 1e-6 /* central differences: h^2 / 6 of third derivatives of order 1 */

static void ignore(void *ctx) { (void)ctx; }

static double ref_norm(const double *x, int64_t dim)
{
    double square = 0.0;
    for (int64_t j = 0; j < dim; j++)
        square += x[j] * x[j];
    return sqrt(square);
}

/* ---- orthogonal regularization ---- */

static double ref_orthogonal(const double *codes, int64_t m, int64_t dim)
{
    double sum = 0.0;
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < m; j++) {
            double dot = 0.0;
            for (int64_t k = 0; k < dim; k++)
                dot += codes[i * dim + k] * codes[j * dim + k];
            dot /= ref_norm(codes + i * dim, dim) * ref_norm(codes + j * dim, dim);
            sum += dot * dot;
        }
    return sum / (double)(m * m) - 1.0 / (double)m;
}

typedef struct orthogonal_problem {
    op_buffer codes, d_codes, loss;
    int64_t gram[25];
    double work[25 + 5 * THREAD_MAX];
} orthogonal_problem;

/* The gram in two parts, as two owners would. */
static tess_status call_orthogonal(void *ctx, tess_stream *s)
{
    orthogonal_problem *p = ctx;
    enum { DIM = 5, FIRST = 4 };
    const int exponent = tess_fixed_exponent(1.0f, CODES);
    const float *codes = p->codes.view.data;
    memset(p->gram, 0, sizeof p->gram);
    tess_quantizer_gram_args gram = {
        .codes = codes, .code_numel = FIRST, .dim = DIM, .exponent = exponent, .gram = p->gram};
    TESS_TRY(tess_cpu_quantizer_gram(&gram, s));
    gram.codes = codes + FIRST * DIM;
    gram.code_numel = CODES - FIRST;
    TESS_TRY(tess_cpu_quantizer_gram(&gram, s));
    const tess_quantizer_orthogonal_args a = {.codes = codes,
                                              .gram = p->gram,
                                              .code_numel = CODES,
                                              .dim = DIM,
                                              .used_numel = CODES,
                                              .exponent = exponent,
                                              .weight = 10.0,
                                              .work = p->work,
                                              .d_codes = p->d_codes.view.data,
                                              .loss = p->loss.view.data};
    return tess_cpu_quantizer_orthogonal(&a, s);
}

static void test_orthogonal_gradient(void **state)
{
    (void)state;
    enum { DIM = 5 };
    orthogonal_problem p = {.codes = buffer_random(TESS_F32, CODES * DIM, 51, 1.0),
                            .d_codes = buffer_create(TESS_F32, CODES * DIM, true),
                            .loss = buffer_create(TESS_F64, 1, false)};
    op_run run = {
        .call = call_orthogonal, .ctx = &p, .outputs = {&p.d_codes, &p.loss}, .output_numel = 2};
    run_everywhere(&run, ignore);
    /* products are off by 2^-(exponent + 1) at most, with an exponent of 50: entries of G, of at
     * most CODES, by CODES 2^-51, and |G|^2 by twice DIM^2 CODES times that */
    assert_true(fabs(p.loss.value[0] - ref_orthogonal(p.codes.value, CODES, DIM)) <
                2.0 * DIM * DIM * 0x1p-51);
    double *want = doubles(CODES * DIM);
    for (int64_t i = 0; i < CODES * DIM; i++) {
        double *x = &p.codes.value[i];
        const double keep = *x;
        *x = keep + STEP;
        const double above = ref_orthogonal(p.codes.value, CODES, DIM);
        *x = keep - STEP;
        want[i] = 10.0 * (above - ref_orthogonal(p.codes.value, CODES, DIM)) / (2 * STEP);
        *x = keep;
    }
    /* differences: third derivatives of a normalized row of norm 1 are of order 10 */
    assert_close("d_codes", &p.d_codes, want, 10 * STEP_ERROR, 4 * F32_U);
    tess_free(want);
    buffer_destroy(&p.codes);
    buffer_destroy(&p.d_codes);
    buffer_destroy(&p.loss);
}

static void test_orthogonal_example(void **state)
{
    (void)state;
    const float codes[] = {1.0f, 0.0f, 0.0f, 2.0f, 5.0f, 5.0f, 3.0f, 3.0f};
    const uint8_t use[] = {1, 1, 0, 1};
    int64_t gram[4] = {0};
    double loss = 0.0;
    tess_stream s = inline_stream();
    const int exponent = tess_fixed_exponent(1.0f, 3);
    const tess_quantizer_gram_args g = {
        .codes = codes, .use = use, .code_numel = 4, .dim = 2, .exponent = exponent, .gram = gram};
    assert_done(tess_cpu_quantizer_gram(&g, &s));
    const tess_quantizer_orthogonal_args a = {.codes = codes,
                                              .use = use,
                                              .gram = gram,
                                              .code_numel = 4,
                                              .dim = 2,
                                              .used_numel = 3,
                                              .exponent = exponent,
                                              .loss = &loss};
    assert_done(tess_cpu_quantizer_orthogonal(&a, &s));
    assert_true(fabs(loss - 0.222222222) < 1e-9);
}

/* ---- drawn codes ---- */

static void test_sample_of_parts_is_the_sample_of_all(void **state)
{
    (void)state;
    enum { DIM = 3, N = 200 };
    op_buffer x = buffer_random(TESS_F32, N * DIM, 71, 1.0);
    op_buffer codes = buffer_random(TESS_F32, CODES * DIM, 73, 1.0);
    uint64_t whole[N], parts[N];
    memset(whole, 0xff, sizeof whole);
    memset(parts, 0xff, sizeof parts);
    tess_stream s = inline_stream();
    tess_quantizer_sample_args a = {.x = x.view.data,
                                    .codes = codes.view.data,
                                    .row_numel = N,
                                    .dim = DIM,
                                    .code_numel = CODES,
                                    .all_numel = CODES,
                                    .temperature = 0.5,
                                    .rng = tess_rng_make(7, TESS_RNG_TEST, 1, 2),
                                    .key = whole};
    assert_done(tess_cpu_quantizer_sample(&a, &s));
    for (int part = 0; part < 4; part++) { /* two halves of rows, two ranges of codes */
        const int64_t row = part / 2 * 90, code = part % 2 * 4;
        a.first_row_idx = row;
        a.row_numel = part / 2 == 0 ? 90 : N - 90;
        a.first_code_idx = code;
        a.code_numel = part % 2 == 0 ? 4 : CODES - 4;
        a.x = (const float *)x.view.data + row * DIM;
        a.codes = (const float *)codes.view.data + code * DIM;
        a.key = parts + row;
        assert_done(tess_cpu_quantizer_sample(&a, &s));
    }
    assert_memory_equal(whole, parts, sizeof whole);
    buffer_destroy(&x);
    buffer_destroy(&codes);
}

/* How often each code is drawn against softmax(s / T): 20,000 draws, five standard deviations. */
static void test_sample_follows_the_softmax(void **state)
{
    (void)state;
    enum { DIM = 2, N = 20000, K = 4 };
    float *x = must_alloc(N * DIM * sizeof *x);
    uint64_t *key = must_alloc(N * sizeof *key);
    const float codes[K * DIM] = {0, 0, 1, 0, 0, 1.5f, -2, 0.5f};
    for (int i = 0; i < N * DIM; i++)
        x[i] = 0.25f;
    memset(key, 0xff, N * sizeof *key);
    tess_stream s = inline_stream();
    const tess_quantizer_sample_args a = {.x = x,
                                          .codes = codes,
                                          .row_numel = N,
                                          .dim = DIM,
                                          .code_numel = K,
                                          .all_numel = K,
                                          .temperature = 0.7,
                                          .rng = tess_rng_make(11, TESS_RNG_TEST, 1, 2),
                                          .key = key};
    assert_done(tess_cpu_quantizer_sample(&a, &s));
    double weight[K], sum = 0.0;
    int64_t count[K] = {0};
    for (int i = 0; i < N; i++)
        count[(uint32_t)key[i]]++;
    for (int k = 0; k < K; k++) {
        const double dx = 0.25 - (double)codes[2 * k], dy = 0.25 - (double)codes[2 * k + 1];
        weight[k] = exp(-sqrt(dx * dx + dy * dy) / 0.7);
        sum += weight[k];
    }
    for (int k = 0; k < K; k++) {
        const double share = weight[k] / sum;
        assert_true(fabs((double)count[k] - N * share) < 5 * sqrt(N * share * (1 - share)));
    }
    tess_free(x);
    tess_free(key);
}

/* ---- threads, refusals ---- */

typedef struct large {
    op_buffer x, codes, d_codes, key;
    int64_t *gram;
    double *work;
} large;

enum { LARGE_N = 601, LARGE_K = 203, LARGE_DIM = 33 };

static tess_status call_large(void *ctx, tess_stream *s)
{
    const large *p = ctx;
    const tess_quantizer_sample_args draw = {.x = p->x.view.data,
                                             .codes = p->codes.view.data,
                                             .row_numel = LARGE_N,
                                             .dim = LARGE_DIM,
                                             .code_numel = LARGE_K,
                                             .all_numel = LARGE_K,
                                             .temperature = 1.0,
                                             .is_cosine = true,
                                             .rng = tess_rng_make(3, TESS_RNG_TEST, 0, 0),
                                             .key = p->key.view.data};
    TESS_TRY(tess_cpu_quantizer_sample(&draw, s));
    const int exponent = tess_fixed_exponent(1.0f, LARGE_K);
    memset(p->gram, 0, LARGE_DIM * LARGE_DIM * sizeof *p->gram);
    const tess_quantizer_gram_args gram = {.codes = p->codes.view.data,
                                           .code_numel = LARGE_K,
                                           .dim = LARGE_DIM,
                                           .exponent = exponent,
                                           .gram = p->gram};
    TESS_TRY(tess_cpu_quantizer_gram(&gram, s));
    const tess_quantizer_orthogonal_args o = {.codes = p->codes.view.data,
                                              .gram = p->gram,
                                              .code_numel = LARGE_K,
                                              .dim = LARGE_DIM,
                                              .used_numel = LARGE_K,
                                              .exponent = exponent,
                                              .weight = 1.0,
                                              .work = p->work,
                                              .d_codes = p->d_codes.view.data};
    return tess_cpu_quantizer_orthogonal(&o, s);
}

static void test_threads_give_the_same_bits(void **state)
{
    (void)state;
    large p = {.x = buffer_random(TESS_F32, LARGE_N * LARGE_DIM, 1, 1.0),
               .codes = buffer_random(TESS_F32, LARGE_K * LARGE_DIM, 2, 1.0),
               .d_codes = buffer_create(TESS_F32, LARGE_K * LARGE_DIM, true),
               .key = buffer_create(TESS_U64, LARGE_N, false),
               .gram = must_alloc(LARGE_DIM * LARGE_DIM * sizeof(int64_t)),
               .work = doubles(tess_orthogonal_work_numel(LARGE_DIM, THREAD_MAX))};
    memset(p.key.view.data, 0xff, LARGE_N * sizeof(uint64_t));
    op_run run = {
        .call = call_large, .ctx = &p, .outputs = {&p.key, &p.d_codes}, .output_numel = 2};
    run_everywhere(&run, ignore);
    buffer_destroy(&p.x);
    buffer_destroy(&p.codes);
    buffer_destroy(&p.d_codes);
    buffer_destroy(&p.key);
    tess_free(p.gram);
    tess_free(p.work);
}

static void test_wrong_arguments_are_refused(void **state)
{
    (void)state;
    tess_quantizer_sample_args draw = {.dim = 1, .all_numel = 1, .temperature = 0.0};
    assert_refused(tess_quantizer_sample_check(&draw), TESS_E_RANGE, "temperature is 0");
    draw.code_numel = 2;
    assert_refused(tess_quantizer_sample_check(&draw), TESS_E_RANGE, "codes [0, +2) of 1");
    const tess_quantizer_gram_args gram = {.dim = 1, .exponent = 51};
    assert_refused(tess_quantizer_gram_check(&gram), TESS_E_RANGE,
                   "quantizer gram: exponent is 51, expected 0 <= exponent <= 50");
}

/* ---- masks ---- */

static void test_masked_vectors_lose_all_codes(void **state)
{
    (void)state;
    static const uint8_t valid[] = {1, 0, 7, 0};
    static const uint32_t expected[] = {5,  TESS_NO_CODE, 6,  TESS_NO_CODE,
                                        15, TESS_NO_CODE, 16, TESS_NO_CODE};
    uint32_t code[] = {5, 0, 6, 9, 15, 10, 16, TESS_NO_CODE};
    tess_stream s = inline_stream();
    tess_quantizer_mask_args a = {.valid = valid, .row_numel = 4, .index_numel = 2, .code = code};
    assert_done(tess_cpu_quantizer_mask(&a, &s));
    assert_memory_equal(code, expected, sizeof code);
    a.valid = NULL;
    assert_refused(tess_cpu_quantizer_mask(&a, &s), TESS_E_ARG, "valid");
    a.row_numel = 0;
    assert_done(tess_cpu_quantizer_mask(&a, &s));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_orthogonal_gradient),
        cmocka_unit_test(test_orthogonal_example),
        cmocka_unit_test(test_sample_of_parts_is_the_sample_of_all),
        cmocka_unit_test(test_sample_follows_the_softmax),
        cmocka_unit_test(test_threads_give_the_same_bits),
        cmocka_unit_test(test_masked_vectors_lose_all_codes),
        cmocka_unit_test(test_wrong_arguments_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
