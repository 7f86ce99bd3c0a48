/** Shared by the safetensors reader and writer. */
#pragma once

#include "format/safetensors.h"

TESS_BEGIN_DECLS

enum { TESS_ST_HEADER_MAX_NBYTES = 100000000 };

/** Fill numel and nbytes from dtype and shape. Local. @return `code` on overflow or part of a byte
 */
TESS_MUST_CHECK tess_status tess_st_sizes(const char *where, tess_status code, tess_st_tensor *t);

/** Order of data in a written file, as the official writer sorts: larger dtypes first, then names;
 * as strcmp. Local. */
int tess_st_file_order(const tess_st_tensor *x, const tess_st_tensor *y);

TESS_END_DECLS
