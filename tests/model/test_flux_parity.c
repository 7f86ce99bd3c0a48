/*
 * The FLUX.1 transformer against diffusers + peft in float64 (tests/golden/make_flux.py): velocity,
 * loss, adapter gradients, 20 steps of AdamW.
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
#include "reference/reference.h"
#include "tests/support/flux_case.h"
#include "tests/support/golden.h"

enum { OUTPUT = 16 * 16, STEPS = 20 };

/* TARGETS of the script. */
static const char *const targets[] = {"transformer_blocks.0.attn.to_q",
                                      "transformer_blocks.0.attn.add_k_proj",
                                      "transformer_blocks.1.attn.to_out.0",
                                      "transformer_blocks.0.attn.to_add_out",
                                      "transformer_blocks.0.ff.net.0.proj",
                                      "transformer_blocks.1.ff_context.net.2",
                                      "transformer_blocks.1.norm1.linear",
                                      "transformer_blocks.0.norm1_context.linear",
                                      "single_transformer_blocks.0.attn.to_v",
                                      "single_transformer_blocks.1.proj_mlp",
                                      "single_transformer_blocks.0.proj_out",
                                      "single_transformer_blocks.1.norm.linear",
                                      "norm_out.linear",
                                      "proj_out",
                                      "x_embedder",
                                      "context_embedder",
                                      "time_text_embed.timestep_embedder.linear_2",
                                      "time_text_embed.text_embedder.linear_1",
                                      NULL};

static void expect_ok(tess_status st)
{
    if (st != TESS_OK)
        fail_msg("%s: %s\n%s", tess_status_name(st), tess_error_message(), tess_error_trace_text());
}

static tess_golden *open_golden(void)
{
    tess_golden *g = NULL;
    expect_ok(tess_golden_open("tests/golden/flux/tiny.golden", &g));
    return g;
}

static const void *tensor(const tess_golden *g, const char *name, tess_dtype dt, int64_t numel)
{
    int64_t found = 0;
    const void *x = tess_golden_tensor(g, name, dt, &found);
    if (x == NULL || found != numel)
        fail_msg("golden tensor '%s': %lld elements, expected %lld", name, (long long)found,
                 (long long)numel);
    return x;
}

/* The sinusoids that diffusers made in f32, for samples first .. of the batch. */
static void take_sinusoids(const tess_golden *g, int first, flux_inputs *x)
{
    static const char *const name[] = {"time", "guidance"};
    float *const to[] = {(float *)(uintptr_t)x->batch.time, (float *)(uintptr_t)x->batch.guidance};
    for (int b = 0; b < x->batch.sample_numel; b++)
        for (int i = 0; i < 2; i++) {
            char full[32];
            snprintf(full, sizeof full, "%s.%d", name[i], (first + b) % 2);
            memcpy(to[i] + b * TESS_FLUX_SINUSOID_NUMEL,
                   tensor(g, full, TESS_F32, TESS_FLUX_SINUSOID_NUMEL),
                   TESS_FLUX_SINUSOID_NUMEL * sizeof(float));
        }
}

static void expect_near(const char *what, const float *found, const float *expected, int64_t numel,
                        double bound)
{
    double difference = 0.0, norm = 0.0;
    for (int64_t i = 0; i < numel; i++) {
        const double d = (double)found[i] - (double)expected[i];
        difference += d * d;
        norm += (double)expected[i] * (double)expected[i];
    }
    if (!(sqrt(difference) <= bound * sqrt(norm)))
        fail_msg("%s: %g away, bound %g", what, sqrt(difference / norm), bound);
}

/*
 * Per tensor |ours - theirs| / |theirs|. With their sinusoids both programs differ by our f32
 * roundings alone (test_flux_golden.c: 1e-5). The f32 sinusoid has an error of half an ulp of its
 * argument, 2^-13 at 3500, in the fastest components: about 1e-4 of the output, and 3e-4 is asked.
 */
static const double fed_bound = 1e-5, own_bound = 3e-4;

static void check_outputs(bool is_fed)
{
    tess_golden *g = open_golden();
    const double *losses = tensor(g, "losses", TESS_F64, 4);
    const double bound = is_fed ? fed_bound : own_bound;
    for (int with_lora = 0; with_lora < 2; with_lora++) {
        flux_choice o = flux_tiny();
        o.sample_numel = 2;
        o.targets = with_lora ? targets : NULL;
        stage_chain c = flux_open(&o);
        flux_inputs x = flux_inputs_open(&o, 0, 2);
        double loss = 0.0;
        if (is_fed)
            take_sinusoids(g, 0, &x);
        const double expected = losses[2 * with_lora] + losses[2 * with_lora + 1];
        expect_ok(stage_chain_eval(&c, &x.batch, &loss));
        assert_true(fabs(loss - expected) <= bound * expected);
        expect_ok(stage_chain_forward(&c, TESS_CALL_LOGITS, &x.batch, NULL));
        expect_near("velocity", x.batch.velocity,
                    tensor(g, with_lora ? "velocity" : "velocity.plain", TESS_F32, 2 * OUTPUT),
                    2 * OUTPUT, bound);
        flux_inputs_close(&x);
        stage_chain_fini(&c);
    }
    tess_golden_close(&g);
}

