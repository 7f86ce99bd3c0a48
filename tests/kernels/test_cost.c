/* Closed forms of kernels against counts of the loops they stand for. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "core/arith.h"
#include "kernels/cost_count.h"

/* C[m, n] += sum over k. */
static void count_product(double *flops, int64_t m, int64_t n, int64_t k)
{
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++)
            for (int64_t p = 0; p < k; p++)
                *flops += 2.0;
}

static void test_product_counts_its_loops(void **state)
{
    const int64_t m = 5, n = 7, k = 3, r = 2;
    const tess_codec plain = tess_codec_of_format(TESS_FORMAT_BF16);
    tess_gemm_args a = {.kind = TESS_GEMM_NT, .m = m, .n = n, .term_numel = 2};
    tess_cost c = {0};
    double flops = 0.0;
    (void)state;
    a.term[0] = (tess_gemm_term){.a = tess_view_host(NULL, m * k, TESS_BF16), .k = k};
    a.term[0].b = (tess_matrix){.codec = plain, .rows = n, .cols = k};
    a.term[1] = (tess_gemm_term){.a = tess_view_host(NULL, m * r, TESS_BF16), .k = r};
    a.term[1].b = (tess_matrix){.codec = plain, .rows = n, .cols = r};
    a.c = tess_view_host(NULL, m * n, TESS_BF16);
    tess_count_gemm(&c, &a);
    count_product(&flops, m, n, k + r);
    assert_true(c.model_flops == flops && c.hardware_flops == flops);
    assert_true(c.product_flops[2] == flops); /* smallest extent 5: from 4 to 7 */
    assert_true(c.weight_numel[TESS_FORMAT_BF16] == (double)(n * (k + r)));
    assert_true(c.nbytes == 2.0 * (double)(m * (k + r) + n * (k + r) + m * n));
    assert_true(c.launch_numel == 1.0 && c.unlisted_numel == 0.0);
}

/* Pairs of a query and a key it sees, one by one; 4 D FLOPs each forward, 10 D backward. */
static void test_attention_counts_the_pairs_it_sees(void **state)
{
    static const int64_t windows[] = {0, 1, 3, 6, 100};
    (void)state;
    for (int w = 0; w < TESS_NELEM(windows); w++) {
        const tess_attention_shape shape = {.dt = TESS_BF16,
                                            .token_numel = 12,
                                            .head_numel = 4,
                                            .kv_head_numel = 2,
                                            .dim = 8,
                                            .longest_numel = 6};
        const tess_attention_args forward = {.shape = shape, .window = windows[w]};
        const tess_attention_backward_args backward = {.shape = shape, .window = windows[w]};
        double pairs = 0.0;
        tess_cost f = {0}, b = {0};
        for (int i = 0; i < 6; i++)
            for (int j = 0; j <= i; j++)
                pairs += windows[w] == 0 || i - j < windows[w] ? 1.0 : 0.0;
        tess_count_attention(&f, &forward);
        tess_count_attention_backward(&b, &backward);
        assert_true(f.hardware_flops == 4.0 * 8.0 * 4.0 * 2.0 * pairs);
        assert_true(b.model_flops == 2.0 * f.hardware_flops);
        assert_true(b.op[TESS_COST_ATTENTION_BACKWARD] == 2.5 * f.hardware_flops);
    }
}

/* Segments see all of their own; the loops of every head, and bytes in bf16 beside lse in f32. */
static void test_whole_segments_count_their_loops(void **state)
{
    const int64_t tokens = 12, segment = 4, heads = 4, kv_heads = 2, dim = 8;
    const tess_attention_shape shape = {.dt = TESS_BF16,
                                        .token_numel = tokens,
                                        .head_numel = heads,
                                        .kv_head_numel = kv_heads,
                                        .dim = dim,
                                        .longest_numel = segment,
                                        .segment_numel = segment};
    const tess_attention_args forward = {.shape = shape};
    const tess_attention_backward_args backward = {.shape = shape};
    tess_cost f = {0}, b = {0};
    double flops = 0.0;
    (void)state;
    for (int64_t i = 0; i < heads * tokens / segment; i++) {
        count_product(&flops, segment, segment, dim);
        count_product(&flops, segment, dim, segment);
    }
    tess_count_attention(&f, &forward);
    tess_count_attention_backward(&b, &backward);
    assert_true(f.model_flops == flops && b.model_flops == 2.0 * flops);
    assert_true(f.nbytes ==
                (double)(2 * tokens * dim * (2 * heads + 2 * kv_heads) + 4 * tokens * heads));
    assert_true(b.nbytes == 2.0 * f.nbytes);
}

/* A quantized weight is read as stored, and written and read in the dtype of the other operand. */
static void test_dequantizing_counts_the_parts(void **state)
{
    static const double stored[] = {0.5 + 4.0 / 64.0, 0.5 + 1.0 / 64.0 + 4.0 / 16384.0};
    const int64_t rows = 64, cols = 256 * 10;
    const double numel = (double)(rows * cols);
    (void)state;
    for (int twice = 0; twice < 2; twice++) {
        const tess_codec nf4 = {
            .format = TESS_FORMAT_NF4, .block_numel = 64, .double_quant = twice == 1};
        tess_gemm_args a = {.kind = TESS_GEMM_NT, .m = 1, .n = rows, .term_numel = 1};
        tess_cost c = {0};
        a.term[0] = (tess_gemm_term){.a = tess_view_host(NULL, cols, TESS_BF16), .k = cols};
        a.term[0].b = (tess_matrix){.codec = nf4, .rows = rows, .cols = cols};
        a.c = tess_view_host(NULL, rows, TESS_BF16);
        tess_count_gemm(&c, &a);
        /* and the mean of constants that are quantized too */
        assert_true(c.weight_nbytes == (stored[twice] + 2.0) * numel + 4.0 * twice);
        assert_true(c.weight_numel[TESS_FORMAT_NF4] == numel);
        assert_true(c.nbytes == c.weight_nbytes + 2.0 * (numel + (double)(rows + cols)));
    }
}

