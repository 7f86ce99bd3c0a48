#include "format/partial_file.h"

#include <inttypes.h>

#include "core/memory.h"

tess_status tess_partial_file_init(tess_partial_file *f, tess_io *io, const char *path,
                                   int64_t range_numel)
{
    void *range = NULL;
    *f = (tess_partial_file){.io = io, .fd = -1};
    TESS_TRY(tess_strdup(path, &f->path));
    TESS_TRY(tess_alloc_array(range_numel, sizeof *f->range, &range));
    f->range = range;
    f->range_numel = range_numel;
    return TESS_OK;
}

tess_status tess_partial_file_start(tess_partial_file *f, const void *header, size_t header_nbytes,
                                    int64_t file_nbytes)
{
    TESS_TRY(tess_asprintf(&f->temporary, "%s.tmp", f->path));
    TESS_TRY(tess_io_unlink(f->io, f->temporary, true));
    TESS_TRY(tess_io_open_new(f->io, f->temporary, &f->fd));
    TESS_TRY(tess_io_fallocate(f->io, f->temporary, f->fd, file_nbytes));
    f->file_nbytes = file_nbytes;
    return tess_io_pwrite(f->io, f->temporary, f->fd, header, header_nbytes, 0);
}

tess_status tess_partial_file_append(tess_partial_file *f, int64_t range_idx, const void *src,
                                     size_t nbytes)
{
    TESS_CHECK(f->fd >= 0, TESS_E_STATE, "'%s' is already finished", f->path);
    TESS_CHECK(range_idx >= 0 && range_idx < f->range_numel, TESS_E_ARG,
               "'%s': tensor %" PRId64 " of %" PRId64, f->path, range_idx, f->range_numel);
    tess_partial_range *r = &f->range[range_idx];
    TESS_CHECK(nbytes <= (size_t)(r->nbytes - r->done_nbytes), TESS_E_RANGE,
               "'%s': tensor '%s' has %" PRId64 " bytes, %" PRId64 " are written, %zu more given",
               f->path, r->name, r->nbytes, r->done_nbytes, nbytes);
    TESS_TRY(
        tess_io_pwrite(f->io, f->temporary, f->fd, src, nbytes, r->offset_nbytes + r->done_nbytes));
    r->done_nbytes += (int64_t)nbytes;
    return TESS_OK;
}

tess_status tess_partial_file_patch(tess_partial_file *f, int64_t offset_nbytes, const void *src,
                                    size_t nbytes)
{
    TESS_CHECK(f->fd >= 0, TESS_E_STATE, "'%s' is already finished", f->path);
    return tess_io_pwrite(f->io, f->temporary, f->fd, src, nbytes, offset_nbytes);
}

tess_status tess_partial_file_finish(tess_partial_file *f)
{
    TESS_CHECK(f->fd >= 0, TESS_E_STATE, "'%s' is already finished", f->path);
    for (int64_t i = 0; i < f->range_numel; i++)
        TESS_CHECK(f->range[i].done_nbytes == f->range[i].nbytes, TESS_E_STATE,
                   "'%s': tensor '%s' has %" PRId64 " bytes, only %" PRId64 " are written", f->path,
                   f->range[i].name, f->range[i].nbytes, f->range[i].done_nbytes);
    TESS_TRY(tess_io_fsync(f->io, f->temporary, f->fd));
    TESS_TRY(tess_io_close(f->io, f->temporary, &f->fd));
    TESS_TRY(tess_io_rename(f->io, f->temporary, f->path));
    tess_free(f->temporary);
    f->temporary = NULL;
    return tess_io_fsync_parent(f->io, f->path);
}

void tess_partial_file_fini(tess_partial_file *f)
{
    /* Cleaning up after a failure: the first error is the one to keep. */
    if (f->temporary != NULL && f->fd >= 0)
        (void)!tess_io_close(f->io, f->temporary, &f->fd);
    if (f->temporary != NULL)
        (void)!tess_io_unlink(f->io, f->temporary, true);
    tess_free(f->range);
    tess_free(f->temporary);
    tess_free(f->path);
    *f = (tess_partial_file){.fd = -1};
}
