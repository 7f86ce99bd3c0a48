/** Values of the run file's keys: the words of its enums, and lists. See run_schema.h. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "core/base.h"
#include "core/codec.h"
#include "shard/optimizer.h"

TESS_BEGIN_DECLS

/* Values of INT keys that are words, by position. */
enum { TESS_RUN_AUTO = -1, TESS_RUN_GROUP_NODE = -2, TESS_RUN_GROUP_WORLD = -3 };

/* Enums: X(NAME, "word"). */
#define TESS_RUN_FAMILY_LIST(X)                                                                    \
    X(AUTO, "auto")                                                                                \
    X(LLAMA, "llama")                                                                              \
    X(MISTRAL, "mistral")                                                                          \
    X(QWEN2, "qwen2") X(QWEN3, "qwen3") X(KMEANS, "kmeans") X(RQVAE, "rqvae") X(VQVAE, "vqvae")    \
        X(FLUX, "flux")
#define TESS_RUN_QUANTIZER_LIST(X)                                                                 \
    X(AUTO, "auto")                                                                                \
    X(RESIDUAL_KMEANS, "residual-kmeans")                                                          \
    X(VQ, "vq")                                                                                    \
    X(RESIDUAL_VQ, "residual-vq")                                                                  \
    X(COSINE, "cosine")                                                                            \
    X(SIMVQ, "simvq")                                                                              \
    X(RESIDUAL_SIMVQ, "residual-simvq") X(FSQ, "fsq") X(RESIDUAL_FSQ, "residual-fsq")              \
        X(LFQ, "lfq") X(BSQ, "bsq") X(LATENT, "latent") X(RANDOM_PROJECTION, "random-projection")
#define TESS_RUN_LEVEL_RULE_LIST(X)                                                                \
    X(UPPER, "upper") X(LOWER, "lower") X(SYMMETRIC, "symmetric") X(CLAMPED, "clamped")
#define TESS_RUN_CODE_INIT_LIST(X)                                                                 \
    X(AUTO, "auto")                                                                                \
    X(PLUS_PLUS, "kmeans++") X(SAMPLE, "sample") X(RANDOM, "random") X(KMEANS, "kmeans")
#define TESS_RUN_ESTIMATOR_LIST(X) X(STRAIGHT, "straight-through") X(ROTATION, "rotation")
#define TESS_RUN_UPDATE_LIST(X) X(GRADIENT, "gradient") X(EMA, "ema")
#define TESS_RUN_OVER_LIST(X) X(MEAN, "mean") X(SUM, "sum")
#define TESS_RUN_TIMESTEPS_LIST(X)                                                                 \
    X(UNIFORM, "uniform")                                                                          \
    X(LOGIT_NORMAL, "logit-normal")                                                                \
    X(SIGMOID, "sigmoid") X(BETA, "beta") X(MODE, "mode") X(FAST, "fast")
#define TESS_RUN_SHIFT_LIST(X) X(NONE, "none") X(STATIC, "static") X(AUTO, "auto")
#define TESS_RUN_WEIGHTING_LIST(X) X(NONE, "none") X(SIGMA_SQRT, "sigma_sqrt") X(COSMAP, "cosmap")
#define TESS_RUN_GUIDANCE_LIST(X) X(CONSTANT, "constant") X(UNIFORM, "uniform")
#define TESS_RUN_SHARDING_LIST(X) X(AUTO, "auto") X(REPLICATED, "replicated") X(ROWS, "rows")
#define TESS_RUN_INIT_LIST(X) X(WEIGHTS, "weights") X(RANDOM, "random")
#define TESS_RUN_BASE_LIST(X)                                                                      \
    X(KEEP, "keep")                                                                                \
    X(F32, "f32")                                                                                  \
    X(BF16, "bf16")                                                                                \
    X(NF4, "nf4")                                                                                  \
    X(FP4, "fp4")                                                                                  \
    X(F16, "f16")                                                                                  \
    X(Q8_0, "q8_0") X(Q4_0, "q4_0") X(INT8, "int8") X(QINT8, "qint8") X(QINT4, "qint4")            \
        X(QINT2, "qint2") X(QFLOAT8, "qfloat8") X(QFLOAT8_E5M2, "qfloat8_e5m2") X(INT4, "int4")    \
            X(INT2, "int2") X(E4M3, "e4m3") X(E5M2, "e5m2")
/* The choices of core/codec.h. */
#define TESS_RUN_RULE_LIST(X) TESS_SCALE_RULE_LIST(X)
#define TESS_RUN_SCALING_LIST(X) TESS_SCALING_LIST(X)
#define TESS_RUN_MEANING_LIST(X) TESS_SCALE_MEANING_LIST(X)
#define TESS_RUN_START_LIST(X)                                                                     \
    X(DEFAULT, "default") X(GAUSSIAN, "gaussian") X(PISSA, "pissa") X(LOFTQ, "loftq")
