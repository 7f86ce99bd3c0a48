#include <inttypes.h>
#include <string.h>

#include "core/arith.h"
#include "core/memory.h"
#include "train/data/codes_file_priv.h"
#include "train/data/hdf5_layout.h"

struct tess_codes_writer {
    tess_partial_file file; /* range 0: /codes */
    tess_codes_info info;
    tess_codes_place place;
    int64_t done_numel;
    uint8_t *scratch; /* [scratch_numel, C] as stored */
    int64_t scratch_numel;
};

static tess_status lay_out(tess_codes_writer *w, const tess_ctx *ctx, const char *path)
{
    tess_codes_info *info = &w->info;
    const int64_t columns = tess_codes_column_numel(info);
    const tess_h5_attribute attributes[] = {
        {"format_version", NULL, TESS_CODES_FILE_VERSION},
        {"codes", NULL, info->code_numel},
        {"levels", NULL, info->level_numel},
        {"groups", NULL, info->group_numel},
        {"has_absent", NULL, info->has_absent},
        {"bit_order", tess_codes_order_name(info->bit_order), 0},
        {"codebooks", info->codebooks, 0},
        {"source", info->source, 0}};
    tess_h5_dataset dataset = {.name = "codes",
                               .type = info->code_nbytes == 1   ? TESS_H5_U8
                                       : info->code_nbytes == 2 ? TESS_H5_U16
                                                                : TESS_H5_U32,
                               .dim_numel = 2,
                               .dim = {info->vector_numel, columns}};
    tess_h5_layout layout = {TESS_CODES_HEADER_NBYTES, attributes, TESS_NELEM(attributes), &dataset,
                             1};
    TESS_TRY(tess_h5_start_file(&w->file, ctx->io, path, &layout, &w->place.metadata));
    w->place.offset_nbytes = dataset.offset_nbytes;
    info->file_nbytes = w->file.file_nbytes;
    return TESS_OK;
}

static tess_status start(tess_codes_writer *w, const tess_ctx *ctx, const char *path)
{
    void *scratch = NULL;
    TESS_TRY(tess_codes_check_info(path, TESS_E_ARG, &w->info));
    TESS_CHECK(memchr(w->info.codebooks, '\0', TESS_CODES_TEXT_NBYTES) != NULL &&
                   memchr(w->info.source, '\0', TESS_CODES_TEXT_NBYTES) != NULL,
               TESS_E_ARG, "codes file '%s': a digest of more than %d bytes", path,
               TESS_CODES_TEXT_NBYTES - 1);
    w->scratch_numel = tess_codes_scratch_numel(&w->info);
    TESS_TRY(tess_alloc_array(w->scratch_numel * tess_codes_column_numel(&w->info),
                              w->info.code_nbytes, &scratch));
    w->scratch = scratch;
    return lay_out(w, ctx, path);
}

tess_status tess_codes_writer_create(const tess_ctx *ctx, const char *path,
                                     const tess_codes_info *info, tess_codes_writer **out)
{
    void *object = NULL;
    TESS_TRY(tess_alloc(sizeof(tess_codes_writer), &object));
    tess_codes_writer *w = object;
    w->file.fd = -1;
    w->info = *info;
    w->info.payload = (tess_logical_hash){{0}};
    const tess_status st = start(w, ctx, path);
    if (st != TESS_OK) {
        tess_codes_writer_destroy(&w);
        return st;
    }
    *out = w;
    return TESS_OK;
}

/* Rows into the scratch buffer as they are stored. */
static tess_status put_part(const tess_codes_writer *w, const int64_t *codes, int64_t numel)
{
    const int64_t columns = tess_codes_column_numel(&w->info);
    const int64_t least = w->info.has_absent ? -1 : 0;
    for (int64_t i = 0; i < numel * columns; i++) {
        TESS_CHECK(codes[i] >= least && codes[i] < w->info.code_numel, TESS_E_RANGE,
                   "codes file '%s': code %" PRId64 " in row %" PRId64 ", column %" PRId64
                   ", expected %" PRId64 " to %" PRId64,
                   w->file.path, codes[i], w->done_numel + i / columns, i % columns, least,
                   w->info.code_numel - 1);
        const uint32_t code = codes[i] < 0 ? UINT32_MAX : (uint32_t)codes[i];
        memcpy(w->scratch + (size_t)i * w->info.code_nbytes, &code, w->info.code_nbytes);
    }
    return TESS_OK;
}

tess_status tess_codes_writer_append(tess_codes_writer *w, const int64_t *codes, int64_t numel)
{
    const int64_t columns = tess_codes_column_numel(&w->info);
    TESS_CHECK(numel >= 0 && numel <= w->info.vector_numel - w->done_numel, TESS_E_RANGE,
               "codes file '%s' takes %" PRId64 " rows, %" PRId64 " are written, %" PRId64
               " more given",
               w->file.path, w->info.vector_numel, w->done_numel, numel);
    for (int64_t done = 0; done < numel;) {
        const int64_t part = TESS_MIN(numel - done, w->scratch_numel);
        TESS_TRY(put_part(w, codes + done * columns, part));
        TESS_TRY(tess_partial_file_append(&w->file, 0, w->scratch,
                                          (size_t)(part * columns) * w->info.code_nbytes));
        tess_logical_hash_add(&w->info.payload, w->scratch, part * columns, w->info.code_nbytes,
                              w->done_numel * columns);
        w->done_numel += part;
        done += part;
    }
    return TESS_OK;
}

tess_status tess_codes_writer_finish(tess_codes_writer *w)
{
    uint8_t header[TESS_CODES_HEADER_NBYTES];
    TESS_CHECK(w->done_numel == w->info.vector_numel, TESS_E_STATE,
               "codes file '%s' takes %" PRId64 " rows, only %" PRId64 " are written", w->file.path,
               w->info.vector_numel, w->done_numel);
    TESS_TRY(tess_codes_header_encode(&w->info, &w->place, header));
    TESS_TRY(tess_partial_file_patch(&w->file, 0, header, sizeof header));
    return tess_partial_file_finish(&w->file);
}

void tess_codes_writer_destroy(tess_codes_writer **writer)
{
    tess_codes_writer *w = *writer;
    if (w == NULL)
        return;
    tess_partial_file_fini(&w->file);
    tess_free(w->scratch);
    tess_free(w);
    *writer = NULL;
}
