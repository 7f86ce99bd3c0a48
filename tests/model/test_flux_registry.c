/* What a full-size FLUX.1 registers, what it costs, and what it refuses. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <string.h>

#include "kernels/cuda_work.h"
#include "tests/support/flux_case.h"

static void expect_ok(tess_status st)
{
    if (st != TESS_OK)
        fail_msg("%s: %s\n%s", tess_status_name(st), tess_error_message(), tess_error_trace_text());
}

static flux_choice full_size(bool has_guidance)
{
    flux_choice o = flux_tiny();
    o.config = (tess_flux_config){.in_channels = 64,
                                  .out_channels = 64,
                                  .double_numel = 19,
                                  .single_numel = 38,
                                  .head_numel = 24,
                                  .head_dim = 128,
                                  .text_dim = 4096,
                                  .pooled_dim = 768,
                                  .has_guidance = has_guidance,
                                  .axis_dim = {16, 56, 56}};
    o.dt = TESS_BF16;
    o.height = o.width = 64;
    o.text_numel = 512;
    return o;
}

typedef struct described {
    tess_registry reg;
    tess_model *model;
} described;

static described describe(const flux_choice *o)
{
    described d = {.model = NULL};
    tess_registry_init(&d.reg, o->dt);
    expect_ok(flux_describe(o, &d.reg, &d.model));
    return d;
}

static void destroy(described *d)
{
    tess_model_destroy(&d->model);
    tess_registry_fini(&d->reg);
}

static int64_t numel_of(const tess_registry *reg, int unit_idx, tess_role role)
{
    int64_t sum = 0;
    for (int i = 0; i < reg->param_numel; i++)
        if ((unit_idx < 0 || reg->param[i].unit_idx == unit_idx) && reg->param[i].role == role)
            sum += reg->param[i].numel;
    return sum;
}

/* Counts of the published models, and of each kind of block. */
static void test_full_size_has_the_published_counts(void **state)
{
    (void)state;
    static const int64_t whole[2] = {11891178560, 11901408320};
    for (int dev = 0; dev < 2; dev++) {
        const flux_choice o = full_size(dev != 0);
        described d = describe(&o);
        assert_int_equal(numel_of(&d.reg, -1, TESS_ROLE_FROZEN), whole[dev]);
        assert_int_equal(d.reg.unit_numel, 59);
        assert_int_equal(d.reg.stage_numel, 59);
        assert_string_equal(d.reg.unit[0].name, "embed");
        assert_string_equal(d.reg.unit[1].name, "double.0");
        assert_string_equal(d.reg.unit[20].name, "single.0");
        assert_string_equal(d.reg.unit[58].name, "final");
        assert_int_equal(numel_of(&d.reg, 1, TESS_ROLE_FROZEN), 339831296);
        assert_int_equal(numel_of(&d.reg, 20, TESS_ROLE_FROZEN), 141591808);
        destroy(&d);
    }
}

/* LoRA on every linear of the blocks but the ends, at rank 2: r (in + out) of each. */
static void test_adapters_are_counted(void **state)
{
    (void)state;
    static const char *const blocks[] = {"*.to_q", "*.to_k", "*.to_v", "*.to_out.0", NULL};
    flux_choice o = full_size(true);
    o.targets = blocks;
    described d = describe(&o);
    /* rank 4 has 4,669,440 */
    assert_int_equal(numel_of(&d.reg, -1, TESS_ROLE_TRAINABLE), 4669440 / 2);
    o.shares_a = true;
    described shared = describe(&o);
    /* two matrices A of 2 x 3072 less in each of 57 blocks */
    assert_int_equal(numel_of(&shared.reg, -1, TESS_ROLE_TRAINABLE), 4669440 / 2 - 57 * 2 * 6144);
    destroy(&d);
    destroy(&shared);
}

/* The forward of a sample at 512, 768 and 1024 pixels is 19.8, 36.4 and 59.5 TFLOP of linears, 1.7,
 * 5.6 and 14.9 of attention. */
static void test_operations_of_a_sample(void **state)
{
    (void)state;
    static const int side[] = {32, 48, 64};
    static const double linear[] = {19.8, 36.4, 59.5}, attention[] = {1.7, 5.6, 14.9};
    for (int i = 0; i < 3; i++) {
        flux_choice o = full_size(true);
        o.height = o.width = side[i];
        described d = describe(&o);
        double tflop = 0.0;
        for (int s = 0; s < d.reg.stage_numel; s++)
            tflop += 1e-12 * d.reg.stage[s].cost.forward.model_flops / (double)o.sample_numel;
        /* these have one decimal */
        if (!(fabs(tflop - linear[i] - attention[i]) <= 2.0 * 0.05))
            fail_msg("%g TFLOP, expected %g", tflop, linear[i] + attention[i]);
        destroy(&d);
    }
}