#define TESS_RUN_MODE_LIST(X) X(LORA, "lora") X(FULL, "full")
#define TESS_RUN_SCHEDULE_LIST(X)                                                                  \
    X(CONSTANT, "constant")                                                                        \
    X(LINEAR, "linear") X(COSINE, "cosine") X(POLYNOMIAL, "polynomial") X(WSD, "wsd")
#define TESS_RUN_DECAY_LIST(X) X(COSINE, "cosine") X(LINEAR, "linear") X(ROOT, "1-sqrt")
#define TESS_RUN_OPTIMIZER_LIST(X) TESS_OPTIMIZER_LIST(X)
#define TESS_RUN_MUON_SCALE_LIST(X) X(MATCH, "match_rms_adamw") X(ORIGINAL, "original")
#define TESS_RUN_SPIKE_LIST(X) X(WARN, "warn") X(SKIP, "skip") X(ROLLBACK, "rollback")
#define TESS_RUN_WEIGHTS_LIST(X) X(TRAINED, "trained") X(EMA, "ema")
#define TESS_RUN_SWITCH_LIST(X) X(AUTO, "auto") X(ON, "on") X(OFF, "off")
#define TESS_RUN_REDUCTION_LIST(X) X(EXACT, "exact") X(LIBRARY, "library")
#define TESS_RUN_EXCHANGE_LIST(X) X(AUTO, "auto") X(DIRECT, "direct") X(BY_NODE, "by-node")
#define TESS_RUN_DEVICE_LIST(X) X(AUTO, "auto") X(CPU, "cpu") X(CUDA, "cuda")
#define TESS_RUN_DTYPE_LIST(X) X(BF16, "bf16") X(F32, "f32")
#define TESS_RUN_BUSY_LIST(X) X(WAIT, "wait") X(SKIP, "skip")
#define TESS_RUN_FULL_LIST(X) X(CONTINUE, "continue") X(PAUSE, "pause") X(STOP, "stop")
#define TESS_RUN_STORE_LIST(X) X(AUTO, "auto") X(COPY, "copy")
#define TESS_RUN_EXPORT_LIST(X)                                                                    \
    X(AUTO, "auto")                                                                                \
    X(PEFT, "peft")                                                                                \
    X(HF, "hf")                                                                                    \
    X(GGUF, "gguf")                                                                                \
    X(DIFFUSERS, "diffusers") X(KOHYA, "kohya") X(COMFYUI, "comfyui") X(NONE, "none")

#define TESS_RUN_WORD_(name, text) "|" text
#define TESS_RUN_WORDS_(NAME) TESS_RUN_##NAME##_LIST(TESS_RUN_WORD_)

