/**
 * Every file operation of the program goes through one table, so that faults can be injected and
 * counted.
 *
 * `TESSERA_FAULT=rank:op:n:kind` makes the n-th call (from 1) of `op` on `rank` fail or die; see
 * io.c.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "core/digest.h"
#include "core/status.h"

TESS_BEGIN_DECLS

#define TESS_IO_OP_LIST(X)                                                                         \
    X(OPEN, "open")                                                                                \
    X(PREAD, "pread")                                                                              \
    X(PWRITE, "pwrite")                                                                            \
    X(FSYNC, "fsync")                                                                              \
    X(CLOSE, "close")                                                                              \
    X(LINK, "link")                                                                                \
    X(UNLINK, "unlink")                                                                            \
    X(RENAME, "rename")                                                                            \
    X(MKDIR, "mkdir")                                                                              \
    X(RMDIR, "rmdir")                                                                              \
    X(FALLOCATE, "fallocate")                                                                      \
    X(FADVISE, "fadvise")                                                                          \
    X(STATVFS, "statvfs")                                                                          \
    X(STAT, "stat")                                                                                \
    X(OPENDIR, "opendir")

typedef enum tess_io_op {
#define X(name, text) TESS_IO_##name,
    TESS_IO_OP_LIST(X)
#undef X
        TESS_IO_OP_NUMEL
} tess_io_op;

typedef struct tess_io tess_io;

/** One call that changed files or made them durable, told after it succeeded. */
typedef struct tess_io_change {
    tess_io_op op;     /* OPEN (created or there already), PWRITE, FALLOCATE, FSYNC (of a file or a
                          directory), LINK, UNLINK, RENAME, MKDIR, RMDIR */
    const char *path;  /* what it acted on; the new name of LINK and RENAME */
    const char *from;  /* the old name of LINK and RENAME, else NULL */
    const void *bytes; /* [nbytes] of PWRITE, else NULL */
    int64_t nbytes;    /* of PWRITE and FALLOCATE */
    int64_t offset_nbytes; /* of PWRITE */
} tess_io_change;

/** Called on the thread that made the call, so perhaps on several at once. */
typedef void (*tess_io_observer)(void *arg, const tess_io_change *change);

/** Table over the system calls; reads TESSERA_FAULT for `rank`. Local. @return TESS_E_CONFIG bad
 * TESSERA_FAULT */
TESS_MUST_CHECK tess_status tess_io_create(int rank, tess_io **out);
void tess_io_destroy(tess_io **io);
/** Calls made so far of one kind. Local. */
int64_t tess_io_calls(const tess_io *io, tess_io_op op);
/**
 * Tell `observer` every change from now on; NULL ends it. Set before other threads use `io`. Local.
 * Tests replay what a power cut would have left (tests/support/disk_model.h).
 */
void tess_io_observe(tess_io *io, tess_io_observer observer, void *arg);

/** Open a regular file read-only (O_CLOEXEC; symlinks only if `follow`). @return TESS_E_IO names
 * path and cause */
TESS_MUST_CHECK tess_status tess_io_open_read(tess_io *io, const char *path, bool follow, int *fd,
                                              int64_t *file_nbytes);
/** Create a new file (O_EXCL), mode 0644. */
TESS_MUST_CHECK tess_status tess_io_open_new(tess_io *io, const char *path, int *fd);
/** Close; *fd becomes -1. Errors of close are reported for files that were written. */
TESS_MUST_CHECK tess_status tess_io_close(tess_io *io, const char *path, int *fd);
/** Read exactly `nbytes` at `offset`; loops on short reads and EINTR. @return TESS_E_IO;
 * TESS_E_FORMAT end of file */
TESS_MUST_CHECK tess_status tess_io_pread(tess_io *io, const char *path, int fd, void *dst,
                                          size_t nbytes, int64_t offset_nbytes);
TESS_MUST_CHECK tess_status tess_io_pwrite(tess_io *io, const char *path, int fd, const void *src,
                                           size_t nbytes, int64_t offset_nbytes);
