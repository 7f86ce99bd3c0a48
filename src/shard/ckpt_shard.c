/* One shard file: written from a snapshot by pwrite around an HDF5 skeleton, and checked before
 * HDF5 sees it. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include "core/clock.h"
#include "shard/ckpt_priv.h"

enum { COPY_NBYTES = 1 << 20 };

/* ---- chunk table ---- */

static void put_le(uint8_t *dst, uint64_t value, int nbytes)
{
    for (int i = 0; i < nbytes; i++)
        dst[i] = (uint8_t)(value >> 8 * i);
}

static uint64_t get_le(const uint8_t *src, int nbytes)
{
    uint64_t value = 0;
    for (int i = 0; i < nbytes; i++)
        value |= (uint64_t)src[i] << 8 * i;
    return value;
}

static void encode_chunk(const ckpt_chunk *c, uint8_t *dst)
{
    put_le(dst, (uint64_t)c->offset_nbytes, 8);
    put_le(dst + 8, (uint64_t)c->nbytes, 4);
    memcpy(dst + 12, c->digest.byte, sizeof c->digest.byte);
}

static void decode_chunk(const uint8_t *src, ckpt_chunk *c)
{
    c->offset_nbytes = (int64_t)get_le(src, 8);
    c->nbytes = (int64_t)get_le(src + 8, 4);
    memcpy(c->digest.byte, src + 12, sizeof c->digest.byte);
}

static int by_offset(const void *a, const void *b)
{
    const int64_t x = ((const ckpt_chunk *)a)->offset_nbytes;
    const int64_t y = ((const ckpt_chunk *)b)->offset_nbytes;
    return (x > y) - (x < y);
}

/* Encoded table: ascending, apart, inside the file, outside itself. */
static tess_status decode_table(const char *path, const ckpt_file *file, const uint8_t *bytes,
                                ckpt_chunk *chunks, int64_t chunk_numel)
{
    int64_t end = 0;
    const int64_t table_end = file->table_offset_nbytes + file->table_nbytes;
    for (int64_t i = 0; i < chunk_numel; i++) {
        ckpt_chunk *c = &chunks[i];
        decode_chunk(bytes + i * CKPT_CHUNK_ENTRY_NBYTES, c);
        const bool is_inside = c->offset_nbytes >= end && c->nbytes >= 1 &&
                               c->nbytes <= TESS_CKPT_CHUNK_NBYTES &&
                               c->offset_nbytes <= file->file_nbytes - c->nbytes;
        const bool is_apart = c->offset_nbytes >= table_end ||
                              c->offset_nbytes + c->nbytes <= file->table_offset_nbytes;
        TESS_CHECK(is_inside && is_apart, TESS_E_FORMAT,
                   "'%s': chunk %" PRId64 " of %" PRId64 " bytes at %" PRId64
                   " overlaps or leaves the file",
                   path, i, c->nbytes, c->offset_nbytes);
        end = c->offset_nbytes + c->nbytes;
    }
    return TESS_OK;
}

/* ---- metadata: every byte outside chunks and table ---- */

/* Called for each extent [offset, offset + nbytes) of metadata. */
typedef tess_status (*extent_fn)(void *arg, int64_t offset_nbytes, int64_t nbytes);

static tess_status walk_metadata(const ckpt_file *file, const ckpt_chunk *chunks,
                                 int64_t chunk_numel, extent_fn fn, void *arg)
{
    int64_t at = 0, i = 0;
    bool is_table_done = file->table_nbytes == 0;
    while (at < file->file_nbytes) {
        int64_t next = file->file_nbytes, skip = 0;
        if (i < chunk_numel) {
            next = chunks[i].offset_nbytes;
            skip = chunks[i].nbytes;
        }
        const bool is_table = !is_table_done && file->table_offset_nbytes < next;
        if (is_table) {
            next = file->table_offset_nbytes;
            skip = file->table_nbytes;
        }
        if (next > at)
            TESS_TRY(fn(arg, at, next - at));
        at = next + skip;
        is_table_done |= is_table;
        i += !is_table;
    }
    return TESS_OK;
}

typedef struct metadata_walk {
    tess_io *io;
    const char *from_path;
    int from_fd;
    const char *to_path; /* NULL: only digest */
    int to_fd;
    tess_sha256_state *sha;
    uint8_t *buffer; /* [COPY_NBYTES] */
} metadata_walk;

