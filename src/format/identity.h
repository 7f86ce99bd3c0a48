/**
 * Base id: what frozen weights are, whatever files, ranks and paths they came from.
 *
 * SHA-256 over a text: the line "tessera-base-id 1", then one line per tensor, sorted by name:
 * name, TAB, extents joined by "x" ("scalar" without any), TAB, rule, TAB, hex of the SHA-256 of
 * the tensor's canonical bytes, LF. Names and tensors are the family's canonical, split form.
 */
#pragma once

#include <stdint.h>

#include "core/digest.h"

TESS_BEGIN_DECLS

typedef struct tess_identity tess_identity;

TESS_MUST_CHECK tess_status tess_identity_create(tess_identity **out);
void tess_identity_destroy(tess_identity **identity);
/**
 * Add one tensor, in any order. Local.
 *
 * @param dim    [dim_numel] extents, slowest first
 * @param rule   how its bytes were made: "bf16", "nf4/64/double" (tess_codec_describe)
 * @param bytes  SHA-256 of its canonical bytes
 * @return TESS_E_ARG a name or rule that is empty or has control characters
 */
TESS_MUST_CHECK tess_status tess_identity_add(tess_identity *identity, const char *name,
                                              const int64_t *dim, int dim_numel, const char *rule,
                                              const tess_sha256 *bytes);
/** The id of what was added so far; more may be added after. Local. @return TESS_E_STATE a name was
 * added twice */
TESS_MUST_CHECK tess_status tess_identity_final(tess_identity *identity, tess_sha256 *out);

TESS_END_DECLS
