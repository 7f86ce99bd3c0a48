/**
 * Archives of arrays as numpy.savez and numpy.savez_compressed write them: a zip of .npy files,
 * stored or deflated.
 *
 * A file is read into memory as a whole: archives of this kind hold one sample each.
 *
 * @source numpy lib/_npyio_impl.py; PKWARE APPNOTE
 */
#pragma once

#include "format/npy.h"

TESS_BEGIN_DECLS

enum { TESS_NPZ_LIMIT_NBYTES = 256 << 20 }; /* of a file, and of an array in it */

typedef struct tess_npz tess_npz;

/** Local. @return TESS_E_FORMAT no zip archive, damaged, or larger than the limit; TESS_E_IO */
TESS_MUST_CHECK tess_status tess_npz_open(tess_io *io, const char *path, tess_npz **out);
void tess_npz_close(tess_npz **npz);
const char *tess_npz_path(const tess_npz *npz);
int64_t tess_npz_numel(const tess_npz *npz);
/** Name of array `idx`, in the file's order, as numpy shows it: without ".npy". */
const char *tess_npz_name(const tess_npz *npz, int64_t idx);
/** -1: there is none. */
int64_t tess_npz_find(const tess_npz *npz, const char *name);

/** One array. Free with tess_npz_array_fini. */
typedef struct tess_npz_array {
    tess_npy_header header;
    int64_t numel;
    void *bytes;    /* header and data, owned */
    char name[600]; /* "PATH: NAME", for messages */
} tess_npz_array;

/** Read an array; its CRC is checked. Local. @return TESS_E_FORMAT damaged, larger than the limit,
 * or no array; TESS_E_UNSUPPORTED other elements than f2, f4, f8, u1, i1, i4,
 * i8 and bool, and as tess_npy_read_header */
TESS_MUST_CHECK tess_status tess_npz_read(const tess_npz *npz, int64_t idx, tess_npz_array *out);
void tess_npz_array_fini(tess_npz_array *array);
/** Elements as f32, rounded to nearest even. Local. @param[out] out  [array->numel] */
void tess_npz_to_f32(const tess_npz_array *array, float *out);

TESS_END_DECLS
