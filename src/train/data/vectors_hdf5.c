/* The only place that hands files of vectors to HDF5; see [Note: vectors in HDF5]. */
#include <hdf5.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "train/data/hdf5_layout.h"
#include "train/data/vectors_priv.h"

enum { NAME_NBYTES = 256, CHUNK_SLOT_NUMEL = 521 };
/* Room for the chunks that one row of the dataset touches, within these. */
static const size_t cache_min_nbytes = (size_t)1 << 20, cache_max_nbytes = (size_t)64 << 20;

struct tess_vectors_hdf5 {
    char *path;
    char name[NAME_NBYTES];
    hid_t file, dataset, type;
    bool is_contiguous;
    tess_vector_layout layout;
};

const tess_vector_layout *tess_vectors_hdf5_get_layout(const tess_vectors_hdf5 *h5)
{
    return &h5->layout;
}

const char *tess_vectors_hdf5_dataset(const tess_vectors_hdf5 *h5) { return h5->name; }

bool tess_vectors_hdf5_is_contiguous(const tess_vectors_hdf5 *h5) { return h5->is_contiguous; }

/* ---- which dataset ---- */

static bool is_two_dimensional(hid_t file, const char *name)
{
    H5O_info_t about;
    if (H5Oget_info_by_name(file, name, &about, H5P_DEFAULT) < 0 || about.type != H5O_TYPE_DATASET)
        return false;
    const hid_t dataset = H5Dopen2(file, name, H5P_DEFAULT);
    const hid_t space = dataset >= 0 ? H5Dget_space(dataset) : -1;
    const int dim_numel = space >= 0 ? H5Sget_simple_extent_ndims(space) : -1;
    if (space >= 0)
        H5Sclose(space);
    if (dataset >= 0)
        H5Dclose(dataset);
    return dim_numel == 2;
}

typedef struct candidates {
    int64_t numel;
    char first[NAME_NBYTES];
    char names[4 * NAME_NBYTES]; /* for messages: of those that fit */
    bool has_train;
} candidates;

/* Hard links at the root only: others may lead out of the file. */
static herr_t count_link(hid_t root, const char *name, const H5L_info_t *link, void *arg)
{
    candidates *found = arg;
    if (link->type != H5L_TYPE_HARD || strlen(name) >= NAME_NBYTES ||
        !is_two_dimensional(root, name))
        return 0;
    if (found->numel++ == 0)
        memcpy(found->first, name, strlen(name) + 1);
    const size_t used_nbytes = strlen(found->names);
    if (used_nbytes + strlen(name) + sizeof ", ''" <= sizeof found->names)
        snprintf(found->names + used_nbytes, sizeof found->names - used_nbytes, "%s'%s'",
                 used_nbytes > 0 ? ", " : "", name);
    found->has_train = found->has_train || strcmp(name, "train") == 0;
    return 0;
}

static tess_status find_candidates(const tess_vectors_hdf5 *h5, candidates *found)
{
    tess_status st = TESS_OK;
    *found = (candidates){0};
    TESS_H5(st, done, TESS_E_FORMAT, h5->path,
            H5Literate(h5->file, H5_INDEX_NAME, H5_ITER_INC, NULL, count_link, found));
done:
    return st;
}

static tess_status choose(tess_vectors_hdf5 *h5)
{
    candidates found;
    TESS_TRY(find_candidates(h5, &found));
    TESS_CHECK(found.has_train || found.numel == 1, TESS_E_FORMAT,
               "'%s': %" PRId64 " datasets of two dimensions at the root (%s), expected 'train' or "
               "only one; name it as FILE.h5:DATASET",
               h5->path, found.numel, found.numel > 0 ? found.names : "none");
    const char *name = found.has_train ? "train" : found.first;
    memcpy(h5->name, name, strlen(name) + 1);
    return TESS_OK;
}