static tess_status take_extent(void *arg, int64_t offset_nbytes, int64_t nbytes)
{
    const metadata_walk *w = arg;
    for (int64_t done = 0; done < nbytes; done += COPY_NBYTES) {
        const size_t part = (size_t)TESS_MIN(nbytes - done, (int64_t)COPY_NBYTES);
        TESS_TRY(
            tess_io_pread(w->io, w->from_path, w->from_fd, w->buffer, part, offset_nbytes + done));
        TESS_TRY(tess_sha256_update(w->sha, w->buffer, part));
        if (w->to_path != NULL)
            TESS_TRY(
                tess_io_pwrite(w->io, w->to_path, w->to_fd, w->buffer, part, offset_nbytes + done));
    }
    return TESS_OK;
}

/* Digest the metadata of `from`, copying it when `to_path` is given. */
static tess_status take_metadata(metadata_walk *w, const ckpt_file *file, const ckpt_chunk *chunks,
                                 int64_t chunk_numel, tess_sha256 *digest)
{
    void *buffer = NULL;
    TESS_TRY(tess_sha256_create(&w->sha));
    tess_status st = tess_alloc(COPY_NBYTES, &buffer);
    w->buffer = buffer;
    if (st == TESS_OK)
        st = walk_metadata(file, chunks, chunk_numel, take_extent, w);
    if (st == TESS_OK)
        st = tess_sha256_final(w->sha, digest);
    tess_free(buffer);
    tess_sha256_destroy(&w->sha);
    return st;
}

/* ---- writing ---- */

typedef struct shard_plan {
    int64_t *offset_nbytes; /* [record_numel] */
    ckpt_chunk *chunks;     /* [chunk_numel] by offset */
    uint8_t *table;
    int64_t chunk_numel;
    int64_t digested_numel;
    char skeleton_path[512];
    int skeleton_fd;
} shard_plan;

static void free_plan(shard_plan *p)
{
    tess_free(p->offset_nbytes);
    tess_free(p->chunks);
    tess_free(p->table);
    if (p->skeleton_fd >= 0)
        (void)close(p->skeleton_fd);
}

static size_t own_nbytes(const ckpt_shard_job *job, int64_t record_idx)
{
    return ckpt_record_nbytes(&job->h5.set->records[record_idx], job->h5.set->shard_world,
                              job->h5.rank);
}

/* A file system that counts no blocks (ramfs) has what memory has. */
static bool has_room(int fd, size_t nbytes)
{
    struct statvfs info;
    return fstatvfs(fd, &info) == 0 &&
           (info.f_blocks == 0 || info.f_bavail * info.f_frsize >= nbytes);
}

/* A file for the skeleton under a private name. HDF5 opens by name only and refuses the names of
 * memfd files, so it lies in the first of these folders that takes it, until HDF5 has opened it.
 * One without room is passed over: HDF5 is not asked again after a failed write. */
static tess_status open_private(shard_plan *p, size_t nbytes)
{
    const char *const folders[] = {"/dev/shm", getenv("TMPDIR"), "/tmp"};
    int error = ENOSPC;
    for (int i = 0; i < TESS_NELEM(folders); i++) {
        if (folders[i] == NULL || strlen(folders[i]) > sizeof p->skeleton_path - 40)
            continue;
        snprintf(p->skeleton_path, sizeof p->skeleton_path, "%s/tessera-skeleton-XXXXXX",
                 folders[i]);
        const int fd = mkostemp(p->skeleton_path, O_CLOEXEC);
        if (fd < 0) {
            error = errno;
            continue;
        }
        if (has_room(fd, nbytes)) {
            p->skeleton_fd = fd;
            return TESS_OK;
        }
        (void)close(fd);
        (void)unlink(p->skeleton_path);
    }
    return TESS_FAIL(TESS_E_IO,
                     "neither /dev/shm, TMPDIR nor /tmp takes a temporary file of up to %zu bytes "
                     "(%s); make room in one of them",
                     nbytes, strerror(error));
}

/* Build the skeleton in memory only; [Note: sparse skeleton] early allocation makes HDF5 extend the
 * file to its full size, but nothing is written there, so it holds a few pages. */
