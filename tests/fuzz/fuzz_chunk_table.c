/* Any bytes as a shard file whose chunk table has the right digest: the table is refused, or its
 * chunks lie apart inside the file; the metadata digest never fits. */
#include <string.h>

#include "fuzz.h"
#include "shard/ckpt_priv.h"

/* One named file: shards are opened without following links. */
static const char *named_file(int *fd)
{
    static char path[64];
    static int kept_fd = -1;
    if (kept_fd < 0) {
        snprintf(path, sizeof path, "/tmp/tessera-fuzz-XXXXXX");
        kept_fd = mkstemp(path);
        fuzz_require(kept_fd >= 0, "no file");
    }
    *fd = kept_fd;
    return path;
}

static void remove_named_file(void)
{
    int fd = -1;
    (void)unlink(named_file(&fd));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t nbytes)
{
    static int is_registered;
    int fd = -1;
    ckpt_file file = {.file_nbytes = (int64_t)nbytes};
    ckpt_chunk *chunks = NULL;
    int64_t chunk_numel = 0;
    if (nbytes < 2)
        return 0;
    const char *path = named_file(&fd);
    if (!is_registered)
        is_registered = atexit(remove_named_file) == 0;
    fuzz_require(ftruncate(fd, 0) == 0 && pwrite(fd, data, nbytes, 0) == (ssize_t)nbytes,
                 "no write");
    file.table_offset_nbytes = data[0];
    file.table_nbytes = (data[1] % 8) * CKPT_CHUNK_ENTRY_NBYTES;
    if (file.table_offset_nbytes + file.table_nbytes > file.file_nbytes)
        return 0;
    fuzz_require(tess_sha256_of(data + file.table_offset_nbytes, (size_t)file.table_nbytes,
                                &file.table) == TESS_OK,
                 "no digest");
    tess_io *io = fuzz_io();
    const size_t before_nbytes = tess_alloc_nbytes();
    tess_error_clear();
    const tess_status st = ckpt_shard_check(io, path, &file, &chunks, &chunk_numel);
    fuzz_require(st == TESS_E_FORMAT && chunks == NULL, "metadata of zeros was taken");
    fuzz_verdict(st, before_nbytes);
    return 0;
}
