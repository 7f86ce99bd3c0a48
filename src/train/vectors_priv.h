/** Paths of HDF5 files, and a dataset as a source of vectors. */
#pragma once

#include "format/vector_file.h"
#include "train/vectors.h"

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

TESS_END_DECLS
