#include "format/hf_config.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "format/text_priv.h"

static const struct {
    const char *name;
    const char *architecture;
} family_table[TESS_LLM_FAMILY_NUMEL] = {
#define X(name, text, architecture) [TESS_LLM_##name] = {text, architecture},
    TESS_LLM_FAMILY_LIST(X)
#undef X
};

static const char *const rope_name[] = {[TESS_ROPE_DEFAULT] = "default",
                                        [TESS_ROPE_LINEAR] = "linear",
                                        [TESS_ROPE_LLAMA3] = "llama3",
                                        [TESS_ROPE_YARN] = "yarn"};

const char *tess_llm_family_name(tess_llm_family family)
{
    return (unsigned)family < TESS_LLM_FAMILY_NUMEL ? family_table[family].name : "unknown";
}

int64_t tess_llm_window(const tess_llm_config *config, int64_t layer_idx)
{
    return config->is_sliding[layer_idx] ? config->window : 0;
}

/* ---- checks ---- */

static tess_status check_extents(const tess_llm_config *c, tess_status code, const char *source)
{
    const struct {
        const char *name;
        int64_t value, least, most;
    } rows[] = {
        {"hidden_size", c->hidden_numel, 1, 1 << 20},
        {"intermediate_size", c->intermediate_numel, 1, 1 << 22},
        {"num_hidden_layers", c->layer_numel, 1, TESS_LLM_LAYER_MAX},
        {"num_attention_heads", c->head_numel, 1, 1 << 14},
        {"num_key_value_heads", c->kv_head_numel, 1, 1 << 14},
        {"head_dim", c->head_dim, 2, TESS_LLM_HEAD_DIM_MAX},
        {"vocab_size", c->vocab_numel, 1, 1 << 24},
        {"max_position_embeddings", c->max_position, 0, INT64_C(1) << 40},
        {"sliding_window", c->window, 0, INT64_C(1) << 40},
    };
    for (int i = 0; i < TESS_NELEM(rows); i++)
        TESS_CHECK(rows[i].value >= rows[i].least && rows[i].value <= rows[i].most, code,
                   "'%s': %s: expected %" PRId64 " to %" PRId64 ", found %" PRId64, source,
                   rows[i].name, rows[i].least, rows[i].most, rows[i].value);
    TESS_CHECK(c->head_numel % c->kv_head_numel == 0, code,
               "'%s': num_key_value_heads: %" PRId64
               " does not divide num_attention_heads %" PRId64,
               source, c->kv_head_numel, c->head_numel);
    TESS_CHECK(c->head_dim % 2 == 0, code,
               "'%s': head_dim: expected an even number (rotary pairs), found %" PRId64, source,
               c->head_dim);
    return TESS_OK;
}

static tess_status check_rope(const tess_rope_config *r, tess_status code, const char *source)
{
    TESS_CHECK(isfinite(r->theta) && r->theta > 0.0, code,
               "'%s': rope_theta: expected a positive number, found %g", source, r->theta);
    if (r->type == TESS_ROPE_DEFAULT)
        return TESS_OK;
    TESS_CHECK(isfinite(r->factor) && r->factor >= 1.0, code,
               "'%s': rope factor: expected a number of at least 1, found %g", source, r->factor);
    if (r->type == TESS_ROPE_LINEAR)
        return TESS_OK;
    if (r->type == TESS_ROPE_YARN) {
        TESS_CHECK(isfinite(r->attention_factor) && r->attention_factor > 0.0, code,
                   "'%s': rope attention_factor: expected a positive number, found %g", source,
                   r->attention_factor);
        TESS_CHECK(isfinite(r->beta_fast) && r->beta_slow > 0.0 && r->beta_fast >= r->beta_slow &&
                       r->theta > 1.0,
                   code,
                   "'%s': rope beta_slow %g and beta_fast %g: expected 0 < slow <= fast, and a "
                   "rope_theta above 1",
                   source, r->beta_slow, r->beta_fast);
    } else {
        TESS_CHECK(isfinite(r->high_freq_factor) && r->low_freq_factor > 0.0 &&
                       r->high_freq_factor > r->low_freq_factor,
                   code,
                   "'%s': rope low_freq_factor %g and high_freq_factor %g: expected 0 < low < high",
                   source, r->low_freq_factor, r->high_freq_factor);
    }
    TESS_CHECK(r->original_max_position >= 1 && r->original_max_position <= INT64_C(1) << 40, code,
               "'%s': rope original_max_position_embeddings: expected a positive number, found "
               "%" PRId64,
               source, r->original_max_position);
    return TESS_OK;
}

