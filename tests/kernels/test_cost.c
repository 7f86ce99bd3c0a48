/* Closed forms against counts of the loops they stand for, and against known totals. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>

#include "core/arith.h"
#include "kernels/cost.h"

/* Operations and touched elements of the plain loops. */
typedef struct tally {
    double flops;
    double elems;
} tally;

/* C[m, n] += sum over k. */
static void count_product(tally *t, int64_t m, int64_t n, int64_t k)
{
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++)
            for (int64_t p = 0; p < k; p++)
                t->flops += 2.0;
    t->elems += (double)(m * k + n * k + m * n);
}

static void assert_same(double a, double b) { assert_true(a == b); }

static void test_linear_counts_its_loops(void **state)
{
    (void)state;
    const int64_t t = 5, n = 7, k = 3;
    tally forward = {0}, backward = {0}, weight = {0};
    count_product(&forward, t, n, k);
    count_product(&backward, t, k, n);
    count_product(&weight, n, k, t);
    const tess_cost f = tess_cost_linear(t, n, k, 2, false, TESS_COST_FORWARD);
    assert_same(f.model_flops, forward.flops);
    assert_same(f.hardware_flops, forward.flops);
    assert_same(f.nbytes, 2.0 * forward.elems);
    const tess_cost b = tess_cost_linear(t, n, k, 2, false, TESS_COST_BACKWARD);
    assert_same(b.model_flops, backward.flops);
    assert_same(b.nbytes, 2.0 * backward.elems);
    const tess_cost full = tess_cost_linear(t, n, k, 2, true, TESS_COST_BACKWARD);
    assert_same(full.model_flops, backward.flops + weight.flops);
    /* its gradient is f32 */
    assert_same(full.nbytes, 2.0 * backward.elems + 2.0 * weight.elems + 2.0 * (double)(n * k));
}

static void test_lora_counts_its_loops(void **state)
{
    (void)state;
    const int64_t t = 5, n = 7, k = 3, r = 2;
    tally forward = {0}, backward = {0};
    count_product(&forward, t, r, k);
    count_product(&forward, t, n, r);
    count_product(&backward, t, r, n);
    count_product(&backward, t, k, r);
    count_product(&backward, n, r, t);
    count_product(&backward, r, k, t);
    assert_same(tess_cost_lora(t, n, k, r, 2, TESS_COST_FORWARD).model_flops, forward.flops);
    assert_same(tess_cost_lora(t, n, k, r, 2, TESS_COST_BACKWARD).model_flops, backward.flops);
}

/* Half of every document's square, by definition. */
static void test_attention_counts_half_of_its_squares(void **state)
{
    (void)state;
    const int64_t lengths[] = {3, 1, 6};
    const int64_t heads = 4, kv_heads = 2, dim = 8;
    tally forward = {0}, backward = {0};
    double squares = 0.0;
    int64_t tokens = 0;
    for (int i = 0; i < TESS_NELEM(lengths); i++) {
        const int64_t s = lengths[i];
        tokens += s;
        squares += (double)(s * s);
        for (int64_t h = 0; h < heads; h++) {
            count_product(&forward, s, s, dim);
            count_product(&forward, s, dim, s);
            for (int p = 0; p < 2; p++) { /* dP, dV; dQ, dK */
                count_product(&backward, s, s, dim);
                count_product(&backward, s, dim, s);
            }
        }
    }
    const tess_cost_attention_shape shape = {tokens, squares, heads, kv_heads, dim, 2};
    const tess_cost f = tess_cost_attention(&shape, TESS_COST_FORWARD);
    const tess_cost b = tess_cost_attention(&shape, TESS_COST_BACKWARD);
    assert_same(f.model_flops, forward.flops / 2.0);
    assert_same(b.model_flops, backward.flops / 2.0);
    assert_same(b.hardware_flops, 1.25 * b.model_flops);
    /* q, k, v and out in bf16, lse in f32 */
    assert_same(f.nbytes,
                (double)(2 * tokens * dim * (2 * heads + 2 * kv_heads) + 4 * tokens * heads));
}

static void test_dequantize_counts_the_parts(void **state)
{
    (void)state;
    tess_cost cost;
    const tess_codec nf4 = {.format = TESS_FORMAT_NF4, .block_numel = 64};
    const tess_codec twice = {.format = TESS_FORMAT_NF4, .block_numel = 64, .double_quant = true};
    const tess_codec bf16 = {.format = TESS_FORMAT_BF16};
    const int64_t numel = 64 * 256 * 10;
    assert_int_equal(tess_cost_dequantize(&nf4, numel, 2, &cost), TESS_OK);
    assert_same(cost.nbytes, (0.5 + 4.0 / 64.0 + 2.0) * (double)numel);
    assert_int_equal(tess_cost_dequantize(&twice, numel, 2, &cost), TESS_OK);
    assert_same(cost.nbytes, (0.5 + 1.0 / 64.0 + 4.0 / 16384.0 + 2.0) * (double)numel + 4.0);
    assert_int_equal(tess_cost_dequantize(&bf16, numel, 2, &cost), TESS_OK);
    assert_same(cost.nbytes, 0.0);
    const tess_codec odd = {.format = TESS_FORMAT_NF4, .block_numel = 48};
    assert_int_equal(tess_cost_dequantize(&odd, numel, 2, &cost), TESS_E_UNSUPPORTED);
    tess_error_clear();
}

