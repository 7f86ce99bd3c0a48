/* The only place that writes through HDF5; see [Note: laid out, then filled]. */
#include <hdf5.h>
#include <string.h>

#include "core/memory.h"
#include "train/data/hdf5_layout.h"

/* What the library puts around datasets, some hundreds of bytes each. */
enum { METADATA_LIMIT_NBYTES = TESS_H5_METADATA_LIMIT_NBYTES };

#define H5(st, done, path, call) TESS_H5(st, done, TESS_E_IO, path, call)

static tess_status write_attribute(const char *path, hid_t object, const char *name, hid_t type,
                                   const void *value)
{
    tess_status st = TESS_OK;
    hid_t attribute = -1;
    const hid_t space = H5Screate(H5S_SCALAR);
    H5(st, done, path, space);
    H5(st, done, path, attribute = H5Acreate2(object, name, type, space, H5P_DEFAULT, H5P_DEFAULT));
    H5(st, done, path, H5Awrite(attribute, type, value));
done:
    if (attribute >= 0)
        H5Aclose(attribute);
    if (space >= 0)
        H5Sclose(space);
    return st;
}

static tess_status write_text(const char *path, hid_t object, const char *name, const char *text)
{
    tess_status st = TESS_OK;
    const hid_t type = H5Tcopy(H5T_C_S1);
    H5(st, done, path, type);
    H5(st, done, path, H5Tset_size(type, strlen(text) + 1));
    H5(st, done, path, H5Tset_cset(type, H5T_CSET_UTF8));
    TESS_TRY_GOTO(st, done, write_attribute(path, object, name, type, text));
done:
    if (type >= 0)
        H5Tclose(type);
    return st;
}

static tess_status write_attributes(const char *path, hid_t file, const tess_h5_layout *layout)
{
    for (int i = 0; i < layout->attribute_numel; i++) {
        const tess_h5_attribute *a = &layout->attribute[i];
        TESS_TRY(a->text != NULL
                     ? write_text(path, file, a->name, a->text)
                     : write_attribute(path, file, a->name, H5T_NATIVE_INT64, &a->value));
    }
    return TESS_OK;
}

static hid_t type_of(tess_h5_type type)
{
    switch (type) {
    case TESS_H5_U8:
        return H5T_STD_U8LE;
    case TESS_H5_U16:
        return H5T_STD_U16LE;
    case TESS_H5_U32:
        return H5T_STD_U32LE;
    case TESS_H5_U64:
        return H5T_STD_U64LE;
    case TESS_H5_F32:
        return H5T_IEEE_F32LE;
    }
    return H5I_INVALID_HID;
}

/* One contiguous dataset with space but without bytes; its place goes into `d`. */
static tess_status reserve_dataset(const char *path, hid_t file, tess_h5_dataset *d)
{
    tess_status st = TESS_OK;
    hid_t space = -1, creation = -1, dataset = -1;
    const hsize_t dim[2] = {(hsize_t)d->dim[0], (hsize_t)d->dim[1]};
    H5(st, done, path, space = H5Screate_simple(d->dim_numel, dim, NULL));
    H5(st, done, path, creation = H5Pcreate(H5P_DATASET_CREATE));
    H5(st, done, path, H5Pset_layout(creation, H5D_CONTIGUOUS));
    H5(st, done, path, H5Pset_alloc_time(creation, H5D_ALLOC_TIME_EARLY));
    H5(st, done, path, H5Pset_fill_time(creation, H5D_FILL_TIME_NEVER));
    H5(st, done, path, H5Pset_obj_track_times(creation, false));
    H5(st, done, path,
       dataset =
           H5Dcreate2(file, d->name, type_of(d->type), space, H5P_DEFAULT, creation, H5P_DEFAULT));
    const haddr_t offset = H5Dget_offset(dataset);
    if (offset == HADDR_UNDEF) {
        st = tess_h5_fail(TESS_E_IO, path, "H5Dget_offset", __FILE__, __LINE__);
        goto done;
    }
    d->offset_nbytes = (int64_t)offset;
done:
    if (dataset >= 0)
        H5Dclose(dataset);
    if (creation >= 0)
        H5Pclose(creation);
    if (space >= 0)
        H5Sclose(space);
    return st;
}

static tess_status create_file(const char *path, int64_t user_block_nbytes, hid_t *out)
{
    tess_status st = TESS_OK;
    hid_t creation = -1, access = -1, file = -1;
    H5(st, done, path, creation = H5Pcreate(H5P_FILE_CREATE));
    H5(st, done, path, H5Pset_userblock(creation, (hsize_t)user_block_nbytes));
    H5(st, done, path, H5Pset_obj_track_times(creation, false));
    H5(st, done, path, access = H5Pcreate(H5P_FILE_ACCESS));
    H5(st, done, path, H5Pset_libver_bounds(access, H5F_LIBVER_V110, H5F_LIBVER_V110));
    H5(st, done, path, file = H5Fcreate(path, H5F_ACC_EXCL, creation, access));
    *out = file;
done:
    if (access >= 0)
        H5Pclose(access);
    if (creation >= 0)
        H5Pclose(creation);
    return st;
}

