/* The only place that writes through HDF5; see [Note: laid out, then filled]. */
#include <hdf5.h>
#include <string.h>

#include "core/memory.h"
#include "train/hdf5_priv.h"

/* What the library puts around one dataset. */
enum { METADATA_LIMIT_NBYTES = 1 << 20 };

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

/* ---- a file of one dataset ---- */

/* Copy what the library wrote around the dataset from `fd` to the file that is started. */
static tess_status copy_around(tess_partial_file *file, int fd, int64_t file_nbytes,
                               const tess_h5_layout *layout, tess_xxh128 *metadata)
{
    const tess_partial_range *r = &file->range[0];
    const int64_t head_nbytes = r->offset_nbytes, tail_at = r->offset_nbytes + r->nbytes;
    const int64_t tail_nbytes = file_nbytes - tail_at;
    void *room = NULL;
    TESS_CHECK(head_nbytes >= layout->user_block_nbytes && tail_nbytes >= 0 &&
                   head_nbytes + tail_nbytes <= METADATA_LIMIT_NBYTES,
               TESS_E_IO, "'%s': HDF5 laid the file out in an unknown way", file->path);
    TESS_TRY(tess_alloc((size_t)(head_nbytes + tail_nbytes), &room));
    char *bytes = room;
    tess_status st = tess_io_pread(file->io, file->path, fd, bytes, (size_t)head_nbytes, 0);
    if (st == TESS_OK)
        st = tess_io_pread(file->io, file->path, fd, bytes + head_nbytes, (size_t)tail_nbytes,
                           tail_at);
    if (st == TESS_OK)
        st = tess_partial_file_start(file, bytes, (size_t)head_nbytes, file_nbytes);
    if (st == TESS_OK)
        st = tess_partial_file_patch(file, tail_at, bytes + head_nbytes, (size_t)tail_nbytes);
    if (st == TESS_OK && metadata != NULL)
        *metadata = tess_xxh128_of(bytes + layout->user_block_nbytes,
                                   (size_t)(head_nbytes + tail_nbytes - layout->user_block_nbytes));
    tess_free(room);
    return st;
}

static tess_status take_layout(tess_partial_file *file, const char *skeleton,
                               tess_h5_layout *layout, int64_t nbytes, tess_xxh128 *metadata)
{
    int fd = -1;
    int64_t file_nbytes = 0;
    TESS_TRY(tess_h5_lay_out(skeleton, layout));
    file->range[0] = (tess_partial_range){.name = layout->dataset[0].name,
                                          .offset_nbytes = layout->dataset[0].offset_nbytes,
                                          .nbytes = nbytes};
    TESS_TRY(tess_io_open_read(file->io, skeleton, false, &fd, &file_nbytes));
    const tess_status st = copy_around(file, fd, file_nbytes, layout, metadata);
    (void)!tess_io_close(file->io, skeleton, &fd);
    return st;
}

tess_status tess_h5_start_file(tess_partial_file *file, tess_io *io, const char *path,
                               tess_h5_layout *layout, int64_t nbytes, tess_xxh128 *metadata)
{
    char *skeleton = NULL;
    TESS_TRY(tess_partial_file_init(file, io, path, 1));
    TESS_TRY(tess_asprintf(&skeleton, "%s.layout.tmp", path));
    tess_status st = tess_io_unlink(io, skeleton, true);
    if (st == TESS_OK)
        st = take_layout(file, skeleton, layout, nbytes, metadata);
    if (st == TESS_OK)
        st = tess_io_unlink(io, skeleton, true);
    else
        (void)!tess_io_unlink(io, skeleton, true);
    tess_free(skeleton);
    return st;
}
