/**
 * The dtype table: every fact about a dtype stands here and nowhere else.
 *
 * Plain dtypes count in elements (block_numel 1). Quantized base formats are not dtypes: a frozen
 * unit is a byte string whose parts (codes, constants) are described by `format/codec.h`.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "core/base.h"
#include "core/status.h"

TESS_BEGIN_DECLS

/* X(NAME, "name", block_numel, block_nbytes, reducible) */
#define TESS_DTYPE_LIST(X)                                                                         \
    X(U8_OPAQUE, "u8_opaque", 1, 1, false)                                                         \
    X(U8, "u8", 1, 1, false)                                                                       \
    X(I32, "i32", 1, 4, true)                                                                      \
    X(I64, "i64", 1, 8, true)                                                                      \
    X(U64, "u64", 1, 8, true)                                                                      \
    X(F16, "f16", 1, 2, false)                                                                     \
    X(BF16, "bf16", 1, 2, true)                                                                    \
    X(F32, "f32", 1, 4, true)                                                                      \
    X(F64, "f64", 1, 8, true)

typedef enum tess_dtype {
#define X(name, text, block_numel, block_nbytes, reducible) TESS_##name,
    TESS_DTYPE_LIST(X)
#undef X
        TESS_DTYPE_NUMEL
} tess_dtype;

typedef enum tess_space { TESS_HOST, TESS_DEVICE } tess_space;

/** Name as written in plans, files and messages ("bf16"). Local. */
const char *tess_dtype_name(tess_dtype dt);
/** Find a dtype by name. Local. @return TESS_E_ARG unknown name */
TESS_MUST_CHECK tess_status tess_dtype_parse(const char *name, tess_dtype *dt);
/** Bytes of one block (one element for plain dtypes). Local. */
size_t tess_dtype_block_nbytes(tess_dtype dt);
/** Byte count of `numel` elements. Local. @return TESS_E_RANGE overflow, negative, or not whole
 * blocks */
TESS_MUST_CHECK tess_status tess_nbytes(tess_dtype dt, int64_t numel, size_t *nbytes);

TESS_END_DECLS
