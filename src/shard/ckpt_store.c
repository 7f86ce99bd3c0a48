/* The run directory: LOCK, the writer thread, and what it does between saves. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "shard/ckpt_priv.h"

/* ---- LOCK ---- */

static int64_t parse_epoch(const char *text)
{
    const char *at = strstr(text, "\"epoch\":");
    const long long epoch = at != NULL ? strtoll(at + 8, NULL, 10) : -1;
    return epoch >= 0 ? epoch : -1;
}

static tess_status read_lock(tess_ckpt_store *s, const char *path, char text[CKPT_LOCK_NBYTES + 1])
{
    int fd = -1;
    int64_t file_nbytes = 0;
    TESS_TRY(tess_io_open_read(s->ctx->io, path, false, &fd, &file_nbytes));
    const size_t nbytes = (size_t)TESS_MIN(file_nbytes, (int64_t)CKPT_LOCK_NBYTES);
    const tess_status st = tess_io_pread(s->ctx->io, path, fd, text, nbytes, 0);
    text[st == TESS_OK ? nbytes : 0] = '\0';
    (void)close(fd);
    return st;
}

int64_t ckpt_lock_epoch(tess_ckpt_store *s)
{
    char path[PATH_MAX], text[CKPT_LOCK_NBYTES + 1];
    if (ckpt_join(path, s->dir, "LOCK") != TESS_OK || read_lock(s, path, text) != TESS_OK) {
        tess_error_clear();
        return -1;
    }
    return parse_epoch(text);
}

bool ckpt_lock_is_held(const tess_ckpt_store *s)
{
    char path[PATH_MAX];
    struct stat held, found;
    if (ckpt_join(path, s->dir, "LOCK") != TESS_OK) {
        tess_error_clear();
        return false;
    }
    return fstat(s->lock_fd, &held) == 0 && lstat(path, &found) == 0 &&
           held.st_dev == found.st_dev && held.st_ino == found.st_ino;
}

static tess_status write_lock(tess_ckpt_store *s, const char *path)
{
    char host[256] = "?", buffer[CKPT_LOCK_NBYTES + 1];
    const char *job = getenv("SLURM_JOB_ID");
    (void)gethostname(host, sizeof host - 1);
    ckpt_text t = {buffer, CKPT_LOCK_NBYTES, 0};
    ckpt_text_put(&t, "{\"counter\":0,\"epoch\":%" PRId64 ",\"host\":", s->epoch);
    ckpt_text_quote(&t, ckpt_is_text(host) ? host : "?");
    ckpt_text_put(&t, ",\"job\":");
    ckpt_text_quote(&t, job != NULL && ckpt_is_component(job) && strlen(job) < 64 ? job : "");
    ckpt_text_put(&t, ",\"pid\":%ld}", (long)getpid());
    for (size_t i = TESS_MIN(t.nbytes, (size_t)CKPT_LOCK_NBYTES - 1); i < CKPT_LOCK_NBYTES; i++)
        buffer[i] = i + 1 < CKPT_LOCK_NBYTES ? ' ' : '\n';
    TESS_TRY(tess_io_pwrite(s->ctx->io, path, s->lock_fd, buffer, CKPT_LOCK_NBYTES, 0));
    TESS_TRY(tess_io_fsync(s->ctx->io, path, s->lock_fd));
    return tess_io_fsync_dir(s->ctx->io, s->dir);
}

static tess_status fail_taken(tess_ckpt_store *s, const char *path)
{
    char text[CKPT_LOCK_NBYTES + 1] = "";
    if (read_lock(s, path, text) != TESS_OK)
        tess_error_clear();
    size_t nbytes = strlen(text);
    while (nbytes > 0 && (text[nbytes - 1] == ' ' || text[nbytes - 1] == '\n'))
        text[--nbytes] = '\0';
    return TESS_FAIL(TESS_E_IO,
                     "'%s' is used by another run, which holds '%s': %s; wait for it, or choose "
                     "another output.dir",
                     s->dir, path, text[0] != '\0' ? text : "(holder unknown)");
}

/* Rank 0: take the lock, clear what was never committed, raise the epoch. */
static tess_status take_directory(tess_ckpt_store *s)
{
    char path[PATH_MAX];
    bool is_taken = false;
    TESS_TRY(tess_io_mkdirs(s->ctx->io, s->dir));
    TESS_TRY(ckpt_join(path, s->dir, "LOCK"));
    TESS_TRY(tess_io_lock(s->ctx->io, path, &s->lock_fd, &is_taken));
    if (is_taken)
        return fail_taken(s, path);
    TESS_TRY(ckpt_list_scan(s->ctx->io, s->dir, true, &s->list));
    int64_t last_epoch = TESS_MAX(ckpt_lock_epoch(s), (int64_t)0);
    for (int64_t i = 0; i < s->list.numel; i++)
        last_epoch = TESS_MAX(last_epoch, s->list.entries[i].epoch);
    s->epoch = last_epoch + 1;
    return write_lock(s, path);
}

