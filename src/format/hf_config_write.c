#include <inttypes.h>
#include <string.h>

#include "core/memory.h"
#include "format/hf_config.h"

static const char *const architecture[TESS_LLM_FAMILY_NUMEL] = {
#define X(name, text, architecture) [TESS_LLM_##name] = architecture,
    TESS_LLM_FAMILY_LIST(X)
#undef X
};

static const char *const rope_name[] = {
    [TESS_ROPE_LINEAR] = "linear", [TESS_ROPE_LLAMA3] = "llama3", [TESS_ROPE_YARN] = "yarn"};

static int64_t sliding_layers(const tess_llm_config *c)
{
    int64_t numel = 0;
    for (int64_t i = 0; i < c->layer_numel; i++)
        numel += c->is_sliding[i];
    return numel;
}

/* What the family's class cannot say must not be written as something else. */
static tess_status check_expressible(const tess_llm_config *c)
{
    const char *name = tess_llm_family_name(c->family);
    const bool is_qwen2 = c->family == TESS_LLM_QWEN2, is_qwen3 = c->family == TESS_LLM_QWEN3;
    const bool may_bias = c->family == TESS_LLM_LLAMA || is_qwen3;
    const bool is_qkv_even = c->has_q_bias == c->has_k_bias && c->has_q_bias == c->has_v_bias;
    const int64_t sliding = sliding_layers(c);
    TESS_TRY(tess_llm_config_check(c));
    TESS_CHECK(is_qkv_even && (is_qwen2   ? c->has_q_bias && !c->has_o_bias
                               : may_bias ? c->has_o_bias == c->has_q_bias
                                          : !c->has_q_bias && !c->has_o_bias),
               TESS_E_CONFIG,
               "a %s config.json cannot express attention biases q %d k %d v %d o %d", name,
               c->has_q_bias, c->has_k_bias, c->has_v_bias, c->has_o_bias);
    TESS_CHECK(!c->has_mlp_bias || c->family == TESS_LLM_LLAMA, TESS_E_CONFIG,
               "a %s config.json cannot express mlp biases; use llama", name);
    TESS_CHECK(c->has_qk_norm == is_qwen3, TESS_E_CONFIG,
               "a %s config.json cannot express has_qk_norm %d", name, c->has_qk_norm);
    TESS_CHECK(is_qwen2 || is_qwen3 || sliding == 0 ||
                   (c->family == TESS_LLM_MISTRAL && sliding == c->layer_numel),
               TESS_E_CONFIG,
               "a %s config.json cannot express %" PRId64 " sliding layers of %" PRId64, name,
               sliding, c->layer_numel);
    TESS_CHECK(c->family != TESS_LLM_LLAMA || c->hidden_numel % c->head_numel == 0, TESS_E_CONFIG,
               "transformers refuses a llama model whose hidden_size %" PRId64
               " is no multiple of its %" PRId64 " heads",
               c->hidden_numel, c->head_numel);
    return TESS_OK;
}

static tess_status put_extents(tess_json *root, const tess_llm_config *c)
{
    TESS_TRY(tess_json_add_i64(root, "hidden_size", c->hidden_numel));
    TESS_TRY(tess_json_add_i64(root, "intermediate_size", c->intermediate_numel));
    TESS_TRY(tess_json_add_i64(root, "num_hidden_layers", c->layer_numel));
    TESS_TRY(tess_json_add_i64(root, "num_attention_heads", c->head_numel));
    TESS_TRY(tess_json_add_i64(root, "num_key_value_heads", c->kv_head_numel));
    TESS_TRY(tess_json_add_i64(root, "head_dim", c->head_dim));
    TESS_TRY(tess_json_add_i64(root, "vocab_size", c->vocab_numel));
    if (c->max_position > 0)
        TESS_TRY(tess_json_add_i64(root, "max_position_embeddings", c->max_position));
    TESS_TRY(tess_json_add_f64(root, "rms_norm_eps", c->rms_eps));
    return tess_json_add_bool(root, "tie_word_embeddings", c->is_tied);
}

/* The older spelling: every version of transformers reads it. */
static tess_status put_rope(tess_json *root, const tess_rope_config *r)
{
    tess_json *scaling = NULL;
    TESS_TRY(tess_json_add_f64(root, "rope_theta", r->theta));
    if (r->type == TESS_ROPE_DEFAULT)
        return tess_json_add_null(root, "rope_scaling");
    TESS_TRY(tess_json_add_object(root, "rope_scaling", &scaling));
    TESS_TRY(tess_json_add_f64(scaling, "factor", r->factor));
    TESS_TRY(tess_json_add_string(scaling, "rope_type", rope_name[r->type]));
    if (r->type == TESS_ROPE_LINEAR)
        return TESS_OK;
    if (r->type == TESS_ROPE_LLAMA3) {
        TESS_TRY(tess_json_add_f64(scaling, "low_freq_factor", r->low_freq_factor));
        TESS_TRY(tess_json_add_f64(scaling, "high_freq_factor", r->high_freq_factor));
    } else {
        TESS_TRY(tess_json_add_f64(scaling, "attention_factor", r->attention_factor));
        TESS_TRY(tess_json_add_f64(scaling, "beta_fast", r->beta_fast));
        TESS_TRY(tess_json_add_f64(scaling, "beta_slow", r->beta_slow));
    }
    return tess_json_add_i64(scaling, "original_max_position_embeddings", r->original_max_position);
}

