/* What the Llama family registers: units, tensors, stages, memory; and what it refuses. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/arith.h"
#include "core/memory.h"
#include "tests/support/llama_case.h"

static void expect_ok(tess_status st)
{
    if (st != TESS_OK)
        fail_msg("%s: %s\n%s", tess_status_name(st), tess_error_message(), tess_error_trace_text());
}

static const tess_param *param_of(const tess_registry *reg, const char *name)
{
    const int i = tess_registry_find(reg, name);
    if (i < 0)
        fail_msg("no tensor '%s'", name);
    return &reg->param[i];
}

static const tess_llm_config small = {.family = TESS_LLM_LLAMA,
                                      .hidden_numel = 64,
                                      .intermediate_numel = 96,
                                      .layer_numel = 3,
                                      .head_numel = 4,
                                      .kv_head_numel = 2,
                                      .head_dim = 16,
                                      .vocab_numel = 256,
                                      .rms_eps = 1e-5,
                                      .rope = {.theta = 1e4, .factor = 1.0},
                                      .bos_id = -1};

static tess_status lora_rank8(void *arg, const char *path, bool is_head, tess_lora_choice *out)
{
    (void)arg;
    (void)path;
    *out = (tess_lora_choice){.rank = is_head ? 0 : 8, .scale = 2.0};
    return TESS_OK;
}

static tess_status nf4_linears(void *arg, const tess_param *p, bool is_linear, tess_codec source,
                               tess_codec *out)
{
    (void)arg;
    *out = is_linear && strstr(p->name, "lm_head") == NULL
               ? (tess_codec){.format = TESS_FORMAT_NF4, .block_numel = 64, .double_quant = true}
               : source;
    return TESS_OK;
}

static tess_model_options lora_options(void)
{
    const tess_model_options o = {.compute_dt = TESS_BF16,
                                  .sequence_length = 40,
                                  .micro_batch = 2,
                                  .thread_numel = 2,
                                  .lora_plus_ratio = 4.0,
                                  .lora_of = lora_rank8,
                                  .codec_of = nf4_linears};
    return o;
}

static void test_create_untied_registers_units_and_stages(void **state)
{
    (void)state;
    tess_registry reg;
    tess_model *model = NULL;
    tess_model_options o = lora_options();
    tess_registry_init(&reg, TESS_BF16);
    expect_ok(tess_llama_create(&small, &o, &reg, &model));
    const char *const unit[] = {"embed", "blk.0", "blk.1", "blk.2", "head"};
    assert_int_equal(reg.unit_numel, 5);
    assert_int_equal(reg.stage_numel, 5);
    for (int i = 0; i < 5; i++) {
        assert_string_equal(reg.unit[i].name, unit[i]);
        assert_int_equal(reg.stage[i].unit_idx, i);
        assert_int_equal(reg.stage[i].output_nbytes, i < 4 ? 80 * 64 * 2 : 0);
        assert_true(reg.stage[i].is_fused_loss == (i == 4));
    }
    assert_int_equal(reg.param_numel, 1 + 3 * (9 + 14) + 2);
    tess_model_destroy(&model);
    assert_null(model);
    tess_registry_fini(&reg);
}

static void test_create_lora_registers_roles_and_init(void **state)
{
    (void)state;
    tess_registry reg;
    tess_model *model = NULL;
    tess_model_options o = lora_options();
    tess_registry_init(&reg, TESS_BF16);
    expect_ok(tess_llama_create(&small, &o, &reg, &model));
    const tess_param *w = param_of(&reg, "model.layers.1.mlp.down_proj.weight");
    assert_int_equal(w->role, TESS_ROLE_FROZEN);
    assert_int_equal(w->codec.format, TESS_FORMAT_NF4);
    assert_int_equal(w->init, TESS_INIT_SOURCE);
    assert_true(w->shape[0] == 64 && w->shape[1] == 96);
    assert_true(fabs(w->random_scale - 0.02 / sqrt(6.0)) < 1e-15);
    const tess_param *norm = param_of(&reg, "model.layers.1.input_layernorm.weight");
    assert_int_equal(norm->codec.format, TESS_FORMAT_BF16);
    assert_int_equal(norm->random_init, TESS_INIT_ONE);
    assert_false(norm->has_weight_decay);
    const tess_param *a = param_of(&reg, "model.layers.1.mlp.down_proj.lora_A.weight");
    const tess_param *b = param_of(&reg, "model.layers.1.mlp.down_proj.lora_B.weight");
    assert_true(a->role == TESS_ROLE_TRAINABLE && b->role == TESS_ROLE_TRAINABLE);
    assert_true(a->shape[0] == 8 && a->shape[1] == 96 && b->shape[0] == 64 && b->shape[1] == 8);
    assert_int_equal(a->init, TESS_INIT_UNIFORM);
    assert_true(fabs(a->init_scale - 1.0 / sqrt(96.0)) < 1e-15 && a->learning_rate_ratio == 1.0);
    assert_true(b->init == TESS_INIT_ZERO && b->learning_rate_ratio == 4.0);
    assert_true(a->has_weight_decay && b->has_weight_decay);
    assert_int_equal(param_of(&reg, "lm_head.weight")->codec.format, TESS_FORMAT_BF16);
    assert_int_equal(tess_registry_find(&reg, "lm_head.lora_A.weight"), -1);
    tess_model_destroy(&model);
    tess_registry_fini(&reg);
}

static void test_create_tied_full_shares_one_unit(void **state)
{
    (void)state;
    tess_registry reg;
    tess_model *model = NULL;
    tess_llm_config config = small;
    config.is_tied = true;
    tess_model_options o = lora_options();
    o.is_full = o.is_random = true;
    tess_registry_init(&reg, TESS_BF16);
    expect_ok(tess_llama_create(&config, &o, &reg, &model));
    assert_int_equal(reg.unit_numel, 4);
    assert_int_equal(reg.stage_numel, 5);
    assert_int_equal(reg.stage[4].unit_idx, 0);
    assert_int_equal(reg.unit[0].stage_numel, 2);
    assert_int_equal(param_of(&reg, "model.norm.weight")->unit_idx, 0);
    assert_int_equal(tess_registry_find(&reg, "lm_head.weight"), -1);
    for (int i = 0; i < reg.param_numel; i++) {
        assert_int_equal(reg.param[i].role, TESS_ROLE_TRAINABLE);
        assert_true(reg.param[i].init != TESS_INIT_SOURCE);
    }
    assert_int_equal(reg.unit[0].frozen_nbytes, 0);
    tess_model_destroy(&model);
    tess_registry_fini(&reg);
}

/* docs of the memory: every buffer starts at a multiple of 256 bytes, the last ends where it ends.
 */
