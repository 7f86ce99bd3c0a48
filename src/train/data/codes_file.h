/**
 * Codes files: what `tessera encode` writes, one row of code numbers for each vector.
 *
 * [Note: codes file] An HDF5 file (format bounds V110) of one contiguous dataset behind a user
 * block of 4096 bytes. The reader works from the user block with pread alone; h5dump, h5py and
 * others see
 *
 *     /codes  [N, C] u8, u16 or u32, the narrowest that holds K codes; column = group * levels +
 * level
 *
 * with attributes format_version, codes (K), levels, groups, has_absent, bit_order, codebooks and
 * source. Where codes can be absent (a level that was dropped), absent is the number of all ones,
 * and the type is the narrowest that holds K codes and it. The user block: "TESSERA-CODES 1" and a
 * NUL, the length of a JSON text as u32, that text, zeros, and in its last 16 bytes the XXH3-128 of
 * all before them. The text adds to the attributes where the dataset lies, an identity of the codes
 * (core/digest.h, over the stored elements in row-major order) and the XXH3-128 of all other bytes.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "core/ctx.h"
#include "core/digest.h"
#include "core/status.h"

TESS_BEGIN_DECLS

enum {
    TESS_CODES_FILE_VERSION = 1,
    TESS_CODES_HEADER_NBYTES = 4096,
    TESS_CODES_TEXT_NBYTES = 160, /* of a digest in words, with its NUL */
    TESS_CODES_COLUMN_MAX = 65536
};

/* Which end of an index its digits start at (quantizers without a table), or a row of a codebook.
 */
#define TESS_CODES_ORDER_LIST(X)                                                                   \
    X(ROW, "row")                                                                                  \
    X(LSB_FIRST, "lsb-first")                                                                      \
    X(MSB_FIRST, "msb-first")

typedef enum tess_codes_order {
#define X(name, text) TESS_CODES_##name,
    TESS_CODES_ORDER_LIST(X)
#undef X
        TESS_CODES_ORDER_NUMEL
} tess_codes_order;

/** What a codes file holds. Plain data. */
typedef struct tess_codes_info {
    int64_t vector_numel; /* N >= 1 */
    int64_t code_numel;   /* K, 1 to 2^32 - 1, or 2^32 without has_absent */
    int64_t level_numel;  /* of a residual stack */
    int64_t group_numel;  /* stacks side by side; a row has group_numel * level_numel codes */
    bool has_absent;      /* codes may be -1 */
    tess_codes_order bit_order;
    char codebooks[TESS_CODES_TEXT_NBYTES]; /* digest of what made the codes */
    char source[TESS_CODES_TEXT_NBYTES];    /* identity of the vectors */
    size_t code_nbytes;                     /* these are ignored by the writer: 1, 2 or 4 */
    int64_t file_nbytes;
    tess_logical_hash payload;
} tess_codes_info;

/** "lsb-first". Local. */
const char *tess_codes_order_name(tess_codes_order order);
/** Codes of a row. Local. */
static inline int64_t tess_codes_column_numel(const tess_codes_info *info)
{
    return info->group_numel * info->level_numel;
}
/** Whether a file starts like a codes file, of any version. Local. @return TESS_E_IO */
TESS_MUST_CHECK tess_status tess_codes_file_is(const tess_ctx *ctx, const char *path, bool *out);

typedef struct tess_codes_writer tess_codes_writer;

/** Start a file under a temporary name. Local. `info` is copied.
 * @return TESS_E_ARG an extent or a text out of range; TESS_E_IO */
TESS_MUST_CHECK tess_status tess_codes_writer_create(const tess_ctx *ctx, const char *path,
                                                     const tess_codes_info *info,
                                                     tess_codes_writer **out);
/**
 * Append the next rows. Local; allocates nothing.
 * @param[in] codes  [numel, C], 0 .. K-1, or -1 with has_absent
 * @return TESS_E_RANGE a code outside, or more than N rows; TESS_E_IO
 */
TESS_MUST_CHECK tess_status tess_codes_writer_append(tess_codes_writer *writer,
                                                     const int64_t *codes, int64_t numel);
/** Write the user block, fsync, rename; an existing file is replaced. Local. @return TESS_E_STATE
 * rows are missing; TESS_E_IO */
TESS_MUST_CHECK tess_status tess_codes_writer_finish(tess_codes_writer *writer);
/** Release; without a successful finish nothing is left on disk. */
void tess_codes_writer_destroy(tess_codes_writer **writer);

typedef struct tess_codes_file tess_codes_file;

/** Open: the user block against its digest and the file's size, and the digest of the HDF5
 * metadata. Local. @return TESS_E_FORMAT names file, field, expected and found; TESS_E_UNSUPPORTED
 * another version; TESS_E_IO */
TESS_MUST_CHECK tess_status tess_codes_file_open(const tess_ctx *ctx, const char *path,
                                                 tess_codes_file **out);
void tess_codes_file_close(tess_codes_file **file);
const tess_codes_info *tess_codes_file_get_info(const tess_codes_file *file);
/**
 * Read rows first .. first + numel - 1. Local; allocates nothing.
 * @param[out] codes  [numel, C], -1: absent
 * @return TESS_E_RANGE outside the file; TESS_E_FORMAT a code of K or more, which is named;
 * TESS_E_IO
 */
TESS_MUST_CHECK tess_status tess_codes_file_read(tess_codes_file *file, int64_t first_idx,
                                                 int64_t numel, int64_t *codes);
/** Read all codes: range and identity. Local. @return TESS_E_FORMAT */
TESS_MUST_CHECK tess_status tess_codes_file_verify(tess_codes_file *file);

TESS_END_DECLS
