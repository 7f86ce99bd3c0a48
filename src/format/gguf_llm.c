#include "format/gguf_llm.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "format/text_priv.h"

/* Names without ".weight" and ".bias"; in a layer they follow "blk.N." and "model.layers.N.". */
static const struct {
    const char *gguf, *hf;
    bool is_in_layer;
} name_table[] = {
    {"token_embd", "model.embed_tokens", false},
    {"output_norm", "model.norm", false},
    {"output", "lm_head", false},
    {"attn_norm", "input_layernorm", true},
    {"attn_q", "self_attn.q_proj", true},
    {"attn_k", "self_attn.k_proj", true},
    {"attn_v", "self_attn.v_proj", true},
    {"attn_output", "self_attn.o_proj", true},
    {"attn_q_norm", "self_attn.q_norm", true},
    {"attn_k_norm", "self_attn.k_norm", true},
    {"ffn_norm", "post_attention_layernorm", true},
    {"ffn_gate", "mlp.gate_proj", true},
    {"ffn_up", "mlp.up_proj", true},
    {"ffn_down", "mlp.down_proj", true},
};

/* ---- names ---- */

bool tess_gguf_is_path(const char *path)
{
    static const char suffix[] = ".gguf";
    const size_t nbytes = strlen(path), end = sizeof suffix - 1;
    return nbytes > end && strcmp(path + nbytes - end, suffix) == 0;
}

/* Cut "PREFIX<number>." off; -1 when the name does not begin so. */
static int cut_layer(const char **name, const char *prefix)
{
    const size_t nbytes = strlen(prefix);
    const char *p = *name + nbytes;
    int layer = 0, digit_numel = 0;
    if (strncmp(*name, prefix, nbytes) != 0)
        return -1;
    for (; *p >= '0' && *p <= '9' && digit_numel < 5; p++, digit_numel++)
        layer = layer * 10 + (*p - '0');
    const bool is_plain =
        digit_numel > 0 && *p == '.' && (digit_numel == 1 || p[-digit_numel] != '0');
    if (!is_plain)
        return -1;
    *name = p + 1;
    return layer;
}

/* Translate through the table; `to_hf` says in which direction. */
static bool translate(const char *name, bool to_hf, char *out, size_t out_nbytes)
{
    static const char *const prefix[2] = {"model.layers.", "blk."};
    const char *rest = name, *suffix = strrchr(name, '.');
    const int layer = cut_layer(&rest, prefix[to_hf]);
    if (suffix == NULL || suffix < rest ||
        (strcmp(suffix, ".weight") != 0 && strcmp(suffix, ".bias") != 0))
        return false;
    for (int i = 0; i < TESS_NELEM(name_table); i++) {
        const char *from = to_hf ? name_table[i].gguf : name_table[i].hf;
        const char *to = to_hf ? name_table[i].hf : name_table[i].gguf;
        if (name_table[i].is_in_layer != (layer >= 0) || strlen(from) != (size_t)(suffix - rest) ||
            strncmp(from, rest, (size_t)(suffix - rest)) != 0)
            continue;
        const int n =
            layer >= 0 ? snprintf(out, out_nbytes, "%s%d.%s%s", prefix[!to_hf], layer, to, suffix)
                       : snprintf(out, out_nbytes, "%s%s", to, suffix);
        return n > 0 && (size_t)n < out_nbytes;
    }
    return false;
}

const char *tess_gguf_arch_name(const tess_llm_config *config)
{
    return tess_llm_family_name(config->family == TESS_LLM_MISTRAL ? TESS_LLM_LLAMA
                                                                   : config->family);
}

bool tess_gguf_hf_name(const char *name, char hf_name[TESS_GGUF_HF_NAME_NBYTES])
{
    return translate(name, true, hf_name, TESS_GGUF_HF_NAME_NBYTES);
}

bool tess_gguf_name_of(const char *hf_name, char name[TESS_GGUF_NAME_NBYTES])
{
    return translate(hf_name, false, name, TESS_GGUF_NAME_NBYTES);
}

int64_t tess_gguf_interleaved(const tess_llm_config *config, const char *name)
{
    const char *rest = name;
    if (config->family != TESS_LLM_LLAMA && config->family != TESS_LLM_MISTRAL)
        return 0;
    if (cut_layer(&rest, "blk.") < 0)
        return 0;
    const bool is_rotated = strncmp(rest, "attn_q.", 7) == 0 || strncmp(rest, "attn_k.", 7) == 0;
    return is_rotated ? config->head_dim : 0;
}

