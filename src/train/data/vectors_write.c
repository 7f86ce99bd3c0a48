#include <inttypes.h>
#include <string.h>

#include "core/arith.h"
#include "core/memory.h"
#include "format/npy.h"
#include "train/data/hdf5_layout.h"
#include "train/data/vectors_priv.h"

enum { PREFIX_NBYTES = 4 };

struct tess_vectors_writer {
    tess_partial_file file; /* range 0: all vectors */
    int64_t vector_numel, dim;
    int64_t image[3]; /* H, W, C; 0: vectors */
    int64_t done_numel;
    uint8_t *scratch; /* [scratch_numel] records; NULL: vectors are written as they come */
    int64_t scratch_numel;
};

static tess_status start_flat(tess_vectors_writer *w, const tess_ctx *ctx, const char *path,
                              const void *header, size_t header_nbytes, int64_t nbytes)
{
    int64_t file_nbytes = 0;
    TESS_TRY(tess_add_i64((int64_t)header_nbytes, nbytes, &file_nbytes));
    TESS_TRY(tess_partial_file_init(&w->file, ctx->io, path, 1));
    w->file.range[0] = (tess_partial_range){
        .name = "vectors", .offset_nbytes = (int64_t)header_nbytes, .nbytes = nbytes};
    return tess_partial_file_start(&w->file, header, header_nbytes, file_nbytes);
}

static tess_status start_records(tess_vectors_writer *w, const tess_ctx *ctx, const char *path)
{
    const int64_t record_nbytes = PREFIX_NBYTES + w->dim * (int64_t)sizeof(float);
    int64_t nbytes = 0;
    void *scratch = NULL;
    w->scratch_numel = TESS_MAX(TESS_VECTOR_SCRATCH_NBYTES / record_nbytes, 1);
    TESS_TRY(tess_mul_i64(w->vector_numel, record_nbytes, &nbytes));
    TESS_TRY(tess_alloc_array(w->scratch_numel, (size_t)record_nbytes, &scratch));
    w->scratch = scratch;
    return start_flat(w, ctx, path, "", 0, nbytes);
}

static tess_status start_hdf5(tess_vectors_writer *w, const tess_ctx *ctx, const char *path)
{
    const char *end = tess_vectors_hdf5_end(path);
    const char *name = *end == ':' ? end + 1 : "vectors";
    char *file_path = NULL;
    TESS_CHECK(*name != '\0' && strchr(name, '/') == NULL, TESS_E_ARG,
               "'%s': dataset name '%s', expected one at the root", path, name);
    tess_h5_dataset dataset = {
        .name = name, .type = TESS_H5_F32, .dim_numel = 2, .dim = {w->vector_numel, w->dim}};
    tess_h5_layout layout = {.dataset = &dataset, .dataset_numel = 1};
    TESS_TRY(tess_strndup(path, (size_t)(end - path), &file_path));
    const tess_status st = tess_h5_start_file(&w->file, ctx->io, file_path, &layout, NULL);
    tess_free(file_path);
    if (w->file.range != NULL)
        w->file.range[0].name = "vectors"; /* `name` is the caller's */
    return st;
}

static tess_status start(tess_vectors_writer *w, const tess_ctx *ctx, const char *path)
{
    const char *dot = strrchr(path, '.');
    int64_t numel = 0, nbytes = 0;
    TESS_CHECK(w->vector_numel >= 1 && w->dim >= 1 && w->dim <= TESS_VECTOR_DIM_MAX, TESS_E_ARG,
               "'%s': %" PRId64 " vectors of %" PRId64
               " dimensions, expected at least one of 1 to %d",
               path, w->vector_numel, w->dim, TESS_VECTOR_DIM_MAX);
    TESS_TRY(tess_mul_i64(w->vector_numel, w->dim, &numel));
    TESS_TRY(tess_mul_i64(numel, (int64_t)sizeof(float), &nbytes));
    if (tess_vectors_hdf5_end(path) != NULL)
        return start_hdf5(w, ctx, path);
    if (dot != NULL && strcmp(dot, ".fvecs") == 0)
        return start_records(w, ctx, path);
    if (dot != NULL && strcmp(dot, ".npy") == 0) {
        char header[TESS_NPY_MADE_NBYTES];
        tess_npy_header h = {.descr = "<f4", .dim_numel = 2, .dim = {w->vector_numel, w->dim}};
        if (w->image[0] > 0) {
            h.dim_numel = 4;
            memcpy(h.dim + 1, w->image, sizeof w->image);
        }
        tess_npy_make_header(&h, header);
        return start_flat(w, ctx, path, header, (size_t)h.data_offset_nbytes, nbytes);
    }
    TESS_CHECK(dot != NULL && strcmp(dot, ".fbin") == 0, TESS_E_UNSUPPORTED,
               "'%s': vectors are written as .fvecs, .fbin, .npy, .h5 or .hdf5", path);
    TESS_CHECK(w->vector_numel <= UINT32_MAX, TESS_E_RANGE,
               "'%s': %" PRId64 " vectors, an .fbin file holds at most %" PRIu32 "; write .npy",
               path, w->vector_numel, UINT32_MAX);
    const uint32_t header[2] = {(uint32_t)w->vector_numel, (uint32_t)w->dim};
    return start_flat(w, ctx, path, header, sizeof header, nbytes);
}

