/** Writes a model in another format, and says what that costs in accuracy. */
#pragma once

#include "train/rewrite/rewrite.h"

TESS_BEGIN_DECLS

typedef struct tess_quantize_options {
    const char *model;  /* Hugging Face directory or GGUF file */
    const char *output; /* must not exist; a GGUF file when it ends in .gguf */
    tess_rewrite_choice choice;
    tess_dtype storage;   /* quant_storage of 4-bit codes */
    int64_t shard_nbytes; /* largest safetensors file with more than one tensor */
    int thread_numel;
} tess_quantize_options;

/** What became of one tensor. Plain data. */
typedef struct tess_quantize_row {
    char name[TESS_NAME_NBYTES];
    int shape_rank;
    int64_t shape[TESS_PARAM_RANK_MAX];
    char from[TESS_CODEC_TEXT_NBYTES], to[TESS_CODEC_TEXT_NBYTES];
    double relative_rms;  /* root of sum (after - before)^2 / sum before^2; 0: kept */
    double most;          /* largest |after - before| */
    int64_t zeroed_numel; /* blocks whose scale became 0 */
    int64_t before_nbytes, after_nbytes;
    bool is_ragged; /* kept because its rows are no whole blocks of the format asked for */
} tess_quantize_row;

typedef struct tess_quantize_result {
    tess_quantize_row *row; /* [row_numel], owned: tess_quantize_result_fini */
    int64_t row_numel;
    double relative_rms; /* over all tensors that changed */
    int64_t before_nbytes, after_nbytes;
    char base_id[TESS_SHA256_HEX_NBYTES]; /* of a run over the output with base.format keep */
    char quant[TESS_CODEC_TEXT_NBYTES];   /* rule of most weights: base.quant */
} tess_quantize_result;

/**
 * Read, encode and write a model tensor by tensor. Local.
 * @return TESS_E_FORMAT a weight or scale that is not finite or that the format cannot hold: tensor
 * and element named; TESS_E_CONFIG, TESS_E_UNSUPPORTED, TESS_E_IO; nothing is left then
 */
TESS_MUST_CHECK tess_status tess_quantize_model(const tess_ctx *ctx,
                                                const tess_quantize_options *options,
                                                tess_quantize_result *out);
void tess_quantize_result_fini(tess_quantize_result *result);

TESS_END_DECLS
