/*
 * Records' memory as the store sees it: read and written directly on the host; elsewhere by copies
 * through one chunk of host memory, so that nothing here ever follows an address of a device.
 */
#include <string.h>

#include "shard/ckpt_priv.h"

tess_status ckpt_window_open(tess_device *device, tess_stream *after, ckpt_window *w)
{
    tess_view place;
    if (device == NULL || device->space == TESS_HOST)
        return TESS_OK;
    TESS_CHECK(after != NULL, TESS_E_ARG, "checkpoint store on %s: no stream to come after",
               device->name);
    w->device = device;
    w->after = after;
    TESS_TRY(tess_device_arena_create(device, TESS_HOST, "checkpoint window",
                                      TESS_CKPT_CHUNK_NBYTES, &w->arena));
    TESS_TRY(tess_arena_view(w->arena, 0, TESS_CKPT_CHUNK_NBYTES, TESS_U8_OPAQUE, &place));
    w->memory = place.data;
    TESS_TRY(tess_device_stream_create(device, "copy", false, &w->stream));
    TESS_TRY(tess_event_init(&w->ready, after));
    w->has_events = true;
    return tess_event_init(&w->copied, w->stream);
}

void ckpt_window_close(ckpt_window *w)
{
    if (w->stream != NULL && w->copied.stream != NULL && tess_event_finish(&w->copied) != TESS_OK)
        tess_error_clear(); /* nothing is left to be done with a lost device */
    if (w->has_events) {
        tess_event_fini(&w->ready, w->after);
        tess_event_fini(&w->copied, w->stream);
    }
    if (w->device != NULL)
        tess_device_stream_destroy(w->device, &w->stream);
    tess_arena_destroy(&w->arena);
    *w = (ckpt_window){0};
}

tess_status ckpt_window_follow(ckpt_window *w)
{
    if (w->device == NULL)
        return TESS_OK;
    TESS_TRY(tess_event_record(&w->ready, w->after));
    return tess_stream_wait(w->stream, &w->ready);
}

/* `nbytes` of `v` from a byte offset on, as bytes. */
static tess_view bytes_of(tess_view v, int64_t offset_nbytes, int64_t nbytes)
{
    return (tess_view){(char *)v.data + offset_nbytes, nbytes, TESS_U8_OPAQUE, v.space};
}

static tess_status copy_and_wait(ckpt_window *w, tess_view dst, tess_view src)
{
    TESS_TRY(tess_device_copy(w->device, dst, src, w->stream));
    TESS_TRY(tess_event_record(&w->copied, w->stream));
    return tess_event_finish(&w->copied);
}

tess_status ckpt_window_read(ckpt_window *w, tess_view v, int64_t offset_nbytes, int64_t nbytes,
                             const void **out)
{
    const tess_view part = bytes_of(v, offset_nbytes, nbytes);
    if (v.space == TESS_HOST) {
        *out = part.data;
        return TESS_OK;
    }
    TESS_TRY(copy_and_wait(w, tess_view_host(w->memory, nbytes, TESS_U8_OPAQUE), part));
    *out = w->memory;
    return TESS_OK;
}

tess_status ckpt_window_write(ckpt_window *w, tess_view v, int64_t offset_nbytes, const void *src,
                              int64_t nbytes)
{
    const tess_view part = bytes_of(v, offset_nbytes, nbytes);
    if (v.space == TESS_HOST) {
        memcpy(part.data, src, (size_t)nbytes);
        return TESS_OK;
    }
    memcpy(w->memory, src, (size_t)nbytes);
    return copy_and_wait(w, part, tess_view_host(w->memory, nbytes, TESS_U8_OPAQUE));
}

/* Elements [lo, hi) of a record into the hashes of its tensors. */
static void hash_part(const ckpt_index *index, int64_t record_idx, const void *data, int64_t lo_idx,
                      int64_t hi_idx, tess_logical_hash *hashes)
{
    for (int64_t p = 0; p < index->pair_numel; p++)
        if (index->pairs[p].record_idx == record_idx)
            ckpt_hash_pair(index->set, index->pairs[p], data, lo_idx, hi_idx, &hashes[p]);
}

tess_status ckpt_hash_records(const ckpt_shard_views *from, ckpt_chunk_fn fn, void *arg,
                              tess_logical_hash *hashes)
{
    const ckpt_index *index = from->index;
    const tess_ckpt_set *set = index->set;
    for (int64_t p = 0; p < index->pair_numel; p++)
        hashes[p] = (tess_logical_hash){{0, 0}};
    for (int64_t i = 0; i < set->record_numel; i++) {
        const tess_ckpt_record *r = &set->records[i];
        const int64_t elem_nbytes = (int64_t)tess_dtype_block_nbytes(r->dt);
        const int64_t end = (int64_t)ckpt_record_nbytes(r, set->shard_world, from->rank);
        int64_t lo_idx = 0, hi_idx = 0;
        tess_ckpt_range(r, set->shard_world, from->rank, &lo_idx, &hi_idx);
        for (int64_t at = 0; at < end; at += TESS_CKPT_CHUNK_NBYTES) {
            const int64_t nbytes = TESS_MIN(end - at, (int64_t)TESS_CKPT_CHUNK_NBYTES);
            const int64_t first_idx = lo_idx + at / elem_nbytes;
            const void *data = NULL;
            TESS_TRY(ckpt_window_read(from->window, from->views[i], at, nbytes, &data));
            if (fn != NULL)
                fn(arg, i, at, data, nbytes);
            hash_part(index, i, data, first_idx, first_idx + nbytes / elem_nbytes, hashes);
        }
    }
    return TESS_OK;
}
