/**
 * Whole models as other programs read them: a Hugging Face directory (plain safetensors, weights as
 * bitsandbytes or optimum-quanto packs them, or fp8 with its scales) or one GGUF file.
 *
 * Sizes follow from names, shapes and codecs, so files are laid out at once and tensors come one by
 * one: nothing is kept but tables. What is half written has another name: the folder
 * OUT.tessera-tmp is renamed to OUT when all of it is durable, and so is OUT.tmp for a GGUF file.
 */
#pragma once

#include "core/codec.h"
#include "core/ctx.h"
#include "format/hf_config.h"
#include "format/json.h"
#include "format/safetensors.h"

TESS_BEGIN_DECLS

/** One tensor of a model: plain data, borrowed for the call. */
typedef struct tess_model_write_tensor {
    const char *name; /* Hugging Face */
    int dim_numel;
    int64_t dim[2];    /* slowest first */
    tess_codec codec;  /* as it is written */
    tess_dtype origin; /* f32, bf16 or f16: what it was before it was quantized */
    bool is_linear;    /* weight of a linear layer: where it is plain among packed ones, readers
                          are told to leave it alone */
} tess_model_write_tensor;

/** Tables that files of bitsandbytes carry; they belong to the kernels. */
typedef struct tess_packed_tables {
    const float *nf4, *fp4; /* [16] by code */
    const float *dynamic;   /* [256] signed dynamic map */
} tess_packed_tables;

typedef struct tess_model_write_request {
    const char *path;        /* must not exist; a GGUF file when it ends in .gguf */
    const char *source_path; /* folder whose tokenizer files go along; NULL: none */
    const tess_llm_config *config;
    const tess_json *config_root;          /* config.json that goes along; NULL: made of config */
    const char *stem; /* of the names of weight files; NULL: model */
    const char *torch_dtype;               /* stated in config.json; NULL: as in config_root */
    const tess_model_write_tensor *tensor; /* [tensor_numel] */
    int64_t tensor_numel;
    tess_dtype storage;        /* quant_storage of 4-bit codes: u8, bf16, f16 or f32 */
    int64_t shard_nbytes;      /* largest safetensors file with more than one tensor */
    const char *quant;         /* metadata base.quant: "nf4/64/double" */
    const tess_st_pair *extra; /* [extra_numel] more metadata of every file */
    int64_t extra_numel;
    tess_packed_tables tables;
} tess_model_write_request;

/** A base id before it is known: of as many bytes, for `extra`. */
#define TESS_BASE_ID_UNKNOWN "0000000000000000000000000000000000000000000000000000000000000000"

typedef struct tess_model_writer tess_model_writer;

/**
 * Check what is asked for and create the files. Local. `ctx` is kept (view), the rest is copied
 * except `tables`.
 * @return TESS_E_CONFIG `path` exists; TESS_E_UNSUPPORTED a codec that these files cannot hold, a
 * tokenizer that GGUF cannot say: named; TESS_E_IO
 */
TESS_MUST_CHECK tess_status tess_model_writer_create(const tess_ctx *ctx,
                                                     const tess_model_write_request *request,
                                                     tess_model_writer **out);
/** Write a whole tensor, once. Local.
 * @param part  parts of its codec, rows in Hugging Face order */
TESS_MUST_CHECK tess_status tess_model_writer_put(tess_model_writer *writer, int64_t tensor_idx,
                                                  const void *const *part);
/** Replace a value of `extra` by one of as many bytes. Local. @return TESS_E_ARG */
TESS_MUST_CHECK tess_status tess_model_writer_set(tess_model_writer *writer, const char *key,
                                                  const char *value);
/** Complete everything and give it its name. Local. @param base_id  64 hex digits, for the metadata
 */
TESS_MUST_CHECK tess_status tess_model_writer_finish(tess_model_writer *writer,
                                                     const char *base_id);
/** Free; without a successful finish nothing stays. */
void tess_model_writer_destroy(tess_model_writer **writer);

TESS_END_DECLS