static void test_elementwise_counts_its_vectors(void **state)
{
    (void)state;
    assert_same(tess_cost_rmsnorm(3, 8, 2, TESS_COST_FORWARD).nbytes, 8.0 * 3 * 8);
    assert_same(tess_cost_rmsnorm(3, 8, 2, TESS_COST_FORWARD).other_flops, 6.0 * 3 * 8);
    assert_same(tess_cost_rmsnorm(3, 8, 2, TESS_COST_BACKWARD).other_flops, 10.0 * 3 * 8);
    assert_same(tess_cost_rmsnorm(3, 8, 2, TESS_COST_BACKWARD).model_flops, 0.0);
    assert_same(tess_cost_swiglu(3, 8, 2, TESS_COST_FORWARD).nbytes, 6.0 * 3 * 8);
    assert_same(tess_cost_swiglu(3, 8, 2, TESS_COST_BACKWARD).nbytes, 10.0 * 3 * 8);
    assert_same(tess_cost_rope(3, 5, 8, 2).nbytes, 4.0 * 3 * 5 * 8);
    assert_same(tess_cost_head_loss(3, 8, 11, 2, TESS_COST_FORWARD).nbytes +
                    tess_cost_head_loss(3, 8, 11, 2, TESS_COST_BACKWARD).nbytes,
                8.0 * 3 * 11);
    assert_same(tess_cost_adamw(7).nbytes, 30.0 * 7);
    assert_same(tess_cost_all_gather(800.0, 8).wire_nbytes, 700.0);
    assert_same(tess_cost_all_gather(800.0, 1).wire_nbytes, 0.0);
    assert_same(tess_cost_reduce_scatter(100, 4).wire_nbytes, 300.0);
}

static tess_cost_model llama3_8b(void)
{
    const tess_cost_model m = {
        .layer_numel = 32,
        .hidden_numel = 4096,
        .ffn_numel = 14336,
        .vocab_numel = 128256,
        .head_numel = 32,
        .kv_head_numel = 8,
        .head_dim = 128,
        .lora_rank = 16,
        .codec = {.format = TESS_FORMAT_NF4, .block_numel = 64, .double_quant = true},
        .elem_nbytes = 2};
    return m;
}

static tess_cost_model llama3_70b(void)
{
    tess_cost_model m = llama3_8b();
    m.layer_numel = 80;
    m.hidden_numel = 8192;
    m.ffn_numel = 28672;
    m.head_numel = 64;
    return m;
}

static double gflop_per_token(const tess_cost_model *m, bool is_replayed, bool is_hardware)
{
    const int64_t s = 4096;
    tess_cost cost;
    assert_int_equal(tess_cost_model_step(m, s, (double)(s * s), is_replayed, &cost), TESS_OK);
    return (is_hardware ? cost.hardware_flops : cost.model_flops) / (double)s / 1e9;
}

/* 4 N with the head, 3 times the attention, 6 per parameter of the adapters. */
static void test_model_llama3_has_known_flops_per_token(void **state)
{
    (void)state;
    const tess_cost_model small = llama3_8b(), large = llama3_70b();
    assert_true(fabs(gflop_per_token(&small, false, false) - 33.5) < 0.05);
    assert_true(fabs(gflop_per_token(&large, false, false) - 295.4) < 0.05);
}

static void test_model_replay_is_hardware_work_only(void **state)
{
    (void)state;
    const tess_cost_model m = llama3_8b();
    assert_same(gflop_per_token(&m, true, false), gflop_per_token(&m, false, false));
    /* a replayed layer costs about what its forward did: half of its "4 N" */
    const double more = gflop_per_token(&m, true, true) - gflop_per_token(&m, false, true);
    const double layers = 2.0 * 6.979e9 / 1e9 + 2.0 * 4096 * 4096 * 32 / 1e9 + 2.0 * 0.0419;
    assert_true(fabs(more - layers) < 0.01);
}

/* A trained base without adapters is the well-known 6 N, with 3 times the attention. */
static void test_model_trained_base_costs_six_per_parameter(void **state)
{
    (void)state;
    tess_cost_model m = llama3_8b();
    m.lora_rank = 0;
    m.is_base_trained = true;
    const double params = 32.0 * 218103808.0 + 128256.0 * 4096.0;
    const double attention = 3.0 * 2.0 * 4096 * 4096 * 32;
    assert_true(fabs(gflop_per_token(&m, false, false) - (6.0 * params + attention) / 1e9) < 1e-6);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_linear_counts_its_loops),
        cmocka_unit_test(test_lora_counts_its_loops),
        cmocka_unit_test(test_attention_counts_half_of_its_squares),
        cmocka_unit_test(test_dequantize_counts_the_parts),
        cmocka_unit_test(test_elementwise_counts_its_vectors),
        cmocka_unit_test(test_model_llama3_has_known_flops_per_token),
        cmocka_unit_test(test_model_replay_is_hardware_work_only),
        cmocka_unit_test(test_model_trained_base_costs_six_per_parameter),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
