#include "core/device.h"

#include <string.h>
#include <sys/mman.h>

#include "core/memory_priv.h"

/* ---- the host ---- */

static tess_status host_alloc(tess_device *d, tess_space space, size_t nbytes, void **out)
{
    (void)d;
    (void)space;
    *out = memory_map(nbytes);
    return *out != NULL ? TESS_OK : TESS_FAIL(TESS_E_MEMORY, "cannot map %zu bytes", nbytes);
}

static void host_release(tess_device *d, tess_space space, void *memory, size_t nbytes)
{
    (void)d;
    (void)space;
    munmap(memory, nbytes);
}

static tess_status host_stream_create(tess_device *d, const char *name, bool is_urgent,
                                      tess_stream **out)
{
    void *object = NULL;
    (void)is_urgent;
    TESS_TRY(tess_alloc(sizeof(tess_stream), &object));
    tess_stream_init_inline(object, name, ((tess_host_device *)d)->pool);
    *out = object;
    return TESS_OK;
}

static void host_stream_destroy(tess_device *d, tess_stream *s)
{
    (void)d;
    tess_free(s);
}

static tess_status host_copy(tess_device *d, tess_view dst, tess_view src, tess_stream *s)
{
    (void)d;
    (void)s;
    memcpy(dst.data, src.data, tess_view_nbytes(src));
    return TESS_OK;
}

static tess_status host_copy_rows(tess_device *d, const tess_rows_copy *c, tess_stream *s)
{
    (void)d;
    (void)s;
    for (int64_t i = 0; i < c->row_numel; i++)
        memcpy((char *)c->dst + i * c->dst_stride_nbytes,
               (const char *)c->src + i * c->src_stride_nbytes, (size_t)c->row_nbytes);
    return TESS_OK;
}

static tess_status host_zero(tess_device *d, tess_view dst, tess_stream *s)
{
    (void)d;
    (void)s;
    memset(dst.data, 0, tess_view_nbytes(dst));
    return TESS_OK;
}

static tess_status host_memory(tess_device *d, size_t *free_nbytes, size_t *total_nbytes)
{
    (void)d;
    *free_nbytes = *total_nbytes = tess_memory_free_nbytes();
    return TESS_OK;
}

static const tess_device_ops host_ops = {
    .alloc = host_alloc,
    .release = host_release,
    .stream_create = host_stream_create,
    .stream_destroy = host_stream_destroy,
    .copy = host_copy,
    .copy_rows = host_copy_rows,
    .zero = host_zero,
    .memory = host_memory,
};

void tess_host_device_init(tess_host_device *d, tess_pool *pool)
{
    d->base = (tess_device){.ops = &host_ops, .name = "cpu", .space = TESS_HOST};
    d->pool = pool;
}

/* ---- any device ---- */

tess_status tess_device_stream_create(tess_device *d, const char *name, bool is_urgent,
                                      tess_stream **out)
{
    return d->ops->stream_create(d, name, is_urgent, out);
}

void tess_device_stream_destroy(tess_device *d, tess_stream **s)
{
    if (*s == NULL)
        return;
    d->ops->stream_destroy(d, *s);
    *s = NULL;
}

tess_status tess_device_copy(tess_device *d, tess_view dst, tess_view src, tess_stream *s)
{
    const size_t dst_nbytes = tess_view_nbytes(dst), src_nbytes = tess_view_nbytes(src);
    TESS_CHECK(dst_nbytes == src_nbytes, TESS_E_ARG, "copy of %zu bytes to %zu", src_nbytes,
               dst_nbytes);
    return src_nbytes > 0 ? d->ops->copy(d, dst, src, s) : TESS_OK;
}

tess_status tess_device_copy_rows(tess_device *d, const tess_rows_copy *c, tess_stream *s)
{
    TESS_CHECK(c->row_nbytes >= 0 && c->dst_stride_nbytes >= c->row_nbytes &&
                   c->src_stride_nbytes >= c->row_nbytes,
               TESS_E_ARG, "copy of rows of %lld bytes, %lld and %lld bytes apart",
               (long long)c->row_nbytes, (long long)c->src_stride_nbytes,
               (long long)c->dst_stride_nbytes);
    return c->row_numel > 0 && c->row_nbytes > 0 ? d->ops->copy_rows(d, c, s) : TESS_OK;
}

tess_status tess_device_zero(tess_device *d, tess_view dst, tess_stream *s)
{
    return dst.numel > 0 ? d->ops->zero(d, dst, s) : TESS_OK;
}

tess_status tess_device_memory(tess_device *d, size_t *free_nbytes, size_t *total_nbytes)
{
    return d->ops->memory(d, free_nbytes, total_nbytes);
}

tess_status tess_device_arena_create(tess_device *d, tess_space space, const char *name,
                                     size_t nbytes, tess_arena **out)
{
    void *memory = NULL;
    TESS_TRY(memory_arena(name, nbytes, out));
    const tess_status st = d->ops->alloc(d, space, (*out)->map_nbytes, &memory);
    if (st == TESS_OK) {
        (*out)->base = memory;
        (*out)->space = d->space == TESS_HOST ? TESS_HOST : space;
        (*out)->device = d;
        return TESS_OK;
    }
    size_t free_nbytes = 0, total_nbytes = 0;
    tess_arena_destroy(out);
    if (st != TESS_E_MEMORY || d->ops->memory(d, &free_nbytes, &total_nbytes) != TESS_OK)
        return st;
    tess_error_clear(); /* this message says more */
    return TESS_FAIL(TESS_E_MEMORY,
                     "arena '%s': %s has no %zu bytes (%zu of %zu free); lower train.micro_batch, "
                     "or use more ranks",
                     name, d->name, nbytes, free_nbytes, total_nbytes);
}
