/**
 * Model directories: where each tensor lies, whatever the number of files.
 *
 * Either one model.safetensors, or model.safetensors.index.json with its files, or both under the
 * name diffusion_pytorch_model, or a single .safetensors or GGUF file in place of a directory. The
 * fused tensors of a FLUX.1 file of Black Forest Labs are those of diffusers here, cut by rows. A
 * weight that bitsandbytes or optimum-quanto has packed, or that is fp8, is one tensor here, of the
 * shape it stands for; its bytes are the parts of its codec. Weights are read by range; nothing is
 * kept in memory but the tables.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "core/ctx.h"
#include "core/digest.h"
#include "format/gguf_llm.h"
#include "format/safetensors.h"

TESS_BEGIN_DECLS

enum { TESS_MODEL_DIR_FILE_MAX = 1024 };

/**
 * Key of a safetensors file's __metadata__: a JSON object in text, name of a weight in this file to
 * its identity (tess_codec_describe): {"X.weight": "qint2/128/bf16/hqq"}. Optional. What it says
 * must be what the tensors are; it alone tells the rule of qint4 and qint2, and which scale
 * X.weight_scale is.
 */
#define TESS_MODEL_FORMATS_KEY "tessera.formats"
/** fp8: X + this is a scale that weights were multiplied with. X.weight_scale, and X.scale_weight
 * of ComfyUI, multiply codes unless the metadata says otherwise. */
#define TESS_MODEL_QUANT_SCALE_SUFFIX ".weight_quant_scale"

/** Codes and constants that lie as tensors of their own: private. */
typedef struct tess_packed tess_packed;
/** Rows of a tensor of the files: private. */
typedef struct tess_row_cut tess_row_cut;

/** One tensor of the directory: plain data, borrowed from it. */
typedef struct tess_model_tensor {
    const char *name;
    const tess_st_tensor *st; /* shape and bytes; dtype, U8 where values are coded */
    int file_idx;
    const tess_gguf_tensor *gguf; /* NULL: safetensors */
    int64_t head_dim;             /* tess_gguf_interleaved() */
    const tess_packed *packed;    /* NULL: one tensor of the file; else its parts, joined */
    const tess_row_cut *cut;      /* NULL: all rows, as the files have them */
} tess_model_tensor;

typedef struct tess_model_dir tess_model_dir;

/**
 * How a weight is stored: f32, bf16, f16, the blocks of a GGUF file, or the codes and constants of
 * bitsandbytes, optimum-quanto or fp8. Local.
 * @return TESS_E_UNSUPPORTED integers and others that are no weights
 */
TESS_MUST_CHECK tess_status tess_model_tensor_codec(const tess_model_tensor *t, tess_codec *out);

/** Whether a path names a file with a whole model, by its name: .gguf or .safetensors. Local. */
bool tess_model_is_file(const char *path);
/**
 * Open a directory, or a file with a whole model, and check all its weight files' headers. Local.
 * `ctx` is kept (view). A total_size that differs and tensors that the index does not list are
 * logged as warnings.
 * @return TESS_E_FORMAT no directory, no weights in it, or damaged; TESS_E_UNSUPPORTED other kinds
 * of weights; TESS_E_IO
 */
TESS_MUST_CHECK tess_status tess_model_dir_open(const tess_ctx *ctx, const char *path,
                                                tess_model_dir **out);
void tess_model_dir_close(tess_model_dir **dir);
/** The directory; that of a single file. */
const char *tess_model_dir_path(const tess_model_dir *dir);
/** The open GGUF file, NULL for a directory. */
const tess_gguf *tess_model_dir_gguf(const tess_model_dir *dir);
int64_t tess_model_dir_tensor_numel(const tess_model_dir *dir);
/** Tensor `idx` in bytewise order of names, NULL outside. */
const tess_model_tensor *tess_model_dir_at(const tess_model_dir *dir, int64_t idx);
/** NULL when absent. O(log tensors). */
const tess_model_tensor *tess_model_dir_find(const tess_model_dir *dir, const char *name);
/**
 * Find a tensor that must exist with this shape, and mark it as used. Local. Weights that quanto
 * packs in groups get their shape here: its files do not know it.
 * @return TESS_E_FORMAT absent or another shape: names directory or file, tensor, both shapes
 */
TESS_MUST_CHECK tess_status tess_model_dir_claim(tess_model_dir *dir, const char *name,
                                                 const int64_t *dim, int dim_numel,
                                                 const tess_model_tensor **out);
/**
 * Tensors that no claim took, without those that never carry weights (*.rotary_emb.inv_freq).
 * Local.
 * @param idx  0, 1, ... until the result is NULL
 */
const tess_model_tensor *tess_model_dir_unclaimed(const tess_model_dir *dir, int64_t idx);
/** Read bytes [first, first + nbytes) of a tensor, rows in Hugging Face order. Local. @return as
 * tess_safetensors_read, tess_gguf_read_rows */
TESS_MUST_CHECK tess_status tess_model_dir_read(const tess_model_dir *dir,
                                                const tess_model_tensor *tensor,
                                                int64_t first_nbytes, size_t nbytes, void *dst);
/**
 * Two tensors hold the same bytes in the same shape and dtype. Local; reads both.
 * @return TESS_E_FORMAT they differ, in dtype or shape (which are named) or in bytes: `why` says
 * what follows from it; as tess_model_dir_read
 */
TESS_MUST_CHECK tess_status tess_model_dir_same(const tess_model_dir *dir,
                                                const tess_model_tensor *a,
                                                const tess_model_tensor *b, const char *why);
int tess_model_dir_file_numel(const tess_model_dir *dir);
/** Base name of weight file `file_idx`. */
const char *tess_model_dir_file_name(const tess_model_dir *dir, int file_idx);
int64_t tess_model_dir_file_nbytes(const tess_model_dir *dir, int file_idx);
/** SHA-256 of a weight file, computed at the first call and kept. Local; reads the whole file. */
TESS_MUST_CHECK tess_status tess_model_dir_file_sha256(tess_model_dir *dir, int file_idx,
                                                       tess_sha256 *out);
/** Tensors in files that the index does not list: number, and name `idx`. */
int64_t tess_model_dir_extra_numel(const tess_model_dir *dir);
const char *tess_model_dir_extra_name(const tess_model_dir *dir, int64_t idx);

TESS_END_DECLS