static tess_status build_skeleton(ckpt_shard_job *job, shard_plan *p, ckpt_h5_layout *layout)
{
    void *memory = NULL;
    const int64_t record_numel = job->h5.set->record_numel;
    for (int64_t i = 0; i < record_numel; i++)
        p->chunk_numel += tess_ceil_div((int64_t)own_nbytes(job, i), TESS_CKPT_CHUNK_NBYTES);
    job->h5.chunk_numel = p->chunk_numel;
    TESS_TRY(tess_alloc_array(record_numel, sizeof(int64_t), &memory));
    p->offset_nbytes = memory;
    TESS_TRY(tess_alloc_array(p->chunk_numel, sizeof(ckpt_chunk), &memory));
    p->chunks = memory;
    TESS_TRY(tess_alloc_array(p->chunk_numel, CKPT_CHUNK_ENTRY_NBYTES, &memory));
    p->table = memory;
    TESS_TRY(open_private(p, ckpt_metadata_nbytes_max(job->h5.set, job->h5.rank)));
    layout->payload_offset_nbytes = p->offset_nbytes;
    const tess_status st = ckpt_h5_build(p->skeleton_path, &job->h5, layout);
    job->is_h5_failed = st != TESS_OK;
    (void)unlink(p->skeleton_path); /* where building failed before it did so */
    TESS_TRY(st);
    /* Asked after the close: only that gives back what HDF5 reserved ahead at the end. */
    struct stat info;
    TESS_CHECK(fstat(p->skeleton_fd, &info) == 0, TESS_E_IO, "'%s': no size: %s", p->skeleton_path,
               strerror(errno));
    layout->file_nbytes = (int64_t)info.st_size;
    return TESS_OK;
}

static void digest_chunk(void *arg, int64_t record_idx, int64_t at_nbytes, const void *data,
                         int64_t nbytes)
{
    shard_plan *p = arg;
    p->chunks[p->digested_numel++] =
        (ckpt_chunk){.offset_nbytes = p->offset_nbytes[record_idx] + at_nbytes,
                     .nbytes = nbytes,
                     .digest = tess_xxh128_of(data, (size_t)nbytes)};
}

/* Digests of what will be written, before any of it is. */
static tess_status digest_payload(ckpt_shard_job *job, shard_plan *p)
{
    const ckpt_shard_views from = {job->index, job->views, job->window, job->h5.rank};
    TESS_TRY(ckpt_hash_records(&from, digest_chunk, p, job->hashes));
    if (p->chunk_numel > 1)
        qsort(p->chunks, (size_t)p->chunk_numel, sizeof *p->chunks, by_offset);
    for (int64_t i = 0; i < p->chunk_numel; i++)
        encode_chunk(&p->chunks[i], p->table + i * CKPT_CHUNK_ENTRY_NBYTES);
    return TESS_OK;
}

static tess_status write_record(const ckpt_shard_job *job, const shard_plan *p, const char *path,
                                int fd, int64_t record_idx)
{
    const int64_t end = (int64_t)own_nbytes(job, record_idx);
    for (int64_t at = 0; at < end; at += TESS_CKPT_CHUNK_NBYTES) {
        const int64_t nbytes = TESS_MIN(end - at, (int64_t)TESS_CKPT_CHUNK_NBYTES);
        const void *data = NULL;
        TESS_TRY(ckpt_window_read(job->window, job->views[record_idx], at, nbytes, &data));
        TESS_TRY(tess_io_pwrite(job->io, path, fd, data, (size_t)nbytes,
                                p->offset_nbytes[record_idx] + at));
    }
    return TESS_OK;
}

static tess_status write_payload(const ckpt_shard_job *job, const shard_plan *p, const char *path,
                                 int fd)
{
    for (int64_t i = 0; i < job->h5.set->record_numel; i++)
        TESS_TRY(write_record(job, p, path, fd, i));
    if (job->file.table_nbytes > 0)
        TESS_TRY(tess_io_pwrite(job->io, path, fd, p->table, (size_t)job->file.table_nbytes,
                                job->file.table_offset_nbytes));
    return TESS_OK;
}

static tess_status fill_final_file(ckpt_shard_job *job, const shard_plan *p, const char *path,
                                   int fd)
{
    metadata_walk walk = {.io = job->io,
                          .from_path = p->skeleton_path,
                          .from_fd = p->skeleton_fd,
                          .to_path = path,
                          .to_fd = fd};
    const double start_s = tess_clock_s();
    TESS_TRY(tess_io_fallocate(job->io, path, fd, job->file.file_nbytes));
    TESS_TRY(take_metadata(&walk, &job->file, p->chunks, p->chunk_numel, &job->file.metadata));
    TESS_TRY(write_payload(job, p, path, fd));
    const double written_s = tess_clock_s();
    TESS_TRY(tess_io_fsync(job->io, path, fd));
    job->times.write_s = written_s - start_s;
    job->times.fsync_s = tess_clock_s() - written_s;
    return TESS_OK;
}

