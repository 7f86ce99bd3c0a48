#include "format/safetensors.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/arith.h"
#include "core/memory.h"
#include "format/json.h"
#include "format/json_priv.h"
#include "format/safetensors_priv.h"
#include "format/text_priv.h"

enum { METADATA_LIMIT_NBYTES = 16 << 20 };

static const struct {
    const char *name;
    int nbits;
} dtype_table[TESS_ST_DTYPE_NUMEL] = {
#define X(name, text, bits) [TESS_ST_##name] = {text, bits},
    TESS_ST_DTYPE_LIST(X)
#undef X
};

struct tess_safetensors {
    tess_io *io;
    char *path;
    int fd;
    int64_t file_nbytes;
    int64_t data_offset_nbytes; /* 8 + header */
    tess_json *root;            /* owns all names and metadata */
    const tess_json *metadata;  /* NULL: none */
    tess_st_tensor *tensor;     /* [tensor_numel] by name */
    int64_t tensor_numel;
};

/* ---- dtypes, names and shapes ---- */

const char *tess_st_dtype_name(tess_st_dtype dtype)
{
    return (unsigned)dtype < TESS_ST_DTYPE_NUMEL ? dtype_table[dtype].name : "unknown";
}

tess_status tess_st_dtype_to_core(tess_st_dtype dtype, tess_dtype *out)
{
    static const struct {
        tess_st_dtype from;
        tess_dtype to;
    } map[] = {{TESS_ST_F32, TESS_F32}, {TESS_ST_BF16, TESS_BF16}, {TESS_ST_F16, TESS_F16},
               {TESS_ST_F64, TESS_F64}, {TESS_ST_I32, TESS_I32},   {TESS_ST_I64, TESS_I64},
               {TESS_ST_U64, TESS_U64}, {TESS_ST_U8, TESS_U8}};
    for (int i = 0; i < TESS_NELEM(map); i++) {
        if (map[i].from == dtype) {
            *out = map[i].to;
            return TESS_OK;
        }
    }
    return TESS_FAIL(TESS_E_UNSUPPORTED,
                     "safetensors dtype %s: expected one of F32, BF16, F16, F64, I32, I64, U64, U8",
                     tess_st_dtype_name(dtype));
}

tess_status tess_st_dtype_from_core(tess_dtype dt, tess_st_dtype *out)
{
    for (int i = 0; i < TESS_ST_DTYPE_NUMEL; i++) {
        tess_dtype core = TESS_U8_OPAQUE;
        const bool is_mapped = i == TESS_ST_F32 || i == TESS_ST_BF16 || i == TESS_ST_F16 ||
                               i == TESS_ST_F64 || i == TESS_ST_I32 || i == TESS_ST_I64 ||
                               i == TESS_ST_U64 || i == TESS_ST_U8;
        if (!is_mapped)
            continue;
        TESS_TRY(tess_st_dtype_to_core((tess_st_dtype)i, &core));
        if (core == dt) {
            *out = (tess_st_dtype)i;
            return TESS_OK;
        }
    }
    return TESS_FAIL(TESS_E_UNSUPPORTED, "dtype %s has no safetensors name", tess_dtype_name(dt));
}

bool tess_st_name_is_valid(const char *name)
{
    const size_t nbytes = strlen(name);
    return nbytes >= 1 && nbytes <= TESS_ST_NAME_MAX_NBYTES && name[0] != '/' &&
           strchr(name, '\\') == NULL && strstr(name, "..") == NULL &&
           tess_utf8_is_valid(name, nbytes);
}

void tess_st_shape_text(const int64_t *dim, int dim_numel, char *text, size_t text_nbytes)
{
    snprintf(text, text_nbytes, "[");
    for (int i = 0; i < dim_numel; i++) {
        const size_t used = strlen(text);
        snprintf(text + used, text_nbytes - used, "%s%" PRId64, i > 0 ? ", " : "", dim[i]);
    }
    const size_t used = strlen(text);
    snprintf(text + used, text_nbytes - used, "]");
}

tess_status tess_st_sizes(const char *where, tess_status code, tess_st_tensor *t)
{
    int64_t numel = 1, nbits = 0;
    bool is_whole = true;
    for (int i = 0; i < t->dim_numel; i++)
        is_whole = is_whole && !__builtin_mul_overflow(numel, t->dim[i], &numel);
    is_whole = is_whole && !__builtin_mul_overflow(numel, dtype_table[t->dtype].nbits, &nbits);
    TESS_CHECK(is_whole, code, "%s: the product of its shape overflows", where);
    TESS_CHECK(nbits % 8 == 0, code,
               "%s: %" PRId64 " elements of %s are not a whole number of bytes", where, numel,
               dtype_table[t->dtype].name);
    t->numel = numel;
    t->nbytes = nbits / 8;
    return TESS_OK;
}

