/* Any range of any record of a stored checkpoint, whole chunks verified. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "shard/ckpt_priv.h"

static tess_status open_parts(const char *text, size_t nbytes, ckpt_reader *r)
{
    char path[PATH_MAX];
    void *memory = NULL;
    TESS_TRY(ckpt_join(path, r->dir, "MANIFEST"));
    TESS_TRY(ckpt_manifest_parse(path, text, nbytes, &r->manifest));
    TESS_TRY(tess_alloc_array(r->manifest.set.shard_world, sizeof(ckpt_reader_shard), &memory));
    r->shards = memory;
    return tess_alloc(TESS_CKPT_CHUNK_NBYTES, &r->buffer);
}

tess_status ckpt_reader_open(tess_io *io, const char *dir, const char *text, size_t nbytes,
                             ckpt_reader *out)
{
    *out = (ckpt_reader){.io = io, .open_rank = -1, .fd = -1};
    TESS_CHECK(strlen(dir) < sizeof out->dir, TESS_E_ARG, "path of %zu bytes is too long",
               strlen(dir));
    snprintf(out->dir, sizeof out->dir, "%s", dir);
    const tess_status st = open_parts(text, nbytes, out);
    if (st != TESS_OK)
        ckpt_reader_close(out);
    return st;
}

static void close_file(ckpt_reader *r)
{
    if (r->fd >= 0)
        (void)close(r->fd);
    r->fd = -1;
    r->open_rank = -1;
}

void ckpt_reader_release(ckpt_reader *r)
{
    close_file(r);
    for (int i = 0; r->shards != NULL && i < r->manifest.set.shard_world; i++) {
        tess_free(r->shards[i].payload_offset_nbytes);
        tess_free(r->shards[i].chunks);
    }
    tess_free(r->shards);
    tess_free(r->buffer);
    r->shards = NULL;
    r->buffer = NULL;
}

void ckpt_reader_close(ckpt_reader *r)
{
    ckpt_reader_release(r);
    ckpt_manifest_fini(&r->manifest);
    *r = (ckpt_reader){.open_rank = -1, .fd = -1};
}

static tess_status shard_path(const ckpt_reader *r, int shard_rank, char *path)
{
    char name[CKPT_SHARD_NAME_NBYTES];
    ckpt_shard_name(shard_rank, r->manifest.set.shard_world, name);
    return ckpt_join(path, r->dir, name);
}

static int compare_offset(const void *key, const void *item)
{
    const int64_t x = *(const int64_t *)key, y = ((const ckpt_chunk *)item)->offset_nbytes;
    return (x > y) - (x < y);
}

static const ckpt_chunk *find_chunk(const ckpt_reader_shard *s, int64_t offset_nbytes)
{
    if (s->chunk_numel == 0)
        return NULL;
    return bsearch(&offset_nbytes, s->chunks, (size_t)s->chunk_numel, sizeof *s->chunks,
                   compare_offset);
}

/* Every dataset is covered by chunks of the table, and they are all of it. */
static tess_status check_cover(const ckpt_reader *r, const char *path, int shard_rank)
{
    const ckpt_reader_shard *s = &r->shards[shard_rank];
    const tess_ckpt_set *set = &r->manifest.set;
    int64_t used_numel = 0;
    for (int64_t i = 0; i < set->record_numel; i++) {
        const int64_t nbytes =
            (int64_t)ckpt_record_nbytes(&set->records[i], set->shard_world, shard_rank);
        for (int64_t at = 0; at < nbytes; at += TESS_CKPT_CHUNK_NBYTES) {
            const ckpt_chunk *c = find_chunk(s, s->payload_offset_nbytes[i] + at);
            TESS_CHECK(
                c != NULL && c->nbytes == TESS_MIN(nbytes - at, (int64_t)TESS_CKPT_CHUNK_NBYTES),
                TESS_E_FORMAT, "'%s': /units/%s/%s: no chunk for byte %" PRId64 " of the dataset",
                path, set->records[i].unit, set->records[i].role, at);
            used_numel++;
        }
    }
    TESS_CHECK(used_numel == s->chunk_numel, TESS_E_FORMAT,
               "'%s': %" PRId64 " chunks in the table, the datasets have %" PRId64, path,
               s->chunk_numel, used_numel);
    return TESS_OK;
}

tess_status ckpt_reader_check(ckpt_reader *r, int shard_rank)
{
    ckpt_reader_shard *s = &r->shards[shard_rank];
    const ckpt_manifest *m = &r->manifest;
    char path[PATH_MAX];
    if (s->is_checked)
        return TESS_OK;
    TESS_TRY(shard_path(r, shard_rank, path));
    TESS_TRY(ckpt_shard_check(r->io, path, &m->files[shard_rank], &s->chunks, &s->chunk_numel));
    void *memory = NULL;
    TESS_TRY(tess_alloc_array(m->set.record_numel, sizeof(int64_t), &memory));
    s->payload_offset_nbytes = memory;
    const ckpt_h5_spec spec = {.kind = m->kind,
                               .run_id = m->run_id,
                               .plan_digest = m->plan_digest,
                               .step = m->step,
                               .rank = shard_rank,
                               .set = &m->set};
    ckpt_h5_layout layout = {.payload_offset_nbytes = s->payload_offset_nbytes};
    TESS_TRY(ckpt_h5_check(path, &spec, &layout));
    TESS_TRY(check_cover(r, path, shard_rank));
    s->is_checked = true;
    return TESS_OK;
}