/* A link that leads nowhere is there; opening it says why. */
static tess_status check_name(const tess_vectors_hdf5 *h5)
{
    candidates found;
    if (H5Lexists(h5->file, h5->name, H5P_DEFAULT) > 0)
        return TESS_OK;
    TESS_TRY(find_candidates(h5, &found));
    return TESS_FAIL(TESS_E_FORMAT,
                     "'%s': no dataset '%s', expected one of two dimensions; at the root are %s",
                     h5->path, h5->name, found.numel > 0 ? found.names : "none");
}

/* ---- what it holds ---- */

static bool is_f16(hid_t type)
{
    size_t sign = 0, exponent = 0, exponent_nbits = 0, fraction = 0, fraction_nbits = 0;
    return H5Tget_size(type) == 2 && H5Tget_ebias(type) == 15 &&
           H5Tget_fields(type, &sign, &exponent, &exponent_nbits, &fraction, &fraction_nbits) >=
               0 &&
           sign == 15 && exponent == 10 && exponent_nbits == 5 && fraction == 0 &&
           fraction_nbits == 10;
}

static bool find_elem(hid_t type, tess_vector_elem *out)
{
    const size_t nbytes = H5Tget_size(type);
    const bool is_integer = H5Tget_class(type) == H5T_INTEGER;
    if (nbytes > 1 && H5Tget_order(type) != H5T_ORDER_LE)
        return false;
    if (H5Tget_class(type) != H5T_FLOAT && !is_integer)
        return false;
    if (H5Tget_precision(type) != 8 * nbytes)
        return false;
    const bool is_signed = is_integer && H5Tget_sign(type) == H5T_SGN_2;
    const struct {
        bool is_it;
        tess_vector_elem elem;
    } known[] = {{is_integer && !is_signed && nbytes == 1, TESS_VECTOR_U8},
                 {is_integer && is_signed && nbytes == 1, TESS_VECTOR_I8},
                 {is_integer && is_signed && nbytes == 4, TESS_VECTOR_I32},
                 {!is_integer && is_f16(type), TESS_VECTOR_F16},
                 {H5Tequal(type, H5T_IEEE_F32LE) > 0, TESS_VECTOR_F32},
                 {H5Tequal(type, H5T_IEEE_F64LE) > 0, TESS_VECTOR_F64}};
    for (int i = 0; i < TESS_NELEM(known); i++) {
        if (known[i].is_it) {
            *out = known[i].elem;
            return true;
        }
    }
    return false;
}

static tess_status read_extents(tess_vectors_hdf5 *h5)
{
    tess_status st = TESS_OK;
    hsize_t dim[2] = {0, 0};
    const hid_t space = H5Dget_space(h5->dataset);
    TESS_H5(st, done, TESS_E_FORMAT, h5->path, space);
    const int dim_numel = H5Sget_simple_extent_ndims(space);
    if (dim_numel != 2 || H5Sget_simple_extent_dims(space, dim, NULL) != 2) {
        st = TESS_FAIL(TESS_E_FORMAT,
                       "'%s': dataset '%s' has %d dimensions, expected 2 (vectors, elements)",
                       h5->path, h5->name, dim_numel);
        goto done;
    }
    if (dim[0] < 1 || dim[1] < 1 || dim[1] > TESS_VECTOR_DIM_MAX ||
        dim[0] > INT64_MAX / 8 / dim[1]) {
        st = TESS_FAIL(TESS_E_FORMAT,
                       "'%s': dataset '%s' is %" PRIu64 " x %" PRIu64
                       ", expected at least one vector of 1 to %d elements",
                       h5->path, h5->name, (uint64_t)dim[0], (uint64_t)dim[1], TESS_VECTOR_DIM_MAX);
        goto done;
    }
    h5->layout.vector_numel = (int64_t)dim[0];
    h5->layout.dim = (int64_t)dim[1];
done:
    if (space >= 0)
        H5Sclose(space);
    return st;
}

