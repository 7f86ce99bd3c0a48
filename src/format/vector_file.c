#include "format/vector_file.h"

#include <inttypes.h>
#include <string.h>

#include "core/arith.h"
#include "core/half.h"
#include "core/memory.h"
#include "format/npy.h"

enum { PREFIX_NBYTES = 4, BIN_HEADER_NBYTES = 8 };

typedef enum container { RECORDS, BIN, NPY } container;

/* Element of .npy comes from its header. */
static const struct {
    const char *format;
    container container;
    tess_vector_elem elem;
} formats[] = {{"fvecs", RECORDS, TESS_VECTOR_F32}, {"bvecs", RECORDS, TESS_VECTOR_U8},
               {"ivecs", RECORDS, TESS_VECTOR_I32}, {"fbin", BIN, TESS_VECTOR_F32},
               {"u8bin", BIN, TESS_VECTOR_U8},      {"i8bin", BIN, TESS_VECTOR_I8},
               {"ibin", BIN, TESS_VECTOR_I32},      {"npy", NPY, TESS_VECTOR_F32}};

static const struct {
    const char *name;
    size_t nbytes;
} elems[TESS_VECTOR_ELEM_NUMEL] = {
#define X(name, text, nbytes) [TESS_VECTOR_##name] = {text, nbytes},
    TESS_VECTOR_ELEM_LIST(X)
#undef X
};

struct tess_vector_file {
    tess_io *io;
    char *path;
    int fd;
    tess_vector_layout layout;
    int64_t stride_nbytes; /* from one vector to the next */
    uint8_t *scratch;      /* [scratch_numel, stride_nbytes]; NULL: reads go to the caller */
    int64_t scratch_numel; /* vectors */
};

const char *tess_vector_elem_name(tess_vector_elem elem)
{
    return (unsigned)elem < TESS_VECTOR_ELEM_NUMEL ? elems[elem].name : "unknown";
}

size_t tess_vector_elem_nbytes(tess_vector_elem elem)
{
    return (unsigned)elem < TESS_VECTOR_ELEM_NUMEL ? elems[elem].nbytes : 0;
}

/* Index of the format that the suffix of `path` names, -1: none. */
static int format_of(const char *path)
{
    const char *dot = strrchr(path, '.');
    for (int i = 0; dot != NULL && i < TESS_NELEM(formats); i++)
        if (strcmp(dot + 1, formats[i].format) == 0)
            return i;
    return -1;
}

bool tess_vector_file_is_path(const char *path) { return format_of(path) >= 0; }

/* ---- conversion ---- */

/* memcpy, as records put elements at any address. */
#define CONVERT(type, value)                                                                       \
    do {                                                                                           \
        for (int64_t i = 0; i < numel; i++) {                                                      \
            type x;                                                                                \
            memcpy(&x, (const char *)src + (size_t)i * sizeof x, sizeof x);                        \
            dst[i] = (value);                                                                      \
        }                                                                                          \
    } while (0)

void tess_vector_convert(tess_vector_elem elem, const void *src, int64_t numel, float *dst)
{
    switch (elem) {
    case TESS_VECTOR_U8:
        CONVERT(uint8_t, (float)x);
        break;
    case TESS_VECTOR_I8:
        CONVERT(int8_t, (float)x);
        break;
    case TESS_VECTOR_I32:
        CONVERT(int32_t, (float)x);
        break;
    case TESS_VECTOR_F16:
        CONVERT(uint16_t, tess_f16_to_f32(x));
        break;
    case TESS_VECTOR_F32:
        memcpy(dst, src, (size_t)numel * sizeof *dst);
        break;
    case TESS_VECTOR_F64:
        CONVERT(double, (float)x);
        break;
    case TESS_VECTOR_ELEM_NUMEL:
        break;
    }
}

/* ---- headers ---- */

