/*
 * Gradients of a tiny FLUX.1 against the same model in fp64 (tests/reference/flux_reference.h,
 * whose gradients the golden table checks), and what must give the same bits.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "tests/support/flux_case.h"

static void expect_ok(tess_status st)
{
    if (st != TESS_OK)
        fail_msg("%s: %s\n%s", tess_status_name(st), tess_error_message(), tess_error_trace_text());
}

static int64_t output_numel(const flux_choice *o)
{
    return o->height * o->width * o->config.out_channels;
}

/* ---- against fp64 ---- */

/* Norm of the difference over the norm; of nothing but zeros: of the difference. */
static double distance(const float *found, const double *expected, int64_t numel)
{
    double difference = 0.0, norm = 0.0;
    for (int64_t i = 0; i < numel; i++) {
        difference += ((double)found[i] - expected[i]) * ((double)found[i] - expected[i]);
        norm += expected[i] * expected[i];
    }
    return norm > 0.0 ? sqrt(difference / norm) : sqrt(difference);
}

/*
 * f32: an output is within 1e-5 (test_flux_golden.c); a gradient passes the model twice, sqrt 2 of
 * that, and twice as much where rows of both signs cancel: 3e-5.
 *
 * bf16: every store is within 2^-9 of its value, uniform errors of standard deviation 2^-9 /
 * sqrt 3. From input to output lie some 50 stores, as many on the way back, whose errors add as a
 * walk: sqrt(50) 2^-9 / sqrt 3 = 0.8% of an output, 1.1% of a gradient, which differences of rows
 * and softmax enlarge for single tensors; 8 times of that is the bound of a gradient.
 */
static double output_bound(tess_dtype dt) { return dt == TESS_BF16 ? 0.024 : 1e-5; }
static double gradient_bound(tess_dtype dt) { return dt == TESS_BF16 ? 0.09 : 3e-5; }

static void expect_gradients(const flux_choice *o)
{
    const float scale = 1.0f / (float)o->sample_numel;
    stage_chain c = flux_open(o);
    flux_inputs x = flux_inputs_open(o, 0, o->sample_numel);
    flux_twin t;
    double loss = 0.0;
    flux_twin_open(o, &c, &x, FLUX_RIGHT, &t);
    tape_backward(t.f.t, t.loss, &(const double){(double)scale});
    expect_ok(stage_chain_train(&c, &x.batch, scale, &loss));
    const double expected = tape_value(t.f.t, t.loss)[0];
    if (!(fabs(loss - expected) <= output_bound(o->dt) * expected))
        fail_msg("loss %.9g, expected %.9g", loss, expected);
    for (int i = 0; i < c.reg.param_numel; i++) {
        const tess_param *p = &c.reg.param[i];
        if (p->role != TESS_ROLE_TRAINABLE)
            continue;
        const tape_node n = flux_reference_find(&t.f, p->name);
        const double off = distance(stage_chain_grad(&c, p->name), tape_grad(t.f.t, n), p->numel);
        if (!(off <= gradient_bound(o->dt)))
            fail_msg("%s: gradient is %g away, bound %g", p->name, off, gradient_bound(o->dt));
    }
    expect_ok(stage_chain_forward(&c, TESS_CALL_LOGITS, &x.batch, NULL));
    for (int b = 0; b < o->sample_numel; b++)
        assert_true(distance(x.batch.velocity + b * output_numel(o), tape_value(t.f.t, t.output[b]),
                             output_numel(o)) <= output_bound(o->dt));
    flux_twin_close(&t);
    flux_inputs_close(&x);
    stage_chain_fini(&c);
}

static flux_choice variant_of(int i)
{
    flux_choice o = flux_tiny();
    o.dt = i & 1 ? TESS_BF16 : TESS_F32;
    o.sample_numel = i & 2 ? 2 : 1;
    return o;
}

static void test_full_gradients(void **state)
{
    (void)state;
    for (int i = 0; i < 4; i++) {
        flux_choice o = variant_of(i);
        o.is_full = true;
        expect_gradients(&o);
    }
}

static void test_lora_gradients_of_every_linear(void **state)
{
    (void)state;
    for (int i = 0; i < 8; i++) {
        flux_choice o = variant_of(i);
        o.targets = flux_every_target;
        o.is_dora = (i & 4) != 0;
        expect_gradients(&o);
    }
}

