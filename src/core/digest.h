/** Digests: XXH3-128 against damage, SHA-256 for identity, an order-free hash of logical tensors.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/status.h"

TESS_BEGIN_DECLS

enum { TESS_SHA256_NBYTES = 32, TESS_SHA256_HEX_NBYTES = 65, TESS_XXH128_NBYTES = 16 };

typedef struct tess_sha256 {
    uint8_t byte[TESS_SHA256_NBYTES];
} tess_sha256;
/* Canonical (big-endian) byte order of XXH3-128. */
typedef struct tess_xxh128 {
    uint8_t byte[TESS_XXH128_NBYTES];
} tess_xxh128;

/** XXH3-128, seed 0. Local. */
tess_xxh128 tess_xxh128_of(const void *data, size_t nbytes);
bool tess_xxh128_is_equal(const tess_xxh128 *a, const tess_xxh128 *b);

typedef struct tess_sha256_state tess_sha256_state;
TESS_MUST_CHECK tess_status tess_sha256_create(tess_sha256_state **out);
TESS_MUST_CHECK tess_status tess_sha256_update(tess_sha256_state *state, const void *data,
                                               size_t nbytes);
/** Finish; the state can be used again for another digest. */
TESS_MUST_CHECK tess_status tess_sha256_final(tess_sha256_state *state, tess_sha256 *out);
void tess_sha256_destroy(tess_sha256_state **state);
/** One-shot SHA-256. Local. */
TESS_MUST_CHECK tess_status tess_sha256_of(const void *data, size_t nbytes, tess_sha256 *out);

bool tess_sha256_is_equal(const tess_sha256 *a, const tess_sha256 *b);
/** Lower-case hex of `nbytes` bytes into hex[2*nbytes+1]. Local. */
void tess_hex(const void *data, size_t nbytes, char *hex);
/** Inverse of tess_hex. Local. @return TESS_E_ARG wrong length or digit */
TESS_MUST_CHECK tess_status tess_unhex(const char *hex, size_t nbytes, void *out);

/**
 * Sum over elements of mix64(seed, global index, bits) modulo 2^64 in two lanes: independent of how
 * elements are sharded, so shards add up by integer sums. Not cryptographic.
 */
typedef struct tess_logical_hash {
    uint64_t lane[2];
} tess_logical_hash;
/** Add `numel` elements of `elem_nbytes` (1, 2, 4 or 8) whose first has global index `first_idx`.
 * Local. */
void tess_logical_hash_add(tess_logical_hash *h, const void *data, int64_t numel,
                           size_t elem_nbytes, int64_t first_idx);

TESS_END_DECLS
