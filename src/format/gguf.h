/**
 * GGUF files, versions 2 and 3, little endian: a reader that checks everything before it hands out
 * a tensor, and a writer whose bytes depend on its contents alone.
 *
 * Layout: magic, version, counts, pairs of key and value, tensor table, padding, data. Shapes here
 * are slowest first ([out, in]), the reverse of the file. Reads use pread only; reads of one open
 * file may run at the same time.
 *
 * @source ggml docs/gguf.md, src/gguf.cpp
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "core/codec.h"
#include "core/digest.h"
#include "core/io.h"

TESS_BEGIN_DECLS

/* X(NAME, "name", bytes of an element or 0), in the order of their numbers in files. */
#define TESS_GGUF_KIND_LIST(X)                                                                     \
    X(U8, "u8", 1)                                                                                 \
    X(I8, "i8", 1)                                                                                 \
    X(U16, "u16", 2)                                                                               \
    X(I16, "i16", 2)                                                                               \
    X(U32, "u32", 4)                                                                               \
    X(I32, "i32", 4)                                                                               \
    X(F32, "f32", 4)                                                                               \
    X(BOOL, "bool", 1)                                                                             \
    X(STRING, "string", 0)                                                                         \
    X(ARRAY, "array", 0)                                                                           \
    X(U64, "u64", 8)                                                                               \
    X(I64, "i64", 8)                                                                               \
    X(F64, "f64", 8)

typedef enum tess_gguf_kind {
#define X(name, text, nbytes) TESS_GGUF_##name,
    TESS_GGUF_KIND_LIST(X)
#undef X
        TESS_GGUF_KIND_NUMEL
} tess_gguf_kind;

enum { TESS_GGUF_DIM_MAX = 4, TESS_GGUF_NAME_NBYTES = 64, TESS_GGUF_ALIGN_NBYTES = 32 };

/** A value of the metadata. Plain data. */
typedef struct tess_gguf_value {
    tess_gguf_kind kind;
    int64_t i64;       /* integers (u64 above the range of i64 are refused) and bool */
    double f64;        /* f32 and f64 */
    const char *text;  /* string, without NUL bytes */
    tess_gguf_kind of; /* array: kind of its elements */
    int64_t numel;     /* array */
    const void *data;  /* array, writer only: [numel] elements, or const char *[numel] */
} tess_gguf_value;

typedef struct tess_gguf_pair {
    const char *key;
    tess_gguf_value value;
} tess_gguf_pair;

/** One tensor: plain data. */
typedef struct tess_gguf_tensor {
    const char *name; /* borrowed from whoever handed out the struct */
    tess_format format;
    int dim_numel;
    int64_t dim[TESS_GGUF_DIM_MAX]; /* slowest first */
    int64_t numel;                  /* these three are ignored by the writer */
    int64_t offset_nbytes;          /* from the start of the file */
    int64_t nbytes;
} tess_gguf_tensor;

typedef struct tess_gguf tess_gguf;

/**
 * Open and check a file: header, metadata, tensor table, places of all tensors. Local. `io` is kept
 * (view) until close. Symlinks are followed.
 * @return TESS_E_IO; TESS_E_FORMAT names file, byte, field, expected and found; TESS_E_UNSUPPORTED
 * a tensor type that is not read
 */
TESS_MUST_CHECK tess_status tess_gguf_open(tess_io *io, const char *path, tess_gguf **out);
void tess_gguf_close(tess_gguf **file);
const char *tess_gguf_path(const tess_gguf *file);
int64_t tess_gguf_file_nbytes(const tess_gguf *file);
int64_t tess_gguf_tensor_numel(const tess_gguf *file);
/** Tensor `idx` in bytewise order of names, NULL outside. */
const tess_gguf_tensor *tess_gguf_at(const tess_gguf *file, int64_t idx);
/** NULL when absent. O(log tensors). */
const tess_gguf_tensor *tess_gguf_find(const tess_gguf *file, const char *name);
int64_t tess_gguf_pair_numel(const tess_gguf *file);
/** Pair `idx` in bytewise order of keys, NULL outside. */
const tess_gguf_pair *tess_gguf_pair_at(const tess_gguf *file, int64_t idx);
/** NULL when absent. O(log pairs). */
const tess_gguf_value *tess_gguf_value_of(const tess_gguf *file, const char *key);
/** Integer of any width, number, string, bool. Local. @return TESS_E_FORMAT absent or of another
 * kind */