static void test_create_saved_memory_matches_formula(void **state)
{
    (void)state;
    tess_registry reg;
    tess_model *model = NULL;
    tess_model_options o = lora_options();
    tess_registry_init(&reg, TESS_BF16);
    expect_ok(tess_llama_create(&small, &o, &reg, &model));
    const int64_t t = 80, h = 64, q = 64, kv = 32, inner = 96, r = 8;
    const int64_t bytes[] = {2 * t * h,     2 * t * h,     4 * t,      4 * t,     2 * t * h,
                             2 * t * q,     2 * t * kv,    2 * t * kv, 2 * t * q, 4 * 4 * t,
                             2 * t * r,     2 * t * r,     2 * t * r,  2 * t * r, 2 * t * inner,
                             2 * t * inner, 2 * t * inner, 2 * t * r,  2 * t * r, 2 * t * r};
    int64_t total = 0;
    for (int i = 0; i < TESS_NELEM(bytes); i++)
        total = tess_round_up(total, 256) + bytes[i];
    assert_int_equal(reg.stage[1].saved_nbytes, total);
    assert_int_equal(reg.stage[0].saved_nbytes, 0);
    assert_int_equal(reg.stage[4].saved_nbytes, 0);
    /* Logits of a chunk of rows, never of all rows: f32 and their gradient in bf16. */
    const size_t chunk_nbytes = 48 * 256 * (4 + 2);
    assert_true(reg.stage[4].work_nbytes >= chunk_nbytes);
    tess_model_destroy(&model);
    tess_registry_fini(&reg);
}