/* One A for q, k, v (and MLP) of a site: its gradient is the sum over the parts. */
static void test_shared_a(void **state)
{
    (void)state;
    static const char *const targets[] = {
        "*.to_q",       "*.to_k",       "*.to_v",     "*.add_q_proj",
        "*.add_k_proj", "*.add_v_proj", "*.proj_mlp", NULL};
    for (int i = 0; i < 8; i++) {
        flux_choice o = variant_of(i);
        o.targets = targets;
        o.shares_a = true;
        o.is_dora = (i & 4) != 0;
        expect_gradients(&o);
        stage_chain c = flux_open(&o);
        assert_true(tess_registry_find(&c.reg, "transformer_blocks.0.attn.to_q.lora_A.weight") >=
                    0);
        assert_true(tess_registry_find(&c.reg, "transformer_blocks.0.attn.to_k.lora_A.weight") < 0);
        assert_true(tess_registry_find(&c.reg, "transformer_blocks.0.attn.to_k.lora_B.weight") >=
                    0);
        assert_true(
            tess_registry_find(&c.reg, "single_transformer_blocks.1.proj_mlp.lora_A.weight") < 0);
        stage_chain_fini(&c);
    }
}

/* No guidance, uneven streams, heads of an odd number of vectors. */
static void test_other_shapes(void **state)
{
    (void)state;
    for (int i = 0; i < 4; i++) {
        flux_choice o = variant_of(i);
        o.config.has_guidance = false;
        o.config.head_numel = 3;
        o.config.head_dim = 10;
        o.config.axis_dim[0] = 2;
        o.config.axis_dim[1] = o.config.axis_dim[2] = 4;
        o.config.double_numel = 1;
        o.config.single_numel = i & 1 ? 0 : 1;
        o.height = 3;
        o.text_numel = 5;
        o.is_full = true;
        expect_gradients(&o);
    }
}

/* ---- same bits ---- */

static void expect_same_gradients(const stage_chain *a, const stage_chain *b)
{
    for (int u = 0; u < a->reg.unit_numel; u++)
        assert_memory_equal(a->grad[u], b->grad[u],
                            (size_t)a->reg.unit[u].trainable_numel * sizeof(float));
}

static void expect_same_run(const flux_choice *a, const flux_choice *b)
{
    const flux_choice *o[2] = {a, b};
    stage_chain c[2];
    double loss[2] = {0.0, 0.0};
    flux_inputs x = flux_inputs_open(a, 0, a->sample_numel);
    for (int i = 0; i < 2; i++) {
        c[i] = flux_open(o[i]);
        expect_ok(stage_chain_train(&c[i], &x.batch, 0.5f, &loss[i]));
    }
    assert_memory_equal(&loss[0], &loss[1], sizeof loss[0]);
    expect_same_gradients(&c[0], &c[1]);
    flux_inputs_close(&x);
    stage_chain_fini(&c[0]);
    stage_chain_fini(&c[1]);
}

static void test_recomputation_and_threads_give_the_same_bits(void **state)
{
    (void)state;
    for (int i = 0; i < 16; i++) {
        flux_choice plain = variant_of(i);
        plain.is_full = (i & 4) != 0;
        plain.targets = flux_every_target;
        plain.dropout = i & 8 ? 0.25 : 0.0;
        flux_choice other = plain;
        other.is_recomputed = true;
        expect_same_run(&plain, &other);
        other.thread_numel = 3;
        expect_same_run(&plain, &other);
    }
}

/* Velocity and loss of a batch. */
static void run_eval(const flux_choice *o, stage_chain *c, flux_inputs *x, double *loss)
{
    (void)o;
    expect_ok(stage_chain_eval(c, &x->batch, loss));
    expect_ok(stage_chain_forward(c, TESS_CALL_LOGITS, &x->batch, NULL));
}

