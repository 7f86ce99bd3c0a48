/* What stages count while they are planned, against totals that are known and loops that are run.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include <math.h>

#include "kernels/cost_count.h"
#include "kernels/cuda_work.h"
#include "model/model.h"
#include "model/rqvae.h"
#include "tests/support/flux_case.h"

static void expect_ok(tess_status st)
{
    if (st != TESS_OK)
        fail_msg("%s: %s", tess_status_name(st), tess_error_message());
}

static tess_status rank_16(void *arg, const char *path, bool is_head, tess_lora_choice *out)
{
    (void)arg;
    (void)path;
    *out = (tess_lora_choice){.rank = is_head ? 0 : 16, .scale = 2.0};
    return TESS_OK;
}

static tess_llm_config llama3(int64_t hidden, int64_t inner, int64_t layers, int64_t heads)
{
    return (tess_llm_config){.family = TESS_LLM_LLAMA,
                             .hidden_numel = hidden,
                             .intermediate_numel = inner,
                             .layer_numel = layers,
                             .head_numel = heads,
                             .kv_head_numel = 8,
                             .head_dim = 128,
                             .vocab_numel = 128256,
                             .rms_eps = 1e-5,
                             .rope = {.theta = 5e5, .factor = 1.0},
                             .bos_id = -1};
}

static const tess_model_options s4096 = {.compute_dt = TESS_BF16,
                                         .is_random = true,
                                         .sequence_length = 4096,
                                         .micro_batch = 1,
                                         .thread_numel = 1,
                                         .lora_plus_ratio = 1.0,
                                         .lora_of = rank_16};

/* Model FLOPs of a step's calls: the fused last stage has no forward of its own. */
static tess_cost step_cost(const tess_registry *reg)
{
    tess_cost c = {0};
    for (int i = 0; i < reg->stage_numel; i++) {
        const tess_stage *s = &reg->stage[i];
        c = tess_cost_sum(c, s->cost.backward);
        if (!s->is_fused_loss)
            c = tess_cost_sum(c, s->cost.forward);
    }
    return c;
}

/* FLOPs of a token in weights [N, K] by themselves: a multiply-add forward, one for the gradient of
 * the input, and one for that of a weight that learns. */
static double weight_flops(const tess_param *p)
{
    return (p->role == TESS_ROLE_TRAINABLE ? 6.0 : 4.0) * (double)p->numel;
}

/* What the formula of the field makes of a registered model: its weights, and 12 for every pair of
 * a query and a key that it sees and element of a head. */
static double formula_per_token(const tess_registry *reg, const tess_llm_config *c, int64_t length)
{
    const double width = (double)(c->layer_numel * c->head_numel * c->head_dim);
    double flops = 12.0 * width * (double)(length + 1) / 2.0;
    for (int i = 0; i < reg->param_numel; i++)
        if (reg->param[i].shape_rank == 2 && strstr(reg->param[i].name, "embed_tokens") == NULL)
            flops += weight_flops(&reg->param[i]);
    return flops;
}

static double gflop_per_token(const tess_llm_config *config, const tess_model_options *o,
                              double *expected)
{
    tess_registry reg;
    tess_model *model = NULL;
    tess_registry_init(&reg, TESS_BF16);
    expect_ok(tess_llama_create(config, o, &reg, &model));
    const tess_cost c = step_cost(&reg);
    assert_true(c.unlisted_numel == 0.0);
    *expected = formula_per_token(&reg, config, o->sequence_length);
    tess_model_destroy(&model);
    tess_registry_fini(&reg);
    return c.model_flops / (double)(o->sequence_length * o->micro_batch) / 1e9;
}

static void test_llama3_has_known_flops_per_token(void **state)
{
    const tess_llm_config small = llama3(4096, 14336, 32, 32), large = llama3(8192, 28672, 80, 64);
    double expected = 0.0;
    (void)state;
    assert_true(fabs(gflop_per_token(&small, &s4096, &expected) - 33.5) < 0.05);
    assert_true(fabs(gflop_per_token(&large, &s4096, &expected) - 295.4) < 0.05);
}

/* Chunks of the head that do not divide the rows included. */
static void test_stages_sum_up_to_the_formula(void **state)
{
    (void)state;
    for (int is_full = 0; is_full < 2; is_full++) {
        tess_llm_config c = llama3(256, 384, 3, 16);
        tess_model_options o = s4096;
        double expected = 0.0;
        o.is_full = is_full == 1;
        o.lora_of = o.is_full ? NULL : rank_16;
        o.sequence_length = 1000;
        o.micro_batch = 3;
        const double counted = 1e9 * gflop_per_token(&c, &o, &expected);
        assert_true(fabs(counted - expected) <= 1e-9 * expected);
    }
}