/* ---- header ---- */

static tess_status read_dtype(const tess_json *entry, tess_st_dtype *out)
{
    const char *text = NULL;
    char where[512], tame[64];
    TESS_TRY(tess_json_get_string(entry, "dtype", &text));
    for (int i = 0; i < TESS_ST_DTYPE_NUMEL; i++) {
        if (strcmp(dtype_table[i].name, text) == 0) {
            *out = (tess_st_dtype)i;
            return TESS_OK;
        }
    }
    tess_json_where(entry, where, sizeof where);
    return TESS_FAIL(TESS_E_FORMAT, "%s: dtype '%s' is no safetensors dtype", where,
                     tess_text_tame(text, tame, sizeof tame));
}

static tess_status read_extent(const tess_json *v, int64_t *out)
{
    char where[512];
    int64_t x = 0;
    TESS_TRY(tess_json_as_i64(v, &x));
    if (x < 0) {
        tess_json_where(v, where, sizeof where);
        return TESS_FAIL(TESS_E_FORMAT, "%s: expected a non-negative integer, found %" PRId64,
                         where, x);
    }
    *out = x;
    return TESS_OK;
}

static tess_status read_shape(const tess_json *entry, const char *where, tess_st_tensor *t)
{
    const tess_json *shape = NULL;
    TESS_TRY(tess_json_get_array(entry, "shape", &shape));
    const int64_t numel = tess_json_numel(shape);
    TESS_CHECK(numel <= TESS_ST_DIM_MAX, TESS_E_FORMAT,
               "%s.shape: %" PRId64 " dimensions, at most %d are accepted", where, numel,
               TESS_ST_DIM_MAX);
    t->dim_numel = (int)numel;
    for (int i = 0; i < t->dim_numel; i++)
        TESS_TRY(read_extent(tess_json_at(shape, i), &t->dim[i]));
    return TESS_OK;
}

/* One entry; its offsets are still relative to the data. */
static tess_status read_entry(const tess_safetensors *f, const tess_json *entry, tess_st_tensor *t)
{
    const tess_json *offsets = NULL;
    char where[512];
    int64_t begin = 0, end = 0;
    const int64_t data_nbytes = f->file_nbytes - f->data_offset_nbytes;
    tess_json_where(entry, where, sizeof where);
    t->name = tess_json_key(entry);
    TESS_CHECK(tess_st_name_is_valid(t->name), TESS_E_FORMAT,
               "%s: illegal tensor name (expected 1 to %d bytes, no '..', no leading '/', no "
               "backslash)",
               where, TESS_ST_NAME_MAX_NBYTES);
    TESS_TRY(tess_json_expect(entry, TESS_JSON_OBJECT));
    TESS_TRY(read_dtype(entry, &t->dtype));
    TESS_TRY(read_shape(entry, where, t));
    TESS_TRY(tess_json_get_array(entry, "data_offsets", &offsets));
    TESS_CHECK(tess_json_numel(offsets) == 2 && tess_json_numel(entry) == 3, TESS_E_FORMAT,
               "%s: expected dtype, shape and data_offsets [begin, end], found %" PRId64
               " fields and %" PRId64 " offsets",
               where, tess_json_numel(entry), tess_json_numel(offsets));
    TESS_TRY(read_extent(tess_json_at(offsets, 0), &begin));
    TESS_TRY(read_extent(tess_json_at(offsets, 1), &end));
    TESS_CHECK(begin <= end && end <= data_nbytes, TESS_E_FORMAT,
               "%s.data_offsets: [%" PRId64 ", %" PRId64 "] is not inside the %" PRId64
               " bytes of data",
               where, begin, end, data_nbytes);
    TESS_TRY(tess_st_sizes(where, TESS_E_FORMAT, t));
    TESS_CHECK(end - begin == t->nbytes, TESS_E_FORMAT,
               "%s.data_offsets: dtype and shape need %" PRId64 " bytes, found %" PRId64, where,
               t->nbytes, end - begin);
    t->offset_nbytes = begin;
    return TESS_OK;
}

