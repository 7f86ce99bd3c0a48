/** A buffer never travels without its dtype, element count and memory space. */
#pragma once

#include <stdint.h>

#include "core/dtype.h"

TESS_BEGIN_DECLS

/** Borrowed alias of `numel` consecutive elements. */
typedef struct tess_view {
    void *data;    /* first element, in `space`; NULL only when numel is 0 */
    int64_t numel; /* elements of `dt` */
    tess_dtype dt;
    tess_space space;
} tess_view;

static inline tess_view tess_view_host(void *data, int64_t numel, tess_dtype dt)
{
    const tess_view v = {data, numel, dt, TESS_HOST};
    return v;
}

/** Elements [first, first + numel) of `v`. The caller keeps the range inside `v`. Local. */
static inline tess_view tess_view_slice(tess_view v, int64_t first_idx, int64_t numel)
{
    v.data = (char *)v.data + (size_t)first_idx * tess_dtype_block_nbytes(v.dt);
    v.numel = numel;
    return v;
}

/** Bytes of a view. Local. */
static inline size_t tess_view_nbytes(tess_view v)
{
    return (size_t)v.numel * tess_dtype_block_nbytes(v.dt);
}

TESS_END_DECLS
