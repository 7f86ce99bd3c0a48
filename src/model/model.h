/** What the trainer knows of a model family: a registry, stage calls, and a batch of tokens. */
#pragma once

#include "format/hf_config.h"
#include "shard/registry.h"

TESS_BEGIN_DECLS

/** One micro-batch of token sequences; all arrays [token_numel], token_numel = sequences *
 * sequence_length, in the space of the device whose kernels read them. */
typedef struct tess_token_batch {
    int64_t token_numel;
    int64_t sequence_numel;
    const int32_t *tokens;
    const int32_t *labels;      /* -1: no loss */
    const int32_t *host_labels; /* the same where the host reads them; NULL: `labels` is host memory
                                 */
    const int32_t *positions;   /* restart at every document */
    const int32_t
        *doc_start; /* index in this micro-batch of the first token of the token's document */
    int64_t document_numel;   /* tokens that are the first of their document; 0: not counted */
    int64_t logits_token_idx; /* TESS_CALL_LOGITS: token whose logits are wanted */
    float *logits;            /* TESS_CALL_LOGITS: [vocab] f32 out, host memory; there when the
                                 stream has passed the call */
} tess_token_batch;

/** LoRA of one module; rank 0 means none. */
typedef struct tess_lora_choice {
    int rank;
    double scale; /* of its product: alpha / r, or alpha / sqrt(r) */
    bool is_dora; /* with a magnitude per output */
    /* Parts of one matrix of another layout (FLUX: q, k, v of a fused one) have one A; families
     * without such parts ignore it. */
    bool shares_a;
} tess_lora_choice;

/** How adapters begin. */
typedef struct tess_adapter_start {
    bool is_gaussian;       /* A ~ N(0, 1/r^2) instead of kaiming uniform; B = 0 */
    tess_low_rank low_rank; /* A and B from the weights */
    int power_numel, turn_numel;
} tess_adapter_start;

/** Choices of a run that shape the model. Callbacks are pure and borrowed for the describe call. */
typedef struct tess_model_options {
    tess_dtype compute_dt;
    bool is_full;                /* full-parameter mode: every weight trains */
    bool is_random;              /* init: random */
    int64_t sequence_length;     /* S */
    int64_t micro_batch;         /* sequences per micro-batch */
    int thread_numel;            /* threads of the compute stream, for workspace sizes only */
    const tess_kernels *kernels; /* backend whose workspaces are planned; NULL: tess_kernels_cpu */
    double dropout;              /* LoRA dropout */
    double lora_plus_ratio;      /* learning-rate ratio of B, 1 for plain LoRA */
    tess_adapter_start start;
    void *arg;
    /* Adapter of the linear layer at `module_path` ("model.layers.0.self_attn.q_proj"). */
    tess_status (*lora_of)(void *arg, const char *module_path, bool is_head, tess_lora_choice *out);
    /* Whether a tensor of the model files is trained as a whole beside the adapters; NULL: none. */
    bool (*is_saved)(void *arg, const char *tensor_name);
    /* Stored format of a frozen 2-D weight; `source` is its format in the model files. */
    tess_status (*codec_of)(void *arg, const tess_param *p, bool is_linear, tess_codec source,
                            tess_codec *out);
    /* Format of a tensor in the model files (bf16 when weights are random). Of the parameter,
     * both callbacks read name and shape. */
    tess_status (*source_of)(void *arg, const tess_param *p, tess_codec *out);
} tess_model_options;

typedef struct tess_model tess_model;

/**
 * Describe a Llama-family model (llama, mistral, qwen2, qwen3): fills `reg` (initialized, empty)
 * with units, tensors and stages and lays it out; keeps what its stage calls need. Pure but for
 * memory. Local.
 */
TESS_MUST_CHECK tess_status tess_llama_create(const tess_llm_config *config,
                                              const tess_model_options *options, tess_registry *reg,
                                              tess_model **out);
void tess_model_destroy(tess_model **model);
const tess_stage_ops *tess_model_stage_ops(const tess_model *model);
/** The pointer to hand to stage ops. */
void *tess_model_self(tess_model *model);
/** Bytes of the tables that calls of a device read; see tess_stage_ops. */
size_t tess_model_constant_nbytes(const tess_model *model);
TESS_END_DECLS