static void expect_refused(const tess_llm_config *config, const tess_model_options *o,
                           tess_status code, const char *part)
{
    tess_registry reg;
    tess_model *model = NULL;
    tess_error_clear();
    tess_registry_init(&reg, TESS_BF16);
    assert_int_equal(tess_llama_create(config, o, &reg, &model), code);
    assert_null(model);
    if (strstr(tess_error_message(), part) == NULL)
        fail_msg("message '%s' lacks '%s'", tess_error_message(), part);
    tess_registry_fini(&reg);
    tess_error_clear();
}

static tess_status lora_negative(void *arg, const char *path, bool is_head, tess_lora_choice *out)
{
    (void)arg;
    (void)path;
    (void)is_head;
    *out = (tess_lora_choice){.rank = -2, .scale = 1.0};
    return TESS_OK;
}

static tess_status nf4_odd_block(void *arg, const tess_param *p, bool is_linear, tess_codec source,
                                 tess_codec *out)
{
    (void)arg;
    (void)p;
    *out = is_linear ? (tess_codec){.format = TESS_FORMAT_NF4, .block_numel = 48} : source;
    return TESS_OK;
}

static void test_create_bad_options_are_refused(void **state)
{
    (void)state;
    tess_model_options o = lora_options();
    o.dropout = 1.0;
    expect_refused(&small, &o, TESS_E_CONFIG, "lora.dropout: expected 0 <= p < 1, found 1");
    o = lora_options();
    o.sequence_length = 0;
    expect_refused(&small, &o, TESS_E_ARG, "sequence length 0");
    o = lora_options();
    o.compute_dt = TESS_F32;
    expect_refused(&small, &o, TESS_E_STATE, "expected an empty one of dtype f32, found bf16");
    o.compute_dt = TESS_F16;
    expect_refused(&small, &o, TESS_E_DTYPE, "expected f32 or bf16, found f16");
    o = lora_options();
    o.lora_of = lora_negative;
    expect_refused(&small, &o, TESS_E_CONFIG,
                   "adapter of 'model.layers.0.self_attn.q_proj': rank -2");
    o = lora_options();
    o.codec_of = nf4_odd_block;
    expect_refused(&small, &o, TESS_E_UNSUPPORTED, "nf4 block size 48");
    o = lora_options();
    o.sequence_length = INT64_MAX / 2;
    o.micro_batch = 3;
    expect_refused(&small, &o, TESS_E_RANGE, "overflows");
    tess_llm_config config = small;
    config.kv_head_numel = 3;
    o = lora_options();
    expect_refused(&config, &o, TESS_E_CONFIG, "");
}

static tess_stage_call block_call(tess_run_model *run, const tess_token_batch *batch)
{
    const tess_stage *stage = &run->reg.stage[1];
    const tess_stage_call call = {
        .registry = &run->reg,
        .kernels = &tess_kernels_cpu,
        .device = &run->device.base,
        .stream = &run->stream,
        .stage_idx = 1,
        .mode = TESS_CALL_TRAIN,
        .batch = batch,
        .frozen = run->frozen[stage->unit_idx],
        .trainable = run->trainable[stage->unit_idx],
        .grad = run->grad[stage->unit_idx],
        .input = tess_view_host(run->output[0], (int64_t)stage->output_nbytes, TESS_U8_OPAQUE),
        .output = tess_view_host(run->output[1], (int64_t)stage->output_nbytes, TESS_U8_OPAQUE),
        .saved = tess_view_host(run->saved[1], (int64_t)stage->saved_nbytes, TESS_U8_OPAQUE),
        .work = tess_view_host(run->work, (int64_t)stage->work_nbytes, TESS_U8_OPAQUE),
        .d_output = tess_view_host(run->d_ping, (int64_t)stage->output_nbytes, TESS_U8_OPAQUE),
        .d_input = tess_view_host(run->d_pong, (int64_t)stage->output_nbytes, TESS_U8_OPAQUE)};
    return call;
}