static tess_status check_config(const tess_llm_config *c, tess_status code, const char *source)
{
    TESS_CHECK((unsigned)c->family < TESS_LLM_FAMILY_NUMEL, code, "'%s': unknown family %d", source,
               (int)c->family);
    TESS_TRY(check_extents(c, code, source));
    TESS_TRY(check_rope(&c->rope, code, source));
    TESS_CHECK(c->rms_eps > 0.0 && c->rms_eps < 1.0, code,
               "'%s': rms_norm_eps: expected a number between 0 and 1, found %g", source,
               c->rms_eps);
    TESS_CHECK(c->eos_numel >= 0 && c->eos_numel <= TESS_LLM_EOS_MAX, code,
               "'%s': eos_token_id: %d ids, at most %d are accepted", source, c->eos_numel,
               TESS_LLM_EOS_MAX);
    for (int64_t i = 0; i < c->layer_numel; i++)
        TESS_CHECK(!c->is_sliding[i] || c->window > 0, code,
                   "'%s': layer %" PRId64 " has sliding attention, but there is no sliding_window",
                   source, i);
    return TESS_OK;
}

tess_status tess_llm_config_check(const tess_llm_config *config)
{
    return check_config(config, TESS_E_CONFIG, "model configuration");
}

/* ---- reading ---- */

static tess_status unsupported(const tess_json *root, const char *key, const char *expected)
{
    char where[512];
    tess_json_where(tess_json_find(root, key), where, sizeof where);
    return TESS_FAIL(TESS_E_UNSUPPORTED, "%s: not supported, expected %s", where, expected);
}

static tess_status read_family(const tess_json *root, tess_llm_family *out)
{
    const char *text = NULL;
    char where[512], tame[64];
    TESS_TRY(tess_json_get_string(root, "model_type", &text));
    for (int i = 0; i < TESS_LLM_FAMILY_NUMEL; i++) {
        if (strcmp(family_table[i].name, text) == 0) {
            *out = (tess_llm_family)i;
            return TESS_OK;
        }
    }
    tess_json_where(tess_json_find(root, "model_type"), where, sizeof where);
    return TESS_FAIL(TESS_E_UNSUPPORTED,
                     "%s: '%s' is not supported, expected llama, mistral, qwen2 or qwen3", where,
                     tess_text_tame(text, tame, sizeof tame));
}

/* Weights of bitsandbytes say themselves how they are packed. */
static tess_status check_quantization(const tess_json *root)
{
    const tess_json *quantization = NULL;
    const char *method = NULL;
    char where[512], tame[64];
    TESS_TRY(tess_json_opt_object(root, "quantization_config", &quantization));
    if (quantization == NULL)
        return TESS_OK;
    TESS_TRY(tess_json_opt_string(quantization, "quant_method", "", &method));
    if (strcmp(method, "bitsandbytes") == 0)
        return TESS_OK;
    tess_json_where(quantization, where, sizeof where);
    return TESS_FAIL(TESS_E_UNSUPPORTED,
                     "%s: weights packed by '%s' are not supported, expected those of "
                     "bitsandbytes; take the model in 16 bits, Tessera quantizes while it loads",
                     where, tess_text_tame(method, tame, sizeof tame));
}

