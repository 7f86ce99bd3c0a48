/**
 * A place where planned memory lives and kernels run: the host, a CUDA device, or an emulated one.
 *
 * Code above this floor never dereferences an address in TESS_DEVICE space: it passes views to
 * kernels, collectives and the copies here. On the host all of it is plain memory and every call
 * runs at once, so there is one program for all devices.
 */
#pragma once

#include "core/memory.h"
#include "core/stream.h"
#include "core/view.h"

TESS_BEGIN_DECLS

typedef struct tess_device tess_device;

/** Rows inside the device's own space. */
typedef struct tess_rows_copy {
    void *dst;
    const void *src;
    int64_t dst_stride_nbytes, src_stride_nbytes; /* between starts of rows, at least row_nbytes */
    int64_t row_numel, row_nbytes;
} tess_rows_copy;

typedef struct tess_device_ops {
    /* Memory of `space`, aligned to 256 bytes at least. TESS_HOST: host memory that copies of this
     * device reach without staging (pinned). Contents are undefined. */
    tess_status (*alloc)(tess_device *d, tess_space space, size_t nbytes, void **out);
    void (*release)(tess_device *d, tess_space space, void *memory, size_t nbytes);
    /* `is_urgent`: its work goes before that of other streams where both are ready. */
    tess_status (*stream_create)(tess_device *d, const char *name, bool is_urgent,
                                 tess_stream **out);
    void (*stream_destroy)(tess_device *d, tess_stream *s);
    /* Bytes of `src` to `dst`, of equal size, in any pair of spaces; they do not overlap. */
    tess_status (*copy)(tess_device *d, tess_view dst, tess_view src, tess_stream *s);
    /* `row_numel` rows of `row_nbytes`, whose starts lie `*_stride` bytes apart. */
    tess_status (*copy_rows)(tess_device *d, const tess_rows_copy *c, tess_stream *s);
    tess_status (*zero)(tess_device *d, tess_view dst, tess_stream *s);
    tess_status (*memory)(tess_device *d, size_t *free_nbytes, size_t *total_nbytes);
    /* Named ranges of the calling thread for a profiler of the device; NULL: there is none. */
    void (*range_push)(tess_device *d, const char *name);
    void (*range_pop)(tess_device *d);
} tess_device_ops;

/**
 * Who is asked while a thread waits for work of a device: communicators, whose peers may never
 * come. `look` is called again and again; a status that is not TESS_OK ends the wait with it.
 */
typedef struct tess_device_watch {
    /* `waited_s` since the wait began, `slice_s` since the last look. */
    tess_status (*look)(void *self, const tess_stream *s, double waited_s, double slice_s);
    void *self;
} tess_device_watch;

/** Base object; backends embed it as first member. */
struct tess_device {
    const tess_device_ops *ops;
    const char *name; /* "cpu", "cuda:0" */
    tess_space space; /* of planned memory that kernels use */
    tess_device_watch watch;
};

/** The host as a device, in the caller's memory. */
typedef struct tess_host_device {
    tess_device base;
    tess_pool *pool; /* of its streams; borrowed, may be NULL */
} tess_host_device;

/** Local. */
void tess_host_device_init(tess_host_device *d, tess_pool *pool);

/** Local. @return TESS_E_MEMORY */
TESS_MUST_CHECK tess_status tess_device_stream_create(tess_device *d, const char *name,
                                                      bool is_urgent, tess_stream **out);
/** Never fails; NULL is fine. The caller has finished the stream's work. Local. */
void tess_device_stream_destroy(tess_device *d, tess_stream **s);
/**
 * Enqueue a copy; both views are borrowed until `s` passes it. Local.
 * @return TESS_E_ARG sizes differ
 */
TESS_MUST_CHECK tess_status tess_device_copy(tess_device *d, tess_view dst, tess_view src,
                                             tess_stream *s);
/** Enqueue a copy of rows. Local. @return TESS_E_ARG rows overlap their neighbours */
TESS_MUST_CHECK tess_status tess_device_copy_rows(tess_device *d, const tess_rows_copy *c,
                                                  tess_stream *s);
/** Enqueue zero bytes. Local. */
TESS_MUST_CHECK tess_status tess_device_zero(tess_device *d, tess_view dst, tess_stream *s);
/** Free and whole memory of the device's own space. Local. */
TESS_MUST_CHECK tess_status tess_device_memory(tess_device *d, size_t *free_nbytes,
                                               size_t *total_nbytes);

/**
 * As tess_arena_create(), in memory of a device: `space` TESS_HOST is memory its copies reach
 * without staging. `d` outlives the arena. Local.
 * @return TESS_E_MEMORY names the arena, what it needs and what is free
 */
TESS_MUST_CHECK tess_status tess_device_arena_create(tess_device *d, tess_space space,
                                                     const char *name, size_t nbytes,
                                                     tess_arena **out);

TESS_END_DECLS
