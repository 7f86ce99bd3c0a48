/* Same bits whatever must not matter: recomputation, threads, other documents, how a base is
 * stored. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "core/memory.h"
#include "kernels/cuda_work.h"
#include "model/head_priv.h"
#include "tests/support/llama_case.h"

static void expect_ok(tess_status st)
{
    if (st != TESS_OK)
        fail_msg("%s: %s\n%s", tess_status_name(st), tess_error_message(), tess_error_trace_text());
}

static tess_llama_case open_case(const char *name, tess_dtype dt)
{
    tess_llama_case c;
    expect_ok(tess_llama_case_open(name, &c));
    c.options.compute_dt = dt;
    return c;
}

static tess_run_model *run_step(const tess_llama_case *c, double loss_sum[2])
{
    tess_run_model *run = NULL;
    const int64_t number[2] = {6, 7};
    expect_ok(tess_llama_case_run(c, &run));
    expect_ok(tess_run_model_step(run, c->batch, number, 2, loss_sum));
    return run;
}

static void expect_same_grads(const tess_run_model *a, const tess_run_model *b, const char *only)
{
    int compared = 0;
    for (int i = 0; i < a->reg.param_numel; i++) {
        const char *name = a->reg.param[i].name;
        int64_t a_numel = 0, b_numel = 0;
        const float *ga = tess_run_model_grad(a, name, &a_numel);
        if (ga == NULL || (only != NULL && strstr(name, only) == NULL))
            continue;
        const float *gb = tess_run_model_grad(b, name, &b_numel);
        assert_non_null(gb);
        assert_int_equal(a_numel, b_numel);
        bool has_value = false;
        for (int64_t k = 0; k < a_numel; k++) {
            /* A sum that ends in an added zero may differ in the sign of zero alone. */
            if (ga[k] != gb[k])
                fail_msg("%s[%d]: %a against %a", name, (int)k, (double)ga[k], (double)gb[k]);
            has_value = has_value || ga[k] != 0.0f;
        }
        assert_true(has_value);
        compared++;
    }
    assert_true(compared > 0);
}

static void expect_same_step(const tess_llama_case *a, const tess_llama_case *b)
{
    double loss_a[2], loss_b[2];
    tess_run_model *run_a = run_step(a, loss_a), *run_b = run_step(b, loss_b);
    assert_memory_equal(loss_a, loss_b, sizeof loss_a);
    expect_same_grads(run_a, run_b, NULL);
    tess_run_model_destroy(&run_a);
    tess_run_model_destroy(&run_b);
}

static const char *const case_name[] = {
    "llama_untied",      "mistral",      "qwen2",          "qwen3",
    "qwen2_full",        "qwen3_full",   "llama_nf4",      "llama3_tied",
    "lora/patterns",     "lora/saved",   "lora/dora_bias", "lora/dora",
    "lora/dora_dropout", "lora/dora_nf4"};
static const tess_dtype dtype[] = {TESS_F32, TESS_BF16};

static void test_backward_recomputed_gives_same_bits(void **state)
{
    (void)state;
    for (int i = 0; i < 2 * TESS_NELEM(case_name); i++) {
        tess_llama_case c = open_case(case_name[i / 2], dtype[i % 2]);
        tess_llama_case again = c;
        again.options.is_recomputed = true;
        expect_same_step(&c, &again);
        tess_llama_case_close(&c);
    }
}

static void test_backward_two_threads_gives_same_bits(void **state)
{
    (void)state;
    for (int i = 0; i < 2 * TESS_NELEM(case_name); i++) {
        tess_llama_case c = open_case(case_name[i / 2], dtype[i % 2]);
        tess_llama_case threads = c;
        threads.options.thread_numel = 2;
        expect_same_step(&c, &threads);
        tess_llama_case_close(&c);
    }
}

/* Operands of one product side by side, adapters in a row fused: the layout of devices. */
static void test_operands_side_by_side_give_same_bits(void **state)
{
    (void)state;
    tess_kernels kernels = tess_kernels_cpu;
    kernels.wants_adjacent_terms = true;
    for (int i = 0; i < 4 * TESS_NELEM(case_name); i++) {
        tess_llama_case c = open_case(case_name[i / 4], dtype[i % 2]);
        c.options.dropout = i / 2 % 2 != 0 ? 0.25 : 0.0;
        tess_llama_case padded = c;
        padded.options.kernels = &kernels;
        expect_same_step(&c, &padded);
        tess_llama_case_close(&c);
    }
}

/* Losses, and gradients below the head: each row is computed alone, in whatever company. */
static void test_head_in_other_chunks_gives_same_bits(void **state)
{
    (void)state;
    tess_kernels few = tess_kernels_cpu, many = tess_kernels_cpu;
    few.logits_row_max = 1;
    many.logits_row_max = many.logits_max_numel = INT64_C(1) << 30;
    for (int i = 0; i < 2 * TESS_NELEM(case_name); i++) {
        double loss_a[2], loss_b[2];
        tess_llama_case c = open_case(case_name[i / 2], dtype[i % 2]);
        tess_llama_case other = c;
        c.options.kernels = &few;
        other.options.kernels = &many;
        tess_run_model *a = run_step(&c, loss_a), *b = run_step(&other, loss_b);
        assert_memory_equal(loss_a, loss_b, sizeof loss_a);
        expect_same_grads(a, b, ".layers.");
        tess_run_model_destroy(&a);
        tess_run_model_destroy(&b);
        tess_llama_case_close(&c);
    }
}