/* Fields whose other values would change the arithmetic. */
static tess_status refuse_others(const tess_json *root)
{
    const char *text = NULL;
    const tess_json *layers = NULL;
    int64_t number = 0;
    double real = 0.0;
    bool is_causal = true;
    TESS_TRY(tess_json_opt_string(root, "hidden_act", "silu", &text));
    if (strcmp(text, "silu") != 0)
        return unsupported(root, "hidden_act", "silu");
    TESS_TRY(tess_json_opt_i64(root, "pretraining_tp", 1, &number));
    if (number != 1)
        return unsupported(root, "pretraining_tp", "1");
    TESS_TRY(tess_json_opt_f64(root, "attention_dropout", 0.0, &real));
    if (real != 0.0)
        return unsupported(root, "attention_dropout", "0");
    TESS_TRY(tess_json_opt_f64(root, "partial_rotary_factor", 1.0, &real));
    if (real != 1.0)
        return unsupported(root, "partial_rotary_factor", "1");
    TESS_TRY(tess_json_opt_bool(root, "is_causal", true, &is_causal));
    if (!is_causal)
        return unsupported(root, "is_causal", "true");
    TESS_TRY(tess_json_opt_object(root, "per_layer_config", &layers));
    if (layers != NULL && tess_json_numel(layers) > 0)
        return unsupported(root, "per_layer_config", "the same fields for every layer");
    return check_quantization(root);
}

static tess_status read_extents(const tess_json *root, tess_llm_config *c)
{
    TESS_TRY(tess_json_get_i64(root, "hidden_size", &c->hidden_numel));
    TESS_TRY(tess_json_get_i64(root, "intermediate_size", &c->intermediate_numel));
    TESS_TRY(tess_json_get_i64(root, "num_hidden_layers", &c->layer_numel));
    TESS_TRY(tess_json_get_i64(root, "num_attention_heads", &c->head_numel));
    TESS_TRY(tess_json_get_i64(root, "vocab_size", &c->vocab_numel));
    TESS_TRY(tess_json_opt_i64(root, "max_position_embeddings", 0, &c->max_position));
    TESS_TRY(tess_json_opt_f64(root, "rms_norm_eps", 1e-6, &c->rms_eps));
    TESS_TRY(tess_json_opt_bool(root, "tie_word_embeddings", false, &c->is_tied));
    return TESS_OK;
}

/* Defaults of an absent field are those of the family's class in transformers. */
static tess_status read_heads(const tess_json *root, tess_llm_config *c)
{
    char where[512];
    int64_t kv_absent = c->head_numel;
    if (tess_json_find(root, "num_key_value_heads") == NULL) {
        if (c->family == TESS_LLM_MISTRAL)
            kv_absent = 8;
        if (c->family == TESS_LLM_QWEN2 || c->family == TESS_LLM_QWEN3)
            kv_absent = 32;
    }
    TESS_TRY(tess_json_opt_i64(root, "num_key_value_heads", kv_absent, &c->kv_head_numel));
    TESS_TRY(
        tess_json_opt_i64(root, "head_dim", c->family == TESS_LLM_QWEN3 ? 128 : 0, &c->head_dim));
    const tess_json *stated = tess_json_find(root, "head_dim");
    if (c->head_dim != 0 || (stated != NULL && tess_json_type_of(stated) != TESS_JSON_NULL))
        return TESS_OK;
    tess_json_where(root, where, sizeof where);
    TESS_CHECK(c->head_numel > 0 && c->hidden_numel % c->head_numel == 0, TESS_E_FORMAT,
               "%s: head_dim is not stated and hidden_size %" PRId64
               " is no multiple of num_attention_heads %" PRId64,
               where, c->hidden_numel, c->head_numel);
    c->head_dim = c->hidden_numel / c->head_numel;
    return TESS_OK;
}

static tess_status read_biases(const tess_json *root, tess_llm_config *c)
{
    bool attention = false;
    c->has_qk_norm = c->family == TESS_LLM_QWEN3;
    if (c->family == TESS_LLM_QWEN2)
        c->has_q_bias = c->has_k_bias = c->has_v_bias = true;
    if (c->family == TESS_LLM_LLAMA || c->family == TESS_LLM_QWEN3) {
        TESS_TRY(tess_json_opt_bool(root, "attention_bias", false, &attention));
        c->has_q_bias = c->has_k_bias = c->has_v_bias = c->has_o_bias = attention;
    }
    if (c->family == TESS_LLM_LLAMA)
        TESS_TRY(tess_json_opt_bool(root, "mlp_bias", false, &c->has_mlp_bias));
    return TESS_OK;
}