static tess_status read_type(tess_vectors_hdf5 *h5)
{
    tess_status st = TESS_OK;
    TESS_H5(st, done, TESS_E_FORMAT, h5->path, h5->type = H5Dget_type(h5->dataset));
    TESS_CHECK(find_elem(h5->type, &h5->layout.elem), TESS_E_UNSUPPORTED,
               "'%s': dataset '%s' has elements of another type, expected u8, i8, i32, f16, f32 or "
               "f64 in little endian; convert it, e.g. with numpy's astype",
               h5->path, h5->name);
done:
    return st;
}

/* Place of a contiguous dataset; a chunked one is opened again with a cache that a row fits. */
static tess_status read_storage(tess_vectors_hdf5 *h5, hid_t creation)
{
    tess_status st = TESS_OK;
    hid_t access = -1;
    const H5D_layout_t layout = H5Pget_layout(creation);
    const bool is_inside = H5Pget_external_count(creation) == 0;
    TESS_CHECK((layout == H5D_CONTIGUOUS || layout == H5D_CHUNKED) && is_inside, TESS_E_UNSUPPORTED,
               "'%s': dataset '%s' is compact, virtual or in another file, expected contiguous or "
               "chunked; copy it with h5repack -l CONTI",
               h5->path, h5->name);
    h5->is_contiguous = layout == H5D_CONTIGUOUS;
    if (h5->is_contiguous) {
        const haddr_t offset = H5Dget_offset(h5->dataset);
        TESS_CHECK(offset != HADDR_UNDEF, TESS_E_FORMAT,
                   "'%s': dataset '%s' was never written; write it again", h5->path, h5->name);
        h5->layout.offset_nbytes = (int64_t)offset;
        return TESS_OK;
    }
    hsize_t chunk[2] = {1, 1};
    TESS_H5(st, done, TESS_E_FORMAT, h5->path, H5Pget_chunk(creation, 2, chunk));
    const size_t across = ((size_t)h5->layout.dim + chunk[1] - 1) / TESS_MAX(chunk[1], 1);
    const size_t row_nbytes =
        across * chunk[0] * chunk[1] * tess_vector_elem_nbytes(h5->layout.elem);
    const size_t cache_nbytes = TESS_MIN(TESS_MAX(row_nbytes, cache_min_nbytes), cache_max_nbytes);
    TESS_H5(st, done, TESS_E_FORMAT, h5->path, access = H5Pcreate(H5P_DATASET_ACCESS));
    TESS_H5(st, done, TESS_E_FORMAT, h5->path,
            H5Pset_chunk_cache(access, CHUNK_SLOT_NUMEL, cache_nbytes, 1.0));
    TESS_H5(st, done, TESS_E_FORMAT, h5->path, H5Dclose(h5->dataset));
    TESS_H5(st, done, TESS_E_FORMAT, h5->path, h5->dataset = H5Dopen2(h5->file, h5->name, access));
done:
    if (access >= 0)
        H5Pclose(access);
    return st;
}

/* ---- open ---- */

static herr_t refuse_other_file(const char *parent, const char *group, const char *child,
                                const char *target, unsigned *flags, hid_t access, void *arg)
{
    (void)parent, (void)group, (void)child, (void)target, (void)flags, (void)access, (void)arg;
    return -1;
}

static tess_status open_file(tess_vectors_hdf5 *h5)
{
    tess_status st = TESS_OK;
    hid_t access = -1;
    TESS_H5(st, done, TESS_E_FORMAT, h5->path, access = H5Pcreate(H5P_FILE_ACCESS));
    TESS_H5(st, done, TESS_E_FORMAT, h5->path, H5Pset_file_locking(access, false, true));
    TESS_H5(st, done, TESS_E_FORMAT, h5->path,
            h5->file = H5Fopen(h5->path, H5F_ACC_RDONLY, access));
done:
    if (access >= 0)
        H5Pclose(access);
    return st;
}