/* ---- configuration ---- */

typedef struct reader {
    const tess_gguf *file;
    const char *arch;
} reader;

static void key_of(const reader *r, const char *name, char key[128])
{
    snprintf(key, 128, "%s.%s", r->arch, name);
}

static tess_status get_i64(const reader *r, const char *name, int64_t *out)
{
    char key[128];
    key_of(r, name, key);
    return tess_gguf_get_i64(r->file, key, out);
}

static tess_status opt_i64(const reader *r, const char *name, int64_t absent, int64_t *out)
{
    char key[128];
    key_of(r, name, key);
    *out = absent;
    return tess_gguf_value_of(r->file, key) != NULL ? tess_gguf_get_i64(r->file, key, out)
                                                    : TESS_OK;
}

static tess_status opt_f64(const reader *r, const char *name, double absent, double *out)
{
    char key[128];
    key_of(r, name, key);
    *out = absent;
    return tess_gguf_value_of(r->file, key) != NULL ? tess_gguf_get_f64(r->file, key, out)
                                                    : TESS_OK;
}

static tess_status expect_i64(const reader *r, const char *name, int64_t expected, const char *why)
{
    int64_t found = 0;
    TESS_TRY(opt_i64(r, name, expected, &found));
    TESS_CHECK(found == expected, TESS_E_UNSUPPORTED,
               "'%s': '%s.%s' is %" PRId64 ", expected %" PRId64 ": %s", tess_gguf_path(r->file),
               r->arch, name, found, expected, why);
    return TESS_OK;
}

static tess_status read_family(reader *r, tess_llm_config *c)
{
    static const tess_llm_family known[] = {TESS_LLM_LLAMA, TESS_LLM_QWEN2, TESS_LLM_QWEN3};
    char tame[64];
    TESS_TRY(tess_gguf_get_text(r->file, "general.architecture", &r->arch));
    for (int i = 0; i < TESS_NELEM(known); i++) {
        if (strcmp(r->arch, tess_llm_family_name(known[i])) == 0) {
            c->family = known[i];
            return TESS_OK;
        }
    }
    return TESS_FAIL(TESS_E_UNSUPPORTED,
                     "'%s': value of 'general.architecture': '%s' is not supported, expected llama "
                     "(Mistral too), qwen2 or qwen3",
                     tess_gguf_path(r->file), tess_text_tame(r->arch, tame, sizeof tame));
}

static tess_status read_extents(const reader *r, tess_llm_config *c)
{
    const tess_gguf_tensor *embedding = tess_gguf_find(r->file, "token_embd.weight");
    TESS_TRY(get_i64(r, "embedding_length", &c->hidden_numel));
    TESS_TRY(get_i64(r, "feed_forward_length", &c->intermediate_numel));
    TESS_TRY(get_i64(r, "block_count", &c->layer_numel));
    TESS_TRY(opt_i64(r, "context_length", 0, &c->max_position));
    TESS_TRY(opt_f64(r, "attention.layer_norm_rms_epsilon", 1e-6, &c->rms_eps));
    TESS_CHECK(embedding != NULL && embedding->dim_numel == 2, TESS_E_FORMAT,
               "'%s': tensor 'token_embd.weight' [vocabulary, %" PRId64 "] is missing",
               tess_gguf_path(r->file), c->hidden_numel);
    c->vocab_numel = embedding->dim[0];
    c->is_tied = tess_gguf_find(r->file, "output.weight") == NULL;
    TESS_TRY(expect_i64(r, "vocab_size", c->vocab_numel, "token_embd.weight has other rows"));
    return expect_i64(r, "expert_count", 0, "mixtures of experts are not trained");
}

static tess_status read_heads(const reader *r, tess_llm_config *c)
{
    TESS_TRY(get_i64(r, "attention.head_count", &c->head_numel));
    TESS_TRY(opt_i64(r, "attention.head_count_kv", c->head_numel, &c->kv_head_numel));
    TESS_CHECK(c->head_numel >= 1, TESS_E_FORMAT,
               "'%s': '%s.attention.head_count': expected 1 or more, found %" PRId64,
               tess_gguf_path(r->file), r->arch, c->head_numel);
    const bool is_even = c->hidden_numel % c->head_numel == 0;
    TESS_TRY(opt_i64(r, "attention.key_length", is_even ? c->hidden_numel / c->head_numel : 0,
                     &c->head_dim));
    TESS_TRY(expect_i64(r, "attention.value_length", c->head_dim, "heads of k and v differ"));
    return expect_i64(r, "rope.dimension_count", c->head_dim, "partial rotation is not supported");
}