/* Operands that are read and written, in their dtype. */
static void test_elementwise_counts_its_vectors(void **state)
{
    const tess_view rows = tess_view_host(NULL, 3 * 8, TESS_BF16);
    const tess_rmsnorm_args norm = {.x = rows, .row_numel = 3, .dim = 8};
    const tess_rmsnorm_backward_args norm_backward = {.x = rows, .row_numel = 3, .dim = 8};
    const tess_swiglu_args swiglu = {.gate = rows};
    const tess_swiglu_backward_args swiglu_backward = {.gate = rows};
    const tess_rope_args rope = {
        .x = {.dt = TESS_BF16}, .token_numel = 3, .head_numel = 5, .dim = 8};
    const tess_adamw_args adamw = {.numel = 7, .param = tess_view_host(NULL, 7, TESS_BF16)};
    tess_cost c = {0};
    (void)state;
    tess_count_rmsnorm(&c, &norm);
    tess_count_rmsnorm_backward(&c, &norm_backward);
    tess_count_swiglu(&c, &swiglu);
    tess_count_swiglu_backward(&c, &swiglu_backward);
    tess_count_rope(&c, &rope);
    tess_count_adamw(&c, &adamw);
    assert_true(c.op[TESS_COST_NORM] == 4.0 * 3 * 8);
    assert_true(c.op[TESS_COST_NORM_BACKWARD] == 6.0 * 3 * 8);
    assert_true(c.op[TESS_COST_SWIGLU] == 6.0 * 3 * 8);
    assert_true(c.op[TESS_COST_SWIGLU_BACKWARD] == 10.0 * 3 * 8);
    assert_true(c.op[TESS_COST_ROPE] == 4.0 * 3 * 5 * 8);
    assert_true(c.op[TESS_COST_OPTIMIZER] == 30.0 * 7);
    assert_true(c.launch_numel == 6.0 && c.model_flops == 0.0 && c.hardware_flops == 0.0);
}

static void test_unlisted_kernels_are_counted_as_such(void **state)
{
    const int nothing = 0;
    tess_cost c = {0};
    (void)state;
    TESS_COST_OF (&nothing)(&c, &nothing);
    assert_true(c.unlisted_numel == 1.0 && c.launch_numel == 1.0 && c.nbytes == 0.0);
}

/* Decoded matrices as they would be kept: with the columns of all adapters that lie behind A's, not
 * of products of few rows, and a second time over the same rows nothing. */
static void test_decoded_matrices_are_counted_once(void **state)
{
    const int64_t n = 64, k = 256, r = 8, all = 3 * r;
    const tess_codec nf4 = {.format = TESS_FORMAT_NF4, .block_numel = 64};
    const tess_codec plain = tess_codec_of_format(TESS_FORMAT_BF16);
    tess_gemm_args a = {.kind = TESS_GEMM_NT, .m = 16, .n = n, .term_numel = 1};
    tess_cost one = {0}, two = {0}, few = {0}, none = {0};
    (void)state;
    a.term[0] = (tess_gemm_term){.a = tess_view_host(NULL, 16 * k, TESS_BF16), .k = k};
    a.term[0].b = (tess_matrix){.codec = nf4, .rows = n, .cols = k};
    a.c = tess_view_host(NULL, 16 * n, TESS_BF16);
    tess_count_gemm(&one, &a);
    assert_true(one.kept_nbytes == 2.0 * (double)(n * k));
    a.m = 8;
    tess_count_gemm(&few, &a);
    assert_true(few.kept_nbytes == 0.0);
    a.m = 16;
    a.term_numel = 2;
    a.term[0].a_stride = k + all;
    a.term[1] = (tess_gemm_term){.a = a.term[0].a, .a_stride = k + all, .k = r};
    a.term[1].b = (tess_matrix){.codec = plain, .rows = n, .cols = r};
    tess_count_gemm(&two, &a);
    assert_in_range((int64_t)two.kept_nbytes, 2 * n * (k + all), 2 * n * (k + all + 8) + 512);
    const tess_cost before = two;
    tess_count_gemm(&two, &a);
    tess_cost_repeat(&two, &before, 3.0);
    assert_true(two.kept_nbytes == 2.0 * before.kept_nbytes && two.launch_numel == 5.0);
    assert_true(two.widest_nbytes == before.kept_nbytes);
    assert_true(tess_cost_times(tess_cost_sum(one, two), 5.0).widest_nbytes == two.widest_nbytes);
    a.term[0].b.codec = plain;
    tess_count_gemm(&none, &a);
    assert_true(none.kept_nbytes == 0.0);
}

static void test_repeated_work_is_multiplied(void **state)
{
    tess_cost c = {.nbytes = 3.0};
    (void)state;
    const tess_cost before = c;
    c.nbytes += 5.0;
    c.launch_numel += 1.0;
    tess_cost_repeat(&c, &before, 2.0);
    assert_true(c.nbytes == 18.0 && c.launch_numel == 3.0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_product_counts_its_loops),
        cmocka_unit_test(test_attention_counts_the_pairs_it_sees),
        cmocka_unit_test(test_whole_segments_count_their_loops),
        cmocka_unit_test(test_dequantizing_counts_the_parts),
        cmocka_unit_test(test_elementwise_counts_its_vectors),
        cmocka_unit_test(test_unlisted_kernels_are_counted_as_such),
        cmocka_unit_test(test_decoded_matrices_are_counted_once),
        cmocka_unit_test(test_repeated_work_is_multiplied),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
