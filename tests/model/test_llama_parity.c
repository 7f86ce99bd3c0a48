/* Parity with transformers + peft, float64 (tests/golden/make_llama.py). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tests/support/llama_case.h"

/* [Note: bounds]
 * f32: 1e-5 per tensor, as the project demands; unit roundoff 2^-24 times sums of at most 96
 * products through about 60 operations leaves 2^-24 * sqrt(96 * 60) = 4.5e-6 if every rounding were
 * at its bound. bf16: weights and adapters are exact, activations are rounded to nearest at every
 * op boundary: unit roundoff u = 2^-8, rms of one rounding at most u / sqrt(3) = 2.3e-3. A value
 * passes 13 roundings per block forward (norm 2, projection, rotation, probabilities, mixing,
 * output, residual, norm 2, gate, product, down), 15 with norms of q and k, as many backward, 2
 * blocks, and 4 in the head, independent. Norms and softmax rescale: the error of the residual
 * stream relative to a branch grows by the ratio of their sizes, at most 3 in these models. So 3
 * * 2.3e-3 * sqrt(n): 5.1e-2, with q and k norms 5.5e-2. With DoRA each of the 4 products that a
 * value passes in a block rounds a second time, and so does the length that divides it: 8 more.
 * bf16_peer: the same measure of
 * transformers + peft in bf16. It rounds at the same places, so the ratio is 1 up to chance; 1.5
 * allows for it. */
static const double f32_bound = 1e-5;

static double bf16_bound(const tess_llama_case *c)
{
    double per_block = c->config.has_qk_norm ? 15.0 : 13.0;
    if (c->spec != NULL && tess_peft_spec_options(c->spec)->use_dora)
        per_block += 8.0;
    return 3.0 * 0x1p-8 / sqrt(3.0) * sqrt(4.0 * per_block + 4.0);
}

static double relative(const float *ours, const void *ref, tess_dtype dt, int64_t numel)
{
    double difference = 0.0, size = 0.0;
    for (int64_t i = 0; i < numel; i++) {
        const double r =
            dt == TESS_F64 ? ((const double *)ref)[i] : (double)((const float *)ref)[i];
        difference += ((double)ours[i] - r) * ((double)ours[i] - r);
        size += r * r;
    }
    return sqrt(difference / size);
}

static void expect_ok(tess_status st)
{
    if (st != TESS_OK)
        fail_msg("%s: %s\n%s", tess_status_name(st), tess_error_message(), tess_error_trace_text());
}

static void expect_within(const char *what, double error, double bound)
{
    if (!(error <= bound))
        fail_msg("%s: relative error %.3g above %.3g", what, error, bound);
}

static void check_logits(const tess_llama_case *c, tess_run_model *run, double bound)
{
    int64_t row_numel = 0, numel = 0;
    const int32_t *rows = tess_golden_tensor(c->golden, "logits_rows", TESS_I32, &row_numel);
    const double *ref = tess_golden_tensor(c->golden, "logits", TESS_F64, &numel);
    const int64_t vocab = c->config.vocab_numel;
    float logits[256];
    assert_true(rows != NULL && ref != NULL && numel == row_numel * vocab && vocab <= 256);
    for (int64_t i = 0; i < row_numel; i++) {
        expect_ok(tess_run_model_logits(run, &c->batch[0], rows[i], logits));
        expect_within("logits", relative(logits, ref + i * vocab, TESS_F64, vocab), bound);
    }
}

static void check_losses(const char *what, const double *ours, const double *ref, int numel,
                         double bound)
{
    for (int i = 0; i < numel; i++)
        expect_within(what, fabs(ours[i] - ref[i]) / fabs(ref[i]), bound);
}

static double check_gradients(const tess_llama_case *c, const tess_run_model *run, double bound)
{
    int checked = 0;
    double worst = 0.0;
    const char *name = NULL;
    for (int i = 0; (name = tess_golden_tensor_name(c->golden, i)) != NULL; i++) {
        if (strncmp(name, "grad.", 5) != 0)
            continue;
        int64_t numel = 0, ref_numel = 0;
        const float *ref = tess_golden_tensor(c->golden, name, TESS_F32, &ref_numel);
        const float *ours = tess_run_model_grad(run, name + 5, &numel);
        if (ours == NULL || ref == NULL || numel != ref_numel)
            fail_msg("%s: no such gradient here, or another size", name);
        const double error = relative(ours, ref, TESS_F32, numel);
        worst = error > worst ? error : worst;
        expect_within(name, error, bound);
        checked++;
    }
    int trainable = 0;
    for (int i = 0; i < run->reg.param_numel; i++)
        trainable += run->reg.param[i].role == TESS_ROLE_TRAINABLE;
    assert_int_equal(checked, trainable);
    return worst;
}

static double check_first_step(const tess_llama_case *c, tess_run_model *run, double bound)
{
    const double *eval_ref = tess_golden_tensor(c->golden, "eval_loss_sums", TESS_F64, NULL);
    const double *ref = tess_golden_tensor(c->golden, "loss_sums", TESS_F64, NULL);
    double loss[TESS_CASE_BATCH_MAX];
    const int64_t number[2] = {0, 1};
    check_logits(c, run, bound);
    for (int m = 0; m < c->batch_numel; m++)
        expect_ok(tess_run_model_eval(run, &c->batch[m], &loss[m]));
    check_losses("eval loss", loss, eval_ref, c->batch_numel, bound);
    expect_ok(tess_run_model_step(run, c->batch, number, 2, loss));
    check_losses("loss", loss, ref, 2, bound);
    return check_gradients(c, run, bound);
}