static tess_status open_rank0(tess_ckpt_store *s)
{
    uint8_t random[8];
    TESS_CHECK(getrandom(random, sizeof random, 0) == (ssize_t)sizeof random, TESS_E_IO,
               "the system gives no random bytes");
    tess_hex(random, sizeof random, s->run_id);
    if (!s->is_reader)
        return take_directory(s);
    tess_io_kind kind = TESS_IO_MISSING;
    int64_t nbytes = 0;
    TESS_TRY(tess_io_stat(s->ctx->io, s->dir, &kind, &nbytes));
    return kind == TESS_IO_DIR ? ckpt_list_scan(s->ctx->io, s->dir, false, &s->list) : TESS_OK;
}

/* ---- open, close ---- */

static void copy_text(char *dst, size_t room_nbytes, const char *src)
{
    snprintf(dst, room_nbytes, "%s", src != NULL ? src : "");
}

static tess_status check_config(const tess_ckpt_config *c)
{
    TESS_CHECK(
        c->keep_numel >= 2, TESS_E_CONFIG,
        "output.keep is %d, expected at least 2: with one checkpoint a damaged one loses all",
        c->keep_numel);
    TESS_CHECK(c->dir != NULL && c->dir[0] != '\0' && strlen(c->dir) < PATH_MAX - 300,
               TESS_E_CONFIG, "output.dir is empty or too long");
    return TESS_OK;
}

/* A file above RLIMIT_FSIZE must be an error of write, not the end of the process. */
static void ignore_size_signal(void)
{
    struct sigaction action;
    if (sigaction(SIGXFSZ, NULL, &action) != 0 || action.sa_handler != SIG_DFL)
        return;
    action.sa_handler = SIG_IGN;
    (void)sigaction(SIGXFSZ, &action, NULL);
}

tess_status tess_ckpt_store_open(const tess_ckpt_config *config, tess_ckpt_store **out)
{
    TESS_TRY(check_config(config));
    ignore_size_signal();
    void *object = NULL;
    tess_status st = tess_alloc(sizeof(tess_ckpt_store), &object);
    tess_ckpt_store *s = object;
    if (st == TESS_OK) {
        s->lock_fd = -1;
        s->comm = config->comm;
        s->ctx = config->ctx;
        s->keep_numel = config->keep_numel;
        s->keep_every = config->keep_every;
        s->last_step = config->last_step;
        s->has_read_back = config->has_read_back;
        s->is_reader = config->is_reader;
        s->gather_group = config->gather_group;
        copy_text(s->dir, sizeof s->dir, config->dir);
        copy_text(s->plan_digest, sizeof s->plan_digest, config->plan_digest);
        copy_text(s->config_digest, sizeof s->config_digest, config->config_digest);
        copy_text(s->binary_id, sizeof s->binary_id, config->binary_id);
        st = ckpt_window_open(config->device, config->after, &s->window);
        if (st == TESS_OK && tess_comm_rank(s->comm) == 0)
            st = open_rank0(s);
    }
    st = tess_agree(config->comm, st);
    struct {
        int64_t epoch;
        char run_id[24];
    } shared = {0};
    if (st == TESS_OK) {
        shared.epoch = s->epoch;
        memcpy(shared.run_id, s->run_id, sizeof s->run_id);
        st = tess_comm_bcast(s->comm, 0, &shared, sizeof shared);
    }
    if (st != TESS_OK) {
        tess_ckpt_store_close(&s);
        return st;
    }
    s->epoch = shared.epoch;
    memcpy(s->run_id, shared.run_id, sizeof s->run_id);
    *out = s;
    return TESS_OK;
}

void tess_ckpt_store_close(tess_ckpt_store **store)
{
    tess_ckpt_store *s = *store;
    if (s == NULL)
        return;
    ckpt_thread_stop(s);
    ckpt_window_close(&s->window);
    ckpt_index_destroy(&s->index);
    tess_arena_destroy(&s->staging);
    tess_free(s->snapshot);
    tess_free(s->hashes);
    tess_free(s->sums);
    tess_free(s->files);
    tess_free(s->text);
    tess_free(s->state_room);
    tess_free(s->state);
    ckpt_list_fini(&s->list);
    if (s->lock_fd >= 0)
        (void)close(s->lock_fd);
    tess_free(s);
    *store = NULL;
}