static tess_status read_rope_type(const tess_json *object, tess_rope_type *out)
{
    const char *old_name = NULL, *text = NULL;
    char where[512], tame[64];
    TESS_TRY(tess_json_opt_string(object, "type", "default", &old_name));
    TESS_TRY(tess_json_opt_string(object, "rope_type", old_name, &text));
    for (int i = 0; i < TESS_NELEM(rope_name); i++) {
        if (strcmp(rope_name[i], text) == 0) {
            *out = (tess_rope_type)i;
            return TESS_OK;
        }
    }
    tess_json_where(object, where, sizeof where);
    return TESS_FAIL(
        TESS_E_UNSUPPORTED,
        "%s: rope type '%s' is not supported, expected default, linear, llama3 or yarn", where,
        tess_text_tame(text, tame, sizeof tame));
}

double tess_rope_yarn_factor(double factor) { return factor > 1.0 ? 0.1 * log(factor) + 1.0 : 1.0; }

/* Zero and null count as absent, as in transformers. */
static tess_status read_beta(const tess_json *object, const char *key, double absent, double *out)
{
    TESS_TRY(tess_json_opt_f64(object, key, absent, out));
    *out = *out == 0.0 ? absent : *out;
    return TESS_OK;
}

static tess_status read_yarn(const tess_json *object, int64_t max_position, tess_rope_config *r)
{
    static const char *const refused[] = {"mscale", "mscale_all_dim"}; /* DeepSeek's */
    bool is_truncated = true;
    for (int i = 0; i < TESS_NELEM(refused); i++) {
        double value = 0.0;
        TESS_TRY(tess_json_opt_f64(object, refused[i], 0.0, &value));
        if (value != 0.0)
            return unsupported(object, refused[i], "attention_factor, or nothing");
    }
    TESS_TRY(tess_json_opt_bool(object, "truncate", true, &is_truncated));
    if (!is_truncated)
        return unsupported(object, "truncate", "true");
    TESS_TRY(tess_json_opt_i64(object, "original_max_position_embeddings", max_position,
                               &r->original_max_position));
    TESS_TRY(tess_json_opt_f64(object, "attention_factor", tess_rope_yarn_factor(r->factor),
                               &r->attention_factor));
    TESS_TRY(read_beta(object, "beta_fast", 32.0, &r->beta_fast));
    return read_beta(object, "beta_slow", 1.0, &r->beta_slow);
}

/* One rope object, old (rope_scaling) or new (rope_parameters); `out` has the theta beside it. */
static tess_status read_rope_object(const tess_json *object, int64_t max_position,
                                    tess_rope_config *out)
{
    tess_rope_config r = *out;
    double partial = 1.0;
    char where[512];
    for (int64_t i = 0; i < tess_json_numel(object); i++) {
        const tess_json *member = tess_json_at(object, i);
        if (tess_json_type_of(member) != TESS_JSON_OBJECT)
            continue;
        tess_json_where(member, where, sizeof where);
        return TESS_FAIL(TESS_E_UNSUPPORTED,
                         "%s: rope parameters per layer type are not supported, expected one set",
                         where);
    }
    TESS_TRY(read_rope_type(object, &r.type));
    TESS_TRY(tess_json_opt_f64(object, "rope_theta", r.theta, &r.theta));
    TESS_TRY(tess_json_opt_f64(object, "partial_rotary_factor", 1.0, &partial));
    if (partial != 1.0)
        return unsupported(object, "partial_rotary_factor", "1");
    if (r.type != TESS_ROPE_DEFAULT)
        TESS_TRY(tess_json_get_f64(object, "factor", &r.factor));
    if (r.type == TESS_ROPE_LLAMA3) {
        TESS_TRY(tess_json_get_f64(object, "low_freq_factor", &r.low_freq_factor));
        TESS_TRY(tess_json_get_f64(object, "high_freq_factor", &r.high_freq_factor));
        TESS_TRY(tess_json_get_i64(object, "original_max_position_embeddings",
                                   &r.original_max_position));
    }
    if (r.type == TESS_ROPE_YARN)
        TESS_TRY(read_yarn(object, max_position, &r));
    *out = r;
    return TESS_OK;
}

/* Beside the rope object in files of some tools; transformers 5 prefers it to the object's, older
 * versions do not read it. */