/* A recomputation leaves the last product and sum out, and runs nothing that forward does not. */
static void test_recomputation_costs_less_than_forward(void **state)
{
    const tess_llm_config c = llama3(256, 384, 3, 16);
    tess_registry reg;
    tess_model *model = NULL;
    (void)state;
    tess_registry_init(&reg, TESS_BF16);
    expect_ok(tess_llama_create(&c, &s4096, &reg, &model));
    const tess_stage *block = &reg.stage[1];
    const double down = 2.0 * 4096.0 * 256.0 * (384.0 + 16.0);
    assert_true(block->cost.forward.model_flops - block->cost.again.model_flops == down);
    assert_true(block->cost.again.nbytes < block->cost.forward.nbytes);
    tess_model_destroy(&model);
    tess_registry_fini(&reg);
}

/* Adapters that share an input are one product on a device: planned so too, before there is a slab.
 */
static void test_adapters_in_a_row_are_planned_as_one(void **state)
{
    const tess_llm_config c = llama3(4096, 14336, 2, 32);
    tess_model_options o = s4096;
    tess_registry reg;
    tess_model *model = NULL;
    (void)state;
    o.kernels = tess_kernels_cuda_planned();
    tess_registry_init(&reg, TESS_BF16);
    expect_ok(tess_llama_create(&c, &o, &reg, &model));
    const tess_cost *cost = &reg.stage[1].cost.forward;
    const double of_input = 2.0 * 4096.0 * 4096.0 * 16.0, down = 2.0 * 4096.0 * 14336.0 * 16.0;
    /* q, k, v with 48 rows, gate and up with 32; o and down have 16 each. */
    assert_true(cost->product_flops[tess_cost_extent_class(4096, 48, 4096)] == 5.0 * of_input);
    assert_true(cost->product_flops[tess_cost_extent_class(4096, 16, 4096)] == of_input + down);
    tess_model_destroy(&model);
    tess_registry_fini(&reg);
}

static tess_status nf4_of(void *arg, const tess_param *p, bool is_linear, tess_codec source,
                          tess_codec *out)
{
    (void)arg;
    (void)p;
    *out = is_linear ? (tess_codec){.format = TESS_FORMAT_NF4, .block_numel = 64} : source;
    return TESS_OK;
}

/* On a device the gradient of an input is one product over the matrices of its group, which are
 * decoded together: gate above up above their adapters' A. All of them, both ways, are counted. */
static void test_matrices_of_a_group_are_decoded_together(void **state)
{
    const tess_llm_config c = llama3(4096, 14336, 2, 32);
    tess_model_options o = s4096;
    tess_registry reg;
    tess_model *model = NULL;
    (void)state;
    o.kernels = tess_kernels_cuda_planned();
    o.codec_of = nf4_of;
    tess_registry_init(&reg, TESS_BF16);
    expect_ok(tess_llama_create(&c, &o, &reg, &model));
    const tess_cost *forward = &reg.stage[1].cost.forward, *backward = &reg.stage[1].cost.backward;
    const double up = 2.0 * 14336.0 * (4096.0 + 32.0), down = 2.0 * 4096.0 * (14336.0 + 16.0);
    const double both = 2.0 * (2.0 * 14336.0 + 32.0) * 4096.0;
    assert_in_range((int64_t)forward->widest_nbytes, (int64_t)fmax(up, down),
                    (int64_t)(1.01 * fmax(up, down)));
    assert_in_range((int64_t)backward->widest_nbytes, (int64_t)both, (int64_t)(1.01 * both));
    const double weights = 2.0 * (2.5 * 4096.0 * 4096.0 + 3.0 * 4096.0 * 14336.0);
    assert_in_range((int64_t)forward->kept_nbytes, (int64_t)weights, (int64_t)(1.02 * weights));
    assert_in_range((int64_t)backward->kept_nbytes, (int64_t)weights, (int64_t)(1.02 * weights));
    tess_model_destroy(&model);
    tess_registry_fini(&reg);
}

static void test_what_is_behind_in_a_slab_is_known_before(void **state)
{
    const tess_llm_config c = llama3(200, 72, 2, 16); /* gaps: 16 x 72 is no whole block */
    tess_registry reg;
    tess_model *model = NULL;
    int behind_numel = 0;
    (void)state;
    tess_registry_init(&reg, TESS_BF16);
    expect_ok(tess_llama_create(&c, &s4096, &reg, &model));
    for (int i = 0; i < reg.param_numel; i++)
        for (int k = 0; k < reg.param_numel; k++) {
            const tess_param *a = &reg.param[i], *b = &reg.param[k];
            const bool is_behind = a->role == TESS_ROLE_TRAINABLE &&
                                   b->role == TESS_ROLE_TRAINABLE && a->unit_idx == b->unit_idx &&
                                   a->is_in_front == b->is_in_front &&
                                   b->slab_first_idx == a->slab_first_idx + a->numel;
            assert_int_equal(tess_registry_is_behind(&reg, i, k), is_behind);
            behind_numel += is_behind;
        }
    assert_in_range(behind_numel, 1, reg.param_numel - 1);
    tess_model_destroy(&model);
    tess_registry_fini(&reg);
}

