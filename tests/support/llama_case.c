#include "tests/support/llama_case.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/rng.h"

static const uint64_t golden_seed = 0x5EED0123456789ABu;

static uint32_t fnv1a(const char *text)
{
    uint32_t h = 0x811C9DC5u;
    for (; *text != '\0'; text++)
        h = (h ^ (unsigned char)*text) * 0x01000193u;
    return h;
}

static bool ends_with(const char *text, const char *suffix)
{
    const size_t length = strlen(text), tail = strlen(suffix);
    return length >= tail && strcmp(text + length - tail, suffix) == 0;
}

/* As `weight` in tests/golden/make_llama.py: 8 significant bits, exact in bf16. */
void tess_llama_case_value(void *arg, const tess_param *param, float *value)
{
    (void)arg;
    const tess_rng rng =
        tess_rng_make(golden_seed, TESS_RNG_TEST, fnv1a(param->name) & 0xffffffu, 0);
    const bool is_norm =
        ends_with(param->name, "norm.weight") || ends_with(param->name, ".lora_magnitude_vector");
    const float scale = ends_with(param->name, ".bias") ? 0.125f : 0.25f;
    for (int64_t i = 0; i < param->numel; i++) {
        const int byte = (int)(tess_rng_u32(&rng, (uint64_t)i) >> 24);
        value[i] = is_norm ? 1.0f + (float)(byte / 4 - 32) / 128.0f
                           : (float)(2 * byte - 255) / 256.0f * scale;
    }
}

static tess_status parse_family(const char *text, tess_llm_family *out)
{
    for (int i = 0; i < TESS_LLM_FAMILY_NUMEL; i++) {
        if (strcmp(text, tess_llm_family_name((tess_llm_family)i)) == 0) {
            *out = (tess_llm_family)i;
            return TESS_OK;
        }
    }
    return TESS_FAIL(TESS_E_FORMAT, "golden: unknown model_type '%s'", text);
}

static int64_t integer(const tess_golden *g, const char *key)
{
    return (int64_t)tess_golden_number(g, key);
}

static bool flag(const tess_golden *g, const char *key)
{
    return tess_golden_number(g, key) != 0.0;
}

static tess_rope_config rope_of(const tess_golden *g)
{
    const char *type = tess_golden_text(g, "rope_type");
    const bool is_yarn = strcmp(type, "yarn") == 0;
    tess_rope_config rope = {.type = strcmp(type, "llama3") == 0   ? TESS_ROPE_LLAMA3
                                     : strcmp(type, "linear") == 0 ? TESS_ROPE_LINEAR
                                     : is_yarn                     ? TESS_ROPE_YARN
                                                                   : TESS_ROPE_DEFAULT,
                             .theta = tess_golden_number(g, "rope_theta"),
                             .factor = tess_golden_number(g, "rope_factor"),
                             .low_freq_factor = tess_golden_number(g, "rope_low"),
                             .high_freq_factor = tess_golden_number(g, "rope_high"),
                             .original_max_position = integer(g, "rope_original")};
    if (is_yarn) {
        rope.attention_factor = tess_golden_number(g, "rope_attention");
        rope.beta_fast = tess_golden_number(g, "rope_fast");
        rope.beta_slow = tess_golden_number(g, "rope_slow");
    }
    return rope;
}

/* The header repeats what the Python modules were built with; config.json is what transformers
 * wrote. */
static tess_status expected_config(const tess_golden *g, tess_llm_config *c)
{
    TESS_TRY(parse_family(tess_golden_text(g, "model_type"), &c->family));
    c->hidden_numel = integer(g, "hidden");
    c->intermediate_numel = integer(g, "intermediate");
    c->layer_numel = integer(g, "layers");
    c->head_numel = integer(g, "heads");
    c->kv_head_numel = integer(g, "kv_heads");
    c->head_dim = integer(g, "head_dim");
    c->vocab_numel = integer(g, "vocab");
    c->max_position = 512;
    c->rms_eps = tess_golden_number(g, "rms_eps");
    c->rope = rope_of(g);
    c->is_tied = flag(g, "tied");
    c->has_q_bias = flag(g, "q_bias");
    c->has_k_bias = flag(g, "k_bias");
    c->has_v_bias = flag(g, "v_bias");
    c->has_o_bias = flag(g, "o_bias");
    c->has_mlp_bias = flag(g, "mlp_bias");
    c->has_qk_norm = flag(g, "qk_norm");
    c->window = integer(g, "window");
    c->is_sliding[0] = flag(g, "sliding0");
    c->is_sliding[1] = flag(g, "sliding1");
    return TESS_OK;
}