tess_status ckpt_reader_check_range(ckpt_reader *r, int64_t record_idx, int64_t lo_idx,
                                    int64_t hi_idx)
{
    int first = 0, end = 0;
    tess_ckpt_sources(&r->manifest.set.records[record_idx], r->manifest.set.shard_world, lo_idx,
                      hi_idx, &first, &end);
    for (int i = first; i < end; i++)
        TESS_TRY(ckpt_reader_check(r, i));
    return TESS_OK;
}

static tess_status open_file(ckpt_reader *r, int shard_rank)
{
    if (r->open_rank == shard_rank)
        return TESS_OK;
    int64_t file_nbytes = 0;
    close_file(r);
    TESS_TRY(shard_path(r, shard_rank, r->path));
    TESS_TRY(ckpt_open_part(r->io, r->path, &r->fd, &file_nbytes));
    r->open_rank = shard_rank;
    return TESS_OK;
}

/* One chunk of a dataset into the buffer. */
static tess_status read_chunk(ckpt_reader *r, int shard_rank, int64_t record_idx, int64_t at_nbytes,
                              int64_t *nbytes)
{
    const ckpt_reader_shard *s = &r->shards[shard_rank];
    const tess_ckpt_record *record = &r->manifest.set.records[record_idx];
    const ckpt_chunk *c = find_chunk(s, s->payload_offset_nbytes[record_idx] + at_nbytes);
    TESS_CHECK(c != NULL, TESS_E_STATE, "'%s': no chunk at byte %" PRId64, r->path, at_nbytes);
    bool is_whole = false;
    TESS_TRY(ckpt_chunk_read(r->io, r->path, r->fd, c, r->buffer, &is_whole));
    TESS_CHECK(is_whole, TESS_E_FORMAT,
               "'%s' is damaged: /units/%s/%s, %" PRId64 " bytes at file offset %" PRId64
               " do not have their digest",
               r->path, record->unit, record->role, c->nbytes, c->offset_nbytes);
    *nbytes = c->nbytes;
    return TESS_OK;
}

/* Elements from `lo` on into `dst`, all of them in one shard. */
static tess_status read_from_shard(ckpt_reader *r, int shard_rank, int64_t record_idx,
                                   int64_t lo_idx, tess_view dst, ckpt_window *window)
{
    const tess_ckpt_record *record = &r->manifest.set.records[record_idx];
    const int64_t elem_nbytes = (int64_t)tess_dtype_block_nbytes(record->dt);
    int64_t shard_lo = 0, shard_hi = 0;
    tess_ckpt_range(record, r->manifest.set.shard_world, shard_rank, &shard_lo, &shard_hi);
    const int64_t first = (lo_idx - shard_lo) * elem_nbytes;
    const int64_t end = first + dst.numel * elem_nbytes;
    TESS_TRY(open_file(r, shard_rank));
    for (int64_t at = first / TESS_CKPT_CHUNK_NBYTES * TESS_CKPT_CHUNK_NBYTES; at < end;
         at += TESS_CKPT_CHUNK_NBYTES) {
        int64_t nbytes = 0;
        TESS_TRY(read_chunk(r, shard_rank, record_idx, at, &nbytes));
        const int64_t from = TESS_MAX(first, at), to = TESS_MIN(end, at + nbytes);
        TESS_TRY(ckpt_window_write(window, dst, from - first,
                                   (const uint8_t *)r->buffer + (from - at), to - from));
    }
    return TESS_OK;
}

tess_status ckpt_reader_load(ckpt_reader *r, int64_t record_idx, int64_t lo_idx, tess_view dst,
                             ckpt_window *window)
{
    const tess_ckpt_record *record = &r->manifest.set.records[record_idx];
    const int stored_world = r->manifest.set.shard_world;
    const int64_t hi_idx = lo_idx + dst.numel;
    int first = 0, end = 0;
    TESS_CHECK(lo_idx >= 0 && lo_idx <= hi_idx && hi_idx <= record->total_numel, TESS_E_RANGE,
               "'%s': range [%" PRId64 ", %" PRId64 ") of %s/%s is outside its %" PRId64
               " elements",
               r->dir, lo_idx, hi_idx, record->unit, record->role, record->total_numel);
    tess_ckpt_sources(record, stored_world, lo_idx, hi_idx, &first, &end);
    for (int i = first; i < end; i++) {
        int64_t from = 0, to = 0;
        tess_ckpt_range(record, stored_world, i, &from, &to);
        from = TESS_MAX(from, lo_idx);
        to = TESS_MIN(to, hi_idx);
        TESS_TRY(ckpt_reader_check(r, i));
        if (from < to)
            TESS_TRY(read_from_shard(r, i, record_idx, from,
                                     tess_view_slice(dst, from - lo_idx, to - from), window));
    }
    return TESS_OK;
}

