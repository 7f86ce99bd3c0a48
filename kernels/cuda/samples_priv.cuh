/** Rows of samples (tess_sample_rows) on the device. */
#pragma once

#include "kernels/cuda/rows_priv.cuh"
#include "kernels/modulate.h"

/** Row t of sample b. */
struct tess_sample_place {
    int64_t b, t;
};

/** Row `row` of all samples, one after another. */
__device__ static inline tess_sample_place tess_sample_place_of(const tess_sample_shape &shape,
                                                                int64_t row)
{
    const int64_t b = row / shape.row_numel;
    const tess_sample_place place = {b, row - b * shape.row_numel};
    return place;
}

/** The element where a row begins. */
__device__ static inline int64_t tess_sample_at(const tess_sample_rows &rows,
                                                tess_sample_place place)
{
    return place.b * rows.sample_stride + place.t * rows.row_stride;
}

/** Whether rows that begin at whole chunks of `chunk_numel` elements all start at such an address;
 * an operand that is not there does. */
static inline bool tess_samples_are_whole(const tess_sample_rows *rows, int64_t chunk_numel)
{
    const int64_t nbytes = chunk_numel * (int64_t)tess_dtype_block_nbytes(rows->view.dt);
    return rows->view.numel == 0 ||
           ((rows->sample_stride | rows->row_stride) % chunk_numel == 0 &&
            (int64_t)((uintptr_t)rows->view.data % (uintptr_t)nbytes) == 0);
}

static inline int64_t tess_sample_row_numel(const tess_sample_shape *shape)
{
    return shape->sample_numel * shape->row_numel;
}
