/**
 * Vectors for training quantizers, streamed from any of the flat files of format/vector_file.h or
 * from a dataset of an HDF5 file.
 *
 * [Note: vectors in HDF5] A path is FILE.h5 or FILE.h5:DATASET (suffixes h5 and hdf5); without a
 * name it is `train`, as ann-benchmarks writes it, or the only dataset of two dimensions at the
 * root. Elements are u8, i8, i32, f16, f32 or f64, little endian. A contiguous dataset is read from
 * its place in the file; a chunked or compressed one through the library. Data in other files
 * (external storage, external links, virtual datasets) are refused.
 *
 * [Note: identity of vectors] XXH3-128 of each vector as f32, the vector's number mixed in, summed
 * modulo 2^64 in two lanes (core/digest.h). So it is gathered while vectors are read for another
 * purpose, in any order and cut; the parts of ranks add up; and it is the same for the same values
 * in another file format. It covers the vectors that were added, each once: a job that reads all N
 * covers the whole file. Against mistakes, not against forgery.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "core/ctx.h"
#include "core/digest.h"
#include "core/status.h"
#include "dist/comm.h"

TESS_BEGIN_DECLS

enum { TESS_VECTORS_DIGEST_TEXT_NBYTES = 96 };

typedef struct tess_vectors tess_vectors;

/** What a source holds. Plain data; texts live as long as the source is open. */
typedef struct tess_vectors_info {
    int64_t vector_numel; /* N >= 1 */
    int64_t dim;          /* d >= 1 */
    const char *dtype;    /* as stored: "u8", "i8", "i32", "f16", "f32", "f64" */
    const char *format;   /* "fvecs", "npy", "hdf5", ... */
    const char *path;     /* of the file */
    const char *dataset;  /* in the file, NULL where there are none */
} tess_vectors_info;

/** Whether `path` names vectors by its suffix; any HDF5 file does. Local. */
bool tess_vectors_is_path(const char *path);
/** Whether the file `path` is one of vectors: by its suffix, and an HDF5 file by its first bytes,
 * where other files of this program say what they are. Local. @return TESS_E_IO */
TESS_MUST_CHECK tess_status tess_vectors_is_source(const tess_ctx *ctx, const char *path,
                                                   bool *out);
/**
 * Open for reading; sizes are checked, vectors are not read. Plans the memory that reads use, about
 * 1 MiB. Local.
 * @return TESS_E_FORMAT names file, field, expected and found; TESS_E_UNSUPPORTED a type, order or
 * layout that is not read; TESS_E_IO
 */
TESS_MUST_CHECK tess_status tess_vectors_open(const tess_ctx *ctx, const char *path,
                                              tess_vectors **out);
/**
 * Leave masked vectors out: those whose number in `mask_path`, vectors of one dimension, is 0; all
 * others have 1. The source then holds the valid ones alone, in their order, as if the file had no
 * others: N, numbers, identity. The mask is read once here, and with every block that is read.
 * Local.
 * @param key  of the run file, for messages
 * @return as tess_vectors_open; TESS_E_CONFIG of another form than [N, 1]; TESS_E_FORMAT another
 * number, which is named, or no valid vector
 */
TESS_MUST_CHECK tess_status tess_vectors_leave_out(tess_vectors *vectors, const char *mask_path,
                                                   const char *key);
void tess_vectors_close(tess_vectors **vectors);
const tess_vectors_info *tess_vectors_get_info(const tess_vectors *vectors);
/**
 * Read vectors first .. first + numel - 1; values are rounded to nearest even. Local; allocates
 * nothing, but HDF5 has a cache of its own for chunked datasets. One reader at a time.
 * @param[out] dst  [numel, d] f32, host
 * @return TESS_E_RANGE outside the source; TESS_E_FORMAT a damaged record, which is named;
 * TESS_E_IO
 */
TESS_MUST_CHECK tess_status tess_vectors_read(tess_vectors *vectors, int64_t first_idx,
                                              int64_t numel, float *dst);
/** Number in the file of a vector, for messages: where some are left out it is another. Local. */
int64_t tess_vectors_place(tess_vectors *vectors, int64_t vector_idx);

/**
 * Add vectors to an identity that started as {0}; see [Note: identity of vectors]. Local. Lanes of
 * several identities add up modulo 2^64.
 * @param[in] x  [numel, dim] f32, host: vectors first_idx .. of the source
 */
void tess_vectors_digest_add(tess_logical_hash *digest, const float *x, int64_t dim,
                             int64_t first_idx, int64_t numel);
/** An identity of which every rank has a part, whole on all. Collective. */
TESS_MUST_CHECK tess_status tess_vectors_digest_join(tess_comm *comm, tess_logical_hash *digest);
/** "1000000x128/" and 32 hex digits. Local. */
void tess_vectors_digest_text(const tess_logical_hash *digest, int64_t vector_numel, int64_t dim,
                              char text[TESS_VECTORS_DIGEST_TEXT_NBYTES]);

/**
 * Read all vectors once, each rank its blocks: their identity, and a refusal of numbers that are
 * not finite. Collective over `comm`.
 * @param key  of the run file, for messages
 * @return TESS_E_FORMAT names the first such number of the lowest rank that found one; and as
 * tess_vectors_read
 */
TESS_MUST_CHECK tess_status tess_vectors_scan(tess_comm *comm, tess_vectors *vectors,
                                              const char *key, tess_logical_hash *digest);

typedef struct tess_vectors_writer tess_vectors_writer;

/**
 * Start a file of f32 vectors, .fvecs, .fbin, .npy or .h5 / .hdf5 (dataset `vectors`, or as in
 * FILE.h5:DATASET), under a temporary name. Local.
 * @param vector_numel  N >= 1
 * @param dim           d, 1 to TESS_VECTOR_DIM_MAX
 * @return TESS_E_UNSUPPORTED another suffix; TESS_E_ARG no vectors or a bad name; TESS_E_RANGE more
 * than the format can say; TESS_E_IO
 */
TESS_MUST_CHECK tess_status tess_vectors_writer_create(const tess_ctx *ctx, const char *path,
                                                       int64_t vector_numel, int64_t dim,
                                                       tess_vectors_writer **out);
/** A file whose vectors may be images: .npy then says so. */
typedef struct tess_vectors_shape {
    int64_t vector_numel, dim;
    int64_t image[3]; /* H, W, C with H W C = dim, 0: vectors */
} tess_vectors_shape;
/** The same, of images in .npy as [N, H, W, C]. Local. @return as tess_vectors_writer_create */
TESS_MUST_CHECK tess_status tess_vectors_writer_create_shaped(const tess_ctx *ctx, const char *path,
                                                              const tess_vectors_shape *shape,
                                                              tess_vectors_writer **out);
/** Append the next vectors, x [numel, dim] f32. Local; allocates nothing. @return TESS_E_RANGE more
 * than N; TESS_E_IO */
TESS_MUST_CHECK tess_status tess_vectors_writer_append(tess_vectors_writer *writer, const float *x,
                                                       int64_t numel);
/** fsync and rename to the final name; an existing file is replaced. Local. @return TESS_E_STATE
 * vectors are missing; TESS_E_IO */
TESS_MUST_CHECK tess_status tess_vectors_writer_finish(tess_vectors_writer *writer);
/** Release; without a successful finish nothing is left on disk. */
void tess_vectors_writer_destroy(tess_vectors_writer **writer);

TESS_END_DECLS
