/**
 * Flat files of vectors, streamed: .fvecs, .bvecs, .ivecs, .fbin, .u8bin, .i8bin, .ibin, .npy.
 *
 * [Note: vector files] All are little endian. *vecs: records of int32 d and d elements, d the same
 * in each. *bin: uint32 N, uint32 d, then N x d elements; an .ibin of neighbours has as many f32
 * distances behind them, which are not read. .npy: two dimensions, C order. A file's size must be
 * what its header says. Values are handed out as f32, rounded to nearest even.
 *
 * @source faiss contrib/vecs_io.py; big-ann-benchmarks benchmark/dataset_io.py; numpy lib/format.py
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "core/io.h"

TESS_BEGIN_DECLS

/* X(NAME, "name", bytes) */
#define TESS_VECTOR_ELEM_LIST(X)                                                                   \
    X(U8, "u8", 1)                                                                                 \
    X(I8, "i8", 1)                                                                                 \
    X(I32, "i32", 4)                                                                               \
    X(F16, "f16", 2)                                                                               \
    X(F32, "f32", 4)                                                                               \
    X(F64, "f64", 8)

typedef enum tess_vector_elem {
#define X(name, text, nbytes) TESS_VECTOR_##name,
    TESS_VECTOR_ELEM_LIST(X)
#undef X
        TESS_VECTOR_ELEM_NUMEL
} tess_vector_elem;

enum {
    TESS_VECTOR_DIM_MAX = 1 << 20,
    TESS_VECTOR_SCRATCH_NBYTES = 1 << 20 /* read at once for conversion, at least one vector */
};

/** Where the elements of a file lie. Plain data. */
typedef struct tess_vector_layout {
    const char *format; /* "fvecs", ..., a literal */
    tess_vector_elem elem;
    int64_t vector_numel;  /* N >= 1 */
    int64_t dim;           /* 1 <= d <= TESS_VECTOR_DIM_MAX */
    int64_t offset_nbytes; /* of the first vector, or of its record */
    bool has_prefix;       /* records: d as int32 before the elements of each vector */
} tess_vector_layout;

typedef struct tess_vector_file tess_vector_file;

/** "f32". Local. */
const char *tess_vector_elem_name(tess_vector_elem elem);
/** Bytes of an element. Local. */
size_t tess_vector_elem_nbytes(tess_vector_elem elem);
/** Whether the suffix of `path` is one of those above. Local. */
bool tess_vector_file_is_path(const char *path);
/** Elements to f32; i32 and f64 are rounded to nearest even. `src` needs no alignment. Local. */
void tess_vector_convert(tess_vector_elem elem, const void *src, int64_t numel, float *dst);

/**
 * Open a file whose suffix says its format, and check its header and size. Symlinks are followed.
 * Local. `io` is kept (view) until close.
 * @return TESS_E_FORMAT names file, field, expected and found; TESS_E_UNSUPPORTED a type, order or
 * shape that is not read; TESS_E_IO
 */
TESS_MUST_CHECK tess_status tess_vector_file_open(tess_io *io, const char *path,
                                                  tess_vector_file **out);
/**
 * Open a file whose elements lie as `layout` says, which is checked against its size; bytes behind
 * them are nobody's. Local.
 * @return TESS_E_FORMAT the layout does not fit the file; TESS_E_IO
 */
TESS_MUST_CHECK tess_status tess_vector_file_open_at(tess_io *io, const char *path,
                                                     const tess_vector_layout *layout,
                                                     tess_vector_file **out);
void tess_vector_file_close(tess_vector_file **file);
const tess_vector_layout *tess_vector_file_get_layout(const tess_vector_file *file);
/**
 * Read vectors first .. first + numel - 1. Local; allocates nothing.
 * @param[out] dst  [numel, d] f32, host
 * @return TESS_E_RANGE outside the file; TESS_E_FORMAT a record states another d, which is named;
 * TESS_E_IO
 */
TESS_MUST_CHECK tess_status tess_vector_file_read(tess_vector_file *file, int64_t first_idx,
                                                  int64_t numel, float *dst);

TESS_END_DECLS
