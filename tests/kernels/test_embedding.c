#include "tests/kernels/op_support.h"

enum { VOCAB = 23, TOKENS = 40, COLS_MAX = 96 };

typedef struct problem {
    int32_t tokens[TOKENS];
    int64_t token_numel, cols;
    tess_embedding_args forward;
    tess_embedding_backward_args backward;
    op_buffer table, out, d_out, d_table;
    double *ref;
} problem;

static problem problem_create(tess_format format, tess_dtype out_dt, int64_t cols,
                              int64_t token_numel)
{
    problem p = {.token_numel = token_numel, .cols = cols};
    const tess_rng rng = tess_rng_make(3, TESS_RNG_TEST, 0, 0);
    for (uint64_t t = 0; t < TOKENS; t++)
        p.tokens[t] = t == 0 ? VOCAB - 1 : (int32_t)tess_rng_below(&rng, t, 6); /* many repeats */
    p.table =
        buffer_random(format == TESS_FORMAT_BF16 ? TESS_BF16 : TESS_F32, VOCAB * cols, 71, 1.0);
    p.out = buffer_create(out_dt, token_numel * cols, true);
    p.d_out = buffer_random(out_dt, token_numel * cols, 72, 1.0);
    p.d_table = buffer_random(TESS_F32, VOCAB * cols, 73, 1.0);
    p.ref = doubles(TESS_MAX(VOCAB, TOKENS) * COLS_MAX);
    p.forward =
        (tess_embedding_args){.token_numel = token_numel,
                              .table = {.codec = {.format = format}, .rows = VOCAB, .cols = cols},
                              .out = p.out.view};
    p.forward.table.part[0] = p.table.view.data;
    p.backward = (tess_embedding_backward_args){NULL,  token_numel, p.d_out.view,
                                                VOCAB, cols,        p.d_table.view.data};
    return p;
}

static void problem_destroy(problem *p)
{
    buffer_destroy(&p->table);
    buffer_destroy(&p->out);
    buffer_destroy(&p->d_out);
    buffer_destroy(&p->d_table);
    tess_free(p->ref);
}

static tess_status call_forward(void *ctx, tess_stream *s)
{
    problem *p = ctx;
    p->forward.tokens = p->tokens;
    return tess_cpu_embedding_forward(&p->forward, s);
}

static tess_status call_backward(void *ctx, tess_stream *s)
{
    problem *p = ctx;
    p->backward.tokens = p->tokens;
    return tess_cpu_embedding_backward(&p->backward, s);
}

/* A copy: exact but for one rounding when the output is narrower. */
static void check_forward(void *ctx)
{
    problem *p = ctx;
    const bool is_exact = p->out.view.dt == TESS_F32 || p->table.view.dt == TESS_BF16;
    assert_close("out", &p->out, p->ref, 0.0, is_exact ? 0.0 : BF16_U);
}

/* At most `token_numel` additions in f32 to one element, each of magnitude up to the sum of all. */
static void check_backward(void *ctx)
{
    problem *p = ctx;
    const double sum = (double)(p->token_numel + 1) * 6.0;
    assert_close("d_table", &p->d_table, p->ref, (double)p->token_numel * F32_U * sum, 0.0);
}

static void test_embedding_plain_tables_match_reference(void **state)
{
    (void)state;
    static const int64_t cols[] = {1, 16, 33, COLS_MAX};
    for (int i = 0; i < 8 * TESS_NELEM(cols); i++) {
        problem p = problem_create(i % 2 ? TESS_FORMAT_BF16 : TESS_FORMAT_F32,
                                   i & 2 ? TESS_BF16 : TESS_F32, cols[i / 8], i & 4 ? TOKENS : 0);
        ref_embedding(p.table.value, p.cols, p.tokens, p.token_numel, p.ref);
        const op_run forward = {
            .call = call_forward, .ctx = &p, .outputs = {&p.out}, .output_numel = 1};
        run_everywhere(&forward, check_forward);
        memcpy(p.ref, p.d_table.value, (size_t)(VOCAB * p.cols) * sizeof *p.ref);
        ref_embedding_backward(p.d_out.value, p.cols, p.tokens, p.token_numel, p.ref);
        const op_run backward = {
            .call = call_backward, .ctx = &p, .outputs = {&p.d_table}, .output_numel = 1};
        run_everywhere(&backward, check_backward);
        problem_destroy(&p);
    }
}