/* A CPU's rows are what its caches hold, a device's enough to read the projection seldom. */
static void test_rows_of_logits(void **state)
{
    static const struct {
        int64_t rows, vocab, cpu, cuda;
    } of[] = {
        {4096, 128256, 144, 1024}, {4096, 151936, 112, 896}, {4096, 32000, 256, 1024},
        {512, 32000, 256, 256},    {48, 1000, 32, 32},       {1, 128256, 16, 16},
        {4096, 1 << 26, 16, 16},
    };
    (void)state;
    for (int i = 0; i < TESS_NELEM(of); i++) {
        assert_int_equal(tess_head_chunk_numel(&tess_kernels_cpu, of[i].rows, of[i].vocab),
                         of[i].cpu);
        assert_int_equal(
            tess_head_chunk_numel(tess_kernels_cuda_planned(), of[i].rows, of[i].vocab),
            of[i].cuda);
    }
}

/* The dense weights that a stored NF4 tensor stands for. */
typedef struct dense_source {
    const tess_run_model *quantized;
} dense_source;

static void dense_value(void *arg, const tess_param *param, float *value)
{
    const dense_source *source = arg;
    const tess_run_model *from = source->quantized;
    const int idx = tess_registry_find(&from->reg, param->name);
    const tess_param *p = &from->reg.param[idx];
    if (p->role == TESS_ROLE_TRAINABLE || p->codec.format != TESS_FORMAT_NF4) {
        tess_llama_case_value(NULL, param, value);
        return;
    }
    tess_dequantize_args args = {.codec = p->codec,
                                 .dst = tess_view_host(value, p->numel, TESS_F32)};
    for (int i = 0; i < p->part_numel; i++)
        args.part[i] = from->frozen[p->unit_idx] + p->part_offset_nbytes[i];
    tess_stream stream;
    tess_stream_init_inline(&stream, "compute", NULL);
    expect_ok(tess_kernels_cpu.dequantize(&args, &stream));
}

static void expect_nf4_as_dense(tess_dtype dt, int block_numel, bool double_quant)
{
    tess_llama_case c = open_case("qwen3", dt);
    c.options.base = (tess_codec){
        .format = TESS_FORMAT_NF4, .block_numel = block_numel, .double_quant = double_quant};
    double loss[2], dense_loss[2];
    tess_run_model *quantized = run_step(&c, loss), *dense = NULL;
    c.options.base = (tess_codec){.format = dt == TESS_F32 ? TESS_FORMAT_F32 : TESS_FORMAT_BF16};
    dense_source source = {quantized};
    const int64_t number[2] = {6, 7};
    expect_ok(tess_run_model_create(&c.config, &c.options, &dense));
    expect_ok(tess_run_model_fill(dense, dense_value, &source));
    expect_ok(tess_run_model_step(dense, c.batch, number, 2, dense_loss));
    assert_memory_equal(loss, dense_loss, sizeof loss);
    expect_same_grads(quantized, dense, NULL);
    tess_run_model_destroy(&quantized);
    tess_run_model_destroy(&dense);
    tess_llama_case_close(&c);
}

static void test_nf4_base_equals_dequantized_dense_bitwise(void **state)
{
    (void)state;
    expect_nf4_as_dense(TESS_F32, 64, false);
    expect_nf4_as_dense(TESS_F32, 64, true);
    expect_nf4_as_dense(TESS_F32, 128, true);
    expect_nf4_as_dense(TESS_BF16, 64, true);
}

/* Adapters with B = 0 change nothing: the others must not notice that they are absent. */
static void value_only_q(void *arg, const tess_param *param, float *value)
{
    tess_llama_case_value(arg, param, value);
    if (strstr(param->name, "lora_B") != NULL && strstr(param->name, "q_proj") == NULL)
        memset(value, 0, (size_t)param->numel * sizeof *value);
}

static void test_adapters_on_some_modules_equal_all_with_zero_b(void **state)
{
    (void)state;
    const int64_t number[2] = {6, 7};
    for (int i = 0; i < 2; i++) {
        tess_llama_case c = open_case("llama_linear_bias", dtype[i]);
        tess_run_model *all = NULL, *some = NULL;
        double loss[2], some_loss[2];
        expect_ok(tess_run_model_create(&c.config, &c.options, &all));
        c.options.lora_suffix = ".q_proj";
        expect_ok(tess_run_model_create(&c.config, &c.options, &some));
        expect_ok(tess_run_model_fill(all, value_only_q, NULL));
        expect_ok(tess_run_model_fill(some, value_only_q, NULL));
        expect_ok(tess_run_model_step(all, c.batch, number, 2, loss));
        expect_ok(tess_run_model_step(some, c.batch, number, 2, some_loss));
        assert_memory_equal(loss, some_loss, sizeof loss);
        expect_same_grads(some, all, "q_proj");
        /* Nothing reads the normed input of the MLP, nor its product, when only q learns. */
        assert_true(some->reg.stage[1].saved_nbytes < all->reg.stage[1].saved_nbytes);
        tess_run_model_destroy(&all);
        tess_run_model_destroy(&some);
        tess_llama_case_close(&c);
    }
}