static tess_status check_dim(const char *path, int64_t dim)
{
    TESS_CHECK(dim >= 1 && dim <= TESS_VECTOR_DIM_MAX, TESS_E_FORMAT,
               "'%s': vectors of %" PRId64 " dimensions, expected 1 to %d; is the suffix the "
               "file's format?",
               path, dim, TESS_VECTOR_DIM_MAX);
    return TESS_OK;
}

/* Bytes of one vector with its prefix. */
static int64_t stride_of(const tess_vector_layout *l)
{
    return l->dim * (int64_t)tess_vector_elem_nbytes(l->elem) + (l->has_prefix ? PREFIX_NBYTES : 0);
}

static tess_status read_records(tess_io *io, const char *path, int fd, int64_t file_nbytes,
                                tess_vector_layout *l)
{
    int32_t dim = 0;
    TESS_CHECK(file_nbytes >= PREFIX_NBYTES, TESS_E_FORMAT,
               "'%s': %" PRId64 " bytes, expected records of int32 d and d elements; the file "
               "holds no vector",
               path, file_nbytes);
    TESS_TRY(tess_io_pread(io, path, fd, &dim, sizeof dim, 0));
    TESS_TRY(check_dim(path, dim));
    l->dim = dim;
    l->has_prefix = true;
    const int64_t stride_nbytes = stride_of(l);
    TESS_CHECK(file_nbytes % stride_nbytes == 0, TESS_E_FORMAT,
               "'%s': %" PRId64 " bytes are no whole number of records of %" PRId64
               " bytes (d %" PRId64 "), %" PRId64
               " are left over; the file is cut off or of another format",
               path, file_nbytes, stride_nbytes, l->dim, file_nbytes % stride_nbytes);
    l->vector_numel = file_nbytes / stride_nbytes;
    return TESS_OK;
}

/* N and d as a header states them, against the size of the file. */
static tess_status check_size(const char *path, int64_t file_nbytes, tess_vector_layout *l)
{
    int64_t nbytes = 0, with_distances = 0;
    TESS_TRY(check_dim(path, l->dim));
    TESS_CHECK(l->vector_numel >= 1, TESS_E_FORMAT,
               "'%s': the header states %" PRId64 " vectors, expected at least one; write it again",
               path, l->vector_numel);
    TESS_CHECK(!__builtin_mul_overflow(l->vector_numel, stride_of(l), &nbytes) &&
                   !__builtin_add_overflow(nbytes, nbytes, &with_distances) &&
                   !__builtin_add_overflow(with_distances, l->offset_nbytes, &with_distances),
               TESS_E_FORMAT,
               "'%s': the header states %" PRId64 " x %" PRId64 " elements, more than any file has",
               path, l->vector_numel, l->dim);
    const bool is_neighbours = strcmp(l->format, "ibin") == 0 && file_nbytes == with_distances;
    TESS_CHECK(is_neighbours || file_nbytes == l->offset_nbytes + nbytes, TESS_E_FORMAT,
               "'%s': %" PRId64 " bytes, expected %" PRId64 " for %" PRId64 " x %" PRId64
               " of %s behind a header of %" PRId64 "; copy the file again, or correct its header",
               path, file_nbytes, l->offset_nbytes + nbytes, l->vector_numel, l->dim,
               tess_vector_elem_name(l->elem), l->offset_nbytes);
    return TESS_OK;
}

static tess_status read_bin(tess_io *io, const char *path, int fd, int64_t file_nbytes,
                            tess_vector_layout *l)
{
    uint32_t extent[2];
    TESS_CHECK(file_nbytes >= BIN_HEADER_NBYTES, TESS_E_FORMAT,
               "'%s': %" PRId64 " bytes, expected uint32 N, uint32 d and N x d elements", path,
               file_nbytes);
    TESS_TRY(tess_io_pread(io, path, fd, extent, sizeof extent, 0));
    l->vector_numel = extent[0];
    l->dim = extent[1];
    l->offset_nbytes = BIN_HEADER_NBYTES;
    return check_size(path, file_nbytes, l);
}

