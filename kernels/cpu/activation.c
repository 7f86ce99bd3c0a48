#include "kernels/cpu/ops_priv.h"

static void activation_part(void *arg, int part_idx, int part_numel)
{
    const tess_activation_args *a = arg;
    int64_t lo = 0, hi = 0;
    tess_pool_range(a->row_numel, 1, part_idx, part_numel, &lo, &hi);
    tess_cpu_rows_get()->activation(a, lo, hi);
}

tess_status tess_cpu_activation(const tess_activation_args *a, tess_stream *s)
{
    TESS_TRY(tess_activation_check(a));
    tess_activation_args args = *a;
    tess_pool_run(s->pool, tess_cpu_part_numel(s, 4 * a->x.numel), activation_part, &args);
    return TESS_OK;
}

static void activation_backward_part(void *arg, int part_idx, int part_numel)
{
    const tess_activation_backward_args *a = arg;
    int64_t lo = 0, hi = 0;
    tess_pool_range(a->row_numel, 1, part_idx, part_numel, &lo, &hi);
    tess_cpu_rows_get()->activation_backward(a, lo, hi);
}

tess_status tess_cpu_activation_backward(const tess_activation_backward_args *a, tess_stream *s)
{
    TESS_TRY(tess_activation_backward_check(a));
    tess_activation_backward_args args = *a;
    tess_pool_run(s->pool, tess_cpu_part_numel(s, 4 * a->x.numel), activation_backward_part, &args);
    return TESS_OK;
}

static void square_error_part(void *arg, int part_idx, int part_numel)
{
    const tess_square_error_args *a = arg;
    int64_t lo = 0, hi = 0;
    tess_pool_range(a->row_numel, 1, part_idx, part_numel, &lo, &hi);
    tess_cpu_rows_get()->square_error(a, lo, hi);
}

tess_status tess_cpu_square_error(const tess_square_error_args *a, tess_stream *s)
{
    TESS_TRY(tess_square_error_check(a));
    tess_square_error_args args = *a;
    tess_pool_run(s->pool, tess_cpu_part_numel(s, a->y.numel), square_error_part, &args);
    return TESS_OK;
}
