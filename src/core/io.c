#include "core/io.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "core/memory.h"

/* What TESSERA_FAULT asks for; `op` TESS_IO_OP_NUMEL: any operation. */
typedef struct io_fault {
    bool is_armed;
    tess_io_op op;
    int64_t nth;
    enum { FAULT_ERRNO, FAULT_KILL, FAULT_SHORT } kind;
    int error_number;
} io_fault;

struct tess_io {
    atomic_int_fast64_t call_numel[TESS_IO_OP_NUMEL];
    atomic_int_fast64_t total_numel;
    io_fault fault;
    tess_io_observer observer; /* NULL: nobody looks */
    void *observer_arg;
};

static const char *const op_name[TESS_IO_OP_NUMEL] = {
#define X(name, text) [TESS_IO_##name] = text,
    TESS_IO_OP_LIST(X)
#undef X
};

static tess_status parse_op(const char *text, tess_io_op *op)
{
    if (strcmp(text, "any") == 0) {
        *op = TESS_IO_OP_NUMEL;
        return TESS_OK;
    }
    for (int i = 0; i < TESS_IO_OP_NUMEL; i++) {
        if (strcmp(op_name[i], text) == 0) {
            *op = (tess_io_op)i;
            return TESS_OK;
        }
    }
    return TESS_FAIL(TESS_E_CONFIG, "TESSERA_FAULT: unknown operation '%s'", text);
}

static tess_status parse_kind(const char *text, io_fault *fault)
{
    static const struct {
        const char *name;
        int error_number;
    } errors[] = {{"eio", EIO},     {"enospc", ENOSPC}, {"edquot", EDQUOT},
                  {"efbig", EFBIG}, {"erofs", EROFS},   {"eacces", EACCES}};
    fault->kind = FAULT_ERRNO;
    for (int i = 0; i < TESS_NELEM(errors); i++) {
        if (strcmp(errors[i].name, text) == 0) {
            fault->error_number = errors[i].error_number;
            return TESS_OK;
        }
    }
    TESS_CHECK(
        strcmp(text, "kill") == 0 || strcmp(text, "short") == 0, TESS_E_CONFIG,
        "TESSERA_FAULT: unknown kind '%s' (kill, short, eio, enospc, edquot, efbig, erofs, eacces)",
        text);
    fault->kind = text[0] == 'k' ? FAULT_KILL : FAULT_SHORT;
    return TESS_OK;
}

static tess_status parse_fault(int rank, io_fault *fault)
{
    const char *text = getenv("TESSERA_FAULT");
    if (text == NULL || *text == '\0')
        return TESS_OK;
    int fault_rank = 0;
    long long nth = 0;
    char op[16], kind[16];
    TESS_CHECK(sscanf(text, "%d:%15[a-z]:%lld:%15[a-z]", &fault_rank, op, &nth, kind) == 4 &&
                   nth >= 1,
               TESS_E_CONFIG, "TESSERA_FAULT='%s': expected rank:operation:n:kind", text);
    TESS_TRY(parse_op(op, &fault->op));
    TESS_TRY(parse_kind(kind, fault));
    fault->nth = nth;
    fault->is_armed = fault_rank == rank;
    return TESS_OK;
}

tess_status tess_io_create(int rank, tess_io **out)
{
    io_fault fault = {0};
    TESS_TRY(parse_fault(rank, &fault));
    void *object = NULL;
    TESS_TRY(tess_alloc(sizeof(tess_io), &object));
    tess_io *io = object;
    io->fault = fault;
    *out = io;
    return TESS_OK;
}

void tess_io_destroy(tess_io **io)
{
    tess_free(*io);
    *io = NULL;
}

int64_t tess_io_calls(const tess_io *io, tess_io_op op)
{
    return op == TESS_IO_OP_NUMEL ? atomic_load(&io->total_numel)
                                  : atomic_load(&io->call_numel[op]);
}

void tess_io_observe(tess_io *io, tess_io_observer observer, void *arg)
{
    io->observer = observer;
    io->observer_arg = arg;
}

static void tell(const tess_io *io, tess_io_change change)
{
    if (io->observer != NULL)
        io->observer(io->observer_arg, &change);
}

/* Count one call; true when it must fail with errno set. FAULT_SHORT is left to pread and pwrite.
 */
