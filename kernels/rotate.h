/**
 * RMSNorm of every head, then a rotation of neighbouring elements, from one array of rows into
 * another.
 *
 * n = x / sqrt(mean(x^2) + eps) over the D elements of a head, w n rotated in pairs (2m, 2m + 1) by
 * the angle of the row and of m: y0 = a cos - b sin, y1 = a sin + b cos. f32 inside, one rounding.
 * Row t of every sample takes row t of the tables.
 */
#pragma once

#include "kernels/modulate.h"

TESS_BEGIN_DECLS

enum { TESS_ROTATE_DIM_MAX = 1024 };

typedef struct tess_rotate_args {
    tess_sample_shape shape; /* its dim is D; rows hold head_numel of them */
    int64_t head_numel;
    tess_sample_rows x; /* dt */
    tess_view w;        /* [D] f32 or bf16 */
    float eps;
    const float *cos_table, *sin_table; /* [N, D / 2] f32 */
    tess_sample_rows y;                 /* dt; must not overlap x */
} tess_rotate_args;

typedef struct tess_rotate_backward_args {
    tess_sample_shape shape;
    int64_t head_numel;
    tess_sample_rows x; /* of the forward */
    tess_view w;
    float eps;
    const float *cos_table, *sin_table;
    tess_sample_rows d_y;
    tess_sample_rows d_x; /* out; must not overlap x or d_y */
    float *d_w;           /* [D] f32, += rows ascending in 16 fixed chunks, heads ascending inside a
                             row; NULL: frozen */
    float *work;          /* [16, D] f32 where d_w is */
} tess_rotate_backward_args;

TESS_MUST_CHECK tess_status tess_rotate_check(const tess_rotate_args *a);
TESS_MUST_CHECK tess_status tess_rotate_backward_check(const tess_rotate_backward_args *a);

TESS_END_DECLS
