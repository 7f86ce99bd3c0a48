/** The user block of a codes file and the elements behind it; see [Note: codes file]. */
#pragma once

#include "train/data/codes_file.h"

TESS_BEGIN_DECLS

#define TESS_CODES_MAGIC "TESSERA-CODES "

enum {
    TESS_CODES_MAGIC_NBYTES = 16, /* with version and NUL */
    TESS_CODES_AT_TEXT = 20,
    TESS_CODES_AT_DIGEST = TESS_CODES_HEADER_NBYTES - TESS_XXH128_NBYTES,
    TESS_CODES_SCRATCH_NBYTES = 1 << 20,
    TESS_CODES_METADATA_LIMIT_NBYTES = 1 << 20
};

/** What the user block says besides tess_codes_info. */
typedef struct tess_codes_place {
    int64_t offset_nbytes; /* of /codes */
    tess_xxh128 metadata;
} tess_codes_place;

/** Extents that a file can have; sets code_nbytes. Local. @return `code`, naming the field */
TESS_MUST_CHECK tess_status tess_codes_check_info(const char *path, tess_status code,
                                                  tess_codes_info *info);
/** Rows that fit the scratch buffer of reader and writer, at least one. Local. */
int64_t tess_codes_scratch_numel(const tess_codes_info *info);
/** Encode the user block with its digest. Local. @return TESS_E_ARG a text is no UTF-8 */
TESS_MUST_CHECK tess_status tess_codes_header_encode(const tess_codes_info *info,
                                                     const tess_codes_place *place,
                                                     uint8_t header[TESS_CODES_HEADER_NBYTES]);
/** Decode and check everything the user block alone can tell. Local. @return TESS_E_FORMAT;
 * TESS_E_UNSUPPORTED another version */
TESS_MUST_CHECK tess_status tess_codes_header_decode(const char *path,
                                                     const uint8_t header[TESS_CODES_HEADER_NBYTES],
                                                     int64_t file_nbytes, tess_codes_info *info,
                                                     tess_codes_place *place);

TESS_END_DECLS