TESS_MUST_CHECK tess_status tess_io_fsync(tess_io *io, const char *path, int fd);
TESS_MUST_CHECK tess_status tess_io_fallocate(tess_io *io, const char *path, int fd,
                                              int64_t nbytes);
/** Forget what memory holds of a file that is durable: the next read is the disk's. File systems in
 * memory keep it. */
TESS_MUST_CHECK tess_status tess_io_drop_cache(tess_io *io, const char *path, int fd);
TESS_MUST_CHECK tess_status tess_io_link(tess_io *io, const char *from, const char *to,
                                         bool *already_there);
TESS_MUST_CHECK tess_status tess_io_unlink(tess_io *io, const char *path, bool missing_is_fine);
TESS_MUST_CHECK tess_status tess_io_rename(tess_io *io, const char *from, const char *to);
/** Create one directory; an existing directory is fine only with `exist_ok`. */
TESS_MUST_CHECK tess_status tess_io_mkdir(tess_io *io, const char *path, bool exist_ok);
/** Create a directory and its missing parents, each durable in the one above it. */
TESS_MUST_CHECK tess_status tess_io_mkdirs(tess_io *io, const char *path);
TESS_MUST_CHECK tess_status tess_io_rmdir(tess_io *io, const char *path);
/** fsync of a directory by name, and of the one that holds `path`. */
TESS_MUST_CHECK tess_status tess_io_fsync_dir(tess_io *io, const char *path);
TESS_MUST_CHECK tess_status tess_io_fsync_parent(tess_io *io, const char *path);
typedef struct tess_io_space {
    int64_t free_nbytes;
    int64_t free_inodes;
} tess_io_space;
TESS_MUST_CHECK tess_status tess_io_statvfs(tess_io *io, const char *path, tess_io_space *out);
typedef enum tess_io_kind {
    TESS_IO_MISSING,
    TESS_IO_FILE,
    TESS_IO_DIR,
    TESS_IO_OTHER
} tess_io_kind;
/** What a path is (symlinks followed). Missing is no error. */
TESS_MUST_CHECK tess_status tess_io_stat(tess_io *io, const char *path, tess_io_kind *kind,
                                         int64_t *nbytes);
/** Whether the last part of a path is a symbolic link. Missing is no error. */
TESS_MUST_CHECK tess_status tess_io_is_link(tess_io *io, const char *path, bool *is_link);
/**
 * Open a file for reading and writing, creating it when missing, and take its exclusive flock
 * without waiting; close releases it. `*is_taken`: another process holds it, and *fd is -1.
 */
TESS_MUST_CHECK tess_status tess_io_lock(tess_io *io, const char *path, int *fd, bool *is_taken);
/** Names in a directory, sorted bytewise, without . and ..; free with tess_io_list_free. */
TESS_MUST_CHECK tess_status tess_io_list(tess_io *io, const char *path, char ***names,
                                         int64_t *name_numel);
void tess_io_list_free(char ***names, int64_t name_numel);
/** Whole small file into NUL-terminated memory (free with tess_free). @return TESS_E_FORMAT larger
 * than `limit_nbytes` */
TESS_MUST_CHECK tess_status tess_io_read_all(tess_io *io, const char *path, size_t limit_nbytes,
                                             char **out, size_t *nbytes);
/** SHA-256 of the first `nbytes` of an open file. @return TESS_E_FORMAT the file is shorter */
TESS_MUST_CHECK tess_status tess_io_sha256(tess_io *io, const char *path, int fd, int64_t nbytes,
                                           tess_sha256 *out);
/** Beginning of a file of the kernel (/proc, /sys), which has no length to be read by, as text;
 * empty where there is none. Not a counted operation. Local. */
void tess_io_kernel_text(const char *path, char *text, size_t text_nbytes);
/** Write a small file under a temporary name, fsync, rename over `path`, fsync the folder. */
TESS_MUST_CHECK tess_status tess_io_write_all(tess_io *io, const char *path, const void *src,
                                              size_t nbytes);

TESS_END_DECLS