/* Codes and constants made by hand, so that only the dequantizer is under test. */
static void check_nf4(bool double_quant, int64_t cols)
{
    enum { BLOCK = 32, NUMEL_MAX = VOCAB * COLS_MAX };
    uint8_t codes[NUMEL_MAX / 2 + 1], absmax_code[NUMEL_MAX / BLOCK + 1];
    float absmax[NUMEL_MAX / BLOCK + 1];
    static const float nested_absmax[1] = {0.37f};
    static const float offset = 0.81f;
    const tess_rng rng = tess_rng_make(4, TESS_RNG_TEST, 0, 0);
    for (uint64_t i = 0; i < sizeof codes; i++)
        codes[i] = (uint8_t)tess_rng_u32(&rng, i);
    for (uint64_t i = 0; i < sizeof absmax_code; i++) {
        absmax_code[i] = (uint8_t)(i * 37);
        absmax[i] = 0.1f + tess_rng_uniform(&rng, 9000 + i);
    }
    problem p = problem_create(TESS_FORMAT_F32, TESS_F32, cols, TOKENS);
    p.forward.table.codec =
        (tess_codec){.format = TESS_FORMAT_NF4, .block_numel = BLOCK, .double_quant = double_quant};
    p.forward.table.part[0] = codes;
    p.forward.table.part[1] = double_quant ? (const void *)absmax_code : absmax;
    p.forward.table.part[2] = double_quant ? nested_absmax : NULL;
    p.forward.table.part[3] = double_quant ? &offset : NULL;
    const ref_nf4 t = {VOCAB * cols, BLOCK,         codes, double_quant ? NULL : absmax,
                       absmax_code,  nested_absmax, offset};
    double *table = doubles(VOCAB * cols);
    ref_nf4_dequantize(&t, table);
    ref_embedding(table, cols, p.tokens, TOKENS, p.ref);
    const op_run forward = {
        .call = call_forward, .ctx = &p, .outputs = {&p.out}, .output_numel = 1};
    run_everywhere(&forward, check_forward);
    tess_free(table);
    problem_destroy(&p);
}

/* Rows whose blocks cross row ends, rows that start at an odd element; equal to the last bit. */
static void test_embedding_nf4_rows_are_exact(void **state)
{
    (void)state;
    static const int64_t cols[] = {32, 33, 80, 5};
    for (int i = 0; i < TESS_NELEM(cols); i++) {
        check_nf4(false, cols[i]);
        check_nf4(true, cols[i]);
    }
}

static void test_embedding_wrong_arguments_are_refused(void **state)
{
    (void)state;
    problem p = problem_create(TESS_FORMAT_F32, TESS_F32, 8, 10);
    p.forward.tokens = p.tokens;
    p.backward.tokens = p.tokens;
    p.tokens[7] = VOCAB;
    assert_refused(tess_embedding_check(&p.forward), TESS_E_RANGE,
                   "token 23 at position 7 is outside the vocabulary of 23");
    assert_refused(tess_embedding_backward_check(&p.backward), TESS_E_RANGE, "token 23");
    p.tokens[7] = -1;
    assert_refused(tess_embedding_check(&p.forward), TESS_E_RANGE, "token -1 at position 7");
    p.tokens[7] = 0;
    p.forward.table.part[0] = NULL;
    assert_refused(tess_embedding_check(&p.forward), TESS_E_ARG, "values is missing");
    p.backward.d_out.numel--;
    assert_refused(tess_embedding_backward_check(&p.backward), TESS_E_ARG,
                   "d_out holds 79 elements, expected 80");
    problem_destroy(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_embedding_plain_tables_match_reference),
        cmocka_unit_test(test_embedding_nf4_rows_are_exact),
        cmocka_unit_test(test_embedding_wrong_arguments_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
