/** A file of tensors while it is written: under a temporary name until all of it is there. */
#pragma once

#include "core/io.h"

TESS_BEGIN_DECLS

/** Bytes of one tensor, filled from the front. */
typedef struct tess_partial_range {
    const char *name;      /* for messages; borrowed from the owner of the file */
    int64_t offset_nbytes; /* from the start of the file */
    int64_t nbytes;
    int64_t done_nbytes;
} tess_partial_range;

/** In the memory of a writer. Starts as {0}; init, start, ranges filled, append, finish; fini. */
typedef struct tess_partial_file {
    tess_io *io;
    char *path, *temporary;    /* temporary: NULL once renamed */
    int fd;                    /* -1: not open */
    tess_partial_range *range; /* [range_numel] */
    int64_t range_numel;
    int64_t file_nbytes; /* as started */
} tess_partial_file;

/** Names and room for ranges; nothing is created yet. Local. `io` is kept (view). */
TESS_MUST_CHECK tess_status tess_partial_file_init(tess_partial_file *f, tess_io *io,
                                                   const char *path, int64_t range_numel);
/** Create `path`.tmp of `file_nbytes` zeros that begins with `header`; an old one is replaced.
 * Local. */
TESS_MUST_CHECK tess_status tess_partial_file_start(tess_partial_file *f, const void *header,
                                                    size_t header_nbytes, int64_t file_nbytes);
/** The next bytes of a range. Ranges may come in any order and interleaved. Local.
 * @return TESS_E_RANGE more bytes than it has; TESS_E_STATE finished already; TESS_E_IO */
TESS_MUST_CHECK tess_status tess_partial_file_append(tess_partial_file *f, int64_t range_idx,
                                                     const void *src, size_t nbytes);
/** Replace bytes of the header. Local. @return TESS_E_STATE finished already; TESS_E_IO */
TESS_MUST_CHECK tess_status tess_partial_file_patch(tess_partial_file *f, int64_t offset_nbytes,
                                                    const void *src, size_t nbytes);
/** Check that every range is complete, fsync, rename to `path`, fsync the folder. Local.
 * @return TESS_E_STATE a range is incomplete; TESS_E_IO */
TESS_MUST_CHECK tess_status tess_partial_file_finish(tess_partial_file *f);
/** Free; without a successful finish the temporary file is removed. */
void tess_partial_file_fini(tess_partial_file *f);

TESS_END_DECLS