/* B = 0: nothing is added, not even a rounding. */
static void test_an_adapter_of_zeros_changes_nothing(void **state)
{
    (void)state;
    for (int i = 0; i < 4; i++) {
        flux_choice plain = variant_of(i), adapted = plain;
        adapted.targets = flux_every_target;
        stage_chain a = flux_open(&plain), b = flux_open(&adapted);
        flux_inputs x = flux_inputs_open(&plain, 0, plain.sample_numel);
        flux_inputs y = flux_inputs_open(&plain, 0, plain.sample_numel);
        double loss[2] = {0.0, 0.0};
        for (int p = 0; p < b.reg.param_numel; p++)
            if (strstr(b.reg.param[p].name, ".lora_B.") != NULL)
                memset(stage_chain_master(&b, b.reg.param[p].name), 0,
                       (size_t)b.reg.param[p].numel * sizeof(float));
        expect_ok(stage_chain_publish(&b));
        run_eval(&plain, &a, &x, &loss[0]);
        run_eval(&adapted, &b, &y, &loss[1]);
        assert_memory_equal(&loss[0], &loss[1], sizeof loss[0]);
        assert_memory_equal(x.batch.velocity, y.batch.velocity,
                            (size_t)(plain.sample_numel * output_numel(&plain)) * sizeof(float));
        flux_inputs_close(&x);
        flux_inputs_close(&y);
        stage_chain_fini(&a);
        stage_chain_fini(&b);
    }
}

/* Samples of a batch have the bits that each has alone, in a model planned for both. */
static void test_samples_do_not_see_each_other(void **state)
{
    (void)state;
    for (int i = 2; i < 4; i++) {
        flux_choice o = variant_of(i);
        o.targets = flux_every_target;
        stage_chain c = flux_open(&o);
        flux_inputs both = flux_inputs_open(&o, 0, 2);
        double loss[3] = {0.0, 0.0, 0.0};
        run_eval(&o, &c, &both, &loss[2]);
        for (int b = 0; b < 2; b++) {
            flux_inputs one = flux_inputs_open(&o, b, 1);
            run_eval(&o, &c, &one, &loss[b]);
            assert_memory_equal(one.batch.velocity, both.batch.velocity + b * output_numel(&o),
                                (size_t)output_numel(&o) * sizeof(float));
            flux_inputs_close(&one);
        }
        /* the sum in row order of both against two sums: 32 additions in fp64 */
        assert_true(fabs(loss[0] + loss[1] - loss[2]) <= 32.0 * 0x1p-53 * loss[2]);
        flux_inputs_close(&both);
        stage_chain_fini(&c);
    }
}

/* A smaller batch than planned is a batch of its own. */
static void test_smaller_batches(void **state)
{
    (void)state;
    flux_choice small = variant_of(3), large = small;
    small.targets = large.targets = flux_every_target;
    small.sample_numel = 1;
    large.height = 7;
    large.text_numel = 11;
    stage_chain a = flux_open(&small), b = flux_open(&large);
    flux_inputs x = flux_inputs_open(&small, 0, 1);
    double loss[2] = {0.0, 0.0};
    expect_ok(stage_chain_train(&a, &x.batch, 1.0f, &loss[0]));
    expect_ok(stage_chain_train(&b, &x.batch, 1.0f, &loss[1]));
    assert_memory_equal(&loss[0], &loss[1], sizeof loss[0]);
    expect_same_gradients(&a, &b);
    flux_inputs_close(&x);
    stage_chain_fini(&a);
    stage_chain_fini(&b);
}

/* ---- what is not computed ---- */

/* A table that counts. */
static struct counted {
    tess_kernels kernels;
    tess_modulated_kernels modulated;
    int gemm, attention_backward, rotate_backward, modulate_backward;
} counted;

static tess_status count_gemm(const tess_gemm_args *a, tess_stream *s)
{
    counted.gemm++;
    return tess_kernels_cpu.gemm(a, s);
}

static tess_status count_attention(const tess_attention_backward_args *a, tess_stream *s)
{
    counted.attention_backward++;
    return tess_kernels_cpu.attention_backward(a, s);
}

static tess_status count_rotate(const tess_rotate_backward_args *a, tess_stream *s)
{
    counted.rotate_backward++;
    return tess_kernels_cpu.modulated->rotate_backward(a, s);
}

static tess_status count_modulate(const tess_modulate_backward_args *a, tess_stream *s)
{
    counted.modulate_backward++;
    return tess_kernels_cpu.modulated->modulate_backward(a, s);
}