#define SAME(field)                                                                                \
    TESS_CHECK(parsed->field == expected.field, TESS_E_FORMAT,                                     \
               "config.json: field '%s' was read as another value than the model was built with",  \
               #field)

static tess_status check_config(const tess_golden *g, const tess_llm_config *parsed)
{
    tess_llm_config expected = {0};
    TESS_TRY(expected_config(g, &expected));
    SAME(family);
    SAME(hidden_numel);
    SAME(intermediate_numel);
    SAME(layer_numel);
    SAME(head_numel);
    SAME(kv_head_numel);
    SAME(head_dim);
    SAME(vocab_numel);
    SAME(rms_eps);
    SAME(rope.type);
    SAME(rope.theta);
    SAME(is_tied);
    SAME(has_q_bias);
    SAME(has_k_bias);
    SAME(has_v_bias);
    SAME(has_o_bias);
    SAME(has_mlp_bias);
    SAME(has_qk_norm);
    SAME(max_position);
    for (int i = 0; i < 2; i++)
        TESS_CHECK(tess_llm_window(parsed, i) == tess_llm_window(&expected, i), TESS_E_FORMAT,
                   "config.json: window of layer %d was read as %" PRId64 ", expected %" PRId64, i,
                   tess_llm_window(parsed, i), tess_llm_window(&expected, i));
    if (expected.rope.type == TESS_ROPE_DEFAULT)
        return TESS_OK;
    SAME(rope.factor);
    if (expected.rope.type == TESS_ROPE_LINEAR)
        return TESS_OK;
    SAME(rope.low_freq_factor);
    SAME(rope.high_freq_factor);
    SAME(rope.original_max_position);
    SAME(rope.attention_factor);
    SAME(rope.beta_fast);
    SAME(rope.beta_slow);
    return TESS_OK;
}

static tess_status parse_config(const tess_golden *g, tess_llm_config *c)
{
    int64_t numel = 0;
    const char *text = tess_golden_tensor(g, "config.json", TESS_U8, &numel);
    TESS_CHECK(text != NULL, TESS_E_FORMAT, "golden: no config.json");
    tess_json *root = NULL;
    TESS_TRY(tess_json_parse("config.json", text, (size_t)numel, &root));
    tess_status st = tess_hf_config_parse(root, c);
    tess_json_destroy(&root);
    return st == TESS_OK ? check_config(g, c) : st;
}

static tess_status parse_adapter(const tess_golden *g, tess_peft_spec **out)
{
    int64_t numel = 0;
    const char *text = tess_golden_tensor(g, "adapter_config.json", TESS_U8, &numel);
    tess_json *root = NULL;
    if (text == NULL)
        return TESS_OK;
    TESS_TRY(tess_json_parse("adapter_config.json", text, (size_t)numel, &root));
    const tess_status st = tess_peft_config_parse(root, out, NULL);
    tess_json_destroy(&root);
    return st;
}

static void fill_options(const tess_golden *g, tess_run_options *o)
{
    *o = (tess_run_options){.compute_dt = TESS_F32,
                            .is_full = flag(g, "full"),
                            .lora_rank = (int)integer(g, "lora_rank"),
                            .lora_alpha = tess_golden_number(g, "lora_alpha"),
                            .has_head_lora = flag(g, "lora_head"),
                            .dropout = tess_golden_number(g, "dropout"),
                            .base = {.format = TESS_FORMAT_F32},
                            .source = {.format = TESS_FORMAT_F32},
                            .thread_numel = 1,
                            .sequence_length = integer(g, "sequence"),
                            .micro_batch = integer(g, "sequences"),
                            .seed = golden_seed};
    if (flag(g, "nf4"))
        o->base = (tess_codec){.format = TESS_FORMAT_NF4, .block_numel = 64};
}

static tess_status fill_batches(tess_llama_case *c)
{
    const int64_t rows = c->options.sequence_length * c->options.micro_batch;
    c->batch_numel = (int)integer(c->golden, "micro_batches");
    const char *const name[] = {"batch.tokens", "batch.labels", "batch.positions",
                                "batch.doc_start"};
    const int32_t *data[4];
    for (int i = 0; i < 4; i++) {
        int64_t numel = 0;
        data[i] = tess_golden_tensor(c->golden, name[i], TESS_I32, &numel);
        TESS_CHECK(data[i] != NULL && numel == rows * c->batch_numel, TESS_E_FORMAT,
                   "golden: tensor '%s' is missing or of another size", name[i]);
    }
    for (int m = 0; m < c->batch_numel; m++)
        c->batch[m] = (tess_token_batch){.token_numel = rows,
                                         .sequence_numel = c->options.micro_batch,
                                         .tokens = data[0] + m * rows,
                                         .labels = data[1] + m * rows,
                                         .positions = data[2] + m * rows,
                                         .doc_start = data[3] + m * rows};
    return TESS_OK;
}

tess_status tess_llama_case_open(const char *name, tess_llama_case *out)
{
    char path[256];
    memset(out, 0, sizeof *out);
    snprintf(path, sizeof path, "tests/golden/%s%s.golden",
             strchr(name, '/') != NULL ? "" : "llama/", name);
    TESS_TRY(tess_golden_open(path, &out->golden));
    TESS_CHECK(strtoull(tess_golden_text(out->golden, "seed"), NULL, 10) == golden_seed,
               TESS_E_FORMAT, "%s: made with another seed", path);
    TESS_TRY(parse_config(out->golden, &out->config));
    fill_options(out->golden, &out->options);
    TESS_TRY(parse_adapter(out->golden, &out->spec));
    out->options.spec = out->spec;
    return fill_batches(out);
}

void tess_llama_case_close(tess_llama_case *c)
{
    tess_peft_spec_destroy(&c->spec);
    tess_golden_close(&c->golden);
}

tess_status tess_llama_case_run(const tess_llama_case *c, tess_run_model **out)
{
    TESS_TRY(tess_run_model_create(&c->config, &c->options, out));
    const tess_status st = tess_run_model_fill(*out, tess_llama_case_value, NULL);
    if (st != TESS_OK)
        tess_run_model_destroy(out);
    return st;
}
