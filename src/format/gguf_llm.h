/**
 * Language models in GGUF files: their configuration, the Hugging Face names of their tensors, and
 * the order of their rows.
 *
 * [Note: interleaved rows] The converter of llama.cpp moves the rows of q and k of architecture
 * `llama` (Mistral among them) so that rotary pairs are neighbours: row 2i of a head in the file is
 * row i of that head, row 2i + 1 is row i + d/2. Everything here is in Hugging Face order; rows are
 * moved whole, so codes and constants stay as they are.
 *
 * @source llama.cpp convert_hf_to_gguf.py LlamaModel.permute, gguf-py constants.py
 */
#pragma once

#include "format/gguf.h"
#include "format/hf_config.h"

TESS_BEGIN_DECLS

enum { TESS_GGUF_HF_NAME_NBYTES = 128 };

/** Whether `path` names a GGUF file by its suffix ".gguf". Local. */
bool tess_gguf_is_path(const char *path);
/**
 * Configuration of the model in a file. Local; reads rope_freqs.weight when there is one.
 * @return TESS_E_FORMAT a key is missing or wrong; TESS_E_UNSUPPORTED names what is not understood
 */
TESS_MUST_CHECK tess_status tess_gguf_llm_config(const tess_gguf *file, tess_llm_config *out);
/** Value of general.architecture for a model: Mistral is a "llama". Local. */
const char *tess_gguf_arch_name(const tess_llm_config *config);
/** "model.layers.3.self_attn.q_proj.weight" of "blk.3.attn_q.weight"; false: no weight of ours.
 * Local. */
bool tess_gguf_hf_name(const char *name, char hf_name[TESS_GGUF_HF_NAME_NBYTES]);
/** The inverse. Local. */
bool tess_gguf_name_of(const char *hf_name, char name[TESS_GGUF_NAME_NBYTES]);
/** Rows of each head when they are interleaved in files of this family, else 0. `name` is the
 * file's. Local. */
int64_t tess_gguf_interleaved(const tess_llm_config *config, const char *name);
/** Row of the file that holds row `row` of a tensor with interleaved heads of `head_dim` rows.
 * Local. */
static inline int64_t tess_gguf_row(int64_t row, int64_t head_dim)
{
    const int64_t i = row % head_dim, half = head_dim / 2;
    return row - i + (i < half ? 2 * i : 2 * (i - half) + 1);
}
/** The inverse: the row that row `row` of the file holds. Local. */
static inline int64_t tess_gguf_hf_row(int64_t row, int64_t head_dim)
{
    const int64_t i = row % head_dim;
    return row - i + i / 2 + (i % 2) * (head_dim / 2);
}
/**
 * Read bytes [first, first + nbytes) of a tensor in Hugging Face order, and check the scales of
 * whole blocks. Local.
 * @param head_dim  as tess_gguf_interleaved()
 * @return as tess_gguf_read, tess_gguf_check_blocks
 */
TESS_MUST_CHECK tess_status tess_gguf_read_rows(const tess_gguf *file,
                                                const tess_gguf_tensor *tensor, int64_t head_dim,
                                                int64_t first_nbytes, size_t nbytes, void *dst);

TESS_END_DECLS
