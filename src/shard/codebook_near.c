/* What moves between a device that searches and its host: rows up, keys and sums down. On the host
 * itself kernels read what is there. */
#include <string.h>

#include "shard/codebook_priv.h"

tess_status codebook_move(tess_codebooks *b, void *dst, const void *src, int64_t numel,
                          tess_dtype dt, bool is_up)
{
    const tess_view here = tess_view_host(is_up ? (void *)(uintptr_t)src : dst, numel, dt);
    const tess_view there = codebook_view(b, is_up ? dst : src, numel, dt);
    return tess_device_copy(b->parts.device, is_up ? there : here, is_up ? here : there,
                            b->parts.stream);
}

tess_status codebook_rows_wait(tess_codebooks *b)
{
    return codebook_is_far(b) ? tess_event_finish(&b->rows_up) : TESS_OK;
}

tess_status codebook_rows_send(tess_codebooks *b, int slot, int64_t numel)
{
    if (!codebook_is_far(b))
        return TESS_OK;
    TESS_TRY(codebook_move(b, codebook_near_rows(b, slot), codebook_rows_of(b, slot), numel,
                           TESS_I32, true));
    return tess_event_record(&b->rows_up, b->parts.stream);
}

tess_status codebook_rows_put(tess_codebooks *b, int slot, const uint32_t *row, int64_t numel,
                              const uint32_t **near)
{
    *near = row;
    if (!codebook_is_far(b) || numel == 0)
        return TESS_OK;
    TESS_TRY(codebook_rows_wait(b));
    memcpy(codebook_rows_of(b, slot), row, (size_t)numel * sizeof *row);
    *near = codebook_near_rows(b, slot);
    return codebook_rows_send(b, slot, numel);
}

tess_status codebook_before(tess_codebooks *b, tess_stream *stream)
{
    if (!codebook_is_far(b))
        return TESS_OK;
    TESS_TRY(tess_event_record(&b->enqueued, b->parts.stream));
    return tess_stream_wait(stream, &b->enqueued);
}