static void reset_counts(void)
{
    counted.kernels = tess_kernels_cpu;
    counted.modulated = *tess_kernels_cpu.modulated;
    counted.kernels.modulated = &counted.modulated;
    counted.kernels.gemm = count_gemm;
    counted.kernels.attention_backward = count_attention;
    counted.modulated.rotate_backward = count_rotate;
    counted.modulated.modulate_backward = count_modulate;
    counted.gemm = counted.attention_backward = 0;
    counted.rotate_backward = counted.modulate_backward = 0;
}

/* Products of the backward alone; the last stage's forward is a part of it. */
static int backward_products(const char *const *targets, bool is_recomputed)
{
    flux_choice o = flux_tiny();
    double loss = 0.0;
    reset_counts();
    o.targets = targets;
    o.kernels = &counted.kernels;
    o.is_recomputed = is_recomputed;
    stage_chain c = flux_open(&o);
    flux_inputs x = flux_inputs_open(&o, 0, 1);
    expect_ok(stage_chain_eval(&c, &x.batch, &loss));
    const int forward = counted.gemm;
    expect_ok(stage_chain_train(&c, &x.batch, 1.0f, &loss));
    flux_inputs_close(&x);
    stage_chain_fini(&c);
    return counted.gemm - 2 * forward;
}

static void test_only_what_is_wanted_is_computed(void **state)
{
    (void)state;
    static const char *const none[] = {NULL}, *const last[] = {"proj_out", NULL};
    static const char *const down[] = {"single_transformer_blocks.1.proj_out", NULL};
    static const char *const mlp[] = {"transformer_blocks.1.ff.net.2", NULL};
    static const char *const value[] = {"transformer_blocks.0.attn.to_v", NULL};
    static const char *const latent[] = {"x_embedder", NULL};
    static const char *const factors[] = {"transformer_blocks.1.norm1.linear", NULL};
    static const char *const time[] = {"time_text_embed.timestep_embedder.linear_1", NULL};
    /* Nothing learns: not a product but those of the forward, also where it would be repeated. */
    assert_int_equal(backward_products(none, false), 0);
    assert_int_equal(backward_products(none, true), 0);
    assert_int_equal(counted.modulate_backward, 0);
    /* d_u, dB, dA of the end. */
    assert_int_equal(backward_products(last, false), 3);
    assert_int_equal(counted.modulate_backward, 0);
    /* d_x of the end, then those three. */
    assert_int_equal(backward_products(down, false), 1 + 3);
    assert_int_equal(counted.attention_backward, 0);
    /* End; two single blocks' down and projections; down of one stream. */
    assert_int_equal(backward_products(mlp, false), 1 + 2 * 2 + 3);
    assert_int_equal(counted.attention_backward, 2);
    /* A double block has two products for each of out, down, up and projections; the first one ends
     * at its projections: no gradient of its input. */
    assert_int_equal(backward_products(value, false), 1 + 2 * 2 + 8 + (6 + 3));
    assert_int_equal(counted.attention_backward, 4);
    assert_int_equal(counted.modulate_backward, 1 + 2 + 4 + 2);
    /* All the way down, although the first block learns nothing. */
    assert_int_equal(backward_products(latent, false), 1 + 2 * 2 + 2 * 8 + 3);
    /* Only the image stream's norm has to have its gradient; no gradient of s. */
    assert_int_equal(backward_products(factors, false), 1 + 2 * 2 + (6 + 1) + 3);
    assert_int_equal(counted.modulate_backward, 1 + 2 + 2 + 1);
    /* Everything takes part: d_s of the end, the blocks' norms and the first embedder. In the first
     * block the rows below have no gradient, but its factors do. */
    assert_int_equal(backward_products(time, false), (1 + 1) + 2 * (2 + 1) + 2 * (8 + 2) + 1 + 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_full_gradients),
        cmocka_unit_test(test_lora_gradients_of_every_linear),
        cmocka_unit_test(test_shared_a),
        cmocka_unit_test(test_other_shapes),
        cmocka_unit_test(test_recomputation_and_threads_give_the_same_bits),
        cmocka_unit_test(test_an_adapter_of_zeros_changes_nothing),
        cmocka_unit_test(test_samples_do_not_see_each_other),
        cmocka_unit_test(test_smaller_batches),
        cmocka_unit_test(test_only_what_is_wanted_is_computed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