static void expect_call_refused(tess_run_model *run, const tess_stage_call *call, bool is_backward,
                                tess_status code, const char *part)
{
    const tess_stage_ops *ops = tess_model_stage_ops(run->model);
    tess_error_clear();
    assert_int_equal(
        (is_backward ? ops->backward : ops->forward)(tess_model_self(run->model), call), code);
    if (strstr(tess_error_message(), part) == NULL)
        fail_msg("message '%s' lacks '%s'", tess_error_message(), part);
    tess_error_clear();
}

static void test_stage_call_with_one_byte_less_is_refused(void **state)
{
    (void)state;
    tess_llama_case c;
    tess_run_model *run = NULL;
    double loss[2];
    const int64_t number[2] = {0, 1};
    expect_ok(tess_llama_case_open("qwen3", &c));
    c.options.dropout = 0.1;
    expect_ok(tess_llama_case_run(&c, &run));
    expect_ok(tess_run_model_step(run, c.batch, number, 2, loss));
    const tess_stage_call good = block_call(run, &c.batch[0]);
    tess_stage_call call = good;
    /* The peak of a block is in its backward, and the plan is tight. */
    call.work.numel--;
    expect_call_refused(run, &call, true, TESS_E_STATE, "stage memory 'work'");
    call = good;
    call.saved.numel--;
    expect_call_refused(run, &call, false, TESS_E_STATE, "stage memory 'saved'");
    call = good;
    call.input.numel--;
    expect_call_refused(run, &call, false, TESS_E_ARG, "stage view 'input'");
    call = good;
    call.d_output.numel--;
    expect_call_refused(run, &call, true, TESS_E_ARG, "stage view 'd_output'");
    call = good;
    call.stage_idx = 9;
    expect_call_refused(run, &call, false, TESS_E_ARG, "stage 9 of 4");
    tess_token_batch longer = c.batch[0];
    longer.token_numel++;
    call = good;
    call.batch = &longer;
    expect_call_refused(run, &call, false, TESS_E_ARG, "expected 1 to 48 as planned");
    /* A gradient that nobody reads may be left out. */
    call = good;
    call.d_input.numel = 0;
    expect_ok(tess_model_stage_ops(run->model)->backward(tess_model_self(run->model), &call));
    tess_run_model_destroy(&run);
    tess_llama_case_close(&c);
}

static void test_create_70b_needs_no_weights(void **state)
{
    (void)state;
    tess_llm_config config = small;
    config.hidden_numel = 8192;
    config.intermediate_numel = 28672;
    config.layer_numel = 80;
    config.head_numel = 64;
    config.kv_head_numel = 8;
    config.head_dim = 128;
    config.vocab_numel = 128256;
    tess_model_options o = lora_options();
    o.sequence_length = 4096;
    tess_registry reg;
    tess_model *model = NULL;
    tess_registry_init(&reg, TESS_BF16);
    expect_ok(tess_llama_create(&config, &o, &reg, &model));
    int64_t total = 0;
    for (int i = 0; i < reg.param_numel; i++)
        total += reg.param[i].role == TESS_ROLE_FROZEN ? reg.param[i].numel : 0;
    assert_true(total == 70553706496); /* Llama-3 70B */
    tess_model_destroy(&model);
    tess_registry_fini(&reg);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_create_untied_registers_units_and_stages),
        cmocka_unit_test(test_create_lora_registers_roles_and_init),
        cmocka_unit_test(test_create_tied_full_shares_one_unit),
        cmocka_unit_test(test_create_saved_memory_matches_formula),
        cmocka_unit_test(test_create_bad_options_are_refused),
        cmocka_unit_test(test_stage_call_with_one_byte_less_is_refused),
        cmocka_unit_test(test_create_70b_needs_no_weights),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
