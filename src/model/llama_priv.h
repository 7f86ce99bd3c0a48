/**
 * The Llama family: Llama 2/3, Mistral, Qwen2, Qwen3 (dense).
 *
 * Stage 0 embeds, stages 1 .. L are decoder blocks, stage L + 1 is norm, head and loss. Every block
 * is h2 = h + attention(norm1(h)), out = h2 + mlp(norm2(h2)).
 */
#pragma once

#include "model/head_priv.h"
#include "model/model.h"

TESS_BEGIN_DECLS

typedef struct tess_llama_block {
    tess_norm norm1, norm2;
    tess_attention attention;
    tess_mlp mlp;
} tess_llama_block;

/** Everything the stage calls need beside the call. */
typedef struct tess_llama {
    tess_dtype dt;
    const tess_kernels *kernels; /* sizes only; calls bring their own */
    int thread_numel;
    int64_t token_numel; /* of the planned micro-batch */
    int64_t sequence_length;
    int64_t hidden_numel;
    int64_t vocab_numel;
    float dropout;
    int embed_idx;
    bool is_embed_trainable;
    int layer_numel;
    tess_llama_block *block; /* [layer_numel], owned */
    tess_head head;
    tess_rope_table rope;
    float *rope_host[2]; /* cos and sin on the host, owned */
} tess_llama;

/** Memory of stage `stage_idx`, by running its code in plan mode over `reg`. Local. */
TESS_MUST_CHECK tess_status tess_llama_plan_stage(tess_llama *m, const tess_registry *reg,
                                                  int stage_idx, tess_stage *stage);

extern const tess_stage_ops tess_llama_stage_ops;

TESS_END_DECLS