static tess_status put_layer_types(tess_json *root, const tess_llm_config *c)
{
    tess_json *types = NULL;
    TESS_TRY(tess_json_add_array(root, "layer_types", &types));
    for (int64_t i = 0; i < c->layer_numel; i++)
        TESS_TRY(tess_json_add_string(types, NULL,
                                      c->is_sliding[i] ? "sliding_attention" : "full_attention"));
    return TESS_OK;
}

static tess_status put_window(tess_json *root, const tess_llm_config *c)
{
    const int64_t sliding = sliding_layers(c);
    if (c->family == TESS_LLM_LLAMA)
        return TESS_OK;
    if (sliding > 0)
        TESS_TRY(tess_json_add_i64(root, "sliding_window", c->window));
    else
        TESS_TRY(tess_json_add_null(root, "sliding_window"));
    if (c->family == TESS_LLM_MISTRAL)
        return TESS_OK;
    TESS_TRY(tess_json_add_bool(root, "use_sliding_window", sliding > 0));
    TESS_TRY(tess_json_add_i64(root, "max_window_layers", c->layer_numel - sliding));
    return put_layer_types(root, c);
}

static tess_status put_ids(tess_json *root, const tess_llm_config *c)
{
    tess_json *list = NULL;
    if (c->bos_id >= 0)
        TESS_TRY(tess_json_add_i64(root, "bos_token_id", c->bos_id));
    else
        TESS_TRY(tess_json_add_null(root, "bos_token_id"));
    if (c->eos_numel == 0)
        return tess_json_add_null(root, "eos_token_id");
    if (c->eos_numel == 1)
        return tess_json_add_i64(root, "eos_token_id", c->eos_id[0]);
    TESS_TRY(tess_json_add_array(root, "eos_token_id", &list));
    for (int i = 0; i < c->eos_numel; i++)
        TESS_TRY(tess_json_add_i64(list, NULL, c->eos_id[i]));
    return TESS_OK;
}

static tess_status put_all(tess_json *root, const tess_llm_config *c, const char *torch_dtype)
{
    tess_json *list = NULL;
    TESS_TRY(tess_json_add_string(root, "model_type", tess_llm_family_name(c->family)));
    TESS_TRY(tess_json_add_array(root, "architectures", &list));
    TESS_TRY(tess_json_add_string(list, NULL, architecture[c->family]));
    TESS_TRY(tess_json_add_string(root, "hidden_act", "silu"));
    TESS_TRY(tess_json_add_f64(root, "attention_dropout", 0.0));
    TESS_TRY(tess_json_add_string(root, "torch_dtype", torch_dtype));
    TESS_TRY(put_extents(root, c));
    if (c->family == TESS_LLM_LLAMA || c->family == TESS_LLM_QWEN3)
        TESS_TRY(tess_json_add_bool(root, "attention_bias", c->has_q_bias));
    if (c->family == TESS_LLM_LLAMA)
        TESS_TRY(tess_json_add_bool(root, "mlp_bias", c->has_mlp_bias));
    TESS_TRY(put_rope(root, &c->rope));
    TESS_TRY(put_window(root, c));
    return put_ids(root, c);
}

tess_status tess_hf_config_json(const tess_llm_config *config, const char *torch_dtype,
                                tess_json **out)
{
    tess_json *root = NULL;
    TESS_CHECK(strcmp(torch_dtype, "bfloat16") == 0 || strcmp(torch_dtype, "float32") == 0,
               TESS_E_ARG, "torch_dtype '%s': expected bfloat16 or float32", torch_dtype);
    TESS_TRY(check_expressible(config));
    TESS_TRY(tess_json_create_object(&root));
    const tess_status st = put_all(root, config, torch_dtype);
    if (st != TESS_OK)
        tess_json_destroy(&root);
    *out = root;
    return st;
}

tess_status tess_hf_config_write(tess_io *io, const char *dir, const tess_llm_config *config,
                                 const char *torch_dtype)
{
    tess_json *root = NULL;
    char *path = NULL;
    TESS_TRY(tess_hf_config_json(config, torch_dtype, &root));
    tess_status st = tess_asprintf(&path, "%s/config.json", dir);
    if (st == TESS_OK)
        st = tess_json_write(io, path, root, 2);
    tess_free(path);
    tess_json_destroy(&root);
    return st;
}