int64_t tess_ckpt_epoch(const tess_ckpt_store *store) { return store->epoch; }
const char *tess_ckpt_run_id(const tess_ckpt_store *store) { return store->run_id; }

/* ---- the writer thread ---- */

tess_status ckpt_store_write(tess_ckpt_store *s, ckpt_shard_job *job)
{
    TESS_CHECK(!s->is_h5_broken, TESS_E_IO,
               "HDF5 failed before in this process, nothing is written through it any more; "
               "restart the run");
    const tess_status st = ckpt_shard_write(job);
    s->is_h5_broken = job->is_h5_failed;
    return st;
}

static void run_job(tess_ckpt_store *s, ckpt_job_kind kind)
{
    tess_error_clear();
    tess_status st = TESS_OK;
    if (kind == CKPT_JOB_WRITE)
        st = ckpt_store_write(s, &s->job);
    else if (kind == CKPT_JOB_TIDY)
        ckpt_tidy(s);
    if (kind != CKPT_JOB_WRITE)
        return;
    s->job_status = st;
    copy_text(s->job_message, sizeof s->job_message, st == TESS_OK ? "" : tess_error_message());
}

static void *thread_main(void *arg)
{
    tess_ckpt_store *s = arg;
    (void)pthread_mutex_lock(&s->mutex);
    for (;;) {
        while (s->todo == CKPT_JOB_NONE && !s->is_stopping)
            (void)pthread_cond_wait(&s->changed, &s->mutex);
        if (s->todo == CKPT_JOB_NONE)
            break;
        const ckpt_job_kind kind = s->todo;
        (void)pthread_mutex_unlock(&s->mutex);
        run_job(s, kind);
        (void)pthread_mutex_lock(&s->mutex);
        s->todo = CKPT_JOB_NONE;
        (void)pthread_cond_broadcast(&s->changed);
    }
    (void)pthread_mutex_unlock(&s->mutex);
    return NULL;
}

tess_status ckpt_thread_start(tess_ckpt_store *s)
{
    (void)pthread_mutex_init(&s->mutex, NULL);
    (void)pthread_cond_init(&s->changed, NULL);
    const int error = pthread_create(&s->thread, NULL, thread_main, s);
    TESS_CHECK(error == 0, TESS_E_MEMORY, "cannot start the checkpoint writer thread: %s",
               strerror(error));
    s->has_thread = true;
    return TESS_OK;
}

void ckpt_thread_wait(tess_ckpt_store *s)
{
    if (!s->has_thread)
        return;
    (void)pthread_mutex_lock(&s->mutex);
    while (s->todo != CKPT_JOB_NONE)
        (void)pthread_cond_wait(&s->changed, &s->mutex);
    (void)pthread_mutex_unlock(&s->mutex);
}

void ckpt_thread_post(tess_ckpt_store *s, ckpt_job_kind kind)
{
    if (kind == CKPT_JOB_WRITE && s->is_single_threaded) {
        ckpt_thread_wait(s);
        run_job(s, kind);
        return;
    }
    (void)pthread_mutex_lock(&s->mutex);
    while (s->todo != CKPT_JOB_NONE)
        (void)pthread_cond_wait(&s->changed, &s->mutex);
    s->todo = kind;
    (void)pthread_cond_broadcast(&s->changed);
    (void)pthread_mutex_unlock(&s->mutex);
}

void ckpt_thread_stop(tess_ckpt_store *s)
{
    if (!s->has_thread)
        return;
    ckpt_thread_wait(s);
    if (s->is_in_flight && s->lock_fd >= 0) {
        copy_text(s->drop_dir, sizeof s->drop_dir, s->attempt_dir);
        ckpt_thread_post(s, CKPT_JOB_TIDY);
    }
    (void)pthread_mutex_lock(&s->mutex);
    s->is_stopping = true;
    (void)pthread_cond_broadcast(&s->changed);
    (void)pthread_mutex_unlock(&s->mutex);
    (void)pthread_join(s->thread, NULL);
    (void)pthread_cond_destroy(&s->changed);
    (void)pthread_mutex_destroy(&s->mutex);
    s->has_thread = false;
}

/* ---- between saves, on the writer thread of rank 0 ---- */

