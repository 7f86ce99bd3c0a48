#include "train/data/vectors.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/arith.h"
#include "core/memory.h"
#include "train/data/vectors_priv.h"

struct tess_vectors {
    tess_ctx ctx;
    char *path;
    char *dataset; /* as asked for, NULL: by rule */
    tess_vectors_info info;
    tess_vector_file *file;  /* flat files and contiguous datasets, else NULL */
    tess_vectors_hdf5 *hdf5; /* datasets, else NULL */
    uint8_t *scratch;        /* [scratch_numel, d] as stored; chunked datasets only */
    int64_t scratch_numel;
    tess_vectors_valid *valid; /* NULL: none is left out */
};

const char *tess_vectors_hdf5_end(const char *path)
{
    static const char *const suffixes[] = {".h5", ".hdf5"};
    for (int i = 0; i < TESS_NELEM(suffixes); i++) {
        const size_t nbytes = strlen(suffixes[i]);
        for (const char *at = path; (at = strstr(at, suffixes[i])) != NULL; at += nbytes)
            if (at[nbytes] == '\0' || at[nbytes] == ':')
                return at + nbytes;
    }
    return NULL;
}

bool tess_vectors_is_path(const char *path)
{
    return tess_vectors_hdf5_end(path) != NULL || tess_vector_file_is_path(path);
}

static tess_status plan_scratch(tess_vectors *v, const tess_vector_layout *l)
{
    void *scratch = NULL;
    const int64_t row_nbytes = l->dim * (int64_t)tess_vector_elem_nbytes(l->elem);
    v->scratch_numel =
        TESS_MIN(TESS_MAX(TESS_VECTOR_SCRATCH_NBYTES / row_nbytes, 1), l->vector_numel);
    TESS_TRY(tess_alloc_array(v->scratch_numel, (size_t)row_nbytes, &scratch));
    v->scratch = scratch;
    return TESS_OK;
}

/* Whether a file starts with the signature of HDF5: files of this program that are no vectors have
 * a user block before it. */
static tess_status has_signature(tess_io *io, const char *path, bool *out)
{
    static const char signature[] = "\x89HDF\r\n\x1a\n";
    char start[sizeof signature - 1] = "";
    int fd = -1;
    int64_t file_nbytes = 0;
    TESS_TRY(tess_io_open_read(io, path, true, &fd, &file_nbytes));
    tess_status st = TESS_OK;
    if (file_nbytes >= (int64_t)sizeof start)
        st = tess_io_pread(io, path, fd, start, sizeof start, 0);
    (void)!tess_io_close(io, path, &fd);
    TESS_TRY(st);
    *out = memcmp(start, signature, sizeof start) == 0;
    return TESS_OK;
}

tess_status tess_vectors_is_source(const tess_ctx *ctx, const char *path, bool *out)
{
    if (tess_vectors_hdf5_end(path) != NULL)
        return has_signature(ctx->io, path, out);
    *out = tess_vector_file_is_path(path);
    return TESS_OK;
}

static tess_status open_hdf5(tess_vectors *v)
{
    bool is_it = false;
    TESS_TRY(has_signature(v->ctx.io, v->path, &is_it));
    TESS_CHECK(is_it, TESS_E_FORMAT,
               "'%s': no HDF5 file of vectors: it does not start with HDF5's signature; see "
               "`tessera inspect`",
               v->path);
    TESS_TRY(tess_vectors_hdf5_open(v->path, v->dataset, &v->hdf5));
    const tess_vector_layout *l = tess_vectors_hdf5_get_layout(v->hdf5);
    v->info.dataset = tess_vectors_hdf5_dataset(v->hdf5);
    if (tess_vectors_hdf5_is_contiguous(v->hdf5))
        return tess_vector_file_open_at(v->ctx.io, v->path, l, &v->file);
    return plan_scratch(v, l);
}

static tess_status open_source(tess_vectors *v, const char *path)
{
    const char *end = tess_vectors_hdf5_end(path);
    TESS_CHECK(tess_vectors_is_path(path), TESS_E_UNSUPPORTED,
               "'%s': expected vectors in a file named .fvecs, .bvecs, .ivecs, .fbin, .u8bin, "
               ".i8bin, .ibin, .npy, .h5 or .hdf5; write one, e.g. with numpy.save",
               path);
    if (end == NULL) {
        TESS_TRY(tess_strdup(path, &v->path));
        TESS_TRY(tess_vector_file_open(v->ctx.io, path, &v->file));
    } else {
        TESS_TRY(tess_strndup(path, (size_t)(end - path), &v->path));
        if (*end == ':')
            TESS_TRY(tess_strdup(end + 1, &v->dataset));
        TESS_TRY(open_hdf5(v));
    }
    const tess_vector_layout *l = v->file != NULL ? tess_vector_file_get_layout(v->file)
                                                  : tess_vectors_hdf5_get_layout(v->hdf5);
    v->info.vector_numel = l->vector_numel;
    v->info.dim = l->dim;
    v->info.dtype = tess_vector_elem_name(l->elem);
    v->info.format = l->format;
    v->info.path = v->path;
    return TESS_OK;
}