TESS_MUST_CHECK tess_status tess_gguf_get_i64(const tess_gguf *file, const char *key, int64_t *out);
TESS_MUST_CHECK tess_status tess_gguf_get_f64(const tess_gguf *file, const char *key, double *out);
TESS_MUST_CHECK tess_status tess_gguf_get_text(const tess_gguf *file, const char *key,
                                               const char **out);
TESS_MUST_CHECK tess_status tess_gguf_get_bool(const tess_gguf *file, const char *key, bool *out);
/**
 * Read bytes [first, first + nbytes) of a tensor's data. Local.
 * @return TESS_E_RANGE outside the tensor; TESS_E_IO; TESS_E_FORMAT file became shorter
 */
TESS_MUST_CHECK tess_status tess_gguf_read(const tess_gguf *file, const tess_gguf_tensor *tensor,
                                           int64_t first_nbytes, size_t nbytes, void *dst);
/** Scales of whole blocks are finite. Local. @return TESS_E_FORMAT names tensor and block */
TESS_MUST_CHECK tess_status tess_gguf_check_blocks(const tess_gguf *file,
                                                   const tess_gguf_tensor *tensor,
                                                   int64_t first_block, const void *blocks,
                                                   size_t nbytes);
/** SHA-256 of the whole file. Local. */
TESS_MUST_CHECK tess_status tess_gguf_sha256(const tess_gguf *file, tess_sha256 *out);

typedef struct tess_gguf_writer tess_gguf_writer;

/**
 * Start `path` (version 3) under the name `path`.tmp; pairs and tensors keep their order. Local.
 * `io` is kept (view); everything else is copied. An old temporary file is replaced.
 *
 * @param pair    [pair_numel] metadata
 * @param tensor  [tensor_numel] name, format and shape
 * @return TESS_E_ARG bad or duplicate name or key; TESS_E_UNSUPPORTED a format that GGUF lacks;
 * TESS_E_RANGE sizes; TESS_E_IO
 */
TESS_MUST_CHECK tess_status tess_gguf_writer_create(tess_io *io, const char *path,
                                                    const tess_gguf_pair *pair, int64_t pair_numel,
                                                    const tess_gguf_tensor *tensor,
                                                    int64_t tensor_numel, tess_gguf_writer **out);
/**
 * Append the next bytes of a tensor. Tensors may come in any order and interleaved. Local.
 * @return TESS_E_RANGE more bytes than the tensor has; TESS_E_IO
 */
TESS_MUST_CHECK tess_status tess_gguf_writer_append(tess_gguf_writer *writer, int64_t tensor_idx,
                                                    const void *src, size_t nbytes);
/** Replace a string of the metadata by one of as many bytes: for what is known only after the data
 * (a digest). Local. @return TESS_E_ARG no such key, or another length; TESS_E_IO */
TESS_MUST_CHECK tess_status tess_gguf_writer_set(tess_gguf_writer *writer, const char *key,
                                                 const char *value);
/** Check that every tensor is complete, fsync, rename to `path`, fsync the folder. Local.
 * @return TESS_E_STATE a tensor is incomplete; TESS_E_IO */
TESS_MUST_CHECK tess_status tess_gguf_writer_finish(tess_gguf_writer *writer);
/** Free; without a successful finish the temporary file is removed. */
void tess_gguf_writer_destroy(tess_gguf_writer **writer);

TESS_END_DECLS