static bool has_tensor(const reader *r, const char *name)
{
    return tess_gguf_find(r->file, name) != NULL;
}

static void read_biases(const reader *r, tess_llm_config *c)
{
    c->has_qk_norm = c->family == TESS_LLM_QWEN3;
    c->has_q_bias = has_tensor(r, "blk.0.attn_q.bias");
    c->has_k_bias = has_tensor(r, "blk.0.attn_k.bias");
    c->has_v_bias = has_tensor(r, "blk.0.attn_v.bias");
    c->has_o_bias = has_tensor(r, "blk.0.attn_output.bias");
    c->has_mlp_bias = has_tensor(r, "blk.0.ffn_gate.bias");
}

/* Divisors of the frequencies follow from Llama 3's rule; the file keeps the divisors only. */
static tess_status check_divisors(const reader *r, const tess_llm_config *c, const float *divisor)
{
    tess_llm_config plain = *c;
    float scaled[TESS_LLM_HEAD_DIM_MAX / 2], whole[TESS_LLM_HEAD_DIM_MAX / 2];
    plain.rope.type = TESS_ROPE_DEFAULT;
    tess_rope_inv_freq(c, scaled);
    tess_rope_inv_freq(&plain, whole);
    for (int64_t i = 0; i < c->head_dim / 2; i++)
        /* Both sides are a few f32 operations from the same rule. */
        TESS_CHECK(fabsf(whole[i] / scaled[i] - divisor[i]) <= 1e-4F * divisor[i],
                   TESS_E_UNSUPPORTED,
                   "'%s': rope_freqs.weight: element %" PRId64 " is %g, Llama 3's rule (factor %g, "
                   "1 to 4 times %" PRId64 " positions) gives %g; other rules are not supported",
                   tess_gguf_path(r->file), i, (double)divisor[i], c->rope.factor,
                   c->rope.original_max_position, (double)(whole[i] / scaled[i]));
    return TESS_OK;
}

static tess_status read_divisors(const reader *r, const tess_gguf_tensor *t, tess_llm_config *c)
{
    float divisor[TESS_LLM_HEAD_DIM_MAX / 2];
    TESS_CHECK(c->head_dim >= 2 && c->head_dim <= TESS_LLM_HEAD_DIM_MAX &&
                   t->format == TESS_FORMAT_F32 && t->numel == c->head_dim / 2,
               TESS_E_FORMAT,
               "'%s': rope_freqs.weight: expected %" PRId64 " f32, found %" PRId64 " of %s",
               tess_gguf_path(r->file), c->head_dim / 2, t->numel, tess_format_name(t->format));
    TESS_TRY(tess_gguf_read(r->file, t, 0, (size_t)t->nbytes, divisor));
    float most = 0.0F;
    for (int64_t i = 0; i < t->numel; i++) {
        TESS_CHECK(isfinite(divisor[i]) && divisor[i] >= 1.0F, TESS_E_FORMAT,
                   "'%s': rope_freqs.weight: element %" PRId64 " is %g, expected 1 or more",
                   tess_gguf_path(r->file), i, (double)divisor[i]);
        most = fmaxf(most, divisor[i]);
    }
    c->rope.type = TESS_ROPE_LLAMA3;
    c->rope.factor = (double)most;
    c->rope.low_freq_factor = 1.0;
    c->rope.high_freq_factor = 4.0;
    TESS_TRY(
        opt_i64(r, "rope.scaling.original_context_length", 8192, &c->rope.original_max_position));
    return check_divisors(r, c, divisor);
}

/* Numbers that converters of other models state, and that would change the arithmetic unless they
 * have their neutral value. A scale of 0 is none, as one that is absent. */