tess_status tess_vectors_open(const tess_ctx *ctx, const char *path, tess_vectors **out)
{
    void *object = NULL;
    TESS_TRY(tess_alloc(sizeof(tess_vectors), &object));
    tess_vectors *v = object;
    v->ctx = *ctx;
    const tess_status st = open_source(v, path);
    if (st != TESS_OK) {
        tess_vectors_close(&v);
        return st;
    }
    *out = v;
    return TESS_OK;
}

tess_status tess_vectors_leave_out(tess_vectors *v, const char *mask_path, const char *key)
{
    TESS_TRY(tess_vectors_valid_open(&v->ctx, mask_path, key, v->info.vector_numel, &v->valid));
    v->info.vector_numel = tess_vectors_valid_numel(v->valid);
    return TESS_OK;
}

void tess_vectors_close(tess_vectors **vectors)
{
    tess_vectors *v = *vectors;
    if (v == NULL)
        return;
    tess_vectors_valid_close(&v->valid);
    tess_vector_file_close(&v->file);
    tess_vectors_hdf5_close(&v->hdf5);
    tess_free(v->scratch);
    tess_free(v->dataset);
    tess_free(v->path);
    tess_free(v);
    *vectors = NULL;
}

const tess_vectors_info *tess_vectors_get_info(const tess_vectors *vectors)
{
    return &vectors->info;
}

static tess_status read_source(tess_vectors *v, int64_t first_idx, int64_t numel, float *dst)
{
    if (v->file != NULL)
        return tess_vector_file_read(v->file, first_idx, numel, dst);
    const tess_vector_layout *l = tess_vectors_hdf5_get_layout(v->hdf5);
    for (int64_t done = 0; done < numel;) {
        const int64_t part = TESS_MIN(numel - done, v->scratch_numel);
        TESS_TRY(tess_vectors_hdf5_read(v->hdf5, first_idx + done, part, v->scratch));
        tess_vector_convert(l->elem, v->scratch, part * l->dim, dst + done * l->dim);
        done += part;
    }
    return TESS_OK;
}

/* No more of the file at once than there is room for; of that the valid ones stay. */
static tess_status read_valid(tess_vectors *v, int64_t first_idx, int64_t numel, float *dst)
{
    const int64_t dim = v->info.dim;
    int64_t place = 0;
    TESS_TRY(tess_vectors_valid_find(v->valid, first_idx, &place));
    for (int64_t done = 0; done < numel;) {
        const uint8_t *flag = NULL;
        int64_t part = 0;
        TESS_TRY(tess_vectors_valid_flags(v->valid, place, &flag, &part));
        part = TESS_MIN(part, numel - done);
        float *const from = dst + done * dim;
        TESS_TRY(read_source(v, place, part, from));
        for (int64_t i = 0; i < part; i++)
            if (flag[i] != 0)
                memmove(dst + done++ * dim, from + i * dim, (size_t)dim * sizeof *dst);
        place += part;
    }
    return TESS_OK;
}

tess_status tess_vectors_read(tess_vectors *v, int64_t first_idx, int64_t numel, float *dst)
{
    const int64_t vector_numel = v->info.vector_numel;
    TESS_CHECK(first_idx >= 0 && numel >= 0 && numel <= vector_numel &&
                   first_idx <= vector_numel - numel,
               TESS_E_RANGE, "'%s': vectors %" PRId64 " to %" PRId64 " of %" PRId64, v->path,
               first_idx, first_idx + numel, vector_numel);
    if (v->valid == NULL || numel == 0)
        return read_source(v, first_idx, numel, dst);
    return read_valid(v, first_idx, numel, dst);
}

int64_t tess_vectors_place(tess_vectors *v, int64_t vector_idx)
{
    int64_t place = vector_idx;
    if (v->valid != NULL && tess_vectors_valid_find(v->valid, vector_idx, &place) != TESS_OK)
        tess_error_clear(); /* the message that wants it says more */
    return place;
}

void tess_vectors_digest_add(tess_logical_hash *digest, const float *x, int64_t dim,
                             int64_t first_idx, int64_t numel)
{
    for (int64_t i = 0; i < numel; i++) {
        const tess_xxh128 row = tess_xxh128_of(x + i * dim, (size_t)dim * sizeof *x);
        tess_logical_hash_add(digest, row.byte, 2, sizeof(uint64_t), 2 * (first_idx + i));
    }
}

void tess_vectors_digest_text(const tess_logical_hash *digest, int64_t vector_numel, int64_t dim,
                              char text[TESS_VECTORS_DIGEST_TEXT_NBYTES])
{
    snprintf(text, TESS_VECTORS_DIGEST_TEXT_NBYTES,
             "%" PRId64 "x%" PRId64 "/%016" PRIx64 "%016" PRIx64, vector_numel, dim,
             digest->lane[0], digest->lane[1]);
}