static tess_status write_final_file(ckpt_shard_job *job, const shard_plan *p, const char *path)
{
    int fd = -1;
    TESS_TRY(tess_io_open_new(job->io, path, &fd));
    const tess_status st = fill_final_file(job, p, path, fd);
    const int error = errno;
    const tess_status closed = tess_io_close(job->io, path, &fd);
    if (st != TESS_OK)
        errno = error;
    TESS_TRY(st);
    TESS_TRY(closed);
    return tess_io_fsync_dir(job->io, job->dir);
}

/* ---- checking ---- */

static tess_status check_table(tess_io *io, const char *path, int fd, const ckpt_file *file,
                               ckpt_chunk *chunks, int64_t chunk_numel)
{
    void *bytes = NULL;
    tess_sha256 digest;
    TESS_TRY(tess_alloc((size_t)file->table_nbytes, &bytes));
    tess_status st =
        tess_io_pread(io, path, fd, bytes, (size_t)file->table_nbytes, file->table_offset_nbytes);
    if (st == TESS_OK)
        st = tess_sha256_of(bytes, (size_t)file->table_nbytes, &digest);
    if (st == TESS_OK && !tess_sha256_is_equal(&digest, &file->table))
        st = TESS_FAIL(TESS_E_FORMAT,
                       "'%s' is damaged: the chunk table at byte %" PRId64
                       " does not have the digest of the manifest",
                       path, file->table_offset_nbytes);
    if (st == TESS_OK)
        st = decode_table(path, file, bytes, chunks, chunk_numel);
    tess_free(bytes);
    return st;
}

static tess_status check_metadata(tess_io *io, const char *path, int fd, const ckpt_file *file,
                                  const ckpt_chunk *chunks, int64_t chunk_numel)
{
    metadata_walk walk = {.io = io, .from_path = path, .from_fd = fd};
    tess_sha256 digest;
    TESS_TRY(take_metadata(&walk, file, chunks, chunk_numel, &digest));
    TESS_CHECK(tess_sha256_is_equal(&digest, &file->metadata), TESS_E_FORMAT,
               "'%s' is damaged: its metadata does not have the digest of the manifest", path);
    return TESS_OK;
}

static tess_status check_open_file(tess_io *io, const char *path, int fd, const ckpt_file *file,
                                   ckpt_chunk **chunks)
{
    const int64_t chunk_numel = file->table_nbytes / CKPT_CHUNK_ENTRY_NBYTES;
    void *memory = NULL;
    TESS_TRY(tess_alloc_array(chunk_numel, sizeof(ckpt_chunk), &memory));
    tess_status st = check_table(io, path, fd, file, memory, chunk_numel);
    if (st == TESS_OK)
        st = check_metadata(io, path, fd, file, memory, chunk_numel);
    if (st != TESS_OK) {
        tess_free(memory);
        return st;
    }
    *chunks = memory;
    return TESS_OK;
}

tess_status ckpt_open_part(tess_io *io, const char *path, int *fd, int64_t *file_nbytes)
{
    const tess_status st = tess_io_open_read(io, path, false, fd, file_nbytes);
    const int error = errno;
    if (st != TESS_E_IO || (error != ENOENT && error != ELOOP))
        return st;
    tess_error_clear();
    return error == ENOENT
               ? TESS_FAIL(TESS_E_FORMAT,
                           "'%s' is missing, and the checkpoint cannot be used without it; restore "
                           "the file or use another checkpoint",
                           path)
               : TESS_FAIL(TESS_E_FORMAT,
                           "'%s' is a symbolic link, expected a regular file: a checkpoint folder "
                           "holds no links",
                           path);
}

static tess_status check_size(const char *path, int64_t found_nbytes, const ckpt_file *file)
{
    TESS_CHECK(found_nbytes == file->file_nbytes, TESS_E_FORMAT,
               "'%s' has %" PRId64 " bytes, the manifest says %" PRId64, path, found_nbytes,
               file->file_nbytes);
    return TESS_OK;
}

tess_status ckpt_shard_check(tess_io *io, const char *path, const ckpt_file *file,
                             ckpt_chunk **chunks, int64_t *chunk_numel)
{
    int fd = -1;
    int64_t file_nbytes = 0;
    TESS_TRY(ckpt_open_part(io, path, &fd, &file_nbytes));
    tess_status st = check_size(path, file_nbytes, file);
    if (st == TESS_OK)
        st = check_open_file(io, path, fd, file, chunks);
    (void)close(fd);
    *chunk_numel = file->table_nbytes / CKPT_CHUNK_ENTRY_NBYTES;
    return st;
}