static tess_status read_npy(tess_io *io, const char *path, int fd, int64_t file_nbytes,
                            tess_vector_layout *l)
{
    static const struct {
        const char *descr;
        tess_vector_elem elem;
    } types[] = {{"<f4", TESS_VECTOR_F32}, {"<f2", TESS_VECTOR_F16}, {"<f8", TESS_VECTOR_F64},
                 {"|u1", TESS_VECTOR_U8},  {"|i1", TESS_VECTOR_I8},  {"<i4", TESS_VECTOR_I32},
                 {"|b1", TESS_VECTOR_U8}};
    tess_npy_header h;
    int i = 0;
    TESS_TRY(tess_npy_read_header(io, path, fd, file_nbytes, &h));
    while (i < TESS_NELEM(types) && strcmp(types[i].descr, h.descr) != 0)
        i++;
    TESS_CHECK(i < TESS_NELEM(types), TESS_E_UNSUPPORTED,
               "'%s': npy elements of type %s, expected <f4, <f2, <f8, <i4, |u1, |i1 or |b1; save "
               "x.astype('<f4')",
               path, h.descr);
    TESS_CHECK(h.dim_numel == 2, TESS_E_FORMAT,
               "'%s': npy array of %d dimensions, expected 2 (vectors, elements); save "
               "x.reshape(n, d)",
               path, h.dim_numel);
    l->elem = types[i].elem;
    l->vector_numel = h.dim[0];
    l->dim = h.dim[1];
    l->offset_nbytes = h.data_offset_nbytes;
    return check_size(path, file_nbytes, l);
}

/* ---- open, read, close ---- */

static tess_status plan_scratch(tess_vector_file *f)
{
    const tess_vector_layout *l = &f->layout;
    void *scratch = NULL;
    f->stride_nbytes = stride_of(l);
    if (l->elem == TESS_VECTOR_F32 && !l->has_prefix)
        return TESS_OK;
    f->scratch_numel =
        TESS_MIN(TESS_MAX(TESS_VECTOR_SCRATCH_NBYTES / f->stride_nbytes, 1), l->vector_numel);
    TESS_TRY(tess_alloc_array(f->scratch_numel, (size_t)f->stride_nbytes, &scratch));
    f->scratch = scratch;
    return TESS_OK;
}

static tess_status open_by_suffix(tess_vector_file *f, int64_t file_nbytes)
{
    const int i = format_of(f->path);
    TESS_CHECK(i >= 0, TESS_E_UNSUPPORTED,
               "'%s': expected a suffix fvecs, bvecs, ivecs, fbin, u8bin, i8bin, ibin or npy",
               f->path);
    f->layout = (tess_vector_layout){.format = formats[i].format, .elem = formats[i].elem};
    switch (formats[i].container) {
    case RECORDS:
        return read_records(f->io, f->path, f->fd, file_nbytes, &f->layout);
    case BIN:
        return read_bin(f->io, f->path, f->fd, file_nbytes, &f->layout);
    case NPY:
        return read_npy(f->io, f->path, f->fd, file_nbytes, &f->layout);
    }
    return TESS_OK;
}

static tess_status open_by_layout(tess_vector_file *f, int64_t file_nbytes,
                                  const tess_vector_layout *l)
{
    int64_t nbytes = 0;
    f->layout = *l;
    TESS_TRY(check_dim(f->path, l->dim));
    TESS_CHECK(l->vector_numel >= 1 && l->offset_nbytes >= 0 && l->offset_nbytes <= file_nbytes &&
                   !__builtin_mul_overflow(l->vector_numel, stride_of(l), &nbytes) &&
                   nbytes <= file_nbytes - l->offset_nbytes,
               TESS_E_FORMAT,
               "'%s': %" PRId64 " x %" PRId64 " of %s at byte %" PRId64 " of %" PRId64
               "; the file holds no vectors or is cut off",
               f->path, l->vector_numel, l->dim, tess_vector_elem_name(l->elem), l->offset_nbytes,
               file_nbytes);
    return TESS_OK;
}

