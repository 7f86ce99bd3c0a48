/**
 * A device whose kernels are the sources of kernels/cuda, thread by thread, and of whose memory the
 * host sees nothing but copies; its one stream runs what it is given at once. For one program each.
 */
#pragma once

#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "kernels/cuda/cuda_priv.h"
#include "kernels/cuda/library_priv.h"
#include "tests/emulation/blas_emulation.h"
#include "tests/emulation/emulation.h"

enum { EMULATED_WORK_NBYTES = 4096 };

static tess_blas_emulation blas;
static tess_cuda_library library;
static size_t arena_nbytes; /* of the device, since it was opened */

tess_status tess_cuda_stream_library(tess_stream *s, const tess_cuda_library **out)
{
    (void)s;
    *out = &library;
    return TESS_OK;
}

const char *tess_cuda_path(void) { return "emulated"; }

static tess_status device_alloc(tess_device *d, tess_space space, size_t nbytes, void **out)
{
    (void)d;
    arena_nbytes += space == TESS_HOST ? 0 : nbytes;
    return space == TESS_HOST ? tess_alloc(nbytes, out)
                              : tess_emulation_alloc("arena", nbytes, out);
}

static void device_release(tess_device *d, tess_space space, void *memory, size_t nbytes)
{
    (void)d;
    (void)nbytes;
    if (space == TESS_HOST)
        tess_free(memory); /* device memory goes all at once */
}

static tess_status stream_create(tess_device *d, const char *name, bool is_urgent,
                                 tess_stream **out)
{
    void *object = NULL;
    (void)d;
    (void)is_urgent;
    TESS_TRY(tess_alloc(sizeof(tess_stream), &object));
    tess_stream_init_inline(object, name, NULL);
    *out = object;
    return TESS_OK;
}

static void stream_destroy(tess_device *d, tess_stream *s)
{
    (void)d;
    tess_free(s);
}

static tess_status copy_bytes(void *dst, bool is_dst_far, const void *src, bool is_src_far,
                              size_t nbytes)
{
    void *between = malloc(nbytes); /* a step allocates nothing through the program's allocator */
    tess_status st = TESS_OK;
    TESS_CHECK(between != NULL, TESS_E_MEMORY, "copy of %zu bytes", nbytes);
    if (is_src_far)
        st = tess_emulation_read(between, src, nbytes);
    else
        memcpy(between, src, nbytes);
    if (st == TESS_OK && is_dst_far)
        st = tess_emulation_write(dst, between, nbytes);
    else if (st == TESS_OK)
        memcpy(dst, between, nbytes);
    free(between);
    return st;
}

static tess_status device_copy(tess_device *d, tess_view dst, tess_view src, tess_stream *s)
{
    (void)d;
    (void)s;
    return copy_bytes(dst.data, dst.space == TESS_DEVICE, src.data, src.space == TESS_DEVICE,
                      tess_view_nbytes(src));
}

static tess_status device_copy_rows(tess_device *d, const tess_rows_copy *c, tess_stream *s)
{
    (void)d;
    (void)s;
    for (int64_t i = 0; i < c->row_numel; i++)
        TESS_TRY(copy_bytes((char *)c->dst + i * c->dst_stride_nbytes, true,
                            (const char *)c->src + i * c->src_stride_nbytes, true,
                            (size_t)c->row_nbytes));
    return TESS_OK;
}

static tess_status device_zero(tess_device *d, tess_view dst, tess_stream *s)
{
    void *zeros = calloc(1, tess_view_nbytes(dst));
    (void)d;
    (void)s;
    TESS_CHECK(zeros != NULL, TESS_E_MEMORY, "no %zu bytes", tess_view_nbytes(dst));
    const tess_status st = tess_emulation_write(dst.data, zeros, tess_view_nbytes(dst));
    free(zeros);
    return st;
}

static tess_status device_memory(tess_device *d, size_t *free_nbytes, size_t *total_nbytes)
{
    (void)d;
    *free_nbytes = *total_nbytes = (size_t)1 << 30;
    return TESS_OK;
}

static const tess_device_ops ops = {.alloc = device_alloc,
                                    .release = device_release,
                                    .stream_create = stream_create,
                                    .stream_destroy = stream_destroy,
                                    .copy = device_copy,
                                    .copy_rows = device_copy_rows,
                                    .zero = device_zero,
                                    .memory = device_memory};

static const tess_device emulated_device = {
    .ops = &ops, .name = "emulated:0", .space = TESS_DEVICE};

/* Threads run in `order`; few blocks, so that kernels loop. */
static inline tess_status emulated_open(tess_emulation_order order)
{
    const tess_emulation_settings settings = {
        .order = order, .seed = 7, .block_max = 2, .dropped_barrier = -1};
    tess_emulation_set(&settings);
    arena_nbytes = 0;
    TESS_TRY(tess_blas_emulation_init(&blas, "emulation"));
    library = (tess_cuda_library){.blas = &blas.base, .work_nbytes = EMULATED_WORK_NBYTES};
    return tess_emulation_alloc("workspace", EMULATED_WORK_NBYTES, &library.work);
}

static inline void emulated_close(void)
{
    tess_blas_emulation_fini(&blas);
    tess_emulation_release_all();
}
