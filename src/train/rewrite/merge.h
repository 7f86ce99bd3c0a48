/**
 * Adds a LoRA adapter to the weights it was trained on.
 *
 * With DoRA rows of the sum get the norms that were trained; modules_to_save take the place of the
 * base's tensors, which are no part of the base id then.
 *
 * W + s B A in fp32, s = alpha / r (or alpha / sqrt(r)); the product in ascending order of the
 * rank, the sum rounded once to what is written. The default W is the base as it was trained over:
 * the weights in the format that the adapter's metadata names, decoded. The output is plain unless
 * a quantized format is asked for.
 *
 * @source peft 0.21, tuners/lora/layer.py Linear.get_delta_weight
 */
#pragma once

#include "train/rewrite/rewrite.h"

TESS_BEGIN_DECLS

typedef struct tess_merge_options {
    const char *model;   /* what the adapter was trained on: directory or GGUF file */
    const char *adapter; /* PEFT directory */
    const char *output;  /* must not exist; a GGUF file when it ends in .gguf */
    tess_dtype dt;       /* of the output: bf16 or f32; not used with `into` */
    bool is_original;    /* merge into the weights as they lie in the files */
    bool allow_base_change;
    const tess_rewrite_rule *rule; /* [rule_numel] base.overrides of the run that trained it */
    int64_t rule_numel;
    const tess_rewrite_choice *into; /* NULL, or how the merged weights are quantized again */
    tess_dtype storage;
    int64_t shard_nbytes;
    int thread_numel;
} tess_merge_options;

/** How much of a change of weights is left in what is stored. Plain data. */
typedef struct tess_merge_survival {
    double delta;    /* rms of the delta over rms of the weights before it */
    double survived; /* sum (z - q) d / sum d^2: 1, all of it; 0, none */
    double noise;    /* root of sum (z - q - d)^2 / sum d^2 */
} tess_merge_survival;

/**
 * Compare stored weights z with q + d that they were made of. Local; sums in fp64 in a fixed order.
 * A delta of zeros has survived 1 and noise 0.
 * @param q  [numel] f32 before
 * @param d  [numel] f32 what was added
 */
TESS_MUST_CHECK tess_status tess_merge_measure(const float *q, const float *d, const tess_stored *z,
                                               tess_merge_survival *out);

/** One adapted layer, or a tensor of modules_to_save. Plain data. */
typedef struct tess_merge_row {
    char name[TESS_NAME_NBYTES]; /* of the weight */
    int64_t rank;                /* 0: trained as a whole */
    double scale;
    char to[TESS_CODEC_TEXT_NBYTES];
    tess_merge_survival survival;
} tess_merge_row;

typedef struct tess_merge_result {
    tess_merge_row *row; /* [row_numel], owned: tess_merge_result_fini */
    int64_t row_numel;
    char trained_id[TESS_SHA256_HEX_NBYTES]; /* as the adapter states it, "" when it does not */
    char merged_id[TESS_SHA256_HEX_NBYTES];  /* of the weights that it was added to */
    char merged_quant[TESS_CODEC_TEXT_NBYTES];
    char base_id[TESS_SHA256_HEX_NBYTES]; /* of the output */
    char quant[TESS_CODEC_TEXT_NBYTES];
} tess_merge_result;

/**
 * Merge and write, tensor by tensor. Local.
 * @return TESS_E_CONFIG another base than the adapter was trained on: both identities;
 * TESS_E_FORMAT an adapter that fits no layer, values that are not finite; TESS_E_UNSUPPORTED;
 * TESS_E_IO; nothing is left then
 */
TESS_MUST_CHECK tess_status tess_merge_model(const tess_ctx *ctx, const tess_merge_options *options,
                                             tess_merge_result *out);
void tess_merge_result_fini(tess_merge_result *result);

TESS_END_DECLS
