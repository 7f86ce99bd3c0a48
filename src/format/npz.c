#include "format/npz.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <zip.h>

#include "core/memory.h"
#include "format/text_priv.h"
#include "format/vector_file.h"

static const char suffix[] = ".npy";

struct tess_npz {
    char *path;
    char *bytes; /* of the whole file */
    zip_t *zip;
    int64_t entry_numel;
    char **name; /* [entry_numel], owned */
};

/* ---- open ---- */

static tess_status fail_zip(const char *path, zip_error_t *error)
{
    const tess_status st =
        TESS_FAIL(TESS_E_FORMAT, "'%s' is no whole .npz archive (%s); make it again", path,
                  zip_error_strerror(error));
    zip_error_fini(error);
    return st;
}

static tess_status open_zip(tess_npz *npz, size_t nbytes)
{
    zip_error_t error;
    zip_error_init(&error);
    zip_source_t *source = zip_source_buffer_create(npz->bytes, nbytes, 0, &error);
    if (source == NULL)
        return fail_zip(npz->path, &error);
    npz->zip = zip_open_from_source(source, ZIP_RDONLY | ZIP_CHECKCONS, &error);
    if (npz->zip == NULL) {
        zip_source_free(source);
        return fail_zip(npz->path, &error);
    }
    zip_error_fini(&error);
    return TESS_OK;
}

static tess_status take_names(tess_npz *npz)
{
    void *room = NULL;
    const int64_t numel = zip_get_num_entries(npz->zip, 0);
    TESS_TRY(tess_alloc_array(numel + 1, sizeof *npz->name, &room));
    npz->name = room;
    npz->entry_numel = numel;
    for (int64_t i = 0; i < numel; i++) {
        const char *name = zip_get_name(npz->zip, (zip_uint64_t)i, 0);
        const size_t nbytes = name == NULL ? 0 : strlen(name);
        const size_t end = sizeof suffix - 1;
        char tame[80];
        TESS_CHECK(nbytes > end && strcmp(name + nbytes - end, suffix) == 0, TESS_E_FORMAT,
                   "'%s': entry %" PRId64 " ('%s') is no .npy array; expected what numpy.savez "
                   "writes",
                   npz->path, i, tess_text_tame(name == NULL ? "" : name, tame, sizeof tame));
        TESS_TRY(tess_strndup(name, nbytes - end, &npz->name[i]));
    }
    return TESS_OK;
}

tess_status tess_npz_open(tess_io *io, const char *path, tess_npz **out)
{
    void *object = NULL;
    size_t nbytes = 0;
    TESS_TRY(tess_alloc(sizeof(tess_npz), &object));
    tess_npz *npz = object;
    tess_status st = tess_strdup(path, &npz->path);
    if (st == TESS_OK)
        st = tess_io_read_all(io, path, TESS_NPZ_LIMIT_NBYTES, &npz->bytes, &nbytes);
    if (st == TESS_OK)
        st = open_zip(npz, nbytes);
    if (st == TESS_OK)
        st = take_names(npz);
    if (st != TESS_OK) {
        tess_npz_close(&npz);
        return st;
    }
    *out = npz;
    return TESS_OK;
}

void tess_npz_close(tess_npz **npz)
{
    tess_npz *n = *npz;
    if (n == NULL)
        return;
    if (n->zip != NULL)
        zip_discard(n->zip);
    for (int64_t i = 0; n->name != NULL && i < n->entry_numel; i++)
        tess_free(n->name[i]);
    tess_free(n->name);
    tess_free(n->bytes);
    tess_free(n->path);
    tess_free(n);
    *npz = NULL;
}

const char *tess_npz_path(const tess_npz *npz) { return npz->path; }
int64_t tess_npz_numel(const tess_npz *npz) { return npz->entry_numel; }
const char *tess_npz_name(const tess_npz *npz, int64_t idx) { return npz->name[idx]; }

int64_t tess_npz_find(const tess_npz *npz, const char *name)
{
    for (int64_t i = 0; i < npz->entry_numel; i++)
        if (strcmp(npz->name[i], name) == 0)
            return i;
    return -1;
}

/* ---- arrays ---- */

/* All bytes of an entry; the read behind the last one is where libzip reports a wrong CRC. */
static tess_status inflate_entry(const tess_npz *npz, int64_t idx, const char *name, void *dst,
                                 size_t nbytes)
{
    char behind = 0;
    size_t done = 0;
    zip_file_t *file = zip_fopen_index(npz->zip, (zip_uint64_t)idx, 0);
    TESS_CHECK(file != NULL, TESS_E_FORMAT, "'%s': %s", name, zip_strerror(npz->zip));
    zip_int64_t got = 1;
    while (done < nbytes && got > 0) {
        got = zip_fread(file, (char *)dst + done, nbytes - done);
        done += got > 0 ? (size_t)got : 0;
    }
    if (done == nbytes)
        got = zip_fread(file, &behind, 1);
    zip_fclose(file);
    TESS_CHECK(done == nbytes && got == 0, TESS_E_FORMAT,
               "'%s' is damaged: %zu of %zu bytes could be read; make it again", name, done,
               nbytes);
    return TESS_OK;
}