tess_status ckpt_reader_read(ckpt_reader *r, int64_t record_idx, int64_t lo_idx, int64_t hi_idx,
                             void *dst)
{
    ckpt_window host = {0};
    const tess_dtype dt = r->manifest.set.records[record_idx].dt;
    return ckpt_reader_load(r, record_idx, lo_idx, tess_view_host(dst, hi_idx - lo_idx, dt), &host);
}

/* ---- everything ---- */

tess_status ckpt_reader_verify_shard(ckpt_reader *r, int shard_rank)
{
    const tess_ckpt_set *set = &r->manifest.set;
    TESS_TRY(ckpt_reader_check(r, shard_rank));
    TESS_TRY(open_file(r, shard_rank));
    for (int64_t i = 0; i < set->record_numel; i++) {
        const int64_t end =
            (int64_t)ckpt_record_nbytes(&set->records[i], set->shard_world, shard_rank);
        int64_t nbytes = 0;
        for (int64_t at = 0; at < end; at += nbytes)
            TESS_TRY(read_chunk(r, shard_rank, i, at, &nbytes));
    }
    return TESS_OK;
}

static int by_record(const void *a, const void *b, void *arg)
{
    const ckpt_pair *pairs = arg;
    const int64_t i = *(const int64_t *)a, j = *(const int64_t *)b;
    const int64_t x = pairs[i].record_idx, y = pairs[j].record_idx;
    return x != y ? (x > y) - (x < y) : (i > j) - (i < j);
}

/* Stream one record and hash the pairs [first, end) of `order`, which are its own. */
static tess_status hash_record(ckpt_reader *r, int64_t record_idx, const int64_t *order,
                               int64_t pair_numel, tess_logical_hash *hashes, void *window)
{
    const tess_ckpt_record *record = &r->manifest.set.records[record_idx];
    const int64_t step = TESS_CKPT_CHUNK_NBYTES / (int64_t)tess_dtype_block_nbytes(record->dt);
    for (int64_t lo = 0; lo < record->total_numel; lo += step) {
        const int64_t hi = TESS_MIN(lo + step, record->total_numel);
        TESS_TRY(ckpt_reader_read(r, record_idx, lo, hi, window));
        for (int64_t k = 0; k < pair_numel; k++)
            ckpt_hash_pair(&r->manifest.set, r->manifest.index.pairs[order[k]], window, lo, hi,
                           &hashes[order[k]]);
    }
    return TESS_OK;
}

static tess_status compare_hashes(const ckpt_reader *r, const tess_logical_hash *hashes)
{
    const ckpt_manifest *m = &r->manifest;
    for (int64_t p = 0; p < m->index.pair_numel; p++)
        TESS_CHECK(memcmp(&hashes[p], &m->hashes[p], sizeof *hashes) == 0, TESS_E_FORMAT,
                   "'%s': tensor '%s' role %s: hash %016" PRIx64 "%016" PRIx64
                   ", the manifest says %016" PRIx64 "%016" PRIx64,
                   r->dir, m->tensors[m->index.pairs[p].tensor_idx].name,
                   m->records[m->index.pairs[p].record_idx].role, hashes[p].lane[0],
                   hashes[p].lane[1], m->hashes[p].lane[0], m->hashes[p].lane[1]);
    return TESS_OK;
}

typedef struct verify_memory {
    void *window, *order, *hashes;
} verify_memory;

static tess_status verify_payload(ckpt_reader *r, verify_memory *memory)
{
    const ckpt_manifest *m = &r->manifest;
    TESS_TRY(tess_alloc(TESS_CKPT_CHUNK_NBYTES, &memory->window));
    TESS_TRY(tess_alloc_array(m->index.pair_numel, sizeof(int64_t), &memory->order));
    TESS_TRY(tess_alloc_array(m->index.pair_numel, sizeof(tess_logical_hash), &memory->hashes));
    int64_t *order = memory->order;
    for (int64_t p = 0; p < m->index.pair_numel; p++)
        order[p] = p;
    if (m->index.pair_numel > 1)
        qsort_r(order, (size_t)m->index.pair_numel, sizeof *order, by_record, m->index.pairs);
    for (int64_t i = 0, first = 0; i < m->set.record_numel; i++) {
        int64_t end = first;
        while (end < m->index.pair_numel && m->index.pairs[order[end]].record_idx == i)
            end++;
        TESS_TRY(hash_record(r, i, order + first, end - first, memory->hashes, memory->window));
        first = end;
    }
    return compare_hashes(r, memory->hashes);
}

tess_status ckpt_reader_verify(ckpt_reader *r)
{
    verify_memory memory = {0};
    for (int i = 0; i < r->manifest.set.shard_world; i++)
        TESS_TRY(ckpt_reader_check(r, i));
    const tess_status st = verify_payload(r, &memory);
    tess_free(memory.window);
    tess_free(memory.order);
    tess_free(memory.hashes);
    return st;
}