static void test_outputs(void **state)
{
    (void)state;
    check_outputs(true);
    check_outputs(false);
}

static void check_gradients(const tess_golden *g, int sample_numel, bool is_fed)
{
    flux_choice o = flux_tiny();
    o.sample_numel = sample_numel;
    o.targets = targets;
    stage_chain c = flux_open(&o);
    flux_inputs x = flux_inputs_open(&o, 0, sample_numel);
    double loss = 0.0;
    int checked_numel = 0;
    if (is_fed)
        take_sinusoids(g, 0, &x);
    expect_ok(stage_chain_train(&c, &x.batch, 1.0f / (float)sample_numel, &loss));
    for (int i = 0; i < c.reg.param_numel; i++) {
        const tess_param *p = &c.reg.param[i];
        char name[TESS_NAME_NBYTES + 16];
        if (p->role != TESS_ROLE_TRAINABLE)
            continue;
        snprintf(name, sizeof name, "grad%d.%s", sample_numel, p->name);
        expect_near(name, stage_chain_grad(&c, p->name), tensor(g, name, TESS_F32, p->numel),
                    p->numel, is_fed ? fed_bound : own_bound);
        checked_numel++;
    }
    assert_int_equal(checked_numel, 2 * (TESS_NELEM(targets) - 1));
    flux_inputs_close(&x);
    stage_chain_fini(&c);
}

static void test_adapter_gradients(void **state)
{
    (void)state;
    tess_golden *g = open_golden();
    for (int sample_numel = 1; sample_numel <= 2; sample_numel++) {
        check_gradients(g, sample_numel, true);
        check_gradients(g, sample_numel, false);
    }
    tess_golden_close(&g);
}

/* ---- 20 steps ---- */

enum { TRAINABLE_MAX = 1 << 13 };

/* Masters and moments of a unit in fp64, as the reference optimizer has them. */
typedef struct unit_state {
    double param[TRAINABLE_MAX], exp_avg[TRAINABLE_MAX], exp_avg_sq[TRAINABLE_MAX];
} unit_state;

static void update(const tess_golden *g, stage_chain *c, int step, unit_state *state)
{
    static double grad[TRAINABLE_MAX];
    const ref_adamw_args args = {.learning_rate = tess_golden_number(g, "lr"),
                                 .beta1 = 0.9,
                                 .beta2 = 0.999,
                                 .eps = 1e-8,
                                 .weight_decay = tess_golden_number(g, "decay"),
                                 .clip_factor = 1.0,
                                 .step = step + 1};
    for (int u = 0; u < c->reg.unit_numel; u++) {
        const int64_t numel = c->reg.unit[u].trainable_numel;
        assert_true(numel <= TRAINABLE_MAX);
        for (int64_t i = 0; i < numel; i++)
            grad[i] = (double)c->grad[u][i];
        ref_adamw(&args, numel, grad, state[u].param, state[u].exp_avg, state[u].exp_avg_sq);
        for (int64_t i = 0; i < numel; i++)
            c->master[u][i] = (float)state[u].param[i];
    }
    expect_ok(stage_chain_publish(c));
}

/* AdamW's step is about lr whatever the gradient, so an element whose gradient is near 0 may step
 * by all of lr in another direction: 20 steps of 1e-3 on such elements. Their part in the loss is
 * their gradient, so it moves by less than 20 * 1e-3 * 1e-5 of it; beside that each loss has the
 * forward's 1e-5. */
static void test_curve(void **state)
{
    (void)state;
    tess_golden *g = open_golden();
    const double *curve = tensor(g, "curve", TESS_F64, STEPS);
    flux_choice o = flux_tiny();
    o.targets = targets;
    stage_chain c = flux_open(&o);
    unit_state *states = NULL;
    void *memory = NULL;
    expect_ok(tess_alloc_array(c.reg.unit_numel, sizeof *states, &memory));
    states = memory;
    for (int u = 0; u < c.reg.unit_numel; u++)
        for (int64_t i = 0; i < c.reg.unit[u].trainable_numel; i++)
            states[u].param[i] = (double)c.master[u][i];
    for (int step = 0; step < STEPS; step++) {
        flux_inputs x = flux_inputs_open(&o, step, 1);
        double loss = 0.0;
        take_sinusoids(g, step, &x);
        expect_ok(stage_chain_train(&c, &x.batch, 1.0f, &loss));
        if (!(fabs(loss - curve[step]) <= 2.0 * fed_bound * curve[step]))
            fail_msg("step %d: loss %.9g, expected %.9g", step, loss, curve[step]);
        update(g, &c, step, states);
        flux_inputs_close(&x);
    }
    tess_free(memory);
    stage_chain_fini(&c);
    tess_golden_close(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_outputs),
        cmocka_unit_test(test_adapter_gradients),
        cmocka_unit_test(test_curve),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