/* A search of every vector through every code, encoder and decoder forward and backward: products
 * of weights that learn are three times the forward. */
static void test_rqvae_counts_search_and_perceptrons(void **state)
{
    static const int64_t hidden[] = {32};
    const tess_rqvae_config c = {.dim = 48,
                                 .code_dim = 16,
                                 .hidden = hidden,
                                 .hidden_numel = 1,
                                 .code_numel = 1000,
                                 .level_numel = 2,
                                 .commitment = 0.25,
                                 .estimator = TESS_ESTIMATOR_STRAIGHT};
    const tess_model_options o = {.compute_dt = TESS_BF16,
                                  .is_full = true,
                                  .is_random = true,
                                  .micro_batch = 24,
                                  .thread_numel = 1};
    tess_registry reg;
    tess_model *model = NULL;
    (void)state;
    tess_registry_init(&reg, TESS_BF16);
    expect_ok(tess_rqvae_create(&c, &o, &reg, &model));
    const tess_cost sum = step_cost(&reg);
    const double weights = 48.0 * 32.0 + 32.0 * 16.0, search = 2.0 * 24.0 * 1000.0 * 16.0 * 2.0;
    /* the input needs no gradient: one product less in the encoder */
    const double products = 2.0 * 24.0 * (2.0 * 3.0 * weights - 48.0 * 32.0);
    assert_true(sum.op[TESS_COST_SEARCH] == search);
    assert_true(sum.model_flops == products + search);
    assert_true(sum.unlisted_numel == 0.0);
    tess_model_destroy(&model);
    tess_registry_fini(&reg);
}

/* Rows of a sample that pass a weight of FLUX.1. */
static double rows_of(const char *name, double image_numel, double text_numel)
{
    static const char *const sample[] = {"time_text_embed.", ".norm1", ".norm.", "norm_out."};
    static const char *const text[] = {"context", ".add_", ".to_add_out"};
    for (int i = 0; i < TESS_NELEM(sample); i++)
        if (strstr(name, sample[i]) != NULL)
            return 1.0;
    if (strncmp(name, "single_", strlen("single_")) == 0)
        return image_numel + text_numel;
    for (int i = 0; i < TESS_NELEM(text); i++)
        if (strstr(name, text[i]) != NULL)
            return text_numel;
    return image_numel;
}

/*
 * A full-size FLUX.1 with adapters everywhere: its weights by the rows that pass them and the pairs
 * of its attention, but for inputs that need no gradient, which the formula counts as if they did.
 * Every kernel has a closed form.
 */
static void test_flux_counts_what_the_formula_says(void **state)
{
    flux_choice o = flux_tiny();
    tess_registry reg;
    tess_model *model = NULL;
    (void)state;
    o.config = (tess_flux_config){.in_channels = 64,
                                  .out_channels = 64,
                                  .double_numel = 19,
                                  .single_numel = 38,
                                  .head_numel = 24,
                                  .head_dim = 128,
                                  .text_dim = 4096,
                                  .pooled_dim = 768,
                                  .has_guidance = true,
                                  .axis_dim = {16, 56, 56}};
    o.dt = TESS_BF16;
    o.height = o.width = 64;
    o.text_numel = 512;
    o.targets = flux_every_target;
    tess_registry_init(&reg, TESS_BF16);
    expect_ok(flux_describe(&o, &reg, &model));
    const tess_cost sum = step_cost(&reg);
    const double samples = (double)o.sample_numel;
    const double image = 64.0 * 64.0, text = 512.0;
    double expected = 12.0 * (image + text) * (image + text) * 3072.0 * (19.0 + 38.0);
    for (int i = 0; i < reg.param_numel; i++)
        if (reg.param[i].shape_rank == 2)
            expected += rows_of(reg.param[i].name, image, text) * weight_flops(&reg.param[i]);
    expected *= samples;
    assert_true(sum.unlisted_numel == 0.0);
    assert_true(sum.model_flops <= expected * (1.0 + 1e-9));
    /* embedders of image, text, time, guidance and pooled text, forward once and not twice */
    const double least = 2.0 * samples * (4096.0 * 64.0 + 512.0 * 4096.0 + 3.0 * 3072.0) * 3072.0;
    if (sum.model_flops < expected - 2.0 * least)
        fail_msg("%.6g TFLOP counted, %.6g expected", sum.model_flops * 1e-12, expected * 1e-12);
    tess_model_destroy(&model);
    tess_registry_fini(&reg);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_llama3_has_known_flops_per_token),
        cmocka_unit_test(test_stages_sum_up_to_the_formula),
        cmocka_unit_test(test_recomputation_costs_less_than_forward),
        cmocka_unit_test(test_adapters_in_a_row_are_planned_as_one),
        cmocka_unit_test(test_matrices_of_a_group_are_decoded_together),
        cmocka_unit_test(test_what_is_behind_in_a_slab_is_known_before),
        cmocka_unit_test(test_rqvae_counts_search_and_perceptrons),
        cmocka_unit_test(test_flux_counts_what_the_formula_says),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
