/**
 * Headers of .npy files, versions 1.0 to 3.0: read with every field checked, written as 1.0.
 *
 * The header is a Python dictionary of three keys: descr, fortran_order, shape. Its stated length
 * is what counts, never an alignment. Arrays are little endian, in C order, of at most 4
 * dimensions.
 *
 * @source numpy lib/format.py
 */
#pragma once

#include <stdint.h>

#include "core/io.h"

TESS_BEGIN_DECLS

enum {
    TESS_NPY_DIM_MAX = 4,
    TESS_NPY_DESCR_NBYTES = 16,
    TESS_NPY_HEADER_MAX_NBYTES = 1 << 16, /* magic, version and length included */
    TESS_NPY_MADE_NBYTES = 256            /* of tess_npy_make_header */
};

/** What a header says. Plain data. */
typedef struct tess_npy_header {
    char descr[TESS_NPY_DESCR_NBYTES]; /* "<f4", "|u1" */
    int dim_numel;
    int64_t dim[TESS_NPY_DIM_MAX]; /* slowest first */
    int64_t data_offset_nbytes;    /* from the start of the file */
} tess_npy_header;

/**
 * Read the header of an open file. Local.
 * @return TESS_E_FORMAT names file, field, expected and found; TESS_E_UNSUPPORTED Fortran order, a
 * structured or object type, more dimensions; TESS_E_IO
 */
TESS_MUST_CHECK tess_status tess_npy_read_header(tess_io *io, const char *path, int fd,
                                                 int64_t file_nbytes, tess_npy_header *out);
/** The same with room for a header, `room` [TESS_NPY_HEADER_MAX_NBYTES]: nothing is allocated.
 * Local.
 */
TESS_MUST_CHECK tess_status tess_npy_read_header_in(tess_io *io, const char *path, int fd,
                                                    int64_t file_nbytes, char *room,
                                                    tess_npy_header *out);
/** The same of an array that lies in memory. Local. @param[in] bytes  [nbytes] header and data */
TESS_MUST_CHECK tess_status tess_npy_parse_header(const char *path, const void *bytes,
                                                  size_t nbytes, tess_npy_header *out);
/**
 * A header 1.0 for `h->descr` and `h->dim`, padded so that the data start at a multiple of 64.
 * Local.
 * @param[out] bytes  [h->data_offset_nbytes], which is set
 */
void tess_npy_make_header(tess_npy_header *h, char bytes[TESS_NPY_MADE_NBYTES]);

TESS_END_DECLS
