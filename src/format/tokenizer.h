/**
 * Tokenizers read from Hugging Face tokenizer.json: byte-level BPE (split patterns of GPT-2,
 * Llama 3 and Qwen2) and SentencePiece-style BPE with byte fallback.
 *
 * Nothing in the file is run: a pre-tokenizer pattern is compared as text with the patterns
 * compiled in, and what is not known is refused by name. A tokenizer does not change after it was
 * read, so threads may share it; each brings its own `tess_encoder` (scratch memory).
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/digest.h"
#include "core/io.h"
#include "core/status.h"

TESS_BEGIN_DECLS

enum {
    TESS_TOKENIZER_VOCAB_LIMIT = 4 << 20,
    TESS_TOKENIZER_MERGE_LIMIT = 4 << 20,
    TESS_TOKENIZER_TOKEN_NBYTES_LIMIT = 4096,
    TESS_TOKENIZER_FILE_NBYTES_LIMIT = 64 << 20
};

typedef struct tess_tokenizer tess_tokenizer;

/** What encode does beside the model itself. */
typedef enum tess_encode_flags {
    TESS_ENCODE_PLAIN = 0,          /* no bos/eos; special tokens in the text are recognized */
    TESS_ENCODE_ADD_SPECIAL = 1,    /* apply the post-processor template (bos, eos) */
    TESS_ENCODE_NO_SPECIAL_TEXT = 2 /* special tokens in the text are ordinary characters */
} tess_encode_flags;

/** A growing list of token ids; zero-initialize, end with tess_ids_fini. */
typedef struct tess_ids {
    int32_t *id; /* [numel], owned */
    int64_t numel;
    int64_t room_numel;
} tess_ids;

/** Append ids. Local. @return TESS_E_MEMORY */
TESS_MUST_CHECK tess_status tess_ids_append(tess_ids *ids, const int32_t *id, int64_t numel);
void tess_ids_fini(tess_ids *ids);

/**
 * Read tokenizer.json; `path` may name the file or the directory that holds it. Local.
 *
 * @return TESS_E_FORMAT damaged or inconsistent; TESS_E_UNSUPPORTED names the model, normalizer,
 * pre-tokenizer, post-processor or decoder that is not known; TESS_E_IO
 */
TESS_MUST_CHECK tess_status tess_tokenizer_open(tess_io *io, const char *path,
                                                tess_tokenizer **out);
/** As tess_tokenizer_open, from memory; `name` is for messages. Local. */
TESS_MUST_CHECK tess_status tess_tokenizer_parse(const char *name, const char *text, size_t nbytes,
                                                 tess_tokenizer **out);
void tess_tokenizer_destroy(tess_tokenizer **tokenizer);

/** One more than the greatest id. Local. */
int64_t tess_tokenizer_vocab_numel(const tess_tokenizer *tokenizer);
/** SHA-256 of the bytes of tokenizer.json. Local. */
const tess_sha256 *tess_tokenizer_digest(const tess_tokenizer *tokenizer);
/** "byte-level BPE, llama3 pattern", ... for people. Local. */
const char *tess_tokenizer_kind(const tess_tokenizer *tokenizer);
/** Id of a token by its exact text in the file (added tokens first); -1 when there is none. Local.
 */
int32_t tess_tokenizer_find(const tess_tokenizer *tokenizer, const char *text);
/** Whether the id is an added token marked special. Local. */
bool tess_tokenizer_is_special(const tess_tokenizer *tokenizer, int32_t id);
/** Ids that the post-processor puts in front of and behind one text. Local. */
const tess_ids *tess_tokenizer_prefix(const tess_tokenizer *tokenizer);
const tess_ids *tess_tokenizer_suffix(const tess_tokenizer *tokenizer);

typedef struct tess_encoder tess_encoder;

/** Scratch memory of one thread; the tokenizer must outlive it. Local. */
TESS_MUST_CHECK tess_status tess_encoder_create(const tess_tokenizer *tokenizer,
                                                tess_encoder **out);
void tess_encoder_destroy(tess_encoder **encoder);

/**
 * Append the ids of one text. Local.
 *
 * @param[in]     encoder  scratch of this thread
 * @param[in]     text     [nbytes] UTF-8, NUL allowed; borrowed
 * @param[in]     flags    tess_encode_flags, combined with |
 * @param[in,out] ids      receives the ids behind what it holds; unchanged on failure
 * @return TESS_E_FORMAT text is not UTF-8 (names the byte), or holds a character that the
 * vocabulary lacks and no unknown token stands for; TESS_E_MEMORY
 */
TESS_MUST_CHECK tess_status tess_encode(tess_encoder *encoder, const char *text, size_t nbytes,
                                        unsigned flags, tess_ids *ids);

/**
 * As tess_encode of header and content joined, with the place where the content begins: a token
 * that holds the end of the header belongs to the header. Local.
 *
 * @param[out] content_idx  index into `ids` of the first id of the content
 */
typedef struct tess_encode_parts {
    const char *header;
    size_t header_nbytes;
    const char *content;
    size_t content_nbytes;
    unsigned flags;
} tess_encode_parts;
TESS_MUST_CHECK tess_status tess_encode_joined(tess_encoder *encoder,
                                               const tess_encode_parts *parts, tess_ids *ids,
                                               int64_t *content_idx);

/** Number of bytes in front of the first that is not UTF-8; `nbytes` when all are. Local. */
size_t tess_utf8_check(const char *text, size_t nbytes);

/**
 * Text of a sequence of ids, as the decoder of the file joins them. Bytes that are no UTF-8, such
 * as the half of a character at the end, become U+FFFD. Local.
 *
 * @param[in]  id            [numel] ids
 * @param[in]  skip_special  leave special tokens out
 * @param[out] text          NUL-terminated, free with tess_free
 * @return TESS_E_RANGE an id without token
 */
TESS_MUST_CHECK tess_status tess_decode(const tess_tokenizer *tokenizer, const int32_t *id,
                                        int64_t numel, bool skip_special, char **text,
                                        size_t *nbytes);

TESS_END_DECLS