typedef enum tess_run_family {
#define X(name, text) TESS_RUN_FAMILY_##name,
    TESS_RUN_FAMILY_LIST(X)
#undef X
} tess_run_family;
typedef enum tess_run_init {
#define X(name, text) TESS_RUN_INIT_##name,
    TESS_RUN_INIT_LIST(X)
#undef X
} tess_run_init;
typedef enum tess_run_base_format {
#define X(name, text) TESS_RUN_BASE_##name,
    TESS_RUN_BASE_LIST(X)
#undef X
} tess_run_base_format;
typedef enum tess_run_start {
#define X(name, text) TESS_RUN_START_##name,
    TESS_RUN_START_LIST(X)
#undef X
} tess_run_start;
typedef enum tess_run_mode {
#define X(name, text) TESS_RUN_MODE_##name,
    TESS_RUN_MODE_LIST(X)
#undef X
} tess_run_mode;
typedef enum tess_run_schedule {
#define X(name, text) TESS_RUN_SCHEDULE_##name,
    TESS_RUN_SCHEDULE_LIST(X)
#undef X
} tess_run_schedule;
typedef enum tess_run_decay {
#define X(name, text) TESS_RUN_DECAY_##name,
    TESS_RUN_DECAY_LIST(X)
#undef X
} tess_run_decay;
typedef enum tess_run_muon_scale {
#define X(name, text) TESS_RUN_MUON_SCALE_##name,
    TESS_RUN_MUON_SCALE_LIST(X)
#undef X
} tess_run_muon_scale;
typedef enum tess_run_spike {
#define X(name, text) TESS_RUN_SPIKE_##name,
    TESS_RUN_SPIKE_LIST(X)
#undef X
} tess_run_spike;
typedef enum tess_run_weights {
#define X(name, text) TESS_RUN_WEIGHTS_##name,
    TESS_RUN_WEIGHTS_LIST(X)
#undef X
} tess_run_weights;
typedef enum tess_run_switch {
#define X(name, text) TESS_RUN_SWITCH_##name,
    TESS_RUN_SWITCH_LIST(X)
#undef X
} tess_run_switch;
typedef enum tess_run_reduction {
#define X(name, text) TESS_RUN_REDUCTION_##name,
    TESS_RUN_REDUCTION_LIST(X)
#undef X
} tess_run_reduction;
typedef enum tess_run_exchange {
#define X(name, text) TESS_RUN_EXCHANGE_##name,
    TESS_RUN_EXCHANGE_LIST(X)
#undef X
} tess_run_exchange;
typedef enum tess_run_device {
#define X(name, text) TESS_RUN_DEVICE_##name,
    TESS_RUN_DEVICE_LIST(X)
#undef X
} tess_run_device;
typedef enum tess_run_dtype {
#define X(name, text) TESS_RUN_DTYPE_##name,
    TESS_RUN_DTYPE_LIST(X)
#undef X
} tess_run_dtype;
typedef enum tess_run_busy {
#define X(name, text) TESS_RUN_BUSY_##name,
    TESS_RUN_BUSY_LIST(X)
#undef X
} tess_run_busy;
typedef enum tess_run_full {
#define X(name, text) TESS_RUN_FULL_##name,
    TESS_RUN_FULL_LIST(X)
#undef X
} tess_run_full;
typedef enum tess_run_store {
#define X(name, text) TESS_RUN_STORE_##name,
    TESS_RUN_STORE_LIST(X)
#undef X
} tess_run_store;
typedef enum tess_run_quantizer {
#define X(name, text) TESS_RUN_QUANTIZER_##name,
    TESS_RUN_QUANTIZER_LIST(X)
#undef X
} tess_run_quantizer;
typedef enum tess_run_level_rule {
#define X(name, text) TESS_RUN_LEVEL_RULE_##name,
    TESS_RUN_LEVEL_RULE_LIST(X)
#undef X
} tess_run_level_rule;
typedef enum tess_run_code_init {
#define X(name, text) TESS_RUN_CODE_INIT_##name,
    TESS_RUN_CODE_INIT_LIST(X)
#undef X
} tess_run_code_init;
typedef enum tess_run_estimator {
#define X(name, text) TESS_RUN_ESTIMATOR_##name,
    TESS_RUN_ESTIMATOR_LIST(X)
#undef X
} tess_run_estimator;
typedef enum tess_run_update {
#define X(name, text) TESS_RUN_UPDATE_##name,
    TESS_RUN_UPDATE_LIST(X)
#undef X
} tess_run_update;
typedef enum tess_run_over {
#define X(name, text) TESS_RUN_OVER_##name,
    TESS_RUN_OVER_LIST(X)
#undef X
} tess_run_over;
typedef enum tess_run_timesteps {
#define X(name, text) TESS_RUN_TIMESTEPS_##name,
    TESS_RUN_TIMESTEPS_LIST(X)
#undef X
} tess_run_timesteps;
typedef enum tess_run_shift {
#define X(name, text) TESS_RUN_SHIFT_##name,
    TESS_RUN_SHIFT_LIST(X)
#undef X
} tess_run_shift;
typedef enum tess_run_weighting {
#define X(name, text) TESS_RUN_WEIGHTING_##name,
    TESS_RUN_WEIGHTING_LIST(X)
#undef X
} tess_run_weighting;
typedef enum tess_run_guidance {
#define X(name, text) TESS_RUN_GUIDANCE_##name,
    TESS_RUN_GUIDANCE_LIST(X)
#undef X
} tess_run_guidance;
typedef enum tess_run_sharding {
#define X(name, text) TESS_RUN_SHARDING_##name,
    TESS_RUN_SHARDING_LIST(X)
#undef X
} tess_run_sharding;
typedef enum tess_run_export {
#define X(name, text) TESS_RUN_EXPORT_##name,
    TESS_RUN_EXPORT_LIST(X)
#undef X
} tess_run_export;

/** A string, or a list of strings. */
typedef struct tess_run_names {
    char **item;        /* [item_numel], owned */
    int64_t item_numel; /* 0: not given, or the empty list */
    bool is_list;       /* written as a list: each item is a name or the last parts of one */
} tess_run_names;

/** One rule of base.overrides. */
typedef struct tess_run_rule {
    char *match; /* regular expression on the tensor name, owned */
    tess_run_base_format format;
} tess_run_rule;

typedef struct tess_run_rules {
    tess_run_rule *item; /* [item_numel], owned; the first match wins */
    int64_t item_numel;
} tess_run_rules;

/** One or several integers. */
typedef struct tess_run_ints {
    int64_t *item; /* [item_numel], owned */
    int64_t item_numel;
} tess_run_ints;

/** One entry of lora.rank_pattern or lora.alpha_pattern. */
typedef struct tess_run_pattern {
    char *pattern; /* regular expression on the end of a path, owned */
    double value;
} tess_run_pattern;

typedef struct tess_run_patterns {
    tess_run_pattern *item; /* [item_numel], owned; the first match wins */
    int64_t item_numel;
} tess_run_patterns;

TESS_END_DECLS