static tess_status read_original(const tess_json *root, const tess_json *object,
                                 tess_rope_config *r)
{
    static const char key[] = "original_max_position_embeddings";
    int64_t beside = 0;
    char where[512];
    TESS_TRY(tess_json_opt_i64(root, key, 0, &beside));
    if (beside == 0 || (r->type != TESS_ROPE_LLAMA3 && r->type != TESS_ROPE_YARN))
        return TESS_OK;
    if (tess_json_find(object, key) == NULL)
        r->original_max_position = beside;
    tess_json_where(root, where, sizeof where);
    TESS_CHECK(r->original_max_position == beside, TESS_E_FORMAT,
               "%s: %s is %" PRId64 ", and %" PRId64 " in the rope parameters; keep one of them",
               where, key, beside, r->original_max_position);
    return TESS_OK;
}

static bool is_same_rope(const tess_rope_config *a, const tess_rope_config *b)
{
    return a->type == b->type && a->theta == b->theta && a->factor == b->factor &&
           a->low_freq_factor == b->low_freq_factor && a->high_freq_factor == b->high_freq_factor &&
           a->original_max_position == b->original_max_position &&
           a->attention_factor == b->attention_factor && a->beta_fast == b->beta_fast &&
           a->beta_slow == b->beta_slow;
}

static tess_status read_rope(const tess_json *root, int64_t max_position, tess_rope_config *out)
{
    const tess_json *newer = NULL, *older = NULL;
    tess_rope_config r = {.factor = 1.0};
    char where[512];
    TESS_TRY(tess_json_opt_f64(root, "rope_theta", 10000.0, &r.theta));
    TESS_TRY(tess_json_opt_object(root, "rope_parameters", &newer));
    TESS_TRY(tess_json_opt_object(root, "rope_scaling", &older));
    tess_rope_config other = r;
    if (older != NULL) {
        TESS_TRY(read_rope_object(older, max_position, &r));
        TESS_TRY(read_original(root, older, &r));
    }
    if (newer != NULL) {
        TESS_TRY(read_rope_object(newer, max_position, &other));
        TESS_TRY(read_original(root, newer, &other));
    }
    if (older != NULL && newer != NULL && !is_same_rope(&r, &other)) {
        tess_json_where(newer, where, sizeof where);
        return TESS_FAIL(TESS_E_FORMAT, "%s: differs from rope_scaling; keep one of them", where);
    }
    *out = newer != NULL ? other : r;
    return TESS_OK;
}

static tess_status read_layer_type(const tess_json *v, bool *is_sliding)
{
    const char *text = NULL;
    char where[512], tame[64];
    TESS_TRY(tess_json_as_string(v, &text));
    *is_sliding = strcmp(text, "sliding_attention") == 0;
    if (*is_sliding || strcmp(text, "full_attention") == 0)
        return TESS_OK;
    tess_json_where(v, where, sizeof where);
    return TESS_FAIL(TESS_E_UNSUPPORTED,
                     "%s: layer type '%s' is not supported, expected full_attention or "
                     "sliding_attention",
                     where, tess_text_tame(text, tame, sizeof tame));
}

/* layer_types decides for qwen; elsewhere the class ignores it, so it must agree. */
static tess_status read_layer_types(const tess_json *root, tess_llm_config *c)
{
    const tess_json *types = NULL;
    char where[512];
    const bool is_deciding = c->family == TESS_LLM_QWEN2 || c->family == TESS_LLM_QWEN3;
    TESS_TRY(tess_json_opt_array(root, "layer_types", &types));
    if (types == NULL)
        return TESS_OK;
    tess_json_where(types, where, sizeof where);
    TESS_CHECK(tess_json_numel(types) == c->layer_numel, TESS_E_FORMAT,
               "%s: expected %" PRId64 " entries (num_hidden_layers), found %" PRId64, where,
               c->layer_numel, tess_json_numel(types));
    for (int64_t i = 0; i < c->layer_numel; i++) {
        bool is_sliding = false;
        TESS_TRY(read_layer_type(tess_json_at(types, i), &is_sliding));
        TESS_CHECK(is_deciding || is_sliding == c->is_sliding[i], TESS_E_UNSUPPORTED,
                   "%s: layer %" PRId64 " differs from what sliding_window says for a %s model",
                   where, i, family_table[c->family].name);
        c->is_sliding[i] = is_sliding;
    }
    return TESS_OK;
}

