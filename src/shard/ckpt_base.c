/* The frozen base: written once per run directory, named by its content. */
#include <stdio.h>
#include <string.h>

#include "shard/ckpt_priv.h"

/* Everything one base save holds. */
typedef struct base_save {
    char base_root[PATH_MAX];
    char dir[PATH_MAX];
    ckpt_index index;
    tess_view *views;
    tess_logical_hash *hashes;
    int64_t *sums;
    ckpt_file *files;
    char *text;
    size_t text_room_nbytes;
} base_save;

static void free_save(base_save *b)
{
    ckpt_index_destroy(&b->index);
    tess_free(b->views);
    tess_free(b->hashes);
    tess_free(b->sums);
    tess_free(b->files);
    tess_free(b->text);
}

static const tess_ckpt_base no_base = {.mode = TESS_CKPT_BASE_NONE};

static tess_status prepare_save(tess_ckpt_store *s, const char *id, const tess_ckpt_set *set,
                                base_save *b)
{
    void *memory = NULL;
    TESS_CHECK(!s->is_reader, TESS_E_STATE, "checkpoint store '%s' is open for reading only",
               s->dir);
    TESS_CHECK(ckpt_is_hex(id, TESS_SHA256_NBYTES), TESS_E_ARG,
               "base id '%.80s' must be 64 hex digits", id);
    TESS_CHECK(set->shard_world <= tess_comm_world(s->comm), TESS_E_ARG,
               "base: %d writing ranks in a world of %d", set->shard_world,
               tess_comm_world(s->comm));
    TESS_TRY(ckpt_join(b->base_root, s->dir, "base"));
    TESS_TRY(ckpt_join(b->dir, b->base_root, id));
    TESS_TRY(ckpt_index_create("base", set, &b->index));
    TESS_TRY(ckpt_check_views(s, set));
    TESS_TRY(tess_alloc_array(set->record_numel, sizeof(tess_view), &memory));
    b->views = memory;
    for (int64_t i = 0; i < set->record_numel; i++)
        b->views[i] = set->records[i].view;
    TESS_TRY(ckpt_window_follow(&s->window));
    TESS_TRY(tess_alloc_array(b->index.pair_numel, sizeof(tess_logical_hash), &memory));
    b->hashes = memory;
    TESS_TRY(tess_alloc_array(b->index.pair_numel, 4 * sizeof(int64_t), &memory));
    b->sums = memory;
    if (tess_comm_rank(s->comm) != 0)
        return TESS_OK;
    TESS_TRY(tess_alloc_array(tess_comm_world(s->comm), sizeof(ckpt_file), &memory));
    b->files = memory;
    b->text_room_nbytes = ckpt_manifest_room(s, &b->index, &no_base, 0);
    TESS_TRY(tess_alloc(b->text_room_nbytes, &memory));
    b->text = memory;
    return TESS_OK;
}

/* Every rank reads its part of the files that are there. */
static tess_status verify_present(tess_ckpt_store *s, const char *id, const base_save *b)
{
    ckpt_reader r = {.open_rank = -1, .fd = -1};
    char *text = NULL;
    size_t nbytes = 0;
    TESS_TRY(ckpt_bcast_manifest(s->comm, s->ctx->io, b->dir, &text, &nbytes));
    tess_status st = ckpt_reader_open(s->ctx->io, b->dir, text, nbytes, &r);
    tess_free(text);
    if (st == TESS_OK && (r.manifest.base_id == NULL || strcmp(r.manifest.base_id, id) != 0))
        st = TESS_FAIL(TESS_E_FORMAT, "'%s' does not hold base %s", b->dir, id);
    if (st == TESS_OK)
        st = ckpt_compare_sets(b->dir, &b->index, &r.manifest, NULL);
    for (int i = tess_comm_rank(s->comm); st == TESS_OK && i < r.manifest.set.shard_world;
         i += tess_comm_world(s->comm))
        st = ckpt_reader_verify_shard(&r, i);
    st = tess_agree(s->comm, st);
    ckpt_reader_close(&r);
    return st;
}

static tess_status make_base_dir(tess_ckpt_store *s, const base_save *b)
{
    tess_io_kind kind = TESS_IO_MISSING;
    int64_t nbytes = 0;
    TESS_TRY(tess_io_mkdirs(s->ctx->io, b->base_root));
    TESS_TRY(tess_io_stat(s->ctx->io, b->dir, &kind, &nbytes));
    if (kind != TESS_IO_MISSING)
        TESS_TRY(ckpt_remove_dir(s->ctx->io, b->dir));
    TESS_TRY(tess_io_mkdir(s->ctx->io, b->dir, false));
    TESS_TRY(tess_io_fsync_dir(s->ctx->io, b->base_root));
    return tess_io_fsync_dir(s->ctx->io, s->dir);
}