static tess_status read_metadata(tess_safetensors *f, const tess_json *metadata)
{
    const char *value = NULL;
    size_t nbytes = 0;
    TESS_TRY(tess_json_expect(metadata, TESS_JSON_OBJECT));
    for (int64_t i = 0; i < tess_json_numel(metadata); i++) {
        const tess_json *member = tess_json_at(metadata, i);
        TESS_TRY(tess_json_as_string(member, &value));
        nbytes += strlen(value) + strlen(tess_json_key(member));
    }
    TESS_CHECK(nbytes <= METADATA_LIMIT_NBYTES, TESS_E_FORMAT,
               "'%s': __metadata__ has %zu bytes, at most %d are accepted", f->path, nbytes,
               METADATA_LIMIT_NBYTES);
    f->metadata = metadata;
    return TESS_OK;
}

static int by_offset(const void *a, const void *b)
{
    const tess_st_tensor *x = a, *y = b;
    if (x->offset_nbytes != y->offset_nbytes)
        return x->offset_nbytes < y->offset_nbytes ? -1 : 1;
    return (x->nbytes > y->nbytes) - (x->nbytes < y->nbytes);
}

static int by_name(const void *a, const void *b)
{
    const tess_st_tensor *x = a, *y = b;
    return strcmp(x->name, y->name);
}

/* Tensors must tile the data exactly: no hole, no overlap, nothing after the last. */
static tess_status check_tiling(tess_safetensors *f)
{
    int64_t cursor = 0;
    const int64_t data_nbytes = f->file_nbytes - f->data_offset_nbytes;
    char tame[128];
    if (f->tensor_numel > 1)
        qsort(f->tensor, (size_t)f->tensor_numel, sizeof *f->tensor, by_offset);
    for (int64_t i = 0; i < f->tensor_numel; i++) {
        const tess_st_tensor *t = &f->tensor[i];
        TESS_CHECK(t->offset_nbytes == cursor, TESS_E_FORMAT,
                   "'%s': %s before tensor '%s': expected data_offsets to begin at %" PRId64
                   ", found %" PRId64,
                   f->path, t->offset_nbytes > cursor ? "hole" : "overlap",
                   tess_text_tame(t->name, tame, sizeof tame), cursor, t->offset_nbytes);
        cursor += t->nbytes;
    }
    TESS_CHECK(cursor == data_nbytes, TESS_E_FORMAT,
               "'%s': tensors end at byte %" PRId64 " of the data, expected %" PRId64
               " (the end of the file)",
               f->path, cursor, data_nbytes);
    return TESS_OK;
}

static tess_status read_table(tess_safetensors *f)
{
    void *table = NULL;
    const int64_t member_numel = tess_json_numel(f->root);
    TESS_TRY(tess_json_expect(f->root, TESS_JSON_OBJECT));
    TESS_TRY(tess_alloc_array(member_numel, sizeof *f->tensor, &table));
    f->tensor = table;
    for (int64_t i = 0; i < member_numel; i++) {
        const tess_json *entry = tess_json_at(f->root, i);
        if (strcmp(tess_json_key(entry), "__metadata__") == 0)
            TESS_TRY(read_metadata(f, entry));
        else
            TESS_TRY(read_entry(f, entry, &f->tensor[f->tensor_numel++]));
    }
    TESS_TRY(check_tiling(f));
    for (int64_t i = 0; i < f->tensor_numel; i++)
        f->tensor[i].offset_nbytes += f->data_offset_nbytes;
    if (f->tensor_numel > 1)
        qsort(f->tensor, (size_t)f->tensor_numel, sizeof *f->tensor, by_name);
    return TESS_OK;
}

static tess_status read_header(tess_safetensors *f)
{
    uint8_t prefix[8];
    uint64_t header_nbytes = 0;
    void *text = NULL;
    TESS_CHECK(f->file_nbytes >= 16, TESS_E_FORMAT,
               "'%s': %" PRId64 " bytes, a safetensors file has at least 16", f->path,
               f->file_nbytes);
    TESS_TRY(tess_io_pread(f->io, f->path, f->fd, prefix, sizeof prefix, 0));
    for (int i = 7; i >= 0; i--)
        header_nbytes = header_nbytes << 8 | prefix[i];
    TESS_CHECK(header_nbytes >= 8 && header_nbytes <= TESS_ST_HEADER_MAX_NBYTES, TESS_E_FORMAT,
               "'%s': header length at byte 0: expected 8 to %d, found %" PRIu64, f->path,
               TESS_ST_HEADER_MAX_NBYTES, header_nbytes);
    TESS_CHECK(header_nbytes <= (uint64_t)f->file_nbytes - 8, TESS_E_FORMAT,
               "'%s': header length at byte 0: %" PRIu64 " bytes, but the file has %" PRId64
               " (truncated?)",
               f->path, header_nbytes, f->file_nbytes);
    TESS_TRY(tess_alloc((size_t)header_nbytes, &text));
    tess_status st = tess_io_pread(f->io, f->path, f->fd, text, (size_t)header_nbytes, 8);
    if (st == TESS_OK && *(const char *)text != '{')
        st = TESS_FAIL(TESS_E_FORMAT, "'%s': header at byte 8: expected '{'", f->path);
    if (st == TESS_OK)
        st = tess_json_parse_limit(f->path, text, (size_t)header_nbytes, TESS_ST_HEADER_MAX_NBYTES,
                                   &f->root);
    tess_free(text);
    f->data_offset_nbytes = (int64_t)header_nbytes + 8;
    return st;
}

