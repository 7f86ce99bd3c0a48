/**
 * safetensors files: a reader that checks everything before it hands out a tensor, and a writer
 * whose bytes depend on its contents alone.
 *
 * Layout: u64 little-endian header length N, N bytes of JSON, data. The reader uses pread only (no
 * mapping). Thread safety: reads of one open file may run at the same time.
 *
 * @source safetensors 0.8, safetensors/src/tensor.rs and README.md
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/digest.h"
#include "core/dtype.h"
#include "core/io.h"

TESS_BEGIN_DECLS

/* X(NAME, "name in files", bits per element) */
#define TESS_ST_DTYPE_LIST(X)                                                                      \
    X(BOOL, "BOOL", 8)                                                                             \
    X(F4, "F4", 4)                                                                                 \
    X(F6_E2M3, "F6_E2M3", 6)                                                                       \
    X(F6_E3M2, "F6_E3M2", 6)                                                                       \
    X(U8, "U8", 8)                                                                                 \
    X(I8, "I8", 8)                                                                                 \
    X(F8_E5M2, "F8_E5M2", 8)                                                                       \
    X(F8_E4M3, "F8_E4M3", 8)                                                                       \
    X(F8_E8M0, "F8_E8M0", 8)                                                                       \
    X(F8_E4M3FNUZ, "F8_E4M3FNUZ", 8)                                                               \
    X(F8_E5M2FNUZ, "F8_E5M2FNUZ", 8)                                                               \
    X(I16, "I16", 16)                                                                              \
    X(U16, "U16", 16)                                                                              \
    X(F16, "F16", 16)                                                                              \
    X(BF16, "BF16", 16)                                                                            \
    X(I32, "I32", 32)                                                                              \
    X(U32, "U32", 32)                                                                              \
    X(F32, "F32", 32)                                                                              \
    X(C64, "C64", 64)                                                                              \
    X(F64, "F64", 64)                                                                              \
    X(I64, "I64", 64)                                                                              \
    X(U64, "U64", 64)

/* Order as in the format's own enumeration, which its writer sorts by (descending). */
typedef enum tess_st_dtype {
#define X(name, text, bits) TESS_ST_##name,
    TESS_ST_DTYPE_LIST(X)
#undef X
        TESS_ST_DTYPE_NUMEL
} tess_st_dtype;

enum { TESS_ST_DIM_MAX = 8, TESS_ST_NAME_MAX_NBYTES = 512 };

/** One tensor: plain data. */
typedef struct tess_st_tensor {
    const char *name; /* borrowed from whoever handed out the struct */
    tess_st_dtype dtype;
    int dim_numel;                /* 0 for a scalar */
    int64_t dim[TESS_ST_DIM_MAX]; /* slowest first */
    int64_t numel;                /* product of dims; ignored by the writer */
    int64_t offset_nbytes; /* of its data from the start of the file; ignored by the writer */
    int64_t nbytes;        /* of its data; ignored by the writer */
} tess_st_tensor;

typedef struct tess_st_pair {
    const char *key;
    const char *value;
} tess_st_pair;

/** "BF16". Local. */
const char *tess_st_dtype_name(tess_st_dtype dtype);
/** dtype of the core table: F32, BF16, F16, F64, I32, I64, U64, U8. Local.
 * @return TESS_E_UNSUPPORTED any other */
TESS_MUST_CHECK tess_status tess_st_dtype_to_core(tess_st_dtype dtype, tess_dtype *out);
/** Inverse of tess_st_dtype_to_core. Local. @return TESS_E_UNSUPPORTED u8_opaque */
TESS_MUST_CHECK tess_status tess_st_dtype_from_core(tess_dtype dt, tess_st_dtype *out);
/** Whether a name may appear in our files: UTF-8, 1 to 512 bytes, no NUL, "..", leading "/" or
 * backslash. Local. */
bool tess_st_name_is_valid(const char *name);
/** "[2, 3]" into `text`. Local. */
void tess_st_shape_text(const int64_t *dim, int dim_numel, char *text, size_t text_nbytes);

typedef struct tess_safetensors tess_safetensors;

