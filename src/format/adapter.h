/**
 * LoRA adapters in every dialect people load: one description, one reader, one writer.
 *
 * A module is a linear layer under its canonical name: the Hugging Face path for language models,
 * diffusers' path (split q, k, v) for FLUX.1. Its update is (alpha / rank) B A with A [rank, in]
 * and B [out, rank]; with DoRA a magnitude [out] goes with it. What a file fuses, scales, swaps or
 * interleaves is undone while reading and done again while writing; matrices are read one by one.
 *
 * | dialect          | keys of A                                      | alpha                     |
 * |------------------|------------------------------------------------|---------------------------|
 * | peft             | directory; base_model.model.<path>.lora_A...   | adapter_config.json       |
 * | diffusers        | transformer.<path>.lora_A.weight, or no prefix | lora_adapter_metadata, or |
 * |                  |                                                | alpha = rank              |
 * | kohya            | lora_unet_<BFL path with _>.lora_down.weight   | tensor .alpha, or rank    |
 * | comfyui          | diffusion_model.<BFL path>.lora_down or lora_A | tensor .alpha, or rank    |
 * | lora_transformer | lora_transformer_<path with _>.lora_down...    | tensor .alpha, or rank    |
 * | xlabs            | double_blocks.N.processor.qkv_lora1.down...    | rank                      |
 * | gguf             | blk.N.attn_q.weight.lora_a                     | adapter.lora.alpha        |
 *
 * The last but two are read only.
 *
 * @source peft 0.21; diffusers 0.42 loaders/lora_conversion_utils.py; sd-scripts
 * networks/lora_flux.py, convert_flux_lora.py; ComfyUI comfy/lora.py; llama.cpp
 * convert_lora_to_gguf.py, src/llama-adapter.cpp
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "core/io.h"
#include "format/hf_config.h"
#include "format/peft.h"
#include "format/safetensors.h"

TESS_BEGIN_DECLS

/* X(NAME, "name", written too) */
#define TESS_ADAPTER_DIALECT_LIST(X)                                                               \
    X(PEFT, "peft", true)                                                                          \
    X(DIFFUSERS, "diffusers", true)                                                                \
    X(KOHYA, "kohya", true)                                                                        \
    X(COMFYUI, "comfyui", true)                                                                    \
    X(GGUF, "gguf", true)                                                                          \
    X(LORA_TRANSFORMER, "lora_transformer", false)                                                 \
    X(XLABS, "xlabs", false)

typedef enum tess_adapter_dialect {
#define X(name, text, is_written) TESS_ADAPTER_##name,
    TESS_ADAPTER_DIALECT_LIST(X)
#undef X
        TESS_ADAPTER_DIALECT_NUMEL
} tess_adapter_dialect;

/** "kohya". Local. */
const char *tess_adapter_dialect_name(tess_adapter_dialect dialect);

typedef enum tess_adapter_part {
    TESS_ADAPTER_A,         /* [rank, in] */
    TESS_ADAPTER_B,         /* [out, rank] */
    TESS_ADAPTER_MAGNITUDE, /* [out] */
    TESS_ADAPTER_PART_NUMEL
} tess_adapter_part;

/** One adapted linear layer. Plain data, borrowed from the adapter. */
typedef struct tess_adapter_module {
    const char *path; /* canonical: no prefix, no ".weight" */
    int64_t rank;
    int64_t in_numel;
    int64_t out_numel;
    double alpha;       /* the update is alpha / rank times B A, rslora included */
    bool has_magnitude; /* DoRA */
} tess_adapter_module;

/** How a file is read. */
typedef struct tess_adapter_options {
    bool skip_text_encoders;     /* leave keys of text encoders out and count them */
    const tess_llm_config *base; /* of the model below: GGUF files interleave rows by its heads;
                                    NULL: not known, and such matrices cannot be read */
} tess_adapter_options;

typedef struct tess_adapter tess_adapter;

