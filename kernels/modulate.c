#include "kernels/modulate.h"

#include "kernels/sample_priv.h"

static tess_status check_factor(const char *op, const char *name, tess_factor v,
                                const tess_sample_shape *shape, int64_t stride)
{
    return tess_check_rows(op, name, v, shape->sample_numel, shape->dim, stride);
}

static tess_status check_factors(const char *op, const tess_sample_shape *shape, int64_t stride,
                                 tess_dtype dt, const tess_factor *const factor[3])
{
    static const char *const name[] = {"shift", "scale", "gate"};
    TESS_CHECK(stride >= shape->dim, TESS_E_ARG,
               "%s: factors of %" PRId64 " elements are %" PRId64 " apart", op, shape->dim, stride);
    for (int i = 0; i < 3; i++) {
        if (factor[i] == NULL || factor[i]->numel == 0)
            continue;
        TESS_TRY(check_factor(op, name[i], *factor[i], shape, stride));
        TESS_TRY(tess_check_dtype(op, name[i], *factor[i], dt));
    }
    return TESS_OK;
}

tess_status tess_modulate_check(const tess_modulate_args *a)
{
    static const char op[] = "modulate";
    const tess_sample_shape *shape = &a->shape;
    TESS_TRY(tess_check_float(op, "x", a->x.view));
    TESS_TRY(tess_check_samples(op, "x", &a->x, shape, 1, a->x.view.dt));
    TESS_TRY(tess_check_samples(op, "y", &a->y, shape, 1, a->x.view.dt));
    TESS_TRY(check_factors(op, shape, a->factor_stride, a->x.view.dt,
                           (const tess_factor *const[3]){&a->shift, &a->scale, NULL}));
    const int64_t rows = shape->sample_numel * shape->row_numel;
    TESS_CHECK(rows == 0 || (a->shift.numel > 0 && a->scale.numel > 0), TESS_E_ARG,
               "%s: shift or scale is missing", op);
    TESS_TRY(tess_check_pointer(op, "mean", a->mean, rows));
    TESS_TRY(tess_check_pointer(op, "inv", a->inv, rows));
    TESS_CHECK(a->eps >= 0.0f, TESS_E_RANGE, "%s: eps is %g, expected at least 0", op,
               (double)a->eps);
    return tess_check_disjoint(op, "x", a->y.view, a->x.view);
}

tess_status tess_modulate_backward_check(const tess_modulate_backward_args *a)
{
    static const char op[] = "modulate backward";
    const tess_sample_shape *shape = &a->shape;
    const tess_dtype dt = a->x.view.dt;
    TESS_TRY(tess_check_float(op, "x", a->x.view));
    TESS_TRY(tess_check_samples(op, "x", &a->x, shape, 1, dt));
    TESS_TRY(tess_check_samples(op, "d_y", &a->d_y, shape, 1, dt));
    const int64_t rows = shape->sample_numel * shape->row_numel;
    TESS_TRY(tess_check_pointer(op, "mean", a->mean, rows));
    TESS_TRY(tess_check_pointer(op, "inv", a->inv, rows));
    TESS_TRY(check_factors(op, shape, a->factor_stride, dt,
                           (const tess_factor *const[3]){&a->d_shift, &a->scale, NULL}));
    TESS_TRY(check_factors(op, shape, a->factor_stride, dt,
                           (const tess_factor *const[3]){NULL, &a->d_scale, NULL}));
    TESS_CHECK((a->d_shift.numel > 0) == (a->d_scale.numel > 0), TESS_E_ARG,
               "%s: one of d_shift and d_scale is missing", op);
    if (a->d_shift.numel > 0)
        TESS_TRY(tess_check_pointer(op, "work", a->work, shape->dim));
    if (a->d_x.view.numel == 0)
        return TESS_OK;
    TESS_CHECK(rows == 0 || a->scale.numel > 0, TESS_E_ARG, "%s: scale is missing", op);
    TESS_TRY(tess_check_samples(op, "d_x", &a->d_x, shape, 1, dt));
    if (a->residual.view.numel > 0)
        TESS_TRY(tess_check_samples(op, "residual", &a->residual, shape, 1, dt));
    TESS_TRY(tess_check_disjoint(op, "d_y", a->d_x.view, a->d_y.view));
    return tess_check_disjoint(op, "x", a->d_x.view, a->x.view);
}

tess_status tess_gate_check(const tess_gate_args *a)
{
    static const char op[] = "gate";
    TESS_TRY(tess_check_float(op, "x", a->x.view));
    const tess_sample_rows *rows[] = {&a->x, &a->f, &a->y};
    for (int i = 0; i < TESS_NELEM(rows); i++)
        TESS_TRY(tess_check_samples(op, (const char *const[]){"x", "f", "y"}[i], rows[i], &a->shape,
                                    1, a->x.view.dt));
    TESS_TRY(check_factors(op, &a->shape, a->factor_stride, a->x.view.dt,
                           (const tess_factor *const[3]){NULL, NULL, &a->gate}));
    return tess_check_disjoint(op, "f", a->y.view, a->f.view);
}

tess_status tess_gate_backward_check(const tess_gate_backward_args *a)
{
    static const char op[] = "gate backward";
    const tess_dtype dt = a->d_y.view.dt;
    TESS_TRY(tess_check_float(op, "d_y", a->d_y.view));
    TESS_TRY(tess_check_samples(op, "d_y", &a->d_y, &a->shape, 1, dt));
    TESS_TRY(tess_check_samples(op, "d_f", &a->d_f, &a->shape, 1, dt));
    TESS_TRY(check_factors(op, &a->shape, a->factor_stride, dt,
                           (const tess_factor *const[3]){NULL, NULL, &a->gate}));
    TESS_TRY(check_factors(op, &a->shape, a->factor_stride, dt,
                           (const tess_factor *const[3]){NULL, NULL, &a->d_gate}));
    if (a->d_gate.numel > 0) {
        TESS_TRY(tess_check_samples(op, "f", &a->f, &a->shape, 1, dt));
        TESS_TRY(tess_check_disjoint(op, "f", a->d_f.view, a->f.view));
        TESS_TRY(tess_check_pointer(op, "work", a->work, a->shape.dim));
    }
    return tess_check_disjoint(op, "d_y", a->d_f.view, a->d_y.view);
}
