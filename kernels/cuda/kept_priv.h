/**
 * Decoded matrices that stay. C only.
 *
 * [Note: kept weights] Codes that lie in place never change, so what they decode to may stay where
 * a product found it: the scratch of a product (decoded matrices with room for adapters beside or
 * below them) is a place of its own in one piece of memory, decoded by the first product that comes
 * and read by all later ones; the adapters' part is written by each, as without. A place is known
 * by the codes' addresses and the scratch's layout, and never given back. Products that find no
 * room left decode every time. Whoever gives memory for it promises that codes stay what they are:
 * not those of a gather slot. Bits are the same with and without, as are the choices of algorithms.
 */
#pragma once

#include "kernels/gemm.h"

TESS_BEGIN_DECLS

/** What decides the bytes of a scratch; hashed and compared as bytes: zero all of it first. */
typedef struct tess_kept_key {
    int64_t n;
    int32_t kind, dt; /* tess_gemm_kind, tess_dtype of the scratch */
    struct {
        const void *codes; /* NULL: a plain matrix, which every product writes */
        int64_t rows, cols, first_k, offset_nbytes, stride;
        int64_t format;
    } term[TESS_GEMM_TERM_MAX];
} tess_kept_key;

typedef struct tess_kept_place {
    tess_kept_key key;
    char *data;      /* NULL: an empty place of the table */
    bool is_decoded; /* whoever decoded into it says so */
} tess_kept_place;

typedef struct tess_kept {
    char *memory; /* of the device, aligned to 256 bytes */
    size_t nbytes, used_nbytes;
    tess_kept_place *place; /* open addressing */
    int64_t place_numel;
} tess_kept;

/** A table for `memory`, which the caller owns. Local. @return TESS_E_MEMORY */
TESS_MUST_CHECK tess_status tess_kept_init(tess_kept *k, void *memory, size_t nbytes);
/** Frees the table. Local. */
void tess_kept_fini(tess_kept *k);
/** The place of a scratch of `nbytes`, taken if it is new; NULL: no room. Allocates nothing.
 * Local. */
tess_kept_place *tess_kept_take(tess_kept *k, const tess_kept_key *key, size_t nbytes);

TESS_END_DECLS