/* Bytes of an element; 0: none of those that are converted. */
static size_t elem_nbytes(const char *descr)
{
    static const char *const one[] = {"|u1", "|i1", "|b1"};
    for (int i = 0; i < TESS_NELEM(one); i++)
        if (strcmp(one[i], descr) == 0)
            return 1;
    return strcmp(descr, "<f2") == 0                                ? 2
           : strcmp(descr, "<f4") == 0 || strcmp(descr, "<i4") == 0 ? 4
           : strcmp(descr, "<f8") == 0 || strcmp(descr, "<i8") == 0 ? 8
                                                                    : 0;
}

static tess_status check_array(tess_npz_array *a, size_t nbytes)
{
    const tess_npy_header *h = &a->header;
    const size_t elem = elem_nbytes(h->descr);
    int64_t data_nbytes = 0;
    char tame[TESS_NPY_DESCR_NBYTES];
    bool fits = true;
    TESS_CHECK(elem != 0, TESS_E_UNSUPPORTED,
               "'%s' has type %s, expected f2, f4, f8, u1, i1, i4, i8 or bool, little endian",
               a->name, tess_text_tame(h->descr, tame, sizeof tame));
    a->numel = 1;
    for (int i = 0; i < h->dim_numel; i++)
        fits = fits && !__builtin_mul_overflow(a->numel, h->dim[i], &a->numel);
    fits = fits && !__builtin_mul_overflow(a->numel, (int64_t)elem, &data_nbytes);
    TESS_CHECK(fits, TESS_E_FORMAT, "'%s' has a shape of more than 2^63 bytes", a->name);
    TESS_CHECK(data_nbytes == (int64_t)nbytes - h->data_offset_nbytes, TESS_E_FORMAT,
               "'%s' has %" PRId64 " bytes of data, its shape needs %" PRId64 "; make it again",
               a->name, (int64_t)nbytes - h->data_offset_nbytes, data_nbytes);
    return TESS_OK;
}

tess_status tess_npz_read(const tess_npz *npz, int64_t idx, tess_npz_array *out)
{
    zip_stat_t about;
    tess_npz_array a = {.numel = 0};
    char tame[180];
    snprintf(a.name, sizeof a.name, "%.400s: %s", npz->path,
             tess_text_tame(npz->name[idx], tame, sizeof tame));
    zip_stat_init(&about);
    TESS_CHECK(zip_stat_index(npz->zip, (zip_uint64_t)idx, 0, &about) == 0 &&
                   (about.valid & ZIP_STAT_SIZE) != 0 && about.size <= TESS_NPZ_LIMIT_NBYTES,
               TESS_E_FORMAT, "'%s' is larger than %d bytes, or of unknown size", a.name,
               TESS_NPZ_LIMIT_NBYTES);
    TESS_TRY(tess_alloc((size_t)about.size + 1, &a.bytes));
    tess_status st = inflate_entry(npz, idx, a.name, a.bytes, (size_t)about.size);
    if (st == TESS_OK)
        st = tess_npy_parse_header(a.name, a.bytes, (size_t)about.size, &a.header);
    if (st == TESS_OK)
        st = check_array(&a, (size_t)about.size);
    if (st != TESS_OK) {
        tess_npz_array_fini(&a);
        return st;
    }
    *out = a;
    return TESS_OK;
}

void tess_npz_array_fini(tess_npz_array *array)
{
    tess_free(array->bytes);
    array->bytes = NULL;
}

void tess_npz_to_f32(const tess_npz_array *a, float *out)
{
    static const struct {
        const char *descr;
        tess_vector_elem elem;
    } types[] = {{"|u1", TESS_VECTOR_U8},  {"|b1", TESS_VECTOR_U8},  {"|i1", TESS_VECTOR_I8},
                 {"<i4", TESS_VECTOR_I32}, {"<f2", TESS_VECTOR_F16}, {"<f4", TESS_VECTOR_F32},
                 {"<f8", TESS_VECTOR_F64}};
    const char *data = (const char *)a->bytes + a->header.data_offset_nbytes;
    for (int i = 0; i < TESS_NELEM(types); i++) {
        if (strcmp(types[i].descr, a->header.descr) != 0)
            continue;
        tess_vector_convert(types[i].elem, data, a->numel, out);
        return;
    }
    for (int64_t i = 0; i < a->numel; i++) { /* what is left: <i8 */
        int64_t value = 0;
        memcpy(&value, data + 8 * i, sizeof value);
        out[i] = (float)value;
    }
}