tess_status tess_h5_lay_out(const char *path, tess_h5_layout *layout)
{
    tess_status st = TESS_OK;
    hid_t file = -1;
    TESS_TRY(tess_h5_start());
    TESS_TRY_GOTO(st, done, create_file(path, layout->user_block_nbytes, &file));
    TESS_TRY_GOTO(st, done, write_attributes(path, file, layout));
    for (int i = 0; i < layout->dataset_numel; i++)
        TESS_TRY_GOTO(st, done, reserve_dataset(path, file, &layout->dataset[i]));
done:
    if (file >= 0 && H5Fclose(file) < 0 && st == TESS_OK)
        st = tess_h5_fail(TESS_E_IO, path, "H5Fclose", __FILE__, __LINE__);
    return st;
}

/* ---- a file that is filled ---- */

static int64_t nbytes_of(const tess_h5_dataset *d)
{
    static const int64_t elem_nbytes[] = {[TESS_H5_U8] = 1,
                                          [TESS_H5_U16] = 2,
                                          [TESS_H5_U32] = 4,
                                          [TESS_H5_U64] = 8,
                                          [TESS_H5_F32] = 4};
    return elem_nbytes[d->type] * d->dim[0] * (d->dim_numel == 2 ? d->dim[1] : 1);
}

/* The first range at `at_nbytes` or behind it, NULL: none. */
static const tess_partial_range *next_range(const tess_partial_file *file, int64_t at_nbytes)
{
    const tess_partial_range *next = NULL;
    for (int64_t i = 0; i < file->range_numel; i++) {
        const tess_partial_range *r = &file->range[i];
        if (r->offset_nbytes >= at_nbytes &&
            (next == NULL || r->offset_nbytes < next->offset_nbytes))
            next = r;
    }
    return next;
}

/* What the library wrote around the datasets, from `fd` into `bytes` and, once the file is started
 * with its first part, into the file. */
static tess_status copy_gaps(tess_partial_file *file, int fd, int64_t file_nbytes, char *bytes)
{
    int64_t at = 0;
    for (int64_t i = 0; i <= file->range_numel; i++) {
        const tess_partial_range *r = next_range(file, at);
        const int64_t end = r == NULL ? file_nbytes : r->offset_nbytes;
        const size_t nbytes = (size_t)(end - at);
        TESS_TRY(tess_io_pread(file->io, file->path, fd, bytes, nbytes, at));
        TESS_TRY(at == 0 ? tess_partial_file_start(file, bytes, nbytes, file_nbytes)
                         : tess_partial_file_patch(file, at, bytes, nbytes));
        bytes += nbytes;
        at = r == NULL ? end : end + r->nbytes;
    }
    return TESS_OK;
}

static tess_status copy_around(tess_partial_file *file, int fd, int64_t file_nbytes,
                               const tess_h5_layout *layout, tess_xxh128 *metadata)
{
    int64_t around_nbytes = file_nbytes;
    void *room = NULL;
    for (int64_t i = 0; i < file->range_numel; i++)
        around_nbytes -= file->range[i].nbytes;
    const tess_partial_range *first = next_range(file, 0);
    TESS_CHECK(first->offset_nbytes >= layout->user_block_nbytes && around_nbytes > 0 &&
                   around_nbytes <= METADATA_LIMIT_NBYTES,
               TESS_E_IO, "'%s': HDF5 laid the file out in an unknown way", file->path);
    TESS_TRY(tess_alloc((size_t)around_nbytes, &room));
    const tess_status st = copy_gaps(file, fd, file_nbytes, room);
    if (st == TESS_OK && metadata != NULL)
        *metadata = tess_xxh128_of((char *)room + layout->user_block_nbytes,
                                   (size_t)(around_nbytes - layout->user_block_nbytes));
    tess_free(room);
    return st;
}

static tess_status take_layout(tess_partial_file *file, const char *skeleton,
                               tess_h5_layout *layout, tess_xxh128 *metadata)
{
    int fd = -1;
    int64_t file_nbytes = 0;
    TESS_TRY(tess_h5_lay_out(skeleton, layout));
    for (int i = 0; i < layout->dataset_numel; i++)
        file->range[i] = (tess_partial_range){.name = layout->dataset[i].name,
                                              .offset_nbytes = layout->dataset[i].offset_nbytes,
                                              .nbytes = nbytes_of(&layout->dataset[i])};
    TESS_TRY(tess_io_open_read(file->io, skeleton, false, &fd, &file_nbytes));
    const tess_status st = copy_around(file, fd, file_nbytes, layout, metadata);
    (void)!tess_io_close(file->io, skeleton, &fd);
    return st;
}

tess_status tess_h5_start_file(tess_partial_file *file, tess_io *io, const char *path,
                               tess_h5_layout *layout, tess_xxh128 *metadata)
{
    char *skeleton = NULL;
    TESS_TRY(tess_partial_file_init(file, io, path, layout->dataset_numel));
    TESS_TRY(tess_asprintf(&skeleton, "%s.layout.tmp", path));
    tess_status st = tess_io_unlink(io, skeleton, true);
    if (st == TESS_OK)
        st = take_layout(file, skeleton, layout, metadata);
    if (st == TESS_OK)
        st = tess_io_unlink(io, skeleton, true);
    else
        (void)!tess_io_unlink(io, skeleton, true);
    tess_free(skeleton);
    return st;
}