static tess_status open_dataset(tess_vectors_hdf5 *h5)
{
    tess_status st = TESS_OK;
    hid_t access = -1, creation = -1;
    TESS_H5(st, done, TESS_E_FORMAT, h5->path, access = H5Pcreate(H5P_DATASET_ACCESS));
    TESS_H5(st, done, TESS_E_FORMAT, h5->path, H5Pset_elink_cb(access, refuse_other_file, NULL));
    TESS_H5(st, done, TESS_E_FORMAT, h5->path, h5->dataset = H5Dopen2(h5->file, h5->name, access));
    TESS_H5(st, done, TESS_E_FORMAT, h5->path, creation = H5Dget_create_plist(h5->dataset));
    TESS_TRY_GOTO(st, done, read_type(h5));
    TESS_TRY_GOTO(st, done, read_extents(h5));
    TESS_TRY_GOTO(st, done, read_storage(h5, creation));
done:
    if (creation >= 0)
        H5Pclose(creation);
    if (access >= 0)
        H5Pclose(access);
    return st;
}

static tess_status open_all(tess_vectors_hdf5 *h5, const char *path, const char *dataset)
{
    TESS_TRY(tess_strdup(path, &h5->path));
    TESS_TRY(tess_h5_start());
    TESS_TRY(open_file(h5));
    if (dataset == NULL) {
        TESS_TRY(choose(h5));
    } else {
        TESS_CHECK(strlen(dataset) >= 1 && strlen(dataset) < NAME_NBYTES, TESS_E_ARG,
                   "'%s': dataset name of %zu bytes, expected 1 to %d", path, strlen(dataset),
                   NAME_NBYTES - 1);
        memcpy(h5->name, dataset, strlen(dataset) + 1);
    }
    TESS_TRY(check_name(h5));
    return open_dataset(h5);
}

tess_status tess_vectors_hdf5_open(const char *path, const char *dataset, tess_vectors_hdf5 **out)
{
    void *object = NULL;
    TESS_TRY(tess_alloc(sizeof(tess_vectors_hdf5), &object));
    tess_vectors_hdf5 *h5 = object;
    h5->file = h5->dataset = h5->type = -1;
    h5->layout.format = "hdf5";
    const tess_status st = open_all(h5, path, dataset);
    if (st != TESS_OK) {
        tess_vectors_hdf5_close(&h5);
        return st;
    }
    *out = h5;
    return TESS_OK;
}

void tess_vectors_hdf5_close(tess_vectors_hdf5 **h5)
{
    tess_vectors_hdf5 *h = *h5;
    if (h == NULL)
        return;
    if (h->type >= 0)
        H5Tclose(h->type);
    if (h->dataset >= 0)
        H5Dclose(h->dataset);
    if (h->file >= 0)
        H5Fclose(h->file);
    tess_free(h->path);
    tess_free(h);
    *h5 = NULL;
}

tess_status tess_vectors_hdf5_read(tess_vectors_hdf5 *h5, int64_t first_idx, int64_t numel,
                                   void *dst)
{
    tess_status st = TESS_OK;
    hid_t memory = -1;
    const hsize_t start[2] = {(hsize_t)first_idx, 0};
    const hsize_t extent[2] = {(hsize_t)numel, (hsize_t)h5->layout.dim};
    const hid_t space = H5Dget_space(h5->dataset);
    TESS_H5(st, done, TESS_E_IO, h5->path, space);
    TESS_H5(st, done, TESS_E_IO, h5->path,
            H5Sselect_hyperslab(space, H5S_SELECT_SET, start, NULL, extent, NULL));
    TESS_H5(st, done, TESS_E_IO, h5->path, memory = H5Screate_simple(2, extent, NULL));
    TESS_H5(st, done, TESS_E_IO, h5->path,
            H5Dread(h5->dataset, h5->type, memory, space, H5P_DEFAULT, dst));
done:
    if (memory >= 0)
        H5Sclose(memory);
    if (space >= 0)
        H5Sclose(space);
    return st;
}