static bool is_failing(tess_io *io, tess_io_op op, bool *is_short)
{
    const int64_t nth = atomic_fetch_add(&io->call_numel[op], 1) + 1;
    const int64_t total = atomic_fetch_add(&io->total_numel, 1) + 1;
    const io_fault *f = &io->fault;
    if (!f->is_armed || (f->op != op && f->op != TESS_IO_OP_NUMEL))
        return false;
    if ((f->op == op ? nth : total) != f->nth)
        return false;
    if (f->kind == FAULT_KILL)
        kill(getpid(), SIGKILL);
    if (f->kind == FAULT_SHORT && is_short != NULL)
        *is_short = true;
    errno = f->error_number;
    return f->kind == FAULT_ERRNO;
}

static tess_status fail(tess_io_op op, const char *path)
{
    return TESS_FAIL(TESS_E_IO, "%s of '%s' failed: %s", op_name[op], path, strerror(errno));
}

tess_status tess_io_open_read(tess_io *io, const char *path, bool follow, int *fd,
                              int64_t *file_nbytes)
{
    struct stat info;
    const int flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | (follow ? 0 : O_NOFOLLOW);
    const int opened = is_failing(io, TESS_IO_OPEN, NULL) ? -1 : open(path, flags);
    if (opened < 0)
        return fail(TESS_IO_OPEN, path);
    if (fstat(opened, &info) != 0 || !S_ISREG(info.st_mode)) {
        close(opened);
        return TESS_FAIL(TESS_E_FORMAT, "'%s': expected a regular file", path);
    }
    *fd = opened;
    *file_nbytes = (int64_t)info.st_size;
    return TESS_OK;
}

tess_status tess_io_open_new(tess_io *io, const char *path, int *fd)
{
    const int flags = O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC;
    const int opened = is_failing(io, TESS_IO_OPEN, NULL) ? -1 : open(path, flags, 0644);
    if (opened < 0)
        return fail(TESS_IO_OPEN, path);
    tell(io, (tess_io_change){.op = TESS_IO_OPEN, .path = path});
    *fd = opened;
    return TESS_OK;
}

tess_status tess_io_close(tess_io *io, const char *path, int *fd)
{
    if (*fd < 0)
        return TESS_OK;
    const bool is_faulty = is_failing(io, TESS_IO_CLOSE, NULL);
    const int fault_errno = errno;
    const int result = close(*fd);
    *fd = -1;
    if (is_faulty)
        errno = fault_errno;
    return is_faulty || result != 0 ? fail(TESS_IO_CLOSE, path) : TESS_OK;
}