static tess_status refuse_others(const reader *r, const tess_llm_config *c)
{
    const double scale = c->head_dim > 0 ? 1.0 / sqrt((double)c->head_dim) : 0.0;
    const struct {
        const char *name;
        double absent, neutral;
    } rows[] = {{"attention.scale", 0.0, scale},
                {"attention.clamp_kqv", 0.0, 0.0},
                {"attention.max_alibi_bias", 0.0, 0.0},
                {"attn_logit_softcapping", 0.0, 0.0},
                {"final_logit_softcapping", 0.0, 0.0},
                {"logit_scale", 0.0, 1.0},
                {"residual_scale", 0.0, 1.0},
                {"embedding_scale", 0.0, 1.0},
                {"rope.scaling.attn_factor", 1.0, 1.0},
                {"rope.scaling.yarn_attn_factor", 1.0, 1.0},
                {"rope.scaling.yarn_ext_factor", 1.0, 1.0},
                {"rope.scaling.yarn_log_multiplier", 0.0, 0.0}};
    for (int i = 0; i < TESS_NELEM(rows); i++) {
        const double neutral = rows[i].neutral;
        double found = 0.0;
        TESS_TRY(opt_f64(r, rows[i].name, rows[i].absent, &found));
        /* The file's number went through f32, by an operation or two. */
        TESS_CHECK(found == rows[i].absent || fabs(found - neutral) <= 0x1p-22 * neutral,
                   TESS_E_UNSUPPORTED, "'%s': '%s.%s' is %g, expected %g", tess_gguf_path(r->file),
                   r->arch, rows[i].name, found, neutral);
    }
    return TESS_OK;
}

/* llama.cpp takes this key from any architecture; encoders made of such models have it. */
static tess_status expect_causal(const reader *r)
{
    char key[128];
    bool is_causal = true;
    key_of(r, "attention.causal", key);
    if (tess_gguf_value_of(r->file, key) != NULL)
        TESS_TRY(tess_gguf_get_bool(r->file, key, &is_causal));
    TESS_CHECK(is_causal, TESS_E_UNSUPPORTED,
               "'%s': '%s' is false: attention to later tokens is not trained; give a model with "
               "causal attention",
               tess_gguf_path(r->file), key);
    return TESS_OK;
}

/* A part's missing tensors would look like a shallower or a tied model. */
static tess_status expect_whole(const tess_gguf *file)
{
    static const char key[] = "split.count";
    int64_t part_numel = 1;
    if (tess_gguf_value_of(file, key) != NULL)
        TESS_TRY(tess_gguf_get_i64(file, key, &part_numel));
    TESS_CHECK(part_numel <= 1, TESS_E_UNSUPPORTED,
               "'%s': '%s': this is one of %" PRId64 " files of a model, expected the whole model "
               "in one; join them (llama-gguf-split --merge FIRST.gguf OUT.gguf)",
               tess_gguf_path(file), key, part_numel);
    return TESS_OK;
}

static tess_status read_yarn(const reader *r, tess_llm_config *c)
{
    c->rope.attention_factor = tess_rope_yarn_factor(c->rope.factor);
    TESS_TRY(opt_f64(r, "rope.scaling.yarn_beta_fast", 32.0, &c->rope.beta_fast));
    TESS_TRY(opt_f64(r, "rope.scaling.yarn_beta_slow", 1.0, &c->rope.beta_slow));
    return opt_i64(r, "rope.scaling.original_context_length", c->max_position,
                   &c->rope.original_max_position);
}

/* As llama.cpp: a factor without a type is linear, and 0 is 1. */
static tess_status read_rope(const reader *r, tess_llm_config *c)
{
    const tess_gguf_tensor *divisors = tess_gguf_find(r->file, "rope_freqs.weight");
    const char *type = "linear";
    char key[128], tame[64];
    double factor = 0.0;
    c->rope = (tess_rope_config){.factor = 1.0};
    TESS_TRY(opt_f64(r, "rope.freq_base", 10000.0, &c->rope.theta));
    TESS_TRY(opt_f64(r, "rope.scale_linear", 0.0, &factor)); /* the older key */
    TESS_TRY(opt_f64(r, "rope.scaling.factor", factor, &factor));
    factor = factor == 0.0 ? 1.0 : factor;
    key_of(r, "rope.scaling.type", key);
    if (tess_gguf_value_of(r->file, key) != NULL)
        TESS_TRY(tess_gguf_get_text(r->file, key, &type));
    const bool is_yarn = strcmp(type, "yarn") == 0, is_linear = strcmp(type, "linear") == 0;
    TESS_CHECK(is_yarn || is_linear || strcmp(type, "none") == 0, TESS_E_UNSUPPORTED,
               "'%s': value of '%s': '%s' is not supported, expected none, linear or yarn",
               tess_gguf_path(r->file), key, tess_text_tame(type, tame, sizeof tame));
    const bool is_scaled = is_yarn || (is_linear && factor != 1.0);
    TESS_CHECK(divisors == NULL || !is_scaled, TESS_E_UNSUPPORTED,
               "'%s': rope_freqs.weight, and a rope scaling '%s' by %g: expected one of them",
               tess_gguf_path(r->file), type, factor);
    if (divisors != NULL)
        return read_divisors(r, divisors, c);
    if (!is_scaled)
        return TESS_OK;
    c->rope.type = is_yarn ? TESS_ROPE_YARN : TESS_ROPE_LINEAR;
    c->rope.factor = factor;
    return is_yarn ? read_yarn(r, c) : TESS_OK;
}

