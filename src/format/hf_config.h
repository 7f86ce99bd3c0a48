/**
 * config.json of Hugging Face language models as one neutral struct.
 *
 * Families: llama, mistral, qwen2, qwen3 (dense). Every field that changes the arithmetic is either
 * understood or refused by name.
 *
 * @source transformers 5.23, models/{llama,mistral,qwen2,qwen3}/configuration_*.py,
 * modeling_rope_utils.py
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "core/io.h"
#include "format/json.h"

TESS_BEGIN_DECLS

enum { TESS_LLM_LAYER_MAX = 1024, TESS_LLM_EOS_MAX = 16, TESS_LLM_HEAD_DIM_MAX = 1024 };

/* X(NAME, "model_type", "architecture") */
#define TESS_LLM_FAMILY_LIST(X)                                                                    \
    X(LLAMA, "llama", "LlamaForCausalLM")                                                          \
    X(MISTRAL, "mistral", "MistralForCausalLM")                                                    \
    X(QWEN2, "qwen2", "Qwen2ForCausalLM")                                                          \
    X(QWEN3, "qwen3", "Qwen3ForCausalLM")

typedef enum tess_llm_family {
#define X(name, text, architecture) TESS_LLM_##name,
    TESS_LLM_FAMILY_LIST(X)
#undef X
        TESS_LLM_FAMILY_NUMEL
} tess_llm_family;

typedef enum tess_rope_type {
    TESS_ROPE_DEFAULT,
    TESS_ROPE_LINEAR,
    TESS_ROPE_LLAMA3,
    TESS_ROPE_YARN
} tess_rope_type;

/** Rotary embedding. Plain data. */
typedef struct tess_rope_config {
    tess_rope_type type;
    double theta;
    double factor;                 /* default: 1 */
    double low_freq_factor;        /* llama3 */
    double high_freq_factor;       /* llama3 */
    int64_t original_max_position; /* llama3, yarn */
    double attention_factor;       /* yarn: of cos and sin */
    double beta_fast, beta_slow;   /* yarn: turns in the original positions, between them a ramp */
} tess_rope_config;

/** A dense decoder-only language model. Plain data without pointers. */
typedef struct tess_llm_config {
    tess_llm_family family;
    int64_t hidden_numel;
    int64_t intermediate_numel;
    int64_t layer_numel;
    int64_t head_numel;
    int64_t kv_head_numel; /* divides head_numel */
    int64_t head_dim;      /* even; q is [head_numel * head_dim, hidden] */
    int64_t vocab_numel;
    int64_t max_position; /* max_position_embeddings: information, 0 when not stated */
    double rms_eps;
    tess_rope_config rope;
    bool is_tied; /* the head is embed_tokens */
    bool has_q_bias, has_k_bias, has_v_bias, has_o_bias;
    bool has_mlp_bias; /* gate, up and down */
    bool has_qk_norm;  /* RMSNorm over each head of q and k before rotation */
    int64_t window;    /* a query sees itself and window - 1 keys before it; 0: no layer slides */
    bool is_sliding[TESS_LLM_LAYER_MAX]; /* layers that use `window` */
    int64_t bos_id;                      /* -1: none */
    int64_t eos_id[TESS_LLM_EOS_MAX];
    int eos_numel;
    char dtype_hint[16]; /* torch_dtype: "bfloat16", "" when not stated; for information */
} tess_llm_config;

/** "llama". Local. */
const char *tess_llm_family_name(tess_llm_family family);
/** Window of one layer, 0 where attention is full. Local. */
int64_t tess_llm_window(const tess_llm_config *config, int64_t layer_idx);
/** Check ranges and relations of a struct that was filled by hand. Local. @return TESS_E_CONFIG */
TESS_MUST_CHECK tess_status tess_llm_config_check(const tess_llm_config *config);

/** Read a parsed config.json. Local. @return TESS_E_FORMAT; TESS_E_UNSUPPORTED names the field */
TESS_MUST_CHECK tess_status tess_hf_config_parse(const tess_json *root, tess_llm_config *out);
/** Read `dir`/config.json. Local. @return as tess_hf_config_parse, TESS_E_IO */
TESS_MUST_CHECK tess_status tess_hf_config_read(tess_io *io, const char *dir, tess_llm_config *out);
/**
 * A config.json from which transformers builds the same model. Local.
 * @param torch_dtype  "bfloat16" or "float32": of the weights beside it
 * @return TESS_E_CONFIG a combination that the family's class cannot express
 */
TESS_MUST_CHECK tess_status tess_hf_config_json(const tess_llm_config *config,
                                                const char *torch_dtype, tess_json **out);
/** The same as `dir`/config.json. Local. */
TESS_MUST_CHECK tess_status tess_hf_config_write(tess_io *io, const char *dir,
                                                 const tess_llm_config *config,
                                                 const char *torch_dtype);

/**
 * Inverse frequencies of the rotary embedding, scaling included, in f32. Local.
 * @param[out] inv  [head_dim / 2] f32; element i is the angle per position of pair i
 * @source transformers modeling_rope_utils.py, same order of f32 operations
 */
void tess_rope_inv_freq(const tess_llm_config *config, float *inv);
/** What cos and sin are multiplied by: attention_factor of yarn, else 1. Local. */
float tess_rope_attention_factor(const tess_rope_config *rope);
/** attention_factor of yarn where a file states none: 0.1 ln(factor) + 1. Local. */
double tess_rope_yarn_factor(double factor);

TESS_END_DECLS