tess_status tess_safetensors_open(tess_io *io, const char *path, tess_safetensors **out)
{
    void *object = NULL;
    TESS_TRY(tess_alloc(sizeof(tess_safetensors), &object));
    tess_safetensors *f = object;
    f->io = io;
    f->fd = -1;
    tess_status st = tess_strdup(path, &f->path);
    if (st == TESS_OK)
        st = tess_io_open_read(io, path, true, &f->fd, &f->file_nbytes);
    if (st == TESS_OK)
        st = read_header(f);
    if (st == TESS_OK)
        st = read_table(f);
    if (st != TESS_OK) {
        tess_safetensors_close(&f);
        return st;
    }
    *out = f;
    return TESS_OK;
}

void tess_safetensors_close(tess_safetensors **file)
{
    tess_safetensors *f = *file;
    if (f == NULL)
        return;
    if (f->fd >= 0)
        (void)!tess_io_close(f->io, f->path, &f->fd); /* read only: nothing can be lost */
    tess_json_destroy(&f->root);
    tess_free(f->tensor);
    tess_free(f->path);
    tess_free(f);
    *file = NULL;
}

/* ---- access ---- */

const char *tess_safetensors_path(const tess_safetensors *file) { return file->path; }

int64_t tess_safetensors_file_nbytes(const tess_safetensors *file) { return file->file_nbytes; }

int64_t tess_safetensors_numel(const tess_safetensors *file) { return file->tensor_numel; }

const tess_st_tensor *tess_safetensors_at(const tess_safetensors *file, int64_t idx)
{
    return idx >= 0 && idx < file->tensor_numel ? &file->tensor[idx] : NULL;
}

const tess_st_tensor *tess_safetensors_find(const tess_safetensors *file, const char *name)
{
    const tess_st_tensor key = {.name = name};
    if (file->tensor_numel == 0)
        return NULL;
    return bsearch(&key, file->tensor, (size_t)file->tensor_numel, sizeof key, by_name);
}

int64_t tess_safetensors_metadata_numel(const tess_safetensors *file)
{
    return file->metadata != NULL ? tess_json_numel(file->metadata) : 0;
}

tess_st_pair tess_safetensors_metadata_at(const tess_safetensors *file, int64_t idx)
{
    tess_st_pair pair = {NULL, NULL};
    const tess_json *member = file->metadata != NULL ? tess_json_at(file->metadata, idx) : NULL;
    if (member != NULL) {
        pair.key = tess_json_key(member);
        pair.value = member->as.string;
    }
    return pair;
}

const char *tess_safetensors_metadata(const tess_safetensors *file, const char *key)
{
    const tess_json *member = file->metadata != NULL ? tess_json_find(file->metadata, key) : NULL;
    return member != NULL ? member->as.string : NULL;
}

tess_status tess_safetensors_read(const tess_safetensors *file, const tess_st_tensor *tensor,
                                  int64_t first_nbytes, size_t nbytes, void *dst)
{
    TESS_CHECK(first_nbytes >= 0 && first_nbytes <= tensor->nbytes &&
                   nbytes <= (size_t)(tensor->nbytes - first_nbytes),
               TESS_E_RANGE, "'%s': tensor '%s' has %" PRId64 " bytes, asked for %zu at %" PRId64,
               file->path, tensor->name, tensor->nbytes, nbytes, first_nbytes);
    return tess_io_pread(file->io, file->path, file->fd, dst, nbytes,
                         tensor->offset_nbytes + first_nbytes);
}

tess_status tess_safetensors_sha256(const tess_safetensors *file, tess_sha256 *out)
{
    return tess_io_sha256(file->io, file->path, file->fd, file->file_nbytes, out);
}