static void test_logits_ignore_other_documents(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        tess_llama_case c = open_case("mistral", dtype[i]);
        tess_token_batch batch = c.batch[0];
        int32_t tokens[128];
        assert_true(batch.token_numel <= 128);
        const int64_t row = batch.token_numel / 2 + 5;
        const int32_t first = batch.doc_start[row];
        for (int64_t t = 0; t < batch.token_numel; t++)
            tokens[t] = t >= first && t <= row
                            ? batch.tokens[t]
                            : (batch.tokens[t] + 7) % (int32_t)c.config.vocab_numel;
        float before[128], after[128];
        tess_run_model *run = NULL;
        expect_ok(tess_llama_case_run(&c, &run));
        expect_ok(tess_run_model_logits(run, &batch, row, before));
        batch.tokens = tokens;
        expect_ok(tess_run_model_logits(run, &batch, row, after));
        assert_memory_equal(before, after, (size_t)c.config.vocab_numel * sizeof *before);
        /* The same rows alone: a shorter micro-batch than the planned one. */
        batch.token_numel = row + 1;
        expect_ok(tess_run_model_logits(run, &batch, row, after));
        assert_memory_equal(before, after, (size_t)c.config.vocab_numel * sizeof *before);
        tokens[row] = (tokens[row] + 1) % (int32_t)c.config.vocab_numel;
        expect_ok(tess_run_model_logits(run, &batch, row, after));
        assert_memory_not_equal(before, after, (size_t)c.config.vocab_numel * sizeof *before);
        tess_run_model_destroy(&run);
        tess_llama_case_close(&c);
    }
}

static void test_loss_in_training_equals_evaluation(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        tess_llama_case c = open_case("llama_untied", dtype[i]);
        double loss[2], eval = 0.0;
        tess_run_model *run = run_step(&c, loss);
        for (int m = 0; m < 2; m++) {
            expect_ok(tess_run_model_eval(run, &c.batch[m], &eval));
            assert_memory_equal(&eval, &loss[m], sizeof eval);
        }
        tess_run_model_destroy(&run);
        tess_llama_case_close(&c);
    }
}

static void test_dropout_depends_on_micro_batch_number(void **state)
{
    (void)state;
    tess_llama_case c = open_case("qwen2", TESS_F32);
    tess_run_model *run = NULL;
    double a = 0.0, b = 0.0, again = 0.0;
    const int64_t number[] = {3, 4};
    expect_ok(tess_llama_case_run(&c, &run));
    expect_ok(tess_run_model_step(run, c.batch, &number[0], 1, &a));
    expect_ok(tess_run_model_step(run, c.batch, &number[1], 1, &b));
    expect_ok(tess_run_model_step(run, c.batch, &number[0], 1, &again));
    assert_true(a != b);
    assert_memory_equal(&a, &again, sizeof a);
    tess_run_model_destroy(&run);
    tess_llama_case_close(&c);
}

static void test_backward_without_labels_gives_zero(void **state)
{
    (void)state;
    tess_llama_case c = open_case("llama_untied", TESS_F32);
    int32_t labels[64];
    tess_run_model *run = NULL;
    tess_token_batch batch[2] = {c.batch[0], c.batch[0]};
    memset(labels, 0xff, sizeof labels);
    assert_true(batch[0].token_numel <= 64);
    batch[1].labels = labels;
    double loss[2] = {1.0, 1.0}, alone = 0.0;
    const int64_t number[2] = {0, 1};
    expect_ok(tess_llama_case_run(&c, &run));
    expect_ok(tess_run_model_step(run, batch, number, 2, loss));
    assert_true(loss[1] == 0.0);
    tess_run_model *other = NULL;
    expect_ok(tess_llama_case_run(&c, &other));
    expect_ok(tess_run_model_step(other, batch, number, 1, &alone));
    expect_same_grads(run, other, NULL);
    tess_run_model_destroy(&run);
    tess_run_model_destroy(&other);
    tess_llama_case_close(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_backward_recomputed_gives_same_bits),
        cmocka_unit_test(test_backward_two_threads_gives_same_bits),
        cmocka_unit_test(test_operands_side_by_side_give_same_bits),
        cmocka_unit_test(test_head_in_other_chunks_gives_same_bits),
        cmocka_unit_test(test_rows_of_logits),
        cmocka_unit_test(test_nf4_base_equals_dequantized_dense_bitwise),
        cmocka_unit_test(test_adapters_on_some_modules_equal_all_with_zero_b),
        cmocka_unit_test(test_logits_ignore_other_documents),
        cmocka_unit_test(test_loss_in_training_equals_evaluation),
        cmocka_unit_test(test_dropout_depends_on_micro_batch_number),
        cmocka_unit_test(test_backward_without_labels_gives_zero),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
