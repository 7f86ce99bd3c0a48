/* The second phase of a save: digests to rank 0, manifest, outcome to everybody. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "shard/ckpt_priv.h"

tess_status ckpt_hash_reduce(tess_comm *comm, bool is_counted, tess_logical_hash *hashes,
                             int64_t numel, int64_t *sums)
{
    enum { BATCH_NUMEL = 4096 };
    /* Halves of 32 bits: their sums over ranks stay far from the sign bit. */
    for (int64_t i = 0; i < numel; i++)
        for (int k = 0; k < 4; k++)
            sums[4 * i + k] =
                is_counted ? (int64_t)(hashes[i].lane[k / 2] >> 32 * (k % 2) & UINT32_MAX) : 0;
    for (int64_t at = 0; at < 4 * numel; at += BATCH_NUMEL)
        TESS_TRY(tess_comm_control(comm, sums + at,
                                   (int)TESS_MIN(4 * numel - at, (int64_t)BATCH_NUMEL), NULL, 0));
    for (int64_t i = 0; i < numel; i++)
        for (int k = 0; k < 2; k++)
            hashes[i].lane[k] =
                (uint64_t)sums[4 * i + 2 * k] + ((uint64_t)sums[4 * i + 2 * k + 1] << 32);
    return TESS_OK;
}

size_t ckpt_manifest_room(const tess_ckpt_store *s, const ckpt_index *index,
                          const tess_ckpt_base *base, size_t state_room_nbytes)
{
    enum { DIGITS_NBYTES = 20, NUMBERS_PER_FILE = 3, FIXED_NBYTES = 4096 };
    const ckpt_manifest_spec spec = {.kind = "step",
                                     .attempt = "00000000",
                                     .run_id = s->run_id,
                                     .plan_digest = s->plan_digest,
                                     .config_digest = s->config_digest,
                                     .binary_id = s->binary_id,
                                     .index = index,
                                     .base = base,
                                     .has_parent = true};
    ckpt_text measure = {0};
    ckpt_manifest_format(&spec, &measure);
    /* Numbers not known yet were measured as one digit. State texts hold few escapes; one that
     * exceeds this is refused at commit with its size. */
    return measure.nbytes + (size_t)index->set->shard_world * NUMBERS_PER_FILE * DIGITS_NBYTES +
           FIXED_NBYTES + 2 * state_room_nbytes;
}

/* ---- rank 0: files ---- */

static tess_status read_back(tess_ckpt_store *s, const char *path, int fd, const ckpt_text *text)
{
    char part[1 << 14]; /* no memory is taken in a step */
    TESS_TRY(tess_io_drop_cache(s->ctx->io, path, fd));
    for (size_t at = 0; at < text->nbytes; at += sizeof part) {
        const size_t nbytes = TESS_MIN(text->nbytes - at, sizeof part);
        TESS_TRY(tess_io_pread(s->ctx->io, path, fd, part, nbytes, (int64_t)at));
        TESS_CHECK(memcmp(part, text->text + at, nbytes) == 0, TESS_E_IO,
                   "written, and read back otherwise: '%s', from byte %zu on; look at this disk",
                   path, at);
    }
    return TESS_OK;
}

static tess_status write_temporary(tess_ckpt_store *s, const char *path, const ckpt_text *text)
{
    int fd = -1;
    TESS_TRY(tess_io_open_new(s->ctx->io, path, &fd));
    tess_status st = tess_io_pwrite(s->ctx->io, path, fd, text->text, text->nbytes, 0);
    if (st == TESS_OK)
        st = tess_io_fsync(s->ctx->io, path, fd);
    if (st == TESS_OK && s->has_read_back)
        st = read_back(s, path, fd, text);
    const tess_status closed = tess_io_close(s->ctx->io, path, &fd);
    return st != TESS_OK ? st : closed;
}

/* Publish under a name that must not exist. Where there are no hard links, rename. */
static tess_status link_manifest(tess_ckpt_store *s, const char *from, const char *to)
{
    bool is_there = false;
    tess_io_kind kind = TESS_IO_MISSING;
    int64_t nbytes = 0;
    const tess_status st = tess_io_link(s->ctx->io, from, to, &is_there);
    const int error = errno;
    TESS_CHECK(!is_there, TESS_E_IO, "'%s' is there already", to);
    if (st == TESS_OK || (error != EPERM && error != EOPNOTSUPP && error != ENOSYS))
        return st;
    tess_error_clear();
    TESS_TRY(tess_io_stat(s->ctx->io, to, &kind, &nbytes));
    TESS_CHECK(kind == TESS_IO_MISSING, TESS_E_IO, "'%s' is there already", to);
    return tess_io_rename(s->ctx->io, from, to);
}

static tess_status make_durable(tess_ckpt_store *s, const char *dir, const char *temporary)
{
    TESS_TRY(tess_io_unlink(s->ctx->io, temporary, true));
    TESS_TRY(tess_io_fsync_dir(s->ctx->io, dir));
    return tess_io_fsync_dir(s->ctx->io, s->dir);
}

static void mark_unsure(ckpt_attempt *a)
{
    a->outcome = TESS_CKPT_UNSURE;
    snprintf(a->message, sizeof a->message, "published, but not known to be durable: %.900s",
             tess_error_message());
    tess_error_clear();
}