/** The file that an export left in folder `path`; `path` itself where it is no such folder. Local.
 * @param[out] out  free with tess_free */
TESS_MUST_CHECK tess_status tess_adapter_locate(tess_io *io, const char *path, char **out);
/** Whether a path is an adapter by what it holds: a directory with adapter_config.json or an
 * exported file, or a .safetensors or .gguf file with matrices of an adapter. Local. */
TESS_MUST_CHECK tess_status tess_adapter_is_path(tess_io *io, const char *path, bool *out);
/**
 * Open an adapter; the dialect is found from the keys. Local. `io` is kept (view).
 * @param options  NULL: none
 * @return TESS_E_FORMAT damaged, mixed or incomplete; TESS_E_UNSUPPORTED names the key that is not
 * understood; TESS_E_CONFIG the base model is needed and not given; TESS_E_IO
 */
TESS_MUST_CHECK tess_status tess_adapter_open(tess_io *io, const char *path,
                                              const tess_adapter_options *options,
                                              tess_adapter **out);
void tess_adapter_close(tess_adapter **adapter);
tess_adapter_dialect tess_adapter_dialect_of(const tess_adapter *adapter);
/** Whether its modules are FLUX.1's. */
bool tess_adapter_is_flux(const tess_adapter *adapter);
int64_t tess_adapter_numel(const tess_adapter *adapter);
/** Module `idx` in bytewise order of paths, NULL outside. */
const tess_adapter_module *tess_adapter_at(const tess_adapter *adapter, int64_t idx);
/** Its index, -1: no such module. O(log modules). */
int64_t tess_adapter_find(const tess_adapter *adapter, const char *path);
/** Widest dtype among its matrices: f32, bf16 or f16 (bf16 beside f16 counts as f32). */
tess_dtype tess_adapter_dtype(const tess_adapter *adapter);
/** Keys of text encoders that were left out. */
int64_t tess_adapter_skipped_numel(const tess_adapter *adapter);
/** Metadata of the file: "base.quant", "ss_network_dim", ...; NULL when absent. */
const char *tess_adapter_metadata(const tess_adapter *adapter, const char *key);
/** Model that the adapter says it belongs to (a path or a name), NULL: not stated. */
const char *tess_adapter_base_name(const tess_adapter *adapter);
/**
 * Read one whole part, widened to f32. Local.
 * @param[out] dst  shape of the part, f32
 * @return TESS_E_CONFIG its rows are interleaved by heads and the base was not given; TESS_E_IO
 */
TESS_MUST_CHECK tess_status tess_adapter_read(const tess_adapter *adapter, int64_t idx,
                                              tess_adapter_part part, float *dst);

/** PEFT options that describe exactly its modules: the directory's own, or its modules as targets
 * with ranks and alphas as patterns. Local. @return TESS_E_UNSUPPORTED some modules are DoRA */
TESS_MUST_CHECK tess_status tess_adapter_spec(const tess_adapter *adapter, tess_peft_spec **out);

/** What is written. */
typedef struct tess_adapter_target {
    tess_adapter_dialect dialect;
    tess_dtype dt;               /* f32, bf16 or f16 */
    const tess_llm_config *base; /* gguf: the model below; else unused */
} tess_adapter_target;

/**
 * Write an adapter in another dialect or dtype into folder `dir` (created when missing). Local.
 *
 * Every value is the stored one, times what the dialect folds, rounded once. diffusers: alpha/rank
 * is folded into B. kohya, comfyui: alpha stands beside, q, k, v are fused; three adapters of equal
 * A stay one, others become one block-diagonal of the sum of their ranks.
 *
 * @return TESS_E_UNSUPPORTED names the module or part that the dialect has no place for;
 * TESS_E_RANGE names the value that the dtype cannot hold; TESS_E_CONFIG gguf without base
 */
TESS_MUST_CHECK tess_status tess_adapter_write(tess_io *io, const tess_adapter *from,
                                               const tess_adapter_target *to, const char *dir);

TESS_END_DECLS