static tess_status read_window(const tess_json *root, tess_llm_config *c)
{
    bool is_used = c->family == TESS_LLM_MISTRAL;
    int64_t first_layer = 0;
    TESS_CHECK(c->layer_numel >= 1 && c->layer_numel <= TESS_LLM_LAYER_MAX, TESS_E_FORMAT,
               "'%s': num_hidden_layers: expected 1 to %d, found %" PRId64, tess_json_source(root),
               TESS_LLM_LAYER_MAX, c->layer_numel);
    if (c->family == TESS_LLM_QWEN2 || c->family == TESS_LLM_QWEN3) {
        TESS_TRY(tess_json_opt_bool(root, "use_sliding_window", false, &is_used));
        TESS_TRY(tess_json_opt_i64(root, "max_window_layers", 28, &first_layer));
    }
    if (is_used) {
        const tess_json *stated = tess_json_find(root, "sliding_window");
        c->window = 4096; /* absent; null means none */
        if (stated != NULL)
            TESS_TRY(tess_json_opt_i64(root, "sliding_window", 0, &c->window));
        if (stated != NULL && tess_json_type_of(stated) == TESS_JSON_I64 && c->window < 1)
            return unsupported(root, "sliding_window", "null or a positive integer");
    }
    for (int64_t i = 0; c->window > 0 && i < c->layer_numel; i++)
        c->is_sliding[i] = i >= first_layer;
    TESS_TRY(read_layer_types(root, c));
    bool is_any = false;
    for (int64_t i = 0; i < c->layer_numel; i++)
        is_any = is_any || c->is_sliding[i];
    TESS_CHECK(!is_any || c->window > 0, TESS_E_FORMAT,
               "'%s': layer_types asks for sliding_attention, but sliding_window is off or null",
               tess_json_source(root));
    if (!is_any)
        c->window = 0;
    return TESS_OK;
}

static tess_status read_id(const tess_json *v, int64_t *out)
{
    char where[512];
    TESS_TRY(tess_json_as_i64(v, out));
    tess_json_where(v, where, sizeof where);
    TESS_CHECK(*out >= 0, TESS_E_FORMAT, "%s: expected a token id, found %" PRId64, where, *out);
    return TESS_OK;
}

static tess_status read_eos(const tess_json *v, tess_llm_config *c)
{
    char where[512];
    if (tess_json_type_of(v) == TESS_JSON_NULL)
        return TESS_OK;
    if (tess_json_type_of(v) != TESS_JSON_ARRAY) {
        c->eos_numel = 1;
        return read_id(v, &c->eos_id[0]);
    }
    tess_json_where(v, where, sizeof where);
    TESS_CHECK(tess_json_numel(v) <= TESS_LLM_EOS_MAX, TESS_E_FORMAT,
               "%s: %" PRId64 " ids, at most %d are accepted", where, tess_json_numel(v),
               TESS_LLM_EOS_MAX);
    for (int64_t i = 0; i < tess_json_numel(v); i++)
        TESS_TRY(read_id(tess_json_at(v, i), &c->eos_id[c->eos_numel++]));
    return TESS_OK;
}

static tess_status read_ids(const tess_json *root, tess_llm_config *c)
{
    const bool has_default = c->family == TESS_LLM_LLAMA || c->family == TESS_LLM_MISTRAL;
    const tess_json *bos = tess_json_find(root, "bos_token_id");
    const tess_json *eos = tess_json_find(root, "eos_token_id");
    c->bos_id = bos == NULL && has_default ? 1 : -1;
    if (bos != NULL && tess_json_type_of(bos) != TESS_JSON_NULL)
        TESS_TRY(read_id(bos, &c->bos_id));
    if (eos != NULL)
        return read_eos(eos, c);
    c->eos_numel = has_default ? 1 : 0;
    c->eos_id[0] = has_default ? 2 : 0;
    return TESS_OK;
}

static tess_status read_dtype_hint(const tess_json *root, tess_llm_config *c)
{
    const char *older = NULL, *text = NULL;
    TESS_TRY(tess_json_opt_string(root, "torch_dtype", "", &older));
    TESS_TRY(tess_json_opt_string(root, "dtype", older, &text));
    snprintf(c->dtype_hint, sizeof c->dtype_hint, "%.15s", text);
    return TESS_OK;
}