static void warn_and_forget(tess_ckpt_store *s, const char *what)
{
    tess_log_write(&s->ctx->log, TESS_LOG_WARN, "checkpoint: %s: %s", what, tess_error_message());
    tess_error_clear();
}

/* Published, but its last fsync failed: durable now, or still unknown. */
static tess_status recheck(tess_ckpt_store *s, ckpt_entry *e)
{
    char path[PATH_MAX];
    ckpt_manifest m;
    TESS_TRY(ckpt_join(path, s->dir, e->name));
    TESS_TRY(ckpt_manifest_read(s->ctx->io, path, &m));
    ckpt_manifest_fini(&m);
    TESS_TRY(tess_io_fsync_dir(s->ctx->io, path));
    TESS_TRY(tess_io_fsync_dir(s->ctx->io, s->dir));
    e->is_unsure = false;
    e->is_counted = true;
    return TESS_OK;
}

/* Before the checkpoint that the run continued from goes, a newer one must have been read in full.
 */
static tess_status prove_newest(tess_ckpt_store *s)
{
    char path[PATH_MAX];
    const ckpt_entry *newest = &s->list.entries[s->list.numel - 1];
    TESS_TRY(ckpt_join(path, s->dir, newest->name));
    return ckpt_verify_dir(s->ctx->io, path);
}

static tess_status remove_entry(tess_ckpt_store *s, int64_t idx)
{
    char path[PATH_MAX];
    if (s->list.entries[idx].is_resumed)
        TESS_TRY(prove_newest(s));
    TESS_TRY(ckpt_join(path, s->dir, s->list.entries[idx].name));
    TESS_TRY(ckpt_remove_dir(s->ctx->io, path));
    memmove(&s->list.entries[idx], &s->list.entries[idx + 1],
            (size_t)(s->list.numel - idx - 1) * sizeof(ckpt_entry));
    s->list.numel--;
    return TESS_OK;
}

/* Whether a step's checkpoint stays whatever its age, of an abandoned line of descent too. */
static bool is_milestone(const tess_ckpt_store *s, const ckpt_entry *e)
{
    return s->keep_every > 0 && e->step % s->keep_every == 0;
}

/* Older than the newest `keep` that this process wrote or read, and no milestone: they go, the
 * oldest first. Ones that do not verify are left for people to look at. */
static tess_status prune(tess_ckpt_store *s)
{
    int64_t counted_numel = 0, first_kept = s->list.numel;
    while (first_kept > 0 && counted_numel < s->keep_numel)
        counted_numel += s->list.entries[--first_kept].is_counted;
    if (counted_numel < s->keep_numel)
        return TESS_OK;
    for (int64_t i = 0; i < first_kept;) {
        const ckpt_entry *e = &s->list.entries[i];
        if (!e->is_valid || e->is_unsure || is_milestone(s, e)) {
            i++;
            continue;
        }
        TESS_TRY(remove_entry(s, i));
        first_kept--;
    }
    return TESS_OK;
}

static tess_status write_hint(tess_ckpt_store *s)
{
    char path[PATH_MAX], text[CKPT_DIR_NAME_NBYTES + 1];
    const char *name = s->list.entries[s->list.numel - 1].name;
    const int nbytes = snprintf(text, sizeof text, "%s\n", name);
    TESS_TRY(ckpt_join(path, s->dir, "LATEST"));
    return tess_io_write_all(s->ctx->io, path, text, (size_t)nbytes);
}

void ckpt_tidy(tess_ckpt_store *s)
{
    tess_io_kind kind = TESS_IO_MISSING;
    int64_t nbytes = 0;
    if (s->drop_dir[0] != '\0' && tess_io_stat(s->ctx->io, s->drop_dir, &kind, &nbytes) != TESS_OK)
        warn_and_forget(s, "a dropped attempt stays until the next start");
    if (kind == TESS_IO_DIR && ckpt_remove_dir(s->ctx->io, s->drop_dir) != TESS_OK)
        warn_and_forget(s, "a dropped attempt stays until the next start");
    s->drop_dir[0] = '\0';
    for (int64_t i = 0; i < s->list.numel; i++) {
        ckpt_entry *e = &s->list.entries[i];
        if (e->is_unsure && !e->is_new_unsure && recheck(s, e) != TESS_OK)
            warn_and_forget(s, "still unsure");
        e->is_new_unsure = false;
    }
    if (s->list.numel == 0)
        return;
    if (write_hint(s) != TESS_OK)
        warn_and_forget(s, "LATEST not written");
    if (prune(s) != TESS_OK)
        warn_and_forget(s, "old checkpoints stay");
}
