#include "kernels/rotate.h"

#include "kernels/sample_priv.h"

static tess_status check_rotation(const char *op, const tess_sample_shape *shape,
                                  int64_t head_numel, tess_view w)
{
    TESS_TRY(tess_check_extent(op, "head_numel", head_numel, 1));
    TESS_CHECK(shape->dim >= 2 && shape->dim % 2 == 0 && shape->dim <= TESS_ROTATE_DIM_MAX,
               TESS_E_ARG, "%s: heads of %" PRId64 " elements, expected an even number up to %d",
               op, shape->dim, TESS_ROTATE_DIM_MAX);
    TESS_TRY(tess_check_float(op, "w", w));
    return tess_check_numel(op, "w", w, shape->dim);
}

tess_status tess_rotate_check(const tess_rotate_args *a)
{
    static const char op[] = "rotate";
    const tess_dtype dt = a->x.view.dt;
    TESS_TRY(check_rotation(op, &a->shape, a->head_numel, a->w));
    TESS_TRY(tess_check_float(op, "x", a->x.view));
    TESS_TRY(tess_check_samples(op, "x", &a->x, &a->shape, a->head_numel, dt));
    TESS_TRY(tess_check_samples(op, "y", &a->y, &a->shape, a->head_numel, dt));
    TESS_TRY(tess_check_pointer(op, "cos_table", a->cos_table, a->shape.row_numel));
    TESS_TRY(tess_check_pointer(op, "sin_table", a->sin_table, a->shape.row_numel));
    return tess_check_disjoint(op, "x", a->y.view, a->x.view);
}

tess_status tess_rotate_backward_check(const tess_rotate_backward_args *a)
{
    static const char op[] = "rotate backward";
    const tess_dtype dt = a->x.view.dt;
    TESS_TRY(check_rotation(op, &a->shape, a->head_numel, a->w));
    TESS_TRY(tess_check_float(op, "x", a->x.view));
    TESS_TRY(tess_check_samples(op, "x", &a->x, &a->shape, a->head_numel, dt));
    TESS_TRY(tess_check_samples(op, "d_y", &a->d_y, &a->shape, a->head_numel, dt));
    TESS_TRY(tess_check_samples(op, "d_x", &a->d_x, &a->shape, a->head_numel, dt));
    TESS_TRY(tess_check_pointer(op, "cos_table", a->cos_table, a->shape.row_numel));
    TESS_TRY(tess_check_pointer(op, "sin_table", a->sin_table, a->shape.row_numel));
    if (a->d_w != NULL)
        TESS_TRY(tess_check_pointer(op, "work", a->work, a->shape.dim));
    TESS_TRY(tess_check_disjoint(op, "d_y", a->d_x.view, a->d_y.view));
    return tess_check_disjoint(op, "x", a->d_x.view, a->x.view);
}
