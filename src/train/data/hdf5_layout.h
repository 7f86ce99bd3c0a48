/**
 * What the HDF5 modules of this folder share.
 *
 * [Note: laid out, then filled] The library writes a file whose datasets lie contiguous and without
 * bytes; their places are all that is taken from it. Payload goes there with pwrite, so it can be
 * streamed and made durable like any other file.
 */
#pragma once

#include "core/digest.h"
#include "core/status.h"
#include "format/partial_file.h"

TESS_BEGIN_DECLS

/** Silence the library and leave nothing to exit handlers. Local; any number of times.
 * @return TESS_E_IO */
TESS_MUST_CHECK tess_status tess_h5_start(void);
/** "1.10.8", of the library in use. Local. */
void tess_h5_version(char *text, size_t text_nbytes);
/** Record what the library says about a failed call. Local. @return `code` */
tess_status tess_h5_fail(tess_status code, const char *path, const char *call, const char *file,
                         int line);

/* Set `st` and leave for `done` when a call of the library fails. */
#define TESS_H5(st, done, code, path, call)                                                        \
    do {                                                                                           \
        if ((call) < 0) {                                                                          \
            (st) = tess_h5_fail((code), (path), #call, __FILE__, __LINE__);                        \
            goto done;                                                                             \
        }                                                                                          \
    } while (0)

enum { TESS_H5_METADATA_LIMIT_NBYTES = 16 << 20 };

/** An attribute of the root group. */
typedef struct tess_h5_attribute {
    const char *name;
    const char *text; /* NULL: a number */
    int64_t value;
} tess_h5_attribute;

typedef enum tess_h5_type {
    TESS_H5_U8,
    TESS_H5_U16,
    TESS_H5_U32,
    TESS_H5_U64,
    TESS_H5_F32
} tess_h5_type;

/** A dataset at the root, little endian. */
typedef struct tess_h5_dataset {
    const char *name;
    tess_h5_type type;
    int dim_numel; /* 1 or 2 */
    int64_t dim[2];
    int64_t offset_nbytes; /* set: where it lies in the file */
} tess_h5_dataset;

typedef struct tess_h5_layout {
    int64_t user_block_nbytes; /* 0, or a power of two from 512 on */
    const tess_h5_attribute *attribute;
    int attribute_numel;
    tess_h5_dataset *dataset; /* [dataset_numel], in file order */
    int dataset_numel;
} tess_h5_layout;

/** Create a file (format bounds V110) with everything but the bytes of its datasets. Local.
 * @return TESS_E_IO with the library's own words */
TESS_MUST_CHECK tess_status tess_h5_lay_out(const char *path, tess_h5_layout *layout);
/**
 * Start a file whose range i is the bytes of dataset i: append and finish as usual, fini in any
 * case. `file` starts as {0}; names of datasets live as long as it. Local.
 * @param[out] metadata  digest of all bytes behind the user block and outside the datasets, by
 *                       ascending place; may be NULL
 */
TESS_MUST_CHECK tess_status tess_h5_start_file(tess_partial_file *file, tess_io *io,
                                               const char *path, tess_h5_layout *layout,
                                               tess_xxh128 *metadata);

TESS_END_DECLS
