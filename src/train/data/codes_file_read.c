#include <inttypes.h>
#include <string.h>

#include "core/arith.h"
#include "core/memory.h"
#include "train/data/codes_file_priv.h"

struct tess_codes_file {
    tess_ctx ctx;
    char *path;
    int fd;
    tess_codes_info info;
    tess_codes_place place;
    uint8_t *scratch; /* [scratch_numel, C] as stored */
    int64_t scratch_numel;
};

const tess_codes_info *tess_codes_file_get_info(const tess_codes_file *file) { return &file->info; }

static int64_t row_nbytes(const tess_codes_file *f)
{
    return tess_codes_column_numel(&f->info) * (int64_t)f->info.code_nbytes;
}

tess_status tess_codes_file_is(const tess_ctx *ctx, const char *path, bool *out)
{
    char start[sizeof TESS_CODES_MAGIC - 1] = "";
    int fd = -1;
    int64_t file_nbytes = 0;
    TESS_TRY(tess_io_open_read(ctx->io, path, true, &fd, &file_nbytes));
    tess_status st = TESS_OK;
    if (file_nbytes >= (int64_t)sizeof start)
        st = tess_io_pread(ctx->io, path, fd, start, sizeof start, 0);
    (void)!tess_io_close(ctx->io, path, &fd);
    TESS_TRY(st);
    *out = memcmp(start, TESS_CODES_MAGIC, sizeof start) == 0;
    return TESS_OK;
}

/* Digest of all bytes behind the user block and outside /codes, which are few. */
static tess_status check_metadata(const tess_codes_file *f)
{
    const int64_t codes_end = f->place.offset_nbytes + f->info.vector_numel * row_nbytes(f);
    const int64_t head_nbytes = f->place.offset_nbytes - TESS_CODES_HEADER_NBYTES;
    const int64_t tail_nbytes = f->info.file_nbytes - codes_end;
    void *room = NULL;
    TESS_TRY(tess_alloc((size_t)(head_nbytes + tail_nbytes), &room));
    char *bytes = room;
    tess_status st = tess_io_pread(f->ctx.io, f->path, f->fd, bytes, (size_t)head_nbytes,
                                   TESS_CODES_HEADER_NBYTES);
    if (st == TESS_OK)
        st = tess_io_pread(f->ctx.io, f->path, f->fd, bytes + head_nbytes, (size_t)tail_nbytes,
                           codes_end);
    const tess_xxh128 digest = tess_xxh128_of(bytes, (size_t)(head_nbytes + tail_nbytes));
    tess_free(room);
    TESS_TRY(st);
    TESS_CHECK(memcmp(digest.byte, f->place.metadata.byte, sizeof digest.byte) == 0, TESS_E_FORMAT,
               "codes file '%s': HDF5 metadata does not match its digest; the file was changed by "
               "another program, encode again",
               f->path);
    return TESS_OK;
}

static tess_status open_file(tess_codes_file *f, const char *path)
{
    uint8_t header[TESS_CODES_HEADER_NBYTES];
    int64_t file_nbytes = 0;
    void *scratch = NULL;
    TESS_TRY(tess_strdup(path, &f->path));
    TESS_TRY(tess_io_open_read(f->ctx.io, path, true, &f->fd, &file_nbytes));
    TESS_CHECK(file_nbytes >= TESS_CODES_HEADER_NBYTES, TESS_E_FORMAT,
               "'%s' is no codes file: %" PRId64 " bytes, at least %d are expected", path,
               file_nbytes, TESS_CODES_HEADER_NBYTES);
    TESS_TRY(tess_io_pread(f->ctx.io, path, f->fd, header, sizeof header, 0));
    TESS_TRY(tess_codes_header_decode(path, header, file_nbytes, &f->info, &f->place));
    TESS_TRY(check_metadata(f));
    f->scratch_numel = tess_codes_scratch_numel(&f->info);
    TESS_TRY(tess_alloc_array(f->scratch_numel, (size_t)row_nbytes(f), &scratch));
    f->scratch = scratch;
    return TESS_OK;
}

