/** Shared by the GGUF reader and writer. */
#pragma once

#include "format/gguf.h"

TESS_BEGIN_DECLS

enum { TESS_GGUF_KEY_MAX_NBYTES = 65535, TESS_GGUF_ALIGN_MIN = 8, TESS_GGUF_ALIGN_MAX = 65536 };

/** "u32". Local. */
const char *tess_gguf_kind_name(tess_gguf_kind kind);
/** Bytes of an element of an array, 0 for strings. Local. */
size_t tess_gguf_kind_nbytes(tess_gguf_kind kind);
/** Number of a format in files, -1 when GGUF lacks it. Local. */
int tess_gguf_type_of(tess_format format);
/** Fill numel and nbytes. Local. @return `code` on overflow, no elements, or rows of part of a
 * block */
TESS_MUST_CHECK tess_status tess_gguf_sizes(const char *where, tess_status code,
                                            tess_gguf_tensor *t);

TESS_END_DECLS