/**
 * Open and check a file: header length and JSON, names, dtypes, shapes, and that tensors tile the
 * data exactly. Local. `io` is kept (view) until close. Symlinks are followed.
 * @return TESS_E_IO; TESS_E_FORMAT names file, field, expected and found
 */
TESS_MUST_CHECK tess_status tess_safetensors_open(tess_io *io, const char *path,
                                                  tess_safetensors **out);
void tess_safetensors_close(tess_safetensors **file);
const char *tess_safetensors_path(const tess_safetensors *file);
int64_t tess_safetensors_file_nbytes(const tess_safetensors *file);
int64_t tess_safetensors_numel(const tess_safetensors *file);
/** Tensor `idx` in bytewise order of names, NULL outside. */
const tess_st_tensor *tess_safetensors_at(const tess_safetensors *file, int64_t idx);
/** NULL when absent. O(log tensors). */
const tess_st_tensor *tess_safetensors_find(const tess_safetensors *file, const char *name);
/** Value of `key` in __metadata__, NULL when absent. */
const char *tess_safetensors_metadata(const tess_safetensors *file, const char *key);
int64_t tess_safetensors_metadata_numel(const tess_safetensors *file);
/** Pair `idx` in the file's order, {NULL, NULL} outside. */
tess_st_pair tess_safetensors_metadata_at(const tess_safetensors *file, int64_t idx);
/**
 * Read bytes [first, first + nbytes) of a tensor's data. Local.
 * @return TESS_E_RANGE outside the tensor; TESS_E_IO; TESS_E_FORMAT file became shorter
 */
TESS_MUST_CHECK tess_status tess_safetensors_read(const tess_safetensors *file,
                                                  const tess_st_tensor *tensor,
                                                  int64_t first_nbytes, size_t nbytes, void *dst);
/** SHA-256 of the whole file. Local. */
TESS_MUST_CHECK tess_status tess_safetensors_sha256(const tess_safetensors *file, tess_sha256 *out);

typedef struct tess_safetensors_writer tess_safetensors_writer;

/**
 * Start `path` under the name `path`.tmp: sizes are known from the shapes, so the header is written
 * at once and the file is reserved. Local. `io` is kept (view); everything else is copied.
 *
 * Data order: larger elements first, then name. Metadata keys are sorted. An old temporary file is
 * replaced.
 *
 * @param tensor    [tensor_numel] name, dtype and shape
 * @param metadata  [metadata_numel] written to __metadata__ when there are any
 * @return TESS_E_ARG bad or duplicate name; TESS_E_RANGE sizes; TESS_E_IO
 */
TESS_MUST_CHECK tess_status tess_safetensors_writer_create(
    tess_io *io, const char *path, const tess_st_tensor *tensor, int64_t tensor_numel,
    const tess_st_pair *metadata, int64_t metadata_numel, tess_safetensors_writer **out);
/**
 * Append the next bytes of a tensor. Tensors may come in any order and interleaved. Local.
 * @param tensor_idx  index in the array given to create
 * @return TESS_E_RANGE more bytes than the tensor has; TESS_E_IO
 */
TESS_MUST_CHECK tess_status tess_safetensors_writer_append(tess_safetensors_writer *writer,
                                                           int64_t tensor_idx, const void *src,
                                                           size_t nbytes);
/**
 * Replace a metadata value given to create by one of as many bytes, none of which JSON escapes: for
 * what is known only after the data (a digest). Local.
 * @return TESS_E_ARG no such key, or another length; TESS_E_IO
 */
TESS_MUST_CHECK tess_status tess_safetensors_writer_set(tess_safetensors_writer *writer,
                                                        const char *key, const char *value);
/** Check that every tensor is complete, fsync, rename to `path`, fsync the folder. Local.
 * @return TESS_E_STATE a tensor is incomplete; TESS_E_IO */
TESS_MUST_CHECK tess_status tess_safetensors_writer_finish(tess_safetensors_writer *writer);
/** Free; without a successful finish the temporary file is removed. */
void tess_safetensors_writer_destroy(tess_safetensors_writer **writer);

TESS_END_DECLS