static tess_status open_file(tess_vector_file *f, const char *path,
                             const tess_vector_layout *layout)
{
    int64_t file_nbytes = 0;
    TESS_TRY(tess_strdup(path, &f->path));
    TESS_TRY(tess_io_open_read(f->io, path, true, &f->fd, &file_nbytes));
    TESS_TRY(layout != NULL ? open_by_layout(f, file_nbytes, layout)
                            : open_by_suffix(f, file_nbytes));
    return plan_scratch(f);
}

static tess_status create(tess_io *io, const char *path, const tess_vector_layout *layout,
                          tess_vector_file **out)
{
    void *object = NULL;
    TESS_TRY(tess_alloc(sizeof(tess_vector_file), &object));
    tess_vector_file *f = object;
    f->io = io;
    f->fd = -1;
    const tess_status st = open_file(f, path, layout);
    if (st != TESS_OK) {
        tess_vector_file_close(&f);
        return st;
    }
    *out = f;
    return TESS_OK;
}

tess_status tess_vector_file_open(tess_io *io, const char *path, tess_vector_file **out)
{
    return create(io, path, NULL, out);
}

tess_status tess_vector_file_open_at(tess_io *io, const char *path,
                                     const tess_vector_layout *layout, tess_vector_file **out)
{
    return create(io, path, layout, out);
}

void tess_vector_file_close(tess_vector_file **file)
{
    tess_vector_file *f = *file;
    if (f == NULL)
        return;
    if (f->fd >= 0)
        (void)!tess_io_close(f->io, f->path, &f->fd);
    tess_free(f->scratch);
    tess_free(f->path);
    tess_free(f);
    *file = NULL;
}

const tess_vector_layout *tess_vector_file_get_layout(const tess_vector_file *file)
{
    return &file->layout;
}

/* Vectors whose bytes lie in scratch. */
static tess_status take_scratch(const tess_vector_file *f, int64_t first_idx, int64_t numel,
                                float *dst)
{
    const tess_vector_layout *l = &f->layout;
    if (!l->has_prefix) {
        tess_vector_convert(l->elem, f->scratch, numel * l->dim, dst);
        return TESS_OK;
    }
    for (int64_t i = 0; i < numel; i++) {
        const uint8_t *record = f->scratch + i * f->stride_nbytes;
        int32_t dim = 0;
        memcpy(&dim, record, sizeof dim);
        TESS_CHECK(dim == l->dim, TESS_E_FORMAT,
                   "'%s': record %" PRId64 " states %" PRId32 " dimensions, expected %" PRId64
                   " as in record 0; the file is damaged or of another format",
                   f->path, first_idx + i, dim, l->dim);
        tess_vector_convert(l->elem, record + PREFIX_NBYTES, l->dim, dst + i * l->dim);
    }
    return TESS_OK;
}

tess_status tess_vector_file_read(tess_vector_file *f, int64_t first_idx, int64_t numel, float *dst)
{
    const tess_vector_layout *l = &f->layout;
    TESS_CHECK(first_idx >= 0 && numel >= 0 && numel <= l->vector_numel &&
                   first_idx <= l->vector_numel - numel,
               TESS_E_RANGE, "'%s': vectors %" PRId64 " to %" PRId64 " of %" PRId64, f->path,
               first_idx, first_idx + numel, l->vector_numel);
    if (f->scratch == NULL)
        return tess_io_pread(f->io, f->path, f->fd, dst, (size_t)(numel * f->stride_nbytes),
                             l->offset_nbytes + first_idx * f->stride_nbytes);
    for (int64_t done = 0; done < numel;) {
        const int64_t part = TESS_MIN(numel - done, f->scratch_numel);
        TESS_TRY(tess_io_pread(f->io, f->path, f->fd, f->scratch, (size_t)(part * f->stride_nbytes),
                               l->offset_nbytes + (first_idx + done) * f->stride_nbytes));
        TESS_TRY(take_scratch(f, first_idx + done, part, dst + done * l->dim));
        done += part;
    }
    return TESS_OK;
}
