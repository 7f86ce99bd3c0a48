/**
 * Token files: what `tessera tokenize` writes and the trainer reads.
 *
 * [Note: token file] An HDF5 file (format bounds V110) behind a user block of 512 bytes. The user
 * block names where each section lies, how long it is and its XXH3-128, and carries a digest of
 * itself and of all other bytes. The reader works from the user block with pread alone and never
 * hands a file to HDF5, so a damaged or foreign file is refused before any parser sees it; h5dump,
 * h5py and other readers see four contiguous datasets with attributes:
 *
 *     /tokens       [token_numel]        u16 where vocab_numel <= 65,536, else u32
 *     /doc_offsets  [document_numel + 1] u64, strictly ascending from 0 to token_numel
 *     /loss_mask    [token_numel]        u8, 1: the token counts in the loss; absent: all count
 *     /sources      [sources_nbytes]     u8, one JSON object per line: name, nbytes, sha256
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/ctx.h"
#include "core/digest.h"
#include "core/status.h"

TESS_BEGIN_DECLS

enum { TESS_TOKEN_FILE_VERSION = 1, TESS_TOKEN_FILE_HEADER_NBYTES = 512 };

/** Where a section lies in the file. */
typedef struct tess_token_section {
    int64_t offset_nbytes;
    int64_t nbytes; /* 0: absent */
    tess_xxh128 digest;
} tess_token_section;

/** What the user block of a token file says. */
typedef struct tess_token_file_info {
    int64_t file_nbytes;
    int64_t vocab_numel;
    int64_t token_numel;
    int64_t document_numel;
    int64_t loss_token_numel; /* tokens whose mask is 1 */
    size_t token_nbytes;      /* 2 or 4 */
    bool has_mask;
    tess_sha256 tokenizer;      /* SHA-256 of tokenizer.json; zero: ids that stand for no text */
    tess_xxh128 payload_digest; /* of the four section digests: the identity of the data */
    tess_token_section tokens, doc_offsets, loss_mask, sources;
} tess_token_file_info;

typedef struct tess_token_writer tess_token_writer;

/**
 * Start a token file. Tokens and masks are spooled beside `path` and joined by finish; memory does
 * not grow with the number of tokens. Local.
 *
 * @return TESS_E_ARG vocab_numel outside 1 .. 2^31-1; TESS_E_IO
 */
TESS_MUST_CHECK tess_status tess_token_writer_create(const tess_ctx *ctx, const char *path,
                                                     int64_t vocab_numel,
                                                     const tess_sha256 *tokenizer,
                                                     tess_token_writer **out);
/**
 * Append one document. Local.
 *
 * @param[in] id    [numel] ids, numel >= 1
 * @param[in] mask  [numel] 1: counts in the loss, or NULL: all count
 * @return TESS_E_RANGE an id outside the vocabulary; TESS_E_IO
 */
TESS_MUST_CHECK tess_status tess_token_writer_add(tess_token_writer *writer, const int32_t *id,
                                                  const uint8_t *mask, int64_t numel);
/** Note one input file. Local. */
TESS_MUST_CHECK tess_status tess_token_writer_add_source(tess_token_writer *writer,
                                                         const char *name, int64_t nbytes,
                                                         const tess_sha256 *digest);
/** Join, fsync and rename to the final name; an existing file is replaced. `info` may be NULL.
 * Local. @return TESS_E_ARG no document */
TESS_MUST_CHECK tess_status tess_token_writer_finish(tess_token_writer *writer,
                                                     tess_token_file_info *info);
/** Release; without a successful finish nothing is left on disk. */
void tess_token_writer_destroy(tess_token_writer **writer);

typedef struct tess_token_file tess_token_file;

/**
 * Open for reading: checks the user block against its digest and the file size, the digest of the
 * HDF5 metadata, and the document offsets (digest, strictly ascending, end). Local.
 *
 * @return TESS_E_FORMAT names file, field, expected and found; TESS_E_IO
 */
TESS_MUST_CHECK tess_status tess_token_file_open(const tess_ctx *ctx, const char *path,
                                                 tess_token_file **out);
void tess_token_file_close(tess_token_file **file);
const tess_token_file_info *tess_token_file_get_info(const tess_token_file *file);
const char *tess_token_file_path(const tess_token_file *file);
/** [document_numel + 1] first token of each document, then the number of tokens. */
const int64_t *tess_token_file_doc_offsets(const tess_token_file *file);
/** JSON lines of /sources, NUL-terminated, digest checked; free with tess_free. Local. */
TESS_MUST_CHECK tess_status tess_token_file_read_sources(const tess_token_file *file, char **text);
/** Read every section: digests, and every id < vocab, every mask 0 or 1. Local. */
TESS_MUST_CHECK tess_status tess_token_file_verify(const tess_token_file *file);
/**
 * Read tokens first .. first+numel-1; ids are checked against the vocabulary. Local; allocates
 * nothing.
 *
 * @param[out] tokens  [numel] int32
 * @param[out] mask    [numel] 0 or 1, or NULL; all 1 when the file has no mask
 */
TESS_MUST_CHECK tess_status tess_token_file_read(const tess_token_file *file, int64_t first_idx,
                                                 int64_t numel, int32_t *tokens, uint8_t *mask);
/** Read masks only. Local; allocates nothing. */
TESS_MUST_CHECK tess_status tess_token_file_read_mask(const tess_token_file *file,
                                                      int64_t first_idx, int64_t numel,
                                                      uint8_t *mask);

TESS_END_DECLS