static tess_status write_shard(tess_ckpt_store *s, const base_save *b, ckpt_shard_job *job)
{
    const int rank = tess_comm_rank(s->comm);
    *job = (ckpt_shard_job){.io = s->ctx->io,
                            .dir = b->dir,
                            .h5 = {.kind = "base",
                                   .run_id = s->run_id,
                                   .plan_digest = s->plan_digest,
                                   .step = 0,
                                   .rank = rank,
                                   .set = b->index.set},
                            .index = &b->index,
                            .views = b->views,
                            .window = &s->window,
                            .has_read_back = s->has_read_back,
                            .hashes = b->hashes};
    return rank < b->index.set->shard_world ? ckpt_store_write(s, job) : TESS_OK;
}

static tess_status write_base(tess_ckpt_store *s, const char *id, base_save *b)
{
    ckpt_shard_job job = {0};
    tess_status st = tess_comm_rank(s->comm) == 0 ? make_base_dir(s, b) : TESS_OK;
    TESS_TRY(tess_agree(s->comm, st));
    st = tess_agree(s->comm, write_shard(s, b, &job));
    if (st == TESS_OK) {
        ckpt_attempt a = {
            .dir = b->dir,
            .index = &b->index,
            .file = &job.file,
            .hashes = b->hashes,
            .sums = b->sums,
            .files = b->files,
            .text = {b->text, b->text_room_nbytes, 0},
            .spec = {.kind = "base", .attempt = "00000000", .base_id = id, .base = &no_base}};
        TESS_TRY(ckpt_publish(s, &a));
        if (a.outcome == TESS_CKPT_COMMITTED)
            return TESS_OK;
        st = a.outcome == TESS_CKPT_UNSURE ? TESS_FAIL(TESS_E_IO, "'%s': %s", b->dir, a.message)
                                           : tess_error_status();
    }
    return st;
}

/* Remove what a failed write left, keeping the error that everybody has agreed on. */
static void clear_failed(tess_ckpt_store *s, const base_save *b, tess_status st)
{
    char message[TESS_ERROR_MESSAGE_NBYTES];
    const int rank = tess_error_rank();
    if (tess_comm_rank(s->comm) != 0 || tess_status_is_fatal(st))
        return;
    snprintf(message, sizeof message, "%s", tess_error_message());
    tess_error_clear();
    if (ckpt_remove_dir(s->ctx->io, b->dir) != TESS_OK)
        tess_log_write(&s->ctx->log, TESS_LOG_WARN, "base: %s", tess_error_message());
    tess_error_adopt(st, rank, message);
}

static tess_status find_manifest(tess_ckpt_store *s, const base_save *b, bool *is_there)
{
    char path[PATH_MAX];
    tess_io_kind kind = TESS_IO_MISSING;
    int64_t nbytes = 0, shared = 0;
    tess_status st = ckpt_join(path, b->dir, "MANIFEST");
    if (st == TESS_OK && tess_comm_rank(s->comm) == 0)
        st = tess_io_stat(s->ctx->io, path, &kind, &nbytes);
    shared = kind != TESS_IO_MISSING;
    TESS_TRY(tess_agree(s->comm, st));
    TESS_TRY(tess_comm_bcast(s->comm, 0, &shared, sizeof shared));
    *is_there = shared != 0;
    return TESS_OK;
}

static tess_status save_prepared(tess_ckpt_store *s, const char *id, base_save *b, bool *was_there)
{
    bool is_there = false;
    TESS_TRY(find_manifest(s, b, &is_there));
    if (is_there) {
        const tess_status found = verify_present(s, id, b);
        if (found == TESS_OK)
            *was_there = true;
        if (found != TESS_E_FORMAT)
            return found;
        tess_log_root(&s->ctx->log, TESS_LOG_WARN, "base is written again: %s",
                      tess_error_message());
        tess_error_clear();
    }
    const tess_status st = write_base(s, id, b);
    if (st == TESS_OK)
        *was_there = false;
    else
        clear_failed(s, b, st);
    return st;
}

tess_status tess_ckpt_save_base(tess_ckpt_store *store, const char *id, const tess_ckpt_set *set,
                                bool *was_there)
{
    base_save b = {0};
    tess_status st = tess_agree(store->comm, prepare_save(store, id, set, &b));
    if (st == TESS_OK)
        st = save_prepared(store, id, &b, was_there);
    free_save(&b);
    return st;
}