tess_status tess_vectors_writer_create_shaped(const tess_ctx *ctx, const char *path,
                                              const tess_vectors_shape *shape,
                                              tess_vectors_writer **out)
{
    void *object = NULL;
    TESS_TRY(tess_alloc(sizeof(tess_vectors_writer), &object));
    tess_vectors_writer *w = object;
    w->file.fd = -1;
    w->vector_numel = shape->vector_numel;
    w->dim = shape->dim;
    memcpy(w->image, shape->image, sizeof w->image);
    const tess_status st = start(w, ctx, path);
    if (st != TESS_OK) {
        tess_vectors_writer_destroy(&w);
        return st;
    }
    *out = w;
    return TESS_OK;
}

tess_status tess_vectors_writer_create(const tess_ctx *ctx, const char *path, int64_t vector_numel,
                                       int64_t dim, tess_vectors_writer **out)
{
    const tess_vectors_shape shape = {.vector_numel = vector_numel, .dim = dim};
    return tess_vectors_writer_create_shaped(ctx, path, &shape, out);
}

static tess_status append_records(tess_vectors_writer *w, const float *x, int64_t numel)
{
    const int32_t dim = (int32_t)w->dim;
    const size_t row_nbytes = (size_t)w->dim * sizeof *x;
    for (int64_t done = 0; done < numel;) {
        const int64_t part = TESS_MIN(numel - done, w->scratch_numel);
        uint8_t *at = w->scratch;
        for (int64_t i = 0; i < part; i++, at += PREFIX_NBYTES + row_nbytes) {
            memcpy(at, &dim, PREFIX_NBYTES);
            memcpy(at + PREFIX_NBYTES, x + (done + i) * w->dim, row_nbytes);
        }
        TESS_TRY(tess_partial_file_append(&w->file, 0, w->scratch, (size_t)(at - w->scratch)));
        done += part;
    }
    return TESS_OK;
}

tess_status tess_vectors_writer_append(tess_vectors_writer *w, const float *x, int64_t numel)
{
    TESS_CHECK(numel >= 0 && numel <= w->vector_numel - w->done_numel, TESS_E_RANGE,
               "'%s' takes %" PRId64 " vectors, %" PRId64 " are written, %" PRId64 " more given",
               w->file.path, w->vector_numel, w->done_numel, numel);
    TESS_TRY(w->scratch != NULL
                 ? append_records(w, x, numel)
                 : tess_partial_file_append(&w->file, 0, x, (size_t)(numel * w->dim) * sizeof *x));
    w->done_numel += numel;
    return TESS_OK;
}

tess_status tess_vectors_writer_finish(tess_vectors_writer *w)
{
    TESS_CHECK(w->done_numel == w->vector_numel, TESS_E_STATE,
               "'%s' takes %" PRId64 " vectors, only %" PRId64 " are written", w->file.path,
               w->vector_numel, w->done_numel);
    return tess_partial_file_finish(&w->file);
}

void tess_vectors_writer_destroy(tess_vectors_writer **writer)
{
    tess_vectors_writer *w = *writer;
    if (w == NULL)
        return;
    tess_partial_file_fini(&w->file);
    tess_free(w->scratch);
    tess_free(w);
    *writer = NULL;
}
