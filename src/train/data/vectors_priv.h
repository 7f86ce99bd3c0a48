/** Paths of HDF5 files, a dataset as a source of vectors, and the valid ones of a source. */
#pragma once

#include "format/vector_file.h"
#include "train/data/vectors.h"

TESS_BEGIN_DECLS

/** Where the suffix of an HDF5 file ends in `path`, at ':' or NUL; NULL: it is none. Local. */
const char *tess_vectors_hdf5_end(const char *path);

typedef struct tess_vectors_hdf5 tess_vectors_hdf5;

/**
 * Open a dataset, `train` or the only one of two dimensions when `dataset` is NULL. Local.
 * @return as tess_vectors_open
 */
TESS_MUST_CHECK tess_status tess_vectors_hdf5_open(const char *path, const char *dataset,
                                                   tess_vectors_hdf5 **out);
void tess_vectors_hdf5_close(tess_vectors_hdf5 **h5);
/** Type and extents; the place too when tess_vectors_hdf5_is_contiguous. */
const tess_vector_layout *tess_vectors_hdf5_get_layout(const tess_vectors_hdf5 *h5);
const char *tess_vectors_hdf5_dataset(const tess_vectors_hdf5 *h5);
bool tess_vectors_hdf5_is_contiguous(const tess_vectors_hdf5 *h5);
/** Read elements as they are stored, into [numel, d]. Local. @return TESS_E_IO */
TESS_MUST_CHECK tess_status tess_vectors_hdf5_read(tess_vectors_hdf5 *h5, int64_t first_idx,
                                                   int64_t numel, void *dst);

/** Where the valid vectors of a file lie: 8 bytes for every 1024 vectors. One reader at a time. */
typedef struct tess_vectors_valid tess_vectors_valid;

/** Reads the whole mask once. Local. @return as tess_vectors_leave_out */
TESS_MUST_CHECK tess_status tess_vectors_valid_open(const tess_ctx *ctx, const char *mask_path,
                                                    const char *key, int64_t vector_numel,
                                                    tess_vectors_valid **out);
void tess_vectors_valid_close(tess_vectors_valid **valid);
int64_t tess_vectors_valid_numel(const tess_vectors_valid *valid);
/** Place in the file of the valid vector `idx`, which there is. Local. @return as tess_mask_read */
TESS_MUST_CHECK tess_status tess_vectors_valid_find(tess_vectors_valid *valid, int64_t idx,
                                                    int64_t *place);
/** Flags of the vectors at `place` and behind, some: they stay until the next call. Local.
 * @return as tess_mask_read */
TESS_MUST_CHECK tess_status tess_vectors_valid_flags(tess_vectors_valid *valid, int64_t place,
                                                     const uint8_t **flag, int64_t *numel);

TESS_END_DECLS