/* Mistral has architecture llama; what tells it apart is its window. */
static tess_status read_window(const reader *r, tess_llm_config *c)
{
    TESS_TRY(opt_i64(r, "attention.sliding_window", 0, &c->window));
    if (c->window == 0)
        return TESS_OK;
    TESS_CHECK(c->family == TESS_LLM_LLAMA, TESS_E_UNSUPPORTED,
               "'%s': '%s.attention.sliding_window' is %" PRId64
               ": which layers slide is not in the file; expected none for %s",
               tess_gguf_path(r->file), r->arch, c->window, r->arch);
    TESS_CHECK(c->layer_numel >= 1 && c->layer_numel <= TESS_LLM_LAYER_MAX, TESS_E_FORMAT,
               "'%s': '%s.block_count': expected 1 to %d, found %" PRId64, tess_gguf_path(r->file),
               r->arch, TESS_LLM_LAYER_MAX, c->layer_numel);
    c->family = TESS_LLM_MISTRAL;
    for (int64_t i = 0; i < c->layer_numel; i++)
        c->is_sliding[i] = true;
    return TESS_OK;
}

static tess_status read_ids(const reader *r, tess_llm_config *c)
{
    static const char bos[] = "tokenizer.ggml.bos_token_id", eos[] = "tokenizer.ggml.eos_token_id";
    c->bos_id = -1;
    if (tess_gguf_value_of(r->file, bos) != NULL)
        TESS_TRY(tess_gguf_get_i64(r->file, bos, &c->bos_id));
    if (tess_gguf_value_of(r->file, eos) == NULL)
        return TESS_OK;
    c->eos_numel = 1;
    return tess_gguf_get_i64(r->file, eos, &c->eos_id[0]);
}

tess_status tess_gguf_llm_config(const tess_gguf *file, tess_llm_config *out)
{
    tess_llm_config c = {0};
    reader r = {.file = file};
    TESS_TRY(expect_whole(file));
    TESS_TRY(read_family(&r, &c));
    TESS_TRY(read_extents(&r, &c));
    TESS_TRY(read_heads(&r, &c));
    read_biases(&r, &c);
    TESS_TRY(refuse_others(&r, &c));
    TESS_TRY(expect_causal(&r));
    TESS_TRY(read_rope(&r, &c));
    TESS_TRY(read_window(&r, &c));
    TESS_TRY(read_ids(&r, &c));
    if (tess_llm_config_check(&c) != TESS_OK)
        return tess_error_status();
    *out = c;
    return TESS_OK;
}

/* ---- rows ---- */

tess_status tess_gguf_read_rows(const tess_gguf *file, const tess_gguf_tensor *tensor,
                                int64_t head_dim, int64_t first_nbytes, size_t nbytes, void *dst)
{
    const int64_t row_nbytes = tensor->nbytes / tensor->dim[0];
    const int64_t block_nbytes = (int64_t)tess_format_block(tensor->format).nbytes;
    if (head_dim == 0) {
        TESS_TRY(tess_gguf_read(file, tensor, first_nbytes, nbytes, dst));
    } else {
        TESS_CHECK(head_dim % 2 == 0 && tensor->dim[0] % head_dim == 0, TESS_E_FORMAT,
                   "'%s': tensor '%s': %" PRId64 " rows are not whole heads of %" PRId64,
                   tess_gguf_path(file), tensor->name, tensor->dim[0], head_dim);
        for (size_t done = 0, part = 0; done < nbytes; done += part) {
            const int64_t at = first_nbytes + (int64_t)done, row = at / row_nbytes;
            const int64_t inside = at % row_nbytes;
            part = (size_t)TESS_MIN(row_nbytes - inside, (int64_t)(nbytes - done));
            TESS_TRY(tess_gguf_read(file, tensor,
                                    tess_gguf_row(row, head_dim) * row_nbytes + inside, part,
                                    (char *)dst + done));
        }
    }
    if (block_nbytes == 0 || first_nbytes % block_nbytes != 0)
        return TESS_OK;
    return tess_gguf_check_blocks(file, tensor, first_nbytes / block_nbytes, dst, nbytes);
}