/* [Note: curve] One step moves a parameter by at most lr; a gradient error of 1e-5 relative to the
 * tensor's rms moves elements of that size by 1e-5 lr. Elements below 1e-5 of the rms may move by
 * lr in any direction: about 1e-5 of them, with gradients 1e-5 of the rms. So the loss of step k
 * differs by at most k * lr * |g|_1 * 2e-5, and |g|_1 <= sqrt(N) |g|_2 with N up to 20,000
 * parameters and |g|_2 up to 5 before clipping: 20 * 5e-3 * 141 * 5 * 2e-5 = 1.4e-3 if all errors
 * point uphill; they are independent, which takes another sqrt(N): 1e-5. Beside that, 1e-5 of the
 * loss itself. Bound on the relative difference: 2e-5 + 1e-5. */
static const double curve_bound = 3e-5;

static void check_curve(const tess_llama_case *c, tess_run_model *run)
{
    int64_t step_numel = 0;
    const double *curve = tess_golden_tensor(c->golden, "curve", TESS_F64, &step_numel);
    const double *norms = tess_golden_tensor(c->golden, "norms", TESS_F64, NULL);
    double worst = 0.0;
    for (int64_t step = 0; step < step_numel; step++) {
        tess_token_batch batch[2];
        int64_t number[2], labels = 0;
        double sum[2], norm = 0.0;
        for (int i = 0; i < 2; i++) {
            number[i] = 2 * step + i;
            batch[i] = c->batch[number[i] % c->batch_numel];
            for (int64_t t = 0; t < batch[i].token_numel; t++)
                labels += batch[i].labels[t] >= 0;
        }
        expect_ok(tess_run_model_step(run, batch, number, 2, sum));
        const double loss = (sum[0] + sum[1]) / (double)labels;
        worst = fmax(worst, fabs(loss - curve[step]) / curve[step]);
        expect_within("loss curve", fabs(loss - curve[step]) / curve[step], curve_bound);
        expect_ok(tess_run_model_adamw(run, step + 1, tess_golden_number(c->golden, "lr"),
                                       tess_golden_number(c->golden, "clip"),
                                       tess_golden_number(c->golden, "decay"), &norm));
        expect_within("gradient norm", fabs(norm - norms[step]) / norms[step], 10 * curve_bound);
    }
    print_message("  worst curve error %.2e\n", worst);
}

static void parity(const char *name)
{
    tess_llama_case c;
    tess_run_model *run = NULL;
    expect_ok(tess_llama_case_open(name, &c));
    expect_ok(tess_llama_case_run(&c, &run));
    const double worst_f32 = check_first_step(&c, run, f32_bound);
    check_curve(&c, run);
    tess_run_model_destroy(&run);

    c.options.compute_dt = TESS_BF16;
    expect_ok(tess_llama_case_run(&c, &run));
    const double worst_bf16 = check_first_step(&c, run, bf16_bound(&c));
    const double peer = tess_golden_number(c.golden, "bf16_peer");
    print_message("  worst gradient error f32 %.2e, bf16 %.2e (peer %.2e)\n", worst_f32, worst_bf16,
                  peer);
    expect_within("bf16 against the peer", worst_bf16, 1.5 * peer);
    tess_run_model_destroy(&run);
    tess_llama_case_close(&c);
}

#define CASE(name)                                                                                 \
    static void test_parity_##name(void **state)                                                   \
    {                                                                                              \
        (void)state;                                                                               \
        parity(#name);                                                                             \
    }
#define LORA_CASE(name)                                                                            \
    static void test_parity_lora_##name(void **state)                                              \
    {                                                                                              \
        (void)state;                                                                               \
        parity("lora/" #name);                                                                     \
    }
CASE(llama_untied)
CASE(llama3_tied)
CASE(llama_linear_bias)
CASE(llama_yarn)
CASE(mistral)
CASE(qwen2)
CASE(qwen3)
CASE(qwen2_full)
CASE(qwen3_full)
CASE(llama_nf4)
LORA_CASE(patterns)
LORA_CASE(layers)
LORA_CASE(saved)
LORA_CASE(dora)
LORA_CASE(dora_bias)
LORA_CASE(dora_dropout)
LORA_CASE(dora_nf4)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parity_llama_untied),
        cmocka_unit_test(test_parity_llama3_tied),
        cmocka_unit_test(test_parity_llama_linear_bias),
        cmocka_unit_test(test_parity_llama_yarn),
        cmocka_unit_test(test_parity_mistral),
        cmocka_unit_test(test_parity_qwen2),
        cmocka_unit_test(test_parity_qwen3),
        cmocka_unit_test(test_parity_qwen2_full),
        cmocka_unit_test(test_parity_qwen3_full),
        cmocka_unit_test(test_parity_llama_nf4),
        cmocka_unit_test(test_parity_lora_patterns),
        cmocka_unit_test(test_parity_lora_layers),
        cmocka_unit_test(test_parity_lora_saved),
        cmocka_unit_test(test_parity_lora_dora),
        cmocka_unit_test(test_parity_lora_dora_bias),
        cmocka_unit_test(test_parity_lora_dora_dropout),
        cmocka_unit_test(test_parity_lora_dora_nf4),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