tess_status tess_codes_file_open(const tess_ctx *ctx, const char *path, tess_codes_file **out)
{
    void *object = NULL;
    TESS_TRY(tess_alloc(sizeof(tess_codes_file), &object));
    tess_codes_file *f = object;
    f->ctx = *ctx;
    f->fd = -1;
    const tess_status st = open_file(f, path);
    if (st != TESS_OK) {
        tess_codes_file_close(&f);
        return st;
    }
    *out = f;
    return TESS_OK;
}

void tess_codes_file_close(tess_codes_file **file)
{
    tess_codes_file *f = *file;
    if (f == NULL)
        return;
    if (f->fd >= 0)
        (void)!tess_io_close(f->ctx.io, f->path, &f->fd);
    tess_free(f->scratch);
    tess_free(f->path);
    tess_free(f);
    *file = NULL;
}

/* Code `i` of the scratch buffer; -1: absent, or beyond any code. */
static int64_t stored_code(const tess_codes_file *f, int64_t i)
{
    uint32_t code = 0;
    memcpy(&code, f->scratch + (size_t)i * f->info.code_nbytes, f->info.code_nbytes);
    const uint32_t absent = UINT32_MAX >> (32 - 8 * f->info.code_nbytes);
    return f->info.has_absent && code == absent ? -1 : (int64_t)code;
}

static tess_status read_part(tess_codes_file *f, int64_t first_idx, int64_t numel)
{
    return tess_io_pread(f->ctx.io, f->path, f->fd, f->scratch, (size_t)(numel * row_nbytes(f)),
                         f->place.offset_nbytes + first_idx * row_nbytes(f));
}

/* Rows that lie in the scratch buffer; `codes` may be NULL. */
static tess_status take_part(const tess_codes_file *f, int64_t first_idx, int64_t numel,
                             int64_t *codes)
{
    const int64_t columns = tess_codes_column_numel(&f->info);
    for (int64_t i = 0; i < numel * columns; i++) {
        const int64_t code = stored_code(f, i);
        TESS_CHECK(code < f->info.code_numel, TESS_E_FORMAT,
                   "codes file '%s': code %" PRId64 " in row %" PRId64 ", column %" PRId64
                   ", expected less than %" PRId64 "; the file is damaged, encode again",
                   f->path, code, first_idx + i / columns, i % columns, f->info.code_numel);
        if (codes != NULL)
            codes[i] = code;
    }
    return TESS_OK;
}

tess_status tess_codes_file_read(tess_codes_file *f, int64_t first_idx, int64_t numel,
                                 int64_t *codes)
{
    TESS_CHECK(first_idx >= 0 && numel >= 0 && numel <= f->info.vector_numel &&
                   first_idx <= f->info.vector_numel - numel,
               TESS_E_RANGE, "codes file '%s': rows %" PRId64 " and %" PRId64 " more of %" PRId64,
               f->path, first_idx, numel, f->info.vector_numel);
    for (int64_t done = 0; done < numel;) {
        const int64_t part = TESS_MIN(numel - done, f->scratch_numel);
        TESS_TRY(read_part(f, first_idx + done, part));
        TESS_TRY(
            take_part(f, first_idx + done, part, codes + done * tess_codes_column_numel(&f->info)));
        done += part;
    }
    return TESS_OK;
}

tess_status tess_codes_file_verify(tess_codes_file *f)
{
    const int64_t columns = tess_codes_column_numel(&f->info);
    tess_logical_hash payload = {{0}};
    for (int64_t done = 0; done < f->info.vector_numel;) {
        const int64_t part = TESS_MIN(f->info.vector_numel - done, f->scratch_numel);
        TESS_TRY(read_part(f, done, part));
        TESS_TRY(take_part(f, done, part, NULL));
        tess_logical_hash_add(&payload, f->scratch, part * columns, f->info.code_nbytes,
                              done * columns);
        done += part;
    }
    TESS_CHECK(payload.lane[0] == f->info.payload.lane[0] &&
                   payload.lane[1] == f->info.payload.lane[1],
               TESS_E_FORMAT,
               "codes file '%s': the codes do not match their digest; the file is damaged, encode "
               "again",
               f->path);
    return TESS_OK;
}
