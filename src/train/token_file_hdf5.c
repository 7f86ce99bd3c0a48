/* The only place that calls HDF5 for token files: it lays the file out, the bytes of the sections
 * are written by token_file_write.c. Nothing is ever opened for reading with HDF5. */
#include <hdf5.h>
#include <stdio.h>
#include <string.h>

#include "core/arith.h"
#include "train/hdf5_priv.h"
#include "train/token_file_priv.h"

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

static tess_status write_attributes(const char *path, hid_t file, const tess_token_file_info *info)
{
    char hex[TESS_SHA256_HEX_NBYTES];
    const int64_t version = TESS_TOKEN_FILE_VERSION;
    const struct {
        const char *name;
        int64_t value;
    } numbers[] = {{"format_version", version},
                   {"vocab_numel", info->vocab_numel},
                   {"token_numel", info->token_numel},
                   {"document_numel", info->document_numel},
                   {"loss_token_numel", info->loss_token_numel}};
    for (int i = 0; i < TESS_NELEM(numbers); i++)
        TESS_TRY(write_attribute(path, file, numbers[i].name, H5T_NATIVE_INT64, &numbers[i].value));
    tess_hex(info->tokenizer.byte, TESS_SHA256_NBYTES, hex);
    TESS_TRY(write_text(path, file, "tokenizer_sha256", hex));
    tess_hex(info->payload_digest.byte, TESS_XXH128_NBYTES, hex);
    return write_text(path, file, "payload_xxh128", hex);
}

/* One contiguous dataset with space but without bytes; its place goes into `section`. */
static tess_status reserve_dataset(const char *path, hid_t file, const char *name, hid_t type,
                                   tess_token_section *section)
{
    tess_status st = TESS_OK;
    hid_t space = -1, layout = -1, dataset = -1;
    if (section->nbytes == 0)
        return TESS_OK;
    const hsize_t numel = (hsize_t)section->nbytes / H5Tget_size(type);
    H5(st, done, path, space = H5Screate_simple(1, &numel, NULL));
    H5(st, done, path, layout = H5Pcreate(H5P_DATASET_CREATE));
    H5(st, done, path, H5Pset_layout(layout, H5D_CONTIGUOUS));
    H5(st, done, path, H5Pset_alloc_time(layout, H5D_ALLOC_TIME_EARLY));
    H5(st, done, path, H5Pset_fill_time(layout, H5D_FILL_TIME_NEVER));
    H5(st, done, path, H5Pset_obj_track_times(layout, false));
    H5(st, done, path,
       dataset = H5Dcreate2(file, name, type, space, H5P_DEFAULT, layout, H5P_DEFAULT));
    const haddr_t offset = H5Dget_offset(dataset);
    if (offset == HADDR_UNDEF) {
        st = tess_h5_fail(TESS_E_IO, path, "H5Dget_offset", __FILE__, __LINE__);
        goto done;
    }
    section->offset_nbytes = (int64_t)offset;
done:
    if (dataset >= 0)
        H5Dclose(dataset);
    if (layout >= 0)
        H5Pclose(layout);
    if (space >= 0)
        H5Sclose(space);
    return st;
}

static tess_status create_file(const char *path, hid_t *out)
{
    tess_status st = TESS_OK;
    hid_t creation = -1, access = -1, file = -1;
    H5(st, done, path, creation = H5Pcreate(H5P_FILE_CREATE));
    H5(st, done, path, H5Pset_userblock(creation, TESS_TOKEN_FILE_HEADER_NBYTES));
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

tess_status tess_token_hdf5_create(const char *path, tess_token_file_info *info)
{
    tess_status st = TESS_OK;
    hid_t file = -1;
    TESS_TRY(tess_h5_start());
    TESS_TRY_GOTO(st, done, create_file(path, &file));
    TESS_TRY_GOTO(st, done, write_attributes(path, file, info));
    const hid_t token_type = info->token_nbytes == 2 ? H5T_STD_U16LE : H5T_STD_U32LE;
    TESS_TRY_GOTO(st, done, reserve_dataset(path, file, "tokens", token_type, &info->tokens));
    TESS_TRY_GOTO(st, done,
                  reserve_dataset(path, file, "doc_offsets", H5T_STD_U64LE, &info->doc_offsets));
    TESS_TRY_GOTO(st, done,
                  reserve_dataset(path, file, "loss_mask", H5T_STD_U8LE, &info->loss_mask));
    TESS_TRY_GOTO(st, done, reserve_dataset(path, file, "sources", H5T_STD_U8LE, &info->sources));
done:
    if (file >= 0 && H5Fclose(file) < 0 && st == TESS_OK)
        st = tess_h5_fail(TESS_E_IO, path, "H5Fclose", __FILE__, __LINE__);
    return st;
}
