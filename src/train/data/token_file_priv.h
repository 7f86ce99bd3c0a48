/** Layout of the user block and the digests of a token file; see [Note: token file]. */
#pragma once

#include "train/data/token_file.h"

TESS_BEGIN_DECLS

#define TESS_TOKEN_MAGIC "TESSERA-TOKENS 1"

enum {
    TESS_TOKEN_SECTION_NUMEL = 4,
    TESS_TOKEN_BLOCK_NBYTES = 1 << 20,         /* digests chain blocks of this size */
    TESS_TOKEN_METADATA_NBYTES_LIMIT = 1 << 20 /* what HDF5 writes around the sections */
};

/* Byte offsets in the user block; integers are little endian. */
enum {
    TESS_TOKEN_AT_MAGIC = 0,
    TESS_TOKEN_AT_VERSION = 16,
    TESS_TOKEN_AT_HEADER_NBYTES = 20,
    TESS_TOKEN_AT_FILE_NBYTES = 24,
    TESS_TOKEN_AT_VOCAB = 32,
    TESS_TOKEN_AT_TOKENS = 40,
    TESS_TOKEN_AT_DOCUMENTS = 48,
    TESS_TOKEN_AT_LOSS_TOKENS = 56,
    TESS_TOKEN_AT_TOKEN_NBYTES = 64,
    TESS_TOKEN_AT_FLAGS = 68, /* bit 0: has a loss mask */
    TESS_TOKEN_AT_TOKENIZER = 72,
    TESS_TOKEN_AT_SECTIONS = 104, /* four of offset u64, nbytes u64, digest 16 bytes */
    TESS_TOKEN_AT_METADATA_DIGEST = 232,
    TESS_TOKEN_AT_HEADER_DIGEST = 496 /* of all bytes before it */
};

/** XXH3-128 of a stream: h = XXH(h, XXH(block)) over blocks of 1 MiB, starting from zero. */
typedef struct tess_token_chain {
    uint8_t link[2 * TESS_XXH128_NBYTES]; /* h so far, then the digest of the next block */
} tess_token_chain;

/** Add one block: 1 MiB, or less at the end. Local. */
void tess_token_chain_add(tess_token_chain *chain, const void *block, size_t nbytes);
/** Digest so far. Local. */
tess_xxh128 tess_token_chain_digest(const tess_token_chain *chain);

/** Sections of `info` in the order of the user block. Local. */
void tess_token_sections(tess_token_file_info *info,
                         tess_token_section *out[TESS_TOKEN_SECTION_NUMEL]);
/** The present sections by ascending offset. Local. @return TESS_E_FORMAT overlap or outside */
TESS_MUST_CHECK tess_status tess_token_sections_sorted(const char *path,
                                                       const tess_token_file_info *info,
                                                       tess_token_section *out, int *numel);
/** Encode the user block with its digest. Local. */
void tess_token_header_encode(const tess_token_file_info *info, const tess_xxh128 *metadata,
                              uint8_t header[TESS_TOKEN_FILE_HEADER_NBYTES]);
/** Decode and check everything the user block alone can tell. Local. @return TESS_E_FORMAT */
TESS_MUST_CHECK tess_status
tess_token_header_decode(const char *path, const uint8_t header[TESS_TOKEN_FILE_HEADER_NBYTES],
                         int64_t file_nbytes, tess_token_file_info *info, tess_xxh128 *metadata);
/** Identity of the data from the section digests. Local. */
tess_xxh128 tess_token_payload_digest(const tess_token_file_info *info);
/** Read all bytes outside user block and sections, [*nbytes]; free with tess_free. Local. */
TESS_MUST_CHECK tess_status tess_token_metadata_read(tess_io *io, const char *path, int fd,
                                                     const tess_token_file_info *info,
                                                     uint8_t **bytes, size_t *nbytes);
/** Create an HDF5 file whose datasets lie contiguous and unwritten; fills the section offsets and
 * file_nbytes of `info`. Local. @return TESS_E_IO with HDF5's own words */
TESS_MUST_CHECK tess_status tess_token_hdf5_create(const char *path, tess_token_file_info *info);

TESS_END_DECLS
