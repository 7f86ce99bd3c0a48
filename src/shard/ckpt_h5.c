/* The only file that calls HDF5 for checkpoints. It builds skeletons and reads back what they say;
 * payload never passes through the library. */
#include <hdf5.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "shard/ckpt_priv.h"

enum { ALIGN_NBYTES = 4096 };

/* ---- errors ---- */

static herr_t keep_innermost(unsigned n, const H5E_error2_t *e, void *arg)
{
    char *text = arg;
    if (n == 0)
        snprintf(text, 200, "%s: %s", e->func_name, e->desc);
    return 0;
}

static tess_status h5_fail(tess_status code, const char *path, const char *call)
{
    char cause[200] = "no cause given";
    (void)H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, keep_innermost, cause);
    (void)H5Eclear2(H5E_DEFAULT);
    return TESS_FAIL(code, "'%s': HDF5 %s failed (%s)", path, call, cause);
}

/* Return with the library's own words when a call of it fails. */
#define TESS_H5(code, path, call)                                                                  \
    do {                                                                                           \
        if ((call) < 0)                                                                            \
            return h5_fail((code), (path), #call);                                                 \
    } while (0)

bool ckpt_h5_start(void)
{
    hbool_t is_threadsafe = false;
    (void)H5dont_atexit();
    (void)H5is_library_threadsafe(&is_threadsafe);
    (void)H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    return is_threadsafe;
}

/* ---- types ---- */

/* bf16 as a float that h5py and h5dump show as numbers. */
static hid_t make_bf16(void)
{
    const hid_t type = H5Tcopy(H5T_IEEE_F32LE);
    if (type < 0 || H5Tset_fields(type, 15, 7, 8, 0, 7) < 0 || H5Tset_precision(type, 16) < 0 ||
        H5Tset_offset(type, 0) < 0 || H5Tset_size(type, 2) < 0 || H5Tset_ebias(type, 127) < 0) {
        (void)H5Tclose(type);
        return H5I_INVALID_HID;
    }
    return type;
}

static hid_t make_f16(void)
{
    const hid_t type = H5Tcopy(H5T_IEEE_F32LE);
    if (type < 0 || H5Tset_fields(type, 15, 10, 5, 0, 10) < 0 || H5Tset_precision(type, 16) < 0 ||
        H5Tset_offset(type, 0) < 0 || H5Tset_size(type, 2) < 0 || H5Tset_ebias(type, 15) < 0) {
        (void)H5Tclose(type);
        return H5I_INVALID_HID;
    }
    return type;
}

/* Type on disk of a dtype; the caller closes it. */
static hid_t make_type(tess_dtype dt)
{
    switch (dt) {
    case TESS_U8_OPAQUE:
    case TESS_U8:
        return H5Tcopy(H5T_STD_U8LE);
    case TESS_I32:
        return H5Tcopy(H5T_STD_I32LE);
    case TESS_I64:
        return H5Tcopy(H5T_STD_I64LE);
    case TESS_U64:
        return H5Tcopy(H5T_STD_U64LE);
    case TESS_F16:
        return make_f16();
    case TESS_BF16:
        return make_bf16();
    case TESS_F32:
        return H5Tcopy(H5T_IEEE_F32LE);
    case TESS_F64:
        return H5Tcopy(H5T_IEEE_F64LE);
    case TESS_DTYPE_NUMEL:
        break;
    }
    return H5I_INVALID_HID;
}

static hid_t make_text_type(size_t nbytes)
{
    const hid_t type = H5Tcopy(H5T_C_S1);
    if (type < 0 || H5Tset_size(type, nbytes > 0 ? nbytes : 1) < 0 ||
        H5Tset_strpad(type, H5T_STR_NULLPAD) < 0 || H5Tset_cset(type, H5T_CSET_UTF8) < 0) {
        (void)H5Tclose(type);
        return H5I_INVALID_HID;
    }
    return type;
}

static hid_t make_chunk_type(void)
{
    const hsize_t digest_dim = TESS_XXH128_NBYTES;
    const hid_t digest = H5Tarray_create2(H5T_STD_U8LE, 1, &digest_dim);
    const hid_t type = H5Tcreate(H5T_COMPOUND, CKPT_CHUNK_ENTRY_NBYTES);
    const bool is_ok = digest >= 0 && type >= 0 &&
                       H5Tinsert(type, "offset", 0, H5T_STD_U64LE) >= 0 &&
                       H5Tinsert(type, "nbytes", 8, H5T_STD_U32LE) >= 0 &&
                       H5Tinsert(type, "xxh3_128", 12, digest) >= 0;
    (void)H5Tclose(digest);
    if (!is_ok)
        (void)H5Tclose(type);
    return is_ok ? type : H5I_INVALID_HID;
}

/* ---- building: attributes ---- */

static herr_t add_text(hid_t object, const char *name, const char *text)
{
    const hid_t type = make_text_type(strlen(text));
    const hid_t space = H5Screate(H5S_SCALAR);
    const hid_t attribute = H5Acreate2(object, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
    const herr_t result = attribute < 0 ? -1 : H5Awrite(attribute, type, text);
    (void)H5Aclose(attribute);
    (void)H5Sclose(space);
    (void)H5Tclose(type);
    return result;
}

static herr_t add_i64(hid_t object, const char *name, const int64_t *values, hsize_t numel)
{
    const hid_t space = H5Screate_simple(1, &numel, NULL);
    const hid_t attribute =
        H5Acreate2(object, name, H5T_STD_I64LE, space, H5P_DEFAULT, H5P_DEFAULT);
    const herr_t result = attribute < 0 ? -1 : H5Awrite(attribute, H5T_NATIVE_INT64, values);
    (void)H5Aclose(attribute);
    (void)H5Sclose(space);
    return result;
}

static herr_t add_root_attributes(hid_t file, const ckpt_h5_spec *spec)
{
    const int64_t version[2] = {TESS_CKPT_FORMAT_MAJOR, TESS_CKPT_FORMAT_MINOR};
    const int64_t place[2] = {spec->rank, spec->set->shard_world};
    const bool is_ok =
        add_i64(file, "format_version", version, 2) >= 0 &&
        add_text(file, "kind", spec->kind) >= 0 && add_text(file, "run_id", spec->run_id) >= 0 &&
        add_i64(file, "step", &spec->step, 1) >= 0 && add_i64(file, "rank_world", place, 2) >= 0 &&
        add_text(file, "plan_digest", spec->plan_digest) >= 0 &&
        add_text(file, "writer", CKPT_WRITER) >= 0;
    return is_ok ? 0 : -1;
}

static herr_t add_record_attributes(hid_t dataset, const tess_ckpt_record *r,
                                    const int64_t range[2])
{
    const int64_t version[2] = {TESS_CKPT_FORMAT_MAJOR, TESS_CKPT_FORMAT_MINOR};
    const bool is_ok = add_text(dataset, "contract", r->contract) >= 0 &&
                       add_text(dataset, "quant", r->quant) >= 0 &&
                       add_text(dataset, "unit", r->unit) >= 0 &&
                       add_text(dataset, "role", r->role) >= 0 &&
                       add_text(dataset, "dtype", tess_dtype_name(r->dt)) >= 0 &&
                       add_i64(dataset, "tensor_shape", &r->total_numel, 1) >= 0 &&
                       add_i64(dataset, "unit_range", range, 2) >= 0 &&
                       add_i64(dataset, "format_version", version, 2) >= 0;
    return is_ok ? 0 : -1;
}

/* ---- building: datasets ---- */

typedef struct h5_lists {
    hid_t access;  /* file access */
    hid_t create;  /* file creation */
    hid_t payload; /* creation of payload datasets */
    hid_t link;    /* makes missing groups */
} h5_lists;

static void close_lists(h5_lists *l)
{
    (void)H5Pclose(l->link);
    (void)H5Pclose(l->payload);
    (void)H5Pclose(l->create);
    (void)H5Pclose(l->access);
}

static tess_status open_lists(h5_lists *l)
{
    const char *what = "property list";
    *l = (h5_lists){H5Pcreate(H5P_FILE_ACCESS), H5Pcreate(H5P_FILE_CREATE),
                    H5Pcreate(H5P_DATASET_CREATE), H5Pcreate(H5P_LINK_CREATE)};
    TESS_H5(TESS_E_IO, what, H5Pset_libver_bounds(l->access, H5F_LIBVER_V110, H5F_LIBVER_V110));
    TESS_H5(TESS_E_IO, what, H5Pset_alignment(l->access, ALIGN_NBYTES, ALIGN_NBYTES));
    TESS_H5(TESS_E_IO, what, H5Pset_file_locking(l->access, false, true));
    TESS_H5(TESS_E_IO, what, H5Pset_layout(l->payload, H5D_CONTIGUOUS));
    TESS_H5(TESS_E_IO, what, H5Pset_alloc_time(l->payload, H5D_ALLOC_TIME_EARLY));
    TESS_H5(TESS_E_IO, what, H5Pset_fill_time(l->payload, H5D_FILL_TIME_NEVER));
    TESS_H5(TESS_E_IO, what, H5Pset_obj_track_times(l->payload, false));
    TESS_H5(TESS_E_IO, what, H5Pset_create_intermediate_group(l->link, 1));
    return TESS_OK;
}

static int64_t offset_of(hid_t dataset, hsize_t numel)
{
    const haddr_t offset = numel > 0 ? H5Dget_offset(dataset) : HADDR_UNDEF;
    return offset == HADDR_UNDEF ? -1 : (int64_t)offset;
}

static void record_path(const tess_ckpt_record *r, char path[2 * TESS_CKPT_NAME_NBYTES_MAX + 16])
{
    snprintf(path, 2 * TESS_CKPT_NAME_NBYTES_MAX + 16, "/units/%s/%s", r->unit, r->role);
}

static tess_status add_record(hid_t file, const h5_lists *l, const ckpt_h5_spec *spec,
                              int64_t record_idx, int64_t *offset_nbytes)
{
    const tess_ckpt_record *r = &spec->set->records[record_idx];
    char path[2 * TESS_CKPT_NAME_NBYTES_MAX + 16];
    int64_t range[2];
    record_path(r, path);
    tess_ckpt_range(r, spec->set->shard_world, spec->rank, &range[0], &range[1]);
    const hsize_t numel = (hsize_t)(range[1] - range[0]);
    const hid_t type = make_type(r->dt);
    const hid_t space = H5Screate_simple(1, &numel, NULL);
    const hid_t dataset = H5Dcreate2(file, path, type, space, l->link, l->payload, H5P_DEFAULT);
    const bool is_ok = dataset >= 0 && add_record_attributes(dataset, r, range) >= 0;
    *offset_nbytes = is_ok ? offset_of(dataset, numel) : -1;
    const tess_status st = is_ok && (numel == 0 || *offset_nbytes >= 0)
                               ? TESS_OK
                               : h5_fail(TESS_E_IO, path, "creation of a dataset");
    (void)H5Dclose(dataset);
    (void)H5Sclose(space);
    (void)H5Tclose(type);
    return st;
}

static tess_status add_chunk_table(hid_t file, const h5_lists *l, int64_t chunk_numel,
                                   int64_t *offset_nbytes)
{
    const hsize_t numel = (hsize_t)chunk_numel;
    const hid_t type = make_chunk_type();
    const hid_t space = H5Screate_simple(1, &numel, NULL);
    const hid_t dataset =
        H5Dcreate2(file, "/index/chunks", type, space, l->link, l->payload, H5P_DEFAULT);
    *offset_nbytes = dataset >= 0 ? offset_of(dataset, numel) : -1;
    const tess_status st = dataset >= 0 && (numel == 0 || *offset_nbytes >= 0)
                               ? TESS_OK
                               : h5_fail(TESS_E_IO, "/index/chunks", "creation of a dataset");
    (void)H5Dclose(dataset);
    (void)H5Sclose(space);
    (void)H5Tclose(type);
    return st;
}

static tess_status add_value(hid_t group, const tess_ckpt_value *v)
{
    const bool is_text = v->kind == TESS_CKPT_TEXT;
    const hid_t type = is_text                    ? make_text_type(strlen(v->text))
                       : v->kind == TESS_CKPT_I64 ? H5Tcopy(H5T_STD_I64LE)
                                                  : H5Tcopy(H5T_IEEE_F64LE);
    const hid_t space = H5Screate(H5S_SCALAR);
    const hid_t dataset =
        H5Dcreate2(group, v->name, type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    const void *data = is_text                    ? (const void *)v->text
                       : v->kind == TESS_CKPT_I64 ? (const void *)&v->i64
                                                  : (const void *)&v->f64;
    const herr_t result =
        dataset < 0 ? -1 : H5Dwrite(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data);
    const tess_status st =
        result >= 0 ? TESS_OK : h5_fail(TESS_E_IO, v->name, "creation of a state value");
    (void)H5Dclose(dataset);
    (void)H5Sclose(space);
    (void)H5Tclose(type);
    return st;
}

static tess_status add_state(hid_t file, const ckpt_h5_spec *spec)
{
    const hid_t group = H5Gcreate2(file, "/state", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    if (group < 0)
        return h5_fail(TESS_E_IO, "/state", "creation of a group");
    tess_status st = TESS_OK;
    for (int64_t i = 0; st == TESS_OK && i < spec->state_numel; i++)
        st = add_value(group, &spec->state[i]);
    (void)H5Gclose(group);
    return st;
}

static tess_status add_units_group(hid_t file)
{
    const hid_t group = H5Gcreate2(file, "/units", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    TESS_H5(TESS_E_IO, "/units", group);
    (void)H5Gclose(group);
    return TESS_OK;
}

static tess_status fill_file(hid_t file, const h5_lists *l, const ckpt_h5_spec *spec,
                             ckpt_h5_layout *out)
{
    TESS_H5(TESS_E_IO, "skeleton", add_root_attributes(file, spec));
    TESS_TRY(add_units_group(file));
    for (int64_t i = 0; i < spec->set->record_numel; i++)
        TESS_TRY(add_record(file, l, spec, i, &out->payload_offset_nbytes[i]));
    TESS_TRY(add_chunk_table(file, l, spec->chunk_numel, &out->table_offset_nbytes));
    return add_state(file, spec);
}

tess_status ckpt_h5_build(const char *path, const ckpt_h5_spec *spec, ckpt_h5_layout *out)
{
    h5_lists lists;
    tess_status st = open_lists(&lists);
    if (st == TESS_OK) {
        const hid_t file = H5Fcreate(path, H5F_ACC_TRUNC, lists.create, lists.access);
        (void)unlink(path);
        st = file >= 0 ? fill_file(file, &lists, spec, out)
                       : h5_fail(TESS_E_IO, path, "creation of a file");
        if (file >= 0 && H5Fclose(file) < 0 && st == TESS_OK)
            st = h5_fail(TESS_E_IO, path, "close");
    }
    close_lists(&lists);
    return st;
}

/* ---- checking ---- */

/* A text attribute equals `expected`? */
static tess_status check_text(const char *file, const char *object_name, hid_t object,
                              const char *name, const char *expected)
{
    char found[4608] = "";
    const hid_t attribute = H5Aopen(object, name, H5P_DEFAULT);
    const hid_t type = attribute < 0 ? H5I_INVALID_HID : H5Aget_type(attribute);
    const bool is_read = type >= 0 && H5Tget_class(type) == H5T_STRING &&
                         H5Tis_variable_str(type) == 0 && H5Tget_size(type) < sizeof found &&
                         H5Aget_storage_size(attribute) < sizeof found &&
                         H5Aread(attribute, type, found) >= 0;
    (void)H5Tclose(type);
    (void)H5Aclose(attribute);
    (void)H5Eclear2(H5E_DEFAULT);
    TESS_CHECK(is_read && strcmp(found, expected) == 0, TESS_E_FORMAT,
               "'%s': %s: attribute '%s' is '%.200s', the manifest says '%.200s'", file,
               object_name, name, is_read ? found : "(missing)", expected);
    return TESS_OK;
}

static tess_status check_i64(const char *file, const char *object_name, hid_t object,
                             const char *name, const int64_t *expected, int64_t numel)
{
    int64_t found[2] = {-1, -1};
    const hid_t attribute = H5Aopen(object, name, H5P_DEFAULT);
    const hid_t space = attribute < 0 ? H5I_INVALID_HID : H5Aget_space(attribute);
    const bool is_read = space >= 0 && H5Sget_simple_extent_npoints(space) == numel && numel <= 2 &&
                         H5Aread(attribute, H5T_NATIVE_INT64, found) >= 0;
    (void)H5Sclose(space);
    (void)H5Aclose(attribute);
    (void)H5Eclear2(H5E_DEFAULT);
    for (int64_t i = 0; i < numel; i++)
        TESS_CHECK(is_read && found[i] == expected[i], TESS_E_FORMAT,
                   "'%s': %s: attribute '%s'[%" PRId64 "] is %" PRId64
                   ", the manifest says %" PRId64,
                   file, object_name, name, i, is_read ? found[i] : -1, expected[i]);
    return TESS_OK;
}

static tess_status check_root(const char *path, hid_t file, const ckpt_h5_spec *spec)
{
    const int64_t version[2] = {TESS_CKPT_FORMAT_MAJOR, TESS_CKPT_FORMAT_MINOR};
    const int64_t place[2] = {spec->rank, spec->set->shard_world};
    TESS_TRY(check_i64(path, "/", file, "format_version", version, 2));
    TESS_TRY(check_text(path, "/", file, "kind", spec->kind));
    TESS_TRY(check_text(path, "/", file, "run_id", spec->run_id));
    TESS_TRY(check_i64(path, "/", file, "step", &spec->step, 1));
    TESS_TRY(check_i64(path, "/", file, "rank_world", place, 2));
    return check_text(path, "/", file, "plan_digest", spec->plan_digest);
}

static tess_status check_attributes(const char *path, const char *name, hid_t dataset,
                                    const tess_ckpt_record *r, const int64_t range[2])
{
    const int64_t version[2] = {TESS_CKPT_FORMAT_MAJOR, TESS_CKPT_FORMAT_MINOR};
    TESS_TRY(check_text(path, name, dataset, "contract", r->contract));
    TESS_TRY(check_text(path, name, dataset, "quant", r->quant));
    TESS_TRY(check_text(path, name, dataset, "unit", r->unit));
    TESS_TRY(check_text(path, name, dataset, "role", r->role));
    TESS_TRY(check_text(path, name, dataset, "dtype", tess_dtype_name(r->dt)));
    TESS_TRY(check_i64(path, name, dataset, "tensor_shape", &r->total_numel, 1));
    TESS_TRY(check_i64(path, name, dataset, "unit_range", range, 2));
    return check_i64(path, name, dataset, "format_version", version, 2);
}

static bool is_expected_type(hid_t dataset, tess_dtype dt)
{
    const hid_t found = H5Dget_type(dataset);
    const hid_t expected = make_type(dt);
    const bool is_equal = found >= 0 && expected >= 0 && H5Tequal(found, expected) > 0;
    (void)H5Tclose(expected);
    (void)H5Tclose(found);
    return is_equal;
}

/* Contiguous, no filter, no external file. */
static bool is_plain(hid_t dataset)
{
    const hid_t list = H5Dget_create_plist(dataset);
    const bool is_ok = list >= 0 && H5Pget_layout(list) == H5D_CONTIGUOUS &&
                       H5Pget_nfilters(list) == 0 && H5Pget_external_count(list) == 0;
    (void)H5Pclose(list);
    return is_ok;
}

static hssize_t numel_of(hid_t dataset)
{
    const hid_t space = H5Dget_space(dataset);
    const hssize_t numel = space >= 0 && H5Sget_simple_extent_ndims(space) == 1
                               ? H5Sget_simple_extent_npoints(space)
                               : -1;
    (void)H5Sclose(space);
    return numel;
}

static tess_status check_dataset(const char *path, const char *name, hid_t dataset,
                                 const ckpt_h5_spec *spec, const tess_ckpt_record *r)
{
    int64_t range[2];
    tess_ckpt_range(r, spec->set->shard_world, spec->rank, &range[0], &range[1]);
    TESS_CHECK(is_expected_type(dataset, r->dt), TESS_E_FORMAT,
               "'%s': %s: dataset type differs, the manifest says %s", path, name,
               tess_dtype_name(r->dt));
    TESS_CHECK(numel_of(dataset) == range[1] - range[0], TESS_E_FORMAT,
               "'%s': %s: %lld elements, the manifest says %" PRId64, path, name,
               (long long)numel_of(dataset), range[1] - range[0]);
    TESS_CHECK(is_plain(dataset), TESS_E_FORMAT,
               "'%s': %s: expected a contiguous dataset without filters or external files", path,
               name);
    return check_attributes(path, name, dataset, r, range);
}

/* Only hard links lead to a dataset of ours. */
static bool is_hard(hid_t file, const char *name)
{
    char part[2 * TESS_CKPT_NAME_NBYTES_MAX + 16];
    H5L_info_t info;
    snprintf(part, sizeof part, "%s", name);
    char *last = strrchr(part, '/');
    const bool is_leaf_hard =
        H5Lget_info(file, name, &info, H5P_DEFAULT) >= 0 && info.type == H5L_TYPE_HARD;
    if (last != NULL && last != part)
        *last = '\0';
    return is_leaf_hard && H5Lget_info(file, part, &info, H5P_DEFAULT) >= 0 &&
           info.type == H5L_TYPE_HARD;
}

static tess_status check_record(const char *path, hid_t file, const ckpt_h5_spec *spec,
                                int64_t record_idx, int64_t *offset_nbytes)
{
    const tess_ckpt_record *r = &spec->set->records[record_idx];
    char name[2 * TESS_CKPT_NAME_NBYTES_MAX + 16];
    record_path(r, name);
    const hid_t dataset = is_hard(file, name) ? H5Dopen2(file, name, H5P_DEFAULT) : -1;
    (void)H5Eclear2(H5E_DEFAULT);
    TESS_CHECK(dataset >= 0, TESS_E_FORMAT, "'%s': dataset %s is missing", path, name);
    const tess_status st = check_dataset(path, name, dataset, spec, r);
    if (st == TESS_OK) {
        const hssize_t numel = numel_of(dataset);
        *offset_nbytes = offset_of(dataset, (hsize_t)numel);
    }
    (void)H5Dclose(dataset);
    (void)H5Eclear2(H5E_DEFAULT);
    return st;
}

/* Datasets below /units: those of the manifest are all there, so an equal number means no others.
 */
static tess_status check_no_extra(const char *path, hid_t file, int64_t record_numel)
{
    H5G_info_t units, unit;
    int64_t found_numel = 0;
    TESS_H5(TESS_E_FORMAT, path, H5Gget_info_by_name(file, "/units", &units, H5P_DEFAULT));
    for (hsize_t i = 0; i < units.nlinks; i++) {
        TESS_H5(TESS_E_FORMAT, path,
                H5Gget_info_by_idx(file, "/units", H5_INDEX_NAME, H5_ITER_NATIVE, i, &unit,
                                   H5P_DEFAULT));
        found_numel += (int64_t)unit.nlinks;
    }
    TESS_CHECK(found_numel == record_numel, TESS_E_FORMAT,
               "'%s': %" PRId64 " datasets below /units, the manifest lists %" PRId64, path,
               found_numel, record_numel);
    return TESS_OK;
}

static tess_status check_file(const char *path, hid_t file, const ckpt_h5_spec *spec,
                              ckpt_h5_layout *out)
{
    TESS_TRY(check_root(path, file, spec));
    for (int64_t i = 0; i < spec->set->record_numel; i++)
        TESS_TRY(check_record(path, file, spec, i, &out->payload_offset_nbytes[i]));
    return check_no_extra(path, file, spec->set->record_numel);
}

tess_status ckpt_h5_check(const char *path, const ckpt_h5_spec *spec, ckpt_h5_layout *out)
{
    (void)ckpt_h5_start();
    const hid_t access = H5Pcreate(H5P_FILE_ACCESS);
    const hid_t file = access >= 0 && H5Pset_file_locking(access, false, true) >= 0
                           ? H5Fopen(path, H5F_ACC_RDONLY, access)
                           : H5I_INVALID_HID;
    const tess_status st =
        file >= 0 ? check_file(path, file, spec, out) : h5_fail(TESS_E_FORMAT, path, "open");
    (void)H5Fclose(file);
    (void)H5Pclose(access);
    (void)H5Eclear2(H5E_DEFAULT);
    return st;
}
