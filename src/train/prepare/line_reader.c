#include <string.h>

#include "core/arith.h"
#include "core/memory.h"
#include "train/prepare/tokenize_priv.h"

enum { BLOCK_NBYTES = 1 << 20 };

tess_status tess_line_reader_open(tess_io *io, const char *path, tess_line_reader *out)
{
    *out = (tess_line_reader){.io = io, .path = path, .fd = -1};
    TESS_TRY(tess_io_open_read(io, path, true, &out->fd, &out->file_nbytes));
    return tess_sha256_create(&out->sha256);
}

void tess_line_reader_close(tess_line_reader *reader)
{
    if (reader->fd >= 0)
        (void)!tess_io_close(reader->io, reader->path, &reader->fd);
    tess_sha256_destroy(&reader->sha256);
    tess_free(reader->byte);
    reader->byte = NULL;
}

/* Read one more block behind what is held; room for a NUL stays. */
static tess_status read_more(tess_line_reader *r)
{
    const int64_t nbytes = TESS_MIN((int64_t)BLOCK_NBYTES, r->file_nbytes - r->offset_nbytes);
    if (r->start > 0) {
        memmove(r->byte, r->byte + r->start, (size_t)(r->filled - r->start));
        r->filled -= r->start;
        r->start = 0;
    }
    TESS_CHECK(r->filled + nbytes <= TESS_TOKENIZE_DOCUMENT_NBYTES_LIMIT, TESS_E_FORMAT,
               "'%s': line or document %" PRId64 " is longer than %d bytes; split the file or "
               "give a separator",
               r->path, r->line_idx + 1, TESS_TOKENIZE_DOCUMENT_NBYTES_LIMIT);
    if (r->filled + nbytes + 1 > r->room_numel) {
        void *grown = r->byte;
        const int64_t room = 2 * (r->filled + nbytes) + 1;
        TESS_TRY(tess_realloc_array(r->room_numel, room, 1, &grown));
        r->byte = grown;
        r->room_numel = room;
    }
    TESS_TRY(tess_io_pread(r->io, r->path, r->fd, r->byte + r->filled, (size_t)nbytes,
                           r->offset_nbytes));
    TESS_TRY(tess_sha256_update(r->sha256, r->byte + r->filled, (size_t)nbytes));
    r->filled += nbytes;
    r->offset_nbytes += nbytes;
    return TESS_OK;
}

tess_status tess_line_reader_next(tess_line_reader *r, const char **line, size_t *nbytes,
                                  bool *has_newline)
{
    int64_t searched = 0;
    char *newline = NULL;
    *line = NULL;
    for (;;) {
        const int64_t held = r->filled - r->start;
        if (held > searched)
            newline = memchr(r->byte + r->start + searched, '\n', (size_t)(held - searched));
        searched = held;
        if (newline != NULL || r->offset_nbytes == r->file_nbytes)
            break;
        TESS_TRY(read_more(r));
    }
    if (searched == 0)
        return TESS_OK;
    char *text = r->byte + r->start;
    *has_newline = newline != NULL;
    *nbytes = newline != NULL ? (size_t)(newline - text) : (size_t)searched;
    text[*nbytes] = '\0';
    r->start += (int64_t)*nbytes + (newline != NULL ? 1 : 0);
    r->line_idx++;
    *line = text;
    return TESS_OK;
}

tess_status tess_line_reader_rest(tess_line_reader *r, const char **text, size_t *nbytes)
{
    do
        TESS_TRY(read_more(r));
    while (r->offset_nbytes < r->file_nbytes);
    *text = r->byte + r->start;
    *nbytes = (size_t)(r->filled - r->start);
    r->start = r->filled;
    return TESS_OK;
}
