/**
 * The keys "tokenizer.ggml.*" of a GGUF file, made of a tokenizer.json.
 *
 * Byte-level BPE becomes llama.cpp's model "gpt2" with the name of a pre-tokenizer that it has; BPE
 * of SentencePiece's kind becomes "llama", whose scores are the ranks of merges. What llama.cpp
 * would split otherwise than the tokenizer does is refused.
 *
 * @source llama.cpp convert_hf_to_gguf.py, src/llama-vocab.cpp; gguf-py constants.py
 */
#pragma once

#include "format/gguf.h"
#include "format/hf_config.h"

TESS_BEGIN_DECLS

enum { TESS_GGUF_VOCAB_PAIR_MAX = 12 };

typedef struct tess_gguf_vocab {
    tess_gguf_pair pair[TESS_GGUF_VOCAB_PAIR_MAX]; /* [pair_numel], borrowed from the vocabulary */
    int pair_numel;
    struct tess_gguf_vocab_tables *tables; /* private */
} tess_gguf_vocab;

/**
 * Read `folder`/tokenizer.json and make the keys. Local. Free with tess_gguf_vocab_fini.
 * @return TESS_E_UNSUPPORTED a tokenizer that GGUF cannot say: names what; TESS_E_FORMAT more
 * tokens than the model has rows; as tess_tokenizer_open
 */
TESS_MUST_CHECK tess_status tess_gguf_vocab_create(tess_io *io, const char *folder,
                                                   const tess_llm_config *config,
                                                   tess_gguf_vocab *out);
void tess_gguf_vocab_fini(tess_gguf_vocab *vocab);

TESS_END_DECLS