tess_status tess_hf_config_parse(const tess_json *root, tess_llm_config *out)
{
    tess_llm_config c = {0};
    TESS_TRY(tess_json_expect(root, TESS_JSON_OBJECT));
    TESS_TRY(read_family(root, &c.family));
    TESS_TRY(refuse_others(root));
    TESS_TRY(read_extents(root, &c));
    TESS_TRY(read_heads(root, &c));
    TESS_TRY(read_biases(root, &c));
    TESS_TRY(read_rope(root, c.max_position, &c.rope));
    TESS_TRY(read_window(root, &c));
    TESS_TRY(read_ids(root, &c));
    TESS_TRY(read_dtype_hint(root, &c));
    TESS_TRY(check_config(&c, TESS_E_FORMAT, tess_json_source(root)));
    *out = c;
    return TESS_OK;
}

tess_status tess_hf_config_read(tess_io *io, const char *dir, tess_llm_config *out)
{
    char *path = NULL;
    tess_json *root = NULL;
    TESS_TRY(tess_asprintf(&path, "%s/config.json", dir));
    tess_status st = tess_json_read(io, path, &root);
    if (st == TESS_OK)
        st = tess_hf_config_parse(root, out);
    tess_json_destroy(&root);
    tess_free(path);
    return st;
}

/* ---- rotary embedding ---- */

static const double pi = 3.14159265358979323846;

float tess_rope_attention_factor(const tess_rope_config *rope)
{
    return rope->type == TESS_ROPE_YARN ? (float)rope->attention_factor : 1.0F;
}

/* [Note: f32 powers] torch computes theta^(2i/d) in f32 and may be one unit off; we round the exact
 * power once, so that every machine and libm gives the same bits. */
static float power_of(const tess_llm_config *c, int64_t pair)
{
    const float exponent = (float)(2 * pair) / (float)c->head_dim;
    return (float)pow((double)(float)c->rope.theta, (double)exponent);
}

/* The pair that turns `turn_numel` times in the original positions. */
static double yarn_pair(const tess_llm_config *c, double turn_numel)
{
    const double period = (double)c->rope.original_max_position / (turn_numel * 2.0 * pi);
    return (double)c->head_dim * log(period) / (2.0 * log(c->rope.theta));
}

/* Frequencies of pairs that turn often stay, those of pairs that turn seldom are divided. */
static void yarn_inv_freq(const tess_llm_config *c, float *inv)
{
    const double first = fmax(floor(yarn_pair(c, c->rope.beta_fast)), 0.0);
    double last = fmin(ceil(yarn_pair(c, c->rope.beta_slow)), (double)(c->head_dim - 1));
    last = last == first ? last + 0.001 : last;
    const float low = (float)first, width = (float)(last - first);
    for (int64_t i = 0; i < c->head_dim / 2; i++) {
        const float ramp = fminf(fmaxf(((float)i - low) / width, 0.0F), 1.0F);
        const float kept = 1.0F - ramp, divided = 1.0F / ((float)c->rope.factor * power_of(c, i));
        inv[i] = divided * (1.0F - kept) + inv[i] * kept;
    }
}

void tess_rope_inv_freq(const tess_llm_config *config, float *inv)
{
    const tess_rope_config *r = &config->rope;
    const float factor = (float)r->factor;
    const float low = (float)r->low_freq_factor, high = (float)r->high_freq_factor;
    const float original = (float)r->original_max_position;
    const float low_wave = (float)((double)r->original_max_position / r->low_freq_factor);
    const float high_wave = (float)((double)r->original_max_position / r->high_freq_factor);
    for (int64_t i = 0; i < config->head_dim / 2; i++) {
        inv[i] = 1.0f / power_of(config, i);
        if (r->type == TESS_ROPE_LINEAR)
            inv[i] = inv[i] / factor;
        if (r->type != TESS_ROPE_LLAMA3)
            continue;
        const float wave = (float)(2.0 * pi) / inv[i];
        if (wave > low_wave) {
            inv[i] = inv[i] / factor;
        } else if (wave >= high_wave) {
            const float s = (original / wave - low) / (high - low);
            inv[i] = (1.0f - s) * inv[i] / factor + s * inv[i];
        }
    }
    if (r->type == TESS_ROPE_YARN)
        yarn_inv_freq(config, inv);
}