static tess_status write_manifest(tess_ckpt_store *s, ckpt_attempt *a)
{
    char temporary[PATH_MAX], path[PATH_MAX];
    TESS_TRY(ckpt_join(temporary, a->dir, "MANIFEST.tmp"));
    TESS_TRY(ckpt_join(path, a->dir, "MANIFEST"));
    ckpt_manifest_format(&a->spec, &a->text);
    TESS_TRY(ckpt_manifest_seal(&a->text, &a->digest));
    const int64_t epoch_now = ckpt_lock_epoch(s);
    TESS_CHECK(
        epoch_now >= 0, TESS_E_IO,
        "'%s/LOCK' cannot be read, so nobody knows whether this run still owns the directory",
        s->dir);
    TESS_CHECK(epoch_now == s->epoch, TESS_E_IO,
               "'%s/LOCK' shows epoch %" PRId64 ", this run has %" PRId64
               ": another run took over the directory",
               s->dir, epoch_now, s->epoch);
    TESS_CHECK(ckpt_lock_is_held(s), TESS_E_IO,
               "'%s/LOCK' is another file than the one this run holds: the directory was removed "
               "and made anew; end this run, or start it again",
               s->dir);
    TESS_TRY(write_temporary(s, temporary, &a->text));
    const tess_status st = link_manifest(s, temporary, path);
    if (st != TESS_OK) {
        /* An error of link does not prove that nothing was published. */
        tess_io_kind kind = TESS_IO_MISSING;
        int64_t nbytes = 0;
        const int error = errno;
        if (tess_io_stat(s->ctx->io, path, &kind, &nbytes) != TESS_OK || kind != TESS_IO_MISSING)
            mark_unsure(a);
        errno = error;
        return a->outcome == TESS_CKPT_UNSURE ? TESS_OK : st;
    }
    a->outcome = TESS_CKPT_COMMITTED;
    if (make_durable(s, a->dir, temporary) != TESS_OK)
        mark_unsure(a);
    return TESS_OK;
}

/* ---- all ranks ---- */

static void fill_spec(tess_ckpt_store *s, ckpt_attempt *a)
{
    a->spec.run_id = s->run_id;
    a->spec.plan_digest = s->plan_digest;
    a->spec.config_digest = s->config_digest;
    a->spec.binary_id = s->binary_id;
    a->spec.gather_group = s->gather_group;
    a->spec.epoch = s->epoch;
    a->spec.wall_time_s = (int64_t)time(NULL);
    a->spec.index = a->index;
    a->spec.files = a->files;
    a->spec.hashes = a->hashes;
    a->disk_nbytes = 0;
    for (int i = 0; i < a->index->set->shard_world; i++)
        a->disk_nbytes += a->files[i].file_nbytes;
}

tess_status ckpt_publish(tess_ckpt_store *s, ckpt_attempt *a)
{
    const int rank = tess_comm_rank(s->comm);
    const bool is_writer = rank < a->index->set->shard_world;
    ckpt_file own;
    memset(&own, 0, sizeof own);
    if (is_writer)
        own = *a->file;
    a->outcome = TESS_CKPT_DROPPED;
    TESS_TRY(tess_comm_gather_bytes(s->comm, 0, &own, sizeof own, rank == 0 ? a->files : NULL));
    TESS_TRY(ckpt_hash_reduce(s->comm, is_writer, a->hashes, a->index->pair_numel, a->sums));
    tess_status st = TESS_OK;
    if (rank == 0) {
        fill_spec(s, a);
        errno = 0;
        st = ckpt_judge_room(s, write_manifest(s, a));
    }
    st = tess_agree(s->comm, st);
    if (st != TESS_OK)
        return tess_status_is_fatal(st) ? st : TESS_OK;
    struct {
        int64_t outcome, disk_nbytes;
        tess_sha256 digest;
        char message[sizeof a->message];
    } shared = {a->outcome, a->disk_nbytes, a->digest, ""};
    memcpy(shared.message, a->message, sizeof shared.message);
    TESS_TRY(tess_comm_bcast(s->comm, 0, &shared, sizeof shared));
    a->outcome = (tess_ckpt_outcome)shared.outcome;
    a->disk_nbytes = shared.disk_nbytes;
    a->digest = shared.digest;
    memcpy(a->message, shared.message, sizeof shared.message);
    return TESS_OK;
}

void ckpt_note_commit(tess_ckpt_store *s, const ckpt_attempt *a)
{
    s->has_parent = true;
    s->parent_step = s->step;
    s->parent_manifest = a->digest;
    if (tess_comm_rank(s->comm) != 0)
        return;
    ckpt_thread_wait(s);
    if (s->list.numel == s->list.room_numel) {
        /* There are hundreds that stay, or could not be removed: forget the oldest, the next start
         * lists it again. */
        s->list.numel--;
        memmove(s->list.entries, s->list.entries + 1,
                (size_t)s->list.numel * sizeof *s->list.entries);
    }
    ckpt_entry *e = &s->list.entries[s->list.numel++];
    const bool is_unsure = a->outcome == TESS_CKPT_UNSURE;
    *e = (ckpt_entry){.step = s->step,
                      .epoch = s->epoch,
                      .is_valid = true,
                      .is_counted = !is_unsure,
                      .is_unsure = is_unsure,
                      .is_new_unsure = is_unsure};
    snprintf(e->name, sizeof e->name, "%s", s->attempt_name);
    ckpt_thread_post(s, CKPT_JOB_TIDY);
}
