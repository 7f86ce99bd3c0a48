/** Reader of golden files: text header, then little-endian tensors (layout:
 * tests/golden/make_llama.py). */
#pragma once

#include <stdint.h>

#include "core/dtype.h"

TESS_BEGIN_DECLS

typedef struct tess_golden tess_golden;

/** Read a whole file, `path` relative to the source tree. Local. @return TESS_E_IO; TESS_E_FORMAT
 */
TESS_MUST_CHECK tess_status tess_golden_open(const char *path, tess_golden **out);
void tess_golden_close(tess_golden **golden);
/** Value of a header line, NULL when absent. Local. */
const char *tess_golden_text(const tess_golden *golden, const char *key);
/** Header value as a number; 0 when absent. Local. */
double tess_golden_number(const tess_golden *golden, const char *key);
/** Tensor of this dtype, NULL when there is none of that name and dtype. Local. */
const void *tess_golden_tensor(const tess_golden *golden, const char *name, tess_dtype dt,
                               int64_t *numel);
/** Names in file order; NULL past the end. Local. */
const char *tess_golden_tensor_name(const tess_golden *golden, int idx);

TESS_END_DECLS