/* Under checkpointing a stage keeps [S, H] and [H]; a frozen stage keeps nothing for backward. */
static void test_memory_of_stages(void **state)
{
    (void)state;
    static const char *const last[] = {"single_transformer_blocks.37.proj_out", NULL};
    flux_choice o = full_size(true);
    o.targets = last;
    described d = describe(&o);
    for (int s = 0; s < d.reg.stage_numel; s++) {
        const tess_stage *stage = &d.reg.stage[s];
        assert_int_equal(stage->output_nbytes, s == 58 ? 0 : (4608 + 1) * 3072 * 2);
        assert_true((stage->saved_nbytes > 0) == (s == 57));
        assert_true(stage->is_fused_loss == (s == 58));
    }
    destroy(&d);
}

static void expect_refused(const flux_choice *o, tess_status want, const char *text)
{
    tess_registry reg;
    tess_model *model = NULL;
    tess_error_clear();
    tess_registry_init(&reg, o->dt);
    assert_int_equal(flux_describe(o, &reg, &model), want);
    if (strstr(tess_error_message(), text) == NULL)
        fail_msg("message '%s' lacks '%s'", tess_error_message(), text);
    assert_null(model);
    tess_registry_fini(&reg);
    tess_error_clear();
}

static void test_what_is_refused(void **state)
{
    (void)state;
    static const char *const parts[] = {"*.to_k", NULL};
    flux_choice o = flux_tiny();
    o.config.head_dim = 18;
    expect_refused(&o, TESS_E_CONFIG, "axes_dims_rope");
    o = flux_tiny();
    o.sample_numel = 0;
    expect_refused(&o, TESS_E_ARG, "0 samples of 16 image and 8 text tokens");
    o = flux_tiny();
    o.dropout = 1.0;
    expect_refused(&o, TESS_E_CONFIG, "lora.dropout: expected 0 <= p < 1, found 1");
    /* A part without the first one. */
    o = flux_tiny();
    o.targets = parts;
    o.shares_a = true;
    expect_refused(&o, TESS_E_CONFIG,
                   "'transformer_blocks.0.attn.to_k' is to share its A with "
                   "'transformer_blocks.0.attn.to_q.weight', but they have ranks 2 and 0");
    o.targets = flux_every_target;
    o.start.low_rank = TESS_LOW_RANK_PISSA;
    expect_refused(&o, TESS_E_UNSUPPORTED, "one A cannot be made of two matrices");
    o = flux_tiny();
    tess_kernels other = tess_kernels_cpu;
    other.name = "other";
    other.modulated = NULL;
    o.planned = &other;
    expect_refused(&o, TESS_E_UNSUPPORTED,
                   "model.family: flux has no kernels on other; set compute.device to cpu");
}

/* A batch that does not fit is an error with both sizes, whatever the stage. */
static void test_batches_that_do_not_fit(void **state)
{
    (void)state;
    const flux_choice o = flux_tiny();
    stage_chain c = flux_open(&o);
    flux_inputs x = flux_inputs_open(&o, 0, 1);
    double loss = 0.0;
    tess_flux_batch bad = x.batch;
    bad.image_numel = 17;
    assert_int_equal(stage_chain_eval(&c, &bad, &loss), TESS_E_ARG);
    assert_non_null(strstr(tess_error_message(), "17 image tokens: expected 1 to 16 as planned"));
    tess_error_clear();
    bad = x.batch;
    bad.guidance = NULL;
    assert_int_equal(stage_chain_eval(&c, &bad, &loss), TESS_E_ARG);
    assert_non_null(strstr(tess_error_message(), "a guidance embedding, the batch no guidance"));
    tess_error_clear();
    bad = x.batch;
    bad.target = NULL;
    assert_int_equal(stage_chain_eval(&c, &bad, &loss), TESS_E_ARG);
    assert_non_null(strstr(tess_error_message(), "a loss needs targets and weights"));
    tess_error_clear();
    bad = x.batch;
    bad.velocity = NULL;
    assert_int_equal(stage_chain_forward(&c, TESS_CALL_LOGITS, &bad, NULL), TESS_E_ARG);
    assert_non_null(strstr(tess_error_message(), "velocity of 1 samples"));
    tess_error_clear();
    flux_inputs_close(&x);
    stage_chain_fini(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_full_size_has_the_published_counts),
        cmocka_unit_test(test_adapters_are_counted),
        cmocka_unit_test(test_operations_of_a_sample),
        cmocka_unit_test(test_memory_of_stages),
        cmocka_unit_test(test_what_is_refused),
        cmocka_unit_test(test_batches_that_do_not_fit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