tess_status tess_io_pread(tess_io *io, const char *path, int fd, void *dst, size_t nbytes,
                          int64_t offset_nbytes)
{
    size_t done = 0;
    while (done < nbytes) {
        bool is_short = false;
        size_t want = nbytes - done;
        if (is_failing(io, TESS_IO_PREAD, &is_short))
            return fail(TESS_IO_PREAD, path);
        if (is_short)
            want = (want + 1) / 2;
        const ssize_t n =
            pread(fd, (char *)dst + done, want, (off_t)(offset_nbytes + (int64_t)done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return fail(TESS_IO_PREAD, path);
        TESS_CHECK(n > 0, TESS_E_FORMAT, "'%s': file ends at byte %lld, expected %zu bytes at %lld",
                   path, (long long)(offset_nbytes + (int64_t)done), nbytes,
                   (long long)offset_nbytes);
        done += (size_t)n;
    }
    return TESS_OK;
}

tess_status tess_io_pwrite(tess_io *io, const char *path, int fd, const void *src, size_t nbytes,
                           int64_t offset_nbytes)
{
    size_t done = 0;
    while (done < nbytes) {
        bool is_short = false;
        size_t want = nbytes - done;
        if (is_failing(io, TESS_IO_PWRITE, &is_short))
            return fail(TESS_IO_PWRITE, path);
        if (is_short)
            want = (want + 1) / 2;
        const ssize_t n =
            pwrite(fd, (const char *)src + done, want, (off_t)(offset_nbytes + (int64_t)done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return fail(TESS_IO_PWRITE, path);
        tell(io, (tess_io_change){.op = TESS_IO_PWRITE,
                                  .path = path,
                                  .bytes = (const char *)src + done,
                                  .nbytes = n,
                                  .offset_nbytes = offset_nbytes + (int64_t)done});
        done += (size_t)n;
    }
    return TESS_OK;
}

tess_status tess_io_fsync(tess_io *io, const char *path, int fd)
{
    if (is_failing(io, TESS_IO_FSYNC, NULL) || fsync(fd) != 0)
        return fail(TESS_IO_FSYNC, path);
    tell(io, (tess_io_change){.op = TESS_IO_FSYNC, .path = path});
    return TESS_OK;
}

tess_status tess_io_fallocate(tess_io *io, const char *path, int fd, int64_t nbytes)
{
    if (is_failing(io, TESS_IO_FALLOCATE, NULL))
        return fail(TESS_IO_FALLOCATE, path);
    const int error = nbytes > 0 ? posix_fallocate(fd, 0, (off_t)nbytes) : 0;
    if (error != 0) {
        errno = error;
        return TESS_FAIL(TESS_E_IO, "cannot reserve %lld bytes for '%s': %s", (long long)nbytes,
                         path, strerror(error));
    }
    tell(io, (tess_io_change){.op = TESS_IO_FALLOCATE, .path = path, .nbytes = nbytes});
    return TESS_OK;
}

tess_status tess_io_drop_cache(tess_io *io, const char *path, int fd)
{
    if (is_failing(io, TESS_IO_FADVISE, NULL))
        return fail(TESS_IO_FADVISE, path);
    const int error = posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    if (error != 0) {
        errno = error;
        return fail(TESS_IO_FADVISE, path);
    }
    return TESS_OK;
}

tess_status tess_io_link(tess_io *io, const char *from, const char *to, bool *already_there)
{
    *already_there = false;
    if (!is_failing(io, TESS_IO_LINK, NULL) && link(from, to) == 0) {
        tell(io, (tess_io_change){.op = TESS_IO_LINK, .path = to, .from = from});
        return TESS_OK;
    }
    if (errno == EEXIST) {
        *already_there = true;
        return TESS_OK;
    }
    return fail(TESS_IO_LINK, to);
}

tess_status tess_io_unlink(tess_io *io, const char *path, bool missing_is_fine)
{
    if (!is_failing(io, TESS_IO_UNLINK, NULL) && unlink(path) == 0) {
        tell(io, (tess_io_change){.op = TESS_IO_UNLINK, .path = path});
        return TESS_OK;
    }
    return errno == ENOENT && missing_is_fine ? TESS_OK : fail(TESS_IO_UNLINK, path);
}

tess_status tess_io_rename(tess_io *io, const char *from, const char *to)
{
    if (is_failing(io, TESS_IO_RENAME, NULL) || rename(from, to) != 0)
        return fail(TESS_IO_RENAME, to);
    tell(io, (tess_io_change){.op = TESS_IO_RENAME, .path = to, .from = from});
    return TESS_OK;
}

static tess_status make_dir(tess_io *io, const char *path, bool exist_ok, bool *is_new)
{
    *is_new = !is_failing(io, TESS_IO_MKDIR, NULL) && mkdir(path, 0755) == 0;
    if (*is_new) {
        tell(io, (tess_io_change){.op = TESS_IO_MKDIR, .path = path});
        return TESS_OK;
    }
    const int error = errno;
    struct stat info;
    if (error == EEXIST && exist_ok && stat(path, &info) == 0 && S_ISDIR(info.st_mode))
        return TESS_OK;
    errno = error;
    return fail(TESS_IO_MKDIR, path);
}

tess_status tess_io_mkdir(tess_io *io, const char *path, bool exist_ok)
{
    bool is_new = false;
    return make_dir(io, path, exist_ok, &is_new);
}

static void parent_of(const char *path, char folder[PATH_MAX])
{
    snprintf(folder, PATH_MAX, "%s", path);
    size_t nbytes = strlen(folder);
    while (nbytes > 1 && folder[nbytes - 1] == '/')
        folder[--nbytes] = '\0';
    char *slash = strrchr(folder, '/');
    if (slash == NULL)
        snprintf(folder, PATH_MAX, ".");
    else
        slash[slash == folder] = '\0';
}

tess_status tess_io_fsync_parent(tess_io *io, const char *path)
{
    char folder[PATH_MAX];
    TESS_CHECK(strlen(path) < sizeof folder, TESS_E_ARG, "path of %zu bytes is too long",
               strlen(path));
    parent_of(path, folder);
    return tess_io_fsync_dir(io, folder);
}

/* A folder whose name is lost takes with it all that was made durable inside. */
static tess_status make_durable_dir(tess_io *io, const char *path)
{
    bool is_new = false;
    TESS_TRY(make_dir(io, path, true, &is_new));
    return is_new ? tess_io_fsync_parent(io, path) : TESS_OK;
}

tess_status tess_io_mkdirs(tess_io *io, const char *path)
{
    char part[PATH_MAX];
    TESS_CHECK(strlen(path) < sizeof part, TESS_E_ARG, "path of %zu bytes is too long",
               strlen(path));
    snprintf(part, sizeof part, "%s", path);
    for (char *p = part + 1; *p; p++) {
        if (*p != '/')
            continue;
        *p = '\0';
        TESS_TRY(make_durable_dir(io, part));
        *p = '/';
    }
    return make_durable_dir(io, part);
}

tess_status tess_io_rmdir(tess_io *io, const char *path)
{
    if (is_failing(io, TESS_IO_RMDIR, NULL) || rmdir(path) != 0)
        return fail(TESS_IO_RMDIR, path);
    tell(io, (tess_io_change){.op = TESS_IO_RMDIR, .path = path});
    return TESS_OK;
}

tess_status tess_io_fsync_dir(tess_io *io, const char *path)
{
    int fd =
        is_failing(io, TESS_IO_OPEN, NULL) ? -1 : open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return fail(TESS_IO_OPEN, path);
    const tess_status st = tess_io_fsync(io, path, fd);
    close(fd);
    return st;
}

tess_status tess_io_statvfs(tess_io *io, const char *path, tess_io_space *out)
{
    struct statvfs info;
    if (is_failing(io, TESS_IO_STATVFS, NULL) || statvfs(path, &info) != 0)
        return fail(TESS_IO_STATVFS, path);
    out->free_nbytes = (int64_t)info.f_bavail * (int64_t)info.f_frsize;
    out->free_inodes = (int64_t)info.f_favail;
    return TESS_OK;
}

tess_status tess_io_stat(tess_io *io, const char *path, tess_io_kind *kind, int64_t *nbytes)
{
    struct stat info;
    if (is_failing(io, TESS_IO_STAT, NULL) || stat(path, &info) != 0) {
        if (errno != ENOENT && errno != ENOTDIR)
            return fail(TESS_IO_STAT, path);
        *kind = TESS_IO_MISSING;
        *nbytes = 0;
        return TESS_OK;
    }
    *kind = S_ISREG(info.st_mode)   ? TESS_IO_FILE
            : S_ISDIR(info.st_mode) ? TESS_IO_DIR
                                    : TESS_IO_OTHER;
    *nbytes = (int64_t)info.st_size;
    return TESS_OK;
}

tess_status tess_io_is_link(tess_io *io, const char *path, bool *is_link)
{
    struct stat info;
    if (is_failing(io, TESS_IO_STAT, NULL) || lstat(path, &info) != 0) {
        if (errno != ENOENT && errno != ENOTDIR)
            return fail(TESS_IO_STAT, path);
        *is_link = false;
        return TESS_OK;
    }
    *is_link = S_ISLNK(info.st_mode);
    return TESS_OK;
}

tess_status tess_io_lock(tess_io *io, const char *path, int *fd, bool *is_taken)
{
    const int flags = O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW;
    const int opened = is_failing(io, TESS_IO_OPEN, NULL) ? -1 : open(path, flags, 0644);
    if (opened < 0)
        return fail(TESS_IO_OPEN, path);
    if (flock(opened, LOCK_EX | LOCK_NB) == 0) {
        tell(io, (tess_io_change){.op = TESS_IO_OPEN, .path = path});
        *fd = opened;
        *is_taken = false;
        return TESS_OK;
    }
    const int error = errno;
    close(opened);
    TESS_CHECK(error == EWOULDBLOCK, TESS_E_IO, "cannot lock '%s': %s", path, strerror(error));
    *fd = -1;
    *is_taken = true;
    return TESS_OK;
}

static int by_bytes(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

void tess_io_list_free(char ***names, int64_t name_numel)
{
    for (int64_t i = 0; *names != NULL && i < name_numel; i++)
        tess_free((*names)[i]);
    tess_free(*names);
    *names = NULL;
}

static tess_status read_names(DIR *dir, char ***names, int64_t *name_numel)
{
    int64_t room = 0;
    for (const struct dirent *e = readdir(dir); e != NULL; e = readdir(dir)) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        if (*name_numel == room) {
            void *grown = *names;
            TESS_TRY(tess_realloc_array(room, room * 2 + 16, sizeof(char *), &grown));
            *names = grown;
            room = room * 2 + 16;
        }
        TESS_TRY(tess_strdup(e->d_name, &(*names)[*name_numel]));
        (*name_numel)++;
    }
    if (*name_numel > 1)
        qsort(*names, (size_t)*name_numel, sizeof(char *), by_bytes);
    return TESS_OK;
}

tess_status tess_io_list(tess_io *io, const char *path, char ***names, int64_t *name_numel)
{
    DIR *dir = is_failing(io, TESS_IO_OPENDIR, NULL) ? NULL : opendir(path);
    if (dir == NULL)
        return fail(TESS_IO_OPENDIR, path);
    char **found = NULL;
    int64_t found_numel = 0;
    const tess_status st = read_names(dir, &found, &found_numel);
    closedir(dir);
    if (st != TESS_OK) {
        tess_io_list_free(&found, found_numel);
        return st;
    }
    *names = found;
    *name_numel = found_numel;
    return TESS_OK;
}

tess_status tess_io_read_all(tess_io *io, const char *path, size_t limit_nbytes, char **out,
                             size_t *nbytes)
{
    int fd = -1;
    int64_t file_nbytes = 0;
    void *text = NULL;
    tess_status st = TESS_OK;
    TESS_TRY(tess_io_open_read(io, path, true, &fd, &file_nbytes));
    if ((uint64_t)file_nbytes > limit_nbytes)
        st = TESS_FAIL(TESS_E_FORMAT, "'%s': %lld bytes, at most %zu are accepted", path,
                       (long long)file_nbytes, limit_nbytes);
    if (st == TESS_OK)
        st = tess_alloc((size_t)file_nbytes + 1, &text);
    if (st == TESS_OK)
        st = tess_io_pread(io, path, fd, text, (size_t)file_nbytes, 0);
    close(fd);
    if (st != TESS_OK) {
        tess_free(text);
        return st;
    }
    *out = text;
    *nbytes = (size_t)file_nbytes;
    return TESS_OK;
}

tess_status tess_io_sha256(tess_io *io, const char *path, int fd, int64_t nbytes, tess_sha256 *out)
{
    enum { CHUNK_NBYTES = 1 << 20 };
    tess_sha256_state *state = NULL;
    void *chunk = NULL;
    TESS_TRY(tess_sha256_create(&state));
    tess_status st = tess_alloc(CHUNK_NBYTES, &chunk);
    for (int64_t at = 0; st == TESS_OK && at < nbytes; at += CHUNK_NBYTES) {
        const size_t part_nbytes = (size_t)TESS_MIN(nbytes - at, CHUNK_NBYTES);
        st = tess_io_pread(io, path, fd, chunk, part_nbytes, at);
        if (st == TESS_OK)
            st = tess_sha256_update(state, chunk, part_nbytes);
    }
    if (st == TESS_OK)
        st = tess_sha256_final(state, out);
    tess_free(chunk);
    tess_sha256_destroy(&state);
    return st;
}

void tess_io_kernel_text(const char *path, char *text, size_t text_nbytes)
{
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    size_t used = 0;
    while (fd >= 0 && used < text_nbytes - 1) {
        const ssize_t n = read(fd, text + used, text_nbytes - 1 - used);
        if (n <= 0)
            break;
        used += (size_t)n;
    }
    text[used] = '\0';
    if (fd >= 0)
        close(fd);
}

static tess_status write_durable(tess_io *io, const char *path, const void *src, size_t nbytes)
{
    int fd = -1;
    TESS_TRY(tess_io_unlink(io, path, true));
    TESS_TRY(tess_io_open_new(io, path, &fd));
    tess_status st = tess_io_pwrite(io, path, fd, src, nbytes, 0);
    if (st == TESS_OK)
        st = tess_io_fsync(io, path, fd);
    if (st != TESS_OK) {
        close(fd);
        return st;
    }
    return tess_io_close(io, path, &fd);
}

tess_status tess_io_write_all(tess_io *io, const char *path, const void *src, size_t nbytes)
{
    char temporary[PATH_MAX];
    TESS_CHECK(strlen(path) + 5 < sizeof temporary, TESS_E_ARG, "path of %zu bytes is too long",
               strlen(path));
    snprintf(temporary, sizeof temporary, "%s.tmp", path);
    tess_status st = write_durable(io, temporary, src, nbytes);
    if (st == TESS_OK)
        st = tess_io_rename(io, temporary, path);
    if (st != TESS_OK) {
        if (unlink(temporary) == 0)
            tell(io, (tess_io_change){.op = TESS_IO_UNLINK, .path = temporary});
        return st;
    }
    return tess_io_fsync_parent(io, path);
}