tess_status ckpt_chunk_read(tess_io *io, const char *path, int fd, const ckpt_chunk *c,
                            void *buffer, bool *is_whole)
{
    TESS_TRY(tess_io_pread(io, path, fd, buffer, (size_t)c->nbytes, c->offset_nbytes));
    const tess_xxh128 found = tess_xxh128_of(buffer, (size_t)c->nbytes);
    *is_whole = memcmp(found.byte, c->digest.byte, sizeof found.byte) == 0;
    return TESS_OK;
}

/* ---- reading back ---- */

static tess_status check_chunks(tess_io *io, const char *path, int fd, const ckpt_chunk *chunks,
                                int64_t chunk_numel)
{
    void *buffer = NULL;
    TESS_TRY(tess_alloc(TESS_CKPT_CHUNK_NBYTES, &buffer));
    tess_status st = TESS_OK;
    for (int64_t i = 0; st == TESS_OK && i < chunk_numel; i++) {
        bool is_whole = false;
        st = ckpt_chunk_read(io, path, fd, &chunks[i], buffer, &is_whole);
        if (st == TESS_OK && !is_whole)
            st = TESS_FAIL(TESS_E_FORMAT,
                           "'%s' is damaged: %" PRId64 " bytes at file offset %" PRId64
                           " do not have their digest",
                           path, chunks[i].nbytes, chunks[i].offset_nbytes);
    }
    tess_free(buffer);
    return st;
}

static tess_status check_from_disk(tess_io *io, const char *path, const ckpt_file *file)
{
    int fd = -1;
    int64_t file_nbytes = 0;
    ckpt_chunk *chunks = NULL;
    TESS_TRY(ckpt_open_part(io, path, &fd, &file_nbytes));
    tess_status st = check_size(path, file_nbytes, file);
    if (st == TESS_OK)
        st = tess_io_drop_cache(io, path, fd);
    if (st == TESS_OK)
        st = check_open_file(io, path, fd, file, &chunks);
    if (st == TESS_OK)
        st = check_chunks(io, path, fd, chunks, file->table_nbytes / CKPT_CHUNK_ENTRY_NBYTES);
    tess_free(chunks);
    (void)close(fd);
    return st;
}

/* Bytes that are not what was written are a failure of the disk, not of an input. */
static tess_status read_back(ckpt_shard_job *job, const char *path)
{
    const double start_s = tess_clock_s();
    const tess_status st = check_from_disk(job->io, path, &job->file);
    job->times.read_back_s = tess_clock_s() - start_s;
    if (st != TESS_E_FORMAT)
        return st;
    char message[TESS_ERROR_MESSAGE_NBYTES];
    snprintf(message, sizeof message, "%.1900s", tess_error_message());
    tess_error_clear();
    return TESS_FAIL(TESS_E_IO, "written, and read back otherwise: %s; look at this disk", message);
}

/* ---- all of it ---- */

bool ckpt_is_full(void) { return errno == ENOSPC || errno == EDQUOT || errno == EFBIG; }

static tess_status write_steps(ckpt_shard_job *job, shard_plan *p)
{
    ckpt_h5_layout layout = {0};
    TESS_TRY(build_skeleton(job, p, &layout));
    const double start_s = tess_clock_s();
    TESS_TRY(digest_payload(job, p));
    job->times.hash_s = tess_clock_s() - start_s;
    job->file.file_nbytes = layout.file_nbytes;
    job->file.table_nbytes = p->chunk_numel * CKPT_CHUNK_ENTRY_NBYTES;
    job->file.table_offset_nbytes = p->chunk_numel > 0 ? layout.table_offset_nbytes : 0;
    TESS_TRY(tess_sha256_of(p->table, (size_t)job->file.table_nbytes, &job->file.table));
    char name[CKPT_SHARD_NAME_NBYTES], path[PATH_MAX];
    ckpt_shard_name(job->h5.rank, job->h5.set->shard_world, name);
    TESS_TRY(ckpt_join(path, job->dir, name));
    errno = 0;
    const tess_status st = write_final_file(job, p, path);
    job->is_disk_full = st == TESS_E_IO && ckpt_is_full();
    TESS_TRY(st);
    return job->has_read_back ? read_back(job, path) : TESS_OK;
}

tess_status ckpt_shard_write(ckpt_shard_job *job)
{
    shard_plan plan = {.skeleton_fd = -1};
    (void)ckpt_h5_start();
    job->times = (ckpt_times){0};
    job->is_disk_full = false;
    const tess_status st = write_steps(job, &plan);
    free_plan(&plan);
    return st;
}
